"""Planar flows: a Gaussian bent into something else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.errors import check_count


class PlanarFlows(nn.Module):
    r"""A chain of :math:`z' = z + \hat u \tanh(w^\top z + b)` on a flattened tensor of D entries.

    Each has :math:`\log|\det \partial z' / \partial z| = \log\left(1 + (1 - \tanh^2(w^\top z + b))\, w^\top \hat u\right)`, one number for all D
    entries together. It can be inverted because :math:`\hat u = u + (m(w^\top u) - w^\top u)\, w / \|w\|^2` with
    :math:`m(a) = \log(1 + e^a) - 1` has :math:`w^\top \hat u > -1` (Rezende and Mohamed 2015, https://arxiv.org/abs/1505.05770, eq. 10-12 and appendix A.1).

    Args:
        size: D.
        count: How many.

    Raises:
        InputError: If one is below 1.

    Example:
        >>> import torch
        >>> flows = PlanarFlows(6, 2)
        >>> moved, logdet = flows(torch.randn(2, 3))
        >>> moved.shape, logdet.shape
        (torch.Size([2, 3]), torch.Size([]))
    """

    def __init__(self, size: int, count: int) -> None:
        super().__init__()
        self.size, self.count = check_count("size", size), check_count("count", count)
        # small: the chain starts near the identity
        self.u = nn.Parameter(0.01 * torch.randn(count, size) / size**0.5)
        self.w = nn.Parameter(torch.randn(count, size) / size**0.5)
        self.b = nn.Parameter(torch.zeros(count))

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Where the values go, in their own shape, and the logarithm of the determinant's size, a scalar."""
        z, total = values.flatten(), values.new_zeros(())
        for u, w, b in zip(self.u, self.w, self.b, strict=True):
            along = w @ u
            bent = u + (F.softplus(along) - 1 - along) / w.square().sum() * w
            t = torch.tanh(w @ z + b)
            total = total + torch.log1p((1 - t * t) * (w @ bent))
            z = z + bent * t
        return z.reshape(values.shape), total

    def extra_repr(self) -> str:
        """What stands in the module's repr."""
        return f"{self.size}, count={self.count}"
