"""Learning without forgetting, against hand computations."""

import math
from dataclasses import replace

import pytest
import torch
from test_replay import batch_of, draw, parity
from torch import nn
from torch.nn import functional as F

from retain import methods, tasks
from retain.errors import InputError
from retain.likelihoods import Bernoulli, Categorical, Gaussian
from retain.methods.lwf import divergence
from retain.tasks import apply


def begun(method, model, first, second):
    method.consolidate(model, first)
    method.begin(model, second)
    return method


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
def test_nothing_to_distil_before_the_first_step(net, scenario):
    first, second = tasks.split(parity(), 2, scenario=scenario)
    model = net(classes=4)
    method = begun(methods.LwF(weight="sum", among="old"), model, first, second)
    batch = batch_of(second)
    found = method.penalty(model, batch, apply(model, batch))
    found.backward()
    assert float(found.detach()) == 0 and all(p.grad.abs().max() < 1e-7 for p in model.parameters())


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
def test_the_distillation_is_the_hand_computation(net, scenario):
    first, second = tasks.split(parity(), 2, scenario=scenario)
    old, model = net(classes=4), net(seed=1, classes=4)
    method = begun(methods.LwF(strength=0.8, temperature=3.0, among="old"), old, first, second)
    batch = batch_of(second)
    outputs = apply(model, batch)
    columns = slice(0, 4 if scenario == "domain" else 2)
    p, q = (((one(batch.inputs)[:, columns]) / 3).softmax(1) for one in (old, model))
    divergences = [sum(a * math.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in zip(p.tolist(), q.tolist(), strict=True)]
    distance = 9 * sum(divergences) / len(divergences)
    new = F.cross_entropy(outputs, batch.targets)
    found = new + method.penalty(model, batch, outputs)
    assert float(found.detach()) == pytest.approx(0.5 * float(new.detach()) + 0.5 * 0.8 * distance, abs=1e-5)


def test_among_competing_outputs_new_classes_have_target_zero(net):
    first, second = tasks.split(parity(), 2, scenario="class")
    old, model = net(classes=4), net(seed=1, classes=4)
    method = begun(methods.LwF(0.25, 2.0, weight="sum"), old, first, second)
    batch = batch_of(second)
    q = (model(batch.inputs) / 2).softmax(1)
    p = F.pad((old(batch.inputs)[:, :2] / 2).softmax(1), (0, 2))  # 0 for the new classes
    expected = -(p * q.log()).sum(1).mean() + (p[:, :2] * p[:, :2].log()).sum(1).mean()  # cross-entropy less a constant
    assert torch.allclose(method.penalty(model, batch, apply(model, batch)), expected, atol=1e-6)
    method.penalty(model, batch, apply(model, batch)).backward()
    assert (model[2].bias.grad[2:] > 0).all()  # new outputs are pushed down


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_among_matters_in_class_incremental_streams_alone(net, scenario):
    first, second = tasks.split(parity(), 2, scenario=scenario)
    model, batch = net(seed=1, classes=4), batch_of(second)
    found = [begun(methods.LwF(among=among), net(classes=4), first, second).penalty(model, batch, apply(model, batch)) for among in ("old", "competing")]
    assert torch.equal(*found)


def test_with_outputs_in_any_order_the_targets_go_to_their_own(net):
    task = parity()
    old, model, batch = net(classes=4), net(seed=1, classes=4), batch_of(replace(task, active=(3, 0, 1)))
    method = begun(methods.LwF(weight="sum", temperature=1.0), old, replace(task, active=(3, 1)), batch.task)
    p, q = old(batch.inputs)[:, [1, 3]].softmax(1), model(batch.inputs)[:, [0, 1, 3]].softmax(1)[:, 1:]
    assert torch.allclose(method.penalty(model, batch, apply(model, batch)), (p * (p / q).log()).sum(1).mean(), atol=1e-6)
    free = begun(methods.LwF(weight="sum", temperature=1.0), old, replace(task, active=(3, 1)), task)
    q = model(batch.inputs).softmax(1)[:, [1, 3]]  # now all four compete
    assert torch.allclose(free.penalty(model, batch_of(task), model(batch.inputs)), (p * (p / q).log()).sum(1).mean(), atol=1e-6)


def test_past_counts_the_tasks_before(net):
    task, method, model = parity(), methods.LwF(0.5, weight="past"), net(seed=1, classes=4)
    for _ in range(3):
        method.consolidate(net(classes=4), task)
    method.begin(net(classes=4), task)
    batch = batch_of(task)
    outputs = apply(model, batch)
    assert torch.allclose(method.penalty(model, batch, outputs), 3 * 0.5 * method.distance(model, batch, outputs))


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_old_answers_teach_old_outputs_alone(net, scenario):
    first, second = tasks.split(parity(), 2, scenario=scenario)
    model = net(seed=1, classes=4)
    method = begun(methods.LwF(weight="sum", among="old"), net(classes=4), first, second)
    batch = batch_of(second)
    method.penalty(model, batch, apply(model, batch)).backward()
    head = model[2].weight.grad.abs().sum(1)
    assert (head[:2] > 0).all() and (head[2:] == 0).all()


def test_with_three_heads_the_mean_over_the_old_ones(net):
    task = parity()
    heads = [replace(task, active=active) for active in ((0, 1), (2, 3), (0, 3))]
    model, old = net(seed=1, classes=4), net(classes=4)
    method = methods.LwF(weight="sum", temperature=1.0)
    for head in heads[:2]:
        method.consolidate(old, head)
    method.begin(old, heads[2])
    batch = batch_of(heads[2])
    p, q = old(batch.inputs), model(batch.inputs)
    each = [F.kl_div(q[:, h].log_softmax(1), p[:, h].softmax(1), reduction="batchmean") for h in (slice(0, 2), slice(2, 4))]
    assert torch.allclose(method.penalty(model, batch, apply(model, batch)), sum(each) / 2, atol=1e-6)
    assert method.old == [(0, 1), (2, 3)]
    method.consolidate(old, replace(task, active=(0, 1, 2)))
    assert method.old == [(2, 3), (0, 1, 2)]
    method.consolidate(old, task)
    assert method.old == [None] and method.tasks == 4


def test_the_divergence_of_every_likelihood_is_the_expected_difference_of_its_nll():
    before, now = torch.randn(5, 3, generator=draw(0)), torch.randn(5, 3, generator=draw(1))
    labels = torch.arange(3)
    p = before.softmax(1)
    expected = sum(p[:, c] * (Categorical().nll(now, labels[c].expand(5)) - Categorical().nll(before, labels[c].expand(5))) for c in range(3))
    assert torch.allclose(divergence(Categorical(), before, now, 1.0), expected, atol=1e-6)
    p = before.sigmoid()
    expected = Bernoulli().nll(now, p) - Bernoulli().nll(before, p)  # linear in the targets
    assert torch.allclose(divergence(Bernoulli(), before, now, 1.0), expected, atol=1e-6)
    assert torch.allclose(divergence(Gaussian(0.5), before, now, 2.0), Gaussian(0.5).nll(now, before) - Gaussian(0.5).nll(before, before), atol=1e-6)

    class Other(Categorical):
        pass

    assert divergence(Other(), before, now, 1.0).shape == (5,)
    with pytest.raises(InputError, match="likelihood: expected Categorical, Tokens, Bernoulli or Gaussian"):
        divergence(object(), before, now, 1.0)


def test_high_temperatures_compare_centred_logits():
    before, now = torch.randn(5, 3, dtype=torch.float64, generator=draw(0)), torch.randn(5, 3, dtype=torch.float64, generator=draw(1))
    apart = (now - before) - (now - before).mean(1, keepdim=True)
    assert torch.allclose(divergence(Categorical(), before, now, 1e4), apart.square().sum(1) / 6, rtol=1e-3)  # Hinton et al. 2015, equation 4


def test_the_copy_does_not_move_and_is_not_trained(net):
    first, second = tasks.split(parity(), 2)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))
    method = begun(methods.LwF(), model, first, second)
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    batch = batch_of(second)
    method.penalty(model, batch, apply(model, batch)).backward()
    assert all(torch.equal(before[name], value) for name, value in method.teacher.state_dict().items())
    assert all(p.grad is None for p in method.teacher.parameters())
