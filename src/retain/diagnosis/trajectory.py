"""Where training went: the weights along it, on the plane of their first two principal components."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from retain.diagnosis.inputs import FORWARD, as_checked, held, same, weights
from retain.diagnosis.walk import Walker, norms, said, statistics
from retain.errors import InputError, check_count, check_positive
from retain.figures import Contours, Lines, Series, Table
from retain.models.parameters import unwrap
from retain.training.recorder import Recorder, Silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PART = 1_000_000  # columns converted to float64 at a time


def random_walk(points: int) -> list[float]:
    r"""What share of the variance each principal component of a random walk explains, in many dimensions.

    A walk of T points with independent steps has the eigenvalues :math:`\lambda_k \propto 1 / (4 \sin^2(\pi k / 2T))`, k from 1 to T - 1, so that the first
    component tends to :math:`6/\pi^2 = 60.8\,\%` and the path on the first two is a parabola whatever it is a walk in (Antognini and Sohl-Dickstein 2018,
    https://arxiv.org/abs/1806.08805).

    Args:
        points: T, at least 2.

    Returns:
        T - 1 shares that sum to 1.

    Example:
        >>> from retain.diagnosis import random_walk
        >>> [round(share, 3) for share in random_walk(1000)[:3]]
        [0.608, 0.152, 0.068]
    """
    check_count("points", points, least=2)
    values = [1 / math.sin(math.pi * k / (2 * points)) ** 2 for k in range(1, points)]
    return [value / math.fsum(values) for value in values]


@dataclass(frozen=True, repr=False)
class Plane:
    """A trajectory on the plane that is nearest to its points, and the loss there.

    Args:
        coordinates: Of every point on the plane, ``[T][2]``, in units of the weights; the origin is the mean of the points.
        explained: Share of the variance by component, largest first.
        off: Distance of every point from the plane.
        true: Loss at the points themselves, nats.
        projected: Loss at their projections on the plane.
        x: First coordinates of the grid.
        y: Second coordinates.
        loss: On the grid, one row for each y.
    """

    coordinates: list[list[float]]
    explained: list[float]
    off: list[float]
    true: list[float]
    projected: list[float]
    x: list[float]
    y: list[float]
    loss: list[list[float]]

    @property
    def note(self) -> str:
        """What the plane does not show, with this trajectory's numbers."""
        walk = random_walk(len(self.coordinates))
        return (
            f"The first two components explain {100 * self.explained[0]:.1f} and {100 * self.explained[1]:.1f} % of the variance; a random walk of as many "
            f"points has {100 * walk[0]:.1f} and {100 * walk[1]:.1f} %, so a high share and a smooth curve mean little by themselves. The surface is that of "
            "the plane: where true and projected loss differ, the training never saw it."
        )

    def table(self, rows: int = 11) -> Table:
        """Some points: coordinates, distance from the plane, loss there and at the projection.

        Args:
            rows: At most so many points, evenly spaced.

        Returns:
            A table that prints and shows itself in a notebook.
        """
        last = len(self.true) - 1
        chosen = sorted({round(i * last / max(1, rows - 1)) for i in range(rows)})
        values = [[*self.coordinates[i], self.off[i], self.true[i], self.projected[i]] for i in chosen]
        body = [[str(i), *(f"{value:.4g}" for value in row)] for i, row in zip(chosen, values, strict=True)]
        return Table("Trajectory on its plane", ["point", "first", "second", "off the plane", "loss, true", "loss, projected"], body, self.note)

    def figures(self) -> list[Contours | Lines]:
        """The plane with the path, and true beside projected loss."""
        first, second = ([point[axis] for point in self.coordinates] for axis in (0, 1))
        words = [f"component {i + 1} ({100 * self.explained[i]:.0f} %)" for i in (0, 1)]
        ends = ["start", *[""] * (len(first) - 2), "end"]
        path = [Series("projected points", first, second, labels=ends)]
        number = [float(i) for i in range(len(first))]
        lines = [Series("true points", number, self.true), Series("projected points", number, self.projected, dashed=True)]
        return [
            Contours("Trajectory on its plane", words[0], words[1], self.x, self.y, {"": self.loss}, "loss, nats", path, id="trajectory"),
            Lines("Loss at the points and at their projections", "point", "nats", lines, id="trajectory-loss"),
        ]

    def plot(self) -> Figure:
        """The plane with the path as a matplotlib figure."""
        from retain.figures import draw

        return draw(self.figures()[0])

    def _repr_html_(self) -> str:
        return self.table().html()

    def __repr__(self) -> str:
        return self.table().text()


class Trajectory:
    """Keeps a model's weights as it trains, in its own type on the CPU.

    It is a recorder, so ``retain.learn(..., recorder=trajectory)`` and ``retain.finetune`` add the weights after every epoch; in a loop of one's own call
    :meth:`add`.

    Args:
        model: The model; its weights now are the first point.
        recorder: Another recorder that gets what the loop reports.

    Example:
        >>> import retain
        >>> from retain import models, tasks
        >>> from retain.diagnosis import Trajectory
        >>> model, task = models.MLP(64, 32, 10, seed=0), tasks.digits()
        >>> trajectory = Trajectory(model)
        >>> _ = retain.learn(model, [task], epochs=4, recorder=trajectory)
        >>> len(trajectory), len(trajectory.plane(task, points=3).coordinates)
        (5, 5)
    """

    def __init__(self, model: nn.Module, recorder: Recorder | None = None) -> None:
        self._model, self._recorder = unwrap(model), recorder or Silent()
        self._shapes = weights(model)
        self.points: list[Tensor] = []
        """Flat weights, in the order of the model's parameters."""
        self.add(model)

    def __len__(self) -> int:
        return len(self.points)

    def add(self, model: nn.Module) -> None:
        """Keep the weights that a model has now.

        Args:
            model: The same architecture as the first.

        Raises:
            InputError: If it is not, or a weight is not finite.
        """
        found = weights(model)
        same(self._shapes, found, "model")
        self.points.append(torch.cat([found[name].detach().to("cpu").flatten() for name in self._shapes]))

    def event(self, kind: str, **fields: Any) -> None:
        """After an epoch keep the model's weights; hand everything on."""
        if kind == "epoch":
            self.add(self._model)
        self._recorder.event(kind, **fields)

    def save(self, state: Callable[[], Mapping[str, Any]], *, final: bool = False) -> None:
        """Hand it on, if it is a state of the model that is followed."""
        found = state()
        missing = next((name for name in self._shapes if name not in found["model"]), None)
        if missing is not None:
            raise InputError("trajectory", f"states of a model with '{missing}'", "none", "If the method prepares the model, begin the trajectory after it.")
        self._recorder.save(lambda: found, final=final)

    def load(self) -> dict[str, Any] | None:
        """What the other recorder has to continue from."""
        return self._recorder.load()

    def components(self) -> tuple[Tensor, Tensor, list[float], list[float]]:
        r"""Principal components of the points from their T x T matrix of inner products: :math:`DD^\top = U S^2 U^\top`, directions :math:`D^\top u_k / s_k`.

        D holds the points less their mean, in float64, a part of the columns at a time; nothing of size P x P is ever made.

        Returns:
            Coordinates on the first two ``[T, 2]``, the two directions ``[2, P]`` of norm 1, shares of the variance, distances from the plane.

        Raises:
            InputError: If there are fewer than 3 points, or they lie on a line.
        """
        T, P = len(self.points), len(self.points[0])
        if T < 3:
            raise InputError("trajectory", "at least 3 points", T, "Train on, or pass it to learn(..., recorder=trajectory).")
        G = torch.zeros(T, T, dtype=torch.float64)
        for begin in range(0, P, _PART):
            D = self._centred(begin)
            G += D @ D.T
        values, U = torch.linalg.eigh(G)
        values, U = values.flip(0).clamp_min(0), U.flip(1)
        if float(values[1]) <= 1e-12 * float(values[0]) or float(values[0]) == 0:
            found = "points on a line" if float(values[0]) else "the same point again and again"
            raise InputError("trajectory", "points that span a plane", found)
        U = U[:, :2] * torch.where(U[0, :2] > 0, -1.0, 1.0)  # the start is on the left and below
        lines = torch.empty(2, P, dtype=self.points[0].dtype)
        for begin in range(0, P, _PART):
            lines[:, begin : begin + _PART] = (U / values[:2].sqrt()).T @ self._centred(begin)
        coordinates = U * values[:2].sqrt()
        off = (G.diagonal() - coordinates.square().sum(1)).clamp_min(0).sqrt()
        return coordinates, lines, (values[: T - 1] / values.sum()).tolist(), off.tolist()

    def _centred(self, begin: int) -> Tensor:
        D = torch.stack([point[begin : begin + _PART] for point in self.points]).double()
        return D - D.mean(0)

    def plane(
        self,
        task: Any,
        *,
        points: int = 15,
        margin: float = 0.25,
        part: str = "data",
        samples: int = 256,
        reestimate: bool | None = None,
        seed: int = 0,
        recorder: Recorder | None = None,
    ) -> Plane:
        """The loss on the plane of the first two principal components, at the true points and at their projections.

        After Li et al. 2018, section 7, https://arxiv.org/abs/1712.09913. Departure: components are taken about the mean of the points, not about the last,
        so that no plane is nearer to them.

        Args:
            task: The samples.
            points: Of the grid along each axis, at least 3.
            margin: How far the grid reaches beyond the points, as a share of their range.
            part: ``data``, ``validation`` or ``test``.
            samples: Drawn at random (of a loader: the first).
            reestimate: Estimate batch-norm statistics anew at every point; by default if there is batch norm, since no statistics are kept.
            seed: Of the draw.
            recorder: Where progress is reported, an event a row of the grid.

        Returns:
            The plane, which draws itself.

        Raises:
            InputError: If there are fewer than 3 points, they lie on a line, or a number is out of range.
        """
        check_count("points", points, least=3)
        check_positive("margin", margin, zero=True)
        recorder = recorder or Silent()
        coordinates, lines, explained, off = self.components()
        fixed = held(self._model, as_checked(task), part, samples, seed, FORWARD)
        walker = Walker(self._model, {part: fixed}, fixed if reestimate is not False and norms(self._model) else None)
        true = []
        for point in self.points:
            walker.between(self._views(point), statistics(self._model), 1.0)
            true.append(walker.measure()[part].nll)
        mean = sum(self.points[1:], self.points[0].clone()) / len(self.points)
        walker.origin = {name: value.to(walker.own[name]) for name, value in self._views(mean).items()}
        first, second = (self._views(line) for line in lines)
        projected = []
        for a, b in coordinates.tolist():
            walker.go([(a, first), (b, second)])
            projected.append(walker.measure()[part].nll)
        x, y = (_axis(coordinates[:, i], points, margin) for i in (0, 1))
        loss = []
        for number, b in enumerate(y, start=1):
            row = []
            for a in x:
                walker.go([(a, first), (b, second)])
                found = walker.measure()[part]
                row.append(found.nll)
            loss.append(row)
            said(recorder, "trajectory", number, points, found)
        return Plane(coordinates.tolist(), explained, off, true, projected, x, y, loss)

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(like.shape) for (name, like), part in zip(self._shapes.items(), parts, strict=True)}


def _axis(values: Tensor, points: int, margin: float) -> list[float]:
    low, high = float(values.min()), float(values.max())
    beyond = margin * (high - low)
    found: list[float] = torch.linspace(low - beyond, high + beyond, points, dtype=torch.float64).tolist()
    return found
