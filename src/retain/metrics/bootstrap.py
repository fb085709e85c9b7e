"""Few seeds, no Gaussian: intervals by resampling, and two arms compared seed by seed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from retain.errors import InputError, check_count
from retain.metrics.statistics import Interval, estimate, interval
from retain.seeds import generator

_ENUMERATED = 12
"""Up to so many seeds all sign flips are counted: 4096 of them."""


def _numbers(name: str, values: Iterable[float]) -> list[float]:
    numbers = [float(value) for value in values]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise InputError(name, "at least one number, all of them finite", numbers if numbers else "none")
    return numbers


def bootstrap(values: Iterable[float], level: float = 0.95, draws: int = 10_000, seed: int = 0) -> Interval:
    r"""Percentile interval of the mean: the quantiles :math:`(1 \mp \text{level}) / 2` of the means of samples drawn with replacement.

    Efron 1979, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7. It assumes no distribution and never leaves the
    range of the values. With few it is too narrow, as it knows neither Student's t nor the divisor n - 1: on Gaussian numbers
    95 % covers 84 % of the time with 5 seeds and 92 % with 10, where :func:`interval` keeps its word.

    Args:
        values: One number a seed.
        level: Probability that the interval covers the mean, between 0 and 1.
        draws: How many samples of as many values.
        seed: Of the draws.

    Returns:
        Mean and ends (``nan`` for one value); the same for the same arguments.

    Raises:
        InputError: If there are no values or one is not finite, or level, draws or seed is out of range.

    Example:
        >>> found = bootstrap([1.0, 2.0, 3.0])
        >>> found.mean, found.low, found.high, found.apart
        (2.0, 1.0, 3.0, True)
    """
    if not 0 < level < 1:
        raise InputError("level", "a number between 0 and 1", level)
    check_count("draws", draws)
    numbers = _numbers("values", values)
    mean, _, count = estimate(numbers)
    if count == 1:
        return Interval(mean, math.nan, math.nan, 1)
    rows = torch.randint(count, (draws, count), generator=generator(seed, "bootstrap")).numpy()
    low, high = np.quantile(np.array(numbers)[rows].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), count)


class Paired(NamedTuple):
    """The difference of two arms, seed by seed: its mean with Student's interval, and the p-value of flipped signs."""

    difference: Interval
    p: float


def paired(a: Iterable[float], b: Iterable[float], level: float = 0.95, draws: int = 100_000, seed: int = 0) -> Paired:
    r"""Two arms over the same seeds: mean of :math:`d = a - b` with Student's interval, and how often flipped signs give as large a mean.

    The interval is that of :func:`interval` on the differences. The p-value is that of the sign-flip permutation test (Fisher 1935, The Design of
    Experiments, section 21; Pitman 1937): if the arms do not differ, each difference is as likely with the other sign, and :math:`p` is the share
    of the :math:`2^n` signs :math:`s` with :math:`|\sum s_i d_i| \ge |\sum d_i|`. It is exact up to 12 seeds; beyond, signs are drawn and
    :math:`p = (1 + \text{hits}) / (1 + \text{draws})` (Phipson and Smyth 2010), which is valid too. It cannot fall below :math:`2^{1-n}`:
    five seeds never give 0.05.

    Args:
        a: One number a seed.
        b: The other arm's numbers for the same seeds, in the same order.
        level: Of the interval, between 0 and 1.
        draws: How many signs are drawn with more than 12 seeds.
        seed: Of the draws.

    Returns:
        The interval of the difference and the two-sided p-value.

    Raises:
        InputError: If there are no numbers or one is not finite, the arms differ in length, or level, draws or seed is out of range.

    Example:
        >>> found = paired([0.9, 0.8, 0.9, 0.7], [0.8, 0.7, 0.7, 0.7])
        >>> found.difference.percent(), found.p
        ('+10.0 (-3.0 to +23.0)', 0.25)
    """
    first, second = _numbers("a", a), _numbers("b", b)
    if len(first) != len(second):
        raise InputError("b", f"one number for each of the {len(first)} seeds of a", len(second), "Both arms need the same seeds.")
    check_count("draws", draws)
    differences = [x - y for x, y in zip(first, second, strict=True)]
    found, count = interval(differences, level), len(differences)
    draw = generator(seed, "signs")
    if count <= _ENUMERATED:
        flips = (torch.arange(2**count)[:, None] >> torch.arange(count)) & 1
    else:
        flips = torch.randint(2, (draws, count), generator=draw)
    numbers = torch.tensor(differences, dtype=torch.float64)
    sums = ((1 - 2 * flips).double() @ numbers).abs()
    # differences that are equal but for rounding count as equal
    hits = int((sums >= abs(math.fsum(differences)) - 1e-9 * float(numbers.abs().sum())).sum())
    return Paired(found, hits / len(sums) if count <= _ENUMERATED else (1 + hits) / (1 + draws))
