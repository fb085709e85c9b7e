"""Removing the weights that noise drowns."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from retain.errors import InputError, check_share
from retain.models.bayesian.base import LOGVAR, bayesian_layers
from retain.models.bayesian.flows import PlanarFlows
from retain.models.parameters import copy

Module = TypeVar("Module", bound=nn.Module)
_GONE = -60.0  # log-variance of a weight that is 0


def signal_to_noise(model: nn.Module) -> dict[str, Tensor]:
    r"""How far every weight's mean is from 0, in its own standard deviations: :math:`|\mu| / \sigma`.

    Of a :class:`~retain.models.MultiplicativeLinear` both are those given factors of 1: what the factors do to mean and variance does not count.

    Args:
        model: A model with Bayesian layers.

    Returns:
        A tensor of each weight's shape by parameter name; biases are left out.

    Raises:
        InputError: If the model has no Bayesian layer, or planar flows, which move the weights away from that Gaussian.
    """
    found = {}
    for name, layer in bayesian_layers(model).items():
        if "weight" in layer.flows and isinstance(layer.flow("weight"), PlanarFlows):
            hint = "The Gaussian before the flow is not the weights', and one that is 0 there is not 0 behind it. Train with num_flows=0."
            raise InputError("model", "weights without planar flows", f"some in layer '{name}'", hint)
        mean, logvar = layer.posterior["weight"]
        found[f"{name}.weight".lstrip(".")] = (mean.abs() * (-0.5 * logvar).exp()).detach()
    return found


def prune(model: Module, share: float) -> Module:
    r"""A copy in which the given share of all weights, those with the smallest :math:`|\mu|/\sigma`, is 0 without variance.

    Section 5.1 of Blundell et al. 2015 (https://arxiv.org/abs/1505.05424); Graves 2011. The threshold is one for all layers; biases stay.
    Factors of a :class:`~retain.models.MultiplicativeLinear` stay as they are, and multiply 0 where a weight is gone.

    Args:
        model: A model with Bayesian layers.
        share: Of the weights, in [0, 1].

    Returns:
        The pruned model, Bayesian as before.

    Raises:
        InputError: If the share is out of range, there is no Bayesian layer, or planar flows.

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
