"""Metrics of an accuracy matrix R[i, j]: accuracy on task j after i tasks, row 0 before any learning."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from retain.errors import InputError


def _matrix(R: Any) -> np.ndarray:
    values = np.asarray(R, dtype=float)
    if values.ndim != 2 or values.shape[0] != values.shape[1] + 1 or values.shape[1] == 0:
        raise InputError("R", "a matrix of T + 1 rows and T columns, row 0 before any learning", f"shape {list(values.shape)}")
    return values


def average_accuracy(R: Any) -> float:
    r"""Mean accuracy over all tasks at the end, :math:`\frac1T \sum_j R_{T,j}` (Lopez-Paz and Ranzato 2017, eq. 2).

    Args:
        R: The accuracy matrix, ``[T + 1, T]``.

    Returns:
        A number in the matrix's own unit.

    Raises:
        InputError: If R has another shape.

    Example:
        >>> average_accuracy([[0.1, 0.1], [0.9, 0.2], [0.5, 0.8]])
        0.65
    """
    return float(_matrix(R)[-1].mean())


def learning_accuracy(R: Any) -> float:
    r"""Mean accuracy on each task just after it was learned, :math:`\frac1T \sum_j R_{j+1,j}` (Riemer et al. 2019).

    Args:
        R: The accuracy matrix, ``[T + 1, T]``.

    Returns:
        A number in the matrix's own unit.

    Raises:
        InputError: If R has another shape.
    """
    return float(np.diagonal(_matrix(R)[1:]).mean())


def backward_transfer(R: Any) -> float:
    r"""Change on earlier tasks, :math:`\frac{1}{T-1} \sum_{j<T-1} R_{T,j} - R_{j+1,j}` (Lopez-Paz and Ranzato 2017, eq. 3).

    Args:
        R: The accuracy matrix, ``[T + 1, T]``.

    Returns:
        Negative where tasks were forgotten; ``nan`` for a single task.

    Raises:
        InputError: If R has another shape.

    Example:
        >>> round(backward_transfer([[0.1, 0.1], [0.9, 0.2], [0.5, 0.8]]), 3)
        -0.4
    """
    values = _matrix(R)
    if values.shape[1] == 1:
        return math.nan
    return float((values[-1] - np.diagonal(values[1:]))[:-1].mean())


def forgetting(R: Any) -> float:
    r"""Loss from the best accuracy a task ever had, :math:`\frac{1}{T-1} \sum_{j<T-1} \max_{j<i<T} R_{i,j} - R_{T,j}`.

    After Chaudhry et al. 2018 (https://arxiv.org/abs/1801.10112), section 4. Departure: the maximum is over the rows from the task's
    own to the last but one, since nothing is forgotten before it was learned. Negative where a task ends better than it ever was.

    Args:
        R: The accuracy matrix, ``[T + 1, T]``.

    Returns:
        Positive where tasks were forgotten; ``nan`` for a single task.

    Raises:
        InputError: If R has another shape.

    Example:
        >>> round(forgetting([[0.1, 0.1], [0.9, 0.2], [0.5, 0.8]]), 3)
        0.4
    """
    values = _matrix(R)
    last = values.shape[1]
    if last == 1:
        return math.nan
    return float(np.mean([values[j + 1 : last, j].max() - values[last, j] for j in range(last - 1)]))


def forward_transfer(R: Any) -> float:
    r"""Accuracy on a task before it is learned, above the start's: :math:`\frac{1}{T-1} \sum_{j>0} R_{j,j} - R_{0,j}`.

    Lopez-Paz and Ranzato 2017, eq. 4, with row 0 of R as the accuracy at initialisation.

    Args:
        R: The accuracy matrix, ``[T + 1, T]``.

    Returns:
        Positive where earlier tasks helped; ``nan`` for a single task.

    Raises:
        InputError: If R has another shape.

    Example:
        >>> round(forward_transfer([[0.1, 0.1], [0.9, 0.2], [0.5, 0.8]]), 3)
        0.1
    """
    values = _matrix(R)
    if values.shape[1] == 1:
        return math.nan
    return float(np.mean([values[j, j] - values[0, j] for j in range(1, values.shape[1])]))
