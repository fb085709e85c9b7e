"""Means of powers of per-sample gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from retain.curvature.persample import powers
from retain.curvature.pieces import total_power
from retain.curvature.sweep import Sweep

_SETTLE = 16  # batches added in the parameters' own type before they go into the float64 sum


def diagonal(sweep: Sweep, exponent: int = 2) -> dict[str, Tensor]:
    """Mean over observations of per-sample gradients to a power.

    Args:
        sweep: What to differentiate, and on which data.
        exponent: 1 (absolute values) or 2.

    Returns:
        A tensor of each parameter's shape and type; sums are taken in float64.
    """
    totals = {name: torch.zeros(p.shape, dtype=torch.float64, device=p.device) for name, p in sweep.parameters.items()}
    recent: dict[str, Tensor] = {}

    def settle() -> None:
        for name, value in recent.items():
            totals[name] += value
        recent.clear()

    for number, found in enumerate(sweep, start=1):
        for name, parts in found.pieces.items():
            value = total_power([(part.place, part.piece) for _, part in parts], sweep.parameters[name].shape, exponent)
            recent[name] = recent[name].add_(value) if name in recent else value
        if found.slow:
            for name, value in powers(sweep.model, found.slow, found.batch, found.vectors, exponent).items():
                recent[name] = recent[name].add_(value) if name in recent else value
        if number % _SETTLE == 0:
            settle()
    settle()
    result = {name: (total / (sweep.seen * sweep.draws)).to(sweep.parameters[name].dtype) for name, total in totals.items()}
    sweep.check_finite(result)
    return result
