"""One run's folder: spec, environment, and for every seed its events, checkpoints, models and result."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from retain.errors import InputError, RetainError, nearest
from retain.training.checkpoints import read_tree, save, write_file, write_tree

SCHEMA = 1
Listener = Callable[[int, str, str, dict[str, Any]], None]
"""Told of every event: seed, arm, kind, fields."""


def plain(value: Any) -> Any:
    """A value as JSON can hold it: tuples become lists, numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def revive(value: Any) -> Any:
    """Plain results with null back as ``nan``."""
    if isinstance(value, dict):
        return {key: revive(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [revive(entry) for entry in value]
    return math.nan if value is None else value


def environment() -> dict[str, Any]:
    """Versions and machine, for a reader of the run."""
    import numpy
    import torch

    from retain import __version__

    return {
        "schema": SCHEMA,
        "retain": __version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


class UnwritableError(InputError):
    """A folder of runs cannot be written.

    Args:
        path: The folder.
        error: What the system said.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__("--out", "a folder that can be written", f"{path}, which could not be written ({error.strerror})", "Choose another folder.")


class Run:
    """A folder ``OUT/STUDY/HASH``.

    Args:
        path: The folder.
        listener: Told of every event while the run executes.
        every: Least seconds between two checkpoints of an arm.
    """

    def __init__(self, path: Path, listener: Listener | None = None, every: float = 2.0) -> None:
        self.path, self.every = path, every
        self.listener: Listener = listener or (lambda seed, arm, kind, fields: None)

    @property
    def exists(self) -> bool:
        """Whether something was written here before."""
        return (self.path / "spec.json").exists()

    def spec(self) -> dict[str, Any]:
        """The stored spec: study, version, and the settings under ``settings``."""
        return self.read("spec.json")

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the run.

        Args:
            name: Its path inside the folder.

        Returns:
            Its content.

        Raises:
            InputError: If it is missing or damaged.
        """
        try:
            content: dict[str, Any] = dict(json.loads((self.path / name).read_text()))
        except FileNotFoundError as error:
            raise InputError("run", f"a run folder with {name}", self.path, "See 'retain list runs'.") from error
        except (ValueError, TypeError, OSError) as error:
            hint = "Remove it, and run the study again, with the same settings and --resume."
            raise InputError("run", f"JSON in {self.path / name}", f"a damaged file ({error})", hint) from error
        return content

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run, whole or not at all."""
        text = json.dumps(plain({"schema": SCHEMA, **content}), indent=1, allow_nan=False)
        write_file(self.path / name, text.encode())

    def seeds(self) -> list[int]:
        """Seeds with a result."""
        found = (int(path.parent.name.removeprefix("seed-")) for path in self.path.glob("seed-*/result.json"))
        return sorted(found)

    def results(self, seeds: list[int] | None = None) -> list[dict[str, Any]]:
        """The results of finished seeds, in order."""
        return [revive(self.read(f"seed-{k}/result.json")) for k in (self.seeds() if seeds is None else seeds)]

    def clear(self) -> None:
        """Remove all seeds."""
        for found in self.path.iterdir():
            if found.is_dir():
                shutil.rmtree(found)

    def tidy(self, seed: int) -> None:
        """Remove the checkpoints of a finished seed."""
        shutil.rmtree(self.path / f"seed-{seed}" / "checkpoint", ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Inside the block no other process writes into this run.

        Raises:
            UnwritableError: If the folder cannot be written.
            RetainError: If another process does.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("w")
        except OSError as error:
            raise UnwritableError(self.path, error) from error
        with file:
            try:
                import fcntl  # POSIX alone; elsewhere nobody is kept out
            except ImportError:
                yield
                return
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RetainError(f"{self.path} is in use: another process runs this. Wait for it, or pass another --out.") from error
            yield

    def seed(self, seed: int) -> SeedFolder:
        """The folder of one seed, ready to be gone on with."""
        return SeedFolder(self, seed)


class SeedFolder:
    """One seed of a run; what a study needs to keep things.

    A checkpoint holds the byte offset of the events at its time. On opening, events after the latest checkpoint are cut off, as
    the work they tell of is done again.

    Args:
        run: The run.
        seed: The seed.
    """

    def __init__(self, run: Run, seed: int) -> None:
        self.run, self.seed = run, seed
        self.path = run.path / f"seed-{seed}"
        self._made = time.monotonic()
        self._checkpoints = {path.stem: _checkpoint(path) for path in sorted((self.path / "checkpoint").glob("*.safetensors"))}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._events = (self.path / "events.jsonl").open("ab")
            kept = max((state["offset"] for state in self._checkpoints.values()), default=0)
            self._events.truncate(min(kept, (self.path / "events.jsonl").stat().st_size))
            self._events.seek(0, os.SEEK_END)
        except OSError as error:
            raise RetainError(f"{self.path} could not be opened: {error.strerror}.") from error

    def recorder(self, arm: str) -> ArmRecorder:
        """The recorder of one arm."""
        return ArmRecorder(self, arm)

    def notice(self, kind: str, **fields: Any) -> None:
        """Tell the listener; not kept."""
        self.run.listener(self.seed, "", kind, fields)

    def keep(self, name: str, model: Any, belief: Any = None) -> None:
        """Store a model, and a belief."""
        save(self.path / name, model, belief, {"seed": self.seed, "arm": name})

    def event(self, arm: str, kind: str, fields: dict[str, Any]) -> None:
        """Append an event, flushed, and tell the listener."""
        line = json.dumps(plain({"seconds": round(time.monotonic() - self._made, 3), "kind": kind, "arm": arm, **fields}), allow_nan=False)
        try:
            self._events.write(line.encode() + b"\n")
            self._events.flush()
        except OSError as error:
            raise RetainError(f"{self.path / 'events.jsonl'} could not be written: {error.strerror}. Free some space and go on with --resume.") from error
        self.run.listener(self.seed, arm, kind, fields)

    def checkpoint(self, arm: str, state: dict[str, Any]) -> None:
        """Write an arm's checkpoint, whole or not at all."""
        os.fsync(self._events.fileno())  # the events that a checkpoint counts on are on the disk before it
        write_tree(self.path / "checkpoint" / f"{arm}.safetensors", {**state, "offset": self._events.tell()})

    def restored(self, arm: str) -> dict[str, Any] | None:
        """An arm's checkpoint as it was on opening; handed out once."""
        return self._checkpoints.pop(arm, None)

    def finish(self, result: dict[str, Any]) -> None:
        """Write the environment and the result; the checkpoints are then of no more use."""
        self.run.write(f"seed-{self.seed}/env.json", environment())
        self.run.write(f"seed-{self.seed}/result.json", result)
        self.close()
        self.run.tidy(self.seed)

    def close(self) -> None:
        """Close the events; what a full disk refuses was reported when it was written."""
        with contextlib.suppress(OSError):
            self._events.close()


class ArmRecorder:
    """The loop's recorder for one arm of one seed.

    Args:
        folder: The seed's folder.
        arm: The arm's name.
    """

    def __init__(self, folder: SeedFolder, arm: str) -> None:
        self.folder, self.arm = folder, arm
        self._last = time.monotonic()

    def event(self, kind: str, **fields: Any) -> None:
        """Append an event."""
        self.folder.event(self.arm, kind, fields)

    def save(self, state: Callable[[], Mapping[str, Any]], *, final: bool = False) -> None:
        """Write a checkpoint, unless the last one is younger than the run's interval."""
        if final or time.monotonic() - self._last >= self.folder.run.every:
            self.folder.checkpoint(self.arm, dict(state()))
            self._last = time.monotonic()
        if final:
            self.folder.run.listener(self.folder.seed, self.arm, "done", {})

    def load(self) -> dict[str, Any] | None:
        """The checkpoint that was there when the seed was opened."""
        state = self.folder.restored(self.arm)
        if state is not None and state["done"]:
            self.folder.run.listener(self.folder.seed, self.arm, "done", {})
        return state


def list_runs(out: Path) -> Iterator[Run]:
    """The runs under a folder, newest last; the cells that runs share are none."""
    found = [path.parent for path in out.glob("*/*/spec.json") if path.parents[1].name != "cells"]
    return (Run(path) for path in sorted(found, key=lambda path: (path / "spec.json").stat().st_mtime))


def _checkpoint(path: Path) -> dict[str, Any]:
    try:
        return read_tree(path)
    except InputError as error:
        found = f"a damaged one ({error.__cause__ or error})"
        raise InputError("checkpoint", f"one that can be read at {path}", found, "Remove it, and go on with --resume.") from error


def find_run(reference: str, out: Path) -> Run:
    """A run by its folder, by the start of its hash, or by its study's name (the newest).

    Args:
        reference: What was typed.
        out: The folder of runs.

    Returns:
        The run.

    Raises:
        InputError: If none fits, or several do.
    """
    path = Path(reference)
    if (path / "spec.json").exists():
        return Run(path)
    runs = list(list_runs(out))
    by_study = [run for run in runs if run.path.parent.name == reference]
    if by_study:
        return by_study[-1]
    by_hash = [run for run in runs if run.path.name.startswith(reference)]
    if len(by_hash) == 1:
        return by_hash[0]
    known = [f"{run.path.parent.name}/{run.path.name}" for run in runs]
    hint = nearest(reference, known) if known else f"There are no runs under {out}."
    raise InputError("run", "a run's folder, hash or study", f"{reference!r}, which fits {len(by_hash)}", hint)
