"""Optimisers by name, fused where torch has it, and the learning rate's course."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from retain.errors import InputError, RetainError, check_positive, nearest

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
Schedule = Literal["constant", "cosine"]
_KNOWN: dict[str, Callable[..., Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "momentum": lambda parameters, **options: torch.optim.SGD(parameters, momentum=0.9, **options),
}


def make_optimizer(optimizer: str | OptimizerFactory, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float) -> Optimizer:
    """An optimiser over ``parameters``.

    Args:
        optimizer: ``adam``, ``adamw``, ``sgd``, ``momentum`` (SGD with momentum 0.9), or a function from parameters to one.
        parameters: What it trains: parameters, or torch's groups of them; a function gets them all without groups.
        lr: Learning rate, above 0; a function has its own.

    Returns:
        The optimiser, fused (half the step time on two CPU cores) where torch can.

    Raises:
        InputError: If the name is unknown or the rate out of range.
        RetainError: If there is nothing to train.
    """
    given: list[Any] = list(parameters)
    grouped = bool(given) and isinstance(given[0], dict)
    trained: list[nn.Parameter] = [p for group in (given if grouped else [{"params": given}]) for p in group["params"] if p.requires_grad]
    if not trained:
        raise RetainError("model: expected trainable parameters, found none. Unfreeze a layer first.")
    if callable(optimizer):
        return optimizer(trained)
    if optimizer not in _KNOWN:
        raise InputError("optimizer", "a known name or a function", repr(optimizer), nearest(str(optimizer), _KNOWN))
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in trained)
    return _KNOWN[optimizer](given if grouped else trained, lr=check_positive("lr", lr), fused=fused)


def clear_gradients(optimizer: Optimizer) -> None:
    """Forget the gradients of what an optimiser trains: its own ``zero_grad``, without what torch's takes for profilers."""
    if type(optimizer).zero_grad is not Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = None


def factor(schedule: Schedule, progress: float) -> float:
    """The share of the initial learning rate at ``progress`` in [0, 1] of a task: 1, or a half cosine down to 0."""
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    raise InputError("schedule", "'constant' or 'cosine'", repr(schedule))
