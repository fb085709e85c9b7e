r"""A function :math:`f: R^d \to R` from few samples: where gradient descent goes from a start that learned a related function, and from a random one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retain.diagnosis import Trajectory, distance, landscape
from retain.likelihoods import Gaussian
from retain.models import MLP, copy
from retain.recipes import mean_variance
from retain.seeds import derive
from retain.studies.base import Keeper
from retain.studies.finetune.small_problem import FEATURES, Points, descend, error, functions, ridge, sampled, squares
from retain.studies.finetune.spec import FinetuneSpec
from retain.studies.steps import once
from retain.tasks import Task
from retain.training import learn
from retain.training.recorder import Recorder

HELD, TESTED = 200, 2000  # points on which rates and strengths are chosen, and on which errors are measured
RATES = (0.01, 0.05, 0.2)  # from too small to the edge of stability
STRENGTHS = tuple(10.0**power for power in range(-6, 2))
EPOCHS, SOURCE_RATE = 20, 0.003  # how a source is learned, with Adam
POINTS, KEPT = 11, 20  # a side of a picture, and ratios between the steps of a path
# a nat is pi squared errors and no constant is added, so that what landscapes and trajectories measure can be told as squared errors
SQUARED = Gaussian(1 / math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class Starts:
    """What a stage begins with.

    Args:
        models: By arm; all weights of these are trained.
        linear: The arm that is linear in features that stay.
        features: These.
        sources: What was learned before, and how well.
    """

    models: dict[str, MLP]
    linear: str
    features: Callable[[Tensor], Tensor]
    sources: list[dict[str, Any]]


def stages(spec: FinetuneSpec) -> list[str]:
    """The random start, then source by source."""
    return ["random start@small", *(f"related {share:g}@small" for share in spec.small_related)]


def run(spec: FinetuneSpec, seed: int, keeper: Keeper) -> dict[str, list[dict[str, Any]]]:
    """Every start on every number of points.

    Args:
        spec: The settings.
        seed: Of everything; surfaces are made for the first seed of the spec, its offset.
        keeper: Gets the stages.

    Returns:
        ``sources`` and how well they are learned, ``cells`` with the errors of an arm at a number of points, ``ways`` with those along the steps at the
        number that is nearest to 100, ``pictures`` with surfaces there.
    """
    found: dict[str, list[dict[str, Any]]] = {"sources": [], "cells": [], "ways": [], "pictures": []}
    for share, stage in zip((None, *spec.small_related), stages(spec), strict=True):
        entry = once(keeper.recorder(stage), _stage, spec, share, seed)
        for name, values in found.items():
            values += entry[name]
    return found


def pictured(spec: FinetuneSpec) -> int:
    """The number of points at which ways and surfaces are looked at."""
    return min(spec.small_samples, key=lambda n: abs(n - 100))


def body(model: nn.Module) -> nn.Module:
    """All of a student but its head."""
    layers: Any = model.layers
    found: nn.Module = layers[:-1]
    return found


def silent_head(model: MLP) -> MLP:
    """The student with a new head that answers 0, in place."""
    head: Any = model.layers[-1]
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return model


def starts_of(spec: FinetuneSpec, share: float | None, seed: int) -> Starts:
    """The random start, or after a source: its weights, and others of the same scale.

    Args:
        spec: The settings.
        share: Of the features in common; none is no source.
        seed: Of the run; sources are learned from the random start itself.

    Returns:
        Models and features.
    """
    student = MLP(spec.small_dim, spec.small_width, spec.small_width, 1, seed=derive(seed, "network"))
    if share is None:
        return Starts({"random start": student}, "linear in the inputs", nn.Identity(), [])
    source = functions(spec.small_dim, share, seed)[1]
    task = Task(sampled(source, spec.small_source, spec.small_noise, seed, "source points"), likelihood=Gaussian(), id="source")
    learn(student, [task], epochs=EPOCHS, batch_size=100, lr=SOURCE_RATE, schedule="cosine", seed=seed, device="cpu", score_every=EPOCHS)
    told = {"related": share, "common": round(share * FEATURES), "test": error(student, sampled(source, TESTED, 0.0, seed, "source test"))}
    features, pretrained, scaled = body(student), silent_head(copy(student)), silent_head(copy(student))
    mean_variance(scaled, derive(seed, "scale"))  # a head of zeros stays one
    return Starts({"pretrained": pretrained, "same scale": scaled}, "pretrained, linear", features, [told])


def _stage(spec: FinetuneSpec, share: float | None, seed: int, recorder: Recorder) -> dict[str, Any]:
    starts = starts_of(spec, share, seed)
    target = functions(spec.small_dim, 0.0, seed)[0]
    pool = sampled(target, max(spec.small_samples), spec.small_noise, seed, "points")
    held, test = sampled(target, HELD, spec.small_noise, seed, "held out"), sampled(target, TESTED, 0.0, seed, "test")
    entry: dict[str, Any] = {"sources": starts.sources, "cells": [], "ways": [], "pictures": []}
    for number, n in enumerate(spec.small_samples, start=1):
        points, looked = (pool[0][:n], pool[1][:n]), n == pictured(spec)
        place = {"related": share, "n": n}
        entry["cells"].append({"arm": starts.linear, **place, **_linear(starts.features, points, held, test)})
        kept = sorted({0, spec.small_steps} | (_along(spec.small_steps) if looked else set()))
        together = [model for model in starts.models.values() for _ in RATES]
        descended = descend(together, list(RATES) * len(starts.models), points, spec.small_steps, derive(seed, "order", n), kept)
        for number_of_arm, (arm, first) in enumerate(starts.models.items()):
            ends = {step: models[number_of_arm * len(RATES) :][: len(RATES)] for step, models in descended.items()}
            chosen, cell = _chosen(first, ends[spec.small_steps], points, held, test)
            entry["cells"].append({"arm": arm, **place, **cell})
            if looked:
                way = {step: models[chosen] for step, models in ends.items()}
                errors = {name: [error(model, part) for model in way.values()] for name, part in (("train", points), ("test", test))}
                entry["ways"].append({"arm": arm, "related": share, "steps": list(way), **errors})
                if seed == spec.offset and arm != "same scale" and math.isfinite(cell["train"]) and spec.small_steps > 1:
                    entry["pictures"].append({"arm": arm, "related": share, **_pictures(way, points, seed)})
        told = {cell["arm"]: 1 - cell["test"] for cell in entry["cells"] if cell["n"] == n}  # R^2
        recorder.event("step", task=f"{n} points", epoch=number, epochs=len(spec.small_samples), loss=entry["cells"][-1]["train"], accuracy=told)
    return entry


def _along(steps: int) -> set[int]:
    """Steps in equal ratios: descent does most of its way in the first ones."""
    return {0} | {round(steps ** (i / KEPT)) for i in range(KEPT + 1)}


def _linear(features: Callable[[Tensor], Tensor], points: Points, held: Points, test: Points) -> dict[str, Any]:
    """A ridge regression on features that stay, of the strength that is best on held-out points."""
    with torch.no_grad():
        known, *others = [features(inputs).double() for inputs, _ in (points, held, test)]
    tried = []
    for strength in STRENGTHS:
        weights = ridge(known, points[1], strength)
        left = [squares(X @ weights[:-1] + weights[-1], y) for X, y in zip((known, *others), (points[1], held[1], test[1]), strict=True)]
        tried.append({"strength": strength, "train": left[0], "held": left[1], "test": left[2]})
    return {**min(tried, key=lambda entry: entry["held"]), "moved": None, "l2": None}


def _chosen(first: MLP, ends: list[MLP], points: Points, held: Points, test: Points) -> tuple[int, dict[str, Any]]:
    """The place of the rate that is best on held-out points, and what it led to."""
    tried = [{"rate": rate, "held": error(model, held), "test": error(model, test)} for rate, model in zip(RATES, ends, strict=True)]
    place = min(range(len(RATES)), key=lambda i: tried[i]["held"])
    train = error(ends[place], points)
    moved = distance(body(first), body(ends[place])).total if math.isfinite(train) else None
    went = {"moved": moved.relative if moved else math.inf, "l2": moved.l2 if moved else math.inf}
    return place, {**tried[place], "train": train, **went, "tried": tried}


def _pictures(way: dict[int, MLP], points: Points, seed: int) -> dict[str, Any]:
    """The path on its plane and the surface about its end, as squared errors on the training points."""
    task, n, last = Task(points, likelihood=SQUARED, id="points"), len(points[0]), way[max(way)]
    trajectory = Trajectory(way[0])
    for step in sorted(set(way) - {0}):
        trajectory.add(way[step])
    plane = trajectory.plane(task, points=POINTS, samples=n)
    surface = landscape(last, task, points=POINTS, samples=n, seed=seed)
    return {
        "plane": {
            "steps": sorted(way),
            "x": plane.x,
            "y": plane.y,
            "coordinates": plane.coordinates,
            "explained": plane.explained,
            "off": plane.off,
            "true": _as_squares(plane.true),
            "projected": _as_squares(plane.projected),
            "error": [_as_squares(row) for row in plane.loss],
        },
        "surface": {"offsets": surface.offsets, "error": [_as_squares(row) for row in surface.loss.T.tolist()]},
    }


def _as_squares(nats: list[float]) -> list[float]:
    return [value / math.pi for value in nats]
