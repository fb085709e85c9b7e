"""What the forgetting study shows: its sentence, tables and figures, from the plain results of its seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from retain.figures import Bars, Images, Lines, Matrices, Scatter, Series, Table
from retain.metrics import Estimate, estimate, forgetting
from retain.studies.forgetting_arms import LAWS

if TYPE_CHECKING:
    from retain.tasks import Task

Results = Sequence[dict[str, Any]]
RULES = ("exact", "sampled", "empirical", "predicted")
TASKS = ("mnist", "fashion")
TITLES = {"mnist": "MNIST", "fashion": "Fashion-MNIST"}
NAMES = {
    "first": "MNIST only",
    "plain": "plain",
    "ewc": "EWC",
    "laplace": "structured Laplace",
    "ekfac": "structured Laplace, EKFAC",
    "ssr": "SSR",
    "si": "SI",
    "mas": "MAS",
    "rwalk": "RWalk",
    "l2sp": "L2-SP",
    "joint": "joint (ceiling)",
}
_FEW = 5  # series whose points can all be labelled
_COLORS = {"plain": 1, "ewc": 0, "l2sp": 2, "laplace": 3, "ekfac": 4, "ssr": 5, "si": 8, "mas": 9, "rwalk": 10, "joint": 6, "first": 7}


def _end(results: Results, arm: str, task: int, rows: str = "rows") -> Estimate:
    return estimate(r["arms"][arm][rows][-1][task] for r in results)


def _arms(results: Results) -> list[str]:
    return [arm for arm in results[0]["arms"] if arm != "first"]


def sentence(results: Results) -> str:
    """The headline: what was kept, what it cost, and whether Fashion-MNIST's split is the published one."""
    remark = " (Fashion-MNIST in a split of our own.)" if any("split here" in note for r in results for note in r["notes"]) else ""
    return _kept(results) + remark


def _kept(results: Results) -> str:
    arms = _arms(results)
    if not {"plain", "ewc"} <= set(arms):
        parts = [f"{NAMES[arm]} {_end(results, arm, 0).percent()} % / {_end(results, arm, 1).percent()} %" for arm in arms]
        return f"MNIST / Fashion-MNIST at the end: {'; '.join(parts)}."
    compared = [arm for arm in ("laplace", "ewc") if arm in arms]
    kept = ", ".join(f"{_end(results, arm, 0).percent()} % with {NAMES[arm]}" for arm in compared)
    new = ", ".join(f"{_end(results, arm, 1).percent()} %" for arm in (*compared, "plain"))
    text = f"MNIST kept: {kept}, {_end(results, 'plain', 0).percent()} % without; Fashion-MNIST: {new}."
    if "joint" in arms:
        text += f" Joint training, the ceiling: {_end(results, 'joint', 0).percent()} % and {_end(results, 'joint', 1).percent()} %."
    return text


def table(results: Results) -> Table:
    """Every arm's end."""
    rows = []
    for arm in ["first", *_arms(results)]:
        ends = [_end(results, arm, task).percent() for task in (0, 1)]
        matrices = [r["arms"][arm]["rows"] for r in results]
        lost = "" if arm in ("first", "joint") else estimate(forgetting(R) for R in matrices).percent()
        mean = estimate(sum(R[-1]) / 2 for R in matrices).percent()
        nll = estimate(r["arms"][arm]["nll_rows"][-1][0] for r in results)
        rows.append([NAMES[arm], *ends, mean, lost, f"{nll.mean:.2f}"])
    seeds = len(results)
    note = f"Test accuracy, mean ± standard error over {seeds} seeds." if seeds > 1 else "Test accuracy, one seed: no error can be given."
    return Table("At the end", ["", "MNIST %", "Fashion-MNIST %", "mean %", "forgetting, points", "MNIST nll, nats"], rows, note)


def choices(results: Results, used: dict[str, list[float]]) -> list[Table]:
    """The trade-off in numbers, with the validation accuracies that a choice is to be made on, and the values that were used."""
    tables = []
    for kind in results[0]["tradeoff"]:
        grid = _grid(results, kind)
        if not grid:
            continue
        rows = []
        best = max(grid, key=lambda entry: entry[1][2].mean + entry[1][3].mean)[0]
        for value, ends in grid:
            marks = [mark for mark, here in (("best on validation", value == best), ("used", value in used.get(kind, []))) if here]
            rows.append([f"{value:.4g}", *(end.percent() for end in ends), ", ".join(marks)])
        heading = "tau" if kind == "l2sp" else "strength"
        columns = [heading, "MNIST %", "Fashion-MNIST %", "MNIST validation %", "Fashion validation %", ""]
        title = f"{NAMES[kind]} by {'prior width' if kind == 'l2sp' else 'strength'}"
        tables.append(Table(title, columns, rows, "Choices are made on the mean of the two validation accuracies; test accuracies choose nothing."))
    return tables


