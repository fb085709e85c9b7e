"""Training all weights: from what was learned before, or from nothing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from retain.recipes.base import Phase, Place, Recipe
from retain.recipes.starts import reinitialised


class FineTune(Recipe):
    """Train all weights from where they are, with a new head: the baseline of every comparison.

    Example:
        >>> from retain.recipes import FineTune
        >>> FineTune()
        FineTune()
    """

    name = "fine-tune"
    summary = "all weights, from where they are"

    def phases(self, place: Place) -> Sequence[Phase]:
        """One."""
        return [Phase("fine-tune")]


class Scratch(FineTune):
    """Train all weights from a random start, drawn by the seed as the layers themselves draw it: what pretraining is compared with.

    Example:
        >>> from retain.recipes import Scratch
        >>> Scratch()
        Scratch()
    """

    name = "scratch"
    summary = "all weights, from a random start"

    def start(self, place: Place) -> nn.Module:
        """Draw all weights anew."""
        return reinitialised(place.model, place.seed)
