"""Context-dependent gating: each task has its own part of the network, the same whenever it is asked."""

import pytest
import torch
from conftest import fisher_by_loop
from test_replay import batch_of, parity
from torch import nn
from torch.nn import functional as F

import retain
from retain import methods, models, tasks
from retain.errors import InputError, RetainError
from retain.likelihoods import Categorical
from retain.methods import compose
from retain.tasks import Batch, apply
from retain.training.checkpoints import read_tree, write_tree


def heads(parts=2):
    return tasks.split(parity(60), parts, scenario="task")


def deep(seed=0, between=nn.ReLU):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 20), between(), nn.Linear(20, 10), between(), nn.Linear(10, 4))


def image_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10), nn.Linear(10, 4))


def pictures(id, classes):
    targets = torch.tensor(classes).repeat(8)
    return tasks.Task((torch.randn(16, 1, 6, 6), targets), id=id, classes=classes, active=classes)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_share_of_every_layer_is_closed_another_for_every_task():
    method, model = methods.XdG(0.8, seed=3), deep()
    one, other = method.closed(model, "one"), method.closed(model, "other")
    assert {name: (int(units.sum()), len(units)) for name, units in one.items()} == {"0": (16, 20), "2": (8, 10)}  # never the head
    assert all(not torch.equal(one[name], other[name]) for name in one)
    even = methods.XdG(0.5).closed(models.MLP(4, 20, 20, 4, seed=0), "one")
    assert not torch.equal(*even.values())  # nor are those of two layers alike
    assert not torch.equal(methods.XdG(0.8, seed=4).closed(model, "one")["0"], one["0"])
    for share, counts in ((0.01, (1, 1)), (0.99, (19, 9))):  # at least one, and never all
        assert tuple(int(units.sum()) for units in methods.XdG(share).closed(model, "one").values()) == counts


def test_a_closed_unit_is_zero():
    method, model, (first, second) = methods.XdG(0.5), deep(), heads()
    method.begin(model, first)
    for task in (first, second, first):
        batch, closed = batch_of(task), method.closed(model, task.id)
        hidden = batch.inputs
        for place in ("0", "2"):
            layer = model.get_submodule(place)
            hidden = (F.linear(hidden, layer.weight, layer.bias) * (~closed[place]).float()).relu()
        expected = F.linear(hidden, model[4].weight, model[4].bias)
        assert torch.allclose(method.predict(model, batch)[:, list(task.active)], expected[:, list(task.active)], atol=1e-6)
        if task is first:  # the one that was begun: the model itself
            assert torch.equal(method.predict(model, batch), apply(model, batch))


def test_what_leads_into_closed_units_is_not_trained():
    method, model, (first, _) = methods.XdG(0.5), deep(between=nn.Tanh), heads()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    retain.learn(model, [first], method, epochs=3, lr=0.05)
    closed = method.closed(model, first.id)
    for place in ("0", "2"):
        for part in ("weight", "bias"):
            moved = (model.state_dict()[f"{place}.{part}"] != start[f"{place}.{part}"]).reshape(len(closed[place]), -1)
            assert not moved[closed[place]].any() and moved[~closed[place]].any(1).all()
    assert torch.equal(model[2].weight[:, closed["0"]], start["2.weight"][:, closed["0"]])  # nor what leads out of them
    assert list(model.state_dict()) == list(start)


def test_a_task_is_asked_alike_before_and_after_it_is_learned():
    stream, model = heads(), deep()
    before = [methods.XdG(0.5).predict(model, batch_of(task)) for task in stream]
    rows = [retain.evaluate(model, task, methods.XdG(0.5), part="data").score for task in stream]
    method = methods.XdG(0.5)
    closed = [method.closed(model, task.id) for task in stream]
    result = retain.learn(model, stream, method, epochs=3, batch_size=8, lr=0.05)
    assert result.accuracy[0].tolist() == rows
    assert all(torch.equal(a[name], method.closed(model, task.id)[name]) for a, task in zip(closed, stream, strict=True) for name in a)
    backwards = methods.XdG(0.5)
    for task in reversed(list(stream)):
        backwards.begin(deep(), task)
    assert all(torch.equal(backwards.predict(deep(), batch_of(task)), one) for task, one in zip(stream, before, strict=True))


