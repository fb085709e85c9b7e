"""Streams made of streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from retain.errors import InputError, check_share
from retain.likelihoods import Tokens
from retain.seeds import generator
from retain.tasks.data import TensorData
from retain.tasks.stream import Stream, as_stream
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


def _check(task: Task, first: Task) -> None:
    if not isinstance(task.data, TensorData):
        raise InputError(f"data of task '{task.id}'", "tensors, whose samples can be exchanged", type(task.data).__name__)
    if task.likelihood != first.likelihood:
        raise InputError(f"likelihood of task '{task.id}'", f"that of task '{first.id}', {first.likelihood!r}", repr(task.likelihood))
    for name in ("inputs", "targets"):
        kinds = [f"{list(values.shape[1:])} of {values.dtype}" for values in (getattr(first.data, name), getattr(task.data, name))]
        if kinds[0] != kinds[1]:
            raise InputError(f"{name} of task '{task.id}'", f"those of task '{first.id}', {kinds[0]}", kinds[1], "Exchanged samples need one form.")
