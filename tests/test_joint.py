"""Joint training: one task of all, answered as the stream is."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import Memory
from test_replay import parity
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import retain
from retain import methods, models, tasks
from retain.errors import InputError
from retain.likelihoods import Gaussian, Tokens
from retain.tasks import Task, apply


def heads(sizes=(40, 20)):
    """Two tasks of two classes and different sizes; every sample's first input is its number."""
    made, number = [], 0
    for i, size in enumerate(sizes):
        inputs = torch.randn(size, 4, generator=torch.Generator().manual_seed(i))
        inputs[:, 0] = torch.arange(number, number + size)
        number += size
        made.append(Task((inputs, torch.arange(size) % 2 + 2 * i), test=(inputs[:6], torch.arange(6) % 2 + 2 * i), id="ab"[i]))
    return tasks.sequence(*made, scenario="task")


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_batch_is_of_one_task_and_every_sample_comes_once():
    joint = tasks.joint(heads())
    (task,) = joint
    assert joint.scenario == "task" and task.id == "joint" and task.n == 60 and task.active == task.classes == (0, 1, 2, 3)
    batches = list(task.batches(8, draw()))
    assert task.data.steps(8) == len(batches) == 5 + 3 and task.data.size == 60 and task.data.shape == (4,)
    for batch in batches:
        assert batch.task.active == ((0, 1) if batch.targets.max() < 2 else (2, 3)) and set(batch.targets.tolist()) <= set(batch.task.active)
    assert sorted(torch.cat([batch.inputs[:, 0] for batch in batches]).tolist()) == list(range(60))
    assert Counter(batch.task.id for batch in batches) == {"a": 5, "b": 3}
    assert torch.equal(torch.cat([x for x, _ in task.data.batches(8, draw())]), torch.cat([batch.inputs for batch in batches]))


def test_tasks_come_in_random_order_and_without_a_generator_in_their_own():
    (task,) = tasks.joint(heads((80, 80)))
    orders = ["".join(batch.task.id for batch in task.batches(8, draw(seed))) for seed in range(20)]
    assert len(set(orders)) > 15 and orders[3] == "".join(batch.task.id for batch in task.batches(8, draw(3)))
    first = sum(order[:10].count("a") for order in orders) / 200
    assert 0.4 < first < 0.6
    inside = [torch.cat([batch.inputs[:, 0] for batch in task.batches(8, draw(seed)) if batch.task.id == "a"]) for seed in (0, 1)]
    assert not torch.equal(*inside) and not torch.equal(inside[0], inside[0].sort().values)
    plain = list(task.batches(8))
    assert "".join(batch.task.id for batch in plain) == "a" * 10 + "b" * 10
    assert torch.equal(torch.cat([batch.inputs[:, 0] for batch in plain]), torch.arange(160.0))


def test_test_data_are_joined_where_every_task_has_some():
    stream = heads()
    (task,) = tasks.joint(stream)
    assert [batch.task.active for batch in task.batches(100, part="test")] == [(0, 1), (2, 3)] and task.validation is None
    held = [replace(part, validation=part.test) for part in stream.tasks]
    assert tasks.joint(tasks.sequence(*held, scenario="task"))[0].validation.size == 12
    (bare,) = tasks.joint(tasks.sequence(stream.tasks[0], replace(stream.tasks[1], test=None), scenario="task"))
    assert bare.test is None


def test_it_is_scored_head_by_head(net):
    stream, model = heads(), net(classes=4)
    (task,) = tasks.joint(stream)
    whole = retain.evaluate(model, task)
    parts = [retain.evaluate(model, part) for part in stream]
    assert whole.score == pytest.approx(sum(part.score for part in parts) / 2) and whole.nll == pytest.approx(sum(part.nll for part in parts) / 2)


def test_the_fisher_is_that_of_the_parts(net):
    stream, model = heads(), net(classes=4)
    (task,) = tasks.joint(stream)
    whole = retain.fisher(model, task, labels="exact")
    one, two = (retain.fisher(model, part, labels="exact") for part in stream)
    for name, value in whole.items():
        assert torch.allclose(value, (40 * one[name] + 20 * two[name]) / 60, atol=1e-6)


