"""From one model to another, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import check_count
from retain.paths.bridges import Bridge
from retain.paths.clock import Steps
from retain.paths.result import Path
from retain.paths.road import Augment, Road
from retain.paths.schedules import Schedule
from retain.paths.strategies import Move, Strategy
from retain.seeds import seeded
from retain.training.recorder import Recorder, Silent


def traverse(
    source: nn.Module,
    target: nn.Module,
    data: Any,
    strategy: str | Strategy = "optimal",
    schedule: str | Schedule | Callable[[float], float] = "linear",
    bridge: str | Bridge = "mixture",
    *,
    start: float = 0.05,
    steps: int | None = None,
    iterations: int = 1,
    first: int = 0,
    samples: int | None = None,
    seconds: float | None = None,
    points: int = 50,
    watch: Any = None,
    certify: int | None = 1000,
    floor: float = 1e-5,
    augment: Augment | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    recorder: Recorder | None = None,
) -> Path:
    r"""Carry what one model answers into another, along a path of distributions from the first to the second.

    The two models are joined by a bridge, such as the mixture :math:`p_q = (1-q)\,p_{\text{source}} + q\,p_{\text{target}}`. While q goes from its
    start to 1 the strategy changes the target's weights, ``optimal`` so that each step loses the least information (see
    :class:`retain.paths.Optimal` for the law and its source). The source is never changed. Every certified step says what was lost, in nats, on
    samples that are only looked at.

    The budget is one of: ``steps`` of q (100 if nothing is said), each of some ``iterations``; ``samples``; or ``seconds`` of CPU time. In the
    latter two q moves in every iteration.

    Args:
        source: Any classifier or regressor; frozen.
        target: Any module with the same outputs; trained in place.
        data: What the target is trained on: a task, a pair of arrays, a DataLoader, or a :class:`retain.paths.Drift`. Only some strategies look at labels.
        strategy: ``optimal``, ``retention``, ``distillation``, ``task``, ``ramp``, ``frozen``, ``sudden``, or one made with settings.
        schedule: ``linear``, ``geometric``, ``sin2``, ``fisher-speed``, ``retention-budget``, or a function from progress in [0, 1] to q.
        bridge: ``mixture``, ``exponential`` or ``great-circle``; regression knows ``exponential``.
        start: q at the start, in [0, 1); ``optimal`` needs it above 0. Smaller is nearer to the source, and takes more steps.
        steps: Steps of q.
        iterations: Updates in each of them.
        first: Updates before q moves.
        samples: Samples to see, in whole batches.
        seconds: CPU seconds, over all threads; measurements are not counted.
        points: Of a budget of samples or seconds: certify so many steps, evenly spaced.
        watch: What steps are certified on; by default the task's test, else its validation, else its training data.
        certify: Samples of it, drawn once; ``None`` is all.
        floor: Least probability of the source's answers, in [0, 0.01]; keeps 1 / p finite.
        augment: From inputs and a generator to changed inputs, such as :func:`retain.paths.shifts`; the source is asked about those. Function can be
            carried on inputs that nobody labelled.
        seed: Of the data order, drawn samples and noise.
        device: ``auto``, or any torch device.
        recorder: Where certified steps are reported.

    Returns:
        The certified steps and the target.

    Raises:
        InputError: If a setting, the data or the models do not fit.
        RetainError: If the source or the target stops answering with finite numbers.

    Example:
        >>> import retain
        >>> from retain import models, tasks
        >>> task = tasks.digits()
        >>> dense = models.MLP(64, 64, 32, 10, seed=0)
        >>> _ = retain.learn(dense, [task], epochs=20)
        >>> sparse = models.sparsify(dense, K=4)
        >>> before = retain.evaluate(sparse, task).score
        >>> path = retain.traverse(dense, sparse, task, steps=30)
        >>> retain.evaluate(sparse, task).score > before + 0.05
        True
    """
    road = Road(source, target, data, strategy, schedule, bridge, start, floor, seed, device, augment)
    clock = road.clock(steps, iterations, first, samples, seconds)
    certifier = road.certifier(watch, certify)
    recorder = recorder or Silent()
    path = Path(repr(road.strategy), road.bridge.name, road.schedule.name, score_name=road.task.likelihood.score_name, target=target)
    facts: dict[str, Any] = {}

    def log(before: float, q: float, *, begin: bool = False) -> None:
        found = certifier.measure(before, q, begin=begin)
        plain = {key: float(value) if isinstance(value, Tensor) else value for key, value in facts.items()}
        entry = {**found, "iterations": clock.iterations, "samples": clock.samples, "seconds": clock.seconds, **plain}
        path.steps.append(entry)
        total = clock.steps if isinstance(clock, Steps) else points
        scores = {"target": found["accuracy"], "mixture": found["mixture_accuracy"]}
        shown = {"task": f"q = {q:.3f}", "epoch": len(path.steps) - 1, "epochs": total, "loss": found["kl_target"], "accuracy": scores}
        recorder.event("step", **{**entry, **shown})

    marks = check_count("points", points)
    q = certified = 0.0 if road.strategy.jumps else road.start
    with road.ready(), seeded(seed, "traverse"):
        log(q, q, begin=True)
        number = 0
        batches = road.batches()
        while clock.done() < 1 and not road.strategy.jumps:
            clock.start()
            road.progress = clock.done()
            batch, answers = next(batches)
            done = road.progress
            progress, moves = clock.ahead(len(batch.targets))
            move = Move(road.walk, q, q, progress, batch, answers, number, done)
            if moves and progress > 0:
                move.to = road.next(q, done, progress, move)
            facts = road.strategy.update(move)
            clock.count(len(batch.targets))
            clock.stop()
            q, number = move.to, number + 1
            if isinstance(clock, Steps):
                due = clock.done() > done or (clock.iterations == clock.first and clock.first > 0)
            else:
                due = int(clock.done() * marks) > int(done * marks)
            if due and (clock.done() < 1 or q < 1 or isinstance(clock, Steps)):
                log(certified, q)
                certified = q
        if certified < 1 or not isinstance(clock, Steps):
            facts.clear()
            log(certified, 1.0)  # what is left of the way, without another update
        path.distance = certifier.distance()
    path.iterations, path.samples, path.seconds = clock.iterations, clock.samples, clock.seconds
    return path
