"""Methods whose knowledge is a quadratic belief: the pull towards it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from retain.beliefs import Belief, Precision, RetentionLaw
from retain.beliefs.retention import layer_of
from retain.errors import InputError, RetainError, RetainWarning, check_count, check_positive
from retain.methods.base import Method
from retain.methods.pull import Pulling, laid_beside
from retain.models.parameters import named_parameters
from retain.tasks.task import Task

Pull = Literal["gradient", "proximal"]
Strength = float | Literal["optimal"] | RetentionLaw | Mapping[str, float]


class Quadratic(Method):
    r"""A belief and its pull: the loss on a new task of m samples gains :math:`\text{strength} \cdot \text{energy}(\theta) / m`.

    With :math:`r = \text{strength} \cdot n / m` the pull's gradient is :math:`rP(\theta - c)`. It is added in closed form, once per
    optimiser step and never through autograd, or it is taken as a proximal step in the optimiser's metric H after the step,

    .. math:: \theta \leftarrow c + (H + rP)^{-1} H (\theta - c),

    which cannot diverge however strong the pull. With the gradient form and plain SGD, training diverges once
    :math:`\text{lr} \cdot r \max P > 2`; a warning says so.

    Args:
        strength: How much the old samples weigh, dimensionless; 1 is the Bayesian answer, 0 is fine-tuning. A mapping from patterns
            (``features.*``) to numbers sets it by parameter. ``optimal``, or a :class:`~retain.beliefs.RetentionLaw`, measures it:
            ``learn`` then fits each new task freely first, which doubles the work.
        pull: ``gradient``, for every optimiser, or ``proximal``, for SGD, Adam and AdamW.
        every: Take the proximal step once in so many steps of the optimiser, that much larger: it saves time where P is dear and,
            being implicit, stays stable.

    Raises:
        InputError: If the strength is negative or the pull unknown.
    """

    def __init__(self, strength: Strength = 1.0, pull: Pull = "gradient", every: int = 1) -> None:
        self.strength: float | RetentionLaw | dict[str, float]
        if isinstance(strength, str):
            if strength != "optimal":
                raise InputError("strength", "a number, 'optimal' or a RetentionLaw", repr(strength))
            self.strength = RetentionLaw()
        elif isinstance(strength, RetentionLaw):
            self.strength = strength
        elif isinstance(strength, Mapping):
            self.strength = {pattern: check_positive(f"strength of '{pattern}'", value, zero=True) for pattern, value in strength.items()}
        else:
            self.strength = check_positive("strength", strength, zero=True)
        if pull not in ("gradient", "proximal"):
            raise InputError("pull", "'gradient' or 'proximal'", repr(pull))
        if check_count("every", every) > 1 and pull != "proximal":
            raise InputError("every", "1 with pull='gradient'", every, "Pass pull='proximal', which takes larger steps without diverging.")
        self.pull, self.every = pull, every
        self._steps = 0
        self.belief: Belief | None = None
        self.retained: dict[str, float] | None = None
        """By layer, or under ``model``: the strengths that the retention law has found for the task at hand."""
        self._new = 0  # samples of the new task
        self._pulling: Pulling | None = None
        self._checked = False

    @property
    def scouts(self) -> bool:
        """Whether the next task has to be fitted freely first, so that the law can be asked."""
        return isinstance(self.strength, RetentionLaw) and self.belief is not None and self.retained is None

    def scout(self, model: nn.Module, task: Task) -> None:
        """Ask the retention law how much to keep.

        Args:
            model: A model that went on from the old weights and learned the task without any pull.
            task: The task.
        """
        if isinstance(self.strength, RetentionLaw) and self.belief is not None:
            found = self.strength(self.belief.fitted(model), _weights(model), task.n)
            self.retained = {layer: one.strength for layer, one in found.items()}

    def begin(self, model: nn.Module, task: Task) -> None:
        """Fit the belief to the model and weigh it against the new task's size.

        Args:
            model: The model.
            task: The new task.

        Raises:
            RetainError: If the strength is to be measured and :meth:`scout` was not called.
        """
        self._pulling, self._checked, self._steps = None, False, 0
        self._new = task.n
        if self.scouts:
            raise RetainError(
                "strength: expected a number, found a law that needs a free fit of the new task. Call method.scout(free_model, task) with a copy "
                "that learned the task alone, or use retain.learn, which does."
            )
        if self.belief is not None:
            self.belief = self.belief.fitted(model)

    def energy(self, model: nn.Module) -> float:
        """The belief's energy at the model's weights in nats; 0 before anything was learned."""
        return 0.0 if self.belief is None else self.belief.fitted(model).energy(_weights(model))

    def before_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Add the pull to the gradients."""
        if self.pull != "gradient" or not self._active(model):
            return
        assert self._pulling is not None
        if not self._checked:
            self._check_stability(optimizer)
        with torch.no_grad():
            self._pulling.gradient()

    def after_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Take the proximal step."""
        if self.pull != "proximal" or not self._active(model):
            return
        self._steps += 1
        if self._steps % self.every:
            return
        assert self._pulling is not None
        with torch.no_grad():
            self._pulling.shrink(optimizer)

    def remember(self, model: nn.Module, precision: Precision, n: float) -> None:
        """Take a task that was just learned into the belief; the law is to be asked anew for the next.

        Args:
            model: The model that learned it.
            precision: Its precision there, per sample.
            n: Its samples.
        """
        self.retained = None
        theta = _weights(model)
        centre = {name: theta[name] for name in precision.names}
        self.belief = Belief(centre, precision, n) if self.belief is None else self.belief.fitted(model).update(centre, precision, n)

    def strength_of(self, name: str) -> float:
        """The strength of one parameter's pull."""
        if isinstance(self.strength, RetentionLaw):
            found = self.retained or {}
            return found.get("model", found.get(layer_of(name), 0.0))
        if isinstance(self.strength, dict):
            return next((value for pattern, value in self.strength.items() if fnmatch(name, pattern)), 0.0)
        return self.strength

    def _active(self, model: nn.Module) -> bool:
        if self.belief is None or self.strength == 0 or not self._new:
            return False
        if self._pulling is None:  # parameters, centre and rP side by side, once a task
            rates = {name: self.strength_of(name) * self.belief.n / self._new * self.every for name in self.belief.precision.names}
            self._pulling = laid_beside(self.belief, named_parameters(model), rates)
            if self._pulling is None:
                raise RetainError("model: expected at least one trainable parameter that the belief knows, found none. Names differ: was the model rebuilt?")
        return True

    def _check_stability(self, optimizer: Optimizer) -> None:
        self._checked = True
        if not isinstance(optimizer, torch.optim.SGD) or self._pulling is None:
            return
        group = max(optimizer.param_groups, key=lambda group: float(group["lr"]))
        rate, beta = float(group["lr"]), float(group["momentum"])
        limit = 2 * (1 + beta) / (1 + 2 * beta if group["nesterov"] else 1)
        stiffest = self._pulling.stiffness()
        if rate * stiffest > limit:
            warnings.warn(
                f"The pull of {self} diverges under SGD at lr={rate:g}: lr times its stiffness is {rate * stiffest:.3g}, "
                f"above {limit:.3g}. Use pull='proximal', or a smaller strength or lr.",
                RetainWarning,
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """The belief, and what the retention law said."""
        return {"belief": None if self.belief is None else self.belief.state_dict(), "retained": self.retained, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """The belief, on the model's device."""
        self._pulling, self.retained, self._steps = None, state.get("retained"), state.get("steps", 0)
        if state["belief"] is None:
            self.belief = None
            return
        self.belief = Belief.from_state_dict(state["belief"]).to(next(model.parameters()).device)

    def settings(self) -> dict[str, Any]:
        """Strength and pull."""
        return {"strength": self.strength, "pull": self.pull, **({"every": self.every} if self.every > 1 else {})}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in named_parameters(model, trainable=False).items()}
