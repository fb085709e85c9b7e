"""Strategies that leave the weights as they are."""

from __future__ import annotations

from typing import Any

from retain.paths.strategies.base import Move, Strategy


class Frozen(Strategy):
    """q moves, the weights do not: what the path loses by itself."""

    name = "frozen"
    summary = "move q only"

    def update(self, move: Move) -> dict[str, Any]:
        """Nothing."""
        return {}


class Sudden(Strategy):
    """q jumps from 0 to 1 in one step, without training: what the target is worth as it was given."""

    name = "sudden"
    summary = "jump to the target at once, without training"
    jumps = True

    def update(self, move: Move) -> dict[str, Any]:
        """Nothing."""
        return {}
