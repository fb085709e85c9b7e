"""The plasticity study's settings and presets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from retain.studies.base import Spec

Part = Literal["rows", "variants", "carry", "noise"]
Row = Literal[
    "rnn",
    "rnn-mistakes",
    "prepost-2",
    "prepost-3",
    "prepost-4",
    "prepostcount-2",
    "prepostcount-3",
    "prepostcount-4",
    "prepost-2-trained",
    "vanilla",
    "tuned",
]
Variant = Literal["prepost", "gated", "mistakes", "averaged", "percent", "network", "local-fixed", "local-random", "local-transport"]
Target = Literal["mnist", "fashion", "digits"]
Share = Annotated[float, Field(gt=0, le=1)]
Size = Annotated[float, Field(ge=0, le=1)]
ROWS: tuple[Row, ...] = (
    "rnn",
    "prepost-2",
    "prepost-3",
    "prepost-4",
    "prepostcount-2",
    "prepostcount-3",
    "prepostcount-4",
    "vanilla",
    "tuned",
    "rnn-mistakes",
    "prepost-2-trained",
)
VARIANTS: tuple[Variant, ...] = ("prepost", "gated", "mistakes", "averaged", "percent", "network", "local-fixed", "local-random", "local-transport")


class PlasticitySpec(Spec):
    """Settings of the plasticity study."""

    embedded: bool = Field(True, description="use the 10,000 + 2,000 images that come with Retain")
    offset: int = Field(0, ge=0, description="added to every seed: 100 is the seed on which settings were chosen")
    validation: int = Field(1000, ge=1, description="training images held out, on which choices are made")
    experiments: tuple[Part, ...] = Field(("rows", "variants", "carry", "noise"), min_length=1, description="what is run: rows, variants, carry, noise")
    width: PositiveInt = Field(100, description="units a layer")
    p: Share = Field(0.5, description="probability of an edge")
    cap: PositiveInt = Field(50, description="units that fire")
    rounds: int = Field(2, ge=0, le=7, description="rounds of the recurrent network")
    ties: Literal["fire", "silent"] = Field("fire", description="whether units of rate 0 fire where too few are positive (as published)")
    dim: PositiveInt = Field(16, description="upstream: values of a point of the halfspace task")
    upstream_points: PositiveInt = Field(1500, description="upstream: training points; 500 more are held out and 500 are for testing")
    rule_epochs: PositiveInt = Field(10, description="upstream: passes in which the rule is learned")
    rule_batch: PositiveInt = Field(100, description="upstream: samples between two resets")
    rule_lr: PositiveFloat = Field(0.03, description="upstream: Adam's learning rate")
    rule_decay: float = Field(0.01, ge=0, allow_inf_nan=False, description="upstream: its weight decay, which shrinks the rule too (as published)")
    universal: bool = Field(True, description="one hidden table for all layers; otherwise one a layer")
    form: Literal["additive", "multiplicative"] = Field("additive", description="how a rule changes a weight")
    loss: Literal["cross_entropy", "mse"] = Field("cross_entropy", description="upstream: the meta-loss")
    double_softmax: bool = Field(True, description="upstream: a softmax inside the cross-entropy's (as published)")
    downstream_input_lr: float | None = Field(None, gt=0, allow_inf_nan=False, description="downstream: train the input weights too, at this rate (slow)")
    accept: Size = Field(0.7, description="upstream: learn the rule again below this validation accuracy")
    attempts: PositiveInt = Field(3, description="upstream: at most so often")
    passes: PositiveInt = Field(1, description="downstream: passes over the images")
    curve_every: PositiveInt = Field(1000, description="downstream: score after so many images")
    rows: tuple[Row, ...] = Field(ROWS, min_length=1, description=f"rows: what is compared: {', '.join(ROWS)}")
    rates: tuple[PositiveFloat, ...] = Field(
        (0.003, 0.01), min_length=1, description="learning rates of which tuned gradient descent takes the best on validation images"
    )
    variants: tuple[Variant, ...] = Field(VARIANTS, min_length=1, description=f"variants, carry: what is compared: {', '.join(VARIANTS)}")
    widths: tuple[PositiveInt, ...] = Field((300,), min_length=1, description="variants: units of the one hidden layer")
    share: Share = Field(0.5, description="variants: share of the units that fire")
    targets: tuple[Target, ...] = Field(("mnist", "fashion"), min_length=1, description="variants: data sets: mnist, fashion, digits")
    level: Share = Field(0.8, description="variants: count updates until this validation accuracy")
    carried: tuple[Literal["prepost", "prepost-2", "averaged", "local-fixed", "local-transport"], ...] = Field(
        ("prepost-2", "averaged", "local-transport"), min_length=1, description="carry: rules that are carried"
    )
    carry_widths: tuple[PositiveInt, ...] = Field((50, 100, 200), min_length=1, description="carry: widths")
    carry_layers: tuple[PositiveInt, ...] = Field((1, 2, 3, 4), min_length=1, description="carry: hidden layers")
    carry_shares: tuple[Share, ...] = Field((0.1, 0.25, 0.5, 0.75), min_length=1, description="carry: shares of the units that fire")
    sizes: tuple[Size, ...] = Field((0.0, 0.02, 0.05, 0.1, 0.2), min_length=1, description="noise: largest change of a pixel")
    attacked: PositiveInt = Field(500, description="noise: test images")
    pgd_steps: PositiveInt = Field(10, description="noise: steps of projected gradient descent")


_FULL: dict[str, Any] = {
    "embedded": False,
    "validation": 5000,
    "rule_epochs": 50,
    "rule_lr": 0.01,
    "rates": (0.001, 0.003, 0.01, 0.03),
    "curve_every": 500,
    "seeds": 5,
    "threads": 1,
}
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2, "threads": 1},
    "paper": {**_FULL, "experiments": ("rows",)},
    "best": {
        **_FULL,
        "experiments": ("variants",),
        "p": 1.0,
        "variants": tuple(name for name in VARIANTS if name not in ("percent", "network")),
        "widths": (100, 1000),
        "rates": (0.001, 0.003, 0.01),
        "curve_every": 5000,
    },
    "carry": {**_FULL, "experiments": ("carry",), "carry_widths": (25, 50, 100, 200, 500, 1000), "curve_every": 5000},
    "noise": {**_FULL, "experiments": ("noise",), "attacked": 2000, "sizes": (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)},
}
