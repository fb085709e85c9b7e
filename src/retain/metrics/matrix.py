"""Metrics of an accuracy matrix R[i, j]: accuracy on task j after i tasks, row 0 before any learning; and of a curve on the way."""

from __future__ import annotations

import math
from collections.abc import Iterable
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

    Lopez-Paz and Ranzato 2017, eq. 4, with row 0 of R as the accuracy at initialisation. In class-incremental streams it says little: outputs that were
    never trained compete there with those that were, so it ends near minus chance whatever was learned.

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


def intransigence(R: Any, joint: Any) -> float:
    r"""What keeping the old costs the new: a reference's accuracy less that of the learner, :math:`\frac1T \sum_j a_j - R_{j+1,j}`.

    The mean over tasks of the measure of Chaudhry et al. 2018 (https://arxiv.org/abs/1801.10112), section 4, where :math:`a_j` is the accuracy on
    task ``j`` of a model that was trained on the data of tasks 0 to ``j`` together. One model trained on all tasks is a cheaper reference,
    and a stricter one where later tasks help earlier ones: say which it was. In the class scenario let the outputs compete that compete for the
    learner just then, or the reference is asked more.

    Args:
        R: The accuracy matrix, ``[T + 1, T]``.
        joint: The reference's accuracy on each task, ``[T]``, in the unit of R.

    Returns:
        Positive where the reference learned the tasks better, negative where the learner did.

    Raises:
        InputError: If R or joint has another shape.

    Example:
        >>> round(intransigence([[0.1, 0.1], [0.9, 0.2], [0.5, 0.8]], joint=[0.95, 0.9]), 3)
        0.075
    """
    learned = np.diagonal(_matrix(R)[1:])
    reference = np.asarray(joint, dtype=float)
    if reference.shape != learned.shape:
        raise InputError("joint", f"one accuracy for each of the {len(learned)} tasks", f"shape {list(reference.shape)}")
    return float((reference - learned).mean())


def anytime(curve: Iterable[Any]) -> float:
    r"""Mean over all points of a curve of the average accuracy on the tasks seen by then, :math:`\frac1P \sum_p \frac1{|S_p|} \sum_{j \in S_p} A_{p,j}`.

    The area under the curve of average accuracy against samples, over its length (Koh et al. 2022, https://arxiv.org/abs/2110.10031, who call the
    area A_AUC), if the points are evenly spaced. A learner that is asked while it learns answers as well as this, on average; at the ends of the
    tasks alone it is the average incremental accuracy (Rebuffi et al. 2017, https://arxiv.org/abs/1611.07725). Departure: every task counts the
    same, where Koh et al. count every test sample of a class seen so far.

    Args:
        curve: The points in time, each the accuracies on the tasks seen by then (or one number, their mean): ``[R[t, :t] for t in
            range(1, T + 1)]`` from a matrix.

    Returns:
        A number in the curve's own unit.

    Raises:
        InputError: If there are no points, or a point has no accuracies or one that is not finite.

    Example:
        >>> anytime([[0.5], [0.75], [0.5, 1.0], [0.25, 0.75]])
        0.625
    """
    points = []
    for number, point in enumerate(curve):
        seen = np.asarray(point, dtype=float)
        if seen.ndim > 1 or seen.size == 0 or not np.isfinite(seen).all():
            raise InputError("curve", "finite accuracies on the tasks seen so far at every point", f"{seen.tolist()} at point {number}")
        points.append(float(seen.mean()))
    if not points:
        raise InputError("curve", "at least one point", "none")
    return math.fsum(points) / len(points)
