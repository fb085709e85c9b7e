"""What the fine-tuning study shows of the inside of its models."""

from __future__ import annotations

import math
from typing import Any

from retain.figures import Contours, Figure, Lines, Series, Table
from retain.metrics import estimate
from retain.studies.finetune.figures import Entry, Results, names, of, runs, scatter, test
from retain.studies.finetune.spec import FinetuneSpec

_COLUMNS = {
    "distance of the body, relative": "distance, relative",
    "CKA, mean": "CKA to the start, mean",
    "CKA, last layer": "CKA to the start, last layer",
    "CKA between runs, mean": "CKA between runs, mean",
    "barrier, train, nats": "barrier between runs, nats",
    "sharpness, worst, nats": "sharpness, worst, nats",
    "sharpness, average, nats": "sharpness, average, nats",
}
CAVEAT = (
    "None of these is a cause. Distances depend on the scale of the weights, a barrier on the straight line, and sharpness says little about generalisation: "
    "a flat minimum does not imply it."
)


def shown(spec: FinetuneSpec, results: Results) -> tuple[list[Table], list[Figure]]:
    """Tables and figures."""
    return [_measures(spec, results)], [*_scatters(spec, results), *_blocks(spec, results), *_surfaces(spec, results), *_paths(spec, results)]


def _value(entry: Entry, key: str) -> float:
    return float(entry["inside"]["numbers"].get(key, math.nan))


def _mean(entries: list[Entry], key: str) -> float:
    return estimate(_value(entry, key) for entry in entries).mean


def _cell(entries: list[Entry], key: str) -> str:
    found = estimate(_value(entry, key) for entry in entries)
    return "" if math.isnan(found.mean) else f"{found.mean:.3g}" + ("" if math.isnan(found.error) else f" ± {found.error:.1g}")


def _measures(spec: FinetuneSpec, results: Results) -> Table:
    rows = []
    for arm in names(spec):
        entries = of(results, arm, spec.inside_at)
        gap = estimate(float(entry["gap"]) for entry in entries)
        rows.append([arm, estimate(map(test, entries)).percent(), gap.percent(), *(_cell(entries, key) for key in _COLUMNS)])
    note = (
        f"At {spec.inside_at} images a class, mean ± standard error over {runs(results)}; barrier, CKA and sharpness on up to {spec.looked} training images. "
        f"Between runs: two runs on the same images, in another order, from the same trained start or from two random ones. {CAVEAT}"
    )
    return Table("Inside: how far, how alike, how sharp", ["", "test %", "gap, points", *_COLUMNS.values()], rows, note)


def _scatters(spec: FinetuneSpec, results: Results) -> list[Figure]:
    found: list[Figure] = []
    for key, id in (("distance of the body, relative", "distance"), ("sharpness, worst, nats", "sharpness")):
        points = {}
        for arm in names(spec):
            if "shuffled" not in arm:
                entries = of(results, arm, spec.inside_at)
                points[arm] = (_mean(entries, key), 100 * estimate(map(test, entries)).mean)
        points = {arm: point for arm, point in points.items() if not math.isnan(point[0])}
        title = f"Test accuracy against {_COLUMNS[key].split(',')[0]}, {spec.inside_at} images a class"
        found.append(scatter(title, _COLUMNS[key], points, id=f"against-{id}", caption=f"A point an arm, means over {runs(results)}. {CAVEAT}"))
    return found


def _blocks(spec: FinetuneSpec, results: Results) -> list[Figure]:
    lines = []
    blocks: list[str] = []
    for color, arm in enumerate(names(spec)):
        if "shuffled" in arm:
            continue
        entries = of(results, arm, spec.inside_at)
        blocks = list(entries[0]["inside"]["blocks"])
        found = [estimate(float(e["inside"]["blocks"][block]) for e in entries).mean for block in blocks]
        if any(found):
            lines.append(Series(arm, [float(i + 1) for i in range(len(blocks))], found, color=color))
    caption = f"Mean relative distance of a block's parameters, from the inputs: {', '.join(f'{i} {name}' for i, name in enumerate(blocks, start=1))}."
    return [Lines("Distance from the start, block by block", "block", "relative distance", lines, y_log=True, id="blocks", caption=caption)] if lines else []


def _pictured(results: Results, part: str) -> dict[str, Any]:
    """Pictures of the first run, by arm."""
    return {e["arm"]: e["pictures"][part] for result in results for e in result["curves"] if part in e.get("pictures", {})}


def _surfaces(spec: FinetuneSpec, results: Results) -> list[Figure]:
    found = _pictured(results, "surface")
    if not found:
        return []
    offsets = next(iter(found.values()))["offsets"]
    panels = {arm: [list(row) for row in zip(*surface["loss"], strict=True)] for arm, surface in found.items()}
    caption = f"Two random directions, normalised filter by filter, {spec.inside_at} images a class, first run. What they miss may be steep. {CAVEAT}"
    flat = Contours("Loss around the models", "direction 1", "direction 2", offsets, offsets, panels, "loss, nats", id="surfaces", caption=caption)
    raised = Contours("The same in three dimensions", "direction 1", "direction 2", offsets, offsets, panels, "loss, nats", surface=True, id="surfaces-3d")
    return [flat, raised]


def _paths(spec: FinetuneSpec, results: Results) -> list[Figure]:
    figures: list[Figure] = []
    for arm, path in _pictured(results, "path").items():
        xs, ys = ([point[i] for point in path["coordinates"]] for i in (0, 1))
        share = " and ".join(f"{100 * value:.0f}" for value in path["explained"][:2])
        caption = (
            f"The weights after every epoch on the plane of their first two principal components ({share} % of the variance), and the loss on that plane. "
            "A random walk in many dimensions looks as smooth and has as high a first component."
        )
        route, surface = [Series("path", xs, ys, color=1)], {"": path["loss"]}
        figures.append(
            Contours(
                f"The way of {arm}",
                "component 1",
                "component 2",
                path["x"],
                path["y"],
                surface,
                "loss, nats",
                route,
                id=f"path-{arm}",
                caption=caption,
            )
        )
        steps = [float(i) for i in range(len(xs))]
        lines = [Series("at the weights", steps, path["true"]), Series("at their projections", steps, path["projected"], dashed=True)]
        note = "Where the lines differ, the plane does not show the loss that training saw."
        figures.append(Lines(f"Loss along the way of {arm}", "epoch", "loss, nats", lines, id=f"along-{arm}", caption=note))
    return figures
