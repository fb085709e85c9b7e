"""What every diagnosis asks of models and data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from retain.curvature.inputs import drawn_rows, up_to
from retain.errors import InputError, check_count
from retain.models.parameters import evaluating, named_parameters, unwrap
from retain.seeds import generator, seeded
from retain.tasks.batch import Batch, apply, first_samples
from retain.tasks.data import LoaderData, TensorData, all_finite
from retain.tasks.task import Task, as_task

FORWARD, BACKWARD, TWICE = 2_000_000_000, 1_000_000_000, 250_000_000
"""Bytes that the activations of a batch may take: in a forward pass, which frees them as it goes, in a gradient, in a gradient of a gradient."""


def weights(model: nn.Module, parameter: str = "model") -> dict[str, Tensor]:
    """All floating point parameters by canonical name, frozen ones too, checked to be finite. They are the model's own, not copies.

    Args:
        model: Any module, wrapped or not.
        parameter: What the person knows the model by.

    Returns:
        Detached tensors in the model's own order.

    Raises:
        InputError: If it is no module, has no such parameter, or one holds NaN or infinity.
    """
    if not isinstance(model, nn.Module):
        raise InputError(parameter, "an nn.Module", type(model).__name__)
    found = {name: p.detach() for name, p in named_parameters(model, trainable=False).items() if p.is_floating_point()}
    if not found:
        raise InputError(parameter, "a model with floating point parameters", f"none in {type(unwrap(model)).__name__}")
    for name, p in found.items():
        if not all_finite(p):
            raise InputError(parameter, "finite weights", f"NaN or infinity in '{name}'", "Take a checkpoint from before training diverged.")
    return found


def shared(first: dict[str, Tensor], second: dict[str, Tensor], parameter: str = "after") -> tuple[list[str], list[str]]:
    """Names of the parameters that two models share, and of those in heads of another size.

    A head of another size is a parameter of the same name and shape but for its first axis, the outputs. Any other difference is another
    architecture, since widths inside a network change the second axis of the layer that follows.

    Args:
        first: Parameters of the first model.
        second: Parameters of the second.
        parameter: What the person knows the second model by.

    Returns:
        Names with equal shapes, names left out.

    Raises:
        InputError: If the architectures differ; the first differing name is given.
    """
    names = list(first) + [name for name in second if name not in first]
    different = [name for name in names if name not in first or name not in second or first[name].shape != second[name].shape]
    if any(name not in first or name not in second or first[name].shape[1:] != second[name].shape[1:] or not first[name].ndim for name in different):
        name = different[0]
        here, there = (list(found[name].shape) if name in found else "no such parameter" for found in (first, second))
        raise InputError(parameter, f"the same architecture, with '{name}' of shape {here}", there, "Only the size of the head may differ.")
    kept = [name for name in first if name not in set(different)]
    if not kept:
        raise InputError(parameter, "at least one parameter of the same shape", f"others, the first is '{different[0]}'")
    return kept, different


def same(first: dict[str, Tensor], second: dict[str, Tensor], parameter: str) -> None:
    """Raise unless two models can be joined by a line: all names and shapes are the same."""
    _, left_out = shared(first, second, parameter)
    if left_out:
        name = left_out[0]
        raise InputError(parameter, f"'{name}' of shape {list(first[name].shape)}", list(second[name].shape), "There is no line between heads of other sizes.")


def part_of(task: Task) -> str:
    """The part a model is judged on: test, else validation, else the training data."""
    return "test" if task.test is not None else "validation" if task.validation is not None else "data"


def as_checked(task: Any) -> Task:
    """A task, or whatever makes one."""
    return as_task(task, n=0 if isinstance(task, Task) else 1)  # n is not used here


def held(model: nn.Module, task: Task, part: str, samples: int, seed: int, budget: int, *, check: bool = True) -> Task:
    """A task whose training data are a fixed choice of samples of one part, in batches that fit into memory.

    Args:
        model: The model, on whose device and in whose type the samples are.
        task: The task.
        part: ``data``, ``validation`` or ``test``.
        samples: How many, at most: drawn at random, of a loader the first ones.
        seed: Of the draw.
        budget: Bytes that a batch's activations may take.
        check: Whether outputs have to fit the targets.

    Returns:
        The task, which keeps likelihood and active classes, with a list of batches.

    Raises:
        InputError: If the part is missing, or outputs and targets do not fit.
    """
    check_count("samples", samples)
    anyone = next(p for p in model.parameters() if p.is_floating_point())
    task = task.to(anyone.device, anyone.dtype)
    data = task.get(part)
    if isinstance(data, TensorData):
        rows = drawn_rows(data, min(samples, data.size), seed)
        task, part = replace(task, data=data.take(rows)), "data"
    with seeded(seed, "samples"):
        first = first_samples(next(iter(task.batches(2, generator(seed, "samples"), part))), 2)
        size = max(1, min(samples, budget // max(1, _activations(model, first, check))))
        whole = isinstance(data, TensorData)  # already drawn: one batch of views
        found = list(up_to(task.batches(samples if whole else size, None if whole else generator(seed, "samples"), part), samples))
    pairs = [(piece.inputs, piece.targets) for batch in found for piece in _pieces(batch, size)]
    return replace(task, data=LoaderData(pairs), test=None, validation=None)


def _pieces(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch in parts of nearly equal size, since a loader's batches may be larger than fits, and a lone sample has no variance."""
    n = len(batch.targets)
    begin = 0
    for end in [round(n * (i + 1) / math.ceil(n / size)) for i in range(math.ceil(n / size))]:
        take = slice(begin, end)
        yield Batch(tree_map(lambda t, take=take: t[take] if isinstance(t, Tensor) else t, batch.inputs), batch.targets[take], batch.task)
        begin = end


def _activations(model: nn.Module, batch: Batch, check: bool) -> int:
    """Bytes that leave the layers for one sample."""
    total = 0

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() * output.element_size() if isinstance(output, Tensor) else 0

    handles = [module.register_forward_hook(hook) for module in model.modules() if not list(module.children())]
    try:
        with torch.no_grad(), evaluating(model):
            outputs = apply(model, batch)
        if check:
            batch.task.check(outputs, batch.targets, first=True)
    finally:
        for handle in handles:
            handle.remove()
    return total // len(batch.targets)
