"""Traversals: budgets, schedules, certificates, other data and models, and what is refused."""

import math

import pytest
import torch
from torch import nn

import retain
from retain import models, paths
from retain.errors import InputError, RetainError, RetainWarning
from retain.likelihoods import Bernoulli, Gaussian
from retain.paths.schedules import Ahead
from retain.tasks import Task


@pytest.fixture
def pair(blobs):
    task = blobs(1, n=240, classes=4, width=6)
    source = models.MLP(6, 24, 12, 4, seed=0)
    retain.learn(source, [task], epochs=30, batch_size=32, lr=5e-3)
    return source, models.sparsify(source, 3), task


def test_a_grid_of_steps_has_its_updates(pair):
    source, target, task = pair
    path = retain.traverse(source, target, task, "distillation", start=0.1, steps=5, iterations=4, first=3)
    assert path.iterations == 23 and path.column("iterations") == [0, 3, 7, 11, 15, 19, 23]
    assert path.column("q") == pytest.approx([0.1, 0.1, 0.28, 0.46, 0.64, 0.82, 1.0])
    assert path.samples == 23 * 120 and path.seconds > 0


def test_a_budget_of_samples_is_kept(pair):
    source, target, task = pair
    path = retain.traverse(source, target, task, paths.Distillation(batch_size=30), samples=900, points=10)
    assert path.samples == 900 and path.iterations == 30 and path.column("q")[-1] == 1
    assert path.column("samples")[:-1] == [0, *(90 * i for i in range(1, 11))][:-1]


def test_a_budget_of_seconds_is_kept(pair):
    source, target, task = pair
    path = retain.traverse(source, target, task, "distillation", seconds=0.3, points=5)
    assert 0.3 <= path.seconds < 1.0 and path.column("q")[-1] == 1 and len(path.steps) >= 5


@pytest.mark.parametrize("name", paths.SCHEDULES)
def test_schedules_go_from_start_to_one_and_never_back(pair, name):
    source, target, task = pair
    path = retain.traverse(source, target, task, "distillation", name, start=0.1, steps=12)
    q = path.column("q")
    assert q[0] == 0.1 and q[-1] == 1 and q == sorted(q)
    wanted = {"linear": 0.55, "geometric": math.sqrt(0.1), "sin2": 0.55}
    if name in wanted:
        assert q[6] == pytest.approx(wanted[name])


def test_fisher_speed_is_constant_where_weights_are_frozen(pair):
    source, target, task = pair
    path = retain.traverse(source, target, Task((task.data.inputs, task.data.targets)), "frozen", "fisher-speed", start=0.05, steps=10, certify=None)
    lengths = path.column("length_step")[1:]
    assert max(lengths) / min(lengths) < 1.1
    straight = retain.traverse(source, target, task, "frozen", start=0.05, steps=10)
    uneven = straight.column("length_step")[1:]
    assert max(uneven) / min(uneven) > 1.2


def test_a_retention_budget_is_kept_by_every_step_but_the_last(pair):
    source, target, task = pair
    data = Task((task.data.inputs, task.data.targets))
    path = retain.traverse(source, target, data, "frozen", paths.RetentionBudget(2e-3), start=0.05, steps=40, certify=None)
    losses = path.column("kl_step")[1:-1]
    assert max(losses) <= 2.01e-3


def test_a_function_may_be_the_schedule(pair):
    source, target, task = pair
    path = retain.traverse(source, target, task, "frozen", lambda t: t**2, start=0.0, steps=4)
    assert path.column("q") == pytest.approx([0, 1 / 16, 1 / 4, 9 / 16, 1])


