"""What a traversal gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from retain.figures import Lines, Series, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn


@dataclass(repr=False)
class Path:
    """The record of a path from one model to another.

    Args:
        strategy: The strategy, as it prints itself.
        bridge: The bridge's name.
        schedule: The schedule's name.
        steps: One entry a certified step, the first is the start: see :meth:`column`.
        distance: Fisher-Rao distance from the source to the target at the end, root mean square: no path between them is shorter.
        iterations: Updates taken.
        samples: Samples seen.
        seconds: The strategy's own time, without the measurements.
        score_name: What ``accuracy`` is.
        target: The model at the end.
    """

    strategy: str
    bridge: str
    schedule: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    distance: float = 0.0
    iterations: int = 0
    samples: int = 0
    seconds: float = 0.0
    score_name: str = "accuracy"
    target: nn.Module | None = None

    def column(self, name: str) -> list[Any]:
        """One quantity over the steps.

        ``q``, ``dq``; ``accuracy`` of the target alone and ``mixture_accuracy`` of the bridge's point; ``nll`` of the target; ``kl_target`` and
        ``kl_mixture``, from the source to either, nats; ``kl_step``, ``kl_frozen`` (had only q moved), ``retained`` = 1 - kl_step / kl_frozen;
        ``length_step``, ``length``; ``active`` units by layer; ``iterations``, ``samples``, ``seconds`` so far; what the strategy logs: ``rate``,
        ``damping``, ``predicted`` and ``actual`` change of the batch's divergence, ``taken_back``, ``kept`` (by the law's last update, to first
        order), ``share``, ``loss``.

        Args:
            name: Of the quantity.

        Returns:
            A value a step, ``None`` where it was not measured.
        """
        return [step.get(name) for step in self.steps]

    @property
    def accuracy(self) -> float:
        """Of the target at the end, on the samples of the certificate."""
        return float(self.steps[-1]["accuracy"])

    @property
    def length(self) -> float:
        """Fisher-Rao length of the path, the sum over certified steps."""
        return float(self.steps[-1]["length"])

    @property
    def kl(self) -> float:
        """From the source to the target at the end, nats."""
        return float(self.steps[-1]["kl_target"])

    def record(self) -> dict[str, Any]:
        """Everything but the model, as plain values."""
        return {key: value for key, value in vars(self).items() if key != "target"}

    def table(self, rows: int = 11) -> Table:
        """The certificate: some steps, evenly spaced, and the sum at the end.

        Args:
            rows: At most so many steps.

        Returns:
            A table that prints and shows itself in a notebook.
        """
        last = len(self.steps) - 1
        chosen = sorted({round(i * last / max(1, rows - 1)) for i in range(rows)})
        columns = [
            "q",
            f"target {self.score_name}, %",
            f"{self.bridge} {self.score_name}, %",
            "KL to target",
            "KL of step",
            "length",
            "retained",
            "active units",
            "samples",
            "CPU s",
        ]
        body = []
        for step in (self.steps[i] for i in chosen):
            kept = step.get("retained")
            units = "/".join(f"{value:.0f}" for value in step["active"].values())
            body.append(
                [
                    f"{step['q']:.3f}",
                    f"{100 * step['accuracy']:.1f}",
                    f"{100 * step['mixture_accuracy']:.1f}",
                    f"{step['kl_target']:.4f}",
                    f"{step['kl_step']:.2g}" if "kl_step" in step else "",
                    f"{step.get('length', 0.0):.3f}",
                    "" if kept is None else f"{100 * kept:.0f} %" if kept >= 0 else "< 0 %",
                    units,
                    f"{step['samples']:,}",
                    f"{step['seconds']:.1f}",
                ]
            )
        note = (
            f"{self.strategy}, bridge {self.bridge}, schedule {self.schedule}. Length {self.steps[-1].get('length', 0.0):.3f}; the ends are "
            f"{self.distance:.3f} apart. Up to q = 0.5 a mixture answers as a source that is sure does, whatever the target has learned."
        )
        return Table("Path from source to target", columns, body, note)

    def plot(self) -> Figure:
        """Accuracy of the target and of the mixture over q, as a matplotlib figure."""
        from retain.figures import draw

        q = self.column("q")
        lines = [Series(name, q, [100 * value for value in self.column(key)]) for name, key in (("target alone", "accuracy"), ("mixture", "mixture_accuracy"))]
        return draw(Lines("Along the path", "q", "accuracy, %", lines))

    def _repr_html_(self) -> str:
        return self.table().html()

    def __repr__(self) -> str:
        return self.table().text()
