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


class Interval(NamedTuple):
    """A mean over ``seeds`` seeds with the ends of its confidence interval (``nan`` for one seed)."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def apart(self) -> bool:
        """Whether 0 is outside."""
        return self.low > 0 or self.high < 0

    def percent(self, digits: int = 1) -> str:
        """The interval in per cent, with signs, such as ``+3.1 (+1.2 to +5.0)``."""
        if math.isnan(self.low):
            return f"{100 * self.mean:+.{digits}f}"
        return f"{100 * self.mean:+.{digits}f} ({100 * self.low:+.{digits}f} to {100 * self.high:+.{digits}f})"


def interval(values: Iterable[float], level: float = 0.95) -> Interval:
    r"""Student's interval, :math:`\bar x \pm t_{n-1} s / \sqrt{n}`: for numbers of a few seeds, such as differences between two arms seed by seed.

    Student 1908, "The probable error of a mean", Biometrika 6. It is exact for Gaussian numbers, whatever their count.

    Args:
        values: One number a seed.
        level: Probability that the interval covers the mean, between 0 and 1.

    Returns:
        Mean and ends.

    Raises:
        InputError: If there are no values, or the level is out of range.

    Example:
        >>> found = interval([1.0, 2.0, 3.0])
        >>> found.mean, round(found.low, 3), round(found.high, 3), found.apart
        (2.0, -0.484, 4.484, False)
    """
    if not 0 < level < 1:
        raise InputError("level", "a number between 0 and 1", level)
    mean, error, count = estimate(values)
    if count == 1:
        return Interval(mean, math.nan, math.nan, 1)
    reach = error * _student(level, count - 1)
    return Interval(mean, mean - reach, mean + reach, count)


def _student(level: float, degrees: int) -> float:
    """The t within which Student's distribution holds a probability."""
    low, high = 0.0, 1.0
    while _within(high, degrees) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < level else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """P(|T| < t), a finite sum for whole degrees of freedom: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
