"""The forgetting study's settings and presets."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt

from retain.curvature import LabelRule
from retain.methods.quadratic import Pull
from retain.studies.base import Spec
from retain.training.optimizers import Schedule

Arm = Literal["plain", "ewc", "laplace", "ekfac", "ssr", "si", "mas", "rwalk", "l2sp", "joint"]
Law = Literal["model", "layer", "share", "published"]
Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ForgettingSpec(Spec):
    """Settings of the forgetting study."""

    embedded: bool = Field(True, description="use the 10,000 + 2,000 images a task that come with Retain")
    validation: int = Field(1000, ge=0, description="training images a task held out, on which choices are made")
    model: Literal["mlp", "cnn"] = Field("mlp", description="architecture")
    hidden: tuple[PositiveInt, ...] = Field((256, 256), description="hidden widths of the mlp")
    output_relu: bool = Field(False, description="a ReLU on the outputs: the tutorial's defect")
    optimizer: Literal["adam", "adamw", "sgd", "momentum"] = Field("momentum", description="optimiser; momentum is SGD with momentum 0.9")
    lr: PositiveFloat = Field(0.1, description="learning rate")
    schedule: Schedule = Field("cosine", description="course of the learning rate within a task: constant or cosine")
    batch_size: PositiveInt = Field(64, description="samples a step")
    epochs: PositiveInt = Field(5, description="passes over each task")
    arms: tuple[Arm, ...] = Field(("plain", "ewc", "laplace", "l2sp", "joint"), min_length=1, description="what is compared")
    strength: Strength = Field(300.0, description="EWC's strength; 1 is the Bayesian answer")
    importance: Strength | None = Field(None, description="the tutorial's factor instead of strength: 2 importance m / n")
    labels: LabelRule = Field("exact", description="the Fisher's label rule: exact, sampled, empirical or predicted")
    fisher_samples: PositiveInt | None = Field(None, description="samples of the old task behind the Fisher; all by default")
    fisher_replacement: bool = Field(False, description="draw them with replacement")
    pull: Pull = Field("proximal", description="the pull as a proximal step or as a gradient")
    strength_laplace: Strength = Field(30.0, description="strength of the Kronecker belief")
    strength_ekfac: Strength = Field(30.0, description="strength of the Kronecker belief with measured eigenvalues")
    strength_ssr: Strength = Field(100.0, description="strength of the low-rank belief")
    strength_si: Strength = Field(10.0, description="strength of synaptic intelligence")
    strength_mas: Strength = Field(300.0, description="strength of memory aware synapses")
    strength_rwalk: Strength = Field(100.0, description="strength of the Riemannian walk")
    every: PositiveInt = Field(5, description="Kronecker and low-rank pulls, if proximal, are taken once in so many steps")
    rank: PositiveInt = Field(5, description="directions of the low-rank belief")
    ssr_samples: PositiveInt | None = Field(10000, description="samples of the old task behind the low-rank belief")
    tau: PositiveFloat = Field(0.05, description="width of L2-SP's prior")
    strengths: tuple[Strength, ...] = Field((100.0, 300.0, 1000.0), description="EWC's strengths in the trade-off plot")
    factors: tuple[PositiveFloat, ...] = Field((1.0, 10 / 3), description="the other arms' points in the trade-off plot, times their strength")
    taus: tuple[PositiveFloat, ...] = Field((0.1, 0.05), description="L2-SP's widths in the trade-off plot")
    laws: tuple[Law, ...] = Field((), description="forms of the retention law to try: model, layer, share, published")
    sample_sizes: tuple[PositiveInt, ...] = Field((512, 2048), description="sizes in the plot of the Fisher against its samples")
    norm_samples: PositiveInt = Field(2000, description="samples behind the Fisher norms by layer")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {},
    "paper": {
        "embedded": False,
        "hidden": (256, 256, 256),
        "output_relu": True,
        "optimizer": "sgd",
        "lr": 1e-3,
        "schedule": "constant",
        "pull": "gradient",
        "batch_size": 32,
        "epochs": 25,
        "importance": 1000.0,
        "labels": "predicted",
        "fisher_samples": 512,
        "fisher_replacement": True,
        "validation": 0,
        "arms": ("plain", "ewc", "l2sp", "joint"),
        "strengths": (),
        "factors": (),
        "taus": (),
        "sample_sizes": (),
    },
    "methods": {
        "embedded": False,
        "seeds": 5,
        "validation": 5000,
        "batch_size": 128,
        "epochs": 3,
        "strength": 100.0,
        "tau": 0.03,
        "arms": get_args(Arm),
        "strengths": (10.0, 30.0, 100.0, 300.0, 1000.0),
        "factors": (1 / 30, 0.1, 1 / 3, 1.0, 10 / 3),
        "taus": (0.1, 0.05, 0.03),
        "laws": get_args(Law),
        "sample_sizes": (),
    },
    "best": {
        "embedded": False,
        "seeds": 5,
        "validation": 5000,
        "batch_size": 128,
        "epochs": 10,
        "tau": 0.03,
        "strengths": (30.0, 100.0, 300.0, 1000.0),
        "factors": (0.1, 1 / 3, 1.0, 10 / 3),
        "taus": (0.1, 0.05, 0.03),
        "sample_sizes": (512, 2048),
    },
}
