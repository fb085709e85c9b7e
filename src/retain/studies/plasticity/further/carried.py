"""What carrying a rule to other sizes and data shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retain.figures import Figure, Lines, Series, Table
from retain.metrics import Estimate, estimate
from retain.studies.plasticity.names import DATA, VARIANTS, count
from retain.studies.plasticity.spec import PlasticitySpec

Results = Sequence[dict[str, Any]]
AXES = {"width": "width", "layers": "hidden layers", "share": "share of the units that fire", "data": "data set"}


def _found(results: Results, rule: str, axis: str) -> dict[Any, Estimate]:
    values: dict[Any, list[float]] = {}
    for result in results:
        for cell in result["carry"]:
            if cell["rule"] == rule and cell["axis"] == axis:
                values.setdefault(cell["value"], []).append(cell["accuracy"])
    return {value: estimate(found) for value, found in values.items()}


def sentence(spec: PlasticitySpec, results: Results) -> str:
    """The range over the widths."""
    said = []
    for rule in spec.carried:
        found = _found(results, rule, "width")
        low, high = (found[value].percent() for value in (min(found), max(found)))
        said.append(f"{VARIANTS[rule]} {low} % at width {min(found)} and {high} % at width {max(found)}")
    return f"Carried to other widths on MNIST: {'; '.join(said)} ({count(len(results), 'run')})."


def numbers(spec: PlasticitySpec, results: Results) -> dict[str, Any]:
    """Test accuracy by rule, then by where it was carried."""
    return {
        f"{rule}, carried": {f"{axis} {value}": end._asdict() for axis in AXES for value, end in _found(results, rule, axis).items()} for rule in spec.carried
    }


def shown(spec: PlasticitySpec, results: Results) -> tuple[list[Table], list[Figure]]:
    """A table, and a panel for each axis of numbers."""
    rows = []
    panels: dict[str, list[Series]] = {}
    for axis, title in AXES.items():
        for color, rule in enumerate(spec.carried):
            found = _found(results, rule, axis)
            for value, accuracy in found.items():
                place = DATA[value] if axis == "data" else f"{title} {value:g}"
                diverged = sum(c["diverged"] > 0 for r in results for c in r["carry"] if (c["rule"], c["axis"], c["value"]) == (rule, axis, value))
                rows.append([VARIANTS[rule], place, accuracy.percent(), str(diverged)])
            if found and axis != "data":
                ends = list(found.values())
                errors = [100 * end.error for end in ends] if len(results) > 1 else None
                panels.setdefault(title, []).append(Series(VARIANTS[rule], [float(v) for v in found], [100 * end.mean for end in ends], errors, color=color))
    note = (
        f"Test accuracy on MNIST where nothing else is said, mean ± standard error over {count(len(results), 'run')}. One thing differs at a "
        f"time from the base: width {spec.width}, the rule's own number of layers, "
        f"{100 * spec.cap / spec.width:g} % firing. Rules for one layer have no table for hidden layers."
    )
    table = Table("Carried to other sizes and data", ["rule", "carried to", "test %", "diverged"], rows, note)
    labels = {title: title for title in panels}
    caption = "Test accuracy on MNIST. Bands are one standard error."
    return [table], [Lines("Carried to other sizes", "", "test accuracy, %", panels=panels, x_labels=labels, id="carried", caption=caption)]
