r"""Closed forms for the squared per-sample gradients of a layer.

With the layer's input a and the gradients :math:`G_{kb}` of K scalar functions of sample b at its output, each rule returns
:math:`\sum_k \sum_b (\partial f_{kb} / \partial w)^2` for the layer's parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CHUNK = 1 << 23  # entries of per-sample gradients held at a time


def linear(layer: nn.Linear, a: Tensor, G: Tensor) -> dict[str, Tensor]:
    r"""Linear layer with one position a sample: :math:`\sum_{kb} G_{kbo}^2 a_{bi}^2`, so the K functions fold before the product.

    Args:
        layer: The layer.
        a: Its input, ``[B, I]`` or ``[B, positions..., I]``.
        G: Gradients at its output, ``[K, B, O]`` or ``[K, B, positions..., O]``.

    Returns:
        ``weight`` ``[O, I]`` and, if the layer has one, ``bias`` ``[O]``.
    """
    if a.ndim == 2:
        squares = G.square().sum(0)
        result = {"weight": squares.T @ a.square()}
        if layer.bias is not None:
            result["bias"] = squares.sum(0)
        return result
    positions = a.flatten(1, -2)
    result = {"weight": _per_sample(G.flatten(2, -2).transpose(-1, -2), positions)}
    if layer.bias is not None:
        result["bias"] = G.flatten(2, -2).sum(2).square().sum((0, 1))
    return result


def conv2d(layer: nn.Conv2d, a: Tensor, G: Tensor) -> dict[str, Tensor]:
    r"""Convolution: the gradient of a sample sums over positions, :math:`\sum_{kb} \big(\sum_p G_{kbop} a_{bip}\big)^2`.

    The square is outside the sum over positions, so the K functions cannot fold; the samples' weight gradients are formed a
    chunk at a time and never kept.

    Args:
        layer: The layer; groups, stride, dilation and padding of every mode.
        a: Its input, ``[B, C, H, W]``.
        G: Gradients at its output, ``[K, B, O, H', W']``.

    Returns:
        ``weight`` ``[O, C / groups, h, w]`` and, if the layer has one, ``bias`` ``[O]``.
    """
    pad = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    if any(pad):
        a = F.pad(a, pad, mode=mode)
    columns = F.unfold(a, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)

    B, groups = len(a), layer.groups
    columns = columns.reshape(B, groups, -1, columns.shape[-1]).transpose(-1, -2)
    gradients = G.flatten(3).reshape(len(G), B, groups, -1, G[0, 0, 0].numel())
    weight = torch.cat([_per_sample(gradients[:, :, g], columns[:, g]) for g in range(groups)])
    result = {"weight": weight.reshape(layer.weight.shape)}
    if layer.bias is not None:
        result["bias"] = G.flatten(3).sum(3).square().sum((0, 1))
    return result


def _per_sample(G: Tensor, a: Tensor) -> Tensor:
    """Sum over k and b of the squares of G[k, b] @ a[b], with ``[K, B, O, P]`` and ``[B, P, I]``; at most a chunk is held."""
    if a.shape[1] == 1:
        return G[..., 0].square().sum(0).T @ a[:, 0].square()
    step = max(1, _CHUNK // (G.shape[2] * a.shape[2]))
    total = torch.zeros(G.shape[2], a.shape[2], device=a.device, dtype=a.dtype)
    for g, part in ((g, rows) for g in G for rows in range(0, len(a), step)):
        total += torch.bmm(g[part : part + step], a[part : part + step]).square_().sum(0)
    return total


Rule = Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]]
# by exact type: a subclass may compute something else
RULES: dict[type[nn.Module], Rule] = {nn.Linear: linear, nn.Conv2d: conv2d}  # type: ignore[dict-item]
