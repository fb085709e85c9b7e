"""The whole Fisher of a small model."""

from __future__ import annotations

import torch

from retain.beliefs import Full
from retain.curvature.persample import rows
from retain.curvature.sweep import Sweep
from retain.errors import InputError

_MOST = 20_000


def full(sweep: Sweep) -> Full:
    r"""The matrix :math:`F = \frac1n \sum_i \mathbb{E}_y[g_i g_i^\top]` itself, ``[p, p]``.

    Args:
        sweep: What to differentiate, and on which data.

    Returns:
        A precision.

    Raises:
        InputError: If the model has more than 20,000 trainable weights.
    """
    shapes = {name: p.shape for name, p in sweep.parameters.items()}
    size = sum(shape.numel() for shape in shapes.values())
    if size > _MOST:
        raise InputError("structure", f"'kronecker' or 'diagonal' for more than {_MOST:,} weights", f"'full' with {size:,}")
    anyone = next(iter(sweep.parameters.values()))
    total = torch.zeros(size, size, dtype=torch.float64, device=anyone.device)
    for found in sweep:
        K, B = found.vectors.shape[:2]
        columns = {}
        for name, parts in found.pieces.items():
            columns[name] = anyone.new_zeros(K, B, *shapes[name])
            for _, part in parts:
                (columns[name] if part.place is None else columns[name][:, :, part.place]).add_(part.piece.rows(slice(0, B)))
        if found.slow:
            columns.update(rows(sweep.model, found.slow, found.batch, found.vectors))
        g = torch.cat([columns[name].reshape(K * B, -1) for name in shapes], 1)
        total += g.T @ g
    matrix = (total / (sweep.seen * sweep.draws)).to(anyone.dtype)
    sweep.check_finite({"all": matrix})
    made = Full((matrix + matrix.T) / 2, shapes)
    made.n, made.labels, made.slow = sweep.seen, str(sweep.labels), sweep.slow
    return made
