"""How figures are drawn, one function a kind."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from retain.figures.specs import Bars, Contours, Figure, Images, Lines, Matrices, Scatter, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

# Okabe and Ito's colours, told apart by readers with any colour vision
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#000000", "#8C510A", "#762A83", "#A6D854")
_ABREAST = 5  # matrices side by side
_FEW = 8
_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "retain",
    "svg.fonttype": "none",
}


def draw(spec: Figure) -> Drawing:
    """Draw a figure.

    Args:
        spec: What to show.

    Returns:
        A matplotlib figure, not registered with pyplot, so nothing has to be closed.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        return _DRAWERS[type(spec)](spec)


def svg(spec: Figure) -> str:
    """Draw a figure as SVG text; the same data give the same bytes."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        buffer = io.StringIO()
        draw(spec).savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    text = buffer.getvalue()
    return text[text.index("<svg") :]


@lru_cache(maxsize=1)
def _drawing() -> type[Drawing]:
    from matplotlib.figure import Figure as Drawing

    class Shown(Drawing):
        """A figure that shows itself in a notebook although pyplot knows nothing of it."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
            return buffer.getvalue()

    return Shown


def _canvas(panels: int, width: float = 4.6, height: float = 3.4, *, share: bool = True) -> tuple[Drawing, list[Axes]]:
    figure = _drawing()(figsize=(width * panels, height), layout="constrained")
    axes = figure.subplots(1, panels, sharey=share, squeeze=False)[0]
    return figure, list(axes)


def _legend(figure: Drawing, axes: list[Axes]) -> None:
    """Every name once, below the axes, where it hides nothing."""
    named = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if not named:
        return
    columns = min(len(named), 3 * len(axes))
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(named) / columns))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, fontsize=9)


def _look(series: Series, place: int) -> tuple[str, str]:
    """Colour and marker; where the colours begin again the marker is another."""
    again, color = divmod(place if series.color is None else series.color, len(PALETTE))
    return PALETTE[color], "os^D"[again % 4]


def _errors(values: list[float] | None) -> list[float] | None:
    if values is None or all(math.isnan(value) for value in values):
        return None
    return [0.0 if math.isnan(value) else value for value in values]


def _lines(spec: Lines) -> Drawing:
    from matplotlib.ticker import MaxNLocator

    panels = spec.panels or {"": spec.series}
    figure, axes = _canvas(len(panels), 4.6 if len(panels) > 1 else 6.4)
    for ax, (title, all_series) in zip(axes, panels.items(), strict=True):
        for place, series in enumerate(all_series):
            color, marker = _look(series, place)
            few = marker if len(series.x) < 40 else None
            ax.plot(series.x, series.y, color=color, label=series.name, marker=few, markersize=3.5, linestyle="--" if series.dashed else "-")
            errors = _errors(series.y_error)
            if errors:
                low, high = ([y + sign * e for y, e in zip(series.y, errors, strict=True)] for sign in (-1, 1))
                ax.fill_between(series.x, low, high, color=color, alpha=0.18, linewidth=0)
        for label, x in spec.marks.items():
            ax.axvline(x, color="#999999", linewidth=1, linestyle=":")
            ax.annotate(
                label,
                (x, 1),
                xycoords=("data", "axes fraction"),
                ha="right",
                va="top",
                rotation=90,
                fontsize=8,
                color="#666666",
                xytext=(-2, -2),
                textcoords="offset points",
            )
        if title:
            ax.set_title(title, fontsize=10)
        ax.set_xlabel(spec.x_labels.get(title, spec.x_label))
        if spec.x_log:
            ax.set_xscale("log")
            places = sorted({x for series in all_series for x in series.x})
            if 1 < len(places) <= _FEW:  # a few sizes, which are named
                ax.set_xticks(places, [f"{x:g}" for x in places])
                ax.xaxis.minorticks_off()
        else:
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))  # epochs and percentages
        if spec.y_log:
            ax.set_yscale("log")
    axes[0].set_ylabel(spec.y_label)
    if any(len(group) > 1 for group in panels.values()):
        _legend(figure, axes)
    figure.suptitle(spec.title, fontsize=11)
    return figure


def _scatter(spec: Scatter) -> Drawing:
    figure, (ax,) = _canvas(1, 6.4, 4.4)
    for place, series in enumerate(spec.series):
        color, marker = _look(series, place)
        style = "-" if len(series.x) > 1 else ""
        ax.errorbar(
            series.x,
            series.y,
            xerr=_errors(series.x_error),
            yerr=_errors(series.y_error),
            color=color,
            label=series.name,
            marker=marker,
            markersize=5,
            linestyle=style,
            linewidth=1,
            elinewidth=1,
        )
        for x, y, label in zip(series.x, series.y, series.labels or [], strict=False):
            ax.annotate(label, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8, color=color)
    ax.set_xlabel(spec.x_label)
    ax.set_ylabel(spec.y_label)
    _legend(figure, [ax])
    figure.suptitle(spec.title, fontsize=11)
    return figure


