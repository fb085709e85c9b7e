"""EWC on Split MNIST beside Avalanche: CPU time, peak memory, and what both keep.

    python bench/streams.py [--data DIR] [--setting wide|small] [--rounds N] [--epochs N] [--only WORD] [--quick]

Five tasks of two digits whose identity is given, one epoch each, two outputs a task. ``wide`` is the network of van de Ven et al. 2022, 784-400-400,
with Adam at 0.001 and batches of 128; ``small`` is 784-256 with SGD at 0.01 and batches of 32, where what surrounds the arithmetic weighs more.
Both sides take the same number of steps on the same pixels, each in an order of its own, and neither scores nor prints while it learns. Each library is
used as it documents it; rows say what differs. Retain's Fisher is exact and of each sample, Avalanche's is the squared gradient of a mini-batch's mean
at the observed labels, so the two factors are on different scales; both come from a coarse grid of four to six values on one or two seeds, scored on
10,000 training images held out. In the small setting nothing is forgotten without a method either: it shows the cost alone.

CPU time is that of learning, on one thread, every row in turn in one process after a warm-up; figures are medians over rounds, and the ratio is to Retain's
first row in the same round. Accuracy is the mean over the five test sets after the last task, by one function for both, and over rounds, whose seeds
differ. Memory is measured in a process of its own for each run, which imports the library, gets the images and learns: what is resident after the
imports, with the data before learning, and the most that ever was, whole and without the imports.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

# neither library is imported up here: a process that measures one's memory must not hold the other

TASKS = 5
Part = tuple[Tensor, Tensor]


class Source(NamedTuple):
    """Images as bytes with their labels, and the folder of the raw files, if there is one."""

    train: Part
    test: Part
    folder: str | None


@dataclass(frozen=True)
class Settings:
    """What both sides are given; ``strength`` is Retain's, ``penalty`` Avalanche's lambda."""

    widths: tuple[int, ...]
    batch: int
    optimizer: str
    lr: float
    strength: float
    penalty: float
    epochs: int = 1


SETTINGS = {
    "wide": Settings((784, 400, 400), 128, "adam", 1e-3, strength=1e4, penalty=1e5),
    "small": Settings((784, 256), 32, "sgd", 1e-2, strength=100.0, penalty=3000.0),
}


class Run(NamedTuple):
    """What makes a network learn all tasks, and its two outputs for a task."""

    train: Callable[[], object]
    outputs: Callable[[Tensor, int], Tensor]


def floats(part: Part) -> Part:
    return part[0].float().div_(255), part[1]


def digits(part: Part, task: int) -> Part:
    rows = (part[1] // 2 == task).nonzero()[:, 0]
    return part[0][rows], part[1][rows]


def body(settings: Settings) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *[part for a, b in itertools.pairwise(settings.widths) for part in (nn.Linear(a, b), nn.ReLU())])


def ours(source: Source, settings: Settings, seed: int, feed: str = "tensors", labels: str | None = "exact") -> Run:
    """Retain; ``labels`` are the Fisher's, and ``None`` is no method."""
    retain, tasks = importlib.import_module("retain"), importlib.import_module("retain.tasks")
    if feed == "files":
        stream = tasks.split(tasks.mnist(source.folder), TASKS, scenario="task")
    elif feed == "tensors":
        stream = tasks.split(tasks.Task(floats(source.train), test=floats(source.test)), TASKS, scenario="task")
    else:
        pieces = []
        for task in range(TASKS):
            train, test = (digits(part, task) for part in (source.train, source.test))
            data = tasks.ImageData(*train) if feed == "bytes" else DataLoader(TensorDataset(*floats(train)), settings.batch, shuffle=True)
            pieces.append(tasks.Task(data, test=tasks.ImageData(*test), classes=(2 * task, 2 * task + 1), id=f"mnist-{task + 1}"))
        stream = tasks.sequence(*pieces, scenario="task")
    torch.manual_seed(seed)
    model = nn.Sequential(body(settings), nn.Linear(settings.widths[-1], 2 * TASKS))
    # a penalty about each task's weights, as Avalanche's default has it
    method = importlib.import_module("retain.methods").EWC(settings.strength, labels, centres="separate") if labels else None
    learn = partial(retain.learn, epochs=settings.epochs, batch_size=settings.batch, optimizer=settings.optimizer, lr=settings.lr, seed=seed, score_every=0)
    return Run(lambda: learn(model, stream, method), lambda x, task: model(x)[:, 2 * task : 2 * task + 2])


