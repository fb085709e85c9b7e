"""A run as a grid of pieces: cells times seeds, what of it is finished, and what it says together."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retain.errors import InputError, RetainError
from retain.runs.folder import Listener, Run, environment
from retain.runs.pieces import End, Ends, Piece, Place, attempt, claimed, do, held
from retain.studies.base import Spec, Study
from retain.training.checkpoints import write_file


class PieceError(RetainError):
    """Pieces of a run failed; the others are finished."""


class PieceInputError(PieceError, InputError):
    """Pieces of a run failed, all for a user's mistake.

    Args:
        message: What they said.
        parameter: The name the user knows the value by.
    """

    def __init__(self, message: str, parameter: str) -> None:
        RetainError.__init__(self, message)
        self.parameter = parameter


@dataclass(frozen=True)
class Gathered:
    """What of a run is there.

    Args:
        results: One a seed that has anything, in order of seeds; what is missing of an unfinished seed is missing in it.
        done: Pieces that are finished.
        total: Pieces of the run.
        unit: What a piece is called.
        versions: Of torch and of this package that made it.
    """

    results: list[dict[str, Any]]
    done: int
    total: int
    unit: str
    versions: list[str] = field(default_factory=list)

    @property
    def remark(self) -> str:
        """How much of the run this is; empty if all."""
        return "" if self.done == self.total else f"{self.done} of {self.total} {self.unit} are finished"


class Grid:
    """The pieces of a run.

    A study that is not cut has its seeds in the run's folder. The cells of one that is live in ``cells/CELLHASH`` beside the run, where
    other runs find them.

    Args:
        study: The study.
        spec: Its settings.
        run: The run.
        trials: Cells of a search instead, whose results are read and not joined.

    Raises:
        InputError: If there are no cells, or two that are equal.
    """

    def __init__(self, study: Study, spec: Spec, run: Run, trials: Sequence[Spec] | None = None) -> None:
        self.study, self.spec, self.run = study, spec, run
        self.joins = trials is None
        self.cells: list[Spec] = list(study.cells(spec) if trials is None else trials)
        if not self.cells:
            raise InputError("cells", f"at least one cell of '{study.name}'", "none")
        self.hashes = [cell.fingerprint(study) for cell in self.cells]
        self.cut = trials is not None or self.hashes != [spec.fingerprint(study)]
        whole = spec.model_dump(mode="json")
        self.labels = [_label(whole, cell) if self.cut else "" for cell in self.cells]
        for i, one in enumerate(self.hashes):
            if one in self.hashes[:i]:
                first = self.hashes.index(one)
                raise InputError(
                    "cells",
                    f"different cells of '{study.name}'",
                    f"cells {first + 1} and {i + 1} that are equal ({one}: {self.labels[i] or 'the same settings'})",
                )

    def folder(self, cell: int) -> Path:
        """The folder of a cell's seeds."""
        return (self.run.path.parent / "cells" / self.hashes[cell] if self.cut else self.run.path).resolve()

    def piece(self, cell: int, seed: int) -> Piece:
        """One piece, as data."""
        from retain import __version__

        kind = type(self.study)
        source = f"{kind.__module__}:{kind.__qualname__}"
        settings = self.cells[cell].model_dump(mode="json")
        return Piece(self.study.name, source, self.study.version, __version__, settings, self.hashes[cell], seed, str(self.folder(cell)), self.labels[cell])

    def pieces(self) -> list[Piece]:
        """All pieces, those of a seed together."""
        return [self.piece(cell, seed) for seed in range(self.spec.seeds) for cell in range(len(self.cells))]

    def unfinished(self) -> list[Piece]:
        """The pieces of seeds without a result that have none themselves."""
        return [piece for piece in self.pieces() if not piece.finished and not self._joined(piece.seed)]

    def prepare(self, force: bool) -> None:
        """Write what a folder of pieces says about itself, and which cells a seed is made of.

        Args:
            force: Go on with cells that another version of torch began.

        Raises:
            RetainError: If there is such a cell and ``force`` is not given.
        """
        todo = {piece.folder for piece in self.unfinished()}
        if todo or not (self.run.path / "env.json").exists():  # all of its cells may be another run's
            self.run.write("env.json", environment())
        if not self.cut:
            return
        now = environment()
        for cell, spec in enumerate(self.cells):
            if str(self.folder(cell)) not in todo:
                continue
            home = Run(self.folder(cell))
            begun = any(home.path.glob("seed-*")) and (home.path / "env.json").exists()
            made = home.read("env.json").get("torch") if begun else now["torch"]
            if made != now["torch"] and not force:
                raise RetainError(
                    f"{home.path} was made with torch {made}, this is {now['torch']}: equal bits cannot be promised. Pass --force to go on all the same."
                )
            if not begun or made != now["torch"]:
                home.write("env.json", now)
            seeds = max([self.spec.seeds, *(k + 1 for k in home.seeds())])
            settings = {**spec.model_dump(mode="json"), "seeds": seeds}
            home.write("spec.json", {"study": self.study.name, "version": self.study.version, "settings": settings})
        for seed in range(self.spec.seeds):
            if self.joins and not self._joined(seed):
                self.run.write(f"seed-{seed}/cells.json", {"cells": self.hashes})

    def clear(self, seeds: int) -> None:
        """Remove seeds of the cells.

        Args:
            seeds: How many, from 0 on.

        Raises:
            RetainError: If another process works on one of them.
        """
        pieces = [self.piece(cell, seed) for seed in range(seeds) for cell in range(len(self.cells))] if self.cut else []
        there = [piece for piece in pieces if piece.path.exists()]
        if taken := [piece for piece in there if held(piece)]:  # before the first goes
            raise RetainError(_in_use(taken[0]))
        for piece in there:
            with claimed(Path(piece.folder), piece.seed) as ours:
                if not ours:
                    raise RetainError(_in_use(piece))
                shutil.rmtree(piece.path, ignore_errors=True)

    def work(self, place: Place | None) -> list[tuple[Piece, End]]:
        """Do all pieces that are not finished, and join the cells of every seed as soon as it has them all.

        A piece that another process holds is looked at again until it is finished or free.

        Args:
            place: Where; ``None`` is this process.

        Returns:
            The pieces that failed.
        """
        failed: list[tuple[Piece, End]] = []
        waiting = self.unfinished()
        self._tell_found(waiting)
        for seed in range(self.spec.seeds):
            self._join(seed)
        said = False
        while waiting:
            ready = [piece for piece in waiting if piece.finished or not held(piece)]
            waiting = [piece for piece in waiting if piece not in ready]
            if waiting and not said:
                said = True
                text = f"{len(waiting)} of the pieces left are being done by another process and are looked at again: {waiting[0]}"
                self.run.listener(waiting[0].seed, "", "note", {"text": text})
            moved = False
            with closing((place or self._here)(ready, self.run.listener)) as ends:
                for piece, end in ends:
                    if end.how == "busy":
                        waiting.append(piece)
                        continue
                    moved = True
                    if end.how == "failed":
                        failed.append((piece, end))
                        self.run.listener(piece.seed, "", "note", {"text": end.message})
                    else:
                        self._join(piece.seed)
            if waiting and not moved:
                time.sleep(0.5)
        return failed

    def gather(self) -> Gathered:
        """What is there of all seeds of the run."""
        seeds = sorted({*range(self.spec.seeds), *self.run.seeds()})
        results, done = [], 0
        for seed in seeds:
            if self._joined(seed):
                results += self.run.results([seed])
                done += len(self.cells)
            elif self.cut:
                found = self.found(seed)
                if any(one is not None for one in found):
                    results.append(self.study.join(self.spec, found))
                    done += sum(one is not None for one in found)
        return Gathered(results, done, len(seeds) * len(self.cells), "cells" if self.cut else "seeds", self._versions(seeds))

    def _versions(self, seeds: list[int]) -> list[str]:
        """What made the pieces that are finished: equal bits are promised within one of them."""
        found: set[str] = set()
        for seed in seeds:
            here = self.run.path / f"seed-{seed}"
            if self._joined(seed) and (here / "cells.json").exists():  # cells may be another run's by now
                found.update(self.run.read(f"seed-{seed}/cells.json").get("versions", []))
                continue
            homes = [here] if self._joined(seed) else [self.folder(cell) / f"seed-{seed}" for cell in range(len(self.cells))]
            made = [Run(home).read("env.json") for home in homes if (home / "result.json").exists() and (home / "env.json").exists()]
            found.update(f"torch {one.get('torch')} with retain {one.get('retain')}" for one in made)
        return sorted(found)

    def _here(self, pieces: list[Piece], tell: Listener) -> Ends:
        """In this process, with the study at hand; without cells the first error ends it."""
        for piece in pieces:
            cell = self.hashes.index(piece.fingerprint)
            run = Run(Path(piece.folder), tell, self.run.every)

            def doing(cell: int = cell, run: Run = run, seed: int = piece.seed) -> End:
                return End("done" if do(self.study, self.cells[cell] if self.cut else self.spec, run, seed) else "busy")

            yield piece, attempt(piece, doing) if self.cut else doing()

    def _joined(self, seed: int) -> bool:
        return self.joins and (self.run.path / f"seed-{seed}" / "result.json").exists()

    def found(self, seed: int) -> list[dict[str, Any] | None]:
        """The results of a seed's cells; ``None`` for one that is not finished."""
        homes = [Run(self.folder(cell)) for cell in range(len(self.cells))]
        return [home.results([seed])[0] if (home.path / f"seed-{seed}" / "result.json").exists() else None for home in homes]

    def _join(self, seed: int) -> None:
        """Write the seed's result once all its cells are there, and their events as one file."""
        if self._joined(seed):
            self.run.tidy(seed)
            return
        if not self.joins or not self.cut or not all((self.folder(cell) / f"seed-{seed}" / "result.json").exists() for cell in range(len(self.cells))):
            return
        for cell in range(len(self.cells)):
            Run(self.folder(cell)).tidy(seed)
        result = self.study.join(self.spec, self.found(seed))
        self.run.write(f"seed-{seed}/cells.json", {"cells": self.hashes, "versions": self._versions([seed])})
        write_file(self.run.path / f"seed-{seed}" / "events.jsonl", b"".join(self._events(seed)))
        self.run.write(f"seed-{seed}/env.json", environment())
        self.run.write(f"seed-{seed}/result.json", result)

    def _events(self, seed: int) -> Iterator[bytes]:
        for cell, name in enumerate(self.hashes):
            path = self.folder(cell) / f"seed-{seed}" / "events.jsonl"
            for line in path.read_bytes().splitlines() if path.exists() else ():
                try:
                    yield json.dumps({**json.loads(line), "cell": name}).encode() + b"\n"
                except ValueError:
                    continue  # half a line

    def _tell_found(self, waiting: list[Piece]) -> None:
        """Tell the listener of cells that were finished before, in seeds that are not."""
        if not self.cut:
            return
        todo = {(piece.fingerprint, piece.seed) for piece in waiting}
        for seed in range(self.spec.seeds):
            for name, cell, label in zip(self.hashes, self.cells, self.labels, strict=True):
                if (name, seed) not in todo and not self._joined(seed):
                    self.run.listener(seed, "", "found", {"stages": self.study.stages(cell), "text": f"seed {seed}  {label}: finished before"})


