"""The mean of several models' weights, each weight by what its model's data say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retain.curvature import fisher
from retain.curvature.outputs import LabelRule
from retain.diagnosis.inputs import as_checked
from retain.errors import InputError, check_positive
from retain.merging.average import filled, shares_of, states_of, weighted
from retain.models.parameters import unwrap


def fisher_average(
    models: Sequence[nn.Module],
    tasks: Sequence[Any],
    weights: Sequence[float] | None = None,
    *,
    labels: LabelRule = "exact",
    samples: int | None = None,
    floor: float = 1e-6,
    seed: int = 0,
) -> nn.Module:
    r"""The mean of models, weighted by each one's Fisher information, :math:`\theta_j = \sum_i w_i F_{ij} \theta_{ij} / \sum_i w_i F_{ij}`.

    Matena and Raffel 2022, eq. (3) (https://arxiv.org/abs/2111.09832): the mode of a product of Gaussians, each with a model's weights as its mean and the
    diagonal Fisher of that model on its own task as its precision. With :math:`w_i` the number of a task's observations that is the product of
    approximate posteriors; where outputs are linear in the weights, noise is Gaussian and inputs are orthogonal it is the joint solution.

    A weight about which no task says anything would be 0 / 0. Therefore :math:`\varepsilon = \texttt{floor} \cdot \bar F` is added to every
    :math:`F_{ij}`, with :math:`\bar F` the mean of all models' Fishers: being one number for all, it pulls such weights to the plain mean and favours no
    model. At ``floor=0`` the formula holds as it stands, and only weights without any information are averaged plainly. So are buffers, and parameters that
    need no gradient.

    Args:
        models: One or more; same names and shapes.
        tasks: For each model the task that it learned, or whatever makes one, or a Fisher that is there already: a mapping from parameter name to tensor, as
            ``retain.fisher`` gives it.
        weights: One number a model, at least 0; equal by default.
        labels: The label rule of the Fisher.
        samples: Of each task, for its Fisher; all by default.
        floor: In units of the mean Fisher, at least 0.
        seed: Of the samples.

    Returns:
        A copy of the first model with merged weights.

    Raises:
        InputError: If the models differ in architecture (the first differing name is given), or Fishers or numbers do not fit.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from retain.merging import fisher_average
        >>> first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = first.weight.data.fill_(0.0), second.weight.data.fill_(4.0)
        >>> sure, unsure = {"weight": torch.tensor([[3.0]])}, {"weight": torch.tensor([[1.0]])}
        >>> fisher_average([first, second], [sure, unsure], floor=0).weight.item()
        1.0
    """
    shares, states = shares_of(models, weights), states_of(models)
    if len(tasks) != len(models):
        raise InputError("tasks", f"one task or Fisher for each of the {len(models)} models", f"{len(tasks)} of them")
    check_positive("floor", floor, zero=True)
    fishers = [
        _checked(i, given, states[0]) if isinstance(given, Mapping) else fisher(unwrap(model), as_checked(given), labels, samples=samples, seed=seed)
        for i, (model, given) in enumerate(zip(models, tasks, strict=True))
    ]
    least = floor * _mean(fishers)
    merged = {}
    for name in states[0]:
        values = [state[name].to(states[0][name].device, torch.float64) for state in states]
        plain = weighted(values, shares)
        precisions = [
            share * (found[name].to(plain) + least if name in found else torch.full_like(plain, least)) for share, found in zip(shares, fishers, strict=True)
        ]
        total = torch.stack(precisions).sum(0)
        # as a step from the plain mean: exactly that where every model says the same, or nothing
        step = torch.stack([p * (value - plain) for p, value in zip(precisions, values, strict=True)]).sum(0)
        merged[name] = torch.where(total > 0, plain + step / torch.where(total > 0, total, 1.0), plain)
    return filled(models[0], merged)


def _checked(i: int, given: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A Fisher that somebody brings: of this model, finite and nowhere negative."""
    if not any(name in state for name in given):
        raise InputError(f"tasks[{i}]", "a Fisher of the model's parameters", f"names {', '.join(map(str, list(given)[:3])) or 'none'}")
    for name, value in given.items():
        if name not in state or value.shape != state[name].shape:
            raise InputError(
                f"tasks[{i}]", f"'{name}' of shape {list(state[name].shape)}" if name in state else "names of parameters", f"'{name}' {list(value.shape)}"
            )
        if not bool(torch.isfinite(value).all()) or bool((value < 0).any()):
            raise InputError(f"tasks[{i}]", "a Fisher of finite numbers of at least 0", f"others in '{name}'")
    return given


def _mean(fishers: Sequence[Mapping[str, Tensor]]) -> float:
    """Over all models and weights."""
    values = [value for found in fishers for value in found.values()]
    return sum(float(value.double().sum()) for value in values) / max(1, sum(value.numel() for value in values))
