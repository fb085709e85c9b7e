"""Who presents the samples: one interface over the compiled kernels and plain torch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from retain.errors import InputError, RetainWarning
from retain.models.assembly import Assembly
from retain.plasticity.compiled import Compiled, available
from retain.plasticity.local_learner import LocalLearner
from retain.plasticity.losses import Loss, loss_of
from retain.plasticity.rules import LocalRule, Rule, TableRule
from retain.plasticity.trace import present

Engine = Literal["auto", "numba", "torch"]
NUMBA_HINT = "Install it with pip install 'retain[plasticity]', or pass engine='torch', which gives the same results slowly."


class Learner(Protocol):
    """One network that learns by a rule, sample by sample."""

    def prepare(self, inputs: Tensor) -> Tensor:
        """What :meth:`present` and :meth:`answer` take of inputs ``[N, ...]``: everything that does not change while learning is computed here, at once."""

    def present(self, prepared: Tensor, labels: Tensor) -> Tensor:
        """Learn from samples in turn; returns what was predicted before each update, ``[T]``."""

    def answer(self, prepared: Tensor) -> Tensor:
        """What is predicted, ``[T]``."""

    def finite(self) -> bool:
        """Whether all weights are finite."""

    def store(self) -> None:
        """Write what was learned into the network."""


class CompiledLearner:
    """A table rule by the kernels, on the CPU.

    Args:
        net: The network.
        rule: The rule.
    """

    def __init__(self, net: Assembly, rule: TableRule) -> None:
        self.net, self.work = net, Compiled(net, rule)

    def prepare(self, inputs: Tensor) -> Tensor:
        """The first units' currents: with fixed input weights one product of matrices."""
        with torch.no_grad():
            return self.net.current(inputs).cpu()

    def present(self, prepared: Tensor, labels: Tensor) -> Tensor:
        """Learn from samples in turn."""
        return torch.from_numpy(self.work.present(prepared, labels))

    def answer(self, prepared: Tensor) -> Tensor:
        """What is predicted."""
        return torch.from_numpy(self.work.answer(prepared))

    def finite(self) -> bool:
        """Whether all weights are finite."""
        return all(bool(weight.isfinite().all()) for weight in self.work.plastic(running=True))

    def store(self) -> None:
        """Write the weights that answer into the network."""
        self.net.put(self.work.plastic())


