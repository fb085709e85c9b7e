"""Inputs that stay as they are stored, and are made a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from retain.tasks.data import Pair, TensorData, check_lengths


class StoredData(TensorData):
    """Inputs made from a store that several tasks share: bytes divided by 255, some of the rows, entries in another order.

    Every batch has the bits that :attr:`inputs`, all of them in one tensor, would give; bytes take a quarter of that memory, and data of one store share it.

    Args:
        source: The store, ``[M, ...]``, checked before: bytes, of which inputs are ``bytes / 255``, or inputs as they are.
        targets: One for each of ``rows``.
        rows: The samples that belong to these data, places in the store; all by default.
        order: A permutation of one input's entries; none by default.
        dtype: Of inputs made from bytes, which are divided in single precision whatever it is.

    Raises:
        InputError: If there are no samples, or the lengths differ.
    """

    def __init__(self, source: Tensor, targets: Tensor, rows: Tensor | None = None, order: Tensor | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.source, self.targets, self.dtype = source, targets, dtype
        self.rows = torch.arange(len(source), device=source.device) if rows is None else rows
        self.order = order if order is None else order.to(source.device)
        self._whole: Tensor | None = None
        check_lengths(len(self.rows), targets)

    @property
    def inputs(self) -> Tensor:  # type: ignore[override]
        """All inputs, in memory from now on."""
        if self._whole is None:
            self._whole = self._made(self.rows)
        return self._whole

    @property
    def size(self) -> int:
        """How many samples."""
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.source.shape[1:])

    @property
    def device(self) -> torch.device:
        """Where the store is."""
        return self.source.device

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Pair]:
        """All samples once."""
        places = torch.arange(self.size) if generator is None else torch.randperm(self.size, generator=generator)
        for some in places.to(self.device).split(batch_size):
            yield self._made(self.rows[some]), self.targets[some]

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> StoredData:
        """The same on ``device``."""
        source = self.source.to(device, dtype if self.source.is_floating_point() else None)
        targets = self.targets.to(device, dtype if self.targets.is_floating_point() else None)
        return StoredData(source, targets, self.rows.to(device), self.order, dtype or self.dtype)

    def take(self, rows: Tensor) -> StoredData:
        """The samples at ``rows``, in that order."""
        rows = rows.to(self.device)
        return StoredData(self.source, self.targets[rows], self.rows[rows], self.order, self.dtype)

    def permuted(self, order: Tensor) -> StoredData:
        """The same samples with the entries of every input in another order.

        Args:
            order: A permutation of the entries as they are now.

        Returns:
            Data that share the store.
        """
        order = order.to(self.device)
        return StoredData(self.source, self.targets, self.rows, order if self.order is None else self.order[order], self.dtype)

    def joins(self, other: TensorData) -> bool:
        """Whether other data are of the same store, in the same order."""
        if not isinstance(other, StoredData) or other.source is not self.source or other.dtype != self.dtype:
            return False
        return other.order is self.order or (other.order is not None and self.order is not None and torch.equal(other.order, self.order))

    def _made(self, rows: Tensor) -> Tensor:
        found = self.source.index_select(0, rows)
        if self.order is not None:
            found = found.flatten(1).index_select(1, self.order).reshape(len(rows), *self.shape)
        return found.float().div_(255).to(self.dtype) if found.dtype == torch.uint8 else found


def stored(data: TensorData) -> StoredData:
    """Data as they are, if they have a store, or with their inputs as one."""
    return data if isinstance(data, StoredData) else StoredData(data.inputs, data.targets)


def joined(parts: list[TensorData]) -> TensorData:
    """The samples of several data one after another, without a copy where they share a store."""
    first, targets = parts[0], torch.cat([data.targets for data in parts])
    if isinstance(first, StoredData) and all(first.joins(data) for data in parts):
        rows = torch.cat([data.rows for data in parts if isinstance(data, StoredData)])
        return StoredData(first.source, targets, rows, first.order, first.dtype)
    return TensorData(torch.cat([data.inputs for data in parts]), targets)
