"""The loop, its results, and the guard for other people's loops."""

import math
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import Memory
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import retain
from retain import methods, models, tasks
from retain.errors import InputError, RetainError
from retain.likelihoods import Bernoulli, Categorical, Gaussian, Tokens
from retain.models import unwrap
from retain.seeds import generator
from retain.tasks import Task
from retain.training import evaluate, measure
from retain.training.devices import denormals_flushed
from retain.training.epoch import Epoch
from retain.training.optimizers import clear_gradients, factor


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_equals_a_loop_written_by_hand(blobs, net):
    """Plain SGD over the same order gives the same bits."""
    task = blobs(1)
    ours = net()
    retain.learn(ours, [task], epochs=3, batch_size=16, optimizer="sgd", lr=0.1, seed=5)
    theirs = net()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, fused=True)
    for epoch in range(3):
        for rows in torch.randperm(60, generator=generator(5, "order", 0, epoch)).split(16):
            optimizer.zero_grad()
            F.cross_entropy(theirs(task.data.inputs[rows]), task.data.targets[rows]).backward()
            optimizer.step()
    assert torch.equal(flat(ours), flat(theirs))


def test_matrix_curves_and_metrics(blobs, net):
    stream = tasks.sequence(blobs(1), blobs(2), blobs(3))
    result = retain.learn(net(), stream, epochs=2, lr=0.02)
    R = result.accuracy
    assert R.shape == (4, 3) == result.nll.shape and len(result.history) == 6
    assert [entry["task"] for entry in result.history] == [t for t in result.tasks for _ in range(2)]
    assert R[1].tolist() == list(result.history[1]["accuracy"].values())
    assert result.average_accuracy == pytest.approx(R[3].mean())
    assert result.backward_transfer == pytest.approx(np.mean([R[3, 0] - R[1, 0], R[3, 1] - R[2, 1]]))
    assert result.forgetting == pytest.approx(np.mean([R[1:3, 0].max() - R[3, 0], R[2, 1] - R[3, 1]]))
    assert result.forward_transfer == pytest.approx(np.mean([R[1, 1] - R[0, 1], R[2, 2] - R[0, 2]]))
    assert evaluate(result.model, stream[2]).score == R[3, 2]
    assert len(result.plot().axes[0].lines) == 3
    assert result.plot()._repr_png_()[:4] == b"\x89PNG"
    partial = retain.learn(net(), [stream[1]], watch=stream, epochs=1)
    assert "after blobs-2" in repr(partial) and "after blobs-1" not in repr(partial)
    assert "after blobs-2" in str(result) and "<table>" in result._repr_html_()


def test_the_curve_holds_the_tasks_met_so_far(blobs, net):
    pair = [blobs(1), blobs(2)]
    result = retain.learn(net(), pair, epochs=4, score_every=2)
    assert [len(point) for point in result.curve] == [1, 1, 2, 2]
    assert result.curve[-1] == result.rows[-1] and result.curve[1] == result.rows[1][:1]
    assert result.anytime == pytest.approx(sum(sum(point) / len(point) for point in result.curve) / 4)


def test_going_on_after_a_result_is_learning_at_once(blobs, net):
    stream = tasks.sequence(blobs(1), blobs(2))
    whole = retain.learn(net(), stream, methods.EWC(3.0), epochs=2, seed=1)
    model = net()
    first = retain.learn(model, stream[:1], watch=stream, epochs=2, seed=1)
    method = methods.EWC(3.0)
    method.consolidate(model, stream[0])
    second = retain.learn(model, stream, method, after=first, epochs=2, seed=1)
    assert torch.equal(flat(whole.model), flat(second.model)) and whole.rows == second.rows and whole.history == second.history
    assert len(first.rows) == 2  # the first result is left as it was
    with pytest.raises(InputError, match="after"):
        retain.learn(model, stream, after=second)


def test_a_model_from_elsewhere_is_measured(blobs, net):
    stream = tasks.sequence(blobs(1), blobs(2))
    model = net()
    retain.learn(model, stream[:1], epochs=2)
    found = measure(model, stream)
    assert np.isnan(found.accuracy[0]).all() and found.accuracy[1, 0] == evaluate(model, stream[0]).score
    assert retain.learn(model, stream, after=found).accuracy.shape == (3, 2)
    with pytest.raises(InputError, match="between 1 and 2"):
        measure(model, stream, learned=3)


