"""What the fine-tuning study shows of its arms: tables and figures from the plain results of its seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from retain.figures import Figure, Lines, Scatter, Series, Table
from retain.metrics import Interval, estimate, interval
from retain.studies.finetune.common import CHANGES, arms
from retain.studies.finetune.curves import sizes
from retain.studies.finetune.spec import FinetuneSpec

Results = Sequence[dict[str, Any]]
Entry = dict[str, Any]
LINES = {f"{arm}, alpha {alpha:g}": (arm, alpha) for arm, alphas in {"wise-ft": (0.5,), "soup": (1.0, 0.5)}.items() for alpha in alphas}
"""Fixed points of the lines back to the probe, which are on the curve of every run; the middle is what WiSE-FT's paper recommends if nothing can be chosen."""


def of(results: Results, arm: str, n: int | str) -> list[Entry]:
    """An arm's entries at a size, one a run."""
    if arm in LINES:
        return [{**entry, "accuracy": _on_the_line(entry, LINES[arm][1])} for entry in of(results, LINES[arm][0], n)]
    return [entry for result in results for entry in result["curves"] if entry["arm"] == arm and entry["n"] == n]


def _on_the_line(entry: Entry, alpha: float) -> dict[str, float]:
    return next(point for point in entry["found"]["curve"] if point["alpha"] == alpha)


def test(entry: Entry) -> float:
    """Test accuracy at the end."""
    return float(entry["accuracy"]["test"])


def runs(results: Results) -> str:
    """How many, in words."""
    return f"{len(results)} run{'s' * (len(results) != 1)}"


def difference(results: Results, arm: str, other: str, n: int | str, pick: Callable[[Entry], float] = test) -> Interval:
    """One arm less another, run by run."""
    return interval(pick(a) - pick(b) for a, b in zip(of(results, arm, n), of(results, other, n), strict=True))


def names(spec: FinetuneSpec, *, controls: bool = True) -> list[str]:
    """Names of the arms."""
    return [arm.name for arm in arms(spec) if controls or arm.name in spec.recipes]


def rows(spec: FinetuneSpec, *, controls: bool = True) -> list[str]:
    """Names of the rows of tables of accuracies: the arms, and what was found on the way."""
    return [row for arm in names(spec, controls=controls) for row in (arm, *(point for point, (of_arm, _) in LINES.items() if of_arm == arm))]


def best(spec: FinetuneSpec, results: Results, n: int | str) -> str:
    """The recipe with the best held-out accuracy at a size."""
    return max(rows(spec, controls=False), key=lambda arm: estimate(float(e["accuracy"]["validation"]) for e in of(results, arm, n)).mean)


def sentence(spec: FinetuneSpec, results: Results) -> str:
    """What the curves say, in a sentence."""
    n = spec.inside_at if spec.inside_at in sizes(spec) else sizes(spec)[-1]
    chosen = best(spec, results, n)
    named = [arm for arm in dict.fromkeys(("scratch", "fine-tune", chosen)) if arm in rows(spec)]
    said = [f"{arm} {estimate(map(test, of(results, arm, n))).percent()} %" for arm in named]
    return f"At {n} {'image' if n == 1 else 'images'} a class: {', '.join(said)} of the test images right ({runs(results)})."


def numbers(spec: FinetuneSpec, results: Results) -> dict[str, Any]:
    """The main numbers, for machines: by arm and measure."""
    found: dict[str, Any] = {}
    for arm in rows(spec):
        found[arm] = {f"test at {n}": estimate(map(test, of(results, arm, n)))._asdict() for n in sizes(spec)}
        if arm not in LINES:
            found[arm] |= {f"gap at {n}": estimate(float(e["gap"]) for e in of(results, arm, n))._asdict() for n in sizes(spec)}
    return found


