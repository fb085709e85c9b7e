"""Learning by a rule, and learning the rule."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import retain
from retain import plasticity, tasks
from retain.errors import InputError, RetainError, RetainWarning
from retain.models import MLP, FeedForwardAssembly, RecurrentAssembly
from retain.plasticity import PERCEPTRON, TableRule, learners
from retain.tasks import Task


class Events:
    """A recorder that keeps what it is told."""

    def __init__(self):
        self.kept = []

    def event(self, kind, **fields):
        self.kept.append((kind, fields))

    def save(self, state, *, final=False):
        raise AssertionError("there is nothing to continue from")

    def load(self):
        raise AssertionError("there is nothing to continue from")


def net(layers=1, **settings):
    return FeedForwardAssembly(4, 3, layers=layers, **{"width": 30, "cap": 10, "seed": 1, **settings})


def perceptron(**settings):
    rule = TableRule("prepost", when="mistakes", edges="label and predicted", **settings)
    rule.output.values.data.copy_(PERCEPTRON)
    return rule


def drawn(there, **settings):
    rule = TableRule.fit(there, **{"seed": 3, **settings})
    rule.output.values.data.copy_(torch.randn(rule.output.values.shape, generator=torch.Generator().manual_seed(3)))
    return rule


@pytest.fixture
def task(blobs):
    return blobs(0, n=400)


def numbers(result):
    return result.samples, result.accuracy, result.updates, result.online[1:], result.diverged


# --- learning by a rule ---


@pytest.mark.parametrize("layers", [1, 3])
def test_a_rule_learns_and_both_engines_say_the_same(task, layers):
    for make in (lambda there: perceptron(), lambda there: drawn(there, when="mistakes", average=True, universal=False)):
        nets = [net(layers), net(layers)]
        found = [
            retain.learn_online(there, make(there), task, epochs=2, score_every=70, engine=engine)
            for there, engine in zip(nets, ("torch", "numba"), strict=True)
        ]
        assert numbers(found[0]) == numbers(found[1])
        for one, two in zip(nets[0].plastic, nets[1].plastic, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)
    result = retain.learn_online(net(width=100, cap=30), perceptron(average=True), task)
    assert result.final() > 0.9 and result.accuracy["test"][0] == float((task.test.targets == 0).double().mean())


def test_the_networks_weights_are_those_that_answer(task):
    there = net()
    result = retain.learn_online(there, perceptron(average=True), task)
    assert float((there(task.test.inputs).argmax(1) == task.test.targets).double().mean()) == result.final()
    assert result.seconds > 0


@pytest.mark.parametrize(
    ("every", "epochs", "points"),
    [(0, 1, [0, 200]), (0, 3, [0, 200, 400, 600]), (100, 1, [0, 100, 200]), (90, 2, [0, 90, 180, 200, 290, 380, 400]), (500, 1, [0, 200])],
)
def test_where_it_is_scored(task, every, epochs, points):
    recorder = Events()
    result = retain.learn_online(net(), perceptron(), task, score_every=every, epochs=epochs, recorder=recorder)
    assert result.samples == points and len(result.accuracy["test"]) == len(result.online) == len(result.updates) == len(points)
    kinds, fields = zip(*recorder.kept, strict=True)
    assert set(kinds) == {"samples"} and [each["samples"] for each in fields] == points and [each["updates"] for each in fields] == result.updates
    assert [each["accuracy"]["test"] for each in fields] == result.accuracy["test"] and fields[0]["task"] == "blobs-0"


def test_scoring_changes_nothing(task):
    nets = [net(), net()]
    for there, every in zip(nets, (0, 7), strict=True):
        retain.learn_online(there, perceptron(average=True), task, score_every=every)
    torch.testing.assert_close(nets[0].output_weight, nets[1].output_weight, rtol=1e-12, atol=1e-12)


def test_updates_are_counted(task):
    always = retain.learn_online(net(), drawn(net()), task, score_every=80)
    assert always.updates == [0, 80, 160, 200]
    wrong = retain.learn_online(net(), perceptron(), task, score_every=80)
    sizes = [80, 80, 40]
    assert [b - a for a, b in zip(wrong.updates, wrong.updates[1:], strict=False)] == [
        round(n * (1 - share)) for n, share in zip(sizes, wrong.online[1:], strict=True)
    ]
    assert 0 < wrong.updates[-1] < 100 and wrong.online[0] != wrong.online[0]
    assert wrong.updates_until(0.0) == 0 and wrong.updates_until(1.1) is None
    assert wrong.updates_until(wrong.accuracy["test"][-1]) <= wrong.updates[-1]


def test_what_is_written_about_it(task):
    result = retain.learn_online(net(), perceptron(), task, score_every=100)
    assert "200 samples" in result.table().note and "Diverged" not in result.table().note and "test" in result._repr_html_()
    assert [line.get_label() for line in result.plot().axes[0].lines][:1] == ["test"]


def test_the_order_is_that_of_the_seed_and_of_the_epoch(task):
    def run(seed, epochs=1):
        there = net()
        retain.learn_online(there, perceptron(), task, seed=seed, epochs=epochs, score_every=0)
        return there.output_weight.detach().clone()

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    twice = net()
    for reset in (True, False):
        retain.learn_online(twice, perceptron(), task, seed=1, reset=reset, score_every=0)
    assert not torch.equal(run(1, 2), twice.output_weight)  # the second epoch has an order of its own


@pytest.mark.parametrize("engine", ["torch", "numba"])
def test_without_a_reset_it_goes_on(task, engine):
    """Two halves, the second without a reset, are the whole."""
    order = torch.randperm(200, generator=retain.seeds.generator(0, "order", 0))
    once, twice, fresh = net(2), net(2), net(2)
    first = drawn(once)
    retain.learn_online(once, first, task, engine=engine)
    assert once.output_weight.any()
    result = retain.learn_online(once, first, task, engine=engine)
    retain.learn_online(fresh, first, task, engine=engine)
    assert torch.equal(once.output_weight, fresh.output_weight) and result.accuracy["test"][0] == float((task.test.targets == 0).double().mean())
    for rows, reset in ((order[:90], True), (order[90:], False)):
        # undo the order that the shorter task is presented in
        inverse = torch.randperm(len(rows), generator=retain.seeds.generator(0, "order", 0)).argsort()
        retain.learn_online(twice, first, Task((task.data.inputs[rows][inverse], task.data.targets[rows][inverse])), reset=reset, engine=engine)
    for one, two in zip(once.plastic, twice.plastic, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_input_weights_learn_only_if_they_should(blobs, loss):
    task = blobs(3, n=400)
    fixed, trained = net(width=12, cap=4), net(width=12, cap=4)
    before = fixed.input_weight.detach().clone()
    a = retain.learn_online(fixed, perceptron(), task, epochs=2)
    b = retain.learn_online(trained, perceptron(), task, epochs=2, input_lr=0.01, loss=loss)
    assert torch.equal(fixed.input_weight, before)
    edges = trained.input_mask
    assert torch.equal(trained.input_weight[~edges], before[~edges]) and not torch.equal(trained.input_weight[edges], before[edges])
    assert b.final() > a.final()
    assert float((trained(task.test.inputs).argmax(1) == task.test.targets).double().mean()) == b.final()


def test_a_double_softmax_takes_other_steps(task):
    nets = [net(), net()]
    for there, double in zip(nets, (False, True), strict=True):
        retain.learn_online(there, perceptron(), task, input_lr=0.01, double_softmax=double, score_every=0)
    assert not torch.equal(nets[0].input_weight, nets[1].input_weight)


@pytest.mark.parametrize("engine", ["torch", "numba"])
def test_where_weights_are_no_longer_finite(task, engine):
    there = net(start="ones")
    rule = TableRule.fit(there, form="multiplicative", rate=1.0)
    rule.output.values.data.fill_(1e6)
    recorder = Events()
    result = retain.learn_online(there, rule, task, score_every=20, engine=engine, recorder=recorder)
    assert result.diverged == result.samples[-1] == 60  # (1e6)^52 is more than a double holds
    assert len(recorder.kept) == len(result.samples) == len(result.updates) == 4
    assert f"Diverged after {result.diverged} samples" in result.table().note
    assert retain.learn_online(net(start="ones"), drawn(net(start="ones"), form="multiplicative"), task, score_every=20, engine=engine).diverged is None


def test_runs_in_threads_are_those_one_after_the_other(blobs):
    def run(seed):
        there = net(2, seed=seed)
        result = retain.learn_online(there, drawn(there, seed=seed), blobs(seed, n=3000), score_every=100, seed=seed)
        return numbers(result), [weight.clone() for weight in there.plastic]

    alone = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, range(4)))
    for (a, one), (b, two) in zip(alone, together, strict=True):
        assert a == b and all(map(torch.equal, one, two))


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None  # any import of it fails
import torch, retain, retain.errors
from retain.models import FeedForwardAssembly
from retain.plasticity import TableRule, learners
from retain.tasks import halfspace
task, net = halfspace(4, 100), FeedForwardAssembly(4, 2, layers=2, width=10, cap=5)
rule = TableRule.fit(net)
import warnings
for call in (lambda: retain.meta_learn(rule, task, net, epochs=1), lambda: retain.learn_online(net, rule, task)):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", retain.errors.RetainWarning)
        call()
    assert "pip install" in str(caught[0].message), caught
for call in (lambda: retain.learn_online(net, rule, task, engine="numba"), lambda: retain.meta_learn(rule, task, net, epochs=1, engine="numba")):
    try:
        call()
    except retain.errors.InputError as error:
        print(error)
"""


