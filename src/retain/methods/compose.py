"""Several methods as one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from retain.beliefs import RetentionLaw
from retain.errors import InputError
from retain.methods.agem import AGEM
from retain.methods.base import Method, Plain
from retain.methods.er import ER
from retain.methods.generative import GenerativeReplay
from retain.methods.icarl import ICaRL
from retain.methods.lwf import LwF
from retain.methods.memory import Replaying
from retain.methods.newton_vcl import NewtonVCL
from retain.methods.path import PathMethod
from retain.methods.quadratic import Quadratic
from retain.methods.separate import SeparateNetworks
from retain.methods.vcl import VCL
from retain.methods.xdg import XdG
from retain.tasks.batch import Batch, apply
from retain.tasks.task import Task


class Composed(Method):
    """What :func:`compose` makes."""

    name = "composed"
    summary = "several methods as one"

    def __init__(self, *parts: Method) -> None:
        self.parts = parts

    def _having(self, hook: str) -> Method | None:
        return next((part for part in self.parts if _has(part, hook)), None)

    def prepare(self, model: nn.Module) -> nn.Module:
        """As the one that prepares does."""
        part = self._having("prepare")
        return model if part is None else part.prepare(model)

    def groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        """As the one that has groups of its own makes them."""
        part = self._having("groups")
        return super().groups(model, lr) if part is None else part.groups(model, lr)

    @property
    def scouts(self) -> bool:
        """Whether any does."""
        return any(part.scouts for part in self.parts)

    def scout(self, model: nn.Module, task: Task) -> None:
        """Let those look that want to."""
        for part in self.parts:
            if part.scouts:
                part.scout(model, task)

    @property
    def answers_from_memory(self) -> bool:  # type: ignore[override]
        """Whether any does."""
        return any(part.answers_from_memory for part in self.parts)

    def begin(self, model: nn.Module, task: Task) -> None:
        """All begin."""
        for part in self.parts:
            part.begin(model, task)

    def penalty(self, model: nn.Module, batch: Batch, outputs: Tensor) -> Tensor | None:
        """The sum of the penalties."""
        found = [term for part in self.parts if (term := part.penalty(model, batch, outputs)) is not None]
        return sum(found[1:], start=found[0]) if found else None

    @property
    def adds_to_loss(self) -> bool:
        """Whether any does."""
        return any(part.adds_to_loss for part in self.parts)

    def before_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """All act on the gradients; one that reads them for its own measure comes first, before any pull is in them, and one that projects them last."""
        for part in sorted(self.parts, key=lambda part: (not isinstance(part, PathMethod)) + isinstance(part, AGEM)):
            part.before_step(model, optimizer)

    def after_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """All act after the step; one that measures the way comes last, when all have moved the weights."""
        for part in sorted(self.parts, key=lambda part: isinstance(part, PathMethod)):
            part.after_step(model, optimizer)

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """All remember; one that gates comes first, since it refuses a model that was not gated, before another has measured it."""
        for part in sorted(self.parts, key=lambda part: not isinstance(part, XdG)):
            part.consolidate(model, task)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """As the one that answers in its own way does."""
        part = self._having("predict")
        return apply(model, batch) if part is None else part.predict(model, batch)

    def report(self, model: nn.Module) -> dict[str, float]:
        """What all have to say."""
        return {name: value for part in self.parts for name, value in part.report(model).items()}

    def state_dict(self) -> dict[str, Any]:
        """What each remembers, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Give each its own.

        Raises:
            InputError: If they are not as many.
        """
        if len(state["parts"]) != len(self.parts):
            raise InputError("state", f"that of {len(self.parts)} methods", len(state["parts"]), "Compose the same methods in the same order.")
        for part, found in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(found, model)

    def settings(self) -> dict[str, Any]:
        """The methods."""
        return {"methods": self.parts}

    def __repr__(self) -> str:
        return f"compose({', '.join(map(repr, self.parts))})"

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))


class _Adding(Composed):
    """One that adds to the batch; a class of its own, because :func:`retain.attach` has to see that."""

    def augment(self, batch: Batch, model: nn.Module) -> Batch:
        """All add."""
        for part in self.parts:
            batch = part.augment(batch, model)
        return batch


def compose(*methods: Method) -> Method:
    r"""One method that does what several do: penalties and pulls add, every hook is called in the order given, but for
    gradients: what reads them comes first and what projects them last.

    .. math:: \mathcal{L}(\theta) = \overline{\text{nll}}_B(\theta) + \sum_i \text{penalty}_i(\theta)
       + \sum_i \text{strength}_i \cdot \text{energy}_i(\theta) / m

    m counts the new task's data alone, with replay too. A method that measures the weights' way (SI, RWalk) reads the gradients before any pull is added and
    counts the step when all have moved the weights; what it reads are the gradients of the loss *with* the penalties.

    Args:
        *methods: The methods, each an object of its own. Those that are composed already are taken apart.

    Returns:
        A method.

    Raises:
        InputError: If they do not go together: a distribution over the weights, a network for every task or an optimiser of its own beside anything, two that
            prepare the model, answer in their own way or choose what is trained, two that read the gradients, two proximal pulls, two that weigh the new
            data's loss, or gates beside what asks about old tasks.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 2, scenario="class")
        >>> method = methods.compose(methods.StructuredLaplace(), methods.ER(100))
        >>> str(method)
        'laplace + er'
        >>> result = learn(models.MLP(64, 32, 10, seed=0), stream, method, epochs=20, lr=0.005)
        >>> bool(result.accuracy[2].min() > 0.75)
        True
    """
    parts: list[Method] = []
    for method in methods:
        if not isinstance(method, Method):
            raise InputError("methods", "methods such as methods.EWC()", repr(method))
        parts += method.parts if isinstance(method, Composed) else [method]
    if not parts:
        raise InputError("methods", "at least one", "none")
    if len({id(part) for part in parts}) < len(parts):
        raise InputError("methods", "each an object of its own", "one of them twice", "It would remember every task twice.")
    _check(parts)
    return (_Adding if any(_has(part, "augment") for part in parts) else Composed)(*parts)


def _check(parts: list[Method]) -> None:
    busy = [part for part in parts if not isinstance(part, Plain)]
    for part in busy if len(busy) > 1 else []:
        if isinstance(part, VCL | NewtonVCL):
            why = "Its posterior over the weights stands for all the old data say, and its loss is an expectation; another method would count them twice."
            raise InputError("methods", f"{part} alone", _names(busy), why)
        if isinstance(part, SeparateNetworks):
            raise InputError("methods", f"{part} alone", _names(busy), "It sets the weights back before every task, so nothing else can hold them.")
        if isinstance(part, XdG):
            _check_gated(part, busy)
        if _has(part, "optimizer"):
            why = "Its optimiser would take the others' terms for the data's gradients."
            raise InputError("methods", f"{part}, which brings an optimiser of its own, alone", _names(busy), why)
    at_most_one: dict[str, list[Method]] = {
        "that prepares the model": [part for part in busy if _has(part, "prepare")],
        "that answers in its own way": [part for part in busy if _has(part, "predict")],
        "that chooses what is trained": [part for part in busy if _has(part, "groups")],
        "that reads the gradients along the way": [part for part in busy if isinstance(part, PathMethod)],
        "with a proximal pull": [part for part in busy if isinstance(part, Quadratic) and part.pull == "proximal"],
        "that weighs the loss on new data": [
            part for part in busy if isinstance(part, ICaRL) or (isinstance(part, ER | LwF | GenerativeReplay) and part.weight in ("tasks", "samples"))
        ],
    }
    hints = {
        "that reads the gradients along the way": "The second would read the first one's pull.",
        "with a proximal pull": "Two such steps in turn are not the step of the sum: leave one at pull='gradient'.",
        "that weighs the loss on new data": "Each takes its share from that loss, together perhaps more than all of it: pass weight='sum' to all but one.",
    }
    for what, found in at_most_one.items():
        if len(found) > 1:
            raise InputError("methods", f"at most one {what}", _names(found), hints.get(what, ""))


def _check_gated(gating: XdG, busy: list[Method]) -> None:
    """What asks about old tasks would ask with the gates of the new one."""
    if any(isinstance(part, Replaying | LwF | GenerativeReplay) for part in busy):
        why = "Old samples and old answers need the gates of their own task, and are asked with those of the new one."
        raise InputError("methods", f"{gating} with methods that hold the weights, such as EWC or SI", _names(busy), why)
    if any(isinstance(getattr(part, "strength", None), RetentionLaw) for part in busy):
        why = "Pass a number: the free fit that the law needs would be made with the gates of the task before."
        raise InputError("strength", f"a number beside {gating}", "'optimal'", why)


def _has(part: Method, hook: str) -> bool:
    return getattr(type(part), hook) is not getattr(Method, hook)


def _names(parts: list[Method]) -> str:
    return " and ".join(map(str, parts))
