"""Follow the labels, not the source."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from retain.errors import InputError
from retain.paths.strategies.base import Move
from retain.paths.strategies.firstorder import FirstOrder
from retain.training.optimizers import OptimizerFactory, Schedule


class TaskLoss(FirstOrder):
    r"""Gradient descent on the labels' negative log likelihood: of the bridge's point, :math:`-\log p_q(y)`, or of the target alone, :math:`-\log p_s(y)`.

    On the mixture the loss is at most :math:`\log \tfrac{1}{1-q}` above what the source alone has: it saturates, and its gradient vanishes exactly on the
    examples that the target gets badly wrong, so little is learned before q is near 1.

    Args:
        on: ``mixture`` (the bridge's point) or ``target``.
        optimizer: See :class:`FirstOrder`.
        lr: Learning rate.
        schedule: Course of the learning rate.
        warmup: Share of the path over which it rises.
        batch_size: Samples a step.

    Raises:
        InputError: If a setting is out of range.
    """

    name = "task"
    summary = "gradient descent on the labels, of the mixture or of the target alone"

    def __init__(
        self,
        on: Literal["mixture", "target"] = "mixture",
        optimizer: str | OptimizerFactory = "momentum",
        lr: float = 0.1,
        *,
        schedule: Schedule = "cosine",
        warmup: float = 0.05,
        batch_size: int = 128,
    ) -> None:
        super().__init__(optimizer, lr, schedule=schedule, warmup=warmup, batch_size=batch_size)
        if on not in ("mixture", "target"):
            raise InputError("on", "'mixture' or 'target'", repr(on))
        self.on = on

    def loss(self, move: Move) -> Tensor:
        """The mean negative log likelihood."""
        outputs = move.outputs()
        answer = move.walk.bridge.at(move.to, move.source, outputs) if self.on == "mixture" else outputs
        return move.walk.task.likelihood.mean_nll(answer, move.batch.targets)
