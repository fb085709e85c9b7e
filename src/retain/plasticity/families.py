"""Families of made-up tasks to learn rules on: many different ones, none of them a real data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from retain.errors import InputError, check_count, check_positive, check_share, nearest
from retain.models import MLP
from retain.seeds import derive, generator
from retain.tasks import Task, TensorData, halfspace, relu_network, teacher

Kind = Literal["images", "halfspace", "relu", "teacher"]


def smooth(count: int, side: int, grain: int, draws: torch.Generator) -> Tensor:
    """Smooth random fields ``[count, side, side]`` of mean 0 and variance 1: noise on a grid of ``grain`` points a side, interpolated."""
    coarse = torch.randn(count, 1, grain, grain, generator=draws)
    fields = interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)[:, 0]
    return (fields - fields.mean((1, 2), keepdim=True)) / fields.std((1, 2), keepdim=True)


def image_like(
    side: int = 20,
    n: int = 1500,
    *,
    classes: int = 10,
    styles: int = 2,
    ink: float = 0.25,
    alike: float = 0.2,
    bend: float = 0.7,
    noise: float = 0.1,
    test: int = 0,
    validation: int = 500,
    seed: int = 0,
) -> Task:
    r"""Pictures of made-up things: a smooth random shape for each class and style, bent, shifted, turned, of changing strength, and with noise.

    Inputs are not negative, most are zero, and neighbours are alike, as in pictures of digits or clothes; no real picture or label is in them.

    Args:
        side: Pixels a side.
        n: Training pictures.
        classes: Classes.
        styles: Shapes a class may have.
        ink: Share of a shape's pixels that are not zero.
        alike: Share of a shape's variance that all classes have in common.
        bend: Standard deviation of the displacement of a pixel, in pixels, smooth over the picture; whole pictures are moved by as much again.
        noise: Standard deviation of the noise on pixels that are not zero.
        test: Test pictures.
        validation: Pictures held out.
        seed: Of shapes and pictures.

    Returns:
        The task; inputs ``[N, side * side]`` in [0, 1], single precision.

    Raises:
        InputError: If a size is out of range.

    Example:
        >>> from retain.plasticity import image_like
        >>> task = image_like(16, 100, classes=5, seed=1)
        >>> task, bool((task.data.inputs == 0).double().mean() > 0.5)
        (Task('images-16x16', n=100, classes=5, likelihood=Categorical()), True)
    """
    for name, value, least in (
        ("side", side, 6),
        ("n", n, 1),
        ("classes", classes, 2),
        ("styles", styles, 1),
        ("test", test, 0),
        ("validation", validation, 0),
    ):
        check_count(name, value, least=least)
    check_share("alike", alike)
    check_positive("bend", bend, zero=True)
    check_positive("noise", noise, zero=True)
    if not 0 < ink < 1:
        raise InputError("ink", "a share between 0 and 1", ink)
    draws = generator(seed, "images", side)
    common = smooth(1, side, 5, draws)
    fields = alike**0.5 * common + (1 - alike) ** 0.5 * smooth(classes * styles, side, 6, draws)
    middle = torch.linspace(-1.4, 1.4, side).square()
    fields = fields - (middle[:, None] + middle[None, :])  # margins stay empty
    level = fields.flatten(1).quantile(1 - ink, dim=1)[:, None, None]
    shapes = (fields - level).clamp(min=0)
    shapes = (2 * shapes / shapes.amax((1, 2), keepdim=True)).clamp(max=1)

    def draw(size: int) -> TensorData:
        labels = torch.randint(classes, (size,), generator=draws)
        shape = shapes.view(classes, styles, side, side)[labels, torch.randint(styles, (size,), generator=draws)]
        turn = torch.eye(2).repeat(size, 1, 1) + 0.1 * torch.randn(size, 2, 2, generator=draws)
        shift = 2 * bend / side * torch.randn(size, 2, 1, generator=draws)
        where = affine_grid(torch.cat([turn, shift], 2), [size, 1, side, side], align_corners=False)
        where = where + 2 * bend / side * torch.stack([smooth(size, side, 4, draws), smooth(size, side, 4, draws)], 3)
        seen = grid_sample(shape[:, None], where, align_corners=False)[:, 0] * (0.6 + 0.4 * torch.rand(size, 1, 1, generator=draws))
        seen = torch.where(seen > 0.02, seen + noise * torch.randn(seen.shape, generator=draws), torch.zeros(())).clamp(0, 1)
        return TensorData(seen.flatten(1), labels)

    sizes = {"data": n, "test": test, "validation": validation}
    parts = {name: TensorData(*map(torch.cat, zip(*((p.inputs, p.targets) for p in (draw(min(1000, size - i)) for i in range(0, size, 1000))), strict=True)))
             for name, size in sizes.items() if size}  # fmt: skip
    return Task(parts.pop("data"), test=parts.get("test"), validation=parts.get("validation"), classes=tuple(range(classes)), id=f"images-{side}x{side}")


def draw_tasks(count: int, *, kinds: Sequence[Kind] = get_args(Kind), n: int = 1500, validation: int = 500, seed: int = 0) -> list[Task]:
    """Draw tasks whose kind, size, number of classes and difficulty differ.

    Kinds take turns. Pictures (:func:`image_like`) have 196 to 784 pixels and 5 to 10 classes; halfspaces 10 to 60 inputs and up to a tenth of their labels
    wrong; random ReLU networks 10 to 60 inputs and 5 to 10 classes; teachers (an MLP as it is initialised) the same.

    Args:
        count: Tasks.
        kinds: Any of ``images``, ``halfspace``, ``relu`` and ``teacher``, also several times.
        n: Training samples of each.
        validation: Samples of each held out, on which a rule's success is measured.
        seed: Of everything; tasks of different seeds are different.

    Returns:
        The tasks; the names end in the seed and the number.

    Raises:
        InputError: If a kind is not known.

    Example:
        >>> from retain.plasticity import draw_tasks
        >>> [task.id for task in draw_tasks(3, kinds=("images", "relu"), n=20, validation=10, seed=0)]
        ['images-17x17-0.0', 'relu-38-0.1', 'images-14x14-0.2']
    """
    check_count("count", count)
    if not kinds:
        raise InputError("kinds", f"some of {', '.join(get_args(Kind))}", "none")
    for kind in kinds:
        if kind not in get_args(Kind):
            raise InputError("kinds", f"some of {', '.join(get_args(Kind))}", repr(kind), nearest(str(kind), get_args(Kind)))
    drawn = [_drawn(kinds[i % len(kinds)], n, validation, derive(seed, "family", i)) for i in range(count)]
    return [replace(task, id=f"{task.id}-{seed}.{i}") for i, task in enumerate(drawn)]


def _drawn(kind: str, n: int, validation: int, seed: int) -> Task:
    draws = generator(seed, "sizes")

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draws))

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draws))

    if kind == "images":
        looks = {"styles": whole(1, 4), "ink": between(0.15, 0.5), "alike": between(0.0, 0.4), "bend": between(0.3, 1.0)}
        return image_like(whole(14, 28), n, classes=whole(5, 10), **looks, validation=validation, seed=seed)  # type: ignore[arg-type]
    dim = whole(10, 60)
    if kind == "halfspace":
        return halfspace(dim, n, noise=between(0, 0.1), test=0, validation=validation, seed=seed)
    classes = whole(5, 10)
    if kind == "relu":
        return relu_network(dim, n, classes=classes, test=0, validation=validation, seed=seed)
    return teacher(MLP(dim, 100, classes, seed=seed), dim, n, test=0, validation=validation, id=f"teacher-{dim}", seed=seed)