@pytest.mark.parametrize(
    ("likelihood", "targets", "outputs", "score"),
    [
        (Gaussian(0.1), lambda x: x[:, :1] * 2 - x[:, 1:2], 1, 0.95),
        (Bernoulli(), lambda x: (x[:, :2] > 0).float(), 2, 0.9),
    ],
)
def test_other_likelihoods_learn_and_keep(likelihood, targets, outputs, score):
    def task(seed, sign):
        x = torch.randn(200, 3, generator=torch.Generator().manual_seed(seed))
        return Task((x, targets(sign * x)), test=(x, targets(sign * x)), likelihood=likelihood, id=str(seed))

    stream = tasks.sequence(task(0, 1), task(1, -1))
    plain = retain.learn(nn.Linear(3, outputs), stream, epochs=30, lr=0.05)
    kept = retain.learn(nn.Linear(3, outputs), stream, methods.EWC(50), epochs=30, lr=0.05)
    assert plain.accuracy[1, 0] > score and plain.accuracy[2, 1] > score
    assert kept.accuracy[2, 0] > plain.accuracy[2, 0]
    assert plain.score_name in ("R2", "accuracy")


def test_sequences_of_tokens():
    x = torch.randint(5, (40, 6))
    y = ((x + 1) % 5).masked_fill(torch.rand(40, 6) < 0.2, -100)
    task = Task((x, y), test=(x, y), likelihood=Tokens(), id="next")
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))
    method = methods.EWC(labels="sampled")
    result = retain.learn(model, [task], method, epochs=30, lr=0.1, batch_size=8)
    assert result.accuracy[1, 0] > 0.95
    assert method.belief.n == int((y != -100).sum())
    assert set(method.belief.precision.values) == {"0.weight", "1.weight", "1.bias"}


def test_loaders_dicts_and_datasets(blobs, net):
    task = blobs(1)
    x, y = task.data.inputs, task.data.targets
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)

    def run(data):
        return retain.learn(net(), [Task(data, test=(x, y), id="t"), Task(data, test=(x, y), id="u")], methods.EWC(), epochs=2, seed=4)

    one, two = run(loader), run(loader)
    assert torch.equal(flat(one.model), flat(two.model))  # a loader that shuffles repeats, too
    state = torch.get_rng_state()
    run(loader)
    assert torch.equal(state, torch.get_rng_state())  # and the person's generator is left alone
    named = [{"input": a, "labels": b} for a, b in DataLoader(TensorDataset(x, y), batch_size=16)]

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, input):
            return {"logits": self.net(input)}

    result = retain.learn(Named(), [Task(named, test=named, n=60)], methods.EWC(), epochs=2)
    assert result.accuracy.shape == (2, 1)


def test_scenarios_change_what_is_asked():
    digits = tasks.digits()
    ends = {}
    for scenario in ("task", "class"):
        result = retain.learn(models.MLP(64, 32, 10, seed=0), tasks.split(digits, 5, scenario=scenario), epochs=10, seed=0)
        ends[scenario] = result.accuracy[-1]
    assert ends["task"].mean() > 0.85  # its identity is given, so little is forgotten
    assert ends["class"][0] < 0.2 and ends["class"][-1] > 0.8  # only the last task's classes are answered


class WithNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("policy", ["freeze", "track", "per-task"])
def test_batchnorm_policies(blobs, policy):
    torch.manual_seed(0)
    stream = tasks.sequence(blobs(1), blobs(2))
    model = WithNorm()
    first = retain.learn(model, stream[:1], watch=stream, epochs=2, batchnorm=policy)
    before = model.layers[1].running_mean.clone()
    result = retain.learn(model, stream, after=first, epochs=2, batchnorm=policy)
    moved = not torch.equal(model.layers[1].running_mean, before)
    assert moved == (policy != "freeze")
    assert model.layers[1].weight.grad is not None  # its weights learn under every policy
    assert result.accuracy.shape == (3, 2)


def test_batchnorm_per_task_answers_with_the_tasks_own_statistics(blobs):
    torch.manual_seed(0)
    a, b = blobs(1), blobs(2)
    b = Task((b.data.inputs * 5 + 20, b.data.targets), test=(b.test.inputs * 5 + 20, b.test.targets), id="far")
    kept = retain.learn(WithNorm(), [a, b], methods.L2SP(tau=0.003), epochs=4, batchnorm="per-task", lr=0.02).accuracy
    torch.manual_seed(0)
    lost = retain.learn(WithNorm(), [a, b], methods.L2SP(tau=0.003), epochs=4, batchnorm="track", lr=0.02).accuracy
    assert kept[2, 0] > lost[2, 0]


