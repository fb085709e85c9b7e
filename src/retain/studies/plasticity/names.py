"""What tables and figures share: names, counted nouns, lines with bands."""

from __future__ import annotations

from statistics import fmean, stdev

from retain.figures import Series

ROWS = {
    "rnn": "recurrent",
    "rnn-mistakes": "recurrent, on mistakes",
    "prepost-2": "PrePost, 2 layers",
    "prepost-3": "PrePost, 3 layers",
    "prepost-4": "PrePost, 4 layers",
    "prepostcount-2": "PrePostCount, 2 layers",
    "prepostcount-3": "PrePostCount, 3 layers",
    "prepostcount-4": "PrePostCount, 4 layers",
    "prepost-2-trained": "PrePost, 2 layers, inputs trained",
    "vanilla": "gradient descent, as published",
    "tuned": "gradient descent, tuned",
}
VARIANTS = {
    "prepost": "PrePost",
    "prepost-2": "PrePost, 2 layers",
    "gated": "PrePost, gated by the prediction",
    "mistakes": "PrePost, on mistakes",
    "averaged": "PrePost, on mistakes, averaged",
    "percent": "PrePostPercent, 2 layers",
    "network": "small network, 2 layers",
    "local-fixed": "local, output only",
    "local-random": "local, random feedback",
    "local-transport": "local terms, transported feedback",
    "tuned": "gradient descent, tuned",
    "tuned-1": "gradient descent, 1 layer",
    "tuned-2": "gradient descent, 2 layers",
}
DATA = {"mnist": "MNIST", "fashion": "Fashion-MNIST", "digits": "digits"}


def count(n: int, one: str, many: str = "") -> str:
    """A number and its noun."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def band(name: str, xs: list[list[float]], ys: list[list[float]], color: int | None = None, *, dashed: bool = False) -> Series:
    """A line with the deviation over the runs, up to where the shortest run goes."""
    points = min(map(len, ys))
    columns = [[100 * run[i] for run in ys] for i in range(points)]
    deviation = [stdev(column) for column in columns] if len(ys) > 1 else None
    return Series(name, [float(x) for x in xs[0][:points]], [fmean(column) for column in columns], deviation, color=color, dashed=dashed)
