"""A small network in the table's place."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from retain.plasticity.rules.table import PERCENTS, Counting, Table

HIDDEN = 20


class NetworkRule(Table):
    r"""What a small network answers to the states and the share of presynaptic units that fired: :math:`\beta = v^\top \tanh(A [s_i, s_j, 2 n_j/d_j - 1] + b)`.

    Twenty hidden units; states enter as indicators. Because its inputs are discrete, the network is asked once for every cell and used as a table, at a
    table's speed and with a table's gradient. It generalises over shares that were never seen and can be carried to other sizes (the published study's
    networks that see all presynaptic firings are tied to one width).

    Args:
        states: See :class:`~retain.plasticity.Table`.
        columns: See :class:`~retain.plasticity.Table`.
        cap: Not needed.
        seed: See :class:`~retain.plasticity.Table`.

    Example:
        >>> from retain.plasticity import NetworkRule
        >>> NetworkRule(seed=0).table().shape
        torch.Size([2, 2, 21])
    """

    name = "network"
    counting: ClassVar[Counting] = "percent"

    def build(self, draws: torch.Generator | None) -> None:
        """``inside`` ``[20, S + P + 1]``, ``shift`` ``[20]`` and ``outside`` ``[20]``; only the last are zero without a generator."""
        fixed = draws or torch.Generator().manual_seed(0)
        self.inside = self.drawn(fixed, HIDDEN, self.states + self.columns + 1)
        self.shift = self.drawn(fixed, HIDDEN)
        self.outside = self.drawn(draws, HIDDEN)

    def table(self) -> Tensor:
        """The answer for every cell."""
        cells = torch.cartesian_prod(torch.arange(self.states), torch.arange(self.columns), torch.arange(PERCENTS)).to(self.shift.device)
        share = 2 * cells[:, 2:].double() / (PERCENTS - 1) - 1
        asked = torch.cat([one_hot(cells[:, 0], self.states).double(), one_hot(cells[:, 1], self.columns).double(), share], 1)
        answers: Tensor = torch.tanh(asked @ self.inside.T + self.shift) @ self.outside / math.sqrt(HIDDEN)
        return answers.view(self.states, self.columns, PERCENTS)
