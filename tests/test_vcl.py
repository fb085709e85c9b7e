"""Variational continual learning against exact posteriors, the Kalman filter, elastic weight consolidation and slow loops."""

import copy
import math

import pytest
import torch
from conftest import Memory
from torch import nn

import retain
from retain import methods, models, tasks
from retain.beliefs import Belief, Full
from retain.errors import InputError, RetainError
from retain.likelihoods import Bernoulli, Categorical, Gaussian, Tokens
from retain.methods import VCL, Blundell, NoDivergence, OverBatches, PerSample, WarmUp, Weighting
from retain.models.bayesian import LOGVAR, GaussianPrior, ScaleMixture, bayesian, bayesian_layers, kl, sampling
from retain.tasks import Task
from retain.tasks.batch import Batch, apply
from retain.training.checkpoints import read_tree, write_tree

SIGMA, DELTA = 0.5, 2.0  # noise of the regression and precision of its prior
MEAN_FIELD, EXACT = [0.9306, -1.2382], [0.9401, -1.2732]  # of three tasks whose weights covary


def regression(seed, *, aligned=False, n=12):
    """A task in which y = X w + noise; aligned: the columns of X are orthogonal, so that X'X is diagonal."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 2, generator=g).double()
    X[:, 1] += (1 if seed % 2 else -1) * 0.8 * X[:, 0]
    if aligned:
        X = torch.linalg.qr(X)[0] * torch.tensor([3.0, 2.0])
    y = X @ torch.tensor([[1.0], [-1.2]]).double() + SIGMA * torch.randn(n, 1, generator=g).double()
    return Task((X, y), likelihood=Gaussian(SIGMA), id=f"line-{seed}")


def batch_posterior(learned):
    """Mean and precision of all data at once."""
    X, y = (torch.cat([getattr(task.data, part) for task in learned]) for part in ("inputs", "targets"))
    precision = DELTA * torch.eye(2).double() + X.T @ X / SIGMA**2
    return torch.linalg.solve(precision, X.T @ y / SIGMA**2).T, precision


def kalman(learned):
    """The same, sample by sample, in covariances."""
    mean, covariance = torch.zeros(2).double(), torch.eye(2).double() / DELTA
    for task in learned:
        for x, y in zip(task.data.inputs, task.data.targets, strict=True):
            gain = covariance @ x / (x @ covariance @ x + SIGMA**2)
            mean = mean + gain * (y - x @ mean)
            covariance = covariance - torch.outer(gain, x @ covariance)
    return mean[None], covariance


def line():
    return nn.Linear(2, 1, bias=False).double()


@pytest.fixture
def nodes(monkeypatch):
    """Instead of drawing noise, put it at the nodes of a cubature, so that an expectation over it is a sum: exact for cubics."""

    def put(outputs):
        values = math.sqrt(outputs) * torch.cat([torch.eye(outputs), -torch.eye(outputs)]).double()
        monkeypatch.setattr(torch, "randn_like", lambda t: values.repeat_interleave(len(t) // len(values), 0))
        return len(values)

    return put


def converge(method, model, task, times, value):
    """Down to the minimum of a method's own objective: its gradients join those of the likelihood as in any loop."""
    method.begin(model, task)
    inputs, targets = task.data.inputs.repeat(times, 1), task.data.targets.repeat(times, *[1] * (task.data.targets.ndim - 1))
    batch = Batch(inputs, targets, task)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=400, tolerance_grad=1e-11, tolerance_change=1e-15, line_search_fn="strong_wolfe")
    model.train()

    def objective():
        optimizer.zero_grad()
        loss = task.likelihood.mean_nll(apply(model, batch), targets)
        loss.backward()
        method.before_step(model, optimizer)
        return loss.detach() + value()

    for _ in range(3):
        optimizer.step(objective)
    method.consolidate(model, task)


def converge_vcl(method, model, task, times):
    converge(method, model, task, times, lambda: method.beta / task.n * kl(model).detach())


# --- conjugate tasks


