"""What a traversal goes along: models, data and settings, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import InputError, RetainError, check_count, check_positive
from retain.likelihoods import Categorical
from retain.models.mixture import check_share
from retain.models.parameters import evaluating, named_parameters, unwrap
from retain.paths.bridges import Bridge, bridge_for
from retain.paths.certificate import Certifier
from retain.paths.clock import Clock, Samples, Seconds, Steps
from retain.paths.drift import Drift
from retain.paths.schedules import Ahead, Schedule, schedule_for
from retain.paths.strategies import Move, Strategy, Walk, strategy_for
from retain.seeds import generator
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
        if self.strategy.name == "optimal" and self.start <= 0:
            hint = "The law divides by q; on a mixture start at 0.01 or more."
            raise InputError("start", "above 0 with strategy='optimal'", start, hint)
        self.walk = Walk(self.source, self.target, self.task, self.bridge, parameters, seed, floor)
        self._answers: Tensor | None = None
        self.progress = 0.0
        self._augment = augment
        self._check_outputs()

    def _check_outputs(self) -> None:
        batch = next(iter(self.task.batches(min(64, self.strategy.batch_size))))
        found = {}
        for name, model in (("source", self.source), ("target", self.target)):
            with torch.no_grad(), evaluating(model):
                found[name] = outputs = apply(model, batch)
            if not bool(torch.isfinite(outputs).all()):
                raise InputError(f"outputs of the {name}", "finite numbers", "NaN or infinity", "Check its weights and the data's scale.")
            self.task.likelihood.check(outputs, batch.targets, f"the {name}")
            if isinstance(self.task.likelihood, Categorical) and _are_probabilities(outputs):
                raise InputError(f"outputs of the {name}", "logits", "probabilities, which sum to 1", "Take the softmax at its end away.")
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
        for name in ("test", "validation"):
            if getattr(task, name) is not None:
                part = name
                break
        chosen, left = [], certify if certify is None else check_count("certify", certify)
        draw = generator(0, "certificate")
        for batch in task.batches(1000 if left is None else min(left, 1000), draw, part):
            chosen.append(batch)
            if left is not None:
                left -= len(batch.targets)
                if left <= 0:
                    break
        return Certifier(self.walk, chosen, task)

    def next(self, q: float, done: float, progress: float, move: Move) -> float:
        """The schedule's answer, checked."""
        found = self.schedule.next(self.start, q, done, progress, Ahead(self.bridge, move.source, move.outputs))
        return min(1.0, max(q, found))

    def ready(self) -> Ready:
        """The source frozen, both models in their modes, the strategy begun; all undone afterwards."""
        return Ready(self)

    def settle_batchnorm(self) -> None:
        """Give batch-norm layers that never saw data their statistics; second-order steps keep them as they are."""
        layers = [module for module in self.target.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if not any(layer.num_batches_tracked is not None and int(layer.num_batches_tracked) == 0 for layer in layers):
            return
        self.target.train()
        with torch.no_grad():
            for batch in islice(self.task.batches(self.strategy.batch_size, generator(self.seed, "batchnorm")), 20):
                apply(self.target, batch)

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
                rows, order = order[:size].to(data.inputs.device), order[size:]
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
        with torch.no_grad():
            outputs = apply(self.source, batch)
        if not all_finite(outputs):
            raise InputError("outputs of the source", "finite numbers", "NaN or infinity", "Check the data: the source cannot answer some of them.")
        family = self.bridge.family
        return family.floored(family.answer(outputs), self.walk.floor)


@dataclass
class Ready:
    """The source frozen, both models in their modes, the strategy begun; all undone afterwards.

    Args:
        road: The road.
    """

    road: Road

    def __enter__(self) -> None:
        road = self.road
        self._needed = [p for p in road.source.parameters() if p.requires_grad]
        for p in self._needed:
            p.requires_grad_(False)
        self._modes = {module: module.training for model in (road.source, road.target) for module in model.modules()}
        road.source.eval()
        if road.strategy.evaluation:
            road.settle_batchnorm()
        road.target.train(not road.strategy.evaluation)
        road.strategy.begin(road.walk)

    def __exit__(self, *_: object) -> None:
        road = self.road
        road.strategy.end(road.walk)
        for p in self._needed:
            p.requires_grad_(True)
        for module, mode in self._modes.items():
            module.training = mode
        for p in road.walk.parameters.values():
            p.grad = None


def _are_probabilities(outputs: Tensor) -> bool:
    return bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < 1e-3).all())
