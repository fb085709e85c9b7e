"""Multi-head attention, written out so that its projections are seen."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from retain.curvature.rules.base import Found, Part, Site, summed
from retain.curvature.rules.linear import product


def projection(weight: str, bias: str | None, place: slice | None, bias_place: slice | None, a: Tensor, G: Tensor) -> list[Part]:
    """One projection, whose matrix may be some rows of a stacked one."""
    part = product(weight, a, G, place)
    return [part] if bias is None else [part, Part(bias, summed(bias, G).piece, bias_place)]


def sites(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Found:
    r"""The layer computed again, a site a projection; appended keys and values (``add_bias_kv``, ``add_zero_attn``) have none.

    :math:`\operatorname{softmax}(Q K^\top / \sqrt d + \text{mask})\, V` in every head (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

    Args:
        layer: The attention.
        inputs: Its positional arguments.
        output: What it gave.

    Returns:
        Four sites, or two where query, key and value are one, with the output that goes with them.
    """
    assert isinstance(layer, nn.MultiheadAttention)
    # the order of forward's arguments
    arguments: list[Any] = [*inputs, *_DEFAULTS[len(inputs) - 3 :]]
    query, key, value, padding, need_weights, mask, average, _ = arguments
    if layer.bias_k is not None or layer.add_zero_attn or query.ndim != 3:
        return Found([])
    one = query is key and key is value and layer._qkv_same_embed_dim
    found: list[Site] = []
    E = layer.embed_dim
    bias, stacked = layer.in_proj_bias, layer.in_proj_weight
    bias_name = None if bias is None else "in_proj_bias"

    def project(a: Tensor, weight: Tensor, b: Tensor | None, name: str, bias_name: str | None, place: slice | None, bias_place: slice | None) -> Tensor:
        out = F.linear(a, weight, b)
        found.append(Site(a.detach(), out, partial(projection, name, bias_name, place, bias_place), movable=True))
        return out

    if one:
        q, k, v = project(query, stacked, bias, "in_proj_weight", bias_name, None, None).chunk(3, -1)
    else:
        three = []
        for number, (a, letter) in enumerate(((query, "q"), (key, "k"), (value, "v"))):
            rows = slice(number * E, (number + 1) * E)
            if layer._qkv_same_embed_dim:
                weight, name, place = stacked[rows], "in_proj_weight", rows
            else:
                weight, name, place = getattr(layer, f"{letter}_proj_weight"), f"{letter}_proj_weight", None
            three.append(project(a, weight, None if bias is None else bias[rows], name, bias_name, place, rows))
        q, k, v = three
    first = 0 if layer.batch_first else 1  # axis of the samples
    heads = [part.movedim(first, 0).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for part in (q, k, v)]
    score = heads[0] @ heads[1].transpose(-1, -2) / math.sqrt(layer.head_dim)  # [B, heads, L, S]
    if mask is not None:
        mask = mask.unflatten(0, (-1, layer.num_heads)) if mask.ndim == 3 else mask
        score = _masked(score, mask)
    if padding is not None:
        score = _masked(score, padding[:, None, None])
    share = score.softmax(-1)
    joined = (share @ heads[2]).transpose(1, 2).flatten(2).movedim(0, first)
    out = F.linear(joined, layer.out_proj.weight, layer.out_proj.bias)
    name = None if layer.out_proj.bias is None else "out_proj.bias"
    found.append(Site(joined.detach(), out, partial(projection, "out_proj.weight", name, None, None), movable=True))
    weights = None if not need_weights else share.mean(1) if average else share
    return Found(found, (out, weights))


_DEFAULTS = (None, True, None, True, False)
ARGUMENTS = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")


def _masked(score: Tensor, mask: Tensor) -> Tensor:
    return score.masked_fill(mask, -math.inf) if not mask.is_floating_point() else score + mask
