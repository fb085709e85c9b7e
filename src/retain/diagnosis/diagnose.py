"""All measures at once: what a model became, beside what it started from."""

from __future__ import annotations

import html
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from retain.diagnosis.barrier import barrier
from retain.diagnosis.cka import cka
from retain.diagnosis.distance import distance
from retain.diagnosis.inputs import as_checked, shared, weights
from retain.diagnosis.landscape import landscape
from retain.diagnosis.sharpness import sharpness
from retain.diagnosis.spectrum import spectrum
from retain.diagnosis.trajectory import Trajectory
from retain.errors import InputError, check_count, nearest
from retain.figures import Figure, Table, svg
from retain.training.recorder import Recorder, Silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

MEASURES: dict[str, Callable[..., Any]] = {
    "distance": distance,
    "cka": cka,
    "barrier": barrier,
    "landscape": landscape,
    "sharpness": sharpness,
    "spectrum": spectrum,
    "trajectory": Trajectory.plane,
}
"""What :func:`diagnose` can measure, by name."""

_SIZES: dict[str, dict[str, Any]] = {
    "distance": {},
    "cka": {},
    "barrier": {},
    "landscape": {"points": 11},
    "sharpness": {"steps": 10, "draws": 4},
    "spectrum": {"steps": 30},
    "trajectory": {"points": 11},
}
_CURVATURE = 64  # samples of the Hessian, whose products are the dearest
_BLIND = {
    "distance": "what the model answers: rescaling and permuting change it",
    "cka": "small directions of the features; 1 does not mean equal answers",
    "barrier": "whether another line, a curve or a permutation would do",
    "landscape": "all directions but these; a flat minimum does not imply generalisation",
    "sharpness": "generalisation: across fine-tuned models it correlates weakly or the wrong way",
    "spectrum": "anything that survives a rescaling of the layers",
    "trajectory": "the loss off the plane; a random walk has a high first component too",
}


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What :func:`diagnose` found.

    Args:
        found: Results by measure; with a second run also ``distance between runs`` and ``cka between runs``.
        left_out: Why a measure is missing, by name.
    """

    found: dict[str, Any]
    left_out: dict[str, str]

    def __getitem__(self, measure: str) -> Any:
        if measure not in self.found:
            raise InputError("measure", "one that was taken", repr(measure), self.left_out.get(measure, nearest(str(measure), self.found)))
        return self.found[measure]

    def numbers(self) -> dict[str, float]:
        """The headline numbers by name, as plain values."""
        out: dict[str, float] = {}
        for name, result in self.found.items():
            kind, _, runs = name.partition(" ")
            runs = runs and f" {runs}"
            if kind == "distance":
                out |= {f"distance{runs}, L2": result.total.l2, f"distance{runs}, relative": result.total.relative, f"angle{runs}, degrees": result.total.angle}
            elif kind == "cka":
                values = list(result.same.values())
                out |= {f"CKA{runs}, first layer": values[0], f"CKA{runs}, last layer": values[-1], f"CKA{runs}, mean": sum(values) / len(values)}
            elif kind == "barrier":
                out |= {f"barrier, {part}, nats": value for part, value in result.height.items()}
            elif kind == "landscape":
                out |= {"loss, nats": result.centre, "landscape, mean rise, nats": float(result.loss.mean()) - result.centre}
            elif kind == "sharpness":
                out |= {"sharpness, worst, nats": result.worst, "sharpness, average, nats": result.average.mean}
            elif kind == "spectrum":
                out |= {"Hessian, largest eigenvalue": result.largest[0], "Hessian, smallest eigenvalue": result.smallest, "Hessian, trace": result.trace.mean}
            else:
                out |= {"trajectory, first component": result.explained[0], "trajectory, second component": result.explained[1]}
        return out

    def table(self) -> Table:
        """The headline numbers, with what each measure does not show."""
        body = []
        for name in self.found:
            alone = Diagnosis({name: self.found[name]}, {}).numbers()
            body += [[key, f"{value:.4g}", _BLIND[name.split()[0]] if not i else ""] for i, (key, value) in enumerate(alone.items())]
        note = " ".join(f"Without {name}: {why}." for name, why in self.left_out.items())
        return Table("Diagnosis", ["measure", "value", "does not show"], body, note)

    def tables(self) -> list[Table]:
        """The table of every measure."""
        return [result.table() for result in self.found.values()]

    def figures(self) -> list[Figure]:
        """The figures of every measure."""
        figures: list[Figure] = []
        for name, result in self.found.items():
            for figure in result.figures():
                if " " in name:
                    figure.title, figure.id = f"{figure.title}, between runs", f"{figure.id}-runs"
                figures.append(figure)
        return figures

    def plot(self, measure: str | None = None) -> Drawing:
        """The first figure of a measure as a matplotlib figure; see :meth:`figures` for all.

        Args:
            measure: Its name; by default the landscape, or else the first measure there is.

        Returns:
            The figure.
        """
        from retain.figures import draw

        return draw(self[measure or ("landscape" if "landscape" in self.found else next(iter(self.found)))].figures()[0])

    def _repr_html_(self) -> str:
        tables = "".join(f"{table.html()}<p>{html.escape(table.note)}</p>" for table in (self.table(), *self.tables()))
        return tables + "".join(svg(figure) for figure in self.figures())

    def __repr__(self) -> str:
        return self.table().text()


def diagnose(
    before: nn.Module,
    after: nn.Module,
    task: Any,
    other: nn.Module | None = None,
    measures: str | Iterable[str] | None = None,
    *,
    trajectory: Trajectory | None = None,
    samples: int = 256,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> Diagnosis:
    """Look inside a model that learned: how far it went, what its features kept, and what the loss looks like around it.

    ``distance`` and ``cka`` compare ``before`` with ``after`` (and ``after`` with ``other``, if there is another run); ``barrier`` is taken on the line from
    ``after`` to ``other``, or else from ``before`` to ``after``; ``landscape``, ``sharpness`` and ``spectrum`` are those of ``after``; ``trajectory`` needs a
    recorded one. Each is a function of its own, with more settings, in :mod:`retain.diagnosis`, where its source is given. The models are not changed.

    Args:
        before: The model at the start; its head may have another number of outputs.
        after: The model that learned the task.
        task: What it learned.
        other: Another run from the same start.
        measures: Names from ``distance``, ``cka``, ``barrier``, ``landscape``, ``sharpness``, ``spectrum``, ``trajectory``; by default all that can be taken.
        trajectory: The weights along the training.
        samples: Of each part of the task, at most; the Hessian takes 64 of them.
        settings: More settings by measure, such as ``{"landscape": {"points": 21}}``.
        seed: Of samples, directions and probes.
        recorder: Where progress is reported.

    Returns:
        All results, which show themselves.

    Raises:
        InputError: If the architectures differ (the first differing name is given), a measure or setting is unknown, weights are not finite, or a number is
            out of range.

    Example:
        >>> import retain
        >>> from retain import models, tasks
        >>> before, task = models.MLP(64, 32, 10, seed=0), tasks.digits()
        >>> after = models.copy(before)
        >>> _ = retain.learn(after, [task], epochs=5)
        >>> found = retain.diagnose(before, after, task, measures=("distance", "barrier"))
        >>> list(found.numbers())
        ['distance, L2', 'distance, relative', 'angle, degrees', 'barrier, train, nats', 'barrier, test, nats']
    """
    check_count("samples", samples)
    chosen = list(MEASURES) if measures is None else [measures] if isinstance(measures, str) else list(measures)
    options = {name: dict(found) for name, found in (settings or {}).items()}
    for parameter, name in (*(("measures", name) for name in chosen), *(("settings", name) for name in options)):
        if name not in MEASURES:
            raise InputError(parameter, "known measures", repr(name), nearest(str(name), MEASURES))
    for name, found in options.items():
        known = [key for key, value in inspect.signature(MEASURES[name]).parameters.items() if value.kind is value.KEYWORD_ONLY]
        for key in found:
            if key not in known:
                raise InputError(f"settings['{name}']", "known settings", repr(key), nearest(str(key), known) if known else "It has none.")
    if not chosen:
        raise InputError("measures", "at least one measure", "none", "Leave it out to take all.")
    start, end = weights(before, "before"), weights(after, "after")
    _, head = shared(start, end)
    if other is not None:
        shared(end, weights(other, "other"), "other")
    left_out = {}
    if "trajectory" in chosen and trajectory is None:
        left_out["trajectory"] = "none was recorded; pass trajectory=Trajectory(model) through the training"
    if "barrier" in chosen and other is None and head:
        left_out["barrier"] = f"'{head[0]}' has another size in before, and there is no other run"
    if measures is not None and left_out:
        name, why = next(iter(left_out.items()))
        raise InputError("measures", "measures that can be taken", f"'{name}'", f"{why[0].upper()}{why[1:]}.")
    task, out = as_checked(task), recorder or Silent()

    def settings_of(name: str) -> dict[str, Any]:
        few = {} if name == "distance" else {"samples": min(samples, _CURVATURE) if name == "spectrum" else samples, "seed": seed, "recorder": out}
        return {**few, **_SIZES[name], **options.get(name, {})}

    results: dict[str, Any] = {}
    for name in chosen:
        if name in left_out:
            continue
        if name == "distance":
            results[name] = distance(before, after)
            if other is not None:
                results["distance between runs"] = distance(after, other)
        elif name == "cka":
            results[name] = cka(before, after, task, **settings_of(name))
            if other is not None:
                results["cka between runs"] = cka(after, other, task, **settings_of(name))
        elif name == "barrier":
            results[name] = barrier(before, after, task, **settings_of(name)) if other is None else barrier(after, other, task, **settings_of(name))
        elif name == "trajectory" and trajectory is not None:
            results[name] = trajectory.plane(task, **settings_of(name))
        else:
            results[name] = MEASURES[name](after, task, **settings_of(name))
        out.event("diagnosis", measure=name)
    return Diagnosis(results, left_out)
