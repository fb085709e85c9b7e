"""Accuracy against images a class, for every recipe and control."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from retain.diagnosis import Trajectory
from retain.models import copy
from retain.recipes import FineTuned, finetune
from retain.studies.base import Keeper
from retain.studies.finetune import inside
from retain.studies.finetune.common import MEMBERS, Arm, Cache, arms, changed, drawn, network, pool, recipe_of, seed_of
from retain.studies.finetune.spec import FinetuneSpec
from retain.studies.steps import once
from retain.tasks import Task, augment
from retain.training.batchnorm import BatchNormPolicy
from retain.training.recorder import Recorder

SHOWN = 5
"""Points of a curve over the epochs, where the model is looked into."""


@dataclass
class Ground:
    """What all arms of a run stand on.

    Args:
        spec: The settings.
        seed: Of the run.
        task: Its pool of pictures.
        cache: Their features.
    """

    spec: FinetuneSpec
    seed: int
    task: Task
    cache: Cache


def sizes(spec: FinetuneSpec) -> list[int | str]:
    """Images a class that arms are trained at, in order."""
    wanted: list[int | str] = list(spec.per_class) if "curves" in spec.sections else []
    if "inside" in spec.sections and spec.inside_at not in wanted:
        wanted.append(spec.inside_at)
    return sorted(wanted, key=lambda n: float("inf") if n == "all" else float(n))


def chosen(spec: FinetuneSpec, arm: Arm) -> bool:
    """Whether the learning rate of an arm is chosen, run by run; a head alone needs none."""
    return len(spec.rates) > 1 and own(spec, arm) is None and arm.recipe != "linear-probe"


def own(spec: FinetuneSpec, arm: Arm) -> float | None:
    """The learning rate that the settings give an arm; a random start takes that of scratch."""
    return spec.own_rates.get(arm.name, spec.own_rates.get("scratch") if arm.start == "random" else None)


def stages(spec: FinetuneSpec) -> list[str]:
    """Arm by arm: its learning rate, where there is a choice, and its sizes."""
    found = []
    for arm in arms(spec):
        found += [f"{arm.name}@rate"] if chosen(spec, arm) else []
        found += [f"{arm.name}@{n}" for n in sizes(spec)]
    return found


def run(spec: FinetuneSpec, seed: int, keeper: Keeper) -> list[dict[str, Any]]:
    """Every arm at every size."""
    task = pool(spec, seed)
    ground = Ground(spec, seed, task, Cache(spec, task))
    found = []
    for arm in arms(spec):
        rate = own(spec, arm) or spec.rates[0]
        if chosen(spec, arm):
            rate = once(keeper.recorder(f"{arm.name}@rate"), _rate, ground, arm)["rate"]
        for n in sizes(spec):
            found.append({"arm": arm.name, "n": n, **once(keeper.recorder(f"{arm.name}@{n}"), _arm, ground, arm, n, rate)})
    return found


def learned(
    ground: Ground, arm: Arm, n: int | str, rate: float, recorder: Recorder, *, again: int = 0, score: bool = False, tested: bool = True, follow: bool = False
) -> tuple[FineTuned, Trajectory | None]:
    """One arm, trained.

    Args:
        ground: Data and settings.
        arm: Which.
        n: Images a class.
        rate: Learning rate.
        recorder: Gets an event each epoch.
        again: Another run on the same pictures, where it isn't 0: another order, and another random start if it has one.
        score: Score along the way, not only at the end.
        tested: Score on test images; held-out ones are scored in any case.
        follow: Keep the weights after every epoch.

    Returns:
        The result, and the weights along the way.
    """
    spec = ground.spec
    seed = seed_of(ground.seed, "arm", again)
    task = of(ground, arm, n)
    task = task if tested else replace(task, test=None)
    if spec.augment is not None:
        task = augment(task, spec.augment, mirror=spec.images not in ("mnist", "digits"))
    model = network(spec, len(ground.task.classes or ()), arm.start, seed)
    steps = -(-task.n // spec.batch_size)
    epochs = max(spec.epochs, -(-spec.least_steps // steps)) * (MEMBERS if arm.recipe == "soup" else 1)
    cached = None
    if arm.start is None and arm.change is None:
        cached = ground.cache.drawn(n, ground.seed)
        cached = cached if tested else replace(cached, test=None)
    trajectory = Trajectory(model, recorder) if follow else None
    result = finetune(
        model,
        task,
        recipe_of(arm),
        epochs=epochs,
        batch_size=spec.batch_size,
        lr=rate,
        optimizer=spec.optimizer,
        schedule=spec.schedule,
        seed=seed,
        device=spec.device,
        batchnorm=statistics(spec, arm),
        score_every=max(1, epochs // SHOWN) if score else 0,
        cached=cached,
        recorder=trajectory or recorder,
    )
    return result, trajectory


def of(ground: Ground, arm: Arm, n: int | str) -> Task:
    """The task of an arm at a size."""
    return changed(ground.spec, drawn(ground.task, n, ground.seed), arm.change, ground.seed)


def statistics(spec: FinetuneSpec, arm: Arm) -> BatchNormPolicy:
    """What happens to an arm's batch-norm statistics; stochastic normalisation draws between kept and new ones."""
    return "track" if arm.start or arm.recipe == "stochnorm" else spec.batchnorm


def _rate(ground: Ground, arm: Arm, recorder: Recorder) -> dict[str, Any]:
    """The learning rate that is best on held-out images; the likelihood decides between equals."""
    found = []
    for rate in ground.spec.rates:
        result, _ = learned(ground, arm, ground.spec.tune_at, rate, recorder, tested=False)
        found.append({"rate": rate, "validation": result.accuracy["validation"], "nll": result.nll["validation"]})
    best = max(found, key=lambda entry: (entry["validation"], -entry["nll"]))
    return {"rate": best["rate"], "tried": found}


def _arm(ground: Ground, arm: Arm, n: int | str, rate: float, recorder: Recorder) -> dict[str, Any]:
    spec = ground.spec
    looked = "inside" in spec.sections and n == spec.inside_at
    drawing = looked and ground.seed == spec.offset and arm.name in inside.PICTURED
    result, trajectory = learned(ground, arm, n, rate, recorder, score=looked, follow=drawing)
    entry: dict[str, Any] = {
        "rate": rate,
        "accuracy": result.accuracy,
        "nll": result.nll,
        "gap": result.gap,
        "parameters": result.parameters,
        "history": result.history,
        "found": result.found,
    }
    if looked:
        task, frozen = of(ground, arm, n), statistics(spec, arm) == "freeze"
        start = copy(result.model)
        start.load_state_dict(result.start)
        other, _ = learned(ground, arm, n, rate, recorder, again=1, tested=False)
        entry["inside"] = inside.look(spec, result.head, start, result.model, other.model, task, recorder, frozen=frozen)
        if trajectory is not None:
            entry["pictures"] = inside.pictures(spec, result.model, trajectory, task, recorder, frozen=frozen)
    return entry
