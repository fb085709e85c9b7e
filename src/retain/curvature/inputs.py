"""What every measurement of curvature asks of a model, its data and a label rule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, get_args

import torch
from torch import Tensor, nn

from retain.curvature.outputs import LabelRule
from retain.errors import InputError, RetainError, nearest
from retain.likelihoods import Gaussian, Likelihood, Tokens
from retain.models.parameters import named_parameters
from retain.seeds import generator
from retain.tasks.batch import Batch, first_samples
from retain.tasks.data import TensorData
from retain.tasks.task import Task, as_task


def prepared(model: nn.Module, data: Any, likelihood: Likelihood | None) -> tuple[dict[str, nn.Parameter], Task]:
    """The trainable parameters by name, and the data as a task on their device and of their type.

    Args:
        model: Any module.
        data: A task or whatever makes one.
        likelihood: What the outputs mean, if ``data`` is not a task.

    Returns:
        Parameters and task.

    Raises:
        RetainError: If the model has no trainable parameter.
    """
    task = as_task(data, likelihood, n=1)  # n is not used here
    parameters = named_parameters(model)
    if not parameters:
        raise RetainError("model: expected trainable parameters, found none. Unfreeze a layer first.")
    anyone = next(iter(parameters.values()))
    return parameters, task.to(anyone.device, anyone.dtype)


def check_rule(labels: str) -> None:
    """Raise if there is no such label rule."""
    if labels not in get_args(LabelRule):
        raise InputError("labels", "a label rule", repr(labels), nearest(str(labels), get_args(LabelRule)))


def check_suits(labels: Any, likelihood: Likelihood, sequences: str) -> None:
    """Raise if a label rule does not suit the outputs; ``sequences`` are the rules that token sequences allow."""
    if labels in ("empirical", "predicted") and isinstance(likelihood, Tokens):
        hint = "The tokens of a sequence share its gradient; only for drawn labels do their cross terms vanish."
        raise InputError("labels", f"{sequences} for sequences", repr(labels), hint)
    if labels == "predicted" and isinstance(likelihood, Gaussian):
        hint = "At the predicted value every gradient is 0."
        raise InputError("labels", "'exact', 'sampled' or 'empirical' for a Gaussian likelihood", repr(labels), hint)


def drawn_rows(data: TensorData, samples: int, seed: int, *, replacement: bool = False) -> Tensor:
    """Rows of samples drawn at random, the same for every measurement with this seed."""
    if not replacement and samples > data.size:
        raise InputError("samples", f"at most the {data.size} samples of the data", samples, "Leave it out to use all.")
    draw = generator(seed, "samples")
    rows = torch.randint(data.size, (samples,), generator=draw) if replacement else torch.randperm(data.size, generator=draw)[:samples]
    return rows.to(data.device)


def up_to(batches: Iterable[Batch], samples: int | None) -> Iterator[Batch]:
    """The first ``samples`` of all batches; ``None`` is all."""
    left = samples
    for batch in batches:
        if left is None:
            yield batch
            continue
        keep = min(left, len(batch.targets))
        yield first_samples(batch, keep)
        left -= keep
        if not left:
            return
