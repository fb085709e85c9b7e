"""The head of a classifier: the last linear layer, whose outputs are the classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor, nn

from retain.errors import InputError, check_count, nearest
from retain.models.parameters import evaluating, unwrap
from retain.seeds import seeded
from retain.tasks.data import TensorData
from retain.tasks.task import Task

_NAMES = ("fc", "classifier", "head", "heads")
"""What torchvision and timm call their heads."""


def find_head(model: nn.Module, name: str | None = None, *, example: Any = None) -> tuple[str, nn.Linear]:
    """The last classification layer of a model, and its name.

    In this order: the layer of the given name; what timm's ``get_classifier`` answers; with an example, the linear layer whose output
    is the model's; without one, the last linear layer registered, unless another one has a head's name (``fc``, ``classifier``,
    ``head``, ``heads``): that is refused, as either may be meant.

    Args:
        model: Any module, wrapped or not.
        name: The head's name in ``model.named_modules()``, where it cannot be found.
        example: Inputs, for one forward pass in evaluation mode.

    Returns:
        Name and layer; the name is empty where the model is a linear layer itself.

    Raises:
        InputError: If there is no such layer; says how to name one.

    Example:
        >>> from retain import models
        >>> models.find_head(models.MLP(4, 8, 3, seed=0))
        ('layers.fc2', Linear(in_features=8, out_features=3, bias=True))
    """
    model = unwrap(model)
    linear = {key: module for key, module in model.named_modules(remove_duplicate=False) if isinstance(module, nn.Linear)}
    if name is not None:
        if name in linear:
            return name, linear[name]
        known = dict(model.named_modules())
        found = f"'{name}', a {type(known[name]).__name__}" if name in known else f"no layer '{name}'"
        raise InputError("head", "the name of a linear layer of the model", found, nearest(name, linear) if linear else "The model has none.")
    if callable(answer := getattr(model, "get_classifier", None)):
        named = next((key for key, module in linear.items() if module is answer()), None)
        if named is not None:
            return named, linear[named]
        if example is None:  # any other linear layer would be one inside
            found = f"{type(answer()).__name__} from {type(model).__name__}.get_classifier()"
            raise InputError("head", "one linear layer", found, "Name it: head='layer.name', or make the model with classes.")
    if linear and example is not None:
        if last := _answering(model, linear, example):
            return last, linear[last]
    elif linear:
        last = list(linear)[-1]
        inside = [key for start in _NAMES for key in linear if key == start or key.startswith(f"{start}.")]
        if not inside or last in inside:
            return last, linear[last]
        hint = "Name the right one: head='layer.name', or pass find_head(..., example=inputs)."
        raise InputError("head", "one layer that may be the last", f"'{inside[-1]}' by its name and '{last}' by its place", hint)
    which = f"one of {', '.join(repr(key) for key in list(linear)[-5:])}" if linear else "after giving the model a last nn.Linear"
    found = "none whose output is the model's output" if linear else f"no linear layer in {type(model).__name__}"
    raise InputError("head", "a last linear layer", found, f"Name it: head='layer.name', {which}.")


def _answering(model: nn.Module, linear: dict[str, nn.Linear], example: Any) -> str | None:
    """The linear layer whose last output in a forward pass is the model's, or ``None``."""
    outputs: dict[str, Tensor] = {}
    hooks = [layer.register_forward_hook(lambda _layer, _inputs, out, key=key: outputs.update({key: out})) for key, layer in linear.items()]
    try:
        with torch.no_grad(), evaluating(model):
            answer = model(**example) if isinstance(example, dict) else model(*example) if isinstance(example, tuple | list) else model(example)
    finally:
        for hook in hooks:
            hook.remove()
    answer = getattr(answer, "logits", answer)
    if not isinstance(answer, Tensor):
        return None
    return next((key for key, out in reversed(outputs.items()) if out.shape == answer.shape and torch.equal(out, answer)), None)


