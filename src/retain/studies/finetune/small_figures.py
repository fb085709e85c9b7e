"""What the small problem shows: errors by the number of points, at equal training error, how far each start goes, and along which way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from retain.diagnosis import random_walk
from retain.figures import Contours, Figure, Lines, Series, Table
from retain.metrics import Estimate, Interval, estimate, interval
from retain.studies.finetune.figures import runs
from retain.studies.finetune.small import HELD, RATES, TESTED, pictured
from retain.studies.finetune.small_problem import BATCH, FEATURES
from retain.studies.finetune.spec import FinetuneSpec

Results = Sequence[dict[str, list[dict[str, Any]]]]
Key = tuple[str, float | None]
ALONE: tuple[Key, ...] = (("random start", None), ("linear in the inputs", None))
RELATED = ("pretrained", "same scale", "pretrained, linear")
LEVELS = (0.3, 0.1, 0.03, 0.01)
"""Training errors at which arms are compared."""
_LADDER = tuple(10 ** (-i / 8) for i in range(33))
_COLORS = {"random start": 6, "linear in the inputs": 4, "pretrained": 0, "same scale": 1, "pretrained, linear": 5}
_SPACE = "Two random directions out of all, the same draws scaled to the filters of each end: what they miss may be steep. A flat end need not generalise."
_FLOOR = 1e-3  # of squared errors in pictures: a single point that fits perfectly would take all colours


def _keys(spec: FinetuneSpec) -> list[Key]:
    return [*ALONE, *((arm, share) for share in spec.small_related for arm in RELATED)]


def _label(key: Key) -> str:
    arm, share = key
    return arm if share is None or math.isnan(share) else f"{arm}, {round(share * FEATURES)} of {FEATURES} features"


def _is(entry: dict[str, Any], key: Key) -> bool:
    """Whether an entry is an arm's; of a stored result, no share is no number."""
    return entry["arm"] == key[0] and (key[1] is None or entry["related"] == key[1])


def _cells(results: Results, key: Key, n: int) -> list[dict[str, Any]]:
    return [cell for result in results for cell in result["cells"] if _is(cell, key) and cell["n"] == n]


def _of(results: Results, key: Key, n: int, measure: str) -> Estimate:
    return estimate(cell[measure] for cell in _cells(results, key, n))


def against(results: Results, key: Key, n: int) -> Interval:
    """Test error less that of the random start on the same points, run by run."""
    pairs = zip(_cells(results, key, n), _cells(results, ALONE[0], n), strict=True)
    return interval(ours["test"] - theirs["test"] for ours, theirs in pairs)


def verdict(difference: Interval) -> str:
    """Whether the interval of a difference leaves 0 out."""
    than = f"{'lower' if difference.mean < 0 else 'higher'} than the random start's"
    if difference.seeds == 1:
        return f"{than} in this one run"
    return than if difference.apart else "not told apart from the random start's"


def at_level(way: dict[str, Any], level: float) -> float | None:
    """Test error where the training error first falls to a level, between two steps along the logarithm of the training error; ``None`` if it never does."""
    pairs = list(zip(way["train"], way["test"], strict=True))
    if pairs[0][0] <= level:
        return float(pairs[0][1])
    for (before, first), (after, second) in pairwise(pairs):
        if after <= level:
            share = math.log(before / level) / math.log(before / after) if after > 0 else 1.0
            return float(first + share * (second - first))
    return None


def _at(results: Results, key: Key, level: float) -> Estimate | None:
    """Over the runs; none unless all of them get there."""
    found = [at_level(way, level) for result in results for way in result["ways"] if _is(way, key)]
    reached = [value for value in found if value is not None]
    return estimate(reached) if reached and len(reached) == len(found) else None


def _ways(spec: FinetuneSpec) -> list[Key]:
    return [key for key in _keys(spec) if "linear" not in key[0]]


def sentence(spec: FinetuneSpec, results: Results) -> str:
    """Test errors where ways are looked at, and whether a pretrained start helps there."""
    n = pictured(spec)
    said = [f"random start {_of(results, ALONE[0], n, 'test').percent()} %"]
    for share in spec.small_related:
        key = ("pretrained", share)
        said.append(f"{_label(key)} in common {_of(results, key, n, 'test').percent()} % ({verdict(against(results, key, n))})")
    return f"{n} points of a function: test error, of the variance: {'; '.join(said)} ({runs(results)})."


def numbers(spec: FinetuneSpec, results: Results) -> dict[str, Any]:
    """The main numbers, for machines: by arm, then test error, training error and distance by the number of points."""
    found: dict[str, Any] = {}
    for key in _keys(spec):
        measures = ("test", "train", "moved") if key in _ways(spec) else ("test", "train")
        said = {"test": "test error", "train": "training error", "moved": "moved"}
        found[f"small, {_label(key)}"] = {f"{said[m]}, {n} points": _of(results, key, n, m)._asdict() for m in measures for n in spec.small_samples}
    return found


