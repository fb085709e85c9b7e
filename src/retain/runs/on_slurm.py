"""Pieces as jobs of SLURM, through submitit."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retain.errors import InputError, RetainError, nearest
from retain.runs.elsewhere import TRIES, Follow, data_folder, do_far, lost, missing
from retain.runs.folder import Listener
from retain.runs.pieces import End, Ends, Piece
from retain.studies.base import Spec

SETTINGS = {
    "partition": "name of the partition",
    "account": "name of the account",
    "qos": "quality of service",
    "constraint": "features that a node must have",
    "timeout": "minutes that SLURM gives one piece, 240 by default",
    "memory": "GB a piece",
    "gpus": "GPUs a piece",
    "parallel": "pieces at the same time; all by default, with executor=local one a processor",
    "executor": "slurm, or local: processes of this machine, to try it out",
}
"""What ``--slurm key=value`` knows."""
_NUMBERS = ("timeout", "memory", "gpus", "parallel")
_NAMES = {"timeout": "timeout_min", "memory": "mem_gb", "gpus": "gpus_per_node"}


class OnSlurm:
    """Every piece a job of ``spec.threads`` processors. A job that is lost is submitted again, and its piece goes on from its checkpoint.

    Args:
        settings: Of the jobs; keys are those of :data:`SETTINGS`.
        folder: Of the run; all nodes have to see it.
        spec: The run's settings.
        every: Least seconds between two checkpoints of an arm.

    Raises:
        InputError: If there is no such setting, or no SLURM here.
        RetainError: If submitit is not installed.
    """

    def __init__(self, settings: Mapping[str, str], folder: Path, spec: Spec, every: float) -> None:
        self.folder, self.spec, self.every = folder.resolve(), spec, every
        try:
            import submitit
        except ImportError as error:
            raise missing("slurm", error) from error
        self.settings: dict[str, Any] = {"timeout": 240, "executor": "slurm"}
        for key, value in settings.items():
            if key not in SETTINGS:
                raise InputError("--slurm", "a setting of jobs", repr(key), nearest(key, SETTINGS))
            if key in _NUMBERS and not (str(value).isdigit() and int(value) > 0):
                raise InputError("--slurm", f"a whole number of at least 1 for {key}", repr(value))
            self.settings[key] = int(value) if key in _NUMBERS else value
        if self.settings["executor"] not in ("slurm", "local"):
            raise InputError("--slurm", "executor=slurm or executor=local", repr(self.settings["executor"]))
        if self.settings["executor"] == "slurm" and submitit.SlurmExecutor.affinity() < 0:
            raise InputError("--cluster", "a machine that SLURM's jobs can be submitted from", "no srun here", "To try it out: --slurm executor=local.")

    def __call__(self, pieces: list[Piece], tell: Listener) -> Ends:
        """Do the pieces; see :class:`retain.runs.pieces.Place`."""
        executor = self._executor()
        local = self.settings["executor"] == "local"
        limit = self.settings.get("parallel", (os.cpu_count() or 1) if local else len(pieces))
        queue, losses, follow = deque(pieces), {id(piece): 0 for piece in pieces}, Follow(tell)
        running: list[tuple[Piece, Any]] = []
        if pieces:
            tell(pieces[0].seed, "", "note", {"text": f"pieces handed to SLURM: {len(pieces)}, {min(limit, len(pieces))} at a time"})
        try:
            while queue or running:
                batch = [queue.popleft() for _ in range(min(len(queue), limit - len(running)))]
                if batch:
                    running += zip(batch, self._submit(executor, batch), strict=True)
                time.sleep(0.2 if local else 2)
                for piece, job in list(running):
                    follow.look(piece)
                    if not job.done():
                        continue
                    running.remove((piece, job))
                    end = self._end(piece, job)
                    if end is not None:
                        if end.how == "done":
                            follow.over(piece)
                        yield piece, end
                        continue
                    losses[id(piece)] += 1
                    if losses[id(piece)] < TRIES:
                        tell(piece.seed, "", "note", {"text": f"{piece}: job {job.job_id} was lost; going on from its checkpoint in a new one"})
                        queue.appendleft(piece)
                    else:
                        yield piece, lost(piece, f"see the logs of job {job.job_id} in {self.folder / 'submitit'}")
        finally:
            for _, job in running:
                job.cancel(check=False)

    def _executor(self) -> Any:
        import submitit

        executor = submitit.AutoExecutor(folder=self.folder / "submitit", cluster=self.settings["executor"])
        given = {_NAMES.get(key, f"slurm_{key}"): value for key, value in self.settings.items() if key not in ("executor", "parallel")}
        executor.update_parameters(name=f"retain-{self.folder.name}", cpus_per_task=self.spec.threads, **given)
        return executor

    def _submit(self, executor: Any, pieces: list[Piece]) -> list[Any]:
        try:
            with executor.batch():  # on SLURM an array
                jobs = [executor.submit(do_far, piece, self.every, data_folder()) for piece in pieces]
        except Exception as error:  # submitit passes on whatever sbatch says
            raise RetainError(f"Jobs could not be submitted: {error}") from error
        return jobs

    def _end(self, piece: Piece, job: Any) -> End | None:
        """How a job's piece ended; ``None`` if the job was lost."""
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            end: End = job.result()
        except (UncompletedJobError, FailedJobError):
            return End("done") if piece.finished else None
        return end
