"""Fine-tuning from the head down."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from retain.errors import check_count
from retain.recipes.base import Phase, Place, blocks
from retain.recipes.probe import LinearProbe


class GradualUnfreezing(LinearProbe):
    """Train the head alone, then the last blocks too, and so on down to the inputs: what is learned first is what knows least.

    Howard and Ruder 2018, "Universal Language Model Fine-tuning" (https://arxiv.org/abs/1801.06146), section 3.3, which unfreezes a layer an epoch. Here
    the blocks (:func:`~retain.recipes.blocks`) are shared out evenly among the stages, and the epochs too. Batch-norm statistics of frozen blocks follow
    the new data all the same, unless they are frozen by ``batchnorm="freeze"``.

    Args:
        stages: Phases after the head's own.
        penalty: Of the head that is fitted alone, see :class:`~retain.recipes.LinearProbe`.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain.recipes import GradualUnfreezing
        >>> GradualUnfreezing(stages=2)
        GradualUnfreezing(stages=2, penalty=None)
    """

    name = "gradual"
    summary = "the head alone, then more and more blocks"
    citation = "howard2018universal"

    def __init__(self, stages: int = 3, penalty: float | None = None) -> None:
        super().__init__(penalty)
        self.stages = check_count("stages", stages)

    def phases(self, place: Place) -> Sequence[Phase]:
        """The head, then a phase a stage; the last trains everything."""
        (probe,) = super().phases(place)
        names = [name for name, _ in blocks(place.model)]
        stages = min(self.stages, len(names))
        share = 1 / stages
        found = [probe]
        for stage in range(1, stages):
            frozen = tuple(f"{name}." for name in names[: round(len(names) * (1 - stage / stages))])
            found.append(Phase(f"stage {stage}", share, partial(_unfrozen, place, frozen)))
        return [*found, Phase(f"stage {stages}", share)]

    def settings(self) -> dict[str, Any]:
        """Everything the recipe was made with."""
        return {"stages": self.stages, **super().settings()}


def _unfrozen(place: Place, frozen: tuple[str, ...], name: str) -> bool:
    return not name.startswith(frozen) or place.in_head(name)