def replace_head(model: nn.Module, classes: int, *, name: str | None = None, seed: int = 0, zero: bool = False) -> nn.Module:
    """Give a model a new head for other classes; everything else stays as it is.

    Args:
        model: Any module; changed in place.
        classes: Outputs of the new head.
        name: The head's name, where :func:`find_head` cannot find it.
        seed: Of the new head's weights.
        zero: Whether weights and bias start at zero, so that all classes are equally likely and features get no gradient at the first step.

    Returns:
        The model; the new layer where the model is a linear layer itself.

    Raises:
        InputError: If there is no head or no such number of classes.

    Example:
        >>> from retain import models
        >>> model = models.replace_head(models.ResNet(8, 4, seed=0), 5, zero=True)
        >>> models.find_head(model)
        ('layers.head', Linear(in_features=16, out_features=5, bias=True))
    """
    check_count("classes", classes)
    inner = unwrap(model)
    found, old = find_head(inner, name)
    with seeded(seed, "head"):
        new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    if zero:
        for parameter in new.parameters():
            nn.init.zeros_(parameter)
    new = new.to(old.weight.device, old.weight.dtype).train(old.training)
    if not found:
        return new
    parent, _, last = found.rpartition(".")
    setattr(inner.get_submodule(parent), last, new)
    if isinstance(getattr(inner, "num_classes", None), int):  # timm's models and some of torchvision's keep count
        inner.num_classes = classes  # type: ignore[assignment]
    return model


@contextmanager
def _catching(layer: nn.Module) -> Iterator[list[Tensor]]:
    caught: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _layer, inputs: caught.append(inputs[0].detach()))
    try:
        yield caught
    finally:
        hook.remove()


@overload
def features(
    model: nn.Module, data: Tensor, *, name: str | None = None, batch_size: int = 32, progress: Callable[[int, int], None] | None = None
) -> Tensor: ...
@overload
def features(model: nn.Module, data: Task, *, name: str | None = None, batch_size: int = 32, progress: Callable[[int, int], None] | None = None) -> Task: ...
def features(
    model: nn.Module, data: Tensor | Task, *, name: str | None = None, batch_size: int = 32, progress: Callable[[int, int], None] | None = None
) -> Tensor | Task:
    """What a model's head is given: computed once, a linear probe trains on it without the rest of the model.

    Args:
        model: Any module with a head; run in evaluation mode, without gradients, and left as it was.
        data: Inputs ``[N, ...]``, or a task, all of whose parts are turned into features.
        name: The head's name, where :func:`find_head` cannot find it.
        batch_size: Inputs a pass.
        progress: Called after each batch with how many inputs are done and how many there are in this part.

    Returns:
        A tensor ``[N, d]`` on the inputs' device; or the same task with such inputs.

    Raises:
        InputError: If the head is not found, is not used exactly once, or is given something else than ``[B, d]``.

    Example:
        >>> from retain import models, tasks
        >>> model = models.ResNet(8, 4, seed=0)
        >>> models.features(model, tasks.digits())
        Task('digits-features', n=1437, classes=10, likelihood=Categorical())
    """
    check_count("batch_size", batch_size)
    model = unwrap(model)
    found, layer = find_head(model, name)
    if isinstance(data, Tensor):
        device = data.device
        return torch.cat([rows.to(device) for rows in _passed(model, layer, found, data.split(batch_size), len(data), progress)])
    if not isinstance(data, Task):
        raise InputError("data", "a tensor or a task", type(data).__name__)
    parts: dict[str, Any] = {}
    for part in ("data", "validation", "test"):
        if getattr(data, part) is None:
            continue
        pairs = data.get(part).batches(batch_size)
        targets: list[Tensor] = []

        def inputs(pairs: Any = pairs, targets: list[Tensor] = targets) -> Iterator[Any]:
            for batch, labels in pairs:
                targets.append(labels)
                yield batch

        rows = torch.cat(list(_passed(model, layer, found, inputs(), data.get(part).size or 0, progress)))
        parts[part] = TensorData(rows, torch.cat(targets).to(rows.device))
    return replace(data, **parts, id=f"{data.id}-features", n=0)


def _passed(model: nn.Module, layer: nn.Linear, name: str, batches: Any, total: int, progress: Callable[[int, int], None] | None) -> Iterator[Tensor]:
    place, done = layer.weight, 0
    # a context inside a generator stays open while it waits, so each batch has its own
    for batch in batches:
        with torch.no_grad(), evaluating(model), _catching(layer) as caught:
            parts = batch if isinstance(batch, tuple | list | dict) else (batch,)
            moved = {key: _to(part, place) for key, part in parts.items()} if isinstance(parts, dict) else [_to(part, place) for part in parts]
            model(**moved) if isinstance(moved, dict) else model(*moved)
        if len(caught) != 1 or caught[0].ndim != 2:
            what = f"inputs of shape {list(caught[0].shape)}" if len(caught) == 1 else f"used {len(caught)} times"
            raise InputError(f"head '{name}'", "a layer that is given features [B, d] once in a forward pass", what, "Name another: name='layer.name'.")
        done += len(caught[0])
        if progress is not None:
            progress(done, total)
        yield caught[0]


def _to(part: Any, place: Tensor) -> Any:
    return part.to(place.device, place.dtype if part.is_floating_point() else None) if isinstance(part, Tensor) else part
