"""Digits 0-4, then 5-9: is the posterior of the first a good prior for the second?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from retain.methods import VCL, Method
from retain.models import GaussianPrior, bayesian, copy
from retain.models.bayesian import bayesian_layers, put_prior
from retain.seeds import generator
from retain.studies.base import Keeper
from retain.studies.bayes.common import ewc, exact, moved, net, options, record, ten_digits, vcl, vcl_of
from retain.studies.bayes.spec import Arm, BayesSpec, Head
from retain.tasks import Stream, Task, split
from retain.tasks.data import TensorData
from retain.training import Result, evaluate, learn

OLD, NEW = "0-4", "5-9"
_FIRST = {"posterior": "", "weights": "", "scratch": "", "exact": "-exact", "ewc": "-plain"}
"""Which first-task network an arm goes on from: the end of its stage's name."""


def stages(spec: BayesSpec) -> list[str]:
    """First tasks, then every arm at every fraction."""
    found = []
    for head in spec.heads:
        found += [f"first{end}@{head}" for end in dict.fromkeys(_FIRST[arm] for arm in spec.arms)]
        found += [f"{arm}@{head},{fraction:g}" for fraction in spec.fractions for arm in spec.arms]
    return found


def samples(spec: BayesSpec) -> float:
    """Training images that all stages see, in multiples of the ten digits."""
    first = len(dict.fromkeys(_FIRST[arm] for arm in spec.arms))
    return len(spec.heads) * spec.epochs * 0.5 * (first + len(spec.arms) * sum(spec.fractions))


def run(spec: BayesSpec, seed: int, keeper: Keeper) -> list[dict[str, Any]]:
    """Every arm at every fraction under every head."""
    found = []
    for head in spec.heads:
        firsts: dict[str, tuple[nn.Module, Result, Method]] = {}
        whole = stream(spec, seed, head, 1.0)
        for end in dict.fromkeys(_FIRST[arm] for arm in spec.arms):
            method: Method = {"": vcl, "-exact": exact, "-plain": ewc}[end](spec)
            model = net(spec.hidden, _outputs(head), seed)
            recorder = keeper.recorder(f"first{end}@{head}")
            result = learn(model, whole[:1], method, watch=whole, epochs=spec.epochs, seed=seed, recorder=recorder, **options(spec, plain=end == "-plain"))
            assert result.model is not None
            firsts[end] = (result.model, result, method)
            if head == spec.heads[0]:
                keeper.keep(f"first{end}", result.model)
        for fraction in spec.fractions:
            for arm in spec.arms:
                entry = _take(spec, seed, head, fraction, arm, *firsts[_FIRST[arm]], keeper)
                found.append({"head": head, "fraction": fraction, "arm": arm, **entry})
    return found


def _take(spec: BayesSpec, seed: int, head: Head, fraction: float, arm: Arm, model: nn.Module, first: Result, before: Method, keeper: Keeper) -> dict[str, Any]:
    """Learn the second task in one way."""
    both = stream(spec, seed, head, fraction)
    shared: dict[str, Any] = {"epochs": spec.epochs, "seed": seed, "recorder": keeper.recorder(f"{arm}@{head},{fraction:g}"), "consolidate_last": False}
    if arm == "ewc":
        method = ewc(spec)
        method.load_state_dict(before.state_dict(), model)
        result = learn(copy(model), both, method, after=first, **shared, **options(spec, plain=True))
        return record(result, first)
    assert isinstance(before, VCL)
    if arm == "scratch":
        start = bayesian(net(spec.hidden, _outputs(head), seed), GaussianPrior(std=spec.prior_std), logvar=spec.logvar)
        result = learn(start, both[1:], vcl(spec), watch=both, **shared, **options(spec))
    elif arm == "weights":
        result = learn(_means_alone(model, spec), both, vcl(spec), after=first, **shared, **options(spec))
    else:
        result = learn(copy(model), both, vcl_of(before), after=first, **shared, **options(spec))
    assert result.model is not None
    answering = vcl(spec, answers=spec.answers)
    sampled = [evaluate(result.model, task, answering) for task in both]
    return {
        **record(result, None if arm == "scratch" else first),
        "sampled": [one.score for one in sampled],
        "sampled_nll": [one.nll for one in sampled],
        "moved": moved(result.model, before, both[1]),
    }


def _means_alone(model: nn.Module, spec: BayesSpec) -> nn.Module:
    """The old means with the new task's own prior and variances."""
    made = copy(model)
    for layer in bayesian_layers(made).values():
        for part, (mean, logvar) in layer.posterior.items():
            put_prior(layer, part, torch.zeros_like(mean), torch.full_like(mean, 2 * torch.tensor(spec.prior_std).log().item()))
            with torch.no_grad():
                logvar.fill_(spec.logvar)
    return made


def stream(spec: BayesSpec, seed: int, head: Head, fraction: float) -> Stream:
    """The two tasks: five digits each; of the second's training images a fraction."""
    old, new = split(ten_digits(spec, seed), 2).tasks
    pair = [replace(old, id=OLD), replace(new, id=NEW)]
    if fraction < 1:
        order = torch.randperm(new.n, generator=generator(seed, "fraction"))[: max(1, round(fraction * new.n))]
        assert isinstance(new.data, TensorData)
        pair[1] = replace(pair[1], data=new.data.take(order), n=0)
    if head == "separate":
        return Stream(tuple(pair), "task")
    return Stream(tuple(_relabelled(task) for task in pair))


def _relabelled(task: Task) -> Task:
    """The task's five digits as classes 0 to 4: both tasks share the outputs, and their labels collide, as the notebook had it."""
    parts: dict[str, Any] = {name: TensorData(data.inputs, data.targets % 5) for name in ("data", "test", "validation") if (data := getattr(task, name))}
    return replace(task, **parts, classes=tuple(range(5)), class_names=None, n=0)


def _outputs(head: Head) -> int:
    return 10 if head == "separate" else 5
