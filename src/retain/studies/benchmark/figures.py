"""What the benchmark shows: tables and figures from the plain results of its seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from retain import metrics
from retain.figures import Figure, Lines, Scatter, Series, Table
from retain.metrics import Estimate, estimate, interval
from retain.studies.benchmark.arms import LABELS, applies
from retain.studies.benchmark.reported import reported, source
from retain.studies.benchmark.spec import BenchmarkSpec

Results = Sequence[dict[str, Any]]
Cell = dict[str, Any]
_WIDE = 10  # tasks that fit into a table


def average(values: Sequence[float]) -> float:
    """The mean of a row."""
    return math.fsum(values) / len(values)


def final(cell: Cell) -> float:
    """Average accuracy at the end."""
    return average(cell["rows"][-1])


def of(results: Results, scenario: str, method: str) -> list[Cell]:
    """A method's cells in a scenario, one a seed that has it."""
    return [cell for result in results for cell in result["cells"] if (cell["scenario"], cell["method"]) == (scenario, method)]


def there(spec: BenchmarkSpec, results: Results, scenario: str) -> list[str]:
    """Methods that some seed has in a scenario."""
    return [method for method in spec.methods if applies(method, scenario) and of(results, scenario, method)]


def _whole(results: Results, scenario: str, methods: Sequence[str]) -> list[dict[str, Cell]]:
    """By seed, the cells of all methods, of the seeds that have them all."""
    found = [{c["method"]: c for c in result["cells"] if c["scenario"] == scenario} for result in results]
    return [cells for cells in found if all(method in cells for method in methods)]


def runs(cells: Sequence[Any]) -> str:
    """How many, in words."""
    return f"{len(cells)} seed{'s' * (len(cells) != 1)}"


def _done(spec: BenchmarkSpec, results: Results) -> str:
    """How many seeds its cells have, in words."""
    cells = [of(results, scenario, method) for scenario in spec.scenarios for method in there(spec, results, scenario)] or [[]]
    least, most = min(cells, key=len), max(cells, key=len)
    return runs(most) if len(least) == len(most) else f"{len(least)} to {runs(most)}, unfinished"


def verdict(found: Sequence[float], said: tuple[float, float] | None) -> str:
    """Whether ours, in per cent, agrees with what is reported: the intervals of 95 % meet, or ours is above or below.

    Args:
        found: One number a seed.
        said: What is reported, and its standard error.

    Returns:
        A word; empty if nothing is reported, or without an error, or one seed says too little.
    """
    if said is None or not said[1] or len(found) < 2:
        return ""
    ours, around = interval(found), 1.96 * said[1]
    if ours.low > said[0] + around:
        return "above"
    return "below" if ours.high < said[0] - around else "agrees"


def sentence(spec: BenchmarkSpec, results: Results) -> str:
    """The best method of each scenario that isn't a ceiling, and the ceiling."""
    said = []
    for scenario in spec.scenarios:
        methods = [method for method in there(spec, results, scenario) if method not in ("joint", "separate")]
        if not methods:
            continue
        found = {method: estimate(map(final, of(results, scenario, method))) for method in methods}
        best = max(found, key=lambda method: found[method].mean)
        top = of(results, scenario, "joint")
        ceiling = f", joint training {estimate(map(final, top)).percent()}" if top else ""
        said.append(f"{scenario}-incremental: {LABELS[best]} {found[best].percent()} %{ceiling}")
    return f"{'; '.join(said) or 'Nothing yet'} ({_done(spec, results)})."


def notes(spec: BenchmarkSpec) -> list[str]:
    """What has to stand beside the numbers."""
    found = []
    if source(spec):
        found.append(f"Reported numbers are those of {source(spec)}; they are theirs, not ours.")
    if set(spec.search) & set(spec.methods):
        found.append(f"Strengths were chosen on {spec.searched} held-out images a task of seed {spec.search_seed}, which is not among the reported ones.")
    if spec.embedded:
        found.append("On the embedded images, a sixth of MNIST.")
    return found


def numbers(spec: BenchmarkSpec, results: Results) -> dict[str, Any]:
    """Average accuracies at the end, for machines."""
    return {
        scenario: {method: estimate(map(final, of(results, scenario, method)))._asdict() for method in there(spec, results, scenario)}
        for scenario in spec.scenarios
    }


def shown(spec: BenchmarkSpec, results: Results) -> tuple[list[Table], list[Figure]]:
    """Tables and figures."""
    scenarios = [scenario for scenario in spec.scenarios if there(spec, results, scenario)]
    tables = [_summary(spec, results, scenarios)]
    tables += [_beside(spec, results, scenario) for scenario in scenarios if any(reported(spec, scenario, m) for m in there(spec, results, scenario))]
    tables += [_measures(spec, results, scenario) for scenario in scenarios]
    tables += [_by_task(spec, results, scenario) for scenario in scenarios if spec.experiences <= _WIDE]
    tables += [_cost(spec, results, scenarios)]
    tables += [table for scenario in scenarios if (table := _compared(spec, results, scenario))]
    drawn: list[Figure] = [_over_time(spec, results, scenarios)]
    return tables, [*drawn, *(_old_and_new(spec, results, scenario) for scenario in scenarios)]


