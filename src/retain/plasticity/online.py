"""Learning by a rule: one pass over the data, one sample at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retain.errors import InputError, check_count
from retain.figures import Lines, Series, Table
from retain.figures.draw import draw
from retain.models.assembly import Assembly
from retain.plasticity.learners import choose, learner
from retain.plasticity.losses import Loss, check_loss
from retain.plasticity.rules import Rule
from retain.seeds import generator
from retain.tasks import Task, TensorData
from retain.training.recorder import Recorder, Silent


@dataclass
class OnlineResult:
    """How learning by a rule went.

    Args:
        samples: After how many samples the network was scored; the first is 0, before any learning.
        accuracy: Shares in [0, 1] at these points, by part: ``validation``, ``test``.
        online: The share of the samples since the last point that were answered correctly before they were learned from; the first is NaN.
        updates: Changes of weights until each point.
        seconds: Processor time of learning, without scoring.
        diverged: The point at which a weight was first found not to be finite, or ``None``. Learning ends there and the accuracy is that of what is left.
    """

    samples: list[int] = field(default_factory=list)
    accuracy: dict[str, list[float]] = field(default_factory=dict)
    online: list[float] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    seconds: float = 0.0
    diverged: int | None = None

    def final(self, part: str = "test") -> float:
        """The last accuracy on a part."""
        return self.accuracy[part][-1]

    def updates_until(self, level: float, part: str = "test") -> int | None:
        """Changes of weights until the accuracy first reached a level, or ``None``."""
        return next((count for count, value in zip(self.updates, self.accuracy[part], strict=True) if value >= level), None)

    def table(self) -> Table:
        """First and last accuracies."""
        rows = [[part, f"{100 * values[0]:.1f}", f"{100 * values[-1]:.1f}"] for part, values in self.accuracy.items()]
        note = f"{self.samples[-1]:,} samples, {self.updates[-1]:,} updates." + (f" Diverged after {self.diverged:,} samples." if self.diverged else "")
        return Table("Learning by a rule", ["part", "before %", "after %"], rows, note)

    def plot(self) -> Any:
        """The accuracies over the samples, as a matplotlib figure."""
        xs = [float(count) for count in self.samples]
        series = [Series(part, xs, [100 * value for value in values]) for part, values in self.accuracy.items()]
        series.append(Series("online", xs[1:], [100 * value for value in self.online[1:]], dashed=True))
        return draw(Lines("Learning by a rule", "samples", "accuracy, %", series))

    def _repr_html_(self) -> str:
        return self.table().html()


def learn_online(
    net: Assembly,
    rule: Rule,
    task: Task,
    *,
    epochs: int = 1,
    seed: int = 0,
    score_every: int = 500,
    engine: str = "auto",
    input_lr: float | None = None,
    loss: Loss = "cross_entropy",
    double_softmax: bool = False,
    reset: bool = True,
    recorder: Recorder | None = None,
) -> OnlineResult:
    """Let a network learn a task by a rule: each sample is answered and then changes the plastic weights; there is no batch and no gradient descent.

    With fixed input weights, what they pass on is one product of matrices, and on the CPU the rest runs in compiled code. Several runs can go in
    threads: the compiled code lets go of the interpreter's lock.

    Args:
        net: The network, changed in place.
        rule: The rule, not changed.
        task: Its training data are the samples; validation and test data are scored along the way, and choose nothing here.
        epochs: Passes over the samples.
        seed: Of their order, drawn anew for each pass.
        score_every: Score after so many samples; 0 scores at the start and at the end only.
        engine: ``auto``, ``numba`` or ``torch``: see the guide to plasticity; without numba the reference in torch runs.
        input_lr: Train the input weights too, by Adam at this rate on the loss of each sample (the published ``downstream_backprop``).
        loss: That loss, ``cross_entropy`` or ``mse``.
        double_softmax: Put a softmax into that loss's softmax, as published.
        reset: Put the plastic weights at their start first. Otherwise learning goes on from the weights that the network answers with, which for a rule that
            averages are their mean.
        recorder: Gets an event at every point.

    Returns:
        Accuracies over the samples.

    Raises:
        InputError: If the rule does not fit the network or the task does not, or a label is none of the network's outputs.

    Example:
        >>> import retain
        >>> from retain import models, plasticity, tasks
        >>> rule = plasticity.TableRule("prepost", hidden=0, when="mistakes", edges="label and predicted")
        >>> rule.output.values.data[:] = retain.plasticity.PERCEPTRON
        >>> net = models.FeedForwardAssembly(64, 10, layers=1, width=300, cap=100)
        >>> result = retain.learn_online(net, rule, tasks.digits(), score_every=0)
        >>> result.accuracy["test"][0] < 0.2, result.final() > 0.8
        (True, True)
    """
    check_count("epochs", epochs)
    check_count("score_every", score_every, least=0)
    check_loss(loss, double_softmax)
    parts = check_task(net, task)
    if not isinstance(rule, Rule):
        raise InputError("rule", "a plasticity rule", type(rule).__name__)
    rule.check(net)
    chosen = choose(engine, net)
    if reset:
        net.reset()
    work, out = learner(net, rule, chosen, input_lr, loss, double_softmax), recorder or Silent()
    device = net.input_weight.device
    labels = {name: part.targets.long().to(device) for name, part in parts.items()}
    prepared = {name: work.prepare(part.inputs.to(device)) for name, part in parts.items()}
    result = OnlineResult(accuracy={name: [] for name in parts if name != "data"})
    seen, right = 0, 0

    def score(since: int) -> bool:
        result.samples.append(seen)
        result.online.append(right / since if since else float("nan"))
        for name, values in result.accuracy.items():
            values.append(float((work.answer(prepared[name]) == labels[name]).double().mean()))
        latest = {name: values[-1] for name, values in result.accuracy.items()}
        out.event("samples", task=task.id, samples=seen, updates=result.updates[-1], accuracy=latest)
        return work.finite()

    result.updates.append(0)
    score(0)
    size = len(labels["data"])
    for epoch in range(epochs):
        order = torch.randperm(size, generator=generator(seed, "order", epoch)).to(device)
        for rows in order.split(score_every or size):
            start = time.thread_time()
            samples, targets = prepared["data"][rows], labels["data"][rows]
            answers = work.present(samples, targets)
            result.seconds += time.thread_time() - start
            seen, right = seen + len(rows), int((answers == targets).sum())
            changed = len(rows) - right if getattr(rule, "when", "always") == "mistakes" else len(rows)
            result.updates.append(result.updates[-1] + changed)
            if not score(len(rows)):
                result.diverged = seen
                work.store()
                return result
    work.store()
    return result


def check_task(net: Assembly, task: Task) -> dict[str, TensorData]:
    """A task's parts, as tensors that fit the network.

    Args:
        net: The network.
        task: The task.

    Returns:
        ``data`` and, where they are there, ``validation`` and ``test``.

    Raises:
        InputError: If they are none, a part isn't held in tensors, has another size, or labels that are none of the network's outputs.
    """
    if not isinstance(net, Assembly):
        raise InputError("net", "a FeedForwardAssembly or RecurrentAssembly, whose weights a rule can change", type(net).__name__)
    if not isinstance(task, Task):
        raise InputError("task", "a task", type(task).__name__, "Pass retain.Task((inputs, labels)).")
    parts: dict[str, TensorData] = {}
    for name in ("data", "validation", "test"):
        part = getattr(task, name)
        if part is None:
            continue
        if not isinstance(part, TensorData) or not isinstance(part.inputs, Tensor):
            raise InputError(name, "data held in tensors, to be presented one sample at a time", type(part).__name__, "Pass Task((inputs, targets)).")
        size = part.inputs[0].numel()
        if size != net.inputs:
            raise InputError(f"{name} of task '{task.id}'", f"{net.inputs} values an input, as the network has", size)
        if part.targets.is_floating_point() or part.targets.ndim != 1:
            raise InputError(f"{name} of task '{task.id}'", "one class a sample", f"targets of shape {list(part.targets.shape)}, {part.targets.dtype}")
        stray = part.targets[(part.targets < 0) | (part.targets >= net.classes)]
        if len(stray):
            raise InputError(f"{name} of task '{task.id}'", f"labels from 0 to {net.classes - 1}, as the output layer has", f"label {int(stray[0])}")
        parts[name] = part
    return parts
