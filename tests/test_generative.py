"""Generative replay, against hand computations."""

from copy import deepcopy

import pytest
import torch
from test_replay import batch_of, draw, parity
from torch.nn import functional as F

import retain
from retain import methods, models, tasks
from retain.errors import InputError
from retain.likelihoods import Bernoulli, Categorical, Gaussian
from retain.methods import compose
from retain.seeds import derive, generator
from retain.tasks import Batch, Task, apply

SMALL = {"hidden": (8,), "latent": 2, "likelihood": Gaussian(0.5)}


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def begun(method, model, *past, now):
    """The method after tasks that it has not watched, at the start of another."""
    for task in past:
        method.consolidate(model, task)
    method.begin(model, now)
    return method


def replays_of(method, count):
    """What the next draw will be, leaving it undrawn."""
    g = draw(0)
    g.set_state(method.draw.get_state())
    return method.previous.sample(count, g)


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
@pytest.mark.parametrize("weight", ["tasks", "sum"])
@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_the_hand_computation(net, scenario, weight, soft):
    first, second = tasks.split(parity(), 2, scenario=scenario)
    old, model = net(classes=4), net(seed=1, classes=4)
    method = begun(methods.GenerativeReplay(0.5, soft=soft, weight=weight, batch=6, temperature=3.0, **SMALL), old, first, now=second)
    batch, x = batch_of(second, slice(0, 9)), replays_of(method, 6)
    asked = {"class": slice(0, 4), "task": slice(0, 2), "domain": slice(0, 4)}[scenario]  # what competes now
    own = slice(0, 4 if scenario == "domain" else 2)  # what competed then
    if soft:
        p = F.pad((old(x)[:, own] / 3).softmax(1), (0, asked.stop - own.stop))
        q = (model(x)[:, asked] / 3).softmax(1)
        loss = 9 * torch.where(p > 0, p * (p / q).log(), 0.0).sum(1).mean()
    else:
        loss = F.cross_entropy(model(x)[:, asked], old(x)[:, own].argmax(1))
    outputs = apply(model, batch)
    new = F.cross_entropy(outputs, batch.targets)
    expected = new + 0.5 * loss if weight == "sum" else (new + 0.5 * loss) / 2
    assert torch.allclose(new + method.penalty(model, batch, outputs), expected, atol=1e-5)


def test_the_third_task_weighs_a_third_and_every_replay_is_asked_of_every_old_head(net):
    one, two, three = tasks.split(tasks.Task((torch.randn(60, 4), torch.arange(60) % 6), id="six"), 3, scenario="task")
    old, model = net(classes=6), net(seed=1, classes=6)
    method = begun(methods.GenerativeReplay(**SMALL), old, one, two, now=three)
    assert method.old == [(0, 1), (2, 3)]
    batch = batch_of(three)
    x, outputs = replays_of(method, len(batch.targets)), apply(model, batch)  # as many as there are new ones
    each = [F.cross_entropy(model(x)[:, h], old(x)[:, h].argmax(1)) for h in (slice(0, 2), slice(2, 4))]
    new = F.cross_entropy(outputs, batch.targets)
    assert torch.allclose(new + method.penalty(model, batch, outputs), new / 3 + 2 / 3 * sum(each) / 2, atol=1e-5)


def test_the_generator_learns_the_weighted_bound_with_its_own_adam(net):
    method, model = methods.GenerativeReplay(lr=0.02, seed=3, **SMALL), net(classes=4)
    twin = models.VAE((4,), hidden=(8,), latent=2, likelihood=Gaussian(0.5), seed=derive(3, "generator"))
    adam = torch.optim.Adam(twin.parameters(), lr=0.02)  # runs on from task to task
    for k, task in enumerate((*tasks.split(parity(), 2, scenario="domain"), parity(seed=1)), start=1):
        guard, frozen = retain.attach(method, model, torch.optim.SGD(model.parameters(), lr=0.1), task), models.copy(twin)
        g = draw(0)
        g.set_state(method.draw.get_state())
        for step in range(3):
            batch = batch_of(task, slice(4 * step, 4 * step + 4))
            outputs = apply(model, batch)
            (F.cross_entropy(outputs, batch.targets) + guard.penalty(batch, outputs)).backward()
            guard.optimizer.step()
            old = frozen.sample(4, g) if k > 1 else None
            bounds = twin.elbo(batch.inputs if old is None else torch.cat([batch.inputs, old]), g)
            bound = bounds[:4].mean() if old is None else bounds[:4].mean() / k + (1 - 1 / k) * bounds[4:].mean()
            adam.zero_grad()
            (-bound).backward()
            adam.step()
        assert torch.allclose(parameters(method.generator), parameters(twin), atol=1e-5)
        assert method.report(model)["elbo"] < 0
        guard.consolidate()


def test_accumulated_batches_make_one_step_of_the_generator(net):
    task, model = parity(), net(classes=4)
    whole, parts = (methods.GenerativeReplay(**SMALL) for _ in range(2))
    for method, pieces in ((whole, [slice(0, 8)]), (parts, [slice(0, 4), slice(4, 8)])):
        guard = retain.attach(method, model, torch.optim.SGD(model.parameters(), lr=0.0), task)
        for rows in pieces:
            batch = batch_of(task, rows)
            outputs = apply(model, batch)
            (F.cross_entropy(outputs, batch.targets) + guard.penalty(batch, outputs)).backward()
            assert method.generator is None
        guard.optimizer.step()
        guard.detach()
    assert torch.equal(parameters(whole.generator), parameters(parts.generator))


