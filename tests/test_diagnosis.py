"""Distance, similarity and what all diagnoses ask of their input."""

import math
import sys

import pytest
import torch
from torch import nn

from retain import Task, models, tasks
from retain.diagnosis import cka, distance, linear_cka
from retain.errors import InputError


def hsic(K, L):
    """Song et al. 2012, eq. 5, term by term."""
    n, one = len(K), torch.ones(len(K), dtype=K.dtype)
    K, L = K.clone().fill_diagonal_(0), L.clone().fill_diagonal_(0)
    return ((K @ L).trace() + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))


def normed(width=6):
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Linear(width, 3))


def test_distance_of_weights_set_by_hand():
    before, after = normed(), normed()
    with torch.no_grad():
        for model in (before, after):
            for p in model.parameters():
                p.zero_()
        before[0].weight[0] = torch.tensor([1.0, 0.0, 0.0, 0.0])
        after[0].weight[0] = torch.tensor([1.0, 1.0, 0.0, 0.0])
        before[3].weight[0, 0], after[3].weight[0, 0] = 2.0, -2.0
        after[1].running_mean += 3.0
    found = distance(before, after)
    assert found.layers["0.weight"][:3] == pytest.approx((1.0, 1.0, 45.0))
    assert found.layers["3.weight"][:3] == pytest.approx((4.0, 2.0, 180.0))
    assert found.total.l2 == pytest.approx(math.sqrt(17)) and found.total.relative == pytest.approx(math.sqrt(17 / 5))
    assert found.total.angle == pytest.approx(math.degrees(math.acos((1 - 4) / math.sqrt(5 * 6))))
    assert math.isnan(found.layers["0.bias"].relative) and found.layers["0.bias"].l2 == 0
    assert found.buffers["1.running_mean"].l2 == pytest.approx(3 * math.sqrt(6)) and found.buffers["1.running_var"].relative == 0
    assert "0.weight" in found.table().text() and "buffers" not in found.layers


def test_small_angles_keep_their_digits():
    before = nn.Linear(2, 1, bias=False).double()
    after = nn.Linear(2, 1, bias=False).double()
    before.weight.data, after.weight.data = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[1.0, 1e-9]]).double()
    assert distance(before, after).layers["weight"].angle == pytest.approx(math.degrees(1e-9), rel=1e-12)


def test_a_head_of_another_size_is_left_out_and_listed():
    before, after = models.MLP(4, 8, 10, seed=0), models.MLP(4, 8, 3, seed=0)
    found = distance(before, nn.DataParallel(after))
    assert found.left_out == ("layers.fc2.weight", "layers.fc2.bias") and set(found.layers) == {"layers.fc1.weight", "layers.fc1.bias"}
    assert found.total.l2 == 0 and "layers.fc2.weight, layers.fc2.bias" in found.table().note


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (models.MLP(4, 9, 10, seed=0), r"after: expected the same architecture, with 'layers\.fc1\.weight' of shape \[8, 4\], found \[9, 4\]"),
        (nn.Linear(4, 10), r"with 'layers\.fc1\.weight' of shape \[8, 4\], found no such parameter"),
        (nn.ReLU(), "with floating point parameters"),
        ("model", "an nn.Module, found str"),
    ],
)
def test_other_architectures_are_refused_by_the_first_name_that_differs(other, words):
    with pytest.raises(InputError, match=words):
        distance(models.MLP(4, 8, 10, seed=0), other)


def test_weights_that_are_not_finite_are_named():
    broken = models.MLP(4, 8, 10, seed=0)
    broken.layers.fc2.weight.data[0, 0] = math.nan
    for first, second, name in ((broken, models.MLP(4, 8, 10), "before"), (models.MLP(4, 8, 10), broken, "after")):
        with pytest.raises(InputError, match=rf"{name}: expected finite weights, found NaN or infinity in 'layers\.fc2\.weight'"):
            distance(first, second)


@pytest.mark.parametrize("n", [4, 5, 9, 40])
def test_debiased_cka_is_the_closed_formula(n):
    X, Y = torch.randn(n, 5).double() + 100, torch.randn(n, 30).double()
    K, L = (X - 90) @ (X - 90).T, Y @ Y.T  # the formula itself loses digits to large means
    assert linear_cka(X, Y) == pytest.approx(float(hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt()), abs=1e-10)


def test_biased_cka_is_the_closed_formula():
    X, Y = torch.randn(9, 5).double(), torch.randn(9, 7).double()
    X, Y = X - X.mean(0), Y - Y.mean(0)
    expected = (X.T @ Y).norm() ** 2 / ((X.T @ X).norm() * (Y.T @ Y).norm())  # Kornblith et al. 2019
    assert linear_cka(X, Y, debiased=False) == pytest.approx(float(expected), abs=1e-12)


