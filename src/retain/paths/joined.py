"""A point between two models, as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retain.paths.bridges import Bridge
from retain.tasks.batch import Batch, apply


class Joined(nn.Module):
    """Source and target at a point of a bridge; answers as any model of the likelihood does. Only the target is trained.

    Args:
        source: The model that knows; its parameters are to be frozen.
        target: The model that learns.
        bridge: The curve between them.
        q: The point.
        floor: Least probability of the source's answers.
    """

    def __init__(self, source: nn.Module, target: nn.Module, bridge: Bridge, q: float = 0.0, floor: float = 0.0) -> None:
        super().__init__()
        self.source, self.target, self.bridge, self.q, self.floor = source, target, bridge, q, floor

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """The bridge's point for a batch, in the family's coordinates, which are logits or means."""
        with torch.no_grad():
            answer = self._floored(self.source(*inputs, **named))
        return self.bridge.at(self.q, answer, self.target(*inputs, **named))

    def answers(self, batch: Batch) -> Tensor:
        """The source's answers to a batch."""
        with torch.no_grad():
            return self._floored(apply(self.source, batch))

    def _floored(self, outputs: Tensor) -> Tensor:
        return self.bridge.family.floored(self.bridge.family.answer(outputs), self.floor)