def test_without_numba_torch_runs_and_the_error_says_how_to_get_it():
    done = subprocess.run([sys.executable, "-W", "error", "-c", WITHOUT_NUMBA], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and set(lines) == {f"engine: expected numba to be installed for engine='numba', found no module 'numba'. {learners.NUMBA_HINT}"}
    assert "pip install 'retain[plasticity]'" in lines[0]


def test_the_engine_that_is_chosen(monkeypatch):
    assert learners.choose("auto", net()) == "numba" and learners.choose("torch", net()) == "torch"
    monkeypatch.setattr(learners, "available", lambda: False)
    with pytest.warns(RetainWarning, match="pip install"):
        assert learners.choose("auto", net()) == "torch"
    with pytest.raises(InputError, match="pip install"):
        learners.choose("numba", net())


# --- learning the rule ---


def learned(seed=0, task=None, rule=None, **settings):
    rule = rule or TableRule("prepost", hidden=0, seed=seed)
    result = retain.meta_learn(rule, task or tasks.halfspace(8, 600, seed=1), **{"epochs": 3, "seed": seed, **settings})
    return rule, result


def test_a_rule_is_learned():
    recorder = Events()
    rule, result = learned(task=tasks.halfspace(16, seed=0), epochs=5, recorder=recorder)
    assert result.final() > 0.85 and result.final("test") > 0.85 and result.accuracy["validation"][0] < 0.6
    assert [len(values) for values in result.accuracy.values()] == [6, 6, 6] and list(result.accuracy) == ["training", "validation", "test"]
    assert len(result.loss) == 5 and len(result.size) == 6 and result.loss[-1] < result.loss[0]
    assert result.size[-1] == pytest.approx(float(rule.output.values.detach().square().mean().sqrt()))
    assert [fields["epoch"] for _, fields in recorder.kept] == [1, 2, 3, 4, 5] and {kind for kind, _ in recorder.kept} == {"meta"}
    assert [fields["loss"] for _, fields in recorder.kept] == result.loss
    there = result.nets[0]
    data = tasks.halfspace(16, seed=0).validation
    assert float((there(data.inputs).argmax(1) == data.targets).double().mean()) == result.final()
    assert rule.facts["learned_on"] == ["halfspace-16"] and rule.facts["accuracy"]["validation"] == result.final() and rule.facts["meta_seed"] == 0
    assert "validation" in result._repr_html_() and result.plot().axes


def test_the_bits_are_those_of_the_seed():
    (a, one), (b, two), (c, _) = learned(1), learned(1), learned(2)
    assert torch.equal(a.output.values, b.output.values) and one.loss == two.loss and one.accuracy == two.accuracy
    assert not torch.equal(a.output.values, c.output.values)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({}, lambda: TableRule("prepost", hidden=1, seed=2)),
        ({"passes": 2, "query": "next"}, lambda: TableRule("prepost", hidden=0, average=True)),
        ({"loss": "mse"}, lambda: TableRule("prepostpercent", hidden=0, gated=True)),
        ({}, lambda: TableRule("prepost", hidden=1, states=4, seed=2)),
        ({}, lambda: TableRule("prepostcount", hidden=0, cap=50, form="multiplicative")),
    ],
)
def test_engines_learn_the_same_rule(settings, rule):
    a, one = learned(0, rule=rule(), task=tasks.halfspace(8, 150, seed=1), engine="torch", epochs=1, batch_size=50, **settings)
    b, two = learned(0, rule=rule(), task=tasks.halfspace(8, 150, seed=1), engine="numba", epochs=1, batch_size=50, **settings)
    assert one.loss == pytest.approx(two.loss, rel=1e-9)
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-9)


