"""Beyond the published rules: one hidden layer, what an output unit knows, averaging, and rules that see errors."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from retain.models.assembly import Assembly
from retain.plasticity import LocalRule, Rule, TableRule, learn_online
from retain.plasticity import learned as shipped
from retain.studies.base import Keeper
from retain.studies.plasticity import gradient
from retain.studies.plasticity.common import again, inputs_of, learned, network, record, seed_of, target, tell
from retain.studies.plasticity.spec import PlasticitySpec
from retain.studies.steps import once
from retain.training.recorder import Recorder

MISTAKES: dict[str, Any] = {"when": "mistakes", "edges": "label and predicted"}
TABLES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "prepost": ("prepost", 1, {}),
    "prepost-2": ("prepost", 2, {}),
    "gated": ("prepost", 1, {"gated": True}),
    "mistakes": ("prepost", 1, MISTAKES),
    "averaged": ("prepost", 1, {**MISTAKES, "average": True}),
    "percent": ("prepostpercent", 2, {}),
    "network": ("network", 2, {}),
}
"""Kind of table, hidden layers and settings."""


def layers_of(variant: str) -> int:
    """Hidden layers of a variant's networks."""
    return TABLES[variant][1] if variant in TABLES else 1


def rules(spec: PlasticitySpec, variant: str, seed: int) -> tuple[Rule, Rule]:
    """A rule as it was learned, and as it was before: tables upstream of this run, local rules as they come with Retain."""
    if variant not in TABLES:
        rule = shipped(variant)
        assert isinstance(rule, LocalRule)
        return rule, LocalRule.from_settings(rule.settings())
    table, layers, settings = TABLES[variant]
    for attempt in range(spec.attempts):
        # input weights are fixed upstream as they are downstream
        rule, net, entry = learned(spec, layers, again(seed, attempt), table, train_inputs=False, **settings)
        if entry["validation"] >= spec.accept:
            break
    start = TableRule.fit(net, table, universal=spec.universal, form=spec.form, seed=seed_of(seed, "rule"), **settings)
    return rule, start


def wide(spec: PlasticitySpec, inputs: int, layers: int, width: int, share: float, seed: int, **changes: Any) -> Assembly:
    """A network of ten classes, of another width and share of units that fire, in single precision."""
    cap = max(1, round(share * width))
    return network(spec, inputs, 10, layers, seed_of(seed, "network", layers, width), width=width, cap=cap, dtype=torch.float32, **changes)


def stages(spec: PlasticitySpec) -> list[str]:
    """Variant by variant, then gradient descent."""
    return [f"{variant}@variants" for variant in spec.variants] + ["tuned@variants"]


def run(spec: PlasticitySpec, seed: int, keeper: Keeper) -> list[dict[str, Any]]:
    """Every variant at every width on every data set."""
    found: list[dict[str, Any]] = []
    for variant in spec.variants:
        found += once(keeper.recorder(f"{variant}@variants"), _variant, spec, variant, seed)["cells"]
    found += once(keeper.recorder("tuned@variants"), _tuned, spec, seed)["cells"]
    return found


def _variant(spec: PlasticitySpec, variant: str, seed: int, recorder: Recorder) -> dict[str, Any]:
    rule, start = rules(spec, variant, seed)
    cells = []
    for name in spec.targets:
        task = target(spec, name, seed)
        for width in spec.widths:
            # a network each: some rules change the input weights too
            net, same = (wide(spec, inputs_of(task), layers_of(variant), width, spec.share, seed) for _ in range(2))
            result = learn_online(net, rule, task, epochs=spec.passes, score_every=spec.curve_every, seed=seed, recorder=recorder)
            begun = learn_online(same, start, task, epochs=spec.passes, score_every=0, seed=seed)
            cells.append({"variant": variant, "width": width, "target": name, "start": record(begun), "down": record(result)})
            tell(recorder, f"{name}, width {width}", len(cells), len(spec.targets) * len(spec.widths), math.nan, learned=result.final(), start=begun.final())
    return {"cells": cells}


def _tuned(spec: PlasticitySpec, seed: int, recorder: Recorder) -> dict[str, Any]:
    cells = []
    for name in spec.targets:
        task = target(spec, name, seed)
        for width in spec.widths:
            found, _ = gradient.tuned(
                partial(wide, spec, inputs_of(task), 1, width, spec.share, seed),
                task,
                spec.rates,
                passes=spec.passes,
                seed=seed,
                every=spec.curve_every,
            )
            cells.append({"variant": "tuned", "width": width, "target": name, "down": found})
            tell(recorder, f"{name}, width {width}", len(cells), len(spec.targets) * len(spec.widths), math.nan, gradient=found["test"][-1])
    return {"cells": cells}
