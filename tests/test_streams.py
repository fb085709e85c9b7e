"""Streams made from a source: classes dealt out, labels moved apart, inputs permuted, boundaries blurred; and a person's own loaders."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import retain
from retain import metrics, tasks
from retain.errors import InputError
from retain.likelihoods import Gaussian, Tokens
from retain.methods.base import Plain
from retain.tasks import Stream, Task, TensorData


def source(n=24, classes=6, id="toy"):
    """A task whose inputs tell every sample of every part from all others."""
    parts = {}
    for k, part in enumerate(("data", "test", "validation")):
        parts[part] = (torch.arange(float(n * 4)).reshape(n, 1, 2, 2) + 1000 * k, (torch.arange(n) * 7) % classes)
    return Task(**parts, id=id)


def samples(*parts):
    """All samples as a sorted list of (inputs, target)."""
    return sorted((*row.flatten().tolist(), float(label)) for data in parts for row, label in zip(data.inputs, data.targets, strict=True))


# classes dealt out


@given(st.sampled_from([1, 2, 3, 6]), st.one_of(st.none(), st.integers(0, 50), st.permutations(range(6))), st.sampled_from(["domain", "task", "class"]))
def test_splitting_parts_the_source(parts, order, scenario):
    task = source()
    stream = tasks.split(task, parts, order=order, scenario=scenario)
    assert len(stream) == parts and stream.scenario == scenario and sum(piece.n for piece in stream) == task.n
    for part in ("data", "test", "validation"):
        assert samples(*(piece.get(part) for piece in stream)) == samples(task.get(part))
        for piece in stream:  # samples keep their order
            mine = torch.isin(task.get(part).targets, torch.tensor(piece.classes))
            assert torch.equal(piece.get(part).inputs, task.get(part).inputs[mine]) and torch.equal(piece.get(part).targets, task.get(part).targets[mine])
    assert sorted(label for piece in stream for label in piece.classes) == list(task.classes)
    assert samples(tasks.union(*stream.tasks).data) == samples(task.data)


def test_class_orders_have_a_seed_of_their_own():
    task = source(60, 10)

    def dealt(**options):
        return [label for piece in tasks.split(task, 5, **options) for label in piece.classes]

    before = torch.random.get_rng_state()
    assert dealt() == dealt(order=None) == list(range(10))
    assert dealt(order=0) == [5, 6, 8, 2, 9, 4, 0, 7, 1, 3]  # bits
    orders = [tuple(dealt(order=seed)) for seed in range(20)]
    assert len(set(orders)) == 20 and all(sorted(order) == list(range(10)) for order in orders)
    assert torch.equal(torch.random.get_rng_state(), before)
    # neither the parts nor the samples change it, and the list of it is the same
    assert [label for piece in tasks.split(task, 2, order=3) for label in piece.classes] == list(orders[3])
    assert [label for piece in tasks.split(source(20, 10), 10, order=3) for label in piece.classes] == list(orders[3])
    assert dealt(order=orders[3]) == list(orders[3])
    for one, other in zip(tasks.split(task, 5, order=3), tasks.split(task, 5, order=list(orders[3])), strict=True):
        assert torch.equal(one.data.inputs, other.data.inputs) and one.id == other.id


@pytest.mark.parametrize(("order", "words"), [(-1, "order"), (True, "order"), ([0, 1], "permutation"), ([0] * 6, "permutation")])
def test_other_orders_are_refused(order, words):
    with pytest.raises(InputError, match=words):
        tasks.split(source(), 2, order=order)


def test_labels_of_every_part_from_zero():
    task = source()
    stream = tasks.split(task, 3, order=[4, 1, 0, 5, 3, 2], scenario="domain", relabel=True)
    plain = tasks.split(task, 3, order=[4, 1, 0, 5, 3, 2], scenario="domain")
    for piece, known in zip(stream, plain, strict=True):
        assert piece.classes == (0, 1) and piece.class_names is None and piece.active is None
        for part in ("data", "test", "validation"):
            assert torch.equal(piece.get(part).inputs, known.get(part).inputs)
            assert [known.classes[label] for label in piece.get(part).targets] == known.get(part).targets.tolist()
    for scenario in ("task", "class"):
        with pytest.raises(InputError, match=r"relabel.*scenario='domain'"):
            tasks.split(task, 3, scenario=scenario, relabel=True)


# labels apart, inputs permuted and turned


def test_shifted_labels():
    task = tasks.digits()
    moved = tasks.shift_labels(task, 7)
    assert moved.classes == tuple(range(7, 17)) and moved.id == task.id and moved.n == task.n
    assert moved.class_names[7:] == task.class_names and not any(moved.class_names[:7])
    for part in ("data", "test"):
        assert torch.equal(moved.get(part).targets, task.get(part).targets + 7) and moved.get(part).inputs is task.get(part).inputs
    assert tasks.shift_labels(task, 0) is task and moved.validation is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tasks.shift_labels(source(), -1), "by"),
        (lambda: tasks.shift_labels(source(), 1.0), "by"),
        (lambda: tasks.shift_labels(Task((torch.rand(3, 2), torch.rand(3, 1)), likelihood=Gaussian()), 1), "classification"),
        (lambda: tasks.shift_labels(Task(DataLoader(TensorDataset(torch.rand(3, 2), torch.arange(3))), classes=(0, 1, 2)), 1), "LoaderData"),
        (lambda: tasks.permute(Task((torch.rand(3, 2), torch.rand(3, 1)), likelihood=Gaussian()), 2, scenario="class"), "classification"),
        (lambda: tasks.permute(source(), 2, scenario="clas"), "Did you mean 'class'"),
    ],
)
def test_labels_that_cannot_be_shifted(make, words):
    with pytest.raises(InputError, match=words):
        make()


MAKERS = {
    "permute": lambda task, **options: tasks.permute(task, 3, seed=2, **options),
    "rotate": lambda task, **options: tasks.rotate(task, (0, 90, 180), **options),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("scenario", ["domain", "task", "class"])
def test_every_scenario_of_changed_inputs(maker, scenario):
    task = source()
    plain, stream = MAKERS[maker](task), MAKERS[maker](task, scenario=scenario)
    for i, (piece, known) in enumerate(zip(stream, plain, strict=True)):
        by = 0 if scenario == "domain" else 6 * i
        assert piece.classes == tuple(range(by, by + 6)) and piece.id == known.id
        assert piece.active == {"domain": None, "task": piece.classes, "class": tuple(range(by + 6))}[scenario]
        for part in ("data", "test", "validation"):
            assert torch.equal(piece.get(part).inputs, known.get(part).inputs)
            assert torch.equal(piece.get(part).targets, known.get(part).targets + by)


@given(st.integers(0, 30), st.booleans(), st.sampled_from(["domain", "class"]))
def test_permutations_can_be_undone(seed, first, scenario):
    task = source()
    marks = Task((torch.arange(4.0).reshape(1, 1, 2, 2), torch.zeros(1).long()))  # which entry goes where
    orders = [piece.data.inputs.flatten().long() for piece in tasks.permute(marks, 3, seed, first)]
    for piece, order in zip(tasks.permute(task, 3, seed, first, scenario=scenario), orders, strict=True):
        back = torch.empty_like(order)
        back[order] = torch.arange(4)
        for part in ("data", "test", "validation"):
            assert torch.equal(piece.get(part).inputs.flatten(1)[:, back].reshape(-1, 1, 2, 2), task.get(part).inputs)


# boundaries blurred


def sized(*sizes, scenario="class"):
    """Tasks of two classes each, in which every sample is known by its input, and its first entry is its task."""
    made = []
    for i, size in enumerate(sizes):
        x = torch.stack([torch.full((size,), float(i)), torch.arange(float(size))], 1)
        made.append(Task((x, 2 * i + torch.arange(size) % 2), test=(x + 0.5, 2 * i + torch.arange(size) % 2), id=f"t{i}"))
    return Stream(tuple(made), scenario)


@settings(max_examples=150)
@given(st.lists(st.integers(2, 30), min_size=2, max_size=5), st.floats(0, 1), st.integers(0, 9), st.sampled_from(["domain", "class"]))
def test_blurry_exchanges_exactly_the_share(sizes, share, seed, scenario):
    stream = sized(*sizes, scenario=scenario)
    blurred = tasks.blurry(stream, share, seed)
    assert samples(*(task.data for task in blurred)) == samples(*(task.data for task in stream))
    wanted = [round(share * size) for size in sizes]
    wanted = [min(count, sum(wanted) - count) for count in wanted]
    for i, (task, known, count) in enumerate(zip(blurred.tasks, stream.tasks, wanted, strict=True)):
        assert task.n == task.data.size == known.n and task.test is known.test and task.id == f"t{i}-blurry"
        strange = task.data.inputs[:, 0] != i
        assert int(strange.sum()) == count
        assert torch.equal(task.data.inputs[~strange], known.data.inputs[~strange])  # the others stay in their places
        assert torch.equal(task.data.targets // 2, task.data.inputs[:, 0].long())  # targets go with their inputs
        assert task.classes[:2] == known.classes and set(task.classes) == set(known.classes) | set(task.data.targets.tolist())
    again = tasks.blurry(stream, share, seed)
    assert all(torch.equal(one.data.inputs, other.data.inputs) for one, other in zip(blurred, again, strict=True))


def test_blurry_draws():
    stream = sized(200, 200, 200, 200)
    given_at = {share: [task.data.inputs[:, 0] != i for i, task in enumerate(tasks.blurry(stream, share).tasks)] for share in (0.1, 0.3)}
    assert all(bool((more | ~less).all()) for less, more in zip(given_at[0.1], given_at[0.3], strict=True))
    one, other = tasks.blurry(stream, 0.3), tasks.blurry(stream, 0.3, seed=1)
    assert not torch.equal(one[0].data.inputs, other[0].data.inputs)
    # what a task gets comes from all the others, a third of 60 each
    for i, task in enumerate(tasks.blurry(stream, 0.3).tasks):
        origin = task.data.inputs[:, 0].long().bincount(minlength=4).tolist()
        assert origin.pop(i) == 140 and all(10 <= count <= 30 for count in origin)
    before = torch.random.get_rng_state()
    whole = tasks.blurry(stream, 1.0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(not (task.data.inputs[:, 0] == i).any() for i, task in enumerate(whole.tasks))
    assert torch.equal(stream[0].data.inputs[:, 0], torch.zeros(200))  # the source is left as it was


def test_blurry_of_other_targets():
    kinds = [Task((torch.rand(6, 2), torch.full((6, 1), float(i))), likelihood=Gaussian(), id=str(i)) for i in range(2)]
    for i, task in enumerate(tasks.blurry(kinds, 0.5).tasks):
        assert int((task.data.targets != i).sum()) == 3 and task.classes is None
    tokens = [Task((torch.rand(2, 3), torch.tensor(rows)), likelihood=Tokens(), id=str(i)) for i, rows in enumerate([[[1, 2, 3]] * 2, [[4, -100, -100]] * 2])]
    assert [task.n for task in tasks.blurry(tokens, 0.5)] == [4, 4]


def _pair(*shape, dtype=torch.float32):
    return torch.zeros(4, *shape, dtype=dtype), torch.arange(4) % 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tasks.blurry(tasks.split(source(), 2, scenario="task"), 0.1), "scenario: expected 'domain' or 'class', found 'task'"),
        (lambda: tasks.blurry([source()], 0.1), "at least two tasks"),
        (lambda: tasks.blurry(source(), 0.1), "a Stream or a list"),
        (lambda: tasks.blurry(sized(4, 4), 1.1), "share"),
        (lambda: tasks.blurry(sized(4, 4), 0.1, seed=-1), "seed"),
        (lambda: tasks.blurry([_pair(2), DataLoader(TensorDataset(*_pair(2)))], 0.1), "task 'task-2': expected tensors"),
        (lambda: tasks.blurry([_pair(2), Task((torch.zeros(4, 2), torch.zeros(4, 1)), likelihood=Gaussian())], 0.1), "likelihood of task 'task'"),
        (lambda: tasks.blurry([_pair(2), _pair(2, dtype=torch.float64)], 0.1), "inputs of task 'task-2'.*float64"),
    ],
)
def test_what_cannot_be_blurred(make, words):
    with pytest.raises(InputError, match=words):
        make()


# what the loop makes of them


def linear(inputs, outputs):
    model = nn.Linear(inputs, outputs)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


class Moved(Plain):
    """Fine-tuning that notes by task which outputs it taught: those that no mask kept closed."""

    def __init__(self):
        self.taught = []

    def begin(self, model, task):
        self.before = model.weight.detach().clone()

    def consolidate(self, model, task):
        self.taught.append(tuple((model.weight.detach() != self.before).any(1).nonzero()[:, 0].tolist()))


@pytest.mark.parametrize(("scenario", "wanted"), [("domain", [(0, 1, 2, 3)] * 2), ("task", [(0, 1), (2, 3)]), ("class", [(0, 1), (0, 1, 2, 3)])])
def test_only_outputs_that_compete_are_taught(scenario, wanted):
    method = Moved()
    retain.learn(linear(2, 4), sized(20, 20, scenario=scenario), method, optimizer="sgd", lr=0.1)
    assert method.taught == wanted


def test_what_a_blurry_task_holds_competes():
    stream = tasks.blurry(sized(40, 40, 40), 0.05)
    first = stream[0]
    assert 2 < len(first.classes) < 6 and stream.at(0, 0).active == tuple(sorted(first.classes))
    method = Moved()
    result = retain.learn(linear(2, 6), stream, method, optimizer="sgd", lr=0.01)
    assert method.taught == [task.active for task in stream]
    assert result.accuracy.shape == (4, 3) and result.tasks == ["t0-blurry", "t1-blurry", "t2-blurry"]


@pytest.mark.parametrize(
    ("scenario", "wanted"), [("domain", [[0, 0], [0, 0], [0, 0]]), ("task", [[1, 1], [1, 1], [1, 1]]), ("class", [[1, 1], [1, 0], [0, 0]])]
)
def test_only_outputs_that_compete_answer(scenario, wanted):
    """Inputs are logits: the right class of the task's own is ahead of its neighbour, a class of the other task ahead of both."""
    rows = torch.tensor([[2.0, 1, 3, 0], [1, 2, 3, 0], [3, 0, 2, 1], [3, 0, 1, 2]])
    pieces = tasks.split(Task((rows, torch.arange(4)), id="t"), 2, scenario=scenario)
    model = linear(4, 4)
    model.weight.data.copy_(torch.eye(4))
    assert retain.learn(model, pieces, optimizer="sgd", lr=1e-6).accuracy.tolist() == wanted


