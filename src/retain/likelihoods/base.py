"""The contract of a likelihood."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from retain.errors import InputError


class Likelihood(ABC):
    r"""What a model's outputs say about an observation: :math:`p(y \mid f)` with outputs :math:`f`.

    The unit of everything is the nat, per observation. An observation is a sample, or a token for :class:`Tokens`; a belief's
    ``n``, a task's ``n`` and a Fisher's mean count the same unit.
    """

    score_name: ClassVar[str]
    """What :meth:`score` measures, for tables and axes."""

    @abstractmethod
    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        r"""Negative log likelihood :math:`-\log p(y \mid f)` of every sample, in nats, shape ``[B]``."""

    @abstractmethod
    def predict(self, outputs: Tensor) -> Tensor:
        """The most probable target of every sample, shaped like the targets."""

    @abstractmethod
    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Targets drawn from the model's own predictive distribution, shaped like the targets."""

    @abstractmethod
    def hessian_root(self, outputs: Tensor) -> Tensor:
        r"""Vectors :math:`s_k` with :math:`\sum_k s_k s_k^\top = \nabla_f^2 (-\log p) = \mathbb{E}_y[g g^\top]`, ``[K, *outputs.shape]``."""

    def hessian_product(self, outputs: Tensor, u: Tensor, targets: Tensor) -> Tensor:
        r"""The Hessian at the outputs times a vector, sample by sample: :math:`\nabla_f^2(-\log p)\,u = \sum_k s_k (s_k^\top u)`.

        Args:
            outputs: The model's outputs, ``[B, ...]``.
            u: A vector for every sample, shaped like the outputs.
            targets: Say which positions count, for sequences; the Hessian does not depend on them otherwise.

        Returns:
            A tensor shaped like ``u``, 0 at masked classes and at positions that do not count.

        Example:
            >>> import torch
            >>> from retain.likelihoods import Gaussian
            >>> Gaussian(sigma=0.5).hessian_product(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2))
            tensor([[ 4., 12.]])
        """
        root = self.hessian_root(outputs)
        along = (root * u).flatten(2).sum(2)
        return (root * along.reshape(*along.shape, *[1] * (u.ndim - 1))).sum(0)

    @abstractmethod
    def check(self, outputs: Tensor, targets: Tensor, where: str = "the model") -> None:
        """Raise :class:`~retain.errors.InputError` if outputs and targets cannot belong together."""

    @abstractmethod
    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sums over a batch from which :meth:`score` is computed, float64; tallies of batches add."""

    @abstractmethod
    def score(self, tally: Tensor) -> float:
        """One number in which more is better, from the summed tally."""

    @abstractmethod
    def pool(self, outputs: Tensor) -> Tensor:
        """The mean of several predictive distributions, ``[S, B, ...]``, as outputs ``[B, ...]`` of one."""

    def units(self, targets: Tensor) -> Tensor:
        """How many observations each sample holds, shape ``[B]``: ones, but for sequences."""
        return torch.ones(targets.shape[0], device=targets.device)

    def relabel(self, drawn: Tensor, targets: Tensor) -> Tensor:
        """``drawn`` labels in place of ``targets``, keeping marks that are not labels (padding)."""
        return drawn

    def mean_nll(self, outputs: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Weighted mean of :meth:`nll` per observation, a scalar in nats."""
        nll, units = self.nll(outputs, targets), self.units(targets)
        if weight is not None:
            nll, units = nll * weight, units * weight
        return nll.sum() / units.sum().clamp_min(torch.finfo(nll.dtype).tiny)  # a batch of padding alone weighs nothing

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), tuple(sorted(vars(self).items()))))

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in sorted(vars(self).items()))
        return f"{type(self).__name__}({inside})"


def check_same_shape(outputs: Tensor, targets: Tensor, where: str) -> None:
    """Raise if a likelihood that compares outputs with targets entry by entry gets different shapes."""
    if outputs.shape != targets.shape:
        raise InputError(
            "targets",
            f"the shape of the outputs of {where}, {list(outputs.shape)}",
            list(targets.shape),
            "Reshape the targets or change the model's last layer.",
        )
    if not targets.is_floating_point():
        raise InputError("targets", "floating point values", targets.dtype, "Call .float() on the targets.")
