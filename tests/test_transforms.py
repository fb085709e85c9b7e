"""Turned images and permuted inputs."""

import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.functional import rotate as reference

from retain import tasks
from retain.errors import InputError
from retain.likelihoods import Gaussian
from retain.seeds import generator
from retain.tasks import Task, TensorData, permute, rotate, transforms


def images(n=5, channels=2, height=9, width=9, seed=0, dtype=torch.float32):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def toy(**options):
    y = torch.arange(5) % 2
    return Task((images(**options), y), validation=(images(seed=1, **options), y), test=(images(seed=2, **options), y), id="toy")


@pytest.mark.parametrize("size", [(9, 9), (8, 8), (7, 12), (12, 5)])
@pytest.mark.parametrize("angle", [15, 45, 90, 133.7, -30, 200])
def test_rotation_is_that_of_torchvision(size, angle):
    task = toy(height=size[0], width=size[1])
    turned = rotate(task, (angle,))[0]
    for part in ("data", "validation", "test"):
        wanted = reference(task.get(part).inputs, angle, interpolation=InterpolationMode.BILINEAR)
        assert torch.allclose(turned.get(part).inputs, wanted, atol=2e-5), part
        assert torch.equal(turned.get(part).targets, task.get(part).targets)


def test_rotation_by_loop():
    """Bilinear interpolation pixel by pixel, zero outside."""
    height, width, angle = 6, 9, math.radians(25)
    task = toy(n=5, channels=1, height=height, width=width, dtype=torch.float64)
    source, turned = task.data.inputs[0, 0], rotate(task, (25,))[0].data.inputs[0, 0]

    def pixel(i, j):
        return float(source[i, j]) if 0 <= i < height and 0 <= j < width else 0.0

    for i in range(height):
        for j in range(width):
            x, y = j - (width - 1) / 2, (height - 1) / 2 - i  # y upwards, so that positive angles are counter-clockwise
            u, v = math.cos(angle) * x + math.sin(angle) * y, -math.sin(angle) * x + math.cos(angle) * y
            column, row = u + (width - 1) / 2, (height - 1) / 2 - v
            a, b = math.floor(row), math.floor(column)
            wanted = sum(pixel(a + k, b + m) * (1 - abs(row - a - k)) * (1 - abs(column - b - m)) for k in (0, 1) for m in (0, 1))
            assert float(turned[i, j]) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_quarters_are_counter_clockwise(quarter):
    task = toy(dtype=torch.float64)
    turned = rotate(task, (90 * quarter,))[0].data.inputs
    assert torch.allclose(turned, torch.rot90(task.data.inputs, quarter, (2, 3)), atol=1e-12)


def test_no_angle_leaves_every_bit():
    task = toy()
    stream = rotate(task, (0, 30, 360))
    assert [other.id for other in stream] == ["toy-0", "toy-30", "toy-360"] and stream.scenario == "domain"
    for other in (stream[0], stream[2]):
        assert all(torch.equal(other.get(part).inputs, task.get(part).inputs) for part in ("data", "validation", "test"))
    assert not torch.allclose(stream[1].data.inputs, task.data.inputs, atol=0.1)
    assert [other.n for other in stream] == [5, 5, 5] and stream[1].classes == (0, 1)


def test_chunks_do_not_show(monkeypatch):
    task = toy()
    whole = rotate(task, (33,))[0].data.inputs
    for chunk in (1, 2 * 81 * 2, 2 * 81 * 3):  # one image, two, three of five
        monkeypatch.setattr(transforms, "_CHUNK", chunk)
        assert torch.equal(rotate(task, (33,))[0].data.inputs, whole)


def test_what_is_missing_stays_missing():
    task = Task((images(), torch.zeros(5).long()), id="bare")
    for stream in (rotate(task), permute(task, 2)):
        assert all(other.test is None and other.validation is None for other in stream)
    assert [other.id for other in rotate(task)] == ["bare-0", "bare-15", "bare-30", "bare-45"]


def test_everything_else_of_the_task_is_kept():
    task = tasks.digits()
    for stream in (rotate(task), permute(task, 2)):
        assert all((o.class_names, o.classes, o.n, o.likelihood) == (task.class_names, task.classes, task.n, task.likelihood) for o in stream)
        assert all(o.data.inputs.dtype == task.data.inputs.dtype and o.data.shape == task.data.shape for o in stream)


@pytest.mark.parametrize("angles", [(), 15, "15", None, (math.nan,), (math.inf,), ("15",), (True,), (15, 15)])
def test_other_angles_are_refused(angles):
    with pytest.raises(InputError, match=r"angle|different id"):
        rotate(toy(), angles)


