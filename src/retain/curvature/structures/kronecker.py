"""The Fisher as Kronecker products, a layer at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator
from typing import Literal

import torch
from torch import Tensor

from retain.beliefs import Diagonal, Eigenbasis, Kronecker, Layer, Pairs
from retain.curvature.persample import powers
from retain.curvature.pieces import Outer, joined, total_power
from retain.curvature.probe import Pieces
from retain.curvature.structures.sums import Moment, RunningSum
from retain.curvature.sweep import Gradients, Sweep
from retain.errors import InputError

Sharing = Literal["expand", "reduce"]
_ROOM = 1 << 19  # entries of patches laid out at a time


def kronecker(sweep: Sweep, sharing: Sharing = "expand") -> Kronecker:
    r"""Second moments of every layer's inputs and of the gradients at its outputs, :math:`F \approx G \otimes A`.

    At one position a sample, :math:`A = \frac1n \sum_i a_i a_i^\top` and :math:`G = \frac1n \sum_i \mathbb{E}_y[g_i g_i^\top]`. A layer at
    many positions: ``expand`` takes them as independent, A a mean over samples and positions and G a sum over positions; ``reduce``
    takes the mean of a and the sum of g over positions first (Eschenhagen et al. 2023, https://arxiv.org/abs/2311.00636).

    Args:
        sweep: What to differentiate, and on which data.
        sharing: ``expand`` or ``reduce``.

    Returns:
        A precision; embeddings, norms, grouped and transposed convolutions and parameters without a closed form are in its diagonal.
    """
    inputs: dict[str, Moment] = defaultdict(Moment)
    slopes: dict[str, Moment] = defaultdict(Moment)
    means: dict[str, RunningSum] = defaultdict(RunningSum)
    counts: dict[str, int] = defaultdict(int)
    biases: dict[str, str | None] = {}
    rest: dict[str, RunningSum] = defaultdict(RunningSum)
    for number, found in enumerate(sweep):
        if number == 0:
            biases = blocks_of(found.pieces)
        for weight in biases:
            piece = whole(weight, found.pieces)
            slopes[weight].add(slopes_of(piece, sharing))
            for a in inputs_of(piece, sharing):
                inputs[weight].add(a)
                means[weight].add(a.sum(0))
                counts[weight] += len(a)
        _add_rest(sweep, found, {*biases, *biases.values()}, rest)
    layers = {}
    for weight, bias in biases.items():
        like = sweep.parameters[weight]
        G, A = slopes[weight].total().div_(sweep.seen * sweep.draws), inputs[weight].total().div_(counts[weight])
        if bias is not None:
            A = with_ones(A, means[weight].total().to(A.dtype) / counts[weight])
        sweep.check_finite({weight: G.sum() + A.sum()})
        layers[weight] = Layer(like.shape, bias, Pairs([(G.to(like.dtype), A.to(like.dtype))]))
    return _measured(sweep, layers, rest)


def ekfac(sweep: Sweep) -> Kronecker:
    r"""Kronecker eigenbasis with eigenvalues measured in it: :math:`S = \frac1n \sum_i \mathbb{E}_y[(U_G^\top \nabla_W U_A)^2]`.

    Of all matrices that are diagonal in that basis it is the closest to the Fisher's block in the Frobenius norm (George et al. 2018,
    https://arxiv.org/abs/1806.03884). Takes two passes over the data.

    Args:
        sweep: What to differentiate, and on which data.

    Returns:
        A precision whose blocks are in one basis.
    """
    first = kronecker(sweep).in_one_basis()
    values: dict[str, RunningSum] = defaultdict(RunningSum)
    for found in sweep:
        for weight, layer in first.layers.items():
            block, piece = layer.block, whole(weight, found.pieces)
            assert isinstance(block, Eigenbasis)
            a = piece.inputs()
            if layer.bias is not None:
                a = torch.cat([a, a.new_ones(*a.shape[:-1], 1)], -1)
            turned = Outer(block.left.T @ piece.g, a @ block.right, block.values.shape)
            values[weight].add(turned.power(2))
    layers = {}
    for weight, layer in first.layers.items():
        block = layer.block
        assert isinstance(block, Eigenbasis)
        measured = (values[weight].total() / (sweep.seen * sweep.draws)).to(block.values.dtype)
        layers[weight] = layer._replace(block=Eigenbasis(block.left, block.right, measured))
    return first._carry(Kronecker(layers, first.rest))


def slopes_of(piece: Outer, sharing: Sharing) -> Tensor:
    """Gradients at a layer's outputs, ``[rows, M]``, whose second moment is the factor G."""
    g = piece.g[:, :, 0]  # [K, B, M, P]
    if sharing == "reduce":
        g = g.sum(-1, keepdim=True)
    return g.transpose(-1, -2).flatten(0, -2)


def inputs_of(piece: Outer, sharing: Sharing) -> Iterator[Tensor]:
    """A layer's inputs, ``[rows, N]``, whose second moment is the factor A; patches are laid out for some samples at a time."""
    size = piece.g.shape[-1] * piece.shape[1:].numel()
    step = piece.samples if piece.unfold is None else max(1, _ROOM // size)
    for start in range(0, piece.samples, step):
        a = piece.inputs(slice(start, start + step))[:, 0]  # [b, P, N]
        yield (a.mean(1, keepdim=True) if sharing == "reduce" else a).flatten(0, -2)


def with_ones(A: Tensor, mean: Tensor) -> Tensor:
    """The second moment of inputs to which one that is always 1 was added, for the bias."""
    first = mean[:, None]
    return torch.cat([torch.cat([A, first], 1), torch.cat([first.T, first.new_ones(1, 1)], 1)])


def blocks_of(pieces: Pieces) -> dict[str, str | None]:
    """Weights whose gradient is a sum of outer products, with the bias that is used wherever the weight is."""
    found: dict[str, str | None] = {}
    sites = {name: [number for number, _ in parts] for name, parts in pieces.items()}
    for name, parts in pieces.items():
        outer = [part.piece for _, part in parts if part.place is None and isinstance(part.piece, Outer)]
        if len(outer) == len(parts) and all(piece.g.shape[2] == 1 and not piece.transposed for piece in outer):
            found[name] = next((other for other in pieces if other != name and sites[other] == sites[name] and other not in found.values()), None)
    return found


def whole(weight: str, pieces: Pieces) -> Outer:
    """All uses of a weight as one.

    Args:
        weight: A weight with a block.
        pieces: Of a batch.

    Returns:
        The sum of outer products.

    Raises:
        InputError: If this batch used the layer in another way than the first did.
    """
    outer = [part.piece for _, part in pieces.get(weight, []) if isinstance(part.piece, Outer)]
    if not outer:
        raise InputError("model", "layers that are used alike in every batch", f"'{weight}' used in another way", "Pass structure='diagonal'.")
    return joined(outer)


def _add_rest(sweep: Sweep, found: Gradients, covered: Container[str | None], rest: dict[str, RunningSum]) -> None:
    for name, parts in found.pieces.items():
        if name not in covered:
            rest[name].add(total_power([(part.place, part.piece) for _, part in parts], sweep.parameters[name].shape, 2))
    if found.slow:
        for name, value in powers(sweep.model, found.slow, found.batch, found.vectors).items():
            rest[name].add(value)


def _measured(sweep: Sweep, layers: dict[str, Layer], rest: dict[str, RunningSum]) -> Kronecker:
    diagonal = {name: (value.total() / (sweep.seen * sweep.draws)).to(sweep.parameters[name].dtype) for name, value in rest.items()}
    sweep.check_finite(diagonal)
    made = Kronecker(layers, Diagonal(diagonal))
    made.n, made.labels, made.slow = sweep.seen, str(sweep.labels), sweep.slow
    return made
