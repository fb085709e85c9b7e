"""Normalisations: the gradient of a scale is the gradient at the output times the normalised input, summed over positions."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from retain.curvature.rules.base import Found, Part, Site, summed


def over_last_axes(layer: nn.LayerNorm | nn.RMSNorm, a: Tensor, G: Tensor) -> list[Part]:
    """``nn.LayerNorm`` and ``nn.RMSNorm``: ``a`` ``[B, positions..., *normalized_shape]``."""
    shape = layer.normalized_shape
    if isinstance(layer, nn.LayerNorm):
        normal = F.layer_norm(a, shape, None, None, layer.eps)
    else:
        normal = F.rms_norm(a, shape, None, layer.eps)
    parts = [summed("weight", G * normal, len(shape))]
    if getattr(layer, "bias", None) is not None:
        parts.append(summed("bias", G, len(shape)))
    return parts


def over_channels(layer: nn.GroupNorm | nn.BatchNorm2d, a: Tensor, G: Tensor) -> list[Part]:
    """``nn.GroupNorm`` and batch norm with stored statistics: ``a`` ``[B, C, positions...]``."""
    if isinstance(layer, nn.GroupNorm):
        normal = F.group_norm(a, layer.num_groups, None, None, layer.eps)
    else:
        normal = F.batch_norm(a, layer.running_mean, layer.running_var, None, None, False, 0.0, layer.eps)
    return [summed("weight", (G * normal).movedim(2, -1)), summed("bias", G.movedim(2, -1))]


def sites(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Found:
    """The one site of a normalisation; batch norm that normalises by the batch itself has none."""
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return Found([Site(inputs[0].detach(), output, partial(over_last_axes, layer), movable=True)])
    if isinstance(layer, nn.GroupNorm) or (not layer.training and layer.running_mean is not None):
        return Found([Site(inputs[0].detach(), output, partial(over_channels, layer))])  # type: ignore[arg-type]
    return Found([])
