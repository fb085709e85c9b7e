"""What pieces on a cluster have in common: how they are done there, and how their events come back."""

from __future__ import annotations

import json
import os
from pathlib import Path

from retain.errors import RetainError
from retain.runs.folder import Listener, revive
from retain.runs.pieces import End, Piece, attempt, work

TRIES = 3
"""How often a piece is begun in all whose process or node dies."""


def do_far(piece: Piece, every: float, data: str | None) -> End:
    """Do a piece in a process of a cluster.

    Args:
        piece: The piece.
        every: Least seconds between two checkpoints of an arm.
        data: The folder that RETAIN_DATA names where the run was begun.

    Returns:
        How it ended; errors are an end too, so that they need not be pickled.
    """
    if data is not None:
        os.environ["RETAIN_DATA"] = data
    return attempt(piece, lambda: work(piece, None, every))


def data_folder() -> str | None:
    """RETAIN_DATA as another process in another folder can use it."""
    here = os.environ.get("RETAIN_DATA")
    return None if here is None else str(Path(here).resolve())


def lost(piece: Piece, why: str) -> End:
    """The end of a piece whose process died too often."""
    return End("failed", f"{piece}: its process was lost {TRIES} times ({why.strip() or 'no reason was given'}).")


class Follow:
    """Tells a listener of the events that pieces elsewhere append to their files, which all nodes share.

    Args:
        tell: The listener.
    """

    def __init__(self, tell: Listener) -> None:
        self.tell = tell
        self._read: dict[Path, int] = {}
        self._arms: dict[Path, dict[str, None]] = {}

    def look(self, piece: Piece) -> None:
        """Tell of what a piece has said since the last look."""
        path = piece.path / "events.jsonl"
        try:
            with path.open("rb") as file:
                begin = min(self._read.get(path, 0), os.fstat(file.fileno()).st_size)  # a piece that went on from its checkpoint has cut the rest off
                file.seek(begin)
                text = file.read()
        except OSError:
            return  # not begun, or the file system is slow to show it
        whole = text[: text.rfind(b"\n") + 1]
        self._read[path] = begin + len(whole)
        for line in whole.splitlines():
            try:
                event = revive(json.loads(line))
                arm, kind = event.pop("arm"), event.pop("kind")
            except (ValueError, KeyError, AttributeError):
                continue  # begun in the middle of a line
            self._arms.setdefault(path, {})[arm] = None
            self.tell(piece.seed, arm, kind, event)

    def over(self, piece: Piece) -> None:
        """Tell that a piece is finished, and with it its arms."""
        self.look(piece)
        for arm in self._arms.get(piece.path / "events.jsonl", {}):
            self.tell(piece.seed, arm, "done", {})


def missing(extra: str, error: ImportError) -> RetainError:
    """The error of a cluster whose package is not installed."""
    return RetainError(f"--cluster {extra} needs a package that is not installed ({error}). Install it: pip install 'retain[cluster]'")
