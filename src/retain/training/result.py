"""What learning a stream gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from retain import metrics
from retain.figures import Lines, Series, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from retain.methods.base import Method


@dataclass(repr=False)
class Result:
    """The record of one model learning a stream of tasks.

    Args:
        tasks: Ids of the tasks that are scored, the columns of :attr:`accuracy`.
        learned: Ids of the tasks that were learned, in order.
        rows: Score on every task before learning and after each task: the rows of :attr:`accuracy`.
        nll_rows: Negative log likelihood likewise, nats per observation.
        validation_rows: Scores on validation data likewise, ``nan`` for tasks without any.
        history: One entry an epoch: ``task``, ``epoch`` (from 1), on its training batches ``loss`` (mean nll) and ``score``, by task id ``accuracy``, ``nll``,
            ``validation`` and ``validation_nll``, and what the method reports, such as ``kl``.
        statistics: Batch-norm statistics by task id, under ``batchnorm="per-task"``.
        score_name: What the scores are.
        model: The trained model.
        method: The method, with what it remembers.
    """

    tasks: list[str]
    learned: list[str] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)
    nll_rows: list[list[float]] = field(default_factory=list)
    validation_rows: list[list[float]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    statistics: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    score_name: str = "accuracy"
    model: nn.Module | None = None
    method: Method | None = None

    @property
    def accuracy(self) -> np.ndarray:
        """R[i, j]: score on task j after i tasks, ``[T + 1, T]``; row 0 is before any learning."""
        return np.array(self.rows)

    @property
    def nll(self) -> np.ndarray:
        """Negative log likelihood in nats per observation, laid out as :attr:`accuracy`."""
        return np.array(self.nll_rows)

    @property
    def average_accuracy(self) -> float:
        """See :func:`retain.metrics.average_accuracy`."""
        return metrics.average_accuracy(self.accuracy)

    @property
    def forgetting(self) -> float:
        """See :func:`retain.metrics.forgetting`."""
        return metrics.forgetting(self.accuracy)

    @property
    def backward_transfer(self) -> float:
        """See :func:`retain.metrics.backward_transfer`."""
        return metrics.backward_transfer(self.accuracy)

    @property
    def forward_transfer(self) -> float:
        """See :func:`retain.metrics.forward_transfer`."""
        return metrics.forward_transfer(self.accuracy)

    @property
    def curve(self) -> list[list[float]]:
        """Scores on the watched tasks met so far, at every point of training that was scored."""
        points = [(self.learned.index(entry["task"]) + 1, entry["accuracy"]) for entry in self.history if entry["accuracy"]]
        return [[scores[id] for id in self.tasks if id in self.learned[:count]] for count, scores in points]

    @property
    def anytime(self) -> float:
        """See :func:`retain.metrics.anytime`; of the points that were scored, usually once an epoch."""
        return metrics.anytime(self.curve)

    def table(self) -> Table:
        """The accuracy matrix as a table that prints and shows itself in a notebook."""
        labels = ["before", *(f"after {task}" for task in self.learned)]
        rows = [[label, *(f"{100 * value:.1f}" for value in row)] for label, row in zip(labels, self.rows, strict=False)]
        return Table(f"{self.score_name}, %", ["", *self.tasks], rows)

    def plot(self) -> Figure:
        """The scores on every task over the epochs, as a matplotlib figure."""
        from retain.figures import draw

        series = []
        for task in self.tasks:
            points = [(i + 1, entry["accuracy"][task]) for i, entry in enumerate(self.history) if task in entry["accuracy"]]
            series.append(Series(task, [x for x, _ in points], [100 * y for _, y in points]))
        return draw(Lines("Score over time", "epoch", f"{self.score_name}, %", series))

    def _repr_html_(self) -> str:
        return self.table().html()

    def __repr__(self) -> str:
        return self.table().text()