@pytest.mark.parametrize("aligned", [False, True])
def test_full_beliefs_in_sequence_are_the_batch_posterior_and_the_kalman_filter(aligned):
    learned = [regression(seed, aligned=aligned) for seed in (1, 2, 3)]
    belief = Belief({"weight": torch.zeros(1, 2).double()}, Full(DELTA * torch.eye(2).double(), {"weight": torch.Size([1, 2])}), n=1, prior=1e-13)
    model = line()
    for task in learned:
        found = retain.fisher(model, task, structure="full")
        with torch.no_grad():
            model.weight.copy_(belief.centre["weight"])
        slope = torch.autograd.grad(task.n * task.likelihood.mean_nll(model(task.data.inputs), task.data.targets), model.weight)[0]
        pulled = belief.n * belief.precision.matrix + task.n * found.matrix
        theta = model.weight.detach() - torch.linalg.solve(pulled, slope[0])  # one Newton step is exact
        belief = belief.update({"weight": theta}, found, task.n)
    mean, precision = batch_posterior(learned)
    assert torch.allclose(belief.centre["weight"], mean, atol=1e-8) and torch.allclose(belief.n * belief.precision.matrix, precision, rtol=1e-8)
    filtered, covariance = kalman(learned)
    assert torch.allclose(belief.centre["weight"], filtered, atol=1e-8)
    assert torch.allclose(belief.variance()["weight"].flatten(), covariance.diagonal(), rtol=1e-8)


@pytest.mark.parametrize("aligned", [True, False])
def test_mean_field_in_sequence_is_exact_where_the_weights_do_not_covary_and_only_there(aligned, nodes):
    learned = [regression(seed, aligned=aligned) for seed in (1, 2, 3)]
    method = VCL(GaussianPrior(std=DELTA**-0.5), logvar=-2)
    model = method.prepare(line())
    # by hand: every task's posterior has the exact mean under its prior, and the diagonal of the precision
    mean, precision = torch.zeros(2).double(), torch.full((2,), DELTA).double()
    for task in learned:
        converge_vcl(method, model, task, nodes(1))
        X, y = task.data.inputs, task.data.targets
        gram = X.T @ X / SIGMA**2
        mean = torch.linalg.solve(precision.diag() + gram, precision * mean + (X.T @ y)[:, 0] / SIGMA**2)
        precision = precision + gram.diagonal()
        found, logvar = method.posterior["weight"]
        assert torch.allclose(found[0], mean, atol=1e-6) and torch.allclose((-logvar[0]).exp(), precision, rtol=1e-5)
    exact, joint = batch_posterior(learned)
    if aligned:
        assert torch.allclose(joint - joint.diagonal().diag(), torch.zeros(2, 2).double(), atol=1e-9)
        assert torch.allclose(found, exact, atol=1e-6) and torch.allclose((-logvar[0]).exp(), joint.diagonal(), rtol=1e-5)
        return
    assert float((found - exact).abs().max()) > 0.02  # what the mean field forgets of how the weights covary
    assert found[0].tolist() == pytest.approx(MEAN_FIELD, abs=1e-3) and exact[0].tolist() == pytest.approx(EXACT, abs=1e-3)
    first, one = batch_posterior(learned[:1])
    assert torch.allclose(one.diagonal(), DELTA + learned[0].data.inputs.square().sum(0) / SIGMA**2)  # of one task it is the exact mean
    assert not torch.allclose(first, exact, atol=0.02)


def test_learning_with_drawn_noise_ends_near_the_fixed_point():
    """The same regression through ``learn``, with the noise that a user has."""
    stream = tasks.sequence(regression(1), regression(2), regression(3))
    method = VCL(GaussianPrior(std=DELTA**-0.5), logvar=-3, answers=0)
    retain.learn(line(), stream, method, epochs=400, batch_size=12, lr=0.02, schedule="cosine", precision="float64", score_every=400)
    assert method.posterior["weight"][0][0].tolist() == pytest.approx(MEAN_FIELD, abs=0.01)


# --- towards elastic weight consolidation


def overlapping(seed, n=40):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    inputs = torch.randn(3, 2, generator=g)[labels] + 1.2 * torch.randn(n, 2, generator=g)
    return Task((inputs.double(), labels), id=f"overlapping-{seed}")


def softmax_regression():
    model = nn.Linear(2, 3).double()
    for p in model.parameters():
        nn.init.zeros_(p)
    return model


