"""Means of powers of per-sample gradients."""

from __future__ import annotations

from torch import Tensor

from retain.curvature.persample import powers
from retain.curvature.pieces import total_power
from retain.curvature.structures.sums import RunningSum
from retain.curvature.sweep import Sweep


def diagonal(sweep: Sweep, exponent: int = 2) -> dict[str, Tensor]:
    """Mean over observations of per-sample gradients to a power.

    Args:
        sweep: What to differentiate, and on which data.
        exponent: 1 (absolute values) or 2.

    Returns:
        A tensor of each parameter's shape and type.
    """
    sums = {name: RunningSum() for name in sweep.parameters}
    for found in sweep:
        for name, parts in found.pieces.items():
            sums[name].add(total_power([(part.place, part.piece) for _, part in parts], sweep.parameters[name].shape, exponent))
        if found.slow:
            for name, values in powers(sweep.model, found.slow, found.batch, found.vectors, exponent).items():
                sums[name].add(values)
    result = {name: (sums[name].total() / (sweep.seen * sweep.draws)).to(p.dtype) for name, p in sweep.parameters.items()}
    sweep.check_finite(result)
    return result
