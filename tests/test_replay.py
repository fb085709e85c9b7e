"""Replay, against hand computations."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import retain
from retain import methods, models, tasks
from retain.errors import InputError
from retain.likelihoods import Gaussian, Tokens
from retain.methods.memory import Memory
from retain.tasks import Batch, Task, apply


def draw(seed):
    return torch.Generator().manual_seed(seed)


def batch_of(task, rows=slice(None)):
    return Batch(task.data.inputs[rows], task.data.targets[rows], task)


def parity(n=40, seed=0):
    """Four classes on four inputs, two tasks of two classes."""
    g = draw(seed)
    inputs, targets = torch.randn(n, 4, generator=g), torch.arange(n) % 4
    return Task((inputs + 3 * F.one_hot(targets, 4), targets), id="four")


# the memory


@pytest.mark.parametrize("chunk", [1, 7, 30])
def test_every_sample_is_kept_equally_often(chunk):
    runs, size, n = 2000, 5, 30
    kept = Counter()
    for seed in range(runs):
        memory = Memory(size, draw(seed))
        for part in torch.arange(n).split(chunk):
            memory.add(number=part)
        found = memory.rows["number"].tolist()
        assert len(set(found)) == size and memory.seen == n
        kept.update(found)
    expected = runs * size / n
    # the counts are of draws without replacement: their chi-square is smaller by (1 - size/n)
    statistic = sum((kept[i] - expected) ** 2 / expected for i in range(n)) / (1 - size / n)
    assert statistic < 58.3  # 29 degrees of freedom: exceeded once in a thousand


def test_the_reservoir_is_that_of_one_sample_at_a_time():
    memory, slow, g = Memory(4, draw(3)), [], draw(3)
    for part in torch.arange(50).split(11):
        memory.add(number=part)
    for i in range(50):
        if i < 4:
            slow.append(i)
        elif (place := int(torch.rand(1, generator=g, dtype=torch.float64) * (i + 1))) < 4:
            slow[place] = i
    assert memory.rows["number"].tolist() == slow


def test_samples_are_drawn_equally_often_and_differ():
    memory = Memory(10, draw(0))
    memory.add(number=torch.arange(10))
    drawn = [memory.sample(4)["number"].tolist() for _ in range(1000)]
    assert all(len(set(one)) == 4 for one in drawn) and len(memory.sample(20)["number"]) == 10
    counts = Counter(number for one in drawn for number in one)
    assert sum((counts[i] - 400) ** 2 / 400 for i in range(10)) / 0.6 < 27.9  # 9 degrees of freedom


def test_rows_of_another_shape_are_refused():
    memory = Memory(10, draw(0))
    memory.add(inputs=torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"inputs: expected the shape of those in memory, \[3\], found \[4\]"):
        memory.add(inputs=torch.zeros(2, 4))


def test_what_is_kept_does_not_change_with_the_data():
    x = torch.zeros(2, 3)
    memory = Memory(10, draw(0))
    memory.add(inputs=x)
    x += 1
    assert not memory.rows["inputs"].any()


# replay


@pytest.mark.parametrize(
    ("choose", "size", "expected"), [("per-class", 3, [3] * 4), ("balanced", 10, [2] * 4), ("balanced", 3, [1, 1, 1, 0]), ("reservoir", 7, None)]
)
def test_as_many_of_each_class_as_asked_for(net, choose, size, expected):
    method, model = methods.ER(size, choose), net(classes=4)
    for task in tasks.split(parity(), 2):
        method.consolidate(model, task)
    counts = method.memory.rows["targets"].bincount(minlength=4).tolist()
    assert counts == expected if expected else sum(counts) == size
    assert all((method.memory.rows["targets"] // 2 == method.memory.rows["task"]).tolist())


def test_balanced_memories_keep_each_sample_of_a_class_equally_often(net):
    kept, model = Counter(), net(classes=4)
    stream = tasks.split(parity(), 2)
    for seed in range(600):
        method = methods.ER(8, "balanced", seed=seed)  # 4 of each class first, then cut to 2
        for task in stream:
            method.consolidate(model, task)
        kept.update(tuple(row.tolist()) for row in method.memory.rows["inputs"])
    assert len(kept) == 40 and sum((count - 120) ** 2 / 120 for count in kept.values()) / 0.8 < 67.9  # 36 degrees of freedom


def test_classes_are_balanced_only_where_there_are_some(net):
    task = Task((torch.zeros(4, 4), torch.zeros(4, 1)), likelihood=Gaussian())
    with pytest.raises(InputError, match="choose: expected 'reservoir' for task 'task', whose targets are no classes"):
        methods.ER(4, "balanced").consolidate(net(classes=1), task)


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
@pytest.mark.parametrize("weight", ["tasks", "samples", "sum"])
def test_the_loss_with_replay_is_the_hand_computation(net, scenario, weight):
    first, second = tasks.split(parity(), 2, scenario=scenario)
    model, method = net(classes=4), methods.ER(6, weight=weight, batch=6, strength=0.5)
    method.consolidate(model, first)
    rows, batch = method.memory.rows, batch_of(second, slice(0, 9))
    outputs = apply(model, batch)
    new = F.cross_entropy(outputs, batch.targets)
    logits = model(rows["inputs"])
    old = 0.5 * F.cross_entropy(logits[:, :2] if scenario == "task" else logits, rows["targets"])
    expected = {"tasks": (new + old) / 2, "samples": (9 * new + 6 * old) / 15, "sum": new + old}[weight]
    assert torch.allclose(new + method.penalty(model, batch, outputs), expected, atol=1e-6)


def test_gradients_of_old_samples_stay_in_their_own_head(net):
    first, second = tasks.split(parity(), 2, scenario="task")
    model, method = net(classes=4), methods.ER(6, weight="sum")
    method.consolidate(model, first)
    batch = batch_of(second)
    method.penalty(model, batch, apply(model, batch).detach()).backward()
    head = model[2].weight.grad.abs().sum(1)
    assert (head[:2] > 0).all() and (head[2:] == 0).all()


def test_the_third_task_weighs_a_third(net):
    model, method = net(), methods.ER(6)
    task = Task((torch.randn(20, 4), torch.arange(20) % 3))
    for _ in range(2):
        method.consolidate(model, task)
    batch = batch_of(task)
    outputs = apply(model, batch)
    old = F.cross_entropy(model(method.memory.rows["inputs"]), method.memory.rows["targets"])
    new = F.cross_entropy(outputs, batch.targets)
    assert torch.allclose(new + method.penalty(model, batch, outputs), new / 3 + 2 * old / 3, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: methods.ER(100), lambda: methods.ER(20, "per-class"), lambda: methods.DERpp(100)])
def test_replay_remembers(make):
    stream = tasks.split(tasks.digits(), 5, scenario="class")
    kept, lost = (retain.learn(models.MLP(64, 32, 10, seed=0), stream, method, epochs=10, lr=0.005, score_every=10) for method in (make(), None))
    assert lost.average_accuracy < 0.3 and kept.average_accuracy > 0.7


def test_loaders_and_sequences_can_be_replayed():
    g = draw(0)
    tokens, labels = torch.randint(6, (16, 5), generator=g), torch.randint(6, (16, 5), generator=g)
    labels[0, 3:] = -100
    stream = [Task([(tokens[i : i + 4], labels[i : i + 4]) for i in range(0, 16, 4)], likelihood=Tokens(), n=78, id=name) for name in "ab"]
    for method in (methods.ER(5), methods.DERpp(5), methods.LwF()):
        model = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 6))
        assert retain.learn(model, stream, method, epochs=1).accuracy.shape == (3, 2)


def test_inputs_that_are_not_one_tensor_are_refused(net):
    task = Task([((torch.zeros(2, 4), torch.zeros(2, 4)), torch.zeros(2).long())], n=2)
    with pytest.raises(InputError, match="inputs: expected a tensor, since a memory keeps rows of it, found tuple of 2"):
        methods.ER(5).consolidate(net(), task)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: methods.ER(0), "size: expected a whole number"),
        (lambda: methods.ER(5, "best"), "choose: expected 'reservoir', 'balanced' or 'per-class'"),
        (lambda: methods.ER(5, weight="half"), "weight: expected 'tasks', 'samples' or 'sum'"),
        (lambda: methods.ER(5, "balanced", online=True), "online: expected False with choose='balanced'"),
        (lambda: methods.ER(5, batch=0), "batch: expected"),
        (lambda: methods.ER(5, strength=-1), "strength: expected"),
        (lambda: methods.DERpp(5, alpha=-1), "alpha: expected"),
        (lambda: methods.DERpp(5, beta=-1), "beta: expected"),
        (lambda: methods.LwF(-1), "strength: expected"),
        (lambda: methods.LwF(temperature=0), "temperature: expected"),
        (lambda: methods.LwF(weight="samples"), "weight: expected 'tasks', 'sum' or 'past'"),
        (lambda: methods.LwF(among="new"), "among: expected 'old' or 'competing'"),
    ],
)
def test_settings_out_of_range_are_named(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_what_passes_is_taken_in_after_the_step_and_once(net):
    task = Task((torch.randn(12, 4), torch.arange(12) % 3))
    for method in (methods.ER(50, online=True), methods.DERpp(50)):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        guard = retain.attach(method, model, optimizer, task)
        for step, batch in enumerate(task.batches(4)):
            outputs = apply(model, batch)
            (F.cross_entropy(outputs, batch.targets) + guard.penalty(batch, outputs)).backward()
            assert len(method.memory) == 4 * step
            optimizer.step()
            assert len(method.memory) == 4 * step + 4
            if "outputs" in method.memory.rows:
                assert torch.equal(method.memory.rows["outputs"][-4:], outputs)
        guard.consolidate()
        assert len(method.memory) == 12  # not read again


# dark experience replay


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
def test_both_terms_are_the_hand_computation(net, scenario):
    first, second = tasks.split(parity(), 2, scenario=scenario)
    model, method = net(classes=4), methods.DERpp(6, alpha=0.3, beta=0.7, batch=4)
    method.consolidate(model, first)
    again = Memory(6, draw(0))
    again.load_state_dict(method.memory.state_dict(), torch.device("cpu"))
    one, two = again.sample(4), again.sample(4)  # a draw for each term
    assert not torch.equal(one["inputs"], two["inputs"])
    moved, batch = net(seed=1, classes=4), batch_of(second)
    square = F.mse_loss(moved(one["inputs"]), model(one["inputs"]))  # all outputs, closed ones too
    h = moved(two["inputs"])
    label = F.cross_entropy(h[:, :2] if scenario == "task" else h, two["targets"])
    found = method.penalty(moved, batch, apply(moved, batch))
    assert torch.allclose(found, 0.3 * square + 0.7 * label, atol=1e-5)


def test_the_answers_kept_are_those_of_all_outputs_before_the_step(net):
    first = tasks.split(parity(), 2, scenario="class")[0]
    model, method = net(classes=4), methods.DERpp(50)
    guard = retain.attach(method, model, torch.optim.SGD(model.parameters(), lr=0.1), first)
    batch = batch_of(first)
    before = model(batch.inputs).detach()
    F.cross_entropy(apply(model, batch), batch.targets).backward()
    guard.penalty(batch, apply(model, batch))
    guard.optimizer.step()
    assert torch.equal(method.memory.rows["outputs"], before) and not torch.equal(model(batch.inputs), before)


# a-gem


def turned(method, model, old, new):
    """The gradients of a step on new samples, before and after the method, and those of all old samples."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    method.begin(model, new)
    F.cross_entropy(apply(model, batch_of(new)), new.data.targets).backward()
    before = torch.cat([p.grad.flatten().clone() for p in model.parameters()])
    method.before_step(model, optimizer)
    after = torch.cat([p.grad.flatten().clone() for p in model.parameters()])
    loss = F.cross_entropy(apply(model, batch_of(old)), old.data.targets)
    return before, after, torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_a_gem_projects_what_goes_against_the_old_samples(net):
    old = parity()
    new = Task((old.data.inputs, (old.data.targets + 1) % 4), id="contrary")
    model, method = net(classes=4), methods.AGEM(1000, batch=1000)
    retain.learn(model, [old], epochs=30, lr=0.01)
    method.consolidate(model, old)
    before, after, theirs = turned(method, model, old, new)
    assert float(before @ theirs) < -1e-3 and abs(float(after @ theirs)) < 1e-6
    assert torch.allclose(after, before - (before @ theirs) / (theirs @ theirs) * theirs, atol=1e-6)
    assert method.report(model) == {"projected": 1.0}