@pytest.mark.parametrize("ewc", [lambda: methods.EWC(1.0), lambda: methods.OnlineEWC(1.0, decay=1.0)])
def test_cold_it_becomes_elastic_weight_consolidation(ewc, nodes):
    """With beta to 0 and the first prior's variance times beta: the same weights, and beta / sigma^2 less the prior's part is n times the Fisher."""
    stream, names, wide = [overlapping(1), overlapping(2)], ("weight", "bias"), 1000.0
    held, net, weights, fishers = ewc(), softmax_regression(), [], []
    for task in stream:
        converge(held, net, task, 1, lambda task=task: held.energy(net) / task.n)
        weights.append(torch.cat([getattr(net, name).detach().flatten() for name in names]))
        fishers.append(torch.cat([held.belief.n * held.belief.precision.diagonal()[name].flatten() for name in names]))
    errors = {}
    for beta in (0.3, 0.03):
        method = VCL(GaussianPrior(std=wide * beta**0.5), beta=beta, logvar=math.log(beta / 10))
        model = method.prepare(softmax_regression())
        for k, task in enumerate(stream):
            converge_vcl(method, model, task, nodes(3))
            mean = torch.cat([method.posterior[name][0].flatten() for name in names])
            precision = torch.cat([beta * (-method.posterior[name][1]).exp().flatten() for name in names]) - wide**-2
            errors[beta, k] = float((mean - weights[k]).abs().max()), float((precision / fishers[k] - 1).abs().max())
    for k in (0, 1):
        for hot, cold in zip(errors[0.3, k], errors[0.03, k], strict=True):
            assert cold < hot / 5 and cold < 0.01
    assert float((weights[1] - weights[0]).abs().max()) > 0.3  # the second task pulls


# --- heads


@pytest.fixture
def four(blobs):
    """Four classes in two tasks."""
    return lambda scenario, parts=2: tasks.split(blobs(3, n=160, classes=2 * parts), parts, scenario=scenario)


def network(classes=4, seed=0):
    return models.MLP(4, 6, classes, seed=seed)


def parts(layer):
    """Mean, log-variance, and the prior's mean and log-variance of weight and bias, by unit."""
    found = {}
    for part, (mean, logvar) in layer.posterior.items():
        prior = layer.prior(part)
        for name, value in {"mean": mean, "logvar": logvar, "centre": prior.mean, "width": -prior.precision.log()}.items():
            found[f"{part} {name}"] = value.detach().expand_as(mean).clone()
    return found


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize("prior", [GaussianPrior(0.1, 0.3), ScaleMixture(0.5, 0.5, 0.1)])
def test_units_that_nobody_asked_for_keep_their_start_and_their_prior(scenario, prior, four):
    stream = four(scenario)
    method = VCL(prior, logvar=-6)
    model = method.prepare(network())
    head, start = model.layers.fc2, {part: [v.detach().clone() for v in pair] for part, pair in model.layers.fc2.posterior.items()}
    options = {"epochs": 3, "batch_size": 16, "lr": 0.02}
    first = retain.learn(model, stream[:1], method, watch=stream, **options)
    for part, pair in head.posterior.items():
        for now, then in zip(pair, start[part], strict=True):
            assert torch.equal(now[2:], then[2:]) and bool((now[:2] != then[:2]).all())
    assert method.seen.tolist() == [True, True, False, False]
    learned = {name: (mean.clone(), logvar.clone()) for name, (mean, logvar) in method.posterior.items()}
    method.begin(model, stream[1])
    moments = prior.as_gaussian()
    for part in ("weight", "bias"):
        mean, logvar = learned[f"layers.fc2.{part}"]
        centre, width = parts(head)[f"{part} centre"], parts(head)[f"{part} width"]
        assert torch.equal(centre[:2], mean[:2]) and torch.allclose(width[:2], logvar[:2])
        assert torch.allclose(centre[2:], moments.mean.float()) and torch.allclose(width[2:], -moments.precision.log())
        mean, logvar = learned[f"layers.fc1.{part}"]
        assert torch.equal(parts(model.layers.fc1)[f"{part} centre"], mean) and torch.allclose(parts(model.layers.fc1)[f"{part} width"], logvar)
    assert method._active.tolist() == ([False, False, True, True] if scenario == "task" else [True] * 4)
    retain.learn(model, stream, method, after=first, **options)
    for part in ("weight", "bias"):
        same = torch.equal(learned[f"layers.fc2.{part}"][0][:2], head.posterior[part][0][:2])
        assert same == (scenario == "task") and not torch.equal(start[part][0][2:], head.posterior[part][0][2:])
    assert method.seen.all()
    method.begin(model, stream[1])
    assert all(torch.equal(parts(head)[f"{part} centre"], head.posterior[part][0].detach()) for part in ("weight", "bias"))


