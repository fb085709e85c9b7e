"""What a rule does to weights: a textbook perceptron, the compiled kernels against plain torch, and the replayed gradient against autograd."""

import dataclasses

import pytest
import torch
from torch.nn.functional import cross_entropy

from retain.models import FeedForwardAssembly, RecurrentAssembly
from retain.plasticity import PERCEPTRON, TABLES, TableRule
from retain.plasticity.compiled import Compiled
from retain.plasticity.learners import TorchLearner
from retain.plasticity.meta import _Step
from retain.plasticity.replay import table_gradient
from retain.plasticity.trace import present

INPUTS, CLASSES, WIDTH = 6, 3, 12
NETS = {
    "feed-forward, 1": lambda **kw: FeedForwardAssembly(INPUTS, CLASSES, layers=1, **kw),
    "feed-forward, 3": lambda **kw: FeedForwardAssembly(INPUTS, CLASSES, layers=3, **kw),
    "recurrent, 0": lambda **kw: RecurrentAssembly(INPUTS, CLASSES, rounds=0, **kw),
    "recurrent, 2": lambda **kw: RecurrentAssembly(INPUTS, CLASSES, rounds=2, **kw),
}
# each is on in one and off in another
FLAGS = [
    ({}, {}),
    ({"when": "mistakes", "gated": True, "universal": False}, {"ties": "silent"}),
    ({"average": True, "edges": "label and predicted", "universal": False}, {}),
    ({"average": True, "gated": True, "when": "mistakes", "edges": "label and predicted"}, {"ties": "silent"}),
]
CASES = [
    pytest.param(net, table, form, id=f"{net}, {table}, {form}")
    for net in NETS
    for table in TABLES
    for form in ("additive", "multiplicative")
    if net != "recurrent, 2" or table == "prepost"  # counts are not defined over several rounds
]


def each_setting(name, table, form, **settings):
    """Networks with rules that fit them, of random numbers; every other one starts at random weights.

    Additive tables get multiples of 1/8, as :func:`samples` rounds currents: their sums are exact in any order, and so are ties.
    """
    for number, (flags, more) in enumerate(FLAGS):
        flags, start = dict(flags), "uniform" if number % 2 else "ones" if form == "multiplicative" else "zeros"
        if form == "multiplicative":
            flags.pop("average", None)
            flags["form"] = form
        net = NETS[name](width=WIDTH, start=start, **{"cap": 5, **more, **settings})
        rule = TableRule.fit(net, table, rate=0.125 if form == "additive" else 0.01, **flags)
        with torch.no_grad():
            for p in rule.parameters():
                p.copy_(torch.randint(-8, 9, p.shape) / 8 if form == "additive" else torch.randn(p.shape))
            net.put([eighths(weight) for weight in net.plastic])
        yield net, rule


def eighths(values):
    return (8 * values).round() / 8


def samples(net, n):
    x, y = 2 * torch.rand(n, INPUTS) - 1, torch.randint(0, CLASSES, (n,))
    return eighths(net.current(x).detach()), y


def edges_of(net):
    return [*(mask[None] for mask in net.masks), torch.ones(1, net.classes, net.width, dtype=torch.bool)]


def by_torch(net, rule, current, labels, **more):
    return present(net, rule, [w.detach()[None] for w in net.plastic], edges_of(net), current[None], labels[None], record=True, **more)


# --- the textbook perceptron ---


def perceptron(x, y, classes):
    """Rosenblatt's, for several classes; of equal scores the first class is the answer."""
    weights, errors = torch.zeros(classes, x.shape[1], dtype=torch.float64), 0
    for sample, label in zip(x.double(), y.tolist(), strict=True):
        answer = int((weights @ sample).argmax())
        if answer != label:
            weights[label] += sample
            weights[answer] -= sample
            errors += 1
    return weights, errors


