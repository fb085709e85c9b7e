"""Tasks, streams, sources and the one way a model is applied."""

import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from retain import tasks
from retain.errors import InputError, RetainError
from retain.likelihoods import Gaussian, Tokens
from retain.tasks import Batch, Task, apply
from retain.tasks.batch import mask
from retain.tasks.data import as_data


def pair(n=10, width=3, classes=2):
    return torch.randn(n, width), torch.arange(n) % classes


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: (x, y),
        lambda x, y: (x.numpy(), y.numpy()),
        lambda x, y: TensorDataset(x, y),
        lambda x, y: [(a, int(b)) for a, b in zip(x, y, strict=True)] and _Map(x, y),
        lambda x, y: DataLoader(TensorDataset(x, y), batch_size=4),
        lambda x, y: [(x[:5], y[:5]), (x[5:], y[5:])],
        lambda x, y: [{"labels": y, "x": x}],
    ],
)
def test_whatever_a_person_has_is_a_task(make):
    x, y = pair()
    task = Task(make(x, y), n=10)
    seen = list(task.batches(4))
    assert torch.equal(torch.cat([batch.targets for batch in seen]), y)
    if not isinstance(seen[0].inputs, dict):
        assert torch.equal(torch.cat([batch.inputs for batch in seen]), x)
    assert sum(len(batch.targets) for batch in task.batches(4)) == 10  # and a second time


class _Map(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], int(self.y[i])


class _Endless(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(3), 0)] * 7)


@pytest.mark.parametrize("make", [lambda x, y: (x, y), _Map])
def test_order_follows_the_generator(make):
    x, y = torch.arange(20.0)[:, None], torch.zeros(20).long()
    data = as_data(make(x, y))

    def order(seed):
        return torch.cat([a for a, _ in data.batches(6, torch.Generator().manual_seed(seed))]).flatten()

    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(1), order(2))
    assert torch.equal(order(1).sort().values, x.flatten())


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Task((torch.zeros(0, 2), torch.zeros(0).long())), "at least one sample"),
        (lambda: Task((torch.tensor([[1.0], [float("nan")]]), torch.zeros(2).long())), "sample 1"),
        (lambda: Task((torch.tensor([[1.0], [float("inf")]]), torch.zeros(2).long())), "NaN or infinity"),
        (lambda: Task((torch.zeros(3, 2), torch.zeros(2).long())), "3 inputs"),
        (lambda: Task(DataLoader(_Endless())), "n: expected the number of training samples"),
        (lambda: Task(iter([])), "read more than once"),
        (lambda: Task(7), "a pair of arrays"),
        (lambda: Task(pair(), test=(torch.zeros(2, 9), torch.zeros(2).long())), "shape"),
        (lambda: tasks.sequence(), "at least one task"),
        (lambda: tasks.sequence(Task(pair(width=3), id="a"), Task(pair(width=4), id="b")), "inputs of task 'b'"),
        (lambda: tasks.sequence(Task(pair(), id="a"), Task(pair(), id="a")), "different id"),
        (lambda: tasks.sequence(pair(), pair(), scenario="tsk"), "'task'"),
        (
            lambda: tasks.sequence(Task((torch.zeros(2, 1), torch.zeros(2, 1)), likelihood=Gaussian(), classes=(0,)), scenario="task"),
            "Only classes can compete",
        ),
        (lambda: Task((torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2).long())), "float() / 255"),
        (lambda: list(Task([((torch.tensor([[float("nan")]]),), torch.zeros(1).long())], n=1).batches(1)), "batch 0"),
        (lambda: tasks.split(Task(pair(classes=3, n=12)), 2), "divisor of the 3 classes"),
        (lambda: tasks.split(Task(pair()), 2, order=[0, 5]), "permutation"),
        (lambda: tasks.mnist("/nowhere"), "RETAIN_DATA"),
        (lambda: Task(pair()).hold_out(10, torch.Generator()), "between 1 and 9"),
        (lambda: Task(pair()).get("test"), "test data in task"),
        (lambda: list(Task([torch.zeros(3)], n=1).batches(1)), "(inputs, targets)"),
        (lambda: list(Task([{"x": 1}], n=1).batches(1)), "labels"),
        (lambda: list(Task([(torch.tensor([[float("nan")]]), torch.zeros(1).long())], n=1).batches(1)), "batch 0"),
        (lambda: list(Task(DataLoader(TensorDataset(*pair()), batch_size=20, drop_last=True), n=1).batches(1)), "at least one batch"),
    ],
)
def test_bad_data_get_one_clear_error(build, words, monkeypatch):
    with pytest.raises(InputError) as caught:
        build()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_n_counts_tokens_for_sequences():
    targets = torch.tensor([[1, 2, -100], [1, -100, -100]])
    assert Task((torch.zeros(2, 3), targets), likelihood=Tokens()).n == 3
    with pytest.raises(InputError, match="tokens"):
        Task([(torch.zeros(2, 3), targets)], likelihood=Tokens())


