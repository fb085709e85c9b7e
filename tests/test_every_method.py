"""One contract for all methods: a new method adds a row to CASES."""

from contextlib import nullcontext

import pytest
import torch
from conftest import Memory
from torch import nn
from torch.nn import functional as F

import retain
from retain import methods, models, tasks
from retain.likelihoods import Gaussian
from retain.methods import METHODS
from retain.models import kl
from retain.tasks import Batch
from retain.training.checkpoints import read_tree, write_tree

SMALL = {"hidden": (16,), "latent": 4, "likelihood": Gaussian(0.5), "lr": 0.01}
CASES = {
    "plain": (lambda: methods.Plain(), None),
    "ewc": (lambda: methods.EWC(strength=5.0), lambda: methods.EWC(strength=0.0)),
    "ewc-separate": (lambda: methods.EWC(strength=5.0, centres="separate"), lambda: methods.EWC(0.0, centres="separate")),
    "ewc-proximal": (lambda: methods.EWC(strength=5.0, pull="proximal"), lambda: methods.EWC(0.0, pull="proximal")),
    "ewc-sampled": (lambda: methods.EWC(5.0, "sampled", 30, draws=2), lambda: methods.EWC(0.0, "sampled", 30)),
    "online-ewc": (lambda: methods.OnlineEWC(5.0, decay=0.5), lambda: methods.OnlineEWC(0.0)),
    "laplace": (lambda: methods.StructuredLaplace(5.0), lambda: methods.StructuredLaplace(0.0)),
    "laplace-proximal": (lambda: methods.StructuredLaplace(5.0, pull="proximal"), lambda: methods.StructuredLaplace(0.0, pull="proximal")),
    "laplace-damped": (lambda: methods.StructuredLaplace(5.0, damping=0.1), lambda: methods.StructuredLaplace(0.0, damping=0.1)),
    "laplace-every": (
        lambda: methods.StructuredLaplace(5.0, pull="proximal", every=3),
        lambda: methods.StructuredLaplace(0.0, pull="proximal", every=3),
    ),
    "laplace-ekfac": (lambda: methods.StructuredLaplace(5.0, structure="ekfac", pull="proximal"), lambda: methods.StructuredLaplace(0.0, structure="ekfac")),
    "si": (lambda: methods.SI(2.0), lambda: methods.SI(0.0)),
    "si-proximal": (lambda: methods.SI(2.0, pull="proximal"), lambda: methods.SI(0.0, pull="proximal")),
    "ssr": (lambda: methods.SSR(5.0, rank=2), lambda: methods.SSR(0.0)),
    "ssr-proximal": (lambda: methods.SSR(5.0, rank=2, pull="proximal"), lambda: methods.SSR(0.0, pull="proximal")),
    "mas": (lambda: methods.MAS(20.0), lambda: methods.MAS(0.0)),
    "mas-paper": (lambda: methods.MAS(0.02, scale="paper", samples=30), lambda: methods.MAS(0.0, scale="paper")),
    "rwalk": (lambda: methods.RWalk(5.0), lambda: methods.RWalk(0.0)),
    "l2sp": (lambda: methods.L2SP(tau=0.1), lambda: methods.L2SP(strength=0.0)),
    "l2sp-proximal": (lambda: methods.L2SP(tau=0.1, pull="proximal"), lambda: methods.L2SP(0.0, pull="proximal")),
    "vcl": (lambda: methods.VCL(prior=models.GaussianPrior(std=0.3), logvar=-5, keep="BatchNorm1d"), None),
    "vcl-coreset": (lambda: methods.CoresetVCL(10, epochs=20, lr=0.02, prior=models.GaussianPrior(std=0.3), logvar=-5, keep="BatchNorm1d"), None),
    "lwf": (lambda: methods.LwF(), lambda: methods.LwF(0.0, weight="sum")),
    "lwf-past": (lambda: methods.LwF(weight="past", among="old"), lambda: methods.LwF(0.0, weight="past")),
    "er": (lambda: methods.ER(20), lambda: methods.ER(20, strength=0.0, weight="sum")),
    "er-online": (lambda: methods.ER(20, online=True, weight="samples"), lambda: methods.ER(20, online=True, strength=0.0, weight="sum")),
    "er-balanced": (lambda: methods.ER(20, "balanced", batch=8), lambda: methods.ER(20, "balanced", strength=0.0, weight="sum")),
    "er-per-class": (lambda: methods.ER(5, "per-class"), lambda: methods.ER(5, "per-class", strength=0.0, weight="sum")),
    "a-gem": (lambda: methods.AGEM(20), None),
    "icarl": (lambda: methods.ICaRL(20), None),
    "icarl-per-class": (lambda: methods.ICaRL(5, "per-class", batch=6), None),
    "der++": (lambda: methods.DERpp(20), lambda: methods.DERpp(20, 0.0, 0.0)),
    "ewc+lwf": (lambda: methods.compose(methods.EWC(5.0), methods.LwF()), lambda: methods.compose(methods.EWC(0.0), methods.LwF(0.0, weight="sum"))),
    "ewc+er": (lambda: methods.compose(methods.EWC(5.0), methods.ER(20)), lambda: methods.compose(methods.EWC(0.0), methods.Plain())),
    "laplace+er": (
        lambda: methods.compose(methods.StructuredLaplace(5.0, pull="proximal"), methods.ER(20, weight="sum")),
        lambda: methods.compose(methods.StructuredLaplace(0.0), methods.ER(20, strength=0.0, weight="sum")),
    ),
    "er+si": (lambda: methods.compose(methods.ER(20), methods.SI(2.0, pull="proximal")), lambda: methods.compose(methods.SI(0.0))),
    "newton-vcl": (lambda: methods.NewtonVCL(hess_init=0.02, beta2=0.99, beta=0.01, strength=10, answers=2), None),
    "separate": (lambda: methods.SeparateNetworks(), None),
    "xdg": (lambda: methods.XdG(0.25, seed=1), None),
    "ewc+xdg": (lambda: methods.compose(methods.EWC(5.0), methods.XdG(0.25, seed=1)), None),
    "xdg+si": (lambda: methods.compose(methods.XdG(0.25, seed=1), methods.SI(2.0)), None),
    "generative-replay": (lambda: methods.GenerativeReplay(**SMALL), lambda: methods.GenerativeReplay(0.0, weight="sum", **SMALL)),
    "generative-soft": (
        lambda: methods.GenerativeReplay(soft=True, batch=12, **SMALL),
        lambda: methods.GenerativeReplay(0, soft=True, weight="sum", **SMALL),
    ),
}
GATED = {"xdg", "ewc+xdg", "xdg+si"}  # a part of the network alone learns: never plain training
NEEDS_IDENTITY = {"separate"}  # these learn a stream with a head a task
LEARNS_OTHERWISE = {"vcl", "vcl-coreset"}  # a prior holds the weights from the first task on, and training is noisy: never plain training
ANOTHER_LOSS = {"icarl", "icarl-per-class"}  # yes and no for every class: never plain training
REPLAYS_AT_ONCE = {"er-online", "der++"}  # samples of the first task too
SEES_MORE = {
    "vcl-coreset",
    *(name for name in CASES if name.startswith(("er", "a-gem", "icarl", "generative")) or "+" in name),
}  # passes over old samples
# mean accuracy at the end and squared distance between the weights after the first and the last task
GOLDEN = {
    "plain": (0.7667, 0.01498),
    "ewc": (0.7750, 0.01085),
    "ewc-separate": (0.7750, 0.01085),
    "ewc-proximal": (0.7667, 0.00817),
    "ewc-sampled": (0.7917, 0.01106),
    "online-ewc": (0.7750, 0.01085),
    "laplace": (0.7667, 0.01151),
    "laplace-proximal": (0.7750, 0.00900),
    "laplace-ekfac": (0.7750, 0.00955),
    "si": (0.7667, 0.01215),
    "si-proximal": (0.7750, 0.00972),
    "laplace-every": (0.7833, 0.00925),
    "laplace-damped": (0.7750, 0.01066),
    "ssr": (0.7667, 0.01335),
    "ssr-proximal": (0.7750, 0.01111),
    "mas": (0.7833, 0.00611),
    "mas-paper": (0.7667, 0.01464),
    "rwalk": (0.7750, 0.00868),
    "l2sp": (0.7667, 0.00352),
    "l2sp-proximal": (0.7583, 0.00120),
    "vcl": (0.7667, 0.00085),
    "vcl-coreset": (0.7583, 0.00085),
    "lwf": (0.7667, 0.00371),
    "lwf-past": (0.7833, 0.00939),
    "er": (0.7417, 0.00633),
    "er-online": (0.7917, 0.01216),
    "er-balanced": (0.7917, 0.00589),
    "er-per-class": (0.7833, 0.00862),
    "a-gem": (0.7583, 0.01491),
    "icarl": (0.6917, 0.01438),
    "icarl-per-class": (0.6750, 0.01568),
    "der++": (0.7500, 0.01479),
    "ewc+lwf": (0.7667, 0.00277),
    "ewc+er": (0.7500, 0.00451),
    "laplace+er": (0.7750, 0.01029),
    "er+si": (0.7333, 0.00385),
    "newton-vcl": (0.7417, 0.02587),
    "separate": (0.8083, 0.01979),
    "xdg": (0.7750, 0.01301),
    "ewc+xdg": (0.7833, 0.00949),
    "xdg+si": (0.7833, 0.01041),
    "generative-replay": (0.6583, 0.00629),
    "generative-soft": (0.7667, 0.00466),
}


