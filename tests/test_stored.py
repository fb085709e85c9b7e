"""Inputs that stay as they are stored."""

import pytest
import torch

import retain
from retain import models, tasks
from retain.errors import InputError
from retain.tasks import Task, TensorData
from retain.tasks.stored import StoredData, joined, stored


@pytest.fixture
def pair():
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.randint(256, (40, 1, 4, 4), generator=draw, dtype=torch.uint8), torch.arange(40) % 4
    return TensorData(images.float() / 255, labels), StoredData(images, labels)


def same(plain, kept):
    """In order, shuffled, and all at once."""
    for seed in (None, 3):
        draws = [seed if seed is None else torch.Generator().manual_seed(seed) for _ in range(2)]
        for (x, y), (a, b) in zip(plain.batches(7, draws[0]), kept.batches(7, draws[1]), strict=True):
            assert torch.equal(x, a)
            assert torch.equal(y, b)
    assert torch.equal(plain.inputs, kept.inputs)
    assert plain.inputs.dtype == kept.inputs.dtype
    assert (plain.size, plain.shape, plain.device) == (kept.size, kept.shape, kept.device)


def test_bytes_give_the_bits_of_floats(pair):
    plain, kept = pair
    same(plain, kept)
    some = torch.tensor([5, 1, 30])
    same(plain.take(some), kept.take(some))
    same(plain.take(some + 5), kept.take(torch.arange(5, 40)).take(some))
    same(plain.to(torch.device("cpu"), torch.float64), kept.to(torch.device("cpu"), torch.float64))


def test_orders_follow_one_another(pair):
    plain, kept = pair
    first, second = torch.randperm(16), torch.randperm(16)
    wanted = plain.inputs.flatten(1)[:, first][:, second].reshape(-1, 1, 4, 4)
    same(TensorData(wanted, plain.targets), kept.permuted(first).permuted(second))
    same(TensorData(wanted[3:9], plain.targets[3:9]), stored(plain).permuted(first).permuted(second).take(torch.arange(3, 9)))


def test_parts_of_one_store_share_its_memory(pair):
    plain, kept = pair
    parts, rows = [kept.take(torch.arange(0, 10)), kept.take(torch.arange(10, 40))], torch.arange(40)
    whole = joined(parts)
    assert isinstance(whole, StoredData)
    assert whole.source is kept.source
    same(plain.take(rows), whole)
    order = torch.arange(15, -1, -1)
    turned = [part.permuted(order) for part in parts]
    assert isinstance(joined([turned[0], parts[1].permuted(order.clone())]), StoredData)
    for mixed in ([turned[0], parts[1]], [parts[0], plain.take(rows[10:])], [parts[0], parts[1].to(torch.device("cpu"), torch.float64)]):
        found = joined(mixed)
        assert type(found) is TensorData
        assert torch.equal(found.inputs, torch.cat([part.inputs for part in mixed]))


def test_mnist_is_split_permuted_and_joined_as_bytes():
    task = tasks.mnist(embedded=True)
    streams = [tasks.split(task, 5, scenario="task"), tasks.permute(task, 3), tasks.joint(tasks.split(task, 2))]
    for stream in streams:
        for one in stream:
            assert one.data.source.data_ptr() == task.data.source.data_ptr()
            assert one.data.source.dtype == torch.uint8
            assert one.data._whole is None


def test_bytes_are_learned_as_floats_are(pair):
    found = []
    for data in pair:
        task = Task(data, test=data)
        found.append(retain.learn(models.MLP(16, 8, 4, seed=0), [task.hold_out(8, torch.Generator().manual_seed(1))], epochs=2, batch_size=6, seed=0))
    assert found[0].history == found[1].history
    assert all(torch.equal(a, b) for a, b in zip(found[0].model.parameters(), found[1].model.parameters(), strict=True))


def test_no_samples_and_missing_labels_are_refused(pair):
    _, kept = pair
    for call in (lambda: kept.take(torch.tensor([], dtype=torch.long)), lambda: StoredData(kept.source, kept.targets[:5])):
        with pytest.raises(InputError, match=r"^(data|targets): expected"):
            call()