def test_asking_changes_nothing():
    method, model, (first, second) = methods.XdG(0.5), deep(), heads()
    batch = batch_of(second)
    whole = apply(model, batch)
    method.predict(model, batch)
    assert torch.equal(apply(model, batch), whole)  # no gates before, none after
    method.begin(model, first)
    mine = apply(model, batch)
    assert not torch.equal(method.predict(model, batch), mine) and torch.equal(apply(model, batch), mine)
    with pytest.raises(InputError, match="inputs of task"):
        method.predict(model, Batch(batch.inputs[:, :3], batch.targets, second))
    assert torch.equal(apply(model, batch), mine)
    method.gate(model, None)
    assert torch.equal(apply(model, batch), whole) and method.now is None
    method.gate(model, second)
    assert torch.equal(apply(model, batch), method.predict(model, batch))
    named, wrapped = methods.XdG(0.5, layers="2"), nn.DataParallel(model)  # names are those of the model inside
    named.gate(wrapped, second)
    assert torch.equal(named.predict(wrapped, batch), apply(model, batch))


def test_a_copy_keeps_the_gates_it_was_made_with():
    method, model, (first, second) = methods.XdG(0.5), deep(), heads()
    method.begin(model, first)
    batch = batch_of(first)
    kept, mine = models.copy(model), apply(model, batch)
    method.begin(model, second)
    assert torch.equal(apply(kept, batch), mine) and not torch.equal(apply(model, batch), mine)
    method.begin(kept, second)  # and it can be gated anew
    assert torch.equal(apply(kept, batch), apply(model, batch))


def test_maps_are_gated_by_channel_and_behind_batch_norm():
    method, model, task = methods.XdG(0.5), image_net(), pictures("first", (0, 1))
    closed = method.closed(model, "first")
    assert {name: tuple(units.shape) for name, units in closed.items()} == {"1": (6, 1, 1), "3": (8, 1, 1), "6": (10,)}
    method.begin(model, task)
    model.train()
    found = {}
    for name, place in (("1", model[1]), ("3", model[3])):
        place.register_forward_hook(lambda module, inputs, output, name=name: found.update({name: output}))
    apply(model, batch_of(task))
    assert all(torch.equal(output.abs().amax((0, 2, 3)) == 0, closed[name].flatten()) for name, output in found.items())
    untouched = image_net().train()
    untouched(task.data.inputs)
    assert torch.equal(model[1].running_var, untouched[1].running_var)  # statistics of units before they are closed
    assert set(methods.XdG(0.5, layers="6").closed(model, "first")) == {"6"}
    assert torch.equal(methods.XdG(0.5, layers="6").closed(model, "first")["6"], closed["6"])
    assert set(methods.XdG(0.5, head="6").closed(model, "first")) == {"1", "3", "7"}


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_of_any_kind(dimensions):
    conv = getattr(nn, f"ConvTranspose{dimensions}d")(2, 4, 2)
    model, method = nn.Sequential(conv, nn.Flatten(), nn.Linear(4 * 4**dimensions, 2)), methods.XdG(0.5)
    task = tasks.Task((torch.randn(4, 2, *[3] * dimensions), torch.arange(4) % 2), id="maps")
    method.begin(model, task)
    silent = conv(task.data.inputs).flatten(2).abs().amax((0, 2)) == 0
    assert torch.equal(silent, method.closed(model, "maps")["0"].flatten()) and silent.sum() == 2


def test_state_puts_the_gates_in_place(tmp_path):
    method, model, (first, second) = methods.XdG(0.5), deep(), heads()
    method.begin(model, first)
    method.consolidate(model, first)
    method.begin(model, second)
    write_tree(tmp_path / "state.safetensors", method.state_dict())
    again, bare = methods.XdG(0.5), deep()
    again.load_state_dict(read_tree(tmp_path / "state.safetensors"), bare)
    batch = batch_of(second)
    assert again.now == second.id and again.met == method.met
    assert torch.equal(apply(bare, batch), apply(model, batch)) and not torch.equal(apply(bare, batch), apply(deep(), batch))
    again.consolidate(bare, second)
    unlabelled = tasks.Task([(first.data.inputs, first.data.targets)], id="loader", n=30)
    again.begin(bare, unlabelled)
    another = methods.XdG(0.5)
    another.load_state_dict(again.state_dict(), deep())
    assert another.met["loader"] is None
    another.begin(deep(), unlabelled)
    again.load_state_dict(methods.XdG(0.5).state_dict(), bare)
    assert torch.equal(apply(bare, batch), apply(deep(), batch))


