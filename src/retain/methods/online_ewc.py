"""Elastic weight consolidation that lets old tasks fade."""

from __future__ import annotations

from typing import Any

from torch import nn

from retain.beliefs import Belief
from retain.curvature import LabelRule
from retain.errors import InputError
from retain.methods.ewc import EWC
from retain.methods.quadratic import Pull, Strength
from retain.tasks.task import Task


class OnlineEWC(EWC):
    r"""Online EWC: one quadratic about the latest weights, in which older tasks count less and less.

    .. math:: nP \leftarrow \gamma \, nP + n_k F_k, \qquad c \leftarrow \theta_k

    Equation 9 of Schwarz et al. 2018, Progress and Compress (https://arxiv.org/abs/1805.06370). Departures: the tasks' Fishers are not
    normalised, they count by their samples; lambda is ``strength * n / m``. With ``decay=1`` it is :class:`EWC`, and with two tasks
    it is too.

    Args:
        strength: See :class:`Quadratic`.
        labels: The Fisher's label rule, see :func:`retain.fisher`.
        samples: Estimate the Fisher from this many samples of the old task; all by default.
        decay: :math:`\gamma`, above 0 and at most 1: what is left of the old belief's n after each further task.
        draws: Labels drawn per sample under ``labels="sampled"``.
        pull: See :class:`Quadratic`.
        seed: Seed of the drawn samples and labels.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain import methods, models, tasks
        >>> stream, model = tasks.split(tasks.digits(), 5, scenario="task"), models.MLP(64, 10, seed=0)
        >>> method = methods.OnlineEWC(decay=0.5)
        >>> for task in stream.tasks[:2]:
        ...     method.consolidate(model, task)
        >>> method.belief.n == stream[0].n / 2 + stream[1].n
        True
    """

    name = "online-ewc"
    summary = "online EWC: one diagonal belief in which older tasks fade"
    citation = "schwarz2018progress"

    def __init__(
        self,
        strength: Strength = 1.0,
        labels: LabelRule = "exact",
        samples: int | None = None,
        *,
        decay: float = 0.95,
        draws: int = 1,
        pull: Pull = "gradient",
        seed: int = 0,
    ) -> None:
        super().__init__(strength, labels, samples, draws=draws, pull=pull, seed=seed)
        if not 0 < decay <= 1:
            raise InputError("decay", "a number above 0 and at most 1", decay)
        self.decay = decay

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Let the belief fade, then take the task in."""
        if self.belief is not None:
            self.belief = Belief(self.belief.centre, self.belief.precision, self.decay * self.belief.n, self.belief.prior)
        super().consolidate(model, task)

    def settings(self) -> dict[str, Any]:
        """Everything the method was made with."""
        kept = {key: value for key, value in super().settings().items() if key not in ("centres", "replacement")}
        return {**kept, "decay": self.decay}
