"""Data that change on the way, and what a person adds: a bias, changed inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from retain.errors import InputError, check_count
from retain.seeds import generator
from retain.tasks.batch import Batch
from retain.tasks.data import TensorData
from retain.tasks.task import Task


class Drift:
    """A data set that slowly becomes another: at progress t each sample comes from the second with probability ``share(t)``.

    Only strategies that follow labels (``retention``, ``task``) can learn the second task, which the source knows nothing of.

    Args:
        first: The task at the start of the path.
        second: The task at its end; inputs of the same shape.
        share: From progress in [0, 1] to a probability; t itself by default.

    Raises:
        InputError: If the tasks are not tensors of the same shape.

    Example:
        >>> from retain import paths, tasks
        >>> paths.Drift(tasks.mnist(embedded=True), tasks.fashion_mnist(embedded=True))
        Drift(mnist -> fashion)
    """

    def __init__(self, first: Task, second: Task, share: Callable[[float], float] = lambda t: t) -> None:
        for name, task in (("first", first), ("second", second)):
            if not isinstance(task, Task) or not isinstance(task.data, TensorData):
                raise InputError(name, "a task whose data are tensors", type(task).__name__)
        if first.data.shape != second.data.shape:
            raise InputError("second", f"inputs of shape {list(first.data.shape)}", list(second.data.shape))
        self.first, self.second, self.share = first, second, share

    def to(self, device: torch.device, dtype: torch.dtype) -> Drift:
        """The same with tensors on ``device``."""
        return Drift(self.first.to(device, dtype), self.second.to(device, dtype), self.share)

    def batches(self, size: int, seed: int, progress: Callable[[], float], task: Task) -> Iterator[Batch]:
        """Batches without end, mixed as the path's progress says.

        Args:
            size: Samples.
            seed: Of the draws.
            progress: Asked before each batch.
            task: That the batches belong to.

        Yields:
            Batches.

        Raises:
            InputError: If the share is not a probability.
        """
        draw = generator(seed, "order")
        one, two = self.first.data, self.second.data
        while True:
            share = float(self.share(progress()))
            if not 0 <= share <= 1:
                raise InputError("share", "a probability", share)
            later = torch.rand(size, generator=draw) < share
            rows = [torch.randint(data.size, (size,), generator=draw).to(data.device) for data in (one, two)]
            place = later.to(one.device)
            inputs = torch.where(place.view(-1, *[1] * (one.inputs.ndim - 1)), two.inputs[rows[1]], one.inputs[rows[0]])
            yield Batch(inputs, torch.where(place, two.targets[rows[1]], one.targets[rows[0]]), task)

    def __repr__(self) -> str:
        return f"Drift({self.first.id} -> {self.second.id})"


def spike(at: float, height: float, width: float = 0.05) -> Callable[[float], float]:
    """A person's bias: ``height`` more retained where q is within ``width`` of ``at``, for ``Retention(bias=...)``.

    Args:
        at: Its middle, in [0, 1].
        height: Share added; below 0 it is taken off.
        width: Half its width.

    Returns:
        A function from q to a share.

    Example:
        >>> from retain import paths
        >>> bias = paths.spike(at=0.5, height=0.8)
        >>> bias(0.52), bias(0.7)
        (0.8, 0.0)
    """
    return lambda q: height if abs(q - at) <= width else 0.0


def shifts(pixels: int = 1) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Images moved by up to ``pixels`` either way, a batch at a time, zeros moving in; for ``traverse(augment=...)``.

    Args:
        pixels: At least 1.

    Returns:
        A function from images ``[B, C, H, W]`` and a generator to images.

    Example:
        >>> import torch
        >>> from retain import paths
        >>> moved = paths.shifts(1)(torch.ones(2, 1, 3, 3), torch.Generator().manual_seed(0))
        >>> moved.shape
        torch.Size([2, 1, 3, 3])
    """
    check_count("pixels", pixels)

    def move(images: Tensor, draw: torch.Generator) -> Tensor:
        if images.ndim != 4:
            raise InputError("inputs", "images [B, C, H, W] to shift", list(images.shape))
        down, right = torch.randint(2 * pixels + 1, (2,), generator=draw).tolist()
        height, width = images.shape[2:]
        return torch.nn.functional.pad(images, [pixels] * 4)[:, :, down : down + height, right : right + width]

    return move