def test_class_incremental_permutations_are_learned():
    task = tasks.few(tasks.digits(), 20)
    stream = tasks.permute(task, 2, scenario="class")
    result = retain.learn(retain.models.MLP(64, 32, 20, seed=0), stream, epochs=15, lr=3e-3)
    assert result.accuracy[1, 0] > 0.7 and result.accuracy[2, 1] > 0.6 and result.forgetting > 0.3
    with pytest.raises(InputError, match="at least 20 outputs"):
        retain.learn(retain.models.MLP(64, 10, seed=0), stream)
    ids = [task.id for task in stream]
    points = [[entry["accuracy"][id] for id in ids[: ids.index(entry["task"]) + 1]] for entry in result.history]
    assert 0.3 < metrics.anytime(points) < 1


def test_online_is_one_epoch():
    seen = []

    class Watching(nn.Linear):
        def forward(self, x):
            if self.training:
                seen.extend(x.tolist())
            return super().forward(x)

    stream = sized(10, 7)
    retain.learn(Watching(2, 4), stream, epochs=1, batch_size=3)
    assert sorted(seen) == sorted(row for task in stream for row in task.data.inputs.tolist())


# a person's own loaders


def loaders(stream, **options):
    return [DataLoader(TensorDataset(task.data.inputs, task.data.targets), batch_size=5, **options) for task in stream]


