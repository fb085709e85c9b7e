"""Synaptic intelligence."""

from __future__ import annotations

from typing import Any

from torch import nn

from retain.beliefs import Diagonal
from retain.errors import check_positive
from retain.methods.path import PathMethod
from retain.methods.quadratic import Pull, Strength
from retain.tasks.task import Task, as_task


class SI(PathMethod):
    r"""Synaptic intelligence: weights are held by what they contributed to the loss's fall, for the way they went.

    .. math:: P_j = \frac{2 \max(0, \omega_j)}{(\theta_j - \theta_j^\text{start})^2 + \xi}, \qquad \omega_j = -\sum_t g_j(t) \, \Delta\theta_j(t)

    Equations 3 to 5 of Zenke, Poole and Ganguli 2017 (https://arxiv.org/abs/1703.04200), whose c is ``strength * n / m``: the factor 2
    makes P a curvature, since a quadratic loss falls by half its curvature times the squared way. Departures: negative
    :math:`\omega` count 0; a task's P counts by its samples. It costs no extra pass over the data, but sees only weights that moved, and
    the noise of small batches inflates it.

    Args:
        strength: See :class:`Quadratic`.
        xi: Damping of the way's square, above 0, in squared units of the weights.
        pull: See :class:`Quadratic`.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 2, scenario="task")
        >>> result = learn(models.MLP(64, 32, 10, seed=0), stream, methods.SI(3), epochs=20, optimizer="momentum", lr=0.05)
        >>> bool(result.accuracy[2, 0] > 0.9)
        True
    """

    name = "si"
    summary = "synaptic intelligence: hold weights by their share of the loss's fall"
    citation = "zenke2017continual"

    def __init__(self, strength: Strength = 1.0, xi: float = 0.1, *, pull: Pull = "gradient") -> None:
        super().__init__(strength, pull)
        self.xi = check_positive("xi", xi)

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Turn the way into a precision; the task's data are not read."""
        walked = self.walked(model)
        values = {name: 2 * self.path[name].clamp_min(0) / (way.square() + self.xi) for name, way in walked.items()}
        self.remember(model, Diagonal(values), as_task(task).n)
        self.forget_path()

    def settings(self) -> dict[str, Any]:
        """Everything the method was made with."""
        return {**super().settings(), "xi": self.xi}
