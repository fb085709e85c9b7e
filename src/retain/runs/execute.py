"""Executing a study, piece by piece, here or elsewhere, and going on after an interruption."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retain.errors import InputError, RetainError, check_count, nearest
from retain.runs.curves import write_epochs
from retain.runs.folder import Listener, Run, environment
from retain.runs.grid import Gathered, Grid, raise_failures
from retain.runs.local import Local
from retain.runs.pieces import End, Piece, Place
from retain.runs.trials import settle
from retain.studies.base import Outcome, Spec, Study

CLUSTERS = ("ray", "slurm")
_FRESH = "fresh.json"


def execute(
    study: Study,
    spec: Spec,
    out: Path,
    *,
    at: Path | None = None,
    resume: bool = False,
    fresh: bool = False,
    force: bool = False,
    listener: Listener | None = None,
    every: float | None = None,
    jobs: int = 1,
    cluster: str | None = None,
    address: str | None = None,
    slurm: Mapping[str, str] | None = None,
) -> Run:
    """Run the pieces of a spec, seeds or cells times seeds, that have no result yet.

    Args:
        study: The study.
        spec: Its settings.
        out: The folder of runs; the run is ``OUT/STUDY/HASH``.
        at: Go on with the run in this folder, which has to be of the same spec.
        resume: Go on with an interrupted run. Without it an interrupted run is refused, so that nothing is overwritten.
        fresh: Remove the seeds that are there, and those of its cells, and start anew.
        force: Go on under another version of torch, without the promise of equal bits.
        listener: Told of every event.
        every: Least seconds between two checkpoints of an arm; by default RETAIN_CHECKPOINT_SECONDS, or 2.
        jobs: Processes of this machine that do pieces at the same time; 1 is this process alone.
        cluster: ``ray`` or ``slurm``: do the pieces there.
        address: Of the Ray cluster, ``HOST:PORT`` or ``auto``; without one, a Ray of this machine.
        slurm: Settings of the jobs, such as ``partition``; see :data:`retain.runs.on_slurm.SETTINGS`.

    Returns:
        The run, finished.

    Raises:
        InputError: If the folder holds an interrupted run and neither ``resume`` nor ``fresh`` is given, or a run of another spec.
        RetainError: If it was made with another version of torch, another process runs it, or a piece failed; the others are finished then.
    """
    path = at or out / study.name / spec.fingerprint(study)
    run = Run(path, listener, float(os.environ.get("RETAIN_CHECKPOINT_SECONDS", 2)) if every is None else every)
    place = _place(run, spec, jobs, cluster, address, slurm)
    if at is not None and not run.exists:
        raise InputError("--resume", "a run's folder", at, "See 'retain list runs'.")
    study.check(spec)  # what is wrong with the settings or the data is said before anything is written
    Grid(study, spec, run)  # so are cells that are equal
    failed: list[tuple[Piece, End]] = []

    def work(grid: Grid) -> None:
        _clear(grid, run)
        grid.prepare(force)
        failed.extend(grid.work(place))

    with run.locked():
        if run.exists:
            _check(run, study, spec, resume=resume, fresh=fresh, force=force)
        if fresh:
            _anew(spec, run)
        seeds = max([spec.seeds, *(k + 1 for k in run.seeds())])  # results that are there are not hidden
        settings = {**spec.model_dump(mode="json"), "seeds": seeds}
        run.write("spec.json", {"study": study.name, "version": study.version, "settings": settings})
        whole = settle(study, spec, run, work)
        if whole is None:
            raise_failures(failed, run, len(failed))
        grid = Grid(study, whole or spec, run)
        work(grid)
        (run.path / _FRESH).unlink(missing_ok=True)
        gathered = grid.gather()
        if gathered.results:
            summarise(study, spec, run, gathered)
            write_epochs(run)
        raise_failures(failed, run, gathered.total)
    return run


def _place(run: Run, spec: Spec, jobs: int, cluster: str | None, address: str | None, slurm: Mapping[str, str] | None) -> Place | None:
    """Where the pieces are done; ``None`` is this process."""
    check_count("--jobs", jobs)
    if cluster is not None and cluster not in CLUSTERS:
        raise InputError("--cluster", "ray or slurm", repr(cluster), nearest(cluster, CLUSTERS))
    if cluster is not None and jobs > 1:
        raise InputError("--jobs", "1 with --cluster", jobs, "The cluster decides how many pieces it does at the same time.")
    if address is not None and cluster != "ray":
        raise InputError("--address", "--cluster ray with it", cluster or "no cluster")
    if slurm and cluster != "slurm":
        raise InputError("--slurm", "--cluster slurm with it", cluster or "no cluster")
    if cluster == "ray":
        from retain.runs.on_ray import OnRay

        return OnRay(address, run.path, spec, run.every)
    if cluster == "slurm":
        from retain.runs.on_slurm import OnSlurm

        return OnSlurm(slurm or {}, run.path, spec, run.every)
    return Local(jobs, run.every) if jobs > 1 else None


def summarise(study: Study, spec: Spec, run: Run, gathered: Gathered) -> Outcome:
    """Write what the finished pieces say together, ``summary.json``; if some are missing, headline and notes say how many are not.

    Args:
        study: The study.
        spec: Its settings.
        run: The run.
        gathered: What of it is there.

    Returns:
        What was written.
    """
    outcome = study.summarise(spec, gathered.results)
    if len(gathered.versions) > 1:
        outcome.notes.append(f"Parts of this run were made by different versions: {'; '.join(gathered.versions)}.")
    if gathered.remark:
        outcome.headline += f" ({gathered.remark}.)"
        outcome.notes.insert(0, f"This run is not finished: {gathered.remark}. Go on with it: retain run {study.name} --resume {run.path}.")
    run.write(
        "summary.json",
        {
            "headline": outcome.headline,
            "numbers": outcome.numbers,
            "notes": outcome.notes,
            "tables": [f"{table.text()}" for table in outcome.tables[:1]],
            "picture": outcome.figures[0].id,
        },
    )
    return outcome


def _anew(spec: Spec, run: Run) -> None:
    """Remove all seeds of a run, and note that its cells are to go too: each grid of them before it is begun, after a kill as well."""
    stored = run.spec()["settings"].get("seeds", 1) if run.exists else 1
    begun = [int(folder.name.removeprefix("seed-")) + 1 for folder in run.path.glob("seed-*")]
    run.write(_FRESH, {"seeds": max(spec.seeds, stored, *begun), "cleared": []})
    run.clear()


def _clear(grid: Grid, run: Run) -> None:
    """Remove what there is of a grid's cells, if the run is made anew and they are not yet new."""
    if not (run.path / _FRESH).exists():
        return
    note = run.read(_FRESH)
    if not set(grid.hashes) <= set(note["cleared"]):
        grid.clear(note["seeds"] if grid.joins else 1)
        run.write(_FRESH, {**note, "cleared": [*note["cleared"], *grid.hashes]})


