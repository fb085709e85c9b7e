"""Riemannian walk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retain.beliefs import Belief, Diagonal
from retain.curvature import LabelRule, fisher
from retain.errors import InputError, check_positive
from retain.methods.path import PathMethod
from retain.methods.quadratic import Pull, Strength, _weights
from retain.tasks.task import Task, as_task


class RWalk(PathMethod):
    r"""Riemannian walk: the Fisher at the end of a task and a score along the way to it, both.

    .. math:: P = F + \frac{\operatorname{tr} F}{\sum_j s_j} s, \qquad
        s_j = \sum_t \max\Big(0, \frac{-g_j(t) \, \Delta\theta_j(t)}{\tfrac12 \tilde F_j(t) \, \Delta\theta_j(t)^2 + \epsilon}\Big)

    Equations 6 to 8 of Chaudhry et al. 2018 (https://arxiv.org/abs/1801.10112): the loss's fall per step of distance in the Fisher's metric,
    averaged with the earlier tasks' score. :math:`\tilde F` is, as there, a moving average of squared gradients of batches. Departures:
    the score is taken at every step; F at the end of a task is the Fisher of :func:`retain.fisher`, summed over tasks by samples; the paper
    scales F and s to [0, 1] each, here s is scaled to F's trace, so that strengths stay in nats.

    Args:
        strength: See :class:`Quadratic`.
        labels: The Fisher's label rule, see :func:`retain.fisher`.
        average: Weight of the newest squared gradient in the moving average, above 0 and at most 1.
        epsilon: Damping of the squared distance, above 0, in nats.
        pull: See :class:`Quadratic`.
        seed: Seed of drawn labels.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 2, scenario="task")
        >>> result = learn(models.MLP(64, 32, 10, seed=0), stream, methods.RWalk(30), epochs=20, optimizer="momentum", lr=0.05)
        >>> bool(result.accuracy[2, 0] > 0.9)
        True
    """

    name = "rwalk"
    summary = "Riemannian walk: the Fisher at the end and a score along the way"
    citation = "chaudhry2018riemannian"

    def __init__(
        self,
        strength: Strength = 1.0,
        labels: LabelRule = "exact",
        *,
        average: float = 0.1,
        epsilon: float = 1e-3,
        pull: Pull = "gradient",
        seed: int = 0,
    ) -> None:
        super().__init__(strength, pull)
        if not 0 < average <= 1:
            raise InputError("average", "a number above 0 and at most 1", average)
        self.labels: LabelRule = labels
        self.average, self.epsilon, self.seed = average, check_positive("epsilon", epsilon), seed
        self.moving: dict[str, Tensor] = {}
        self.score: dict[str, Tensor] = {}
        self.fisher: Belief | None = None

    def begin(self, model: nn.Module, task: Task) -> None:
        """Start the moving average anew."""
        super().begin(model, task)
        self.moving = {}

    def _count(self, name: str, gradient: Tensor, back: Tensor) -> None:
        if name not in self.moving:
            self.moving[name] = gradient.square()
        else:
            self.moving[name].lerp_(gradient.square(), self.average)
        distance = self.moving[name].mul(back.square()).mul_(0.5).add_(self.epsilon)
        self.path[name].add_(gradient.mul(back).clamp_min_(0).div_(distance))

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Measure the Fisher on the task's training data, and take it and the score into the belief."""
        task = as_task(task)
        self.walked(model)
        theta = _weights(model)
        found = Diagonal(fisher(model, task, self.labels, seed=self.seed))
        centre = {name: theta[name] for name in found.names}
        old = None if self.fisher is None else self.fisher.fitted(model)
        self.fisher = Belief(centre, found, task.n) if old is None else old.update(centre, found, task.n)
        self.score = {name: (self._earlier(name, value) + value) / 2 if name in self.score else value for name, value in self.path.items()}
        values = self.fisher.precision.diagonal()
        total = sum(float(value.double().sum()) for value in self.score.values())
        ratio = self.fisher.precision.trace() / total if total else 0.0
        both = Diagonal({name: value + ratio * self.score[name] if name in self.score else value for name, value in values.items()})
        self.retained = None
        self.belief = Belief(self.fisher.centre, both, self.fisher.n)
        self.forget_path()

    def _earlier(self, name: str, like: Tensor) -> Tensor:
        """The earlier tasks' score, with zeros for the rows by which a head has grown."""
        score = self.score[name]
        return torch.cat([score, like.new_zeros(like.shape[0] - score.shape[0], *like.shape[1:])]) if score.shape != like.shape else score

    def state_dict(self) -> dict[str, Any]:
        """The belief, what it was made of, and the way so far."""
        parts = {"moving": self.moving, "score": self.score, "fisher": None if self.fisher is None else self.fisher.state_dict()}
        return {**super().state_dict(), **parts}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """The belief, what it was made of, and the way so far, on the model's device."""
        super().load_state_dict(state, model)
        place = next(model.parameters()).device
        self.moving, self.score = ({name: value.to(place) for name, value in state[key].items()} for key in ("moving", "score"))
        self.fisher = None if state["fisher"] is None else Belief.from_state_dict(state["fisher"]).to(place)

    def settings(self) -> dict[str, Any]:
        """Everything the method was made with."""
        return {**super().settings(), **{key: getattr(self, key) for key in ("labels", "average", "epsilon", "seed")}}
