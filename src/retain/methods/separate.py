"""A network for every task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from retain.errors import InputError
from retain.methods.base import Method
from retain.tasks.batch import Batch, apply
from retain.tasks.task import Task, as_task

Weights = dict[str, Tensor]


class SeparateNetworks(Method):
    r"""A network for every task: nothing is forgotten, and nothing crosses over.

    .. math:: \theta_k = \text{train}\big(\theta_0; D_k\big), \qquad \text{answer}(x, k) = f_{\theta_k}(x)

    Every task starts from :math:`\theta_0`, the weights before the first one, and keeps what it ended with; a task that comes again goes on from its own. This
    is what a task-incremental stream can reach without any transfer between tasks, as in the comparison of van de Ven, Tuytelaars and Tolias 2022
    (https://doi.org/10.1038/s42256-022-00568-3). Departures: they give each network a quarter of the width, so that all together have about the size of the
    other methods' one, and draw a start for each.

    A task is known by the outputs that compete for it, so its identity has to be given when it is asked. Weights and buffers are kept on the model's device: as
    many models as there are tasks. For a task that was never learned the start answers. A model that was trained elsewhere, and handed over by
    :meth:`consolidate` alone, is itself the start of the tasks that follow. With batch norm train with ``batchnorm="track"``: the statistics, too, are each
    network's own.

    Raises:
        InputError: When a task is begun or asked whose outputs are not its own alone, as in domain- and class-incremental streams.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 5, scenario="task")
        >>> result = learn(models.MLP(64, 16, 10, seed=0), stream, methods.SeparateNetworks(), epochs=10, lr=0.01)
        >>> float(result.forgetting), bool(result.average_accuracy > 0.95)
        (0.0, True)
    """

    name = "separate"
    summary = "a network for every task: no forgetting and no transfer; needs the task's identity"
    citation = "vandeven2022three"

    def __init__(self) -> None:
        self.start: Weights | None = None
        """Parameters and buffers before the first task, by name."""
        self.kept: dict[tuple[int, ...], Weights] = {}
        """Those after each task, by the outputs that compete for it."""
        self._now: tuple[int, ...] | None = None  # the task that is being learned

    def begin(self, model: nn.Module, task: Task) -> None:
        """Go back to the start, or to the task's own network if it has one."""
        own = self._identity(task)
        if self.start is None:
            self.start = _weights(model)
        _put(self.kept.get(own, self.start), model)
        self._now = own

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Keep the task's network; its data are not read."""
        self.kept[self._identity(as_task(task))] = _weights(model)
        self._now = None

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """The answer of the task's own network; of the model itself for the task that is being learned."""
        own = self._identity(batch.task)
        weights = self.kept.get(own, self.start)
        if own == self._now or weights is None:
            return apply(model, batch)
        return apply(_With(model, weights), batch)

    def _identity(self, task: Task) -> tuple[int, ...]:
        """The outputs that compete for a task, which no other task may share."""
        hint = (
            "Pass scenario='task'. Where the task's identity is not given, as in the scenarios 'domain' and 'class', a network for every task cannot answer: "
            "use ER, GenerativeReplay or DERpp, or in the scenario 'domain' EWC or StructuredLaplace."
        )
        where = f"active outputs of task '{task.id}'"
        if task.active is None:
            raise InputError(where, "those of one task alone", "all outputs", hint)
        own = tuple(sorted(task.active))
        foreign = set(own) - set(task.classes) if task.classes else set()
        for other in [*self.kept, *([self._now] if self._now else [])]:
            if own != other:
                foreign |= set(own) & set(other)
        if foreign:
            raise InputError(where, "those of one task alone", f"{list(own)}, of which {sorted(foreign)} are another's", hint)
        return own

    def state_dict(self) -> dict[str, Any]:
        """The start and every task's network."""
        return {"start": self.start, "kept": [{"active": own, "weights": weights} for own, weights in self.kept.items()], "now": self._now}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Take them up again, on the model's device."""
        place = next(model.parameters()).device

        def moved(weights: Weights) -> Weights:
            return {name: value.to(place) for name, value in weights.items()}

        self.start = None if state["start"] is None else moved(state["start"])
        self.kept = {tuple(entry["active"]): moved(entry["weights"]) for entry in state["kept"]}
        self._now = None if state["now"] is None else tuple(state["now"])


class _With(nn.Module):
    """A model as it answers with other parameters and buffers."""

    def __init__(self, model: nn.Module, weights: Weights) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.model, self.weights, args, kwargs)


def _named(model: nn.Module) -> Weights:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _weights(model: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in _named(model).items()}


def _put(weights: Weights, model: nn.Module) -> None:
    with torch.no_grad():
        for name, value in _named(model).items():
            value.copy_(weights[name])
