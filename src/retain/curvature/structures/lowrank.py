"""The Fisher's largest directions, and the diagonal of the rest."""

from __future__ import annotations

import torch

from retain.beliefs import LowRankPlusDiagonal
from retain.curvature.matrixfree.products import fisher_operator
from retain.curvature.matrixfree.spectrum import lanczos
from retain.curvature.structures.diagonal import diagonal
from retain.curvature.sweep import Sweep
from retain.errors import InputError, check_count


def low_rank(sweep: Sweep, rank: int) -> LowRankPlusDiagonal:
    r"""Rank r plus diagonal, :math:`F \approx A A^\top + \operatorname{diag}(\operatorname{diag} F - \operatorname{diag} A A^\top)`.

    Lanczos' iteration on products with the Fisher finds :math:`A = V \Theta^{1/2}` from the r largest Ritz pairs after 2r + 10 steps, each a
    pass over the data; memory is that many vectors (Durno 2024, Sufficiency and Efficiency in Deep RL, calls it limited-memory
    Lanczos). The diagonal is exact: one more pass measures it, and what A explains is taken off.

    Args:
        sweep: What to differentiate, and on which data.
        rank: r, at least 1.

    Returns:
        A precision.

    Raises:
        InputError: If the samples are drawn with replacement, or the rank is larger than the number of weights.
    """
    check_count("rank", rank)
    size = sum(p.numel() for p in sweep.parameters.values())
    if rank > size:
        raise InputError("rank", f"at most the {size} weights of the model", rank)
    if sweep.replacement:
        raise InputError("replacement", "false with structure='low-rank', which reads the samples several times", True)
    values = diagonal(sweep)
    with fisher_operator(
        sweep.model, sweep.task, sweep.labels, samples=sweep.samples, draws=sweep.draws, batch_size=sweep.batch_size, seed=sweep.seed
    ) as operator:
        found = lanczos(operator, min(2 * rank + 10, size), sweep.seed)
        ritz, turn = torch.linalg.eigh(found.tridiagonal)
        ritz, turn = ritz.flip(0)[:rank].clamp_min(0), turn.flip(1)[:, :rank]
        rows = (turn * ritz.sqrt()).to(found.basis).T @ found.basis.T
        del found  # the vectors of the iteration take more room than all the rest
        if len(rows) < rank:  # the Fisher has fewer directions
            rows = torch.cat([rows, rows.new_zeros(rank - len(rows), rows.shape[1])])
        columns = [operator.unflatten(row) for row in rows]
    factors = {name: torch.stack([column[name] for column in columns], -1).to(value.dtype) for name, value in values.items()}
    rest = {name: (value - factors[name].square().sum(-1)).clamp_min(0) for name, value in values.items()}
    made = LowRankPlusDiagonal(factors, rest)
    made.n, made.labels, made.slow = sweep.seen, str(sweep.labels), sweep.slow
    return made