def test_three_tasks_unseen_units_keep_the_first_prior_until_they_are_asked_for(four):
    stream = four("task", 3)
    method = VCL(GaussianPrior(std=0.3), logvar=-6)
    model = method.prepare(network(6))
    for task in (stream[0], stream[1]):
        method.begin(model, task)
        with torch.no_grad():
            model.layers.fc2.weight[list(task.active)] += 1
        method.consolidate(model, task)
    method.begin(model, stream[2])
    found = parts(model.layers.fc2)
    assert not found["weight centre"][4:].any() and torch.allclose(found["weight width"][4:], torch.tensor(2 * math.log(0.3)))
    assert torch.equal(found["weight centre"][:4], model.layers.fc2.weight.detach()[:4]) and torch.allclose(found["weight width"][:4], torch.tensor(-6.0))


def test_the_divergence_of_units_that_do_not_compete_is_left_out(four):
    stream, method = four("task"), VCL(GaussianPrior(std=0.3), logvar=-6)
    model = method.prepare(network())
    method.begin(model, stream[0])
    rows = {model.layers.fc2: torch.tensor([True, True, False, False])}
    assert method.divergence(model) == method.report(model)["kl"] == pytest.approx(float(kl(model, rows=rows).detach()))
    assert method.divergence(model) < float(kl(model).detach()) - 1
    method.before_step(model, torch.optim.SGD(model.parameters(), lr=1))
    assert not model.layers.fc2.weight.grad[2:].any() and bool(model.layers.fc2.weight_logvar.grad[:2].all()) and bool(model.layers.fc1.weight.grad.all())
    method.begin(model, four("domain")[0])
    assert method.divergence(model) == pytest.approx(float(kl(model).detach()))  # all compete


def test_the_divergence_of_a_copy_is_that_of_the_model(four):
    """Units that do not compete are left out of any model's, not of that at hand alone."""
    method = VCL(GaussianPrior(std=0.3), logvar=-6)
    model = method.prepare(network())
    method.begin(model, four("task")[0])
    assert method.divergence(copy.deepcopy(model)) == method.divergence(model) < float(kl(model).detach()) - 1


def test_a_last_layer_that_is_not_the_answer_is_no_head(four):
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.inside = nn.Linear(6, 4), nn.Linear(4, 6)

        def forward(self, x):
            return self.out(self.inside(x).relu())

    method = VCL()
    model = method.prepare(Turned())
    method.begin(model, four("task")[0])
    assert method.divergence(model) == pytest.approx(float(kl(model).detach()))
    method.consolidate(model, four("task")[0])
    assert method.seen is None


# --- from task to task


def test_the_posterior_starts_at_its_prior(blobs, net):
    method = VCL(GaussianPrior(std=0.3), logvar=-6)
    model = method.prepare(net())
    assert method.posterior is None and float(kl(model).detach()) > 1
    method.begin(model, blobs(1))
    assert float(kl(model).detach()) > 1
    method.consolidate(model, blobs(1))
    assert list(method.posterior) == [name for name, _ in model.named_parameters() if not name.endswith(LOGVAR)]
    method.begin(model, blobs(2))
    assert float(kl(model).detach()) == pytest.approx(0, abs=1e-4) and method.divergence(model) == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        model[0].weight[0, 0] += 0.1
    assert float(kl(model).detach()) == pytest.approx(0.5 * 0.1**2 * math.exp(6), rel=1e-3)


