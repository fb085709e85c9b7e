"""How much the divergence from the prior weighs in each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from retain.errors import check_count


class Weighting(ABC):
    r"""A factor of :math:`\mathrm{KL}/N` in the loss, step by step.

    The negative evidence lower bound per sample is ``mean_nll + KL / N``: factor 1 in every step. What a scheme *really weights* is the mean of its
    factors over an epoch: where it is 1 the objective is the bound, just unevenly spread; where it isn't, it is another posterior, tempered by it.
    """

    @abstractmethod
    def factor(self, step: int) -> float:
        """The factor in a step of the task, counted from 0."""


@dataclass(frozen=True)
class PerSample(Weighting):
    """1: the bound itself, every sample carries the same share of the divergence (Graves 2011).

    Example:
        >>> PerSample().factor(7)
        1.0
    """

    def factor(self, step: int) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class Blundell(Weighting):
    r""":math:`\pi_i = 2^{M-i} / (2^M - 1)` of the divergence in batch i = 1..M of an epoch (Blundell et al. 2015, section 3.4, https://arxiv.org/abs/1505.05424).

    The batch's loss is a sum there; on a mean over the batch the factor is :math:`M \pi_i`, which averages to 1 over an epoch. Half of the divergence is
    in the first batch and all but a thousandth in the first ten, so most steps follow the likelihood alone.

    Args:
        batches: M.

    Raises:
        InputError: If it is below 1.

    Example:
        >>> [round(Blundell(3).factor(step), 3) for step in range(4)]
        [1.714, 0.857, 0.429, 1.714]
    """

    batches: int

    def __post_init__(self) -> None:
        check_count("batches", self.batches)

    def factor(self, step: int) -> float:
        """M times the share of this batch."""
        return float(self.batches * 2.0 ** -(step % self.batches + 1) / (1 - 2.0**-self.batches))


@dataclass(frozen=True)
class WarmUp(Weighting):
    """Rises from 0 to 1 over the first steps (Sonderby et al. 2016, https://arxiv.org/abs/1602.02282): the bound from then on.

    Args:
        steps: How many.

    Raises:
        InputError: If there are fewer than 1.

    Example:
        >>> [WarmUp(4).factor(step) for step in (0, 2, 9)]
        [0.0, 0.5, 1.0]
    """

    steps: int

    def __post_init__(self) -> None:
        check_count("steps", self.steps)

    def factor(self, step: int) -> float:
        """The share of the first steps that is done."""
        return min(1.0, step / self.steps)


@dataclass(frozen=True)
class NoDivergence(Weighting):
    """0: maximum likelihood with noise. Nothing holds the variances up, and nothing remembers the prior.

    Example:
        >>> NoDivergence().factor(0)
        0.0
    """

    def factor(self, step: int) -> float:
        """0."""
        return 0.0


@dataclass(frozen=True)
class OverBatches(Weighting):
    """``mean_nll + KL / M`` with M batches: the published notebook's beta = 1/M on a batch's *mean*. It weighs the divergence as often as a batch has samples.

    Args:
        batch_size: Samples in a batch.

    Raises:
        InputError: If it is below 1.

    Example:
        >>> OverBatches(128).factor(0)
        128.0
    """

    batch_size: int

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)

    def factor(self, step: int) -> float:
        """The samples in a batch."""
        return float(self.batch_size)
