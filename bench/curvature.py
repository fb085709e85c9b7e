"""What curvature costs: Fisher diagonals, Kronecker factors and Gauss-Newton products, in multiples of a forward and backward pass.

    python bench/curvature.py [--data DIR] [--rounds N] [--only mlp,cnn,resnet,transformer] [--memory] [--no-peers] [--json FILE]

One process, one thread, CPU seconds. Every row is timed right after a forward and backward pass over the case's data (evaluation mode,
mean cross entropy, all gradients); figures are medians over rounds of the ratio of the two, the first round dropped. Slow rows run on n
samples and are scaled per sample. First, answers on a few samples are compared with a loop over single ones: relative error of the worst
parameter or, for drawn labels, ratio of traces averaged over draws. What is wrong is not timed. Kronecker factors are compared by their
trace for one sample, which has to agree for the MLP; elsewhere it says how much they cover (BackPACK's have a scale of their own in
convolutions). Answers are made means over samples; BackPACK and laplace-torch give sums.
Each library gets what suits it: Sequential models, BackPACK's converter for others, batches as slices, Kronecker factors of linear and
convolutional layers only; torch.func the fastest of a few chunks, squared and summed one by one, laplace-torch's Jacobians one sample.
curvlinops 3.0.1 has no exact diagonal. ``--memory``: MiB by which the peak of a row on two batches exceeds that of forward and backward.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import resource
import statistics
import subprocess
import sys
import time
import timeit
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, linearize, vjp, vmap
from torch.utils._pytree import tree_map

import retain
from retain import models, tasks
from retain.errors import InputError

CLASSES = 10
FEW = 4  # samples for the comparison
BUDGET = 0.4  # seconds: a row that takes less gets more samples


class _Transformer(nn.Module):
    """Two encoder layers on 200 tokens, mean pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2)
        self.tokens, self.head = nn.Embedding(200, 64), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.tokens(x)).mean(1))


def resnet() -> nn.Module:
    model = torchvision.models.resnet18(num_classes=CLASSES, norm_layer=partial(nn.BatchNorm2d, momentum=None))
    model(torch.randn(8, 3, 64, 64))  # statistics, without which it is far too sure
    return model


def mnist(folder: str | None, n: int) -> tuple[Tensor, Tensor]:
    data = (tasks.mnist(folder) if folder else tasks.mnist(embedded=True)).data
    return data.inputs[:n], data.targets[:n]


@dataclass(frozen=True)
class Case:
    """A model, its data, and the batch sizes: of most rows and of those with their own."""

    title: str
    model: Callable[[], nn.Module]
    data: Callable[[str | None], tuple[Tensor, Tensor]]
    batch: int
    vmap: int
    vmap_exact: int
    one: int = 1


CASES = {
    "mlp": Case("MLP 784-256-256-10, MNIST", lambda: nn.Sequential(nn.Flatten(), models.MLP(784, 256, 256, 10).layers), partial(mnist, n=10_000), 500, 16, 2),
    "cnn": Case("CNN 16-32-128-10, MNIST", lambda: models.Conv(28, 10).layers, partial(mnist, n=500), 100, 100, 10),
    "resnet": Case("ResNet-18, 64 pixels", resnet, lambda _: (torch.randn(8, 3, 64, 64), torch.arange(8)), 4, 8, 1),
    "transformer": Case("transformer, 32 tokens", _Transformer, lambda _: (torch.randint(200, (400, 32)), torch.arange(400) % CLASSES), 100, 100, 10),
}


def batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def passes(model: nn.Module, x: Tensor, y: Tensor, size: int) -> None:
    for a, b in batches(x, y, size):
        model.zero_grad()
        F.cross_entropy(model(a), b).backward()


def split(v: Tensor, model: nn.Module) -> list[Tensor]:
    return [part.view_as(p) for part, p in zip(v.split([p.numel() for p in model.parameters()]), model.parameters(), strict=True)]


def linear_layers(model: nn.Module) -> list[nn.Module]:
    attention = {id(m) for module in model.modules() if isinstance(module, nn.MultiheadAttention) for m in module.modules()}
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) and id(m) not in attention]


def ours(model: nn.Module, x: Tensor, y: Tensor, size: int, labels: Any, structure: Any = "diagonal") -> Any:
    found = retain.fisher(model, (x, y), labels=labels, structure=structure, batch_size=size, seed=int(torch.randint(1 << 30, ())))
    return list(found.values()) if structure == "diagonal" else found


