"""Looking inside a model, beside PyHessian, loss-landscapes and torch_cka: the same numbers where they are right, and CPU time.

    python bench/diagnose.py [--rounds N] [--only WORD]

One process, one thread, CPU seconds. A row does the same work on the same samples with both libraries, one right after the other; figures are medians over
rounds of the ratio of their times, the first round dropped. Each row first says what both found: against the whole Hessian of a small network where that can
be formed, otherwise against each other. Eigenvalues: PyHessian's power iteration stops at a relative change of 1e-3, our Lanczos at a residual of 3 %, whose
square bounds the error where the eigenvalue stands alone. Traces and lines: the same number of products, of points. torch_cka gets one batch of all
samples, the only case in which its answer is the estimator's own; what it says of smaller batches is shown below. A library that is missing, or fails, is a
line.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev
from torch.utils.data import DataLoader, TensorDataset

import retain
from retain import curvature, diagnosis, models, tasks

N = 256  # samples
POINTS = 20  # steps of lines, and of a side of planes

Found = tuple[str, float]  # what to print, and a number to compare


@contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


class Case:
    """Two runs of a small network on the digits."""

    def __init__(self, name: str) -> None:
        self.name, task = name, tasks.digits()
        self.inputs, self.targets = task.data.inputs[:N], task.data.targets[:N]
        if name == "ResNet-8":
            self.inputs = F.interpolate(self.inputs.reshape(-1, 1, 8, 8), 16)
            self.start: nn.Module = models.ResNet(8, 8, seed=0)
        else:
            self.start = models.MLP(64, 16, 10, seed=0) if name == "small MLP" else models.MLP(64, 256, 256, 10, seed=0)
        self.task = retain.Task((self.inputs, self.targets))
        self.runs = []
        for seed in (0, 1):
            run = models.copy(self.start)
            retain.learn(run, [self.task], epochs=20, seed=seed)
            self.runs.append(run.eval())
        self.model, self.other = self.runs

    def fresh(self) -> nn.Module:
        """A copy, since peers leave hooks, gradients and moved weights behind."""
        return models.copy(self.model)


def top(values: Tensor) -> float:
    return float(values[0])


def eigenvalue_ours(case: Case) -> Found:
    with curvature.hessian(case.model, case.task) as H:
        value = top(curvature.eigenvalues(H, 1, tolerance=0.03).values)
    return f"{value:.5g}", value


def eigenvalue_theirs(case: Case) -> Found:
    value = pyhessian(case).eigenvalues(maxIter=200, tol=1e-3, top_n=1)[0][0]
    return f"{value:.5g}", value


def trace_ours(case: Case) -> Found:
    with curvature.hessian(case.model, case.task) as H:
        found = curvature.trace(H, 32)
    return f"{found.mean:.4g} ± {found.error:.2g}", found.mean


def trace_theirs(case: Case) -> Found:
    draws = pyhessian(case).trace(maxIter=32, tol=0)
    mean = statistics.fmean(draws)
    return f"{mean:.4g} ± {statistics.stdev(draws) / math.sqrt(len(draws)):.2g}", mean


def density_ours(case: Case) -> Found:
    with curvature.hessian(case.model, case.task) as H:
        found = curvature.density(H, 30, 1)
    return f"largest node {float(found.nodes.max()):.4g}", float(found.nodes.max())


def density_theirs(case: Case) -> Found:
    nodes = pyhessian(case).density(iter=30, n_v=1)[0][0]
    return f"largest node {max(nodes):.4g}", float(max(nodes))


def pyhessian(case: Case) -> Any:
    return importlib.import_module("pyhessian").hessian(case.fresh(), F.cross_entropy, data=(case.inputs, case.targets), cuda=False)


def line_ours(case: Case) -> Found:
    found = diagnosis.barrier(case.model, case.other, case.task, points=POINTS + 1, samples=N, reestimate=False).loss["train"]
    return f"middle {found[POINTS // 2]:.5g}, end {found[-1]:.5g}", found[POINTS // 2]


def line_theirs(case: Case) -> Found:
    library, metrics = importlib.import_module("loss_landscapes"), importlib.import_module("loss_landscapes.metrics")
    metric = metrics.Loss(F.cross_entropy, case.inputs, case.targets)
    found = library.linear_interpolation(case.fresh(), models.copy(case.other), metric, POINTS)  # without the start
    return f"middle {found[POINTS // 2 - 1]:.5g}, end {found[-1]:.5g}", float(found[POINTS // 2 - 1])


def plane_ours(case: Case) -> Found:
    found = diagnosis.landscape(case.model, case.task, points=POINTS + 1, samples=N)
    return f"centre {found.centre:.5g}, {found.loss.size} points", found.centre


def plane_theirs(case: Case) -> Found:
    library, metrics = importlib.import_module("loss_landscapes"), importlib.import_module("loss_landscapes.metrics")
    metric = metrics.Loss(F.cross_entropy, case.inputs, case.targets)
    found = library.random_plane(case.fresh(), metric, 1, POINTS + 1)
    return f"least {found.min():.5g}, {found.size} points", float(found.min())


def similarity_ours(case: Case) -> Found:
    found = diagnosis.cka(case.model, case.other, case.task, samples=N, layers=list(dict(case.model.named_modules()))[1:])
    value = list(found.same.values())[-1]
    return f"{len(found.layers)} layers, last {value:.5f}", value


def similarity_theirs(case: Case) -> Found:
    matrix = torch_cka(case, N)
    return f"{len(matrix)} layers, last {float(matrix[-1, -1]):.5f}", float(matrix[-1, -1])


def torch_cka(case: Case, size: int, n: int = N, a: nn.Module | None = None) -> Tensor:
    names = list(dict(case.model.named_modules()))[1:]
    first, second = a or case.fresh(), models.copy(case.other)
    with torch.no_grad():
        found = importlib.import_module("torch_cka").CKA(first, second, "first", "second", names, names)
        found.compare(DataLoader(TensorDataset(case.inputs[:n], case.targets[:n]), batch_size=size))
    matrix: Tensor = found.export()["CKA"]
    return matrix


@dataclass(frozen=True)
class Row:
    """The same work by both."""

    name: str
    ours: Callable[[Case], Found]
    theirs: Callable[[Case], Found]
    package: str
    cases: tuple[str, ...] = ("small MLP", "MLP", "ResNet-8")


ROWS = [
    Row("largest eigenvalue", eigenvalue_ours, eigenvalue_theirs, "pyhessian"),
    Row("trace, 32 probes", trace_ours, trace_theirs, "pyhessian"),
    Row("density, 30 steps", density_ours, density_theirs, "pyhessian", ("MLP",)),
    Row(f"line of {POINTS} points", line_ours, line_theirs, "loss-landscapes", ("MLP", "ResNet-8")),
    Row(f"plane, side {POINTS + 1}", plane_ours, plane_theirs, "loss-landscapes", ("MLP", "ResNet-8")),
    Row("CKA of all layers", similarity_ours, similarity_theirs, "torch-cka", ("MLP", "ResNet-8")),
]


def dense(case: Case) -> Tensor:
    """All eigenvalues of the Hessian of a small network."""
    weights = {name: p.detach().double() for name, p in case.model.named_parameters()}
    model = models.copy(case.model).double()

    def loss(w: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(model, w, case.inputs.double()), case.targets)

    blocks = jacrev(grad(loss), chunk_size=256)(weights)
    H = torch.cat([torch.cat([blocks[a][b].reshape(weights[a].numel(), -1) for b in weights], 1) for a in weights])
    return torch.linalg.eigvalsh(H)


def timed(work: Callable[[], object]) -> float:
    begin = time.process_time()
    with quiet():
        work()
    return time.process_time() - begin


def small_batches(case: Case) -> None:
    """What torch_cka says of small batches and of a last one; ours puts them together."""
    print(f"\nCKA of the last layer, {case.name}, by batch size (torch_cka averages over batches; retain's answer does not depend on them)")
    for size, n in ((2, 64), (3, 63), (3, 64), (4, 64), (8, 64), (64, 64), (64, 66)):
        loader = list(zip(case.inputs[:n].split(size), case.targets[:n].split(size), strict=True))
        ours = list(diagnosis.cka(case.model, case.other, loader, samples=n).same.values())[-1]
        try:
            with quiet():
                theirs = f"{float(torch_cka(case, size, n)[-1, -1]):.4f}"
        except Exception as error:  # what it raises is the finding
            theirs = f"{type(error).__name__}: {error}"
        print(f"  batches of {size:2}, {n} samples: retain {ours:.4f}, torch_cka {theirs}")


def crooked(case: Case) -> None:
    """Whether a peer's plane is a plane: a coordinate of the weights has to be linear over it."""
    library = importlib.import_module("loss_landscapes")
    model = case.fresh()
    before = [p.detach().clone() for p in model.parameters()]
    grid = torch.tensor(library.random_plane(model, lambda wrapper: wrapper.modules[0].layers[0].weight[0, 0].item(), 1, 8))
    step = float((grid[0, 1] - grid[0, 0]).abs())
    off = float((grid[1] - (grid[0] + grid[2]) / 2).abs().max()) / step
    moved = max(float((p - q).detach().abs().max()) for p, q in zip(model.parameters(), before, strict=True))
    print(f"\nloss-landscapes, plane: odd rows lie {off:.2f} steps beside even ones; afterwards the model's weights are off by up to {moved:.2g}")


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--rounds", type=int, default=6)
    words.add_argument("--only", default="", help="rows whose name has this in it")
    options = words.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    packages = ("torch", "retain", "pyhessian", "loss-landscapes", "torch-cka")
    there = {name for name in packages if any(importlib.metadata.distributions(name=name))}
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages if name in there))
    cases = {name: Case(name) for name in ("small MLP", "MLP", "ResNet-8")}
    values = dense(cases["small MLP"])
    print(f"{options.rounds} rounds, CPU time on one thread, {N} samples")
    print(f"small MLP, whole Hessian in float64: largest eigenvalue {float(values[-1]):.5g}, trace {float(values.sum()):.4g}")
    print(f"\n{'':32}{'retain':>28}{'peer':>28}{'ms':>8}{'ratio':>8}{'range':>14}")
    for row in ROWS:
        for name in row.cases:
            title, case = f"{row.name}, {name}", cases[name]
            if options.only not in title:
                continue
            if row.package not in there:
                print(f"{title:32}  - {row.package} is not installed")
                continue
            try:
                with quiet():
                    ours, theirs = row.ours(case)[0], row.theirs(case)[0]
            except Exception as error:  # whatever goes wrong in a row is a line of the table
                print(f"{title:32}{row.ours(case)[0]:>28}  - {row.package}: {(str(error).strip() or type(error).__name__).splitlines()[0][:90]}")
                continue
            pairs = [(timed(lambda: row.ours(case)), timed(lambda: row.theirs(case))) for _ in range(options.rounds + 1)][1:]  # noqa: B023
            ratios = [theirs / ours for ours, theirs in pairs]
            spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
            print(f"{title:32}{ours:>28}{theirs:>28}{1000 * statistics.median(a for a, _ in pairs):8.1f}{statistics.median(ratios):8.2f}{spread:>14}")
    print("ms: retain's; ratio: the peer's time over retain's")
    if "torch-cka" in there:
        small_batches(cases["MLP"])
    if "loss-landscapes" in there:
        crooked(cases["MLP"])


if __name__ == "__main__":
    main()
