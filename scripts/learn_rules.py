"""Make the local rules that come with Retain, on made-up tasks only, and measure them on real pictures.

``python scripts/learn_rules.py`` evolves the rules again and writes them to ``src/retain/plasticity/learned`` (a few minutes on one core).
``python scripts/learn_rules.py --measure held`` compares them with their start on 5,000 training pictures of MNIST and Fashion-MNIST that are not learned
from; ``--measure test`` does so on the test sets, with nets of other seeds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import retain
from retain import tasks
from retain.models import FeedForwardAssembly
from retain.plasticity import LocalRule, draw_tasks, evolve, learned, save_rule
from retain.seeds import generator
from retain.training.recorder import Silent

FOLDER = Path(retain.__file__).parent / "plasticity" / "learned"
KINDS = ("images", "images", "relu", "images", "images", "teacher", "images", "halfspace")
FLAT: dict[str, Any] = {"p": 1.0, "dtype": torch.float32}
NETS = ({"width": 100, "cap": 50, **FLAT}, {"width": 200, "cap": 60, **FLAT})
RULES: dict[str, dict[str, Any]] = {
    "local-fixed": {"feedback": "none", "average": True},
    "local-random": {"feedback": "random"},
    "local-transport": {"feedback": "transport"},
}
SIZES = ((500, 250), (1000, 200))


class Progress(Silent):
    """Prints every generation."""

    def __init__(self) -> None:
        self.start = time.time()

    def event(self, kind: str, **fields: Any) -> None:
        """One line."""
        values = ", ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in fields.items())
        print(f"  {time.time() - self.start:4.0f} s  {values}", flush=True)


def make(name: str) -> None:
    """Evolve a rule and keep it."""
    own = draw_tasks(24, kinds=KINDS, n=8000, validation=1000, seed=1)
    choice = draw_tasks(8, kinds=KINDS, n=8000, validation=1000, seed=2)
    rule = LocalRule(**RULES[name])
    result = evolve(rule, own, choice=choice, generations=40, population=16, horizons=(300, 1000, 4000, 16000), nets=NETS, seed=0, recorder=Progress())
    print(result.table())
    print({key: float(f"{value:.3g}") for key, value in rule.coefficients().items()})
    save_rule(FOLDER / name, rule)


def split(task: tasks.Task, part: str) -> tasks.Task:
    """What is learned from and what is asked: 5,000 training pictures, or the test set."""
    if part == "test":
        return task
    order = torch.randperm(len(task.data.targets), generator=generator(0, "held"))
    asked, learned_from = task.data.take(order[:5000]), task.data.take(order[5000:])
    return tasks.Task((learned_from.inputs, learned_from.targets), test=(asked.inputs, asked.targets), id=task.id)


def measure(part: str, names: list[str], seeds: int) -> None:
    """One epoch of each data set by each rule and by its start, in nets of several seeds."""
    first = 100 if part == "test" else 0
    for source in (tasks.mnist, tasks.fashion_mnist):
        task = split(source(), part)
        for name in names:
            for said, rule in (("start", LocalRule(**RULES[name])), ("learned", learned(name))):
                for width, cap in SIZES:
                    results = [one(rule, task, width, cap, seed) for seed in range(first, first + seeds)]
                    scores = [100 * result.final() for result in results]
                    diverged = sum(result.diverged is not None for result in results)
                    rate = statistics.median(result.samples[-1] / result.seconds for result in results)
                    spread = statistics.stdev(scores) if seeds > 1 else 0.0
                    numbers = f"{statistics.mean(scores):5.2f} +- {spread:4.2f}  {diverged} diverged  {rate:7.0f} samples/s"
                    print(f"{task.id:8} {name:16} {said:8} width {width:4} cap {cap:3}  {numbers}", flush=True)


def one(rule: Any, task: tasks.Task, width: int, cap: int, seed: int) -> Any:
    """One epoch in one net."""
    net = FeedForwardAssembly(784, 10, layers=1, width=width, cap=cap, seed=seed, **FLAT)
    return retain.learn_online(net, rule, task, seed=seed, score_every=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(RULES), help=f"some of {', '.join(RULES)}")
    parser.add_argument("--measure", choices=("held", "test"))
    parser.add_argument("--seeds", type=int, default=5)
    words = parser.parse_args()
    if words.measure:
        measure(words.measure, words.names, words.seeds)
    else:
        for name in words.names:
            print(name, flush=True)
            make(name)