def test_strength_is_of_the_posterior_alone_and_beta_of_all(blobs, net):
    method = VCL(GaussianPrior(std=0.3), logvar=-6, beta=0.5, strength=7.0)
    model, task = method.prepare(net()).double(), blobs(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for strength in (1.0, 7.0):
        method.begin(model, task)
        with torch.no_grad():
            model[0].weight += 0.1
        model.zero_grad()
        (0.5 / task.n * kl(model, strength=strength)).backward()
        expected = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        method.before_step(model, optimizer)
        assert all(torch.allclose(p.grad, value, rtol=1e-9, atol=1e-15) for p, value in zip(model.parameters(), expected, strict=True))
        method.consolidate(model, task)


def test_log_variances_have_a_pace_of_their_own(net):
    model = VCL().prepare(net())
    slow, fast = VCL(pace=5).groups(model, 0.01)
    assert (slow["lr"], fast["lr"]) == (0.01, 0.05) and len(slow["params"]) == len(fast["params"]) == 4
    assert all(any(p is logvar for p in fast["params"]) for layer in bayesian_layers(model).values() for _, logvar in layer.posterior.values())
    for layer in bayesian_layers(model).values():
        for _, logvar in layer.posterior.values():
            logvar.requires_grad_(False)
    assert [len(group["params"]) for group in VCL().groups(model, 0.01)] == [4]


def test_a_posterior_of_another_shape_is_refused_by_name(blobs, net):
    method = VCL()
    method.consolidate(method.prepare(net()), blobs(1))
    with pytest.raises(InputError, match=r"prior of '0.weight': expected a posterior of shape \[8, 5\], found shape \[8, 4\]\. Was the model rebuilt"):
        method.begin(method.prepare(net(width=5)), blobs(2, width=5))
    with pytest.raises(InputError, match=r"prior of '2.weight': expected a posterior of shape \[5, 8\], found shape \[3, 8\]"):
        method.begin(method.prepare(net(classes=5)), blobs(2))
    with pytest.raises(InputError, match=r"prior of 'layers.fc1.weight': expected a posterior of shape \[6, 4\], found none"):
        method.begin(method.prepare(network(3)), blobs(2))


def test_flows_are_replaced_by_the_gaussian_of_their_draws(blobs):
    method = VCL(estimator="weights", num_flows=2, logvar=-2)
    model = method.prepare(nn.Linear(4, 3))
    with torch.no_grad():
        for p in model.flows.parameters():
            p.normal_()
        draws = torch.stack([model.draw("weight") for _ in range(5000)])
    method.consolidate(model, blobs(1))
    mean, logvar = method.posterior["weight"]
    assert bool(((mean - draws.mean(0)).abs() < 5 * draws.std(0) / 10).all())
    error = ((draws - draws.mean(0)).pow(4).mean(0) / draws.var(0).square() - 1).sqrt() / 10  # of the logarithm of the variance of 100
    assert bool(((logvar - draws.var(0).log()).abs() < 5 * error).all())
    assert not torch.allclose(mean, model.weight, atol=0.1) and not torch.allclose(logvar, model.weight_logvar, atol=0.5)
    method.begin(model, blobs(2))
    assert torch.equal(model.prior("weight").mean, mean) and math.isfinite(method.divergence(model))


# --- weighting


@pytest.mark.parametrize(
    ("weighting", "batches", "mean"),
    [
        (PerSample(), 7, 1),
        (Blundell(7), 7, 1),
        (Blundell(1), 1, 1),
        (Blundell(2000), 2000, 1),
        (NoDivergence(), 7, 0),
        (OverBatches(32), 7, 32),
        (WarmUp(7), 7, 3 / 7),
        (WarmUp(1), 7, 6 / 7),
    ],
)
def test_what_a_scheme_really_weighs(weighting, batches, mean):
    factors = [weighting.factor(step) for step in range(batches)]
    assert sum(factors) / batches == pytest.approx(mean, rel=1e-12) and min(factors) >= 0
    if not isinstance(weighting, WarmUp):
        assert [weighting.factor(step) for step in range(batches, 2 * batches)] == factors
    else:
        assert [weighting.factor(step) for step in (batches, 10**9)] == [1.0, 1.0] and factors == sorted(factors)


def test_blundell_halves_from_batch_to_batch():
    factors = [Blundell(4).factor(step) for step in range(4)]
    assert factors == pytest.approx([4 * 2 ** (4 - i) / (2**4 - 1) for i in (1, 2, 3, 4)])


class Spy(Weighting):
    def __init__(self):
        self.steps = []

    def factor(self, step):
        self.steps.append(step)
        return 1.0


def test_steps_count_from_the_start_of_each_task(blobs, net):
    spy = Spy()
    retain.learn(net(), tasks.sequence(blobs(1), blobs(2)), VCL(weighting=spy), epochs=2, batch_size=16)
    assert spy.steps == 2 * list(range(8))


@pytest.mark.parametrize(("weighting", "factor"), [(NoDivergence(), 0.0), (OverBatches(16), 16.0), (WarmUp(4), 0.5), (PerSample(), 1.0)])
def test_the_factor_is_that_of_the_gradient(weighting, factor, blobs, net):
    method = VCL(GaussianPrior(std=0.3), logvar=-4, beta=2.0, weighting=weighting)
    model, task = method.prepare(net()).double(), blobs(1)
    method.begin(model, task)
    method._steps = 2
    (factor * 2.0 / task.n * kl(model)).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    method.before_step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    if factor:
        assert all(torch.allclose(p.grad, value, rtol=1e-9, atol=1e-15) for p, value in zip(model.parameters(), expected, strict=True))
    else:
        assert all(p.grad is None for p in model.parameters())


def test_without_a_divergence_training_is_maximum_likelihood_with_noise(blobs, net):
    """With next to no noise it is plain training; with the divergence it is not."""
    plain = retain.learn(net(), [blobs(1)], epochs=3, batch_size=16, lr=0.02)
    for weighting, same in ((NoDivergence(), True), (PerSample(), False)):
        method = VCL(GaussianPrior(std=0.1), logvar=-40, weighting=weighting)
        noisy = retain.learn(net(), [blobs(1)], method, epochs=3, batch_size=16, lr=0.02).model
        assert same == all(torch.allclose(p, noisy.get_parameter(name), atol=1e-4) for name, p in plain.model.named_parameters())


@pytest.mark.parametrize("after", [1, 3, 5])
@pytest.mark.parametrize("scenario", ["domain", "task", "class"])
def test_broken_off_and_gone_on_is_the_same(after, scenario, four, tmp_path):
    """With a count of steps that matters, a prior that changes its kind, units that wait, and several draws."""
    stream = four(scenario)
    make = lambda: VCL(ScaleMixture(0.5, 0.5, 0.1), logvar=-6, weighting=WarmUp(30), samples=2)  # noqa: E731
    whole = retain.learn(network(), stream, make(), epochs=3, batch_size=16, lr=0.02)
    memory = Memory(after)
    with pytest.raises(KeyboardInterrupt):
        retain.learn(network(), stream, make(), epochs=3, batch_size=16, lr=0.02, recorder=memory)
    write_tree(tmp_path / "state.safetensors", memory.state)
    memory.state, memory.after = read_tree(tmp_path / "state.safetensors"), 0
    assert memory.state["method"]["steps"] == 3 * {1: 1, 3: 3, 5: 2}[after]
    again = retain.learn(network(), stream, make(), epochs=3, batch_size=16, lr=0.02, recorder=memory)
    assert whole.rows == again.rows and whole.history == again.history
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True))
    assert str(whole.method.seen) == str(again.method.seen)


