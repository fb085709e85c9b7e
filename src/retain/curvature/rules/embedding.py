"""Tables of vectors."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from retain.curvature.pieces import Rows
from retain.curvature.rules.base import Found, Part, Site


def embedding(layer: nn.Embedding, a: Tensor, G: Tensor) -> list[Part]:
    """``nn.Embedding``: ``a`` ``[B, positions...]`` of indices, ``G`` ``[K, B, positions..., D]``; the padding's row gets nothing."""
    index, g = a.reshape(len(a), -1), G.reshape(*G.shape[:2], -1, G.shape[-1])
    if layer.padding_idx is not None:
        g = g.masked_fill((index == layer.padding_idx)[None, :, :, None], 0)
    return [Part("weight", Rows(g, index, layer.weight.shape))]


def sites(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Found:
    """The one site of a table; one that changes itself or its gradients on the way has none."""
    plain = isinstance(layer, nn.Embedding) and layer.max_norm is None and not layer.scale_grad_by_freq
    return Found([Site(inputs[0], output, partial(embedding, layer), movable=True)] if plain else [])  # type: ignore[arg-type]
