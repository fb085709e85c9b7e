"""A memory of old samples, and what the methods that replay share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from retain.errors import InputError, check_count
from retain.methods.base import Method
from retain.models.parameters import evaluating
from retain.seeds import generator
from retain.tasks.batch import Batch, apply, mask
from retain.tasks.task import Task, as_task

Active = tuple[int, ...] | None
Weight = Literal["tasks", "sum", "samples"]
Choose = Literal["reservoir", "balanced", "per-class"]


class Memory:
    """At most ``size`` samples, every one that was ever offered in it with the same probability (Vitter 1985, algorithm R).

    A sample is one row of several tensors, such as its input, its target and the number of its task. They stay on the device where they were.

    Args:
        size: How many.
        draw: Decides who stays and who is drawn; a CPU generator, so that every device decides alike.

    Example:
        >>> import torch
        >>> memory = Memory(3, torch.Generator().manual_seed(0))
        >>> memory.add(inputs=torch.rand(10, 2), targets=torch.arange(10))
        >>> len(memory), memory.seen, memory.sample(2)["inputs"].shape
        (3, 10, torch.Size([2, 2]))
    """

    def __init__(self, size: int, draw: torch.Generator) -> None:
        self.size, self.draw = size, draw
        self.seen = 0
        """How many were offered."""
        self.rows: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(next(iter(self.rows.values()), ()))

    def add(self, **rows: Tensor) -> None:
        """Offer samples.

        Args:
            **rows: Tensors of one length, by name; the same names every time.

        Raises:
            InputError: If a row is of another shape than those that are kept.
        """
        rows = {name: value.detach() for name, value in rows.items()}
        for name, kept in self.rows.items():
            if rows[name].shape[1:] != kept.shape[1:]:
                raise InputError(name, f"the shape of those in memory, {list(kept.shape[1:])}", list(rows[name].shape[1:]))
        count, room = len(next(iter(rows.values()))), self.size - len(self)
        if room and count:
            self.rows = {name: torch.cat([self.rows[name], value[:room]]) if self.rows else value[:room].clone() for name, value in rows.items()}
        first = self.seen
        self.seen += count
        if count <= room:
            return
        # the i-th sample ever is given a place below i: if the memory has that place, it replaces who is there
        late = torch.arange(max(room, 0), count)
        places = (torch.rand(len(late), generator=self.draw, dtype=torch.float64) * (first + late + 1)).long()
        winner = {place: row for place, row in zip(places.tolist(), late.tolist(), strict=True) if place < self.size}  # of two the later one
        if winner:
            device = next(iter(self.rows.values())).device
            into, chosen = (torch.tensor(list(part), device=device) for part in (winner.keys(), winner.values()))
            for name, value in rows.items():
                self.rows[name][into] = value[chosen]

    def sample(self, count: int) -> dict[str, Tensor]:
        """Up to ``count`` different samples, all equally likely."""
        return self.at(torch.randperm(len(self), generator=self.draw)[:count])

    def at(self, places: Tensor) -> dict[str, Tensor]:
        """The samples at ``places``."""
        return {name: value.index_select(0, places.to(value.device)) for name, value in self.rows.items()}

    def state_dict(self) -> dict[str, Any]:
        """Samples, how many were offered, and where the draws stand."""
        return {"rows": self.rows, "seen": self.seen, "draw": self.draw.get_state()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take it up again."""
        # a copy: rows are replaced in place, and the state may be kept to go on from twice
        self.rows = {name: value.to(device, copy=True) for name, value in state["rows"].items()}
        self.seen = state["seen"]
        self.draw.set_state(state["draw"].cpu())


