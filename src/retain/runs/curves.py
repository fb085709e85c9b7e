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
_CELL = "cell"  # after them, where the run is made of cells


def write_epochs(run: Run) -> None:
    """Write ``epochs.csv`` into the run's folder, from the epochs and points in the events of all seeds; nothing if there are none.

    Columns are seed, stage (the arm), task, epoch and method (and the cell, in a run made of cells), then every other number of the events
    in order of name; one number a task is a column such as ``accuracy:mnist``. An entry is empty where an event lacks the number, or it was
    not finite.

    Args:
        run: The run, finished or not.

    Raises:
        RetainError: If the file cannot be written.
    """
    rows = list(_rows(run))
    if not rows:
        return
    keys = {key for row in rows for key in row}
    first = [*_FIRST, *({_CELL} & keys)]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, [*first, *sorted(keys - set(first))], lineterminator="\n")
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
                cell = {_CELL: event[_CELL]} if _CELL in event else {}
                yield {**dict(_numbers(event)), **cell, "seed": seed, "stage": event["arm"], "task": event.get("task"), "method": event.get("method")}


def _numbers(fields: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{before}{key}:")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield before + key, value