def test_in_a_loop_of_ones_own():
    stream, ends = heads(), []
    model, method = deep(), methods.XdG(0.5)
    for task in stream:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        guard = retain.attach(method, model, optimizer, task)
        for batch in task.batches(8):
            optimizer.zero_grad()
            F.cross_entropy(apply(model, batch), batch.targets).backward()
            method.predict(model, batch_of(stream[0]))  # a look in between
            optimizer.step()
        guard.consolidate()
        ends.append(weights(model))
    assert len(set(method.met)) == 2
    by_hand, gates = deep(), methods.XdG(0.5)
    for task, end in zip(stream, ends, strict=True):
        gates.gate(by_hand, task)
        optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
        for batch in task.batches(8):
            optimizer.zero_grad()
            F.cross_entropy(apply(by_hand, batch), batch.targets).backward()
            optimizer.step()
        assert torch.equal(weights(by_hand), end)


@pytest.mark.parametrize("order", [0, 1], ids=["gates first", "gates last"])
def test_ewc_measures_the_gated_network(order):
    model, (first, second) = deep(between=nn.Tanh).double(), heads()
    first, second = first.to(torch.device("cpu"), torch.float64), second.to(torch.device("cpu"), torch.float64)
    ewc, xdg = methods.EWC(1.0), methods.XdG(0.5)
    method = compose(*((xdg, ewc), (ewc, xdg))[order])
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for task in (first, second):
        method.begin(model, task)
        found = retain.fisher(model, task)
        assert not found.slow  # gates leave the closed forms alone
        method.consolidate(model, task)
        only = nn.Sequential(model, _Only(task.active))  # the oracle knows no masks
        oracle = fisher_by_loop(only, task.data.inputs, task.data.targets - min(task.active), Categorical(), "exact")
        for name in total:
            assert torch.allclose(found[name], oracle[f"0.{name}"], rtol=1e-5, atol=1e-12)
            total[name] += task.n * found[name]
        closed = xdg.closed(model, task.id)
        assert all(found[f"{place}.weight"][units].abs().max() == 0 < found[f"{place}.weight"][~units].max() for place, units in closed.items())
    sums = ewc.belief.precision.diagonal()
    assert all(torch.allclose(ewc.belief.n * sums[name].double(), total[name], rtol=1e-4) for name in total)


class _Only(nn.Module):
    def __init__(self, active):
        super().__init__()
        self.active = list(active)

    def forward(self, outputs):
        return outputs[:, self.active]


def test_kronecker_factors_are_those_of_the_gated_network():
    model, (first, _) = deep(between=nn.Tanh), heads()
    method = compose(methods.StructuredLaplace(1.0), methods.XdG(0.5))
    method.begin(model, first)
    method.consolidate(model, first)
    found = method.parts[0].belief.precision.diagonal()
    closed = method.parts[1].closed(model, first.id)
    assert all(found[f"{place}.weight"][units].abs().max() == 0 < found[f"{place}.weight"][~units].max() for place, units in closed.items())


def test_si_holds_what_the_open_units_did():
    model, (first, second), xdg, si = deep(between=nn.Tanh), heads(), methods.XdG(0.5), methods.SI(1e6, pull="proximal")
    retain.learn(model, [first], compose(xdg, si), epochs=3, batch_size=8, lr=0.05)
    precision, closed = si.belief.precision.diagonal(), xdg.closed(model, first.id)
    for place, units in closed.items():
        assert precision[f"{place}.weight"][units].max() == 0 < precision[f"{place}.weight"][~units].max()
    kept, free = weights(model).clone(), models.copy(model)
    asked = xdg.predict(model, batch_of(first))
    retain.learn(model, [second], compose(xdg, si), epochs=3, batch_size=8, lr=0.05)
    retain.learn(free, [second], methods.XdG(0.5), epochs=3, batch_size=8, lr=0.05)
    assert 0 < (weights(model) - kept).norm() < (weights(free) - kept).norm()
    moved, lost = ((xdg.predict(one, batch_of(first)) - asked)[:, list(first.active)].abs().max() for one in (model, free))
    assert moved < 0.2 * lost  # weights that both tasks' units share are held


