"""Online structured Laplace."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from retain.beliefs import Kronecker
from retain.curvature import LabelRule, fisher
from retain.errors import InputError, check_count, check_positive
from retain.methods.quadratic import Pull, Quadratic, Strength
from retain.tasks.task import Task, as_task


class StructuredLaplace(Quadratic):
    r"""Online structured Laplace: weights are held as the Kronecker factors of their curvature say, layer by layer.

    .. math:: \mathcal{L}(\theta) = \overline{\text{nll}}_B(\theta)
        + \text{strength} \cdot \frac{n}{2m} \sum_{\text{layers}} \sum_t \langle \Delta W, G_t \, \Delta W A_t \rangle

    Equation 8 of Ritter, Botev and Barber 2018 (https://arxiv.org/abs/1805.07810), whose lambda is the strength. A diagonal knows
    weights one by one; the factors know which combinations of them the old task needs. Departures: the factors' expectation over
    labels is exact by default; weight and bias are one block; the sum over tasks is a list of pairs for the first ``pairs`` tasks, then
    everything is brought into one Kronecker eigenbasis, whose error ``method.belief.precision.error`` tells: a step costs two matrix
    products a layer for every pair, and fifty pairs would cost fifty training steps.

    Args:
        strength: See :class:`Quadratic`.
        labels: The Fisher's label rule, see :func:`retain.fisher`.
        samples: Estimate the factors from this many samples of the old task; all by default.
        structure: ``kronecker``, or ``ekfac``: eigenvalues measured in a second pass.
        sharing: ``expand`` or ``reduce``, for layers at many positions, see :func:`retain.fisher`.
        draws: Labels drawn per sample under ``labels="sampled"``.
        damping: A share of its mean eigenvalue that is added to every eigenvalue of each factor, at least 0 (factored damping, Martens and Grosse 2015,
            section 6.3, https://arxiv.org/abs/1503.05671). Directions in which a task says nothing are then held a little too, where its quadratic is no
            longer true; 0.1 is better than none over fifty tasks. It holds outputs that no task has used yet too: leave it at 0 where tasks have their own.
        pairs: From this many tasks on, one eigenbasis.
        pull: See :class:`Quadratic`; ``proximal`` is in closed form for one pair or one basis under SGD, and takes conjugate gradients
            otherwise.
        every: See :class:`Quadratic`; with ``pull="proximal"``, 5 to 10 saves most of the time and has cost nothing where it was measured.
        seed: Seed of the drawn samples and labels.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 2, scenario="task")
        >>> result = learn(models.MLP(64, 32, 10, seed=0), stream, methods.StructuredLaplace(3), epochs=20, optimizer="momentum", lr=0.05)
        >>> bool(result.accuracy[2, 0] > 0.9)
        True
    """

    name = "laplace"
    summary = "online structured Laplace: hold layers by their Kronecker factors"
    citation = "ritter2018online"

    def __init__(
        self,
        strength: Strength = 1.0,
        labels: LabelRule = "exact",
        samples: int | None = None,
        *,
        structure: Literal["kronecker", "ekfac"] = "kronecker",
        sharing: Literal["expand", "reduce"] = "expand",
        draws: int = 1,
        damping: float = 0.0,
        pairs: int = 5,
        pull: Pull = "gradient",
        every: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(strength, pull, every)
        if structure not in ("kronecker", "ekfac"):
            raise InputError("structure", "'kronecker' or 'ekfac'", repr(structure))
        self.labels, self.structure, self.sharing = labels, structure, sharing
        self.damping = check_positive("damping", damping, zero=True)
        self.samples, self.draws, self.pairs, self.seed = samples, draws, check_count("pairs", pairs), seed

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Measure the factors on the task's training data and take them into the belief."""
        task = as_task(task)
        found = fisher(model, task, self.labels, structure=self.structure, samples=self.samples, draws=self.draws, seed=self.seed, sharing=self.sharing)
        if self.damping and isinstance(found, Kronecker):
            found = found.damped(self.damping)
        self.remember(model, found, task.n)
        assert self.belief is not None
        precision = self.belief.precision
        if isinstance(precision, Kronecker) and precision.pairs > self.pairs:
            self.belief.precision = precision.in_one_basis()

    def settings(self) -> dict[str, Any]:
        """Everything the method was made with."""
        extra = {key: getattr(self, key) for key in ("labels", "samples", "structure", "sharing", "draws", "damping", "pairs", "seed")}
        return {**super().settings(), **extra}
