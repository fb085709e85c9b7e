"""Fine-tuning that is held at its start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retain.errors import check_positive
from retain.methods import EWC, L2SP
from retain.recipes.base import Phase, Place
from retain.recipes.probe import LPFT


class HeldL2SP(LPFT):
    r"""Fine-tuning with L2-SP: :math:`\overline{nll} + \frac{s}{2 \tau^2 m} \|\theta_S - \theta^0_S\|^2` on everything but the head.

    Li, Grandvalet and Davoine 2018 (https://arxiv.org/abs/1802.01483), equation 2; the head is trained alone first, so that it does not pull.

    Args:
        tau: Standard deviation of the prior around the start, in the weights' unit.
        strength: s, 1 for the Bayesian answer.
        penalty: Of the head that is fitted alone, see :class:`~retain.recipes.LinearProbe`.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain.recipes import HeldL2SP
        >>> HeldL2SP(tau=0.01).name
        'l2-sp'
    """

    name = "l2-sp"
    summary = "all weights, held at their start alike"
    citation = "li2018explicit"

    def __init__(self, tau: float = 0.02, strength: float = 1.0, penalty: float | None = None) -> None:
        super().__init__(penalty)
        self.tau, self.strength = check_positive("tau", tau), check_positive("strength", strength)

    def phases(self, place: Place) -> Sequence[Phase]:
        """The head, then everything, held."""
        probe, _ = super().phases(place)
        method = L2SP(self.strength, self.tau, exclude=(place.head, f"{place.head}.*"), pull="proximal")
        return [probe, Phase("held", method=method, anchored=True)]

    def settings(self) -> dict[str, Any]:
        """Everything the recipe was made with."""
        return {"tau": self.tau, "strength": self.strength, **super().settings()}


class HeldFisher(HeldL2SP):
    r"""Fine-tuning with Fisher-weighted L2-SP: each weight is held as firmly as the old answers depend on it, EWC towards the start.

    Li, Grandvalet and Davoine 2018, section 3.2 ("L2-SP-Fisher"). The Fisher is that of the source task, if its data are at hand; otherwise that of the
    probed model on the new images, which says what the features are used for there.

    Args:
        source: The task that the weights come from, or ``None``.
        strength: 1 for the Bayesian answer.
        penalty: Of the head that is fitted alone, see :class:`~retain.recipes.LinearProbe`.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain.recipes import HeldFisher
        >>> HeldFisher(strength=10.0).name
        'l2-sp-fisher'
    """

    name = "l2-sp-fisher"
    summary = "all weights, held at their start by their Fisher"

    def __init__(self, source: Any = None, strength: float = 1.0, penalty: float | None = None) -> None:
        super().__init__(strength=strength, penalty=penalty)
        self.source = source

    def phases(self, place: Place) -> Sequence[Phase]:
        """The head, then everything, held."""
        probe, _ = LPFT.phases(self, place)
        return [probe, Phase("held", method=EWC(self.strength, pull="proximal"), anchored=True, anchor=self.source or place.task)]

    def settings(self) -> dict[str, Any]:
        """Everything the recipe was made with."""
        return {"strength": self.strength, "penalty": self.penalty}
