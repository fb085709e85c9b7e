"""Methods that watch the weights on their way through a task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from retain.errors import RetainError
from retain.methods.quadratic import Pull, Quadratic, Strength
from retain.models.parameters import named_parameters
from retain.tasks.task import Task


class PathMethod(Quadratic):
    r"""Sums over the optimiser's steps of what every weight contributed to the fall of the task's own loss.

    :math:`\omega_j = -\sum_t g_j(t) \, \Delta\theta_j(t)` with g the gradient of the mean nll without the pull: its first-order share of
    the fall, in nats per sample. The gradient is read just before the pull is added, so a loop that clips gradients clips it too, and a
    loss that is a sum instead of a mean multiplies it.

    Args:
        strength: See :class:`Quadratic`.
        pull: See :class:`Quadratic`.
    """

    def __init__(self, strength: Strength = 1.0, pull: Pull = "gradient") -> None:
        super().__init__(strength, pull)
        self.start: dict[str, Tensor] = {}
        self.path: dict[str, Tensor] = {}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    def begin(self, model: nn.Module, task: Task) -> None:
        """Remember where the way starts."""
        super().begin(model, task)
        self.start = {name: p.detach().clone() for name, p in named_parameters(model).items()}
        self.path = {name: torch.zeros_like(p) for name, p in self.start.items()}
        self._before = {}

    def before_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Note weights and gradients, then pull."""
        for name, p in named_parameters(model).items():
            if name not in self.path or p.grad is None:
                self._before.pop(name, None)
            elif name in self._before:
                self._before[name][0].copy_(p.detach())
                self._before[name][1].copy_(p.grad)
            else:
                self._before[name] = (p.detach().clone(), p.grad.clone())
        super().before_step(model, optimizer)

    def after_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Pull, then count the step."""
        super().after_step(model, optimizer)
        parameters = named_parameters(model)
        with torch.no_grad():
            for name, (before, gradient) in self._before.items():
                self._count(name, gradient, before.sub_(parameters[name]))

    def _count(self, name: str, gradient: Tensor, back: Tensor) -> None:
        """One step of one parameter, which moved by ``-back``."""
        self.path[name].addcmul_(gradient, back)

    def walked(self, model: nn.Module) -> dict[str, Tensor]:
        """How far each weight has come since the task began.

        Args:
            model: The model at the end of the task.

        Returns:
            Differences by name.

        Raises:
            RetainError: If the method has not seen the task being learned.
        """
        if not self.start:
            raise RetainError(
                f"{self}: expected to have watched the task being learned, found a model trained elsewhere. Learn the first task with retain.learn "
                "or retain.attach and this method, or use EWC, MAS or StructuredLaplace, which read the old data instead."
            )
        return {name: p.detach() - self.start[name] for name, p in named_parameters(model).items() if name in self.start}

    def forget_path(self) -> None:
        """A task is over: the next has its own way."""
        self.start, self.path, self._before = {}, {}, {}

    def state_dict(self) -> dict[str, Any]:
        """The belief and the way so far."""
        return {**super().state_dict(), "start": self.start, "path": self.path}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """The belief and the way so far, on the model's device."""
        super().load_state_dict(state, model)
        place = next(model.parameters()).device
        self.start, self.path = ({name: value.to(place) for name, value in state[key].items()} for key in ("start", "path"))
        self._before = {}
