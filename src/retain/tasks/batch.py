"""A batch, and the one way a model is applied to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from retain.errors import InputError

if TYPE_CHECKING:
    from retain.tasks.task import Task


@dataclass(slots=True)
class Batch:
    """Samples on their way through a model.

    Args:
        inputs: What the model takes: a tensor, a tuple or list (positional) or a dict (keywords).
        targets: What the likelihood compares the outputs with.
        task: The task that the samples belong to; its ``active`` outputs compete.
        weight: A factor for every sample, shape ``[B]``; ``None`` is 1.
        is_memory: Whether each sample is a replayed old one, shape ``[B]``, bool; ``None`` is all new.
    """

    inputs: Any
    targets: Tensor
    task: Task
    weight: Tensor | None = None
    is_memory: Tensor | None = None


def first_samples(batch: Batch, count: int) -> Batch:
    """The first ``count`` samples of a batch, or all if there are fewer."""
    return Batch(tree_map(lambda t: t[:count] if isinstance(t, Tensor) else t, batch.inputs), batch.targets[:count], batch.task)


def apply(model: nn.Module, batch: Batch) -> Tensor:
    """The model's outputs for a batch, masked to the outputs that compete for the batch's task.

    Training, curvature and evaluation all go through here, so all see the same outputs. Outputs that do not compete get the
    lowest finite value of their type: softmax gives them exactly 0 and no gradient flows into them.

    Args:
        model: Any module. Tensors are passed as they are, tuples and lists as positional and dicts as keyword arguments.
        batch: The samples.

    Returns:
        A tensor: the model's answer itself or its ``.logits``.

    Raises:
        InputError: If the model cannot take the inputs, or returns something else.
        OutOfMemoryError: As torch raises it.
    """
    inputs = batch.inputs
    try:
        if isinstance(inputs, Tensor):
            outputs = model(inputs)
        elif isinstance(inputs, dict):
            outputs = model(**inputs)
        else:
            outputs = model(*inputs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        found = [f"{part.dtype} {list(part.shape)}" for part in tree_leaves(inputs) if isinstance(part, Tensor)]
        raise InputError(
            f"inputs of task '{batch.task.id}'",
            f"what {type(model).__name__} takes",
            ", ".join(found) or type(inputs).__name__,
            f"It said: {str(error).splitlines()[0]}",
        ) from error
    if not isinstance(outputs, Tensor):
        outputs = outputs["logits"] if isinstance(outputs, dict) and "logits" in outputs else getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor):
        raise InputError(
            "model",
            "a tensor, or an object or dict with logits, as its output",
            type(outputs).__name__,
            "Wrap the model in a module whose forward returns the logits.",
        )
    return mask(outputs, batch.task.active)


def mask(outputs: Tensor, active: tuple[int, ...] | None) -> Tensor:
    """``outputs`` with all but the ``active`` entries of the last axis at the lowest finite value (``None``: unchanged)."""
    if active is None:
        return outputs
    if max(active) >= outputs.shape[-1]:
        raise InputError(
            "model",
            f"at least {max(active) + 1} outputs, since class {max(active)} is active",
            f"{outputs.shape[-1]} outputs",
            "Give the model a wider last layer.",
        )
    closed = torch.ones(outputs.shape[-1], dtype=torch.bool, device=outputs.device)
    closed[list(active)] = False
    return outputs.masked_fill(closed, torch.finfo(outputs.dtype).min)