def test_one_epoch_is_the_hand_written_loop(net):
    stream = heads()
    result = retain.learn(net(classes=4), tasks.joint(stream), watch=stream, epochs=1, batch_size=16, optimizer="sgd", lr=0.01, seed=5)
    model = net(classes=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    (task,) = tasks.joint(stream)
    for batch in task.batches(16, retain.seeds.generator(5, "order", 0, 0)):
        optimizer.zero_grad()
        low = 0 if batch.targets.max() < 2 else 2
        F.cross_entropy(model(batch.inputs)[:, low : low + 2], batch.targets - low).backward()
        optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), result.model.parameters(), strict=True))


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
def test_it_is_the_ceiling_and_goes_on_with_the_same_bits(scenario, tmp_path):
    stream = tasks.split(tasks.digits(), 5, scenario=scenario, relabel=scenario == "domain")
    outputs = 2 if scenario == "domain" else 10

    def run(recorder=None):
        options = {"epochs": 15, "lr": 0.005, "score_every": 5, "recorder": recorder}
        return retain.learn(models.MLP(64, 32, outputs, seed=0), tasks.joint(stream), watch=stream, **options)

    memory, whole = Memory(4), run()
    assert whole.accuracy.shape == (2, 5) and whole.accuracy[1].min() > 0.8
    with pytest.raises(KeyboardInterrupt):
        run(memory)
    again = run(memory)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_pooled_scenarios_are_the_union():
    split = tasks.split(tasks.digits(), 5, scenario="class")
    (pooled,) = tasks.joint(split)
    assert torch.equal(pooled.data.inputs, tasks.union(*split.tasks).data.inputs) and pooled.active == tuple(range(10))
    (domain,) = tasks.joint(tasks.permute(tasks.digits(), 3))
    assert domain.active is None and domain.n == 3 * 1437 and domain.classes == tuple(range(10))


def test_remarks_stay():
    noted = [replace(task, note=note) for task, note in zip(heads().tasks, ("one", "one"), strict=True)]
    assert tasks.joint(tasks.sequence(*noted, scenario="task")).tasks[0].note == "one"


def test_loaders_join_where_heads_differ(net):
    loaders = [DataLoader(TensorDataset(task.data.inputs, task.data.targets), batch_size=8, shuffle=True) for task in heads().tasks]
    stream = tasks.sequence(*(Task(loader, classes=own, id=str(own)) for loader, own in zip(loaders, ((0, 1), (2, 3)), strict=True)), scenario="task")
    (task,) = tasks.joint(stream)
    assert sorted(torch.cat([batch.inputs[:, 0] for batch in task.batches(8, draw())]).tolist()) == list(range(60))
    assert retain.learn(net(classes=4), tasks.joint(stream), watch=stream, epochs=1).accuracy.shape == (2, 2)


class Endless:
    """Batches without a length."""

    def __iter__(self):
        yield torch.zeros(2, 4), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: 3, "stream: expected a Stream or a list of tasks"),
        (lambda: tasks.sequence(parity(), Task((torch.zeros(4, 4), torch.zeros(4, 1)), likelihood=Gaussian(), id="r")), "one likelihood for all"),
        (lambda: tasks.sequence(Task([(torch.zeros(2, 4), torch.tensor([0, 1]))], n=2)), "data: expected tensors to join, found"),
        (lambda: tasks.sequence(Task(Endless(), n=2, classes=(0, 1)), scenario="task"), "data of task 'task': expected data that know their number of batches"),
    ],
)
def test_what_cannot_be_joined_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        tasks.joint(make())


def test_likelihoods_of_heads_are_alike():
    words = torch.tensor([[0, 1]])
    pair = [Task((words, words), likelihood=Tokens(ignore=ignore), classes=own, id=str(ignore)) for ignore, own in ((-100, (0, 1)), (-1, (2, 3)))]
    with pytest.raises(InputError, match="stream: expected one likelihood for all tasks"):
        tasks.joint(tasks.sequence(*pair, scenario="task"))


def test_methods_that_keep_samples_refuse_a_joint_task_of_several_heads(net):
    for method in (methods.ER(10), methods.ER(10, online=True), methods.DERpp(10)):
        with pytest.raises(InputError, match=r"batch: expected of outputs that compete as in the task's first one, \(\d, \d\)"):
            retain.learn(net(classes=4), tasks.joint(heads()), method, batch_size=8)


def test_the_outputs_of_a_batch_are_masked_to_its_task(net):
    (task,) = tasks.joint(heads())
    for batch in task.batches(8, draw()):
        closed = [c for c in range(4) if c not in batch.task.active]
        assert (apply(net(classes=4), batch)[:, closed] < -1e30).all()
