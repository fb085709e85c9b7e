"""Pieces of a run: one cell and one seed as plain data, and the one function that does a piece anywhere."""

from __future__ import annotations

import contextlib
import errno
import importlib
import platform
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from retain.errors import InputError, RetainError
from retain.runs.folder import Listener, Run, UnwritableError
from retain.studies.base import Spec, Study
from retain.training.checkpoints import write_file


@dataclass(frozen=True)
class Piece:
    """One seed of one cell: what a process anywhere has to know to do it.

    Args:
        study: The study's name.
        source: Where a worker imports the study from, ``module:Class``.
        version: The study's version.
        retain: The version of this package.
        settings: The cell's settings as plain values.
        fingerprint: The cell's hash.
        seed: The seed.
        folder: The folder that holds ``seed-K``: of the run, or of the cell.
        label: What tells the cell from the others, for people; empty where a run is one cell.
    """

    study: str
    source: str
    version: int
    retain: str
    settings: Mapping[str, Any]
    fingerprint: str
    seed: int
    folder: str
    label: str = ""

    def __str__(self) -> str:
        """Study, hash, seed, and what tells it from the others."""
        return f"{self.study} {self.fingerprint} seed {self.seed}" + (f" ({self.label})" if self.label else "")

    @property
    def path(self) -> Path:
        """The seed's folder."""
        return Path(self.folder) / f"seed-{self.seed}"

    @property
    def finished(self) -> bool:
        """Whether it has its result."""
        return (self.path / "result.json").exists()


@dataclass(frozen=True)
class End:
    """How a piece ended.

    Args:
        how: Finished; left for later, as another process has it; or failed.
        message: What went wrong.
        parameter: The parameter of an InputError.
    """

    how: Literal["done", "busy", "failed"]
    message: str = ""
    parameter: str | None = None


Ends = Generator[tuple[Piece, End], None, None]


class Place(Protocol):
    """Where pieces are done: this process, others, a cluster."""

    def __call__(self, pieces: list[Piece], tell: Listener) -> Ends:
        """Do the pieces and say how each ended, in whatever order; closing the generator stops what still runs."""


@contextlib.contextmanager
def claimed(folder: Path, seed: int) -> Iterator[bool]:
    """Hold a seed of a folder inside the block.

    The lock is a file beside the seed's folder, so that removing a seed does not remove the lock under another's feet. It ends with the
    process that holds it, however that dies.

    Args:
        folder: Of the run or the cell.
        seed: The seed.

    Yields:
        Whether it is ours; if not, another process has it.

    Raises:
        UnwritableError: If the folder cannot be written.
        RetainError: If its file system has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f".seed-{seed}.lock").open("w")
    except OSError as error:
        raise UnwritableError(folder, error) from error
    with file:
        yield _lock(file, folder)


def _lock(file: Any, folder: Path) -> bool:
    try:
        import fcntl  # POSIX alone; elsewhere nobody is kept out
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise RetainError(f"{folder} is on a file system without locks ({error.strerror}). Choose another folder with --out.") from error
    return True


def held(piece: Piece) -> bool:
    """Whether another process works on the piece now."""
    with claimed(Path(piece.folder), piece.seed) as ours:
        return not ours


def do(study: Study, spec: Spec, run: Run, seed: int) -> bool:
    """Do one seed in this process, going on from its checkpoint; one that is finished is left as it is.

    Args:
        study: The study.
        spec: Its settings, of the run or of the cell.
        run: The folder of the run or the cell.
        seed: The seed.

    Returns:
        Whether it is finished; if not, another process works on it.
    """
    import torch

    from retain.training.devices import denormals_flushed, keep_freed_memory

    keep_freed_memory()
    with claimed(run.path, seed) as ours:
        if not ours:
            return False
        if (run.path / f"seed-{seed}" / "result.json").exists():
            run.tidy(seed)
            return True
        before = torch.get_num_threads()
        torch.set_num_threads(spec.threads)
        try:
            folder = run.seed(seed)
            try:
                with denormals_flushed():
                    folder.finish(study.run(spec, seed, folder))
            finally:
                folder.close()
        finally:
            torch.set_num_threads(before)
        (folder.path / "error.txt").unlink(missing_ok=True)
    return True


def work(piece: Piece, listener: Listener | None = None, every: float = 2.0) -> End:
    """Do a piece, wherever this process runs.

    Args:
        piece: The piece.
        listener: Told of every event.
        every: Least seconds between two checkpoints of an arm.

    Returns:
        Done, or busy if another process works on it.

    Raises:
        RetainError: If this process has another version of retain, of the study or of torch than the piece was made with.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from retain.runs.grid import Grid
        >>> from retain.runs import Run
        >>> from retain.studies import find
        >>> study = find("forgetting")
        >>> run = Run(Path(tempfile.mkdtemp()) / "run")
        >>> piece = Grid(study, study.spec("quick"), run).pieces()[0]
        >>> work(Piece(**{**vars(piece), "retain": "0.0.1"}))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        retain.errors.RetainError: ...: expected retain 0.0.1, which the piece was made with, found retain ...
    """
    study, spec = _loaded(piece)
    run = Run(Path(piece.folder), listener, every)
    if piece.finished:
        run.tidy(piece.seed)
        return End("done")
    if (run.path / "env.json").exists():
        _same(piece, "torch", str(run.read("env.json").get("torch")), _torch())
    return End("done" if do(study, spec, run, piece.seed) else "busy")


def attempt(piece: Piece, doing: Callable[[], End]) -> End:
    """What ``doing`` returns; what it raises becomes an end that says so, with the traceback in the seed's ``error.txt``.

    Args:
        piece: The piece that is done.
        doing: Does it.

    Returns:
        The end.
    """
    try:
        return doing()
    except InputError as error:
        return End("failed", f"{piece}: {error}", error.parameter)
    except RetainError as error:
        return End("failed", str(error) if str(error).startswith(f"{piece}") else f"{piece}: {error}")
    except Exception as error:
        said = f"{piece}: {type(error).__name__}: {error}"
        with contextlib.suppress(RetainError):  # on a full disk the message has to do
            write_file(piece.path / "error.txt", traceback.format_exc().encode())
            said += f" (see {piece.path / 'error.txt'})"
        return End("failed", said)


def _loaded(piece: Piece) -> tuple[Study, Spec]:
    """The study and the cell's settings, if they are here what they were where the piece was made."""
    from retain import __version__

    _same(piece, "retain", piece.retain, __version__)
    module, _, name = piece.source.partition(":")
    try:
        study: Study = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise RetainError(
            f"{piece}: the study cannot be imported on {platform.node()} ({error}). A study of your own has to be in a module that workers can import."
        ) from error
    _same(piece, f"study {piece.study} version", str(piece.version), str(study.version))
    spec = study.spec_type.parse(dict(piece.settings))
    _same(piece, "settings", piece.fingerprint, spec.fingerprint(study))
    return study, spec


def _torch() -> str:
    import torch

    return str(torch.__version__)


def _same(piece: Piece, what: str, expected: str, found: str) -> None:
    if expected != found:
        raise RetainError(
            f"{piece}: expected {what} {expected}, which the piece was made with, found {what} {found} on {platform.node()}. "
            "Install the same versions of retain and torch wherever pieces are done."
        )