def test_several_tasks_of_different_sizes_take_turns():
    several = [tasks.halfspace(8, 600, seed=1), tasks.relu_network(5, 250, classes=3, seed=2), tasks.halfspace(3, 90, seed=3)]
    rule, result = learned(task=several, epochs=4)
    assert [(there.inputs, there.classes) for there in result.nets] == [(8, 2), (5, 3), (3, 2)]
    assert rule.facts["learned_on"] == ["halfspace-8", "relu-5", "halfspace-3"] and result.final() > result.accuracy["validation"][0]
    alone = learned(task=several[0], epochs=4)[0]
    assert not torch.equal(alone.output.values, rule.output.values)
    assert len({there.seed for there in result.nets}) == 3


def test_settings_of_the_meta_level():
    base = learned()[1]
    assert learned(query="next")[1].loss != base.loss
    assert learned(passes=2)[1].loss != base.loss
    mse = learned(loss="mse")[1]
    assert mse.final() > 0.7 and mse.loss[-1] < mse.loss[0] < 0.5
    double = learned(double_softmax=True)[1]
    assert double.loss[-1] > 0.3133 > 0 and double.loss != base.loss
    assert learned(query="next", batch_size=600)[1].loss == learned(batch_size=600)[1].loss  # one batch is its own next
    assert learned(lr=0.001)[1].size[-1] < base.size[-1]


