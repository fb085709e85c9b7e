"""Bridges between answers: derivatives against autograd, and the closed forms of the theory, in float64."""

import itertools
import math

import pytest
import torch

from retain.errors import InputError
from retain.likelihoods import Bernoulli, Categorical, Gaussian
from retain.paths import BRIDGES, FisherSpeed, Frozen, GreatCircleBridge, MeanBridge, MixtureBridge
from retain.paths.bridges import bridge_for
from retain.paths.families import Normal, Softmax
from retain.paths.schedules import Ahead

QS = (0.05, 0.3, 0.7, 1.0)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def answers(n=7, classes=5):
    return torch.randn(n, classes).log_softmax(1), 2 * torch.randn(n, classes)


@pytest.mark.parametrize("q", QS)
@pytest.mark.parametrize("name", BRIDGES)
def test_tangents_are_derivatives(name, q):
    """Push and pull against forward and backward mode, velocity against a difference, and the identity q T'r = slope of the divergence."""
    bridge = BRIDGES[name]()
    source, z = answers()
    t = bridge.tangent(q, source, z)

    def root(at, outputs):
        return 2 * (bridge.at(at, source, outputs) / 2).exp()

    u, w = torch.randn_like(z), torch.randn_like(z)
    _, pushed = torch.autograd.functional.jvp(lambda outputs: root(q, outputs), z, u)
    assert torch.allclose(t.push(u), pushed, atol=1e-12)
    assert torch.allclose((t.pull(w) * u).sum(), (w * t.push(u)).sum(), atol=1e-12)
    h = 1e-6 if q < 1 else 0.0
    assert torch.allclose(t.velocity, (root(q + h, z) - root(q - 1e-6, z)) / (h + 1e-6), atol=1e-3, rtol=1e-3)
    free = z.clone().requires_grad_()
    bridge.divergence(q, source, free).sum().backward()
    assert torch.allclose(t.slope, free.grad, atol=1e-12)
    assert torch.allclose(q * t.pull(t.velocity), t.slope, atol=1e-12)  # T2: the law is a natural gradient


@pytest.mark.parametrize("name", BRIDGES)
def test_bridges_begin_and_end_at_the_models(name):
    bridge = BRIDGES[name]()
    source, z = answers()
    assert torch.allclose(bridge.at(0.0, source, z), source) and torch.allclose(bridge.at(1.0, source, z), z.log_softmax(1))
    assert torch.allclose(bridge.at(0.4, source, z).exp().sum(1), torch.ones(7))
    same = bridge.tangent(0.5, source, source)  # no way to go
    assert float(same.velocity.abs().max()) < 1e-7 and float(same.slope.abs().max()) < 1e-7


def test_the_mixture_s_metric_is_the_expected_outer_product_of_scores():  # T3
    source, z = answers()
    q, p = 0.4, z.softmax(1)
    point = MixtureBridge().at(q, source, z).exp()
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    scores = q * S / point[:, None, :]  # column y: d log p_q(y) / dz
    fisher = torch.einsum("nay,nby,ny->nab", scores, scores, point)
    t = MixtureBridge().tangent(q, source, z)
    dense = torch.stack([t.metric(unit.expand(7, 5)) for unit in torch.eye(5)], 2)
    assert torch.allclose(dense, fisher, atol=1e-14)


def test_the_mixture_s_metric_at_the_end_and_below_the_complete_data_metric():  # T4
    source, z = answers()
    p = z.softmax(1)
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]

    def metric(q):
        t = MixtureBridge().tangent(q, source, z)
        return torch.stack([t.metric(unit.expand(7, 5)) for unit in torch.eye(5)], 2)

    assert torch.allclose(metric(1.0), S, atol=1e-14)
    for q in (0.1, 0.5, 0.9):
        assert float(torch.linalg.eigvalsh(q * S - metric(q)).min()) > -1e-14


def test_the_skew_divergence_becomes_chi_squared():  # T7
    source, z = answers()
    chi = ((z.softmax(1) - source.exp()).square() / source.exp()).sum(1)
    ratios = [float((2 * MixtureBridge().divergence(q, source, z) / q**2 / chi - 1).abs().max()) for q in (1e-2, 1e-3, 1e-4)]
    assert ratios[2] < 2e-2 and ratios[1] / ratios[2] == pytest.approx(10, rel=0.2)  # first order in q


