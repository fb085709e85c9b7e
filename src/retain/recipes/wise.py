"""Between the start and the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import InputError
from retain.recipes.base import Place
from retain.recipes.probe import LPFT
from retain.tasks import Task
from retain.training.evaluation import evaluate

TENTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def between(start: dict[str, Tensor], end: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    r"""Weights on the straight line, :math:`(1 - \alpha)\,\theta_0 + \alpha\,\theta_1`; what is no floating point number is that of the nearer end."""
    nearer = end if alpha >= 0.5 else start
    return {name: torch.lerp(value, end[name], alpha) if value.is_floating_point() else nearer[name] for name, value in start.items()}


def curve(model: nn.Module, start: dict[str, Tensor], end: dict[str, Tensor], task: Task, alphas: Sequence[float]) -> list[dict[str, float]]:
    """Accuracies along the line, on held-out and test data where there are any; the model is left at the end."""
    found = []
    for alpha in alphas:
        model.load_state_dict(between(start, end, alpha))
        point = {"alpha": alpha}
        for part in ("validation", "test"):
            if getattr(task, part) is not None:
                scored = evaluate(model, task, part=part)
                point |= {part: scored.score, f"{part}_nll": scored.nll}
        found.append(point)
    model.load_state_dict(end)
    return found


class WiSEFT(LPFT):
    r"""Fine-tuning, then back part of the way: :math:`(1 - \alpha)\,\theta_0 + \alpha\,\theta_1` with alpha chosen on held-out data.

    Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (https://arxiv.org/abs/2109.01903), section 4. Their start answers the task without
    training; here it is the start with a head trained alone, so that both ends do.

    Args:
        alphas: The points of the line, in [0, 1].
        penalty: Of the head that is fitted alone, see :class:`~retain.recipes.LinearProbe`.

    Raises:
        InputError: If a point is out of range.

    Example:
        >>> from retain.recipes import WiSEFT
        >>> len(WiSEFT().alphas)
        11
    """

    name = "wise-ft"
    summary = "fine-tuned, then part of the way back"
    citation = "wortsman2022robust"

    def __init__(self, alphas: Sequence[float] = TENTHS, penalty: float | None = None) -> None:
        super().__init__(penalty)
        self.alphas = tuple(float(alpha) for alpha in alphas)
        if not self.alphas or not all(0 <= alpha <= 1 for alpha in self.alphas):
            raise InputError("alphas", "at least one number in [0, 1]", alphas)

    def finish(self, place: Place, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Choose the point with the best held-out accuracy, the likelihood deciding between equals; without held-out data stay at the end.

        Args:
            place: The model and the task.
            states: The model's states before the first phase and after each.

        Returns:
            The curve, and the chosen alpha.
        """
        start, end = states[1], states[-1]
        found = curve(place.model, start, end, place.task, self.alphas)
        if place.task.validation is None or len(found) == 1:
            alpha = 1.0 if len(found) > 1 else found[0]["alpha"]
            place.model.load_state_dict(between(start, end, alpha))
            return {"curve": found, "alpha": alpha}
        best = max(found, key=lambda point: (point["validation"], -point["validation_nll"]))
        place.model.load_state_dict(between(start, end, best["alpha"]))
        return {"curve": found, "alpha": best["alpha"]}

    def settings(self) -> dict[str, Any]:
        """Everything the recipe was made with."""
        return {"alphas": self.alphas, **super().settings()}
