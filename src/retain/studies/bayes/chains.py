"""Streams of many tasks: rotated digits, permuted pixels, pairs of digits."""

from __future__ import annotations

from typing import Any

from retain.methods import CoresetVCL, Method, Plain
from retain.studies.base import Keeper
from retain.studies.bayes.common import ewc, exact, net, options, record, settings, ten_digits, vcl
from retain.studies.bayes.spec import BayesSpec
from retain.tasks import Stream, permute, rotate, split
from retain.training import learn

CHAINS = ("rotation", "permuted", "split")


def stages(spec: BayesSpec) -> list[str]:
    """Every method on every stream."""
    return [f"{name}@{part}" for part in CHAINS if part in spec.parts for name in spec.chained]


def samples(spec: BayesSpec) -> float:
    """Training images that all stages see, in multiples of the ten digits."""
    tasks = {"rotation": len(spec.angles), "permuted": spec.permutations, "split": 1}
    return len(spec.chained) * spec.chain_epochs * sum(tasks[part] for part in CHAINS if part in spec.parts)


def run(spec: BayesSpec, part: str, seed: int, keeper: Keeper) -> list[dict[str, Any]]:
    """Learn the stream with every method."""
    tasks, found = _stream(spec, part, seed), []
    for name in spec.chained:
        recorder = keeper.recorder(f"{name}@{part}")
        model = net(spec.chain_hidden, 10, seed)
        shared: dict[str, Any] = {"epochs": spec.chain_epochs, "seed": seed, "recorder": recorder, "score_every": spec.score_every}
        plain = name in ("ewc", "plain")
        result = learn(model, tasks, _method(spec, name, seed), consolidate_last=False, **shared, **options(spec, plain=plain))
        found.append({"method": name, "tasks": result.tasks, **record(result)})
    return found


def _stream(spec: BayesSpec, part: str, seed: int) -> Stream:
    task = ten_digits(spec, seed)
    if part == "rotation":
        return rotate(task, spec.angles)
    return permute(task, spec.permutations, seed) if part == "permuted" else split(task, 5, scenario="task")


def _method(spec: BayesSpec, name: str, seed: int) -> Method:
    if name == "coreset":
        return CoresetVCL(spec.coreset, epochs=spec.coreset_epochs, lr=spec.coreset_lr, seed=seed, **settings(spec))
    makers: dict[str, Any] = {"vcl": vcl, "exact": exact, "ewc": ewc, "plain": lambda spec: Plain()}
    made: Method = makers[name](spec)
    return made
