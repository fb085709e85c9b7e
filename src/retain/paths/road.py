"""What a traversal goes along: models, data and settings, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from retain.curvature.inputs import up_to
from retain.errors import InputError, RetainError, check_count, check_positive, check_share
from retain.likelihoods import Categorical
from retain.models.parameters import evaluating, named_parameters, unwrap
from retain.paths.bridges import Bridge, bridge_for
from retain.paths.certificate import Certifier
from retain.paths.clock import Clock, Samples, Seconds, Steps
from retain.paths.drift import Drift
from retain.paths.schedules import Ahead, Schedule, schedule_for
from retain.paths.strategies import Move, Strategy, Walk, strategy_for
from retain.seeds import generator, seeded
from retain.tasks.batch import Batch, apply
from retain.tasks.data import TensorData, all_finite
from retain.tasks.task import Task, as_task
from retain.training.devices import choose_device

Augment = Callable[[Tensor, torch.Generator], Tensor]


class Road:
    """Everything a traversal needs, checked.

    Args:
        source: See :func:`retain.traverse`, as all the others.
        target: The model that learns.
        data: What it is trained on.
        strategy: How it moves.
        schedule: How q does.
        bridge: Between the two.
        start: q at the start.
        floor: Least probability of the source's answers.
        seed: Of everything random.
        device: Where it happens.
        augment: Changes inputs.

    Raises:
        InputError: If something does not fit.
        RetainError: If there is nothing to train.
    """

    def __init__(
        self,
        source: nn.Module,
        target: nn.Module,
        data: Any,
        strategy: str | Strategy,
        schedule: str | Schedule | Callable[[float], float],
        bridge: str | Bridge,
        start: float,
        floor: float,
        seed: int,
        device: str | torch.device,
        augment: Augment | None = None,
    ) -> None:
        for name, model in (("source", source), ("target", target)):
            if not isinstance(model, nn.Module):
                raise InputError(name, "an nn.Module", repr(model))
        self.strategy, self.schedule = strategy_for(strategy), schedule_for(schedule)
        self.start, self.seed = check_share("start", start), seed
        if self.start >= 1:
            raise InputError("start", "below 1", start)
        if not 0 <= floor <= 0.01:
            raise InputError("floor", "a probability between 0 and 0.01", floor)
        place = choose_device(device)
        self.drift = data if isinstance(data, Drift) else None
        task = data.first if isinstance(data, Drift) else as_task(data)
        self.target, self.source = unwrap(target).to(place), unwrap(source).to(place)
        parameters = named_parameters(self.target)
        shared = {id(p) for p in self.source.parameters()} & {id(p) for p in parameters.values()}
        if self.target is self.source or shared:
            raise InputError("target", "a model of its own", "one that shares weights with the source", "Pass a copy, such as retain.models.sparsify makes.")
        if not parameters and not (self.strategy.jumps or self.strategy.name == "frozen"):
            raise RetainError("target: expected trainable parameters, found none. Unfreeze a layer first.")
        anyone = next(iter(self.target.parameters()), torch.zeros((), device=place))
        self.task = task.to(place, anyone.dtype)
        if self.drift:
            self.drift = self.drift.to(place, anyone.dtype)
        self.bridge = bridge_for(bridge, self.task.likelihood)
        if self.strategy.divides and self.start <= 0:
            raise InputError("start", "above 0 with strategy='optimal'", start, "The law divides by q: start at 0.01, say, and use damping.")
        self.walk = Walk(self.source, self.target, self.task, self.bridge, parameters, seed, floor)
        self._answers: Tensor | None = None
        self.progress = 0.0
        self._augment = augment
        with seeded(seed, "traverse"):
            self._check_outputs(floor)

    def _check_outputs(self, floor: float) -> None:
        batch = next(iter(self.task.batches(min(64, self.strategy.batch_size))))
        found = {}
        for name, model in (("source", self.source), ("target", self.target)):
            with torch.no_grad(), evaluating(model):
                found[name] = outputs = apply(model, batch)
            if not bool(torch.isfinite(outputs).all()):
                raise InputError(f"outputs of the {name}", "finite numbers", "NaN or infinity", "Check its weights and the data's scale.")
            self.task.likelihood.check(outputs, batch.targets, f"the {name}")
            if floor and isinstance(self.task.likelihood, Categorical) and floor * outputs.shape[1] >= 1:
                raise InputError("floor", f"below 1/{outputs.shape[1]}, with {outputs.shape[1]} classes", floor)
            if isinstance(self.task.likelihood, Categorical) and _are_probabilities(outputs):
                raise InputError(f"outputs of the {name}", "logits", "probabilities, which sum to 1", "Take the softmax at its end away.")
        if self.drift is not None:
            self.drift.second.check(found["target"], batch.targets, first=True)
        if found["source"].shape != found["target"].shape:
            raise InputError(
                "target",
                f"{found['source'].shape[1]} outputs, as the source has",
                found["target"].shape[1],
                "Only models that answer in the same outputs can be joined.",
            )

    def clock(self, steps: int | None, iterations: int, first: int, samples: int | None, seconds: float | None) -> Clock:
        """The budget."""
        place = next(iter(self.target.parameters()), torch.zeros(())).device
        given = [name for name, value in (("steps", steps), ("samples", samples), ("seconds", seconds)) if value is not None]
        if len(given) > 1:
            raise InputError("budget", "one of steps, samples and seconds", " and ".join(given))
        if given and given != ["steps"] and (iterations != 1 or first):
            raise InputError(
                "iterations" if iterations != 1 else "first", f"steps of q to count them in, not {given[0]}", iterations if iterations != 1 else first
            )
        check_count("iterations", iterations)
        check_count("first", first, least=0)
        if samples is not None:
            return Samples(place, check_count("samples", samples))
        if seconds is not None:
            return Seconds(place, check_positive("seconds", seconds))
        return Steps(place, 100 if steps is None else check_count("steps", steps), iterations, first)

    def certifier(self, watch: Any, certify: int | None) -> Certifier:
        """Samples that are only looked at."""
        task, part = self.task, "data"
        if watch is not None:
            task = as_task(watch, None if isinstance(watch, Task) else self.task.likelihood)
            anyone = next(iter(self.target.parameters()), torch.zeros(()))
            task = task.to(anyone.device, anyone.dtype)
            if not isinstance(watch, Task):
                task = replace(task, active=self.task.active)
        for name in ("test", "validation"):
            if getattr(task, name) is not None:
                part = name
                break
        size = 1000 if certify is None else min(check_count("certify", certify), 1000)
        with seeded(0, "certificate"), torch.no_grad(), evaluating(self.target):
            chosen = list(up_to(task.batches(size, generator(0, "certificate"), part), certify))
            task.check(apply(self.target, chosen[0]), chosen[0].targets, part, first=True)
        return Certifier(self.walk, chosen, task)

    def next(self, q: float, done: float, progress: float, move: Move) -> float:
        """The schedule's answer, checked."""
        found = self.schedule.next(self.start, q, done, progress, Ahead(self.bridge, move.source, move.outputs))
        return min(1.0, max(q, found))

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Inside the block the source is frozen, both models are in their modes, and the strategy has begun; all is undone afterwards."""
        needed = [p for p in self.source.parameters() if p.requires_grad]
        modes = {module: module.training for model in (self.source, self.target) for module in model.modules()}
        try:
            for p in needed:
                p.requires_grad_(False)
            self.source.eval()
            self.target.train(not self.strategy.evaluation)
            if self.strategy.evaluation:
                self._settle_batchnorm()
            self.strategy.begin(self.walk)
            yield
        finally:
            for p in needed:
                p.requires_grad_(True)
            for module, mode in modes.items():
                module.training = mode
            try:
                self.strategy.end(self.walk)
            finally:
                for p in self.walk.parameters.values():
                    p.grad = None

    def _settle_batchnorm(self) -> None:
        """Give batch-norm layers that never saw data their statistics, the mean over some batches; second-order steps keep them as they are."""
        layers = [module for module in self.target.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        fresh = {layer: layer.momentum for layer in layers if layer.num_batches_tracked is not None and int(layer.num_batches_tracked) == 0}
        if not fresh:
            return
        try:
            for layer in fresh:
                layer.momentum = None  # equal weights
                layer.train()
            with torch.no_grad():
                for batch in islice(self.task.batches(self.strategy.batch_size, generator(self.seed, "batchnorm")), 20):
                    if len(batch.targets) > 1:
                        apply(self.target, batch)
        finally:
            for layer, momentum in fresh.items():
                layer.momentum = momentum
                layer.eval()

    def batches(self) -> Iterator[tuple[Batch, Tensor]]:
        """Batches without end, and the source's answers to them."""
        if self._augment is None:
            yield from self._plain()
            return
        draw = generator(self.seed, "augment")
        for batch, _ in self._plain(ask=False):
            batch.inputs = self._augment(batch.inputs, draw)
            yield batch, self._ask(batch)

    def _plain(self, *, ask: bool = True) -> Iterator[tuple[Batch, Tensor]]:
        size, epoch = self.strategy.batch_size, 0
        if self.drift is not None:
            for batch in self.drift.batches(size, self.seed, lambda: self.progress, self.task):
                yield batch, self._ask(batch) if ask else batch.targets
        data = self.task.data
        if isinstance(data, TensorData):
            order = torch.empty(0, dtype=torch.long)
            size = min(size, data.size)
            while True:
                if len(order) < size:  # what is left of an epoch begins a batch of the next
                    order = torch.cat([order, torch.randperm(data.size, generator=generator(self.seed, "order", epoch))])
                    epoch += 1
                rows, order = order[:size].to(data.device), order[size:]
                batch = Batch(data.inputs[rows], data.targets[rows], self.task)
                yield batch, self._recall(rows, batch) if ask else batch.targets
        while True:
            for batch in self.task.batches(size, generator(self.seed, "order", epoch)):
                yield batch, self._ask(batch) if ask else batch.targets
            epoch += 1

    def _recall(self, rows: Tensor, batch: Batch) -> Tensor:
        """Each sample is asked about once."""
        if self._answers is not None:
            unknown = torch.isnan(self._answers[rows].flatten(1)[:, 0])
            if not bool(unknown.any()):
                return self._answers[rows]
        found = self._ask(batch)
        if self._answers is None:
            self._answers = found.new_full((self.task.data.size, *found.shape[1:]), float("nan"))
        self._answers[rows] = found
        return found

    def _ask(self, batch: Batch) -> Tensor:
        answers = self.walk.ask(batch)
        if not all_finite(answers):
            raise InputError("outputs of the source", "finite numbers", "NaN or infinity", "Check the data: the source cannot answer some of them.")
        return answers


def _are_probabilities(outputs: Tensor) -> bool:
    return bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < 1e-3).all())
