"""Tasks to compare a task with: what of it is learned, if its labels or its pictures are taken apart."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from retain.errors import InputError, check_count, check_share
from retain.seeds import generator
from retain.tasks.data import TensorData
from retain.tasks.task import Task
from retain.tasks.transforms import _changed, _check


def shuffle_labels(task: Task, share: float = 1.0, seed: int = 0) -> Task:
    """The task with the labels of a share of its training samples shuffled among them: what is fitted of them is memorised.

    Zhang, Bengio, Hardt, Recht and Vinyals 2017, "Understanding deep learning requires rethinking generalization"
    (https://arxiv.org/abs/1611.03530). Validation and test labels stay.

    Args:
        task: A task whose training data are tensors.
        share: Of the training samples, in [0, 1].
        seed: Of the choice and the shuffle.

    Returns:
        A task named ``<id>-shuffled``; how many samples there are of each class does not change.

    Raises:
        InputError: If the data are no tensors or the share is out of range.

    Example:
        >>> from retain import tasks
        >>> digits = tasks.digits()
        >>> shuffled = tasks.shuffle_labels(digits)
        >>> shuffled.id, bool((shuffled.data.targets == digits.data.targets).float().mean() < 0.2)
        ('digits-shuffled', True)
    """
    data = task.data
    if not isinstance(data, TensorData):
        raise InputError("data", "tensors, whose labels can be shuffled", type(data).__name__)
    draws, size = generator(seed, "shuffled labels"), len(data.targets)
    chosen = torch.randperm(size, generator=draws)[: round(check_share("share", share) * size)].to(data.targets.device)
    targets = data.targets.clone()
    targets[chosen] = data.targets[chosen[torch.randperm(len(chosen), generator=draws).to(chosen.device)]]
    return replace(task, data=TensorData(data.inputs, targets), id=f"{task.id}-shuffled")


def shuffle_blocks(task: Task, block: int, *, each: bool = True, seed: int = 0) -> Task:
    """The task with its pictures cut into blocks and these shuffled: small things stay visible, where they are does not.

    Neyshabur, Sedghi and Zhang 2020, "What is being transferred in transfer learning?" (https://arxiv.org/abs/2008.11687), section 3.1. What pretraining
    still gains there is not made of whole shapes.

    Args:
        task: A task whose inputs are images ``[N, C, H, W]`` held in tensors.
        block: Side of a block in pixels; it divides both sides of the images.
        each: Shuffle every image by itself; otherwise all in the same way.
        seed: Of the shuffles.

    Returns:
        A task named ``<id>-blocks-<block>``; training, validation and test images are all shuffled.

    Raises:
        InputError: If the data are no such images, or the block does not divide them.

    Example:
        >>> import torch
        >>> from retain import tasks
        >>> digits = tasks.digits()
        >>> shuffled = tasks.shuffle_blocks(digits, 4)
        >>> torch.equal(shuffled.data.inputs.sum((1, 2, 3)), digits.data.inputs.sum((1, 2, 3)))
        True
    """
    check_count("block", block)
    _check(task, "images [N, C, H, W] to take apart", lambda x: x.ndim == 4 and x.numel() > 0)
    _check(task, f"images whose sides are multiples of block={block}", lambda x: x.shape[2] % block == 0 and x.shape[3] % block == 0)
    draws = generator(seed, "blocks")

    def change(images: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        rows, columns = height // block, width // block
        pieces = images.view(count, channels, rows, block, columns, block).permute(0, 2, 4, 1, 3, 5).reshape(count, rows * columns, channels, block, block)
        if each:
            order = torch.rand(count, rows * columns, generator=draws).argsort(1)
        else:
            order = torch.randperm(rows * columns, generator=generator(seed, "blocks")).expand(count, -1)
        moved = pieces[torch.arange(count, device=images.device)[:, None], order.to(images.device)]
        return moved.view(count, rows, columns, channels, block, block).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)

    return _changed(task, f"{task.id}-blocks-{block}", change)
