"""Tables that also know how many of a unit's presynaptic units fired."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from retain.plasticity.rules.table import Counting, Table


class PrePostCount(Table):
    r"""A number for each pair of states and each count: :math:`\beta[s_i, s_j, n_j]`, 2 x 2 x (cap + 1) numbers.

    :math:`n_j` is how many of the units that are connected to unit j fired. At the fully connected output it is always the cap, so there the axis is idle. The
    table is tied to the cap: at another one, take :class:`PrePostPercent`.

    Args:
        states: See :class:`~retain.plasticity.Table`.
        columns: See :class:`~retain.plasticity.Table`.
        cap: The networks' cap.
        seed: See :class:`~retain.plasticity.Table`.

    Example:
        >>> from retain.plasticity import PrePostCount
        >>> PrePostCount(cap=50).table().shape
        torch.Size([2, 2, 51])
    """

    name = "prepostcount"
    counting: ClassVar[Counting] = "count"

    def build(self, draws: torch.Generator | None) -> None:
        """``values`` ``[S, P, C]``."""
        self.values = self.drawn(draws, self.states, self.columns, self.classes)

    def table(self) -> Tensor:
        """``values``."""
        return self.values


class PrePostPercent(PrePostCount):
    r"""A number for each pair of states and each share in steps of 5 %: :math:`\beta[s_i, s_j, \lfloor 20\, n_j / d_j \rfloor]`, 2 x 2 x 21 numbers.

    :math:`d_j` is how many units are connected to unit j. Shares mean the same at any cap and width, so the rule can be carried to other sizes.

    Args:
        states: See :class:`~retain.plasticity.Table`.
        columns: See :class:`~retain.plasticity.Table`.
        cap: Not needed.
        seed: See :class:`~retain.plasticity.Table`.

    Example:
        >>> from retain.plasticity import PrePostPercent
        >>> PrePostPercent().table().shape
        torch.Size([2, 2, 21])
    """

    name = "prepostpercent"
    counting: ClassVar[Counting] = "percent"


class PostCount(Table):
    r"""A number for each state of the postsynaptic unit and each count, whatever the presynaptic unit did: :math:`\beta[s_j, n_j]`.

    All weights into a unit change alike, so that the rule can't tell inputs apart; it shows what the others owe to the presynaptic state.

    Args:
        states: See :class:`~retain.plasticity.Table`.
        columns: See :class:`~retain.plasticity.Table`.
        cap: The networks' cap.
        seed: See :class:`~retain.plasticity.Table`.

    Example:
        >>> from retain.plasticity import PostCount
        >>> rule = PostCount(cap=50, seed=0)
        >>> rule.values.shape, bool((rule.table()[0] == rule.table()[1]).all())
        (torch.Size([2, 51]), True)
    """

    name = "postcount"
    counting: ClassVar[Counting] = "count"

    def build(self, draws: torch.Generator | None) -> None:
        """``values`` ``[P, C]``."""
        self.values = self.drawn(draws, self.columns, self.classes)

    def table(self) -> Tensor:
        """``values``, for every state of the presynaptic unit."""
        return self.values.expand(self.states, -1, -1)