def _in_use(piece: Piece) -> str:
    return f"{piece.path} is in use: another process works on this cell. Wait for it, or pass another --out."


def raise_failures(failed: list[tuple[Piece, End]], run: Run, total: int) -> None:
    """Raise what the pieces that failed have to say; nothing if there are none.

    Args:
        failed: Pieces with their ends.
        run: The run they belong to.
        total: Pieces of the run.

    Raises:
        PieceInputError: If all failed for a user's mistake.
        PieceError: If one failed otherwise.
    """
    if not failed:
        return
    said = [end.message for _, end in failed]
    more = f" And {len(said) - 3} more." if len(said) > 3 else ""
    ways = f"{'The others are finished; go' if total > 1 else 'Go'} on with --resume {run.path}."
    message = f"{len(failed)} of {total} pieces failed. {' '.join(said[:3])}{more} {ways}" if len(failed) > 1 else f"{said[0]} {ways}"
    if all(end.parameter is not None for _, end in failed):
        raise PieceInputError(message, failed[0][1].parameter or "")
    raise PieceError(message)


def _label(whole: dict[str, Any], cell: Spec) -> str:
    """The settings in which a cell differs from the whole, but for those it does not use."""
    known = type(cell).model_fields
    different = {key: value for key, value in cell.model_dump(mode="json").items() if whole.get(key) != value and getattr(cell, key) != known[key].default}
    words = [f"{key}={'+'.join(map(str, value)) if isinstance(value, list) else value}" for key, value in different.items()]
    return ", ".join(words)
