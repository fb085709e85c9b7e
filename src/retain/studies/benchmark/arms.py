"""The methods of the benchmark, and the streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch.nn import functional as F

from retain.errors import InputError, nearest
from retain.methods import (
    AGEM,
    ER,
    EWC,
    MAS,
    SI,
    VCL,
    DERpp,
    GenerativeReplay,
    ICaRL,
    LwF,
    Method,
    OnlineEWC,
    Plain,
    SeparateNetworks,
    StructuredLaplace,
    XdG,
    compose,
)
from retain.methods.memory import Choose
from retain.models import MLP, GaussianPrior
from retain.seeds import derive, generator
from retain.studies.benchmark.spec import BenchmarkSpec
from retain.tasks import Stream, Task, fashion_mnist, mnist, permute, sequence, split
from retain.tasks.stored import StoredData, stored

DEFAULTS = {"ewc": 1e5, "online-ewc": 1e5, "si": 1e4, "mas": 1e5, "laplace": 1e4, "laplace+er": 30.0, "vcl": 100.0}
"""Strengths of the methods that have one."""
LABELS = {
    "plain": "fine-tuning",
    "ewc": "EWC",
    "online-ewc": "online EWC",
    "si": "SI",
    "mas": "MAS",
    "laplace": "Kronecker Laplace",
    "laplace+er": "Kronecker Laplace and ER",
    "vcl": "VCL",
    "lwf": "LwF",
    "er": "ER",
    "a-gem": "A-GEM",
    "der++": "DER++",
    "icarl": "iCaRL",
    "generative-replay": "generative replay",
    "xdg": "XdG",
    "separate": "separate networks",
    "joint": "joint training",
}


def strength(spec: BenchmarkSpec, method: str, scenario: str) -> float | None:
    """The strength that a method is run with in a scenario; ``None`` if it has none."""
    if method not in DEFAULTS:
        return None
    return spec.own_strengths.get(f"{method}/{scenario}", spec.own_strengths.get(method, DEFAULTS[method]))


def make(spec: BenchmarkSpec, method: str, scenario: str, seed: int) -> Method:
    """A method that knows nothing yet.

    Args:
        spec: The settings.
        method: Its name; joint training is plain training on another stream.
        scenario: The stream's.
        seed: Of the run.

    Returns:
        The method.

    Raises:
        InputError: If there is none of this name.
    """
    force = strength(spec, method, scenario) or 0.0
    labels, memory = derive(seed, "labels") % 2**31, derive(seed, "memory") % 2**31
    kept = spec.budget if spec.budget_of == "all" else spec.budget * _classes(spec)
    choose: Choose = "per-class" if spec.budget_of == "class" else "reservoir"
    er = partial(ER, spec.budget, choose, seed=memory)
    fisher: dict[str, Any] = {"samples": spec.fisher_samples, "pull": spec.pull, "seed": labels}
    laplace = partial(StructuredLaplace, force, every=spec.every if spec.pull == "proximal" else 1, damping=spec.damping, **fisher)
    makers: dict[str, Callable[[], Method]] = {
        "plain": Plain,
        "joint": Plain,
        "separate": SeparateNetworks,
        "ewc": partial(EWC, force, **fisher),
        "online-ewc": partial(OnlineEWC, force, **fisher),
        "si": partial(SI, force, pull=spec.pull),
        "mas": partial(MAS, force, pull=spec.pull, seed=labels),
        "laplace": laplace,
        "laplace+er": lambda: compose(laplace(), er(weight="sum")),
        "vcl": partial(VCL, GaussianPrior(std=0.3), logvar=-8.0, beta=0.01, strength=force),
        "lwf": partial(LwF, 0.25, weight="sum" if scenario == "class" else "past"),  # van de Ven's weights, whose code has no squared temperature
        "er": er,
        "a-gem": partial(AGEM, spec.budget, choose, seed=memory),
        "der++": partial(DERpp, kept, seed=memory),
        "icarl": partial(ICaRL, spec.budget, "per-class" if spec.budget_of == "class" else "balanced", seed=memory),
        "generative-replay": partial(GenerativeReplay, seed=memory),
        "xdg": partial(XdG, seed=derive(seed, "gates") % 2**31),
    }
    if method not in makers:
        raise InputError("methods", "methods of the benchmark", repr(method), nearest(method, makers))
    return makers[method]()


def applies(method: str, scenario: str) -> bool:
    """Whether a method makes sense in a scenario: separate networks and XdG have to be told which task is asked, iCaRL is about classes that compete."""
    return {"separate": "task", "xdg": "task", "icarl": "class"}.get(method, scenario) == scenario


def _classes(spec: BenchmarkSpec) -> int:
    """Pairs of a task and one of its classes."""
    return 10 if spec.stream == "split" else 10 * spec.experiences


@lru_cache(maxsize=2)
def _source(name: str, embedded: bool, data: str | None, pad: int) -> Task:
    task = (mnist if name == "mnist" else fashion_mnist)(data, embedded=embedded)
    if not pad:
        return task
    padded = [StoredData(F.pad(part.source, [pad] * 4), part.targets, part.rows) for part in map(stored, (task.data, task.test))]
    return replace(task, data=padded[0], test=padded[1])


def stream_of(spec: BenchmarkSpec, scenario: str, seed: int) -> Stream:
    """The tasks of a run, in the order of its seed."""
    first = _source("mnist", spec.embedded, spec.data, spec.pad)
    if spec.stream == "mnist-fashion":
        found = sequence(first, _source("fashion", spec.embedded, spec.data, spec.pad))
    elif spec.stream == "permuted":
        found = permute(first, spec.experiences, derive(seed, "permutations") % 2**31, first=True, scenario=scenario)  # type: ignore[arg-type]
    else:
        order = derive(seed, "class order") % 2**31 if spec.class_order == "random" else None
        found = split(first, spec.experiences, order=order, scenario=scenario, relabel=scenario == "domain")  # type: ignore[arg-type]
    if not spec.validation:
        return found
    held = tuple(task.hold_out(spec.validation, generator(seed, "validation", i)) for i, task in enumerate(found.tasks))
    return Stream(held, found.scenario)


def network(spec: BenchmarkSpec, stream: Stream, seed: int) -> MLP:
    """The network: an output for every label of the stream."""
    shape = stream.tasks[0].data.shape or ()
    labels = 1 + max(label for task in stream.tasks for label in task.classes or ())
    return MLP(int(torch.tensor(shape).prod()), *spec.units, labels, seed=seed)
