"""A few directions of which a belief is sure, and a diagonal for the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from retain.beliefs.diagonal import Diagonal, grow_rows
from retain.beliefs.precision import Precision, Sizes, Weights, check_values, mismatch, noise

_ROWS = 1 << 16  # of factors taken to float64 at a time


class LowRankPlusDiagonal(Precision):
    r"""A precision :math:`P = A A^\top + \operatorname{diag}(d)` with A of rank r.

    Every operation costs :math:`O(pr + r^3)` by the Woodbury identity. Sums are brought back to rank r by keeping the r largest
    directions of :math:`A_1 A_1^\top + A_2 A_2^\top`, exactly found from the 2r x 2r Gram matrix, and what is dropped keeps its diagonal: the
    diagonal of a sum is exact (Durno 2024 merges by Lanczos iterations, which this replaces).

    Args:
        factors: A by parameter name, each ``[*shape, r]``.
        values: d by parameter name, each of the parameter's shape, at least 0.

    Raises:
        InputError: If a value is negative or not finite.

    Example:
        >>> import torch
        >>> P = LowRankPlusDiagonal({"w": torch.tensor([[1.0], [1.0]])}, {"w": torch.tensor([0.0, 1.0])})
        >>> P.product({"w": torch.tensor([1.0, 0.0])})["w"], P.quadratic({"w": torch.tensor([1.0, -1.0])})
        (tensor([1., 1.]), 1.0)
    """

    kind = "low-rank"

    def __init__(self, factors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        self.values = {name: check_values(name, d) for name, d in values.items()}
        self.factors = {name: factors[name].detach() for name in self.values}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.values)

    @property
    def rank(self) -> int:
        """The number of directions."""
        return next(iter(self.factors.values())).shape[-1] if self.factors else 0

    def product(self, delta: Weights) -> dict[str, Tensor]:
        along = self._onto({name: delta[name] for name in self.values})
        return {name: self._along(name, along, delta[name]) + d.to(delta[name].dtype) * delta[name] for name, d in self.values.items()}

    def scaled(self, factor: float) -> Self:
        made = self.mapped(lambda value: value * factor)
        made.factors = {name: a * factor**0.5 for name, a in self.factors.items()}
        return made

    def plus(self, other: Precision) -> Precision:
        if isinstance(other, Diagonal):
            full = {name: p.expand(self.values[name].shape) if name in self.values else p for name, p in other.values.items()}
            other = LowRankPlusDiagonal({name: p.new_zeros(*p.shape, self.rank) for name, p in full.items()}, full)
        if not isinstance(other, LowRankPlusDiagonal):
            raise mismatch(self, other)
        rank = max(self.rank, other.rank)
        shapes = {name: d.shape for one in (self, other) for name, d in one.values.items()}
        both: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            like = (self if name in self.values else other).factors[name]
            parts = [one.factors.get(name, like.new_zeros(*shape, one.rank)) for one in (self, other)]
            both[name] = torch.cat(parts, -1)
            values[name] = sum((one.values[name] for one in (self, other) if name in one.values), like.new_zeros(shape))
        rows = (part.double() for a in both.values() for part in a.reshape(-1, a.shape[-1]).split(_ROWS))
        gram = sum(part.T @ part for part in rows)
        _, turn = torch.linalg.eigh(gram)
        factors = {}
        for name in list(both):
            a = both.pop(name)
            turned = a @ turn.flip(1).to(a.dtype)  # the largest direction first
            factors[name] = turned[..., :rank].contiguous()
            values[name] = values[name] + turned[..., rank:].square().sum(-1)
        return LowRankPlusDiagonal(factors, values)

    def diagonal(self) -> dict[str, Tensor]:
        return {name: d + self.factors[name].square().sum(-1) for name, d in self.values.items()}

    def logdet(self, n: float, prior: float, shapes: Mapping[str, torch.Size]) -> float:
        sure = {name: n * d.double() + prior for name, d in self.values.items()}
        inner = self._inner({name: n / m for name, m in sure.items()})
        return float(inner.logdet()) + sum(float(m.log().sum()) for m in sure.values())

    def variance(self, n: float, prior: float, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        sure = {name: n * d.double() + prior for name, d in self.values.items()}
        root = torch.linalg.cholesky(torch.linalg.inv(self._inner({name: n / m for name, m in sure.items()})))
        return {name: (1 / m - n * (self.factors[name].double() @ root).square().sum(-1) / m.square()).to(self.values[name].dtype) for name, m in sure.items()}

    def sample(self, n: float, prior: float, shapes: Mapping[str, torch.Size], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        # b drawn with covariance Q = nP + prior I; then Q^-1 b has covariance Q^-1
        few = noise(next(iter(self.factors.values())), generator, torch.Size([self.rank])) * n**0.5
        sure = {name: n * d + prior for name, d in self.values.items()}
        drawn = {name: noise(m, generator) * m.sqrt() + self.factors[name] @ few for name, m in sure.items()}
        return self._solve({name: 1 / m for name, m in sure.items()}, drawn, n)

    def shrink(self, delta: Weights, sizes: Sizes, rate: float) -> dict[str, Tensor]:
        share = {name: 1 / (1 + rate * sizes[name] * d.to(delta[name].dtype)) for name, d in self.values.items()}
        inverse = {name: sizes[name] * kept for name, kept in share.items()}  # of H + r D
        along = self._onto({name: kept * delta[name] for name, kept in share.items()})
        inner = torch.linalg.solve(self._inner({name: rate * m for name, m in inverse.items()}).to(along.dtype), along) * rate
        return {name: share[name] * delta[name] - inverse[name] * self._along(name, inner, delta[name]) for name in self.values}

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        made = object.__new__(type(self))
        made.values = {name: change(d) for name, d in self.values.items()}
        made.factors = {name: change(a) for name, a in self.factors.items()}
        return self._carry(made)

    def grown(self, old: Mapping[str, torch.Size], new: Mapping[str, torch.Size]) -> Self:
        made = self.mapped(lambda value: value)
        for name in self.values:
            if old[name] != new[name]:
                made.values[name], made.factors[name] = (grow_rows(part[name], new[name]) for part in (self.values, self.factors))
        return made

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "values": self.values, "factors": self.factors}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(state["factors"], state["values"])

    def _onto(self, delta: Weights) -> Tensor:
        """A' delta, ``[r]``."""
        parts = [delta[name].reshape(-1) @ self.factors[name].to(delta[name].dtype).reshape(-1, self.rank) for name in self.values]
        return torch.stack(parts).sum(0)

    def _along(self, name: str, few: Tensor, like: Tensor) -> Tensor:
        return (self.factors[name].to(like.dtype) @ few.to(like.dtype)).reshape(like.shape)

    def _inner(self, weights: Mapping[str, Tensor]) -> Tensor:
        """I + A' diag(weights) A in float64."""
        total = torch.eye(self.rank, dtype=torch.float64, device=next(iter(self.factors.values())).device)
        for name, weight in weights.items():
            a = self.factors[name].reshape(-1, self.rank)
            total += (a.T @ (a * weight.to(a.dtype).reshape(-1, 1))).double()
        return total

    def _solve(self, inverse: Mapping[str, Tensor], b: Weights, n: float) -> dict[str, Tensor]:
        """(diag(1/inverse) + n A A')^-1 b."""
        first = {name: m * b[name] for name, m in inverse.items()}
        few = n * torch.linalg.solve(self._inner({name: n * m for name, m in inverse.items()}), self._onto(first).double())
        return {name: value - inverse[name] * self._along(name, few, value) for name, value in first.items()}
