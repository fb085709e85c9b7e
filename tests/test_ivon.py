"""IVON against its equations, exact posteriors, and its promises as an optimiser."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from retain import models, tasks
from retain.curvature import IVON
from retain.errors import InputError, RetainError
from retain.seeds import seeded
from retain.training import evaluate
from retain.training.optimizers import factor

SETTINGS = {"lr": 0.1, "ess": 50.0, "weight_decay": 0.02, "beta1": 0.8, "beta2": 0.7, "hess_init": 0.5}


def curved(theta):
    """A loss with cross terms and negative curvature."""
    return 0.5 * (theta**2).sum() + torch.sin(theta).prod() + (theta[0] * theta[-1] - 1) ** 4


def by_the_book(start, loss, noise, lr, ess, weight_decay, beta1, beta2, hess_init, prior=None, pull=None):
    """The slow, obvious algorithm 1: one weight after the other, in Python's numbers. ``noise[t][s]`` is for step t and sample s."""
    m, size = start.tolist(), len(start)
    m0, delta = ([0.0] * size, [weight_decay] * size) if prior is None else (prior[0].tolist(), [s / ess for s in prior[1].tolist()])
    g, h = [0.0] * size, [hess_init] * size
    for t, samples in enumerate(noise, 1):
        ghat, hhat = [0.0] * size, [0.0] * size
        for eps in samples:
            variance = [1 / (ess * (h[i] + delta[i])) for i in range(size)]
            draw = torch.tensor([m[i] + variance[i] ** 0.5 * float(eps[i]) for i in range(size)], dtype=torch.float64, requires_grad=True)
            found, theta = torch.autograd.grad(loss(draw), draw)[0].tolist(), draw.tolist()
            for i in range(size):
                ghat[i] += found[i] / len(samples)
                hhat[i] += found[i] * (theta[i] - m[i]) / variance[i] / len(samples)
        for i in range(size):
            g[i] = beta1 * g[i] + (1 - beta1) * ghat[i]
            h[i] = beta2 * h[i] + (1 - beta2) * hhat[i] + 0.5 * (1 - beta2) ** 2 * (h[i] - hhat[i]) ** 2 / (h[i] + delta[i])
            held = delta[i] * (1.0 if pull is None else float(pull[i]))
            m[i] -= lr * (g[i] / (1 - beta1**t) + held * (m[i] - m0[i])) / (h[i] + max(held, delta[i]))
    return torch.tensor(m, dtype=torch.float64), torch.tensor([ess * (h[i] + delta[i]) for i in range(size)], dtype=torch.float64)


def start(size=5):
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def run(optimizer, p, steps, samples=1, loss=curved):
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(samples):
            with optimizer.sampled():
                loss(p).backward()
        optimizer.step()


@pytest.mark.parametrize("anchored", ["", "prior", "pulled"])
@pytest.mark.parametrize(("steps", "samples"), [(1, 1), (4, 1), (3, 3)])
def test_steps_are_those_of_the_equations(steps, samples, anchored):
    p = nn.Parameter(start())
    prior = (torch.linspace(-1, 1, 5, dtype=torch.float64), torch.linspace(0.5, 9, 5, dtype=torch.float64)) if anchored else None
    pull = torch.tensor([0.0, 0.5, 1.0, 3.0, 20.0]) if anchored == "pulled" else None
    with seeded(0, "noise"):
        noise = [[torch.randn(5, dtype=torch.float64) for _ in range(samples)] for _ in range(steps)]
    optimizer = IVON([p], **SETTINGS, prior=[prior] if anchored else None)
    if pull is not None:
        optimizer.set_prior([prior], pull=[pull])
    with seeded(0, "noise"):
        run(optimizer, p, steps, samples)
    expected = by_the_book(start(), curved, noise, **SETTINGS, prior=prior, pull=pull)
    for found, right in zip(optimizer.posterior()[0], expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)


def regression(seed, n, width):
    """Columns that are orthogonal and of different lengths, so that X'X is diagonal; always the same line, with noise of variance 1."""
    g = torch.Generator().manual_seed(seed)
    x = torch.linalg.qr(torch.randn(n, width, generator=g, dtype=torch.float64))[0] * torch.linspace(0.5, 2, width) * n**0.5
    return x, x @ torch.linspace(-2, 2, width, dtype=torch.float64) + torch.randn(n, generator=g, dtype=torch.float64)


