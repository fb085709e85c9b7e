"""What the variants show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retain.figures import Figure, Lines, Series, Table
from retain.metrics import Estimate, estimate
from retain.studies.plasticity.names import DATA, VARIANTS, band, count
from retain.studies.plasticity.spec import PlasticitySpec

Results = Sequence[dict[str, Any]]


def _cells(results: Results, **which: Any) -> list[dict[str, Any]]:
    return [cell for result in results for cell in result["variants"] if all(cell[key] == value for key, value in which.items())]


def _final(cells: list[dict[str, Any]], key: str = "down", part: str = "test") -> Estimate:
    return estimate(cell[key][part][-1] for cell in cells)


def _names(spec: PlasticitySpec) -> list[str]:
    return [*spec.variants, "tuned"]


def sentence(spec: PlasticitySpec, results: Results) -> str:
    """The best rule of each family by held-out images, on each data set."""
    said = []
    for target in spec.targets:
        best = []
        for family, word in (("table", "by a table"), ("strict", "by a strictly local rule"), ("transport", "with transported feedback")):
            places = [(name, width) for name in spec.variants if family_of(name) == family for width in spec.widths]
            if places:
                name, width = max(places, key=lambda place: _final(_cells(results, variant=place[0], width=place[1], target=target), part="validation").mean)
                best.append(f"{_final(_cells(results, variant=name, width=width, target=target)).percent()} % {word}")
        said.append(f"{DATA[target]} {', '.join(best)}")
    return f"Best of what was learned on made-up tasks: {'; '.join(said)} ({count(len(results), 'run')})."


def family_of(name: str) -> str:
    """``table``, ``strict`` (only what is known at the synapse and a broadcast error), or ``transport``."""
    if name == "local-transport":
        return "transport"
    return "strict" if name.startswith("local") else "table"


def numbers(spec: PlasticitySpec, results: Results) -> dict[str, Any]:
    """Test accuracy of every cell: by variant and data set, then by width."""
    return {
        f"{name}, {target}": {f"width {width}": _final(_cells(results, variant=name, width=width, target=target))._asdict() for width in spec.widths}
        for target in spec.targets
        for name in _names(spec)
    }


def shown(spec: PlasticitySpec, results: Results) -> tuple[list[Table], list[Figure]]:
    """A table and a figure for each data set."""
    tables: list[Table] = []
    figures: list[Figure] = []
    for target in spec.targets:
        rows = []
        for name in _names(spec):
            for width in spec.widths:
                cells = _cells(results, variant=name, width=width, target=target)
                begun = _final(cells, "start").percent() if name != "tuned" else ""
                diverged = [cell["down"]["diverged"] for cell in cells] + [cell["start"]["diverged"] for cell in cells if "start" in cell]
                rows.append(
                    [
                        f"{VARIANTS[name]}, width {width}",
                        _final(cells, part="validation").percent(),
                        _final(cells).percent(),
                        begun,
                        _updates(cells, spec.level),
                        f"{sum(place > 0 for place in diverged)} of {len(diverged)}",
                    ]
                )
        columns = ["", "held out %", "test %", "not learned, test %", f"updates to {100 * spec.level:g} %", "diverged"]
        note = (
            f"Mean ± standard error over {count(len(results), 'run')} after {count(spec.passes, 'pass', 'passes')}, {100 * spec.share:g} % of "
            "the units fire. Tables are learned again while they stay below the held-out upstream level, as among the rows. 'Not learned' is "
            "the rule where learning it "
            "started. Updates until the held-out accuracy, seen every "
            f"{spec.curve_every:,} images: the mean of the runs that reach it; of gradient descent, steps of 100 images. Choices between rows are to "
            "be made by 'held out'."
        )
        tables.append(Table(f"Rules carried to {DATA[target]}", columns, rows, note))
        panels = {f"width {width}": _curves(spec, results, target, width) for width in spec.widths}
        caption = "Test accuracy while images are seen once, in turn; the dashed line is gradient descent on the same network."
        figures.append(Lines(f"Rules carried to {DATA[target]}", "images seen", "test accuracy, %", panels=panels, id=f"variants-{target}", caption=caption))
    return tables, figures


def _updates(cells: list[dict[str, Any]], level: float) -> str:
    reached = []
    for cell in cells:
        down = cell["down"]
        found = next((updates for updates, value in zip(down["updates"], down["validation"], strict=True) if value >= level), None)
        if found is not None:
            reached.append(found)
    if not reached:
        return "never"
    return f"{sum(reached) / len(reached):,.0f}" + (f" ({len(reached)} of {len(cells)})" if len(reached) < len(cells) else "")


def _curves(spec: PlasticitySpec, results: Results, target: str, width: int) -> list[Series]:
    lines = []
    for color, name in enumerate(_names(spec)):
        cells = _cells(results, variant=name, width=width, target=target)
        lines.append(band(VARIANTS[name], [c["down"]["samples"] for c in cells], [c["down"]["test"] for c in cells], color, dashed=name == "tuned"))
    return lines