def shown(spec: FinetuneSpec, results: Results) -> tuple[list[Table], list[Figure]]:
    """Tables and figures of the curves."""
    tables = [_accuracies(spec, results)]
    if "fine-tune" in spec.recipes and len(spec.recipes) > 1:
        tables.append(_gains(spec, results))
    if {"fine-tune", "scratch"} <= set(spec.recipes) and spec.controls:
        tables.append(_explained(spec, results))
    tables.append(_effort(spec, results))
    return tables, [*_curves(spec, results), *_epochs(spec, results), *_wise(spec, results)]


def _at(spec: FinetuneSpec) -> list[str]:
    return [f"{n} a class" if n != "all" else "all" for n in sizes(spec)]


def _accuracies(spec: FinetuneSpec, results: Results) -> Table:
    body = [[arm, *(estimate(map(test, of(results, arm, n))).percent() for n in sizes(spec))] for arm in rows(spec)]
    note = (
        f"Mean ± standard error over {runs(results)}, each with its own training images, order and random starts; the test images are always the same. "
        "Learning rates, where there is a choice, are those that are best on held-out images."
    )
    return Table("Test accuracy, %", ["", *_at(spec)], body, note)


def _gains(spec: FinetuneSpec, results: Results) -> Table:
    others = [arm for arm in rows(spec, controls=False) if arm != "fine-tune"]
    body = []
    for arm in others:
        found = [difference(results, arm, "fine-tune", n) for n in sizes(spec)]
        body.append([arm, *(f"{one.percent()}{' *' * one.apart}" for one in found)])
    note = f"Test accuracy less that of fine-tune on the same images, with Student's 95 % interval over {runs(results)}; * where 0 is outside."
    return Table("Gain over plain fine-tuning, points", ["", *_at(spec)], body, note)


def _explained(spec: FinetuneSpec, results: Results) -> Table:
    """How much of the gain of a trained start a control keeps."""
    body: list[list[str]] = []
    whole = [difference(results, "fine-tune", "scratch", n) for n in sizes(spec)]
    body.append(["fine-tune less scratch: all that pretraining gives", *(one.percent() for one in whole)])
    said = {
        "mean-variance": "mean-variance less scratch: the scale of the weights",
        "permuted": "permuted less scratch: the values of the weights, not their places",
    }
    for control in spec.controls:
        if control in said:
            body.append([said[control], *(difference(results, control, "scratch", n).percent() for n in sizes(spec))])
    if "shuffled-blocks" in spec.controls:
        one, two = (f"{arm}, {CHANGES['shuffled-blocks']}" for arm in ("fine-tune", "scratch"))
        found = [difference(results, one, two, n).percent() for n in sizes(spec)]
        body.append([f"fine-tune less scratch on shuffled blocks of {spec.block} px: what is no whole shape", *found])
    if "shuffled-labels" in spec.controls:
        for arm in ("fine-tune", "scratch"):
            name = f"{arm}, {CHANGES['shuffled-labels']}"
            body.append(
                [f"{name}: training images that are memorised, %", *(estimate(_training(e) for e in of(results, name, n)).percent() for n in sizes(spec))]
            )
    note = f"Points of test accuracy with Student's 95 % interval over {runs(results)}, but for the last rows. Parts need not add up."
    return Table("What explains the gain", ["", *_at(spec)], body, note)


def _training(entry: Entry) -> float:
    return float(entry["accuracy"]["data"])


def _effort(spec: FinetuneSpec, results: Results) -> Table:
    n = sizes(spec)[-1]
    body: list[list[str]] = []
    for arm in names(spec):
        entries = of(results, arm, n)
        parameters = entries[0]["parameters"]
        rates = sorted({entry["rate"] for entry in entries})
        body.append(
            [arm, f"{parameters['trained']:,}", f"{parameters['total']:,}", ", ".join(f"{rate:g}" for rate in rates), str(entries[0]["history"][-1]["epoch"])]
        )
    note = f"At {n} images a class. Learning rates are those of the body; the head's own phase, where there is one, is solved."
    return Table("Parameters, rates and epochs", ["", "trained", "in all", "learning rate, by run", "epochs"], body, note)