def long(optimizer, p, x, y):
    """Full batches: find the minimum, then average over ever more steps, with a learning rate that falls to 0."""
    group = optimizer.param_groups[0]
    for t in range(3000):
        group["beta2"] = 0.99 if t < 300 else 1 - 1 / (t - 200)
        group["lr"] = 0.1 if t < 300 else 0.1 * (3000 - t) / 2700
        optimizer.zero_grad()
        with optimizer.sampled():
            (0.5 * (y - x @ p).square().mean()).backward()
        optimizer.step()


def close(posterior, mean, precision):
    """The mean within a fifth of a standard deviation, every precision within 15 % (40 weights, s.d. 3 to 4 %), their average within 3 %."""
    off, ratio = (posterior[0][0] - mean).abs() * precision.sqrt(), posterior[0][1] / precision
    assert off.max() < 0.2
    assert (ratio - 1).abs().max() < 0.15 and abs(float(ratio.mean()) - 1) < 0.03


def test_linear_regression_has_its_exact_posterior_and_so_has_what_follows():
    width, decay = 40, 0.05
    (x1, y1), (x2, y2) = regression(1, 200, width), regression(2, 90, width)
    p = nn.Parameter(torch.zeros(width, dtype=torch.float64))
    optimizer = IVON([p], 0.1, ess=200, weight_decay=decay)
    long(optimizer, p, x1, y1)
    s1 = x1.square().sum(0) + 200 * decay
    m1 = x1.T @ y1 / s1
    close(optimizer.posterior(), m1, s1)

    optimizer.set_prior([(m1, s1)], ess=90)
    assert not optimizer.posterior()[0][1].isclose(s1 + x2.square().sum(0), rtol=0.15).all()
    long(optimizer, p, x2, y2)
    s2 = s1 + x2.square().sum(0)
    close(optimizer.posterior(), (s1 * m1 + x2.T @ y2) / s2, s2)


def test_precision_stays_positive_where_the_loss_curves_down():
    p = nn.Parameter(torch.zeros(50))
    optimizer = IVON([p], 1e-6, ess=100, weight_decay=0.1, beta2=0.9)
    run(optimizer, p, 500, loss=lambda theta: -2 * (theta**2).sum())
    assert (optimizer.posterior()[0][1] > 0).all() and p.isfinite().all()


def test_draws_come_from_the_posterior():
    p = nn.Parameter(torch.full((20000,), 3.0))
    optimizer = IVON([p], ess=4.0, weight_decay=1.0, hess_init=3.0)
    with optimizer.sampled():
        draw = p.detach().clone()
    mean, precision = optimizer.posterior()[0]
    assert torch.equal(mean, torch.full_like(mean, 3.0)) and torch.equal(precision, torch.full_like(mean, 16.0))
    assert abs(float(draw.mean()) - 3) < 0.01 and abs(float(draw.std()) - 0.25) < 0.005
    with seeded(3, "noise"), optimizer.sampled():
        first = p.detach().clone()
    with seeded(3, "noise"), optimizer.sampled():
        assert torch.equal(first, p)


def test_weights_come_back_exactly():
    p = nn.Parameter(torch.logspace(-6, 6, 1000))  # far smaller and far larger than the noise
    optimizer = IVON([p], ess=1.0)
    before = p.detach().clone()
    with optimizer.sampled():
        assert not torch.equal(p, before)
        p.square().sum().backward()
    assert torch.equal(p, before)
    kept = p.grad.clone()
    with pytest.raises(ZeroDivisionError), optimizer.sampled():
        p.sum().backward()
        raise ZeroDivisionError
    assert torch.equal(p, before) and torch.equal(p.grad, kept)
    with torch.no_grad(), optimizer.sampled():  # a draw to predict with is no sample for the step
        p.sum()
    assert torch.equal(p, before) and torch.equal(p.grad, kept)
    assert optimizer.param_groups[0]["samples"] == 1


