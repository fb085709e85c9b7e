"""Assemblies against plain definitions: k-cap, random graphs, symmetries; tasks made from a formula."""

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from retain import tasks
from retain.errors import InputError
from retain.models import MLP, FeedForwardAssembly, RecurrentAssembly, kcap
from retain.models.assembly.base import floor_of_double_softmax
from retain.plasticity import kernels
from retain.plasticity.losses import loss_of

EITHER = st.sampled_from(["fire", "silent"])


def plain_kcap(values, cap, ties):
    """By sorting: rates, and what fired."""
    rates = [max(value, 0.0) for value in values]
    order = sorted(range(len(rates)), key=lambda i: (-rates[i], i))
    fired = {i for i in order[: len(rates) if cap is None else cap] if rates[i] > 0 or (cap is not None and ties == "fire")}
    return [rate if i in fired else 0.0 for i, rate in enumerate(rates)], [i in fired for i in range(len(rates))]


# few different numbers: most examples have ties at the cap; the small and the large ones end a search by halves early
VALUES = st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0, 2.0, 2.0 + 2**-40, 1e-300, 1e300]) | st.floats(-1, 1), min_size=1, max_size=9)


@given(values=VALUES, share=st.floats(0, 1), capped=st.booleans(), ties=EITHER)
@settings(max_examples=200, deadline=None)
def test_kcap_is_that_of_sorting(values, share, capped, ties):
    cap = 1 + int(share * (len(values) - 1)) if capped else None
    expected = plain_kcap(values, cap, ties)
    rates, fired = kcap(torch.tensor(values, dtype=torch.float64), cap, ties)
    assert (rates.tolist(), fired.tolist()) == expected
    compiled, bits = np.empty(len(values)), np.empty(len(values), np.int64)
    kernels.kcap(np.array(values), -1 if cap is None else cap, ties == "silent", compiled, bits, np.empty(len(values)))
    assert (compiled.tolist(), bits.astype(bool).tolist()) == expected


def test_kcap_fires_exactly_cap_first_index_first():
    values = torch.tensor([[1.0, 2, 2, 2, 0, -1], [-1, -1, 0, 5, -1, 0], [-3, -3, -3, -3, -3, -3]])
    rates, fired = kcap(values, 2)
    assert fired.nonzero().tolist() == [[0, 1], [0, 2], [1, 0], [1, 3], [2, 0], [2, 1]]
    assert rates.sum(1).tolist() == [4, 5, 0]
    _, silent = kcap(values, 2, "silent")  # more to fire than positive units: those of rate 0 stay silent
    assert silent.sum(1).tolist() == [2, 1, 0]
    assert kcap(values, None)[1].sum(1).tolist() == [4, 1, 0]
    wide = torch.randn(50, 100)
    assert (kcap(wide, 20)[1].sum(1) == 20).all() and (kcap(wide.relu() * 0, 20)[1].sum(1) == 20).all()


def test_kcap_has_the_gradient_of_what_fired():
    values = torch.tensor([3.0, -1, 2, 1], requires_grad=True)
    kcap(values, 2)[0].sum().backward()
    assert values.grad.tolist() == [1, 0, 1, 0]


NETS = [
    lambda **kw: FeedForwardAssembly(5, 3, layers=1, **kw),
    lambda **kw: FeedForwardAssembly(5, 3, layers=3, **kw),
    lambda **kw: RecurrentAssembly(5, 3, rounds=0, **kw),
    lambda **kw: RecurrentAssembly(5, 3, rounds=2, **kw),
]
NAMES = ["feed-forward, 1", "feed-forward, 3", "recurrent, 0", "recurrent, 2"]


def random_plastic(net, seed):
    g = torch.Generator().manual_seed(seed)
    net.put([torch.randn(weight.shape, generator=g, dtype=weight.dtype) for weight in net.plastic])
    return net


