"""Gates, mixtures, and networks of which few units are on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from retain.errors import InputError
from retain.models import MLP, ActiveLinear, Conv, Ensemble, Mixture, ResNet, SoftmaxThreshold, TopK, calibrate, copy, skip_inactive, sparsify


def test_top_k_keeps_the_largest_positive_units():
    a = torch.randn(50, 20)
    h = TopK(4)(a)
    for row, out in zip(a, h, strict=True):
        largest = row.sort(descending=True).values[:4]
        assert sorted(out[out > 0].tolist()) == pytest.approx(sorted(v for v in largest.tolist() if v > 0))
    assert torch.equal(TopK(20)(a), a.relu())


@given(st.integers(1, 6), st.lists(st.sampled_from([-1.0, 0.5, 2.0]), min_size=6, max_size=6))
@settings(max_examples=50, deadline=None)
def test_ties_never_let_more_than_k_through(K, values):
    assert int(TopK(K)(torch.tensor([values])).count_nonzero()) <= K


def test_top_k_has_a_true_jacobian():
    a = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(TopK(3), a) and torch.autograd.gradgradcheck(TopK(3), a)


@given(st.integers(2, 12), st.integers(0, 10**6), st.floats(0.1, 20))
@settings(max_examples=100, deadline=None)
def test_softmax_threshold_keeps_at_most_k_minus_1(K, seed, spread):
    a = spread * torch.randn(8, 12, generator=torch.Generator().manual_seed(seed))
    kept = SoftmaxThreshold(K)(a)
    p = a.softmax(1)
    counts = kept.count_nonzero(1)
    assert int(counts.max()) <= K - 1 and int(counts.min()) >= 1
    on = kept > 0
    assert torch.allclose(kept[on], p[on]) and bool((p[~on] <= 1 / K).all())


def test_literal_softmax_gate_of_a_fresh_layer_is_empty_and_the_repairs_fill_it():
    a = 0.3 * torch.randn(100, 512)
    assert not SoftmaxThreshold(10, fallback=False)(a).any()
    assert SoftmaxThreshold(10)(a).count_nonzero(1).eq(1).all()
    model = sparsify(MLP(20, 512, 128, 5, seed=0), 10, "softmax", data=torch.rand(200, 20))
    seen = []
    model.layers.relu1.register_forward_hook(lambda gate, inputs, output: seen.append((inputs[0].detach(), output.detach())))
    model(torch.rand(300, 20))
    logits, output = seen[0]
    assert float((logits * model.layers.relu1.scale).std(1).mean()) == pytest.approx(math.sqrt(2 * math.log(512)), rel=0.05)
    assert float(output.norm(dim=1).mean() / logits.relu().norm(dim=1).mean()) == pytest.approx(1, rel=0.1)


def test_straight_through_is_the_whole_softmax_s_gradient():
    a = torch.randn(4, 10, requires_grad=True)
    direction = torch.randn(4, 10)
    (passed,) = torch.autograd.grad(SoftmaxThreshold(4, 2.0)(a), a, direction)
    (whole,) = torch.autograd.grad((2.0 * a).softmax(1), a, direction)
    (strict,) = torch.autograd.grad(SoftmaxThreshold(4, 2.0, straight_through=False)(a), a, direction)
    assert torch.allclose(passed, whole) and not torch.allclose(strict, whole)


def test_gain_is_the_same_as_larger_weights_behind_the_gate():
    a, linear = torch.randn(5, 12), nn.Linear(12, 3)
    scaled = copy(linear)
    with torch.no_grad():
        scaled.weight.mul_(7.0)
    assert torch.allclose(linear(SoftmaxThreshold(4, gain=7.0)(a)), scaled(SoftmaxThreshold(4)(a)), atol=1e-5)


@pytest.mark.parametrize("gate", ["top-k", "softmax"])
@pytest.mark.parametrize("batch", [1, 7])
def test_skipping_inactive_units_is_exact(gate, batch):
    torch.manual_seed(1)
    model = sparsify(MLP(30, 200, 100, 50, 10, seed=0), 8, gate, data=torch.rand(50, 30) if gate == "softmax" else None).double()
    fast, x = skip_inactive(model), torch.randn(batch, 30, dtype=torch.float64)
    assert sum(isinstance(module, ActiveLinear) for module in fast.modules()) == 3
    assert torch.allclose(fast(x), model(x), atol=1e-12)
    assert not any(p.requires_grad for p in fast.parameters()) and not fast.training


def test_skipping_reads_sequences_and_passes_over_dropout():
    model = nn.Sequential(nn.Linear(6, 40), TopK(5), nn.Dropout(0.5), nn.Linear(40, 3, bias=False)).eval()
    x = torch.randn(2, 4, 6)
    assert torch.allclose(skip_inactive(model)(x), model(x), atol=1e-6)
    assert repr(skip_inactive(model)[3]).count("bias=False") == 1
    with pytest.raises(InputError, match="right behind a gate"):
        skip_inactive(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))


def test_channels_are_the_units_of_images():
    x = torch.randn(2, 6, 5, 5)
    h = TopK(2)(x)
    assert int(h.count_nonzero(1).max()) == 2 and torch.equal(h[:, :, 1, 2], TopK(2)(x[:, :, 1, 2]))
    model = sparsify(Conv(28, 10, seed=0), 3)
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert sum(isinstance(m, TopK) for m in sparsify(ResNet(8, 4, seed=0), 3).modules()) == 7


def test_sparsify_copies_and_keeps_the_weights():
    model = MLP(20, 32, 16, 4, seed=0)
    made = sparsify(model, 5, only="*relu1")
    assert isinstance(made.layers.relu1, TopK) and isinstance(made.layers.relu2, nn.ReLU) and isinstance(model.layers.relu1, nn.ReLU)
    assert all(torch.equal(a, b) and a is not b for a, b in zip(model.parameters(), made.parameters(), strict=True))
    assert set(made.state_dict()) == set(model.state_dict())
    again = sparsify(made, 3)
    assert again.layers.relu1.K == 3 and sparsify(model, 5, lambda: TopK(7)).layers.relu1.K == 7


def test_gates_that_cannot_be_are_refused():
    for K in (0, -1, 2.5, True):
        with pytest.raises(InputError, match="K: expected"):
            TopK(K)
    with pytest.raises(InputError, match=r"K: expected at least 2 for a softmax gate"):
        SoftmaxThreshold(1)
    with pytest.raises(InputError, match=r"K: expected at most the 16 units of the layer before 'layers.relu2', found 20"):
        sparsify(MLP(20, 32, 16, 4), 20)
    with pytest.raises(InputError, match=r"at most the 8 units of the gate's inputs"):
        TopK(9)(torch.zeros(1, 8))
    with pytest.raises(InputError, match="an activation module"):
        sparsify(nn.Linear(3, 3), 1)
    with pytest.raises(InputError, match="gate"):
        sparsify(MLP(3, 4, 2), 1, "hard")
    with pytest.raises(InputError, match="a SoftmaxThreshold gate"):
        calibrate(MLP(3, 4, 2), torch.zeros(2, 3))
    silent = sparsify(MLP(3, 4, 2, seed=0), 2, "softmax")
    with torch.no_grad():
        for p in silent.parameters():
            p.zero_()
    with pytest.raises(InputError, match=r"layer before 'layers.relu1'"):
        calibrate(silent, torch.ones(2, 3))


def test_mixture_sampled_and_exact_agree():
    first, second, x = MLP(5, 3, seed=0).requires_grad_(False), MLP(5, 8, 3, seed=1).requires_grad_(False), torch.randn(4, 5)
    exact = Mixture(first, second, 0.3)(x).exp()
    assert torch.allclose(exact, 0.7 * first(x).softmax(1) + 0.3 * second(x).softmax(1), atol=1e-6)
    sampled = Mixture(first, second, 0.3, sampled=True, generator=torch.Generator().manual_seed(0))
    draws = 20000
    rows = sampled(x.repeat(draws, 1)).exp().view(draws, 4, 3)
    spread = 5 * math.sqrt(0.21 / draws)  # five standard errors of a share
    assert float((rows.mean(0) - exact).abs().max()) < spread
    assert bool(((rows - first(x).softmax(1)).abs().amax(2).lt(1e-6) | (rows - second(x).softmax(1)).abs().amax(2).lt(1e-6)).all())


def test_mixture_at_its_ends_asks_one_model_only():
    class Never(nn.Module):
        def forward(self, x):
            raise AssertionError("asked")

    model, x = MLP(4, 3, seed=0), torch.randn(5, 4)
    for sampled in (False, True):
        assert torch.allclose(Mixture(model, Never(), 0, sampled=sampled)(x), model(x).log_softmax(1))
        assert torch.allclose(Mixture(Never(), model, 1, sampled=sampled)(x), model(x).log_softmax(1))


def test_mixture_is_a_classifier_like_any_other():
    mixture = Mixture(MLP(4, 3, seed=0), MLP(4, 3, seed=1), 0.25)
    out = mixture(torch.randn(6, 4))
    assert torch.allclose(out.softmax(1), out.exp(), atol=1e-6)
    other = Mixture(MLP(4, 3, seed=2), MLP(4, 3, seed=3), 0.5)
    other.load_state_dict(mixture.state_dict())
    assert other.q == 0.25 and "q=0.25" in repr(other)
    out[:, 0].sum().backward()
    assert all(p.grad is not None for p in mixture.parameters())


def test_mixtures_that_cannot_be_are_refused():
    for q in (-0.1, 1.1, float("nan"), "half"):
        with pytest.raises(InputError, match=r"q: expected a number between 0 and 1"):
            Mixture(MLP(4, 3), MLP(4, 3), q)
    with pytest.raises(InputError, match="3 outputs, as model1 has"):
        Mixture(MLP(4, 3), MLP(4, 2), 0.5)(torch.zeros(1, 4))
    with pytest.raises(InputError, match="classes"):
        Mixture(nn.Identity(), nn.Identity(), 0.5)(torch.zeros(2, 3, 4))
    with pytest.raises(InputError, match="at least one model"):
        Ensemble([])
    with pytest.raises(InputError, match="6n"):
        ResNet(9)


def test_layers_that_stand_in_several_places():
    act, inner = nn.ReLU(), nn.Linear(20, 20)
    model = nn.Sequential(nn.Linear(4, 20), act, inner, act, inner, nn.ReLU(), nn.Linear(20, 3)).eval()
    made, x = sparsify(model, 5), torch.randn(6, 4)
    assert sum(isinstance(module, TopK) for module in made._modules.values()) == 3
    assert torch.allclose(skip_inactive(made)(x), made(x), atol=1e-6)


def test_convolutions_are_gated_by_channel_in_one_dimension_too():
    made = sparsify(nn.Sequential(nn.Conv1d(1, 16, 3), nn.BatchNorm1d(16), nn.ReLU()), 2).eval()
    assert int(made(torch.randn(3, 1, 12)).count_nonzero(1).max()) == 2
    assert sparsify(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.ReLU()), 10)[2].K == 10


def test_skipping_takes_single_vectors_and_refuses_units_elsewhere():
    model = skip_inactive(nn.Sequential(TopK(2), nn.Linear(6, 3)))
    x = torch.randn(6)
    assert torch.allclose(model(x), nn.functional.linear(TopK(2)(x), model[1].weight.T, model[1].bias), atol=1e-6)
    with pytest.raises(InputError, match="units on the last axis"):
        model(torch.randn(2, 3, 4, 6))