@pytest.mark.parametrize("engine", ["torch", "numba"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    "make", [lambda: RecurrentAssembly(9, 4, rounds=0, width=9, p=1.0, cap=None), lambda: FeedForwardAssembly(9, 4, 1, width=9, p=1.0, cap=None)]
)
def test_one_table_is_the_perceptron(make, gated, engine):
    net = make()
    with torch.no_grad():
        net.input_weight.copy_(torch.eye(9))
    if gated:  # hit, missed, false alarm, quiet
        rule, numbers = TableRule.fit(net, gated=True, rate=1.0), torch.tensor([[0.0, 0, 0, 0], [0, 1, -1, 0]])
    else:
        rule, numbers = TableRule.fit(net, when="mistakes", edges="label and predicted", rate=1.0), PERCEPTRON
    rule.output.values.data.copy_(numbers)
    x = (torch.rand(600, 9) < 0.4).float()
    y = (x @ torch.randn(9, 4)).argmax(1)
    y[::7] = torch.randint(0, 4, y[::7].shape)  # some are wrong, so that it never ends
    expected, errors = perceptron(x, y, 4)
    assert errors > 100
    if engine == "numba":
        work = Compiled(net, rule)
        predicted, found = torch.from_numpy(work.present(net.current(x).detach(), y)), work.plastic()
    else:
        trace = by_torch(net, rule, net.current(x).detach(), y)
        predicted, found = trace.predicted[0], [weight[0] for weight in trace.weights]
    assert torch.equal(found[0], expected) and int((predicted != y).sum()) == errors


# --- the kernels against torch ---


def agree(net, rule, current, labels, sizes):
    """Presented in chunks, the kernels say, do, keep and answer what torch does."""
    with torch.no_grad():
        whole = by_torch(net, rule, current, labels)
        work, slow = Compiled(net, rule), TorchLearner(net, rule)
        start = 0
        for number, size in enumerate(sizes):
            part = slice(start, start + size)
            predicted = torch.from_numpy(work.present(current[part], labels[part], record=number % 2 == 0))
            assert torch.equal(predicted, whole.predicted[0, part]) and torch.equal(slow.present(current[part], labels[part]), predicted)
            for one, two in zip(slow.mean or slow.weights, work.plastic(), strict=True):
                torch.testing.assert_close(one[0], two, rtol=1e-12, atol=1e-12)
            if number % 2 == 0:
                same_cells(whole, work.trace(predicted), part)
            start += size
        assert start == len(labels)
        for one, two in zip(whole.weights, work.plastic(running=True), strict=True):
            torch.testing.assert_close(one[0], two, rtol=1e-12, atol=1e-12)
        for one, two in zip(whole.answering, work.plastic(), strict=True):
            torch.testing.assert_close(one[0], two, rtol=1e-12, atol=1e-12)
        logits = net.propagate(current, [weight[0] for weight in whole.answering]).logits
        for answers in (torch.from_numpy(work.answer(current)), slow.answer(current)):
            assert float((logits.max(1).values - logits.gather(1, answers[:, None])[:, 0]).max()) < 1e-12  # the same, or rounding decides
    return whole


def same_cells(whole, recorded, part):
    for (pre, post, count), (pre2, post2, count2) in zip(whole.cells, recorded.cells, strict=True):
        assert torch.equal(post[:, part], post2)
        moved = post2 != -1  # elsewhere nothing is read
        assert torch.equal(count[:, part][moved], count2[moved])
        rows = moved.any(2)
        assert torch.equal(pre[:, part][rows], pre2[rows])


@pytest.mark.parametrize(("name", "table", "form"), CASES)
def test_kernels_and_torch_agree(name, table, form):
    for net, rule in each_setting(name, table, form):
        agree(net, rule, *samples(net, 30), [1, 12, 10, 7])


@pytest.mark.parametrize("cap", [None, 1, WIDTH])
@pytest.mark.parametrize("name", NETS)
def test_kernels_and_torch_agree_at_every_cap(name, cap):
    for net, rule in each_setting(name, "prepost", "additive", cap=cap):
        agree(net, rule, *samples(net, 24), [15, 9])


@pytest.mark.parametrize("name", NETS)
def test_kernels_and_torch_agree_where_nothing_fires_or_everything_ties(name):
    for net, rule in each_setting(name, "prepost", "additive"):
        current, labels = samples(net, 24)
        current[::3] = 0
        agree(net, rule, current, labels, [24])
        agree(net, rule, 0 * current, labels, [24])
        agree(net, rule, 0 * current + 1, labels, [24])


@pytest.mark.parametrize("name", NETS)
def test_kernels_and_torch_agree_on_identical_units(name):
    """Every unit has a twin with the same edges and weights, and the cap is odd."""
    for net, rule in each_setting(name, "prepost", "additive", cap=5):
        half = WIDTH // 2
        with torch.no_grad():
            net.input_weight[half:] = net.input_weight[:half]
            net.input_mask[half:] = net.input_mask[:half]
            for mask in net.masks:
                mask[half:] = mask[:half]
            for weight in net.hidden:
                weight[half:] = weight[:half]
        trace = agree(net, rule, *samples(net, 40), [20, 20])
        pre = trace.cells[0][0][0]
        assert net.cap == 5 and (pre[:, :half] != pre[:, half:]).any()  # twins did part


def test_kernels_in_single_precision_agree_roughly():
    net = FeedForwardAssembly(INPUTS, CLASSES, layers=2, width=WIDTH, cap=5, dtype=torch.float32)
    rule = TableRule.fit(net, average=True, seed=1)
    rule.output.values.data.copy_(torch.randn(2, 2))
    current, labels = samples(net, 30)
    work = Compiled(net, rule)
    predicted = torch.from_numpy(work.present(current, labels))
    whole = by_torch(net, rule, current, labels)
    assert current.dtype == torch.float32 and torch.equal(predicted, whole.predicted[0])
    for one, two in zip(whole.answering, work.plastic(), strict=True):
        assert two.dtype == torch.float32
        torch.testing.assert_close(one[0], two, rtol=1e-4, atol=1e-5)


# --- several at once ---


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("form", ["additive", "multiplicative"])
def test_runs_side_by_side_are_each_run_alone(name, form):
    """Three graphs, three data sets, three rules."""
    table = "prepost" if name.startswith("rec") else "prepostcount"
    for found in zip(*(list(each_setting(name, table, form, seed=seed)) for seed in range(3)), strict=True):
        nets, rules = zip(*found, strict=True)
        data = [samples(net, 25) for net in nets]
        alone = [by_torch(net, rule, *part) for net, rule, part in zip(nets, rules, data, strict=True)]
        current, labels = (torch.stack(parts) for parts in zip(*data, strict=True))
        weights = [torch.stack(each).detach() for each in zip(*(net.plastic for net in nets), strict=True)]
        masks = [torch.cat(each) for each in zip(*map(edges_of, nets), strict=True)]
        tables = [torch.stack(each).detach() for each in zip(*(rule.tables(net) for net, rule in zip(nets, rules, strict=True)), strict=True)]
        together = present(nets[0], rules[0], weights, masks, current, labels, tables=tables, record=True)
        assert torch.equal(together.predicted, torch.cat([trace.predicted for trace in alone]))
        for i in range(len(weights)):
            torch.testing.assert_close(together.answering[i], torch.cat([trace.answering[i] for trace in alone]), rtol=1e-12, atol=1e-12)
            for part in range(3):
                assert torch.equal(together.cells[i][part], torch.cat([trace.cells[i][part] for trace in alone]))


# --- the gradient without unrolling ---


def unrolled(net, rule, current, labels, query, answers, tables):
    trace = by_torch(net, rule, current, labels, tables=tables)
    return trace, cross_entropy(net.propagate(query[None], trace.answering).logits[0], answers)


def replayed(net, rule, trace, query, answers, tables):
    weights = [weight.detach().requires_grad_() for weight in trace.answering]
    loss = cross_entropy(net.propagate(query[None], weights).logits[0], answers)
    # as documented: the final weights, not their mean
    return table_gradient(rule, tables, [w.detach() for w in trace.weights], edges_of(net), trace.cells, list(torch.autograd.grad(loss, weights)))


def close(found, true, tolerance):
    """Relative to the largest entry."""
    return float((found - true).abs().max()) <= tolerance * float(true.abs().max())


@pytest.mark.parametrize(("name", "table", "form"), CASES)
def test_the_replayed_gradient_is_that_of_autograd(name, table, form):
    for net, rule in each_setting(name, table, form):
        (current, labels), (query, answers) = samples(net, 25), samples(net, 10)
        tables = [t.detach().requires_grad_() for t in rule.tables(net)]
        trace, loss = unrolled(net, rule, current, labels, query, answers, tables)
        true = torch.autograd.grad(loss, tables)
        trace = dataclasses.replace(trace, weights=[w.detach() for w in trace.weights])
        work = Compiled(net, rule)
        compiled = work.trace(torch.from_numpy(work.present(current, labels, record=True)))
        assert net.start == "zeros" or all(float(t.abs().max()) > 1e-6 for t in true)  # from zeros negative tables leave all silent
        for kind in (trace, compiled):
            found = replayed(net, rule, kind, query, answers, tables)
            for a, b in zip(found, true, strict=True):
                assert a.shape[1:] == b.shape and close(a[0], b, 1e-11)


def test_the_replayed_gradient_in_single_precision():
    for net, rule in each_setting("feed-forward, 3", "prepostcount", "additive", dtype=torch.float32):
        (current, labels), (query, answers) = samples(net, 25), samples(net, 10)
        tables = [t.detach().float().requires_grad_() for t in rule.tables(net)]
        trace, loss = unrolled(net, rule, current, labels, query, answers, tables)
        true = torch.autograd.grad(loss, tables)
        for a, b in zip(replayed(net, rule, trace, query, answers, tables), true, strict=True):
            assert a.dtype == torch.float32 and close(a[0], b, 1e-5)


def test_a_wrong_cell_is_a_wrong_gradient():
    net, rule = list(each_setting("feed-forward, 3", "prepostcount", "additive"))[1]
    current, labels = samples(net, 25)
    tables = [t.detach() for t in rule.tables(net)]
    trace = by_torch(net, rule, current, labels)
    step = int((trace.predicted[0] != labels).nonzero()[3])  # one at which something was learned
    right = replayed(net, rule, trace, current, labels, tables)
    for matrix in range(3):
        for part in range(3):
            cells = [tuple(each.clone() for each in cell) for cell in trace.cells]
            change = cells[matrix][part]
            change[0, step, :6] = (change[0, step, :6] + 1) % 2
            wrong = replayed(net, rule, dataclasses.replace(trace, cells=cells), current, labels, tables)
            assert not close(wrong[matrix], right[matrix], 1e-3), (matrix, part)


def test_the_gradient_is_the_slope():
    """Between finite differences and the replay there is no autograd in common. At fixed firing the weights are linear in the table."""
    net, rule = next(each_setting("recurrent, 2", "prepost", "additive"))
    current, labels = samples(net, 25)
    tables = [t.detach() for t in rule.tables(net)]
    trace = by_torch(net, rule, current, labels)
    found = replayed(net, rule, trace, current, labels, tables)
    for i in range(2):
        direction, losses = torch.randn_like(tables[i]), []
        for step in (1e-5, -1e-5):
            moved = [table + step * direction if k == i else table for k, table in enumerate(tables)]
            there, loss = unrolled(net, rule, current, labels, current, labels, moved)
            assert all(torch.equal(a, b) for one, two in zip(there.cells, trace.cells, strict=True) for a, b in zip(one, two, strict=True))
            losses.append(loss.item())
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(float((found[i][0] * direction).sum()), rel=1e-6)


class Still:
    """An optimiser that keeps the gradients and takes no step."""

    def __init__(self, *parameters):
        self.parameters, self.found = parameters, []

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None

    def step(self):
        self.found = [p.grad.clone() for p in self.parameters]


@pytest.mark.parametrize("engine", ["torch", "numba"])
@pytest.mark.parametrize(("name", "table", "passes"), [("feed-forward, 3", "network", 1), ("feed-forward, 3", "postcount", 2), ("recurrent, 2", "prepost", 2)])
def test_a_meta_step_has_the_gradient_of_all_that_is_learned(name, table, passes, engine):
    """Of the rule's parameters, through tables that several matrices share, and of the input weights."""
    for net, rule in each_setting(name, table, "additive"):
        x, y, asked, answers = *(torch.rand(15, INPUTS), torch.randint(0, CLASSES, (15,))), torch.rand(8, INPUTS), torch.randint(0, CLASSES, (8,))
        keep = Still(net.input_weight, *rule.parameters())
        value = _Step(net, rule, engine, "cross_entropy", True, passes)(keep, (x, y, asked, answers))
        current = net.current(x).repeat(passes, 1)
        trace = by_torch(net, rule, current, y.repeat(passes), tables=rule.tables(net))
        logits = net.propagate(net.current(asked)[None], trace.answering).logits[0]
        loss = cross_entropy(logits.softmax(1), answers)
        true = torch.autograd.grad(loss, [net.input_weight, *rule.parameters()])
        assert value == pytest.approx(loss.item(), rel=1e-12)
        for a, b in zip(keep.found, true, strict=True):
            assert close(a, b, 1e-10)
