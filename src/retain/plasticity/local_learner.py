"""Who presents the samples to a network that learns by a local rule."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from retain.errors import InputError
from retain.models.assembly import Assembly
from retain.plasticity.local_trace import LocalState, present
from retain.plasticity.rules import LocalRule


class LocalLearner:
    """A local rule, by the kernels on the CPU or in plain torch on any device.

    Args:
        net: The network.
        rule: The rule.
        engine: ``numba`` or ``torch``.
        input_lr: Refused: a local rule has terms of its own for the input weights.
        **_: What other rules' learners take.

    Raises:
        InputError: If there is an ``input_lr``.
    """

    def __init__(self, net: Assembly, rule: LocalRule, engine: Literal["numba", "torch"], input_lr: float | None = None, **_: Any) -> None:
        if input_lr is not None:
            raise InputError("input_lr", "None for a local rule, which learns the input weights itself", input_lr, "Pass LocalRule(feedback='random').")
        self.net, self.rule, self.engine, self.state = net, rule, engine, LocalState.of(net, rule)
        self.fixed = rule.feedback == "none"
        whole = engine == "torch" or bool(net.input_mask.all())  # the edges are for the kernels
        self.edges: Any = None if engine == "torch" else np.zeros((0, 0), self._array(self.state.output).dtype)
        if not whole:
            self.edges = self._array(net.input_mask.T.to(self.state.output.dtype).contiguous())

    @staticmethod
    def _array(values: Tensor) -> Any:
        return values.cpu().numpy()

    def prepare(self, inputs: Tensor) -> Tensor:
        """The inputs, flat; with fixed input weights the first units' currents."""
        if not self.fixed:
            return inputs.flatten(1)
        with torch.no_grad():
            return self.net.current(inputs)

    def present(self, prepared: Tensor, labels: Tensor) -> Tensor:
        """Learn from samples in turn."""
        if self.engine == "torch":
            with torch.no_grad():
                return present(self.net, self.rule, self.state, prepared, labels)
        from retain.plasticity import local_kernels

        state, cap = self.state, -1 if self.net.cap is None else self.net.cap
        numbers = local_kernels.FEEDBACK[self.rule.feedback], self.rule.when == "mistakes", self.rule.values.detach().cpu().numpy()
        arrays = tuple(part.numpy() for part in (state.inputs, state.scale, state.output, state.feedback, state.mean, state.past, state.lag))
        samples = prepared.contiguous().numpy(), labels.contiguous().numpy()
        predicted = local_kernels.learn(*samples, state.seen, (cap, self.net.ties == "silent", self.edges), numbers, arrays)
        state.seen += len(labels)
        return torch.from_numpy(predicted)

    def answer(self, prepared: Tensor) -> Tensor:
        """What is predicted."""
        state, answers = self.state, []
        weights = None if self.fixed else state.answering_inputs
        for part in prepared.split(max(1, 2**22 // self.net.width)):
            current = part if weights is None else part.to(weights.dtype) @ weights
            if self.engine == "torch":
                answers.append(self.net.propagate(current, [state.answering]).logits.argmax(1))
            else:
                from retain.plasticity import local_kernels

                cap = -1 if self.net.cap is None else self.net.cap
                found = local_kernels.answer(current.contiguous().numpy(), state.answering.numpy(), cap, self.net.ties == "silent")
                answers.append(torch.from_numpy(found))
        return torch.cat(answers)

    def finite(self) -> bool:
        """Whether all weights are finite."""
        return all(bool(weight.isfinite().all()) for weight in (self.state.effective, self.state.output, self.state.mean))

    def store(self) -> None:
        """Write the weights that answer into the network."""
        self.net.put([self.state.answering])
        if not self.fixed:
            with torch.no_grad():
                self.net.input_weight.copy_(self.state.answering_inputs.T)
