"""What a person sees while a study runs."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


class Display:
    """A live table on standard error; plain lines where that is not a terminal.

    Args:
        title: What runs.
        stages: Stages of one seed, in order.
        seeds: Number of seeds.
        done: Seeds that are finished already.
    """

    def __init__(self, title: str, stages: list[str], seeds: int, done: int = 0) -> None:
        self.console = Console(file=sys.stderr)
        self.title, self.stages, self.seeds = title, stages, seeds
        self.seed = 0
        self.rows: dict[str, dict[str, Any]] = {}
        self.finished: set[str] = set()
        self.verdicts: list[str] = []
        self._began = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("stages"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._bar = self._progress.add_task(title, total=len(stages) * seeds, completed=len(stages) * done)
        self._live = Live(self._view(), console=self.console, refresh_per_second=6) if self.console.is_terminal else None

    def __enter__(self) -> Display:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.update(self._view())
            self._live.__exit__(kind, value, trace)

    def __call__(self, seed: int, arm: str, kind: str, fields: dict[str, Any]) -> None:
        """Show an event."""
        if seed != self.seed:
            self.seed, self.rows, self.finished = seed, {}, set()
        if kind in ("epoch", "step"):
            self.rows[arm] = fields
        elif kind == "done" and arm not in self.finished:
            self.finished.add(arm)
            self._progress.advance(self._bar)
            if not self._live:
                self._line(arm)
        elif kind == "verdict":
            self.verdicts.append(fields["text"])
            if not self._live:
                self.console.print(fields["text"], style="bold", soft_wrap=True, highlight=False)
        if self._live:
            self._live.update(self._view())

    def _line(self, arm: str) -> None:
        entry = self.rows.get(arm)
        scores = "  ".join(f"{task} {100 * value:.1f} %" for task, value in entry["accuracy"].items()) if entry else "restored"
        self.console.print(f"[{time.monotonic() - self._began:6.1f} s] seed {self.seed}  {arm:<12} {scores}", highlight=False, markup=False, soft_wrap=True)

    def _view(self) -> Group:
        table = Table(title=f"{self.title}, seed {self.seed}", title_justify="left", box=None, padding=(0, 2, 0, 0))
        names = next((list(row["accuracy"]) for row in self.rows.values()), [])
        for heading in ("arm", "learns", "epoch", "loss", *names):
            table.add_column(heading, justify="left" if heading in ("arm", "learns") else "right")
        main = [stage for stage in self.stages if "@" not in stage]
        grid = [stage for stage in self.stages if "@" in stage and stage in self.rows]
        for arm in [*main, *grid[-3:]]:
            row = self.rows.get(arm)
            if row is None:
                table.add_row(arm, "restored" if arm in self.finished else "", "", "", style="dim")
                continue
            scores = [f"{100 * value:.1f}" for value in row["accuracy"].values()]
            table.add_row(arm, row["task"], f"{row['epoch']}/{row['epochs']}", f"{row['loss']:.3f}", *scores, style="" if arm in self.finished else "bold")
        return Group(table, *self.verdicts[-2:], self._progress)
