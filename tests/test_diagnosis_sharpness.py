"""Sharpness and the Hessian, against quadratic losses and rescaled networks."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import retain
from retain import Task, likelihoods, models
from retain.diagnosis import sharpness, spectrum
from retain.errors import InputError


class Log:
    def __init__(self):
        self.events = []

    def event(self, kind, **fields):
        self.events.append((kind, fields))


def regression(slope):
    """A linear model at its minimum (or off it): the loss is a quadratic with H = X'X/n."""
    g = torch.Generator().manual_seed(2)
    X = torch.randn(40, 5, generator=g).double() * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1]).double()
    model = nn.Linear(5, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 3.0, 1.0]]))
        y = model(X)
        model.weight += slope
    return model, Task((X, y), likelihood=likelihoods.Gaussian(sigma=1.0)), X.T @ X / 40


def largest(H, g, rho):
    """max g'e + e'He/2 over the ball, by the multiplier on a fine bisection (More and Sorensen 1983)."""
    values, V = torch.linalg.eigh(H)
    low, high = float(values[-1]) + 1e-12, float(values[-1]) + float(g.norm()) / rho + 1.0
    a = V.T @ g
    for _ in range(200):
        middle = (low + high) / 2
        if float((a / (middle - values)).norm()) > rho:
            low = middle
        else:
            high = middle
    e = V @ (a / (high - values))
    return float(g @ e + e @ H @ e / 2)


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_worst_case_of_a_quadratic_is_the_trust_region(adaptive):
    model, task, H = regression(0.3)
    scale = model.weight.detach()[0].abs() if adaptive else torch.ones(5).double()
    g = H @ torch.full((5,), 0.3).double()
    found = sharpness(model, task, rho=0.4, adaptive=adaptive, steps=60, draws=2)
    assert found.worst == pytest.approx(largest(torch.diag(scale) @ H @ torch.diag(scale), scale * g, 0.4), rel=1e-4)
    assert found.ascent[0] == 0 and len(found.ascent) == 61


def test_at_a_minimum_the_worst_case_is_the_top_eigenvalue():
    model, task, H = regression(0.0)
    scale = torch.diag(model.weight.detach()[0].abs())
    top = float(torch.linalg.eigvalsh(scale @ H @ scale)[-1])
    assert sharpness(model, task, rho=0.1, steps=60).worst == pytest.approx(0.5 * 0.01 * top, rel=1e-3)


def test_the_worst_case_of_a_box_is_a_corner():
    model, task, H = regression(0.3)
    scale, g = torch.diag(model.weight.detach()[0].abs()), H @ torch.full((5,), 0.3).double()
    corners = torch.cartesian_prod(*[torch.tensor([-0.2, 0.2]).double()] * 5) @ scale
    best = float((corners @ g + 0.5 * ((corners @ H) * corners).sum(1)).max())
    found = sharpness(model, task, rho=0.2, norm="linf", steps=40).worst  # a search, so a corner near the best is enough
    assert 0.99 * best < found <= best * (1 + 1e-9)


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_average_of_a_quadratic_is_half_the_trace(adaptive):
    model, task, H = regression(0.3)
    scale = model.weight.detach()[0].abs() if adaptive else torch.ones(5).double()
    found = sharpness(model, task, sigma=0.1, adaptive=adaptive, steps=1, draws=300).average
    expected = 0.5 * 0.01 * float((scale.square() * H.diagonal()).sum())
    assert abs(found.mean - expected) < 3 * found.error and found.error < 0.1 * expected


def test_rescaling_units_changes_plain_sharpness_only(blobs):
    task, model = blobs(0), models.MLP(4, 16, 16, 3, seed=0).double()
    retain.learn(model, [task], epochs=20, lr=1e-2, precision="float64")
    other, factor = copy.deepcopy(model), torch.logspace(-1.5, 1.5, 16).double()
    with torch.no_grad():
        other.layers.fc1.weight.mul_(factor[:, None])
        other.layers.fc1.bias.mul_(factor)
        other.layers.fc2.weight.div_(factor)
    for norm in ("l2", "linf"):
        first, second = (sharpness(net, task, norm=norm, steps=8, draws=4) for net in (model, other))
        assert first.worst == pytest.approx(second.worst, rel=1e-9) and first.ascent == pytest.approx(second.ascent, rel=1e-9)
        assert first.average.mean == pytest.approx(second.average.mean, rel=1e-9)
        plain, changed = (sharpness(net, task, norm=norm, adaptive=False, steps=8, draws=4) for net in (model, other))
        assert changed.worst > 1.5 * plain.worst and changed.average.mean > 1.5 * plain.average.mean
    top, moved = (spectrum(net, task, steps=20).largest[0] for net in (model, other))
    assert moved > 1.5 * top


