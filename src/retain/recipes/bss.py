"""Fine-tuning without the weakest directions of the features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import InputError, check_count, check_positive
from retain.recipes.base import Phase, Place
from retain.recipes.probe import LPFT
from retain.recipes.watching import Watching
from retain.tasks import Batch


def smallest_squares(features: Tensor, k: int = 1) -> Tensor:
    r"""The sum of the k smallest squared singular values of a matrix, :math:`\sum_{i=1}^{k} \sigma_{-i}^2`.

    They are the smallest eigenvalues of the smaller Gram matrix, found in float64: their gradient :math:`2 v v^\top F` divides by nothing, so it is
    finite where singular values are equal or 0.

    Args:
        features: The matrix F, ``[B, d]``.
        k: How many; all where there are fewer.

    Returns:
        A number, in the matrix's precision.

    Example:
        >>> import torch
        >>> from retain.recipes.bss import smallest_squares
        >>> float(smallest_squares(torch.diag(torch.tensor([3.0, 1.0, 2.0])), k=2))
        5.0
    """
    rows, columns = features.shape
    wide = features.double()
    gram = wide @ wide.T if rows <= columns else wide.T @ wide
    if not bool(gram.isfinite().all()):  # the loss says so; eigenvalues would raise
        return gram.diagonal().sum().to(features.dtype)
    values: Tensor = torch.linalg.eigvalsh(gram)  # ascending
    return values[:k].sum().to(features.dtype)


class Shrinkage(Watching):
    r"""Adds :math:`\eta \sum_{i=1}^{k} \sigma_{-i}^2` of the head's inputs.

    Args:
        head: The head's name.
        k: How many of the smallest singular values.
        eta: The weight.
    """

    name = "batch spectral shrinkage"

    def __init__(self, head: str, k: int, eta: float) -> None:
        super().__init__([head], inputs=True)
        self.k, self.eta = k, eta

    def penalty(self, model: nn.Module, batch: Batch, outputs: Tensor) -> Tensor:
        """The shrinkage of this batch.

        Args:
            model: The model.
            batch: Its inputs.
            outputs: Its answers.

        Returns:
            A number, in nats per sample.

        Raises:
            InputError: If the head is not given one vector a sample.
        """
        (head,) = self.names
        features = self.caught().get(head)
        if features is None or features.ndim != 2:
            found = "nothing" if features is None else f"inputs of shape {list(features.shape)}"
            raise InputError(f"head '{head}'", "a layer that is given features [B, d]", found)
        return self.eta * smallest_squares(features, self.k)

    def settings(self) -> dict[str, Any]:
        """Number and weight."""
        return {"k": self.k, "eta": self.eta}


class BSS(LPFT):
    r"""Fine-tuning with batch spectral shrinkage: the weakest directions of a batch's features, which carry over worst, are made weaker.

    .. math:: \mathcal{L}(\theta) = \overline{\text{nll}}_B(\theta) + \eta \sum_{i=1}^{k} \sigma_{-i}^2(F)

    F are the head's inputs for the batch, ``[B, d]``, and :math:`\sigma_{-i}` is the i-th smallest of its min(B, d) singular values. Chen, Wang, Fu, Long
    and Wang 2019, "Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage for Safe Transfer Learning" (NeurIPS), the loss of "batch
    spectral shrinkage", with their k and eta. The head is trained alone first.

    Args:
        k: How many of the smallest singular values.
        eta: The weight of their squares.
        penalty: Of the head that is fitted alone, see :class:`~retain.recipes.LinearProbe`.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain.recipes import BSS
        >>> BSS(k=2)
        BSS(k=2, eta=0.001, penalty=None)
    """

    name = "bss"
    summary = "all weights, the weakest directions of the features made weaker"
    citation = "chen2019catastrophic"

    def __init__(self, k: int = 1, eta: float = 1e-3, penalty: float | None = None) -> None:
        super().__init__(penalty)
        self.k, self.eta = check_count("k", k), check_positive("eta", eta, zero=True)

    def phases(self, place: Place) -> Sequence[Phase]:
        """The head, then everything, with the shrinkage."""
        probe, whole = super().phases(place)
        return [probe, Phase(whole.name, method=Shrinkage(place.head, self.k, self.eta))]

    def settings(self) -> dict[str, Any]:
        """Everything the recipe was made with."""
        return {"k": self.k, "eta": self.eta, **super().settings()}