def loop(model: nn.Module, x: Tensor, y: Tensor, size: int, labels: str) -> list[Tensor]:
    parameters = list(model.parameters())
    totals = [torch.zeros_like(p) for p in parameters]
    for a, b in batches(x, y, 1):
        scores = model(a).log_softmax(1)[0]
        answers = [(int(b), 1.0)] if labels == "empirical" else list(enumerate(scores.exp().tolist()))
        for c, p in answers:
            gradients = torch.autograd.grad(scores[c], parameters, retain_graph=c != answers[-1][0])
            torch._foreach_addcmul_(totals, gradients, gradients, value=p / len(x))
    return totals


def function(model: nn.Module, x: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda parameters: functional_call(model, parameters, (x,))


def vmapped(model: nn.Module, x: Tensor, y: Tensor, size: int, labels: str) -> list[Tensor]:
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def one(a: Tensor, b: Tensor) -> list[Tensor]:
        outputs = function(model, a[None])
        if labels == "empirical":
            return [g.square() for g in grad(lambda values: F.cross_entropy(outputs(values), b[None]))(parameters).values()]
        scores, pull = vjp(lambda values: outputs(values)[0].log_softmax(0), parameters)
        return [g.square().sum(0) for g in vmap(pull)(torch.diag(scores.div(2).exp()))[0].values()]

    totals = [torch.zeros_like(p) for p in parameters.values()]
    for a, b in batches(x, y, size):
        torch._foreach_add_(totals, [squares.sum(0) for squares in vmap(one)(a, b)], alpha=1 / len(x))
    return totals


def backpacked(model: nn.Module, x: Tensor, y: Tensor, size: int, extension: str, saved: str) -> list[Any]:
    backpack = importlib.import_module("backpack")
    model, loss, totals = backpack.extend(model), backpack.extend(nn.CrossEntropyLoss(reduction="sum")), []
    for a, b in batches(x, y, size):
        model.zero_grad()
        with backpack.backpack(getattr(backpack.extensions, extension)()):
            loss(model(a), b).backward()
        found = [getattr(p, saved) for p in model.parameters()]
        totals = tree_map(torch.add, totals, found) if totals else found
    return tree_map(lambda total: total / len(x), totals)


def nngeometry(model: nn.Module, x: Tensor, y: Tensor, size: int, variant: str, representation: str) -> Any:
    collection, metrics, shapes = (importlib.import_module(f"nngeometry.{name}") for name in ("layercollection", "metrics", "object"))
    layers = collection.LayerCollection.from_model(model) if representation == "PMatDiag" else collection.LayerCollection()
    for module in linear_layers(model) if representation == "PMatKFAC" else []:
        layers.add_layer_from_model(model, module)

    class Slices(torch.utils.data.DataLoader[Any]):
        def __iter__(self) -> Any:
            return iter(batches(x, y, size))

    loader = Slices(torch.utils.data.TensorDataset(x, y), batch_size=size)
    found = getattr(metrics, variant)(model, loader, getattr(shapes, representation), device="cpu", layer_collection=layers)
    return split(found.get_diag(), model) if representation == "PMatDiag" else found


def laplace(model: nn.Module, x: Tensor, y: Tensor, size: int, backend: str) -> list[Tensor]:
    curvature = getattr(importlib.import_module("laplace.curvature"), backend)(model, "classification")
    return split(sum(curvature.diag(a, b)[1] for a, b in batches(x, y, size)) / len(x), model)


def curvlinops_kfac(model: nn.Module, x: Tensor, y: Tensor, size: int, labels: str) -> Any:
    parameters = [p for layer in linear_layers(model) for p in layer.parameters()]
    options = {"check_deterministic": False, "num_data": len(x), "num_per_example_loss_terms": 1, "seed": int(torch.randint(1 << 30, ()))}
    make = importlib.import_module("curvlinops").KFACLinearOperator
    factors = make(model, nn.CrossEntropyLoss(), parameters, batches(x, y, size), fisher_type=labels, **options)
    factors.compute_kronecker_factors()
    return factors


def our_product(model: nn.Module, x: Tensor, y: Tensor, v: Tensor) -> Callable[[], list[Tensor]]:
    matrix = retain.curvature.ggn(model, (x, y))
    return lambda: split(matrix @ v, model)


def func_product(model: nn.Module, x: Tensor, y: Tensor, v: Tensor, keep: bool) -> Callable[[], list[Tensor]]:
    outputs, parameters = function(model, x), {name: p.detach() for name, p in model.named_parameters()}
    along = dict(zip(parameters, split(v, model), strict=True))

    def parts() -> tuple[Any, ...]:
        push = linearize(outputs, parameters)[1] if keep else lambda w: jvp(outputs, (parameters,), (w,))[1]
        return push, *vjp(outputs, parameters)

    def product() -> list[Tensor]:
        push, scores, pull = kept or parts()
        u, p = push(along), scores.softmax(1)
        return list(pull((p * u - p * (p * u).sum(1, keepdim=True)) / len(x))[0].values())

    kept = parts() if keep else None
    return product


def curvlinops_product(model: nn.Module, x: Tensor, y: Tensor, v: Tensor) -> Callable[[], list[Tensor]]:
    make = importlib.import_module("curvlinops").GGNLinearOperator
    matrix = make(model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)], check_deterministic=False, num_data=len(x))
    return lambda: split(matrix @ v, model)