def laws(results: Results) -> Table:
    """What the retention law says to keep, and what comes of it."""
    rows = []
    for place, (arm, law, strengths, *_) in enumerate(results[0]["laws"]):
        ends = [estimate(r["laws"][place][3 + k] for r in results) for k in range(2)]
        means = {key: math.fsum(r["laws"][place][2][key] for r in results) / len(results) for key in strengths}
        text = ", ".join(f"{value:.3g}" for value in means.values())
        rows.append([NAMES[arm], LAWS[law][0], text, *(end.percent() for end in ends)])
    columns = ["belief", "law", "strength", "MNIST %", "Fashion-MNIST %"]
    note = "Asked with the weights at which plain fine-tuning ends. With share 0 it serves the new task alone and is at most 1. Layers first to last."
    return Table("How much to keep: the retention law", columns, rows, note)


def _grid(results: Results, kind: str) -> list[tuple[float, list[Estimate]]]:
    found = []
    for place, entry in enumerate(results[0]["tradeoff"][kind]):
        found.append((entry[0], [estimate(r["tradeoff"][kind][place][1 + k] for r in results) for k in range(4)]))
    return found


def _series(results: Results, pick: Callable[[dict[str, Any]], list[float]], name: str, x: list[float], color: int | None, *, dashed: bool = False) -> Series:
    columns = [estimate(values) for values in zip(*(pick(r) for r in results), strict=True)]
    return Series(name, x, [100 * c.mean for c in columns], [100 * c.error for c in columns], color=color, dashed=dashed)


def curves(results: Results, epochs: int) -> Lines:
    """Accuracy on both tasks over all epochs, one panel a task."""
    panels: dict[str, list[Series]] = {}
    for j, task in enumerate(TASKS):
        lines = []
        for arm in _arms(results):
            if arm == "joint":
                end = _end(results, arm, j)
                lines.append(Series(NAMES[arm], [0, 2 * epochs], [100 * end.mean] * 2, color=_COLORS[arm], dashed=True))
                continue

            def curve(r: dict[str, Any], arm: str = arm, j: int = j, task: str = task) -> list[float]:
                before = [r["arms"]["first"]["rows"][0][j], *(entry["accuracy"][task] for entry in r["arms"]["first"]["history"])]
                if len(before) == 1:  # the first task was learned elsewhere
                    before = [r["arms"]["first"]["rows"][1][j]]
                return [*before, *(entry["accuracy"][task] for entry in r["arms"][arm]["history"])]

            length = len(curve(results[0]))
            start = 2 * epochs + 1 - length
            lines.append(_series(results, curve, NAMES[arm], [float(x) for x in range(start, 2 * epochs + 1)], _COLORS[arm]))
        panels[TITLES[task]] = lines
    return Lines(
        "Test accuracy while MNIST, then Fashion-MNIST is learned",
        "epoch",
        "test accuracy, %",
        panels=panels,
        marks={"Fashion-MNIST begins": float(epochs)},
        id="curves",
        caption=(
            "Left of the dotted line the network learns MNIST (one model, shared by all arms), right of it Fashion-MNIST. "
            "Bands are one standard error over seeds."
        ),
    )


def matrices(results: Results) -> Matrices:
    """The accuracy matrices, mean over seeds."""
    panels = {}
    for arm in _arms(results):
        stack = [r["arms"][arm]["rows"] for r in results]
        if len(stack[0]) == 3:
            panels[NAMES[arm]] = [[100 * math.fsum(R[i][j] for R in stack) / len(stack) for j in range(2)] for i in range(3)]
    return Matrices(
        "Accuracy matrix R[i, j], %",
        panels,
        [TITLES[task] for task in TASKS],
        ["before", "after MNIST", "after Fashion"],
        id="matrices",
        caption="Row i, column j: test accuracy on task j after i tasks. The lower left cell is what was kept of MNIST.",
    )


def tradeoff(results: Results) -> list[Scatter]:
    """New against old accuracy, a point a strength; of many methods also the corner in which the good ones are."""
    series = []
    for kind in results[0]["tradeoff"]:
        grid = _grid(results, kind)
        if grid:
            old, new = ([ends[k] for _, ends in grid] for k in (0, 1))
            labels = [f"{'tau' if kind == 'l2sp' else 's'}={value:.3g}" for value, _ in grid]
            series.append(_points(NAMES[kind], old, new, labels, _COLORS[kind]))
    for arm in ("plain", "joint"):
        if arm in results[0]["arms"]:
            series.append(_points(NAMES[arm], [_end(results, arm, 0)], [_end(results, arm, 1)], None, _COLORS[arm]))
    caption = "One point a strength; up and to the right is better. Error bars are one standard error over seeds."
    axes = ("MNIST kept, % (test)", "Fashion-MNIST learned, % (test)")
    title = "What holding on costs: new against old accuracy"
    if len(series) <= _FEW:
        return [Scatter(title, *axes, series, id="tradeoff", caption=caption)]
    bare = [replace(one, labels=None) for one in series]
    corner = [near for one in bare if (near := _where(one, lambda x, y: x >= 90)).x]
    more = f"{caption} The strengths are in the tables below."
    return [
        Scatter(title, *axes, bare, id="tradeoff", caption=more),
        Scatter("The same where at least 90 % of MNIST is kept", *axes, corner, id="corner", caption=more),
    ]


