"""What studies share in running: how long a step takes, and work that is done once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import nn

from retain.seeds import generator
from retain.tasks import Task
from retain.training.optimizers import make_optimizer
from retain.training.recorder import Recorder


def measured_step(model: nn.Module, task: Task, batch_size: int, optimizer: str, lr: float) -> tuple[float, str]:
    """Seconds of a training step, the mean of twenty, and a description of the batch.

    Args:
        model: Trained a few steps.
        task: Whose data it is trained on.
        batch_size: Samples a step.
        optimizer: By name.
        lr: Learning rate.

    Returns:
        Seconds and a text.
    """
    steps = make_optimizer(optimizer, model.parameters(), lr)
    batch = next(task.batches(batch_size, generator(0, "order")))
    for repetition in range(25):
        if repetition == 5:
            start = time.perf_counter()
        steps.zero_grad()
        task.likelihood.mean_nll(model(batch.inputs), batch.targets).backward()
        steps.step()
    second = (time.perf_counter() - start) / 20
    return second, f"inputs {list(batch.inputs.shape)}, outputs {list(model(batch.inputs).shape)}, {1000 * second:.1f} ms a step"


def once(recorder: Recorder, make: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """A stage's result as it was stored, or made now and stored.

    Args:
        recorder: Of the stage.
        make: Does the work; gets the arguments and the recorder.
        *arguments: For it.

    Returns:
        Plain values.
    """
    stored = recorder.load()
    if stored is not None and stored["done"]:
        entry: dict[str, Any] = stored["entry"]
        return entry
    made = make(*arguments, recorder)
    recorder.save(lambda: {"entry": made, "done": True}, final=True)
    return made
