"""A rule carried to other widths, depths, shares of firing units and data sets, one at a time."""

from __future__ import annotations

import math
from typing import Any

from retain.plasticity import learn_online
from retain.studies.base import Keeper
from retain.studies.plasticity.common import inputs_of, target, tell
from retain.studies.plasticity.spec import PlasticitySpec
from retain.studies.plasticity.variants import layers_of, rules, wide
from retain.studies.steps import once
from retain.training.recorder import Recorder


def stages(spec: PlasticitySpec) -> list[str]:
    """Rule by rule."""
    return [f"{rule}@carry" for rule in spec.carried]


def run(spec: PlasticitySpec, seed: int, keeper: Keeper) -> list[dict[str, Any]]:
    """Every rule."""
    found = []
    for rule in spec.carried:
        found += once(keeper.recorder(f"{rule}@carry"), _carry, spec, rule, seed)["cells"]
    return found


def places(spec: PlasticitySpec, rule: str) -> list[tuple[str, float | str, dict[str, Any]]]:
    """Where a rule is carried: the axis, the value there, and how the network or the data differ from the base."""
    found: list[tuple[str, float | str, dict[str, Any]]] = [("width", width, {"width": width}) for width in spec.carry_widths]
    if layers_of(rule) == 2:
        # without a table for hidden layers there is no deeper network to carry a rule to
        found += [("layers", layers, {"layers": layers}) for layers in spec.carry_layers]
    found += [("share", share, {"share": share}) for share in spec.carry_shares]
    return found + [("data", name, {"name": name}) for name in ("mnist", "fashion", "digits")]


def _carry(spec: PlasticitySpec, name: str, seed: int, recorder: Recorder) -> dict[str, Any]:
    rule, _ = rules(spec, name, seed)
    base: dict[str, Any] = {"name": "mnist", "width": spec.width, "layers": layers_of(name), "share": spec.cap / spec.width}
    cells: list[dict[str, Any]] = []
    known: dict[tuple[Any, ...], dict[str, Any]] = {}
    for axis, value, change in places(spec, name):
        there = {**base, **change}
        key = tuple(there.values())
        if key not in known:
            task = target(spec, there["name"], seed)
            # several axes go through the base: it is learned once
            net = wide(spec, inputs_of(task), there["layers"], there["width"], there["share"], seed)
            result = learn_online(net, rule, task, epochs=spec.passes, score_every=0, seed=seed)
            known[key] = {"accuracy": result.final(), "validation": result.final("validation"), "diverged": result.diverged or 0}
        cells.append({"rule": name, "axis": axis, "value": value, **known[key]})
        tell(recorder, f"{axis} {value}", len(cells), len(places(spec, name)), math.nan, test=float(known[key]["accuracy"]))
    return {"cells": cells}
