"""The sufficient-statistic regulariser."""

from __future__ import annotations

from typing import Any

from torch import nn

from retain.curvature import LabelRule, fisher
from retain.errors import check_count
from retain.methods.quadratic import Pull, Quadratic, Strength
from retain.tasks.task import Task, as_task


class SSR(Quadratic):
    r"""Sufficient-statistic regulariser: old data are summarised by their estimate and a low-rank plus diagonal Fisher.

    .. math:: \mathcal{L}(\theta) = \overline{\text{nll}}_B(\theta)
        + \text{strength} \cdot \frac{n}{2m} (\theta - c)^\top \big(A A^\top + \operatorname{diag}(d)\big) (\theta - c)

    The natural weight is the number of old samples, strength 1. In sequence :math:`nP \leftarrow n_1 P_1 + n_2 P_2` and
    :math:`c \leftarrow \theta`, brought back to the same rank (W. E. Durno, Sufficiency and Efficiency in Deep RL, 2024, section on the
    sufficient statistic regulariser). Departures: labels as :func:`retain.fisher` says, per sample, not squared gradients of batches;
    sums keep their exact diagonal; the rank is found by a full singular value decomposition where the original iterates.

    Args:
        strength: See :class:`Quadratic`; ``optimal`` is the same author's retention law.
        labels: The Fisher's label rule, see :func:`retain.fisher`.
        samples: Measure on this many samples of the old task; all by default. It takes 2 rank + 11 passes over them.
        rank: Directions kept.
        draws: Labels drawn per sample under ``labels="sampled"``.
        pull: See :class:`Quadratic`; ``proximal`` is in closed form for SGD, Adam and AdamW.
        every: See :class:`Quadratic`.
        seed: Seed of the drawn samples and labels.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 2, scenario="task")
        >>> result = learn(models.MLP(64, 32, 10, seed=0), stream, methods.SSR(30), epochs=20, optimizer="momentum", lr=0.05)
        >>> bool(result.accuracy[2, 0] > 0.9)
        True
    """

    name = "ssr"
    summary = "sufficient-statistic regulariser: hold weights by a low-rank plus diagonal Fisher"
    citation = "durno2024sufficiency"

    def __init__(
        self,
        strength: Strength = 1.0,
        labels: LabelRule = "exact",
        samples: int | None = None,
        *,
        rank: int = 5,
        draws: int = 1,
        pull: Pull = "gradient",
        every: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(strength, pull, every)
        self.labels: LabelRule = labels
        self.samples, self.rank, self.draws, self.seed = samples, check_count("rank", rank), draws, seed

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Measure the Fisher on the task's training data and take it into the belief."""
        task = as_task(task)
        found = fisher(model, task, self.labels, structure="low-rank", samples=self.samples, draws=self.draws, seed=self.seed, rank=self.rank)
        self.remember(model, found, task.n)

    def settings(self) -> dict[str, Any]:
        """Everything the method was made with."""
        return {**super().settings(), **{key: getattr(self, key) for key in ("labels", "samples", "rank", "draws", "seed")}}
