"""Recurrent layers, written out step by step so that every gate's gradient is seen."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.curvature.rules.base import Found, Part, Site, summed
from retain.curvature.rules.linear import product


def gates(weight: str, bias: str | None, a: Tensor, G: Tensor) -> list[Part]:
    """One of a cell's two matrices: ``a`` ``[B, T, I]``, ``G`` ``[K, B, T, gates]``."""
    part = product(weight, a, G)
    return [part] if bias is None else [part, summed(bias, G)]


def sites(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Found:
    r"""The layer computed again: a site for the inputs' and one for the states' matrix of every layer and direction.

    :math:`\partial f / \partial W_{ih} = \sum_t \delta_t x_t^\top` and :math:`\partial f / \partial W_{hh} = \sum_t \delta_t h_{t-1}^\top` with the
    gradients :math:`\delta_t` at the gates: a recurrent layer is a linear one at T positions.

    Args:
        layer: An RNN, LSTM or GRU.
        inputs: Its positional arguments.
        output: What it gave.

    Returns:
        The sites, with the output that goes with them; none for packed sequences and single samples.
    """
    assert isinstance(layer, nn.RNNBase)
    x = inputs[0]
    if not isinstance(x, Tensor) or x.ndim != 3:  # packed sequences and single samples
        return Found([])
    x = x if layer.batch_first else x.transpose(0, 1)
    lstm, size, ways = isinstance(layer, nn.LSTM), layer.proj_size or layer.hidden_size, 2 if layer.bidirectional else 1
    given = inputs[1] if len(inputs) > 1 else None
    if given is None:
        given = tuple(x.new_zeros(layer.num_layers * ways, len(x), width) for width in ((size, layer.hidden_size) if lstm else (size,)))
    starts = list(given) if lstm else [given[0] if isinstance(given, tuple) else given]
    found: list[Site] = []
    ends = []
    for depth in range(layer.num_layers):
        both = []
        for way in range(ways):
            name = f"l{depth}{'_reverse' if way else ''}"
            start = [state[depth * ways + way] for state in starts]
            out, end = _direction(layer, name, x.flip(1) if way else x, start, found)
            both.append(out.flip(1) if way else out)
            ends.append(end)
        x = torch.cat(both, -1)
    last = [torch.stack(column) for column in zip(*ends, strict=True)]
    return Found(found, (x if layer.batch_first else x.transpose(0, 1), tuple(last) if lstm else last[0]))


def _direction(layer: nn.RNNBase, name: str, x: Tensor, start: list[Tensor], found: list[Site]) -> tuple[Tensor, list[Tensor]]:
    """One direction of one layer over ``[B, T, I]``."""
    has_bias, projected = layer.bias, layer.proj_size > 0
    matrix = {part: getattr(layer, f"{part}_{name}") for part in ("weight_ih", "weight_hh")}
    bias = {part: getattr(layer, f"{part}_{name}") if has_bias else None for part in ("bias_ih", "bias_hh")}
    into = F.linear(x, matrix["weight_ih"], bias["bias_ih"])
    # zeros added to what the states contribute: the gradient at them is the gradient at all time steps at once
    extra = torch.zeros_like(into, requires_grad=True)
    more = x.new_zeros(*x.shape[:2], layer.proj_size, requires_grad=True) if projected else None
    h, c = start[0], start[1] if len(start) > 1 else start[0]
    before, hidden, outputs = [], [], []
    for t in range(x.shape[1]):
        before.append(h)
        step, i = F.linear(h, matrix["weight_hh"], bias["bias_hh"]) + extra[:, t], into[:, t]
        if isinstance(layer, nn.LSTM):
            enter, forget, new, leave = (i + step).chunk(4, 1)
            c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
            h = leave.sigmoid() * c.tanh()
            if more is not None:
                hidden.append(h)
                h = F.linear(h, getattr(layer, f"weight_hr_{name}")) + more[:, t]
        elif isinstance(layer, nn.GRU):
            (r, z, n), (sr, sz, sn) = i.chunk(3, 1), step.chunk(3, 1)
            z = (z + sz).sigmoid()
            h = (1 - z) * (n + (r + sr).sigmoid() * sn).tanh() + z * h
        else:
            h = (i + step).tanh() if getattr(layer, "nonlinearity", "tanh") == "tanh" else (i + step).relu()
        outputs.append(h)
    names = [f"bias_ih_{name}", f"bias_hh_{name}"] if has_bias else [None, None]
    found.append(Site(x.detach(), into, partial(gates, f"weight_ih_{name}", names[0])))
    found.append(Site(torch.stack(before, 1).detach(), extra, partial(gates, f"weight_hh_{name}", names[1])))
    if more is not None:
        found.append(Site(torch.stack(hidden, 1).detach(), more, partial(gates, f"weight_hr_{name}", None)))
    return torch.stack(outputs, 1), [h, c] if isinstance(layer, nn.LSTM) else [h]
