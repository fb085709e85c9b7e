"""Data that are read again and again and have to be the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from retain.curvature.inputs import drawn_rows, up_to
from retain.errors import InputError, check_count
from retain.tasks.batch import Batch
from retain.tasks.data import TensorData
from retain.tasks.task import Task

Fingerprint = tuple[tuple[torch.Size, ...], Tensor]


class Passes:
    """The chosen samples of a task as batches, checked in every pass against the first.

    Args:
        task: Its training data are read.
        samples: How many samples, drawn at random (of a loader: the first); all by default.
        batch_size: Samples per batch; ``None`` is all of them, or what a loader gives.
        seed: Seed of the samples drawn.

    Raises:
        InputError: If there are fewer samples than asked for.
    """

    def __init__(self, task: Task, samples: int | None, batch_size: int | None, seed: int) -> None:
        if samples is not None:
            check_count("samples", samples)
        data = task.data
        if samples is not None and isinstance(data, TensorData):
            task, samples = replace(task, data=data.take(drawn_rows(data, samples, seed))), None
        self.task, self.samples = task, samples
        self.batch_size = check_count("batch_size", batch_size) if batch_size is not None else samples or task.data.size or 1
        self._first: list[Fingerprint] = []
        self._complete = False

    def read(self) -> Iterator[Batch]:
        """All batches once.

        Yields:
            The batches, in the order of the first pass.

        Raises:
            InputError: If a batch is not that of the first pass.
        """
        if isinstance(self.task.data, TensorData):  # slices of one tensor
            yield from self.task.batches(self.batch_size)
            return
        number, same = 0, True
        for number, batch in enumerate(up_to(self.task.batches(self.batch_size), self.samples), start=1):
            found = _fingerprint(batch)
            if not self._complete:
                self._first.append(found)
            elif number > len(self._first) or not _same(found, self._first[number - 1]):
                same = False
                break
            yield batch
        if not same or number < len(self._first):
            where = f"others from batch {number if not same else number + 1} on"
            hint = "Turn shuffling and augmentation off, or pass list(loader), which keeps the batches as they are."
            raise InputError("data", "the same samples in every pass", where, hint)
        self._complete = True


def _fingerprint(batch: Batch) -> Fingerprint:
    """Shapes and two sums of every tensor, one of them weighted by position, since shuffling and flipping leave a plain sum as it was."""
    leaves = [leaf.detach().double().flatten() for leaf in tree_leaves((batch.inputs, batch.targets)) if isinstance(leaf, Tensor)]
    shapes = tuple(leaf.shape for leaf in tree_leaves((batch.inputs, batch.targets)) if isinstance(leaf, Tensor))
    sums = [torch.stack([leaf @ torch.linspace(1, 2, len(leaf), dtype=torch.float64, device=leaf.device), leaf.abs().sum()]).cpu() for leaf in leaves]
    return shapes, torch.stack(sums)


def _same(found: Fingerprint, first: Fingerprint) -> bool:
    return found[0] == first[0] and bool(((found[1] - first[1]).abs() <= 1e-9 * first[1][:, 1:]).all())  # sums may be taken in another order
