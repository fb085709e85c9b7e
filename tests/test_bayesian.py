"""Bayesian layers against exact moments, quadrature and autograd."""

import copy
import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torch.nn.utils import parametrizations, prune

import retain
from retain import methods, models, tasks
from retain.errors import InputError, RetainError
from retain.models.bayesian import (
    LOGVAR,
    BayesianConv1d,
    BayesianConv2d,
    BayesianEmbedding,
    BayesianLayer,
    BayesianLinear,
    GaussianPrior,
    PlanarFlows,
    ScaleMixture,
    add_kl_gradient,
    bayesian,
    bayesian_layers,
    broken,
    kl,
    kl_by_layer,
    sampling,
    set_prior,
)
from retain.models.bayesian.base import _signs

SIGMAS = 5.5  # of the mean of many draws; the seeds are fixed


def within(draws, expected, sigmas=SIGMAS):
    """Whether the mean of draws [R, ...] is where it is expected, by the draws' own standard errors."""
    error = draws.std(0) / len(draws) ** 0.5
    return bool(((draws.mean(0) - expected).abs() <= sigmas * error + 1e-12).all())


def number(value):
    return float(value.detach())


def grid(around, width, count=40001):
    return around + width * torch.linspace(-12, 12, count, dtype=torch.float64)


def blur(model, least=-3.0, most=0.0):
    """Every entry a log-variance of its own."""
    with torch.no_grad():
        for layer in bayesian_layers(model).values():
            for _, logvar in layer.posterior.values():
                logvar.uniform_(least, most)
    return model


