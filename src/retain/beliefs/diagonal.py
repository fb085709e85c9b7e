"""Weights on their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.beliefs.precision import Precision, Sizes, Weights, check_values, noise


class Diagonal(Precision):
    r"""A precision that treats weights as independent: :math:`P = \operatorname{diag}(p)` with :math:`p \ge 0`.

    Args:
        values: Tensors by parameter name, each of the parameter's shape (or one number for all of it, shape ``[]``), in nats
            per sample and squared unit of the parameter.

    Raises:
        InputError: If a value is negative or not finite.

    Example:
        >>> import torch
        >>> P = Diagonal({"w": torch.tensor([1.0, 3.0])})
        >>> P.quadratic({"w": torch.tensor([2.0, 1.0])})
        7.0
    """

    kind = "diagonal"

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values = {name: check_values(name, p) for name, p in values.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.values)

    def product(self, delta: Weights) -> dict[str, Tensor]:
        return {name: p.to(delta[name].dtype) * delta[name] for name, p in self.values.items()}

    def quadratic(self, delta: Weights) -> float:
        return sum(float((p.double() * delta[name].detach().double().square()).sum()) for name, p in self.values.items())

    def scaled(self, factor: float) -> Self:
        return self.mapped(lambda p: p * factor)

    def plus(self, other: Precision) -> Precision:
        if not isinstance(other, Diagonal):
            return other.plus(self)
        total = dict(self.values)
        for name, p in other.values.items():
            total[name] = total[name] + p if name in total else p
        return Diagonal(total)

    def diagonal(self) -> dict[str, Tensor]:
        return dict(self.values)

    def logdet(self, n: float, prior: float, shapes: Mapping[str, torch.Size]) -> float:
        return sum(float((n * p.double() + prior).log().expand(shapes[name]).sum()) for name, p in self.values.items())

    def variance(self, n: float, prior: float, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        return {name: (1 / (n * p + prior)).expand(shapes[name]) for name, p in self.values.items()}

    def sample(self, n: float, prior: float, shapes: Mapping[str, torch.Size], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        return {name: noise(v, generator) * v.sqrt() for name, v in self.variance(n, prior, shapes).items()}

    def shrink(self, delta: Weights, sizes: Sizes, rate: float) -> dict[str, Tensor]:
        return {name: delta[name] / (1 + rate * sizes[name] * p.to(delta[name].dtype)) for name, p in self.values.items()}

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        made = object.__new__(type(self))
        made.values = {name: change(p) for name, p in self.values.items()}
        return self._carry(made)

    def grown(self, old: Mapping[str, torch.Size], new: Mapping[str, torch.Size]) -> Self:
        made = self.mapped(lambda p: p)
        for name in self.values:
            if old[name] != new[name]:
                made.values[name] = grow_rows(self.values[name].expand(old[name]), new[name])
        return made

    def state_dict(self) -> dict[str, Any]:
        return {"kind": Diagonal.kind, "values": self.values}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(state["values"])


class Identity(Diagonal):
    """The precision 1 on every weight of the named parameters.

    Args:
        names: The parameters it covers.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__({name: torch.ones(()) for name in names})


def grow_rows(values: Tensor, shape: torch.Size) -> Tensor:
    """``values`` with zeros below, up to ``shape``'s number of rows; axes behind the parameter's own stay."""
    return F.pad(values, (0, 0) * (values.ndim - 1) + (0, shape[0] - values.shape[0]))
