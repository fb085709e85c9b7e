"""The pull: its gradient, the proximal step in every optimiser's metric, and what cannot diverge."""

import warnings

import pytest
import torch
from torch import nn

from retain import methods
from retain.beliefs import Belief, Diagonal
from retain.errors import InputError, RetainError, RetainWarning
from retain.methods.stepsize import step_sizes
from retain.tasks import Task

TASK = Task((torch.zeros(50, 2), torch.zeros(50).long()), id="new")


class Fixed(methods.Quadratic):
    """A quadratic method whose belief is given."""

    name = "fixed"

    def __init__(self, belief, strength=1.0, pull="gradient"):
        super().__init__(strength, pull)
        self.belief = belief


def setting(seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    model = nn.Linear(3, 2).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    centre = {k: torch.randn(p.shape, generator=g, dtype=dtype) for k, p in model.named_parameters()}
    precision = {k: torch.rand(p.shape, generator=g, dtype=dtype) for k, p in model.named_parameters()}
    precision["weight"][0, 0] = 0
    return model, Belief(centre, Diagonal(precision), n=200)


def test_the_pull_is_the_gradient_of_the_energy():
    model, belief = setting()
    method = Fixed(belief, strength=0.7)
    method.begin(model, TASK)
    model.weight.grad, model.bias.grad = torch.ones_like(model.weight), None  # a parameter that the loss did not reach
    method.before_step(model, torch.optim.Adam(model.parameters()))
    parameters = dict(model.named_parameters())
    energy = sum((belief.precision.values[k] * (p - belief.centre[k]) ** 2).sum() for k, p in parameters.items()) * belief.n / 2
    expected = torch.autograd.grad(0.7 * energy / TASK.n, list(parameters.values()))
    assert torch.allclose(model.weight.grad, 1 + expected[0])
    assert torch.allclose(model.bias.grad, expected[1])


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.8, dampening=0.7),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_proximal_step_solves_its_own_problem(name):
    """theta minimises 1/2 (t - u)' H (t - u) + r/2 (t - c)' P (t - c) with u where the optimiser went."""
    model, belief = setting()
    optimizer = OPTIMIZERS[name](model.parameters())
    method = Fixed(belief, strength=3.0, pull="proximal")
    method.begin(model, TASK)
    for _ in range(3):
        model.zero_grad()
        (model(torch.randn(8, 3).double()) ** 2).mean().backward()
        optimizer.step()
        went = {k: p.detach().clone() for k, p in model.named_parameters()}
        sizes = dict(zip(went, step_sizes(optimizer, list(model.parameters())), strict=True))
        method.after_step(model, optimizer)
    r = 3.0 * belief.n / TASK.n
    for k, p in model.named_parameters():
        H = 1 / torch.as_tensor(sizes[k], dtype=torch.float64)
        residual = H * (p.detach() - went[k]) + r * belief.precision.values[k] * (p.detach() - belief.centre[k])
        assert float(residual.abs().max()) < 1e-9 * float(H.max())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("pull", ["gradient", "proximal"])
def test_training_ends_at_the_optimum_of_loss_plus_energy(name, pull):
    """The fixed point does not depend on the optimiser: momentum does not weaken the pull, nor does Adam's metric."""
    a = torch.tensor([2.0, -1.0]).double()
    w = nn.Parameter(torch.zeros(2).double())
    model = nn.Module()
    model.w = w
    P, n, strength = torch.tensor([0.5, 0.02]).double(), 100.0, 0.5
    method = Fixed(Belief({"w": torch.zeros(2).double()}, Diagonal({"w": P}), n), strength, pull)
    optimizer = OPTIMIZERS[name]([w])
    method.begin(model, TASK)
    for step in range(4000):
        for group in optimizer.param_groups:
            group["lr"] = (0.2 if name == "dampened" else 0.05) / (1 + step / 200)
        optimizer.zero_grad()
        (0.5 * (w - a) ** 2).sum().backward()
        method.before_step(model, optimizer)
        optimizer.step()
        method.after_step(model, optimizer)
    r = strength * n / TASK.n
    assert torch.allclose(w.detach(), a / (1 + r * P), atol=2e-3)


