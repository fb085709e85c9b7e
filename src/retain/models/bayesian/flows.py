"""Planar flows: a Gaussian bent into something else."""

from __future__ import annotations

import math

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
        w = F.normalize(torch.randn(count, size))
        # the chain starts as the identity: u-hat is 0 where u is along w and w.u the root of m
        self.u, self.w = nn.Parameter(math.log(math.e - 1) * w), nn.Parameter(w)
        self.b = nn.Parameter(torch.zeros(count))

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Where the values go, in their own shape, and the logarithm of the determinant's size, a scalar."""
        z = values.flatten()
        # every step moves along one of K directions, so K numbers tell where the chain is: no pass over all D entries a step
        wu, ww, along = self.w @ self.u.T, self.w @ self.w.T, self.w @ z + self.b
        stretch = F.softplus(wu.diagonal())  # 1 + w'u-hat
        bend = (stretch - 1 - wu.diagonal()) / ww.diagonal()
        onto = wu + ww * bend  # entry k, j: w_k' u-hat_j
        steps: list[Tensor] = []
        for k, row in enumerate(onto.unbind()):
            steps.append(torch.tanh(along[k] + row[:k] @ torch.stack(steps) if k else along[0]))
        t = torch.stack(steps)
        total = torch.log(t * t + (1 - t * t) * stretch).sum()  # 1 + (1 - t^2) w'u-hat without cancellation
        return (z + t @ self.u + (bend * t) @ self.w).reshape(values.shape), total

    def extra_repr(self) -> str:
        """What stands in the module's repr."""
        return f"{self.size}, count={self.count}"
