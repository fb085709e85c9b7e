"""Pictures that differ a little every time they are learned from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from retain.errors import InputError
from retain.tasks.data import Data, Pair
from retain.tasks.task import Task


class AugmentedData(Data):
    """Images of which every shuffled pass shows a random part, half of them mirrored; a pass in order, such as for scores, shows them as they are.

    Args:
        inner: The images ``[N, C, H, W]``.
        least: The smallest part, as a share of the area.
        mirror: Whether to mirror left and right.
    """

    def __init__(self, inner: Data, least: float, mirror: bool) -> None:
        self.inner, self.least, self.mirror = inner, least, mirror

    @property
    def size(self) -> int | None:
        """How many images."""
        return self.inner.size

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of one input."""
        return self.inner.shape

    def steps(self, batch_size: int) -> int | None:
        """How many batches one pass gives."""
        return self.inner.steps(batch_size)

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Pair]:
        """All images once; changed if they are shuffled."""
        for images, targets in self.inner.batches(batch_size, generator):
            yield (images if generator is None else self._drawn(images, generator)), targets

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> AugmentedData:
        """The same images on ``device``."""
        return AugmentedData(self.inner.to(device, dtype), self.least, self.mirror)

    def _drawn(self, images: Tensor, generator: torch.Generator) -> Tensor:
        chance = torch.rand(4, len(images), generator=generator).to(images)
        side = (self.least + (1 - self.least) * chance[0]).sqrt()
        turn = 1 - 2 * (chance[1] < 0.5).to(images) if self.mirror else torch.ones_like(side)
        where = torch.zeros(len(images), 2, 3, device=images.device, dtype=images.dtype)
        where[:, 0, 0], where[:, 1, 1] = side * turn, side
        where[:, :, 2] = ((2 * chance[2:] - 1) * (1 - side)).T
        grid = affine_grid(where, list(images.shape), align_corners=False)
        return grid_sample(images, grid, padding_mode="border", align_corners=False)


def augment(task: Task, least: float = 0.6, *, mirror: bool = True) -> Task:
    """The task with training images of which a random part is shown, stretched to the whole, and half of them mirrored.

    Random parts as of Szegedy et al. 2015, "Going deeper with convolutions" (https://arxiv.org/abs/1409.4842), section 6, without their changes of aspect. It
    is done a batch at a time where the images are, for all of them at once, by the seed of the training.

    Args:
        task: A task of images ``[N, C, H, W]`` of floating point; what picks single samples, such as :func:`few`, comes before.
        least: The smallest part, as a share of the area, in (0, 1].
        mirror: Whether to mirror left and right, which letters and digits do not bear.

    Returns:
        The task; held-out and test images stay, and so do the training images where they are scored.

    Raises:
        InputError: If the data are no images, or the share is out of range.

    Example:
        >>> import torch
        >>> from retain import tasks
        >>> plain = tasks.few(tasks.digits(), 1)
        >>> task = tasks.augment(plain, 0.5)
        >>> one, two = (next(task.batches(10, torch.Generator().manual_seed(0))) for _ in range(2))
        >>> torch.equal(one.inputs, two.inputs), torch.equal(next(task.batches(10)).inputs, plain.data.inputs)
        (True, True)
    """
    if not 0 < least <= 1:
        raise InputError("least", "a number in (0, 1]", least)
    shape = task.data.shape
    if shape is None or len(shape) != 3:
        raise InputError("task", "images [N, C, H, W]", f"inputs of shape {list(shape or ())} each")
    return replace(task, data=AugmentedData(task.data, least, mirror))