class Replaying(Method):
    """What experience replay and dark experience replay share: a memory that knows of every sample which outputs competed for it.

    An old sample is asked among the outputs that compete now if those include its own (class-incremental streams), or else among its own (a head a task).

    Args:
        size: See :class:`Memory`.
        batch: Old samples a draw; as many as there are new ones by default.
        seed: Seed of the memory's draws.
        choose: Who is kept: ``reservoir``, ``balanced`` or ``per-class``, see :class:`~retain.methods.ER`.
    """

    def __init__(self, size: int, batch: int | None, seed: int, choose: Choose = "reservoir") -> None:
        if choose not in ("reservoir", "balanced", "per-class"):
            raise InputError("choose", "'reservoir', 'balanced' or 'per-class'", repr(choose))
        self.choose = choose
        self.size, self.batch, self.seed = check_count("size", size), None if batch is None else check_count("batch", batch), seed
        self.memory = Memory(self.size, generator(seed, "replay"))
        self.tasks = 0
        """How many tasks are over."""
        self.active: list[Active] = []
        """The outputs that competed, by task; the task at hand is there once it has put something into the memory."""
        self._waiting: list[dict[str, Tensor]] = []  # what passed since the last step

    def begin(self, model: nn.Module, task: Task) -> None:
        """Forget what passed without a step."""
        self._waiting = []

    def drawn(self, batch: Batch) -> dict[str, Tensor]:
        """Samples from memory to go with a batch."""
        return self.memory.sample(self.batch or len(batch.targets))

    def rows(self, batch: Batch, **more: Tensor) -> dict[str, Tensor]:
        """A batch as the memory takes it.

        Args:
            batch: New samples.
            **more: What else to keep of them.

        Returns:
            Tensors by name.

        Raises:
            InputError: If the inputs are not one tensor.
        """
        if not isinstance(batch.inputs, Tensor):
            kinds = f"{type(batch.inputs).__name__} of {len(tree_leaves(batch.inputs))}"
            raise InputError("inputs", "a tensor, since a memory keeps rows of it", kinds)
        if len(self.active) == self.tasks:
            self.active.append(batch.task.active)
        if batch.task.active != self.active[self.tasks]:
            hint = "A memory knows one set a task: learn the tasks of a joint one by one."
            raise InputError("batch", f"of outputs that compete as in the task's first one, {self.active[self.tasks]}", batch.task.active, hint)
        number = torch.full((len(batch.targets),), self.tasks, device=batch.targets.device)
        return {"inputs": batch.inputs, "targets": batch.targets, "task": number, **more}

    def ask(self, model: nn.Module, rows: dict[str, Tensor], task: Task) -> Tensor:
        """The model's outputs for old samples, masked sample by sample."""
        asked = [task.active if within(own, task.active) else own for own in self.active]
        if all(active == task.active for active in asked):
            return apply(model, Batch(rows["inputs"], rows["targets"], task))
        outputs = apply(model, Batch(rows["inputs"], rows["targets"], unmasked(task)))
        line = outputs.new_zeros(outputs.shape[-1])
        closed = torch.stack([mask(line, active) for active in asked]) != 0
        each = closed[rows["task"]].reshape(len(outputs), *[1] * (outputs.ndim - 2), -1)  # sequences have positions in between
        return outputs.masked_fill(each, torch.finfo(outputs.dtype).min)

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Count the task; what did not pass while it was learned is read from its data now."""
        task = on_device(task, model)
        if len(self.active) == self.tasks:
            self.offer(model, task)
        self.tasks += 1

    def offer(self, model: nn.Module, task: Task) -> None:
        """Offer all of a task's training data, or choose by class."""
        if self.choose != "reservoir":
            self._take_classes(task)
            return
        with evaluating(model), torch.no_grad():
            for batch in task.batches(1000):
                self.memory.add(**self.seen(model, batch))

    def _take_classes(self, task: Task) -> None:
        """A reservoir for every class, all of them cut to the same size if there is a bound in all."""
        pools: dict[int, Memory] = {}
        for batch in task.batches(1000):
            if batch.targets.is_floating_point() or batch.targets.ndim != 1:
                raise InputError("choose", f"'reservoir' for task '{task.id}', whose targets are no classes", repr(self.choose))
            rows = self.rows(batch)
            for label in batch.targets.unique().tolist():
                mine = batch.targets == label
                pools.setdefault(label, Memory(self.size, self.memory.draw)).add(**{name: value[mine] for name, value in rows.items()})
        parts = [pools[label].rows for label in sorted(pools)]
        if len(self.memory):
            parts = [self.memory.rows, *parts]
        self.memory.rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.memory.seen += sum(pool.seen for pool in pools.values())
        if self.choose == "balanced":
            rows = self.memory.rows
            _, group = torch.stack([rows["task"], rows["targets"]], 1).cpu().unique(dim=0, return_inverse=True)
            each = max(1, self.size // (int(group.max()) + 1))
            order = torch.randperm(len(group), generator=self.memory.draw)  # who goes is drawn: places in a reservoir are not in random order
            kept = [order[group[order] == i][:each] for i in range(int(group.max()) + 1)]
            self.memory.rows = self.memory.at(torch.cat(kept)[: self.size].sort().values)

    def seen(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What is kept of a batch that the model has learned."""
        return self.rows(batch)

    def after_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Take in what passed since the last step."""
        for rows in self._waiting:
            self.memory.add(**rows)
        self._waiting = []

    def state_dict(self) -> dict[str, Any]:
        """The memory, and the outputs that competed."""
        return {"memory": self.memory.state_dict(), "tasks": self.tasks, "active": self.active}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """The memory, on the model's device."""
        self.memory.load_state_dict(state["memory"], next(model.parameters()).device)
        self.tasks, self._waiting = state["tasks"], []
        self.active = [None if active is None else tuple(active) for active in state["active"]]


def balance(new: Tensor, old: Tensor, weight: Weight, strength: float, share: float) -> Tensor:
    """The penalty that makes ``new + penalty`` a mixture: ``(1 - share) new + share strength old``, or with ``sum`` the sum ``new + strength old``."""
    return strength * old if weight == "sum" else share * (strength * old - new)


def unmasked(task: Task) -> Task:
    """The task with all outputs competing."""
    return task if task.active is None else replace(task, active=None)


def on_device(task: Task, model: nn.Module) -> Task:
    """A task, or what makes one, with its data where the model is."""
    return as_task(task).to(next(model.parameters()).device)


def within(own: Active, now: Active) -> bool:
    """Whether all outputs that competed then compete now."""
    return now is None or (own is not None and set(own) <= set(now))