def test_the_multiplicative_and_the_recurrent_learn_too():
    rule, result = learned(rule=TableRule("prepost", hidden=0, form="multiplicative"), task=tasks.halfspace(16, seed=1), epochs=4)
    assert result.nets[0].start == "ones" and result.final() > 0.7 and rule.output.values.any()
    rule, result = learned(rule=TableRule("prepost", hidden=0, states=2), task=tasks.halfspace(16, seed=1), nets=RecurrentAssembly(16, 2, rounds=0), epochs=4)
    assert result.final() > 0.8
    rule, result = learned(rule=TableRule("prepost", hidden=1, states=8, seed=1), epochs=1)
    assert isinstance(result.nets[0], RecurrentAssembly) and result.nets[0].rounds == 2 and rule.output.values.any()


def test_input_weights_are_left_alone_if_they_should():
    there, other = (FeedForwardAssembly(8, 2, layers=1, seed=3) for _ in range(2))
    before = there.input_weight.detach().clone()
    learned(nets=there, input_lr=None)
    assert torch.equal(there.input_weight, before)
    learned(nets=other)
    assert not torch.equal(other.input_weight, before)


def test_weight_decay_shrinks_the_rule():
    sizes = [learned(weight_decay=decay, epochs=6)[1].size[-1] for decay in (0.0, 0.01, 1.0)]
    assert sizes[0] > sizes[1] > sizes[2] > 0


# --- what cannot be ---


def task_of(targets=None, inputs=None, **parts):
    return Task((torch.rand(6, 4) if inputs is None else inputs, torch.tensor([0, 1, 2] * 2) if targets is None else targets), id="toy", **parts)


def bad(n, label, parts="data"):
    return torch.rand(n, 4), torch.tensor([0] * (n - 1) + [label])


WRONG_TASKS = {
    "label above": (
        lambda: task_of(torch.tensor([0, 1, 2, 0, 1, 3])),
        "data of task 'toy': expected labels from 0 to 2, as the output layer has, found label 3",
    ),
    "label below": (lambda: task_of(torch.tensor([0, 1, 2, 0, 1, -1])), "data of task 'toy': expected labels from 0 to 2, .* found label -1"),
    "label in validation": (lambda: task_of(validation=bad(4, 5)), "validation of task 'toy': expected labels from 0 to 2, .* found label 5"),
    "label in test": (lambda: task_of(test=bad(4, 7)), "test of task 'toy': expected labels from 0 to 2, .* found label 7"),
    "inputs": (lambda: task_of(inputs=torch.rand(6, 5)), "data of task 'toy': expected 4 values an input, as the network has, found 5"),
    "a loader": (lambda: Task(DataLoader(TensorDataset(torch.rand(6, 4), torch.zeros(6).long()))), "data: expected data held in tensors"),
    "a loader to test": (lambda: task_of(test=DataLoader(TensorDataset(torch.rand(6, 4), torch.zeros(6).long()))), "test: expected data held in tensors"),
    "float targets": (
        lambda: task_of(torch.rand(6), likelihood=retain.likelihoods.Gaussian(1.0)),
        "data of task 'toy': expected one class a sample, found targets of shape .6., torch.float32",
    ),
    "several targets": (lambda: task_of(torch.zeros(6, 2).long()), "data of task 'toy': expected one class a sample, found targets of shape .6, 2."),
}