def shown(spec: FinetuneSpec, results: Results) -> tuple[list[Table], list[Figure]]:
    """Tables and figures.

    Args:
        spec: The settings.
        results: What the runs found.

    Returns:
        Both, in order.
    """
    tables = [_errors(spec, results), _paired(spec, results), _equal(spec, results), _went(spec, results)]
    return tables, [_curves(spec, results), _distances(spec, results), _along(spec, results), *_pictures(spec, results)]


def _errors(spec: FinetuneSpec, results: Results) -> Table:
    rows = [[_label(key), *(_of(results, key, n, "test").percent() for n in spec.small_samples)] for key in _keys(spec)]
    sources = {share: estimate(s["test"] for result in results for s in result["sources"] if s["related"] == share) for share in spec.small_related}
    learned = ", ".join(f"{source.percent()} % ({round(share * FEATURES)} of {FEATURES} features)" for share, source in sources.items())
    note = (
        f"Mean squared error on {TESTED:,} points without noise, % of the function's variance (1 - R^2), mean ± standard error over {runs(results)}. "
        f"The function is a sum of {FEATURES} ReLU features of {spec.small_dim} normal inputs, and the source, learned from {spec.small_source:,} points, one "
        "that has so many of these features in common, with coefficients of its own; its own test "
        f"error is {learned}. Two hidden layers of {spec.small_width}; 'same scale' is a start with the pretrained one's mean and variance in every layer, "
        "and nothing else of it; the linear arms are ridge regressions, on the inputs and on the pretrained features. "
        f"Each arm takes, at every number of points, what is best of {len(RATES)} learning rates (or of 8 strengths) on the same {HELD} held-out points, "
        "which are more than some arms are trained on."
    )
    return Table("A function from few points: test error, %", ["points", *map(str, spec.small_samples)], rows, note)


def _paired(spec: FinetuneSpec, results: Results) -> Table:
    rows = []
    for key in _keys(spec)[1:]:
        found = [against(results, key, n) for n in spec.small_samples]
        rows.append([_label(key), *(f"{difference.percent()}{' *' if difference.apart else ''}" for difference in found)])
    note = (
        "In points of the variance: below 0 is better than the random start, on the same function and points. Student's 95 % interval over "
        f"{runs(results)}; * where 0 is outside. Sources are learned from the same random start."
    )
    return Table("Test error less that of the random start", ["points", *map(str, spec.small_samples)], rows, note)


def _equal(spec: FinetuneSpec, results: Results) -> Table:
    rows = []
    for key in _ways(spec):
        found = [_at(results, key, level) for level in LEVELS]
        end = _of(results, key, pictured(spec), "train")
        rows.append([_label(key), *(value.percent() if value else "" for value in found), f"{100 * end.mean:.2g}"])
    note = (
        f"Test error in %, {pictured(spec)} points, where the training error first falls to each level, mean ± standard error over {runs(results)}; empty "
        "where not all runs fall so far. Every arm descends at the rate that it chose. A level passed on the way is not where training would be stopped."
    )
    return Table("At equal training error", ["training error", *(f"{100 * level:g} %" for level in LEVELS), "last, %"], rows, note)


def _went(spec: FinetuneSpec, results: Results) -> Table:
    rows = []
    for key in _ways(spec):
        for n in spec.small_samples:
            cells = _cells(results, key, n)
            moved, l2 = (_of(results, key, n, measure) for measure in ("moved", "l2"))
            rates = ", ".join(f"{cell['rate']:g}" for cell in cells)
            rows.append([_label(key), str(n), f"{100 * _of(results, key, n, 'train').mean:.2g}", moved.percent(), f"{l2.mean:.2f}", rates])
    note = (
        "Distance from the start over the norm of the start, both hidden layers together, and the distance itself. A pretrained start has a larger norm, and "
        f"a larger rate goes farther at the same training error. Momentum 0.9, the rate falling to 0 in {spec.small_steps:,} steps of at most {BATCH} points."
    )
    return Table("How far each start goes", ["", "points", "training error, %", "moved, %", "L2", "rate, run by run"], rows, note)


def _panels(spec: FinetuneSpec, results: Results, measure: str) -> dict[str, list[Series]]:
    """A panel a source, in each of which the arms without a source stand too."""
    panels: dict[str, list[Series]] = {}
    for share in spec.small_related:
        lines = []
        for key in (*ALONE, *((arm, share) for arm in RELATED)):
            if measure == "moved" and key not in _ways(spec):
                continue
            found = [_of(results, key, n, measure) for n in spec.small_samples]
            means, deviations = ([100 * value for value in column] for column in ([e.mean for e in found], [e.error for e in found]))
            lines.append(Series(key[0], [float(n) for n in spec.small_samples], means, deviations, color=_COLORS[key[0]], dashed="linear" in key[0]))
        panels[f"source with {round(share * FEATURES)} of {FEATURES} features in common"] = lines
    return panels