def trained(estimator="local", flows=0, **options):
    """A small Bayesian network in float64 whose entries all differ."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return blur(bayesian(net, estimator=estimator, num_flows=flows, **options))


# --- divergence


@pytest.mark.parametrize("kind", ["scalar", "tensor"])
def test_gaussian_divergence_is_that_of_draws(kind):
    mean, logvar = torch.tensor([0.0, 1.0, -2.0, 0.3]).double(), torch.tensor([0.0, -2.0, 1.0, -6.0]).double()
    centre, std = (0.4, 0.7) if kind == "scalar" else (torch.tensor([0.0, 1.5, 2.0, -0.1]).double(), torch.tensor([0.3, 1.0, 2.0, 0.1]).double())
    prior = GaussianPrior(centre, std) if kind == "scalar" else GaussianPrior(centre, precision=std**-2)
    q, p = Normal(mean, (0.5 * logvar).exp()), Normal(centre, std)
    w = q.sample((100_000,))
    assert within(q.log_prob(w) - p.log_prob(w), prior.kl(mean, logvar))
    assert torch.allclose(prior.log_density(w), p.log_prob(w))
    assert torch.allclose(prior.kl(mean, logvar), torch.distributions.kl_divergence(q, p), rtol=1e-6)


@pytest.mark.parametrize(("pi", "sigma1", "sigma2"), [(0.5, 1.0, math.exp(-6)), (0.2, 0.3, 2.0), (0.9, 2.0, 0.5)])
def test_mixture_divergence_averages_to_the_integral(pi, sigma1, sigma2):
    prior = ScaleMixture(pi, sigma1, sigma2).double()
    mean, logvar = torch.tensor([0.0, 0.01, 0.5, -2.0]).double(), torch.tensor([-10.0, -8.0, -2.0, 0.5]).double()
    p = MixtureSameFamily(Categorical(torch.tensor([pi, 1 - pi]).double()), Normal(torch.zeros(2).double(), torch.tensor([sigma1, sigma2]).double()))
    exact = []
    for m, v in zip(mean, logvar, strict=True):
        q, w = Normal(m, (0.5 * v).exp()), grid(m, (0.5 * v).exp())
        exact.append(torch.trapezoid(q.log_prob(w).exp() * (q.log_prob(w) - p.log_prob(w)), w))
    draws = prior.kl(mean.expand(40_000, 4), logvar.expand(40_000, 4))
    assert within(draws, torch.stack(exact)) and float(draws.std(0).min()) > 0


def unfold(flows, z):
    """Where the flows take points [N, D], and each one's log-determinant: the paper's formulas with whole Jacobians."""
    total = torch.zeros(len(z), dtype=z.dtype)
    for u, w, b in zip(flows.u.detach(), flows.w.detach(), flows.b.detach(), strict=True):
        a = w @ u
        hat = u + (-1 + torch.log(1 + a.exp()) - a) * w / (w @ w)
        h = torch.tanh(z @ w + b)
        jacobian = torch.eye(z.shape[1], dtype=z.dtype) + (1 - h**2)[:, None, None] * torch.outer(hat, w)
        total += torch.linalg.slogdet(jacobian)[1]
        z = z + h[:, None] * hat
    return z, total


@pytest.mark.parametrize("flows", [0, 16])
def test_divergence_with_flows_averages_to_the_integral(flows):
    """Two weights, so that the integral over the base distribution can be taken on a grid; the determinant counts once, not once a weight."""
    layer = BayesianLinear(2, 1, bias=False, logvar=-1.0, estimator="weights", num_flows=flows, prior=GaussianPrior(0.2, 1.5)).double()
    with torch.no_grad():
        for parameter in layer.flows.parameters():
            parameter.normal_().mul_(0.7)
    mean, std = layer.weight.detach().flatten(), math.exp(-0.5)
    z0 = torch.cartesian_prod(*[grid(m, std, 401)[50:-50] for m in mean])
    log_q0 = Normal(mean, std).log_prob(z0).sum(1)
    z, logdet = unfold(layer.flow("weight"), z0) if flows else (z0, 0.0)
    log_p = Normal(torch.tensor(0.2).double(), 1.5).log_prob(z).sum(1)
    weight = log_q0.exp() / log_q0.exp().sum()
    exact = float((weight * (log_q0 - logdet - log_p)).sum())
    if not flows:
        assert number(kl(layer)) == pytest.approx(exact, rel=1e-6)
        return
    assert abs(float((weight * logdet).sum())) > 0.3  # else nothing is tested
    with torch.no_grad():
        draws = torch.stack([kl(layer) for _ in range(2000)])
    assert within(draws, exact)
    assert float(draws.std()) / 2000**0.5 < 0.05 * abs(float((weight * logdet).sum()))


numbers = st.floats(-5, 5)


@given(mean=numbers, logvar=numbers, centre=numbers, width=numbers)
@settings(deadline=None)
def test_gaussian_divergence_is_zero_between_equals_alone(mean, logvar, centre, width):
    mean, logvar, centre, width = (torch.tensor([x]).double() for x in (mean, logvar, centre, width))
    value = float(GaussianPrior(centre, precision=(-width).exp()).kl(mean, logvar))
    assert value >= -1e-12
    if max(float((mean - centre).abs() * (-0.5 * width).exp()), float((logvar - width).abs())) > 1e-3:
        assert value > 1e-8
    assert abs(float(GaussianPrior(mean, precision=(-logvar).exp()).kl(mean, logvar))) < 1e-12


def test_divergence_of_a_model_is_the_sum_of_its_layers_and_of_the_rows_asked_for():
    model = trained(prior=GaussianPrior(0.1, 0.5))
    by_layer = kl_by_layer(model)
    assert list(by_layer) == ["0", "2"] and number(sum(by_layer.values())) == pytest.approx(number(kl(model)))
    loop = 0.0
    for name, layer in bayesian_layers(model).items():
        for mean, logvar in layer.posterior.values():
            each = torch.distributions.kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.1, 0.5)).detach()
            loop += float(each.sum()) if name == "0" else float(each[1].sum())
    assert number(kl(model, rows={model[2]: torch.tensor([False, True])})) == pytest.approx(loop, rel=1e-6)


def gradients(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("prior", ["scalar", "tensor"])
@pytest.mark.parametrize("strength", [1.0, 3.0, 0.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("after", ["forward", "change", "nothing"])  # a forward pass computes variances, and the closed form may take them
def test_closed_form_gradient_is_that_of_autograd(prior, strength, masked, after):
    model = trained(prior=GaussianPrior(0.3, 0.7))
    if prior == "tensor":
        set_prior(model, trained())
    rows = {model[2]: torch.tensor([False, True])} if masked else None
    if after != "nothing":
        model(torch.randn(5, 3).double())
    if after == "change":
        blur(model)
    (0.02 * kl(model, strength=strength, rows=rows)).backward()
    expected = gradients(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    add_kl_gradient(model, 0.02, strength=strength, rows=rows, after_forward=after == "forward")
    found = gradients(model)
    assert all(torch.allclose(found[name] - 1, value, rtol=1e-10, atol=1e-14) for name, value in expected.items())
    if masked:
        assert not expected["2.weight"][0].any() and not (found["2.weight"] - 1)[0].any() and expected["2.weight_logvar"][1].all()
    model.zero_grad()
    add_kl_gradient(model, 0.02, strength=strength, rows=rows)
    assert all(torch.allclose(p.grad, expected[name], rtol=1e-10) for name, p in model.named_parameters())


def test_a_forward_passes_variance_serves_one_step():
    """Two steps after one pass: the second is from where the first has led."""
    model = trained()
    model(torch.randn(5, 3).double())
    for _ in range(2):
        model.zero_grad()
        (0.5 * kl(model)).backward()
        expected = gradients(model)
        model.zero_grad()
        add_kl_gradient(model, 0.5, after_forward=True)
        assert all(torch.allclose(p.grad, expected[name], rtol=1e-10) for name, p in model.named_parameters())
        blur(model)


@pytest.mark.parametrize("options", [{"prior": ScaleMixture(0.3, 1.0, 0.1)}, {"prior": ScaleMixture(0.3, 0.1, 1.0)}, {"flows": 3, "estimator": "weights"}])
def test_estimated_gradient_is_that_of_autograd_on_the_same_draw(options):
    model = trained(**options)
    results = []
    for way in (lambda: (0.02 * kl(model)).backward(), lambda: add_kl_gradient(model, 0.02)):
        model.zero_grad()
        torch.manual_seed(3)
        way()
        results.append(gradients(model))
    for name, value in results[0].items():
        assert value is not None and torch.allclose(results[1][name], value, rtol=1e-9, atol=1e-13), name


@pytest.mark.parametrize("widths", [(1.0, math.exp(-6)), (1.0, math.exp(-8)), (math.exp(-8), 1.0)])
def test_mixture_gradient_does_not_cancel_in_float32(widths):
    """Where the wide Gaussian is sure, the slope is w / sigma1^2: the narrow one's precision, a million times larger, has to drop out exactly."""
    prior = ScaleMixture(0.5, *widths)
    weight = torch.tensor([2.0, 0.5, 0.1, 0.02, 0.01, 0.005, 0.002, 0.0015, 0.001, 1e-4, 1e-5])
    found = torch.zeros_like(weight), torch.zeros_like(weight)
    prior.add_gradients(weight, torch.zeros_like(weight), found, 1.0)
    exact = weight.double().requires_grad_()
    (-copy.deepcopy(prior).double().log_density(exact).sum()).backward()
    assert torch.allclose(found[0].double(), exact.grad, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("pi", "sigma1", "sigma2"), [(0.5, 1.0, math.exp(-6)), (0.25, 1.5, 0.2), (0.75, 0.1, 0.3)])
def test_mixture_density_by_hand_far_into_the_tails(dtype, pi, sigma1, sigma2):
    def slow(w):
        logs = [math.log(share) - math.log(s) - 0.5 * (w / s) ** 2 - 0.5 * math.log(2 * math.pi) for share, s in ((pi, sigma1), (1 - pi, sigma2))]
        return max(logs) + math.log1p(math.exp(min(logs) - max(logs)))

    wide = max(sigma1, sigma2)
    weight = torch.tensor([0.0, 1e-3, 0.3, 1.0, *(sign * k * s for k in (1, 5, 50) for s in (sigma1, sigma2) for sign in (-1, 1))], dtype=dtype)
    prior = ScaleMixture(pi, sigma1, sigma2).to(dtype)
    found = prior.log_density(weight)
    assert bool(torch.isfinite(found).all()) and float(found.min()) < -1000
    assert found.tolist() == pytest.approx([slow(w) for w in weight.tolist()], rel=2e-6, abs=1e-6)
    if dtype == torch.float64:
        w = grid(0.0, wide, 400_001)
        assert float(torch.trapezoid(prior.log_density(w).exp(), w)) == pytest.approx(1, abs=1e-6)
        assert float(prior.as_gaussian().precision) ** -1 == pytest.approx(float(torch.trapezoid(w**2 * prior.log_density(w).exp(), w)), rel=1e-4)


