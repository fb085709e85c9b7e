"""What a table or a figure shows, as plain data."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Table:
    """A table of text.

    Args:
        title: What it shows.
        columns: Headings.
        rows: One list of cells a row.
        note: A remark below.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""

    def text(self) -> str:
        """The table for a terminal, columns aligned."""
        cells = [self.columns, *self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = [
            "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in cells
        ]
        return "\n".join([self.title, *lines, *([self.note] if self.note else [])])

    def html(self) -> str:
        """The table as HTML, everything escaped."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.columns)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        return f"<table><caption>{html.escape(self.title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def markdown(self) -> str:
        """The table as Markdown, its title in bold above and its note below; what Markdown would take for marks in a cell is escaped."""

        def line(cells: list[str]) -> str:
            return "| " + " | ".join(map(_markdown, cells)) + " |"

        rule = "| " + " | ".join([":---", *["---:"] * (len(self.columns) - 1)]) + " |"
        lines = [line(self.columns), rule, *map(line, self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, *(["", self.note] if self.note else [])])

    def latex(self) -> str:
        r"""The table as LaTeX, with the rules of the package ``booktabs``; title and note are the caption."""
        body = [" & ".join(map(_latex, row)) + r" \\" for row in [self.columns, *self.rows]]
        inside = [r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule"]
        caption = _latex(f"{self.title}. {self.note}".strip())
        frame = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}"]
        return "\n".join([*frame, *inside, r"\end{tabular}", r"\end{table}"])

    def _repr_html_(self) -> str:
        return self.html()

    def __str__(self) -> str:
        return self.text()


def _markdown(text: str) -> str:
    """A cell on one line, without what Markdown would take for a column, an escape or HTML."""
    return "".join(f"\\{letter}" if letter in "\\|<*`[" else letter for letter in " ".join(text.split("\n")))


_LATEX = {
    "\\": r"\textbackslash{}",
    "\n": " ",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _latex(text: str) -> str:
    """Text with what LaTeX would take for commands written so that it is printed."""
    return "".join(f"\\{letter}" if letter in "&%$#_{}" else _LATEX.get(letter, letter) for letter in text)


@dataclass
class Series:
    """Points of one kind: their name, coordinates and, if several seeds stand behind them, standard errors.

    Args:
        name: The label.
        x: Horizontal coordinates.
        y: Vertical coordinates.
        y_error: Standard errors of y.
        x_error: Standard errors of x.
        labels: A word beside each point.
        color: Place in the palette; by default the order of the series.
        dashed: Draw the line dashed.
    """

    name: str
    x: list[float]
    y: list[float]
    y_error: list[float] | None = None
    x_error: list[float] | None = None
    labels: list[str] | None = None
    color: int | None = None
    dashed: bool = False


@dataclass
class Figure:
    """What every figure has.

    Args:
        title: What it shows.
        caption: What a reader should see in it, filled in by studies.
        id: Name of its file.
    """

    title: str
    caption: str = field(default="", kw_only=True)
    id: str = field(default="", kw_only=True)


@dataclass
class Lines(Figure):
    """Lines over a common axis, with bands of one standard error; or several panels of them.

    Args:
        x_label: Horizontal axis.
        y_label: Vertical axis.
        series: The lines of a single panel.
        panels: Panels by title, instead of ``series``.
        x_log: Logarithmic horizontal axis.
        y_log: Logarithmic vertical axis.
        marks: Vertical lines, by label.
        x_labels: Horizontal axes by panel, where they differ.
    """

    x_label: str
    y_label: str
    series: list[Series] = field(default_factory=list)
    panels: dict[str, list[Series]] = field(default_factory=dict)
    x_log: bool = False
    y_log: bool = False
    marks: dict[str, float] = field(default_factory=dict)
    x_labels: dict[str, str] = field(default_factory=dict)


@dataclass
class Scatter(Figure):
    """Points in the plane with error bars; points of a series are joined in order.

    Args:
        x_label: Horizontal axis.
        y_label: Vertical axis.
        series: The points.
    """

    x_label: str
    y_label: str
    series: list[Series]


@dataclass
class Matrices(Figure):
    """Numbers on a grid, one panel a name.

    Args:
        matrices: Rows of numbers by panel title.
        x_labels: Names of the columns.
        y_labels: Names of the rows.
        unit: How a cell is written, as a format specification.
        signed: Colour by sign and size, each panel by its own largest number; otherwise cells are percentages.
        x_label: What the columns are.
        y_label: What the rows are.
    """

    matrices: dict[str, list[list[float]]]
    x_labels: list[str]
    y_labels: list[str]
    unit: str = ".1f"
    signed: bool = False
    x_label: str = ""
    y_label: str = ""


@dataclass
class Bars(Figure):
    """Groups of bars, one panel a name.

    Args:
        y_label: Vertical axis.
        groups: Names of the groups.
        panels: Heights by panel, by bar name; one number a group.
        y_log: Logarithmic vertical axis.
        x_label: Horizontal axis.
    """

    y_label: str
    groups: list[str]
    panels: dict[str, dict[str, list[float]]]
    y_log: bool = False
    x_label: str = ""


@dataclass
class Images(Figure):
    """Grey images with a name each.

    Args:
        images: Rows of ``(name, pixels)``; pixels are rows of numbers in [0, 1].
    """

    images: list[list[tuple[str, Any]]]


@dataclass
class Contours(Figure):
    """A number over the plane as colours with contour lines, or as a surface in three dimensions; one panel a name.

    Args:
        x_label: Horizontal axis.
        y_label: Vertical axis.
        x: Horizontal coordinates of the grid.
        y: Vertical coordinates of the grid.
        panels: Rows of numbers, one row for each y, by panel title; what is not finite is left white.
        value_label: What the numbers are.
        series: Paths drawn over every panel.
        log: Colours in equal ratios, where all numbers are above 0.
        surface: Draw in three dimensions.
    """

    x_label: str
    y_label: str
    x: list[float]
    y: list[float]
    panels: dict[str, list[list[float]]]
    value_label: str
    series: list[Series] = field(default_factory=list)
    log: bool = True
    surface: bool = False
