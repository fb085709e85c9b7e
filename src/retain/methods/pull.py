"""The pull of a belief on a model's weights, once per optimiser step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from retain.beliefs import Belief, Diagonal
from retain.methods.stepsize import step_sizes


class Pulling(Protocol):
    """A belief laid beside a model's parameters."""

    def gradient(self) -> None:
        """Add rP(theta - c) to the gradients."""

    def shrink(self, optimizer: Optimizer) -> None:
        """Take the proximal step."""

    def stiffness(self) -> float:
        """The largest eigenvalue of rP."""


def laid_beside(belief: Belief, parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float]) -> Pulling | None:
    """The pull of a belief on parameters.

    Args:
        belief: Fitted to the model.
        parameters: The trainable parameters by name.
        rates: r by name, ``strength * n / m``.

    Returns:
        The pull; ``None`` if the belief knows none of the parameters.
    """
    known = {name: p for name, p in parameters.items() if name in belief.precision}
    if not known:
        return None
    return _Weights(belief, known, rates) if isinstance(belief.precision, Diagonal) else _Matrix(belief, known, rates)


@dataclass
class _Term:
    """One pulled parameter: centre, rP, and room to work in, so that a step allocates nothing."""

    parameter: nn.Parameter
    centre: Tensor
    weight: Tensor
    scratch: Tensor
    size: float | None = None


class _Weights:
    """The pull of a diagonal."""

    def __init__(self, belief: Belief, known: Mapping[str, nn.Parameter], rates: Mapping[str, float]) -> None:
        values = belief.precision.diagonal()
        self.terms = []
        for name, p in known.items():
            weight = (values[name].to(p) * rates[name]).to(p.dtype)
            self.terms.append(_Term(p, belief.centre[name].to(p), weight.expand_as(p), torch.empty_like(p.detach())))

    def gradient(self) -> None:
        for term in self.terms:
            if _ready(term.parameter, term.centre):
                torch.sub(term.parameter, term.centre, out=term.scratch)
                term.parameter.grad.addcmul_(term.scratch, term.weight)  # type: ignore[union-attr]

    def shrink(self, optimizer: Optimizer) -> None:
        sizes = step_sizes(optimizer, [term.parameter for term in self.terms])
        for term, size in zip(self.terms, sizes, strict=True):
            if isinstance(size, Tensor) or size != term.size:
                # the share of the way from the centre that is left; kept while the step size stays
                torch.mul(term.weight, size, out=term.scratch).add_(1).reciprocal_()
                term.size = None if isinstance(size, Tensor) else size
            torch.lerp(term.centre, term.parameter, term.scratch, out=term.parameter.data)

    def stiffness(self) -> float:
        return max(float(term.weight.max()) for term in self.terms)


class _Matrix:
    """The pull of any other precision; where rates differ by layer, P stands for R^(1/2) P R^(1/2)."""

    def __init__(self, belief: Belief, known: Mapping[str, nn.Parameter], rates: Mapping[str, float]) -> None:
        self.precision, self.known = belief.precision, dict(known)
        self.centre = {name: belief.centre[name].to(next(iter(known.values()))) for name in belief.precision.names}
        # frozen parameters that the belief knows are where they were left, and do not move
        self.rate = max(rates.values())
        self.roots = {name: (rates.get(name, 0.0) / self.rate) ** 0.5 if self.rate else 0.0 for name in self.centre}

    def _away(self) -> dict[str, Tensor]:
        still = {name: torch.zeros_like(c) for name, c in self.centre.items() if name not in self.known}
        return {**still, **{name: p.detach() - self.centre[name] for name, p in self.known.items()}}

    def gradient(self) -> None:
        away = self._away()
        pulled = self.precision.product({name: delta * self.roots[name] for name, delta in away.items()})
        for name, p in self.known.items():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            p.grad.add_(pulled[name], alpha=self.rate * self.roots[name])

    def shrink(self, optimizer: Optimizer) -> None:
        found = dict(zip(self.known, step_sizes(optimizer, list(self.known.values())), strict=True))
        sizes = {name: found.get(name, 0.0) * self.roots[name] ** 2 for name in self.centre}
        away = self._away()
        left = self.precision.shrink({name: delta * self.roots[name] for name, delta in away.items()}, sizes, self.rate)
        for name, p in self.known.items():
            if self.roots[name]:
                p.data.copy_(self.centre[name] + left[name] / self.roots[name])

    def stiffness(self) -> float:
        """The largest eigenvalue, by twenty power iterations from the diagonal."""
        v = {name: self.roots[name] * value.expand_as(self.centre[name]) for name, value in self.precision.diagonal().items()}
        found = 0.0
        for _ in range(20):
            size = sum(float(value.double().square().sum()) for value in v.values()) ** 0.5
            if not size:
                break
            v = {name: value / size for name, value in v.items()}
            moved = self.precision.product({name: self.roots[name] * value for name, value in v.items()})
            moved = {name: self.roots[name] * value for name, value in moved.items()}
            found = sum(float((v[name] * value).double().sum()) for name, value in moved.items())
            v = moved
        return self.rate * found


def _ready(parameter: nn.Parameter, centre: Tensor) -> bool:
    if parameter.grad is None:
        if torch.equal(parameter, centre):
            return False  # not reached by the loss and in place: the optimiser is to leave it alone
        parameter.grad = torch.zeros_like(parameter)
    return True
