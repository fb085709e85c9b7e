"""What a presentation of samples leaves behind: weights, and the states that they were changed by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retain.models.assembly import Activity, Assembly
from retain.plasticity.rules import TableRule
from retain.plasticity.rules.table import Table, count_class

IDLE = -1
"""The column of a unit whose weights stay as they are."""


@dataclass
class Trace:
    """Samples presented one after the other to R networks.

    Args:
        weights: The plastic matrices afterwards, ``[R, post, pre]``, the output's last.
        mean: The mean of each matrix over the samples, after each; of rules that average.
        predicted: ``[R, T]``, what was answered before each update.
        cells: For every matrix the states at each update: presynaptic ``[R, T, pre]``, column and class of the count ``[R, T, post]``; the column is ``-1``
            where nothing was changed. Only if asked for.
    """

    weights: list[Tensor]
    mean: list[Tensor] | None
    predicted: Tensor
    cells: list[tuple[Tensor, Tensor, Tensor]] | None = None

    @property
    def answering(self) -> list[Tensor]:
        """The weights that answer."""
        return self.weights if self.mean is None else self.mean


def columns_of(rule: TableRule, labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """The output units' columns, ``[R, classes]`` of labels and predictions ``[R]``."""
    units = torch.arange(classes, device=labels.device)
    is_label, is_predicted = units == labels[:, None], units == predicted[:, None]
    column = torch.where(is_label, 0, 1)
    if rule.gated:
        column = 2 * column + torch.where(is_predicted, 0, 1)
    return column if rule.edges == "all" else column.where(is_label | is_predicted, IDLE)


def cells_of(
    rule: TableRule, tables: list[Table], net: Assembly, masks: list[Tensor], activity: Activity, labels: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each plastic matrix its presynaptic states ``[R, pre]``, columns ``[R, post]`` and classes of counts ``[R, post]``, of one sample for each run."""
    predicted = activity.logits.argmax(-1)[:, 0]
    posts = [*(post[:, 0] for post in activity.post), columns_of(rule, labels, predicted, net.classes)]
    if rule.when == "mistakes":
        posts = [post.masked_fill((predicted == labels)[:, None], IDLE) for post in posts]
    found = []
    for pre, post, mask, table in zip((pre[:, 0] for pre in activity.pre), posts, masks, tables, strict=True):
        fired = (pre % 2).double()  # the last bit of a history
        count = (fired[:, None] @ mask.double().mT)[:, 0].long() if table.counting != "none" else torch.zeros_like(post)
        found.append((pre, post, count_class(table.counting, count, mask.sum(-1))))
    return found


def present(
    net: Assembly,
    rule: TableRule,
    weights: list[Tensor],
    masks: list[Tensor],
    current: Tensor,
    labels: Tensor,
    *,
    tables: list[Tensor] | None = None,
    record: bool = False,
    counted: int = 0,
    mean: list[Tensor] | None = None,
) -> Trace:
    """Present samples one after the other: the definition in plain torch, on any device, of R networks side by side.

    Args:
        net: The architecture.
        rule: The rule.
        weights: The plastic matrices before, ``[R, post, pre]``, entries without an edge 0; not changed.
        masks: The edges, ``[R, post, pre]`` each.
        current: ``[R, T, width]``.
        labels: ``[R, T]``.
        tables: ``[S, P, C]`` for each matrix, or ``[R, S, P, C]`` where every network has a rule of its own; with gradients if these
            are wanted through the updates. By default the rule's.
        record: Keep the states.
        counted: Samples already in ``mean``.
        mean: The mean of each matrix over these.

    Returns:
        What is left behind.
    """
    kinds = rule.table_of(net)
    tables = [table.detach().to(current.dtype) for table in rule.tables(net)] if tables is None else tables
    weights, predicted, cells = list(weights), [], []
    mean = (list(mean) if mean is not None else [torch.zeros_like(weight) for weight in weights]) if rule.average else None
    for t in range(current.shape[1]):
        activity = net.propagate(current[:, t : t + 1], weights)
        predicted.append(activity.logits.argmax(-1)[:, 0])
        states = cells_of(rule, kinds, net, masks, activity, labels[:, t])
        if record:
            cells.append(states)
        for i, (pre, post, count) in enumerate(states):
            cell = pre[:, None, :], post.clamp(min=0)[:, :, None], count[:, :, None]
            beta = tables[i][cell] if tables[i].ndim == 3 else tables[i][torch.arange(len(pre), device=pre.device)[:, None, None], *cell]
            change = rule.rate * beta * (masks[i] & (post != IDLE)[:, :, None])
            weights[i] = weights[i] + change if rule.form == "additive" else weights[i] * (1 + change)
            if mean is not None:
                mean[i] = mean[i] + (weights[i] - mean[i]) / (counted + t + 1)
    kept = [tuple(torch.stack(part, 1) for part in zip(*(step[i] for step in cells), strict=True)) for i in range(len(weights))] if record else None
    return Trace(weights, mean, torch.stack(predicted, 1), kept)  # type: ignore[arg-type]
