"""Training the head: alone, or before the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retain.errors import InputError, check_positive
from retain.recipes.base import Phase, Place, Recipe


class LinearProbe(Recipe):
    """Train the new head alone: everything before it answers as it did. The head's inputs are computed once.

    Args:
        lr: Factor of the learning rate: a head alone bears a larger one.

    Raises:
        InputError: If the factor is not positive.

    Example:
        >>> from retain.recipes import LinearProbe
        >>> LinearProbe()
        LinearProbe(lr=10.0)
    """

    name = "linear-probe"
    summary = "the head alone, on features computed once"

    def __init__(self, lr: float = 10.0) -> None:
        self.lr = check_positive("lr", lr)

    def phases(self, place: Place) -> Sequence[Phase]:
        """One, of the head."""
        return [Phase("probe", trains=place.in_head, lr=self.lr, body=False)]

    def settings(self) -> dict[str, Any]:
        """The factor."""
        return {"lr": self.lr}


class LPFT(LinearProbe):
    """Train the head alone, then everything: a random head would distort the features before it has learned anything.

    Kumar, Raghunathan, Jones, Ma and Liang 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution"
    (https://arxiv.org/abs/2202.10054), section 4.

    Args:
        share: Share of the epochs for the head alone, between 0 and 1.
        lr: Factor of the learning rate of that phase.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain.recipes import LPFT
        >>> LPFT(share=0.3)
        LPFT(share=0.3, lr=10.0)
    """

    name = "lp-ft"
    summary = "the head alone, then all weights"
    citation = "kumar2022finetuning"

    def __init__(self, share: float = 0.5, lr: float = 10.0) -> None:
        super().__init__(lr)
        if not 0 < share < 1:
            raise InputError("share", "a number between 0 and 1", share)
        self.share = share

    def phases(self, place: Place) -> Sequence[Phase]:
        """Two: the head, then everything."""
        (probe,) = super().phases(place)
        return [Phase(probe.name, self.share, probe.trains, self.lr, body=False), Phase("fine-tune", 1 - self.share)]

    def settings(self) -> dict[str, Any]:
        """Share and factor."""
        return {"share": self.share, **super().settings()}