@pytest.mark.parametrize("make", NETS, ids=NAMES)
def test_the_forward_pass_sample_by_sample(make):
    """Against loops over units and edges."""
    net, x = random_plastic(make(width=7, cap=3, seed=4), 1), torch.randn(6, 5, dtype=torch.float64)
    masks = [mask.tolist() for mask in net.masks]
    weights = [weight.tolist() for weight in net.hidden]

    def into(rows, mask, rates):
        return [sum(w * r for w, m, r in zip(row, edges, rates, strict=True) if m) for row, edges in zip(rows, mask, strict=True)]

    for sample, answer in zip(x.tolist(), net(x).tolist(), strict=True):
        drive = into(net.input_weight.tolist(), net.input_mask.tolist(), sample)
        rates = plain_kcap(drive, 3, "fire")[0]
        for step in range(net.layers - 1 if net.kind == "feed-forward" else net.rounds):
            k, source = (step, rates) if net.kind == "feed-forward" else (0, [r + u for r, u in zip(rates, drive, strict=True)])
            rates = plain_kcap(into(weights[k], masks[k], source), 3, "fire")[0]
        logits = into(net.output_weight.tolist(), [[True] * 7] * 3, rates)
        assert answer == pytest.approx(logits, rel=1e-12, abs=1e-12)


def test_histories_have_the_first_step_as_their_highest_bit():
    net = random_plastic(RecurrentAssembly(5, 3, rounds=2, width=7, cap=3), 0)
    current = net.current(torch.randn(4, 5)).detach()
    activity = net.propagate(current, net.plastic)
    _, first = kcap(current, 3)
    assert net.states == 8 and torch.equal(activity.pre[0] // 4, first.long()) and torch.equal(activity.pre[0], activity.post[0])
    assert all(((activity.pre[1] >> bit) % 2).sum(1).tolist() == [3] * 4 for bit in range(3))


@pytest.mark.parametrize("make", NETS, ids=NAMES)
def test_graphs_are_those_of_their_seed(make):
    a, b, c = make(seed=3), make(seed=3), make(seed=4)
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name])
    assert not torch.equal(a.input_mask, c.input_mask) and not torch.equal(a.input_weight, c.input_weight)
    every = [a.input_mask, *a.masks]
    assert len({tuple(mask.flatten()[:60].tolist()) for mask in every}) == len(every)  # layers are not copies
    assert all(abs(float(mask.double().mean()) - 0.5) < 0.08 for mask in every)
    if a.kind == "recurrent":
        assert not any(mask.diagonal().any() for mask in a.masks)
    assert make(p=0.0).input_mask.sum() == 0 and make(p=1.0).input_mask.all()


@pytest.mark.parametrize("make", NETS, ids=NAMES)
def test_edges_that_are_not_there_carry_nothing(make):
    net, x = random_plastic(make(width=9, cap=4, p=0.4), 0), torch.randn(8, 5)
    before = net(x)
    with torch.no_grad():
        for weight, mask in [(net.input_weight, net.input_mask), *zip(net.hidden, net.masks, strict=True)]:
            weight[~mask] = 1e6
    assert torch.equal(net(x), before) and all((weight[~mask] == 0).all() for weight, mask in zip(net.plastic[:-1], net.masks, strict=True))


@pytest.mark.parametrize(("start", "least", "most"), [("zeros", 0, 0), ("ones", 1, 1), ("uniform", -0.5, 0.5)])
def test_reset_puts_every_plastic_matrix_at_its_start(start, least, most):
    net = FeedForwardAssembly(5, 3, layers=3, start=start)
    first, inputs = [weight.detach().clone() for weight in (*net.hidden, net.output_weight)], net.input_weight.detach().clone()
    assert all(least <= float(weight.min()) and float(weight.max()) <= most for weight in first)
    random_plastic(net, 0).reset()
    assert all(map(torch.equal, (*net.hidden, net.output_weight), first)) and torch.equal(net.input_weight, inputs)


