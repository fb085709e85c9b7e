"""The field's table in one command: methods of continual learning in three scenarios, with error bars, beside what papers report.

Settings are those of van de Ven, Tuytelaars and Tolias 2022, "Three types of incremental learning" (https://doi.org/10.1038/s42256-022-00568-3), and of the
papers that the presets name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, get_args

import torch

from retain.errors import DivergedError, InputError, nearest
from retain.studies.base import Keeper, Outcome, Plan, Study
from retain.studies.benchmark import figures
from retain.studies.benchmark.arms import DEFAULTS, LABELS, applies, make, network, stream_of, strength
from retain.studies.benchmark.cell import run, stage
from retain.studies.benchmark.spec import PRESETS, BenchmarkSpec
from retain.studies.steps import measured_step
from retain.tasks.stream import Scenario
from retain.training.devices import choose_device

_COST = {
    "ewc": 1.2,
    "online-ewc": 1.2,
    "mas": 1.2,
    "si": 1.3,
    "laplace": 4.0,
    "laplace+er": 5.0,
    "vcl": 3.2,
    "lwf": 1.4,
    "er": 1.9,
    "a-gem": 2.0,
    "der++": 2.6,
    "icarl": 2.6,
    "generative-replay": 5.0,
    "xdg": 1.1,
}
"""Of a cell, in multiples of fine-tuning."""


class BenchmarkStudy(Study):
    """The benchmark."""

    name = "benchmark"
    title = "The benchmark of continual learning"
    question = "A network learns one task after another: what does each method keep of the earlier ones, at what cost, and what do papers report?"
    spec_type = BenchmarkSpec
    citations: ClassVar[list[str]] = [
        "vandeven2022three",
        "kirkpatrick2017overcoming",
        "schwarz2018progress",
        "zenke2017continual",
        "aljundi2018memory",
        "ritter2018online",
        "nguyen2018variational",
        "li2018learning",
        "chaudhry2019tiny",
        "chaudhry2019efficient",
        "buzzega2020dark",
        "rebuffi2017icarl",
        "shin2017continual",
        "masse2018alleviating",
        "lecun1998gradient",
        "xiao2017fashion",
    ]
    presets = PRESETS
    more = "Every measure"

    def stages(self, spec: BenchmarkSpec) -> list[str]:
        """Scenario by scenario, method by method."""
        return [stage(method, scenario) for scenario, method in self._pairs(spec)]

    @staticmethod
    def _pairs(spec: BenchmarkSpec) -> list[tuple[str, str]]:
        return [(scenario, method) for scenario in spec.scenarios for method in spec.methods if applies(method, scenario)]

    def check(self, spec: BenchmarkSpec) -> None:
        """Build every method, load the data, and see that names and numbers go together."""
        choose_device(spec.device)
        spec.check_once("scenarios", "methods")
        if spec.trial:
            raise InputError("trial", "false", "true", "Trials are made by the search: set search.")
        if spec.start is not None:
            raise InputError("--from", "a study that starts from a stored model", "benchmark", "Leave it out: every method starts anew.")
        for method in spec.methods:
            for scenario in spec.scenarios:
                make(spec, method, scenario, 0)
        for field in ("own_strengths", "search"):
            for key in getattr(spec, field):
                method, _, scenario = key.partition("/")
                if scenario and field == "own_strengths" and scenario not in get_args(Scenario):
                    raise InputError(field, "a method, or method/scenario", repr(key), nearest(scenario, get_args(Scenario)))
                if method not in DEFAULTS or (scenario and field == "search"):
                    raise InputError(field, "methods that have a strength", repr(key), nearest("" if key in LABELS else method, DEFAULTS))
        for method, values in spec.search.items():
            if len(set(values)) < max(2, len(values)):
                raise InputError("search", f"at least two different strengths of '{method}'", list(values))
        if spec.damping and set(spec.scenarios) != {"domain"}:
            raise InputError("damping", "0 in scenarios whose tasks have outputs of their own", spec.damping, "It would hold outputs that no task has used.")
        if spec.stream == "mnist-fashion":
            if spec.scenarios != ("domain",):
                raise InputError("scenarios", "[domain], as both tasks of mnist-fashion have the same ten outputs", list(spec.scenarios))
            if spec.experiences != 2:
                raise InputError("experiences", "2 with stream=mnist-fashion", spec.experiences)
        if spec.stream == "split" and 10 % spec.experiences:
            raise InputError("experiences", "2, 5 or 10 with stream=split, parts of ten classes", spec.experiences)
        if spec.offset <= spec.search_seed < spec.offset + spec.seeds and spec.search:
            raise InputError("search_seed", "a seed that is not reported", spec.search_seed, f"Reported are {spec.offset} to {spec.offset + spec.seeds - 1}.")
        if not self._pairs(spec):
            raise InputError(
                "methods", "a method that makes sense in some scenario", list(spec.methods), "separate and xdg are for scenario task, icarl for scenario class."
            )
        for scenario in spec.scenarios:
            stream_of(spec, scenario, spec.offset)
        if spec.search:
            whole = spec.model_copy(update={"validation": 0})
            least = min(task.n for task in stream_of(whole, spec.scenarios[0], spec.search_seed).tasks)  # the same in every scenario
            if spec.searched >= least:
                raise InputError("searched", f"fewer images than the smallest task has, {least}", spec.searched)

    def cells(self, spec: BenchmarkSpec) -> list[BenchmarkSpec]:
        """One for every method and scenario, with its own strength alone, so that other grids find it again."""
        return [self._cell(spec, method, scenario) for scenario, method in self._pairs(spec)]

    @staticmethod
    def _cell(spec: BenchmarkSpec, method: str, scenario: str, **changes: Any) -> BenchmarkSpec:
        force = strength(spec, method, scenario)
        own = {} if force is None else {method: force}
        defaults = {name: BenchmarkSpec.model_fields[name].default for name in ("search_seed", "searched", "trial_divisor")}
        return spec.model_copy(update={"methods": (method,), "scenarios": (scenario,), "own_strengths": own, "search": {}, **defaults, **changes})

    @staticmethod
    def _trial_steps(spec: BenchmarkSpec, number: int) -> int:
        """Steps a task in a round of trials: twice as many as in the one before, and at most all."""
        return max(1, min(spec.train_steps, (spec.train_steps << number) // spec.trial_divisor))

    def trials(self, spec: BenchmarkSpec, rounds: Sequence[Sequence[dict[str, Any]]]) -> list[BenchmarkSpec]:
        """The next round of the search, by successive halving (Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943).

        All strengths of a method and scenario are tried at a ``trial_divisor``-th of the steps, a quarter by default, then the better half of them at twice as
        many, and so on.

        Args:
            spec: The settings.
            rounds: What the cells of each round so far gave.

        Returns:
            Cells; none if all strengths are chosen.
        """
        found: list[BenchmarkSpec] = []
        steps = self._trial_steps(spec, len(rounds))
        held = {"trial": True, "validation": spec.searched, "offset": spec.search_seed, "train_steps": steps, "points": 1, "seeds": 1}
        for scenario, method in self._pairs(spec):
            left = self._left(spec, method, scenario, rounds)
            if len(left) < 2:
                continue
            found += [self._cell(spec, method, scenario, **held, own_strengths={method: value}) for value in left]
        return found

    @staticmethod
    def _left(spec: BenchmarkSpec, method: str, scenario: str, rounds: Sequence[Sequence[dict[str, Any]]]) -> list[float]:
        """Strengths that are still in the race, weakest first; of equal ones the weaker stays."""
        given = {method, f"{method}/{scenario}"} & set(spec.own_strengths)  # what a person gives is not searched
        left = [] if given else sorted(spec.search.get(method, ()))
        for trials in rounds:
            if len(left) < 2:
                break
            mine = [cell for result in trials for cell in result["cells"] if (cell["method"], cell["scenario"]) == (method, scenario)]
            score = {cell["strength"]: _held_out(cell) for cell in mine}
            if all(math.isinf(score[value]) for value in left):
                raise InputError("search", f"a strength of '{method}' that does not diverge", left, "Give it weaker ones, or set pull=proximal.")
            left = sorted(sorted(left, key=lambda value: (-score[value], value))[: (len(left) + 1) // 2])
        return left

    def settled(self, spec: BenchmarkSpec, rounds: Sequence[Sequence[dict[str, Any]]]) -> BenchmarkSpec:
        """The spec with the strengths that were found."""
        chosen = {f"{method}/{scenario}": self._left(spec, method, scenario, rounds) for scenario, method in self._pairs(spec)}
        found = {key: left[0] for key, left in chosen.items() if left}
        return spec.model_copy(update={"own_strengths": {**spec.own_strengths, **found}, "search": {}})

    def _search_work(self, spec: BenchmarkSpec) -> tuple[int, float]:
        """Optimiser steps of the search, as they are and in multiples of fine-tuning's."""
        steps, work = 0, 0.0
        for scenario, method in self._pairs(spec):
            left, number = len(self._left(spec, method, scenario, ())), 0
            while left > 1:
                mine = left * self._trial_steps(spec, number) * spec.experiences
                steps, work = steps + mine, work + mine * _COST.get(method, 1.0)
                left, number = (left + 1) // 2, number + 1
        return steps, work

    def plan(self, spec: BenchmarkSpec) -> Plan:
        """Time a few training steps and multiply."""
        self.check(spec)
        torch.set_num_threads(spec.threads)
        stream = stream_of(spec, spec.scenarios[0], spec.offset)
        model = network(spec, stream, spec.offset)
        task = stream[0]
        second, batch = measured_step(model, task, spec.batch_size, spec.optimizer, spec.lr)
        steps = spec.train_steps * len(stream)
        pairs = self._pairs(spec)
        work = sum(_COST.get(method, 1.0) for _, method in pairs)
        tried, worked = self._search_work(spec)
        parameters = sum(p.numel() for p in model.parameters())
        return Plan(
            parameters, {one.id: one.n for one in stream.tasks}, self.stages(spec), steps * len(pairs), second * steps * work, batch, tried, second * worked
        )

    def run(self, spec: BenchmarkSpec, seed: int, keeper: Keeper) -> dict[str, Any]:
        """Every method in every scenario; a trial of the search that diverges is a result too, the worst."""
        found = []
        for scenario, method in self._pairs(spec):
            try:
                found.append(run(spec, method, scenario, seed + spec.offset, keeper))
            except DivergedError as error:
                if not spec.trial:  # what is reported has to be whole
                    raise
                force = strength(spec, method, scenario)
                found.append({"method": method, "scenario": scenario, "strength": force, "validation_rows": [[None]], "diverged": str(error)})
        return {"cells": found}

    def join(self, spec: BenchmarkSpec, found: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
        """The cells that are there."""
        return {"cells": [cell for one in found if one is not None for cell in one["cells"]]}

    def summarise(self, spec: BenchmarkSpec, results: list[dict[str, Any]]) -> Outcome:
        """The sentence, tables and figures of the report."""
        if spec.trial:
            raise InputError("run", "a run, or a cell that is reported", "a trial of the search", "Its result.json has its score on held-out images.")
        tables, drawn = figures.shown(spec, results)
        return Outcome(figures.sentence(spec, results), tables, drawn, figures.notes(spec), figures.numbers(spec, results))


def _held_out(cell: dict[str, Any]) -> float:
    """What a trial scores: average accuracy on held-out images at the end; one that diverged is below all others."""
    found = figures.average(cell["validation_rows"][-1])
    return -math.inf if math.isnan(found) else found