def test_loaders_as_a_class_incremental_stream():
    tensors = sized(10, 10)
    first, second = loaders(tensors)
    stream = Stream([Task(first, classes=(0, 1), id="a"), Task(second, classes=(2, 3), id="b")], scenario="class")
    assert [task.active for task in stream] == [(0, 1), (0, 1, 2, 3)] and [task.n for task in stream] == [10, 10]
    models = [linear(2, 4), linear(2, 4)]
    same = Stream([Task((task.data.inputs, task.data.targets), id=name) for task, name in zip(tensors, "ab", strict=True)], scenario="class")
    results = [
        retain.learn(models[0], stream, optimizer="sgd", lr=0.1, epochs=2),
        retain.learn(models[1], same, optimizer="sgd", lr=0.1, epochs=2, batch_size=10),
    ]
    assert results[0].accuracy.shape == results[1].accuracy.shape == (3, 2)
    assert results[0].accuracy[0].tolist() == results[1].accuracy[0].tolist() and results[0].accuracy[1, 0] >= 0.5
    moved = linear(2, 4)
    retain.learn(moved, stream[:1], optimizer="sgd", lr=0.1)
    assert (moved.bias[2:] == 0).all() and (moved.bias[:2] != 0).all()


def test_loaders_that_do_not_fit():
    first, second = loaders(sized(10, 10))

    def made(*classes, loader=second):
        return Stream([Task(first, classes=classes[0], id="a"), Task(loader, classes=classes[1], id="b")], scenario="class")

    with pytest.raises(InputError, match=r"classes: expected the classes of task 'task-1', which the class scenario needs, found none\. Pass Task"):
        tasks.sequence(first, second, scenario="class")
    with pytest.raises(InputError, match=r"targets: expected the active classes \[2\] of task 'b', found label 3\. Pass Task"):
        retain.learn(linear(2, 4), made((0, 1), (2,)))
    wide = DataLoader(TensorDataset(torch.zeros(10, 3), torch.arange(10) % 2 + 2), batch_size=5)
    with pytest.raises(InputError, match=r"inputs of task 'b': expected what Linear takes, found torch.float32 \[5, 3\]\. It said: "):
        retain.learn(linear(2, 4), made((0, 1), (2, 3), loader=wide))
    with pytest.raises(InputError, match=r"inputs of task 'b': expected the shape of task 'a', \[2\], found \[3\]\. Resize or pad"):
        tasks.sequence(Task(sized(4, 4)[0].data, id="a"), Task(TensorData(torch.zeros(4, 3), torch.zeros(4).long()), id="b"))


def test_one_label_with_two_names_cannot_compete():
    digits, clothes = tasks.mnist(embedded=True), tasks.fashion_mnist(embedded=True)
    with pytest.raises(InputError, match=r"classes of task 'fashion': expected .* label 0 is '0' there, found 'T-shirt/top' here. Move .*shift_labels"):
        tasks.sequence(digits, clothes, scenario="class")
    assert len(tasks.sequence(digits, tasks.shift_labels(clothes, 10), scenario="class")) == len(tasks.sequence(digits, clothes)) == 2
    first, again = (Task(digits.data, id=name, class_names=digits.class_names) for name in "ab")
    assert len(tasks.sequence(first, again, scenario="class")) == 2  # the same classes once more, as in blurry streams
