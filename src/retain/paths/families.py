"""What an answer is, and how far one answer is from another."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.errors import InputError
from retain.likelihoods import Categorical, Gaussian, Likelihood


class Family(ABC):
    """The distributions that a model's outputs stand for, and their geometry."""

    @abstractmethod
    def answer(self, outputs: Tensor) -> Tensor:
        """The distribution's own coordinates, in which bridges are written."""

    @abstractmethod
    def kl(self, a: Tensor, b: Tensor) -> Tensor:
        r""":math:`\mathrm{KL}(a \,\|\, b)` of every sample, in nats, ``[B]``."""

    @abstractmethod
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """The Fisher-Rao distance of every sample, ``[B]``; its unit is the square root of a nat, twice over: small steps have KL = distance² / 2."""

    def floored(self, answer: Tensor, floor: float) -> Tensor:
        """An answer that excludes nothing."""
        return answer


class Softmax(Family):
    r"""One of C classes; answers are log-probabilities ``[B, C]``.

    The Fisher-Rao distance is that of the sphere of :math:`\sqrt p`: :math:`2 \arccos \sum_c \sqrt{p_c p'_c}`, at most :math:`\pi`, computed from the chord so
    that small distances keep their digits.
    """

    def answer(self, outputs: Tensor) -> Tensor:
        """Log-probabilities."""
        return F.log_softmax(outputs, 1)

    def kl(self, a: Tensor, b: Tensor) -> Tensor:
        """Of every sample, in nats."""
        return F.kl_div(b, a, reduction="none", log_target=True).sum(1)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Of every sample, in [0, pi]."""
        return 2 * angle((a / 2).exp(), (b / 2).exp())

    def floored(self, answer: Tensor, floor: float) -> Tensor:
        """Probabilities raised to at least ``floor``: mixed with the uniform distribution."""
        if not floor:
            return answer
        open_ = answer > torch.finfo(answer.dtype).min / 2  # classes that are masked stay impossible
        classes = open_.sum(1, keepdim=True)
        raised = torch.logaddexp(answer + torch.log1p(-floor * classes), torch.tensor(floor).log().to(answer))
        return torch.where(open_, raised, answer)


class Normal(Family):
    r"""Real targets with noise of standard deviation :math:`\sigma`; answers are means ``[B, ...]``, the distance is Euclidean over :math:`\sigma`."""

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma

    def answer(self, outputs: Tensor) -> Tensor:
        """The outputs themselves."""
        return outputs

    def kl(self, a: Tensor, b: Tensor) -> Tensor:
        """Of every sample, in nats."""
        return self.distance(a, b).square() / 2

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Of every sample."""
        found: Tensor = (a - b).flatten(1).norm(dim=1) / self.sigma
        return found


def family_of(likelihood: Likelihood) -> Family:
    """The family that goes with a likelihood.

    Args:
        likelihood: A task's.

    Returns:
        The family.

    Raises:
        InputError: If there is none.
    """
    if type(likelihood) is Categorical:
        return Softmax()
    if isinstance(likelihood, Gaussian):
        return Normal(likelihood.sigma)
    raise InputError("likelihood", "Categorical() or Gaussian(sigma) for a path between models", repr(likelihood))


def angle(a: Tensor, b: Tensor) -> Tensor:
    """The angle between unit vectors ``[B, C]``, ``[B]``, from their chord."""
    return 2 * torch.asin(((a - b).norm(dim=1) / 2).clamp_max(1.0))
