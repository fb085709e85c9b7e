"""What the loss looks like around a model, along random directions that are normalised filter by filter."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from retain.diagnosis.inputs import FORWARD, as_checked, held, weights
from retain.diagnosis.walk import Walker, norms, said
from retain.errors import InputError, check_count, check_positive
from retain.figures import Contours, Lines, Series, Table
from retain.seeds import generator
from retain.training.recorder import Recorder, Silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAVEAT = (
    "One to three random directions out of all: what they miss may be steep, and a surface that looks convex may hide negative curvature. A flat minimum does "
    "not imply generalisation."
)
_POINTS = {1: 41, 2: 15, 3: 7}


@dataclass(frozen=True, repr=False)
class Surface:
    """The loss on a grid around a model.

    Args:
        offsets: Along every direction, in multiples of the filters' own norms; the model is in the middle.
        loss: Mean negative log likelihood in nats, one axis a direction; infinite where the model no longer answers with numbers.
        score: Accuracy, or what the likelihood calls score.
        cosine: The largest cosine between two directions, in absolute value.
        score_name: What the score is.
    """

    offsets: list[float]
    loss: np.ndarray
    score: np.ndarray
    cosine: float
    score_name: str = "accuracy"

    @property
    def dims(self) -> int:
        """How many directions."""
        return int(self.loss.ndim)

    @property
    def centre(self) -> float:
        """The model's own loss."""
        return float(self.loss[self._middle])

    @property
    def _middle(self) -> tuple[int, ...]:
        return (len(self.offsets) // 2,) * self.dims

    def along(self, direction: int) -> np.ndarray:
        """The loss on the line through the model along one direction, ``[points]``."""
        middle: list[Any] = list(self._middle)
        middle[direction] = slice(None)
        return np.asarray(self.loss[tuple(middle)])

    def table(self) -> Table:
        """The loss along each direction, either way."""
        half = len(self.offsets) // 2
        steps = sorted({max(1, round(half * share)) for share in (0.25, 0.5, 1.0)})
        lines = [self.along(direction) for direction in range(self.dims)]
        body = [["0", *[f"{self.centre:.4f}"] * self.dims]]
        body += [[f"{self.offsets[half + step]:g}", *(f"{line[half - step]:.4g} / {line[half + step]:.4g}" for line in lines)] for step in steps]
        note = f"{self.loss.size} points. {CAVEAT}"
        return Table("Loss around the model, nats", ["offset, - / +", *(f"direction {i + 1}" for i in range(self.dims))], body, note)

    def figures(self, kind: Literal["contours", "surface"] = "contours") -> list[Lines | Contours]:
        """A line, a plane, or slices of three directions; ``surface`` draws planes in three dimensions.

        Args:
            kind: ``contours`` or ``surface``.

        Returns:
            One figure.
        """
        title = "Loss around the model"
        if self.dims == 1:
            return [Lines(title, "offset, in norms of the filters", "nats", [Series("loss", self.offsets, self.loss.tolist())], id="landscape")]
        panels = {"": self.loss} if self.dims == 2 else {f"direction 3: {at:+.2g}": self.loss[:, :, k] for k, at in enumerate(self.offsets)}
        rows = {name: values.T.tolist() for name, values in panels.items()}  # a row of a figure is one y
        return [Contours(title, "direction 1", "direction 2", self.offsets, self.offsets, rows, "loss, nats", surface=kind == "surface", id="landscape")]

    def plot(self, kind: Literal["contours", "surface"] = "contours") -> Figure:
        """The surface as a matplotlib figure; see :meth:`figures`."""
        from retain.figures import draw

        return draw(self.figures(kind)[0])

    def _repr_html_(self) -> str:
        return self.table().html()

    def __repr__(self) -> str:
        return self.table().text()


def directions(model: nn.Module, count: int = 2, seed: int = 0) -> list[dict[str, Tensor]]:
    r"""Random directions with filter normalisation: :math:`d_f \leftarrow d_f \|w_f\| / \|d_f\|` for every filter f.

    Li et al. 2018, section 4, https://arxiv.org/abs/1712.09913. A filter is one output of a convolution or a linear layer, a row of the weight. Biases and
    normalisation layers (everything of one axis or none) get no direction, as in the paper's figures. Rescaling whole layers of a ReLU network against each
    other scales the directions alike, so the surface stays; rescaling single units does change it, since they are columns of the layer that follows.

    Args:
        model: The model.
        count: How many.
        seed: Of the random numbers.

    Returns:
        Tensors by parameter name; parameters that stay where they are have none.

    Raises:
        InputError: If the model has no weights of two axes.

    Example:
        >>> from torch import nn
        >>> from retain.diagnosis import directions
        >>> layer = nn.Linear(5, 3)
        >>> (d,) = directions(layer, 1)
        >>> list(d), bool((d["weight"].norm(dim=1) - layer.weight.norm(dim=1)).abs().max() < 1e-5)
        (['weight'], True)
    """
    check_count("count", count)
    wide = {name: w for name, w in weights(model).items() if w.ndim > 1}
    if not wide:
        raise InputError("model", "weights of at least two axes", "none", "Biases and normalisation layers get no direction.")
    found = []
    for number in range(count):
        draw, direction = generator(seed, "direction", number), {}
        for name, w in wide.items():
            d = torch.randn(w.shape, generator=draw, dtype=torch.float64 if w.dtype == torch.float64 else torch.float32).to(w.device)
            own, drawn = (torch.linalg.vector_norm(t.flatten(1), dim=1) for t in (w, d))
            direction[name] = d.mul_((own / drawn).to(d).reshape(-1, *[1] * (d.ndim - 1))).to(w)
        found.append(direction)
    return found


def landscape(
    model: nn.Module,
    task: Any,
    *,
    dims: int = 2,
    points: int | None = None,
    radius: float = 1.0,
    part: str = "data",
    samples: int = 256,
    reestimate: bool = False,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> Surface:
    r"""The loss on a grid of one, two or three filter-normalised random directions, :math:`L(\theta + \sum_i a_i d_i)`.

    See :func:`directions` for these. One copy of the model is moved about in place; the model itself is never touched. Batch-norm statistics are the
    model's own, as in the paper, or are estimated anew at every point.

    Args:
        model: Any module.
        task: The samples.
        dims: Directions: 1, 2 or 3.
        points: Of the grid along each direction, an odd number of at least 3, so that the model is one of them; 41, 15 or 7 by default.
        radius: The largest offset, in norms of the filters.
        part: ``data``, ``validation`` or ``test``.
        samples: Drawn at random (of a loader: the first).
        reestimate: Estimate batch-norm statistics anew on the samples at every point.
        seed: Of directions and samples.
        recorder: Where progress is reported, an event a row of the grid.

    Returns:
        Loss and score on the grid, which draws itself.

    Raises:
        InputError: If the grid is too small, weights are not finite, or a number is out of range.

    Example:
        >>> from retain import models, tasks
        >>> from retain.diagnosis import landscape
        >>> found = landscape(models.MLP(64, 32, 10, seed=0), tasks.digits(), dims=1, points=5)
        >>> found.offsets, found.loss.shape
        ([-1.0, -0.5, 0.0, 0.5, 1.0], (5,))
    """
    if dims not in _POINTS:
        raise InputError("dims", "1, 2 or 3 directions", dims)
    points = _POINTS[dims] if points is None else check_count("points", points, least=3)
    if points % 2 == 0:
        raise InputError("points", "an odd number, so that the model is on the grid", points, f"Take {points + 1}.")
    check_positive("radius", radius)
    task, recorder = as_checked(task), recorder or Silent()
    drawn = directions(model, dims, seed)
    fixed = held(model, task, part, samples, seed, FORWARD)
    walker = Walker(model, {part: fixed}, fixed if reestimate and norms(model) else None)
    offsets = [radius * (2 * i / (points - 1) - 1) for i in range(points)]
    loss, score = np.zeros((points,) * dims), np.zeros((points,) * dims)
    rows = list(itertools.product(range(points), repeat=dims - 1))
    for number, row in enumerate(rows, start=1):
        for last in range(points):
            at = (*row, last)
            walker.go([(offsets[i], direction) for i, direction in zip(at, drawn, strict=True)])
            found = walker.measure()[part]
            loss[at], score[at] = found.nll, found.score
        said(recorder, "landscape", number, len(rows), found)
    pairs = [abs(_cosine(a, b)) for a, b in itertools.combinations(drawn, 2)]
    return Surface(offsets, loss, score, max(pairs, default=0.0), task.likelihood.score_name)


def _cosine(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    ab, aa, bb = (sum(float((x[name] * y[name]).sum()) for name in a) for x, y in ((a, b), (a, a), (b, b)))
    return ab / (aa * bb) ** 0.5 if aa * bb else 0.0
