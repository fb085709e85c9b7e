"""Methods whose knowledge is a quadratic belief: the pull towards it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from retain.beliefs import Belief
from retain.errors import InputError, RetainError, RetainWarning, check_positive
from retain.methods.base import Method
from retain.methods.stepsize import step_sizes
from retain.models.parameters import named_parameters
from retain.tasks.task import Task

Pull = Literal["gradient", "proximal"]


@dataclass
class _Term:
    """One pulled parameter: centre, rP, and room to work in, so that a step allocates nothing."""

    parameter: nn.Parameter
    centre: Tensor
    weight: Tensor
    scratch: Tensor
    size: float | None = None


class Quadratic(Method):
    r"""A belief and its pull: the loss on a new task of m samples gains :math:`\text{strength} \cdot \text{energy}(\theta) / m`.

    With :math:`r = \text{strength} \cdot n / m` the pull's gradient is :math:`rP(\theta - c)`. It is added in closed form, once per
    optimiser step and never through autograd, or it is taken as a proximal step in the optimiser's metric H after the step,

    .. math:: \theta \leftarrow c + (H + rP)^{-1} H (\theta - c),

    which cannot diverge however strong the pull. With the gradient form and plain SGD, training diverges once
    :math:`\text{lr} \cdot r \max P > 2`; a warning says so.

    Args:
        strength: How much the old samples weigh, dimensionless; 1 is the Bayesian answer, 0 is fine-tuning.
        pull: ``gradient``, for every optimiser, or ``proximal``, for SGD, Adam and AdamW.

    Raises:
        InputError: If the strength is negative or the pull unknown.
    """

    def __init__(self, strength: float = 1.0, pull: Pull = "gradient") -> None:
        self.strength = check_positive("strength", strength, zero=True)
        if pull not in ("gradient", "proximal"):
            raise InputError("pull", "'gradient' or 'proximal'", repr(pull))
        self.pull = pull
        self.belief: Belief | None = None
        self._new = 0  # samples of the new task
        self._terms: list[_Term] | None = None
        self._checked = False

    def begin(self, model: nn.Module, task: Task) -> None:
        """Fit the belief to the model and weigh it against the new task's size."""
        self._terms, self._checked = None, False
        self._new = task.n
        if self.belief is not None:
            self.belief = self.belief.fitted(model)

    def energy(self, model: nn.Module) -> float:
        """The belief's energy at the model's weights in nats; 0 before anything was learned."""
        return 0.0 if self.belief is None else self.belief.fitted(model).energy(_weights(model))

    def before_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Add the pull to the gradients."""
        if self.pull != "gradient" or not self._active(model):
            return
        if not self._checked:
            self._check_stability(optimizer)
        assert self._terms is not None
        with torch.no_grad():
            for term in self._terms:
                if term.parameter.grad is None:
                    if torch.equal(term.parameter, term.centre):
                        continue  # not reached by the loss and in place: the optimiser is to leave it alone
                    term.parameter.grad = torch.zeros_like(term.parameter)
                torch.sub(term.parameter, term.centre, out=term.scratch)
                term.parameter.grad.addcmul_(term.scratch, term.weight)

    def after_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Take the proximal step."""
        if self.pull != "proximal" or not self._active(model):
            return
        assert self._terms is not None
        with torch.no_grad():
            sizes = step_sizes(optimizer, [term.parameter for term in self._terms])
            for term, size in zip(self._terms, sizes, strict=True):
                if isinstance(size, Tensor) or size != term.size:
                    # the share of the way from the centre that is left; kept while the step size stays
                    torch.mul(term.weight, size, out=term.scratch).add_(1).reciprocal_()
                    term.size = None if isinstance(size, Tensor) else size
                torch.lerp(term.centre, term.parameter, term.scratch, out=term.parameter.data)

    def _active(self, model: nn.Module) -> bool:
        if self.belief is None or self.strength == 0 or not self._new:
            return False
        if self._terms is None:  # parameters, centre and rP side by side, once a task
            self._terms = []
            rate = self.strength * self.belief.n / self._new
            for name, parameter in named_parameters(model).items():
                if name in self.belief.precision:
                    weight = (self.belief.precision.values[name].to(parameter) * rate).to(parameter.dtype)
                    self._terms.append(
                        _Term(parameter, self.belief.centre[name].to(parameter), weight.expand_as(parameter), torch.empty_like(parameter.detach()))
                    )
            if not self._terms:
                raise RetainError("model: expected at least one trainable parameter that the belief knows, found none. Names differ: was the model rebuilt?")
        return True

    def _check_stability(self, optimizer: Optimizer) -> None:
        self._checked = True
        if not isinstance(optimizer, torch.optim.SGD) or self._terms is None:
            return
        stiffest = max(float(term.weight.max()) for term in self._terms)
        group = max(optimizer.param_groups, key=lambda group: float(group["lr"]))
        rate, beta = float(group["lr"]), float(group["momentum"])
        limit = 2 * (1 + beta) / (1 + 2 * beta if group["nesterov"] else 1)
        if rate * stiffest > limit:
            warnings.warn(
                f"The pull of {self} diverges under SGD at lr={rate:g}: lr times its stiffness is {rate * stiffest:.3g}, "
                f"above {limit:.3g}. Use pull='proximal', or a smaller strength or lr.",
                RetainWarning,
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """The belief."""
        return {"belief": None if self.belief is None else self.belief.state_dict()}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """The belief, on the model's device."""
        self._terms = None
        if state["belief"] is None:
            self.belief = None
            return
        self.belief = Belief.from_state_dict(state["belief"]).to(next(model.parameters()).device)

    def settings(self) -> dict[str, Any]:
        """Strength and pull."""
        return {"strength": self.strength, "pull": self.pull}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in named_parameters(model, trainable=False).items()}
