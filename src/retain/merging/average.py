"""The mean of several models' weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from retain.diagnosis.inputs import same
from retain.diagnosis.inputs import weights as parameters_of
from retain.diagnosis.walk import statistics
from retain.errors import InputError
from retain.models.parameters import copy, unwrap


def average(models: Sequence[nn.Module], weights: Sequence[float] | None = None) -> nn.Module:
    r"""The weighted mean of models of one architecture, :math:`\theta = \sum_i w_i \theta_i / \sum_i w_i`, as a new model.

    Fine-tuned from one start, models often lie in one basin, and their mean is better than each ("model soups", Wortsman et al. 2022,
    https://arxiv.org/abs/2203.05482). Models from different starts do not: see :func:`~retain.merging.align`. Sums are in float64. Batch-norm statistics
    are averaged like weights, which is not what the mean network would measure: let it see training data once in training mode before it is used.

    Args:
        models: One or more; same names and shapes.
        weights: One number a model, at least 0; equal by default. Only their ratios count.

    Returns:
        A copy of the first model with averaged parameters and floating point buffers. Other buffers are those of the first model.

    Raises:
        InputError: If the models differ in architecture (the first differing name is given), a weight of a model is not finite, or the numbers do not fit.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from retain.merging import average
        >>> first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = first.weight.data.fill_(0.0), second.weight.data.fill_(4.0)
        >>> average([first, second]).weight.item(), average([first, second], weights=[3, 1]).weight.item()
        (2.0, 1.0)
    """
    shares, states = shares_of(models, weights), states_of(models)
    return filled(models[0], {name: weighted([state[name] for state in states], shares) for name in states[0]})


def shares_of(models: Sequence[nn.Module], weights: Sequence[float] | None) -> list[float]:
    """The models' weights, divided by their sum.

    Args:
        models: The models.
        weights: As given.

    Returns:
        Numbers that sum to 1.

    Raises:
        InputError: If there is no model, or the numbers do not fit.
    """
    if isinstance(models, nn.Module) or not len(models):
        raise InputError("models", "a list of at least one model", "a single model" if isinstance(models, nn.Module) else "none")
    if weights is None:
        return [1 / len(models)] * len(models)
    given = list(weights)
    if len(given) != len(models):
        raise InputError("weights", f"one number for each of the {len(models)} models", f"{len(given)} numbers")
    for number in given:
        if not isinstance(number, Real) or not math.isfinite(number) or number < 0:
            raise InputError("weights", "finite numbers of at least 0", repr(number))
    total = math.fsum(given)
    if not total > 0:
        raise InputError("weights", "at least one number above 0", given)
    return [float(number) / total for number in given]


def states_of(models: Sequence[nn.Module]) -> list[dict[str, Tensor]]:
    """Parameters and floating point buffers of every model, checked to have the same names and shapes.

    Args:
        models: The models.

    Returns:
        Detached tensors by canonical name, the models' own.

    Raises:
        InputError: If a model differs from the first; the first differing name is given.
    """
    states = [parameters_of(model, f"models[{i}]") | statistics(model) for i, model in enumerate(models)]
    for i, state in enumerate(states[1:], start=1):
        same(states[0], state, f"models[{i}]")
    return states


def weighted(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The weighted mean in float64, on the first one's device."""
    total = torch.zeros_like(values[0], dtype=torch.float64)
    for value, share in zip(values, shares, strict=True):
        if share:  # a model that does not count cannot bring NaN from its buffers
            total.add_(value.to(total), alpha=share)
    return total


def filled(model: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model, out of its wrappers, with other parameters and buffers."""
    made = copy(unwrap(model))
    own = dict(made.named_parameters()) | dict(made.named_buffers())
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    return made
