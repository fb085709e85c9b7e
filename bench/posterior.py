"""What a posterior over the weights costs: a training step of a Bayesian network in multiples of the plain one's.

    python bench/posterior.py [--rounds N] [--steps N] [--only WORD]

784-400-400-10, batches of 128, one sample of the weights: forward pass, negative evidence lower bound, backward pass and a fused Adam step. One
process, one thread, CPU seconds. Every row is timed right after the plain network with fused Adam, both warmed up; figures are medians over
rounds of the ratio of the two. Ours adds the divergence's gradient after the backward pass, as ``methods.VCL`` does. IVON has a step of its own.
Other libraries are used as they document it, with fused Adam where the optimiser is torch's: bayesian-torch's divergence is a mean over the
weights in place of a sum; posteriors takes TorchOpt's Adam, with its accelerated operator. A library that is missing, or fails, is a line.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import itertools
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain import models
from retain.models.bayesian import Estimator, Prior, add_kl_gradient, bayesian_layers

SIZES = (784, 400, 400, 10)
BATCH = 128
N = 60_000
LR = 1e-4
WARM = 2  # untimed steps before each timing

Step = Callable[[Tensor, Tensor], object]


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=LR, fused=True)


def stepping(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], after: Callable[[], object] | None = None) -> Step:
    """A step of fused Adam on a loss; ``after`` follows the backward pass."""
    optimizer = adam(model)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        loss(x, y).backward()
        if after is not None:
            after()
        optimizer.step()

    return step


def plain() -> Step:
    model = models.MLP(*SIZES, seed=0)
    return stepping(model, lambda x, y: F.cross_entropy(model(x), y))


def ours(estimator: Estimator, prior: str) -> Step:
    start = models.MLP(*SIZES, seed=0)
    priors: dict[str, Prior | nn.Module] = {
        "N(0, 1)": models.GaussianPrior(0.0, 1.0),
        "a posterior": models.bayesian(start, logvar=-5.0),
        "a mixture": models.ScaleMixture(),
    }
    model = models.bayesian(start, priors[prior], estimator=estimator).train()
    return stepping(model, lambda x, y: F.cross_entropy(model(x), y), partial(add_kl_gradient, bayesian_layers(model), 1 / N, after_forward=True))


def ivon() -> Step:
    model = models.MLP(*SIZES, seed=0)
    optimizer = importlib.import_module("retain.curvature.ivon").IVON(model.parameters(), lr=LR, ess=N)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        with optimizer.sampled():
            F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def bayesian_torch(kind: str) -> Step:
    library = importlib.import_module("bayesian_torch.models.dnn_to_bnn")
    settings = {"prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0, "posterior_rho_init": -3.0, "moped_enable": False, "moped_delta": 0.5}
    model = models.MLP(*SIZES, seed=0)
    library.dnn_to_bnn(model, {**settings, "type": kind})
    return stepping(model, lambda x, y: F.cross_entropy(model(x), y) + library.get_kl_loss(model) / BATCH)


def blitz() -> Step:
    layer = importlib.import_module("blitz.modules").BayesianLinear

    @importlib.import_module("blitz.utils").variational_estimator
    class Network(nn.Sequential):
        sample_elbo: Callable[..., Tensor]

    model = Network(*[part for a, b in itertools.pairwise(SIZES) for part in (layer(a, b), nn.ReLU())][:-1])
    return stepping(model, lambda x, y: model.sample_elbo(inputs=x, labels=y, criterion=F.cross_entropy, sample_nbr=1, complexity_cost_weight=1 / N))


def posteriors() -> Step:
    library, optimizers = importlib.import_module("posteriors"), importlib.import_module("torchopt")
    model = models.MLP(*SIZES, seed=0).requires_grad_(False)

    def log_posterior(parameters: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        outputs = torch.func.functional_call(model, parameters, batch[0])
        return -F.cross_entropy(outputs, batch[1]) + library.diag_normal_log_prob(parameters) / N, outputs

    optimizer = optimizers.adam(lr=LR, use_accelerated_op=True)
    transform = library.vi.diag.build(log_posterior, optimizer, temperature=1 / N, n_samples=1, init_log_sds=-5.0)
    state = transform.init(dict(model.named_parameters()))

    def step(x: Tensor, y: Tensor) -> None:
        nonlocal state
        state, _ = transform.update(state, (x, y))

    return step


@dataclass(frozen=True)
class Row:
    """A way to train: what makes its step, and the package that it needs."""

    name: str
    make: Callable[[], Step]
    package: str = "retain"


ROWS = [
    *(Row(f"retain, {e}, prior {p}", partial(ours, e, p)) for e in ("local", "flipout", "weights") for p in ("N(0, 1)", "a posterior", "a mixture")),
    Row("retain, IVON", ivon),
    Row("bayesian-torch, Reparameterization", partial(bayesian_torch, "Reparameterization"), "bayesian-torch"),
    Row("bayesian-torch, Flipout", partial(bayesian_torch, "Flipout"), "bayesian-torch"),
    Row("blitz, sample_elbo", blitz, "blitz-bayesian-pytorch"),
    Row("posteriors, vi.diag", posteriors, "posteriors"),
]


def timed(step: Step, batches: list[tuple[Tensor, Tensor]], steps: int) -> float:
    """CPU seconds a step."""
    todo = itertools.islice(itertools.cycle(batches), steps + WARM)
    for x, y in itertools.islice(todo, WARM):
        step(x, y)
    begin = time.process_time()
    for x, y in todo:
        step(x, y)
    return (time.process_time() - begin) / steps


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--rounds", type=int, default=9)
    words.add_argument("--steps", type=int, default=30, help="steps of each timing")
    words.add_argument("--only", default="", help="rows whose name has this in it")
    options = words.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = ("torch", "retain", "bayesian-torch", "blitz-bayesian-pytorch", "posteriors", "torchopt")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in names if any(importlib.metadata.distributions(name=name))))
    print(f"{options.rounds} rounds of {options.steps} steps, CPU time on one thread, {'-'.join(map(str, SIZES))}, batches of {BATCH}")
    batches = [(torch.randn(BATCH, SIZES[0]), torch.randint(SIZES[-1], (BATCH,))) for _ in range(40)]  # no zeros, and too many to fit: no tiny numbers
    base, ready = plain(), {}
    seconds: list[float] = []
    found: dict[str, list[tuple[float, float]]] = {}
    failed: dict[str, str] = {}
    rows = [row for row in ROWS if options.only in row.name]
    for row in rows:
        if not any(importlib.metadata.distributions(name=row.package)):
            failed[row.name] = f"{row.package} is not installed"
            continue
        try:
            ready[row.name] = row.make()
            timed(ready[row.name], batches, 1)
            found[row.name] = []
        except Exception as error:  # whatever goes wrong in a row is a line of the table
            failed[row.name] = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    for _ in range(options.rounds):
        for name in found:
            seconds.append(timed(base, batches, options.steps))
            spent = timed(ready[name], batches, options.steps)
            found[name].append((spent, spent / seconds[-1]))
    if seconds:
        print(f"the plain step takes {1000 * statistics.median(seconds):.2f} ms ({1000 * min(seconds):.2f}-{1000 * max(seconds):.2f})")
    print(f"\n{'':42}{'ms':>8}{'ratio':>8}{'range':>14}")
    for row in rows:
        if row.name in failed:
            print(f"{row.name:42}  - {failed[row.name]}")
            continue
        ratios = [ratio for _, ratio in found[row.name]]
        spent = 1000 * statistics.median(time for time, _ in found[row.name])
        print(f"{row.name:42}{spent:8.2f}{statistics.median(ratios):8.2f}{f'{min(ratios):.2f}-{max(ratios):.2f}':>14}")


if __name__ == "__main__":
    main()
