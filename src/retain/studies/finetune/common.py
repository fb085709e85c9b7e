"""What the parts of the fine-tuning study share: pictures, a network that comes trained, and what an arm is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from retain.errors import InputError
from retain.models import copy, features, pretrained, replace_head
from retain.models.pretrained import Preprocessing
from retain.recipes import RECIPES, STARTS, Soup, WiSEFT
from retain.recipes.base import Recipe
from retain.seeds import derive, generator
from retain.studies.finetune.spec import FinetuneSpec
from retain.tasks import ImageData, Task, as_images, digits, fashion_mnist, few, flowers102, folder, mnist, shuffle_blocks, shuffle_labels

POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)
MEMBERS = 3
"""Of a soup; each takes as many epochs as any other arm."""
CHANGES = {"shuffled-labels": "shuffled labels", "shuffled-blocks": "shuffled blocks"}
"""Controls that change the task; each is learned from a trained and from a random start."""


@dataclass(frozen=True)
class Arm:
    """One way to learn the task.

    Args:
        name: In tables and stages.
        recipe: Its name.
        start: What is done to the trained weights first, by the name in :data:`~retain.recipes.STARTS`.
        change: What is done to the task, ``shuffled-labels`` or ``shuffled-blocks``.
    """

    name: str
    recipe: str
    start: str | None = None
    change: str | None = None


def arms(spec: FinetuneSpec) -> list[Arm]:
    """All arms of a spec, recipes first."""
    found = [Arm(name, *(("fine-tune", "random") if name == "scratch" else (name,))) for name in spec.recipes]
    for control in spec.controls:
        if control in STARTS:
            found.append(Arm(control, "fine-tune", control))
        else:
            for start, recipe in ((None, "fine-tune"), ("random", "scratch")):
                found.append(Arm(f"{recipe}, {CHANGES[control]}", "fine-tune", start, control))
    return found


def recipe_of(arm: Arm) -> Recipe:
    """The recipe with the study's settings: a line back is looked at in five points, since each is scored on all held-out and test images."""
    if arm.recipe == "soup":
        return Soup(MEMBERS, POINTS)
    return WiSEFT(POINTS) if arm.recipe == "wise-ft" else RECIPES[arm.recipe]()


@lru_cache(maxsize=2)
def _network(name: str, classes: int, trained: bool) -> tuple[nn.Module, Preprocessing]:
    return pretrained(name, classes, weights=trained)


def network(spec: FinetuneSpec, classes: int, start: str | None = None, seed: int = 0) -> nn.Module:
    """The trained network with a head that answers 0, after what a control does to its weights.

    Without its weights a network has lost its batch-norm statistics too, and few steps have to do for new ones: they follow with torch's usual momentum, where
    EfficientNet's own, 0.01, would leave a third of the start in after a hundred steps.

    Args:
        spec: The settings.
        classes: Outputs of the head.
        start: What a control does, by its name in :data:`~retain.recipes.STARTS`.
        seed: Of random draws.

    Returns:
        A network of its own.
    """
    model = copy(_network(spec.model, classes, True)[0])
    replace_head(model, classes, seed=seed, zero=True)
    if start is None:
        return model
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
            module.momentum = max(module.momentum, 0.1)
    return STARTS[start](model, seed)


@lru_cache(maxsize=2)
def whole(images: str, embedded: bool, data: str | None, model: str, size: int, crop: float | None, classes: int | None) -> Task:
    """All pictures, prepared as the weights want them."""
    wanted = _network(model, 1000, False)[1] if model.startswith("torchvision/") else _network(model, 2, False)[1]
    settings: dict[str, Any] = {**wanted, "size": size, **({} if crop is None else {"crop": crop}), "storage": "bytes"}
    if images == "folder":
        if data is None:
            raise InputError("data", "a folder with a folder for each class", "none", "Pass --data PATH.")
        task = folder(data, **settings)
    elif images == "flowers102":
        task = flowers102(data, **settings)
    else:
        task = digits() if images == "digits" else (mnist if images == "mnist" else fashion_mnist)(data, embedded=embedded)
        task = as_images(task, size, wanted.mean, wanted.std, storage="bytes")
    if classes is None or task.classes is None:
        return task
    if classes > len(task.classes):
        raise InputError("classes", f"at most the {len(task.classes)} there are", classes)
    return _first(task, classes)


