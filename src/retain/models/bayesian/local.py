"""The local reparameterisation of a linear layer as one differentiable function."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

TINY = 1e-30
"""Added to a variance before its root, which has no slope at 0."""


class LocalLinear(torch.autograd.Function):
    r""":math:`y = xW^\top + b + \epsilon\sqrt{x^2 V^\top + v}` with :math:`V = \sigma^2` of W and v of b.

    The same as the composed operations, with fewer passes over memory: the gradient by :math:`\log V` is
    :math:`\big(\tfrac{g \epsilon}{2\sqrt{\cdot}}\big)^\top x^2 \circ V`, made in place. V and v are handed in without gradients. It can be
    differentiated once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        logvar: Tensor,
        bias: Tensor | None,
        bias_logvar: Tensor | None,
        variance: Tensor,
        bias_variance: Tensor | None,
    ) -> Tensor:
        """Outputs ``[B, O]`` of inputs ``[B, I]``."""
        squares = x.square()
        outputs = F.linear(x, mean, bias)
        spread = F.linear(squares, variance, bias_variance).add_(TINY)
        slope = spread.rsqrt().mul_(torch.randn_like(outputs))
        outputs.addcmul_(spread, slope)
        ctx.save_for_backward(x, squares, mean, variance, bias_variance, slope.mul_(0.5))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by inputs, mean, log-variance, bias and its log-variance."""
        x, squares, mean, variance, bias_variance, slope = ctx.saved_tensors
        by_spread = gradient * slope
        found: list[Tensor | None] = [None] * 7
        if ctx.needs_input_grad[0]:
            found[0] = gradient.mm(mean).addcmul_(x, by_spread.mm(variance), value=2)
        if ctx.needs_input_grad[1]:
            found[1] = gradient.t().mm(x)
        if ctx.needs_input_grad[2]:
            found[2] = by_spread.t().mm(squares).mul_(variance)
        if ctx.needs_input_grad[3]:
            found[3] = gradient.sum(0)
        if ctx.needs_input_grad[4]:
            found[4] = by_spread.sum(0).mul_(bias_variance)
        return tuple(found)


def exponential(logvar: Tensor) -> Tensor:
    """The variance, without gradients; through a power of 2, which takes a third of the time of ``exp`` on many processors."""
    return torch.mul(logvar.detach(), 1 / math.log(2)).exp2_()
