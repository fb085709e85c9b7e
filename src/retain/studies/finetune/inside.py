"""Looking into what an arm learned: how far it went, what it kept, and the loss around and between its runs."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from retain.diagnosis import Trajectory, diagnose, landscape
from retain.errors import InputError
from retain.studies.finetune.spec import FinetuneSpec
from retain.tasks import Task
from retain.training.recorder import Recorder

PICTURED = ("scratch", "fine-tune", "lp-ft")
"""Arms whose surfaces and paths are drawn, in the first run alone."""
_LINE = 7  # points of the line between two runs
_SEARCH = 5  # steps of the search for the worst direction
_DRAWS = 2
_RADIUS = 0.2  # in norms of the filters: farther out a network of this depth answers nothing


def look(
    spec: FinetuneSpec, head: str, start: nn.Module, first: nn.Module, second: nn.Module, task: Task, recorder: Recorder, *, frozen: bool
) -> dict[str, Any]:
    """The headline numbers of two runs of an arm.

    Args:
        spec: The settings.
        head: The head's name; it starts at 0, so its own way is left out of the distances.
        start: The model that the first run started from.
        first: The run that is looked into.
        second: Another one on the same pictures.
        task: The pictures.
        recorder: Where progress is reported.
        frozen: Whether batch-norm statistics stayed those of the start: between two runs they are the same, and none are estimated.

    Returns:
        Numbers by measure, and relative distances by block.
    """
    settings = {"barrier": {"points": _LINE, "reestimate": not frozen}, "sharpness": {"steps": _SEARCH, "draws": _DRAWS}}
    measures = ("distance", "cka", "barrier", "sharpness")
    found = diagnose(start, first, task, second, measures, samples=spec.looked, settings=settings, seed=0, recorder=recorder)
    body = {name: moved for name, moved in found["distance"].layers.items() if not name.startswith(f"{head}.")}
    start_norm = math.hypot(*(float(parameter.detach().norm()) for name, parameter in start.named_parameters() if name in body))
    layers = {name: moved.relative for name, moved in body.items() if math.isfinite(moved.relative)}
    went = math.hypot(*(moved.l2 for moved in body.values())) / start_norm
    return {"numbers": {**found.numbers(), "distance of the body, relative": went}, "blocks": _by_block(layers)}


def pictures(spec: FinetuneSpec, model: nn.Module, trajectory: Trajectory, task: Task, recorder: Recorder, *, frozen: bool) -> dict[str, Any]:
    """The loss around a model, and its way there on the plane of its first two principal components."""
    around = landscape(model, task, points=spec.surface_points, radius=_RADIUS, samples=spec.looked, seed=0, recorder=recorder)
    kept: dict[str, Any] = {"offsets": around.offsets, "loss": around.loss.tolist()}
    try:
        plane = trajectory.plane(task, points=spec.surface_points, samples=spec.looked, reestimate=not frozen, seed=0, recorder=recorder)
    except InputError:  # too few epochs, or a head alone that went straight on
        return {"surface": kept}
    fields = ("coordinates", "explained", "off", "true", "projected", "x", "y", "loss")
    return {"surface": kept, "path": {name: getattr(plane, name) for name in fields}}


def _by_block(layers: dict[str, float]) -> dict[str, float]:
    """The mean relative distance of the layers of each block, in order."""
    found: dict[str, list[float]] = {}
    for name, value in layers.items():
        words = name.split(".")
        block = ".".join(words[: 2 if len(words) > 2 and words[1].isdigit() else 1])
        found.setdefault(block, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}
