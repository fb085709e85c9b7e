"""Images: kept as bytes where they would not fit otherwise, grey digits as colour pictures, a few images a class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from retain.errors import InputError, check_count
from retain.seeds import generator
from retain.tasks.data import Data, Pair, TensorData
from retain.tasks.task import Task

Channels = float | Sequence[float]
_CHUNK = 2**22
"""Entries of the result that are resized at once: 16 MB in single precision."""


class ImageData(Data):
    """Images as bytes, turned into normalised floating point one batch at a time: a quarter of the memory of tensors.

    A batch holds ``(bytes / 255 - mean) / std``, bit for bit what a :class:`TensorData` of the same images gives. What needs all inputs in one tensor (replay,
    :meth:`Task.hold_out`) takes only that one.

    Args:
        images: ``[N, C, H, W]``, uint8.
        targets: One a picture.
        mean: Subtracted, a number or one a channel; a grey image becomes one of as many channels.
        std: Divided by.

    Raises:
        InputError: If there are no such images, the lengths differ, or mean and std do not fit.

    Example:
        >>> import torch
        >>> from retain.tasks import ImageData, Task
        >>> pictures = torch.full((4, 3, 8, 8), 255, dtype=torch.uint8)
        >>> task = Task(ImageData(pictures, torch.tensor([0, 1, 0, 1]), mean=0.5, std=0.5), classes=(0, 1))
        >>> next(task.batches(2)).inputs.unique()
        tensor([1.])
    """

    def __init__(self, images: Tensor, targets: Tensor, mean: Channels | None = None, std: Channels | None = None) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
            raise InputError("images", "bytes [N, C, H, W] (torch.uint8), at least one", f"{images.dtype} {list(images.shape)}")
        if len(images) != len(targets):
            raise InputError("targets", f"one for each of the {len(images)} images", len(targets))
        self.images, self.targets = images, targets
        self.mean, self.std = statistics(mean, std, images.shape[1])
        self.dtype = torch.float32

    @property
    def size(self) -> int:
        """How many images."""
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input as a model sees it."""
        return (max(self.images.shape[1], len(self.mean)), *self.images.shape[2:])

    def steps(self, batch_size: int) -> int:
        """How many batches one pass gives."""
        return -(-self.size // batch_size)

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Pair]:
        """All images once, normalised."""
        if generator is None:
            for images, targets in zip(self.images.split(batch_size), self.targets.split(batch_size), strict=True):
                yield self._floats(images), targets
            return
        order = torch.randperm(self.size, generator=generator).to(self.images.device)
        for rows in order.split(batch_size):
            yield self._floats(self.images.index_select(0, rows)), self.targets[rows]

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> ImageData:
        """The same images on ``device``, still as bytes."""
        moved = object.__new__(ImageData)  # already checked
        moved.images, moved.targets, moved.mean, moved.std = (part.to(device) for part in (self.images, self.targets, self.mean, self.std))
        moved.dtype = dtype or self.dtype
        return moved

    def take(self, rows: Tensor) -> ImageData:
        """The images at ``rows``, in that order."""
        taken = self.to(self.images.device)
        taken.images, taken.targets = self.images[rows], self.targets[rows]
        return taken

    def tensors(self) -> TensorData:
        """The same images in one tensor of single precision: four times the memory, and everything works with it."""
        inputs = torch.empty(self.size, *self.shape, device=self.images.device, dtype=self.dtype)
        rows = max(1, _CHUNK // inputs[0].numel())
        for target, images in zip(inputs.split(rows), self.images.split(rows), strict=True):
            target.copy_(self._floats(images))
        return TensorData(inputs, self.targets)

    def _floats(self, images: Tensor) -> Tensor:
        # normalised in single precision whatever the model's, so that both ways of keeping images give equal bits
        return images.float().div_(255).sub(self.mean).div_(self.std).to(self.dtype)


def statistics(mean: Channels | None, std: Channels | None, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as tensors ``[C, 1, 1]`` for images of so many channels; grey images may have several.

    Args:
        mean: A number, one a channel, or ``None`` for 0.
        std: The same, ``None`` for 1.
        channels: Of the images.

    Returns:
        Both, equally long.

    Raises:
        InputError: If they are no finite numbers, not positive, or too many.
    """
    found = []
    for name, value in (("mean", 0.0 if mean is None else mean), ("std", 1.0 if std is None else std)):
        try:
            numbers = torch.tensor(value, dtype=torch.float32).flatten()
        except (TypeError, ValueError, RuntimeError):
            numbers = torch.empty(0)
        if not len(numbers) or not numbers.isfinite().all() or (name == "std" and bool((numbers <= 0).any())):
            raise InputError(name, "a number or one a channel" + (", above 0" if name == "std" else ""), repr(value))
        if len(numbers) not in (1, channels) and channels != 1:
            raise InputError(name, f"one number, or one for each of {channels} channels", len(numbers))
        found.append(numbers)
    length = max(len(numbers) for numbers in found)
    if any(len(numbers) not in (1, length) for numbers in found):
        raise InputError("std", f"as many numbers as mean, {len(found[0])}", len(found[1]))
    return found[0].expand(length)[:, None, None].contiguous(), found[1].expand(length)[:, None, None].contiguous()


def as_images(task: Task, size: int = 64, mean: Channels | None = None, std: Channels | None = None, *, storage: str = "float") -> Task:
    """A task of small grey pictures, such as MNIST, as one of colour pictures that a network for photographs takes.

    Pictures are resized to ``size`` x ``size`` (bilinear, antialiased), a grey one is repeated three times, and the result normalised.

    Args:
        task: Inputs ``[N, 1 or 3, H, W]`` in [0, 1], in tensors.
        size: Pixels a side.
        mean: Subtracted, a number or one a channel; ``None`` is 0.
        std: Divided by; ``None`` is 1.
        storage: ``float``: tensors of 12 ``size``^2 bytes a picture (590 MB for 12,000 of 64 pixels); ``bytes``: an :class:`ImageData` of a twelfth of that for
            grey pictures, which rounds values to 1/255.

    Returns:
        The task with inputs ``[N, 3, size, size]``.

    Raises:
        InputError: If the task holds no such pictures.

    Example:
        >>> from retain import tasks
        >>> task = tasks.as_images(tasks.digits(), 32, mean=0.5, std=0.5)
        >>> task.data.shape, float(task.data.inputs.min())
        ((3, 32, 32), -1.0)
    """
    check_count("size", size)
    check_storage(storage)
    parts: dict[str, Any] = {}
    for name in ("data", "validation", "test"):
        data = getattr(task, name)
        if data is None:
            continue
        where = f"{name} of task '{task.id}'"
        if not isinstance(data, TensorData):
            raise InputError(where, "pictures held in tensors", type(data).__name__)
        inputs = data.inputs
        if inputs.ndim != 4 or inputs.shape[1] not in (1, 3) or not inputs.is_floating_point():
            raise InputError(where, "pictures [N, 1 or 3, H, W] of floating point", f"shape {list(inputs.shape)} of {inputs.dtype}")
        if float(inputs.min()) < 0 or float(inputs.max()) > 1:
            raise InputError(where, "values in [0, 1]", f"{float(inputs.min()):.3g} to {float(inputs.max()):.3g}", "Pass the task before it is normalised.")
        parts[name] = _resized(data, size, *statistics(mean, std, 3), storage)
    return replace(task, **parts, id=f"{task.id}-{size}px")


def _resized(data: TensorData, size: int, mean: Tensor, std: Tensor, storage: str) -> Data:
    inputs = data.inputs
    channels = 3 if storage == "float" else inputs.shape[1]
    made = torch.empty(len(inputs), channels, size, size, dtype=torch.float32 if storage == "float" else torch.uint8, device=inputs.device)
    rows = max(1, _CHUNK // (3 * size * size))
    for target, source in zip(made.split(rows), inputs.split(rows), strict=True):
        larger = interpolate(source.float(), (size, size), mode="bilinear", antialias=True).clamp_(0, 1)
        target.copy_(larger.sub(mean.to(larger.device)).div_(std.to(larger.device)) if storage == "float" else larger.mul_(255).round_())
    if storage == "float":
        return TensorData(made, data.targets)
    return ImageData(made, data.targets, mean.expand(3, 1, 1).flatten().tolist(), std.expand(3, 1, 1).flatten().tolist())


def check_storage(storage: str) -> None:
    """Raise if there is no such way to keep images."""
    if storage not in ("float", "bytes"):
        raise InputError("storage", "'float' or 'bytes'", repr(storage))


def few(task: Task, per_class: int, seed: int = 0) -> Task:
    """The task with so many training samples a class, drawn at random; test and validation data stay as they are.

    Draws are nested: with one seed, the 5 a class are among the 10. Samples stand one of each class in turn.

    Args:
        task: A classification task with tensors or :class:`ImageData`.
        per_class: How many of each class.
        seed: Of the draw.

    Returns:
        The task, of ``per_class`` times its classes samples.

    Raises:
        InputError: If a class has fewer, or the data are not of that kind.

    Example:
        >>> from retain import tasks
        >>> tasks.few(tasks.digits(), 5)
        Task('digits', n=50, classes=10, likelihood=Categorical())
    """
    check_count("per_class", per_class)
    data = task.data
    if not isinstance(data, TensorData | ImageData) or task.classes is None:
        raise InputError("task", "classes, and data held in tensors", f"{type(data).__name__} of task '{task.id}'")
    chosen = []
    for label in task.classes:
        rows = (data.targets.cpu() == label).nonzero()[:, 0]
        if len(rows) < per_class:
            raise InputError("per_class", f"at most {len(rows)}, the training samples of class {label} in task '{task.id}'", per_class)
        chosen.append(rows[torch.randperm(len(rows), generator=generator(seed, "few", label))[:per_class]])
    return replace(task, data=data.take(torch.stack(chosen, 1).flatten().to(data.targets.device)), n=0)
