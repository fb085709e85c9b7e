"""The benchmark's settings and presets."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from retain.methods.quadratic import Pull
from retain.studies.base import Spec
from retain.tasks.stream import Scenario
from retain.training.optimizers import Schedule

StreamName = Literal["split", "permuted", "mnist-fashion"]
Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class BenchmarkSpec(Spec):
    """Settings of the benchmark."""

    _later: ClassVar[set[str]] = {"trial", "trial_divisor", "carry_optimizer", "fisher_samples", "damping"}

    stream: StreamName = Field(
        "split", description="split (one source cut by class), permuted (its pixels in other orders), mnist-fashion (one after the other)"
    )
    embedded: bool = Field(True, description="use the 10,000 + 2,000 images a source that come with Retain")
    offset: NonNegativeInt = Field(0, description="added to every seed")
    validation: NonNegativeInt = Field(0, description="training images of each task that are held out and scored")
    scenarios: tuple[Scenario, ...] = Field(("task", "domain", "class"), min_length=1, description="task, domain, class")
    methods: tuple[str, ...] = Field(("plain", "ewc", "si", "lwf", "er", "joint"), min_length=1, description="what is compared, see docs/studies/benchmark.md")
    experiences: PositiveInt = Field(5, ge=2, description="tasks of the stream; mnist-fashion has 2")
    class_order: Literal["random", "ascending"] = Field("random", description="split: the classes in an order of the seed's, or ascending")
    pad: NonNegativeInt = Field(0, description="rows of zeros around each image")
    units: tuple[PositiveInt, ...] = Field((400, 400), description="hidden widths")
    train_steps: PositiveInt = Field(2000, description="optimiser steps a task")
    batch_size: PositiveInt = Field(128, description="samples a step; as many old ones are replayed")
    optimizer: Literal["adam", "adamw", "sgd", "momentum"] = Field("adam", description="optimiser; momentum is SGD with momentum 0.9")
    lr: PositiveFloat = Field(1e-3, description="learning rate")
    schedule: Schedule = Field("constant", description="course of the learning rate within a task: constant or cosine")
    carry_optimizer: bool = Field(False, description="go on with the optimiser's moments from task to task, instead of a fresh one each")
    fisher_samples: PositiveInt | None = Field(None, description="images of a task on which EWC and Kronecker Laplace measure curvature; null is all")
    damping: NonNegativeFloat = Field(0.0, description="of Kronecker factors: a share of its mean eigenvalue added to each eigenvalue of a factor")
    pull: Pull = Field("gradient", description="quadratic methods pull by the gradient, or by a proximal step")
    every: PositiveInt = Field(1, description="Kronecker pulls, if proximal, are taken once in so many steps")
    budget: PositiveInt = Field(100, description="old samples that are kept: of each class of each task, or in all, see budget_of")
    budget_of: Literal["class", "all"] = Field("class", description="what the budget is of: every class of every task, or all together")
    own_strengths: dict[str, Strength] = Field({}, description="strengths of quadratic methods, as method or method/scenario; a method has its default")
    search: dict[str, tuple[Strength, ...]] = Field({}, description="strengths to choose from, by method, on searched images of the seed search_seed")
    search_seed: NonNegativeInt = Field(1000, description="seed of the search; never one that is reported")
    searched: PositiveInt = Field(500, description="training images of each task that the search holds out")
    trial_divisor: PositiveInt = Field(4, description="the first trials of the search take this part of train_steps, each next round twice as many")
    trial: bool = Field(False, description="a trial of the search: scored after the last task alone, and one that diverges is the worst")
    points: NonNegativeInt = Field(4, description="points of the anytime curve a task; 0 scores after every pass")


_SPLIT: dict[str, Any] = {
    "embedded": False,
    "seeds": 5,
    "threads": 1,
    "methods": (
        *("plain", "ewc", "online-ewc", "si", "mas", "laplace", "vcl", "lwf", "er", "a-gem", "der++", "icarl"),
        *("generative-replay", "xdg", "separate", "joint"),
    ),
    "search": {
        "ewc": (1e3, 1e5, 1e7, 1e9),
        "online-ewc": (1e3, 1e5, 1e7, 1e9),
        "si": (1e1, 1e3, 1e4, 1e5),
        "mas": (1e3, 1e5, 1e7, 1e9),
        "laplace": (1e2, 1e4, 1e6, 1e8),
    },
    "own_strengths": {"vcl": 100.0},
}
_PERMUTED: dict[str, Any] = {
    "embedded": False,
    "threads": 1,
    "stream": "permuted",
    "scenarios": ("domain",),
    "points": 1,
}
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "threads": 1,
        "seeds": 2,
        "train_steps": 200,
        "units": (100, 100),
        "budget": 20,
        "searched": 200,
        "search": {"ewc": (1e2, 1e4, 1e6), "si": (1e1, 1e3, 1e5)},
    },
    "split-mnist": _SPLIT,
    "permuted-mnist-10": {
        **_PERMUTED,
        "seeds": 3,
        "experiences": 10,
        "pad": 2,
        "units": (1000, 1000),
        "train_steps": 5000,
        "lr": 1e-4,
        "carry_optimizer": True,
        "fisher_samples": 6000,
        "methods": ("plain", "ewc", "online-ewc", "si", "joint"),
        "trial_divisor": 8,
        "search": {"ewc": (10.0, 30.0, 100.0, 300.0), "online-ewc": (10.0, 30.0, 100.0, 300.0), "si": (3.0, 10.0, 30.0, 100.0)},
    },
    "permuted-mnist-50": {
        **_PERMUTED,
        "seeds": 3,
        "experiences": 50,
        "units": (100, 100),
        "train_steps": 1000,
        "optimizer": "momentum",
        "lr": 0.1,
        "schedule": "cosine",
        "pull": "proximal",
        "every": 5,
        "damping": 0.1,
        "methods": ("plain", "ewc", "laplace"),
        "trial_divisor": 2,
        "search": {"ewc": (1.0, 3.0, 10.0, 30.0), "laplace": (1.0, 2.0, 3.0, 5.0)},
    },
    "mnist-fashion": {
        "embedded": False,
        "seeds": 5,
        "threads": 1,
        "stream": "mnist-fashion",
        "scenarios": ("domain",),
        "experiences": 2,
        "units": (256, 256),
        "train_steps": 2500,
        "optimizer": "momentum",
        "lr": 0.1,
        "schedule": "cosine",
        "pull": "proximal",
        "every": 5,
        "budget": 200,
        "budget_of": "all",
        "methods": ("plain", "ewc", "laplace", "er", "laplace+er", "joint"),
        "search": {"ewc": (10.0, 100.0, 1000.0, 10000.0), "laplace": (3.0, 10.0, 30.0, 100.0), "laplace+er": (3.0, 10.0, 30.0, 100.0)},
    },
    "paper": {**_SPLIT, "seeds": 20},
}
