"""The rows of the published final plot, and those that answer what they leave open."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from retain.plasticity import TableRule, learn_online
from retain.studies.base import Keeper
from retain.studies.plasticity import gradient
from retain.studies.plasticity.common import again, inputs_of, learned, network, record, seed_of, target, tell
from retain.studies.plasticity.spec import PlasticitySpec
from retain.studies.steps import once
from retain.training.recorder import Recorder


def layers_of(row: str) -> int:
    """Hidden layers of a row's networks; 0 is recurrent. Gradient descent is run on two."""
    return 0 if row.startswith("rnn") else next((int(word) for word in row.split("-") if word.isdigit()), 2)


def stages(spec: PlasticitySpec) -> list[str]:
    """Row by row."""
    return [f"{row}@rows" for row in spec.rows]


def run(spec: PlasticitySpec, seed: int, keeper: Keeper) -> list[dict[str, Any]]:
    """Every row."""
    found = []
    for row in spec.rows:
        make = _gradient if row in ("vanilla", "tuned") else _rule
        found.append({"row": row, **once(keeper.recorder(f"{row}@rows"), make, spec, row, seed)})
    return found


def _gradient(spec: PlasticitySpec, row: str, seed: int, recorder: Recorder) -> dict[str, Any]:
    task = target(spec, "mnist", seed)
    ends: dict[str, Any] = {"passes": spec.passes, "seed": seed, "every": spec.curve_every}

    def make(layers: int) -> Any:
        return network(spec, inputs_of(task), 10, layers, seed_of(seed, "network", layers), start="uniform")

    if row == "vanilla":
        found = gradient.published(make(2), task, **ends)
        tell(recorder, "mnist", 1, 1, math.nan, held_out=found["validation"][-1], test=found["test"][-1])
        return {"down": found}
    # of every architecture that a row has, since each rule is compared with gradient descent on its own network
    nets = sorted({layers_of(name) for name in spec.rows})
    descended: dict[str, Any] = {}
    for layers in nets:
        ends["every"] = spec.curve_every if layers == 2 else 0
        descended[str(layers)], _ = gradient.tuned(partial(make, layers), task, spec.rates, **ends)
        ended = descended[str(layers)]
        tell(
            recorder,
            f"{layers} layers" if layers else "recurrent",
            len(descended),
            len(nets),
            math.nan,
            held_out=ended["validation"][-1],
            test=ended["test"][-1],
        )
    return {"down": descended.get("2") or descended[str(nets[0])], "nets": descended}


def _rule(spec: PlasticitySpec, row: str, seed: int, recorder: Recorder) -> dict[str, Any]:
    layers, table = layers_of(row), "prepostcount" if row.startswith("prepostcount") else "prepost"
    # the published upstream accuracies and losses are those of fixed input weights in the feed-forward networks, and of trained ones in the recurrent network
    train_inputs = layers == 0 or row.endswith("trained")
    task = target(spec, "mnist", seed)
    attempts: list[dict[str, Any]] = []
    for attempt in range(spec.attempts):
        own = again(seed, attempt)
        rule, _, entry = learned(spec, layers, own, table, recorder, train_inputs=train_inputs)
        if row == "rnn-mistakes":
            rule.when, rule.edges = "mistakes", "label and predicted"
        down = network(spec, inputs_of(task), 10, layers, seed_of(own, "network", layers))
        result = learn_online(
            down,
            rule,
            task,
            epochs=spec.passes,
            score_every=spec.curve_every,
            seed=own,
            input_lr=spec.downstream_input_lr,
            double_softmax=spec.double_softmax,
            recorder=recorder,
        )
        attempts.append({**entry, "down": record(result)})
        tell(recorder, "halfspace, mnist", attempt + 1, spec.attempts, entry["loss"][-1], halfspace=entry["validation"], mnist=result.final())
        if entry["validation"] >= spec.accept:
            break
    start = TableRule.fit(down, table, universal=spec.universal, form=spec.form, seed=seed_of(seed, "rule"))
    begun = learn_online(down, start, task, score_every=0, seed=seed)
    best = attempts[-1]
    return {"attempts": attempts, "down": best["down"], "accepted": best["validation"] >= spec.accept, "start": begun.final()}
