"""The optimal law against closed forms, in float64: small problems whose answers are known."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

import retain
from retain.likelihoods import Gaussian
from retain.paths import Distillation, MixtureBridge, Move, Optimal, Walk
from retain.paths.families import Softmax
from retain.tasks import Task
from retain.tasks.batch import Batch


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Table(nn.Module):
    """A row of logits for every input, a one-hot vector: any conditional distribution can be represented."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x):
        return x @ self.logits


EXACT = {"iterations": 200, "tolerance": 1e-13, "damping": 1e-12, "batch_size": 1000}


def tabular(n=6, classes=4, spread=1.0):
    source, target = Table(spread * torch.randn(n, classes)), Table(torch.randn(n, classes))
    return source, target, Task((torch.eye(n), torch.arange(n) % classes))


def linear(n=40, classes=4, width=3):
    """A softmax-linear target that cannot quite represent its source."""
    x = torch.randn(n, width)
    return Table(2 * x @ torch.randn(width, classes) + 0.7 * torch.randn(n, classes)), nn.Linear(width, classes), x


def one_step(source, target, task, start, to, **settings):
    walk = Walk(source, target, task, MixtureBridge(), dict(target.named_parameters()), 0, 0.0)
    batch = next(task.batches(1000))
    strategy = Optimal(**{**EXACT, **settings})
    strategy.begin(walk)
    facts = strategy.update(Move(walk, start, to, 0.5, batch, source.log_softmax(1), 0))
    strategy.end(walk)
    return facts


def test_a_target_that_can_represent_the_source_follows_the_law_exactly():  # T1
    """p_q stays what it was at the start: p_s(q) = p_d + (q0 / q)(p_s0 - p_d); an explicit integration in ln q agrees to its order."""
    source, target, _ = tabular()
    d, bridge, q0 = source.logits.detach().log_softmax(1), MixtureBridge(), 0.1
    p0 = target.logits.detach().softmax(1)

    def flow(z, log_q):
        q = math.exp(log_q)
        t = bridge.tangent(q, d, z)
        F = torch.stack([t.metric(unit.expand_as(z)) for unit in torch.eye(z.shape[1])], 2)
        return -(torch.linalg.pinv(F, rtol=1e-10) @ t.slope[:, :, None])[:, :, 0]

    z, steps = target.logits.detach(), 400
    h = -math.log(q0) / steps
    for i in range(steps):  # Runge and Kutta, fourth order
        at = math.log(q0) + i * h
        k1 = flow(z, at)
        k2 = flow(z + h / 2 * k1, at + h / 2)
        k3 = flow(z + h / 2 * k2, at + h / 2)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + flow(z + h * k3, at + h))
    assert torch.allclose(z.softmax(1), d.exp() + q0 * (p0 - d.exp()), atol=1e-9)


def test_traversing_finely_approaches_the_exact_law():
    source, target, task = tabular()
    d, p0 = source.logits.detach().softmax(1), target.logits.detach().softmax(1)
    wanted = d + 0.1 * (p0 - d)
    errors = []
    for steps in (50, 100, 200):
        moved = copy.deepcopy(target)
        path = retain.traverse(source, moved, task, Optimal(**EXACT), "geometric", start=0.1, steps=steps, floor=0.0, certify=None)
        errors.append(float((moved.logits.detach().softmax(1) - wanted).abs().max()))
    assert errors[0] / errors[2] == pytest.approx(4, rel=0.3)  # first order in the step
    assert path.length - path.steps[0]["length"] < 0.1 * float(Softmax().distance(d.log(), p0.log()).square().mean().sqrt())  # the point hardly moves
    assert min(path.column("kept")[1:]) > 0.99 and min(value for value in path.column("retained")[1:] if value is not None) > 0.9


def test_the_finite_step_has_an_exact_answer_without_loss():  # T5
    source, target, _ = tabular()
    d, p, bridge = source.logits.detach().log_softmax(1), target.logits.detach().softmax(1), MixtureBridge()
    for q, to in ((0.1, 0.2), (0.5, 1.0), (0.9, 0.95)):
        answer = d.exp() + q / to * (p - d.exp())
        assert float(answer.min()) > 0
        lost = bridge.family.kl(bridge.at(q, d, p.log()), bridge.at(to, d, answer.log()))
        assert float(lost.abs().max()) < 1e-14