def _curves(spec: FinetuneSpec, results: Results) -> Lines:
    caption = (
        f"Mean squared error on {TESTED:,} points, % of the variance; 100 % is to answer the mean. Bands are one standard error over {runs(results)}. "
        "The arms without a source are the same in each panel."
    )
    panels = _panels(spec, results, "test")
    return Lines("A function from few points", "points", "test error, %", panels=panels, x_log=True, y_log=True, id="small-error", caption=caption)


def _distances(spec: FinetuneSpec, results: Results) -> Lines:
    caption = (
        f"Distance of the hidden layers from their start over its norm, %. Bands are one standard error over {runs(results)}. The arms went at rates of their "
        "own, which the table has; distance depends on them, and on how layers are scaled."
    )
    return Lines("How far each start goes", "points", "moved, %", panels=_panels(spec, results, "moved"), x_log=True, id="small-moved", caption=caption)


def _along(spec: FinetuneSpec, results: Results) -> Lines:
    series = []
    for key in _ways(spec):
        if key[0] == "same scale":
            continue
        found = [(level, _at(results, key, level)) for level in _LADDER]
        there = [(level, value) for level, value in found if value is not None]
        x, y = [100 * level for level, _ in there], [100 * value.mean for _, value in there]
        series.append(Series(_label(key), x, y, [100 * value.error for _, value in there], color=_COLORS[key[0]] if key in ALONE else None))
    caption = (
        f"{pictured(spec)} points, from the right to the left. At a training error of {100 * spec.small_noise**2:g} % what is left is as large as the noise. "
        f"Means over {runs(results)} at the first time that each run gets there; a line ends where one does not."
    )
    return Lines("Test error along the descent", "training error, %", "test error, %", series, x_log=True, id="small-way", caption=caption)


def _pictures(spec: FinetuneSpec, results: Results) -> list[Figure]:
    pictures = next((result["pictures"] for result in results if result["pictures"]), [])
    figures: list[Figure] = []
    for number, picture in enumerate(pictures):
        plane, name = picture["plane"], _label((picture["arm"], picture["related"]))
        first, second = ([point[axis] for point in plane["coordinates"]] for axis in (0, 1))
        path = [Series("path", first, second, labels=["start", *[""] * (len(first) - 2), "end"])]
        x, y = (f"component {axis + 1} ({100 * plane['explained'][axis]:.0f} %)" for axis in (0, 1))
        walk = random_walk(len(first))
        caption = (
            f"Training error on the plane of the first two principal components of the path, {pictured(spec)} points, one run, steps in equal ratios. A random "
            f"walk of as many points, evenly spaced, has {100 * walk[0]:.0f} and {100 * walk[1]:.0f} % in them, so high shares and a smooth curve mean little "
            f"by themselves; and the path is drawn where it falls on the plane, whose error is not the path's own. Below {_FLOOR:g} it is drawn as that."
        )
        values = {"": _floored(plane["error"])}
        figures.append(Contours(f"Path: {name}", x, y, plane["x"], plane["y"], values, "squared error", path, id=f"small-path-{number}", caption=caption))
    if pictures:
        figures += [_projections(pictures), _surfaces(spec, pictures)]
    return figures


def _floored(rows: list[list[float]]) -> list[list[float]]:
    return [[max(value, _FLOOR) for value in row] for row in rows]


def _projections(pictures: list[dict[str, Any]]) -> Lines:
    panels = {}
    for picture in pictures:
        plane = picture["plane"]
        steps, true, projected = ([float(value) for value in plane[name][1:]] for name in ("steps", "true", "projected"))
        lines = [Series("on the path", steps, true), Series("projected on the plane", steps, projected, dashed=True)]
        panels[_label((picture["arm"], picture["related"]))] = lines
    caption = "Where the two differ, the plane does not show what descent saw: the directions that it leaves out matter. Single precision ends near 1e-14."
    return Lines(
        "Training error on the path and on its plane", "step", "squared error", panels=panels, x_log=True, y_log=True, id="small-projected", caption=caption
    )


def _surfaces(spec: FinetuneSpec, pictures: list[dict[str, Any]]) -> Contours:
    offsets = pictures[0]["surface"]["offsets"]
    panels = {_label((picture["arm"], picture["related"])): _floored(picture["surface"]["error"]) for picture in pictures}
    caption = f"Training error around where each arm ended, {pictured(spec)} points, one run; below {_FLOOR:g} it is drawn as that. {_SPACE}"
    return Contours("Around the ends", "direction 1", "direction 2", offsets, offsets, panels, "squared error", id="small-surface", caption=caption)