def test_sharpness_leaves_the_model_and_reports(blobs):
    task, model, log = blobs(0), models.MLP(4, 8, 3, seed=0), Log()
    model.layers.fc1.requires_grad_(False)
    model.train()
    before = copy.deepcopy(model.state_dict())
    found = sharpness(model, [(task.data.inputs[:9], task.data.targets[:9]), (task.data.inputs[9:], task.data.targets[9:])], steps=4, draws=3, recorder=log)
    whole = sharpness(model, (task.data.inputs, task.data.targets), steps=4, draws=3)
    assert found.worst == pytest.approx(whole.worst, rel=1e-4) and found.loss == pytest.approx(whole.loss, rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and not model.layers.fc1.weight.requires_grad and model.layers.fc2.weight.requires_grad and model.layers.fc2.weight.grad is None
    assert len(log.events) == 6 and "Andriushchenko" in found.table().note and found.figures()


def test_the_hessian_of_a_linear_regression():
    model, task, H = regression(0.3)
    found = spectrum(model, task, k=3, steps=5, probes=400)
    values = torch.linalg.eigvalsh(H).flip(0)
    assert found.largest == pytest.approx(values[:3].tolist(), rel=1e-9) and found.smallest == pytest.approx(float(values[-1]), rel=1e-9)
    assert max(found.residuals) < 1e-8 and found.size == 5 and found.samples == 40
    assert abs(found.trace.mean - float(values.sum())) < 4 * found.trace.error + 1e-9
    assert float(torch.trapezoid(found.density.density, found.density.grid)) == pytest.approx(1, abs=1e-3)


def test_the_hessian_of_a_softmax():
    X, y = torch.randn(30, 3).double(), torch.randint(4, (30,))
    model = nn.Linear(3, 4, bias=False).double()
    p = model(X).detach().softmax(1)
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    H = torch.stack([torch.kron(s, torch.outer(x, x)) for s, x in zip(S, X, strict=True)]).mean(0)
    found = spectrum(model, (X, y), k=2, steps=12)
    assert found.largest == pytest.approx(torch.linalg.eigvalsh(H).flip(0)[:2].tolist(), rel=1e-8)
    assert abs(found.trace.mean - float(H.trace())) < 4 * found.trace.error + 1e-9


def test_the_hessian_of_a_network_frozen_or_not(blobs):
    task, model, log = blobs(0), models.MLP(4, 5, 3, seed=0).double(), Log()
    x, y = task.data.inputs.double(), task.data.targets
    shapes = {name: p.detach() for name, p in model.named_parameters()}
    blocks = jacrev(jacrev(lambda w: nn.functional.cross_entropy(functional_call(model, w, x), y)))(shapes)
    H = torch.cat([torch.cat([blocks[a][b].reshape(shapes[a].numel(), -1) for b in shapes], 1) for a in shapes])
    values = torch.linalg.eigvalsh(H)
    model.layers.fc1.requires_grad_(False)
    found = spectrum(model, (x, y), k=2, steps=len(H), samples=60, recorder=log)
    assert found.largest == pytest.approx(values.flip(0)[:2].tolist(), rel=1e-6) and found.smallest == pytest.approx(float(values[0]), rel=1e-6)
    assert found.size == len(H) and log.events and not model.layers.fc1.weight.requires_grad
    short = spectrum(model, (x, y), k=1, steps=9, samples=60)
    assert abs(short.largest[0] - float(values[-1])) <= short.residuals[0] + 1e-12 and "eigenvalue 1" in short.table().text()


@pytest.mark.parametrize(
    ("measure", "settings", "words"),
    [
        (sharpness, {"norm": "l1"}, "norm: expected 'l2' or 'linf', found 'l1'"),
        (sharpness, {"rho": 0}, "rho: expected a finite number above 0"),
        (sharpness, {"sigma": math.nan}, "sigma: expected a finite number above 0"),
        (sharpness, {"steps": 0}, "steps: expected a whole number of at least 1"),
        (sharpness, {"samples": 0}, "samples: expected a whole number of at least 1"),
        (spectrum, {"steps": 3}, "steps: expected a whole number of at least 4, found 3"),
        (spectrum, {"memory": 100}, r"memory: expected room for 4 vectors of 67 weights, 1,072 bytes, found 100"),
        (spectrum, {"samples": 0}, "samples: expected a whole number of at least 1"),
    ],
)
def test_bad_settings(blobs, measure, settings, words):
    with pytest.raises(InputError, match=words):
        measure(models.MLP(4, 8, 3), blobs(0), **settings)


def test_weights_that_are_all_zero(blobs):
    model = nn.Linear(4, 3)
    for p in model.parameters():
        nn.init.zeros_(p)
    with pytest.raises(InputError, match="a weight other than 0"):
        sharpness(model, blobs(0))
