"""Where a loop reports to, and where it can be continued from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Recorder(Protocol):
    """What the loop needs of a place to keep things; run folders implement it."""

    def event(self, kind: str, **fields: Any) -> None:
        """Something happened: plain values only."""

    def save(self, state: Callable[[], Mapping[str, Any]], *, final: bool = False) -> None:
        """A point to continue from; the recorder may skip all but the final one, and then never builds it."""

    def load(self) -> dict[str, Any] | None:
        """The last point saved, or ``None``."""


class Silent:
    """A recorder that keeps nothing."""

    def event(self, kind: str, **fields: Any) -> None:
        """Forget it."""

    def save(self, state: Callable[[], Mapping[str, Any]], *, final: bool = False) -> None:
        """Forget it."""

    def load(self) -> dict[str, Any] | None:
        """Nothing was kept."""
        return None
