"""Tables of numbers: one for each pair of states that two connected units can be in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from retain.errors import InputError, check_count
from retain.seeds import generator

Counting = Literal["none", "count", "percent"]
PERCENTS = 21
"""Classes of the share of presynaptic units that fired, in steps of 5 %: 0 to 4 %, ..., 95 to 99 %, 100 %."""


class Table(nn.Module, ABC):
    r"""A function :math:`\beta` of discrete states, as a table ``[S, P, C]``: pre state, post state, class of the count.

    Args:
        states: S, states of a presynaptic unit: 2, or 2^(rounds + 1) firing histories.
        columns: P, states of a postsynaptic unit. For outputs: 2, ``label`` and ``other``; or 4, where the label ``hit`` (label and predicted), ``missed``,
            or the unit is a ``false alarm`` (predicted, not the label) or ``quiet``.
        cap: The cap of the networks, where the table counts.
        seed: Of the first values, standard normal; with ``None`` they are zero.

    Raises:
        InputError: If a size is out of range.
    """

    name: ClassVar[str]
    counting: ClassVar[Counting] = "none"

    def __init__(self, states: int = 2, columns: int = 2, cap: int | None = None, seed: int | None = None) -> None:
        super().__init__()
        self.states, self.columns, self.cap = check_count("states", states, least=2), check_count("columns", columns, least=2), cap
        if self.counting == "count":
            if cap is None:
                raise InputError("cap", f"the cap of the networks, since {type(self).__name__} has a number for each count", "none", "Or take PrePostPercent.")
            check_count("cap", cap)
        self.build(None if seed is None else generator(seed, "rule"))

    @property
    def classes(self) -> int:
        """C: how many classes of counts are told apart."""
        return {"none": 1, "count": (self.cap or 0) + 1, "percent": PERCENTS}[self.counting]

    @abstractmethod
    def build(self, draws: torch.Generator | None) -> None:
        """Make the parameters: standard normal, or zero where there is no generator."""

    @abstractmethod
    def table(self) -> Tensor:
        """The whole table ``[S, P, C]`` in double precision, with gradients to the parameters."""

    def drawn(self, draws: torch.Generator | None, *shape: int) -> nn.Parameter:
        """First values of a shape."""
        zeros = torch.zeros(*shape, dtype=torch.float64)
        return nn.Parameter(zeros if draws is None else torch.randn(*shape, generator=draws, dtype=torch.float64))

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, without the seed."""
        return {"states": self.states, "columns": self.columns, "cap": self.cap}


def count_class(counting: Counting, count: Tensor, indegree: Tensor) -> Tensor:
    """The class of a count of presynaptic units that fired, of ``indegree`` that are connected.

    Args:
        counting: ``none`` (always 0), ``count`` (the count), or ``percent`` (its share in steps of 5 %; 0 for a unit without inputs).
        count: Whole numbers.
        indegree: Whole numbers, broadcast.

    Returns:
        Whole numbers of the count's shape.
    """
    if counting == "none":
        return torch.zeros_like(count)
    return count if counting == "count" else (20 * count).div(indegree.clamp(min=1), rounding_mode="floor")