def test_one_step_in_logits_is_second_order():  # T6
    source, target, task = tabular()
    d, p = source.logits.detach().softmax(1), target.logits.detach().softmax(1)
    errors = []
    for eta in (0.08, 0.04, 0.02, 0.01):
        moved, to = copy.deepcopy(target), 0.5
        one_step(source.logits.detach(), moved, task, to * (1 - eta), to)
        errors.append(float((moved.logits.detach().softmax(1) - (d + (1 - eta) * (p - d))).norm()))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders[-1] == pytest.approx(2, abs=0.1)


def test_a_binary_intercept_moves_as_the_formula_says():
    """One logit: dtheta/dq = -(p_s - p_d) / (q p_s (1 - p_s))."""
    source = torch.tensor([[0.3, -0.3]]).log_softmax(1)
    target = Table(torch.tensor([[1.2, 0.0]]))
    target.logits.requires_grad_(True)
    task = Task((torch.ones(1, 1), torch.zeros(1, dtype=torch.long)))
    p_d, p_s = float(source.exp()[0, 0]), float(target.logits.detach().softmax(1)[0, 0])
    before = float((target.logits[0, 0] - target.logits[0, 1]).detach())
    q, dq = 0.4, 1e-5
    one_step(source, target, task, q, q + dq)
    moved = float((target.logits[0, 0] - target.logits[0, 1]).detach()) - before
    assert moved / dq == pytest.approx(-(p_s - p_d) / (q * p_s * (1 - p_s)), rel=1e-3)


def optimum(source, model, x):
    """argmin KL(p_d || p_s) by long distillation, and its value."""
    best = copy.deepcopy(model)
    steps = torch.optim.LBFGS(best.parameters(), max_iter=2000, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        steps.zero_grad()
        loss = Softmax().kl(source, best(x).log_softmax(1)).mean()
        loss.backward()
        return loss

    steps.step(closure)
    return best, float(Softmax().kl(source, best(x).log_softmax(1)).mean().detach())


class Given(nn.Module):
    """Answers by table, looked up by the inputs themselves."""

    def __init__(self, x, logits):
        super().__init__()
        self.x, self.logits = x, logits

    def forward(self, x):
        return self.logits[(x[:, None] == self.x[None]).all(2).float().argmax(1)]


def test_a_target_that_cannot_represent_the_source():  # T9
    table, target, x = linear()
    source = Given(x, table.logits.detach())
    task = Task((x, table.logits.detach().argmax(1)))
    _best, least = optimum(table.logits.detach().log_softmax(1), target, x)
    ends = {}
    for start in (0.3, 0.01):
        moved = copy.deepcopy(target)
        path = retain.traverse(source, moved, task, Optimal(**EXACT), start=start, steps=200, floor=0.0, certify=None)
        ends[start] = path
    frozen = retain.traverse(source, copy.deepcopy(target), task, "frozen", start=0.01, steps=200, floor=0.0, certify=None)
    greedy = ends[0.01]
    assert least < greedy.kl < 1.4 * least  # close to the best end, which the law does not promise
    assert ends[0.3].kl > 2 * greedy.kl  # a late start keeps its share of the first target
    assert greedy.length < 0.5 * frozen.length  # what the law promises
    assert frozen.kl == pytest.approx(frozen.steps[0]["kl_target"]) and frozen.column("retained")[-1] == pytest.approx(0)
    for path in (greedy, frozen):
        assert path.length >= path.distance  # no path is shorter


def test_steps_solve_their_normal_equations_in_both_forms():  # T10 and T11
    table, target, x = linear()
    source = table.logits.detach().log_softmax(1)
    task = Task((x, source.argmax(1)))
    before = torch.cat([p.detach().flatten() for p in target.parameters()])
    model = copy.deepcopy(target)
    z = model(x)
    t = MixtureBridge().tangent(0.5, source, z.detach())
    J = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(z[i, c], list(model.parameters()), retain_graph=True)]) for i in range(40) for c in range(4)]
    )
    TJ = torch.stack([t.push(column.view(40, 4)).flatten() for column in J.T], 1) / math.sqrt(40)
    r = t.velocity.flatten() / math.sqrt(40)
    dq = 0.1
    primal = -dq * torch.linalg.pinv(TJ.T @ TJ, rtol=1e-10) @ TJ.T @ r
    dual = -dq * TJ.T @ torch.linalg.pinv(TJ @ TJ.T, rtol=1e-10) @ r
    facts = one_step(source, target, task, 0.5 - dq, 0.5)
    moved = torch.cat([p.detach().flatten() for p in target.parameters()]) - before
    assert torch.allclose(primal, dual, atol=1e-9)
    assert torch.allclose(TJ @ moved, TJ @ primal, atol=1e-7)  # the answers' change; weights that change none are free
    residual = dq * r + TJ @ moved
    assert float((TJ.T @ residual).norm()) < 1e-7
    assert float(residual.square().sum() + (TJ @ moved).square().sum()) == pytest.approx(float((dq * r).square().sum()))  # Pythagoras
    assert facts["kept"] == pytest.approx(1 - float(residual.square().sum() / (dq * r).square().sum()))