def test_the_proximal_pull_cannot_diverge_and_the_gradient_pull_warns():
    def end(pull):
        model, belief = setting()
        method = Fixed(belief, strength=1e6, pull=pull)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method.begin(model, TASK)
        for _ in range(50):
            optimizer.zero_grad()
            model(torch.randn(4, 3).double()).sum().backward()
            method.before_step(model, optimizer)
            optimizer.step()
            method.after_step(model, optimizer)
        return method.energy(model)

    assert end("proximal") < 1e-4
    with pytest.warns(RetainWarning, match="pull='proximal'"):
        assert not end("gradient") < 1e30


def test_nesterov_is_warned_of_earlier():
    model, belief = setting()
    stiff = Belief(belief.centre, Diagonal({k: torch.ones_like(v) for k, v in belief.centre.items()}), n=50)
    for nesterov, warned in ((False, 0), (True, 1)):
        method = Fixed(stiff, strength=15.0)
        method.begin(model, TASK)
        model.weight.grad, model.bias.grad = torch.zeros_like(model.weight), torch.zeros_like(model.bias)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            method.before_step(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov))
        assert len(caught) == warned


def test_a_parameter_the_loss_never_reaches_is_left_alone_in_place():
    model, belief = setting()
    with torch.no_grad():
        model.bias.copy_(belief.centre["bias"])
    method = Fixed(belief)
    method.begin(model, TASK)
    model.weight.grad = torch.zeros_like(model.weight)
    method.before_step(model, torch.optim.SGD(model.parameters(), lr=1e-6, weight_decay=0.1))
    assert model.bias.grad is None


def test_only_what_the_belief_knows_is_pulled():
    model, belief = setting()
    known = Belief({"weight": belief.centre["weight"]}, Diagonal({"weight": belief.precision.values["weight"]}), 10)
    for pull in ("gradient", "proximal"):
        method = Fixed(known, pull=pull)
        method.begin(model, TASK)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.weight.grad, model.bias.grad = torch.zeros_like(model.weight), torch.zeros_like(model.bias)
        before = model.bias.detach().clone()
        method.before_step(model, optimizer)
        optimizer.step()
        method.after_step(model, optimizer)
        assert torch.equal(model.bias.detach(), before)


def test_unknown_optimisers_are_refused_for_the_proximal_pull():
    model, belief = setting()
    method = Fixed(belief, pull="proximal")
    method.begin(model, TASK)
    with pytest.raises(RetainError, match=r"RMSprop.*pull='gradient'"):
        method.after_step(model, torch.optim.RMSprop(model.parameters()))
    foreign = Fixed(Belief({"other": torch.zeros(1)}, Diagonal({"other": torch.ones(1)}), 1))
    foreign.begin(model, TASK)
    with pytest.raises(RetainError, match="Names differ"):
        foreign.before_step(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_parameters_of_no_optimiser_stay():
    model, _ = setting()
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    assert step_sizes(optimizer, [model.bias]) == [0.0]
    assert step_sizes(torch.optim.Adam([model.bias]), [model.bias]) == [0.0]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: methods.EWC(-1), "strength"),
        (lambda: methods.EWC(float("nan")), "strength"),
        (lambda: methods.EWC(pull="push"), "'gradient' or 'proximal'"),
        (lambda: methods.EWC(centres="all"), "'latest' or 'separate'"),
        (lambda: methods.L2SP(tau=0), "tau"),
        (lambda: methods.EWC(labels="exakt"), "Did you mean 'exact'"),
        (lambda: methods.EWC(samples=-3), "samples"),
    ],
)
def test_bad_settings(build, words):
    with pytest.raises(InputError, match=words):
        build()


