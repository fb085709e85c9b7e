"""The fine-tuning study's settings and presets."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from retain.studies.base import Spec

if TYPE_CHECKING:
    from retain.studies.base import Study

Part = Literal["curves", "inside", "small"]
Images = Literal["fashion", "mnist", "digits", "folder", "flowers102"]
Control = Literal["mean-variance", "permuted", "shuffled-labels", "shuffled-blocks"]
Share = Annotated[float, Field(gt=0, lt=1)]
CONTROLS: tuple[Control, ...] = ("mean-variance", "permuted", "shuffled-labels", "shuffled-blocks")
EVERY: tuple[str, ...] = (
    *("scratch", "fine-tune", "linear-probe", "lp-ft", "wise-ft", "l2-sp", "l2-sp-fisher", "layer-wise", "gradual", "norms-only", "biases-only"),
    *("soup", "delta", "bss", "stochnorm", "lora"),
)


class FinetuneSpec(Spec):
    """Settings of the fine-tuning study."""

    sections: tuple[Part, ...] = Field(("curves", "inside", "small"), min_length=1, description="what is run: curves, inside, small")
    model: str = Field("efficientnet-lite0", description="network that comes trained: efficientnet-lite0, torchvision/NAME or timm/NAME")
    images: Images = Field("fashion", description="photographs or pictures: fashion, mnist, digits, folder (at --data), flowers102")
    embedded: bool = Field(True, description="of fashion and mnist: the 10,000 + 2,000 images that come with Retain")
    offset: int = Field(0, ge=0, description="added to every seed: 100 is the seed on which settings were chosen")
    size: PositiveInt = Field(64, description="pixels a side")
    crop: float | None = Field(None, gt=0, le=1, description="share of a photograph's shorter side that is kept; null is what the weights were trained with")
    test_size: PositiveInt | None = Field(None, description="pixels a side of test and held-out images; null is those of size")
    test_crop: float | None = Field(None, gt=0, le=1, description="share of their shorter side, where test_size is given; null is that of crop")
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
    own_rates: dict[str, PositiveFloat] = Field({}, description="learning rates of single arms, by name, instead of a choice")
    tune_at: PositiveInt = Field(10, description="images a class at which a learning rate is chosen, if there are several")
    batchnorm: Literal["track", "freeze"] = Field("freeze", description="batch-norm statistics of a trained start; a random one tracks")
    inside_at: PositiveInt = Field(10, description="inside: images a class")
    block: PositiveInt = Field(16, description="shuffled-blocks: pixels a side of a block")
    looked: PositiveInt = Field(100, description="inside: images of each part that a measure looks at")
    surface_points: int = Field(7, ge=3, description="inside: points a side of a surface")
    small_dim: PositiveInt = Field(20, ge=2, description="small: d, inputs of the function")
    small_width: PositiveInt = Field(100, description="small: units of each of two hidden layers")
    small_source: PositiveInt = Field(5000, description="small: points of the related function")
    small_samples: tuple[PositiveInt, ...] = Field((10, 30, 100, 300, 1000), min_length=1, description="small: points of the function")
    small_related: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field((0.0, 0.9), min_length=1, description="small: share of the features in common")
    small_noise: float = Field(0.1, ge=0, description="small: standard deviation of the noise, that of the function being 1")
    small_steps: int = Field(1000, ge=2, description="small: steps of gradient descent")

    def fingerprint(self, study: Study) -> str:
        """As of every study; runs on different folders of photographs are different runs, whose names and sizes of files count."""
        found = super().fingerprint(study)
        if self.images != "folder" or self.data is None:
            return found
        root = Path(self.data)
        files = sorted((os.path.relpath(Path(place, name), root), Path(place, name).stat().st_size) for place, _, names in os.walk(root) for name in names)
        return hashlib.sha256(f"{found}{files}".encode()).hexdigest()[:8]


_TUNED: dict[str, Any] = {"optimizer": "adam", "rates": (0.0003,), "own_rates": {"scratch": 0.001, "mean-variance": 0.001, "permuted": 0.001}, "threads": 1}
_FOLDER: dict[str, Any] = {
    **_TUNED,
    "images": "folder",
    "sections": ("curves",),
    "size": 128,
    "per_class": (1, 5, 10, 50),
    "recipes": ("scratch", "fine-tune", "linear-probe", "lp-ft", "wise-ft"),
    "controls": (),
    "augment": 0.5,
    "epochs": 15,
    "least_steps": 100,
    "seeds": 5,
}
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        **_TUNED,
        "classes": 5,
        "tested": 200,
        "validation": 100,
        "per_class": (1, 10),
        "controls": ("mean-variance", "shuffled-blocks"),
        "epochs": 6,
        "least_steps": 30,
        "looked": 20,
        "surface_points": 5,
        "small_samples": (10, 100, 1000),
        "small_width": 64,
        "seeds": 2,
    },
    "folder": _FOLDER,
    "every": {
        **_FOLDER,
        "sections": ("curves", "inside", "small"),
        "per_class": (1, 2, 5, 10, 50, "all"),
        "recipes": EVERY,
        "controls": CONTROLS,
        "surface_points": 11,
    },
    "paper": {
        "images": "flowers102",
        "model": "torchvision/resnet50",
        "sections": ("curves", "inside"),
        "size": 128,
        "per_class": (10,),
        "recipes": ("scratch", "fine-tune"),
        "controls": (),
        "optimizer": "adam",
        "schedule": "constant",
        "rates": (0.001,),
        "least_steps": 0,
        "batch_size": 32,
        "batchnorm": "track",
        "offset": 26,
        "seeds": 1,
    },
}