# --- draws


@pytest.mark.parametrize("samples", [2, 5])
def test_loss_and_penalty_are_the_mean_over_the_draws(samples, blobs, net):
    method, task = VCL(logvar=-1, samples=samples), blobs(1)
    model = method.prepare(net()).double().train()
    batch = Batch(task.data.inputs.double(), task.data.targets, task, weight=torch.rand(60).double())
    method.begin(model, task)

    def loss():
        return task.likelihood.mean_nll(apply(model, batch), batch.targets, batch.weight)

    torch.manual_seed(5)
    each = [loss() for _ in range(samples)]
    assert max(each) - min(each) > 1e-3
    torch.manual_seed(5)
    outputs = apply(model, batch)
    total = task.likelihood.mean_nll(outputs, batch.targets, batch.weight) + method.penalty(model, batch, outputs)
    assert float(total.detach()) == pytest.approx(float(sum(each).detach()) / samples)
    slopes = [torch.autograd.grad(value, list(model.parameters())) for value in (total, sum(each) / samples)]
    assert all(torch.allclose(a, b) for a, b in zip(*slopes, strict=True))
    model.eval()
    assert method.penalty(model, batch, outputs) is None and VCL().penalty(model.train(), batch, outputs) is None


def test_without_noise_there_is_no_penalty(blobs, net):
    method, task = VCL(logvar=-60, samples=4), blobs(1)
    model = method.prepare(net()).train()
    batch = next(task.batches(20))
    method.begin(model, task)
    assert float(method.penalty(model, batch, apply(model, batch)).detach()) == pytest.approx(0, abs=1e-6)