def test_other_data_are_refused():
    x, y = images(), torch.zeros(5).long()
    for bad in (x.flatten(1), x[:, 0], x[..., None], (255 * x).int()):
        with pytest.raises(InputError, match=r"N, C, H, W.*shape"):
            rotate(Task((bad, y)))
    loader = DataLoader(TensorDataset(x, y), batch_size=2)
    for make in (lambda task: rotate(task), lambda task: permute(task, 2)):
        with pytest.raises(InputError, match=r"data: expected tensors.*LoaderData"):
            make(Task(loader, n=5))
        with pytest.raises(InputError, match=r"test: expected tensors.*LoaderData"):
            make(Task((x, y), test=loader))
    for bad in (torch.rand(5), torch.rand(5, 1)):
        with pytest.raises(InputError, match=r"two entries.*shape"):
            permute(Task((bad, torch.rand(5, 1)), likelihood=Gaussian(1.0)), 2)


def undone(task, other):
    """The order of entries that was used, from inputs whose entries are all different."""
    flat, moved = task.data.inputs.flatten(1), other.data.inputs.flatten(1)
    return [int((flat[0] == value).nonzero()) for value in moved[0]]


def test_permutations():
    n, shape = 5, (2, 3, 4)
    x, y = torch.arange(float(n * 24)).reshape(n, *shape), torch.arange(n) % 2
    task = Task((x, y), validation=(x + 1000, y), test=(x + 2000, y), id="toy")
    stream = permute(task, 4, seed=3)
    assert [other.id for other in stream] == ["toy-p1", "toy-p2", "toy-p3", "toy-p4"] and stream.scenario == "domain"
    assert torch.equal(stream[0].data.inputs, x) and torch.equal(stream[0].test.inputs, x + 2000)
    orders = [undone(task, other) for other in stream]
    assert all(sorted(order) == list(range(24)) for order in orders) and len(set(map(tuple, orders))) == 4
    for other, order in zip(stream, orders, strict=True):
        for part in ("data", "validation", "test"):
            wanted = task.get(part).inputs.reshape(n, 24)[:, order].reshape(n, *shape)
            assert torch.equal(other.get(part).inputs, wanted) and torch.equal(other.get(part).targets, y)
    moved = permute(task, 4, seed=3, first=True)
    assert sorted(undone(task, moved[0])) == list(range(24)) and undone(task, moved[0]) not in orders
    assert [undone(task, other) for other in moved][1:] == orders[1:]
    assert [undone(task, other) for other in permute(task, 2, seed=3)] == orders[:2]
    assert undone(task, permute(task, 2, seed=4)[1]) != orders[1]


def test_permutations_of_anything():
    vectors = Task(TensorData(torch.arange(12).reshape(3, 4), torch.rand(3, 1)), likelihood=Gaussian(1.0))  # whole numbers, no classes
    assert torch.equal(permute(vectors, 2)[1].data.inputs.sort(1).values, vectors.data.inputs)
    before = torch.random.get_rng_state()
    permute(vectors, 3)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("options", [{"parts": 0}, {"parts": 1.5}, {"parts": 2, "seed": -1}, {"parts": 2, "seed": 0.5}])
def test_other_numbers_are_refused(options):
    with pytest.raises(InputError, match=r"parts|seed"):
        permute(toy(), **options)


def test_permuted_tasks_share_the_sources_memory():
    source = tasks.digits()
    stream = tasks.permute(source, 3, seed=1)
    data = stream.tasks[2].data
    assert data.source.data_ptr() == source.data.inputs.data_ptr() and data.size == source.n and data.shape == (1, 8, 8)
    order = torch.randperm(64, generator=generator(1, "permutation", 2))
    whole = source.data.inputs.flatten(1)[:, order].reshape(-1, 1, 8, 8)
    assert torch.equal(data.inputs, whole)
    drawn = [torch.cat(part) for part in zip(*data.batches(100, torch.Generator().manual_seed(3)), strict=True)]
    same = [torch.cat(part) for part in zip(*tasks.TensorData(whole, data.targets).batches(100, torch.Generator().manual_seed(3)), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(drawn, same, strict=True))
    rows = torch.tensor([5, 1, 7])
    some = data.take(rows).take(torch.tensor([2, 0]))
    assert torch.equal(some.inputs, whole[[7, 5]]) and torch.equal(some.targets, data.targets[[7, 5]]) and some.source is data.source
    moved = data.to(torch.device("cpu"), torch.float64)
    assert moved.inputs.dtype == torch.float64 and torch.equal(moved.inputs.float(), whole)
    shifted = tasks.permute(source, 3, seed=1, scenario="task").tasks[2].data
    assert shifted.source is data.source and torch.equal(shifted.targets, data.targets + 20) and torch.equal(shifted.inputs, whole)