def test_a_tensor_half_frozen_keeps_the_other_half():
    for frozen in ("weight", "weight_logvar"):
        for rows in (None, torch.tensor([True, True])):
            model = trained()
            (0.5 * kl(model)).backward()
            expected = gradients(model)
            model.zero_grad()
            getattr(model[0], frozen).requires_grad_(False)
            add_kl_gradient(model, 0.5, rows=rows if rows is None else {model[2]: rows})
            for name, p in model.named_parameters():
                assert p.grad is None if name == f"0.{frozen}" else torch.allclose(p.grad, expected[name], rtol=1e-10), name


# --- flows


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_log_determinant_is_that_of_the_jacobian(seed, size, scale):
    torch.manual_seed(seed)
    flows = PlanarFlows(size, 4).double()
    with torch.no_grad():
        for parameter in flows.parameters():
            parameter.normal_().mul_(scale)
    z = torch.randn(size).double()
    jacobian = torch.autograd.functional.jacobian(lambda z: flows(z)[0], z)
    moved, logdet = flows(z)
    assert logdet.shape == () and moved.shape == z.shape
    assert float(logdet.detach()) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-7)
    assert torch.allclose(moved, unfold(flows, z[None])[0][0])


def test_log_determinant_does_not_cancel_where_space_is_folded():
    """With w.u at -14 the determinant is exp(-14) at the bend: in float32 1 + (1 - t^2) w.u-hat would have no digits left."""
    flows = PlanarFlows(2, 1)
    with torch.no_grad():
        flows.w.copy_(torch.tensor([[1.0, 1.0]]))
        flows.u.copy_(torch.tensor([[-7.0, -7.0]]))
    for shift in (0.0, 1e-4, 1e-2, 1.0):
        t = math.tanh(shift)
        exact = math.log(t * t + (1 - t * t) * math.log1p(math.exp(-14)))
        assert float(flows(torch.tensor([shift, 0.0]))[1].detach()) == pytest.approx(exact, rel=1e-5)


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 30))
@settings(max_examples=50, deadline=None)
def test_flows_can_be_inverted(seed, scale):
    """Along w the map rises everywhere: w.u-hat is above -1."""
    flows = PlanarFlows(3, 1).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        flows.u.copy_(scale * torch.randn(1, 3, generator=generator, dtype=torch.float64))
        flows.w.copy_(torch.randn(1, 3, generator=generator, dtype=torch.float64))
        w = flows.w.detach()[0]
        along = [float(w @ flows(s * w / (w @ w))[0]) for s in torch.linspace(-4, 4, 81).double()]
        bent = (flows(w / (w @ w))[0] - w / (w @ w)) / math.tanh(1.0)
    assert float(w @ bent) > -1 - 1e-9
    assert all(b > a - 1e-12 for a, b in itertools.pairwise(along))


def test_flows_start_as_the_identity_and_every_parameter_learns():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(5, 3).double()
    model = bayesian(net, num_flows=4, estimator="weights", logvar=-3)
    assert torch.allclose(model.eval()(x), net(x), atol=1e-6)
    assert all(abs(float(flow(torch.randn(flow.size).double())[1].detach())) < 1e-6 for flow in model.modules() if isinstance(flow, PlanarFlows))
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):  # the shift b has no slope before anything is bent
        optimizer.zero_grad()
        (model(x).square().mean() + kl(model)).backward()
        optimizer.step()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) and float(p.grad.abs().sum()) > 0 for p in model.parameters())


# --- estimators

SHAPES = {
    "linear": (lambda: nn.Linear(3, 2), (4, 3)),
    "linear-without-bias": (lambda: nn.Linear(3, 2, bias=False), (3, 3)),
    "linear-at-positions": (lambda: nn.Linear(2, 2), (2, 2, 2)),
    "conv1d-stride": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1, groups=2), (2, 2, 5)),
    "conv1d-circular": (lambda: nn.Conv1d(2, 2, 3, padding=2, padding_mode="circular", bias=False), (2, 2, 4)),
    "conv1d-same": (lambda: nn.Conv1d(1, 2, 3, padding="same", dilation=2), (2, 1, 5)),
    "conv2d-groups": (lambda: nn.Conv2d(4, 2, (3, 2), stride=(2, 1), padding=(1, 0), groups=2), (2, 4, 3, 3)),
    "conv2d-same-reflect": (lambda: nn.Conv2d(2, 2, 3, padding="same", padding_mode="reflect"), (2, 2, 2, 3)),
    "conv2d-replicate": (lambda: nn.Conv2d(1, 2, 2, padding=1, padding_mode="replicate"), (2, 1, 2, 2)),
    "embedding": (lambda: nn.Embedding(4, 2), (3, 3)),
}


def layer_of(case, estimator):
    make, shape = SHAPES[case]
    plain = make().double()
    layer = blur(bayesian(plain, estimator=estimator)).train()
    inputs = torch.randint(4, shape) if case == "embedding" else torch.randn(shape).double()
    return plain, layer, inputs


def moments(plain, layer, inputs):
    """Exact mean and covariance of all outputs, flattened: outputs are linear in the weights, so the covariance is J diag(var) J^T."""
    names = list(layer.posterior)
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(plain, p, (inputs,)))({name: getattr(plain, name).detach() for name in names})
    outputs = plain(inputs).detach().flatten()
    covariance = torch.zeros(len(outputs), len(outputs), dtype=torch.float64)
    for name in names:
        J = jacobian[name].reshape(len(outputs), -1)
        covariance += (J * layer.posterior[name][1].detach().exp().flatten()) @ J.T
    return outputs, covariance


@pytest.mark.parametrize("case", ["linear", "conv2d-same-reflect", "embedding"])
def test_the_exact_moments_are_those_of_explicit_draws(case):
    plain, layer, inputs = layer_of(case, "weights")
    mean, covariance = moments(plain, layer, inputs)
    draws = []
    for _ in range(3000):
        weights = {name: Normal(m.detach(), (0.5 * v.detach()).exp()).sample() for name, (m, v) in layer.posterior.items()}
        draws.append(torch.func.functional_call(plain, weights, (inputs,)).detach().flatten() - mean)
    away = torch.stack(draws)
    assert within(away, 0.0) and within(away[:, :, None] * away[:, None], covariance)


