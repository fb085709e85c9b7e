"""Removing the weights that noise drowns."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from retain.errors import check_share
from retain.models.bayesian.base import LOGVAR, bayesian_layers
from retain.models.parameters import copy

Module = TypeVar("Module", bound=nn.Module)
_GONE = -60.0  # log-variance of a weight that is 0


def signal_to_noise(model: nn.Module) -> dict[str, Tensor]:
    r"""How far every weight's mean is from 0, in its own standard deviations: :math:`|\mu| / \sigma`.

    Args:
        model: A model with Bayesian layers.

    Returns:
        A tensor of each weight's shape by parameter name; biases are left out.

    Raises:
        InputError: If the model has no Bayesian layer.
    """
    found = {}
    for name, layer in bayesian_layers(model).items():
        mean, logvar = layer.posterior["weight"]
        found[f"{name}.weight".lstrip(".")] = (mean.abs() * (-0.5 * logvar).exp()).detach()
    return found


def prune(model: Module, share: float) -> Module:
    r"""A copy in which the given share of all weights, those with the smallest :math:`|\mu|/\sigma`, is 0 without variance.

    Section 5.1 of Blundell et al. 2015 (https://arxiv.org/abs/1505.05424); Graves 2011. The threshold is one for all layers; biases stay.

    Args:
        model: A model with Bayesian layers.
        share: Of the weights, in [0, 1].

    Returns:
        The pruned model, Bayesian as before.

    Raises:
        InputError: If the share is out of range, or there is no Bayesian layer.

    Example:
        >>> from retain.models import MLP, bayesian, prune
        >>> model = prune(bayesian(MLP(4, 8, 3, seed=0)), 0.75)
        >>> sum(int((layer.weight == 0).sum()) for layer in (model.layers.fc1, model.layers.fc2)), 0.75 * (32 + 24)
        (42, 42.0)
    """
    check_share("share", share)
    made = copy(model)
    ratios = signal_to_noise(made)
    every = torch.cat([values.flatten() for values in ratios.values()])
    count = round(share * len(every))
    drop = torch.zeros_like(every, dtype=torch.bool)
    drop[every.argsort()[:count]] = True
    with torch.no_grad():
        for (name, values), part in zip(ratios.items(), drop.split([v.numel() for v in ratios.values()]), strict=True):
            gone = part.reshape(values.shape)
            made.get_parameter(name).masked_fill_(gone, 0.0)
            made.get_parameter(name + LOGVAR).masked_fill_(gone, _GONE)
    return made
