"""One contract over every strategy, and what it gives on one small problem."""

import pytest
import torch
from torch import nn

import retain
from retain import models
from retain.paths import STRATEGIES, Distillation, Frozen, Optimal, PruningRamp, Retention, Sudden, TaskLoss, spike
from retain.tasks import Task

CASES = {
    "optimal": Optimal(damping=0.1),
    "optimal, kfac": Optimal("kfac"),
    "optimal, kfac, no momentum": Optimal("kfac", momentum=False, adapt=1),
    "optimal, kfac-cg": Optimal("kfac-cg", damping=0.1),
    "optimal, adaptive": Optimal(damping=0.1, adapt=4),
    "optimal, rate floor": Optimal("kfac", rate=0.7, trust=0.5, momentum=False),
    "natural-gradient distillation": Optimal("kfac", metric="target", rate=1.0, trust=0.5),
    "distillation": Distillation(lr=0.05),
    "distillation, adam": Distillation(optimizer="adam", lr=1e-3, schedule="constant", warmup=0),
    "distillation, reverse": Distillation("reverse", lr=0.05),
    "distillation, skew": Distillation("skew", lr=0.1),
    "distillation, warm": Distillation(temperature=4, lr=0.01),
    "task": TaskLoss(lr=0.05),
    "task, target": TaskLoss("target", lr=0.05),
    "ramp": PruningRamp(Distillation(lr=0.05)),
    "retention": Retention(samples=50),
    "retention, none": Retention("none"),
    "retention, all": Retention("all"),
    "retention, share": Retention(0.9, samples=50),
    "retention, replay": Retention(samples=50, replay=80),
    "retention, bias": Retention(0.2, samples=50, bias=spike(0.5, 0.7)),
    "frozen": Frozen(),
    "sudden": Sudden(),
}
GOLDEN = {
    "optimal": 0.083096,
    "optimal, kfac": 0.081915,
    "optimal, kfac, no momentum": 0.10654,
    "optimal, kfac-cg": 0.072541,
    "optimal, adaptive": 0.088267,
    "optimal, rate floor": 0.058764,
    "natural-gradient distillation": 0.026568,
    "distillation": 0.15909,
    "distillation, adam": 0.2042,
    "distillation, reverse": 0.20776,
    "distillation, skew": 0.17984,
    "distillation, warm": 0.1739,
    "task": 0.24072,
    "task, target": 0.16157,
    "ramp": 0.16224,
    "retention": 0.18074,
    "retention, none": 0.18058,
    "retention, all": 0.35955,
    "retention, share": 0.20532,
    "retention, replay": 0.21486,
    "retention, bias": 0.18096,
    "frozen": 0.35955,
    "sudden": 0.35955,
}
"""KL from source to target at the end, nats; a change here is a change of results."""


def blobs():
    draw = torch.Generator().manual_seed(5)
    centres = 2 * torch.randn(4, 6, generator=draw)
    labels = torch.arange(400) % 4
    inputs = centres[labels] + 1.2 * torch.randn(400, 6, generator=draw)
    return Task((inputs[:300], labels[:300]), test=(inputs[300:], labels[300:]), id="blobs")


@pytest.fixture(scope="module")
def pair():
    task = blobs()
    source = models.MLP(6, 32, 16, 4, seed=0)
    retain.learn(source, [task], epochs=30, batch_size=32, lr=5e-3)
    return source, task


def walk(pair, name, **options):
    source, task = pair
    target = models.sparsify(source, 3)
    path = retain.traverse(source, target, task, CASES[name], steps=20, start=0.05, certify=None, **options)
    return target, path


def test_every_strategy_is_here():
    assert {case.name for case in CASES.values()} == set(STRATEGIES)


@pytest.mark.parametrize("name", CASES)
def test_contract(pair, name):
    source, task = pair
    before = {key: value.clone() for key, value in source.state_dict().items()}
    start = models.sparsify(source, 3)
    source.train()
    target, path = walk(pair, name)
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    assert source.training and target.training
    assert all(p.requires_grad for p in source.parameters()) and all(p.requires_grad and p.grad is None for p in target.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in target.modules())
    moved = any(not torch.equal(a, b) for a, b in zip(start.parameters(), target.parameters(), strict=True))
    assert moved == (name not in ("frozen", "sudden", "retention, all"))
    assert [module.K for module in target.modules() if isinstance(module, models.TopK)] == [3, 3]
    q = path.column("q")
    assert q[-1] == 1 and q == sorted(q) and len(path.steps) == (2 if name == "sudden" else 21)
    assert path.length >= path.distance and path.kl >= 0
    assert path.steps[-1]["mixture_accuracy"] == path.steps[-1]["accuracy"] == retain.evaluate(target, task).score
    assert all(step["kl_step"] >= -1e-6 and step["length_step"] >= 0 and set(step["active"]) == {"layers.relu1", "layers.relu2"} for step in path.steps[1:])
    assert all(units <= 3 for units in path.steps[-1]["active"].values())
    assert "Path from source to target" in repr(path) and path.plot() is not None


@pytest.mark.parametrize("name", CASES)
def test_repeats_to_the_bit_and_golden(pair, name):
    first, path = walk(pair, name, seed=3)
    second, again = walk(pair, name, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert path.kl == again.kl
    assert path.kl == pytest.approx(GOLDEN[name], rel=5e-2)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("frozen", "sudden", "retention, all")])
def test_training_helps(pair, name):
    """Every way that trains ends nearer to the source, or at least more often right, than the sudden switch."""
    _, path = walk(pair, name)
    _, sudden = walk(pair, "sudden")
    assert path.kl < sudden.kl or path.accuracy > sudden.accuracy


def test_strategies_print_their_settings():
    for case in CASES.values():
        assert repr(case).startswith(type(case).__name__ + "(")
    assert "solver='kfac'" in repr(Optimal("kfac"))


def test_unknown_settings_are_refused():
    from retain.errors import InputError

    for make, message in (
        (lambda: Optimal("newton"), "solver"),
        (lambda: Optimal(metric="middle"), "metric"),
        (lambda: Optimal(damping=0), "damping"),
        (lambda: Optimal(trust=-1), "trust"),
        (lambda: Optimal("kfac", decay=1.0).begin(_walk()), "decay"),
        (lambda: Distillation("sideways"), "divergence"),
        (lambda: Distillation("skew", temperature=2), "temperature"),
        (lambda: Distillation(warmup=1), "warmup"),
        (lambda: TaskLoss("source"), "on: expected"),
        (lambda: PruningRamp(until=0), "until"),
        (lambda: Retention("most"), "retained"),
        (lambda: Retention(1.5), "retained"),
        (lambda: Retention(replay=-1), "replay"),
    ):
        with pytest.raises(InputError, match=message):
            make()


def _walk():
    from retain.paths import MixtureBridge, Walk

    model = nn.Linear(2, 2)
    return Walk(model, model, blobs(), MixtureBridge(), dict(model.named_parameters()), 0, 0.0)