@pytest.mark.parametrize("estimator", ["local", "flipout", "weights"])
@pytest.mark.parametrize("case", SHAPES)
def test_estimators_have_the_moments_they_are_said_to_have(case, estimator):
    """Mean and variance of all three; covariances: all of ``weights``, those within a sample of ``flipout``, none of ``local``."""
    plain, layer, inputs = layer_of(case, estimator)
    mean, covariance = moments(plain, layer, inputs)
    shape = layer(inputs).shape
    if estimator == "local":
        covariance = covariance.diagonal().diag()
    elif estimator == "flipout":  # of a linear layer every position is a sample of its own
        samples = shape[:-1].numel() if case.startswith("linear") else shape[0]
        owner = torch.arange(samples).repeat_interleave(len(mean) // samples)
        covariance = covariance * (owner[:, None] == owner)
    with torch.no_grad():
        away = torch.stack([layer(inputs).flatten() for _ in range(1500)]) - mean
    products = away[:, :, None] * away[:, None]
    assert within(away, 0.0) and within(products, covariance)
    # all variances together: closer than each
    ratio = (away.square() / covariance.diagonal()).mean(1)
    assert within(ratio, 1.0) and float(ratio.std()) / 1500**0.5 < 0.03
    if estimator == "local":  # independent, not only uncorrelated
        squares = away.square() / covariance.diagonal() - 1
        both = squares[:, :, None] * squares[:, None]
        assert within(both, torch.eye(len(mean)).double() * (squares**2).mean(0))


@pytest.mark.parametrize("case", SHAPES)
def test_weights_are_drawn_once_for_a_batch(case):
    _, layer, inputs = layer_of(case, "weights")
    same = inputs[:1].expand(5, *inputs.shape[1:])
    outputs = layer(same)
    assert torch.allclose(outputs, outputs[:1].expand_as(outputs), rtol=1e-12) and not torch.allclose(outputs, layer(same))
    for other in ("local", "flipout"):
        layer.estimator = other
        assert not torch.allclose(layer(same)[0], layer(same)[1])


def test_signs_are_fair_and_know_nothing_of_each_other():
    drawn = _signs(torch.empty(501, 401, dtype=torch.float64))
    assert drawn.shape == (501, 401) and drawn.dtype == torch.float64 and set(drawn.unique().tolist()) == {-1.0, 1.0}
    flat = drawn.flatten()
    for lag in (1, 2, 7, 8, 32, 64, 401):
        assert abs(float((flat[lag:] * flat[:-lag]).mean())) < 5 / len(flat) ** 0.5
    assert abs(float(flat.mean())) < 5 / len(flat) ** 0.5 and not torch.equal(drawn, _signs(drawn))


def test_flipout_flips_inputs_and_outputs():
    """Second moments would be right with signs on one side alone; equation 3 has both."""
    layer = blur(BayesianLinear(3, 4, bias=False, estimator="flipout").double())

    def noise(x):
        return (layer(x.expand(50, 3)) - x @ layer.weight.T).detach()

    one = noise(torch.tensor([[1.0, 0.0, 0.0]]).double())  # a single weight a unit: sizes are shared, signs are each output's own
    assert torch.allclose(one.abs(), one[:1].abs().expand_as(one)) and len({tuple(row) for row in one.sign().tolist()}) > 8
    dense = noise(torch.tensor([[1.0, 2.0, 3.0]]).double())
    assert len({round(value, 6) for value in dense[:, 0].abs().tolist()}) == 4  # up to a sign of the whole, four ways to add three


@pytest.mark.parametrize("estimator", ["local", "flipout", "weights"])
def test_expected_gradients_are_those_of_quadrature(estimator):
    """E softplus(y) of Gaussian outputs by Gauss-Hermite; its slopes are what every estimator's gradients average to."""
    _, layer, _ = layer_of("linear", estimator)
    x = torch.randn(3, 3).double()
    nodes, weights = (torch.from_numpy(values) for values in __import__("numpy").polynomial.hermite_e.hermegauss(60))
    (weight, weight_logvar), (bias, bias_logvar) = layer.posterior["weight"], layer.posterior["bias"]
    mean, variance = x @ weight.T + bias, x**2 @ weight_logvar.exp().T + bias_logvar.exp()
    expected = (nn.functional.softplus(mean[..., None] + variance.sqrt()[..., None] * nodes) * weights / weights.sum()).sum()
    exact = torch.autograd.grad(expected, list(layer.parameters()))
    draws = [torch.cat([g.flatten() for g in torch.autograd.grad(nn.functional.softplus(layer(x)).sum(), list(layer.parameters()))]) for _ in range(3000)]
    assert within(torch.stack(draws), torch.cat([g.flatten() for g in exact]))


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3), (2, 2, 2, 3), (3,), (0, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_linear_layers_own_local_pass_is_the_general_one(shape, bias):
    """Outputs and all gradients on the same draw; the general one is composed of torch's operations."""
    layer = blur(BayesianLinear(3, 4, bias=bias).double())
    x, weights = torch.randn(shape).double().requires_grad_(), torch.randn(*shape[:-1], 4).double()
    results = []
    for way in (layer, lambda x: BayesianLayer._local(layer, x)):
        torch.manual_seed(4)
        outputs = way(x)
        results.append([outputs, *torch.autograd.grad((outputs * weights).sum(), [x, *layer.parameters()])])
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*results, strict=True)) and len(results[0]) == 2 + 2 * (1 + bias)
    layer.weight.requires_grad_(False)
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is None and layer.weight_logvar.grad is not None


def test_a_layer_that_sees_only_zeros_has_finite_gradients():
    layer = BayesianLinear(3, 2, bias=False, logvar=-4).train()
    layer(torch.zeros(4, 3)).sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in layer.parameters())


# --- modes