def test_a_pull_of_strength_zero_is_gating_alone():
    ends = []
    for method in (methods.XdG(0.5), compose(methods.EWC(0.0), methods.XdG(0.5)), compose(methods.XdG(0.5), methods.SI(0.0))):
        ends.append(weights(retain.learn(deep(), heads(), method, epochs=2, batch_size=8, lr=0.05).model))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("other", [methods.ER, methods.AGEM, methods.DERpp, methods.LwF, methods.GenerativeReplay], ids=lambda method: method.name)
def test_it_goes_with_no_method_that_asks_about_old_tasks(other):
    for parts in ((methods.XdG(), other()), (methods.EWC(), other(), methods.XdG())):
        with pytest.raises(InputError, match=r"methods: expected xdg with methods that hold the weights, .* Old samples and old answers need the gates"):
            compose(*parts)


def test_compositions_that_are_refused():
    with pytest.raises(InputError, match="strength: expected a number beside xdg, found 'optimal'"):
        compose(methods.EWC("optimal"), methods.XdG())
    for other in (methods.ICaRL(), methods.XdG(0.5)):
        with pytest.raises(InputError, match="at most one that answers in its own way"):
            compose(methods.XdG(), other)
    for other in (methods.SeparateNetworks(), methods.VCL()):
        with pytest.raises(InputError, match=f"methods: expected {other.name} alone"):
            compose(methods.XdG(), other)


def test_a_model_that_was_trained_elsewhere_is_refused():
    ewc = methods.EWC()
    for method in (methods.XdG(), compose(ewc, methods.XdG())):
        with pytest.raises(RetainError, match="expected to have gated the model while it learned task 'four-1', found no gates"):
            method.consolidate(deep(), heads()[0])
    assert ewc.belief is None  # nothing was remembered of it
    method = methods.XdG()
    method.begin(deep(), heads()[0])
    with pytest.raises(RetainError, match="task 'four-2', found 'four-1'"):
        method.consolidate(deep(), heads()[1])


def test_classes_of_several_tasks_that_compete_are_refused():
    with pytest.raises(InputError, match=r"active outputs of task 'four-2': expected those of its own classes, found .* of others too.*scenario='task'"):
        retain.learn(deep(), tasks.split(parity(60), 2, scenario="class"), methods.XdG())


def test_outputs_that_compete_have_to_mean_the_same_in_every_task():
    first, second = tasks.split(tasks.digits(), 2, scenario="domain")
    method, model = methods.XdG(), models.MLP(64, 20, 10, seed=0)
    method.begin(model, first)
    with pytest.raises(InputError, match=r"classes of task 'digits-2': expected those of the tasks before, .*relabel=True"):
        method.begin(model, second)
    for task in tasks.split(tasks.digits(), 2, scenario="domain", relabel=True):
        methods.XdG().begin(model, task)


def test_with_the_same_outputs_the_id_is_the_identity():
    stream = tasks.permute(tasks.digits(), 4, seed=0)
    kept, lost = (retain.learn(models.MLP(64, 100, 10, seed=0), stream, method, epochs=5, lr=0.01) for method in (methods.XdG(0.8), None))
    assert kept.accuracy.diagonal(-1).min() > 0.8 and kept.average_accuracy > lost.average_accuracy + 0.1


@pytest.mark.parametrize("name", ["task", "data", "new"])
def test_tasks_without_an_id_are_refused(name):
    (first, _), method = heads(), methods.XdG()
    bare = tasks.Task(first.data, id=name)
    with pytest.raises(InputError, match=f"id: expected one of the task's own, .*found '{name}'"):
        method.begin(deep(), bare)
    with pytest.raises(InputError, match="id: expected one of the task's own"):
        method.predict(deep(), batch_of(bare))
    loader = [(first.data.inputs, first.data.targets)]
    with pytest.raises(InputError, match=r"found 'new'.*Pass Task\(..., id=...\)"):
        retain.attach(method, (model := deep()), torch.optim.SGD(model.parameters(), lr=0.1), loader, n=60)


def test_two_tasks_of_one_id_are_refused():
    (first, second), method = heads(), methods.XdG()
    method.begin(deep(), tasks.Task(first.data, id="same"))
    method.begin(deep(), tasks.Task(first.data, id="same"))  # it goes on
    with pytest.raises(InputError, match="id: expected another for another task"):
        method.begin(deep(), tasks.Task(second.data, id="same"))


