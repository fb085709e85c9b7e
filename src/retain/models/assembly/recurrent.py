"""The recurrent assembly: one graph that fires in rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from retain.errors import InputError, check_count
from retain.models.assembly.base import Activity, Assembly, drive, kcap


class RecurrentAssembly(Assembly):
    r"""One graph without self-loops, R rounds: :math:`h_0 = \mathrm{cap}(u)`, :math:`h_t = \mathrm{cap}(W (h_{t-1} + u))`, logits :math:`W_{out} h_R`.

    :math:`u = W_{in} x` is the inputs' current; that it enters inside the recurrent product is the published code's own way ("LocalNet"). The state of a unit
    is its firing history, :math:`\sum_t 2^{R-t} [t \text{ fired}]`: the first step is the highest of R + 1 bits.

    Args:
        inputs: Values an input has.
        classes: Outputs.
        rounds: R, from 0 (the inputs' units alone) to 7.
        **settings: ``width``, ``p``, ``cap``, ``ties``, ``start``, ``seed`` and ``dtype`` of :class:`~retain.models.Assembly`.

    Raises:
        InputError: If a size is out of range.

    Example:
        >>> import torch
        >>> from retain.models import RecurrentAssembly
        >>> net = RecurrentAssembly(16, 2, rounds=2)
        >>> net.states, net(torch.rand(3, 16)).shape
        (8, torch.Size([3, 2]))
    """

    def __init__(self, inputs: int, classes: int, rounds: int = 2, **settings: Any) -> None:
        self.rounds = check_count("rounds", rounds, least=0)
        if rounds > 7:
            raise InputError("rounds", "at most 7: a rule has a number for every pair of firing histories, 4^(rounds + 1)", rounds)
        super().__init__(inputs, classes, min(1, rounds), **settings)
        for mask in self.masks:
            mask.fill_diagonal_(False)

    @property
    def states(self) -> int:
        """Firing histories, 2^(R + 1)."""
        return 1 << (self.rounds + 1)

    @property
    def kind(self) -> str:
        """``recurrent``."""
        return "recurrent"

    def propagate(self, current: Tensor, plastic: Sequence[Tensor]) -> Activity:
        """The pass from the inputs' currents to the logits."""
        rates, fired = kcap(current, self.cap, self.ties)
        history = fired.long()
        for _ in range(self.rounds):
            rates, fired = kcap(drive(rates + current, plastic[0]), self.cap, self.ties)
            history = 2 * history + fired
        hidden = [history] * len(self.hidden)
        return Activity(drive(rates, plastic[-1]), [*hidden, history], hidden)
