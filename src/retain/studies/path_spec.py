"""The path study's settings and presets."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt

from retain.studies.base import Spec
from retain.training.optimizers import Schedule

Arm = Literal[
    "sudden",
    "frozen",
    "task",
    "task-target",
    "kd",
    "kd-adam",
    "kd-reverse",
    "kd-skew",
    "ramp",
    "optimal",
    "optimal-linear",
    "optimal-sin2",
    "optimal-fisher",
    "optimal-budget",
    "optimal-exponential",
    "optimal-circle",
    "optimal-kfac",
    "optimal-floor",
    "natural",
    "retention-optimal",
    "retention-none",
    "retention-0.5",
    "retention-0.9",
    "retention-0.99",
    "retention-all",
    "retention-replay",
]
Budget = Literal["seconds", "samples", "steps"]
Pair = Literal["wide-narrow", "mlp-cnn", "cnn-mlp", "resnet-resnet", "ensemble-one"]
Share = Annotated[float, Field(ge=0, lt=1)]
VARIANTS: tuple[Arm, ...] = ("optimal-linear", "optimal-sin2", "optimal-fisher", "optimal-budget", "optimal-exponential", "optimal-circle")
"""Schedules and bridges of the law: compared where samples are equal, for the first K."""
MAIN: tuple[Arm, ...] = ("sudden", "task", "task-target", "kd", "kd-adam", "kd-reverse", "kd-skew", "ramp", "optimal", "optimal-floor", "natural")


class PathSpec(Spec):
    """Settings of the path study."""

    embedded: bool = Field(True, description="use the 10,000 + 2,000 images that come with Retain")
    validation: int = Field(1000, ge=0, description="training images held out, on which choices are made")
    offset: int = Field(0, ge=0, description="added to every seed: 100 to tune on seeds that are not reported")
    hidden: tuple[PositiveInt, ...] = Field((512, 256, 128), description="hidden widths of both networks")
    dense_epochs: PositiveInt = Field(8, description="passes of the dense network over the data")
    dense_lr: PositiveFloat = Field(1e-3, description="its learning rate, with Adam")
    dense_batch: PositiveInt = Field(64, description="its samples a step")
    dense_schedule: Schedule = Field("cosine", description="its learning rate's course: constant or cosine")
    K: tuple[PositiveInt, ...] = Field((10,), min_length=1, description="active units of the sparse networks' hidden layers; a softmax gate keeps K - 1")
    gate: Literal["top-k", "softmax"] = Field("top-k", description="what chooses the active units")
    init: Literal["warm", "cold"] = Field("warm", description="the sparse network starts with the dense one's weights, or with its own")
    arms: tuple[Arm, ...] = Field(("sudden", "task", "kd", "optimal", "natural", "retention-optimal"), min_length=1, description="strategies that are compared")
    budgets: tuple[Budget, ...] = Field(("seconds", "samples"), min_length=1, description="what is equal between strategies")
    seconds: PositiveFloat = Field(4.0, description="CPU seconds of each traversal, where those are equal")
    samples: PositiveInt = Field(8000, description="samples of each traversal, where those are equal")
    steps: PositiveInt = Field(100, description="steps of q, where those are equal")
    iterations: PositiveInt = Field(10, description="updates a step, where those are equal")
    first: int = Field(0, ge=0, description="updates before q moves, where steps are equal")
    q_start: Share = Field(0.05, description="q at the start; smaller is better where there are many updates")
    q_early: Share = Field(0.05, gt=0, description="the same for the optimal law where samples are equal")
    batch_size: PositiveInt | None = Field(None, description="samples of an update; each strategy's own by default")
    adam: PositiveFloat | None = Field(None, description="learning rate of Adam in every first-order strategy, instead of their own optimisers")
    multiples: tuple[PositiveFloat, ...] = Field((1.0,), min_length=1, description="learning rates, or dampings, as multiples of each strategy's own")
    points: PositiveInt = Field(20, description="certified steps")
    certify: PositiveInt | None = Field(1000, description="test images that steps are certified on")
    long: tuple[Arm, ...] = Field((), description="strategies that are also given more epochs")
    epochs: PositiveInt = Field(10, description="how many")
    shift: int = Field(1, ge=0, description="pixels by which images are moved in the long runs")
    pairs: tuple[Pair, ...] = Field((), description="other pairs of networks")
    pair_seconds: PositiveFloat = Field(10.0, description="CPU seconds of each of their traversals")
    spikes: bool = Field(False, description="a person's bias, on data that change from MNIST to Fashion-MNIST on the way")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {},
    "paper": {
        "embedded": False,
        "validation": 0,
        "dense_epochs": 5,
        "dense_schedule": "constant",
        "K": (10,),
        "gate": "softmax",
        "init": "cold",
        "budgets": ("steps",),
        "first": 100,
        "q_start": 0.0,
        "batch_size": 256,
        "adam": 1e-3,
        "points": 100,
        "arms": ("sudden", "frozen", "task", "kd-adam", "retention-optimal", "retention-none", "retention-0.5", "retention-0.9", "retention-replay"),
    },
    "best": {
        "embedded": False,
        "validation": 5000,
        "K": (5, 10, 32),
        "q_start": 0.01,
        "q_early": 0.002,
        "seconds": 12.0,
        "samples": 28000,
        "certify": 2000,
        "arms": get_args(Arm),
    },
    "beyond": {
        "q_start": 0.01,
        "embedded": False,
        "validation": 5000,
        "K": (5, 10),
        "arms": ("sudden",),
        "budgets": ("samples",),
        "certify": 2000,
        "long": ("kd", "natural"),
        "pairs": get_args(Pair),
        "spikes": True,
    },
    "softmax": {
        "embedded": False,
        "validation": 5000,
        "K": (10,),
        "gate": "softmax",
        "adam": 2e-3,
        "arms": ("sudden", "kd-adam"),
        "budgets": ("samples",),
        "certify": 2000,
        "samples": 28000,
        "long": ("kd-adam",),
        "shift": 0,
    },
    "tune": {
        "embedded": False,
        "validation": 5000,
        "offset": 100,
        "seeds": 1,
        "K": (5,),
        "q_start": 0.01,
        "q_early": 0.002,
        "seconds": 12.0,
        "samples": 28000,
        "points": 4,
        "arms": (*MAIN[1:], "optimal-kfac", "retention-0.5"),
        "multiples": (0.25, 0.5, 1.0, 2.0, 4.0),
    },
}