def test_more_draws_have_less_noise(blobs, net):
    task, spread = blobs(1), {}
    batch = next(task.batches(60))
    for samples in (1, 8):
        method = VCL(logvar=-1, samples=samples, estimator="weights")
        model = method.prepare(net()).train()
        method.begin(model, task)
        with torch.no_grad():
            found = []
            for _ in range(300):
                outputs = apply(model, batch)
                found.append(float(task.likelihood.mean_nll(outputs, batch.targets) + (method.penalty(model, batch, outputs) or 0)))
        spread[samples] = torch.tensor(found)
    assert float(spread[1].mean()) == pytest.approx(float(spread[8].mean()), abs=4 * float(spread[1].std()) / 300**0.5)
    assert float(spread[1].var() / spread[8].var()) == pytest.approx(8, rel=0.4)


@pytest.mark.parametrize("samples", [1, 3])
def test_two_lines_in_a_loop_of_ones_own(samples, blobs, net):
    """A step by hand: the likelihood's mean over the draws and the divergence, in one gradient."""
    method, task = VCL(GaussianPrior(std=0.3), logvar=-4, samples=samples), blobs(1)
    model = method.prepare(net()).double()
    optimizer = torch.optim.SGD(method.groups(model, 0.1))
    guard = retain.attach(method, model, optimizer, task)
    inputs, targets = task.data.inputs.double(), task.data.targets
    torch.manual_seed(1)
    (sum(nn.functional.cross_entropy(model(inputs), targets) for _ in range(samples)) / samples + kl(model) / task.n).backward()
    expected = [p.detach() - (1 if name.endswith(LOGVAR) else 0.1) * p.grad for name, p in model.named_parameters()]
    optimizer.zero_grad()
    torch.manual_seed(1)
    outputs = model(inputs)
    (nn.functional.cross_entropy(outputs, targets) + guard.penalty((inputs, targets), outputs)).backward()
    optimizer.step()
    assert all(torch.allclose(p, value) for p, value in zip(model.parameters(), expected, strict=True))
    guard.consolidate()
    assert all(torch.equal(mean, model.get_parameter(name)) for name, (mean, _) in method.posterior.items())


def test_a_loop_of_ones_own_learns_and_remembers(blobs, net):
    method = VCL(GaussianPrior(std=0.5), logvar=-8, samples=2)
    model = method.prepare(net())
    for task in (blobs(1), blobs(2)):
        optimizer = torch.optim.Adam(method.groups(model, 0.01))
        guard = retain.attach(method, model, optimizer, task)
        for _ in range(20):
            for batch in task.batches(16):
                optimizer.zero_grad()
                outputs = model(batch.inputs)
                (task.likelihood.mean_nll(outputs, batch.targets) + guard.penalty(batch, outputs)).backward()
                optimizer.step()
        guard.consolidate()
        assert method._steps == 80 and retain.evaluate(model, task, method).score > 0.8
    assert method.divergence(model) > 1


def test_forgotten_prepare_is_said(blobs, net):
    method, plain = VCL(), net()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"model: expected a model with Bayesian layers, found Sequential with none\. Make one with retain\.models\.bayesian"):
        retain.attach(method, plain, optimizer, blobs(1))
    with pytest.raises(InputError, match="Bayesian"):
        method.consolidate(plain, blobs(1))
    with pytest.raises(RetainError, match=r"Make it after method\.prepare\(model\)"):
        retain.attach(method, method.prepare(plain), optimizer, blobs(1))


def test_prepare_leaves_what_is_bayesian_and_passes_its_settings_on():
    method = VCL(GaussianPrior(std=0.2), logvar=-3, estimator="weights", num_flows=2, keep="LayerNorm")
    model = method.prepare(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)))
    assert method.prepare(model) is model and type(model[1]) is nn.LayerNorm and list(bayesian_layers(model)) == ["0", "2"]
    layer = model[2]
    assert layer.estimator == "weights" and list(layer.flows) == ["weight", "bias"] and layer.flow("bias").count == 2
    assert torch.allclose(layer.weight_logvar, torch.tensor(-3.0)) and float(layer.prior("bias").precision) == pytest.approx(25)


# --- answers


