"""Several methods as one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import retain
from retain import methods, models, tasks
from retain.errors import InputError, RetainError
from retain.methods import compose
from retain.methods.base import Method
from retain.tasks import Batch, apply


class Prepares(Method):
    name = "prepares"

    def prepare(self, model):
        return nn.Sequential(model)

    def groups(self, model, lr):
        return [{"params": list(model.parameters()), "lr": 2 * lr}]

    def predict(self, model, batch):
        return -apply(model, batch)

    def report(self, model):
        return {"prepared": 1.0}


class Adds(Method):
    name = "adds"

    def augment(self, batch, model):
        return Batch(torch.cat([batch.inputs, batch.inputs[:1]]), torch.cat([batch.targets, batch.targets[:1]]), batch.task)


class Drives(Method):
    name = "drives"

    def optimizer(self, model, lr):
        self.own = torch.optim.SGD(model.parameters(), lr=lr)
        return self.own


def learned(method, blobs, net, **options):
    return retain.learn(net(), [blobs(1), blobs(2)], method, **{"epochs": 2, "batch_size": 16, "lr": 0.02, **options})


def weights(result):
    return torch.cat([p.detach().flatten() for p in result.model.parameters()])


def step(method, model, batch, optimizer):
    """The gradients of one step, after all that the method adds."""
    optimizer.zero_grad()
    outputs = apply(model, batch)
    extra = method.penalty(model, batch, outputs)
    loss = F.cross_entropy(outputs, batch.targets)
    (loss if extra is None else loss + extra).backward()
    method.before_step(model, optimizer)
    return torch.cat([p.grad.flatten().clone() for p in model.parameters()]), extra


def test_penalties_and_pulls_add(blobs, net):
    old, new = blobs(1), blobs(2)
    makes = (
        lambda: methods.EWC(5.0),
        lambda: methods.ER(10),
        lambda: methods.DERpp(10),
        lambda: methods.LwF(weight="sum"),
        lambda: methods.StructuredLaplace(),
    )
    model, moved = net(), net(seed=1)
    optimizer, batch = torch.optim.SGD(moved.parameters(), lr=0.1), next(new.batches(16))

    def begun(method):
        method.consolidate(model, old)
        method.begin(model, new)
        return method

    alone = [step(begun(make()), moved, batch, optimizer) for make in makes]
    plain, _ = step(methods.Plain(), moved, batch, optimizer)
    whole, extra = step(begun(compose(*(make() for make in makes))), moved, batch, optimizer)
    assert torch.allclose(extra, sum(one for _, one in alone if one is not None), atol=1e-6)
    assert torch.allclose(whole - plain, sum(gradient - plain for gradient, _ in alone), atol=1e-5)


def test_one_method_composed_is_that_method(blobs, net):
    for make in (lambda: methods.EWC(5.0), lambda: methods.ER(10), lambda: methods.SI(3.0, pull="proximal"), Adds):
        assert torch.equal(weights(learned(compose(make(), methods.Plain()), blobs, net)), weights(learned(make(), blobs, net)))


def test_all_hooks_are_passed_on(blobs, net):
    method = compose(Prepares(), methods.ER(10))
    result = learned(method, blobs, net)
    assert type(result.model) is nn.Sequential and len(result.model) == 1 and result.history[-1]["prepared"] == 1
    assert torch.equal(weights(result), weights(learned(methods.ER(10), blobs, net, lr=0.04)))
    batch = next(blobs(1).batches(4))
    assert torch.equal(method.predict(result.model, batch), -apply(result.model, batch))


def test_what_reads_the_gradients_does_so_before_any_pull(blobs, net):
    ways = []
    for order in ((lambda: methods.EWC(5.0), lambda: methods.SI(0.0)), (lambda: methods.SI(0.0), lambda: methods.EWC(5.0))):
        method = compose(*(make() for make in order))
        learned(method, blobs, net)
        ways.append(next(part for part in method.parts if isinstance(part, methods.SI)).belief.precision.diagonal())
    assert all(torch.equal(ways[0][name], ways[1][name]) for name in ways[0])


def test_its_steps_are_counted_after_every_pull(blobs, net):
    method = compose(methods.SI(0.0), methods.L2SP(tau=0.01, pull="proximal"))
    old, new = blobs(1), blobs(2)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method.parts[1].consolidate(model, old)
    guard = retain.attach(method, model, optimizer, new)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    batch = next(new.batches(16))
    F.cross_entropy(apply(model, batch), batch.targets).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    optimizer.step()
    moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    assert moved.abs().max() > 0
    counted = torch.cat([value.flatten() for value in method.parts[0].path.values()])
    assert torch.allclose(counted, -gradient * moved, atol=1e-8)
    guard.detach()


def test_one_scout_serves_all_that_want_one(blobs, net):
    method = compose(methods.EWC("optimal"), methods.ER(10))
    learned(method, blobs, net)
    assert method.parts[0].belief is not None and not compose(methods.EWC(), methods.ER(10)).scouts


def test_composing_twice_takes_apart():
    method = compose(compose(methods.EWC(), methods.LwF()), methods.DERpp())
    assert [part.name for part in method.parts] == ["ewc", "lwf", "der++"] and str(method) == "ewc + lwf + der++"
    assert repr(compose(methods.LwF())) == "compose(LwF(strength=1.0, temperature=2.0, weight='tasks', among='competing'))"
    assert method.settings() == {"methods": method.parts}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (list, "methods: expected at least one, found none"),
        (lambda: ["ewc"], "methods: expected methods such as methods.EWC"),
        (lambda: [methods.EWC()] * 2, "each an object of its own, found one of them twice"),
        (lambda: [methods.VCL(), methods.EWC()], "expected vcl alone, found vcl and ewc. Its posterior"),
        (lambda: [methods.ER(5), methods.CoresetVCL()], "expected vcl-coreset alone"),
        (lambda: [methods.EWC(), methods.NewtonVCL()], "expected newton-vcl alone"),
        (lambda: [Drives(), methods.EWC()], "expected drives, which brings an optimiser of its own, alone"),
        (lambda: [Drives(), Drives()], "brings an optimiser of its own"),
        (lambda: [Prepares(), Prepares()], "at most one that prepares the model, found prepares and prepares"),
        (lambda: [methods.SI(), methods.RWalk()], "at most one that reads the gradients along the way"),
        (lambda: [methods.EWC(pull="proximal"), methods.L2SP(pull="proximal")], "at most one with a proximal pull.*leave one at pull='gradient'"),
        (lambda: [methods.ER(5), methods.LwF()], "at most one that weighs the loss on new data.*pass weight='sum'"),
        (lambda: [methods.ER(5), methods.ER(5, weight="samples")], "at most one that weighs the loss on new data"),
    ],
)
def test_what_does_not_go_together_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        compose(*make())


@pytest.mark.parametrize("hook", ["predict", "groups"])
def test_two_answers_or_choices_are_refused(hook):
    one = type("One", (Method,), {"name": "one", hook: getattr(Prepares, hook)})
    what = {"predict": "that answers in its own way", "groups": "that chooses what is trained"}[hook]
    with pytest.raises(InputError, match=f"at most one {what}, found one and one"):
        compose(one(), one())


def test_plain_goes_with_anything():
    assert str(compose(methods.Plain(), methods.VCL())) == "plain + vcl"


def test_a_state_of_other_methods_is_refused(net):
    with pytest.raises(InputError, match="state: expected that of 2 methods, found 1"):
        compose(methods.EWC(), methods.ER(5)).load_state_dict(compose(methods.EWC()).state_dict(), net())


def test_a_loop_of_ones_own_takes_it_unless_it_adds_to_the_batch(blobs, net):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    retain.attach(compose(methods.EWC(), methods.ER(5)), model, optimizer, blobs(1)).detach()
    with pytest.raises(RetainError, match="expected one that adds nothing to the batch, found ewc"):
        retain.attach(compose(methods.EWC(), Adds()), model, optimizer, blobs(1))


def test_laplace_with_a_few_old_samples_keeps_classes():
    stream = tasks.split(tasks.digits(), 5, scenario="class")
    for belief in (methods.StructuredLaplace(), methods.EWC()):
        result = retain.learn(models.MLP(64, 32, 10, seed=0), stream, compose(belief, methods.ER(100)), epochs=10, lr=0.005, score_every=10)
        assert result.average_accuracy > 0.75
