"""Context-dependent gating."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.optim import Optimizer

from retain.errors import InputError, RetainError, check_count, check_positive
from retain.methods.base import Method
from retain.models.heads import find_head
from retain.models.parameters import unwrap
from retain.seeds import generator
from retain.tasks.batch import Batch, apply
from retain.tasks.task import Task, as_task

_UNNAMED = ("task", "data", "new")  # the ids of tasks that were given none


class XdG(Method):
    r"""Context-dependent gating: for every task another random part of each hidden layer is set to 0, so that tasks share few weights.

    .. math:: h^{(l)} = \phi\big(g_k^{(l)} \odot a^{(l)}\big), \qquad g_k^{(l)} \in \{0, 1\}^{d_l}, \qquad \sum_i g_{k,i}^{(l)} = (1 - \text{share}) \, d_l

    with :math:`a^{(l)}` what layer l gives in task k, a number for each unit or a map for each channel, and :math:`\phi` its activation. Masse, Grant and
    Freedman 2018 (https://doi.org/10.1073/pnas.1803839115). Weights into a closed unit have no gradient. Nothing holds the weights that tasks share; the paper
    stabilises these too: ``compose(XdG(), SI())``, or EWC, whose curvature is then that of the gated network.

    Departures: gates come before the activation and behind batch norm, as in the comparison of van de Ven, Tuytelaars and Tolias 2022
    (https://doi.org/10.1038/s42256-022-00568-3), which with ReLU is the paper's gating behind it. The share of every layer is exact, with at least one unit
    closed and one open, where both draw each unit by itself. Convolutions are gated too, by channel; the paper's were not trained (see ``layers``).

    A task's gates are drawn from its id and the seed, so they are the same whenever it is asked, before it was learned too. Its identity has to be given with
    every question; where all tasks have the same outputs, what ``learn`` measures is no domain-incremental learning, in which it is not given. The model itself
    answers for the task that was begun last: gates are hooks, which go along with a copy, but not into a file (see :meth:`gate`).

    Args:
        share: Share of each hidden layer's units that is closed, above 0 and below 1.
        layers: Pattern of the names of the layers that are gated, such as ``layers.fc*``; by default all linear layers and convolutions but the head.
        head: Name of the last linear layer, where :func:`retain.models.find_head` cannot find it.
        seed: Seed of the gates.

    Raises:
        InputError: If a setting is out of range, the model has no hidden layer to gate, a task has no id of its own, or classes of several tasks compete.
        RetainError: If a task is to be consolidated that was not learned with its gates, or a forward pass goes round them.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 5, scenario="task")
        >>> result = learn(models.MLP(64, 100, 10, seed=0), stream, methods.XdG(0.8), epochs=20, lr=0.01)
        >>> bool(result.accuracy[5].min() > 0.9)
        True
    """

    name = "xdg"
    summary = "context-dependent gating: each task has its own part of every hidden layer; needs the task's identity"
    citation = "masse2018alleviating"

    def __init__(self, share: float = 0.9, *, layers: str = "*", head: str | None = None, seed: int = 0) -> None:
        if check_positive("share", share) >= 1:
            raise InputError("share", "a number above 0 and below 1", share, "It is the part of each layer that is closed, not the part that stays open.")
        self.share, self.layers, self.head, self.seed = float(share), layers, head, check_count("seed", seed, least=0)
        self.now: str | None = None
        """Id of the task whose gates the model has."""
        self.met: dict[str, tuple[int, ...] | None] = {}
        """Classes of the tasks that were begun, by id."""
        self._gates: dict[str, _Gate] = {}

    def begin(self, model: nn.Module, task: Task) -> None:
        """Put the task's gates in place."""
        if task.active is None and any(None not in (classes, task.classes) and classes != task.classes for id, classes in self.met.items() if id != task.id):
            hint = "Pass split(..., relabel=True), or scenario='task'."
            raise InputError(f"classes of task '{task.id}'", "those of the tasks before, since all outputs compete", task.classes, hint)
        if task.id in self.met and self.met[task.id] != task.classes:
            found = f"'{task.id}', as a task with other classes before"
            raise InputError("id", "another for another task, since its gates are drawn from it", found, "Pass Task(..., id=...).")
        self.gate(model, task)
        self.met[task.id] = task.classes

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Nothing is remembered, and the gates stay in place; the task's data are not read."""
        task = as_task(task)
        if self.now != task.id:
            raise RetainError(
                f"{self}: expected to have gated the model while it learned task '{task.id}', found {'no gates' if self.now is None else repr(self.now)}. "
                "Learn every task with retain.learn or retain.attach and this method: a network that was trained whole cannot answer with a part of itself."
            )

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """The answer with the gates of the batch's task; the model's own gates are put back."""
        model = unwrap(model)
        gates = _gates(self.closed(model, _identity(batch.task)))
        before = _put(model, gates)
        try:
            outputs = apply(model, batch)
        finally:
            _put(model, before)
        _check_used(gates)
        return outputs

    def gate(self, model: nn.Module, task: Task | None) -> None:
        """Let the model itself answer for a task, in a loop of one's own or after :func:`retain.load`.

        Args:
            model: The model; its layers get hooks, in place of those that an earlier call gave them.
            task: The task; ``None`` takes all gates away, and the whole network answers, which has learned no task.
        """
        self._in_place(model, None if task is None else _identity(task))

    def before_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """See that the loop's forward passes went through the gates."""
        _check_used(self._gates)

    def closed(self, model: nn.Module, id: str) -> dict[str, Tensor]:
        """Which units are closed for a task.

        Args:
            model: The model.
            id: The task's id.

        Returns:
            Bool tensors by the name of the module whose output they are for, of a shape that broadcasts over it: ``[d]``, or ``[d, 1, ...]`` for maps.

        Raises:
            InputError: If there is nothing to gate.
        """
        model = unwrap(model)
        head, modules = find_head(model, self.head)[1], list(model.named_modules())
        hidden = [
            (i, name, module)
            for i, (name, module) in enumerate(modules)
            if isinstance(module, nn.Linear | _ConvNd) and module is not head and not isinstance(module, NonDynamicallyQuantizableLinear)  # attention's own
        ]
        if not hidden:
            raise InputError(
                "model", "a hidden linear layer or convolution to gate", f"none before the head of {type(model).__name__}", "Use SeparateNetworks."
            )
        found: dict[str, Tensor] = {}
        for number, (i, name, layer) in enumerate(hidden):
            if not fnmatch(name, self.layers):
                continue
            width, axes = (layer.out_features, 0) if isinstance(layer, nn.Linear) else (layer.out_channels, len(layer.kernel_size))
            count = min(max(round(self.share * width), 1), width - 1)
            closed = torch.zeros(width, dtype=torch.bool)
            closed[torch.randperm(width, generator=generator(self.seed, f"gates of {id}", number))[:count]] = True
            after, norm = modules[min(i + 1, len(modules) - 1)]
            # behind batch norm, which moves what is 0 away from it, and whose statistics have to be those of open units
            place = after if isinstance(norm, _BatchNorm) and norm.num_features == width else name
            found[place] = closed.reshape(width, *[1] * axes).to(layer.weight.device)
        if not found:
            raise InputError("layers", "a pattern of the names of hidden layers", repr(self.layers), f"They are {', '.join(name for _, name, _ in hidden)}.")
        return found

    def _in_place(self, model: nn.Module, id: str | None) -> None:
        model = unwrap(model)
        self._gates = {} if id is None else _gates(self.closed(model, id))
        _put(model, self._gates)
        self.now = id

    def state_dict(self) -> dict[str, Any]:
        """The tasks so far, and whose gates the model has; the gates themselves are drawn again."""
        return {"now": self.now, "met": [{"id": id, "classes": classes} for id, classes in self.met.items()]}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Take it up again, and put the gates in place."""
        self.met = {entry["id"]: None if entry["classes"] is None else tuple(entry["classes"]) for entry in state["met"]}
        self._in_place(model, state["now"])

    def settings(self) -> dict[str, Any]:
        """What it was made with."""
        return {name: getattr(self, name) for name in ("share", "layers", "head", "seed")}


class _Gate:
    """A forward hook that sets closed units to 0. It is the module's own, so a copy of the model has its own too."""

    def __init__(self, closed: Tensor) -> None:
        self.closed, self.used = closed, False

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        self.used = True
        return output.masked_fill(self.closed.to(output.device), 0)


def _gates(closed: Mapping[str, Tensor]) -> dict[str, _Gate]:
    return {name: _Gate(units) for name, units in closed.items()}


def _identity(task: Task) -> str:
    """The task's id, if it can tell the task from others."""
    if task.id in _UNNAMED:
        raise InputError("id", "one of the task's own, from which its gates are drawn", f"'{task.id}', as of every task without one", "Pass Task(..., id=...).")
    foreign = set(task.active or ()) - set(task.classes or task.active or ())
    if foreign:
        hint = "Pass scenario='task'. Where classes of different tasks compete, the task's identity is not given: use ER, GenerativeReplay or DERpp."
        raise InputError(f"active outputs of task '{task.id}'", "those of its own classes", f"{sorted(foreign)} of others too", hint)
    return task.id


def _put(model: nn.Module, gates: Mapping[str, _Gate]) -> dict[str, _Gate]:
    """Replace all gates of a model; those that were there come back, by module."""
    before: dict[str, _Gate] = {}
    for name, module in model.named_modules():
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, _Gate):
                before[name] = hook
                del module._forward_hooks[key]
        if name in gates:
            module.register_forward_hook(gates[name])
    return before


def _check_used(gates: Mapping[str, _Gate]) -> None:
    passed = [name for name, gate in gates.items() if not gate.used]
    if passed:
        raise RetainError(
            f"model: expected a forward pass through the gates, found one that passed them by, of {', '.join(passed)}. Leave out with XdG(layers=...) what "
            "is not always used. torch.compile keeps the gates that it compiled: call torch.compiler.reset() when a task has begun."
        )