@pytest.mark.parametrize("estimator", ["local", "flipout", "weights"])
def test_evaluation_uses_the_means_and_training_draws(estimator):
    x = torch.randn(4, 3).double()
    model = trained(estimator)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    state = torch.get_rng_state()
    model(x)
    assert torch.equal(state, torch.get_rng_state())


def test_sampling_is_over_when_it_is_over():
    model, x = trained("local").eval(), torch.randn(4, 3).double()
    still, same = model(x), torch.zeros(6, 3).double() + x[0]
    with sampling(model):
        first = model(same)
        assert torch.allclose(first[0], first[5]) and not torch.equal(first, model(same))  # one function for the batch
        with sampling(model, "local"):
            inner = model(same)
            assert not torch.allclose(inner[0], inner[5])
        outer = model(same)
        assert torch.allclose(outer[0], outer[5]) and not torch.equal(outer, model(same))  # as before the inner block
    assert torch.equal(model(x), still)
    with pytest.raises(KeyError), sampling(model, "flipout"):
        raise KeyError
    assert torch.equal(model(x), still) and not model.training
    model.train()
    with sampling(model, "weights"):
        inside = model(same)
        assert torch.allclose(inside[0], inside[5])
    after = model(same)
    assert not torch.allclose(after[0], after[5])
    with pytest.raises(InputError, match="with Bayesian layers"), sampling(nn.Linear(2, 2)):
        pass
    with pytest.raises(InputError, match=r"estimator: .*Did you mean 'flipout'"), sampling(model, "flip"):
        pass
    flowing = trained("weights", flows=2)
    with pytest.raises(InputError, match="flows"), sampling(flowing, "local"):
        pass
    assert all(layer.drawing is None for layer in bayesian_layers(flowing).values())


def test_per_sample_gradients_by_torch_func():
    """The kept variance is for real parameters: what a transform puts in their place has no storage."""
    model, x = trained(), torch.randn(5, 3).double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    one = lambda p, x: torch.func.functional_call(model, p, (x,)).square().sum()  # noqa: E731
    found = torch.func.vmap(torch.func.grad(one), (None, 0), randomness="different")(parameters, x)
    assert found["0.weight_logvar"].shape == (5, 4, 3) and bool(torch.isfinite(found["0.weight_logvar"]).all())


