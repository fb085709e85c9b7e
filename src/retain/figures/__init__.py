"""Tables and figures as plain data, and how they are drawn. matplotlib is loaded when the first figure is drawn."""

from retain.figures.draw import draw, svg
from retain.figures.specs import Bars, Contours, Figure, Images, Lines, Matrices, Scatter, Series, Table

__all__ = ["Bars", "Contours", "Figure", "Images", "Lines", "Matrices", "Scatter", "Series", "Table", "draw", "svg"]
