"""Shared by all tests: one thread, a few small tasks and models, and slow oracles."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import pytest
import torch
from torch import nn

from retain.likelihoods import Gaussian, Likelihood
from retain.tasks import Task

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _steady() -> Iterator[None]:
    """One thread and a fixed seed; the global generator is left as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def blobs() -> Callable[..., Task]:
    """Classification tasks of Gaussian clouds: easy, small, different for every seed."""

    def make(seed: int, *, n: int = 120, classes: int = 3, width: int = 4, id: str | None = None) -> Task:
        g = torch.Generator().manual_seed(seed)
        centres = 2 * torch.randn(classes, width, generator=g)
        labels = torch.arange(n) % classes
        inputs = centres[labels] + torch.randn(n, width, generator=g)
        half = n // 2
        return Task((inputs[:half], labels[:half]), test=(inputs[half:], labels[half:]), id=id or f"blobs-{seed}")

    return make


@pytest.fixture
def net() -> Callable[..., nn.Module]:
    """A small network for the blobs."""

    def make(seed: int = 0, width: int = 4, classes: int = 3) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, classes))

    return make


def fisher_by_loop(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, likelihood: Likelihood, labels: str) -> dict[str, torch.Tensor]:
    """The slow, obvious Fisher diagonal: a backward pass for every sample and every label."""
    was_training = model.training
    model.eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for x, y in zip(inputs.split(1), targets.split(1), strict=True):
        outputs = model(x)
        if labels == "exact" and not isinstance(likelihood, Gaussian):
            # the definition: every label with its probability
            options = torch.arange(outputs.shape[1]).unsqueeze(1)
            weighed = [(float((-likelihood.nll(outputs.detach(), option)).exp()), option) for option in options]
        elif labels == "exact":
            # E[(y - f)^2] / sigma^4 = 1 / sigma^2 per output: two labels one sigma either side of each output
            weighed = []
            for d in range(outputs.shape[1]):
                shift = torch.zeros_like(outputs)
                shift[0, d] = likelihood.sigma
                weighed += [(0.5, outputs.detach() + sign * shift) for sign in (-1, 1)]
        elif labels == "predicted":
            weighed = [(1.0, likelihood.predict(outputs.detach()))]
        else:
            weighed = [(1.0, y)]
        for weight, label in weighed:
            gradients = torch.autograd.grad(likelihood.nll(outputs, label).sum(), list(parameters.values()), retain_graph=True, allow_unused=True)
            for name, g in zip(parameters, gradients, strict=True):
                if g is not None:
                    total[name] += weight * g.square()
    model.train(was_training)
    return {name: value / len(inputs) for name, value in total.items()}


def retain_command(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command line in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-m", "retain.cli", *words], capture_output=True, text=True, cwd=cwd, env=env, timeout=300, check=False)


# a forgetting study of seconds
TINY = [
    word
    for setting in ("hidden=[16]", "epochs=2", "strengths=[100]", "taus=[]", "factors=[]", "sample_sizes=[]", "norm_samples=50", "threads=1", "batch_size=128")
    for word in ("--set", setting)
]


class Memory:
    """A recorder that keeps the last point and breaks off at one."""

    def __init__(self, after):
        self.after, self.state = after, None

    def event(self, kind, **fields):
        pass

    def save(self, state, *, final=False):
        self.state = state()
        self.after -= 1
        if self.after == 0:
            raise KeyboardInterrupt

    def load(self):
        return self.state
