"""A person's bias along a path on which the data change: does early information matter late?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from retain.paths import Drift, Retention, spike, traverse
from retain.seeds import derive
from retain.studies.base import Keeper
from retain.studies.steps import once
from retain.tasks import Task
from retain.training import evaluate
from retain.training.recorder import Recorder

STEPS, ITERATIONS = 60, 10
CASES: dict[str, tuple[str, Callable[[], Retention]]] = {
    "law": ("the law's share", lambda: Retention(lr=0.05)),
    "spike": ("the law's share and a spike", lambda: Retention(lr=0.05, bias=spike(at=0.7, height=0.9, width=0.3))),
    "none": ("nothing kept", lambda: Retention("none", lr=0.05)),
    "replay": ("the law's share, replay of 10,000", lambda: Retention(lr=0.05, replay=10000)),
}


def spikes(dense: nn.Module, sparse: Callable[[], nn.Module], first: Task, second: Task, seed: int, keeper: Keeper) -> list[dict[str, Any]]:
    """Take the path while MNIST becomes Fashion-MNIST, with and without the bias.

    Args:
        dense: Has learned the first task.
        sparse: Makes the target.
        first: The task at the start.
        second: The task at the end.
        seed: Of the run.
        keeper: Where it is kept.

    Returns:
        For every case, accuracy on both tasks at the end, and the shares on the way.
    """

    def take(case: str, make: Callable[[], Retention], recorder: Recorder) -> dict[str, Any]:
        target = sparse()
        data = Drift(first, second, lambda t: min(1.0, 1.5 * t))
        drawn = derive(seed, "drift") % 2**31
        path = traverse(dense, target, data, make(), steps=STEPS, iterations=ITERATIONS, watch=first, certify=500, seed=drawn, recorder=recorder)
        return {
            "case": case,
            "first": evaluate(target, first).score,
            "second": evaluate(target, second.to(next(target.parameters()).device)).score,
            "q": path.column("q"),
            "share": [value or 0.0 for value in path.column("share")],
            "course": path.column("accuracy"),
        }

    return [once(keeper.recorder(f"{case}@drift"), take, case, make) for case, (_, make) in CASES.items()]
