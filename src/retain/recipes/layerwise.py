"""Fine-tuning with a learning rate for each block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from retain.errors import InputError
from retain.methods import Method
from retain.recipes.base import Phase, Place, blocks
from retain.recipes.probe import LPFT


class Decayed(Method):
    """Learning rates that fall from the head to the inputs, a factor for each block.

    Args:
        decay: The factor, in (0, 1].
    """

    name = "layer-wise decay"

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        """A group for each block."""
        found: list[dict[str, Any]] = []
        seen: set[int] = set()
        order = blocks(model)
        for depth, (_, block) in enumerate(reversed(order)):
            own = [p for p in block.parameters() if p.requires_grad and id(p) not in seen]
            seen |= {id(p) for p in own}
            if own:
                found.append({"params": own, "lr": lr * self.decay**depth})
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in seen]
        return [*found, {"params": rest, "lr": lr * self.decay ** len(order)}] if rest else found

    def settings(self) -> dict[str, Any]:
        """The factor."""
        return {"decay": self.decay}


class LayerwiseDecay(LPFT):
    r"""Fine-tuning with learning rates that fall from the head to the inputs: :math:`\eta\, d^{\,l}` in the l-th block from the head.

    Howard and Ruder 2018, "Universal Language Model Fine-tuning" (https://arxiv.org/abs/1801.06146), section 3.2, "discriminative fine-tuning", whose
    factor between layers is 1/2.6. The head is trained alone first.

    Args:
        decay: d, in (0, 1].
        penalty: Of the head that is fitted alone, see :class:`~retain.recipes.LinearProbe`.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain.recipes import LayerwiseDecay
        >>> LayerwiseDecay(0.7).settings()["decay"]
        0.7
    """

    name = "layer-wise"
    summary = "all weights, at learning rates that fall towards the inputs"
    citation = "howard2018universal"

    def __init__(self, decay: float = 0.75, penalty: float | None = None) -> None:
        super().__init__(penalty)
        if not 0 < decay <= 1:
            raise InputError("decay", "a number in (0, 1]", decay)
        self.decay = decay

    def phases(self, place: Place) -> Sequence[Phase]:
        """The head, then everything by blocks."""
        probe, whole = super().phases(place)
        return [probe, Phase(whole.name, method=Decayed(self.decay))]

    def settings(self) -> dict[str, Any]:
        """Everything the recipe was made with."""
        return {"decay": self.decay, **super().settings()}
