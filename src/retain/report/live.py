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
from rich.text import Text


class Display:
    """A live table on standard error; plain lines where that is not a terminal.

    Args:
        title: What runs.
        stages: Stages of one seed, in order.
        seeds: Number of seeds.
        done: Seeds that are finished already.
        together: Whether several seeds, or cells of one, may run at the same time.
    """

    def __init__(self, title: str, stages: list[str], seeds: int, done: int = 0, *, together: bool = False) -> None:
        self.console = Console(file=sys.stderr)
        self.title, self.stages, self.seeds = title, stages, seeds
        self.seed, self.together = 0, together
        self.rows: dict[tuple[int, str], dict[str, Any]] = {}
        self.finished: set[tuple[int, str]] = set()
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
        self.seed = seed
        if kind in ("epoch", "step"):
            self.rows[seed, arm] = fields
        elif kind == "remembered" and (seed, arm) in self.rows:
            self.rows[seed, arm] = {**self.rows[seed, arm], "accuracy": fields["accuracy"]}
        elif kind == "done" and (seed, arm) not in self.finished:
            self.finished.add((seed, arm))
            self._progress.advance(self._bar)
            if not self._live:
                self._line(seed, arm)
        elif kind == "found":
            new = {(seed, stage) for stage in fields["stages"]} - self.finished
            self.finished |= new
            self._progress.advance(self._bar, len(new))
            self._say(fields["text"], "")
        elif kind in ("verdict", "note"):
            self._say(fields["text"], "bold" if kind == "verdict" else "")
        if self._live:
            self._live.update(self._view())

    def _say(self, text: str, style: str) -> None:
        self.verdicts.append(text)
        if not self._live:
            self.console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)

    def _line(self, seed: int, arm: str) -> None:
        entry = self.rows.get((seed, arm))
        scores = "  ".join(f"{task} {100 * value:.1f} %" for task, value in entry["accuracy"].items()) if entry else "restored"
        self.console.print(f"[{time.monotonic() - self._began:6.1f} s] seed {seed}  {arm:<12} {scores}", highlight=False, markup=False, soft_wrap=True)

    def _view(self) -> Group:
        return Group(self._several() if self.together else self._one(), *(Text(said) for said in self.verdicts[-2:]), self._progress)

    def _several(self) -> Table:
        """What is being learned now, whatever seed it is of."""
        table = Table(title=self.title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for heading in ("seed", "arm", "learns", "epoch", "loss", "accuracy, %"):
            table.add_column(heading, justify="left" if heading in ("arm", "learns", "accuracy, %") else "right")
        for (seed, arm), row in [entry for entry in self.rows.items() if entry[0] not in self.finished][-16:]:
            scores = "  ".join(f"{task} {100 * value:.1f}" for task, value in row["accuracy"].items())
            table.add_row(str(seed), arm, row["task"], f"{row['epoch']}/{row['epochs']}", f"{row['loss']:.3f}", scores)
        return table

    def _one(self) -> Table:
        """The stages of the seed that runs."""
        table = Table(title=f"{self.title}, seed {self.seed}", title_justify="left", box=None, padding=(0, 2, 0, 0))
        rows = {arm: row for (seed, arm), row in self.rows.items() if seed == self.seed}
        names = next((list(row["accuracy"]) for row in rows.values()), [])
        for heading in ("arm", "learns", "epoch", "loss", *names):
            table.add_column(heading, justify="left" if heading in ("arm", "learns") else "right")
        main = [stage for stage in self.stages if "@" not in stage]
        grid = [stage for stage in self.stages if "@" in stage and stage in rows]
        for arm in [*main, *grid[-3:]]:
            row, over = rows.get(arm), (self.seed, arm) in self.finished
            if row is None:
                table.add_row(arm, "restored" if over else "", "", "", style="dim")
                continue
            scores = [f"{100 * value:.1f}" for value in row["accuracy"].values()]
            table.add_row(arm, row["task"], f"{row['epoch']}/{row['epochs']}", f"{row['loss']:.3f}", *scores, style="" if over else "bold")
        return table
