"""Runs side by side."""

from __future__ import annotations

from retain.errors import InputError
from retain.figures import Table
from retain.metrics import Estimate
from retain.runs.folder import Run, revive


def compare(runs: list[Run]) -> list[Table]:
    """The settings in which runs of one study differ, and their main numbers.

    Args:
        runs: At least two runs of the same study, with summaries.

    Returns:
        A table of the settings that differ and a table of the numbers.

    Raises:
        InputError: If there are fewer than two runs, or they belong to different studies.
    """
    if len(runs) < 2:
        raise InputError("runs", "at least two", len(runs))
    specs = [run.spec() for run in runs]
    studies = sorted({spec["study"] for spec in specs})
    if len(studies) > 1:
        raise InputError("runs", "runs of one study", ", ".join(studies))
    heads = [run.path.name for run in runs]
    settings = [spec["settings"] for spec in specs]
    keys = [key for key in settings[0] if len({str(one.get(key)) for one in settings}) > 1]
    differing = Table("Settings that differ", ["", *heads], [[key, *(str(one.get(key)) for one in settings)] for key in keys])
    summaries = [revive(run.read("summary.json")) for run in runs]
    numbers = [summary["numbers"] for summary in summaries]
    remarks = " ".join(dict.fromkeys(note for summary in summaries for note in summary["notes"]))
    rows = []
    for arm in dict.fromkeys(arm for found in numbers for arm in found):
        for measure in dict.fromkeys(measure for found in numbers for measure in found.get(arm, {})):
            cells = [Estimate(**found[arm][measure]).percent() if measure in found.get(arm, {}) else "" for found in numbers]
            rows.append([f"{arm}, {measure} %", *cells])
    counts = ", ".join(f"{head}: {len(run.seeds())}" for head, run in zip(heads, runs, strict=True))
    return [differing, Table("Results", ["", *heads], rows, f"Mean ± standard error over seeds ({counts}). {remarks}".strip())]