def _numeric(spec: FinetuneSpec, results: Results) -> list[tuple[int | str, float]]:
    """Sizes with a place on the axis; all the images stand at their mean number a class."""
    found: list[tuple[int | str, float]] = []
    for n in sizes(spec):
        found.append((n, float(n) if n != "all" else float(results[0]["images"]) / int(results[0]["classes"])))
    return found


def _curves(spec: FinetuneSpec, results: Results) -> Iterator[Figure]:
    places = _numeric(spec, results)

    def line(arm: str, color: int) -> Series:
        found = [estimate(map(test, of(results, arm, n))) for n, _ in places]
        error = [100 * one.error for one in found] if len(results) > 1 else None
        return Series(arm, [x for _, x in places], [100 * one.mean for one in found], error, color=color, dashed=arm == "scratch")

    caption = f"Test accuracy against training images a class; bands are one standard error over {runs(results)}."
    for id, title, chosen in (
        ("recipes", "Accuracy against images a class: recipes", rows(spec, controls=False)),
        ("controls", "Accuracy against images a class: controls", [arm for arm in names(spec) if arm not in spec.recipes or arm in ("scratch", "fine-tune")]),
    ):
        if id == "recipes" or spec.controls:
            lines = [line(arm, color) for color, arm in enumerate(chosen)]
            yield Lines(title, "training images a class", "test accuracy, %", lines, x_log=True, id=id, caption=caption)


def _epochs(spec: FinetuneSpec, results: Results) -> Iterator[Figure]:
    """Training and test curves, where tests are scored along the way."""
    if "inside" not in spec.sections:
        return
    for key, label, scale in (("score", "accuracy, %", 100.0), ("loss", "loss, nats", 1.0)):
        other = "accuracy" if key == "score" else "nll"
        panels: dict[str, list[Series]] = {"training": [], "test": []}
        for color, arm in enumerate(names(spec, controls=False)):
            entries = of(results, arm, spec.inside_at)
            for panel, name in (("training", key), ("test", other)):
                points = [
                    (float(first["epoch"]), [scale * e["history"][i][name] for e in entries])
                    for i, first in enumerate(entries[0]["history"])
                    if all(i < len(e["history"]) and not math.isnan(e["history"][i][name]) for e in entries)  # not scored after every epoch
                ]
                found = [estimate(values) for _, values in points]
                error = [one.error for one in found] if len(results) > 1 else None
                panels[panel].append(Series(arm, [x for x, _ in points], [one.mean for one in found], error, color=color))
        yield Lines(
            f"{'Accuracy' if key == 'score' else 'Loss'} over the epochs, {spec.inside_at} images a class",
            "epoch",
            label,
            panels=panels,
            id=f"epochs-{key}",
            y_log=key == "loss",
            caption="Training: running, while the weights change. A phase that solves the head alone comes first, where there is one. "
            f"Bands are one standard error over {runs(results)}.",
        )


def _wise(spec: FinetuneSpec, results: Results) -> Iterator[Figure]:
    if "wise-ft" not in spec.recipes:
        return
    lines = []
    for color, n in enumerate(sizes(spec)):
        entries = of(results, "wise-ft", n)
        points = [(point["alpha"], [100 * e["found"]["curve"][i]["test"] for e in entries]) for i, point in enumerate(entries[0]["found"]["curve"])]
        lines.append(Series(f"{n} a class", [x for x, _ in points], [estimate(values).mean for _, values in points], color=color))
    yield Lines(
        "Between the probe (0) and the fine-tuned weights (1)",
        "alpha",
        "test accuracy, %",
        lines,
        id="wise",
        caption="WiSE-FT takes the alpha that is best on held-out images; the test curve is shown and chooses nothing.",
    )


def scatter(title: str, x_label: str, points: dict[str, tuple[float, float]], **settings: Any) -> Scatter:
    """A point an arm, named."""
    return Scatter(title, x_label, "test accuracy, %", [Series(arm, [x], [y], color=color) for color, (arm, (x, y)) in enumerate(points.items())], **settings)
