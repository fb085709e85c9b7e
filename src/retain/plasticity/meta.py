"""Learning the rule: gradient descent on its tables through the weights that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import InputError, RetainError, check_count, check_positive
from retain.figures import Lines, Series, Table
from retain.figures.draw import draw
from retain.models.assembly import Assembly, FeedForwardAssembly, RecurrentAssembly
from retain.plasticity.compiled import Compiled
from retain.plasticity.learners import choose
from retain.plasticity.losses import Loss, check_loss, loss_of
from retain.plasticity.online import check_task
from retain.plasticity.replay import table_gradient
from retain.plasticity.rules import TableRule
from retain.plasticity.trace import Trace, present
from retain.seeds import generator
from retain.tasks import Task, TensorData
from retain.training.recorder import Recorder, Silent


@dataclass
class MetaResult:
    """How learning a rule went.

    Args:
        nets: The networks it was learned on, one a task, with their trained input weights and the weights that the last batch made.
        loss: The mean meta-loss of each epoch.
        accuracy: After each epoch, by part and task, of the weights that its last batch made: shares in [0, 1]; the first is before any learning.
        size: The root mean square of the tables' numbers after each epoch; the first is their start's.
    """

    nets: list[Assembly]
    loss: list[float] = field(default_factory=list)
    accuracy: dict[str, list[float]] = field(default_factory=dict)
    size: list[float] = field(default_factory=list)

    def final(self, part: str = "validation") -> float:
        """The last accuracy on a part, the mean over the tasks."""
        return self.accuracy[part][-1]

    def table(self) -> Table:
        """First and last accuracies."""
        rows = [[part, f"{100 * values[0]:.1f}", f"{100 * values[-1]:.1f}"] for part, values in self.accuracy.items()]
        return Table("Learning a rule", ["part", "before %", "after %"], rows, f"{len(self.loss)} epochs, last loss {self.loss[-1]:.4f} nats.")

    def plot(self) -> Any:
        """The accuracies over the epochs, as a matplotlib figure."""
        series = [Series(part, [float(i) for i in range(len(values))], [100 * value for value in values]) for part, values in self.accuracy.items()]
        return draw(Lines("Learning a rule", "epochs", "accuracy, %", series))

    def _repr_html_(self) -> str:
        return self.table().html()


def build(rule: TableRule, task: Task, seed: int, **settings: Any) -> Assembly:
    """A network that a rule fits, of the published size: width 100, p 0.5, cap 50."""
    if not isinstance(task.data, TensorData) or task.classes is None:
        raise InputError(f"task '{task.id}'", "labelled samples held in tensors", type(task.data).__name__)
    inputs, classes = task.data.inputs[0].numel(), max(task.classes) + 1
    settings = {"start": "ones" if rule.form == "multiplicative" else "zeros", "cap": rule.output.cap or 50, **settings, "seed": seed}
    states = rule.output.states
    if states > 2:
        return RecurrentAssembly(inputs, classes, rounds=states.bit_length() - 2, **settings)
    return FeedForwardAssembly(inputs, classes, layers=len(rule.hidden) + 1, **settings)


def meta_learn(
    rule: TableRule,
    tasks: Task | Sequence[Task],
    nets: Assembly | Sequence[Assembly] | None = None,
    *,
    epochs: int = 50,
    batch_size: int = 100,
    passes: int = 1,
    lr: float = 0.01,
    weight_decay: float = 0.01,
    input_lr: float | None = 0.01,
    input_weight_decay: float = 0.01,
    query: str = "same",
    loss: Loss = "cross_entropy",
    double_softmax: bool = False,
    seed: int = 0,
    engine: str = "auto",
    recorder: Recorder | None = None,
) -> MetaResult:
    r"""Learn a rule by gradient descent: reset the plastic weights, learn a batch by the rule sample by sample, and step down the loss that this left.

    .. math:: \beta \leftarrow \beta - \mathrm{Adam}\left(\nabla_\beta\, L(w_T(\beta)); \text{query}\right)

    The updates are not unrolled: at fixed firing the final weights are linear in the tables, so that one backward pass through the query's forward pass and
    a replay of the recorded states give the same gradient (:func:`~retain.plasticity.replay.table_gradient`). The defaults are those of the published
    study, whose weight decay also shrinks the rule; its softmax inside the softmax is ``double_softmax=True``.

    Args:
        rule: The rule, changed in place. Its facts are filled in.
        tasks: One task, or several that take turns by batches.
        nets: A network for each task, changed in place; by default of the published size.
        epochs: Passes over each task's training data.
        batch_size: Samples between two resets: the horizon that the rule is made for.
        passes: How often these samples are presented.
        lr: Adam's learning rate for the rule.
        weight_decay: Its weight decay, in the gradient.
        input_lr: Adam's learning rate for the input weights; ``None`` leaves them as they are.
        input_weight_decay: Their weight decay.
        query: The loss is that on the ``same`` samples (as published) or on those of the ``next`` batch, which the weights have not seen.
        loss: ``cross_entropy`` or ``mse``.
        double_softmax: See :func:`~retain.plasticity.losses.loss_of`.
        seed: Of the order of the samples, and of networks that are built here.
        engine: As for :func:`~retain.learn_online`.
        recorder: Gets an event each epoch.

    Returns:
        The networks, losses and accuracies.

    Raises:
        InputError: If a setting is out of range, or the rule, the networks and the tasks don't go together.
        RetainError: If the loss or its gradient stops being finite.

    Example:
        >>> import retain
        >>> from retain import plasticity, tasks
        >>> rule = plasticity.TableRule("prepost", hidden=0, seed=0)
        >>> result = retain.meta_learn(rule, tasks.halfspace(seed=0), epochs=3)
        >>> result.final("validation") > 0.8
        True
    """
    tasks = [tasks] if isinstance(tasks, Task) else list(tasks)
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    check_count("passes", passes)
    check_loss(loss, double_softmax)
    for name, value, zero in (("lr", lr, False), ("weight_decay", weight_decay, True), ("input_weight_decay", input_weight_decay, True)):
        check_positive(name, value, zero=zero)
    if query not in ("same", "next"):
        raise InputError("query", "'same' or 'next'", repr(query))
    if not isinstance(rule, TableRule):
        raise InputError("rule", "a TableRule, whose tables have a gradient", type(rule).__name__, "Use plasticity.evolve for other rules.")
    if not tasks or not all(isinstance(task, Task) for task in tasks):
        found = next((type(task).__name__ for task in tasks if not isinstance(task, Task)), "none")
        raise InputError("tasks", "at least one task, and nothing else", found, "Pass retain.Task((inputs, labels)).")
    if nets is None:
        nets = [build(rule, task, 1000 * seed + i) for i, task in enumerate(tasks)]
    nets = [nets] if isinstance(nets, nn.Module) else list(nets)
    if len(nets) != len(tasks):
        raise InputError("nets", f"one network for each of the {len(tasks)} tasks", len(nets))
    if len({id(net) for net in nets}) < len(nets):
        raise InputError("nets", "a network of its own for each task", "the same one twice")
    parts = [check_task(net, task) for net, task in zip(nets, tasks, strict=True)]
    for net in nets:
        rule.check(net)
    groups: list[dict[str, Any]] = [{"params": list(rule.parameters()), "lr": lr, "weight_decay": weight_decay}]
    if input_lr is not None:
        check_positive("input_lr", input_lr)
        groups.append({"params": [net.input_weight for net in nets], "lr": input_lr, "weight_decay": input_weight_decay})
    adam = torch.optim.Adam(groups)
    steps = [_Step(net, rule, choose(engine, net), loss, double_softmax, passes) for net in nets]
    result, out = MetaResult(nets), recorder or Silent()
    names = [name for name in ("data", "validation", "test") if all(name in found for found in parts)]

    def score() -> None:
        for name in names:
            shares = [step.accuracy(found[name]) for step, found in zip(steps, parts, strict=True)]
            result.accuracy.setdefault("training" if name == "data" else name, []).append(sum(shares) / len(shares))
        result.size.append(float(torch.cat([p.detach().flatten() for p in rule.parameters()]).square().mean().sqrt()))

    score()
    for epoch in range(epochs):
        losses = [step(adam, batch) for step, batch in _turns(steps, parts, batch_size, query, seed, epoch)]
        result.loss.append(sum(losses) / len(losses))
        score()
        latest = {name: values[-1] for name, values in result.accuracy.items()}
        out.event("meta", task=", ".join(task.id for task in tasks), epoch=epoch + 1, loss=result.loss[-1], size=result.size[-1], accuracy=latest)
    for step in steps:
        step.store()
    rule.facts |= {"learned_on": [task.id for task in tasks], "networks": [net.architecture() for net in nets], "meta_epochs": epochs, "meta_batch": batch_size}
    rule.facts |= {"meta_seed": seed, "accuracy": {name: values[-1] for name, values in result.accuracy.items()}}
    return result


Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def _turns(steps: list[_Step], parts: list[dict[str, TensorData]], size: int, query: str, seed: int, epoch: int) -> Any:
    """Steps and batches of all tasks in turn: samples to learn from, and samples to be asked."""
    orders = []
    for i, found in enumerate(parts):
        data = found["data"]
        order = torch.randperm(len(data.targets), generator=generator(seed, "order", epoch, i))
        orders.append(order.split(size))
    for number in range(max(map(len, orders))):
        for step, found, batches in zip(steps, parts, orders, strict=True):
            if number < len(batches):
                data, rows = found["data"], batches[number]
                learned = data.inputs[rows], data.targets[rows]
                asked = batches[(number + 1) % len(batches)] if query == "next" else None
                yield step, (*learned, *(learned if asked is None else (data.inputs[asked], data.targets[asked])))


class _Step:
    """One meta-step of one network: reset, present, ask, replay."""

    def __init__(self, net: Assembly, rule: TableRule, engine: str, loss: Loss, double_softmax: bool, passes: int) -> None:
        self.net, self.rule, self.loss, self.double_softmax, self.passes = net, rule, loss, double_softmax, passes
        net.reset()
        self.start = [weight.detach().clone() for weight in net.plastic]
        self.masks = [*(mask[None] for mask in net.masks), torch.ones_like(self.start[-1], dtype=torch.bool)[None]]
        self.work = Compiled(net, rule) if engine == "numba" else None
        self.last: list[Tensor] = self.start

    def _present(self, current: Tensor, labels: Tensor) -> Trace:
        if self.passes > 1:
            current, labels = current.repeat(self.passes, 1), labels.repeat(self.passes)
        if self.work is None:
            return present(self.net, self.rule, [weight[None] for weight in self.start], self.masks, current[None], labels[None], record=True)
        self.work.put(self.start)
        self.work.read(self.rule)
        return self.work.trace(torch.from_numpy(self.work.present(current, labels, record=True)))

    def __call__(self, adam: torch.optim.Optimizer, batch: Batch) -> float:
        device = self.net.input_weight.device
        inputs, labels, asked, answers = (part.to(device) for part in batch)
        current = self.net.current(inputs)
        with torch.no_grad():
            trace = self._present(current.detach(), labels)
        weights = [weight.detach().requires_grad_() for weight in trace.answering]
        query = current if asked is inputs else self.net.current(asked)
        value = loss_of(self.net.propagate(query[None], weights).logits[0], answers, self.loss, self.double_softmax)
        adam.zero_grad()
        inside = [self.net.input_weight] if self.net.input_weight.requires_grad else []
        found = torch.autograd.grad(value, [*weights, *inside])
        for parameter, gradient in zip(inside, found[len(weights) :], strict=True):
            parameter.grad = gradient
        assert trace.cells is not None
        tables = self.rule.tables(self.net)
        exact = table_gradient(self.rule, tables, trace.weights, self.masks, trace.cells, list(found[: len(weights)]))
        if not all(bool(part.isfinite().all()) for part in (value, *exact)):
            raise RetainError(
                "The meta-loss or its gradient is no longer finite; the rule is as it was before this step. Lower lr, or start from smaller tables."
            )
        torch.autograd.backward(tables, [gradient[0].to(table.dtype) for gradient, table in zip(exact, tables, strict=True)])
        adam.step()
        self.last = [weight[0].detach() for weight in weights]
        return float(value.detach())

    def accuracy(self, data: TensorData) -> float:
        """The share of samples that the last batch's weights answer correctly."""
        with torch.no_grad():
            current, labels = self.net.current(data.inputs.to(self.net.input_weight.device)), data.targets
            if self.work is None:
                answers = self.net.propagate(current, self.last).logits.argmax(1).cpu()
            else:
                self.work.put(self.last)
                answers = torch.from_numpy(self.work.answer(current))
        return float((answers == labels.cpu()).double().mean())

    def store(self) -> None:
        """Write the last batch's weights into the network."""
        self.net.put(self.last)