def test_lengths_are_at_least_the_distance():  # T8
    source, z = answers()
    family, end = Softmax(), z.log_softmax(1)

    def length(bridge, steps=400):
        points = [bridge.at(i / steps, source, z) for i in range(steps + 1)]
        return sum(family.distance(a, b) for a, b in itertools.pairwise(points))

    distance = family.distance(source, end)
    assert torch.allclose(distance, 2 * (source / 2 + end / 2).exp().sum(1).arccos())
    assert torch.allclose(length(GreatCircleBridge()), distance, rtol=1e-5)
    for name in ("mixture", "exponential"):
        assert bool((length(BRIDGES[name]()) > distance + 1e-6).all())
    one, other = torch.tensor([[0.0, -700.0]]), torch.tensor([[-700.0, 0.0]])  # no class in common
    assert float(family.distance(one, other)) == pytest.approx(math.pi)


def test_constant_speed_between_answers_without_a_common_class_is_a_squared_sine():
    one, other = torch.tensor([[0.0, -700.0]]), torch.tensor([[-700.0, 0.0]])
    q, found = 0.0, []
    for i in range(20):
        q = FisherSpeed().next(0.0, q, i / 20, (i + 1) / 20, Ahead(MixtureBridge(), one, lambda: other))
        found.append(q)
    assert found == pytest.approx([math.sin(math.pi / 2 * (i + 1) / 20) ** 2 for i in range(20)], abs=5e-3)


def test_small_steps_have_half_the_squared_distance_as_divergence():
    source, _ = answers()
    family = Softmax()
    near = (source + 1e-4 * torch.randn_like(source)).log_softmax(1)
    assert torch.allclose(family.kl(source, near), family.distance(source, near).square() / 2, rtol=1e-3)


def test_floor_keeps_a_distribution():
    answer = torch.tensor([[0.0, -80.0, -90.0]]).log_softmax(1)
    floored = Softmax().floored(answer, 1e-5).exp()
    assert float(floored.sum()) == pytest.approx(1) and float(floored.min()) == pytest.approx(1e-5)


def test_far_answers_give_finite_tangents():
    source = torch.tensor([[0.0, -11.0, -11.0]], dtype=torch.float32).log_softmax(1)
    for name in BRIDGES:
        for z in ([[-200.0, 0.0, 200.0]], [[300.0, -300.0, 0.0]]):
            for q in (0.01, 0.999, 1.0):
                t = BRIDGES[name]().tangent(q, source, torch.tensor(z, dtype=torch.float32))
                assert all(bool(torch.isfinite(part).all()) for part in (t.velocity, t.slope, t.metric(torch.ones(1, 3)), t.pull(t.velocity)))


def test_means_are_interpolated_for_regression():
    source, z = torch.randn(6, 2), torch.randn(6, 2)
    bridge = bridge_for("exponential", Gaussian(0.5))
    assert isinstance(bridge, MeanBridge) and isinstance(bridge.family, Normal)
    t = bridge.tangent(0.3, source, z)
    assert torch.allclose(bridge.at(0.3, source, z), 0.7 * source + 0.3 * z)
    free = z.clone().requires_grad_()
    bridge.divergence(0.3, source, free).sum().backward()
    assert torch.allclose(t.slope, free.grad) and torch.allclose(0.3 * t.pull(t.velocity), t.slope)
    assert torch.allclose(bridge.family.kl(source, z), (source - z).square().sum(1) / (2 * 0.25))


def test_bridges_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match=r"Did you mean 'mixture'"):
        bridge_for("mixtur", Categorical())
    with pytest.raises(InputError, match="not one"):
        bridge_for("mixture", Gaussian())
    with pytest.raises(InputError, match="for regression"):
        bridge_for("great-circle", Gaussian())
    with pytest.raises(InputError, match="path between models"):
        bridge_for("mixture", Bernoulli())
    assert repr(Frozen()) == "Frozen()"
