"""The contract of a precision: how sure a belief is of the weights, per sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from retain.errors import InputError, RetainError

Weights = Mapping[str, Tensor]
"""Tensors by parameter name."""
Sizes = Mapping[str, Tensor | float]
"""The inverse metric of an optimiser by parameter name: how far a unit of lasting gradient moves a weight."""


class Precision(ABC):
    r"""A positive semi-definite matrix P over named parameters, in nats per sample and squared unit of the parameter.

    With n samples behind it and a prior precision :math:`\delta > 0`, the belief's precision is :math:`nP + \delta I`. Parameters that
    P does not know count nothing and come back in no result.
    """

    kind: ClassVar[str]
    """The name in files."""
    kinds: ClassVar[dict[str, type[Precision]]] = {}
    labels: str = ""
    """Where it was measured as a Fisher: the label rule."""
    slow: tuple[str, ...] = ()
    """Where it was measured: parameters without a closed form."""
    n: float = 0.0
    """Where it was measured: observations behind it."""

    def __init_subclass__(cls) -> None:
        if "kind" in vars(cls):
            Precision.kinds[cls.kind] = cls

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The parameters that it knows."""

    @abstractmethod
    def product(self, delta: Weights) -> dict[str, Tensor]:
        r""":math:`P \delta`."""

    @abstractmethod
    def scaled(self, factor: float) -> Self:
        """P times a factor of at least 0."""

    @abstractmethod
    def plus(self, other: Precision) -> Precision:
        """The sum; a parameter that only one of the two knows keeps that one's."""

    @abstractmethod
    def diagonal(self) -> dict[str, Tensor]:
        """The diagonal of P."""

    @abstractmethod
    def logdet(self, n: float, prior: float, shapes: Mapping[str, torch.Size]) -> float:
        r""":math:`\log \det(nP + \delta I)`, over the weights that it knows."""

    @abstractmethod
    def variance(self, n: float, prior: float, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        r"""The diagonal of :math:`(nP + \delta I)^{-1}`: what each weight varies by when all others vary too."""

    @abstractmethod
    def sample(self, n: float, prior: float, shapes: Mapping[str, torch.Size], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        r"""A draw from :math:`\mathcal{N}(0, (nP + \delta I)^{-1})`."""

    @abstractmethod
    def shrink(self, delta: Weights, sizes: Sizes, rate: float) -> dict[str, Tensor]:
        r"""The proximal step :math:`(H + rP)^{-1} H \delta` in the metric H of an optimiser, given as ``sizes`` :math:`H^{-1}`."""

    @abstractmethod
    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same precision with a function applied to all its tensors."""

    @abstractmethod
    def grown(self, old: Mapping[str, torch.Size], new: Mapping[str, torch.Size]) -> Self:
        """Fitted to parameters that have more rows: nothing is known of the new ones."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """What :meth:`state_dict` described."""

    def quadratic(self, delta: Weights) -> float:
        r""":math:`\delta^\top P \delta`, summed in float64."""
        moved = self.product(delta)
        return max(0.0, sum(float((value.double() * delta[name].detach().double()).sum()) for name, value in moved.items()))

    def trace(self) -> float:
        """The sum of the diagonal."""
        return sum(float(value.double().sum()) for value in self.diagonal().values())

    def to(self, device: torch.device) -> Self:
        """The precision with its tensors on ``device``."""
        return self.mapped(lambda value: value.to(device))

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.names)} parameters)"

    def _carry(self, other: Self) -> Self:
        """``other`` with this one's word on how it was measured."""
        other.labels, other.slow, other.n = self.labels, self.slow, self.n
        return other


def from_state(state: dict[str, Any]) -> Precision:
    """A precision of any kind from its state.

    Args:
        state: What ``state_dict`` gave, with ``kind``.

    Returns:
        The precision.

    Raises:
        RetainError: If the kind is not known.
    """
    if state.get("kind") not in Precision.kinds:
        raise RetainError(f"precision: expected one of {', '.join(Precision.kinds)}, found {state.get('kind')!r}. Was it written by a newer version?")
    return Precision.kinds[state["kind"]].from_state(state)


def check_values(name: str, values: Tensor) -> Tensor:
    """A precision's entries, detached; raises where one is negative or not finite."""
    if not bool(torch.isfinite(values).all()) or (values.numel() and float(values.min()) < 0):
        raise InputError(f"precision of '{name}'", "finite values of at least 0", f"values from {float(values.min()):g} to {float(values.max()):g}")
    return values.detach()


def mismatch(one: Precision, other: Precision) -> InputError:
    """The error for kinds that do not add."""
    return InputError("precision", f"one that adds to {type(one).__name__}", type(other).__name__, "Measure both with the same structure.")


def noise(like: Tensor, generator: torch.Generator | None, shape: torch.Size | None = None) -> Tensor:
    """Standard normal numbers shaped like a tensor; drawn on the CPU so that every device draws the same."""
    return torch.randn(like.shape if shape is None else shape, generator=generator, dtype=like.dtype).to(like.device)
