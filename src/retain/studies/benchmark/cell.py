"""One method on one stream: what is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from retain import metrics
from retain.methods import Method
from retain.models.parameters import evaluating
from retain.seeds import seeded
from retain.studies.base import Keeper
from retain.studies.benchmark.arms import make, network, stream_of, strength
from retain.studies.benchmark.spec import BenchmarkSpec
from retain.tasks import Stream, Task, joint
from retain.training import evaluate, learn, measure
from retain.training.recorder import Recorder


class Clock:
    """A recorder that also counts CPU seconds, through breaks.

    Args:
        inner: Where events and checkpoints go.
    """

    def __init__(self, inner: Recorder) -> None:
        self.inner, self.before, self.start = inner, 0.0, time.process_time()

    @property
    def seconds(self) -> float:
        """CPU seconds so far."""
        return self.before + time.process_time() - self.start

    def event(self, kind: str, **fields: Any) -> None:
        """Pass it on."""
        self.inner.event(kind, **fields)

    def save(self, state: Callable[[], Mapping[str, Any]], *, final: bool = False) -> None:
        """With the time."""
        self.inner.save(lambda: {**state(), "seconds": self.seconds}, final=final)

    def load(self) -> dict[str, Any] | None:
        """Take the time up again."""
        state = self.inner.load()
        if state is not None:
            self.before = state["seconds"]
        return state


def run(spec: BenchmarkSpec, method: str, scenario: str, seed: int, keeper: Keeper) -> dict[str, Any]:
    """Learn the stream, and measure.

    Args:
        spec: The settings.
        method: Its name.
        scenario: The stream's.
        seed: Of the run.
        keeper: Where the run is kept.

    Returns:
        Plain values.
    """
    stream = stream_of(spec, scenario, seed)
    one = method == "joint"
    chosen, clock = make(spec, method, scenario, seed), Clock(keeper.recorder(stage(method, scenario)))
    taught = joint(stream) if one else stream
    steps = spec.train_steps * (len(stream) if one else 1)
    result = learn(
        network(spec, stream, seed),
        taught,
        chosen,
        steps=steps,
        batch_size=spec.batch_size,
        optimizer=spec.optimizer,
        lr=spec.lr,
        schedule=spec.schedule,
        carry_optimizer=spec.carry_optimizer,
        seed=seed,
        device=spec.device,
        watch=stream,
        score_every=0 if spec.trial else _score_every(spec, steps, taught.tasks[0]),
        consolidate_last=False,
        recorder=clock,
    )
    model = result.model
    assert model is not None
    what = {"method": method, "scenario": scenario, "setting": repr(chosen), "strength": strength(spec, method, scenario)}
    if spec.trial:
        return {**what, "validation_rows": measure(model, stream, len(stream), chosen).validation_rows[-1:], "seconds": clock.seconds}
    return {
        **what,
        "rows": result.rows,
        "nll_rows": result.nll_rows,
        "validation_rows": result.validation_rows,
        "ece": [_ece(model, stream.at(j, len(stream) - 1), chosen) for j in range(len(stream))],
        "curve": [] if one else result.curve,
        "open": _open(model, stream) if one else None,
        "seconds": clock.seconds,
        "carried": _bytes(chosen.state_dict()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def stage(method: str, scenario: str) -> str:
    """The name of a cell in events and checkpoints."""
    return f"{method}@{scenario}"


def _score_every(spec: BenchmarkSpec, steps: int, task: Task) -> int:
    if not spec.points:
        return 1
    passes = math.ceil(steps / (task.data.steps(spec.batch_size) or 1))
    return max(1, math.ceil(passes / spec.points))


def _open(model: nn.Module, stream: Stream) -> list[float]:
    """What joint training answers of each task with the outputs that are open when a learner has just met it: the reference of intransigence."""
    return [evaluate(model, stream.at(j, j)).score for j in range(len(stream))]


def _ece(model: nn.Module, task: Task, method: Method) -> float:
    probabilities: list[Tensor] = []
    targets: list[Tensor] = []
    place = next(model.parameters()).device
    with torch.no_grad(), evaluating(model), seeded(0, "evaluation"):  # some methods draw their answers
        for batch in task.to(place).batches(1000, part="test"):
            probabilities.append(method.predict(model, batch).float().softmax(-1).cpu())
            targets.append(batch.targets.cpu())
    return float(metrics.expected_calibration_error(torch.cat(probabilities), torch.cat(targets)))


def _bytes(state: Any) -> int:
    """Memory of all tensors of a state."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(state) if isinstance(leaf, Tensor))