def test_precision_and_schedule(blobs, net):
    stream = [blobs(1)]
    assert next(retain.learn(net(), stream, precision="float64").model.parameters()).dtype == torch.float64
    mixed = retain.learn(net(), stream, precision="bfloat16", epochs=12, lr=0.02)
    assert next(mixed.model.parameters()).dtype == torch.float32 and mixed.accuracy[1, 0] > 0.8
    rates = []

    class Spy(methods.Method):
        def after_step(self, model, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    retain.learn(net(), stream, Spy(), epochs=2, batch_size=10, lr=0.1, schedule="cosine")
    assert len(rates) == 12 and rates[0] == pytest.approx(0.1) and rates[6] == pytest.approx(0.05) and rates == sorted(rates, reverse=True)


def test_hooks_come_in_order(blobs, net):
    calls = []

    class Spy(methods.Method):
        def __getattribute__(self, name):
            if name in ("prepare", "begin", "augment", "penalty", "before_step", "after_step", "consolidate"):
                calls.append(name)
            return super().__getattribute__(name)

    retain.learn(net(), [blobs(1)], Spy(), batch_size=30)
    step = ["augment", "penalty", "before_step", "after_step"]
    assert calls == ["prepare", "begin", *step, *step, "consolidate"]


def test_penalties_and_weights_reach_the_loss(blobs, net):
    class Pulled(methods.Method):
        def penalty(self, model, batch, outputs):
            return 100 * outputs.square().mean()

        def augment(self, batch, model):
            batch.weight = torch.zeros(len(batch.targets))
            batch.weight[0] = 1
            return batch

    model = net()
    retain.learn(model, [blobs(1)], Pulled(), epochs=40, lr=0.02)
    assert model(blobs(1).test.inputs).abs().max() < 0.3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, t: retain.learn(m, [t], epochs=0), "epochs"),
        (lambda m, t: retain.learn(m, [t], optimizer="adm"), "Did you mean 'adam'"),
        (lambda m, t: retain.learn(m, [t], lr=-1), "lr"),
        (lambda m, t: retain.learn(m, [t], schedule="step"), "cosine"),
        (lambda m, t: retain.learn(m, [t], device="cuda:99"), "device"),
        (lambda m, t: retain.learn(m, [t], precision="float8"), "precision"),
        (lambda m, t: retain.learn(m, [t], batchnorm="thaw"), "batchnorm"),
        (lambda m, t: retain.learn(nn.Linear(4, 2), [t]), "labels from 0 to 1"),
        (lambda m, t: retain.learn(m, []), "at least one task"),
        (lambda m, t: retain.learn(m, [t], "ewc"), r"methods\.EWC\(\)"),
        (lambda m, t: retain.learn(m, [t], methods.EWC), "a method such as"),
        (lambda m, t: retain.learn(None, [t]), "an nn.Module"),
        (lambda m, t: retain.learn(m, [t], seed=-1), "seed"),
    ],
)
def test_bad_settings(call, words, blobs, net):
    with pytest.raises(InputError, match=words):
        call(net(), blobs(1))


def test_a_loss_that_explodes_is_an_error(blobs, net):
    with pytest.raises(RetainError, match=r"no longer finite in epoch \d+ .*lr=1e\+08"):
        retain.learn(net(), [blobs(1)], optimizer="momentum", lr=1e8, epochs=50)


def test_a_last_step_that_breaks_the_weights_is_told():
    task = retain.tasks.Task((torch.full((8, 3), 1e6), torch.arange(8) % 2), id="a")
    with pytest.raises(RetainError, match=r"A weight on task 'a' is no longer finite in epoch 1 .*Lower lr"):  # the one loss, before it, is finite
        retain.learn(torch.nn.Linear(3, 2), [task], steps=1, optimizer="sgd", lr=1e38)


def test_one_loader_is_one_task_and_a_bare_task_is_refused(blobs, net):
    loader = DataLoader(TensorDataset(blobs(1).data.inputs, blobs(1).data.targets), batch_size=20)
    assert retain.learn(net(), [loader]).accuracy.shape == (2, 1)
    for wrong in (loader, blobs(1), None):
        with pytest.raises(InputError, match="a list of tasks"):
            retain.learn(net(), wrong)


