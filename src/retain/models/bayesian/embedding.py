"""A table of vectors with uncertain entries."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.errors import InputError
from retain.models.bayesian.base import BayesianLayer, _signs


class BayesianEmbedding(BayesianLayer):
    """A table ``[V, D]`` of Gaussian entries, looked up by whole numbers; see :class:`BayesianLayer`.

    Under ``local`` a row that is looked up twice is drawn twice. The row of ``padding_idx`` is not learned: without
    flows it is left out of the divergence too, which would widen what pads to the prior, and stays as it was.

    Args:
        num_embeddings: V.
        embedding_dim: D.
        padding_idx: A row without gradients.
        **settings: ``logvar``, ``prior``, ``estimator`` and ``num_flows``, as for :class:`BayesianLayer`.

    Example:
        >>> import torch
        >>> from retain.models import BayesianEmbedding
        >>> BayesianEmbedding(10, 4)(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 4])
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, **settings: Any) -> None:
        source = nn.Embedding(num_embeddings, embedding_dim, padding_idx)
        super().__init__(source, **settings)
        self.configure(source)

    def configure(self, source: nn.Embedding) -> None:
        """Its sizes; options that change the table while it is read are refused."""
        if source.max_norm is not None or source.sparse or source.scale_grad_by_freq:
            raise InputError("embedding", "one without max_norm, sparse and scale_grad_by_freq", repr(source), "Make it without, or leave it out with keep=.")
        self.num_embeddings, self.embedding_dim, self.padding_idx = source.num_embeddings, source.embedding_dim, source.padding_idx

    def counted(self, units: Tensor | None) -> Tensor | None:
        """All rows but that of ``padding_idx``."""
        if self.padding_idx is None:
            return units
        mean = self.posterior["weight"][0]
        rows = torch.ones(len(mean), dtype=torch.bool, device=mean.device) if units is None else units.clone()
        rows[self.padding_idx] = False
        return rows

    def map(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The rows."""
        return F.embedding(inputs, weight, self.padding_idx)

    def _local(self, inputs: Tensor) -> Tensor:
        mean, logvar = self.posterior["weight"]
        rows = self.map(inputs, mean, None)
        return torch.addcmul(rows, (0.5 * self.map(inputs, logvar, None)).exp(), torch.randn_like(rows))

    def _flipout(self, inputs: Tensor) -> Tensor:
        mean, logvar = self.posterior["weight"]
        moved = self.map(inputs, (0.5 * logvar).exp() * torch.randn_like(mean), None)
        return torch.addcmul(self.map(inputs, mean, None), moved, _signs(moved[:, *[slice(0, 1)] * (inputs.ndim - 1)]))

    def extra_repr(self) -> str:
        """What stands in the module's repr."""
        return f"{self.num_embeddings}, {self.embedding_dim}, estimator={self.estimator}"
