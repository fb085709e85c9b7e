"""How far the weights went, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retain.diagnosis.inputs import shared, weights
from retain.figures import Bars, Table
from retain.models.parameters import unwrap

CAVEAT = (
    "Distance is in the coordinates of the weights: rescaling two layers against each other, or permuting units, changes it and not what the model answers."
)


class Moved(NamedTuple):
    """L2 distance, the same over the norm at the start, angle at the origin in degrees, number of entries; ``nan`` where the start is 0."""

    l2: float
    relative: float
    angle: float
    size: int


@dataclass(frozen=True, repr=False)
class Distance:
    """Distances between two sets of weights.

    Args:
        layers: By canonical parameter name, in the model's own order.
        total: Of all these parameters as one vector.
        buffers: Of floating point buffers, such as batch-norm statistics, which are no part of ``total``.
        left_out: Parameters of another size: the head.
    """

    layers: dict[str, Moved]
    total: Moved
    buffers: dict[str, Moved]
    left_out: tuple[str, ...]

    def table(self, rows: int = 12) -> Table:
        """The parameters that went farthest for their size, in the model's order, and all together.

        Args:
            rows: At most so many parameters.

        Returns:
            A table that prints and shows itself in a notebook.
        """
        ranked = sorted(self.layers, key=lambda name: -1.0 if math.isnan(self.layers[name].relative) else self.layers[name].relative, reverse=True)
        chosen = set(ranked[:rows])
        body = [_row(name, moved) for name, moved in self.layers.items() if name in chosen]
        more = f" {len(self.layers) - len(chosen)} parameters that moved less are not shown." if len(chosen) < len(self.layers) else ""
        out = f" Left out, of another size: {', '.join(self.left_out)}." if self.left_out else ""
        return Table("Distance from the start", ["parameter", "L2", "relative", "angle", "entries"], [*body, _row("all", self.total)], CAVEAT + more + out)

    def figures(self) -> list[Bars]:
        """Relative distance and angle by layer."""
        known = {name: moved for name, moved in self.layers.items() if not math.isnan(moved.relative) and not name.endswith("bias")}
        numbers = [str(i + 1) for i in range(len(known))]
        relative = {"relative distance": {"": [moved.relative for moved in known.values()]}}
        return [Bars("Distance from the start", "relative distance", numbers, relative, x_label="layer, from the input", id="distance")]

    def _repr_html_(self) -> str:
        return self.table().html()

    def __repr__(self) -> str:
        return self.table().text()


def distance(before: nn.Module, after: nn.Module) -> Distance:
    r"""How far each parameter went: :math:`\|w - w_0\|`, :math:`\|w - w_0\| / \|w_0\|` and :math:`\angle(w, w_0)`.

    Fine-tuned networks stay near their start, and stay nearer in the lower layers (Neyshabur, Sedghi and Zhang 2020, section 3.3,
    https://arxiv.org/abs/2008.11687). The angle is :math:`2 \operatorname{atan2}(\|u - u_0\|, \|u + u_0\|)` with unit vectors u, which keeps its digits near
    0, where an arc cosine loses half of them. All sums are in float64.

    Args:
        before: The model at the start.
        after: The model later; its head may have another number of outputs and is then left out and listed.

    Returns:
        Distances by parameter name, in all, and of buffers.

    Raises:
        InputError: If the architectures differ (the first differing name is given), or a weight is not finite.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from retain.diagnosis import distance
        >>> first, second = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
        >>> _ = first.weight.data.copy_(torch.tensor([[3.0, 0.0]])), second.weight.data.copy_(torch.tensor([[3.0, 3.0]]))
        >>> moved = distance(first, second).layers["weight"]
        >>> moved.l2, moved.relative, round(moved.angle, 6)
        (3.0, 1.0, 45.0)
    """
    start, end = weights(before, "before"), weights(after, "after")
    names, left_out = shared(start, end)
    buffers = [dict(unwrap(model).named_buffers()) for model in (before, after)]
    kept = [
        name
        for name, b in buffers[0].items()
        if b.is_floating_point() and b.numel() and name in buffers[1] and buffers[1][name].shape == b.shape and bool(torch.isfinite(b).all())
    ]
    return Distance(
        {name: _moved([(start[name], end[name])]) for name in names},
        _moved([(start[name], end[name]) for name in names]),
        {name: _moved([(buffers[0][name], buffers[1][name])]) for name in kept},
        tuple(left_out),
    )


def _moved(pairs: Iterable[tuple[Tensor, Tensor]]) -> Moved:
    pairs = list(pairs)
    old, new, gap = (math.sqrt(sum(values)) for values in zip(*((_square(a), _square(b), _between(a, b)) for a, b in pairs), strict=True))
    angle = math.nan
    if old and new:
        apart, together = (math.sqrt(sum(_square(b.to(a.device).double() / new - sign * a.double() / old) for a, b in pairs)) for sign in (1, -1))
        angle = math.degrees(2 * math.atan2(apart, together))
    return Moved(gap, gap / old if old else math.nan, angle, sum(a.numel() for a, _ in pairs))


def _square(a: Tensor) -> float:
    return float(torch.linalg.vector_norm(a, dtype=torch.float64).square())


def _between(a: Tensor, b: Tensor) -> float:
    return _square(b.to(a.device).double() - a.double())


def _row(name: str, moved: Moved) -> list[str]:
    relative, angle = ("" if math.isnan(value) else text for value, text in ((moved.relative, f"{moved.relative:.3g}"), (moved.angle, f"{moved.angle:.1f}°")))
    return [name, f"{moved.l2:.3g}", relative, angle, f"{moved.size:,}"]
