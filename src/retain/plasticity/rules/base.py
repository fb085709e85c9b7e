"""What all plasticity rules share: they know which networks they fit, and go through a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from retain.models.assembly import Assembly


class Rule(nn.Module, ABC):
    """How to change weights from what is known where they are. What is learned of it are its parameters; everything else is its card.

    ``facts`` holds plain values about its origin (what it was learned on, how well it did), and goes into the card as it is.
    """

    family: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, Any] = {}

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, plain values."""

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """The rule that :meth:`settings` describes, its parameters at their start."""
        return cls(**settings)

    @abstractmethod
    def check(self, net: Assembly) -> None:
        """Raise an InputError that gives the reason and an alternative if the rule can't be used in this network."""

    @abstractmethod
    def description(self) -> str:
        """One line for tables and cards."""

    def numbers(self) -> dict[str, Tensor]:
        """The learned tensors by name."""
        return dict(self.state_dict())