def test_a_gem_leaves_what_agrees_alone(net):
    old, model, method = parity(), net(classes=4), methods.AGEM(1000, batch=1000)
    before, after, _ = turned(method, model, old, old)
    assert torch.equal(before, after) and method.report(model) == {}  # nothing is remembered yet
    method.consolidate(model, old)
    model.zero_grad()
    before, after, theirs = turned(method, model, old, old)
    assert float(before @ theirs) > 0 and torch.equal(before, after) and method.report(model) == {"projected": 0.0}


class Uphill(methods.Method):
    """What pulls against the old samples."""

    def before_step(self, model, optimizer):
        for p in model.parameters():
            p.grad.neg_()


def test_a_gem_comes_after_the_pulls(net):
    old = parity()
    for parts in ([methods.AGEM(1000, batch=1000), Uphill()], [Uphill(), methods.AGEM(1000, batch=1000)]):
        model, method = net(classes=4), methods.compose(*parts)
        method.consolidate(model, old)
        _, after, theirs = turned(method, model, old, old)
        assert abs(float(after @ theirs)) < 1e-5 and method.report(model) == {"projected": 1.0}


def test_a_gem_goes_on_counting(net):
    model, method, again = net(classes=4), methods.AGEM(50), methods.AGEM(50)
    method.consolidate(model, parity())
    method.turned, method.steps = method.turned + 3, 4
    again.begin(model, parity())
    again.load_state_dict(method.state_dict(), model)
    assert again.report(model) == {"projected": 0.75} and len(again.memory) == 40
