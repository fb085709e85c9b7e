"""What a strategy is: how the target's weights answer a move of q."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from retain.paths.bridges import Bridge
from retain.tasks.batch import Batch, apply
from retain.tasks.task import Task


@dataclass
class Walk:
    """What stays the same along a path.

    Args:
        source: The model that knows; frozen.
        target: The model that learns.
        task: The training data and what answers mean.
        bridge: The curve between their answers.
        parameters: The target's trainable parameters by name.
        seed: Of everything random.
        floor: Least probability of the source's answers.
    """

    source: nn.Module
    target: nn.Module
    task: Task
    bridge: Bridge
    parameters: dict[str, nn.Parameter]
    seed: int
    floor: float

    def ask(self, batch: Batch) -> Tensor:
        """The source's answers to a batch, in the family's coordinates and with its floor."""
        family = self.bridge.family
        with torch.no_grad():
            return family.floored(family.answer(apply(self.source, batch)), self.floor)


@dataclass
class Move:
    """One iteration: q goes on, and a batch says what the source answers.

    Args:
        walk: The path.
        start: q before.
        to: q after.
        progress: Share of the budget that is spent when this iteration is done, in [0, 1].
        batch: Samples.
        source: The source's answers to them, in the family's coordinates.
        number: Of the iteration, from 0.
        done: Share of the budget that was spent before.
    """

    walk: Walk
    start: float
    to: float
    progress: float
    batch: Batch
    source: Tensor
    number: int
    done: float = 0.0
    _outputs: Tensor | None = field(default=None, repr=False)

    @property
    def rate(self) -> float:
        """The law's share of a whole natural-gradient step, (q' - q) / q', in [0, 1]; 1 where q stands still."""
        return (self.to - self.start) / self.to if self.to > self.start else 1.0

    def elsewhere(self, batch: Batch | None = None, source: Tensor | None = None) -> Move:
        """The same move with other samples, or for a target that has changed: its outputs are computed anew."""
        return replace(self, batch=batch or self.batch, source=self.source if source is None else source, _outputs=None)

    def outputs(self) -> Tensor:
        """The target's outputs with their graph, computed once."""
        if self._outputs is None:
            with torch.enable_grad():
                self._outputs = apply(self.walk.target, self.batch)
        return self._outputs

    def divergence(self, outputs: Tensor) -> Tensor:
        """Mean divergence from the source at the new q, in nats."""
        return self.walk.bridge.divergence(self.to, self.source, outputs).mean()


class Strategy(ABC):
    """How the target's weights answer a move of q.

    Args of all strategies are their settings; state begins with :meth:`begin`, so one object can be used for several paths.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    citation: ClassVar[str] = "durno2024sufficiency"
    batch_size: int = 128
    evaluation: ClassVar[bool] = False
    """Whether the target is kept in evaluation mode, as second-order steps need."""
    divides: bool = False
    """Whether it divides by q, so that a path cannot start at 0."""
    jumps: ClassVar[bool] = False
    """Whether q goes from 0 to 1 at once, without training."""

    def begin(self, walk: Walk) -> None:  # noqa: B027 - most strategies have nothing to prepare
        """Before the first move."""

    @abstractmethod
    def update(self, move: Move) -> dict[str, Any]:
        """Change the target's weights; returns what is worth logging."""

    def end(self, walk: Walk) -> None:  # noqa: B027
        """After the last move, or when it was broken off."""

    def settings(self) -> dict[str, Any]:
        """Everything the strategy was made with."""
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.settings().items())})"