def test_ewc_merges_separate_penalties_exactly():
    """centres='separate' is the paper's sum of penalties, one a task, up to a constant."""
    model = nn.Linear(4, 3).double()
    thetas, fishers, sizes = [], [], []
    method = methods.EWC(centres="separate")
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            model.weight.copy_(torch.randn(3, 4, generator=g))
        data = torch.randn(10 + seed, 4, generator=g).double(), torch.arange(10 + seed) % 3
        method.consolidate(model, Task(data))
        thetas.append(model.weight.detach().clone())
        from retain.curvature import fisher

        fishers.append(fisher(model, data)["weight"])
        sizes.append(10 + seed)

    def penalties(w):
        return sum(n / 2 * float((F * (w - t) ** 2).sum()) for n, F, t in zip(sizes, fishers, thetas, strict=True))

    bias = model.bias.detach()
    points = [torch.randn(3, 4).double() for _ in range(2)]
    gaps = [penalties(w) - method.belief.energy({"weight": w, "bias": bias}) for w in points]
    assert gaps[0] == pytest.approx(gaps[1])


def test_l2sp_leaves_new_heads_free():
    class Net(nn.Module):
        def __init__(self, heads):
            super().__init__()
            self.body = nn.Linear(4, 4)
            self.heads = nn.ModuleDict({name: nn.Linear(4, 3) for name in heads})

    method = methods.L2SP(exclude=["heads.old.*"])
    method.consolidate(Net(["old"]), TASK)
    assert set(method.belief.precision.values) == {"body.weight", "body.bias"}
    both = methods.L2SP()
    both.consolidate(Net(["old"]), TASK)
    grown = Net(["old", "new"])
    both.begin(grown, TASK)
    both._active(grown)
    assert len(both._pulling.terms) == 4
    assert both.belief.n == pytest.approx(100)


def test_structured_laplace_lists_pairs_and_then_keeps_one_basis(blobs, net):
    model, many, few = net().double(), methods.StructuredLaplace(pairs=9), methods.StructuredLaplace(pairs=2)
    for seed in range(4):
        task = blobs(seed).to(torch.device("cpu"), torch.float64)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape, dtype=torch.float64))
        for method in (many, few):
            method.consolidate(model, task)
        assert many.belief.precision.pairs == seed + 1
        assert few.belief.precision.pairs == (seed + 1 if seed < 2 else 0)
    assert many.belief.n == few.belief.n == 4 * 60
    assert many.belief.precision.error == 0 < few.belief.precision.error < 0.5
    moved = {name: value + torch.randn_like(value) for name, value in many.belief.centre.items()}
    assert few.belief.energy(moved) == pytest.approx(many.belief.energy(moved), rel=0.3)
    for a, b in zip(*(m.belief.precision.diagonal().values() for m in (many, few)), strict=True):
        assert float(a.sum()) == pytest.approx(float(b.sum()))  # the trace is kept


def test_ssr_in_sequence_keeps_its_rank_and_the_exact_diagonal(blobs, net):
    from retain.curvature import fisher

    model, method, diagonal = net().double(), methods.SSR(rank=3), {}
    for seed in range(3):
        task = blobs(seed).to(torch.device("cpu"), torch.float64)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape, dtype=torch.float64))
        method.consolidate(model, task)
        for name, value in fisher(model, task).items():
            diagonal[name] = diagonal.get(name, 0) + task.n * value
        assert method.belief.precision.rank == 3 and method.belief.n == 60 * (seed + 1)
        assert all(torch.equal(p, method.belief.centre[name]) for name, p in model.named_parameters())  # the newest weights
    for name, value in method.belief.precision.diagonal().items():
        assert torch.allclose(method.belief.n * value, diagonal[name], rtol=1e-6, atol=1e-9)


def test_a_large_step_once_in_several_is_as_strong(blobs, net):
    """Pulled on its own, without a loss, a weight shrinks alike; and between the steps nothing happens."""
    model, belief = setting()
    ends = {}
    for every in (1, 5):
        net = nn.Linear(3, 2).double()
        net.load_state_dict(model.state_dict())
        method = methods.StructuredLaplace(0.001, pull="proximal", every=every)
        method.belief = belief
        method.begin(net, TASK)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for step in range(10):
            before = net.weight.detach().clone()
            method.after_step(net, optimizer)
            assert torch.equal(before, net.weight) is (every == 5 and step % 5 != 4)
        ends[every] = net.weight.detach() - belief.centre["weight"]
    assert torch.allclose(ends[1], ends[5], rtol=1e-3)
