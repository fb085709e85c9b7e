"""Barriers, landscapes and trajectories."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import retain
from retain import Task, models
from retain.diagnosis import barrier
from retain.diagnosis.walk import reestimate
from retain.errors import InputError


class Log:
    """A recorder that counts."""

    def __init__(self):
        self.events = []

    def event(self, kind, **fields):
        self.events.append((kind, fields))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def trained(task, seed, **settings):
    model = models.MLP(4, 16, 16, 3, seed=seed)
    retain.learn(model, [task], epochs=40, lr=1e-2, seed=seed, **settings)
    return model


def permuted(model, order):
    """The same function with the first hidden layer's units in another order."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.layers.fc1.weight.copy_(model.layers.fc1.weight[order])
        other.layers.fc1.bias.copy_(model.layers.fc1.bias[order])
        other.layers.fc2.weight.copy_(model.layers.fc2.weight[:, order])
    return other


def test_a_convex_loss_has_no_barrier_and_the_line_is_the_loss(blobs):
    task = blobs(0)
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    before = state(first), state(second)
    log = Log()
    found = barrier(first, second, task, points=5, recorder=log)
    assert found.height == {"train": 0.0, "test": 0.0} and not found.stored and len(log.events) == 5
    for i, t in enumerate(found.t):
        W, b = ((1 - t) * x + t * y for x, y in zip(first.parameters(), second.parameters(), strict=True))
        expected = F.cross_entropy(F.linear(task.test.inputs, W, b), task.test.targets)
        assert found.loss["test"][i] == pytest.approx(expected.item(), rel=1e-5)
    assert unchanged(first, before[0]) and unchanged(second, before[1])
    assert "barrier" in found.table().text() and len(found.figures()) == 2


def test_permuted_units_make_a_barrier_and_matching_removes_it(blobs):
    task = blobs(0)
    model = trained(task, 0)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    other = permuted(model, order)
    assert torch.allclose(model(task.data.inputs), other(task.data.inputs), atol=1e-4)
    found = barrier(model, other, task)
    assert found.height["train"] > 0.05 and found.loss["train"][0] == pytest.approx(found.loss["train"][-1], abs=1e-5)
    assert barrier(model, permuted(other, order.argsort()), task).height["train"] < 1e-6


def norm_net():
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def test_statistics_are_those_of_all_samples():
    net, inputs = norm_net().double(), 3 + 2 * torch.randn(30, 4).double()
    task = Task([(x, torch.zeros(len(x)).long()) for x in inputs.split([7, 7, 14, 2])], n=30)
    reestimate(net, task)
    seen = net[0](inputs)
    assert torch.allclose(net[1].running_mean, seen.mean(0)) and torch.allclose(net[1].running_var, seen.var(0))
    assert net.training and net[1].momentum == 0.1


def test_statistics_estimated_anew_are_most_of_some_barriers(blobs):
    task = blobs(1)
    first = norm_net()
    retain.learn(first, [task], epochs=20, lr=1e-2)
    second = copy.deepcopy(first)
    with torch.no_grad():  # the same function in training: its statistics alone are wrong
        second[0].weight *= 30
        second[0].bias *= 30
    found = barrier(first, second, task)
    assert found.height["train"] < 0.01 and max(found.stored["train"]) > 10 * max(found.loss["train"])
    assert found.stored["train"][0] == pytest.approx(retain.evaluate(first, task, part="data").nll, rel=1e-5)
    plain = barrier(first, second, task, reestimate=False)
    assert plain.loss == found.stored and plain.stored == {}


@pytest.mark.parametrize(
    ("second", "settings", "words"),
    [
        (models.MLP(4, 16, 8, 3), {}, r"second: expected the same architecture, with 'layers\.fc2\.weight' of shape \[16, 16\], found \[8, 16\]"),
        (models.MLP(4, 16, 16, 5), {}, r"second: expected 'layers\.fc3\.weight' of shape \[3, 16\], found \[5, 16\]\. There is no line"),
        (models.MLP(4, 16, 16, 3), {"points": 2}, "points: expected a whole number of at least 3, found 2"),
        (models.MLP(4, 16, 16, 3), {"samples": 0}, "samples: expected a whole number of at least 1, found 0"),
    ],
)
def test_bad_lines(blobs, second, settings, words):
    with pytest.raises(InputError, match=words):
        barrier(models.MLP(4, 16, 16, 3), second, blobs(0), **settings)