def avalanche(source: Source, settings: Settings, seed: int, feed: str = "tensors", way: str = "EWC") -> Run:
    """Avalanche; ``way`` is ``EWC``, ``Naive``, ``logs``: with what it logs by default, or ``lean``: one penalty for all tasks and a fused optimiser."""
    find = importlib.import_module
    models, training = find("avalanche.models"), find("avalanche.training.plugins")
    cut = {"n_experiences": TASKS, "shuffle": False, "class_ids_from_zero_in_each_exp": True}
    if feed == "files":
        stream = find("avalanche.benchmarks.classic").SplitMNIST(
            return_task_id=True, dataset_root=source.folder, train_transform=None, eval_transform=None, **cut
        )
    else:
        whole = find("avalanche.benchmarks.utils")._make_taskaware_tensor_classification_dataset  # 0.6 has no public name for it
        stream = find("avalanche.benchmarks").nc_benchmark(whole(*floats(source.train)), whole(*floats(source.test)), task_labels=True, **cut)
    torch.manual_seed(seed)

    class Network(models.MultiTaskModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.body, self.heads = body(settings), models.MultiHeadClassifier(settings.widths[-1], initial_out_features=2)

        def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
            outputs: Tensor = self.heads(self.body(x), task_labels)
            return outputs

    model, said = Network(), io.StringIO()
    more: dict[str, Any] = {} if way == "Naive" else {"ewc_lambda": settings.penalty}
    if way == "lean":
        more |= {"mode": "online", "decay_factor": 1.0}
    with contextlib.redirect_stdout(said):  # a logger keeps the output that it finds
        if way == "logs":
            metrics, kinds = find("avalanche.evaluation.metrics"), {"minibatch": False, "epoch": True, "experience": True, "stream": True}
            logger = find("avalanche.logging").InteractiveLogger()
            evaluator = training.EvaluationPlugin(metrics.accuracy_metrics(**kinds), metrics.loss_metrics(**kinds), loggers=[logger])
        else:
            evaluator = training.EvaluationPlugin()
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[settings.optimizer]
    strategy = getattr(find("avalanche.training.supervised"), "Naive" if way == "Naive" else "EWC")(
        model=model,
        optimizer=kind(model.parameters(), lr=settings.lr, fused=way == "lean"),  # type: ignore[operator]
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=settings.batch,
        train_epochs=settings.epochs,
        evaluator=evaluator,
        **more,
    )

    def train() -> None:
        with contextlib.redirect_stdout(said):
            for experience in stream.train_stream:
                strategy.train(experience)

    return Run(train, lambda x, task: model(x, torch.full((len(x),), task)))


def accuracy(run: Run, source: Source) -> float:
    """Mean over the tasks of the share of test images that are told apart, in percent."""
    shares = []
    with torch.no_grad():
        for task in range(TASKS):
            x, y = floats(digits(source.test, task))
            shares.append(float((run.outputs(x, task).argmax(1) == y % 2).float().mean()))
    return 100 * statistics.mean(shares)


@dataclass(frozen=True)
class Row:
    """A way to learn the stream; ``shows`` says what is measured, ``files`` whether it reads the raw files itself."""

    name: str
    make: Callable[[Source, Settings, int], Run]
    shows: str = "time, memory"
    files: bool = False

    @property
    def package(self) -> str:
        """What has to be installed."""
        return "retain" if self.name.startswith("Retain") else "avalanche-lib"

    @property
    def modules(self) -> tuple[str, ...]:
        """What a script that does this imports."""
        if self.package == "retain":
            return ("retain.methods", "retain.tasks", "retain.training", *(["torchvision.datasets"] if self.files else []))
        return tuple(f"avalanche.{name}" for name in ("benchmarks", "benchmarks.classic", "models", "training.plugins", "training.supervised"))


BASE = Row("Retain, tensors", ours)
ROWS = [
    BASE,
    Row("Retain, Fisher at the observed labels", partial(ours, labels="empirical"), "time"),
    Row("Retain, the tensors in a DataLoader", partial(ours, feed="loader"), "time"),
    Row("Retain, images kept as bytes", partial(ours, feed="bytes")),
    Row("Retain, tasks.mnist and tasks.split", partial(ours, feed="files"), "memory", files=True),
    Row("Retain, no method", partial(ours, labels=None), "time"),
    Row("Avalanche, tensors", avalanche),
    Row("Avalanche, one penalty, fused optimiser", partial(avalanche, way="lean")),
    Row("Avalanche, its default logging", partial(avalanche, way="logs"), "time"),
    Row("Avalanche, SplitMNIST", partial(avalanche, feed="files"), files=True),
    Row("Avalanche, no method", partial(avalanche, way="Naive"), "time"),
]


def resident(field: str) -> float:
    """A field of this process' status in MiB: VmRSS is what is resident, VmHWM the most that was."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def child(row: Row, settings: Settings, stored: str, folder: str | None) -> None:
    """What a process of its own does: import, get the images, learn, print its memory."""
    for name in row.modules:
        importlib.import_module(name)
    torch.optim.Adam([nn.Parameter(torch.zeros(1))])  # torch imports 170 MiB of its own with the first optimiser: not part of learning
    imports = resident("VmRSS")
    nothing = (torch.empty(0), torch.empty(0))
    run = row.make(Source(nothing, nothing, folder) if row.files else Source(*torch.load(stored), folder), settings, 0)
    data = resident("VmRSS")
    run.train()
    print(json.dumps({"imports": imports, "data": data, "peak": resident("VmHWM")}))


def remembered(row: Row, options: argparse.Namespace, stored: str, folder: str | None) -> dict[str, float]:
    words = [sys.executable, "-W", "ignore", __file__, "--child", row.name, "--stored", stored, "--setting", options.setting, "--epochs", str(options.epochs)]
    done = subprocess.run([*words, *(["--data", folder] if folder else [])], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{row.name}: {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def timing(rows: list[Row], source: Source, settings: Settings, rounds: int) -> None:
    few = source._replace(train=(source.train[0][:2000], source.train[1][:2000]))
    found: dict[str, list[tuple[float, float]]] = {row.name: [] for row in rows}
    for seed in range(-1, rounds):
        for row in rows:
            run = row.make(few if seed < 0 and not row.files else source, settings, max(seed, 0))
            if seed < 0 and row.files:
                continue
            begin = time.process_time()
            run.train()
            spent = time.process_time() - begin
            if seed >= 0:
                found[row.name].append((spent, accuracy(run, source)))
    print(f"{'':42}{'seconds':>9}{'ratio':>8}{'range':>14}{'accuracy':>10}")
    for name, entries in found.items():
        ratios = [a / b for (a, _), (b, _) in zip(entries, found[BASE.name], strict=True)]
        span = f"{min(ratios):.2f}-{max(ratios):.2f}"
        spent, kept = statistics.median(seconds for seconds, _ in entries), statistics.mean(share for _, share in entries)
        print(f"{name:42}{spent:9.2f}{statistics.median(ratios):8.2f}{span:>14}{kept:10.2f}")


def memory(rows: list[Row], source: Source, options: argparse.Namespace, rounds: int) -> None:
    print(f"\n{'MiB':42}{'imports':>9}{'+ data':>8}{'peak':>8}{'ratio':>8}{'peak - imports':>16}{'ratio':>8}")
    base: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        torch.save((source.train, source.test), f"{place}/mnist.pt")
        for row in rows:
            runs = [remembered(row, options, f"{place}/mnist.pt", source.folder) for _ in range(rounds)]
            held = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            held["own"] = held["peak"] - held["imports"]
            base = base or held
            ratios = held["peak"] / base["peak"], held["own"] / base["own"]
            print(f"{row.name:42}{held['imports']:9.0f}{held['data']:8.0f}{held['peak']:8.0f}{ratios[0]:8.2f}{held['own']:16.0f}{ratios[1]:8.2f}")


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--data", default=os.environ.get("RETAIN_DATA"), help="folder with MNIST/raw; without one, the embedded 10,000 images")
    words.add_argument("--setting", choices=SETTINGS, default="wide")
    words.add_argument("--rounds", type=int, default=5, help="of the timing; memory is the median of at most three")
    words.add_argument("--epochs", type=int, default=1, help="of each task")
    words.add_argument("--only", default="", help="rows whose name has this in it, beside Retain's first")
    words.add_argument("--quick", action="store_true", help="one round on the embedded images")
    words.add_argument("--child", help=argparse.SUPPRESS)
    words.add_argument("--stored", help=argparse.SUPPRESS)
    options = words.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    settings = replace(SETTINGS[options.setting], epochs=options.epochs)
    if options.child:
        child(next(row for row in ROWS if row.name == options.child), settings, options.stored, options.data)
        return
    folder = None if options.quick else options.data
    rounds = 1 if options.quick else options.rounds
    task = importlib.import_module("retain.tasks").mnist(folder, embedded=folder is None)
    source = Source(*(((part.inputs * 255).round_().byte(), part.targets) for part in (task.data, task.test)), folder)
    rows = [row for row in ROWS if (row is BASE or options.only in row.name) and (folder or not row.files)]
    missing = [row for row in rows if not any(importlib.metadata.distributions(name=row.package))]
    rows = [row for row in rows if row not in missing]
    names = ("torch", "retain", "avalanche-lib")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in names if any(importlib.metadata.distributions(name=name))))
    print(f"{task.n:,} images, {'-'.join(map(str, settings.widths))}, batches of {settings.batch}, {settings.optimizer}, {settings.epochs} epoch(s) a task")
    print(f"{rounds} rounds after a warm-up, CPU time on one thread; strength {settings.strength:g} in Retain, lambda {settings.penalty:g} in Avalanche\n")
    timing([row for row in rows if "time" in row.shows], source, settings, rounds)
    for row in missing:
        print(f"{row.name:42}  - {row.package} is not installed")
    if Path("/proc/self/status").exists():
        memory([row for row in rows if "memory" in row.shows], source, options, min(rounds, 3))
    else:
        print("\nmemory is read from /proc, which this system has not")


if __name__ == "__main__":
    main()
