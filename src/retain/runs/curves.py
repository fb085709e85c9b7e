"""What every epoch of a run said, as one table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from retain.runs.folder import Run
from retain.training.checkpoints import write_file

_KINDS = ("epoch", "meta", "samples")  # passes of training, passes in which a rule is learned, points while it is used
_FIRST = ("seed", "stage", "task", "epoch", "method")


def write_epochs(run: Run) -> None:
    """Write ``epochs.csv`` into the run's folder, from the epochs and points in the events of all seeds; nothing if there are none.

    Columns are seed, stage (the arm), task, epoch and method, then every other number of the events in order of name; one number a task
    is a column such as ``accuracy:mnist``. A cell is empty where an event lacks the number, or it was not finite.

    Args:
        run: The run, finished or not.

    Raises:
        RetainError: If the file cannot be written.
    """
    rows = list(_rows(run))
    if not rows:
        return
    others = sorted({key for row in rows for key in row} - set(_FIRST))
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, [*_FIRST, *others], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_file(run.path / "epochs.csv", text.getvalue().encode())


def _rows(run: Run) -> Iterator[dict[str, Any]]:
    files = {int(path.parent.name.removeprefix("seed-")): path for path in run.path.glob("seed-*/events.jsonl")}
    for seed, path in sorted(files.items()):
        for line in path.read_bytes().splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a kill or a full disk leaves half a line
            if event["kind"] in _KINDS:
                yield {**dict(_numbers(event)), "seed": seed, "stage": event["arm"], "task": event.get("task"), "method": event.get("method")}


def _numbers(fields: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{before}{key}:")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield before + key, value
