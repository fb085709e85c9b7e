"""Memory aware synapses."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from retain.beliefs import Diagonal
from retain.curvature import fisher, sensitivity
from retain.errors import InputError, check_count
from retain.methods.quadratic import Pull, Quadratic, Strength
from retain.tasks.task import Task, as_task


class MAS(Quadratic):
    r"""Memory aware synapses: weights are held by how much the answer's squared length depends on them; no labels are needed.

    .. math:: \Omega_j = \frac1n \sum_i \Big| \frac{\partial \|f(x_i)\|^2}{\partial \theta_j} \Big|

    Equations 2 and 3 of Aljundi et al. 2018 (https://arxiv.org/abs/1711.09601), with absolute values per sample, not of a batch's mean.
    :math:`\Omega` is not a curvature in nats. With ``scale="fisher"`` P is :math:`\Omega` scaled to the trace of the Fisher on up to
    2,000 samples, three labels drawn for each, so that a strength means about what it means for EWC; with ``scale="paper"`` P is
    :math:`2 \Omega` and the paper's lambda is ``strength * n / m``.

    Args:
        strength: See :class:`Quadratic`.
        scale: ``fisher`` or ``paper``.
        samples: Measure on this many samples of the old task; all by default.
        pull: See :class:`Quadratic`.
        seed: Seed of the drawn samples.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 2, scenario="task")
        >>> result = learn(models.MLP(64, 32, 10, seed=0), stream, methods.MAS(10), epochs=20, optimizer="momentum", lr=0.05)
        >>> bool(result.accuracy[2, 0] > 0.9)
        True
    """

    name = "mas"
    summary = "memory aware synapses: hold weights by the answer's sensitivity, without labels"
    citation = "aljundi2018memory"

    def __init__(
        self,
        strength: Strength = 1.0,
        scale: Literal["fisher", "paper"] = "fisher",
        samples: int | None = None,
        *,
        pull: Pull = "gradient",
        seed: int = 0,
    ) -> None:
        super().__init__(strength, pull)
        if scale not in ("fisher", "paper"):
            raise InputError("scale", "'fisher' or 'paper'", repr(scale))
        if samples is not None:
            check_count("samples", samples)
        self.scale, self.samples, self.seed = scale, samples, seed

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Measure the sensitivity on the task's training inputs and take it into the belief."""
        task = as_task(task)
        found = Diagonal(sensitivity(model, task, _squared_length, samples=self.samples, seed=self.seed))
        if self.scale == "paper":
            found = found.scaled(2.0)
        else:
            few = None if task.data.size is None else min(2000, task.data.size)
            total, target = found.trace(), Diagonal(fisher(model, task, "sampled", samples=few, draws=3, seed=self.seed)).trace()
            found = found.scaled(target / total if total else 0.0)
        self.remember(model, found, task.n)

    def settings(self) -> dict[str, Any]:
        """Everything the method was made with."""
        return {**super().settings(), "scale": self.scale, "samples": self.samples, "seed": self.seed}


def _squared_length(outputs: Tensor) -> Tensor:
    """The gradient of the answer's squared length at the outputs; those that do not compete are left out."""
    return torch.where(outputs > torch.finfo(outputs.dtype).min, 2 * outputs, torch.zeros_like(outputs))
