"""A point between two models, as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retain.paths.strategies.base import Walk
from retain.tasks.batch import Batch, apply


class Joined(nn.Module):
    """Source and target at a point of their bridge; answers as any model of the likelihood does. Only the target is trained.

    Args:
        walk: The path; the source's parameters are to be frozen.
        q: The point.
    """

    def __init__(self, walk: Walk, q: float = 0.0) -> None:
        super().__init__()
        self.source, self.target, self.q = walk.source, walk.target, q
        self._walk = walk

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """The bridge's point for a batch, in the family's coordinates, which are logits or means."""
        batch = Batch(named or inputs, torch.empty(0), self._walk.task)
        return self._walk.bridge.at(self.q, self._walk.ask(batch), apply(self.target, batch))
