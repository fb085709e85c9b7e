"""Strategies that follow the gradient of a loss."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from retain.errors import InputError, check_count
from retain.paths.strategies.base import Move, Strategy, Walk
from retain.training.optimizers import OptimizerFactory, Schedule, factor, make_optimizer


class FirstOrder(Strategy):
    """One step of an optimiser an iteration, on a loss.

    Args:
        optimizer: ``adam``, ``adamw``, ``sgd``, ``momentum``, or a function from parameters to an optimiser.
        lr: Learning rate.
        schedule: Its course over the path: ``constant`` or ``cosine``.
        warmup: Share of the path over which it rises from 0, in [0, 1); updates before q moves are not warmed up.
        batch_size: Samples a step.

    Raises:
        InputError: If a setting is out of range.
    """

    def __init__(
        self,
        optimizer: str | OptimizerFactory = "momentum",
        lr: float = 0.2,
        *,
        schedule: Schedule = "cosine",
        warmup: float = 0.05,
        batch_size: int = 128,
    ) -> None:
        if not 0 <= warmup < 1:
            raise InputError("warmup", "a number in [0, 1)", warmup)
        factor(schedule, 0.0)
        self.optimizer, self.lr, self.schedule, self.warmup = optimizer, lr, schedule, warmup
        self.batch_size = check_count("batch_size", batch_size)

    def begin(self, walk: Walk) -> None:
        """Make the optimiser."""
        self._steps: Optimizer = make_optimizer(self.optimizer, walk.parameters.values(), self.lr)
        self._initial = [group["lr"] for group in self._steps.param_groups]

    @abstractmethod
    def loss(self, move: Move) -> Tensor:
        """A scalar in nats per sample."""

    def update(self, move: Move) -> dict[str, Any]:
        """One step down the loss."""
        share = factor(self.schedule, move.done) * (min(1.0, move.progress / self.warmup) if self.warmup and move.progress else 1.0)
        for group, rate in zip(self._steps.param_groups, self._initial, strict=True):
            group["lr"] = rate * share
        self._steps.zero_grad()
        loss = self.loss(move)
        loss.backward()
        self.step(move)
        return {"loss": loss.detach(), "rate": share}

    def step(self, move: Move) -> None:
        """Take the optimiser's step."""
        self._steps.step()

    def end(self, walk: Walk) -> None:
        """Let the optimiser's state go."""
        vars(self).pop("_steps", None)
