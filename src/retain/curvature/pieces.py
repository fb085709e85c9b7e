r"""Per-sample gradients in the form in which a layer gives them, and sums of their powers without forming more than needed.

K is the number of functions differentiated (labels or Hessian roots), B the samples, P the positions at which a layer is applied
to one sample (pixels, tokens, time steps, uses): the gradient of a sample sums over its positions, and only then is it squared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_CHUNK = 1 << 18  # entries of per-sample gradients formed at a time: a few hundred kilobytes stay in the cache
_WIDE = 1 << 15  # from this size on, samples are accumulated one by one
_TRAFFIC = 8  # what writing and reading back one entry costs, in multiply-adds


class Piece(ABC):
    """A part of the per-sample gradients of one parameter."""

    @abstractmethod
    def rows(self, part: slice) -> Tensor:
        """The gradients of some samples, ``[K, b, *shape]``."""

    @abstractmethod
    def power(self, exponent: int) -> Tensor:
        """Sum over k and b of the absolute gradient to a power of 1 or 2, of the parameter's shape."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """B."""


@dataclass
class Dense(Piece):
    """Gradients as they are, for small parameters: ``values`` ``[K, B, *shape]``."""

    values: Tensor

    @property
    def samples(self) -> int:
        """B."""
        return self.values.shape[1]

    def rows(self, part: slice) -> Tensor:
        """The gradients of some samples."""
        return self.values[:, part]

    def power(self, exponent: int) -> Tensor:
        """Sum of powers."""
        return _folded(self.values, exponent).sum(0)


