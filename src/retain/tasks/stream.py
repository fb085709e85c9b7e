"""Tasks in order, and which outputs compete for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal, overload

import torch

from retain.errors import InputError, check_count, nearest
from retain.likelihoods import Categorical, Tokens
from retain.seeds import generator
from retain.tasks.data import TensorData
from retain.tasks.stored import joined
from retain.tasks.task import Task

Scenario = Literal["domain", "task", "class"]


@dataclass(frozen=True, eq=False)
class Stream:
    """Tasks to learn one after the other.

    Online learning, where every sample is seen once, is no other stream: it is ``learn(..., epochs=1)``.

    Args:
        tasks: The tasks; a DataLoader or a pair of arrays is made a task. The scenarios ``task`` and ``class`` need the classes of each,
            which a DataLoader cannot tell: pass ``Task(loader, classes=(0, 1))``.
        scenario: Which outputs compete when a task is asked (van de Ven, Tuytelaars and Tolias 2022,
            https://doi.org/10.1038/s42256-022-00568-3): ``domain`` all of the model's, ``task`` the task's own classes (its
            identity is given), ``class`` those of all tasks seen so far.

    Raises:
        InputError: If there are no tasks, their inputs differ in shape, two share an id, the scenario is unknown, or is ``class`` and two
            tasks call the same label by different names.
    """

    tasks: tuple[Task, ...]
    scenario: Scenario = "domain"

    def __post_init__(self) -> None:
        tasks = tuple(task if isinstance(task, Task) else Task(task, id=f"task-{i + 1}") for i, task in enumerate(self.tasks))
        object.__setattr__(self, "tasks", tasks)
        if not tasks:
            raise InputError("tasks", "at least one task", "none")
        if self.scenario not in ("domain", "task", "class"):
            raise InputError("scenario", "'domain', 'task' or 'class'", repr(self.scenario), nearest(str(self.scenario), ["domain", "task", "class"]))
        known = [(task.id, task.data.shape) for task in tasks if task.data.shape is not None]
        for name, shape in known[1:]:
            if shape != known[0][1]:
                raise InputError(
                    f"inputs of task '{name}'",
                    f"the shape of task '{known[0][0]}', {list(known[0][1])}",
                    list(shape),
                    "Resize or pad one of them: one model sees both.",
                )
        for i, task in enumerate(tasks):
            if task.id in [other.id for other in tasks[:i]]:
                raise InputError("id", "a different id for every task", repr(task.id), "Pass Task(..., id=...).")
            if self.scenario != "domain" and not isinstance(task.likelihood, Categorical | Tokens):
                raise InputError(
                    "scenario", f"'domain' for the likelihood of task '{task.id}', {task.likelihood!r}", repr(self.scenario), "Only classes can compete."
                )
            if self.scenario != "domain" and not task.classes:
                raise InputError(
                    "classes", f"the classes of task '{task.id}', which the {self.scenario} scenario needs", "none", "Pass Task(..., classes=...)."
                )

        if self.scenario == "class":
            self._check_names()

    def _check_names(self) -> None:
        """One output cannot stand for two classes that compete."""
        known: dict[int, tuple[str, str]] = {}
        for task in self.tasks:
            names = task.class_names or ()
            for label in (label for label in task.classes or () if label < len(names)):
                name, first = known.setdefault(label, (names[label], task.id))
                if name != names[label]:
                    raise InputError(
                        f"classes of task '{task.id}'",
                        f"classes that task '{first}' does not have, or the same names: label {label} is '{name}' there",
                        f"'{names[label]}' here",
                        "Move the labels of one along with tasks.shift_labels, or pass scenario='domain'.",
                    )

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return (self.at(i, i) for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Stream: ...
    def __getitem__(self, index: int | slice) -> Task | Stream:
        if isinstance(index, slice):
            return replace(self, tasks=self.tasks[index])
        position = index + len(self) if index < 0 else index
        return self.at(position, position)

    def at(self, index: int, seen: int) -> Task:
        """Task ``index`` as it is asked once tasks 0 to ``seen`` have been met: with the outputs that compete then."""
        task = self.tasks[index]
        if self.scenario == "task":
            return replace(task, active=task.classes)
        if self.scenario == "class":
            met = {label for other in self.tasks[: max(seen, index) + 1] for label in other.classes or ()}
            return replace(task, active=tuple(sorted(met)))
        return task


def sequence(*tasks: Any, scenario: Scenario = "domain") -> Stream:
    """A stream of the given tasks, in that order.

    Args:
        *tasks: Tasks, DataLoaders or pairs of arrays; or one list of those.
        scenario: See :class:`Stream`.

    Returns:
        The stream.

    Example:
        >>> from retain import tasks
        >>> stream = tasks.sequence(tasks.mnist(embedded=True), tasks.fashion_mnist(embedded=True))
        >>> [task.id for task in stream]
        ['mnist', 'fashion']
    """
    if len(tasks) == 1 and isinstance(tasks[0], Stream):
        return tasks[0]
    return Stream(tuple(tasks[0]) if len(tasks) == 1 and isinstance(tasks[0], list) else tasks, scenario)


def as_stream(value: Any) -> Stream:
    """A stream as it is, or a list or tuple of tasks, DataLoaders and pairs of arrays as one.

    Args:
        value: What a person passed.

    Returns:
        The stream.

    Raises:
        InputError: If it is neither.
    """
    if isinstance(value, Stream):
        return value
    if not isinstance(value, list | tuple):
        raise InputError("stream", "a Stream or a list of tasks", type(value).__name__, "For a single task pass [task].")
    return Stream(tuple(value))


def split(task: Task, parts: int, *, order: Sequence[int] | int | None = None, scenario: Scenario = "class", relabel: bool = False) -> Stream:
    """One task cut by class into ``parts`` tasks of equally many classes; labels stay as they are.

    Args:
        task: A classification task held in tensors.
        parts: How many tasks; must divide the number of classes.
        order: The classes in the order they are dealt out, or the seed of a random order, which depends on nothing else; ascending by default.
        scenario: See :class:`Stream`.
        relabel: Give the classes of every task the labels from 0 on, in the order they were dealt: the domain scenario of split MNIST of
            van de Ven et al. 2022, where two outputs mean other digits in every task.

    Returns:
        A stream of ``parts`` tasks named ``<id>-1`` and so on.

    Raises:
        InputError: If the classes cannot be dealt out evenly, the order is not a permutation of them, or classes that are to compete by
            their labels are given the same ones.

    Example:
        >>> from retain import tasks
        >>> [task.classes for task in tasks.split(tasks.digits(), 5, scenario="task")]
        [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    """
    check_count("parts", parts)
    classes = task.classes or ()
    if isinstance(order, int | Integral):
        check_count("order", order, least=0)
        dealt = tuple(classes[i] for i in torch.randperm(len(classes), generator=generator(int(order), "classes")).tolist())
    else:
        dealt = tuple(order) if order is not None else classes
    if sorted(dealt) != sorted(classes):
        raise InputError("order", f"a permutation of the classes {list(classes)}", list(dealt))
    if not classes or len(classes) % parts:
        raise InputError("parts", f"a divisor of the {len(classes)} classes of task '{task.id}'", parts)
    if relabel and scenario != "domain":
        raise InputError("relabel", f"False in the {scenario} scenario, where labels say which outputs compete", relabel, "Pass scenario='domain'.")
    width = len(classes) // parts

    def only(part: str, mine: tuple[int, ...]) -> TensorData | None:
        data = getattr(task, part)
        if data is None:
            return None
        if not isinstance(data, TensorData):
            raise InputError(part, "tensors to cut by class", type(data).__name__)
        keep = sum((data.targets == label for label in mine), start=data.targets != data.targets)
        found = data.take(keep.nonzero()[:, 0])
        if relabel:
            found.targets = sum((i * (found.targets == label) for i, label in enumerate(mine)), start=torch.zeros_like(found.targets))
        return found

    pieces = []
    for i in range(parts):
        mine = dealt[i * width : (i + 1) * width]
        data = {part: only(part, mine) for part in ("data", "test", "validation")}
        piece = replace(task, **data, classes=mine, id=f"{task.id}-{i + 1}", n=0)  # type: ignore[arg-type]
        pieces.append(replace(piece, classes=tuple(range(width)), class_names=None) if relabel else piece)
    return Stream(tuple(pieces), scenario)


def union(*tasks: Task, id: str = "joint") -> Task:
    """One task with the samples of several: what joint training, the ceiling of every comparison, learns.

    Args:
        *tasks: Tasks held in tensors, with one likelihood and inputs of one shape.
        id: The new task's name.

    Returns:
        The task; its test and validation sets are joined where every task has one.

    Raises:
        InputError: If the tasks cannot be joined.
    """
    Stream(tasks)  # checks shapes and names
    if any(task.likelihood != tasks[0].likelihood for task in tasks):
        raise InputError("tasks", "one likelihood for all", [repr(task.likelihood) for task in tasks])
    parts: dict[str, TensorData | None] = {}
    for part in ("data", "test", "validation"):
        found = [getattr(task, part) for task in tasks]
        if any(data is None for data in found):
            parts[part] = None
        elif all(isinstance(data, TensorData) for data in found):
            parts[part] = joined(found)
        else:
            raise InputError(part, "tensors to join", [type(data).__name__ for data in found])
    return Task(parts["data"], test=parts["test"], validation=parts["validation"], likelihood=tasks[0].likelihood, id=id)
