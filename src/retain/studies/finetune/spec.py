"""The fine-tuning study's settings and presets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from retain.studies.base import Spec

Part = Literal["curves", "inside", "small"]
Images = Literal["fashion", "mnist", "digits", "folder", "flowers102"]
Control = Literal["mean-variance", "permuted", "shuffled-labels", "shuffled-blocks"]
Share = Annotated[float, Field(gt=0, lt=1)]
CONTROLS: tuple[Control, ...] = ("mean-variance", "permuted", "shuffled-labels", "shuffled-blocks")


class FinetuneSpec(Spec):
    """Settings of the fine-tuning study."""

    parts: tuple[Part, ...] = Field(("curves", "inside", "small"), min_length=1, description="what is run: curves, inside, small")
    model: str = Field("efficientnet-lite0", description="network that comes trained: efficientnet-lite0, torchvision/NAME or timm/NAME")
    images: Images = Field("fashion", description="photographs or pictures: fashion, mnist, digits, folder (at --data), flowers102")
    embedded: bool = Field(True, description="of fashion and mnist: the 10,000 + 2,000 images that come with Retain")
    offset: int = Field(0, ge=0, description="added to every seed: 100 is the seed on which settings were chosen")
    size: PositiveInt = Field(64, description="pixels a side")
    crop: float | None = Field(None, gt=0, le=1, description="share of a photograph's shorter side that is kept; null is what the weights were trained with")
    classes: PositiveInt | None = Field(None, ge=2, description="take only the first classes; null is all")
    tested: PositiveInt | None = Field(None, description="test images at most; null is all")
    validation: PositiveInt = Field(200, description="held-out images at most, on which choices are made")
    per_class: tuple[PositiveInt | Literal["all"], ...] = Field((1, 5, 10), min_length=1, description="training images a class; all")
    recipes: tuple[str, ...] = Field(("scratch", "fine-tune", "linear-probe", "lp-ft"), min_length=1, description="recipes, see docs/finetuning.md")
    controls: tuple[Control, ...] = Field(CONTROLS, description="mean-variance, permuted, shuffled-labels, shuffled-blocks; fine-tuned like fine-tune")
    augment: float | None = Field(None, gt=0, le=1, description="smallest part of an image that is shown in training, a share of its area; null is all of it")
    epochs: PositiveInt = Field(10, description="passes over the training images")
    least_steps: int = Field(60, ge=0, description="steps at least: few images are passed over more often")
    batch_size: PositiveInt = Field(10, description="images a step")
    optimizer: Literal["momentum", "sgd", "adam", "adamw"] = Field("momentum", description="optimizer")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="learning rate within a phase")
    rates: tuple[PositiveFloat, ...] = Field((0.003,), min_length=1, description="learning rates; each arm takes the one that is best on held-out images")
    tune_at: PositiveInt = Field(10, description="images a class at which a learning rate is chosen, if there are several")
    batchnorm: Literal["track", "freeze"] = Field("freeze", description="batch-norm statistics of a trained start; a random one tracks")
    inside_at: PositiveInt = Field(10, description="inside: images a class")
    block: PositiveInt = Field(16, description="shuffled-blocks: pixels a side of a block")
    samples: PositiveInt = Field(100, description="inside: images of each part that a measure looks at")
    points: int = Field(7, ge=3, description="inside: points a side of a surface")
    small_dim: PositiveInt = Field(20, ge=2, description="small: d, inputs of the function")
    small_width: PositiveInt = Field(100, description="small: units of each of two hidden layers")
    small_source: PositiveInt = Field(5000, description="small: points of the related function")
    small_samples: tuple[PositiveInt, ...] = Field((10, 30, 100, 300, 1000), min_length=1, description="small: points of the function")
    small_related: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field((0.0, 0.9), min_length=1, description="small: share of the features in common")
    small_noise: float = Field(0.1, ge=0, description="small: standard deviation of the noise, that of the function being 1")
    small_steps: int = Field(1000, ge=2, description="small: steps of gradient descent")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2},
    "folder": {"images": "folder", "size": 128},
    "paper": {"images": "flowers102", "model": "torchvision/resnet50", "size": 128, "optimizer": "adam", "rates": (0.001,), "offset": 26, "batch_size": 32},
}