def test_a_watched_task_is_not_learned_again_and_an_unwatched_one_is(net):
    task, model = parity(), net(classes=4)
    method = methods.GenerativeReplay(epochs=2, **SMALL)
    retain.learn(model, [task], method, epochs=3, batch_size=8, consolidate_last=False)
    steps = [state["step"] for state in method._adam.state.values()]
    before = parameters(method.generator)
    method.consolidate(model, task)
    assert torch.equal(before, parameters(method.generator)) and {int(step) for step in steps} == {15}
    method.consolidate(model, task)  # nobody watched
    assert not torch.equal(before, parameters(method.generator)) and method.tasks == 2
    assert {int(state["step"]) for state in method._adam.state.values()} == {17}


def test_unwatched_tasks_do_not_push_out_those_before(net):
    first, second = tasks.split(parity(), 2)
    method = methods.GenerativeReplay(epochs=1, lr=0.02, **SMALL)
    method.consolidate(net(classes=4), first)
    twin, g = models.copy(method.generator), draw(0)
    adam = torch.optim.Adam(twin.parameters(), lr=0.02)
    adam.load_state_dict(deepcopy(method._adam.state_dict()))
    g.set_state(method.draw.get_state())
    (batch,) = second.batches(128, generator(0, "generator", 1, 0))
    old = twin.sample(20, g)
    adam.zero_grad()
    (-twin.elbo(torch.cat([batch.inputs, old]), g).mean()).backward()
    adam.step()
    method.consolidate(net(classes=4), second)
    assert torch.allclose(parameters(method.generator), parameters(twin), atol=1e-6)


def test_a_state_can_be_gone_on_from_twice(net):
    task, model, method = parity(), net(classes=4), methods.GenerativeReplay(epochs=1, **SMALL)
    method.consolidate(model, task)
    state, ends = deepcopy(method.state_dict()), []
    for _ in range(2):
        again = methods.GenerativeReplay(epochs=1, **SMALL)
        again.load_state_dict(state, model)
        again.consolidate(model, task)
        ends.append(parameters(again.generator))
    assert torch.equal(*ends)


def test_the_copies_do_not_move_and_are_let_go(net):
    first, second = tasks.split(parity(), 2)
    model = net(classes=4)
    method = begun(methods.GenerativeReplay(**SMALL), model, first, now=second)
    before = parameters(method.previous), parameters(method.teacher)
    guard = retain.attach(method, model, torch.optim.SGD(model.parameters(), lr=0.1), second)
    for batch in second.batches(4):
        outputs = apply(model, batch)
        (F.cross_entropy(outputs, batch.targets) + guard.penalty(batch, outputs)).backward()
        guard.optimizer.step()
    assert torch.equal(before[0], parameters(method.previous)) and torch.equal(before[1], parameters(method.teacher))
    assert not torch.equal(before[0], parameters(method.generator)) and not torch.equal(before[1], parameters(model))
    guard.consolidate()
    assert method.previous is None and method.teacher is None


@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_it_remembers(scenario):
    stream = tasks.split(tasks.digits(), 2, scenario=scenario, relabel=scenario == "domain")
    make = lambda: models.MLP(64, 32, 10 if scenario == "class" else 5, seed=0)  # noqa: E731
    method = methods.GenerativeReplay(hidden=(64,), latent=10, lr=0.005)
    kept, lost = (retain.learn(make(), stream, one, epochs=40, lr=0.005, score_every=40) for one in (method, None))
    assert kept.accuracy[2, 0] > 0.6 > 0.5 > lost.accuracy[2, 0]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ((torch.zeros(2, 4), torch.zeros(2, 4)), "inputs: expected one floating point tensor, since a generator has to make such, found tuple of 2"),
        (torch.zeros(2, 4).long(), "inputs: expected one floating point tensor, since a generator has to make such, found torch.int64"),
        (torch.full((2, 4), 1.5), r"inputs: expected values in \[0, 1\], since likelihood=Bernoulli\(\), found 1.5 to 1.5"),
        (torch.full((2, 4), -0.5), r"inputs: expected values in \[0, 1\].*pass likelihood=likelihoods.Gaussian\(sigma\)"),
        (torch.zeros(2, 3), r"inputs: expected the shape of those the generator has learned, \[4\], found \[3\]"),
    ],
)
def test_inputs_that_it_cannot_make_are_refused(net, inputs, words):
    method, model = methods.GenerativeReplay(hidden=(4,), latent=2, epochs=1), net()
    method.consolidate(model, Task((torch.rand(8, 4), torch.arange(8) % 3)))
    with pytest.raises(InputError, match=words):
        method.penalty(model, Batch(inputs, torch.zeros(2).long(), Task((torch.rand(2, 4), torch.tensor([0, 1])))), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": -1}, "strength: expected"),
        ({"temperature": 0}, "temperature: expected"),
        ({"weight": "samples"}, "weight: expected 'tasks' or 'sum'"),
        ({"batch": 0}, "batch: expected"),
        ({"hidden": (0,)}, "hidden: expected"),
        ({"latent": 0}, "latent: expected"),
        ({"likelihood": Categorical()}, "likelihood: expected"),
        ({"lr": 0}, "lr: expected"),
        ({"epochs": 0}, "epochs: expected"),
        ({"seed": -1}, "seed: expected"),
    ],
)
def test_settings_out_of_range_are_named(options, words):
    with pytest.raises(InputError, match=words):
        methods.GenerativeReplay(**options)
    assert methods.GenerativeReplay().likelihood == Bernoulli()


def test_two_methods_that_weigh_the_new_loss_do_not_go_together():
    with pytest.raises(InputError, match="at most one that weighs the loss on new data"):
        compose(methods.GenerativeReplay(), methods.ER(10))
    compose(methods.GenerativeReplay(weight="sum"), methods.ER(10))
