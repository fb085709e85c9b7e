"""How much of a path's budget is spent."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from torch import device


class Clock(ABC):
    """Counts iterations, samples and seconds, and says how far along the path is.

    Seconds are of the processor, over all threads; on other devices, whose work the processor does not do, they are those of the wall.

    Args:
        place: The target's device.
    """

    def __init__(self, place: device) -> None:
        self._now = time.process_time if place.type == "cpu" else time.perf_counter
        self.iterations, self.samples, self.seconds = 0, 0, 0.0
        self._since = 0.0

    def start(self) -> None:
        """The strategy's time runs."""
        self._since = self._now()

    def stop(self) -> None:
        """It stands still: measurements are not the strategy's."""
        self.seconds += self._now() - self._since

    def count(self, samples: int) -> None:
        """An iteration is over."""
        self.iterations += 1
        self.samples += samples

    @abstractmethod
    def done(self) -> float:
        """The share that is spent; 1 or more is the end."""

    @abstractmethod
    def ahead(self, samples: int) -> tuple[float, bool]:
        """The share that will be spent after an iteration of so many samples, and whether q moves in it."""


class Steps(Clock):
    """A grid of q: so many steps, each of some iterations.

    Args:
        place: The target's device.
        steps: Steps of q.
        iterations: In each of them.
        first: Iterations before q moves at all.
    """

    def __init__(self, place: device, steps: int, iterations: int, first: int) -> None:
        super().__init__(place)
        self.steps, self.each, self.first = steps, iterations, first

    def done(self) -> float:
        """Whole steps count when their last iteration is over."""
        return max(0, self.iterations - self.first) // self.each / self.steps

    def ahead(self, samples: int) -> tuple[float, bool]:
        """The step's own share."""
        within = self.iterations - self.first
        if within < 0:
            return 0.0, self.iterations == 0
        return (within // self.each + 1) / self.steps, within % self.each == 0


class Samples(Clock):
    """So many samples; q moves in every iteration.

    Args:
        place: The target's device.
        total: Samples.
    """

    def __init__(self, place: device, total: int) -> None:
        super().__init__(place)
        self.total = total

    def done(self) -> float:
        """Samples over all samples."""
        return self.samples / self.total

    def ahead(self, samples: int) -> tuple[float, bool]:
        """Known exactly."""
        return min(1.0, (self.samples + samples) / self.total), True


class Seconds(Clock):
    """So many seconds; q moves in every iteration. Such paths depend on the machine and repeat only roughly.

    Args:
        place: The target's device.
        total: Seconds.
    """

    def __init__(self, place: device, total: float) -> None:
        super().__init__(place)
        self.total = total

    def done(self) -> float:
        """Seconds over all seconds."""
        return self.seconds / self.total

    def ahead(self, samples: int) -> tuple[float, bool]:
        """Guessed from the mean of the iterations so far."""
        mean = self.seconds / self.iterations if self.iterations else 0.01 * self.total
        return min(1.0, (self.seconds + mean) / self.total), True
