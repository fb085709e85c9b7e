"""Means over seeds with their errors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from retain.errors import InputError


class Estimate(NamedTuple):
    """A mean over ``seeds`` seeds and its standard error (``nan`` for one seed)."""

    mean: float
    error: float
    seeds: int

    def percent(self, digits: int = 1) -> str:
        """The estimate in per cent, such as ``87.0 ± 0.2``."""
        if math.isnan(self.error):
            return f"{100 * self.mean:.{digits}f}"
        return f"{100 * self.mean:.{digits}f} ± {100 * self.error:.{digits}f}"


def estimate(values: Iterable[float]) -> Estimate:
    r"""Mean and standard error :math:`s / \sqrt{n}` with :math:`s` the sample deviation (divisor n - 1).

    Args:
        values: One number a seed.

    Returns:
        Mean, standard error, count.

    Raises:
        InputError: If there are no values.

    Example:
        >>> estimate([1.0, 3.0])
        Estimate(mean=2.0, error=1.0, seeds=2)
    """
    numbers = [float(value) for value in values]
    if not numbers:
        raise InputError("values", "at least one number", "none")
    count = len(numbers)
    mean = math.fsum(numbers) / count
    if count == 1:
        return Estimate(mean, math.nan, 1)
    variance = math.fsum((number - mean) ** 2 for number in numbers) / (count - 1)
    return Estimate(mean, math.sqrt(variance / count), count)
