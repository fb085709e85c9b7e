"""Whether two sets of weights lie in one basin: the loss along the straight line between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from retain.diagnosis.inputs import FORWARD, as_checked, held, part_of, same, weights
from retain.diagnosis.walk import Walker, norms, said, statistics
from retain.errors import check_count
from retain.figures import Lines, Series, Table
from retain.training.evaluation import Evaluation
from retain.training.recorder import Recorder, Silent

CAVEAT = (
    "A barrier on the straight line does not mean separate basins: permuting hidden units or a curved path may remove it. No barrier does not mean equal "
    "answers: the ends may differ wherever the loss does not look."
)


@dataclass(frozen=True, repr=False)
class Barrier:
    """Loss and score along a line.

    Args:
        t: From 0, the first model, to 1, the second.
        loss: Mean negative log likelihood by part of the task, at every t; with batch-norm statistics estimated anew, if they are.
        score: Accuracy likewise, or what the likelihood calls score.
        stored: Loss likewise with the statistics that the models came with, interpolated between the ends; empty where no statistics are estimated.
        score_name: What the score is.
    """

    t: list[float]
    loss: dict[str, list[float]]
    score: dict[str, list[float]]
    stored: dict[str, list[float]]
    score_name: str = "accuracy"

    @property
    def height(self) -> dict[str, float]:
        """The barrier by part: the largest excess of the loss over the straight line between the ends, in nats, at least 0."""
        return {part: _height(self.t, values) for part, values in self.loss.items()}

    @property
    def stored_height(self) -> dict[str, float]:
        """The same with the models' own statistics."""
        return {part: _height(self.t, values) for part, values in self.stored.items()}

    @property
    def score_height(self) -> dict[str, float]:
        """The largest fall of the score below the straight line between the ends."""
        return {part: _height(self.t, [-value for value in values]) for part, values in self.score.items()}

    def table(self) -> Table:
        """The ends, the worst point and the barrier."""
        body = []
        for part, values in self.loss.items():
            for name, curve, score in ((part, values, self.score[part]), *([(f"{part}, own statistics", self.stored[part], None)] if self.stored else [])):
                shown = "" if score is None else f"{100 * score[0]:.1f} / {100 * min(score):.1f} / {100 * score[-1]:.1f}"
                body.append([name, *(f"{value:.4f}" for value in (curve[0], curve[-1], max(curve), _height(self.t, curve))), shown])
        columns = ["part", "loss at 0", "loss at 1", "largest", "barrier", f"{self.score_name} at 0 / least / at 1, %"]
        return Table("Loss along the line between two sets of weights, nats", columns, body, f"{len(self.t)} points. {CAVEAT}")

    def figures(self) -> list[Lines]:
        """Loss and score over t."""
        losses = [Series(part, self.t, values, color=i) for i, (part, values) in enumerate(self.loss.items())]
        losses += [Series(f"{part}, own statistics", self.t, values, color=i, dashed=True) for i, (part, values) in enumerate(self.stored.items())]
        scores = [Series(part, self.t, [100 * value for value in values]) for part, values in self.score.items()]
        return [
            Lines("Loss along the line", "t", "nats", losses, id="barrier"),
            Lines(f"{self.score_name} along the line", "t", f"{self.score_name}, %", scores, id="barrier-score"),
        ]

    def _repr_html_(self) -> str:
        return self.table().html()

    def __repr__(self) -> str:
        return self.table().text()


def barrier(
    first: nn.Module,
    second: nn.Module,
    task: Any,
    *,
    points: int = 11,
    samples: int = 512,
    reestimate: bool | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> Barrier:
    r"""The loss on the straight line between two models, and the barrier, :math:`\max_t L(\theta_t) - (1 - t) L(\theta_0) - t L(\theta_1)`.

    :math:`\theta_t = (1-t)\theta_0 + t\theta_1` (Frankle et al. 2020, https://arxiv.org/abs/1912.05671; Neyshabur, Sedghi and Zhang 2020, section 3.2,
    https://arxiv.org/abs/2008.11687: runs fine-tuned from one pretrained start have none). At the same t the ends are joined linearly, as in the latter; the
    mean of the ends, as in the former, gives the same where they are equal. Batch-norm statistics are estimated anew at every point, the ends
    included, on training data (Jordan et al. 2023, https://arxiv.org/abs/2211.08403): without that most of a barrier may be theirs.

    Args:
        first: The model at t = 0.
        second: The model at t = 1; same names and shapes.
        task: Loss is measured on its training data and, where it has them, its test data.
        points: On the line with both ends, at least 3.
        samples: Of each part, drawn at random (of a loader: the first).
        reestimate: Estimate batch-norm statistics anew on the training samples; by default if there is batch norm.
        seed: Of the draw.
        recorder: Where progress is reported, an event a point.

    Returns:
        Curves and barriers by part.

    Raises:
        InputError: If the models differ in architecture (the first differing name is given), weights are not finite, or a number is out of range.

    Example:
        >>> from retain import models, tasks
        >>> from retain.diagnosis import barrier
        >>> net = models.MLP(64, 32, 10, seed=0)
        >>> barrier(net, net, tasks.digits(), points=3).height
        {'train': 0.0, 'test': 0.0}
    """
    check_count("points", points, least=3)
    start, end = weights(first, "first"), weights(second, "second")
    same(start, end, "second")
    task, recorder = as_checked(task), recorder or Silent()
    names = {"train": "data"} | ({} if part_of(task) == "data" else {part_of(task): part_of(task)})
    parts = {name: held(first, task, part, samples, seed, FORWARD) for name, part in names.items()}
    anew = bool(norms(first)) and reestimate is not False
    walker = Walker(first, parts, parts["train"] if anew else None)
    found: list[dict[str, Evaluation]] = []
    stored: list[dict[str, Evaluation]] = []
    ts = [i / (points - 1) for i in range(points)]
    for number, t in enumerate(ts, start=1):
        walker.between(end, statistics(second), t)
        if anew:
            stored.append(walker.measure(anew=False))
        found.append(walker.measure())
        said(recorder, "barrier", number, points, found[-1]["train"])
    loss, before = ({part: [one[part].nll for one in every] for part in parts} if every else {} for every in (found, stored))
    return Barrier(ts, loss, {part: [one[part].score for one in found] for part in parts}, before, task.likelihood.score_name)


def _height(t: list[float], values: list[float]) -> float:
    excess = [value - (1 - at) * values[0] - at * values[-1] for at, value in zip(t, values, strict=True)]
    return max(0.0, *(math.inf if math.isnan(value) else value for value in excess))
