"""iCaRL against its algorithms, written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import retain
from retain import methods, models, tasks
from retain.errors import InputError
from retain.likelihoods import Gaussian
from retain.methods.icarl import herd
from retain.tasks.batch import Batch, apply
from retain.training.recorder import Silent


@pytest.fixture
def stream(blobs):
    return tasks.sequence(blobs(1), tasks.shift_labels(blobs(2), 3), scenario="class")


@pytest.fixture
def net(net):
    return lambda seed=0: net(seed, classes=6)


def hidden(model, inputs):
    """What the last layer of the fixture's network is given, at length 1."""
    name, _ = models.find_head(model)
    return F.normalize(models.features(model, inputs, name=name))


def test_herding_takes_what_keeps_the_mean():
    torch.manual_seed(0)
    phi = F.normalize(torch.randn(30, 5))
    mean = F.normalize(phi.mean(0), dim=0)
    taken = []
    for k in range(1, 13):  # the paper's line, for every row that is left
        far = {i: float((mean - (phi[i] + phi[taken].sum(0)) / k).norm()) for i in range(30) if i not in taken}
        taken.append(min(far, key=far.get))
    assert herd(phi, 12).tolist() == taken
    assert sorted(herd(phi, 99).tolist()) == list(range(30))


def test_kept_are_the_first_of_each_class_and_room_is_shared(net, stream):
    model, method = net(), methods.ICaRL(13)
    method.consolidate(model, stream[0])
    assert {label: len(rows) for label, rows in method.kept.items()} == dict.fromkeys(range(3), 4)
    first = {label: rows.clone() for label, rows in method.kept.items()}
    inputs = stream[0].data.inputs[stream[0].data.targets == 1]
    assert torch.equal(first[1], inputs[herd(hidden(model, inputs), 4)])
    method.consolidate(model, stream[1])
    assert list(method.kept) == list(range(6)) and all(torch.equal(method.kept[label], first[label][:2]) for label in range(3))
    each = methods.ICaRL(5, "per-class")
    for task in stream:
        each.consolidate(model, task)
    assert [len(rows) for rows in each.kept.values()] == [5] * 6


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_the_loss_is_that_of_yes_and_no(net, blobs, scenario):
    first, second = tasks.sequence(blobs(1), tasks.shift_labels(blobs(2), 3), scenario=scenario)
    old, model = net(seed=1), net()
    method = methods.ICaRL(12)
    method.consolidate(old, first)
    method.begin(old, second)  # the copy is of the old weights
    x, y = second.data.inputs[:7], second.data.targets[:7]
    weight = torch.tensor([1.0, 2, 1, 0, 1, 1, 3])
    batch = Batch(x, y, second, weight=weight)
    draw = method.draw.get_state()
    outputs = apply(model, batch)
    found = F.cross_entropy(outputs, y, reduction="none") @ weight / weight.sum() + method.penalty(model, batch, outputs)
    order = torch.Generator()
    order.set_state(draw)
    places = torch.randperm(12, generator=order)[:7]
    kept, labels = torch.cat(list(method.kept.values()))[places], torch.arange(3).repeat_interleave(4)[places]

    def each(x, y):
        goal = torch.cat([old(x)[:, :3].sigmoid(), F.one_hot(y, 6)[:, 3:]], 1)  # old classes as they were, new ones by label
        return -(goal * F.logsigmoid(model(x)) + (1 - goal) * F.logsigmoid(-model(x))).sum(1)

    share = 12 / (12 + second.n)
    expected = (1 - share) * (each(x, y) @ weight / weight.sum()) + share * each(kept, labels).mean()
    assert torch.allclose(found, expected, atol=1e-6)


def test_before_there_is_anything_old_every_class_of_the_task_is_asked(net, stream):
    model, method = net(), methods.ICaRL(12)
    method.begin(model, stream[0])
    x, y = stream[0].data.inputs[:5], stream[0].data.targets[:5]
    outputs = apply(model, Batch(x, y, stream[0]))
    expected = F.binary_cross_entropy_with_logits(model(x)[:, :3], F.one_hot(y, 3).float(), reduction="none").sum(1).mean()
    assert torch.allclose(F.cross_entropy(outputs, y) + method.penalty(model, Batch(x, y, stream[0]), outputs), expected, atol=1e-6)


def test_the_nearest_mean_answers_among_what_competes(net, stream):
    model, method = net(), methods.ICaRL(18)
    for task in stream:
        method.consolidate(model, task)
    x, y = stream[1].test.inputs[:20], stream[1].test.targets[:20]
    means = torch.stack([F.normalize(hidden(model, rows).mean(0), dim=0) for rows in method.kept.values()])
    far = torch.cdist(hidden(model, x), means).square()
    found = method.predict(model, Batch(x, y, stream[1]))  # the class scenario's second task: all six
    assert torch.allclose(found, -far, atol=1e-5)
    early = method.predict(model, Batch(x, y, stream.at(0, 0)))
    assert torch.allclose(early[:, :3], -far[:, :3], atol=1e-5) and early[:, 3:].max() < -1e30
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)  # which leaves no trace but the values
    model(x).square().sum().backward()
    optimizer.step()
    assert torch.allclose(method.means(model), torch.stack([F.normalize(hidden(model, rows).mean(0), dim=0) for rows in method.kept.values()]), atol=1e-6)