@pytest.mark.parametrize("make", [tasks.digits, lambda: tasks.mnist(embedded=True)], ids=["digits", "mnist"])
def test_a_fresh_feed_forward_net_answers_class_0(make):
    task = make()
    net = FeedForwardAssembly(task.data.inputs[0].numel(), 10, layers=2, width=20, cap=10)
    answers = net(task.test.inputs).argmax(1)
    assert (answers == 0).all()
    assert float((answers == task.test.targets).double().mean()) == float((task.test.targets == 0).double().mean())


@pytest.mark.skipif(not Path(os.environ.get("RETAIN_DATA", "."), "MNIST", "raw").is_dir(), reason="the full data set is not here")
def test_the_share_of_class_0_in_full_mnist():
    task = tasks.mnist()
    net = FeedForwardAssembly(784, 10, layers=2, width=4, cap=2)
    assert round(float((net(task.test.inputs).argmax(1) == task.test.targets).double().mean()), 4) == 0.0980
    assert round(float((net(task.data.inputs[:1]).argmax(1) == task.data.targets).double().mean()), 4) == 0.0987


@pytest.mark.parametrize(("classes", "floor"), [(2, 0.3133), (10, 1.4612)])
def test_a_softmax_in_a_softmax_has_a_floor(classes, floor):
    labels = torch.arange(classes)
    certain = 1000 * torch.eye(classes, dtype=torch.float64)
    assert float(loss_of(certain, labels, double_softmax=True)) == pytest.approx(floor_of_double_softmax(classes), abs=1e-12)
    assert round(floor_of_double_softmax(classes), 4) == floor
    assert float(loss_of(certain, labels)) == 0
    assert float(loss_of(certain, labels, "mse")) == 0 and float(loss_of(-certain, labels, "mse")) > 0.1


