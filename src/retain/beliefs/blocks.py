"""Curvature of one weight matrix (and its bias) as Kronecker products, or in a basis of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from retain.beliefs.precision import noise

_TOLERANCE = 1e-6
_ITERATIONS = 200


class Block(ABC):
    """A matrix over weights laid out as W ``[O, I]`` (a bias being the last column), which acts on W as a whole."""

    @abstractmethod
    def product(self, W: Tensor) -> Tensor:
        """P W."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """The diagonal, ``[O, I]``."""

    @abstractmethod
    def eigen(self) -> Eigenbasis:
        """In one Kronecker eigenbasis."""

    def shrink(self, W: Tensor, size: Tensor | float, rate: float) -> Tensor:
        """(H + rP)^-1 H W with H^-1 = size, by conjugate gradients."""
        # (H + rP) x = H W becomes (I + r s P s) z = W / s with x = s z, s = sqrt(size): symmetric, and as well scaled as can be
        root = torch.as_tensor(size, dtype=W.dtype, device=W.device).sqrt()
        b = W / root.clamp_min(torch.finfo(W.dtype).tiny)
        near = self._near_inverse(size, root, rate)
        z = near(b)
        residual = b - z - rate * root * self.product(root * z)
        direction = step = near(residual)
        size_now, goal = float((residual * step).sum()), _TOLERANCE**2 * float((b * near(b)).sum())
        for _ in range(_ITERATIONS):
            if size_now <= goal:
                break
            moved = direction + rate * root * self.product(root * direction)
            length = size_now / float((direction * moved).sum())
            z = z + length * direction
            residual = residual - length * moved
            step = near(residual)
            size_next = float((residual * step).sum())
            direction, size_now = step + (size_next / size_now) * direction, size_next
        return torch.where(root > 0, root * z, W)  # what the optimiser has not moved stays

    def _near_inverse(self, size: Tensor | float, root: Tensor, rate: float) -> Callable[[Tensor], Tensor]:
        """What stands for the inverse of I + r s P s: that of its diagonal."""
        scale = 1 + rate * root.square() * self.diagonal().to(root.dtype)
        return lambda v: v / scale


@dataclass
class Pairs(Block):
    r"""A sum of Kronecker products, :math:`P W = \sum_t G_t W A_t` with symmetric ``G`` ``[O, O]`` and ``A`` ``[I, I]``."""

    pairs: list[tuple[Tensor, Tensor]]

    def product(self, W: Tensor) -> Tensor:
        """P W, two matrix products a pair."""
        first, *more = (G.to(W.dtype) @ W @ A.to(W.dtype) for G, A in self.pairs)
        for value in more:
            first += value
        return first

    def diagonal(self) -> Tensor:
        """The diagonal."""
        return torch.stack([torch.outer(G.diagonal(), A.diagonal()) for G, A in self.pairs]).sum(0)

    def scaled(self, factor: float) -> Pairs:
        """P times a factor."""
        return Pairs([(G * factor, A) for G, A in self.pairs])

    def damped(self, share: float) -> Pairs:
        """With a share of its mean eigenvalue added to each eigenvalue of every factor."""
        return Pairs([(_raised(G, share), _raised(A, share)) for G, A in self.pairs])

    def plus(self, other: Block) -> Block:
        """The sum: pairs do not add, so the list grows; a basis takes them in."""
        if isinstance(other, Eigenbasis):
            return other.plus(self)
        assert isinstance(other, Pairs)
        return Pairs([*self.pairs, *other.pairs])

    def shrink(self, W: Tensor, size: Tensor | float, rate: float) -> Tensor:
        """The proximal step: in closed form for one pair in a metric that is a number."""
        if len(self.pairs) == 1 and not isinstance(size, Tensor):
            return self.basis.shrink(W, size, rate)
        return super().shrink(W, size, rate)

    def _near_inverse(self, size: Tensor | float, root: Tensor, rate: float) -> Callable[[Tensor], Tensor]:
        """In a metric that is a number, that of the one Kronecker product's basis that is nearest: a few products instead of dozens."""
        if isinstance(size, Tensor):
            return super()._near_inverse(size, root, rate)
        return lambda v: self.near.shrink(v, size, rate)

    @cached_property
    def basis(self) -> Eigenbasis:
        r"""The Kronecker basis that diagonalises both partial traces, with the diagonal of P in it: exact for one pair.

        For several pairs it is the projection of P onto matrices diagonal in that basis, and ``error`` says how far it is off.
        """
        G = sum(float(A.double().trace()) * G.double() for G, A in self.pairs)
        A = sum(float(G.double().trace()) * A.double() for G, A in self.pairs)
        return _in_basis(G, A, self.pairs, None)  # type: ignore[arg-type]

    @cached_property
    def near(self) -> Eigenbasis:
        """The basis as a preconditioner: in the pairs' own precision and without its error, so that it costs a product a pair."""
        G = sum(float(A.diagonal().sum()) * G for G, A in self.pairs)
        A = sum(float(G.diagonal().sum()) * A for G, A in self.pairs)
        left, right = torch.linalg.eigh(G)[1].contiguous(), torch.linalg.eigh(A)[1].contiguous()
        values = sum(torch.outer(((g @ left) * left).sum(0), ((a @ right) * right).sum(0)).clamp_min(0) for g, a in self.pairs)
        return Eigenbasis(left, right, values)  # type: ignore[arg-type]

    def eigen(self) -> Eigenbasis:
        """In one Kronecker eigenbasis."""
        return self.basis

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Pairs:
        """A function applied to all tensors."""
        return Pairs([(change(G), change(A)) for G, A in self.pairs])

    def grown(self, rows: int) -> Pairs:
        """With more rows, of which nothing is known."""
        return Pairs([(torch.nn.functional.pad(G, (0, rows, 0, rows)), A) for G, A in self.pairs])

    def state_dict(self) -> dict[str, Any]:
        """Tensors."""
        return {"pairs": [list(pair) for pair in self.pairs]}


