"""The loss between two models before and after their units are put into one order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from retain.diagnosis.barrier import CAVEAT, Barrier, barrier
from retain.figures import Lines, Series, Table
from retain.merging.align import Alignment, align
from retain.training.recorder import Recorder


@dataclass(frozen=True, repr=False)
class AlignedBarrier:
    """The line between two models as they came, and with the second one's units in the order of the first one's.

    Args:
        before: As they came.
        after: With the second model aligned.
        alignment: How it was.
    """

    before: Barrier
    after: Barrier
    alignment: Alignment

    def table(self) -> Table:
        """The ends, the worst point and the barrier, before and after."""
        body = []
        for name, found in (("as they came", self.before), ("aligned", self.after)):
            for part, values in found.loss.items():
                body.append([f"{part}, {name}", *(f"{value:.4f}" for value in (values[0], values[-1], max(values), found.height[part]))])
        columns = ["part", "loss at 0", "loss at 1", "largest", "barrier"]
        return Table("Loss along the line between two models, nats", columns, body, f"{len(self.before.t)} points. {CAVEAT}")

    def figures(self) -> list[Lines]:
        """The two curves, a panel a part."""
        panels = {
            part: [Series("as they came", self.before.t, values), Series("aligned", self.after.t, self.after.loss[part])]
            for part, values in self.before.loss.items()
        }
        return [Lines("Loss along the line, before and after alignment", "t", "nats", panels=panels, id="aligned-barrier")]

    def _repr_html_(self) -> str:
        return self.table().html()

    def __repr__(self) -> str:
        return self.table().text()


def aligned_barrier(
    first: nn.Module,
    second: nn.Module,
    task: Any,
    *,
    points: int = 11,
    samples: int = 512,
    reestimate: bool | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> AlignedBarrier:
    r"""The loss barrier between two models, :math:`\max_t L(\theta_t) - (1 - t) L(\theta_0) - t L(\theta_1)`, before and after alignment.

    Between networks that were trained from different starts the loss rises; much of that goes where the units of one are put into the order of the other's
    (Entezari et al. 2022, https://arxiv.org/abs/2110.06296; Ainsworth, Hayase and Srinivasa 2023, https://arxiv.org/abs/2209.04836). Both lines are those of
    :func:`~retain.diagnosis.barrier`, with batch-norm statistics estimated anew at every point; the order is that of :func:`~retain.merging.align`.

    Args:
        first: The model at t = 0, whose order of units is kept.
        second: The model at t = 1; same names and shapes.
        task: Where loss is measured.
        points: On the line with both ends, at least 3.
        samples: Of each part.
        reestimate: Estimate batch-norm statistics anew; by default if there is batch norm.
        seed: Of the draw, and of the order of groups.
        recorder: Where progress is reported.

    Returns:
        Both barriers and the alignment.

    Raises:
        InputError: If the models differ in architecture (the first differing name is given), weights are not finite, or a number is out of range.
        RetainError: As :func:`~retain.merging.align` raises it.

    Example:
        >>> from retain import models, tasks
        >>> from retain.merging import aligned_barrier
        >>> first, second = models.MLP(64, 16, 10, seed=0), models.MLP(64, 16, 10, seed=1)
        >>> found = aligned_barrier(first, second, tasks.digits(), points=3)
        >>> list(found.before.height), found.alignment.distance[1] < found.alignment.distance[0]
        (['train', 'test'], True)
    """
    settings: dict[str, Any] = {"points": points, "samples": samples, "reestimate": reestimate, "seed": seed, "recorder": recorder}
    before = barrier(first, second, task, **settings)
    alignment = align(second, first, task, seed=seed)
    return AlignedBarrier(before, barrier(first, alignment.model, task, **settings), alignment)
