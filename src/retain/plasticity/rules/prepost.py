"""PrePost: has the presynaptic unit fired, has the postsynaptic unit fired."""

from __future__ import annotations

import torch
from torch import Tensor

from retain.plasticity.rules.table import Table


class PrePost(Table):
    r"""A number for each pair of states: :math:`\beta[s_i, s_j]`, 4 numbers where units are silent or fired.

    Between the firing histories of a recurrent network it has 2^(R+1) x 2^(R+1) numbers. It knows nothing of sizes, so it can be carried anywhere.

    Args:
        states: See :class:`~retain.plasticity.Table`.
        columns: See :class:`~retain.plasticity.Table`.
        cap: Not needed.
        seed: See :class:`~retain.plasticity.Table`.

    Example:
        >>> from retain.plasticity import PrePost
        >>> PrePost().table().shape
        torch.Size([2, 2, 1])
    """

    name = "prepost"

    def build(self, draws: torch.Generator | None) -> None:
        """``values`` ``[S, P]``."""
        self.values = self.drawn(draws, self.states, self.columns)

    def table(self) -> Tensor:
        """``values``, for every count."""
        return self.values.unsqueeze(-1)
