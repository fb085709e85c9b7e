"""The search that comes before a run: rounds of trials, each a grid of cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from retain.runs.folder import Run
from retain.runs.grid import Grid
from retain.studies.base import Spec, Study


def settle(study: Study, spec: Spec, run: Run, work: Callable[[Grid], None] | None = None) -> Spec | None:
    """The spec with what its search found; the spec itself where it has none, or where all seeds of the run are finished.

    Args:
        study: The study.
        spec: Its settings.
        run: The run.
        work: Does the trials that are not finished; without it they are only read.

    Returns:
        The spec, or ``None`` if trials are missing.
    """
    if all((run.path / f"seed-{seed}" / "result.json").exists() for seed in range(spec.seeds)):
        return spec

    finished = 0  # of this round's trials

    def tell(seed: int, arm: str, kind: str, fields: dict[str, Any]) -> None:
        """Trials are no stages of the run: only that one is finished is told."""
        nonlocal finished
        if kind == "done":
            finished += 1
            run.listener(seed, "", "note", {"text": f"search, round {len(rounds) + 1}: {finished} of {len(trials)} trials finished, the last of {arm}"})

    quiet = Run(run.path, tell, run.every)
    rounds: list[list[dict[str, Any]]] = []
    while trials := study.trials(spec, rounds):
        grid = Grid(study, spec.model_copy(update={"seeds": 1}), quiet, trials)
        finished = sum(result is not None for result in grid.found(0))
        if work is not None:
            work(grid)
        found = [result for result in grid.found(0) if result is not None]
        if len(found) < len(trials):
            return None
        rounds.append(found)
    return study.settled(spec, rounds)  # type: ignore[no-any-return]