def test_torchs_fast_path_does_not_go_past_the_layers():
    """In evaluation mode without gradients torch reads the weights of an encoder's layers itself, and would draw nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2).eval()
    model = bayesian(encoder, logvar=0.0, keep=("MultiheadAttention", "LayerNorm"))
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        assert torch.allclose(model(x), encoder(x), atol=1e-5)
        with sampling(model):
            assert not torch.allclose(model(x), model(x))
        padding = torch.tensor([[False, False, True], [False, False, False]])
        assert model(x, src_key_padding_mask=padding).shape == x.shape


# --- conversion


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.conv, self.norm, self.out = nn.Embedding(7, 4), nn.Conv1d(4, 5, 3, padding=1), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, tokens):
        return self.out(self.norm(self.conv(self.table(tokens).transpose(1, 2))).relu().mean(-1))


MODELS = {
    "mlp": (lambda: models.MLP(4, 6, 3, seed=0), lambda: torch.randn(5, 4)),
    "linear": (lambda: nn.Linear(4, 3), lambda: torch.randn(5, 4)),
    "words": (Words, lambda: torch.randint(7, (5, 6))),
    "images": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding_mode="circular", padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 2)),
        lambda: torch.randn(5, 2, 4, 4),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", MODELS)
def test_the_copy_answers_as_the_model_did_and_has_its_names(case, dtype):
    make, inputs = MODELS[case]
    plain, x = make().to(dtype), inputs()
    x = x.to(dtype) if x.is_floating_point() else x
    if case == "words":
        plain(x)  # running statistics of its own
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    for mode in (True, False):
        plain.train(mode)
        next(plain.parameters()).requires_grad_(mode)
        model = bayesian(plain, logvar=-7, keep="BatchNorm*")
        assert {name: module.training for name, module in plain.named_modules()}.items() <= {n: m.training for n, m in model.named_modules()}.items()
        assert all(value.dtype == dtype for value in model.state_dict().values() if value.is_floating_point())
        assert torch.equal(model.eval()(x), plain.eval()(x))
        names = dict(model.named_parameters())
        for name, p in plain.named_parameters():
            assert torch.equal(names[name], p) and names[name].requires_grad == p.requires_grad and names[name].data_ptr() != p.data_ptr()
            if not name.startswith("norm"):
                assert bool((names[name + LOGVAR] == -7).all())
                assert names[name + LOGVAR].requires_grad == p.requires_grad
    again = bayesian(make().to(dtype), keep="BatchNorm*")
    missing, unexpected = again.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(LOGVAR in name or ".priors." in f".{name}" for name in missing)
    assert torch.equal(again.eval()(x), plain(x))
    assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())
    assert not any(isinstance(module, BayesianLayer) for module in plain.modules())


def test_layers_made_on_their_own_are_those_of_torch():
    for own, plain in (
        (BayesianLinear(3, 2, False), nn.Linear(3, 2, False)),
        (BayesianConv1d(4, 2, 3, 2, 1, 1, 2), nn.Conv1d(4, 2, 3, 2, 1, 1, 2)),
        (BayesianConv2d(4, 2, (3, 1), padding="same", padding_mode="reflect"), nn.Conv2d(4, 2, (3, 1), padding="same", padding_mode="reflect")),
        (BayesianEmbedding(5, 2, padding_idx=1), nn.Embedding(5, 2, padding_idx=1)),
    ):
        plain.load_state_dict({name: value for name, value in own.state_dict().items() if name in ("weight", "bias")})
        x = torch.tensor([[1, 0, 4], [2, 1, 1]]) if isinstance(plain, nn.Embedding) else torch.randn(2, *{2: (3,), 3: (4, 5), 4: (4, 5, 5)}[plain.weight.ndim])
        assert torch.equal(own.eval()(x), plain(x))
        own.train()(x).sum().backward()
        if isinstance(plain, nn.Embedding):
            assert not own.weight.grad[1].any() and not own.weight_logvar.grad[1].any()


@pytest.mark.parametrize("rows", [None, torch.tensor([True, True, False, True])])
def test_the_row_that_pads_keeps_its_start(rows):
    """Without a gradient from the data the divergence would widen it to the prior: noise in every place that is padded."""
    layer = blur(BayesianEmbedding(4, 2, padding_idx=1, prior=GaussianPrior(0.0, 3.0)))
    mean, logvar = layer.posterior["weight"]
    counting = [0, 2, 3] if rows is None else [0, 3]
    expected = layer.prior("weight").kl(mean, logvar)[counting].sum()
    found = kl(layer, rows=None if rows is None else {layer: rows})
    assert number(found) == pytest.approx(number(expected))
    wanted = torch.autograd.grad(found, [mean, logvar])
    add_kl_gradient(layer, 1.0, rows=None if rows is None else {layer: rows})
    for parameter, gradient in zip((mean, logvar), wanted, strict=True):
        assert not parameter.grad[1].any() and parameter.grad[counting].all()
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


@pytest.mark.parametrize(("make", "name"), [(GaussianPrior, "std"), (ScaleMixture, "sigma1"), (ScaleMixture, "sigma2")])
@pytest.mark.parametrize("width", [1e-300, 1e-20, 1e20])
def test_widths_whose_square_overflows_are_refused(make, name, width):
    with pytest.raises(InputError, match=f"{name}: expected a width between 1e-15 and 1e15"):
        make(**{name: width})


def test_weights_behind_planar_flows_are_not_pruned():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    flowing = bayesian(model, estimator="weights", num_flows=2)
    for call in (models.signal_to_noise, lambda model: models.prune(model, 0.5)):
        with pytest.raises(InputError, match="weights without planar flows, found some in layer '0'"):
            call(flowing)


def test_every_tensor_has_a_prior_of_its_own():
    prior = GaussianPrior(0.1, 0.3)
    layer = bayesian(nn.Linear(3, 2).double(), prior)
    assert layer.prior("weight") is not layer.prior("bias") and layer.prior("bias").mean.dtype == torch.float64
    assert prior.mean.dtype == torch.float32  # the one that was passed stays as it was


def test_a_layer_that_is_the_whole_model_has_names_without_a_dot(blobs):
    model, method = bayesian(nn.Linear(4, 3)), methods.VCL()
    method.consolidate(model, blobs(1))
    assert list(method.posterior) == ["weight", "bias"] and list(models.signal_to_noise(model)) == ["weight"]
    assert int((models.prune(model, 0.5).weight == 0).sum()) == 6
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    assert broken(model) == "weight"


def test_keep_by_name_and_by_type():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = bayesian(net, keep=("*Norm*", "2"))
    assert list(bayesian_layers(model)) == ["0", "4"] and type(model[2]) is nn.Linear and type(model[1]) is nn.LayerNorm
    assert model[2].weight.requires_grad and torch.equal(model[2].weight, net[2].weight) and model[2].weight is not net[2].weight
    assert list(bayesian_layers(bayesian(nn.Sequential(net), keep=["*.*Norm", "0.[1-4]"]))) == ["0.0"]
    with pytest.raises(InputError, match=r"module '1': expected Linear, Conv1d, Conv2d, Embedding, .* found LayerNorm\. .*keep=\('LayerNorm',\)"):
        bayesian(net)


def test_a_layer_in_several_places_stays_one():
    layer = nn.Linear(3, 3)
    block = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model = bayesian(nn.Sequential(layer, nn.Tanh(), layer, block, nn.Sequential(block, block)))
    assert isinstance(model[0], BayesianLinear) and model[2] is model[0] and len(bayesian_layers(model)) == 2
    assert model[4][0] is model[4][1] is model[3] and isinstance(model[3][0], BayesianLinear)
    x = torch.randn(2, 3)
    assert torch.equal(model.eval()(x), model(x)) and number(kl(model)) == pytest.approx(number(kl(model[0]) + kl(model[3])))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.out.weight = self.table.weight

    def forward(self, tokens):
        return self.out(self.table(tokens).mean(1))


@pytest.mark.parametrize("keep", [(), "table", "out", "Embedding"])
def test_tied_parameters_are_refused_unless_all_are_kept(keep):
    with pytest.raises(InputError, match=r"parameter '(out|table).weight': expected one of its own, found '(out|table).weight' again.*untie"):
        bayesian(Tied(), keep=keep)


def test_tied_parameters_that_are_all_kept_stay_tied():
    model = bayesian(nn.Sequential(Tied(), nn.Linear(5, 2)), keep=("0.table", "0.out"))
    assert model[0].table.weight is model[0].out.weight and list(bayesian_layers(model)) == ["1"]


class OwnLinear(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs).relu()


def with_hook(kind):
    layer = nn.Linear(2, 2)
    {
        "forward": lambda: layer.register_forward_hook(lambda module, inputs, outputs: 0 * outputs),
        "before": lambda: layer.register_forward_pre_hook(lambda module, inputs: None),
        "backward": lambda: layer.register_full_backward_hook(lambda module, ins, outs: None),
        "own-forward": lambda: setattr(layer, "forward", lambda x: x),
        "parameter": lambda: layer.register_parameter("scale", nn.Parameter(torch.ones(1))),
        "module": lambda: layer.add_module("side", nn.ReLU()),
        "pruned": lambda: prune.random_unstructured(layer, "weight", 0.5),
    }[kind]()
    return layer


@pytest.mark.parametrize("kind", ["forward", "before", "backward", "own-forward", "parameter", "module", "pruned"])
def test_what_a_new_layer_would_lose_is_refused(kind):
    layer = with_hook(kind)
    with pytest.raises(InputError, match=r"module '1': expected a Linear as torch makes it, found one with hooks.*Remove them first.*keep="):
        bayesian(nn.Sequential(nn.Linear(2, 2), layer))
    if kind != "pruned":  # torch cannot copy that
        assert isinstance(bayesian(nn.Sequential(nn.Linear(2, 2), layer), keep="1")[0], BayesianLinear)


def test_hooks_of_other_modules_stay():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    net[1].register_forward_hook(lambda module, inputs, outputs: outputs + 7)
    assert bool((bayesian(net).eval()(torch.randn(3, 2)) >= 7).all())


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.LSTM(2, 2),
        lambda: nn.GRUCell(2, 2),
        lambda: nn.ConvTranspose2d(1, 1, 2),
        lambda: nn.Conv3d(1, 1, 2),
        lambda: nn.BatchNorm2d(2),
        lambda: OwnLinear(2, 2),
        lambda: nn.LazyLinear(2),
        lambda: parametrizations.weight_norm(nn.Linear(2, 2)),
        lambda: parametrizations.spectral_norm(nn.Conv2d(2, 2, 2)),
        lambda: nn.ParameterList([nn.Parameter(torch.ones(2))]),
    ],
)
def test_what_has_no_bayesian_form_is_refused_by_name(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = make()
    kind = type(module).__name__
    with pytest.raises(InputError, match=rf"module 'b.0': expected Linear, .* found {kind}\. Leave it as it is with keep=\('{kind}',\)"):
        bayesian(nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Sequential(module)}))
    assert list(bayesian_layers(bayesian(nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Sequential(module)}), keep=(kind,)))) == ["a"]


def test_a_parametrized_layer_without_bias_is_refused_too():
    with pytest.raises(InputError, match=r"module '0\.parametrizations\.weight'"):
        bayesian(nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2, bias=False)), nn.Linear(2, 2)))


def test_the_old_weight_norm_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = nn.utils.weight_norm(nn.Linear(2, 2))
    with pytest.raises(InputError, match="module '0': expected a Linear as torch makes it"):
        bayesian(nn.Sequential(layer))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: bayesian(bayesian(nn.Linear(2, 2))), "Bayesian already"),
        (lambda: bayesian(nn.Sequential(nn.ReLU())), "at least one of Linear, .* found none in Sequential"),
        (lambda: bayesian(nn.Linear(2, 2), keep="Linear"), "at least one of"),
        (lambda: bayesian(nn.Linear(2, 2), prior=0.1), "prior: expected a prior such as"),
        (lambda: bayesian(nn.Linear(2, 2), prior=nn.Linear(2, 2)), "with Bayesian layers"),
        (lambda: bayesian(nn.Linear(2, 2), logvar=math.nan), "logvar: expected a finite number, found nan"),
        (lambda: bayesian(nn.Linear(2, 2), logvar=-math.inf), "logvar"),
        (lambda: bayesian(nn.Linear(2, 2), estimator="locale"), "estimator: .*Did you mean 'local'"),
        (lambda: bayesian(nn.Linear(2, 2), num_flows=2), "'weights' with flows"),
        (lambda: bayesian(nn.Linear(2, 2), num_flows=-1, estimator="weights"), "num_flows"),
        (lambda: bayesian(nn.Linear(2, 2), num_flows=1.5, estimator="weights"), "num_flows"),
        (lambda: bayesian(nn.Embedding(3, 2, max_norm=1.0)), "max_norm"),
        (lambda: bayesian(nn.Embedding(3, 2, sparse=True)), "sparse"),
        (lambda: BayesianLinear(2, 2, prior=nn.Linear(2, 2)), "prior: .*found Linear"),
        (lambda: GaussianPrior(std=0), "std"),
        (lambda: GaussianPrior(std=math.inf), "std"),
        (lambda: GaussianPrior(mean=math.nan), "mean: expected finite values"),
        (lambda: GaussianPrior(precision=torch.tensor([1.0, 0.0])), "precision: expected finite values above 0"),
        (lambda: GaussianPrior(precision=torch.tensor([1.0, math.inf])), "precision"),
        (lambda: ScaleMixture(pi=0), "pi: .*GaussianPrior"),
        (lambda: ScaleMixture(pi=1), "pi"),
        (lambda: ScaleMixture(pi=-0.1), "pi"),
        (lambda: ScaleMixture(sigma1=0), "sigma1"),
        (lambda: ScaleMixture(sigma2=-1), "sigma2"),
        (lambda: PlanarFlows(0, 1), "size"),
        (lambda: PlanarFlows(1, 0), "count"),
        (lambda: kl(nn.Linear(2, 2)), "retain.models.bayesian"),
        (lambda: kl(bayesian(nn.Linear(2, 2), ScaleMixture()), strength=2), "strength: expected 1 with a scale mixture"),
        (lambda: add_kl_gradient(bayesian(nn.Linear(2, 2), ScaleMixture()), 1.0, strength=2), "strength"),
        (lambda: methods.VCL(samples=0), "samples"),
        (lambda: methods.VCL(answers=-1), "answers"),
        (lambda: methods.VCL(logvar=math.inf), "logvar"),
        (lambda: methods.VCL(estimator="flip"), "Did you mean 'flipout'"),
        (lambda: methods.VCL(num_flows=2), "'weights' with flows"),
        (lambda: methods.VCL(num_flows=-1), "num_flows"),
        (lambda: methods.VCL(beta=0), "beta"),
        (lambda: methods.VCL(strength=-1), "strength"),
        (lambda: methods.VCL(pace=0), "pace"),
        (lambda: methods.VCL(weighting="warm"), "weighting"),
        (lambda: methods.Blundell(0), "batches"),
        (lambda: methods.WarmUp(0), "steps"),
        (lambda: methods.OverBatches(0), "batch_size"),
    ],
)
def test_what_does_not_fit_is_said(call, match):
    with pytest.raises(InputError, match=match):
        call()


# --- posteriors as priors, and files


def test_set_prior_takes_mean_and_variance_and_starts_there_if_asked():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    old, new = blur(bayesian(net)), bayesian(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double(), ScaleMixture(), logvar=-5)
    before = {name: p.detach().clone() for name, p in new.named_parameters()}
    set_prior(new, old)
    assert all(torch.equal(p, before[name]) for name, p in new.named_parameters())
    by_hand = 0.0
    for mine, theirs in zip(bayesian_layers(new).values(), bayesian_layers(old).values(), strict=True):
        for part, (mean, logvar) in mine.posterior.items():
            target = Normal(*(f(v) for f, v in zip((lambda m: m, lambda v: (0.5 * v).exp()), theirs.posterior[part], strict=True)))
            by_hand += float(torch.distributions.kl_divergence(Normal(mean, (0.5 * logvar).exp()), target).detach().sum())
    assert number(kl(new)) == pytest.approx(by_hand)
    set_prior(new, old, start=True)
    assert number(kl(new)) == pytest.approx(0, abs=1e-12)
    assert all(torch.equal(p, dict(old.named_parameters())[name]) for name, p in new.named_parameters())
    with torch.no_grad():
        next(new.parameters()).add_(1)
    assert number(kl(new)) > 0.1 and number(kl(bayesian(net, old))) > 0  # the prior is a copy of its own
    assert all(torch.equal(a, b) for a, b in zip(bayesian(net, old).state_dict().values(), bayesian(net, old).state_dict().values(), strict=True))


def test_set_prior_names_the_first_layer_that_differs_and_changes_nothing():
    def make(*sizes, **options):
        return bayesian(models.MLP(*sizes, seed=0), **options)

    mine = make(4, 5, 3)
    state = {name: value.clone() for name, value in mine.state_dict().items()}
    for source, match in (
        (make(4, 6, 3), r"prior of layer 'layers.fc1': expected weight of shape \[5, 4\], found shape \[6, 4\]"),
        (make(4, 5, 2), r"prior of layer 'layers.fc2': expected weight of shape \[3, 5\], found shape \[2, 5\]"),
        (make(4, 3), r"prior of layer 'layers.fc1': expected weight of shape \[5, 4\]"),
        (make(4, 5, 3, 3), "found layer 'layers.fc3' too"),
        (bayesian(nn.Linear(4, 5)), "expected a posterior of layer 'layers.fc1'"),
        (make(4, 5, 3, num_flows=1, estimator="weights"), "found one with flows"),
        (models.MLP(4, 5, 3, seed=0), "with Bayesian layers"),
    ):
        with pytest.raises(InputError, match=match):
            set_prior(mine, source)
        assert all(torch.equal(state[name], value) for name, value in mine.state_dict().items()) and len(state) == len(mine.state_dict())
    no_bias = bayesian(nn.Sequential(nn.Linear(2, 2, bias=False)))
    with pytest.raises(InputError, match=r"prior of layer '0': expected bias of shape \[2\], found none"):
        set_prior(bayesian(nn.Sequential(nn.Linear(2, 2))), no_bias)


def kinds():
    def make(prior):
        return bayesian(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), prior, logvar=-2)

    return {"gaussian": make(GaussianPrior(0.1, 0.3)), "mixture": make(ScaleMixture(0.3, 1.0, 0.1)), "posterior": make(blur(make(None)))}


@pytest.mark.parametrize("old", ["gaussian", "mixture", "posterior"])
@pytest.mark.parametrize("new", ["gaussian", "mixture", "posterior"])
def test_a_state_dict_brings_its_prior_along(old, new):
    source, target = kinds()[new], kinds()[old]
    target.load_state_dict(source.state_dict())
    assert {n: v.shape for n, v in target.state_dict().items()} == {n: v.shape for n, v in source.state_dict().items()}
    values = []
    for model in (source, target, copy.deepcopy(target)):
        torch.manual_seed(0)
        values.append(number(kl(model)))
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize("old", ["posterior", "gaussian", "mixture"])
def test_a_folder_brings_its_prior_along(old, tmp_path):
    """A mixture becomes a posterior after the first task; the model is then built anew, as at the start, and loaded."""
    source, target = kinds()["posterior"], kinds()[old]
    retain.load(retain.save(tmp_path, source), target)
    assert number(kl(target)) == number(kl(source))


def test_a_copy_has_nothing_in_common_with_the_original():
    model = trained(prior=GaussianPrior(0.0, 0.5))
    model(torch.randn(2, 3).double())  # keeps the variance
    made, before = copy.deepcopy(model), number(kl(model))
    blur(made)
    set_prior(made, trained())
    assert number(kl(model)) == before
    made.zero_grad()
    kl(made).backward()
    expected = gradients(made)
    made.zero_grad()
    add_kl_gradient(made, 1.0)
    assert all(torch.allclose(p.grad, expected[name]) for name, p in made.named_parameters())


# --- a posterior that is lost


def test_broken_names_what_is_not_finite():
    for name, value in (("weight", math.nan), ("weight_logvar", math.inf), ("bias", -math.inf), ("bias_logvar", math.nan), ("weight_logvar", 200.0)):
        model = bayesian(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
        assert broken(model) is None
        with torch.no_grad():
            getattr(model[1], name).view(-1)[1] = value
        assert broken(model) == f"1.{name}"
    assert broken(bayesian(nn.Linear(2, 2).double(), logvar=200.0)) is None  # whose variance is finite in double


class Kept:
    """A recorder that keeps the last point."""

    state = None

    def event(self, kind, **fields):
        pass

    def save(self, state, *, final=False):
        self.state = copy.deepcopy(state())

    def load(self):
        return None


def test_a_posterior_that_is_lost_says_where_and_when_and_what_was_saved_is_kept(blobs):
    net = models.MLP(4, 6, 3, seed=0)
    with pytest.raises(RetainError, match=r"The posterior of 'layers\.fc1\.\w+' is no longer finite after step [12] of this task \(VCL\(.*Lower lr"):
        retain.learn(net, [blobs(1)], methods.VCL(), optimizer="sgd", lr=1e30, batch_size=16)

    class Sudden(torch.optim.SGD):
        """Jumps in the second epoch of four steps."""

        count = 0

        def step(self, closure=None):
            self.count += 1
            for group in self.param_groups:
                group["lr"] = 1e30 if self.count == 6 else 0.01
            return super().step(closure)

    recorder = Kept()
    with pytest.raises(RetainError, match=r"'layers\.fc1\.\w+' is no longer finite after step 6"):
        retain.learn(net, [blobs(1)], methods.VCL(), optimizer=lambda p: Sudden(p, lr=0.01), batch_size=16, epochs=3, recorder=recorder)
    assert (recorder.state["task"], recorder.state["epoch"]) == (0, 1)
    saved = bayesian(models.MLP(4, 6, 3, seed=1))
    saved.load_state_dict(recorder.state["model"])
    assert broken(saved) is None and retain.evaluate(saved, blobs(1)).score > 0.2
    whole = retain.learn(net, tasks.sequence(blobs(1)), methods.VCL(), optimizer=lambda p: torch.optim.SGD(p, lr=0.01), batch_size=16, epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(saved.state_dict().values(), whole.model.state_dict().values(), strict=True))
