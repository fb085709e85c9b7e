"""Intransigence, the anytime curve, intervals by resampling, paired arms and mean ranks."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retain import metrics
from retain.errors import InputError

matrices = st.integers(1, 5).flatmap(lambda t: hnp.arrays(float, (t + 1, t), elements=st.floats(0, 1)))
numbers = st.lists(st.integers(-20, 20).map(float), min_size=2, max_size=8)
R = [[0.1, 0.1, 0.1], [0.9, 0.2, 0.1], [0.5, 0.8, 0.3], [0.4, 0.6, 0.7]]


def test_intransigence_by_hand():
    assert metrics.intransigence(R, [0.95, 0.7, 1.0]) == pytest.approx((0.05 - 0.1 + 0.3) / 3)
    for joint in ([0.9, 0.8], 0.9, [[0.9, 0.8, 0.7]]):
        with pytest.raises(InputError, match="each of the 3 tasks"):
            metrics.intransigence(R, joint)
    with pytest.raises(InputError, match="row 0 before any learning"):
        metrics.intransigence([[0.9]], [0.9])


@given(matrices, st.data())
def test_intransigence_is_what_the_reference_has_more(values, data):
    joint = data.draw(hnp.arrays(float, values.shape[1], elements=st.floats(0, 1)))
    assert metrics.intransigence(values, joint) == pytest.approx(joint.mean() - metrics.learning_accuracy(values), abs=1e-12)
    assert metrics.intransigence(values, np.diagonal(values[1:])) == 0


def test_anytime_by_hand():
    assert metrics.anytime([[0.8], [0.6], [0.5, 0.9], [0.3, 0.6, 0.9]]) == pytest.approx((0.8 + 0.6 + 0.7 + 0.6) / 4)
    assert metrics.anytime([0.25, 0.75]) == 0.5  # means already taken
    whole = np.array(R)
    assert metrics.anytime(whole[t, :t] for t in (1, 2, 3)) == pytest.approx((0.9 + 1.3 / 2 + 1.7 / 3) / 3)
    for bad, words in (([], "at least one point"), ([[0.5], []], "point 1"), ([[math.nan]], "point 0"), ([[[0.5]]], "point 0")):
        with pytest.raises(InputError, match=words):
            metrics.anytime(bad)


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=1, max_size=6), st.floats(0.1, 100))
def test_anytime_lies_within_and_carries_its_unit(curve, unit):
    found = metrics.anytime(curve)
    assert min(map(min, curve)) - 1e-12 <= found <= max(map(max, curve)) + 1e-12
    assert metrics.anytime([[unit * value for value in point] for point in curve]) == pytest.approx(unit * found)
    assert metrics.anytime(curve + curve) == pytest.approx(found)


def test_bootstrap_of_two_seeds_by_hand():
    """Means 0, 1/2 and 1 come with probabilities 1/4, 1/2 and 1/4."""
    assert metrics.bootstrap([0.0, 1.0]) == (0.5, 0.0, 1.0, 2)
    assert metrics.bootstrap([0.0, 1.0], level=0.4) == (0.5, 0.5, 0.5, 2)
    assert metrics.bootstrap([0.0, 1.0], level=0.55) == (0.5, 0.0, 1.0, 2)


def test_bootstrap_against_all_samples():
    """The quantiles of the means of all 4^4 samples."""
    values = [0.0, 1.0, 5.0, 25.0]
    means = [math.fsum(sample) / 4 for sample in itertools.product(values, repeat=4)]
    found = metrics.bootstrap(values, level=0.8, draws=200_000)
    assert (found.low, found.high) == pytest.approx((np.quantile(means, 0.1), np.quantile(means, 0.9)))
    assert found.mean == 7.75


def test_bootstrap_is_that_of_scipy():
    values = np.random.default_rng(0).normal(size=30)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile").confidence_interval
    ours = metrics.bootstrap(values, draws=20_000)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)


@given(numbers, st.integers(0, 5))
def test_bootstrap_repeats_stays_inside_and_nests(values, seed):
    found = metrics.bootstrap(values, draws=200, seed=seed)
    assert found == metrics.bootstrap(iter(values), draws=200, seed=seed)
    assert min(values) <= found.low <= found.high <= max(values) and found.seeds == len(values)
    narrow = metrics.bootstrap(values, level=0.5, draws=200, seed=seed)
    assert found.low <= narrow.low <= narrow.high <= found.high
    moved = metrics.bootstrap([2 * value + 3 for value in values], draws=200, seed=seed)
    assert moved[:3] == pytest.approx([2 * value + 3 for value in found[:3]], abs=1e-9)


def test_bootstrap_leaves_the_global_generator_and_follows_its_seed():
    before = torch.random.get_rng_state()
    values = np.random.default_rng(1).normal(size=9)
    assert metrics.bootstrap(values, draws=50) != metrics.bootstrap(values, draws=50, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    alone = metrics.bootstrap([0.5])
    assert alone.mean == 0.5 and math.isnan(alone.low) and math.isnan(alone.high) and alone.seeds == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"values": []}, "values: .*none"),
        ({"values": [0.5, math.nan]}, "values: .*finite"),
        ({"level": 0}, "level"),
        ({"level": 1.0}, "level"),
        ({"draws": 0}, "draws"),
        ({"seed": -1}, "seed"),
    ],
)
def test_other_arguments_of_bootstrap_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        metrics.bootstrap(**{"values": [0.1, 0.2], **options})


def test_paired_by_hand():
    found = metrics.paired([3.0, 5.0, 7.0], [1.0, 2.0, 6.0])  # differences 2, 3, 1: all of one sign
    assert found.p == 2 / 8 and found.difference == metrics.interval([2.0, 3.0, 1.0])
    # differences 1, 1, -1: |sum| is 1 or 3, so no choice of signs is below
    assert metrics.paired([1.0, 1.0, 0.0], [0.0, 0.0, 1.0]).p == 1
    # 4, 1, 1 sum to 6 = the most; 4, 1, -1 sum to 4: 6, 4, 4 and 2 with either sign
    assert metrics.paired([4.0, 1.0, 1.0], [0.0] * 3).p == 0.25
    assert metrics.paired([4.0, 1.0, 0.0], [0.0, 0.0, 1.0]).p == 0.75
    same = metrics.paired([0.3, 0.4], [0.3, 0.4])
    assert same.p == 1 and same.difference[:3] == (0, 0, 0)
    alone = metrics.paired([0.3], [0.2])
    assert alone.p == 1 and math.isnan(alone.difference.low)


def test_rounding_does_not_break_ties():
    """0.3 - 0.2 and 0.2 - 0.1 differ by rounding alone: flipping one for the other must count as equal."""
    assert metrics.paired([0.3, 0.2, 0.1], [0.2, 0.1, 0.2]).p == 1
    assert metrics.paired([0.8, 0.9, 0.5], [0.7, 0.8, 0.6]).p == 1


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=7))
def test_paired_is_exact(differences):
    """Counted in whole numbers, and as scipy does it."""
    found = metrics.paired([value / 10 for value in differences], [0.0] * len(differences))
    flipped = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in itertools.product((1, -1), repeat=len(differences))]
    assert found.p == Fraction(sum(value >= abs(sum(differences)) for value in flipped), len(flipped))
    assert metrics.paired([0.0] * len(differences), [value / 10 for value in differences]).p == found.p


@pytest.mark.parametrize("seeds", [3, 8, 12])
def test_paired_is_that_of_scipy(seeds):
    a, b = np.random.default_rng(seeds).normal(size=(2, seeds))
    theirs = scipy.stats.permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf)
    student = scipy.stats.ttest_rel(a, b).confidence_interval(0.9)
    found = metrics.paired(a, b, level=0.9)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.difference.low, found.difference.high) == pytest.approx((student.low, student.high))


def test_signs_are_drawn_for_many_seeds():
    a, b = np.random.default_rng(3).normal(size=(2, 13))
    a = a + 0.6
    found = metrics.paired(a, b)
    signs = 1 - 2 * (np.arange(2**13)[:, None] >> np.arange(13) & 1)
    exact = np.mean(np.abs(signs @ (a - b)) >= abs((a - b).sum()) - 1e-9)
    assert found.p == pytest.approx(exact, abs=0.005) and found.p != exact
    assert found == metrics.paired(a, b) and found.p != metrics.paired(a, b, seed=1).p
    # no signs drawn can make it 0
    assert metrics.paired(range(1, 41), [0] * 40, draws=99).p == 0.01


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0.1, 0.2], [0.1]), "each of the 2 seeds"),
        (([], []), "a: "),
        (([0.1], [math.inf]), "b: "),
        (([0.1], [0.2], 2), "level"),
        (([0.1], [0.2], 0.9, 0), "draws"),
    ],
)
def test_other_arms_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        metrics.paired(*arguments)


def test_ranks_by_hand():
    """Ranks 1 2 3, 1.5 1.5 3 and 2 1 3: sums 4.5, 4.5 and 9, so (2 * 13.5) / (41.5 - 36)."""
    found = metrics.ranks([[0.9, 0.8, 0.7], [0.9, 0.9, 0.6], [0.8, 0.9, 0.7]])
    assert found.mean == [1.5, 1.5, 3.0] and found.statistic == pytest.approx(27 / 5.5)
    assert found.p == pytest.approx(math.exp(-found.statistic / 2))  # chi-squared with two degrees of freedom
    lower = metrics.ranks([[0.1, 0.2], [0.1, 0.3], [0.4, 0.4]], higher=False)
    assert lower.mean == [pytest.approx(3.5 / 3), pytest.approx(5.5 / 3)]
    tied = metrics.ranks([[1, 1, 1], [2, 2, 2]])
    assert tied.mean == [2, 2, 2] and math.isnan(tied.statistic) and math.isnan(tied.p)


@given(st.tuples(st.integers(2, 8), st.integers(3, 6)).flatmap(lambda shape: hnp.arrays(float, shape, elements=st.integers(0, 4).map(float))))
def test_ranks_are_those_of_scipy(table):
    rows, methods = table.shape
    found = metrics.ranks(table)
    assert found.mean == pytest.approx(scipy.stats.rankdata(-table, axis=1).mean(0).tolist())
    assert math.fsum(found.mean) == pytest.approx(methods * (methods + 1) / 2)
    if all(len(set(row)) == 1 for row in table.tolist()):
        assert math.isnan(found.statistic)
        return
    theirs = scipy.stats.friedmanchisquare(*table.T)
    assert (found.statistic, found.p) == (pytest.approx(theirs.statistic, abs=1e-9), pytest.approx(theirs.pvalue))
    # only the order counts, and lower is better where the signs are the other way round
    assert metrics.ranks(np.exp(table)) == found == metrics.ranks(-table, higher=False)
    order = np.arange(methods)[::-1]
    assert metrics.ranks(table[:, order]).mean == pytest.approx(found.mean[::-1])
    assert metrics.ranks(np.concatenate([table, table])).mean == pytest.approx(found.mean)
    assert found.statistic <= rows * (methods - 1) + 1e-9


@pytest.mark.parametrize("table", [[], [0.1, 0.2], [[0.1], [0.2]], np.zeros((0, 3)), [[0.1, math.nan]]])
def test_other_tables_are_refused(table):
    with pytest.raises(InputError, match="table"):
        metrics.ranks(table)