@pytest.mark.parametrize("name", WRONG_TASKS)
def test_a_task_that_does_not_fit(name):
    make, words = WRONG_TASKS[name]
    there = net()
    there.output_weight.data.fill_(7)
    for call in (lambda: retain.learn_online(there, perceptron(), make()), lambda: retain.meta_learn(TableRule(hidden=0), make(), there)):
        with pytest.raises(InputError, match=words):
            call()
    assert (there.output_weight == 7).all()  # refused before anything is changed


def test_inputs_that_are_not_finite_never_become_a_task():
    inputs = torch.rand(6, 4)
    inputs[3, 1] = float("nan")
    with pytest.raises(InputError, match="inputs: expected finite numbers, found NaN or infinity, first in sample 3"):
        task_of(inputs=inputs)
    with pytest.raises(InputError, match="inputs: expected finite"):
        task_of(test=(inputs, torch.zeros(6).long()))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, "epochs: expected a whole number of at least 1, found 0"),
        ({"epochs": 1.5}, "epochs: expected a whole number"),
        ({"score_every": -1}, "score_every: expected a whole number of at least 0"),
        ({"score_every": None}, "score_every: expected a whole number"),
        ({"engine": "nunba"}, "engine: expected auto, numba or torch, found 'nunba'"),
        ({"loss": "cross_entrop"}, "loss: expected one of cross_entropy, mse.*Did you mean 'cross_entropy'"),
        ({"loss": "mse", "double_softmax": True}, "double_softmax: expected the cross-entropy"),
        ({"input_lr": 0.0}, "input_lr: expected a positive learning rate, or None, found 0.0"),
        ({"input_lr": float("nan")}, "input_lr: expected a positive learning rate"),
        ({"seed": -1}, "seed: expected a whole number of at least 0"),
        ({"rule": TableRule(states=8)}, "rule: expected one for 2 states"),
    ],
)
def test_settings_of_learning_that_cannot_be(task, settings, words):
    rule = settings.get("rule", perceptron())
    with pytest.raises(InputError, match=words):
        retain.learn_online(net(), rule, task, **{key: value for key, value in settings.items() if key != "rule"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, "epochs: expected a whole number of at least 1, found 0"),
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1"),
        ({"passes": 0}, "passes: expected a whole number of at least 1"),
        ({"lr": 0.0}, "lr: expected a finite number above 0"),
        ({"weight_decay": -1.0}, "weight_decay: expected a finite number of at least 0"),
        ({"input_lr": -0.1}, "input_lr: expected a finite number above 0"),
        ({"input_weight_decay": float("nan")}, "input_weight_decay: expected a finite number"),
        ({"query": "previous"}, "query: expected 'same' or 'next', found 'previous'"),
        ({"loss": "l2"}, "loss: expected one of cross_entropy, mse"),
        ({"engine": "cuda"}, "engine: expected auto, numba or torch"),
        ({"seed": -1}, "seed: expected a whole number of at least 0"),
        ({"tasks": []}, "tasks: expected at least one"),
        ({"nets": []}, "nets: expected one network for each of the 1 tasks, found 0"),
        ({"nets": [FeedForwardAssembly(8, 2, layers=1)] * 2}, "nets: expected one network for each of the 1 tasks, found 2"),
        ({"nets": FeedForwardAssembly(8, 2, layers=2)}, "rule: expected one table for all"),
        ({"nets": FeedForwardAssembly(7, 2, layers=1)}, "data of task 'halfspace-8': expected 7 values an input"),
        ({"nets": MLP(8, 5, 2)}, "net: expected a FeedForwardAssembly or RecurrentAssembly, .* found MLP"),
        ({"tasks": (torch.rand(4, 8), torch.zeros(4).long())}, "tasks: expected at least one task, and nothing else, found Tensor"),
        ({"rule": MLP(2, 2)}, "rule: expected a TableRule"),
        ({"rule": TableRule("prepostcount", cap=120, hidden=0)}, "cap: expected at most the width, 100, found 120"),
        ({"tasks": Task(DataLoader(TensorDataset(torch.rand(6, 8), torch.zeros(6).long())))}, "expected labelled samples held in tensors"),
    ],
)
def test_settings_of_the_meta_level_that_cannot_be(settings, words):
    settings = dict(settings)
    rule, task = settings.pop("rule", TableRule(hidden=0)), settings.pop("tasks", tasks.halfspace(8, 50))
    with pytest.raises(InputError, match=words):
        retain.meta_learn(rule, task, **settings)


