"""Shuffled labels and shuffled blocks."""

import pytest
import torch

from retain import Task, tasks
from retain.errors import InputError
from retain.tasks import shuffle_blocks, shuffle_labels


def test_labels_are_shuffled_among_the_chosen():
    task = tasks.digits()
    for share in (0.0, 0.3, 1.0):
        found = shuffle_labels(task, share, seed=2)
        moved = float((found.data.targets != task.data.targets).double().mean())
        assert moved == pytest.approx(0.9 * share, abs=0.03)
        assert torch.equal(found.data.targets.bincount(), task.data.targets.bincount()) and torch.equal(found.data.inputs, task.data.inputs)
        assert found.test is task.test and torch.equal(found.data.targets, shuffle_labels(task, share, seed=2).data.targets)
    with pytest.raises(InputError, match="share"):
        shuffle_labels(task, 1.5)
    with pytest.raises(InputError, match="tensors, whose labels"):
        shuffle_labels(Task([(torch.rand(2, 3), torch.tensor([0, 1]))], n=2, classes=(0, 1)))


def test_blocks_keep_what_is_in_them():
    images = torch.arange(2 * 3 * 4 * 6).float().view(2, 3, 4, 6)
    task = Task((images, torch.tensor([0, 1])), test=(images, torch.tensor([0, 1])), id="few")
    for each in (True, False):
        found = shuffle_blocks(task, 2, each=each, seed=1).data.inputs
        for image, before in zip(found, images, strict=True):
            blocks = [{tuple(x[:, r : r + 2, c : c + 2].flatten().tolist()) for r in (0, 2) for c in (0, 2, 4)} for x in (image, before)]
            assert blocks[0] == blocks[1] and not torch.equal(image, before)
    same = shuffle_blocks(task, 2, each=False, seed=1)
    assert torch.equal(same.data.inputs[1] - same.data.inputs[0], torch.full((3, 4, 6), 72.0))  # both in the same way
    assert torch.equal(same.test.inputs, same.data.inputs)
    many = torch.arange(16.0).view(1, 1, 4, 4).repeat(20, 1, 1, 1)
    own = shuffle_blocks(Task((many, torch.arange(20) % 2)), 2).data.inputs
    assert len({tuple(image.flatten().tolist()) for image in own}) > 5  # each by itself


def test_what_cannot_be_taken_apart():
    with pytest.raises(InputError, match="multiples of block=3"):
        shuffle_blocks(tasks.digits(), 3)
    with pytest.raises(InputError, match="images"):
        shuffle_blocks(tasks.halfspace(4, 20), 2)
    with pytest.raises(InputError, match="block"):
        shuffle_blocks(tasks.digits(), 0)
