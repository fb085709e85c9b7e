"""What a traversal costs beside training its target: peak memory and CPU time of an update, one process, one thread.

    python bench/paths.py [--rounds N]

Training is Adam on the labels at the same batch, from the moment the optimiser has its state. Memory is the peak of what torch has allocated meanwhile,
weights and data included, from its own profiler. Times are medians over rounds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import retain
from retain import models, paths
from retain.tasks import Task


def held(*things: nn.Module | torch.Tensor) -> int:
    """Bytes that were there before."""
    tensors = [t for thing in things for t in (thing.parameters() if isinstance(thing, nn.Module) else [thing])]
    return sum(t.numel() * t.element_size() for t in tensors)


def peak(run: object, before: int) -> float:
    """Largest number of allocated bytes while it runs, in MiB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()  # type: ignore[operator]
    total = most = before
    for event in watched.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            total += event.nbytes()
            most = max(most, total)
    return most / 2**20


def training(model: nn.Module, task: Task, batch: int, updates: int) -> None:
    retain.learn(model, [Task((task.data.inputs[: batch * updates], task.data.targets[: batch * updates]), test=task.test)], batch_size=batch)


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--rounds", type=int, default=3)
    rounds = words.parse_args().rounds
    torch.set_num_threads(1)
    updates = 6
    draw = torch.Generator().manual_seed(0)
    cases = {
        "MLP 784-512-256-128-10": (models.MLP(784, 512, 256, 128, 10, seed=0), 512),
        "small CNN": (models.Conv(28, 10, seed=0), 128),
        "ResNet-8 of width 16": (models.ResNet(8, 16, seed=0), 64),
    }
    ways = {
        "distillation": lambda b: paths.Distillation(lr=0.01, batch_size=b),
        "optimal, Gauss-Newton": lambda b: paths.Optimal(batch_size=b),
        "optimal, KFAC": lambda b: paths.Optimal("kfac", batch_size=b),
        "retention": lambda b: paths.Retention(batch_size=b, samples=b, every=2),
    }
    for name, (model, batch) in cases.items():
        inputs = torch.rand(batch * updates, 1, 28, 28, generator=draw)
        labels = torch.randint(10, (batch * updates,), generator=draw)
        task = Task((inputs, labels), test=(inputs[:10], labels[:10]))
        before = held(model, inputs)
        fresh = copy.deepcopy(model)
        base = peak(lambda m=fresh, t=task, b=batch: training(m, t, b, updates), before)  # type: ignore[misc]
        times = []
        for _ in range(rounds):
            start = time.process_time()
            training(copy.deepcopy(model), task, batch, updates)
            times.append((time.process_time() - start) / updates)
        usual = statistics.median(times)
        print(f"{name}, batch {batch}: training {base:.1f} MiB, {1000 * usual:.1f} ms an update")
        for title, make in ways.items():
            target = copy.deepcopy(model)

            def run(target: nn.Module = target, source: nn.Module = model, t: Task = task, b: int = batch, make: object = make) -> object:
                return retain.traverse(source, target, t, make(b), steps=updates, certify=10)  # type: ignore[operator]

            used = peak(run, before + held(model))
            spent = [run().seconds / updates for _ in range(rounds)]  # type: ignore[attr-defined]
            both = f"{used / base:.2f} of it; with the source's weights taken off {(used - held(model) / 2**20) / base:.2f}"
            print(f"  {title:24} {used:8.1f} MiB, {both}; {statistics.median(spent) / usual:5.1f} times the time", flush=True)


if __name__ == "__main__":
    main()