@dataclass
class Outer(Piece):
    r"""Sums of outer products: :math:`\sum_p g_{kbp} a_{bp}^\top`, in ``groups`` that do not meet.

    Args:
        g: What the backward pass brings, ``[K, B, S, M, P]``, S groups.
        a: What went in, ``[B, S, P, N]``; with ``unfold``, what that makes it of, ``[B, ...]``.
        shape: The parameter's shape; the S matrices of M x N laid out in it row by row.
        transposed: The parameter holds the matrices as N x M.
        unfold: From some samples of ``a`` to ``[b, S, P, N]``, so that patches are laid out for a few samples at a time.
    """

    g: Tensor
    a: Tensor
    shape: torch.Size
    transposed: bool = False
    unfold: Callable[[Tensor], Tensor] | None = None

    def inputs(self, part: slice = slice(None)) -> Tensor:
        """What went in, ``[b, S, P, N]``."""
        return self.a[part] if self.unfold is None else self.unfold(self.a[part])

    @property
    def samples(self) -> int:
        """B."""
        return len(self.a)

    def rows(self, part: slice) -> Tensor:
        """The gradients of some samples."""
        return self._laid_out(self.g[:, part] @ self.inputs(part)).reshape(len(self.g), -1, *self.shape)

    def power(self, exponent: int) -> Tensor:
        r"""Sum of powers, in the cheapest of three equal ways.

        One position: the K functions fold before the product, :math:`\sum_b (\sum_k g_{kb}^2)(a_b^2)^\top`. Few positions: so do pairs of
        positions, :math:`\sum_{pq} \sum_b (\sum_k g_{kbp} g_{kbq})(a_{bp} a_{bq})^\top`. Otherwise samples are formed a chunk at a time.

        Args:
            exponent: 1 or 2.

        Returns:
            A tensor of the parameter's shape.
        """
        K, _, _, _, P = self.g.shape
        if P == 1:
            g = _folded(self.g[..., 0], exponent)
            return self._laid_out(_contract(g, _powers(self.inputs()[:, :, 0], exponent))).reshape(self.shape)
        if exponent == 2 and P * (P + 1) // 2 < K * (P + _TRAFFIC):
            return self._laid_out(self._by_pairs()).reshape(self.shape)
        return self._laid_out(self._by_samples(exponent)).reshape(self.shape)

    def _laid_out(self, values: Tensor) -> Tensor:
        return values.transpose(-1, -2) if self.transposed else values

    def _by_pairs(self) -> Tensor:
        _, B, S, M, P = self.g.shape
        first, second = torch.triu_indices(P, P, device=self.a.device)
        twice = torch.where(first == second, 1.0, 2.0).to(self.a.dtype)
        g, a = self.g.permute(4, 0, 1, 2, 3).contiguous(), self.inputs().permute(2, 0, 1, 3).contiguous()
        total = a.new_zeros(S, M, a.shape[-1])
        step = max(1, 16 * _CHUNK // (B * S * (M * len(self.g) + a.shape[-1])))
        for part in range(0, len(first), step):
            p, q = first[part : part + step], second[part : part + step]
            left = (g[p] * g[q]).sum(1) * twice[part : part + step, None, None, None]
            total += _contract(left.flatten(0, 1), (a[p] * a[q]).flatten(0, 1))
        return total.clamp_min_(0)  # rounding may leave a zero just below zero

    def _by_samples(self, exponent: int) -> Tensor:
        K, B, S, M, P = self.g.shape
        N = self.shape.numel() // (S * M)
        g = self.g
        if K > 1 and M < 32:  # thin products: the functions become rows
            g, K, M, fold = g.permute(1, 2, 0, 3, 4).reshape(1, B, S, K * M, P), 1, K * M, K
        else:
            fold = 1
        total = g.new_zeros(S, M, N)
        size = S * M * N
        step = max(1, _CHUNK // size)
        room = g.new_empty(min(step, B) * S, M, N)
        for start in range(0, B, step):
            a = self.inputs(slice(start, start + step)).reshape(-1, P, N)
            b = len(a) // S
            for k in range(K):
                out = torch.bmm(g[k, start : start + b].reshape(b * S, M, P), a, out=room[: b * S]).view(b, S, M, N)
                if exponent == 2 and size >= _WIDE:
                    for sample in out:
                        total.addcmul_(sample, sample)
                else:
                    total += (out.square_() if exponent == 2 else out.abs_()).sum(0)
        return total.view(S, fold, M // fold, N).sum(1)


@dataclass
class Rows(Piece):
    """Gradients that reach single rows of a table: position p adds ``g`` ``[K, B, P, D]`` to row ``index`` ``[B, P]``."""

    g: Tensor
    index: Tensor
    shape: torch.Size

    @property
    def samples(self) -> int:
        """B."""
        return len(self.index)

    def rows(self, part: slice) -> Tensor:
        """The gradients of some samples."""
        g, index = self.g[:, part], self.index[part]
        found = g.new_zeros(len(g), len(index), *self.shape)
        return found.scatter_add_(2, index[None, :, :, None].expand_as(g), g)

    def power(self, exponent: int) -> Tensor:
        """Sum of powers; a row that a sample meets several times is summed first."""
        K, B, P, D = self.g.shape
        key = self.index + torch.arange(B, device=self.index.device)[:, None] * self.shape[0]
        unique, place = torch.unique(key.flatten(), return_inverse=True)
        met = self.g.new_zeros(K, len(unique), D).index_add_(1, place, self.g.reshape(K, B * P, D))
        return self.g.new_zeros(self.shape).index_add_(0, unique % self.shape[0], _folded(met, exponent))


def total_power(pieces: list[tuple[slice | None, Piece]], shape: torch.Size, exponent: int) -> Tensor:
    """Sum over samples of the powers of a parameter's whole gradient, whose pieces are summed first.

    Args:
        pieces: Pieces with the rows of the parameter that they cover (``None``: all).
        shape: The parameter's shape.
        exponent: 1 or 2.

    Returns:
        A tensor of that shape.
    """
    places = [place for place, _ in pieces]
    outer = [piece for _, piece in pieces if isinstance(piece, Outer)]
    if len(outer) == len(pieces) and len({(str(place), one.transposed) for place, one in zip(places, outer, strict=True)}) == 1:
        pieces = [(places[0], joined(outer))]
    elif len(pieces) > 1 and (None in places or len({str(place) for place in places}) < len(places)):
        return _by_rows(pieces, shape, exponent)
    anyone = pieces[0][1].power(exponent)
    if pieces[0][0] is None:
        return anyone
    total = anyone.new_zeros(shape)
    total[pieces[0][0]] = anyone
    for place, piece in pieces[1:]:  # no two of them overlap
        total[place] = piece.power(exponent)
    return total


def joined(pieces: list[Outer]) -> Outer:
    """Several uses of one parameter as one: the positions of each follow those of the use before."""
    if len(pieces) == 1:
        return pieces[0]
    return replace(pieces[0], g=torch.cat([piece.g for piece in pieces], -1), a=torch.cat([piece.inputs() for piece in pieces], 2), unfold=None)


def _by_rows(pieces: list[tuple[slice | None, Piece]], shape: torch.Size, exponent: int) -> Tensor:
    B, total = pieces[0][1].samples, None
    step, start = 1, 0
    while start < B:
        whole = None
        for place, piece in pieces:
            found = piece.rows(slice(start, start + step))
            if whole is None:
                whole = found.new_zeros(*found.shape[:2], *shape)
            (whole if place is None else whole[(slice(None), slice(None), place)]).add_(found)
        assert whole is not None
        summed = _folded(whole, exponent).sum(0)
        total = summed if total is None else total.add_(summed)
        start += step
        step = max(1, _CHUNK // whole[:, :1].numel())
    assert total is not None
    return total


def _powers(values: Tensor, exponent: int) -> Tensor:
    return values.square() if exponent == 2 else values.abs()


def _folded(values: Tensor, exponent: int) -> Tensor:
    """Powers summed over the first axis, without an array of the powers."""
    total = _powers(values[0], exponent)
    for one in values[1:]:
        if exponent == 2:
            total.addcmul_(one, one)
        else:
            total += one.abs()
    return total


def _contract(g: Tensor, a: Tensor) -> Tensor:
    """``[B, S, M]`` and ``[B, S, N]`` to ``[S, M, N]``, summed over samples."""
    if g.shape[1] == 1:
        return (g[:, 0].T @ a[:, 0])[None]
    return g.permute(1, 2, 0) @ a.transpose(0, 1)
