"""How q goes from its start to 1."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from retain.errors import InputError, check_positive, nearest
from retain.paths.bridges import Bridge

_NODES = 33


class Ahead:
    """What lies before q on the bridge, seen on the samples at hand with the weights as they are.

    Args:
        bridge: The bridge.
        source: The source's answers to a batch.
        outputs: A function that gives the target's outputs for it.
    """

    def __init__(self, bridge: Bridge, source: Tensor, outputs: Callable[[], Tensor]) -> None:
        self.bridge, self.source, self._outputs = bridge, source, outputs

    def points(self, q: float) -> tuple[list[float], list[Tensor]]:
        """Places from q to 1, denser at the end of the road, and the answers there."""
        outputs = self._outputs().detach()
        places = [q + (1 - q) * (1 - math.cos(math.pi / 2 * i / (_NODES - 1))) for i in range(_NODES - 1)] + [1.0]
        return places, [self.bridge.at(place, self.source, outputs) for place in places]


class Schedule(ABC):
    """How q goes from its start to 1."""

    name: ClassVar[str]

    @abstractmethod
    def next(self, start: float, q: float, done: float, progress: float, ahead: Ahead) -> float:
        """The next q.

        Args:
            start: Where the path began.
            q: Where it is.
            done: Share of the budget that is spent, in [0, 1).
            progress: The share that will be spent after this iteration, in (0, 1].
            ahead: The road ahead.

        Returns:
            A number from q to 1; 1 if progress is 1.
        """


class Linear(Schedule):
    r""":math:`q = q_0 + (1 - q_0)\,t`."""

    name = "linear"

    def next(self, start: float, q: float, done: float, progress: float, ahead: Ahead) -> float:
        """The next q."""
        return start + (1 - start) * progress


class Geometric(Schedule):
    r""":math:`q = q_0^{1-t}`: dq / q is the same at every step. The start has to be above 0."""

    name = "geometric"

    def next(self, start: float, q: float, done: float, progress: float, ahead: Ahead) -> float:
        """The next q."""
        if start <= 0:
            raise InputError("start", "above 0 with schedule='geometric'", start)
        return float(start ** (1 - progress))


class SineSquared(Schedule):
    r""":math:`q = q_0 + (1 - q_0) \sin^2(\pi t / 2)`: constant Fisher speed between two fixed answers that share no class."""

    name = "sin2"

    def next(self, start: float, q: float, done: float, progress: float, ahead: Ahead) -> float:
        """The next q."""
        return start + (1 - start) * math.sin(math.pi / 2 * progress) ** 2


class FisherSpeed(Schedule):
    """Equal Fisher lengths: at every step q goes the share of the way that is left that the step is of the time that is left.

    The way left is the bridge's length from q to 1 with the weights as they are, root mean square over the batch, so the speed is constant in what is
    measured, and is found anew as the weights move. Needs the target's outputs before q is known, which most strategies compute anyway.
    """

    name = "fisher-speed"

    def next(self, start: float, q: float, done: float, progress: float, ahead: Ahead) -> float:
        """The next q."""
        if progress >= 1:
            return 1.0
        places, answers = ahead.points(q)
        distance = ahead.bridge.family.distance
        lengths = torch.stack([distance(a, b).square().mean().sqrt() for a, b in pairwise(answers)]).cumsum(0).tolist()
        wanted = lengths[-1] * (progress - done) / (1 - done)
        before = 0.0
        for i, length in enumerate(lengths):
            if length >= wanted:
                return places[i] + (places[i + 1] - places[i]) * ((wanted - before) / (length - before) if length > before else 1.0)
            before = length
        return 1.0


class RetentionBudget(Schedule):
    r"""At every step the largest q at which no more than ``nats`` are lost: :math:`\mathbb{E}\,\mathrm{KL}(p_q \| p_{q'}) \le` nats, the weights as they are.

    So q waits while the target is far behind. If the budget of time ends first, q jumps to 1, and the certificate of that step shows what it cost.

    Args:
        nats: Mean loss of a step, above 0.

    Raises:
        InputError: If it is not.
    """

    name = "retention-budget"

    def __init__(self, nats: float = 1e-3) -> None:
        self.nats = check_positive("nats", nats)

    def next(self, start: float, q: float, done: float, progress: float, ahead: Ahead) -> float:
        """The next q."""
        if progress >= 1:
            return 1.0
        low, high = 0.0, 1.0 - q
        outputs, bridge = ahead._outputs().detach(), ahead.bridge
        here = bridge.at(q, ahead.source, outputs)

        def lost(dq: float) -> float:
            return float(bridge.family.kl(here, bridge.at(q + dq, ahead.source, outputs)).mean())

        if lost(high) <= self.nats:
            return 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if lost(middle) <= self.nats else (low, middle)
        return q + low


class Course(Schedule):
    """A function of one's own from progress in [0, 1] to q.

    Args:
        function: Never falling, from the path's start to 1.
    """

    name = "course"

    def __init__(self, function: Callable[[float], float]) -> None:
        self.function = function

    def next(self, start: float, q: float, done: float, progress: float, ahead: Ahead) -> float:
        """The next q."""
        found = float(self.function(progress))
        if not 0 <= found <= 1:
            raise InputError("schedule", "numbers between 0 and 1", f"q = {found:g} at progress {progress:.3g}")
        if found < q:
            hint = f"The path starts at {start:g}: pass start=, or a function that begins there and never falls."
            raise InputError("schedule", "a q that never falls", f"{found:g} after {q:g}, at progress {progress:.3g}", hint)
        if progress >= 1 and found < 1:
            raise InputError("schedule", "q = 1 at the end", f"{found:g}", "Let the function reach 1 at progress 1.")
        return found


SCHEDULES: dict[str, Callable[[], Schedule]] = {kind.name: kind for kind in (Linear, Geometric, SineSquared, FisherSpeed, RetentionBudget)}


def schedule_for(schedule: str | Schedule | Callable[[float], float]) -> Schedule:
    """The schedule meant by a name or a function.

    Args:
        schedule: ``linear``, ``geometric``, ``sin2``, ``fisher-speed``, ``retention-budget``, a schedule, or a function from progress to q.

    Returns:
        The schedule.

    Raises:
        InputError: If there is none of this name.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if callable(schedule):
        return Course(schedule)
    if schedule not in SCHEDULES:
        raise InputError("schedule", "a schedule, its name, or a function from progress to q", repr(schedule), nearest(str(schedule), SCHEDULES))
    return SCHEDULES[schedule]()
