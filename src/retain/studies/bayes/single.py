"""Ten digits at once: how the divergence is weighed, and flows on the weights."""

from __future__ import annotations

from typing import Any

from retain.methods import Blundell, NoDivergence, OverBatches, PerSample, WarmUp, Weighting
from retain.models import MLP
from retain.studies.base import Keeper
from retain.studies.bayes.common import net, options, record, ten_digits, vcl
from retain.studies.bayes.spec import BayesSpec
from retain.training import learn


def stages(spec: BayesSpec) -> list[str]:
    """Every scheme, then every number of flows."""
    schemes = [f"{name}@schemes" for name in spec.schemes] if "schemes" in spec.parts else []
    return schemes + ([f"{count}@flows" for count in spec.flows] if "flows" in spec.parts else [])


def samples(spec: BayesSpec) -> float:
    """Training images that all stages see, in multiples of the ten digits."""
    flows = sum(4 * (1 + count) ** 0.5 for count in spec.flows) if "flows" in spec.parts else 0
    return spec.single_epochs * (len(spec.schemes) * ("schemes" in spec.parts) + flows)


def weighting(name: str, spec: BayesSpec, n: int) -> Weighting:
    """A scheme by name, for n training images: those of the notebook, and what it meant."""
    batches = -(-n // spec.batch_size)
    made: dict[str, Weighting] = {
        "per-sample": PerSample(),
        "blundell": Blundell(batches),
        "warm-up": WarmUp(max(1, spec.single_epochs // 4 * batches)),
        "none": NoDivergence(),
        "over-batches": OverBatches(spec.batch_size),
    }
    return made[name]


def run_schemes(spec: BayesSpec, seed: int, keeper: Keeper) -> list[dict[str, Any]]:
    """Learn the ten digits under every scheme, without tempering."""
    found = []
    for name in spec.schemes:
        n = ten_digits(spec, seed).n
        scheme = weighting(name, spec, n)
        entry = _learn(spec, seed, keeper, f"{name}@schemes", net(spec.hidden, 10, seed), {"weighting": scheme})
        steps = spec.single_epochs * -(-n // spec.batch_size)
        found.append({"scheme": name, "weight": sum(scheme.factor(step) for step in range(steps)) / steps, **entry})
    return found


def run_flows(spec: BayesSpec, seed: int, keeper: Keeper) -> list[dict[str, Any]]:
    """Learn the ten digits with every number of flows; all draw the weights themselves."""
    return [
        {"flows": count, **_learn(spec, seed, keeper, f"{count}@flows", net(spec.flow_hidden, 10, seed), {"estimator": "weights", "num_flows": count})}
        for count in spec.flows
    ]


def _learn(spec: BayesSpec, seed: int, keeper: Keeper, stage: str, model: MLP, changes: dict[str, Any]) -> dict[str, Any]:
    method = vcl(spec, **{"beta": 1.0, "strength": 1.0, **changes})
    recorder = keeper.recorder(stage)
    result = learn(model, [ten_digits(spec, seed)], method, epochs=spec.single_epochs, seed=seed, recorder=recorder, consolidate_last=False, **options(spec))
    return record(result)
