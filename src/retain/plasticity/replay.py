"""The gradient of a table without unrolling what it did."""

from __future__ import annotations

import torch
from torch import Tensor

from retain.plasticity.rules import TableRule
from retain.plasticity.trace import IDLE


def table_gradient(
    rule: TableRule, tables: list[Tensor], weights: list[Tensor], masks: list[Tensor], cells: list[tuple[Tensor, Tensor, Tensor]], gradients: list[Tensor]
) -> list[Tensor]:
    r"""The gradient with respect to each matrix's table, from that with respect to the final weights.

    Firing is discrete, so at fixed firing the final weights of an additive rule are linear in the table, :math:`w_{ji} = w^0_{ji} + s \sum_c \beta_c N_c(j, i)`
    with N how often the edge was in cell c, and

    .. math:: \frac{\partial L}{\partial \beta_c} = s \sum_t \sum_{(i, j) \in c(t)} \frac{\partial L}{\partial w_{ji}}.

    For multiplicative rules, :math:`w_{ji} = w^0_{ji} \prod_c (1 + s \beta_c)^{N_c}`, the summand is
    :math:`\frac{\partial L}{\partial w_{ji}} w_{ji} / (1 + s \beta_c)`. One backward pass through the last forward pass and one product of matrices
    give the same gradient as an autograd graph through all updates.

    Args:
        rule: The rule.
        tables: ``[S, P, C]`` for each matrix.
        weights: The final weights, ``[R, post, pre]`` for each matrix.
        masks: The edges.
        cells: The states at each update, as a :class:`~retain.plasticity.trace.Trace` records them.
        gradients: :math:`\partial L / \partial w`, one for each matrix, ``[R, post, pre]``.

    Returns:
        ``[R, S, P, C]`` for each matrix.
    """
    found = []
    for table, weight, mask, (pre, post, count), gradient in zip(tables, weights, masks, cells, gradients, strict=True):
        runs, steps = pre.shape[:2]
        states, columns, classes = table.shape
        share = gradient * mask
        if rule.form == "multiplicative":
            share = share * weight
        # an average holds the first changes longer than the last
        worth = torch.arange(steps, 0, -1, device=share.device, dtype=share.dtype) / steps if rule.average else None
        cell = (post.clamp(min=0) * classes + count).long()
        total = share.new_zeros(runs, states, columns * classes)
        for state in range(states):
            here = (pre == state).to(share.dtype)
            summed = (here @ share.mT).masked_fill(post == IDLE, 0)  # [R, T, post]: over the presynaptic units in this state
            if worth is not None:
                summed = summed * worth[:, None]
            total[:, state].scatter_add_(1, cell.flatten(1), summed.flatten(1))
        answer = rule.rate * total.view(runs, states, columns, classes)
        found.append(answer / (1 + rule.rate * table.detach()) if rule.form == "multiplicative" else answer)
    return found