def test_neither_network_nor_rule_nor_task():
    toy = task_of()
    for call, words in (
        (lambda: retain.learn_online(MLP(4, 5, 3), perceptron(), toy), "net: expected"),
        (lambda: retain.learn_online(net(), MLP(4, 3), toy), "rule: expected"),
        (lambda: retain.learn_online(net(), perceptron(), (torch.rand(4, 4), torch.zeros(4).long())), "task: expected"),
    ):
        with pytest.raises(InputError, match=words):
            call()


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_labels_of_any_whole_type(dtype):
    there = task_of(torch.tensor([0, 1, 2] * 2).to(dtype))
    assert retain.learn_online(net(), perceptron(), there).samples == [0, 6]
    assert len(retain.meta_learn(TableRule(hidden=0), there, net(), epochs=1).loss) == 1


def test_a_gradient_that_is_not_finite_ends_learning_and_leaves_the_rule():
    there = net(2, start="ones")
    rule = TableRule.fit(there, form="multiplicative", rate=0.01)
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.fill_(-100.0)  # 1 + rate * table is 0: the gradient divides by it
    with pytest.raises(RetainError, match="no longer finite"):
        retain.meta_learn(rule, tasks.halfspace(there.inputs, 200), there, epochs=1)
    assert all((parameter == -100).all() for parameter in rule.parameters())


def test_what_cannot_be_learned_with(blobs):
    there = net(2)
    there.input_weight.requires_grad_(False)
    with pytest.raises(InputError, match="input_lr: expected None for input weights that are frozen"):
        retain.learn_online(there, drawn(there), blobs(0), input_lr=0.1)
    task = tasks.halfspace(there.inputs, 200)
    with pytest.raises(InputError, match="nets: expected a network of its own"):
        retain.meta_learn(drawn(there), [task, task], [there, there])
    before = [weight.clone() for weight in there.plastic]
    there.put([weight + 1 for weight in before])
    with pytest.raises(InputError, match="engine: expected auto, numba or torch"):
        retain.learn_online(there, drawn(there), blobs(0), engine="rocket")
    assert not any(map(torch.equal, there.plastic, before))  # refused before the reset
    with pytest.raises(InputError, match="single or double precision"):
        retain.learn_online(net(2).half(), drawn(net(2)), blobs(0), engine="numba")


def test_wrong_families_and_tables_are_refused():
    for asked, said in (
        (lambda: plasticity.draw_tasks(1, kinds=()), "kinds: expected some of images"),
        (lambda: plasticity.image_like(10, 20, bend=float("nan")), "bend: expected"),
        (lambda: plasticity.image_like(10, 20, noise=-1), "noise: expected"),
        (lambda: plasticity.learned(5), "name: expected one of"),
        (lambda: plasticity.TableRule("prepost", hidden=10**9), "hidden: expected at most 1000"),
        (lambda: plasticity.LocalRule("random", coefficients={"hebb": "a"}), "coefficient 'hebb': expected a finite number"),
        (lambda: plasticity.evolve(plasticity.LocalRule("none"), "task"), "tasks: expected a list of tasks"),
        (lambda: plasticity.evolve(plasticity.LocalRule("none"), [tasks.halfspace(4, 9)], horizons=50), "horizons: expected a list"),
    ):
        with pytest.raises(InputError, match=said):
            asked()


def test_a_local_rule_learns_in_other_precisions_in_torch():
    net = FeedForwardAssembly(16, 2, layers=1, width=20, cap=10).to(torch.bfloat16)
    result = retain.learn_online(net, plasticity.learned("local-random"), tasks.halfspace(16, 100, seed=0))
    assert result.updates[-1] == 100
