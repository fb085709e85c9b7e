"""The loop: learn tasks one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from retain.errors import DivergedError, InputError, check_count
from retain.methods.base import Method, Plain
from retain.models.parameters import copy, unwrap
from retain.seeds import derive, generator, seeded
from retain.tasks.batch import apply
from retain.tasks.data import all_finite
from retain.tasks.stream import Stream, as_stream
from retain.training.batchnorm import BatchNormKeeper, BatchNormPolicy
from retain.training.devices import Precision, autocast, choose_device, denormals_flushed, dtype_of
from retain.training.epoch import Epoch
from retain.training.evaluation import evaluate
from retain.training.optimizers import OptimizerFactory, Schedule, clear_gradients, factor, make_optimizer
from retain.training.recorder import Recorder, Silent
from retain.training.result import Result

_SCORES = ("accuracy", "nll", "validation", "validation_nll")


@denormals_flushed()
def learn(
    model: nn.Module,
    stream: Stream | Sequence[Any],
    method: Method | None = None,
    *,
    epochs: int = 1,
    steps: int | None = None,
    batch_size: int = 64,
    optimizer: str | OptimizerFactory = "adam",
    lr: float = 1e-3,
    schedule: Schedule = "constant",
    carry_optimizer: bool = False,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: Precision = "float32",
    batchnorm: BatchNormPolicy = "freeze",
    watch: Stream | Sequence[Any] | None = None,
    after: Result | None = None,
    consolidate_last: bool = True,
    score_every: int = 1,
    recorder: Recorder | None = None,
) -> Result:
    """Learn the tasks of a stream in order, and measure what is kept.

    Each task gets a fresh optimiser, unless it is carried. Before the first task, after every epoch and after every task the model is scored on all
    tasks in ``watch``: on their test data (a task without any on its validation data, or else on its training data), and on
    validation data where there are any. Meanwhile numbers below 1e-38 count as 0 in this thread (denormals, which moments of idle weights decay to).

    Args:
        model: Any module; trained in place, and moved to the device and precision asked for.
        stream: The tasks: a :class:`~retain.tasks.Stream`, or a list of tasks, DataLoaders or pairs of arrays.
        method: What is carried from task to task; plain fine-tuning by default.
        epochs: Passes over each task's data.
        steps: Optimiser steps a task instead of ``epochs``: as many passes as that takes, the last one cut short.
        batch_size: Samples a step; a DataLoader has its own.
        optimizer: ``adam``, ``adamw``, ``sgd``, ``momentum`` or a function from parameters to an optimiser. Ignored if the method
            brings an optimiser of its own, as :class:`~retain.methods.NewtonVCL` does.
        lr: Learning rate, of the method's own optimiser too.
        schedule: ``constant``, or ``cosine`` from lr to 0 within each task.
        carry_optimizer: Go on with the optimiser of the task before, its moments and counts, as long as it trains the same parameters. A fresh Adam
            takes steps of size lr at first, however small a weight's gradient, which costs what old tasks need; many published figures come from one
            that was carried. A method's own optimiser is its own affair.
        seed: Seed of the data order and of noise such as dropout. The model's initialisation is its own affair.
        device: ``auto``, or any torch device.
        precision: ``float32``, ``float64``, or ``bfloat16`` for mixed precision.
        batchnorm: What happens to batch-norm statistics: ``freeze`` after the first task, ``track`` or ``per-task``. The first
            task of a call without ``after`` counts as the first.
        watch: The tasks to score; the stream's own by default.
        after: The result of learning the first tasks of this stream: they are not learned again, and its rows and curves are kept. The
            model and the method must be those that came out of it (or the method has consolidated the model on their data).
        consolidate_last: Let the method remember the last task too; ``False`` saves the time where nothing follows and answers need it not.
        score_every: Score the watched tasks after every so many epochs of a task, and after its last; 0 is never, and the rows of the matrix are ``nan``.
        recorder: Where events and points to continue from go.

    Returns:
        The accuracy matrix, curves, model and method.

    Raises:
        InputError: If a setting or the data do not fit.
        DivergedError: If the loss is no longer finite.

    Example:
        >>> from retain import learn, models, tasks
        >>> result = learn(models.MLP(64, 32, 10, seed=0), tasks.split(tasks.digits(), 2, scenario="class"), epochs=20)
        >>> result.accuracy.shape, bool(result.forgetting > 0.5)
        ((3, 2), True)
    """
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    check_count("score_every", score_every, least=0)
    if steps is not None:
        check_count("steps", steps)
    if not isinstance(model, nn.Module):
        raise InputError("model", "an nn.Module", repr(model))
    if method is not None and not isinstance(method, Method):
        raise InputError("method", "a method such as methods.EWC()", repr(method))
    stream = as_stream(stream)
    watched = stream if watch is None else as_stream(watch)
    method, recorder = method or Plain(), recorder or Silent()
    place, dtype = choose_device(device), dtype_of(precision)
    stream, watched = _moved(stream, place, dtype), _moved(watched, place, dtype)
    with seeded(seed, "preparation"):
        model = method.prepare(unwrap(model)).to(place, dtype)
    result = Result([task.id for task in watched.tasks], score_name=stream.tasks[0].likelihood.score_name, model=model, method=method)
    keeper = BatchNormKeeper(model, batchnorm, result.statistics)
    first = 0
    if after is not None:
        first = len(after.rows) - 1
        if after.tasks != result.tasks or not 0 <= first < len(stream):
            raise InputError("after", f"a result on the tasks {result.tasks} that leaves some to learn", f"{first} tasks of {after.tasks}")
        result.rows, result.nll_rows, result.validation_rows = list(after.rows), list(after.nll_rows), list(after.validation_rows)
        result.history = list(after.history)
        result.statistics.update(after.statistics)

    result.learned = [task.id for task in stream.tasks]
    position = (first, 0)  # task, epochs of it that are done
    stepper: Any = None
    restored = recorder.load()
    if restored is not None:
        position = (restored["task"], restored["epoch"])
        if restored["epoch"]:  # inside a task: what begin did is then restored with the rest
            method.begin(model, stream[position[0]])
        _restore(restored, result, model, method)
        if restored["done"]:
            return result
        if restored["optimizer"] is not None and not restored["epoch"]:  # of the task before: made before begin, which may freeze what it trained
            stepper = make_optimizer(optimizer, method.groups(model, lr), lr)
            initial = [group["lr"] for group in stepper.param_groups]
            stepper.load_state_dict(restored["optimizer"])
    elif not result.rows:
        _row(result, model, method, watched, stream, keeper, -1, score_every)

    for t in range(position[0], len(stream)):
        task = stream[t]
        known = task.data.steps(batch_size)
        if steps is not None and known is None:
            raise InputError("steps", f"data of task '{task.id}' that know their number of batches", type(task.data).__name__, "Pass epochs instead.")
        passes = epochs if steps is None else math.ceil(steps / (known or 1))
        if t > position[0] or not position[1]:
            if method.scouts:  # a copy learns the task freely, and the method looks at where it ends
                options: dict[str, Any] = {"epochs": epochs, "steps": steps, "batch_size": batch_size, "optimizer": optimizer, "lr": lr, "schedule": schedule}
                free = copy(model)
                learn(free, [task], seed=derive(seed, "scout", t), device=place, precision=precision, batchnorm=batchnorm, **options)
                method.scout(free, task)
            method.begin(model, task)
        own, groups = method.optimizer(model, lr), list(method.groups(model, lr))
        if own is not None or not carry_optimizer or not _trains(stepper, groups):
            stepper = own or make_optimizer(optimizer, groups, lr)
            initial = [group["lr"] for group in stepper.param_groups]
        drawn = getattr(stepper, "sampled", nullcontext)  # an optimiser that wants its gradients at drawn weights
        done, passed = position[1] if t == position[0] else 0, 0
        found: dict[str, dict[str, float]] | None = None
        if done and restored is not None:
            stepper.load_state_dict(restored["optimizer"])
        for epoch in range(done, passes):
            model.train()
            keeper.training(first=t == 0)
            sums = Epoch(task.likelihood)
            expected = known or passed or math.ceil(task.n / batch_size)
            whole = epochs if steps is None else steps / expected  # passes of which the last may be a part
            with seeded(seed, "noise", t, epoch):
                for step, batch in enumerate(task.batches(batch_size, generator(seed, "order", t, epoch))):
                    if steps is not None and epoch * expected + step == steps:
                        break
                    if schedule != "constant":
                        share = factor(schedule, min(1.0, (epoch + step / expected) / whole))
                        for group, rate in zip(stepper.param_groups, initial, strict=True):
                            group["lr"] = rate * share
                    batch = method.augment(batch, model)
                    clear_gradients(stepper)
                    with drawn():
                        with autocast(precision, place):
                            outputs = apply(model, batch)
                            task.check(outputs, batch.targets, first=step == 0 and epoch == done)
                            loss = task.likelihood.mean_nll(outputs, batch.targets, batch.weight)
                            extra = method.penalty(model, batch, outputs)
                        (loss if extra is None else loss + extra).backward()
                    method.before_step(model, stepper)
                    stepper.step()
                    method.after_step(model, stepper)
                    sums.add(loss, outputs, batch.targets)
            passed, mean = sums.steps, sums.mean()
            # each loss is that before its step: what the last step did is seen in the weights alone
            broken = "The loss" if not math.isfinite(mean) else "A weight" if epoch + 1 == passes and not _finite(model) else ""
            if broken:
                raise DivergedError(
                    f"{broken} on task '{task.id}' is no longer finite in epoch {epoch + 1} ({method!r}, lr={lr:g}). "
                    "Lower lr or the strength, or use pull='proximal'."
                )
            scored = score_every > 0 and ((epoch + 1) % score_every == 0 or epoch + 1 == passes)
            found = _score(result, model, method, watched, stream, keeper, t, row=False) if scored else {key: {} for key in _SCORES}
            said = method.report(model)
            entry = {"task": task.id, "epoch": epoch + 1, "loss": mean, "score": sums.score(), **found, **said}
            result.history.append(entry)
            recorder.event("epoch", method=str(method), epochs=passes, **entry)
            if epoch + 1 < passes:
                recorder.save(lambda t=t, e=epoch + 1, o=stepper: _state(result, model, method, t, e, o, done=False))  # type: ignore[misc]
        # a row that would repeat the scores after the last epoch is taken from them: for that the model has to be what it was
        plain = found is not None and score_every > 0 and type(method).predict is Method.predict and not keeper.layers
        weights = [value.detach().clone() for value in _tensors(model)] if plain else None
        keeper.finished(task.id)
        last = t + 1 == len(stream)
        if consolidate_last or not last or method.answers_from_memory:
            with seeded(seed, "remember", t):
                method.consolidate(model, task)
        if found is not None and weights is not None and _same(weights, _tensors(model)):
            _append(result, found, watched)
        else:
            _row(result, model, method, watched, stream, keeper, t, score_every)
            if method.answers_from_memory and score_every:  # the last epoch's scores were without what is remembered
                recorder.event("remembered", task=task.id, accuracy=dict(zip((one.id for one in watched.tasks), result.rows[-1], strict=True)))
        kept = stepper if carry_optimizer and own is None and not last else None
        recorder.save(lambda t=t, last=last, o=kept: _state(result, model, method, t + 1, 0, o, done=last), final=last)  # type: ignore[misc]
    return result


def measure(model: nn.Module, stream: Stream | Sequence[Any], learned: int = 1, method: Method | None = None) -> Result:
    """A result for a model that was trained elsewhere on the first tasks of a stream, to hand to ``learn(..., after=...)``.

    Args:
        model: The model.
        stream: The whole stream.
        learned: How many of its tasks the model has learned.
        method: The method that answers, if it answers differently from the forward pass.

    Returns:
        A result whose last row is measured; rows before it are ``nan``, since nobody was there.

    Raises:
        InputError: If ``learned`` is not between 1 and the number of tasks.
    """
    stream = as_stream(stream)
    if not 1 <= learned <= len(stream):
        raise InputError("learned", f"between 1 and {len(stream)} tasks", learned)
    method = method or Plain()
    result = Result(
        [task.id for task in stream.tasks],
        [task.id for task in stream.tasks[:learned]],
        score_name=stream.tasks[0].likelihood.score_name,
        model=model,
        method=method,
    )
    for _ in range(learned):
        _empty(result, len(stream))
    _score(result, model, method, stream, stream, BatchNormKeeper(model, "track"), learned - 1, row=True)
    return result


def _moved(stream: Stream, place: torch.device, dtype: torch.dtype) -> Stream:
    return Stream(tuple(task.to(place, dtype) for task in stream.tasks), stream.scenario)


def _score(
    result: Result, model: nn.Module, method: Method, watched: Stream, stream: Stream, keeper: BatchNormKeeper, learned: int, *, row: bool
) -> dict[str, dict[str, float]]:
    """Score all watched tasks after the stream's task ``learned`` (-1: none); with ``row`` the scores become a row of the matrix."""
    met = {label for task in stream.tasks[: learned + 1] for label in task.classes or ()}
    scores, nlls, held_out, held_out_nll = {}, {}, {}, {}
    for j, original in enumerate(watched.tasks):
        task = watched.at(j, 0)
        if watched.scenario == "class":  # the watched tasks need not be those that are learned
            task = replace(task, active=tuple(sorted(met | set(task.classes or ()))))
        part = "test" if original.test is not None else "validation" if original.validation is not None else "data"
        before = keeper.enter(original.id)
        found = evaluate(model, task, method, part=part)
        scores[original.id] = found.score
        nlls[original.id] = found.nll
        if original.validation is not None:
            held_out[original.id], held_out_nll[original.id] = evaluate(model, task, method, part="validation")
        keeper.leave(before)
    said = dict(zip(_SCORES, (scores, nlls, held_out, held_out_nll), strict=True))
    if row:
        _append(result, said, watched)
    return said


