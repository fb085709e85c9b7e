"""The posterior study's settings and presets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from retain.studies.base import Spec

Part = Literal["digits", "rotation", "permuted", "split", "schemes", "flows", "prediction"]
Arm = Literal["scratch", "weights", "posterior", "exact", "ewc"]
Head = Literal["separate", "shared"]
Chained = Literal["vcl", "exact", "coreset", "ewc", "plain"]
Scheme = Literal["per-sample", "blundell", "warm-up", "none", "over-batches"]
Net = Literal["plain", "gaussian", "mixture", "ensemble"]
Width = Annotated[float, Field(ge=1e-15, le=1e15)]  # its square fits into 32 bits
Share = Annotated[float, Field(gt=0, le=1)]
Cut = Annotated[float, Field(ge=0, lt=1)]
Angle = Annotated[float, Field(ge=-360, le=360)]


class BayesSpec(Spec):
    """Settings of the posterior study."""

    embedded: bool = Field(True, description="use the 10,000 + 2,000 images that come with Retain")
    offset: int = Field(0, ge=0, description="added to every seed: 100 is the seed on which settings were chosen")
    validation: int = Field(1000, ge=1, description="training images held out, on which choices are made")
    parts: tuple[Part, ...] = Field(
        ("digits", "rotation", "schemes", "flows", "prediction"),
        min_length=1,
        description="what is run: digits, rotation, permuted, split, schemes, flows, prediction",
    )
    hidden: tuple[PositiveInt, ...] = Field((64, 64), description="hidden widths")
    batch_size: PositiveInt = Field(128, description="samples a step")
    optimizer: Literal["adam", "momentum"] = Field("adam", description="optimiser of the Bayesian networks; momentum is SGD with momentum 0.9")
    lr: PositiveFloat = Field(5e-3, description="its learning rate")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="course of the learning rate within a task")
    prior_std: Width = Field(0.3, description="width of the first prior")
    logvar: float = Field(-8.0, ge=-60, le=20, description="initial log-variance of the posterior")
    pace: PositiveFloat = Field(10.0, description="learning rate of the log-variances over that of the means")
    beta: PositiveFloat = Field(0.01, description="tempering of the divergence; 1 is the Bayesian answer")
    strength: float = Field(10.0, ge=0, description="factor of the quadratic part where the prior is a posterior; 1 is the Bayesian answer")
    draws: PositiveInt = Field(1, description="draws of the weights a step")
    answers: PositiveInt = Field(16, description="draws behind a final answer; during training the means answer")
    ewc_lr: PositiveFloat = Field(0.1, description="learning rate of the plain networks, trained by SGD with momentum 0.9")
    ewc_strength: float = Field(100.0, ge=0, description="EWC's strength")
    epochs: PositiveInt = Field(12, description="digits: passes over each task")
    fractions: tuple[Share, ...] = Field((1.0, 0.1), min_length=1, description="digits: shares of the second task's images")
    heads: tuple[Head, ...] = Field(("separate",), min_length=1, description="digits: ten outputs of which a task's five compete, or five for both")
    arms: tuple[Arm, ...] = Field(("scratch", "weights", "posterior", "exact", "ewc"), min_length=1, description="digits: what is compared")
    chained: tuple[Chained, ...] = Field(("vcl", "ewc", "plain"), min_length=1, description="rotation, permuted, split: what is compared")
    chain_epochs: PositiveInt = Field(3, description="rotation, permuted, split: passes over each task")
    chain_hidden: tuple[PositiveInt, ...] = Field((64, 64), description="rotation, permuted, split: hidden widths")
    angles: tuple[Angle, ...] = Field((0.0, 15.0, 30.0, 45.0), min_length=1, description="rotation: degrees")
    permutations: PositiveInt = Field(10, description="permuted: tasks")
    coreset: PositiveInt = Field(200, description="images that the coreset keeps of each task")
    coreset_epochs: PositiveInt = Field(100, description="steps on each task's coreset before an answer")
    coreset_lr: PositiveFloat = Field(1e-3, description="learning rate of those steps, by Adam")
    score_every: PositiveInt = Field(1, description="rotation, permuted, split: score after every so many epochs")
    schemes: tuple[Scheme, ...] = Field(("per-sample", "blundell", "warm-up", "none", "over-batches"), description="schemes: weightings of the divergence")
    single_epochs: PositiveInt = Field(4, description="schemes, flows: passes over the ten digits")
    flows: tuple[NonNegativeInt, ...] = Field((0, 16), description="flows: planar flows on each weight tensor")
    flow_hidden: tuple[PositiveInt, ...] = Field((20, 20), description="flows: hidden widths")
    nets: tuple[Net, ...] = Field(("plain", "gaussian", "mixture", "ensemble"), min_length=1, description="prediction: what is compared")
    net_epochs: PositiveInt = Field(6, description="prediction: passes over the ten digits")
    net_hidden: tuple[PositiveInt, ...] = Field((64, 64), description="prediction: hidden widths")
    net_beta: PositiveFloat = Field(0.1, description="prediction: tempering of the divergence")
    members: PositiveInt = Field(3, description="prediction: networks in the ensemble")
    pi: float = Field(0.5, gt=0, lt=1, description="prediction: weight of the scale mixture's wide part")
    sigma1: Width = Field(1.0, description="prediction: width of its wide part")
    sigma2: Width = Field(0.0025, description="prediction: width of its narrow part, exp(-6)")
    cuts: tuple[Cut, ...] = Field((0.0, 0.5, 0.75, 0.9, 0.95, 0.98), description="prediction: shares of the weights pruned by signal to noise")


_STREAM: dict[str, Any] = {
    "embedded": False,
    "validation": 5000,
    "batch_size": 128,
    "lr": 1e-3,
    "strength": 10.0,
    "chain_hidden": (100, 100),
    "score_every": 10,
}
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"threads": 1, "seeds": 2},
    "digits": {
        "embedded": False,
        "validation": 5000,
        "parts": ("digits",),
        "hidden": (200, 200),
        "batch_size": 128,
        "lr": 1e-3,
        "strength": 10.0,
        "fractions": (1.0, 0.5, 0.1),
        "heads": ("separate", "shared"),
        "epochs": 20,
    },
    "split": {
        **_STREAM,
        "parts": ("split",),
        "strength": 100.0,
        "chained": ("vcl", "exact", "coreset", "ewc", "plain"),
        "chain_epochs": 20,
    },
    "rotation": {
        **_STREAM,
        "parts": ("rotation",),
        "chained": ("vcl", "exact", "ewc", "plain"),
        "chain_epochs": 10,
    },
    "permuted": {
        **_STREAM,
        "parts": ("permuted",),
        "optimizer": "momentum",
        "lr": 0.1,
        "pace": 1000.0,
        "chained": ("vcl", "coreset", "ewc", "plain"),
        "chain_epochs": 5,
        "score_every": 5,
    },
    "mnist": {
        "embedded": False,
        "validation": 5000,
        "parts": ("prediction",),
        "batch_size": 128,
        "optimizer": "momentum",
        "lr": 0.1,
        "pace": 1000.0,
        "net_hidden": (400, 400),
        "net_epochs": 40,
    },
    "paper": {
        "embedded": False,
        "seeds": 1,
        "validation": 5000,
        "parts": ("digits", "rotation", "schemes", "flows"),
        "hidden": (400, 400),
        "chain_hidden": (400, 400),
        "flow_hidden": (400, 400),
        "batch_size": 128,
        "lr": 1e-3,
        "schedule": "constant",
        "prior_std": 0.36787944117144233,
        "logvar": -4.0,
        "pace": 1.0,
        "beta": 1.0,
        "strength": 1.0,
        "draws": 16,
        "fractions": (1.0, 0.5, 0.1),
        "heads": ("shared", "separate"),
        "arms": ("scratch", "weights", "posterior", "ewc"),
        "chained": ("vcl", "ewc", "plain"),
        "epochs": 250,
        "chain_epochs": 200,
        "single_epochs": 600,
    },
}
