"""What the parts of the plasticity study share: data, networks, a rule and how it was learned."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor

from retain.models import FeedForwardAssembly, RecurrentAssembly
from retain.models.assembly import Assembly
from retain.plasticity import OnlineResult, Table, TableRule, learn_online, meta_learn
from retain.seeds import derive, generator
from retain.studies.plasticity.spec import PlasticitySpec
from retain.tasks import Task, digits, fashion_mnist, halfspace, mnist
from retain.training.recorder import Recorder, Silent


@lru_cache(maxsize=3)
def whole(name: str, embedded: bool, data: str | None) -> Task:
    """A data set by name."""
    if name == "digits":
        return digits()
    return mnist(data, embedded=embedded) if name == "mnist" else fashion_mnist(data, embedded=embedded)


@lru_cache(maxsize=3)
def target(spec: PlasticitySpec, name: str, seed: int) -> Task:
    """A data set with validation images of this seed; of the 1,437 digits at most a fifth."""
    task = whole(name, spec.embedded, spec.data)
    return task.hold_out(min(spec.validation, task.n // 5) if name == "digits" else spec.validation, generator(seed, "validation"))


def upstream(spec: PlasticitySpec, seed: int) -> Task:
    """The halfspace task of a run."""
    return halfspace(spec.dim, spec.upstream_points, seed=seed)


def network(spec: PlasticitySpec, inputs: int, classes: int, layers: int, seed: int, **changes: Any) -> Assembly:
    """A network of the study's size: ``layers`` hidden layers, or recurrent with 0."""
    start = "ones" if spec.form == "multiplicative" else "zeros"
    settings: dict[str, Any] = {"width": spec.width, "p": spec.p, "cap": spec.cap, "ties": spec.ties, "start": start, "seed": seed, **changes}
    if layers:
        return FeedForwardAssembly(inputs, classes, layers, **settings)
    return RecurrentAssembly(inputs, classes, spec.rounds, **settings)


def inputs_of(task: Task) -> int:
    """Values an image has."""
    found: Tensor = task.data.inputs
    return found[0].numel()


def seed_of(seed: int, name: str, *index: int) -> int:
    """A seed of its own for a network or a rule of a run."""
    return derive(seed, name, *index) % 2**31


def again(seed: int, attempt: int) -> int:
    """The seed of a try: the run's own first."""
    return seed_of(seed, "attempt", attempt) if attempt else seed


def learned(
    spec: PlasticitySpec, layers: int, seed: int, table: str, recorder: Recorder | None = None, *, train_inputs: bool, **settings: Any
) -> tuple[TableRule, Assembly, dict[str, Any]]:
    """A rule learned upstream, the network that it was learned on, and how it went.

    It is accepted or not by the validation accuracy of a pass over the upstream points from the network's start, by the learned rule alone.

    Args:
        spec: The settings.
        layers: Hidden layers; 0 is recurrent.
        seed: Of task, network and rule.
        table: Kind of table.
        recorder: Gets an event each pass.
        train_inputs: Train the input weights too.
        **settings: Of the rule.

    Returns:
        The rule, the network, and plain values.
    """
    recorder = recorder or Silent()
    task = upstream(spec, seed)
    net = network(spec, spec.dim, 2, layers, seed_of(seed, "upstream network"))
    rule = TableRule.fit(net, table, universal=spec.universal, form=spec.form, seed=seed_of(seed, "rule"), **settings)
    before = rule.output.table().detach().clone()
    options: dict[str, Any] = {"epochs": spec.rule_epochs, "batch_size": spec.rule_batch, "lr": spec.rule_lr, "weight_decay": spec.rule_decay}
    options |= {
        "input_lr": spec.rule_lr if train_inputs else None,
        "loss": spec.loss,
        "double_softmax": spec.double_softmax,
        "seed": seed,
        "recorder": recorder,
    }
    result = meta_learn(rule, task, net, **options)
    online = learn_online(net, rule, task, score_every=0, seed=seed)
    first = next((table for table in rule.hidden if isinstance(table, Table)), None)
    hidden = None if first is None else first.table().detach()
    whole = rule.output.counting == "none"
    entry = {
        "validation": online.final("validation"),
        "test": online.final("test"),
        "loss": result.loss,
        "training": result.accuracy["training"],
        "tested": result.accuracy["test"],
        "size": result.size,
        "changed": bool((rule.output.table() != before).any()),
        "output": rule.output.table().detach().flatten(1).tolist() if whole else None,
        "hidden": hidden.flatten(1).tolist() if hidden is not None and whole else None,
        "counts": hidden.flatten(0, 1).tolist() if hidden is not None and not whole else None,
    }
    return rule, net, entry


def tell(recorder: Recorder, task: str, number: int, of: int, loss: float, **accuracy: float) -> None:
    """Show one of several results of a stage to the person who watches."""
    recorder.event("step", task=task, epoch=number, epochs=of, loss=loss, accuracy={name.replace("_", " "): value for name, value in accuracy.items()})


def record(result: OnlineResult) -> dict[str, Any]:
    """Learning by a rule, as plain values."""
    kept = {"samples": result.samples, "online": result.online, "updates": result.updates, "diverged": result.diverged or 0}
    return {**kept, **result.accuracy}