def test_a_class_without_a_sample_is_never_the_answer(net, blobs):
    task = blobs(1)
    some = task.data.targets != 2
    method, model = methods.ICaRL(12), net()
    method.consolidate(model, tasks.Task((task.data.inputs[some], task.data.targets[some]), classes=(0, 1, 2), active=(0, 1, 2), id="two"))
    found = method.predict(model, Batch(task.data.inputs, task.data.targets, tasks.Task((task.data.inputs, task.data.targets), active=(0, 1, 2), id="all")))
    assert found[:, 2].max() < -1e30 and found[:, :2].min() >= -4


def test_until_a_task_is_over_the_network_answers(net, stream):
    model, method = net(), methods.ICaRL(18)
    method.consolidate(model, stream[0])
    batch = Batch(stream[1].test.inputs, stream[1].test.targets, stream[1])
    assert torch.equal(method.predict(model, batch), apply(model, batch))


@pytest.mark.parametrize("make", [lambda: methods.ICaRL(30), lambda: methods.compose(methods.EWC(1.0), methods.ICaRL(30))], ids=["alone", "composed"])
def test_the_last_task_is_always_remembered(net, stream, make):
    ends = [retain.learn(net(), stream, make(), epochs=2, batch_size=16, lr=0.02, consolidate_last=last) for last in (True, False)]
    assert ends[0].rows == ends[1].rows
    told = []

    class Told(Silent):
        def event(self, kind, **fields):
            told.extend([fields["accuracy"]] if kind == "remembered" else [])

    watched = retain.learn(net(), stream, make(), epochs=2, batch_size=16, lr=0.02, recorder=Told())
    assert [list(scores.values()) for scores in told] == watched.rows[1:]
    part = ends[1].method.parts[1] if hasattr(ends[1].method, "parts") else ends[1].method
    assert list(part.kept) == list(range(6))


def test_a_class_that_comes_again_is_chosen_anew(net, blobs):
    model, method = net(), methods.ICaRL(9)
    for task in tasks.sequence(blobs(1), blobs(2)):
        method.begin(model, task)
        method.consolidate(model, task)
    rows = torch.cat([blobs(1).data.inputs, blobs(2).data.inputs])
    assert [len(kept) for kept in method.kept.values()] == [3, 3, 3]
    assert all((rows == one).all(1).any() for kept in method.kept.values() for one in kept)


def test_bad_input(net, stream, blobs):
    for settings, said in (({"size": 0}, "size"), ({"choose": "reservoir"}, "choose: expected 'balanced' or 'per-class'"), ({"batch": 0}, "batch")):
        with pytest.raises(InputError, match=said):
            methods.ICaRL(**settings)
    line = tasks.Task((torch.randn(8, 4), torch.randn(8, 1)), likelihood=Gaussian(1.0), id="line")
    with pytest.raises(InputError, match="task: expected classes, whose means can answer, found Gaussian"):
        methods.ICaRL().begin(nn.Linear(4, 1), line)
    loader = tasks.Task([(torch.randn(8, 4), torch.arange(8) % 3)], n=8, id="loader")
    with pytest.raises(InputError, match="classes: expected those of task 'loader'"):
        methods.ICaRL().begin(net(), loader)
    with pytest.raises(InputError, match="head: expected"):
        methods.ICaRL(head="nowhere").begin(net(), stream[0])
    with pytest.raises(InputError, match="classes: expected below 6"):
        methods.ICaRL().begin(net(), tasks.Task((torch.randn(4, 4), torch.tensor([0, 1, 2, 9])), id="nine"))
    pairs = tasks.Task([((torch.randn(8, 4), torch.randn(8, 4)), torch.arange(8) % 3)], n=8, classes=(0, 1, 2), id="pairs")
    with pytest.raises(InputError, match="inputs: expected a tensor"):
        methods.ICaRL().consolidate(net(), pairs)
    with pytest.raises(InputError, match="at most one that weighs the loss on new data"):
        methods.compose(methods.ICaRL(), methods.ER(20))


def test_a_sample_without_a_feature_is_exactly_as_far_from_every_class(net):
    model, method, task = net(), methods.ICaRL(12), tasks.Task((torch.rand(30, 4) + 1, torch.arange(30) % 3))
    with torch.no_grad():
        model[0].weight.abs_()
    method.consolidate(model, task)
    answers = method.predict(model, Batch(torch.full((1, 4), -100.0), torch.zeros(1).long(), task))
    assert torch.equal(answers[:, :3], answers[:, :1].expand(1, 3))  # so that no processor's rounding answers
