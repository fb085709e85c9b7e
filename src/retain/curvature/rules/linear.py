"""Linear layers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from retain.curvature.pieces import Outer
from retain.curvature.rules.base import Found, Part, Site, summed


def product(name: str, a: Tensor, G: Tensor, place: slice | None = None) -> Part:
    r"""A matrix used as ``a @ W.T`` at any number of positions: :math:`\partial f_{kb} / \partial W = \sum_p G_{kbp} a_{bp}^\top`.

    Args:
        name: The matrix.
        a: What it was applied to, ``[B, positions..., I]``.
        G: Gradients at the result, ``[K, B, positions..., O]``.
        place: The rows of the parameter, if the matrix is a part of it.

    Returns:
        The part.
    """
    a, G = a.reshape(len(a), 1, -1, a.shape[-1]), G.reshape(*G.shape[:2], 1, -1, G.shape[-1])
    return Part(name, Outer(G.transpose(-1, -2), a, torch.Size((G.shape[-1], a.shape[-1]))), place)


def linear(layer: nn.Linear, a: Tensor, G: Tensor) -> list[Part]:
    """``nn.Linear``: weight and bias."""
    weight = product("weight", a, G)
    return [weight] if layer.bias is None else [weight, summed("bias", G)]


def sites(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Found:
    """A linear layer's one site."""
    return Found([Site(inputs[0].detach(), output, partial(linear, layer), movable=True)])  # type: ignore[arg-type]
