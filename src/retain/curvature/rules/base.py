"""What a rule hands over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from retain.curvature.pieces import Dense, Piece


class Part(NamedTuple):
    """A piece of a layer's parameter."""

    name: str
    """The parameter's name within the layer."""
    piece: Piece
    place: slice | None = None
    """The rows of the parameter that it covers; ``None`` is all of them."""


@dataclass
class Site:
    """One use of a layer's parameters in a forward pass.

    Args:
        a: What went in, detached.
        out: The tensor of the graph at which gradients are taken; its sample axis is that of ``a``.
        rule: From ``a`` ``[B, ...]`` and gradients ``[K, B, ...]`` at ``out``, the samples in front, to pieces.
        movable: Whether the samples may be on another axis than the first.
        axis: The axis of the samples, once known.
    """

    a: Tensor
    out: Tensor
    rule: Callable[[Tensor, Tensor], list[Part]]
    movable: bool = False
    axis: int = 0

    def parts(self, G: Tensor) -> list[Part]:
        """The pieces, from gradients ``[K, *out.shape]``."""
        return self.rule(self.a.movedim(self.axis, 0), G.movedim(self.axis + 1, 1))


class Found(NamedTuple):
    """The sites of one call of a module, and the output that goes with them where the rule computed its own."""

    sites: list[Site]
    output: object = None


def summed(name: str, values: Tensor, kept: int = 1) -> Part:
    """A part whose gradient is ``values`` ``[K, B, positions..., shape...]`` summed over positions, the last ``kept`` axes being the shape."""
    positions = tuple(range(2, values.ndim - kept))
    return Part(name, Dense(values.sum(positions) if positions else values))
