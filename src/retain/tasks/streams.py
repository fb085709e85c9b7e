"""Streams made of streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from retain.errors import InputError, check_share
from retain.likelihoods import Tokens
from retain.seeds import generator
from retain.tasks.batch import Batch
from retain.tasks.data import Data, Pair, TensorData
from retain.tasks.stream import Stream, as_stream, union
from retain.tasks.task import Task


def blurry(stream: Stream | Sequence[Any], share: float, seed: int = 0) -> Stream:
    """Tasks without sharp boundaries: a share of each one's training samples is exchanged with the other tasks'.

    After the blurry streams of Bang et al. 2021 (https://arxiv.org/abs/2103.17230), where ``share`` is the part of a task's samples whose
    classes belong to other tasks. Each task gives ``round(share * n)`` of its samples, drawn at random, and gets as many of other tasks'
    at random, so every sample is in the stream as often as before and every task keeps its size. Departure: sizes may differ, and a task
    that would give more than all others together gives as many as they do.

    Test and validation data stay. A task's ``classes`` become its own and, after them, those of the samples it got. So in the class
    scenario the outputs of all classes that any sample showed compete from then on, on the tests of earlier tasks too; with a large
    share that is nearly all of them from the first task on.

    Args:
        stream: Tasks held in tensors, of the domain or class scenario.
        share: Of each task's training samples, in [0, 1]: 0 changes nothing, 1 leaves no task a sample of its own.
        seed: Of the choice and the exchange; with one seed, a smaller share gives samples that a larger one gives too.

    Returns:
        A stream of the same scenario, with tasks named ``<id>-blurry``.

    Raises:
        InputError: If there is one task, data are no tensors, likelihoods or targets are not alike, the scenario is ``task``, or the share
            is out of range.

    Example:
        >>> from retain import tasks
        >>> first, second = tasks.blurry(tasks.split(tasks.digits(), 2), 0.1)
        >>> first.n, int((first.data.targets > 4).sum()), first.test.targets.unique().tolist()
        (721, 72, [0, 1, 2, 3, 4])
    """
    stream = as_stream(stream)
    share = check_share("share", share)
    tasks, draws = stream.tasks, generator(seed, "blurry")
    if stream.scenario == "task":
        hint = "With samples of other tasks inside, a task no longer says which classes compete."
        raise InputError("scenario", "'domain' or 'class'", "'task'", hint)
    if len(tasks) == 1:
        raise InputError("stream", "at least two tasks", 1, "For the parts of one task pass split(task, parts).")
    for task in tasks:
        _check(task, tasks[0])
    given = [torch.randperm(task.data.size, generator=generator(seed, "blurry", i))[: round(share * task.data.size)] for i, task in enumerate(tasks)]
    most = max(range(len(tasks)), key=lambda i: len(given[i]))
    given[most] = given[most][: sum(map(len, given)) - len(given[most])]

    counts = [len(rows) for rows in given]
    owner = torch.arange(len(tasks)).repeat_interleave(torch.tensor(counts))
    deal = torch.randperm(len(owner), generator=draws)  # place i, which is owner[i]'s, gets the sample that came from place deal[i]
    for i in range(len(tasks)):
        # what came back to its own task changes places with what is not this task's; of that there is enough, since no task gives more than half
        back = ((owner == i) & (owner[deal] == i)).nonzero()[:, 0]
        free = ((owner != i) & (owner[deal] != i)).nonzero()[:, 0]
        other = free[torch.randperm(len(free), generator=draws)[: len(back)]]
        deal[back], deal[other] = deal[other], deal[back]

    pool = [torch.cat([getattr(task.data, name)[rows] for task, rows in zip(tasks, given, strict=True)]) for name in ("inputs", "targets")]
    made = []
    for task, rows, places in zip(tasks, given, deal.split(counts), strict=True):
        inputs, targets = task.data.inputs.clone(), task.data.targets.clone()
        inputs[rows], targets[rows] = pool[0][places], pool[1][places]
        classes = task.classes
        if classes is not None:
            # labels below 0 are none: what Tokens leave out
            classes += tuple(sorted({int(label) for label in targets.unique() if label >= 0} - set(classes)))
        n = 0 if isinstance(task.likelihood, Tokens) else task.n  # sizes stay in samples, not in tokens
        made.append(replace(task, data=TensorData(inputs, targets), classes=classes, n=n, id=f"{task.id}-blurry"))
    return Stream(tuple(made), stream.scenario)


def joint(stream: Stream | Sequence[Any]) -> Stream:
    """All tasks of a stream as one, learned at once: the ceiling of every comparison, answered as the stream is.

    In the scenarios ``domain`` and ``class`` the samples are pooled (:func:`union`) and the outputs of all tasks compete. With a head a task every batch holds
    samples of one task, and its own outputs compete; the batches of all tasks come in random order, as many of each as its size asks for, so that a pass still
    shows every sample once. The joint training of van de Ven, Tuytelaars and Tolias 2022 (https://doi.org/10.1038/s42256-022-00568-3); departure: with a head
    a task each of their steps sees a share of every task.

    Args:
        stream: Tasks held in tensors; in the scenario ``task`` any data that know their number of batches.

    Returns:
        A stream of one task named ``joint``, of the same scenario, to learn while the original is watched. Its test and validation data are joined where every
        task has some. Methods that keep old samples refuse it in the scenario ``task``.

    Raises:
        InputError: If the tasks cannot be joined.

    Example:
        >>> from retain import learn, models, tasks
        >>> stream = tasks.split(tasks.digits(), 5, scenario="task")
        >>> result = learn(models.MLP(64, 32, 10, seed=0), tasks.joint(stream), watch=stream, epochs=20, lr=0.005)
        >>> bool(result.accuracy[1].min() > 0.9)
        True
    """
    stream = as_stream(stream)
    parts = stream.tasks
    if stream.scenario == "task":
        if any(task.likelihood != parts[0].likelihood for task in parts):
            raise InputError("stream", "one likelihood for all tasks", [repr(task.likelihood) for task in parts])
        found = {part: _heads(stream, part) for part in ("data", "test", "validation")}
        made = Task(
            found["data"], test=found["test"], validation=found["validation"], likelihood=parts[0].likelihood, id="joint", n=sum(task.n for task in parts)
        )
    else:
        made = union(*parts)
    classes = tuple(sorted({label for task in parts for label in task.classes or ()}))
    note = " ".join(dict.fromkeys(task.note for task in parts if task.note))
    return Stream((replace(made, classes=classes or None, note=note),), stream.scenario)


class _Heads(Data):
    """The samples of several tasks with a head each; a batch is of one task, and says of which.

    Args:
        tasks: What is read is their training data; their active outputs compete.
    """

    def __init__(self, tasks: tuple[Task, ...]) -> None:
        self.tasks = tasks

    @property
    def size(self) -> int | None:
        """How many samples there are in all."""
        sizes = [task.data.size for task in self.tasks]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of one input."""
        shape: tuple[int, ...] | None = self.tasks[0].data.shape
        return shape

    def steps(self, batch_size: int) -> int:
        """Batches of all tasks."""
        return sum(task.data.steps(batch_size) or 0 for task in self.tasks)

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Pair]:
        """The batches, without their tasks."""
        for batch in self._each(batch_size, generator):
            yield batch.inputs, batch.targets

    def batches_of(self, task: Task, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """The batches, each of its own task; task by task without a generator."""
        return self._each(batch_size, generator)

    def _each(self, batch_size: int, generator: torch.Generator | None) -> Iterator[Batch]:
        owner = torch.arange(len(self.tasks)).repeat_interleave(torch.tensor([task.data.steps(batch_size) or 0 for task in self.tasks]))
        if generator is not None:
            owner = owner[torch.randperm(len(owner), generator=generator)]
        running = [task.batches(batch_size, generator) for task in self.tasks]
        for i in owner.tolist():
            yield next(running[i])

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> _Heads:
        """The same tasks on ``device``."""
        return _Heads(tuple(task.to(device, dtype) for task in self.tasks))


def _heads(stream: Stream, part: str) -> _Heads | None:
    """One part of all tasks, or ``None`` if one task lacks it."""
    found = [getattr(task, part) for task in stream.tasks]
    if any(data is None for data in found):
        return None
    for task, data in zip(stream.tasks, found, strict=True):
        if data.steps(1) is None:
            raise InputError(f"{part} of task '{task.id}'", "data that know their number of batches", type(data).__name__)
    return _Heads(tuple(replace(task, data=data, test=None, validation=None) for task, data in zip(stream, found, strict=True)))


def _check(task: Task, first: Task) -> None:
    if not isinstance(task.data, TensorData):
        raise InputError(f"data of task '{task.id}'", "tensors, whose samples can be exchanged", type(task.data).__name__)
    if task.likelihood != first.likelihood:
        raise InputError(f"likelihood of task '{task.id}'", f"that of task '{first.id}', {first.likelihood!r}", repr(task.likelihood))
    for name in ("inputs", "targets"):
        kinds = [f"{list(values.shape[1:])} of {values.dtype}" for values in (getattr(first.data, name), getattr(task.data, name))]
        if kinds[0] != kinds[1]:
            raise InputError(f"{name} of task '{task.id}'", f"those of task '{first.id}', {kinds[0]}", kinds[1], "Exchanged samples need one form.")
