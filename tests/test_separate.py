"""A network for every task: each is what training it alone gives, and answers for its task alone."""

import pytest
import torch
from test_replay import batch_of, parity
from torch import nn

import retain
from retain import methods, models, tasks
from retain.errors import InputError
from retain.methods import compose
from retain.tasks import apply


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def heads(parts=2):
    return tasks.split(parity(60), parts, scenario="task")


def learned(net, method=None, **options):
    model = net(classes=4)
    retain.learn(model, heads(), method or methods.SeparateNetworks(), **{"epochs": 3, "batch_size": 8, "lr": 0.05, **options})
    return model


def test_each_network_is_that_of_its_task_learned_alone(net):
    method, model, (first, second) = methods.SeparateNetworks(), net(classes=4), heads()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    retain.learn(model, [first], method, epochs=3, lr=0.05, seed=4)
    retain.learn(model, [second], method, epochs=3, lr=0.05, seed=4)
    for task in (first, second):
        alone = net(classes=4)
        assert all(torch.equal(start[name], value) for name, value in alone.state_dict().items())
        retain.learn(alone, [task], epochs=3, lr=0.05, seed=4)
        batch = batch_of(task)
        assert torch.equal(method.predict(model, batch), apply(alone, batch))
    assert torch.equal(weights(model), weights(alone)) and len(method.kept) == 2


def test_nothing_is_forgotten_and_nothing_is_ahead(net):
    result = retain.learn(net(classes=4), heads(), methods.SeparateNetworks(), epochs=5, batch_size=8, lr=0.05)
    assert result.accuracy[2, 0] == result.accuracy[1, 0]  # its network is not touched again
    assert result.accuracy[1, 1] == result.accuracy[0, 1]  # a task that was not learned is answered by the start
    assert result.accuracy[2].min() > 0.8


def test_the_task_at_hand_is_answered_by_the_model_itself(net):
    first, second = heads()
    method, model = methods.SeparateNetworks(), net(classes=4)
    method.begin(model, first)
    with torch.no_grad():
        model[2].bias += 1
    assert torch.equal(method.predict(model, batch_of(first)), apply(model, batch_of(first)))
    assert torch.equal(method.predict(model, batch_of(second)), apply(net(classes=4), batch_of(second)))


def test_a_task_that_comes_again_goes_on_from_its_own(net):
    first, second = heads()
    method, model = methods.SeparateNetworks(), learned(net)
    method.begin(model, first)
    with torch.no_grad():
        model[2].bias += 1
    mine = weights(model)
    method.consolidate(model, first)
    method.begin(model, second)
    assert not torch.equal(weights(model), mine)
    method.begin(model, first)
    assert torch.equal(weights(model), mine)


def test_buffers_are_each_networks_own():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))
    method, (first, second) = methods.SeparateNetworks(), heads()
    found = []
    for task in (first, second):
        method.begin(model, task)
        assert int(model[1].num_batches_tracked) == 0
        retain.learn(model, [task], epochs=1)
        method.consolidate(model, task)
        found.append(model[1].running_mean.clone())
    model.eval()
    asked = method.predict(model, batch_of(first))
    assert torch.equal(model[1].running_mean, found[1]) and not torch.equal(*found)  # asking changes nothing
    method.begin(model, first)
    assert torch.equal(model[1].running_mean, found[0]) and torch.equal(asked, apply(model, batch_of(first)))


def test_a_model_trained_elsewhere_is_the_start_of_what_follows(net):
    first, second = heads()
    method, model = methods.SeparateNetworks(), net(seed=1, classes=4)
    method.consolidate(model, first)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = retain.attach(method, model, optimizer, second)
    batch = batch_of(second)
    nn.functional.cross_entropy(apply(model, batch), batch.targets).backward()
    optimizer.step()
    guard.consolidate()
    assert torch.equal(method.predict(model, batch_of(first)), apply(net(seed=1, classes=4), batch_of(first)))
    assert torch.equal(method.predict(model, batch), apply(model, batch)) and not torch.equal(weights(model), weights(net(seed=1, classes=4)))


def test_a_heads_model_takes_what_the_model_takes():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, left, *, right):
            return {"logits": self.linear(left + right)}

    method, model, (first, second) = methods.SeparateNetworks(), Two(), heads()
    for task in (first, second):
        method.consolidate(model, task)
    batch = batch_of(first)
    batch.inputs = {"left": batch.inputs, "right": batch.inputs}
    assert torch.equal(method.predict(model, batch), apply(model, batch))


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_without_the_tasks_identity_it_is_refused(net, scenario):
    stream = tasks.split(parity(60), 2, scenario=scenario)
    with pytest.raises(InputError, match=r"active outputs of task '.*': expected those of one task alone, found .*use ER, GenerativeReplay"):
        retain.learn(net(classes=4), stream, methods.SeparateNetworks())


def test_sets_that_share_outputs_are_refused(net):
    method, model = methods.SeparateNetworks(), net(classes=4)
    tasks_of = [tasks.Task((torch.randn(4, 4), torch.tensor(own * 2)), active=own, id=str(own)) for own in ((0, 1), (1, 2))]
    method.consolidate(model, tasks_of[0])
    with pytest.raises(InputError, match=r"found \[1, 2\], of which \[1\] are another's"):
        method.begin(model, tasks_of[1])
    joint = tasks.Task((torch.randn(4, 4), torch.arange(4)), active=(0, 1, 2, 3), classes=(0, 1))
    with pytest.raises(InputError, match=r"of which \[2, 3\] are another's"):
        methods.SeparateNetworks().begin(model, joint)


def test_it_goes_with_no_other_method():
    with pytest.raises(InputError, match="methods: expected separate alone, found ewc and separate"):
        compose(methods.EWC(), methods.SeparateNetworks())


def test_of_the_published_size_it_is_the_published_ceiling():
    stream = tasks.split(tasks.mnist(embedded=True), 5, scenario="task")
    result = retain.learn(models.MLP(784, 100, 100, 10, seed=0), stream, methods.SeparateNetworks(), steps=100, batch_size=128, score_every=0)
    found = [retain.evaluate(result.model, task, result.method).score for task in stream]
    assert sum(found) / 5 > 0.97
