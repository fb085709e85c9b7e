"""What the plasticity study shows: its sentences, tables and figures, from the plain results of its seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from retain.figures import Figure, Lines, Matrices, Series, Table
from retain.metrics import Estimate, estimate
from retain.studies.plasticity.further import carried, noise, varied
from retain.studies.plasticity.names import ROWS, band, count
from retain.studies.plasticity.rows import layers_of
from retain.studies.plasticity.spec import PlasticitySpec

Results = Sequence[dict[str, Any]]
Shown = tuple[list[Table], list[Figure]]
GRADIENT = ("vanilla", "tuned")


def _entries(results: Results, row: str) -> list[dict[str, Any]]:
    return [entry for result in results for entry in result["rows"] if entry["row"] == row]


def _of(entries: list[dict[str, Any]], pick: Callable[[dict[str, Any]], float]) -> Estimate:
    return estimate(pick(entry) for entry in entries)


def _final(entry: dict[str, Any]) -> float:
    return float(entry["down"]["test"][-1])


def _first_try(entry: dict[str, Any]) -> float:
    return float(entry["attempts"][0]["down"]["test"][-1])


def sentence(spec: PlasticitySpec, results: Results, part: str) -> str:
    """What a part found, in a sentence."""
    if part == "rows":
        said = [f"{ROWS[row]} {_of(_entries(results, row), _final).percent()} %" for row in spec.rows if row in ("rnn", "prepost-2", "prepostcount-2", "tuned")]
        said = said or [f"{ROWS[row]} {_of(_entries(results, row), _final).percent()} %" for row in spec.rows]
        return f"MNIST after {count(spec.passes, 'pass', 'passes')}: {', '.join(said)} ({count(len(results), 'run')})."
    if part == "variants":
        return varied.sentence(spec, results)
    return carried.sentence(spec, results) if part == "carry" else noise.sentence(spec, results)


def numbers(spec: PlasticitySpec, results: Results) -> dict[str, Any]:
    """The main numbers, for machines: by arm and measure, as ``retain compare`` takes them."""
    found: dict[str, Any] = {}
    if "rows" in spec.experiments:
        for row in spec.rows:
            entries = _entries(results, row)
            found[row] = {"test": _of(entries, _final)._asdict()}
            if row not in GRADIENT:
                found[row] |= {"accepted": _of(entries, lambda entry: float(entry["accepted"]))._asdict(), "upstream": _of(entries, _upstream)._asdict()}
    if "variants" in spec.experiments:
        found |= varied.numbers(spec, results)
    if "carry" in spec.experiments:
        found |= carried.numbers(spec, results)
    if "noise" in spec.experiments:
        found |= noise.numbers(spec, results)
    return found


def _upstream(entry: dict[str, Any]) -> float:
    return float(entry["attempts"][-1]["test"])


def _rows(spec: PlasticitySpec, results: Results) -> Shown:
    rows = []
    for row in spec.rows:
        entries = _entries(results, row)
        if row in GRADIENT:
            rows.append([ROWS[row], "", "", f"{_of(entries, lambda e: e['down']['test'][0]).percent()}", _of(entries, _final).percent(), "", "", ""])
            continue
        diverged = sum(attempt["down"]["diverged"] > 0 for entry in entries for attempt in entry["attempts"])
        rows.append(
            [
                ROWS[row],
                f"{sum(entry['accepted'] for entry in entries)} of {len(entries)}, {count(sum(len(entry['attempts']) for entry in entries), 'try', 'tries')}",
                _of(entries, _upstream).percent(),
                _of(entries, lambda e: e["down"]["test"][0]).percent(),
                _of(entries, _final).percent(),
                _of(entries, _first_try).percent(),
                _of(entries, lambda e: e["start"]).percent(),
                str(diverged),
            ]
        )
    columns = ["", "accepted", "upstream %", "MNIST before %", "after %", "without retry %", "rule not learned %", "diverged"]
    note = (
        f"Test accuracy, mean ± standard error over {count(len(results), 'run')}; MNIST after {count(spec.passes, 'pass', 'passes')} by the "
        f"rule alone. A rule that stays below {100 * spec.accept:g} % of the held-out upstream points is learned anew, up to "
        f"{count(spec.attempts, 'try', 'tries')} in all; 'without retry' takes every "
        "run's first try. 'Rule not learned' is where the "
        "rule starts: its output table is zero."
    )
    tables = [Table("The rows of the published plot", columns, rows, note), _tries(spec, results), *_gradients(spec, results)]
    figures: list[Figure] = [_final_plot(spec, results)]
    for row in spec.rows:
        entries = _entries(results, row)
        panels = {} if row in GRADIENT else {"upstream": _upstream_lines(entries)}
        lines = [band(part, [e["down"]["samples"] for e in entries], [e["down"][part] for e in entries]) for part in ("validation", "test")]
        figures.append(
            Lines(
                ROWS[row],
                "samples",
                "accuracy, %",
                panels={**panels, "MNIST": lines},
                x_labels={"upstream": "passes in which the rule is learned"},
                id=f"row-{row}",
                caption="Left: the halfspace task while the rule is learned. Right: MNIST by the learned rule. Bands are one deviation over "
                f"{count(len(results), 'run')}."
                if panels
                else f"MNIST by gradient descent. Bands are one deviation over {count(len(results), 'run')}.",
            )
        )
    return tables, [*figures, *_heat(spec, results)]


def _upstream_lines(entries: list[dict[str, Any]]) -> list[Series]:
    last = [entry["attempts"][-1] for entry in entries]
    xs = [[float(i) for i in range(len(attempt["training"]))] for attempt in last]
    return [band("training", xs, [attempt["training"] for attempt in last]), band("test", xs, [attempt["tested"] for attempt in last])]


def _final_plot(spec: PlasticitySpec, results: Results) -> Figure:
    up, down = [], []
    for color, row in enumerate(spec.rows):
        entries = _entries(results, row)
        if row not in GRADIENT:
            last = [entry["attempts"][-1] for entry in entries]
            up.append(band(ROWS[row], [[float(i) for i in range(len(a["tested"]))] for a in last], [a["tested"] for a in last], color))
        down.append(band(ROWS[row], [e["down"]["samples"] for e in entries], [e["down"]["test"] for e in entries], color, dashed=row in GRADIENT))
    panels = {"upstream: halfspace, test": up} if up else {}
    return Lines(
        "A rule learned, then carried: all models",
        "images seen",
        "accuracy, %",
        panels={**panels, "downstream: MNIST, test": down},
        x_labels={"upstream: halfspace, test": "passes in which the rule is learned"},
        id="all",
        caption="Left: the halfspace task, with the weights that the last batch of each pass made. Right: MNIST, one image at a time. Bands are one "
        f"deviation over {count(len(results), 'run')}.",
    )


def _tries(spec: PlasticitySpec, results: Results) -> Table:
    rows = []
    for row in spec.rows:
        for run, entry in enumerate(_entries(results, row)):
            for number, attempt in enumerate(entry.get("attempts", [])):
                down = attempt["down"]
                told = [f"{100 * value:.1f}" for value in (attempt["validation"], attempt["test"], down["test"][0], down["test"][-1], down["validation"][-1])]
                rows.append([ROWS[row], str(run), str(number + 1), f"{attempt['loss'][-1]:.3f}", *told, f"{attempt['size'][-1]:.3f}"])
    columns = ["", "run", "try", "meta-loss", "upstream held out %", "test %", "MNIST before %", "after %", "held out %", "size of the rule"]
    note = (
        "Every rule that was learned. With the double softmax the meta-loss is at least 0.313 nats; 0.693 is a "
        f"guess{'' if spec.double_softmax else ' (here without it)'}."
    )
    return Table("Every try", columns, rows, note)


def _gradients(spec: PlasticitySpec, results: Results) -> list[Table]:
    entries = _entries(results, "tuned")
    if not entries:
        return []
    rows = []
    for layers in entries[0]["nets"]:
        nets = [entry["nets"][layers] for entry in entries]
        rates = ", ".join(f"{net['rate']:g}" for net in nets)
        name = "recurrent" if layers == "0" else f"{layers} hidden layers"
        compared = [ROWS[row] for row in spec.rows if row not in GRADIENT and str(layers_of(row)) == layers]
        rows.append([name, estimate(net["test"][-1] for net in nets).percent(), rates, ", ".join(compared)])
    note = (
        f"One start, Adam on all weights, batches of 100, {count(spec.passes, 'pass', 'passes')}; the rate is the best of {list(spec.rates)} on "
        "each run's held-out images."
    )
    return [Table("Gradient descent on the same networks, tuned", ["network", "test %", "rate, run by run", "beside"], rows, note)]


def _heat(spec: PlasticitySpec, results: Results) -> list[Figure]:
    figures: list[Figure] = []
    plain = [row for row in spec.rows if row not in GRADIENT and layers_of(row) and not row.startswith("prepostcount")]
    for part, columns in (("output", ["label", "other"]), ("hidden", ["silent", "fired"])):
        tables = {ROWS[row]: _mean([e["attempts"][-1][part] for e in _entries(results, row)]) for row in plain}
        shown = {name: table for name, table in tables.items() if table}
        if shown:
            title = "What was learned: the output's table" if part == "output" else "What was learned: the hidden layers' table"
            caption = "Mean over the runs of each row's last try; rows are the presynaptic unit, columns the postsynaptic one."
            figures.append(
                Matrices(title, shown, columns, ["silent", "fired"], ".2f", True, "postsynaptic", "presynaptic", id=f"table-{part}", caption=caption)
            )
    histories = [row for row in spec.rows if row.startswith("rnn")][:1]  # the other is the same rule
    tables = {ROWS[row]: _mean([e["attempts"][-1]["hidden"] for e in _entries(results, row)]) for row in histories}
    shown = {name: table for name, table in tables.items() if table}
    if shown:
        size = len(next(iter(shown.values())))
        names = [format(i, f"0{int(math.log2(size))}b") for i in range(size)]
        figures.append(
            Matrices(
                "What was learned: the recurrent graph's table",
                shown,
                names,
                names,
                "" if size > 8 else ".2f",
                True,
                "postsynaptic history",
                "presynaptic history",
                id="table-graph",
                caption="Mean over the runs; histories are one bit a round, the first round first.",
            )
        )
    counted = [row for row in spec.rows if row.startswith("prepostcount")]
    panels = {}
    for row in counted:
        table = _mean([e["attempts"][-1]["counts"] for e in _entries(results, row)])
        if table:
            ends = ("silent to silent", "silent to fired", "fired to silent", "fired to fired")
            panels[ROWS[row]] = [Series(name, [float(i) for i in range(len(values))], values) for name, values in zip(ends, table, strict=True)]
    if panels:
        caption = (
            "Mean over the runs: the number for a weight by the states of its two ends, over how many of the postsynaptic unit's inputs fired. "
            "Counts that hardly occur stay near their random start."
        )
        figures.append(
            Lines("What was learned: PrePostCount's hidden table", "inputs that fired", "number in the table", panels=panels, id="table-count", caption=caption)
        )
    return figures


def _mean(tables: list[list[list[float]] | None]) -> list[list[float]]:
    there = [table for table in tables if isinstance(table, list)]  # not those of networks without such a matrix
    return [[fmean(cells) for cells in zip(*lines, strict=True)] for lines in zip(*there, strict=True)] if there else []


SHOWN: dict[str, Callable[[PlasticitySpec, Results], Shown]] = {"rows": _rows, "variants": varied.shown, "carry": carried.shown, "noise": noise.shown}