def test_samples_that_failed_do_not_count():
    ends = []
    for fails in (False, True):
        p = nn.Parameter(start())
        optimizer = IVON([p], **SETTINGS)
        if fails:
            with seeded(9, "noise"), pytest.raises(ZeroDivisionError), optimizer.sampled():
                curved(p).backward()
                raise ZeroDivisionError
        with seeded(0, "noise"):
            run(optimizer, p, 3)
        ends.append(p.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("halfway", [False, True])
def test_state_survives_a_file_and_goes_on_alike(net, tmp_path, anchored, halfway):
    model = net()
    x, y = torch.randn(30, 4), torch.arange(30) % 3

    def work(optimizer, model, steps):
        for _ in range(steps):
            with optimizer.sampled():
                F.cross_entropy(model(x), y).backward()
            optimizer.step()

    optimizer = IVON(model.parameters(), ess=30, beta2=0.9)
    if anchored:
        optimizer.set_prior([(torch.randn_like(p), 1 + torch.rand_like(p)) for p in model.parameters()])
    work(optimizer, model, 3)
    if halfway:
        with optimizer.sampled():
            F.cross_entropy(model(x), y).backward()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    again = copy.deepcopy(model)
    for p in again.parameters():
        p.grad = torch.ones_like(p)  # of another time
    copies = [IVON(again.parameters(), ess=7), IVON(copy.deepcopy(model).parameters(), ess=7)]
    copies[0].load_state_dict(torch.load(tmp_path / "state.pt"))
    copies[1].load_state_dict(optimizer.state_dict())  # shares nothing with what follows
    ends = []
    for one, net_ in ((optimizer, model), (copies[0], again)):
        with seeded(5, "noise"):
            if halfway:
                one.step()
            work(one, net_, 4)
        ends.append(one.posterior())
    for (m1, s1), (m2, s2), (_, s3) in zip(*ends, copies[1].posterior(), strict=True):
        assert torch.equal(m1, m2) and torch.equal(s1, s2) and not torch.equal(s1, s3)


def test_several_samples_are_averaged_and_may_be_changed_before_the_step():
    p = nn.Parameter(start())
    optimizer = IVON([p], **SETTINGS)
    found = []
    for _ in range(3):
        optimizer.zero_grad()  # between blocks it takes nothing away
        with optimizer.sampled():
            curved(p).backward()
            found.append(p.grad.clone())
    torch.testing.assert_close(p.grad, sum(found) / 3)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert not optimizer.state[p]["momentum"].any()
    with pytest.raises(RetainError, match="found none"):
        optimizer.step()  # the samples are used up


def test_a_weight_that_one_sample_missed_counts_as_zero():
    p, q = nn.Parameter(start()), nn.Parameter(start())
    optimizer = IVON([p, q], **SETTINGS)
    for both in (False, True, False):
        with optimizer.sampled():
            (curved(p) + (3 * q.sum() if both else 0)).backward()
    torch.testing.assert_close(q.grad, torch.ones_like(q))


def test_parameters_without_gradient_are_left_alone():
    p, unused, frozen = nn.Parameter(start()), nn.Parameter(start()), nn.Parameter(start(), requires_grad=False)
    optimizer = IVON([{"params": [p, unused]}, {"params": [frozen]}], **SETTINGS)
    with optimizer.sampled():
        assert torch.equal(frozen, start())
        curved(p).backward()
    optimizer.step()
    assert unused.grad is None and frozen.grad is None
    assert torch.equal(unused, start()) and torch.equal(frozen, start()) and not torch.equal(p, start())
    untouched = torch.full_like(p, SETTINGS["ess"] * (SETTINGS["hess_init"] + SETTINGS["weight_decay"]))
    for (_, precision), same in zip(optimizer.posterior(), (False, True, True), strict=True):
        assert torch.allclose(precision, untouched) == same


def test_groups_have_settings_of_their_own():
    p, q = nn.Parameter(start()), nn.Parameter(start())
    other = {"lr": 0.01, "ess": 9.0, "weight_decay": 0.5, "beta1": 0.1, "beta2": 0.2, "hess_init": 2.0}
    optimizer = IVON([{"params": [p]}, {"params": [q], **other}], **SETTINGS)
    optimizer.add_param_group({"params": [unused := nn.Parameter(start())]})
    with seeded(0, "noise"):
        noise = [[torch.randn(5, dtype=torch.float64)], [torch.randn(5, dtype=torch.float64)]]
    with seeded(0, "noise"), optimizer.sampled():
        (curved(p) + curved(q)).backward()
    optimizer.step()
    for k, settings in enumerate((SETTINGS, other)):
        mean, precision = by_the_book(start(), curved, [noise[k]], **settings)
        torch.testing.assert_close(optimizer.posterior()[k], (mean, precision))
    assert torch.equal(unused, start())


def test_a_closure_is_called_at_sampled_weights():
    ends = []
    for closed in (False, True):
        p = nn.Parameter(start())
        optimizer = IVON([p], **SETTINGS)

        def loss(p=p, optimizer=optimizer):
            optimizer.zero_grad()
            value = curved(p)
            value.backward()
            return value.item()

        with seeded(0, "noise"):
            if closed:
                assert isinstance(optimizer.step(loss), float)
            else:
                run(optimizer, p, 1)
        ends.append(p.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0),
        ("lr", -1.0),
        ("ess", 0),
        ("weight_decay", 0.0),
        ("hess_init", -0.1),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("beta2", "high"),
        ("ess", float("nan")),
    ],
)
def test_bad_settings(name, value):
    with pytest.raises(InputError, match=f"^{name}: expected"):
        IVON([nn.Parameter(torch.zeros(2))], **{**SETTINGS, name: value})
    optimizer = IVON([nn.Parameter(torch.zeros(2))], **SETTINGS)
    with pytest.raises(InputError, match=name):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], name: value})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    "prior",
    [
        [],
        [(torch.zeros(3), torch.ones(2))],
        [(torch.zeros(2), torch.ones(()))],
        [(torch.zeros(2), torch.tensor([1.0, 0.0]))],
        [(torch.full((2,), float("nan")), torch.ones(2))],
    ],
)
def test_bad_priors(prior):
    with pytest.raises(InputError, match="prior"):
        IVON([nn.Parameter(torch.zeros(2))], ess=10, prior=prior)


