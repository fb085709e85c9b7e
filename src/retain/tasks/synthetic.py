"""Tasks made from a formula: halfspaces, random networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import InputError, check_count, check_share
from retain.seeds import generator
from retain.tasks.data import TensorData
from retain.tasks.task import Task


def _labelled(id: str, draw: Callable[[int], Tensor], label: Callable[[Tensor], Tensor], classes: int, sizes: dict[str, int]) -> Task:
    """A task of inputs as drawn, part after part, each with its label."""
    check_count("n", sizes["data"])
    parts: dict[str, Any] = {}
    for part, size in sizes.items():
        if check_count(part, size, least=0):
            inputs = draw(size)
            parts[part] = TensorData(inputs, label(inputs))
    return Task(parts.pop("data"), **parts, classes=tuple(range(classes)), id=id)


def halfspace(dim: int = 16, n: int = 1500, *, test: int = 500, validation: int = 500, noise: float = 0.0, seed: int = 0) -> Task:
    r"""Which side of a random hyperplane a point is on: :math:`y = [v^\top x > 0]`, with :math:`v` and :math:`x` uniform in :math:`[-1, 1]^d`.

    Args:
        dim: d.
        n: Training points.
        test: Test points.
        validation: Points held out.
        noise: Probability with which a label is turned over, in every part.
        seed: Of hyperplane and points.

    Returns:
        The task; inputs ``[N, d]`` in single precision.

    Raises:
        InputError: If a size is out of range.

    Example:
        >>> from retain import tasks
        >>> tasks.halfspace(16, seed=3)
        Task('halfspace-16', n=1500, classes=2, likelihood=Categorical())
    """
    check_share("noise", noise)
    draws = generator(seed, "halfspace", check_count("dim", dim))
    normal = 2 * torch.rand(dim, generator=draws) - 1

    def label(inputs: Tensor) -> Tensor:
        turned = torch.rand(len(inputs), generator=draws) < noise
        return (inputs @ normal > 0).logical_xor(turned).long()

    sizes = {"data": n, "test": test, "validation": validation}
    return _labelled(f"halfspace-{dim}", lambda size: 2 * torch.rand(size, dim, generator=draws) - 1, label, 2, sizes)


def teacher(model: nn.Module, dim: int, n: int = 1500, *, test: int = 500, validation: int = 500, id: str = "teacher", seed: int = 0) -> Task:
    """What a network answers to random points, uniform in :math:`[-1, 1]^d`: its largest output is the label.

    Args:
        model: Any module from ``[B, d]`` to ``[B, classes]``; called in evaluation mode, without gradients.
        dim: d.
        n: Training points.
        test: Test points.
        validation: Points held out.
        id: The task's name.
        seed: Of the points.

    Returns:
        The task.

    Raises:
        InputError: If a size is out of range, or the outputs are no rows of finite numbers.

    Example:
        >>> from retain import models, tasks
        >>> tasks.teacher(models.MLP(16, 50, 3, seed=0), 16, id="mlp")
        Task('mlp', n=1500, classes=3, likelihood=Categorical())
    """
    draws = generator(seed, "teacher", check_count("dim", dim))
    modes = [(module, module.training) for module in model.modules()]
    classes = 0

    def label(inputs: Tensor) -> Tensor:
        nonlocal classes
        with torch.no_grad():
            outputs = model(inputs)
        if outputs.ndim != 2 or len(outputs) != len(inputs) or not outputs.isfinite().all():
            raise InputError("model", "rows of finite outputs, one a point", f"shape {list(outputs.shape)}")
        classes = outputs.shape[1]
        return torch.as_tensor(outputs.argmax(1))

    model.eval()
    try:
        made = _labelled(id, lambda size: 2 * torch.rand(size, dim, generator=draws) - 1, label, 2, {"data": n, "test": test, "validation": validation})
    finally:
        for module, training in modes:
            module.training = training
    object.__setattr__(made, "classes", tuple(range(classes)))
    return made


def relu_network(dim: int = 16, n: int = 1500, *, classes: int = 2, hidden: int = 1000, test: int = 500, validation: int = 500, seed: int = 0) -> Task:
    r"""The largest output of a random network: :math:`y = \arg\max \mathrm{ReLU}(x^\top W_1) W_2`, all uniform in [-1, 1].

    Its outputs lie close together, so classes are uneven: the likelihood of a guess is in the labels.

    Args:
        dim: Values an input has.
        n: Training points.
        classes: Outputs.
        hidden: Units between.
        test: Test points.
        validation: Points held out.
        seed: Of network and points.

    Returns:
        The task.

    Raises:
        InputError: If a size is out of range.

    Example:
        >>> from retain import tasks
        >>> tasks.relu_network(16, classes=4).id
        'relu-16'
    """
    check_count("classes", classes, least=2)
    draws = generator(seed, "relu", check_count("dim", dim))
    first, second = (2 * torch.rand(*shape, generator=draws) - 1 for shape in ((dim, check_count("hidden", hidden)), (hidden, classes)))
    sizes = {"data": n, "test": test, "validation": validation}
    return _labelled(
        f"relu-{dim}", lambda size: 2 * torch.rand(size, dim, generator=draws) - 1, lambda x: ((x @ first).relu() @ second).argmax(1), classes, sizes
    )