@dataclass(frozen=True)
class Row:
    """A way to compute something: a function of model, data and batch size; of a vector in place of the size, it returns the product."""

    kind: str
    name: str
    run: Callable[..., Any]
    package: str = "torch"
    size: str = "batch"

    def call(self, case: Case, x: Tensor, y: Tensor) -> Callable[[], Any]:
        """The computation, on a model of its own."""
        importlib.import_module(self.package)
        model = fresh(case)
        if "backpack" in self.name.lower() and not isinstance(model, nn.Sequential):
            model = importlib.import_module("backpack.custom_module.graph_utils").convert_module_to_backpack(model, False).eval()
        if self.kind == PRODUCT:
            return self.run(model, x, y, nn.utils.parameters_to_vector(model.parameters()).detach())
        return partial(self.run, model, x, y, getattr(case, self.size))


def fresh(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case.model().eval()


EMPIRICAL, SAMPLED, EXACT = "Fisher diagonal, the data's label", "Fisher diagonal, one drawn label", f"Fisher diagonal, exact over {CLASSES} classes"
KRONECKER_SAMPLED, KRONECKER, PRODUCT = "Kronecker, one drawn label", f"Kronecker, exact over {CLASSES} classes", "Product with the Gauss-Newton matrix"
ROWS = [
    Row(EMPIRICAL, "retain", partial(ours, labels="empirical")),
    Row(EMPIRICAL, "loop over samples", partial(loop, labels="empirical"), size="one"),
    Row(EMPIRICAL, "torch.func vmap(grad)", partial(vmapped, labels="empirical"), size="vmap"),
    Row(EMPIRICAL, "BackPACK SumGradSquared", partial(backpacked, extension="SumGradSquared", saved="sum_grad_squared"), "backpack"),
    Row(EMPIRICAL, "laplace-torch BackPackEF", partial(laplace, backend="BackPackEF"), "laplace"),
    Row(EMPIRICAL, "laplace-torch AsdlEF", partial(laplace, backend="AsdlEF"), "laplace"),
    Row(SAMPLED, "retain", partial(ours, labels="sampled")),
    Row(SAMPLED, "BackPACK DiagGGNMC", partial(backpacked, extension="DiagGGNMC", saved="diag_ggn_mc"), "backpack"),
    Row(SAMPLED, "nngeometry FIM_MonteCarlo", partial(nngeometry, variant="FIM_MonteCarlo", representation="PMatDiag"), "nngeometry"),
    Row(EXACT, "retain", partial(ours, labels="exact")),
    Row(EXACT, "loop over samples and classes", partial(loop, labels="exact"), size="one"),
    Row(EXACT, "torch.func vmap(vjp) over both", partial(vmapped, labels="exact"), size="vmap_exact"),
    Row(EXACT, "BackPACK DiagGGNExact", partial(backpacked, extension="DiagGGNExact", saved="diag_ggn_exact"), "backpack"),
    Row(EXACT, "nngeometry FIM", partial(nngeometry, variant="FIM", representation="PMatDiag"), "nngeometry"),
    Row(EXACT, "laplace-torch CurvlinopsGGN, its default", partial(laplace, backend="CurvlinopsGGN"), "laplace", "one"),
    Row(EXACT, "laplace-torch AsdlGGN", partial(laplace, backend="AsdlGGN"), "laplace"),
    Row(KRONECKER_SAMPLED, "retain", partial(ours, labels="sampled", structure="kronecker")),
    Row(KRONECKER_SAMPLED, "curvlinops KFAC, mc", partial(curvlinops_kfac, labels="mc"), "curvlinops"),
    Row(KRONECKER_SAMPLED, "nngeometry FIM_MonteCarlo", partial(nngeometry, variant="FIM_MonteCarlo", representation="PMatKFAC"), "nngeometry"),
    Row(KRONECKER_SAMPLED, "BackPACK KFAC", partial(backpacked, extension="KFAC", saved="kfac"), "backpack"),
    Row(KRONECKER, "retain", partial(ours, labels="exact", structure="kronecker")),
    Row(KRONECKER, "curvlinops KFAC, type-2", partial(curvlinops_kfac, labels="type-2"), "curvlinops"),
    Row(KRONECKER, "nngeometry FIM", partial(nngeometry, variant="FIM", representation="PMatKFAC"), "nngeometry"),
    Row(KRONECKER, "BackPACK KFLR", partial(backpacked, extension="KFLR", saved="kflr"), "backpack"),
    Row(PRODUCT, "retain, graph kept", our_product),
    Row(PRODUCT, "torch.func jvp and vjp", partial(func_product, keep=False)),
    Row(PRODUCT, "torch.func linearize and vjp, kept", partial(func_product, keep=True)),
    Row(PRODUCT, "curvlinops GGNLinearOperator", curvlinops_product, "curvlinops"),
]


def trace(found: Any) -> float:
    if isinstance(found, list):  # of factors or of a diagonal, by parameter
        return sum(math.prod(float(factor.trace()) for factor in entry) if isinstance(entry, list) else float(entry.sum()) for entry in found)
    return float(found.trace() if callable(found.trace) else found.trace)


def check(row: Row, case: Case, x: Tensor, y: Tensor, right: dict[str, list[Tensor]]) -> str:
    """How far the row is from what is right for a few samples; an error if too far."""
    if row.kind in right:
        pairs = zip(row.call(case, x, y)(), right[row.kind], strict=True)
        error = max(float((found - r).norm() / r.norm().clamp_min(1e-30)) for found, r in pairs)
        if not error < 1e-3:
            raise ArithmeticError(f"wrong by {error:.1g}, not timed")
        return f"{error:.0e}"
    kronecker, draws, begin = row.kind in (KRONECKER, KRONECKER_SAMPLED), row.kind in (SAMPLED, KRONECKER_SAMPLED), time.process_time()
    call, ratios = row.call(case, x[:1], y[:1]) if kronecker else row.call(case, x, y), []
    while not ratios or (draws and len(ratios) < 50 and time.process_time() - begin < 0.5):
        ratios.append(trace(call()) / trace(right["single" if kronecker else EXACT]))
    ratio = statistics.mean(ratios)
    if (not kronecker or case is CASES["mlp"]) and not (0.5 < ratio < 2 if draws else abs(ratio - 1) < 1e-3):
        raise ArithmeticError(f"trace wrong by a factor of {ratio:.3g}, not timed")
    return f"x{ratio:.2f}"


def timed(call: Callable[[], Any], times: int = 1) -> float:
    return timeit.timeit(call, timer=time.process_time, number=times) / times


def measure(case: Case, rows: list[Row], rounds: int, folder: str | None) -> list[dict[str, Any]]:
    torch.manual_seed(2)
    x, y = case.data(folder)
    few, model, ready = (x[:FEW], y[:FEW]), fresh(case), []
    right = {EMPIRICAL: loop(model, *few, 1, "empirical"), EXACT: loop(model, *few, 1, "exact"), "single": loop(model, x[:1], y[:1], 1, "exact")}
    right |= {row.kind: row.call(case, *few)() for row in rows if row.name == "torch.func jvp and vjp"}
    results: list[dict[str, Any]] = [{"kind": row.kind, "row": row.name, "batch": getattr(case, row.size), "plain": [], "ratios": []} for row in rows]
    for row, result in zip(rows, results, strict=True):
        try:
            result["check"] = check(row, case, *few, right)
            size = getattr(case, row.size)
            n = 2 * size if row.size == "batch" and row.kind != PRODUCT else size  # what is done once a call should not weigh too much
            while row.kind != PRODUCT and n + size <= len(x) and timed(row.call(case, x[:n], y[:n])) < BUDGET:
                n = min(2 * n, len(x) - len(x) % size)  # whole batches
            result["n"], base, times = (n, n, 10) if row.kind == PRODUCT else (n, len(x), 1)
            ready.append((row.call(case, x[:n], y[:n]), partial(passes, model, x[:base], y[:base], case.batch), n / base, times, result))
        except Exception as error:  # whatever goes wrong in a row is a line of the table
            result["reason"] = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    for _ in range(rounds + 1):
        for call, plain, part, times, result in ready:
            result["plain"].append(timed(plain, times))
            result["ratios"].append(timed(call, times) / part / result["plain"][-1])
    return results


def extra_memory(case: Case, row: Row, folder: str | None) -> float:
    """MiB of peak above forward and backward passes, for a fresh process."""
    importlib.import_module(row.package)
    x, y, _held = *case.data(folder), torch.ones(1 << 26)  # 256 MiB, more than imports and data have let go: what comes now sets the peak
    n, unit = getattr(case, row.size) * (1 if row.kind == PRODUCT else 2), 1 << 20 if sys.platform == "darwin" else 1 << 10
    passes(fresh(case), x[: 2 * case.batch], y[: 2 * case.batch], case.batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row.call(case, x[:n], y[:n])()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit


def table(case: Case, results: list[dict[str, Any]]) -> str:
    plain = [seconds for result in results if result["kind"] != PRODUCT for seconds in result["plain"][1:]]
    lines = [f"\n{case.title}, batches of {case.batch}" + (f": a forward and backward pass takes {statistics.median(plain):.3g} s" if plain else "")]
    for last, result in zip([None, *results], results, strict=False):
        if last is None or last["kind"] != result["kind"]:
            lines += ["", f"{result['kind']:44}{'n':>6}{'batch':>7}{'check':>8}{'ratio':>9}{'range':>18}" + (f"{'MiB':>8}" if "memory" in result else "")]
        if "reason" in result:
            lines.append(f"  {result['row']:42}  - {result['reason']}")
            continue
        ratios = result["ratios"][1:]
        line = f"  {result['row']:42}{result['n']:6}{result['batch']:7}{result['check']:>8}{statistics.median(ratios):9.3g}"
        lines.append(f"{line}{f'{min(ratios):.3g}-{max(ratios):.3g}':>18}" + (f"{result['memory']:>8}" if "memory" in result else ""))
    return "\n".join(lines)


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--data", help="folder with MNIST/raw; the embedded images without")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--only", default=",".join(CASES), help="some of " + ",".join(CASES))
    words.add_argument("--memory", action="store_true", help="also the peak memory of every row, each in a process of its own")
    words.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="the rows of other libraries")
    words.add_argument("--json", help="write the figures to this file")
    words.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = words.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if options.peak:
        print(extra_memory(CASES[options.peak[0]], ROWS[int(options.peak[1])], options.data))
        return
    if set(options.only.split(",")) - set(CASES):
        words.error(f"--only: expected some of {', '.join(CASES)}, found {options.only}")
    wanted = [row for row in ROWS if options.peers or row.package == "torch"]
    chosen = {key: [row for row in wanted if key == "mlp" or row.kind != PRODUCT] for key in options.only.split(",")}
    names = ("torch", "torchvision", "retain", "backpack-for-pytorch", "nngeometry", "curvlinops-for-pytorch", "laplace-torch", "asdfghjkl")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names if any(importlib.metadata.distributions(name=name)))
    print(f"{versions}\n{options.rounds} rounds after a warm-up, CPU time on one thread, multiples of a forward and backward pass")
    memory = {}
    for pair in [(key, row) for key in chosen for row in chosen[key] if options.memory]:  # first: a process inherits its parent's peak
        command = [sys.executable, __file__, "--peak", pair[0], str(ROWS.index(pair[1])), *(["--data", options.data] if options.data else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        memory[pair] = {"memory": round(float(done.stdout.split()[-1])) if done.returncode == 0 else "-"}
    everything = {}
    for key, rows in chosen.items():
        results = measure(CASES[key], rows, options.rounds, options.data)
        everything[key] = [result | memory.get((key, row), {}) for row, result in zip(rows, results, strict=True)]
        print(table(CASES[key], everything[key]), flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"versions": versions, "cases": everything}, file, indent=1)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(str(error)) from None
