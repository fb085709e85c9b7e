"""Coupling flows and multiplicative layers, against Jacobians, quadrature and the paper's formulas."""

import copy
import math
import sys

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import nn
from torch.distributions import Normal

import retain
from retain import methods, models, tasks
from retain.beliefs import from_posterior
from retain.errors import InputError, RetainError
from retain.models.bayesian import (
    Auxiliary,
    BayesianLinear,
    CouplingFlows,
    GaussianPrior,
    MultiplicativeLinear,
    ScaleMixture,
    ZukoFlows,
    add_kl_gradient,
    bayesian,
    bayesian_layers,
    broken,
    kl,
    kl_by_layer,
    prune,
    sampling,
    set_prior,
    signal_to_noise,
)


def within(draws, expected, sigmas=5.5):
    """Whether the mean of draws [R, ...] is where it is expected, by the draws' own standard errors; the seeds are fixed."""
    return bool(((draws.mean(0) - expected).abs() <= sigmas * draws.std(0) / len(draws) ** 0.5 + 1e-12).all())


def number(value):
    return float(value.detach())


def shaken(module, width=0.7):
    """Every parameter moved, so that nothing is where it started."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(width * torch.randn_like(parameter))
    return module.double()


def zuko(size, count, **options):
    pytest.importorskip("zuko")
    return ZukoFlows(size, count, 16, **options)


MAKE = {
    "coupling": CouplingFlows,
    "zuko": zuko,
    "zuko, splines": lambda size, count: zuko(size, count, kind="NSF", passes=2),
    "zuko, autoregressive": lambda size, count: zuko(size, count, kind="MAF"),
}


# --- flows


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("kind", MAKE)
def test_inverse_and_log_determinant(kind, count, size):
    flows = shaken(MAKE[kind](size, count), 0.3 if kind == "coupling" else 0.1)
    z = 2 * torch.randn(3, 4, size).double()
    moved, logdet = flows(z)
    back, other = flows.inverse(moved)
    assert moved.shape == z.shape and logdet.shape == other.shape == (3, 4)
    assert number((moved - z).abs().max()) > 0.01
    assert torch.allclose(back, z, rtol=0, atol=1e-10) and torch.allclose(other, -logdet, rtol=0, atol=1e-10)
    for start, found in zip(z.flatten(0, 1), logdet.flatten(), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda value: flows(value)[0], start)
        assert torch.allclose(torch.linalg.slogdet(jacobian)[1], found, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", MAKE)
def test_gradients_reach_every_parameter(kind):
    flows = shaken(MAKE[kind](6, 4))
    moved, logdet = flows(torch.randn(200, 6).double())
    (moved.square().sum() + logdet.sum()).backward()
    parameters = list(flows.parameters())
    assert parameters and all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in parameters)
    for step in range(4 if kind == "coupling" else 0):
        columns, kept = flows.inner[step].weight.grad.abs().sum(0), flows.masks[step].bool()
        assert bool((columns[kept] > 0).all()) and not bool(columns[~kept].any())


def test_a_chain_is_the_papers_formula_step_by_step():
    flows = shaken(CouplingFlows(5, 3, hidden=7))
    z = torch.randn(4, 5).double()
    moved, logdet = flows(z)
    total = 0.0
    for m, f, gk in zip(flows.masks, flows.inner, flows.outer, strict=True):
        h = torch.tanh((m * z) @ f.weight.T + f.bias)
        mu, sigma = h @ gk.weight[:5].T + gk.bias[:5], torch.sigmoid(h @ gk.weight[5:].T + gk.bias[5:])
        z = m * z + (1 - m) * (z * sigma + (1 - sigma) * mu)
        total = total + sigma.log() @ (1 - m)
    assert torch.allclose(moved, z.detach()) and torch.allclose(logdet, total)


def test_masks_are_halves_that_take_turns():
    masks = CouplingFlows(7, 4).masks
    assert masks.sum(1).tolist() == [3, 4, 3, 4]
    assert torch.equal(masks[0], masks[2]) and torch.equal(masks[0] + masks[1], torch.ones(7))
    assert len({tuple(CouplingFlows(7, 1).masks[0].tolist()) for _ in range(20)}) > 1


def test_no_steps_are_the_identity():
    z = torch.randn(2, 3)
    for moved, logdet in (CouplingFlows(3, 0)(z), CouplingFlows(3, 0).inverse(z)):
        assert torch.equal(moved, z) and torch.equal(logdet, torch.zeros(2))


def test_a_closed_gate_is_exact_on_the_way_there():
    """float32 far out: no overflow, and the log-determinant does not cancel."""
    flows = CouplingFlows(4, 2)
    with torch.no_grad():
        for layer in flows.outer:
            layer.bias[4:] = -200.0
    moved, logdet = flows(torch.randn(4))
    assert torch.isfinite(moved).all() and number(logdet) == pytest.approx(-4 * 200, abs=5)


def test_without_zuko_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko.flows", None)
    for make in (lambda: ZukoFlows(3), lambda: MultiplicativeLinear(3, 2, flow="zuko"), lambda: bayesian(nn.Linear(3, 2), flow="zuko")):
        with pytest.raises(RetainError, match=r"pip install retain\[flows\]"):
            make()


# --- multiplicative layers


def small(inputs=2, outputs=1, logvar=-1.0, z_logvar=-0.5, prior=None, **settings):
    """A layer in float64 that is far from where it starts: factors of about 1, bent by their flow."""
    layer = MultiplicativeLinear(inputs, outputs, logvar=logvar, z_logvar=z_logvar, prior=prior or GaussianPrior(0.2, 1.5), **settings).double()
    width = 0.1 if settings.get("flow") == "zuko" else 1.0  # ReLU networks, without a bound, take factors far away
    shaken(layer.flow("weight"), width)
    shaken(layer.auxiliary, 0.3 * width)
    with torch.no_grad():
        layer.weight.normal_()
        layer.weight_logvar.add_(0.3 * torch.randn_like(layer.weight))
        layer.z_mean.copy_(layer.flow("weight").inverse(torch.ones_like(layer.z_mean))[0] + 0.3 * torch.randn_like(layer.z_mean))
        layer.z_logvar.add_(0.3 * torch.randn_like(layer.z_mean))
    return layer


def still(layer):
    """Factors that are 1 and do not vary: flows whose gates are open."""
    with torch.no_grad():
        for net in layer.flow("weight").outer:
            net.bias[layer.in_features :] = 50.0
        layer.z_mean.fill_(1.0)
        layer.z_logvar.fill_(-80.0)
    return layer


def nodes(layer, count=81, width=6.0):
    """Factors on a grid of the base distribution, their probabilities, and log q(z): two inputs."""
    with torch.no_grad():
        grid = torch.linspace(-width, width, count, dtype=torch.float64)
        noise = torch.cartesian_prod(grid, grid)
        log_base = Normal(0.0, 1.0).log_prob(noise).sum(-1)
        z, logdet = layer.flow("weight")(layer.z_mean + (0.5 * layer.z_logvar).exp() * noise)
        return z, torch.softmax(log_base, 0), log_base - 0.5 * layer.z_logvar.sum() - logdet


def true_kl(layer, count=81):
    """KL(q(W) || p(W)) of one output and two inputs: q is the mixture over all nodes, the integral over W is taken on a grid."""
    z, probability, _ = nodes(layer, count)
    mean, std = (z * layer.weight).detach(), (0.5 * layer.weight_logvar).exp().detach()[0]
    axes, columns = [], []
    for i in range(2):
        w = torch.linspace(float(mean[:, i].min() - 8 * std[i]), float(mean[:, i].max() + 8 * std[i]), 1201, dtype=torch.float64)
        axes.append(w)
        columns.append(Normal(mean[:, i : i + 1], std[i]).log_prob(w).exp())
    q = (columns[0] * probability[:, None]).T @ columns[1]
    cell = (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
    assert float(q.sum() * cell) == pytest.approx(1, abs=1e-6)
    log_p = layer.prior("weight").log_density(torch.cartesian_prod(*axes)).sum(-1).reshape(q.shape)
    return float((torch.xlogy(q, q) - q * log_p).sum() * cell)


def true_bound(layer):
    """The paper's bound by quadrature over z and over c'W, which is all that r sees of W."""
    z, probability, log_q = nodes(layer)
    w, h = (torch.from_numpy(value) for value in hermegauss(40))
    with torch.no_grad():
        mean, variance, r = z * layer.weight, layer.weight_logvar.exp()[0], layer.auxiliary
        given = torch.distributions.kl_divergence(Normal(mean, variance.sqrt()), Normal(0.2, 1.5)).sum(-1)
        t = torch.tanh((mean @ r.c)[:, None] + (variance @ r.c.square()).sqrt() * w)[..., None]
        moved, logdet = r.flow(z)
        log_r = Normal(r.b1 * t, (0.5 * r.b2 * t).exp()).log_prob(moved[:, None]).sum(-1) @ (h / h.sum()) + logdet
        return float(probability @ (given + log_q - log_r))


@pytest.mark.parametrize("flow", ["coupling", "zuko"])
def test_the_divergence_is_a_bound_that_better_guesses_tighten(flow):
    if flow == "zuko":
        pytest.importorskip("zuko")
    layer = small(flow=flow, bias=False)
    exact, bound = true_kl(layer), true_bound(layer)
    with torch.no_grad():
        draws = torch.stack([layer.divergence("weight") for _ in range(1000)])
    assert within(draws, bound) and bound > exact > 0
    optimizer = torch.optim.Adam(layer.auxiliary.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        layer.divergence("weight").backward()
        optimizer.step()
    tighter = true_bound(layer)
    assert exact < tighter < bound - 0.1 * (bound - exact)


def test_a_guess_of_fixed_factors_is_the_divergence_of_mean_field():
    """Factors that do not vary tell nothing: the bound is the closed form beside the entropy of z, which no r can know."""
    layer = still(small(3, 2, logvar=-60.0, bias=False))
    plain = BayesianLinear(3, 2, bias=False, prior=GaussianPrior(0.2, 1.5)).double()
    plain.load_state_dict({key: value for key, value in layer.state_dict().items() if key in plain.state_dict()})
    z = torch.ones(3).double()
    entropy = 1.5 * (math.log(2 * math.pi) + 1 - 80)
    expected = number(kl(plain)) - entropy - number(layer.auxiliary(z, layer.weight, layer.weight_logvar.exp()))
    assert number(kl(layer)) == pytest.approx(expected, rel=1e-9)


def test_the_guess_is_the_papers():
    guess = Auxiliary(shaken(CouplingFlows(4, 2)), 4).double()
    z, mean, variance = torch.randn(4).double(), torch.randn(3, 4).double(), 4 * torch.rand(3, 4).double()

    def by_hand(weight, rows=3):
        t = torch.tanh(guess.c @ weight.T)
        centre, logvar = (torch.outer(b, t).sum(1) / rows for b in (guess.b1, guess.b2))
        moved, logdet = guess.flow(z)
        return Normal(centre, (0.5 * logvar).exp()).log_prob(moved).sum() + logdet

    assert torch.allclose(guess(z, mean, torch.zeros_like(mean)), by_hand(mean))
    kept = torch.tensor([True, False, True])
    assert torch.allclose(guess(z, mean, torch.zeros_like(mean), kept), by_hand(mean[kept], 2))
    assert torch.isfinite(guess(z, mean, variance, torch.zeros(3, dtype=torch.bool)))
    with torch.no_grad():
        guess.c.fill_(0.2)
        weights = mean + variance.sqrt() * torch.randn(2500, 3, 4).double()
        explicit = torch.stack([guess(z, weight, torch.zeros_like(mean)) for weight in weights])
        drawn = torch.stack([guess(z, mean, variance) for _ in range(2500)])
    assert within(drawn - explicit, 0.0) and float(drawn.std()) == pytest.approx(float(explicit.std()), rel=0.2)


def moments(layer, x):
    """Mean and variance of the outputs, by quadrature over z."""
    z, probability, _ = nodes(layer)
    with torch.no_grad():
        each = torch.einsum("ni,bi,oi->nbo", z, x, layer.weight) + layer.bias
        mean = torch.einsum("n,nbo->bo", probability, each)
        variance = torch.einsum("n,nbo->bo", probability, (each - mean).square())
        return mean, variance + x.square() @ layer.weight_logvar.exp().T + layer.bias_logvar.exp()


@pytest.mark.parametrize("estimator", ["local", "flipout", "weights"])
def test_outputs_have_the_moments_of_the_mixture(estimator):
    layer = small(2, 3)
    x = torch.randn(4, 2).double()
    mean, variance = moments(layer, x)
    with torch.no_grad(), sampling(layer, estimator):
        draws = torch.stack([layer(x) for _ in range(2000)])
    assert within(draws, mean) and within((draws - mean).square(), variance)


@pytest.mark.parametrize("estimator", ["local", "flipout", "weights"])
def test_with_factors_that_stand_still_it_is_mean_field(estimator):
    layer = still(small(3, 2, estimator=estimator))
    plain = BayesianLinear(3, 2).double()
    plain.load_state_dict({key: value for key, value in layer.state_dict().items() if key in plain.state_dict()})
    x = torch.randn(5, 3).double()
    assert torch.allclose(layer.eval()(x), plain.eval()(x), rtol=0, atol=1e-12)
    mean, variance = plain(x).detach(), (x.square() @ plain.weight_logvar.exp().T + plain.bias_logvar.exp()).detach()
    with torch.no_grad():
        draws = torch.stack([layer.train()(x) for _ in range(1500)])
    assert within(draws, mean) and within((draws - mean).square(), variance)
    other = torch.stack([plain.draw("weight") for _ in range(1500)])
    assert within(torch.stack([layer.draw("weight") for _ in range(1500)]) - other, 0.0)


def test_draws_of_weights_have_the_mixtures_covariance():
    """Gaussian factors: weights of one input covary by the variance of their factor, weights of two inputs do not."""
    layer = small(2, 2, num_flows=0, bias=False)
    with torch.no_grad():
        draws = torch.stack([layer.draw("weight") for _ in range(20_000)])
    mu, var, m, s2 = layer.weight.detach(), layer.weight_logvar.detach().exp(), layer.z_mean.detach(), layer.z_logvar.detach().exp()
    assert within(draws, mu * m)
    away = (draws - mu * m).flatten(1)
    expected = torch.diag(var.flatten()) + torch.einsum("oi,pj,ij->oipj", mu, mu, torch.diag(s2)).reshape(4, 4)
    assert within(torch.einsum("na,nb->nab", away, away), expected)


def test_every_row_has_factors_of_its_own_and_one_function_has_one():
    layer = small(3, 2, logvar=-60.0, bias=False)
    x = torch.randn(1, 3).double().expand(4, 5, 3)
    for estimator, different in (("local", 20), ("flipout", 20), ("weights", 1)):
        with torch.no_grad(), sampling(layer, estimator):
            rows = layer(x).reshape(20, 2)
            assert len(torch.unique((1e6 * rows).round(), dim=0)) == different
            assert layer(x[0, 0]).shape == (2,)
            assert not torch.equal(layer(x), layer(x))
    assert layer.factors(4, 5).shape == (4, 5, 3) and layer.factors().shape == (3,)


# --- in the house


@pytest.mark.parametrize("flow", ["coupling", "zuko", lambda size: CouplingFlows(size, 3, hidden=4)])
def test_a_converted_model_answers_as_it_did(flow):
    if flow == "zuko":
        pytest.importorskip("zuko")
    model = models.MLP(5, 4, 3, seed=0).double().eval()
    model.layers.fc2.requires_grad_(False)
    made = bayesian(model, flow=flow)
    x = torch.randn(6, 5).double()
    assert torch.allclose(made(x), model(x), rtol=0, atol=1e-12) and not made.training
    layers = bayesian_layers(made)
    assert all(type(layer) is MultiplicativeLinear and layer.z_mean.dtype == torch.float64 for layer in layers.values()) and len(layers) == 2
    assert all(p.requires_grad for p in layers["layers.fc1"].parameters()) and not any(p.requires_grad for p in layers["layers.fc2"].parameters())
    assert set(dict(model.named_parameters())) <= set(dict(made.named_parameters()))
    for layer in layers.values():
        ours, guess = ({id(p) for p in module.parameters()} for module in (layer.flow("weight"), layer.auxiliary))
        assert ours and guess and not ours & guess
    add_kl_gradient(made, 0.1)
    assert all(p.grad is not None for p in layers["layers.fc1"].parameters()) and all(p.grad is None for p in layers["layers.fc2"].parameters())
    steps = {"coupling": 2, "zuko": None}.get(flow, 3) if isinstance(flow, str) else 3
    if steps:
        assert len(layers["layers.fc1"].flow("weight").masks) == len(layers["layers.fc1"].auxiliary.flow.masks) == steps
    assert "multiplicative" in repr(made) and broken(made) is None


def test_a_frozen_weight_leaves_the_bias_to_learn():
    source = nn.Linear(3, 2)
    source.weight.requires_grad_(False)
    learning = {name for name, p in MultiplicativeLinear.of(source).named_parameters() if p.requires_grad}
    assert learning == {"bias", "bias_logvar"}


@pytest.mark.parametrize(("prior", "strength"), [(GaussianPrior(0.3, 0.5), 1.0), (GaussianPrior(0.3, 0.5), 3.0), (ScaleMixture(0.5, 1.0, 0.1), 1.0)])
def test_the_gradient_that_is_added_is_that_of_the_estimate(prior, strength):
    model = nn.Sequential(small(3, 4, prior=prior), nn.Tanh(), small(4, 2, prior=prior, num_flows=1))
    rows = {model[2]: torch.tensor([True, False])}
    torch.manual_seed(1)
    add_kl_gradient(model, 0.7, strength=strength, rows=rows)
    added = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(1)
    (0.7 * kl(model, strength=strength, rows=rows)).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, added[name]) and float(added[name].abs().max()) > 0, name
    assert added["2.bias"][1] == 0 and not added["2.weight"][1].any() and not added["2.weight_logvar"][1].any()


def test_strength_multiplies_the_quadratic_part_given_the_factors():
    layer = small(3, 2)
    torch.manual_seed(2)
    z = layer.factors().detach()
    found = []
    for strength in (1.0, 5.0):
        torch.manual_seed(2)
        found.append(number(layer.divergence("weight", strength)))
    quadratic = 0.5 * ((z * layer.weight - 0.2) / 1.5).square().sum()
    assert found[1] - found[0] == pytest.approx(number(4 * quadratic))


def test_units_that_do_not_count_are_as_if_they_were_not_there():
    whole, part = small(3, 4, logvar=-60.0), small(3, 2, logvar=-60.0)
    kept = torch.tensor([True, False, False, True])
    state = {key: value[kept] if key in ("weight", "weight_logvar", "bias", "bias_logvar") else value for key, value in whole.state_dict().items()}
    part.load_state_dict(state)
    found = []
    for layer, rows in ((whole, {whole: kept}), (part, None), (part, {part: torch.tensor([True, True])})):
        torch.manual_seed(3)
        found.append(number(kl(layer, rows=rows)))
    assert found[1] == pytest.approx(found[0], rel=1e-9) and found[2] == pytest.approx(found[0], rel=1e-9)


def test_the_divergence_of_a_model_is_that_of_its_layers():
    model = nn.Sequential(small(3, 4), nn.Tanh(), small(4, 2, prior=ScaleMixture(0.5, 1.0, 0.1)))
    torch.manual_seed(4)
    total = number(kl(model))
    torch.manual_seed(4)
    each = {name: number(value) for name, value in kl_by_layer(model).items()}
    assert list(each) == ["0", "2"] and sum(each.values()) == pytest.approx(total)


@pytest.mark.parametrize("flow", ["coupling", "zuko"])
def test_a_state_dict_brings_everything_along(flow):
    if flow == "zuko":
        pytest.importorskip("zuko")
    first, second = (nn.Sequential(small(6, 3, flow=flow)).double() for _ in range(2))
    x = torch.randn(4, 6).double()
    assert not torch.allclose(first.eval()(x), second.eval()(x))
    second.load_state_dict(first.state_dict())
    third = copy.deepcopy(first)
    found = []
    for model in (first, second, third):
        torch.manual_seed(5)
        with torch.no_grad(), sampling(model):
            found.append((model(x), kl(model)))
    assert all(torch.equal(found[0][0], answer) and torch.equal(found[0][1], nats) for answer, nats in found[1:])


def test_a_folder_brings_everything_along(tmp_path):
    model, other = (bayesian(models.MLP(5, 4, 3, seed=0), flow="coupling") for _ in range(2))
    with torch.no_grad():
        model.layers.fc1.z_mean.add_(0.5)
    retain.save(tmp_path / "kept", model)
    retain.load(tmp_path / "kept", other)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("flow", ["coupling", "zuko"])
def test_vcl_learns_digits(flow):
    if flow == "zuko":
        pytest.importorskip("zuko")
    torch.manual_seed(0)
    model = bayesian(models.MLP(64, 32, 10, seed=0), flow=flow)
    before = {name: p.clone() for name, p in model.named_parameters()}
    result = retain.learn(model, [tasks.digits()], methods.VCL(beta=0.1), epochs=15, lr=0.005)
    assert float(result.accuracy[-1][-1]) > 0.85
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_vcl_goes_on_from_the_gaussian_of_the_draws():
    stream = tasks.split(tasks.digits(), 2, scenario="task")
    torch.manual_seed(0)
    model, method = bayesian(models.MLP(64, 16, 10, seed=0), flow="coupling"), methods.VCL(beta=0.01, strength=30)
    result = retain.learn(model, stream, method, epochs=5, lr=0.01)
    assert float(result.accuracy[2].min()) > 0.75
    layer = model.layers.fc1
    mean, logvar = method.posterior["layers.fc1.weight"]
    with torch.no_grad():
        z = layer.factors(20_000)
        expected = layer.weight_logvar.exp() + z.var(0) * layer.weight.square()
        assert float(((mean - z.mean(0) * layer.weight).abs() / expected.sqrt()).max()) < 0.7  # 100 draws: a tenth of a deviation each
        assert float((logvar - expected.log()).abs().mean()) < 0.2
    assert torch.equal(method.posterior["layers.fc1.bias"][0], layer.bias)
    method.begin(model, stream[0])
    assert torch.equal(layer.prior("weight").mean, mean)


def test_pruned_weights_are_gone_whatever_the_factors():
    model = nn.Sequential(small(6, 4))
    assert signal_to_noise(model)["0.weight"].shape == (4, 6)
    made = prune(model, 0.5)
    gone = made[0].weight == 0
    assert int(gone.sum()) == 12 and number(made[0].draw("weight")[gone].abs().max()) < 1e-10


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(5, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.table(x))


BAD = {
    "kind": (lambda: MultiplicativeLinear(3, 2, flow="cupling"), r"flow: expected one of coupling, zuko.*Did you mean 'coupling'"),
    "kind, converted": (lambda: bayesian(nn.Linear(3, 2), flow="plannar"), "flow: expected one of planar.*Did you mean 'planar'"),
    "none": (lambda: bayesian(nn.Linear(3, 2), flow=None), "flow: expected"),
    "function": (lambda: MultiplicativeLinear(3, 2, flow=lambda size: nn.Linear(size, size)), "flow: expected a function that returns a Flow.*Linear"),
    "steps": (lambda: MultiplicativeLinear(3, 2, num_flows=-1), "num_flows"),
    "steps, converted": (lambda: bayesian(nn.Linear(3, 2), flow="coupling", num_flows=1.5), "num_flows"),
    "planar steps": (lambda: bayesian(nn.Linear(3, 2), num_flows=-1), "num_flows"),
    "variance": (lambda: MultiplicativeLinear(3, 2, z_logvar=math.inf), "z_logvar"),
    "weights' variance": (lambda: MultiplicativeLinear(3, 2, logvar=math.nan), "logvar"),
    "size": (lambda: CouplingFlows(0), "size"),
    "count": (lambda: CouplingFlows(3, -1), "count"),
    "hidden": (lambda: CouplingFlows(3, 2, 0), "hidden"),
    "guess": (lambda: Auxiliary(CouplingFlows(3), 0), "size"),
    "convolution": (lambda: bayesian(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2)), flow="coupling"), "module '0': expected Linear.*Conv2d.*planar"),
    "embedding": (lambda: bayesian(Words(), flow="coupling"), "module 'table': expected Linear.*Embedding"),
    "as a prior": (lambda: set_prior(bayesian(nn.Linear(3, 2)), bayesian(nn.Linear(3, 2), flow="coupling")), "Gaussian posterior, found one with flows"),
    "as a belief": (lambda: from_posterior(bayesian(models.MLP(3, 2, 2), flow="coupling"), n=10), "a Gaussian, found one with flows"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_said(case):
    call, match = BAD[case]
    with pytest.raises(InputError, match=match):
        call()


def test_what_does_not_fit_zuko_is_said():
    pytest.importorskip("zuko")
    for call, match in (
        (lambda: ZukoFlows(3, kind="NISE"), "Did you mean 'NICE'"),
        (lambda: ZukoFlows(3, 0), "count"),
        (lambda: ZukoFlows(3, hidden=0), "hidden"),
    ):
        with pytest.raises(InputError, match=match):
            call()


def test_other_layers_can_be_kept_plain():
    made = bayesian(Words(), flow="coupling", keep="table")
    assert type(made.table) is nn.Embedding and type(made.out) is MultiplicativeLinear
    assert made(torch.tensor([[1, 2], [3, 4]])).shape == (2, 2, 2)


def test_planar_flows_are_as_they_were():
    assert len(bayesian(nn.Linear(3, 2)).flows) == 0
    planar = bayesian(nn.Linear(3, 2), num_flows=3, estimator="weights")
    assert type(planar) is BayesianLinear and planar.flow("bias").count == 3
    with pytest.raises(InputError, match="estimator"), sampling(planar, "local"):
        pass