def drawn(optimizer):
    """Where the method's own optimiser wants its gradients; any other takes them as they are."""
    return getattr(optimizer, "sampled", nullcontext)()


def taught(method, model, task):
    """The method after it watched the task being learned; those that read the data or the weights need not have watched."""
    parts = getattr(method, "parts", [method])
    if any(isinstance(part, methods.SI | methods.RWalk | methods.NewtonVCL | methods.XdG) for part in parts):
        optimizer = method.optimizer(model, lr=0.1) or torch.optim.SGD(model.parameters(), lr=0.1)
        guard = retain.attach(method, model, optimizer, task)
        for batch in task.batches(16):
            optimizer.zero_grad()
            with drawn(optimizer):
                outputs = model(batch.inputs)
                (F.cross_entropy(outputs, batch.targets) + guard.penalty(batch, outputs)).backward()
            optimizer.step()
        guard.detach()
    method.consolidate(model, task)
    return method


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture
def stream(case, blobs):
    if case in NEEDS_IDENTITY:
        return tasks.sequence(blobs(1), tasks.shift_labels(blobs(2), 3), scenario="task")
    return tasks.sequence(blobs(1), blobs(2))


@pytest.fixture
def net(case, net):
    return (lambda seed=0: net(seed, classes=6)) if case in NEEDS_IDENTITY else net


