"""Distillation: follow the source's answers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from retain.errors import InputError, check_positive
from retain.paths.strategies.base import Move
from retain.paths.strategies.firstorder import FirstOrder
from retain.training.optimizers import OptimizerFactory, Schedule

Divergence = Literal["forward", "reverse", "skew"]


class Distillation(FirstOrder):
    r"""Gradient descent on a divergence between the source's answers and the target's (Hinton, Vinyals and Dean 2015, https://arxiv.org/abs/1503.02531).

    ``forward``: :math:`T^2\,\mathrm{KL}(p_d \| p_s)` at temperature T. ``reverse``: :math:`T^2\,\mathrm{KL}(p_s \| p_d)`. ``skew``: the bridge's
    own divergence at q, for the mixture :math:`\mathrm{KL}(p_d \| (1-q) p_d + q p_s)`, which is the optimal law without its natural gradient. The
    first two pay no attention to q.

    Args:
        divergence: ``forward``, ``reverse`` or ``skew``.
        optimizer: See :class:`FirstOrder`.
        lr: Learning rate.
        temperature: T, above 0; 1 with ``skew``.
        schedule: Course of the learning rate.
        warmup: Share of the path over which it rises.
        batch_size: Samples a step.

    Raises:
        InputError: If a setting is out of range.
    """

    name = "distillation"
    summary = "gradient descent on a divergence from the source's answers"
    citation = "hinton2015distilling"

    def __init__(
        self,
        divergence: Divergence = "forward",
        optimizer: str | OptimizerFactory = "momentum",
        lr: float = 0.2,
        *,
        temperature: float = 1.0,
        schedule: Schedule = "cosine",
        warmup: float = 0.05,
        batch_size: int = 128,
    ) -> None:
        super().__init__(optimizer, lr, schedule=schedule, warmup=warmup, batch_size=batch_size)
        if divergence not in ("forward", "reverse", "skew"):
            raise InputError("divergence", "'forward', 'reverse' or 'skew'", repr(divergence))
        if check_positive("temperature", temperature) != 1 and divergence == "skew":
            raise InputError("temperature", "1 with divergence='skew'", temperature)
        self.divergence, self.temperature = divergence, temperature

    def loss(self, move: Move) -> Tensor:
        """The mean divergence."""
        if self.divergence == "skew":
            return move.divergence(move.outputs())
        family, T = move.walk.bridge.family, self.temperature
        source, answer = move.source, move.outputs()
        if T != 1:  # a masked output stays the lowest number
            lowest = torch.finfo(answer.dtype).min
            source, answer = family.answer((source / T).clamp_min(lowest)), (answer / T).clamp_min(lowest)
        answer = family.answer(answer)
        one, other = (source, answer) if self.divergence == "forward" else (answer, source)
        return T**2 * family.kl(one, other).mean()