def _summary(spec: BenchmarkSpec, results: Results, scenarios: Sequence[str]) -> Table:
    body = []
    for method in spec.methods:
        cells = [of(results, scenario, method) for scenario in scenarios]
        if any(cells):
            body.append([LABELS[method], *(estimate(map(final, found)).percent() if found else "–" for found in cells)])
    note = f"Average test accuracy over all tasks after the last one, mean ± standard error over {_done(spec, results)}."
    return Table("Average accuracy at the end, %", ["", *(f"{scenario}-incremental" for scenario in scenarios)], body, note)


def _beside(spec: BenchmarkSpec, results: Results, scenario: str) -> Table:
    body = []
    for method in there(spec, results, scenario):
        found = [100 * final(cell) for cell in of(results, scenario, method)]
        said = reported(spec, scenario, method)
        ours = interval(found)
        range_ = "" if math.isnan(ours.low) else f"{ours.low:.1f} to {ours.high:.1f}"
        theirs = "" if said is None else f"{said[0]}" + (f" ± {said[1]}" if said[1] else "")
        body.append([LABELS[method], f"{ours.mean:.2f}", range_, theirs, verdict(found, said)])
    note = f"Reported: {source(spec)}. Verdict: whether the 95 % intervals meet (Student's for ours)."
    return Table(f"Beside what is reported, {scenario}-incremental", ["", "ours, %", "95 % interval", "reported, %", "verdict"], body, note)


def _measures(spec: BenchmarkSpec, results: Results, scenario: str) -> Table:
    references = {i: c for i, r in enumerate(results) for c in r["cells"] if (c["scenario"], c["method"]) == (scenario, "joint")}

    def unyielding(method: str) -> str:
        pairs = [
            (cell, references[i])
            for i, result in enumerate(results)
            if i in references
            for cell in result["cells"]
            if (cell["scenario"], cell["method"]) == (scenario, method)
        ]
        return _percent([metrics.intransigence(cell["rows"], top["open"]) for cell, top in pairs]) if pairs else ""

    columns: dict[str, Callable[[Cell], float]] = {
        "forgetting": lambda c: metrics.forgetting(c["rows"]),
        "backward transfer": lambda c: metrics.backward_transfer(c["rows"]),
        "forward transfer": lambda c: metrics.forward_transfer(c["rows"]),
        "learning accuracy": lambda c: metrics.learning_accuracy(c["rows"]),
        "anytime": lambda c: metrics.anytime(c["curve"]) if c["curve"] else math.nan,
    }
    body = []
    for method in there(spec, results, scenario):
        cells = of(results, scenario, method)
        one = method == "joint"  # it meets all tasks at once: what is measured between tasks has no meaning
        found = ["" if one or (name, scenario) == ("forward transfer", "class") else _percent([measure(c) for c in cells]) for name, measure in columns.items()]
        nll = estimate(average(cell["nll_rows"][-1]) for cell in cells)
        ece = estimate(average(cell["ece"]) for cell in cells)
        body.append([LABELS[method], *found, "" if one else unyielding(method), _plain(nll), ece.percent()])
    note = (
        "Points of accuracy; negative log likelihood in nats and expected calibration error (15 bins) are means over the tasks at the end. Intransigence is "
        "beside joint training, asked with the outputs that are open to the learner just then."
    )
    return Table(f"What was kept, {scenario}-incremental", ["", *columns, "intransigence", "nll", "calibration error, %"], body, note)


def _none(value: float | None) -> bool:
    return value is None or math.isnan(value)  # what is stored as null comes back as nan


def _by_task(spec: BenchmarkSpec, results: Results, scenario: str) -> Table:
    """Accuracy, likelihood and calibration of each task at the end."""
    body = []
    for method in there(spec, results, scenario):
        cells = of(results, scenario, method)
        found = []
        for j in range(len(cells[0]["ece"])):
            means = [estimate(values).mean for values in zip(*((c["rows"][-1][j], c["nll_rows"][-1][j], c["ece"][j]) for c in cells), strict=True)]
            found.append(f"{100 * means[0]:.1f}, {means[1]:.2f}, {100 * means[2]:.1f}")
        body.append([LABELS[method], *found])
    note = "Accuracy in %, negative log likelihood in nats and expected calibration error in %, means over the seeds, whose tasks may hold other classes."
    return Table(f"Each task at the end, {scenario}-incremental", ["", *(f"task {j + 1}" for j in range(len(body[0]) - 1))], body, note)