def learn(method, stream, net, **options):
    return retain.learn(net(), stream, method, **{"epochs": 4, "batch_size": 16, "lr": 0.02, "seed": 0, **options})


def weights(result):
    return torch.cat([p.detach().flatten() for p in result.model.parameters()])


def test_every_method_has_a_case():
    assert {CASES[name][0]().name for name in CASES} == {*METHODS, "composed"}
    for name, method in METHODS.items():
        assert method.name == name and method.summary and method.__doc__


def test_learns_and_repeats_bit_for_bit(case, stream, net):
    make = CASES[case][0]
    first, second = learn(make(), stream, net), learn(make(), stream, net)
    assert first.accuracy.shape == (3, 2)
    assert first.accuracy[1, 0] > 0.8
    assert torch.equal(weights(first), weights(second)) and first.rows == second.rows


def test_strength_zero_is_fine_tuning(case, stream, net):
    weak = CASES[case][1]
    if weak is None:
        return
    assert torch.equal(weights(learn(weak(), stream, net)), weights(learn(None, stream, net)))


def test_one_task_is_plain_training(case, stream, net):
    one = retain.learn(net(), stream[:1], CASES[case][0](), epochs=2, seed=0)
    plain = retain.learn(net(), stream[:1], None, epochs=2, seed=0)
    if case == "newton-vcl" or case in REPLAYS_AT_ONCE | ANOTHER_LOSS | GATED:  # its training is that of its optimiser: tests/test_newton_vcl.py
        assert not torch.equal(weights(one), weights(plain))
        return
    if case in LEARNS_OTHERWISE:  # but the prior and the noise are all that differs
        settings = {**one.method.settings(), "logvar": -60, "weighting": methods.NoDivergence()}
        free = retain.learn(net(), stream[:1], type(one.method)(**settings), epochs=2, seed=0)
        names = [name for name, _ in plain.model.named_parameters()]
        same = [all(torch.allclose(r.model.get_parameter(name), plain.model.get_parameter(name), atol=1e-5) for name in names) for r in (one, free)]
        assert same == [False, True] and one.history[-1]["kl"] < one.history[0]["kl"] < float(kl(one.method.prepare(net())).detach())
        return
    assert torch.equal(weights(one), weights(plain))


def test_keeps_more_than_fine_tuning(case, stream, net):
    if case == "plain":
        return
    kept, lost = learn(CASES[case][0](), stream, net), learn(None, stream, net)
    assert kept.accuracy[2, 0] > lost.accuracy[2, 0]


