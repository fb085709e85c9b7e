"""Axes of tensors that have to be permuted together."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

FIXED = "fixed by what goes in, what comes out or a position"
"""Why an axis stays as it is where nothing better could be expected."""


class Units:
    """Things that can be put into another order: an unknown permutation of ``size`` units, possibly tied to another one's.

    Args:
        size: How many.
    """

    __slots__ = ("pinned", "size", "tied")

    def __init__(self, size: int) -> None:
        self.size = size
        self.pinned: str | None = None  # why the order has to stay
        self.tied: tuple[Units, int] | None = None  # each of those units is a run of so many of these


class Axis(NamedTuple):
    """An axis of a tensor: entry ``unit * run + offset`` belongs to ``unit``."""

    units: Units
    run: int = 1

    @property
    def root(self) -> Axis:
        """The same axis by the units that are tied to nothing else."""
        units, run = self
        while units.tied is not None:
            units, more = units.tied
            run *= more
        return Axis(units, run)

    @property
    def size(self) -> int:
        """Entries."""
        return self.units.size * self.run


class Axes:
    """The axes of every tensor seen, by identity; tensors are kept, so that no identity is given twice."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Axis, ...]] = {}
        self._kept: list[Tensor] = []

    def free(self, size: int) -> Axis:
        """An axis whose units may have any order."""
        return Axis(Units(size))

    def fixed(self, size: int, why: str = FIXED) -> Axis:
        """An axis whose order has to stay."""
        axis = self.free(size)
        axis.units.pinned = why
        return axis

    def put(self, tensor: Tensor, axes: tuple[Axis, ...]) -> None:
        """Remember the axes of a tensor."""
        self._known[id(tensor)] = axes
        self._kept.append(tensor)

    def of(self, tensor: Tensor) -> tuple[Axis, ...]:
        """The axes of a tensor; one that came from nowhere is fixed."""
        if id(tensor) not in self._known:
            self.put(tensor, tuple(self.fixed(size, "meets a tensor that could not be followed") for size in tensor.shape))
        return self._known[id(tensor)]

    def pin(self, axis: Axis, why: str = FIXED) -> None:
        """Keep the order of an axis; the first reason counts."""
        units = axis.root.units
        units.pinned = units.pinned or why

    def tie(self, first: Axis, second: Axis) -> None:
        """From now on both axes have one order. Where one has longer runs than the other, whole runs move."""
        a, b = first.root, second.root
        if a.units is b.units and a.run == b.run:
            return
        if a.run < b.run:
            a, b = b, a
        if a.size != b.size or a.run % b.run or a.units is b.units:
            for axis in (a, b):
                self.pin(axis, "meets units that are grouped in another way")
            return
        b.units.tied = (a.units, a.run // b.run)
        if b.units.pinned is not None:
            self.pin(a, b.units.pinned)