def _percent(values: Sequence[float]) -> str:
    return "" if any(map(math.isnan, values)) else estimate(values).percent()


def _plain(found: Estimate) -> str:
    return f"{found.mean:.2f}" if math.isnan(found.error) else f"{found.mean:.2f} ± {found.error:.2f}"


def _cost(spec: BenchmarkSpec, results: Results, scenarios: Sequence[str]) -> Table:
    body = []
    for method in spec.methods:
        cells = [of(results, scenario, method) for scenario in scenarios]
        some = next((found for found in cells if found), None)
        if some is None:
            continue
        seconds = [f"{estimate(cell['seconds'] for cell in found).mean:.0f}" if found else "–" for found in cells]
        forces = [", ".join(sorted({f"{cell['strength']:g}" for cell in found if not _none(cell["strength"])})) if found else "" for found in cells]
        body.append([LABELS[method], *seconds, "" if method == "joint" else f"{max(c['carried'] for found in cells for c in found) / 1e6:.1f}", *forces])
    columns = ["", *(f"{s}, CPU s" for s in scenarios), "carried, MB", *(f"strength, {s}" for s in scenarios)]
    note = "CPU seconds of one run, scoring included. Carried: tensors beside the network that a method needs for the next task."
    return Table("Cost and strengths", columns, body, note)


def _compared(spec: BenchmarkSpec, results: Results, scenario: str) -> Table | None:
    """Ranks, and every method less the best that is no ceiling, seed by seed."""
    methods = [method for method in there(spec, results, scenario) if method not in ("joint", "separate")]
    seeds = _whole(results, scenario, methods)
    if len(methods) < 2 or len(seeds) < 2:
        return None
    table = [[final(cells[method]) for method in methods] for cells in seeds]
    ranks = metrics.ranks(table)
    best = min(range(len(methods)), key=lambda i: ranks.mean[i])
    body = []
    for i in sorted(range(len(methods)), key=lambda i: ranks.mean[i]):
        found = metrics.paired([row[i] for row in table], [row[best] for row in table])
        body.append([LABELS[methods[i]], f"{ranks.mean[i]:.1f}", *(["", ""] if i == best else [found.difference.percent(), f"{found.p:.3f}"])])
    note = (
        f"Mean ranks over {runs(seeds)} (Friedman's test: p = {ranks.p:.2g}). Less the best on these same images: points with Student's 95 % "
        f"interval, p by flipped signs, which with {len(seeds)} seeds cannot be below {2.0 ** (1 - len(seeds)):.3g}."
    )
    return Table(f"Methods compared, {scenario}-incremental", ["", "mean rank", f"less {LABELS[methods[best]]}", "p"], body, note)


def _over_time(spec: BenchmarkSpec, results: Results, scenarios: Sequence[str]) -> Lines:
    panels = {}
    for scenario in scenarios:
        panels[f"{scenario}-incremental"] = [
            _line(method, color, of(results, scenario, method)) for color, method in enumerate(spec.methods) if _learns(spec, results, scenario, method)
        ]
    caption = f"Average test accuracy over the tasks met so far; bands are one standard error over {_done(spec, results)}."
    return Lines("Accuracy over time", "tasks learned", "average accuracy, %", panels=panels, id="over-time", caption=caption)


def _learns(spec: BenchmarkSpec, results: Results, scenario: str, method: str) -> bool:
    return method != "joint" and method in there(spec, results, scenario)


def _line(method: str, color: int, cells: Sequence[Cell]) -> Series:
    count = len(cells[0]["rows"]) - 1
    found = [estimate(100 * average(cell["rows"][t][:t]) for cell in cells) for t in range(1, count + 1)]
    error = [one.error for one in found] if len(cells) > 1 else None
    return Series(LABELS[method], [float(t) for t in range(1, count + 1)], [one.mean for one in found], error, color=color, dashed=method == "plain")


def _old_and_new(spec: BenchmarkSpec, results: Results, scenario: str) -> Scatter:
    series = []
    for color, method in enumerate(spec.methods):
        if not _learns(spec, results, scenario, method):
            continue
        cells = of(results, scenario, method)
        old = estimate(100 * average(cell["rows"][-1][:-1]) for cell in cells)
        new = estimate(100 * metrics.learning_accuracy(cell["rows"]) for cell in cells)
        errors = {"x_error": [new.error], "y_error": [old.error]} if len(cells) > 1 else {}
        series.append(Series(LABELS[method], [new.mean], [old.mean], color=color, **errors))  # type: ignore[arg-type]
    caption = "Right: learns each task better when it comes. Up: has more of the earlier tasks at the end."
    return Scatter(
        f"Old against new, {scenario}-incremental",
        "accuracy on a task just learned, %",
        "earlier tasks at the end, %",
        series,
        id=f"old-new-{scenario}",
        caption=caption,
    )