def test_frozen_certificates_say_what_is_known_beforehand(pair):
    source, target, task = pair
    path = retain.traverse(source, target, task, "frozen", start=0.01, steps=50, certify=None)
    assert path.column("retained")[1:] == pytest.approx([0] * 50, abs=1e-9)
    inputs = task.test.inputs
    p, z = source(inputs).log_softmax(1).detach(), target(inputs).log_softmax(1).detach()
    assert path.kl == pytest.approx(float((p.exp() * (p - z)).sum(1).mean()), rel=1e-2)  # up to the floor
    apart = 2 * ((p / 2 + z / 2).exp().sum(1).clamp_max(1)).arccos()
    assert path.distance == pytest.approx(float(apart.square().mean().sqrt()), rel=1e-2)
    assert path.length >= path.distance
    kept = path.column("mixture_accuracy")
    assert kept[10] >= kept[0] - 0.02 and path.column("accuracy") == [path.column("accuracy")[0]] * 51


def test_predicted_and_actual_changes_agree_for_small_steps(pair):
    source, target, task = pair
    path = retain.traverse(source, target, task, paths.Optimal(adapt=1), "geometric", start=0.3, steps=60)
    pairs = [(a, b) for a, b in zip(path.column("predicted")[2:], path.column("actual")[2:], strict=True) if a]
    ratios = sorted(b / a for a, b in pairs)
    assert 0.6 < ratios[len(ratios) // 2] < 1.7  # the choice of units changes too, which the quadratic model does not see
    assert all(0 < value <= 1e4 for value in path.column("damping")[1:])


@pytest.mark.parametrize("bridge", paths.BRIDGES)
@pytest.mark.parametrize("solver", ["gauss-newton", "kfac"])
def test_every_bridge_carries_the_source_over(pair, bridge, solver):
    source, target, task = pair
    before = retain.traverse(source, models.copy(target), task, "sudden").kl
    path = retain.traverse(source, target, task, paths.Optimal(solver), "geometric", bridge, steps=40)
    assert path.bridge == bridge and path.kl < 0.5 * before


def test_regression_is_carried_over():
    x = torch.linspace(-2, 2, 200)[:, None]
    task = Task((x, x.sin()), likelihood=Gaussian(0.1))
    source = models.MLP(1, 32, 32, 1, seed=0)
    retain.learn(source, [task], epochs=60, batch_size=20, lr=5e-3)
    target = models.MLP(1, 12, 1, seed=1)
    path = retain.traverse(source, target, task, paths.Optimal(damping=1e-2), "geometric", "exponential", steps=80)
    assert path.kl < 0.05 * path.steps[0]["kl_target"]
    assert retain.evaluate(target, task, part="data").score > 0.95


def test_any_pair_of_models_with_the_same_outputs(pair):
    source, _, task = pair
    images = Task((torch.rand(64, 1, 12, 12), torch.arange(64) % 4))
    net = models.ResNet(8, 4, classes=4, seed=0)
    path = retain.traverse(models.ResNet(8, 6, classes=4, seed=1), net, images, "optimal", steps=4)
    assert path.kl < path.steps[0]["kl_target"] and int(net.layers.norm.num_batches_tracked) == 1
    both = models.Ensemble([source, models.MLP(6, 24, 12, 4, seed=3)])
    assert retain.traverse(both, models.MLP(6, 8, 4, seed=2), task, "optimal", "geometric", steps=20).kl < 0.2


def test_loaders_and_dicts_will_do(pair):
    source, target, task = pair
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(task.data.inputs, task.data.targets), batch_size=40, shuffle=True)
    path = retain.traverse(source, target, loader, "distillation", steps=7, watch=task)
    assert path.samples == 7 * 40

    class Named(nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside = inside

        def forward(self, values):
            return self.inside(values)

    batches = [{"values": task.data.inputs[i : i + 30], "labels": task.data.targets[i : i + 30]} for i in range(0, 120, 30)]
    path = retain.traverse(Named(source), Named(models.sparsify(source, 3)), Task(batches, n=120), "optimal", steps=5)
    assert path.iterations == 5


def test_inputs_may_be_changed_and_the_source_is_asked_about_those(pair):
    source, target, task = pair
    seen = []

    def noisy(inputs, draw):
        seen.append(inputs + 0.1 * torch.randn(inputs.shape, generator=draw))
        return seen[-1]

    asked = []
    handle = source.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0]))
    retain.traverse(source, target, task, "distillation", steps=3, augment=noisy, certify=10)
    handle.remove()
    assert all(any(torch.equal(one, other) for other in asked) for one in seen) and len(seen) == 3
    moved = paths.shifts(2)(torch.arange(16.0).view(1, 1, 4, 4), torch.Generator().manual_seed(1))
    assert moved.shape == (1, 1, 4, 4)
    with pytest.raises(InputError, match="images"):
        retain.traverse(source, target, task, "distillation", steps=1, augment=paths.shifts(1))


