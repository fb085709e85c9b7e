"""Metrics of the accuracy matrix, and means over seeds."""

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retain import metrics
from retain.errors import InputError

ALL = (metrics.average_accuracy, metrics.learning_accuracy, metrics.backward_transfer, metrics.forgetting, metrics.forward_transfer)
matrices = st.integers(2, 5).flatmap(lambda t: hnp.arrays(float, (t + 1, t), elements=st.floats(0, 1)))


@given(matrices)
def test_definitions_by_hand(R):
    T = R.shape[1]
    assert metrics.average_accuracy(R) == pytest.approx(sum(R[T, j] for j in range(T)) / T)
    assert metrics.learning_accuracy(R) == pytest.approx(sum(R[j + 1, j] for j in range(T)) / T)
    assert metrics.backward_transfer(R) == pytest.approx(sum(R[T, j] - R[j + 1, j] for j in range(T - 1)) / (T - 1))
    best = [max(R[i, j] for i in range(j + 1, T)) for j in range(T - 1)]
    assert metrics.forgetting(R) == pytest.approx(sum(b - R[T, j] for j, b in enumerate(best)) / (T - 1))
    assert metrics.forward_transfer(R) == pytest.approx(sum(R[j, j] - R[0, j] for j in range(1, T)) / (T - 1))


@given(matrices, st.floats(0.1, 100))
def test_units_carry_through(R, unit):
    for metric in ALL:
        assert metric(unit * R) == pytest.approx(unit * metric(R), abs=1e-9)


def test_one_task_has_no_transfer():
    R = [[0.1], [0.9]]
    assert metrics.average_accuracy(R) == metrics.learning_accuracy(R) == 0.9
    assert all(math.isnan(metric(R)) for metric in ALL[2:])


@pytest.mark.parametrize("R", [[[0.1]], [0.1, 0.2], [[0.1, 0.2]], np.zeros((3, 3)), []])
def test_other_shapes_are_refused(R):
    for metric in ALL:
        with pytest.raises(InputError, match="row 0 before any learning"):
            metric(R)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_standard_error(values):
    found = metrics.estimate(values)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.error == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-9)


def test_one_seed_has_no_error():
    found = metrics.estimate([0.5])
    assert math.isnan(found.error) and found.percent() == "50.0"
    assert metrics.estimate([0.4, 0.6]).percent() == "50.0 ± 10.0"
    with pytest.raises(InputError):
        metrics.estimate([])


@pytest.mark.parametrize(("seeds", "t"), [(2, 12.7062), (3, 4.3027), (4, 3.1824), (5, 2.7764), (6, 2.5706), (11, 2.2281), (31, 2.0423), (100, 1.9842)])
def test_intervals_are_students(seeds, t):
    """Published quantiles of Student's distribution, for odd and even degrees of freedom."""
    values = [float(k) for k in range(seeds)]
    found, error = metrics.interval(values), metrics.estimate(values).error
    assert (found.high - found.mean) / error == pytest.approx(t, abs=6e-5)
    assert found.low + found.high == pytest.approx(2 * found.mean)


def test_intervals_cover_as_often_as_they_say():
    draws = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    covered = sum(not metrics.interval(draw, level=0.8).apart for draw in draws) / len(draws)
    assert covered == pytest.approx(0.8, abs=0.02)
    alone = metrics.interval([0.5])
    assert math.isnan(alone.low) and not alone.apart and alone.percent() == "+50.0"
    assert metrics.interval([0.1, 0.2]).percent(0) == "+15 (-49 to +79)"
    with pytest.raises(InputError, match="level"):
        metrics.interval([1.0, 2.0], level=1.0)
