"""Calibration, the Brier score, the two parts of uncertainty, and the detection of strange samples."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retain.errors import InputError
from retain.metrics import auroc, brier, calibration, expected_calibration_error, uncertainty


def draw(*shape, seed=0, sharp=2.0, dtype=torch.float64):
    return (sharp * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)).softmax(-1)


def labels(n, classes, seed=0):
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


def calibration_by_loop(probabilities, targets, bins):
    members = [[] for _ in range(bins)]
    for row, label in zip(probabilities.tolist(), targets.tolist(), strict=True):
        top = max(row)
        place = next(b for b in range(bins) if b / bins < top <= (b + 1) / bins or b + 1 == bins)
        members[place].append((top, float(row.index(top) == label)))
    gaps = []
    for found in members:
        gaps.append(abs(sum(right for _, right in found) - sum(top for top, _ in found)) / len(found) if found else 0.0)
    return gaps, [len(found) for found in members]


@pytest.mark.parametrize("bins", [1, 2, 7, 15, 100])
@pytest.mark.parametrize("seed", range(3))
def test_calibration_by_hand(bins, seed):
    probabilities, targets = draw(200, 4, seed=seed), labels(200, 4, seed)
    found = calibration(probabilities, targets, bins)
    gaps, counts = calibration_by_loop(probabilities, targets, bins)
    assert found.count == counts and sum(counts) == 200
    assert found.error == pytest.approx(sum(gap * count for gap, count in zip(gaps, counts, strict=True)) / 200)
    assert found.largest == pytest.approx(max(gaps))
    assert expected_calibration_error(probabilities, targets, bins) == found.error
    for confidence, accuracy, count, gap in zip(found.confidence, found.accuracy, counts, gaps, strict=True):
        assert math.isnan(confidence) == math.isnan(accuracy) == (count == 0)
        assert count == 0 or abs(confidence - accuracy) == pytest.approx(gap)


def test_one_bin_is_mean_confidence_against_accuracy():
    probabilities, targets = draw(100, 3), labels(100, 3)
    top, answer = probabilities.max(-1)
    assert expected_calibration_error(probabilities, targets, 1) == pytest.approx(abs(float(top.mean()) - float((answer == targets).double().mean())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_edge_belongs_to_the_bin_below(dtype):
    tops = torch.tensor([0.6, 0.7, 0.8, 0.9, 1.0], dtype=dtype)
    found = calibration(torch.stack([tops, 1 - tops], 1), torch.zeros(5).long(), 10)
    assert found.count == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_a_calibrated_model_has_no_error():
    probabilities = torch.tensor([[0.75, 0.25]]).repeat(400, 1)
    targets = (torch.arange(400) % 4 == 0).long()
    found = calibration(probabilities, targets)
    assert found.error == found.largest == 0 and found.accuracy[11] == 0.75
    wrong = calibration(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert wrong.error == wrong.largest == 1 and wrong.count[-1] == 1


def test_brier_by_hand():
    probabilities, targets = draw(50, 5), labels(50, 5)
    truth = torch.nn.functional.one_hot(targets, 5)
    assert brier(probabilities, targets) == pytest.approx(float((probabilities - truth).square().sum(-1).mean()))
    for classes in (2, 10):
        uniform = torch.full((4, classes), 1 / classes)
        assert brier(uniform, labels(4, classes)) == pytest.approx(1 - 1 / classes)
    sure = torch.eye(3)
    assert brier(sure, torch.arange(3)) == 0 and brier(sure, (torch.arange(3) + 1) % 3) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_near(dtype):
    probabilities, targets = draw(300, 3), labels(300, 3)
    low = probabilities.float().log().softmax(-1).to(dtype)
    low[:, -1] = (1 - low[:, :-1].float().sum(-1)).to(dtype)  # rows that sum to 1 but for one rounding
    kept = (low.float().sum(-1) - 1).abs() < 1e-3
    assert kept.sum() > 100
    assert brier(low[kept], targets[kept]) == pytest.approx(brier(probabilities[kept], targets[kept]), abs=0.01)
    assert uncertainty(low[kept][None]).total.dtype == torch.float32


def entropy(row):
    return -sum(p * math.log(p) for p in row if p > 0)


@pytest.mark.parametrize("seed", range(3))
def test_parts_of_uncertainty_by_hand(seed):
    probabilities = draw(6, 20, 4, seed=seed, sharp=3)
    found = uncertainty(probabilities)
    for i in range(20):
        members = probabilities[:, i].tolist()
        mean = [sum(column) / 6 for column in zip(*members, strict=True)]
        # mutual information as the mean divergence from the mean: another formula for the same number
        divergence = sum(p * math.log(p / q) for row in members for p, q in zip(row, mean, strict=True)) / 6
        assert float(found.total[i]) == pytest.approx(entropy(mean))
        assert float(found.aleatoric[i]) == pytest.approx(sum(map(entropy, members)) / 6)
        assert float(found.epistemic[i]) == pytest.approx(divergence)


def test_limits_of_uncertainty():
    sure = torch.eye(3).unsqueeze(1)  # three members, one sample, each sure of another class
    total, aleatoric, epistemic = uncertainty(sure)
    assert aleatoric.item() == 0 and total.item() == pytest.approx(math.log(3)) and epistemic.item() == pytest.approx(math.log(3))
    total, aleatoric, epistemic = uncertainty(torch.full((4, 2, 5), 0.2))
    assert torch.allclose(total, torch.full((2,), math.log(5))) and torch.allclose(aleatoric, total) and bool((epistemic < 1e-6).all())
    assert uncertainty(draw(1, 50, 3)).epistemic.tolist() == [0.0] * 50


def test_rounding_gives_no_negative_uncertainty():
    same = draw(1, 5000, 7, dtype=torch.float32).repeat(3, 1, 1)
    total, aleatoric, epistemic = uncertainty(same)
    assert bool((torch.special.entr(same.mean(0)).sum(-1) < torch.special.entr(same).sum(-1).mean(0)).any())  # else nothing is tested
    assert bool((epistemic >= 0).all()) and float(epistemic.max()) < 1e-5
    over = torch.tensor([[[1.0 + 1e-6, 0.0]]])
    assert all(part.item() == 0 for part in uncertainty(over))
    assert torch.allclose(total, aleatoric, atol=1e-5)


def auroc_by_pairs(inside, outside):
    return sum((o > i) + 0.5 * (o == i) for i in inside for o in outside) / (len(inside) * len(outside))


scores = st.lists(st.integers(-3, 3).map(float) | st.sampled_from([math.inf, -math.inf]), min_size=1, max_size=12)


@given(scores, scores)
def test_auroc_by_pairs(inside, outside):
    a, b = torch.tensor(inside), torch.tensor(outside)
    assert auroc(a, b) == pytest.approx(auroc_by_pairs(inside, outside), abs=1e-12)
    assert auroc(a, b) + auroc(b, a) == pytest.approx(1)
    assert auroc(a.clamp(-9, 9).exp(), b.clamp(-9, 9).exp()) == auroc(a, b)  # the order alone matters


def test_auroc_of_known_distributions():
    g = torch.Generator().manual_seed(0)
    inside, outside = torch.randn(200_000, generator=g), 1 + torch.randn(200_000, generator=g)
    assert auroc(inside, outside) == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=0.003)  # Phi(1 / sqrt 2)
    assert auroc(torch.zeros(5), torch.ones(3)) == 1 and auroc(torch.ones(5), torch.zeros(3)) == 0 and auroc(torch.ones(5), torch.ones(3)) == 0.5
    assert auroc(torch.tensor([0, 1]), torch.tensor([1, 2])) == 0.875  # whole numbers


GOOD = torch.full((3, 2), 0.5)
BAD_ROWS = [
    (GOOD * 1.01, "sum to 1"),
    (torch.randn(3, 2), "softmax"),
    (torch.tensor([[1.5, -0.5]] * 3), "negative"),
    (torch.tensor([[math.nan, 0.5]] * 3), "NaN"),
    (torch.tensor([[math.inf, 0.5]] * 3), "infinity"),
    (torch.ones(3, 2).long(), "int64"),
    (torch.zeros(0, 2), "shape"),
    (torch.zeros(3, 0), "shape"),
    (torch.full((3,), 1.0), "shape"),
    ([[0.5, 0.5]] * 3, "list"),
]


@pytest.mark.parametrize(("rows", "why"), BAD_ROWS)
def test_rows_that_are_no_probabilities_are_refused(rows, why):
    for metric in (calibration, expected_calibration_error, brier):
        with pytest.raises(InputError, match=why):
            metric(rows, torch.zeros(3).long())
    if isinstance(rows, torch.Tensor):
        with pytest.raises(InputError, match=why):
            uncertainty(rows[None])
    with pytest.raises(InputError, match="S, N, C"):
        uncertainty(GOOD)


@pytest.mark.parametrize(
    ("targets", "why"),
    [
        (torch.zeros(2).long(), "one label for each of the 3"),
        (torch.zeros(3, 1).long(), "one label"),
        (torch.zeros(3), "class indices"),
        (torch.zeros(3).bool(), "class indices"),
        ([0, 0, 0], "class indices"),
        (torch.tensor([0, 1, 2]), "from 0 to 1"),
        (torch.tensor([0, -1, 1]), "from 0 to 1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(targets, why):
    for metric in (calibration, brier):
        with pytest.raises(InputError, match=why):
            metric(GOOD, targets)


@pytest.mark.parametrize("bins", [0, -1, 1.5, True, "10"])
def test_bins_are_counted(bins):
    with pytest.raises(InputError, match="bins"):
        calibration(GOOD, torch.zeros(3).long(), bins)


@pytest.mark.parametrize(
    "bad", [torch.zeros(0), torch.zeros(2, 2), torch.tensor([0.0, math.nan]), [0.1], torch.tensor(1.0), torch.zeros(2, dtype=torch.cfloat)]
)
def test_scores_that_cannot_be_compared_are_refused(bad):
    for name, pair in (("inside", (bad, torch.ones(2))), ("outside", (torch.ones(2), bad))):
        with pytest.raises(InputError, match=name):
            auroc(*pair)


def test_gradients_do_not_disturb():
    rows = GOOD.clone().requires_grad_()
    assert brier(rows, torch.zeros(3).long()) == calibration(rows, torch.zeros(3).long()).error == 0.5
    uncertainty(rows[None]).total.sum().backward()
    assert auroc(rows[:, 0], rows[:, 1]) == 0.5