class TorchLearner:
    """A table rule in plain torch, on any device.

    Args:
        net: The network.
        rule: The rule.
        input_lr: Learning rate of Adam for the input weights, which take a step on the loss of each sample before it changes the plastic ones; ``None``
            leaves them as they are.
        loss: That loss.
        double_softmax: See :func:`~retain.plasticity.losses.loss_of`.
    """

    def __init__(self, net: Assembly, rule: TableRule, input_lr: float | None = None, loss: Loss = "cross_entropy", double_softmax: bool = False) -> None:
        self.net, self.rule, self.loss, self.double_softmax = net, rule, loss, double_softmax
        self.weights = [weight.detach()[None] for weight in net.plastic]
        self.masks = [*(mask[None] for mask in net.masks), torch.ones_like(self.weights[-1], dtype=torch.bool)]
        self.mean: list[Tensor] | None = None
        self.counted = 0
        self.adam = None if input_lr is None else torch.optim.Adam([net.input_weight], lr=input_lr)

    def prepare(self, inputs: Tensor) -> Tensor:
        """The first units' currents, or the inputs where their weights learn too."""
        if self.adam is not None:
            return inputs
        with torch.no_grad():
            return self.net.current(inputs)

    def present(self, prepared: Tensor, labels: Tensor) -> Tensor:
        """Learn from samples in turn."""
        if self.adam is None:
            return self._learn(prepared, labels)
        answers = []
        for sample, label in zip(prepared.split(1), labels.split(1), strict=True):
            with torch.enable_grad():
                current = self.net.current(sample)
                logits = self.net.propagate(current, [weight[0] for weight in self.weights]).logits
                self.adam.zero_grad()
                loss_of(logits, label, self.loss, self.double_softmax).backward()
            answers.append(self._learn(current.detach(), label))
            self.adam.step()
        return torch.cat(answers)

    def _learn(self, current: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            found = present(self.net, self.rule, self.weights, self.masks, current[None], labels[None], counted=self.counted, mean=self.mean)
        self.weights, self.mean, self.counted = found.weights, found.mean, self.counted + len(labels)
        return found.predicted[0]

    def answer(self, prepared: Tensor) -> Tensor:
        """What is predicted."""
        with torch.no_grad():
            current = prepared if self.adam is None else self.net.current(prepared)
            weights = [weight[0] for weight in self.mean or self.weights]
            return torch.cat([self.net.propagate(part, weights).logits.argmax(1) for part in current.split(2**22 // self.net.width)])

    def finite(self) -> bool:
        """Whether all weights are finite."""
        return all(bool(weight.isfinite().all()) for weight in [*self.weights, self.net.input_weight])

    def store(self) -> None:
        """Write the weights that answer into the network."""
        self.net.put([weight[0] for weight in self.mean or self.weights])


def choose(engine: str, net: Assembly) -> Literal["numba", "torch"]:
    """The engine to use.

    Args:
        engine: ``numba``, ``torch``, or ``auto``: the kernels where the network is on the CPU and numba is installed.
        net: The network.

    Returns:
        ``numba`` or ``torch``; with ``auto`` on the CPU and no numba, with a warning that says how to get it.

    Raises:
        InputError: If the engine is not known, or can't be had here.
    """
    if engine not in ("auto", "numba", "torch"):
        raise InputError("engine", "auto, numba or torch", repr(engine))
    device = net.input_weight.device.type
    if engine == "numba" and not available():
        raise InputError("engine", "numba to be installed for engine='numba'", "no module 'numba'", NUMBA_HINT)
    if engine == "numba" and device != "cpu":
        raise InputError("engine", "a network on the CPU for engine='numba'", f"one on {device}", "Pass engine='torch'.")
    if engine == "auto" and device == "cpu" and not available():
        warnings.warn(f"numba is not installed: the reference in torch runs, some hundred times slower. {NUMBA_HINT}", RetainWarning, stacklevel=3)
    fits = device == "cpu" and net.input_weight.dtype in (torch.float32, torch.float64)
    if engine == "numba" and not fits:
        raise InputError("engine", "weights in single or double precision for engine='numba'", str(net.input_weight.dtype), "Pass engine='torch'.")
    return "numba" if engine == "numba" or (engine == "auto" and available() and fits) else "torch"


def table_learner(net: Assembly, rule: TableRule, engine: Literal["numba", "torch"], **inputs: Any) -> Learner:
    """The learner of a table rule; input weights are trained in torch."""
    if engine == "torch" or inputs["input_lr"] is not None:
        return TorchLearner(net, rule, **inputs)
    return CompiledLearner(net, rule)


LEARNERS: dict[type[Rule], Callable[..., Learner]] = {TableRule: table_learner, LocalRule: LocalLearner}


def learner(
    net: Assembly, rule: Rule, engine: str = "auto", input_lr: float | None = None, loss: Loss = "cross_entropy", double_softmax: bool = False
) -> Learner:
    """The learner of any rule.

    Args:
        net: The network.
        rule: The rule.
        engine: See :func:`choose`.
        input_lr: Learning rate of the input weights by gradient descent, or ``None``.
        loss: Their loss.
        double_softmax: See :func:`~retain.plasticity.losses.loss_of`.

    Returns:
        A learner that starts from the network's weights.

    Raises:
        InputError: If the rule does not fit the network, or the engine can't be had.
    """
    rule.check(net)
    if input_lr is not None and not (math.isfinite(input_lr) and input_lr > 0):
        raise InputError("input_lr", "a positive learning rate, or None", input_lr)
    if input_lr is not None and not net.input_weight.requires_grad:
        raise InputError("input_lr", "None for input weights that are frozen", input_lr, "Or call net.input_weight.requires_grad_().")
    make = next((make for kind, make in LEARNERS.items() if isinstance(rule, kind)), None)
    if make is None:
        raise InputError("rule", f"one of {', '.join(kind.__name__ for kind in LEARNERS)}", type(rule).__name__)
    return make(net, rule, choose(engine, net), input_lr=input_lr, loss=loss, double_softmax=double_softmax)