@pytest.mark.parametrize("pull", [[], [torch.ones(3)], [torch.tensor([1.0, -1.0])], [torch.tensor([1.0, float("inf")])]])
def test_bad_pulls(pull):
    optimizer = IVON([nn.Parameter(torch.zeros(2))], ess=10)
    with pytest.raises(InputError, match="pull"):
        optimizer.set_prior(optimizer.posterior(), pull=pull)


def test_what_belongs_outside_or_inside_a_block():
    p = nn.Parameter(torch.ones(2))
    optimizer = IVON([p], ess=10)
    p.sum().backward()
    with pytest.raises(RetainError, match=r"optimizer\.sampled\(\)"):
        optimizer.step()
    with optimizer.sampled():
        for call in (optimizer.step, optimizer.posterior, lambda: optimizer.set_prior([(p, p)]), lambda: optimizer.sampled().__enter__()):
            with pytest.raises(RetainError, match="Leave the"):
                call()
    with pytest.raises(InputError, match="ess"):
        optimizer.set_prior(optimizer.posterior(), ess=0)
    assert torch.equal(p, torch.ones(2)) and len(optimizer.posterior()) == 1


def test_a_network_learns_the_digits():
    task = tasks.digits()
    model = models.MLP(64, 32, 10, seed=0)
    optimizer = IVON(model.parameters(), 0.2, ess=task.n, weight_decay=1e-3, beta2=0.999, hess_init=0.1)
    for epoch in range(20):
        optimizer.param_groups[0]["lr"] = 0.2 * factor("cosine", epoch / 20)
        for batch in task.batches(64, torch.Generator().manual_seed(epoch)):
            optimizer.zero_grad()
            with optimizer.sampled():
                F.cross_entropy(model(batch.inputs), batch.targets).backward()
            optimizer.step()
    assert evaluate(model, task).score > 0.9
    ink = task.data.inputs.flatten(1).square().mean(0)
    sure = optimizer.posterior()[0][1].mean(0)
    assert sure[ink > 0.2].min() > sure[ink < 0.001].max()  # the data decide the weights of pixels that are used
