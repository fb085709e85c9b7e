"""Many methods at once: mean ranks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from retain.errors import InputError


class Ranks(NamedTuple):
    """Mean rank of each method (1 is best), Friedman's statistic and its p-value (``nan`` where every row is one tie)."""

    mean: list[float]
    statistic: float
    p: float


def ranks(table: Any, *, higher: bool = True) -> Ranks:
    r"""Mean rank of methods over seeds, with Friedman's test of whether they differ at all (Demsar 2006, JMLR 7, section 3.2).

    Each row's methods are ranked from 1; equal ones share the mean of their ranks. With N rows, k methods, ranks :math:`r_{ij}` and their
    sums :math:`S_j` over the rows,

    .. math:: \chi^2 = \frac{(k - 1) \sum_j (S_j - N (k + 1) / 2)^2}{\sum_{ij} r_{ij}^2 - N k (k + 1)^2 / 4},

    which is Friedman's statistic (1937) without ties and corrected for them otherwise. Its p-value is that of :math:`\chi^2` with k - 1 degrees
    of freedom, an approximation for more than about ten rows and five methods. Demsar's rows are data sets. With seeds as rows the test speaks
    about this stream and other seeds, not about other streams.

    Args:
        table: One row a seed (or data set), one column a method, ``[N, k]`` with k of at least 2.
        higher: Whether higher numbers are better; ``False`` for forgetting and the like.

    Returns:
        Mean ranks in the order of the columns, which sum to k (k + 1) / 2, statistic and p-value.

    Raises:
        InputError: If the table has another shape or an entry that is not finite.

    Example:
        >>> found = ranks([[0.9, 0.8, 0.7], [0.9, 0.9, 0.6], [0.8, 0.9, 0.7]])
        >>> found.mean, round(found.statistic, 3), round(found.p, 3)
        ([1.5, 1.5, 3.0], 4.909, 0.086)
    """
    values = np.asarray(table, dtype=float)
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2:
        raise InputError("table", "one row a seed, one column for each of at least two methods", f"shape {list(values.shape)}")
    if not np.isfinite(values).all():
        raise InputError("table", "finite numbers", "NaN or infinity", "Leave out a seed that some method did not finish.")
    rows, methods = values.shape
    own, others = values[:, :, None], values[:, None, :]
    better = others > own if higher else others < own
    found = 1 + better.sum(2) + ((others == own).sum(2) - 1) / 2
    spread = float((found**2).sum()) - rows * methods * (methods + 1) ** 2 / 4
    between = float(((found.sum(0) - rows * (methods + 1) / 2) ** 2).sum())
    mean = (found.sum(0) / rows).tolist()
    if spread == 0:
        return Ranks(mean, math.nan, math.nan)
    statistic = (methods - 1) * between / spread
    # the upper tail of chi-squared is the regularised gamma function
    half = torch.tensor([(methods - 1) / 2, statistic / 2], dtype=torch.float64)
    return Ranks(mean, statistic, float(torch.special.gammaincc(half[0], half[1])))
