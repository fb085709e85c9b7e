"""Fitting the head: alone, or before the rest is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retain.errors import check_positive
from retain.recipes.base import Phase, Place, Recipe


class LinearProbe(Recipe):
    """Fit the new head alone: everything before it answers as it did. The head's inputs are computed once, and the rest is a convex problem that is solved
    (:func:`~retain.recipes.solve_head`), without epochs or a learning rate.

    Args:
        penalty: Of the head's weights, in units of their inputs' variance; ``None`` chooses on held-out data.

    Raises:
        InputError: If the penalty is not positive.

    Example:
        >>> from retain.recipes import LinearProbe
        >>> LinearProbe()
        LinearProbe(penalty=None)
    """

    name = "linear-probe"
    summary = "the head alone, on features computed once"

    def __init__(self, penalty: float | None = None) -> None:
        self.penalty = None if penalty is None else check_positive("penalty", penalty)

    def phases(self, place: Place) -> Sequence[Phase]:
        """One, of the head."""
        return [Phase("probe", trains=place.in_head, solved=True, penalty=self.penalty)]

    def settings(self) -> dict[str, Any]:
        """The penalty."""
        return {"penalty": self.penalty}


class LPFT(LinearProbe):
    """Fit the head alone, then train everything: a random head would distort the features before it has learned anything.

    Kumar, Raghunathan, Jones, Ma and Liang 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution"
    (https://arxiv.org/abs/2202.10054), section 4.

    Args:
        penalty: Of the head that is fitted alone, see :class:`LinearProbe`.

    Raises:
        InputError: If the penalty is not positive.

    Example:
        >>> from retain.recipes import LPFT
        >>> LPFT(penalty=0.001)
        LPFT(penalty=0.001)
    """

    name = "lp-ft"
    summary = "the head alone, then all weights"
    citation = "kumar2022finetuning"

    def phases(self, place: Place) -> Sequence[Phase]:
        """Two: the head, then everything."""
        return [*super().phases(place), Phase("fine-tune")]
