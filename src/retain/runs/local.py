"""Pieces in processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from retain.errors import RetainError
from retain.runs.folder import Listener
from retain.runs.pieces import End, Ends, Piece, attempt, work

TRIES = 3
"""How often a piece is begun in all whose process dies."""


class Local:
    """Persistent processes, each of which does one piece after the other.

    A process that dies is replaced, and its piece goes on from its checkpoint. None of them outlives this one.

    Args:
        jobs: How many.
        every: Least seconds between two checkpoints of an arm.
    """

    def __init__(self, jobs: int, every: float) -> None:
        self.jobs, self.every = jobs, every

    def __call__(self, pieces: list[Piece], tell: Listener) -> Ends:
        """Do the pieces; see :class:`retain.runs.pieces.Place`."""
        queue = deque(pieces)
        deaths = {id(piece): 0 for piece in pieces}
        workers: list[_Worker] = []
        stillborn = 0
        try:
            while queue or any(worker.piece for worker in workers):
                while len(workers) < min(self.jobs, len(queue) + sum(worker.piece is not None for worker in workers)):
                    workers.append(_Worker(self.every))
                for worker in workers:
                    if worker.ready and worker.piece is None and queue:
                        worker.give(queue.popleft())
                wait([thing for worker in workers for thing in (worker.ours, worker.process.sentinel)])
                for worker in list(workers):
                    for kind, content in worker.messages():
                        if kind == "event":
                            tell(*content)
                        elif kind == "end" and worker.piece is not None:
                            ended, worker.piece = worker.piece, None
                            yield ended, content
                    if not worker.dead:
                        continue
                    workers.remove(worker)
                    piece, how = worker.piece, worker.bury()
                    if piece is None:
                        stillborn = 0 if worker.ready else stillborn + 1
                        if stillborn == TRIES:
                            raise RetainError(
                                f"The processes of --jobs {self.jobs} end {how} before they begin. "
                                "A script that calls execute(jobs=...) has to be a file and do it under 'if __name__ == \"__main__\":'."
                            )
                        continue
                    deaths[id(piece)] += 1
                    if deaths[id(piece)] < TRIES:
                        tell(piece.seed, "", "note", {"text": f"{piece}: its process ended {how}; going on from its checkpoint in a new one"})
                        queue.appendleft(piece)
                    else:
                        yield piece, End("failed", f"{piece}: its process ended {how}, {TRIES} times. Out of memory? Pass fewer --jobs.")
        finally:
            for worker in workers:
                worker.process.terminate()
            for worker in workers:
                worker.bury()


class _Worker:
    def __init__(self, every: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.ours, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, every), daemon=True)
        self.process.start()
        theirs.close()  # so that its death is the end of the file here
        self.piece: Piece | None = None
        self.ready = self.dead = False

    def give(self, piece: Piece) -> None:
        """Hand over the next piece."""
        self.piece = piece
        with contextlib.suppress(OSError):  # it died; its sentinel says so
            self.ours.send_bytes(pickle.dumps(piece))

    def messages(self) -> Iterator[tuple[str, Any]]:
        """What it has said since the last time."""
        if not self.process.is_alive():
            self.dead = True  # looked at before the last words, which are not to be missed
        try:
            while self.ours.poll():
                kind, content = pickle.loads(self.ours.recv_bytes())
                self.ready = True
                yield kind, content
        except (EOFError, OSError):
            self.dead = True

    def bury(self) -> str:
        """Wait for its end; how it came."""
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        self.process.close()
        self.ours.close()
        return f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with status {code}"


def _serve(connection: Connection, every: float) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def say(kind: str, content: Any) -> None:
        connection.send_bytes(pickle.dumps((kind, content)))

    say("ready", None)
    while True:
        try:
            piece: Piece = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        say("end", attempt(piece, lambda piece=piece: work(piece, lambda *event: say("event", event), every)))  # type: ignore[misc]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