def test_data_may_change_on_the_way(pair, blobs):
    source, target, task = pair
    later = blobs(7, n=240, classes=4, width=6)
    data = paths.Drift(task, later)
    path = retain.traverse(source, target, data, paths.TaskLoss(lr=0.05), steps=60, iterations=3)
    assert retain.evaluate(target, later).score > 0.8 and path.steps[0]["accuracy"] > 0.6
    shares = []
    batches = data.batches(400, 0, lambda: 0.25, task)
    for _ in range(5):
        batch = next(batches)
        shares.append(sum(bool((later.data.inputs == row).all(1).any()) for row in batch.inputs) / 400)
    assert sum(shares) / 5 == pytest.approx(0.25, abs=0.05)
    with pytest.raises(InputError, match="probability"):
        next(paths.Drift(task, later, lambda t: 2.0).batches(4, 0, lambda: 0.5, task))
    with pytest.raises(InputError, match="inputs of shape"):
        paths.Drift(task, blobs(1, width=5))


def test_a_spike_holds_what_the_law_would_give_up(pair):
    """Early information matters late: with the bias more of the first task is right at the end, and less of the second."""
    source, _, task = pair
    later = Task((task.data.inputs, (task.data.targets + 1) % 4), test=(task.test.inputs, (task.test.targets + 1) % 4))  # contradicts the first
    ends = {}
    for name, bias in (("law", None), ("spike", paths.spike(0.55, 0.99, 0.45))):
        target = models.sparsify(source, 6)
        strategy = paths.Retention(lr=0.05, samples=60, bias=bias, batch_size=60)
        path = retain.traverse(source, target, paths.Drift(task, later, lambda t: min(1.0, 1.5 * t)), strategy, steps=40, iterations=10)
        ends[name] = (retain.evaluate(target, task).score, retain.evaluate(target, later).score)
        shares = [value or 0.0 for value in path.column("share")]
        assert all(0 <= share <= 1 for share in shares) and (max(shares) == 1) == (bias is not None)
    assert ends["spike"][0] > ends["law"][0] + 0.1 and ends["spike"][1] < ends["law"][1] - 0.1


def test_reports_steps_to_a_recorder(pair):
    class Notes:
        def __init__(self):
            self.kinds = []

        def event(self, kind, **fields):
            self.kinds.append((kind, fields["accuracy"]["target"], fields["kl_target"]))

        def save(self, state, *, final=False):
            raise AssertionError

        def load(self):
            return None

    notes = Notes()
    path = retain.traverse(*pair, "distillation", steps=4, recorder=notes)
    assert [kind for kind, *_ in notes.kinds] == ["step"] * 5 and notes.kinds[-1][1] == path.accuracy


def test_a_path_shows_itself(pair):
    path = retain.traverse(*pair, "optimal", steps=20)
    table = path.table(rows=6)
    assert len(table.rows) == 6 and table.rows[0][0] == "0.050" and table.rows[-1][0] == "1.000"
    assert "<table>" in path._repr_html_() and path.record()["steps"] == path.steps and "target" not in path.record()