def _check(run: Run, study: Study, spec: Spec, *, resume: bool, fresh: bool, force: bool) -> None:
    stored = run.spec()
    later = {key: type(spec).model_fields[key].default for key in spec._later}
    different = differences({**later, **stored.get("settings", {})}, spec.model_dump(mode="json"), ignore=spec._unhashed)
    if stored.get("study") != study.name or stored.get("version") != study.version:
        different = [f"study {stored.get('study')} version {stored.get('version')} there, {study.name} version {study.version} here", *different]
    if different:
        raise InputError("--resume", f"the settings of {run.path}", "; ".join(different), "Pass the same settings, or run without --resume.")
    if fresh:
        return
    begun = [folder.name for folder in sorted(run.path.glob("seed-*")) if not (folder / "result.json").exists() and any(folder.iterdir())]
    if not begun and not run.seeds() and study.trials(spec, []):
        begun = ["the search"]
    if begun and not resume:
        names = ", ".join(begun)
        raise InputError(
            "run", "a new run, or a finished one", f"an interrupted one in {run.path} ({names})", "Pass --resume to go on with it, or --fresh to start anew."
        )
    if (run.path / "env.json").exists() and any(k not in run.seeds() for k in range(spec.seeds)):
        made, now = run.read("env.json").get("torch"), environment()["torch"]
        if made != now and not force:
            raise RetainError(f"{run.path} was made with torch {made}, this is {now}: equal bits cannot be promised. Pass --force to go on all the same.")


def differences(there: dict[str, Any], here: dict[str, Any], ignore: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """Settings in which two specs differ, as ``key: a there, b here``."""
    keys = [key for key in {**there, **here} if key not in ignore]
    return [f"{key}: {there.get(key)} there, {here.get(key)} here" for key in keys if there.get(key) != here.get(key)]