def pictures(spec: FinetuneSpec) -> Task:
    """All pictures of a spec."""
    return whole(spec.images, spec.embedded, spec.data, spec.model, spec.size, spec.crop, spec.classes)


def asked(spec: FinetuneSpec) -> Task:
    """The same pictures as models are asked about them: larger than in training, if the settings say so."""
    if spec.test_size is None:
        return pictures(spec)
    crop = spec.test_crop if spec.test_crop is not None else spec.crop
    return whole(spec.images, spec.embedded, spec.data, spec.model, spec.test_size, crop, spec.classes)


def pool(spec: FinetuneSpec, seed: int) -> Task:
    """The pictures of a run: test and held-out ones, and as many training pictures as any arm takes."""
    task: Any = pictures(spec)
    large: Any = asked(spec)
    if task.validation is None:
        order = torch.randperm(task.data.size, generator=generator(seed, "validation"))
        held = min(spec.validation, task.data.size // 5)
        task = replace(task, data=task.data.take(order[held:]), validation=large.data.take(order[:held]), n=0)
    else:
        task = replace(task, validation=_some(large.validation, spec.validation, seed))
    if task.test is not None:  # always the same test images
        task = replace(task, test=_some(large.test, spec.tested, 0))
    numbers = [n for n in spec.per_class if n != "all"]
    return task if "all" in spec.per_class else few(task, max([*numbers, *extra(spec)]), seed)


def extra(spec: FinetuneSpec) -> list[int]:
    """Images a class that are asked for apart from the curves."""
    return ([spec.inside_at] if "inside" in spec.sections else []) + ([spec.tune_at] if len(spec.rates) > 1 else [])


def drawn(task: Task, n: int | str, seed: int) -> Task:
    """So many images a class of a pool, or all."""
    return task if n == "all" else few(task, int(n), seed)


def changed(spec: FinetuneSpec, task: Task, change: str | None, seed: int) -> Task:
    """The task as a control wants it."""
    if change is None:
        return task
    given = {part: getattr(task, part) for part in ("data", "validation", "test")}
    parts: dict[str, Any] = {part: data.tensors() for part, data in given.items() if isinstance(data, ImageData)}
    task = replace(task, **parts, n=0)
    return shuffle_labels(task, seed=seed) if change == "shuffled-labels" else shuffle_blocks(task, spec.block, seed=seed)


class Cache:
    """The features of a run's pictures, computed when first asked for.

    Args:
        spec: The settings.
        task: The run's pool.
    """

    def __init__(self, spec: FinetuneSpec, task: Task) -> None:
        self.spec, self.task = spec, task
        self.found: Task | None = None

    def drawn(self, n: int | str, seed: int, progress: Callable[[int, int], None] | None = None) -> Task:
        """Features of the images that :func:`drawn` draws."""
        if self.found is None:
            self.found = features(network(self.spec, len(self.task.classes or ())), self.task, progress=progress)
        return drawn(self.found, n, seed)


def seed_of(seed: int, name: str, *index: int) -> int:
    """A seed of its own for an arm of a run."""
    return derive(seed, name, *index) % 2**31


def _first(task: Task, classes: int) -> Task:
    given = {part: getattr(task, part) for part in ("data", "validation", "test")}
    parts: dict[str, Any] = {part: data.take((data.targets < classes).nonzero()[:, 0]) for part, data in given.items() if data is not None}
    names = task.class_names[:classes] if task.class_names else ()
    return replace(task, **parts, classes=tuple(range(classes)), class_names=names, n=0)


def _some(data: Any, most: int | None, seed: int) -> Any:
    """At most so many, drawn at random and in their order."""
    if most is None or data.size <= most:
        return data
    return data.take(torch.randperm(data.size, generator=generator(seed, "some"))[:most].sort().values)
