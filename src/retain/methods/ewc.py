"""Elastic weight consolidation."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from retain.beliefs import Belief, Diagonal, product
from retain.curvature import LabelRule, fisher
from retain.curvature.inputs import check_rule
from retain.errors import InputError, check_count
from retain.methods.quadratic import Pull, Quadratic, Strength, _weights
from retain.tasks.task import Task, as_task


class EWC(Quadratic):
    r"""Elastic weight consolidation: old weights are held in proportion to the diagonal of the Fisher.

    .. math:: \mathcal{L}(\theta) = \overline{\text{nll}}_B(\theta) + \text{strength} \cdot \frac{n}{2m} \sum_j F_j (\theta_j - c_j)^2

    Equation 3 of Kirkpatrick et al. 2017 (https://arxiv.org/abs/1612.00796). Departures: the Fisher's expectation over labels is exact by
    default; lambda is ``strength * n / m``, so that 1 is the Bayesian answer; and with three or more tasks the belief is updated
    in sequence, one quadratic about the latest weights (Huszar 2018, https://arxiv.org/abs/1712.03847). ``centres="separate"`` keeps the
    paper's one penalty a task, merged exactly into a single quadratic, so its cost does not grow with the tasks.

    Args:
        strength: See :class:`Quadratic`.
        labels: The Fisher's label rule, see :func:`retain.fisher`.
        samples: Estimate the Fisher from this many samples of the old task; all by default.
        replacement: Draw those samples with replacement.
        draws: Labels drawn per sample under ``labels="sampled"``.
        centres: ``latest`` or ``separate``.
        pull: See :class:`Quadratic`.
        seed: Seed of the drawn samples and labels.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 2, scenario="task")
        >>> result = learn(models.MLP(64, 32, 10, seed=0), stream, methods.EWC(10), epochs=20, optimizer="momentum", lr=0.05)
        >>> bool(result.accuracy[2, 0] > 0.9)
        True
    """

    name = "ewc"
    summary = "elastic weight consolidation: hold weights by their diagonal Fisher"
    citation = "kirkpatrick2017overcoming"

    def __init__(
        self,
        strength: Strength = 1.0,
        labels: LabelRule = "exact",
        samples: int | None = None,
        *,
        replacement: bool = False,
        draws: int = 1,
        centres: Literal["latest", "separate"] = "latest",
        pull: Pull = "gradient",
        seed: int = 0,
    ) -> None:
        super().__init__(strength, pull)
        check_rule(labels)
        check_count("draws", draws)
        if samples is not None:
            check_count("samples", samples)
        if centres not in ("latest", "separate"):
            raise InputError("centres", "'latest' or 'separate'", repr(centres))
        self.labels: LabelRule = labels
        self.samples, self.replacement, self.draws = samples, replacement, draws
        self.centres, self.seed = centres, seed

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Measure the Fisher on the task's training data and take it into the belief."""
        task = as_task(task)
        found = fisher(model, task, self.labels, samples=self.samples, replacement=self.replacement, draws=self.draws, seed=self.seed)
        precision = Diagonal(found)
        if self.belief is None or self.centres == "latest":
            self.remember(model, precision, task.n)
        else:
            self.retained, theta = None, _weights(model)
            self.belief = product(self.belief.fitted(model), Belief({name: theta[name] for name in precision.names}, precision, task.n))

    def settings(self) -> dict[str, Any]:
        """Everything the method was made with."""
        extra = {key: getattr(self, key) for key in ("labels", "samples", "replacement", "draws", "centres", "seed")}
        return {**super().settings(), **extra}