def test_the_regression_law_is_linear_least_squares():
    x = torch.randn(30, 2)
    source, target = Given(x, torch.randn(30, 1)), nn.Linear(2, 1)
    task = Task((x, torch.randn(30, 1)), likelihood=Gaussian(0.5))
    start = target(x).detach()
    X = torch.cat([x, torch.ones(30, 1)], 1)
    hat = X @ torch.linalg.pinv(X)  # the projector P: what a linear model can answer
    retain.traverse(source, target, task, Optimal(**EXACT), "geometric", "exponential", start=0.1, steps=60, certify=None)
    decay = (1 - (1 - 0.1 ** (1 / 60))) ** 60  # the product of 1 - dq/q'
    wanted = start - (1 - decay) * hat @ (start - source.logits)
    assert torch.allclose(target(x).detach(), wanted, atol=1e-8)


def test_the_law_is_ahead_of_its_own_gradient():
    """Gradient descent on the same divergence, at every learning rate of a grid, ends further from the source."""
    table, target, x = linear()
    source, task = Given(x, table.logits.detach()), Task((x, table.logits.detach().argmax(1)))

    def end(strategy, schedule="linear"):
        return retain.traverse(source, copy.deepcopy(target), task, strategy, schedule, start=0.01, steps=100, floor=0.0, certify=None).kl

    _, least = optimum(table.logits.detach().log_softmax(1), target, x)
    skew = min(end(Distillation("skew", "sgd", lr, batch_size=1000)) for lr in (0.03, 0.1, 0.3, 1.0, 3.0))
    assert end(Optimal(**EXACT)) - least < 0.5 * (skew - least)


@pytest.mark.parametrize("solver", ["kfac", "kfac-cg"])
def test_kronecker_solvers_agree_with_gauss_newton_where_factors_are_exact(solver):
    """One sample: F is one Kronecker product, so the factors' step along their direction is the exact one up to noise in the drawn vectors."""
    x, source = torch.randn(1, 3), torch.randn(1, 4).log_softmax(1)
    task = Task((x, torch.zeros(1, dtype=torch.long)))
    first, second = nn.Linear(3, 4), nn.Linear(3, 4)
    second.load_state_dict(first.state_dict())
    one_step(source, first, task, 0.4, 0.5)
    walk = Walk(None, second, task, MixtureBridge(), dict(second.named_parameters()), 0, 0.0)
    strategy = Optimal(solver, damping=1e-9, momentum=True, iterations=50, tolerance=1e-12, refresh=1, decay=0.9999)
    strategy.begin(walk)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(3000):  # factors of many draws
            z = strategy._factors.forward(Batch(x, task.data.targets, task))
            t = MixtureBridge().tangent(0.5, source, z)
            strategy._factors.observe(z, t.pull(torch.randn(1, 4, generator=noise))[None] / 0.5)
    strategy.update(Move(walk, 0.4, 0.5, 0.5, Batch(x, task.data.targets, task), source, 0))
    strategy.end(walk)
    assert torch.allclose(first(x).softmax(1), second(x).softmax(1), atol=2e-3)