@dataclass
class Eigenbasis(Block):
    r"""Diagonal in a Kronecker basis: :math:`P W = U_G (S \odot (U_G^\top W U_A)) U_A^\top`.

    Args:
        left: :math:`U_G` ``[O, o]``, orthonormal columns.
        right: :math:`U_A` ``[I, i]``, orthonormal columns.
        values: S ``[o, i]``, at least 0.
        error: At most how far it is from what it stands for, relative, in the Frobenius norm.
    """

    left: Tensor
    right: Tensor
    values: Tensor
    error: float = 0.0

    def _turn(self, W: Tensor) -> Tensor:
        return self.left.to(W.dtype).T @ W @ self.right.to(W.dtype)

    def _back(self, V: Tensor) -> Tensor:
        return self.left.to(V.dtype) @ V @ self.right.to(V.dtype).T

    def product(self, W: Tensor) -> Tensor:
        """P W, four matrix products."""
        return self._back(self.values.to(W.dtype) * self._turn(W))

    def diagonal(self) -> Tensor:
        """The diagonal."""
        return self.left.square() @ self.values @ self.right.square().T

    def scaled(self, factor: float) -> Eigenbasis:
        """P times a factor."""
        return replace(self, values=self.values * factor)

    def damped(self, share: float) -> Eigenbasis:
        """The same as of pairs: exact for one product whose basis is whole."""
        S = self.values
        return replace(self, values=S + share * (S.mean(0, keepdim=True) + S.mean(1, keepdim=True)) + share**2 * S.mean())

    def plus(self, other: Block) -> Eigenbasis:
        """The sum in the basis of its partial traces; what that basis cannot hold adds to ``error``."""
        pairs = other.pairs if isinstance(other, Pairs) else []
        G, A = self._traces()
        if isinstance(other, Eigenbasis):
            more = other._traces()
            G, A = G + more[0], A + more[1]
        for g, a in pairs:
            G, A = G + float(a.double().trace()) * g.double(), A + float(g.double().trace()) * a.double()
        return _in_basis(G, A, pairs, [self, other] if isinstance(other, Eigenbasis) else [self])

    def eigen(self) -> Eigenbasis:
        """Itself."""
        return self

    def shrink(self, W: Tensor, size: Tensor | float, rate: float) -> Tensor:
        """The proximal step: in closed form in a metric that is a number."""
        if isinstance(size, Tensor):
            return super().shrink(W, size, rate)
        stiff = rate * size * self.values.to(W.dtype)
        return W - self._back(stiff / (1 + stiff) * self._turn(W))

    def logdet(self, n: float, prior: float) -> float:
        """Logarithm of det(nP + prior I); directions outside the basis have the prior alone."""
        values = self.values.double()
        outside = self.left.shape[0] * self.right.shape[0] - values.numel()
        return float((n * values + prior).log().sum()) + outside * math.log(prior)

    def variance(self, n: float, prior: float) -> Tensor:
        """Diagonal of (nP + prior I)^-1."""
        inside = 1 / (n * self.values.double() + prior) - 1 / prior
        found = self.left.double().square() @ inside @ self.right.double().square().T + 1 / prior
        return found.to(self.values.dtype)

    def sample(self, n: float, prior: float, generator: torch.Generator | None) -> Tensor:
        """A draw from N(0, (nP + prior I)^-1)."""
        drawn = noise(self.values, generator, torch.Size((self.left.shape[0], self.right.shape[0])))
        inside = (n * self.values + prior).rsqrt() - 1 / math.sqrt(prior)
        return drawn / math.sqrt(prior) + self._back(inside * self._turn(drawn))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Eigenbasis:
        """A function applied to all tensors."""
        return Eigenbasis(change(self.left), change(self.right), change(self.values), self.error)

    def grown(self, rows: int) -> Eigenbasis:
        """With more rows, of which nothing is known."""
        return replace(self, left=torch.nn.functional.pad(self.left, (0, 0, 0, rows)))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and the error."""
        return {"left": self.left, "right": self.right, "values": self.values, "error": self.error}

    def _traces(self) -> tuple[Tensor, Tensor]:
        left, right, values = self.left.double(), self.right.double(), self.values.double()
        return (left * values.sum(1)) @ left.T, (right * values.sum(0)) @ right.T


def _raised(factor: Tensor, share: float) -> Tensor:
    raised = factor.clone()
    raised.diagonal().add_(share * factor.diagonal().mean())
    return raised


def block_from(state: dict[str, Any]) -> Pairs | Eigenbasis:
    """A block from its state."""
    if "pairs" in state:
        return Pairs([(G, A) for G, A in state["pairs"]])
    return Eigenbasis(state["left"], state["right"], state["values"], state["error"])


def _in_basis(G: Tensor, A: Tensor, pairs: list[tuple[Tensor, Tensor]], old: list[Eigenbasis] | None) -> Eigenbasis:
    """The sum of pairs and old bases, projected onto the eigenbasis of its partial traces G and A."""
    left, right = torch.linalg.eigh(G)[1], torch.linalg.eigh(A)[1]
    like = pairs[0][0] if pairs else old[0].values  # type: ignore[index]
    values = left.new_zeros(len(left), len(right))
    for g, a in pairs:
        values += torch.outer(((g.double() @ left) * left).sum(0), ((a.double() @ right) * right).sum(0))
    whole = sum(_overlap(g, a, pairs) for g, a in pairs)  # squared Frobenius norm of the sum
    before = 0.0
    for number, basis in enumerate(old or []):
        over, across = (left.T @ basis.left.double()).square(), (right.T @ basis.right.double()).square()
        values += over @ basis.values.double() @ across.T
        for g, a in pairs:
            u, v = basis.left.double(), basis.right.double()
            inside = torch.outer(((g.double() @ u) * u).sum(0), ((a.double() @ v) * v).sum(0))
            whole += 2 * float((basis.values.double() * inside).sum())
        whole += float(basis.values.double().square().sum())
        before += basis.error * float(basis.values.double().norm())
        for other in (old or [])[:number]:
            over, across = (other.left.double().T @ basis.left.double()).square(), (other.right.double().T @ basis.right.double()).square()
            whole += 2 * float((other.values.double() * (over @ basis.values.double() @ across.T)).sum())
    values = values.clamp_min(0)
    missed = max(0.0, whole - float(values.square().sum())) ** 0.5 + before
    error = missed / whole**0.5 if whole > 0 else 0.0
    if len(pairs) == 1 and not old:
        error = 0.0  # exact; what is left is rounding
    # laid out row by row, as a file holds them: products then have the same bits before and after
    return Eigenbasis(left.to(like.dtype).contiguous(), right.to(like.dtype).contiguous(), values.to(like.dtype), error)


def _overlap(g: Tensor, a: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> float:
    return sum(float((g.double() * G.double()).sum()) * float((a.double() * A.double()).sum()) for G, A in pairs)