def permuted(net, orders):
    """The same network with each layer's units in another order."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        for own, theirs in ((other.input_weight, net.input_weight), (other.input_mask, net.input_mask)):
            own.copy_(theirs[orders[0]])
        for k in range(len(net.hidden)):
            into, out = (orders[0], orders[0]) if net.kind == "recurrent" else (orders[k + 1], orders[k])
            for own, theirs in ((other.hidden[k], net.hidden[k]), (other.masks[k], net.masks[k])):
                own.copy_(theirs[into][:, out])
        other.output_weight.copy_(net.output_weight[:, orders[0] if net.kind == "recurrent" else orders[len(net.hidden)]])
    return other


@given(which=st.integers(0, 3), seed=st.integers(0, 1000), width=st.integers(2, 12), share=st.floats(0, 1), capped=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_order_of_hidden_units_does_not_matter(which, seed, width, share, capped):
    cap = 1 + int(share * (width - 1)) if capped else None
    net = random_plastic(NETS[which](width=width, cap=cap, seed=seed), seed)
    g = torch.Generator().manual_seed(seed)
    other = permuted(net, [torch.randperm(width, generator=g) for _ in range(4)])
    x = torch.randn(10, 5, generator=g)
    assert torch.allclose(net(x), other(x), rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 1000), layers=st.integers(1, 3), scale=st.floats(1e-3, 1e3), capped=st.booleans(), ties=EITHER)
@settings(max_examples=40, deadline=None)
def test_scaling_the_plastic_weights_changes_no_firing(seed, layers, scale, capped, ties):
    net = random_plastic(FeedForwardAssembly(5, 3, layers=layers, width=12, cap=4 if capped else None, ties=ties, seed=seed), seed)
    current = net.current(torch.randn(10, 5, generator=torch.Generator().manual_seed(seed)))
    a, b = net.propagate(current, net.plastic), net.propagate(current, [scale * weight for weight in net.plastic])
    assert all(map(torch.equal, [*a.pre, *a.post], [*b.pre, *b.post]))
    assert torch.allclose(a.logits * scale**layers, b.logits, rtol=1e-9, atol=1e-300) and torch.equal(a.logits.argmax(1), b.logits.argmax(1))


def test_several_networks_side_by_side_answer_as_each_alone():
    nets = [random_plastic(RecurrentAssembly(5, 3, rounds=2, width=9, cap=4, seed=seed), seed) for seed in range(3)]
    x = torch.randn(3, 6, 5)
    current = torch.stack([net.current(part) for net, part in zip(nets, x, strict=True)])
    plastic = [torch.stack(matrices) for matrices in zip(*(net.plastic for net in nets), strict=True)]
    together = nets[0].propagate(current, plastic).logits
    assert torch.allclose(together, torch.stack([net(part) for net, part in zip(nets, x, strict=True)]), rtol=1e-12)


@pytest.mark.parametrize("classes", [10, 13])
def test_equal_units_tie_exactly(classes):
    """Whatever a product of matrices does with the last rows: of equal answers the first is given."""
    net = random_plastic(FeedForwardAssembly(20, classes, layers=2, width=101, cap=50, p=1.0), 0)
    current = net.current(torch.rand(40, 20)).detach()
    same = [weight[:1].expand_as(weight).contiguous() for weight in net.plastic]
    for sample in current.split(1):
        activity = net.propagate(sample, same)
        assert activity.logits.unique().numel() == 1
        assert activity.post[0][0].nonzero().flatten().tolist() == list(range(50))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FeedForwardAssembly(5, 3, width=10, cap=11), "cap: expected at most the width, 10, found 11. Lower the cap"),
        (lambda: FeedForwardAssembly(5, 3, cap=0), "cap: expected a whole number of at least 1"),
        (lambda: FeedForwardAssembly(5, 3, p=1.5), "p: expected a number between 0 and 1, found 1.5"),
        (lambda: FeedForwardAssembly(5, 3, p=-0.1), "p: expected a number between 0 and 1"),
        (lambda: FeedForwardAssembly(5, 3, p=float("nan")), "p: expected a number between 0 and 1"),
        (lambda: FeedForwardAssembly(0, 3), "inputs: expected a whole number of at least 1, found 0"),
        (lambda: FeedForwardAssembly(5, 0), "classes: expected a whole number of at least 1"),
        (lambda: FeedForwardAssembly(5, 3, layers=0), "layers: expected a whole number of at least 1"),
        (lambda: FeedForwardAssembly(5, 3, width=0), "width: expected a whole number of at least 1"),
        (lambda: FeedForwardAssembly(5, 3, width=2.5), "width: expected a whole number"),
        (lambda: FeedForwardAssembly(5, 3, seed=-1), "seed: expected a whole number of at least 0"),
        (lambda: FeedForwardAssembly(5, 3, ties="silence"), "ties: expected one of fire, silent, found 'silence'. Did you mean 'silent'?"),
        (lambda: FeedForwardAssembly(5, 3, start="zero"), "start: expected one of zeros, ones, uniform, found 'zero'. Did you mean 'zeros'?"),
        (lambda: RecurrentAssembly(5, 3, rounds=-1), "rounds: expected a whole number of at least 0"),
        (lambda: RecurrentAssembly(5, 3, rounds=8), "rounds: expected at most 7"),
        (lambda: FeedForwardAssembly(5, 3)(torch.rand(2, 6)), "inputs: expected 5 values each, as the network has, found 6"),
        (lambda: tasks.halfspace(0), "dim: expected a whole number of at least 1"),
        (lambda: tasks.halfspace(n=0), "n: expected a whole number of at least 1"),
        (lambda: tasks.halfspace(test=-1), "test: expected a whole number of at least 0"),
        (lambda: tasks.halfspace(noise=1.1), "noise: expected a number between 0 and 1"),
        (lambda: tasks.halfspace(seed=-1), "seed: expected a whole number of at least 0"),
        (lambda: tasks.relu_network(classes=1), "classes: expected a whole number of at least 2"),
        (lambda: tasks.relu_network(hidden=0), "hidden: expected a whole number of at least 1"),
        (lambda: tasks.teacher(nn.Flatten(0), 4), "model: expected rows of finite outputs, one a point, found shape"),
        (lambda: tasks.teacher(nn.LeakyReLU(float("nan")), 4), "model: expected rows of finite outputs"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(words)


SYNTHETIC = {
    "halfspace": lambda **kw: tasks.halfspace(6, 200, **kw),
    "relu": lambda **kw: tasks.relu_network(6, 200, classes=3, hidden=20, **kw),
    "teacher": lambda **kw: tasks.teacher(MLP(6, 10, 4, seed=1), 6, 200, **kw),
}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_tasks_are_those_of_their_seed_and_size(name):
    make = SYNTHETIC[name]
    a, b, c = make(seed=1, test=30, validation=20), make(seed=1, test=30, validation=20), make(seed=2, test=30, validation=20)
    for part, size in (("data", 200), ("test", 30), ("validation", 20)):
        one, two = a.get(part), b.get(part)
        assert torch.equal(one.inputs, two.inputs) and torch.equal(one.targets, two.targets)
        assert not torch.equal(one.inputs, c.get(part).inputs)
        assert one.inputs.shape == (size, 6) and one.inputs.dtype == torch.float32 and one.targets.dtype == torch.int64
        assert -1 <= float(one.inputs.min()) < -0.9 and 0.9 < float(one.inputs.max()) <= 1
    assert a.n == 200 and a.classes == {"halfspace": (0, 1), "relu": (0, 1, 2), "teacher": (0, 1, 2, 3)}[name]
    assert not torch.equal(a.data.inputs[:20], a.validation.inputs) and not torch.equal(a.data.inputs[:30], a.test.inputs)
    bare = make(seed=1, test=0, validation=0)
    assert bare.test is None and bare.validation is None and torch.equal(bare.data.inputs, a.data.inputs)


def test_a_halfspace_is_one():
    """A perceptron ends without mistakes, and one side is not much larger than the other."""
    task = tasks.halfspace(3, 300, seed=5)
    x, y = task.data.inputs.double(), 2 * task.data.targets.double() - 1
    w = torch.zeros(3, dtype=torch.float64)
    for _ in range(2000):
        wrong = (y * (x @ w) <= 0).nonzero().flatten()
        if not len(wrong):
            break
        w = w + y[wrong[0]] * x[wrong[0]]
    assert ((x @ w > 0).long() == task.data.targets).all()
    shares = [float(tasks.halfspace(16, seed=seed).data.targets.double().mean()) for seed in range(5)]
    assert all(0.45 < share < 0.55 for share in shares)


@pytest.mark.parametrize("noise", [0.1, 0.4, 1.0])
def test_noise_turns_over_its_share_in_every_part_and_leaves_the_points(noise):
    clean, noisy = (tasks.halfspace(8, 4000, test=2000, validation=2000, noise=share, seed=2) for share in (0.0, noise))
    for part in ("data", "test", "validation"):
        one, two = clean.get(part), noisy.get(part)
        turned = float((one.targets != two.targets).double().mean())
        assert torch.equal(one.inputs, two.inputs) and abs(turned - noise) < 4 * (noise * (1 - noise) / 2000) ** 0.5 + 1e-9


def test_a_teacher_is_asked_in_evaluation_mode_and_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9), nn.Sequential(nn.Dropout(0.9)).eval())
    task = tasks.teacher(model, 4, 50)
    assert [module.training for module in model.modules()] == [True, True, True, False, False] and not any(p.grad is not None for p in model.parameters())
    assert torch.equal(model.eval()(task.test.inputs).argmax(1), task.test.targets)
    with pytest.raises(InputError):
        tasks.teacher(flat := nn.Flatten(0), 4)
    assert flat.training
    net = random_plastic(FeedForwardAssembly(4, 3), 0)
    assert torch.equal(net(tasks.teacher(net, 4).data.inputs).argmax(1), tasks.teacher(net, 4).data.targets)
