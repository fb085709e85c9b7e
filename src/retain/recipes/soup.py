"""The mean of several fine-tunings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from retain.errors import check_count
from retain.recipes.base import Phase, Place
from retain.recipes.wise import WiSEFT, between


class Soup(WiSEFT):
    r"""Fit the head, fine-tune several times from there, each in an order of its own, and average the weights: :math:`\frac1k \sum_i \theta_i`.

    The uniform soup of Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference
    time" (https://arxiv.org/abs/2203.05482), section 2. Their members differ in settings as well; these differ in the order and the augmentation of the samples
    alone. The members share the epochs, so for members as long as another recipe's pass k times its epochs.

    With several alphas the soup goes part of the way back to the probe, as :class:`~retain.recipes.WiSEFT` does.

    Args:
        members: k.
        alphas: The points of the line from the probe to the soup, in [0, 1]; one on held-out data is chosen where there are several.
        penalty: Of the head that is fitted alone, see :class:`~retain.recipes.LinearProbe`.

    Raises:
        InputError: If a number is out of range.

    Example:
        >>> from retain.recipes import Soup
        >>> Soup(members=2)
        Soup(members=2, alphas=(1.0,), penalty=None)
    """

    name = "soup"
    summary = "the mean of several fine-tunings from one probe"
    citation = "wortsman2022model"

    def __init__(self, members: int = 3, alphas: Sequence[float] = (1.0,), penalty: float | None = None) -> None:
        super().__init__(alphas, penalty)
        self.members = check_count("members", members)

    def phases(self, place: Place) -> Sequence[Phase]:
        """The head, then one a member, each from the fitted head."""
        probe = super().phases(place)[0]
        return [probe, *(Phase(f"member {i + 1}", 1 / self.members, since=1) for i in range(self.members))]

    def finish(self, place: Place, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Average the members, and choose a point between the probe and them.

        Args:
            place: The model and the task.
            states: The model's states before the first phase and after each.

        Returns:
            The curve, and the chosen alpha.
        """
        mean: dict[str, Tensor] = states[2]
        for number, member in enumerate(states[3:], 2):
            mean = between(mean, member, 1 / number)
        return super().finish(place, [*states[:2], mean])

    def settings(self) -> dict[str, Any]:
        """Everything the recipe was made with."""
        return {"members": self.members, **super().settings()}