def test_the_answer_is_the_mean_of_the_draws_probabilities(blobs, net):
    task = blobs(1)
    batch = next(task.batches(20))
    model = bayesian(net(), logvar=-1).double()
    batch.inputs = batch.inputs.double()
    for draws in (1, 7):
        torch.manual_seed(2)
        found = VCL(answers=draws).predict(model.train(), batch)
        assert model.training
        torch.manual_seed(2)
        with sampling(model.eval()):
            mean = sum(model(batch.inputs).softmax(1) for _ in range(draws)) / draws
        assert torch.allclose(found.softmax(1), mean) and torch.allclose(
            task.likelihood.nll(found, batch.targets), -mean.log().gather(1, batch.targets[:, None])[:, 0]
        )
    assert torch.equal(VCL(answers=0).predict(model.train(), batch), model.eval()(batch.inputs))


def test_evaluation_draws_the_same_every_time(blobs, net):
    model, method = bayesian(net(), logvar=0.0), VCL()
    assert retain.evaluate(model, blobs(1), method) == retain.evaluate(model, blobs(1), method) != retain.evaluate(model, blobs(1))


def test_a_run_repeats_to_the_last_number_of_its_history(blobs, net):
    """The divergence of a scale mixture is a draw: it is to be the same at every run, and to leave the generator alone."""
    state = torch.get_rng_state()
    runs = []
    for k in range(2):
        torch.manual_seed(k)
        runs.append(retain.learn(net(), [blobs(1)], VCL(ScaleMixture(), logvar=-5), epochs=2).history)
    assert runs[0] == runs[1] and "kl" in runs[0][0]
    torch.set_rng_state(state)
    method = VCL(ScaleMixture(), logvar=-5)
    model = method.prepare(net())
    method.begin(model, blobs(1))
    assert method.report(model) == method.report(model) and torch.equal(state, torch.get_rng_state())


def test_masked_outputs_stay_masked(four):
    task = four("task")[1]
    batch = next(task.batches(10))
    model = bayesian(network(), logvar=-1)
    found = VCL(answers=5).predict(model, batch)
    assert torch.isfinite(task.likelihood.nll(found, batch.targets)).all() and not found.softmax(1)[:, :2].any()
    assert torch.allclose(found.softmax(1).sum(1), torch.ones(10))
    assert set(found.argmax(1).tolist()) <= {2, 3} and torch.isfinite(found).all()


def test_pooled_classes_are_the_mean_of_probabilities():
    outputs = 5 * torch.randn(6, 4, 3).double()
    found = Categorical().pool(outputs)
    for row in range(4):
        for c in range(3):
            mean = sum(math.exp(outputs[s, row, c]) / sum(math.exp(x) for x in outputs[s, row]) for s in range(6)) / 6
            assert float(found[row].softmax(0)[c]) == pytest.approx(mean) and float(Categorical().nll(found, torch.full((4,), c))[row]) == pytest.approx(
                -math.log(mean)
            )
    masked = outputs.float()
    masked[..., 1] = torch.finfo(torch.float32).min
    pooled = Categorical().pool(masked)
    assert torch.isfinite(pooled).all() and not pooled.softmax(1)[:, 1].any()
    assert torch.allclose(pooled.softmax(1)[:, [0, 2]], outputs.float()[..., [0, 2]].softmax(2).mean(0), atol=1e-6)


def test_pooled_tokens_are_the_mean_of_probabilities():
    outputs = 5 * torch.randn(6, 2, 3, 4).double()
    found = Tokens().pool(outputs)
    assert torch.allclose(found.softmax(-1), sum(draw.softmax(-1) for draw in outputs) / 6)
    targets = torch.tensor([[1, -100, 2], [0, 3, -100]])
    by_hand = [sum(-math.log(float(found.softmax(-1)[b, t, y])) for t, y in enumerate(row) if y != -100) for b, row in enumerate(targets.tolist())]
    assert Tokens().nll(found, targets).tolist() == pytest.approx(by_hand)


def test_pooled_yes_and_no_are_the_mean_of_probabilities():
    outputs = 5 * torch.randn(6, 4, 3).double()
    found = Bernoulli().pool(outputs)
    for row in range(4):
        for d in range(3):
            assert float(found[row, d].sigmoid()) == pytest.approx(sum(1 / (1 + math.exp(-outputs[s, row, d])) for s in range(6)) / 6)
    sure = Bernoulli().pool(torch.tensor([[[300.0, -300.0]], [[300.0, 300.0]]]))
    assert sure[0].tolist() == pytest.approx([300, 0], abs=1e-3)


def test_pooled_regressions_are_the_mean():
    outputs = torch.randn(6, 4, 3).double()
    assert torch.allclose(Gaussian(0.5).pool(outputs), sum(outputs) / 6)