def test_embedded_sets_are_even_by_class_and_real():
    for task in (tasks.mnist(embedded=True), tasks.fashion_mnist(embedded=True)):
        assert task.data.inputs.shape == (10_000, 1, 28, 28) and task.test.inputs.shape == (2_000, 1, 28, 28)
        assert task.data.targets.bincount().tolist() == [1000] * 10
        assert task.test.targets.bincount().tolist() == [200] * 10
        assert float(task.data.inputs.min()) == 0 and float(task.data.inputs.max()) == 1
        assert task.class_names and len(task.class_names) == 10
    assert "our" in tasks.fashion_mnist(embedded=True).note or "us" in tasks.fashion_mnist(embedded=True).note
    digits = tasks.digits()
    assert digits.n + digits.test.size == 1797 and digits.data.shape == (1, 8, 8)


def test_raw_files_are_read(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, n in (("train", 6), ("t10k", 4)):
        pixels = np.arange(n * 784, dtype=np.uint8).reshape(n, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(np.array([0x803, n, 28, 28], ">i4").tobytes() + pixels.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(np.array([0x801, n], ">i4").tobytes() + bytes(range(n)))
    task = tasks.mnist(tmp_path)
    assert task.n == 6 and task.test.targets.tolist() == [0, 1, 2, 3]
    assert float(task.data.inputs[0, 0, 0, 5]) == pytest.approx(5 / 255)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte"):
        tasks.mnist(tmp_path)


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RETAIN_DATA", raising=False)
    import torchvision

    def refuse(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", refuse)
    with pytest.raises(RetainError, match=r"--data .*embedded"):
        tasks.mnist()


@pytest.mark.parametrize(("scenario", "expected"), [("domain", [None, None]), ("task", [(0, 1), (2, 3)]), ("class", [(0, 1), (0, 1, 2, 3)])])
def test_scenarios_say_which_outputs_compete(scenario, expected):
    stream = tasks.split(Task((torch.randn(8, 2), torch.arange(8) % 4)), 2, scenario=scenario)
    assert [task.active for task in stream] == expected
    if scenario == "class":
        assert stream.at(0, 1).active == (0, 1, 2, 3)  # the first task asked after both were met


def test_masked_outputs_get_no_probability_and_no_gradient():
    outputs = torch.randn(2, 4, requires_grad=True)
    masked = mask(outputs, (1, 3))
    p = masked.softmax(1)
    assert (p[:, [0, 2]] == 0).all() and torch.allclose(p.sum(1), torch.ones(2))
    torch.nn.functional.cross_entropy(masked, torch.tensor([1, 3])).backward()
    assert (outputs.grad[:, [0, 2]] == 0).all() and (outputs.grad[:, [1, 3]] != 0).all()
    with pytest.raises(InputError, match="at least 10 outputs"):
        mask(outputs, (9,))


def test_apply_covers_tensors_tuples_dicts_and_logits():
    x = torch.randn(3, 2)
    task = Task((x, torch.zeros(3).long()))

    class Net(nn.Module):
        def forward(self, a, b=None, wrap=None):
            out = a if b is None else a + b
            return types.SimpleNamespace(logits=out) if wrap else out

    net = Net()
    y = torch.zeros(3).long()
    assert torch.equal(apply(net, Batch(x, y, task)), x)
    assert torch.equal(apply(net, Batch((x, x), y, task)), 2 * x)
    assert torch.equal(apply(net, Batch({"a": x, "b": x, "wrap": True}, y, task)), 2 * x)
    with pytest.raises(InputError, match="logits"):
        apply(nn.Identity(), Batch(((x, x),), y, task))


def test_union_joins_and_refuses():
    a, b = Task(pair(6), test=pair(2), id="a"), Task(pair(4), test=pair(2), id="b")
    joint = tasks.union(a, b)
    assert joint.n == 10 and joint.test.size == 4 and joint.validation is None
    with pytest.raises(InputError, match="one likelihood"):
        tasks.union(a, Task((torch.zeros(2, 3), torch.zeros(2, 1)), likelihood=Gaussian(), id="c"))
    with pytest.raises(InputError, match="tensors to join"):
        tasks.union(a, Task(DataLoader(TensorDataset(*pair())), id="d"))


def test_hold_out_parts_the_data():
    task = Task((torch.arange(10.0)[:, None], torch.zeros(10).long()))
    held = task.hold_out(3, torch.Generator().manual_seed(0))
    assert held.n == 7 and held.validation.size == 3
    together = torch.cat([held.data.inputs, held.validation.inputs]).flatten().sort().values
    assert torch.equal(together, torch.arange(10.0))