def test_cka_ignores_rotation_scale_and_shift_only():
    X = torch.randn(30, 6).double()
    Q = torch.linalg.qr(torch.randn(6, 6).double())[0]
    for debiased in (True, False):
        assert linear_cka(X, 3 * X @ Q - 7, debiased=debiased) == pytest.approx(1, abs=1e-12)
        assert linear_cka(X, X @ torch.diag(torch.tensor([10.0, 1, 1, 1, 1, 1]).double()), debiased=debiased) < 0.99


def test_unrelated_features_are_far_apart_only_without_the_bias():
    values = [linear_cka(torch.randn(20, 500), torch.randn(20, 500)) for _ in range(60)]
    spread = torch.tensor(values)
    assert abs(float(spread.mean())) < 3 * float(spread.std()) / math.sqrt(60) and float(spread.std()) < 0.15
    assert linear_cka(torch.randn(20, 500), torch.randn(20, 500), debiased=False) > 0.9


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_batches_of_two_and_three_are_put_together(size):
    net = normed().eval()
    inputs, labels = torch.randn(50, 4), torch.randint(3, (50,))
    loader = [(x, y) for x, y in zip(inputs.split(size), labels.split(size), strict=True)]
    found = cka(net, net, loader, samples=50)
    assert found.samples == 50 and found.same == pytest.approx({"0": 1, "3": 1})
    other = normed().eval()
    with torch.no_grad():
        assert cka(net, other, loader, samples=50, layers=("0", "3")).matrix[0][1] == pytest.approx(linear_cka(net[0](inputs), other(inputs)), abs=1e-6)


def test_layers_that_overwrite_their_input_are_seen_before():
    net = normed().eval()
    data = Task((torch.randn(20, 4), torch.randint(3, (20,))))
    found = cka(net, net, data, layers="1")  # an in-place ReLU follows
    assert linear_cka(net[:2](data.data.inputs), net[:3](data.data.inputs)) < 0.999 and found.same["1"] == pytest.approx(1)
    direct = linear_cka(net[:2](data.data.inputs).detach(), net(data.data.inputs).detach())
    assert cka(net, net, data, layers=["1", "3"]).matrix[0][1] == pytest.approx(direct, abs=1e-6)


def test_features_held_a_few_layers_at_a_time(monkeypatch):
    module = sys.modules["retain.diagnosis.cka"]  # the package's own name is the function
    net, data = models.MLP(64, 32, 16, 10, seed=0), tasks.digits()
    whole = cka(net, models.MLP(64, 32, 16, 10, seed=1), data, samples=64)
    monkeypatch.setattr(module, "_STORED", 64 * 40 * 4)
    monkeypatch.setattr(module, "_PART", 64 * 5)
    parts = cka(net, models.MLP(64, 32, 16, 10, seed=1), data, samples=64)
    assert torch.allclose(torch.tensor(parts.matrix), torch.tensor(whole.matrix), atol=1e-12)


def test_layers_that_cannot_be_compared_are_listed():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.dead, self.idle = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)
            nn.init.zeros_(self.dead.weight)

        def forward(self, x):
            return self.used(x) + self.dead(x)

    found = cka(Odd(), Odd(), (torch.randn(20, 4), torch.randint(3, (20,))))
    assert found.layers == ("used",) and set(found.left_out) == {"dead", "idle"}
    assert "idle (it was not called)" in found.table().note and "dead (its output is constant" in found.table().note


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": "layers.fc3"}, r"layers: expected .*found 'layers\.fc3'.*Did you mean 'layers\.fc"),
        ({"samples": 3}, "samples: expected at least 4, below which the unbiased estimator is not defined, found 3"),
        ({"samples": 0}, "samples: expected a whole number of at least 1, found 0"),
        ({"part": "validation"}, "validation: expected validation data"),
    ],
)
def test_bad_settings_of_cka(settings, words):
    net = models.MLP(64, 32, 10, seed=0)
    with pytest.raises(InputError, match=words):
        cka(net, net, tasks.digits(), **settings)


@pytest.mark.parametrize(
    ("X", "Y", "words"),
    [
        (torch.randn(3, 2), torch.randn(3, 2), "X: expected at least 4 samples"),
        (torch.randn(5, 2), torch.randn(4, 2), "Y: expected features of the same 5 samples as X, found 4"),
        (torch.randn(5, 2), torch.ones(5, 2), "Y: expected features that vary"),
        (torch.full((5, 2), math.nan), torch.ones(5, 2), "X: expected finite numbers"),
        (torch.ones(5, 2).long(), torch.ones(5, 2), "X: expected a tensor of floating point features"),
    ],
)
def test_bad_features(X, Y, words):
    with pytest.raises(InputError, match=words):
        linear_cka(X, Y)
