"""Convolutions and transposed convolutions in one, two and three dimensions."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from retain.curvature.pieces import Outer
from retain.curvature.rules.base import Found, Part, Site, summed

Sizes = tuple[int, ...]


def columns(x: Tensor, groups: int, kernel: Sizes, stride: Sizes, dilation: Sizes, padding: Sizes | None = None) -> Tensor:
    """The patch under the kernel at every position: ``[B, C, D...]`` to ``[B, groups, positions, channels of a group times kernel]``."""
    if len(kernel) == 2:
        found = F.unfold(x, kernel, dilation=dilation, stride=stride, padding=padding or 0)
        patches: Tensor = found.unflatten(1, (groups, -1)).transpose(2, 3)
        return patches
    if padding is not None:
        x = F.pad(x, [amount for one in reversed(padding) for amount in (one, one)])
    for axis, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(axis, (size - 1) * spread + 1, step)[..., ::spread]
    n = len(kernel)
    x = x.unflatten(1, (groups, -1))
    return x.permute(0, 1, *range(3, 3 + n), 2, *range(3 + n, 3 + 2 * n)).flatten(2 + n).flatten(2, 1 + n)


def convolution(layer: nn.Conv2d, a: Tensor, G: Tensor) -> list[Part]:
    """``nn.Conv1d/2d/3d``: groups, stride, dilation and padding of every mode; ``a`` ``[B, C, D...]``, ``G`` ``[K, B, O, D'...]``."""
    padding: Sizes | None = None
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        padding = layer.padding
    elif any(layer._reversed_padding_repeated_twice):
        a = F.pad(a, layer._reversed_padding_repeated_twice, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    patches = partial(columns, groups=layer.groups, kernel=layer.kernel_size, stride=layer.stride, dilation=layer.dilation, padding=padding)
    g = G.flatten(3).unflatten(2, (layer.groups, -1))
    weight = Part("weight", Outer(g, a, layer.weight.shape, unfold=patches))
    return [weight] if layer.bias is None else [weight, summed("bias", G.flatten(3).transpose(2, 3))]


def transposed(layer: nn.ConvTranspose2d, a: Tensor, G: Tensor) -> list[Part]:
    """``nn.ConvTranspose1d/2d/3d``: an input pixel meets the patch of the output that it was spread over."""
    K, B, groups = len(G), len(a), layer.groups
    spatial = a.shape[2:]
    grid = G.flatten(0, 1)
    # the output without its padding; what an output padding added beyond the last patch is cut off
    whole = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(spatial, layer.stride, layer.dilation, layer.kernel_size, strict=True)]
    pads = [amount for p, w, n in zip(cast(Sizes, layer.padding), whole, grid.shape[2:], strict=True) for amount in (p, w - n - p)]
    grid = F.pad(grid, [amount for axis in reversed(range(len(spatial))) for amount in pads[2 * axis : 2 * axis + 2]])
    g = columns(grid, groups, layer.kernel_size, layer.stride, layer.dilation).transpose(2, 3).unflatten(0, (K, B))
    pixels = a.flatten(2).unflatten(1, (groups, -1)).transpose(2, 3)
    weight = Part("weight", Outer(g, pixels, layer.weight.shape, transposed=True))
    return [weight] if layer.bias is None else [weight, summed("bias", G.flatten(3).transpose(2, 3))]


def sites(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Found:
    """The one site of a convolution."""
    if inputs[0].ndim != cast(Tensor, layer.weight).ndim:  # a single sample without a batch
        return Found([])
    rule: Any = transposed if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) else convolution
    return Found([Site(inputs[0].detach(), output, partial(rule, layer))])
