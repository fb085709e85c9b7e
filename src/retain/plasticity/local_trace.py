"""Learning by a local rule in plain torch: the definition, on any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retain.models.assembly import Assembly, kcap
from retain.plasticity.rules import LocalRule

TINY = 1e-12
"""Added to squared lengths: a sample of zeros changes nothing."""


@dataclass
class LocalState:
    """The weights while they are learned.

    Args:
        inputs: Input weights ``[inputs, w]``, presynaptic unit first; 0 where there is no edge.
        scale: A factor of each unit's input weights ``[w]``; the reference leaves it at 1.
        output: ``[m, w]``.
        feedback: B, ``[m, w]``.
        mean: The mean of the output weights, ``[m, w]``; empty where nothing is averaged.
        mean_inputs: The mean of the input weights, ``[inputs, w]``, as the reference keeps it; empty where these are not averaged.
        past: What the kernels keep in its place: the sum of each unit's factor after each sample, ``[w]``,
        lag: and what ``past`` times the input weights is larger by than the sum of these after each sample, ``[inputs, w]``.
        seen: Samples presented.
    """

    inputs: Tensor
    scale: Tensor
    output: Tensor
    feedback: Tensor
    mean: Tensor
    mean_inputs: Tensor
    past: Tensor
    lag: Tensor
    seen: int = 0

    @classmethod
    def of(cls, net: Assembly, rule: LocalRule) -> LocalState:
        """The state that a network's weights are in; a copy."""
        weight, output = net.input_weight.detach(), net.output_weight.detach().clone()
        inputs, scale = (weight * net.input_mask).T.contiguous(), torch.ones_like(weight[:, 0])
        mean = torch.zeros_like(output) if rule.average else output[:0]
        moving = rule.average and rule.feedback != "none"
        sums = [torch.zeros_like(part) if moving else part[:0] for part in (inputs, scale, inputs)]
        return cls(inputs, scale, output, rule.drawn_feedback(net), mean, sums[0], sums[1], sums[2])

    @property
    def effective(self) -> Tensor:
        """The input weights with their factors."""
        return self.inputs * self.scale

    @property
    def answering(self) -> Tensor:
        """The output weights that answer."""
        return self.mean if len(self.mean) and self.seen else self.output

    @property
    def answering_inputs(self) -> Tensor:
        """The input weights that answer."""
        if not len(self.lag) or not self.seen:
            return self.effective
        return (self.past * self.inputs - self.lag) / self.seen if bool(self.past.any()) else self.mean_inputs


def present(net: Assembly, rule: LocalRule, state: LocalState, inputs: Tensor, labels: Tensor) -> Tensor:
    """Present samples one after the other: the formula of :class:`~retain.plasticity.LocalRule`, term by term.

    Args:
        net: The architecture.
        rule: The rule.
        state: The weights, changed.
        inputs: ``[T, inputs]``, or currents ``[T, w]`` where there is no feedback.
        labels: ``[T]``.

    Returns:
        What was predicted before each update, ``[T]``.
    """
    c, edges, predicted = rule.coefficients(), net.input_mask.T, []
    for x, label in zip(inputs.to(state.output.dtype), labels, strict=True):
        h, fired = kcap(x if rule.feedback == "none" else x @ state.inputs, net.cap, net.ties)
        logits = state.output @ h
        predicted.append(logits.argmax())
        if rule.when == "always" or predicted[-1] != label:
            eta = (1 + state.seen / c["horizon"]) ** -c["exponent"]
            y = torch.zeros_like(logits)
            y[label] = 1
            e = y - logits.softmax(0)
            length = h.square().sum() + TINY
            relative = h.square() / (length / fired.sum().clamp(min=1))
            if rule.feedback != "none":
                f = (state.feedback if rule.feedback == "random" else state.output).T @ e
                if rule.feedback == "transport":
                    f = f * (fired.sum() * e.square().sum() / (f[fired].square().sum() + TINY**2)).sqrt()
                square = x.square().sum() + TINY
                grow = fired * (c["feedback"] * f / square.sqrt() + c["hebb"] * h / square)
                state.inputs = state.inputs + eta * (torch.outer(x, grow) - c["oja"] * relative * state.inputs) * edges
            state.output = state.output + eta * (torch.outer(c["error"] * e + c["label"] * y, h / length) - c["decay"] * relative * state.output)
        state.seen += 1
        if rule.average:
            state.mean = state.mean + (state.output - state.mean) / state.seen
            if len(state.mean_inputs):
                state.mean_inputs = state.mean_inputs + (state.inputs - state.mean_inputs) / state.seen
    return torch.stack(predicted)