def test_labels_are_checked_beyond_the_first_batch(blobs, net):
    x, y = blobs(1).data.inputs, blobs(1).data.targets.clone()
    y[-1] = 7
    loader = DataLoader(TensorDataset(x, y), batch_size=16)
    for data, test in (((x, y), None), (loader, None), (blobs(1).data, (x, y))):
        with pytest.raises(InputError, match="labels from 0 to 2"):
            retain.learn(net(), [Task(data, test=test, id="late", classes=(0, 1, 2))], batch_size=16)
    with pytest.raises(InputError, match="active classes"):
        retain.learn(net(), tasks.sequence(Task((x, blobs(1).data.targets), classes=(0, 1)), scenario="task"))
    with pytest.raises(InputError, match=r"inputs of task 'wide': expected what Sequential takes, found torch.float32 \[60, 9\]"):
        retain.learn(net(), [Task((torch.zeros(60, 9), blobs(1).data.targets), id="wide")])


def test_the_schedule_counts_a_loaders_own_batches(blobs, net):
    rates = []

    class Spy(methods.Method):
        def after_step(self, model, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    loader = DataLoader(TensorDataset(blobs(1).data.inputs, blobs(1).data.targets), batch_size=6)
    retain.learn(net(), [loader], Spy(), epochs=2, lr=0.1, schedule="cosine")
    assert len(rates) == 20 and rates[10] == pytest.approx(0.05) and rates == sorted(rates, reverse=True)


def test_a_loader_with_its_own_generator_repeats(blobs, net):
    def run():
        loader = DataLoader(TensorDataset(blobs(1).data.inputs, blobs(1).data.targets), batch_size=6, shuffle=True, generator=torch.Generator())
        loader.generator.seed()
        return flat(retain.learn(net(), [loader], seed=2).model)

    assert torch.equal(run(), run())


def test_a_task_resumed_inside_restores_what_begin_did(blobs, net):
    """A method that freezes a teacher in begin ends with the same bits when it is interrupted."""

    class Teacher(methods.Method):
        def begin(self, model, task):
            self.old = flat(model).clone()

        def before_step(self, model, optimizer):
            model[0].weight.grad += self.old[: model[0].weight.numel()].view_as(model[0].weight)

        def state_dict(self):
            return {"old": self.old}

        def load_state_dict(self, state, model):
            self.old = state["old"]

    class Memory:
        def __init__(self, stop=None):
            self.stop, self.kept, self.count = stop, None, 0

        def event(self, kind, **fields):
            self.count += 1
            if self.count == self.stop:
                raise KeyboardInterrupt

        def save(self, state, *, final=False):
            import copy

            self.kept = copy.deepcopy(state())

        def load(self):
            return self.kept

    stream = tasks.sequence(blobs(1), blobs(2))
    whole = retain.learn(net(), stream, Teacher(), epochs=4)
    memory = Memory(stop=7)
    with pytest.raises(KeyboardInterrupt):
        retain.learn(net(), stream, Teacher(), epochs=4, recorder=memory)
    memory.stop = None
    again = retain.learn(net(), stream, Teacher(), epochs=4, recorder=memory)
    assert torch.equal(flat(whole.model), flat(again.model)) and whole.rows == again.rows and whole.history == again.history


def test_r2_is_about_each_output():
    y = torch.stack([torch.randn(50), 100 + torch.randn(50)], 1)
    g = Gaussian()
    assert g.score(g.tally(y.mean(0).expand_as(y), y)) == pytest.approx(0, abs=1e-6)


def test_a_batch_of_padding_weighs_nothing():
    assert float(Tokens().mean_nll(torch.randn(1, 2, 3), torch.full((1, 2), -100))) == 0


def test_evaluation_leaves_modes_and_caches_alone(blobs):
    model = WithNorm()
    model.layers[1].eval()
    evaluate(model, blobs(1))
    assert model.training and not model.layers[1].training

    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.cache = nn.Linear(4, 3), None

        def forward(self, x):
            if self.cache is None:
                self.cache = x.new_ones(1)
            return self.layer(x) * self.cache

    retain.learn(Caching(), [blobs(1)])


def test_joint_training_is_asked_for_all_its_classes():
    digits = tasks.digits()
    stream = tasks.split(digits, 2, scenario="class")
    result = retain.learn(models.MLP(64, 16, 10, seed=0), [tasks.union(*stream.tasks)], watch=stream, epochs=5)
    from dataclasses import replace

    full = [evaluate(result.model, replace(task, active=None)).score for task in stream.tasks]
    assert result.rows[-1] == full


# ---- the guard


def test_guard_equals_the_loop(blobs, net):
    from retain.seeds import generator

    old, new = blobs(1), blobs(2)
    model = net()
    retain.learn(model, [old], epochs=2)
    for pull in ("gradient", "proximal"):
        theirs, ours = models.copy(model), models.copy(model)
        method = methods.EWC(5.0, pull=pull)
        method.consolidate(theirs, old)
        optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, fused=True)
        wrapped = nn.DataParallel(theirs)
        guard = retain.attach(method, wrapped, optimizer, new)
        for rows in torch.randperm(60, generator=generator(0, "order", 0, 0)).split(16):
            optimizer.zero_grad()
            F.cross_entropy(wrapped(new.data.inputs[rows]), new.data.targets[rows]).backward()
            optimizer.step()
        guard.consolidate()
        other = methods.EWC(5.0, pull=pull)
        other.consolidate(ours, old)
        retain.learn(ours, [new], other, epochs=1, batch_size=16, optimizer="momentum", lr=0.1)
        assert torch.equal(flat(theirs), flat(ours))
        assert method.belief.n == 120
        assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_guard_with_accumulated_and_clipped_gradients(blobs, net):
    """The pull is added once a step, to the final gradients."""
    old, new = blobs(1), blobs(2)
    ends = []
    for pieces in (1, 4):
        model, method = net(), methods.EWC(5.0)
        method.consolidate(model, old)
        with torch.no_grad():
            model[0].weight += 0.1
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        retain.attach(method, model, optimizer, new)
        for x, y in zip(new.data.inputs.chunk(pieces), new.data.targets.chunk(pieces), strict=True):
            (F.cross_entropy(model(x), y) / pieces).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        ends.append(flat(model))
    assert torch.allclose(*ends, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_guard_under_a_gradient_scaler(blobs, net, fused):
    """Scaled, unscaled and skipped steps: the pull is that of an unscaled step, and a skipped step changes nothing."""
    old, new = blobs(1), blobs(2)

    def step(scaler, blow_up=False):
        model, counted = net(), []

        class Counting(methods.EWC):
            def after_step(self, model, optimizer):
                counted.append(1)

        method = Counting(5.0)
        method.consolidate(model, old)
        with torch.no_grad():
            model[0].weight += 0.1
        before = flat(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        retain.attach(method, model, optimizer, new)
        loss = F.cross_entropy(model(new.data.inputs), new.data.targets)
        if blow_up:
            loss = loss * float("inf")
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return before, flat(model), len(counted)

    _, plain, _ = step(None)
    before, scaled, counted = step(torch.amp.GradScaler("cpu", init_scale=1024.0))
    assert torch.allclose(plain, scaled, atol=1e-6) and counted == 1
    assert not torch.allclose(before, scaled)
    before, skipped, counted = step(torch.amp.GradScaler("cpu", init_scale=1024.0), blow_up=True)
    assert torch.equal(before, skipped) and counted == 0


def test_guard_unscales_every_parameter_of_a_fused_optimiser(blobs, net):
    model, other, method = net(), nn.Linear(2, 1), methods.EWC()
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1, fused=True)
    retain.attach(method, model, optimizer, blobs(1))
    before = other.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(other(torch.ones(1, 2)).sum() + model(torch.ones(1, 4)).sum()).backward()
    scaler.step(optimizer)
    assert torch.allclose(other.weight.detach(), before - 0.1)


def test_guard_takes_loaders_and_warns_of_batch_norm(blobs, net):
    from retain.errors import RetainWarning

    loader = DataLoader(TensorDataset(blobs(1).data.inputs, blobs(1).data.targets), batch_size=20)
    model, method = net(), methods.EWC()
    method.consolidate(model, loader)
    assert method.belief.n == 60
    guard = retain.attach(method, model, torch.optim.SGD(model.parameters(), lr=0.1), loader)
    guard.consolidate()
    with pytest.raises(RetainError, match="twice"):
        guard.consolidate()
    normed = WithNorm()
    with pytest.warns(RetainWarning, match="batch-norm"):
        retain.attach(methods.L2SP(), normed, torch.optim.SGD(normed.parameters(), lr=0.1), loader)


def test_guard_refuses_what_it_cannot_do(blobs, net):
    model, method = net(), methods.EWC()
    with pytest.raises(RetainError, match="LBFGS"):
        retain.attach(method, model, torch.optim.LBFGS(model.parameters()), blobs(1))
    with pytest.raises(RetainError, match="trains none"):
        retain.attach(method, model, torch.optim.SGD(net().parameters(), lr=0.1), blobs(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = retain.attach(method, model, optimizer, (blobs(1).data.inputs, blobs(1).data.targets))
    with pytest.raises(RetainError, match="closure"):
        optimizer.step(lambda: model(torch.zeros(1, 4)).sum())
    guard.detach()
    optimizer.step(lambda: 0.0)
    with pytest.raises(InputError, match="n: expected"):
        retain.attach(method, model, optimizer, [(torch.zeros(1, 4), torch.zeros(1).long())])


def test_guard_penalty_is_zero_for_quadratic_methods(blobs, net):
    model, method = net(), methods.EWC()
    method.consolidate(model, blobs(1))
    guard = retain.attach(method, model, torch.optim.SGD(model.parameters(), lr=0.1), blobs(2))
    x, y = blobs(2).data.inputs, blobs(2).data.targets
    assert float(guard.penalty((x, y), model(x))) == 0
    assert method.energy(model) == 0
    with torch.no_grad():
        model[0].weight += 1
    assert method.energy(model) > 0 and math.isfinite(method.energy(model))


def test_unwrap_only_unwraps_wrappers():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    mine = Mine()
    assert unwrap(mine) is mine
    assert unwrap(nn.DataParallel(mine)) is mine
    compiled = torch.compile(mine)
    assert unwrap(compiled) is mine


def test_steps_end_inside_a_pass_and_the_schedule_ends_with_them():
    task = Task((torch.rand(50, 4), torch.randint(0, 2, (50,))), id="toy")
    rates = []

    class Watch(methods.Plain):
        def after_step(self, model, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    result = retain.learn(models.MLP(4, 2, seed=0), [task], Watch(), steps=12, batch_size=10, optimizer="sgd", lr=1.0, schedule="cosine")
    assert len(rates) == 12 and [entry["epoch"] for entry in result.history] == [1, 2, 3]
    assert rates[0] == 1.0 and rates[6] == pytest.approx(0.5) and 0 < rates[-1] < 0.02
    whole = retain.learn(models.MLP(4, 2, seed=0), [task], steps=15, batch_size=10)
    again = retain.learn(models.MLP(4, 2, seed=0), [task], epochs=3, batch_size=10)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_steps_need_a_known_number_of_batches():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(torch.rand(4), torch.tensor(1))] * 20)

    task = Task(torch.utils.data.DataLoader(Endless(), batch_size=4), n=20)
    with pytest.raises(InputError, match="steps: expected data of task 'task' that know their number of batches"):
        retain.learn(models.MLP(4, 2, seed=0), [task], steps=5)


class Memo:
    """A recorder that keeps the last checkpoint."""

    def __init__(self):
        self.state = None

    def event(self, kind, **fields):
        pass

    def save(self, state, *, final=False):
        self.state = state()

    def load(self):
        return self.state


class Emptied(methods.Method):
    """Sets the weights to zero when a task is over."""

    def consolidate(self, model, task):
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()


def test_a_row_is_what_the_model_answers_when_the_task_is_over(blobs, net, monkeypatch):
    asked = []
    monkeypatch.setattr("retain.training.loop.evaluate", lambda *args, **kwargs: asked.append(1) or evaluate(*args, **kwargs))
    plain = retain.learn(net(), [blobs(1)], epochs=3, lr=0.05)
    assert plain.rows[1] == [plain.history[-1]["accuracy"]["blobs-1"]] and len(asked) == 1 + 3  # not scored twice
    asked.clear()
    emptied = retain.learn(net(), [blobs(1)], Emptied(), epochs=3, lr=0.05)
    assert len(asked) == 1 + 3 + 1 and emptied.rows[1] != [emptied.history[-1]["accuracy"]["blobs-1"]]


def test_a_task_with_nothing_left_is_scored_when_it_is_gone_on_with(blobs, net):
    memo, whole = Memo(), net()
    stopped = retain.learn(whole, [blobs(1)], epochs=3, lr=0.05, recorder=memo)
    memo.state = None

    class Stop(Exception):
        pass

    class Once(Memo):
        def save(self, state, *, final=False):
            super().save(state)
            if self.state["epoch"] == 2:
                raise Stop

    once = Once()
    with pytest.raises(Stop):
        retain.learn(net(), [blobs(1)], epochs=3, lr=0.05, recorder=once)
    memo.state = once.state
    short = retain.learn(net(), [blobs(1)], epochs=2, lr=0.05, recorder=memo)  # all of its passes are done
    assert len(short.rows) == 2 and short.rows[1] == [short.history[1]["accuracy"]["blobs-1"]] and stopped.history[:2] == short.history


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_carried_optimiser_goes_on(blobs, net, schedule):
    """Moments go on from task to task, the rate begins anew, and an interruption between tasks or inside one changes no bit."""
    stream = [blobs(1), blobs(2), blobs(3)]
    options = {"epochs": 2, "batch_size": 16, "lr": 0.01, "seed": 5, "schedule": schedule}
    carried, fresh = net(), net()
    retain.learn(carried, stream, carry_optimizer=True, **options)
    retain.learn(fresh, stream, **options)
    assert not torch.equal(flat(carried), flat(fresh))

    theirs, made = net(), []
    for t, task in enumerate(stream):  # one optimiser for all, in a loop of one's own
        made = made or [torch.optim.Adam(theirs.parameters(), lr=0.01, fused=True)]
        for epoch in range(2):
            for step, rows in enumerate(torch.randperm(60, generator=generator(5, "order", t, epoch)).split(16)):
                made[0].param_groups[0]["lr"] = 0.01 * factor(schedule, (epoch + step / 4) / 2)
                made[0].zero_grad()
                F.cross_entropy(theirs(task.data.inputs[rows]), task.data.targets[rows]).backward()
                made[0].step()
    assert torch.equal(flat(carried), flat(theirs))

    for saves in range(1, 6):
        stop, again = Memory(saves), net()
        with pytest.raises(KeyboardInterrupt):
            retain.learn(again, stream, carry_optimizer=True, recorder=stop, **options)
        again = net()
        retain.learn(again, stream, carry_optimizer=True, recorder=stop, **options)
        assert torch.equal(flat(again), flat(carried)), saves


def test_a_carried_optimiser_is_made_anew_for_other_parameters(blobs, net):
    """What is frozen meanwhile ends it, instead of giving its moments to other weights."""

    class Freezes(methods.Plain):
        def begin(self, model, task):
            if self.second:
                next(model.parameters()).requires_grad_(False)
            self.second = True

        second = False

    made = []

    def make(parameters):
        made.append(len(parameters))
        return torch.optim.Adam(parameters)

    everything = len(list(net().parameters()))
    retain.learn(net(), [blobs(1), blobs(2)], Freezes(), carry_optimizer=True, optimizer=make)
    assert made == [everything, everything - 1]
    made.clear()
    retain.learn(net(), [blobs(1), blobs(2)], carry_optimizer=True, optimizer=make)
    assert made == [everything]

    whole, again, stop = net(), net(), Memory(1)
    retain.learn(whole, [blobs(1), blobs(2)], Freezes(), carry_optimizer=True)
    with pytest.raises(KeyboardInterrupt):
        retain.learn(net(), [blobs(1), blobs(2)], Freezes(), carry_optimizer=True, recorder=stop)
    between = Freezes()
    between.second = True  # it goes on with the second task
    retain.learn(again, [blobs(1), blobs(2)], between, carry_optimizer=True, recorder=stop)
    assert torch.equal(flat(again), flat(whole))


def test_an_epoch_sums_what_its_steps_say(monkeypatch):
    likelihood, draw = Categorical(), torch.Generator().manual_seed(0)
    monkeypatch.setattr("retain.training.epoch._STEPS", 3)
    sums, losses, right, seen = Epoch(likelihood), [], 0, 0
    for size in (4, 4, 4, 4, 2):  # the first three together, then what is left
        outputs, targets = torch.randn(size, 5, generator=draw), torch.randint(5, (size,), generator=draw)
        loss = likelihood.mean_nll(outputs, targets)
        sums.add(loss, outputs, targets)
        losses.append(float(loss))
        right, seen = right + int((outputs.argmax(1) == targets).sum()), seen + size
    assert sums.mean() == pytest.approx(sum(losses) / 5, rel=1e-6)
    assert sums.score() == right / seen


def test_an_epoch_takes_sequences_of_any_length():
    sums, draw = Epoch(Tokens()), torch.Generator().manual_seed(0)
    right = seen = 0
    for length in (3, 3, 5, 1):
        outputs, targets = torch.randn(2, length, 7, generator=draw), torch.randint(7, (2, length), generator=draw)
        sums.add(torch.tensor(1.0), outputs, targets)
        right, seen = right + int((outputs.argmax(-1) == targets).sum()), seen + targets.numel()
    assert sums.steps == 4
    assert sums.score() == pytest.approx(right / seen)


class Tiny(methods.Plain):
    """Notes what the processor makes of a number that single precision holds only as a denormal."""

    def __init__(self):
        self.found = []

    def before_step(self, model, optimizer):
        self.found.append(float(torch.full((), 1e-40) * 1))


def test_denormals_are_zero_while_it_learns_and_only_then(blobs, net):
    method = Tiny()
    retain.learn(net(), [blobs(1)], method, epochs=1)
    assert set(method.found) == {0.0}
    assert float(torch.full((), 1e-40) * 1) > 0
    with pytest.raises(RuntimeError, match="inside"), denormals_flushed():
        raise RuntimeError("inside")
    assert float(torch.full((), 1e-40) * 1) > 0
    torch.set_default_dtype(torch.float64)  # says nothing of single precision
    try:
        with denormals_flushed():
            with denormals_flushed():
                pass
            assert float(torch.full((), 1e-40, dtype=torch.float32) * 1) == 0
    finally:
        torch.set_default_dtype(torch.float32)


WORKING_BY_THE_LOSS = [methods.ER(8), methods.DERpp(8), methods.LwF(), methods.compose(methods.EWC(), methods.ER(8)), methods.VCL(samples=2)]


@pytest.mark.parametrize("method", WORKING_BY_THE_LOSS, ids=repr)
def test_a_guarded_step_without_the_penalty_it_works_by_is_refused(blobs, net, method):
    model, task = method.prepare(net()), blobs(1)
    optimizer = torch.optim.SGD(method.groups(model, 0.1), lr=0.1)
    guard, before = retain.attach(method, model, optimizer, task), flat(model)
    for batch in list(task.batches(20))[:2]:
        outputs = model(batch.inputs)
        loss = F.cross_entropy(outputs, batch.targets)
        loss.backward(retain_graph=True)
        with pytest.raises(RetainError, match=r"guard\.penalty: expected it in the loss"):
            optimizer.step()
        assert torch.equal(flat(model), before)
        optimizer.zero_grad()
        (loss + guard.penalty(batch, outputs)).backward()
        optimizer.step()  # the next one needs it again
        assert not torch.equal(flat(model), before)
        before = flat(model)


@pytest.mark.parametrize("method", [methods.EWC(), methods.AGEM(8), methods.compose(methods.EWC(), methods.AGEM(8)), methods.VCL()], ids=repr)
def test_methods_that_work_on_gradients_need_no_penalty(blobs, net, method):
    model, task = method.prepare(net()), blobs(1)
    optimizer = torch.optim.SGD(method.groups(model, 0.1), lr=0.1)
    retain.attach(method, model, optimizer, task)
    F.cross_entropy(model(task.data.inputs), task.data.targets).backward()
    optimizer.step()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_stays_unless_the_environment_says_otherwise():
    script = """if True:
        import resource, torch
        from retain.training.devices import keep_freed_memory
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(10):
                torch.zeros(12_000_000)  # 48 MB, beyond what glibc ever keeps of its own accord
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        print(keep_freed_memory(), faults() // 10, faults() // 10)"""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    kept, given = (
        subprocess.run([sys.executable, "-c", script], env=own | more, capture_output=True, text=True, check=True).stdout.split()
        for more in ({}, {"MALLOC_TRIM_THRESHOLD_": "1000000"})
    )
    assert (kept[0], given[0]) == ("True", "False")
    assert int(kept[2]) < int(given[2]) / 10  # pages asked of the system, a block


def test_an_epoch_copies_what_waits_and_not_what_is_large(monkeypatch):
    sums, outputs, targets = Epoch(Categorical()), torch.eye(3), torch.arange(3)
    for shift in range(2):  # a loader and a model that write the next batch into the same memory
        outputs.copy_(torch.eye(3).roll(shift, 1))
        targets.copy_((torch.arange(3) + shift) % 3)
        sums.add(torch.tensor(1.0), outputs, targets)
    assert sums.score() == 1
    monkeypatch.setattr("retain.training.epoch._ROOM", 8)
    sums = Epoch(Categorical())
    sums.add(torch.tensor(1.0), outputs, targets)
    assert not sums._waiting
    assert sums.score() == 1


def test_an_optimiser_forgets_gradients_its_own_way():
    class Counting(torch.optim.SGD):
        cleared = 0

        def zero_grad(self, set_to_none=True):
            self.cleared += 1

    weight = torch.nn.Parameter(torch.ones(2))
    for kind in (torch.optim.SGD, Counting):
        optimizer, weight.grad = kind([weight], lr=0.1), torch.ones(2)
        clear_gradients(optimizer)
        assert (weight.grad is None) == (kind is torch.optim.SGD)
    assert optimizer.cleared == 1