def _where(series: Series, keep: Callable[[float, float], bool]) -> Series:
    """Some points of a series."""
    kept = [i for i, (x, y) in enumerate(zip(series.x, series.y, strict=True)) if keep(x, y)]

    def some(values: list[float] | None) -> list[float] | None:
        return None if values is None else [values[i] for i in kept]

    return replace(series, x=some(series.x) or [], y=some(series.y) or [], y_error=some(series.y_error), x_error=some(series.x_error))


def _points(name: str, x: list[Estimate], y: list[Estimate], labels: list[str] | None, color: int) -> Series:
    return Series(name, [100 * e.mean for e in x], [100 * e.mean for e in y], [100 * e.error for e in y], [100 * e.error for e in x], labels, color)


def samples_of(tasks: list[Task]) -> Images:
    """One test image a class of each task, with the classes' names."""
    rows = []
    for task in tasks:
        data, names = task.get("test"), task.class_names or ()
        inputs, targets = data.inputs, data.targets  # type: ignore[attr-defined]
        first = [int((targets == label).nonzero()[0, 0]) for label in range(10)]
        rows.append([(names[label], inputs[row, 0].tolist()) for label, row in enumerate(first)])
    return Images(
        "The two tasks share ten outputs",
        rows,
        id="images",
        caption="Output 0 has to mean both the digit 0 and T-shirt/top, and so on: the labels collide on purpose.",
    )


def norms(results: Results) -> Bars:
    """Norm of the Fisher's diagonal by layer, trained and fresh, under each label rule."""
    layers = list(results[0]["norms"]["trained"]["exact"])
    panels = {}
    for net, title in (("trained", "trained on MNIST"), ("fresh", "fresh network")):
        rules = results[0]["norms"][net]
        panels[title] = {rule: [math.fsum(r["norms"][net][rule][layer] for r in results) / len(results) for layer in layers] for rule in rules}
    totals = [[math.fsum(value**2 for value in panel[rule]) ** 0.5 for rule in RULES] for panel in panels.values()]
    return Bars(
        "Norm of the Fisher's diagonal by layer",
        "Frobenius norm",
        layers,
        panels,
        y_log=True,
        id="norms",
        caption=(
            f"Over all layers, trained / fresh: {'; '.join(f'{rule} {a:.2g} / {b:.2g}' for rule, a, b in zip(RULES, *totals, strict=True))}. "
            "'exact' and 'sampled' take labels from the model's own answers: they estimate the Fisher. 'empirical' takes the data's label and "
            "'predicted' the model's best answer. A network that is confident and right has almost no gradient there, so the longer it trains, the "
            f"further these two fall below the Fisher; here, on the trained network, they are {totals[0][2] / totals[0][0]:.2g} and "
            f"{totals[0][3] / totals[0][0]:.2g} times the exact norm. On the fresh one, which is sure of nothing, they are "
            f"{totals[1][2] / totals[1][0]:.2g} and {totals[1][3] / totals[1][0]:.2g} times. Whether the norm grows with training depends on the layer and on "
            "the label rule: the tutorial, which found it larger after training, looked at the first layer under 'predicted'."
        ),
    )


def sample_sizes(results: Results) -> list[Lines]:
    """Error of the Fisher, and what is kept with it, against the number of samples behind it."""
    counts = [float(entry[0]) for entry in results[0]["samples"]]
    columns = {k: [estimate(r["samples"][i][k] for r in results) for i in range(len(counts))] for k in (1, 2, 3)}
    marks = {"the tutorial: 512": 512.0} if min(counts) < 512 < max(counts) else {}

    def line(name: str, k: int, scale: float, color: int) -> Series:
        return Series(name, counts, [scale * e.mean for e in columns[k]], [scale * e.error for e in columns[k]], color=color)

    def level(name: str, task: int, color: int) -> Series:
        return Series(name, [counts[0], counts[-1]], [100 * _end(results, "ewc", task).mean] * 2, color=color, dashed=True)

    slope = float(np.polyfit(np.log(counts), np.log([e.mean for e in columns[1]]), 1)[0]) if len(counts) > 1 else math.nan
    kept = [line("MNIST kept", 2, 100, 0), line("Fashion-MNIST learned", 3, 100, 1)]
    if "ewc" in results[0]["arms"]:
        kept += [level("MNIST, all samples", 0, 0), level("Fashion-MNIST, all samples", 1, 1)]
    return [
        Lines(
            "Error of the Fisher's diagonal",
            "samples behind it",
            "relative error |F - F(all)| / |F(all)|",
            [line("", 1, 1, 0)],
            x_log=True,
            y_log=True,
            marks=marks,
            id="fisher-error",
            caption=f"On both logarithmic axes the points fall with a slope of {slope:.2f}; independent samples would give -0.5.",
        ),
        Lines(
            "What EWC keeps with it",
            "samples behind it",
            "test accuracy, %",
            kept,
            x_log=True,
            marks=marks,
            id="fisher-kept",
            caption="How many samples of the old task are worth measuring.",
        ),
    ]
