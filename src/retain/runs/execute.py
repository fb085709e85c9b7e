"""Executing a study, seed by seed, and going on after an interruption."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from retain.errors import InputError, RetainError
from retain.runs.curves import write_epochs
from retain.runs.folder import Listener, Run, environment
from retain.studies.base import Spec, Study


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
) -> Run:
    """Run the seeds of a spec that have no result yet.

    Args:
        study: The study.
        spec: Its settings.
        out: The folder of runs; the run is ``OUT/STUDY/HASH``.
        at: Go on with the run in this folder, which has to be of the same spec.
        resume: Go on with an interrupted run. Without it an interrupted run is refused, so that nothing is overwritten.
        fresh: Remove the seeds that are there and start anew.
        force: Go on under another version of torch, without the promise of equal bits.
        listener: Told of every event.
        every: Least seconds between two checkpoints of an arm; by default RETAIN_CHECKPOINT_SECONDS, or 2.

    Returns:
        The run, finished.

    Raises:
        InputError: If the folder holds an interrupted run and neither ``resume`` nor ``fresh`` is given, or a run of another spec.
        RetainError: If it was made with another version of torch, or another process runs it.
    """
    import torch

    path = at or out / study.name / spec.fingerprint(study)
    run = Run(path, listener, float(os.environ.get("RETAIN_CHECKPOINT_SECONDS", 2)) if every is None else every)
    if at is not None and not run.exists:
        raise InputError("--resume", "a run's folder", at, "See 'retain list runs'.")
    study.check(spec)  # what is wrong with the settings or the data is said before anything is written
    with run.locked():
        if run.exists:
            _check(run, study, spec, resume=resume, fresh=fresh, force=force)
            if fresh:
                for found in path.iterdir():
                    if found.is_dir():
                        shutil.rmtree(found)
        seeds = max([spec.seeds, *(k + 1 for k in run.seeds())])  # results that are there are not hidden
        settings = {**spec.model_dump(mode="json"), "seeds": seeds}
        run.write("spec.json", {"study": study.name, "version": study.version, "settings": settings})
        before = torch.get_num_threads()
        torch.set_num_threads(spec.threads)
        try:
            for k in range(spec.seeds):
                if (path / f"seed-{k}" / "result.json").exists():
                    run.tidy(k)
                    continue
                run.write("env.json", environment())
                folder = run.seed(k)
                try:
                    folder.finish(study.run(spec, k, folder))
                finally:
                    folder.close()
        finally:
            torch.set_num_threads(before)
        summarise(study, spec, run)
        write_epochs(run)
    return run


def summarise(study: Study, spec: Spec, run: Run) -> None:
    """Write what the finished seeds say together, ``summary.json``."""
    outcome = study.summarise(spec, run.results())
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


def _check(run: Run, study: Study, spec: Spec, *, resume: bool, fresh: bool, force: bool) -> None:
    stored = run.spec()
    different = differences(stored.get("settings", {}), spec.model_dump(mode="json"), ignore=spec._unhashed)
    if stored.get("study") != study.name or stored.get("version") != study.version:
        different = [f"study {stored.get('study')} version {stored.get('version')} there, {study.name} version {study.version} here", *different]
    if different:
        raise InputError("--resume", f"the settings of {run.path}", "; ".join(different), "Pass the same settings, or run without --resume.")
    if fresh:
        return
    begun = [folder for folder in sorted(run.path.glob("seed-*")) if not (folder / "result.json").exists() and any(folder.iterdir())]
    if begun and not resume:
        names = ", ".join(folder.name for folder in begun)
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