def _trains(optimizer: Any, groups: Sequence[dict[str, Any]]) -> bool:
    """Whether an optimiser, ``None`` at first, trains exactly the parameters of these groups."""
    wanted = [id(p) for group in groups for p in group["params"] if p.requires_grad]
    return optimizer is not None and wanted == [id(p) for group in optimizer.param_groups for p in group["params"]]


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _finite(model: nn.Module) -> bool:
    return all(all_finite(parameter.detach()) for parameter in model.parameters())


def _same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(a.device == b.device and torch.equal(a, b) for a, b in zip(some, others, strict=True))


def _append(result: Result, found: dict[str, dict[str, float]], watched: Stream) -> None:
    """Scores as a row of the matrix."""
    for rows, key in ((result.rows, "accuracy"), (result.nll_rows, "nll"), (result.validation_rows, "validation")):
        rows.append([found[key].get(task.id, math.nan) for task in watched.tasks])


def _empty(result: Result, tasks: int) -> None:
    for rows in (result.rows, result.nll_rows, result.validation_rows):
        rows.append([math.nan] * tasks)


def _row(result: Result, model: nn.Module, method: Method, watched: Stream, stream: Stream, keeper: BatchNormKeeper, learned: int, score_every: int) -> None:
    if score_every:
        _score(result, model, method, watched, stream, keeper, learned, row=True)
    else:
        _empty(result, len(watched))


def _state(result: Result, model: nn.Module, method: Method, task: int, epoch: int, optimizer: Any, *, done: bool) -> dict[str, Any]:
    return {
        "task": task,
        "epoch": epoch,
        "done": done,
        "model": model.state_dict(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "method": method.state_dict(),
        "statistics": result.statistics,
        "rows": result.rows,
        "nll_rows": result.nll_rows,
        "validation_rows": result.validation_rows,
        "history": result.history,
    }


def _restore(state: dict[str, Any], result: Result, model: nn.Module, method: Method) -> None:
    model.load_state_dict(state["model"])
    method.load_state_dict(state["method"], model)
    result.statistics.update(
        {id: {name: value.to(next(model.parameters()).device) for name, value in kept.items()} for id, kept in state["statistics"].items()}
    )
    for name in ("rows", "nll_rows", "validation_rows", "history"):
        setattr(result, name, state[name])