def test_settings_and_models_that_make_no_sense():
    for share in (0, 1, 1.5, -0.1, float("nan"), "half"):
        with pytest.raises(InputError, match="share: expected"):
            methods.XdG(share)
    with pytest.raises(InputError, match="seed"):
        methods.XdG(seed=-1)
    with pytest.raises(InputError, match="model: expected a hidden linear layer or convolution to gate, found none before the head of Linear"):
        methods.XdG().begin(nn.Linear(4, 4), heads()[0])
    with pytest.raises(InputError, match=r"layers: expected a pattern of the names of hidden layers, found 'fc\*'. They are 0, 2"):
        methods.XdG(layers="fc*").begin(deep(), heads()[0])
    with pytest.raises(InputError, match="head: expected"):
        methods.XdG(head="nowhere").begin(deep(), heads()[0])


def test_a_forward_pass_that_goes_round_the_gates_is_told():
    class Round(nn.Module):  # as compiled code does that was made before
        def __init__(self):
            super().__init__()
            self.layers = deep()

        def forward(self, inputs):
            return F.linear(F.linear(F.linear(inputs, self.layers[0].weight), self.layers[2].weight), self.layers[4].weight)

    method, model, task = methods.XdG(0.5), Round(), heads()[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = retain.attach(method, model, optimizer, task)
    batch = batch_of(task)
    F.cross_entropy(apply(model, batch), batch.targets).backward()
    with pytest.raises(RetainError, match=r"expected a forward pass through the gates.*torch\.compiler\.reset"):
        optimizer.step()
    with pytest.raises(RetainError, match="expected a forward pass through the gates"):
        method.predict(model, batch)
    guard.detach()


class _Sometimes(nn.Module):
    """A network that leaves a layer out while it is trained."""

    def __init__(self):
        super().__init__()
        self.always, self.seldom, self.head = nn.Linear(4, 10), nn.Linear(10, 10), nn.Linear(10, 4)

    def forward(self, x):
        hidden = self.always(x).relu()
        return self.head(hidden if self.training else self.seldom(hidden).relu())


def test_a_layer_that_is_passed_by_is_named():
    stream = heads()
    with pytest.raises(RetainError, match=r"passed them by, of seldom.*layers="):
        retain.learn(_Sometimes(), stream, methods.XdG(0.5))
    retain.learn(_Sometimes(), stream, methods.XdG(0.5, layers="always"))


def test_attentions_own_projection_is_left_open():
    model = nn.Sequential(nn.Unflatten(1, (2, 2)), nn.TransformerEncoderLayer(2, 1, 8, batch_first=True), nn.Flatten(), nn.Linear(4, 4))
    method, task = methods.XdG(0.5), heads()[0]
    assert set(method.closed(model, task.id)) == {"1.linear1", "1.linear2"}
    method.begin(model, task)
    method.predict(model, batch_of(task))


@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler
def test_compiled_code_that_was_made_before_a_task_is_told():
    method, model, (first, second) = methods.XdG(0.5), deep(), heads()
    torch.compiler.reset()
    compiled, batch = torch.compile(model, backend="eager"), batch_of(first)
    compiled(batch.inputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(apply(compiled, batch), batch.targets).backward()
        optimizer.step()

    guard = retain.attach(method, compiled, optimizer, first)
    with pytest.raises(RetainError, match="passed them by"):
        step()
    torch.compiler.reset()
    step()
    assert torch.equal(compiled(batch.inputs), model(batch.inputs))
    asked = batch_of(second)
    assert torch.equal(method.predict(compiled, asked), method.predict(model, asked))
    guard.consolidate()
    torch.compiler.reset()


def test_on_split_mnist_little_is_forgotten():
    stream = tasks.split(tasks.mnist(embedded=True), 5, scenario="task")
    kept, lost = (
        retain.learn(models.MLP(784, 100, 100, 10, seed=0), stream, method, steps=100, batch_size=128, score_every=0) for method in (methods.XdG(0.8), None)
    )
    found = [[retain.evaluate(one.model, task, one.method).score for task in stream] for one in (kept, lost)]
    assert sum(found[0]) / 5 > 0.96 > sum(found[1]) / 5
