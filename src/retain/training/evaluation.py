"""How well a model answers a task."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from retain.errors import check_count
from retain.methods.base import Method
from retain.models.parameters import evaluating
from retain.seeds import seeded
from retain.tasks.batch import apply
from retain.tasks.task import Task, as_task

_VALUES = 1_000_000  # of the inputs of a pass: activations of a convolutional network are many times as large, and slow beyond the cache


class Evaluation(NamedTuple):
    """Score (accuracy, or R2 for regression) and mean negative log likelihood in nats per observation."""

    score: float
    nll: float


def evaluate(model: nn.Module, task: Task, method: Method | None = None, *, part: str = "test", batch_size: int | None = None) -> Evaluation:
    """Score a model on one part of a task.

    The model is in evaluation mode meanwhile and put back after.

    Args:
        model: Any module.
        task: The task, with the outputs that compete for it.
        method: The method that answers, if it answers differently from the forward pass.
        part: ``test``, ``validation`` or ``data`` (the training data).
        batch_size: Samples per pass; by default 1,000, and fewer of inputs larger than 1,000 values, such as photographs: 20 of 128 pixels a side.

    Returns:
        Score and mean negative log likelihood.

    Raises:
        InputError: If the task has no such part, or the outputs do not fit its targets.

    Example:
        >>> from retain import models, tasks
        >>> from retain.training import evaluate
        >>> evaluate(models.MLP(64, 10, seed=0), tasks.digits()).score < 0.3
        True
    """
    if batch_size is not None:
        check_count("batch_size", batch_size)
    anyone = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    likelihood, task = task.likelihood, as_task(task).to(anyone.device, anyone.dtype)
    tally = nll = units = None
    # no_grad, not inference mode: a module may keep a tensor of its first pass and need it in training
    with evaluating(model), torch.no_grad(), seeded(0, "evaluation"):
        for batch in task.batches(batch_size or _fitting(task), part=part):
            outputs = apply(model, batch) if method is None else method.predict(model, batch)
            task.check(outputs, batch.targets, part, first=tally is None)
            counted = likelihood.tally(outputs, batch.targets)
            loss = likelihood.nll(outputs, batch.targets).double().sum()
            observations = likelihood.units(batch.targets).double().sum()
            tally = counted if tally is None else tally + counted
            nll = loss if nll is None else nll + loss
            units = observations if units is None else units + observations
    assert tally is not None and nll is not None and units is not None  # data yield at least one batch, or have raised
    return Evaluation(likelihood.score(tally), float(nll / units))


def _fitting(task: Task) -> int:
    shape = task.data.shape
    return 1000 if shape is None else max(1, min(1000, _VALUES // max(1, math.prod(shape))))