def test_state_survives_a_file_and_goes_on_alike(case, stream, net, tmp_path):
    make = CASES[case][0]
    old, new = stream
    model = make().prepare(net())
    method = taught(make(), model, old)
    write_tree(tmp_path / "state.safetensors", method.state_dict())
    ends = []
    for one in (method, make()):
        again = models.copy(model)
        if one is not method:
            one.load_state_dict(read_tree(tmp_path / "state.safetensors"), again)
        guard_optimizer = one.optimizer(again, lr=0.05) or torch.optim.SGD(again.parameters(), lr=0.05)
        guard = retain.attach(one, again, guard_optimizer, new)
        torch.manual_seed(0)
        for batch in new.batches(16):
            guard_optimizer.zero_grad()
            with drawn(guard_optimizer):
                outputs = again(batch.inputs)
                (F.cross_entropy(outputs, batch.targets) + guard.penalty(batch, outputs)).backward()
            guard_optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in again.parameters()]))
    assert torch.equal(*ends)


def test_consolidate_leaves_the_model_as_it_was(case, stream):
    method = CASES[case][0]()
    model = method.prepare(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    method.begin(model, stream[0])
    method.optimizer(model, lr=0.1)
    method.consolidate(model, stream[0])
    assert model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_order_of_the_data_does_not_depend_on_the_method(case, stream, net):
    seen = {}
    for name, make in (("plain", methods.Plain), (case, CASES[case][0])):
        order = []

        class Spy(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x, order=order):  # not an attribute: a method may train a copy
                if self.training:
                    order.append(float(x.sum()))
                return self.inner(x)

        retain.learn(Spy(net()), stream, make(), epochs=2, batch_size=16, seed=3)
        seen[name] = order
    rest = iter(seen[case])
    assert all(batch in rest for batch in seen["plain"])  # the same in the same order, whatever stands between
    assert seen[case] == seen["plain"] or case in SEES_MORE


def test_works_before_anything_was_learned(case, stream, net):
    method = CASES[case][0]()
    model = method.prepare(net())
    optimizer = method.optimizer(model, lr=0.1) or torch.optim.Adam(model.parameters())
    guard = retain.attach(method, model, optimizer, stream[0])
    batch = Batch(torch.randn(4, 4), torch.zeros(4).long(), stream[0])
    with drawn(optimizer):
        outputs = model(batch.inputs)
        (F.cross_entropy(outputs, batch.targets) + guard.penalty(batch, outputs)).backward()
    before = [p.grad.clone() for p in model.parameters()]
    if case in LEARNS_OTHERWISE:  # the first prior is there already
        divergence = torch.autograd.grad(kl(model), list(model.parameters()))
        before = [a + b / stream[0].n for a, b in zip(before, divergence, strict=True)]
    optimizer.step()
    near = torch.allclose if case in LEARNS_OTHERWISE else torch.equal
    assert all(near(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))
    guard.consolidate()


def test_repr_names_the_settings(case):
    method = CASES[case][0]()
    assert str(method) == (case.replace("+", " + ") if method.name == "composed" else method.name)
    assert all(f"{key}=" in repr(method) for part in getattr(method, "parts", [method]) for key in part.settings())


def test_golden(case, stream, net):
    model = net()
    method = CASES[case][0]()
    # in double precision, so that no processor's rounding moves a sample across a boundary
    options = {"epochs": 4, "batch_size": 16, "lr": 0.02, "optimizer": "momentum", "precision": "float64"}
    first = retain.learn(model, stream[:1], method, watch=stream, **options)
    start = weights(first)
    result = retain.learn(first.model, stream, method, after=first, **options)
    found = (result.average_accuracy, float((weights(result) - start).square().mean()))
    assert found == pytest.approx(GOLDEN[case], abs=1e-4)


@pytest.mark.parametrize("after", [2, 4, 5])
def test_broken_off_and_gone_on_is_the_same(case, stream, net, tmp_path, after):
    whole = retain.learn(net(), stream, CASES[case][0](), epochs=3, batch_size=16, lr=0.02)
    memory = Memory(after)
    with pytest.raises(KeyboardInterrupt):
        retain.learn(net(), stream, CASES[case][0](), epochs=3, batch_size=16, lr=0.02, recorder=memory)
    write_tree(tmp_path / "state.safetensors", memory.state)
    memory.state = read_tree(tmp_path / "state.safetensors")
    again = retain.learn(net(), stream, CASES[case][0](), epochs=3, batch_size=16, lr=0.02, recorder=memory)
    assert torch.equal(weights(whole), weights(again)) and whole.rows == again.rows