def _matrices(spec: Matrices) -> Drawing:
    columns = min(len(spec.matrices), _ABREAST)
    lines = -(-len(spec.matrices) // columns)
    figure = _drawing()(figsize=(max(2.6, 0.5 * len(spec.x_labels)) * columns, (0.9 + 0.55 * len(spec.y_labels)) * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    for ax in grid[len(spec.matrices) :]:
        ax.set_axis_off()
    for ax, (title, rows) in zip(grid, spec.matrices.items(), strict=False):
        ax.grid(visible=False)
        largest = max((abs(value) for row in rows for value in row), default=0.0) or 1.0
        low, high, dark = (-1.3 * largest, 1.3 * largest, 0.75 * largest) if spec.signed else (0.0, 130.0, 75.0)
        ax.imshow(rows, cmap="RdBu_r" if spec.signed else "Blues", vmin=low, vmax=high, aspect="auto")
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                if spec.unit:
                    ax.text(j, i, format(value, spec.unit), ha="center", va="center", color="white" if abs(value) > dark else "#222222", fontsize=9)
        ax.set_xticks(range(len(spec.x_labels)), spec.x_labels)
        ax.set_yticks(range(len(spec.y_labels)), spec.y_labels)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(spec.x_label)
    grid[0].set_ylabel(spec.y_label)
    figure.suptitle(spec.title, fontsize=11)
    return figure


def _bars(spec: Bars) -> Drawing:
    figure, axes = _canvas(len(spec.panels))
    for ax, (title, bars) in zip(axes, spec.panels.items(), strict=True):
        width = 0.8 / len(bars)
        for i, (name, heights) in enumerate(bars.items()):
            ax.bar([g + (i - (len(bars) - 1) / 2) * width for g in range(len(spec.groups))], heights, width, label=name, color=PALETTE[i])
        ax.set_xticks(range(len(spec.groups)), spec.groups)
        ax.set_xlabel(spec.x_label)
        ax.grid(visible=False, axis="x")
        ax.set_title(title, fontsize=10)
        if spec.y_log:
            ax.set_yscale("log")
    axes[0].set_ylabel(spec.y_label)
    _legend(figure, axes)
    figure.suptitle(spec.title, fontsize=11)
    return figure


def _images(spec: Images) -> Drawing:
    columns = max(len(row) for row in spec.images)
    figure = _drawing()(figsize=(0.95 * columns, 1.25 * len(spec.images) + 0.4), layout="constrained")
    grid = figure.subplots(len(spec.images), columns, squeeze=False)
    for axes_row, row in zip(grid, spec.images, strict=True):
        for ax in axes_row:
            ax.set_axis_off()
        for ax, (name, pixels) in zip(axes_row, row, strict=False):
            ax.imshow(pixels, cmap="gray_r", vmin=0, vmax=1)
            ax.set_title(name, fontsize=8)
    figure.suptitle(spec.title, fontsize=11)
    return figure


def _contours(spec: Contours) -> Drawing:
    import numpy as np
    from matplotlib.colors import LogNorm, Normalize

    columns = min(len(spec.panels), 3 if len(spec.panels) > _ABREAST else _ABREAST)
    lines = -(-len(spec.panels) // columns)
    width, height = (5.4, 4.4) if len(spec.panels) == 1 else (2.9, 2.7)
    figure = _drawing()(figsize=(width * columns, height * lines), layout="constrained")
    values = {title: np.ma.masked_invalid(np.array(rows, dtype=float)) for title, rows in spec.panels.items()}
    known = np.concatenate([panel.compressed() for panel in values.values()])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    log = spec.log and low > 0
    if high - low <= 1e-9 * abs(high):
        low, high = low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1)
    levels = np.geomspace(low, high, 16) if log else np.linspace(low, high, 16)
    levels[0], levels[-1] = levels[0] - 1e-9 * abs(levels[0]), levels[-1] + 1e-9 * abs(levels[-1])  # rounding must not leave the extremes out
    norm = (LogNorm if log else Normalize)(low, high)
    shown = None
    for place, (title, panel) in enumerate(values.items(), start=1):
        if spec.surface:
            ax: Any = figure.add_subplot(lines, columns, place, projection="3d")
            X, Y = np.meshgrid(spec.x, spec.y)
            heights = np.ma.log10(panel) if log else panel
            ax.plot_surface(X, Y, heights.filled(np.nan), cmap="viridis", rcount=100, ccount=100, linewidth=0)
            ax.locator_params(nbins=4)
            ax.set_zlabel(f"log10 of {spec.value_label}" if log else spec.value_label, fontsize=8)
        else:
            ax = figure.add_subplot(lines, columns, place)
            ax.grid(visible=False)
            shown = ax.contourf(spec.x, spec.y, panel, levels=levels, norm=norm, cmap="viridis")
            ax.contour(spec.x, spec.y, panel, levels=levels, norm=norm, colors="white", linewidths=0.4)
            for series in spec.series:
                ax.plot(series.x, series.y, color="#ffffff", linewidth=2.4)
                ax.plot(series.x, series.y, color=PALETTE[1], marker="o", markersize=3.5, linewidth=1.2, label=series.name)
                for x, y, label in zip(series.x, series.y, series.labels or [], strict=False):
                    ax.annotate(label, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8, bbox={"facecolor": "white", "alpha": 0.7, "pad": 1})
        if title:
            ax.set_title(title, fontsize=10)
        ax.set_xlabel(spec.x_label)
        if (place - 1) % columns == 0 or spec.surface:
            ax.set_ylabel(spec.y_label)
    if shown is not None:
        bar = figure.colorbar(shown, ax=figure.axes, format="%.3g")
        bar.set_label(spec.value_label)
    figure.suptitle(spec.title, fontsize=11)
    return figure


_DRAWERS: dict[type[Figure], Callable[[Any], Drawing]] = {
    Lines: _lines,
    Scatter: _scatter,
    Matrices: _matrices,
    Bars: _bars,
    Images: _images,
    Contours: _contours,
}
