"""One task made into several: turned images, permuted inputs; and labels moved out of another task's way."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from retain.errors import InputError, check_count
from retain.likelihoods import Categorical
from retain.seeds import generator
from retain.tasks.data import TensorData
from retain.tasks.stored import stored
from retain.tasks.stream import Scenario, Stream
from retain.tasks.task import Task

_PARTS = ("data", "validation", "test")
_CHUNK = 2**22
"""Entries turned at once: 16 MB in single precision."""


def _check(task: Task, wanted: str, fits: Callable[[Tensor], bool] | None = None) -> None:
    for part in _PARTS:
        data = getattr(task, part)
        if data is None:
            continue
        if not isinstance(data, TensorData):
            raise InputError(part, f"tensors, {wanted}", type(data).__name__)
        if fits is not None and not fits(next(data.batches(1))[0]):
            raise InputError(f"{part} of task '{task.id}'", wanted, f"shape {list(data.inputs.shape)} of {data.inputs.dtype}")


def _changed(task: Task, id: str, change: Callable[[Tensor], Tensor]) -> Task:
    found = {part: getattr(task, part) for part in _PARTS}
    parts: dict[str, Any] = {part: data and TensorData(change(data.inputs), data.targets) for part, data in found.items()}
    return replace(task, **parts, id=id)


def _turn(images: Tensor, angle: float) -> Tensor:
    if angle % 360 == 0:
        return images
    height, width = images.shape[2:]
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # from each pixel back to where it came from; the ratios undo that grid_sample measures both sides from -1 to 1
    back = torch.tensor([[[c, -s * height / width, 0], [s * width / height, c, 0]]], dtype=images.dtype, device=images.device)
    grid = affine_grid(back, [1, 1, height, width], align_corners=False)
    turned = torch.empty_like(images)
    rows = max(1, _CHUNK // images[0].numel())
    for target, source in zip(turned.split(rows), images.split(rows), strict=True):
        target.copy_(grid_sample(source, grid.expand(len(source), -1, -1, -1), mode="bilinear", padding_mode="zeros", align_corners=False))
    return turned


def shift_labels(task: Task, by: int) -> Task:
    """The task with ``by`` added to all labels, so that its classes are others than those of a task it follows.

    Args:
        task: A classification task held in tensors.
        by: How much; 0 leaves the task as it is.

    Returns:
        The task, of the same name, with its classes moved along. Inputs are not copied.

    Raises:
        InputError: If the task is no classification, its data are not tensors, or ``by`` is no whole number of at least 0.

    Example:
        >>> from retain import tasks
        >>> stream = tasks.sequence(tasks.mnist(embedded=True), tasks.shift_labels(tasks.fashion_mnist(embedded=True), 10), scenario="class")
        >>> stream[0].active[-1], stream[1].active[-1]
        (9, 19)
    """
    by = check_count("by", by, least=0)
    if not isinstance(task.likelihood, Categorical) or task.classes is None:
        raise InputError("task", "a classification task whose classes are known", repr(task))
    _check(task, "whose labels can be shifted")
    if by == 0:
        return task
    found = {part: getattr(task, part) for part in _PARTS}
    parts: dict[str, Any] = {part: data and _labelled(data, data.targets + by) for part, data in found.items()}
    names = None if task.class_names is None else ("",) * by + task.class_names
    return replace(task, **parts, classes=tuple(label + by for label in task.classes), class_names=names)


def _labelled(data: TensorData, targets: Tensor) -> TensorData:
    """The data with other targets, and inputs that are the same memory."""
    found = copy(data)
    found.targets = targets
    return found


def _streamed(pieces: Sequence[Task], scenario: Scenario) -> Stream:
    """The tasks as a stream, with classes of their own where classes compete by task."""
    if scenario in ("task", "class"):
        pieces = [shift_labels(piece, i * (max(piece.classes or (0,)) + 1)) for i, piece in enumerate(pieces)]
    return Stream(tuple(pieces), scenario)


def rotate(task: Task, angles: Sequence[float] = (0, 15, 30, 45), *, scenario: Scenario = "domain") -> Stream:
    """One task a rotation: all images turned by one angle (rotated MNIST; Lopez-Paz and Ranzato 2017).

    Images turn about their centre, counter-clockwise as they are looked at, with the first row on top (so 90 takes the right edge to
    the top, as ``torch.rot90`` does). Values between pixels are bilinear, and zero outside the image.

    Args:
        task: A task whose inputs are images ``[N, C, H, W]`` held in tensors of floating point.
        angles: Degrees, one a task; 0 leaves the images as they are, to the bit and without a copy.
        scenario: See :class:`Stream`. In ``task`` and ``class`` every task has classes of its own: the labels of a task of C classes become
            C to 2 C - 1 in the second task and so on, and the model needs an output for each.

    Returns:
        A stream with tasks named ``<id>-<angle>``; training, validation and test images are all turned.

    Raises:
        InputError: If the data are no such images, the angles are not finite numbers, none, or the same twice, or the scenario does not fit.

    Example:
        >>> from retain import tasks
        >>> [task.id for task in tasks.rotate(tasks.digits(), angles=(0, 22.5, 90))]
        ['digits-0', 'digits-22.5', 'digits-90']
    """
    _check(task, "images [N, C, H, W] of floating point to rotate", lambda x: x.ndim == 4 and x.is_floating_point() and x.numel() > 0)
    if not isinstance(angles, Sequence) or isinstance(angles, str) or len(angles) == 0:
        raise InputError("angles", "at least one angle in degrees, such as (0, 15, 30, 45)", repr(angles))
    for angle in angles:
        if not isinstance(angle, numbers.Real) or isinstance(angle, bool) or not math.isfinite(angle):
            raise InputError("angles", "finite numbers, in degrees", repr(angle))
    return _streamed([_changed(task, f"{task.id}-{angle:g}", lambda x, angle=angle: _turn(x, angle)) for angle in angles], scenario)  # type: ignore[misc]


def permute(task: Task, parts: int, seed: int = 0, first: bool = False, *, scenario: Scenario = "domain") -> Stream:
    """One task a permutation: the entries of every input in one fixed random order.

    Permuted MNIST (Goodfellow et al. 2013; Kirkpatrick et al. 2017). The first task is the original, unless ``first=True``, as in
    van de Ven et al. 2022. Order ``i`` depends on the seed and on ``i`` alone, so more parts leave the first ones as they were. The tasks share
    the source's memory: a batch is permuted when it is drawn, and ``task.data.inputs`` makes a permuted copy when it is first read.

    Args:
        task: A task held in tensors ``[N, ...]``; a permutation acts on all of one input's entries (C*H*W for images).
        parts: How many tasks.
        seed: Of the permutations.
        first: Whether the first task is permuted too.
        scenario: See :class:`Stream`. In ``task`` and ``class`` every task has classes of its own: the labels of a task of C classes become
            C to 2 C - 1 in the second task and so on, and the model needs an output for each.

    Returns:
        A stream with tasks named ``<id>-p1`` and so on; inputs keep their shape, and training, validation and
        test inputs of a task have one order.

    Raises:
        InputError: If the data are not tensors, an input has a single entry, parts or seed is no such number, or the scenario does not fit.

    Example:
        >>> from retain import tasks
        >>> stream = tasks.permute(tasks.digits(), 3)
        >>> [task.id for task in stream], list(stream[2].data.inputs.shape)
        (['digits-p1', 'digits-p2', 'digits-p3'], [1437, 1, 8, 8])
    """
    check_count("parts", parts)
    check_count("seed", seed, least=0)
    _check(task, "inputs of at least two entries to permute", lambda x: x.ndim > 1 and x[0].numel() > 1)

    pieces = [replace(task, id=f"{task.id}-p1")] if not first else []
    for i in range(len(pieces), parts):
        order = torch.randperm(math.prod(task.data.shape), generator=generator(seed, "permutation", i))
        made: dict[str, Any] = {part: data and stored(data).permuted(order) for part in _PARTS for data in [getattr(task, part)]}
        pieces.append(replace(task, **made, id=f"{task.id}-p{i + 1}"))
    return _streamed(pieces, scenario)