REFUSED = [
    ({"strategy": "optimol"}, "Did you mean 'optimal'"),
    ({"schedule": "linar"}, "Did you mean 'linear'"),
    ({"schedule": lambda t: 1 - t}, "never falls"),
    ({"schedule": lambda t: 2 * t}, r"q = 1.25 at progress"),
    ({"schedule": lambda t: 0.5 + 0.1 * t, "start": 0.5}, "q = 1 at the end"),
    ({"bridge": "mixure"}, "Did you mean 'mixture'"),
    ({"start": -0.1}, "start: expected a number between 0 and 1"),
    ({"start": 1.0}, "start: expected below 1"),
    ({"start": 0.0}, "start: expected above 0 with strategy='optimal'"),
    ({"start": 0.0, "strategy": paths.PruningRamp(paths.Optimal())}, "The law divides by q"),
    ({"schedule": lambda t: t**2}, "The path starts at 0.05: pass start="),
    ({"samples": 100, "iterations": 7}, "iterations: expected steps of q to count them in, not samples, found 7"),
    ({"floor": 0.01, "source": models.MLP(6, 120), "target": models.MLP(6, 4, 120)}, "floor: expected below 1/120"),
    ({"bridge": paths.MeanBridge(1.0)}, "bridge: expected one for Categorical"),
    ({"watch": (torch.rand(5, 6), torch.full((5,), 9))}, "labels from 0 to 3"),
    ({"start": 0.0, "schedule": "geometric", "strategy": "frozen"}, "above 0 with schedule"),
    ({"steps": 0}, "steps"),
    ({"steps": 5, "samples": 10}, "one of steps, samples and seconds, found steps and samples"),
    ({"samples": -3}, "samples"),
    ({"seconds": 0}, "seconds"),
    ({"iterations": 0}, "iterations"),
    ({"first": -1}, "first"),
    ({"points": 0, "samples": 100}, "points"),
    ({"certify": 0}, "certify"),
    ({"floor": 0.5}, "floor"),
    ({"device": "abacus"}, "device"),
    ({"source": "a"}, "source: expected an nn.Module"),
    ({"target": None}, "target: expected an nn.Module"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_settings_that_do_not_fit(pair, changes, message):
    source, target, task = pair
    given = {"source": source, "target": target, "data": task, "steps": None if {"samples", "seconds"} & set(changes) else 8, **changes}
    with pytest.raises(InputError, match=message):
        retain.traverse(**given)


def test_models_that_do_not_fit(pair):
    source, target, task = pair
    with pytest.raises(InputError, match="target: expected 4 outputs, as the source has, found 5"):
        retain.traverse(source, models.MLP(6, 5), task)
    with pytest.raises(InputError, match="outputs of the source: expected logits, found probabilities"):
        retain.traverse(nn.Sequential(source, nn.Softmax(1)), target, task)
    with pytest.raises(InputError, match="outputs of the target: expected logits"):
        retain.traverse(source, nn.Sequential(target, nn.Softmax(1)), task)
    with pytest.raises(InputError, match="shares weights with the source"):
        retain.traverse(source, source, task)
    with pytest.raises(InputError, match="shares weights"):
        retain.traverse(source, nn.Sequential(source.layers.fc1, nn.ReLU(), nn.Linear(24, 4)), task)
    with pytest.raises(RetainError, match="trainable parameters"):
        retain.traverse(source, models.copy(target).requires_grad_(False), task)
    with pytest.raises(InputError, match="gates to close"):
        retain.traverse(source, models.MLP(6, 8, 4), task, "ramp", steps=2)
    with pytest.raises(InputError, match="path between models"):
        retain.traverse(source, target, Task((task.data.inputs, torch.rand(120, 4)), likelihood=Bernoulli()))
    broken = models.copy(source)
    with torch.no_grad():
        broken.layers.fc1.bias[0] = float("nan")
    with pytest.raises(InputError, match="outputs of the source: expected finite numbers"):
        retain.traverse(broken, target, task)
    with pytest.raises(InputError, match=r"layers with Kronecker factors or a diagonal, found none for 'weight'"):
        retain.traverse(source, Odd(), task, paths.Optimal("kfac"), steps=2)
    assert retain.traverse(source, Odd(), task, "optimal", steps=3).iterations == 3  # Gauss-Newton takes any module


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        return x @ self.weight


def test_a_source_that_fails_on_some_data_is_named(pair):
    source, target, task = pair

    class Moody(nn.Module):
        def forward(self, x):
            out = source(x)
            return out.masked_fill((x[:, :1] > 3), float("nan")) if len(x) < 64 else out.clone().fill_(float("nan"))

    with pytest.raises(InputError, match=r"the source cannot answer some|finite numbers"):
        retain.traverse(Moody(), target, task, "distillation", steps=5)


def test_a_layer_in_which_nothing_is_on_is_named(pair):
    source, _, task = pair
    dead = models.sparsify(models.MLP(6, 200, 100, 4, seed=0), 10, lambda: models.SoftmaxThreshold(10, fallback=False))
    with pytest.raises(InputError, match=r"target layer 'layers.relu2': expected a unit that is on for some sample, .*calibrate"):
        retain.traverse(source, dead, task)
    plain = models.MLP(6, 8, 4, seed=0)
    with torch.no_grad():
        plain.layers.fc1.bias.fill_(-100)
    with pytest.raises(InputError, match=r"Initialise the layer before it anew"):
        retain.traverse(source, plain, task)


def test_a_layer_that_dies_on_the_way_is_reported(pair):
    source, target, task = pair

    class Kill(paths.Strategy):
        name, summary = "kill", ""

        def update(self, move):
            with torch.no_grad():
                move.walk.target.layers.fc2.bias.fill_(-1000)
            return {}

    with pytest.warns(RetainWarning, match=r"In layer 'layers.relu2' no unit is on"):
        retain.traverse(source, target, task, Kill(), steps=1)


def test_everything_is_undone_when_it_is_broken_off(pair):
    source, target, task = pair

    class Stop(paths.Distillation):
        def loss(self, move):
            if move.number == 2:
                raise KeyboardInterrupt
            return super().loss(move)

    with pytest.raises(KeyboardInterrupt):
        retain.traverse(source, target, task, Stop(lr=0.01), steps=5)
    assert all(p.requires_grad for p in source.parameters()) and target.training and all(p.grad is None for p in target.parameters())


def test_a_target_that_is_no_longer_finite_says_so(pair):
    source, target, task = pair
    with pytest.raises(RetainError, match="no longer answers with finite numbers"):
        retain.traverse(source, target, task, paths.Distillation(lr=1e30, schedule="constant", warmup=0), steps=20)


@pytest.mark.parametrize("bridge", paths.BRIDGES)
def test_classes_that_do_not_compete_stay_out(pair, bridge):
    source, target, task = pair
    kept = task.data.targets < 3
    some = Task((task.data.inputs[kept], task.data.targets[kept]), classes=(0, 1, 2), active=(0, 1, 2))
    path = retain.traverse(source, target, some, paths.Optimal(damping=1e-2), "geometric", bridge, steps=20)
    assert all(math.isfinite(value) for value in path.column("kl_target")) and path.kl < 0.5 * path.steps[0]["kl_target"] and path.accuracy > 0.8


def test_looking_ahead_ends_at_one(pair):
    source, target, task = pair
    inputs = task.data.inputs[:5]
    places, answers = Ahead(paths.MixtureBridge(), source(inputs).log_softmax(1).detach(), lambda: target(inputs)).points(0.2)
    assert places[0] == 0.2 and places[-1] == 1 and len(places) == len(answers)


@pytest.mark.parametrize("schedule", ["linear", "fisher-speed"])
def test_gates_close_slowly_whatever_the_schedule_has_looked_at(pair, schedule):
    source, target, task = pair
    seen = []
    target.layers.relu1.register_forward_hook(lambda gate, inputs, output: seen.append(gate.K) if gate.training else None)
    retain.traverse(source, target, task, paths.PruningRamp(paths.Distillation(lr=0.01)), schedule, steps=10)
    ramp = [K for K in seen if K > 3]
    assert len(ramp) >= 4 and ramp == sorted(ramp, reverse=True) and ramp[0] > 12 and target.layers.relu1.K == 3


def test_updates_before_q_moves_are_updates(pair):
    source, target, task = pair
    start = models.copy(target)
    seen = []

    class Look(paths.Distillation):
        def update(self, move):
            facts = super().update(move)
            seen.append((move.to, any(not torch.equal(a, b) for a, b in zip(start.parameters(), target.parameters(), strict=True))))
            return facts

    retain.traverse(source, target, task, Look(lr=0.01), start=0.1, steps=2, first=3)
    assert seen[:3] == [(0.1, True)] * 3
    held = []

    class Rate(paths.Optimal):
        def update(self, move):
            held.append(move.rate)
            return super().update(move)

    retain.traverse(source, models.copy(start), task, Rate(), start=0.1, steps=3, iterations=2, first=2)
    assert held == pytest.approx([1, 1, 0.3 / 0.4, 1, 0.3 / 0.7, 1, 0.3, 1])  # inner updates are whole steps


def test_memory_is_a_fair_reservoir(pair):
    source, target, task = pair
    counts = torch.zeros(120)
    for seed in range(30):
        strategy = paths.Retention("none", replay=30, batch_size=40)
        ends = {}

        class Peek(paths.Retention):
            def end(self, walk, ends=ends):
                ends["memory"] = self._memory
                super().end(walk)

        strategy.__class__ = Peek
        retain.traverse(source, models.copy(target), task, strategy, steps=3, seed=seed, certify=2)
        inputs, targets = ends["memory"]
        rows = [int((task.data.inputs == row).all(1).nonzero()[0]) for row in inputs]
        assert len(rows) == 30 and torch.equal(task.data.targets[rows], targets)
        counts[rows] += 1
    assert float(counts.mean()) == pytest.approx(7.5) and int((counts == 0).sum()) <= 3 and float(counts.std()) < 4


def test_retention_takes_what_the_other_strategies_take(pair):
    source, target, task = pair

    class Named(nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside = inside

        def forward(self, values):
            return {"logits": self.inside(values)}

    batches = [{"values": task.data.inputs[i : i + 30], "labels": task.data.targets[i : i + 30]} for i in range(0, 120, 30)]
    strategy = paths.Retention(0.5, samples=20, every=2)
    path = retain.traverse(Named(source), Named(target), Task(batches, n=120), strategy, steps=6)
    assert path.steps[-1]["share"] == 0.5
    with pytest.raises(InputError, match="data that are tensors"):
        retain.traverse(Named(source), Named(target), Task(batches, n=120), paths.Retention(replay=5), steps=1)
    assert all(p.requires_grad for p in source.parameters())


def test_a_fresh_batch_norm_gets_the_data_s_own_statistics(pair):
    source, _, task = pair
    target = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.9), nn.Linear(6, 4))
    retain.traverse(source, target, task, paths.Optimal(batch_size=30), steps=1)
    inputs = task.data.inputs
    assert torch.allclose(target[0].running_mean, inputs.mean(0), atol=1e-4) and target[0].momentum == 0.1
    kept = target[0].running_mean.clone()
    retain.traverse(source, target, task, "optimal", steps=1)
    assert torch.equal(target[0].running_mean, kept)


def test_certificates_are_of_as_many_samples_as_asked_for_and_repeat(pair):
    source, target, task = pair
    many = Task((task.data.inputs.repeat(20, 1), task.data.targets.repeat(20)))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(task.data.inputs, task.data.targets), batch_size=50, shuffle=True)
    found = [retain.traverse(source, models.copy(target), many, "frozen", steps=1, watch=loader, certify=70).kl for _ in range(2)]
    assert found[0] == found[1]
    asked = []
    handle = target.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    retain.traverse(source, target, many, "sudden", certify=1500)
    handle.remove()
    assert 500 in asked and 2000 not in asked


def test_a_belief_gathers_along_the_path_with_the_share_that_is_kept(pair):
    source, target, task = pair
    seen = []

    class Peek(paths.Retention):
        def end(self, walk):
            seen.append(self._belief)
            super().end(walk)

    retain.traverse(source, target, task, Peek(0.75, samples=40, every=2, batch_size=40), steps=9)
    assert seen[0].n == 80 * 0.75 / 0.25 + 80  # what is kept of the steps before, and the last step's samples
