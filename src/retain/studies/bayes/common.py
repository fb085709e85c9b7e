"""What the parts of the posterior study share: data, networks, methods, and results as plain values."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn

from retain.methods import EWC, VCL
from retain.models import MLP, GaussianPrior
from retain.models.parameters import copy
from retain.seeds import generator
from retain.studies.bayes.spec import BayesSpec
from retain.tasks import Task, mnist
from retain.training import Result


@lru_cache(maxsize=1)
def images(embedded: bool, data: str | None) -> Task:
    """MNIST."""
    return mnist(data, embedded=embedded)


@lru_cache(maxsize=2)
def ten_digits(spec: BayesSpec, seed: int) -> Task:
    """MNIST with validation images of this seed."""
    return images(spec.embedded, spec.data).hold_out(spec.validation, generator(seed, "validation"))


def net(hidden: tuple[int, ...], outputs: int, seed: int) -> MLP:
    """A plain network on MNIST's pixels."""
    return MLP(784, *hidden, outputs, seed=seed)


def vcl(spec: BayesSpec, **changes: Any) -> VCL:
    """Variational continual learning with the study's settings; during training the means answer."""
    return VCL(**{**settings(spec), **changes})


def settings(spec: BayesSpec) -> dict[str, Any]:
    """Arguments of ``VCL``."""
    names = ("logvar", "pace", "beta", "strength")
    return {"prior": GaussianPrior(std=spec.prior_std), "samples": spec.draws, "answers": 0, **{name: getattr(spec, name) for name in names}}


def exact(spec: BayesSpec) -> VCL:
    """The same without tempering: beta and strength 1."""
    return vcl(spec, beta=1.0, strength=1.0)


def ewc(spec: BayesSpec) -> EWC:
    """EWC as it works best: a proximal pull beside SGD with momentum."""
    return EWC(spec.ewc_strength, pull="proximal")


def options(spec: BayesSpec, *, plain: bool = False) -> dict[str, Any]:
    """Arguments of ``learn``: plain networks learn by SGD with momentum, Bayesian ones by Adam."""
    if plain:
        return {"batch_size": spec.batch_size, "optimizer": "momentum", "lr": spec.ewc_lr, "schedule": "cosine", "device": spec.device}
    return {"batch_size": spec.batch_size, "optimizer": spec.optimizer, "lr": spec.lr, "schedule": spec.schedule, "device": spec.device}


def record(result: Result, after: Result | None = None) -> dict[str, Any]:
    """A result as plain values, without the curves of the result that it went on from."""
    kept = {key: getattr(result, key) for key in ("rows", "nll_rows", "validation_rows")}
    return {**kept, "history": result.history[len(after.history) if after else 0 :]}


def moved(model: nn.Module, since: VCL, task: Task) -> float:
    """Nats from one posterior to another: the divergence of the model's from the one that a method remembers."""
    helper, there = vcl_of(since), copy(model)
    helper.begin(there, task)
    with torch.no_grad():
        return helper.divergence(there)


def vcl_of(since: VCL, **changes: Any) -> VCL:
    """A method that remembers what another does."""
    made = VCL(**{**since.settings(), **changes})
    made.posterior, made.seen = since.posterior, since.seen
    return made
