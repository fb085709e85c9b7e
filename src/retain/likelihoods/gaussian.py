"""Regression."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retain.errors import check_positive
from retain.likelihoods.base import Likelihood, check_same_shape


class Gaussian(Likelihood):
    r"""Normal noise of known size: :math:`-\log p = \frac{\|y - f\|^2}{2\sigma^2} + \frac{D}{2}\log 2\pi\sigma^2`.

    Outputs and targets ``[B, D]`` (or ``[B, ...]``). Squared error alone is not in nats: a belief about a regression means
    nothing before it is divided by :math:`2\sigma^2`, which is why sigma is asked for here.

    Args:
        sigma: Standard deviation of the noise, in the targets' unit, above 0.

    Example:
        >>> import torch
        >>> from retain.likelihoods import Gaussian
        >>> round(float(Gaussian(sigma=2.0).nll(torch.zeros(1, 1), torch.ones(1, 1))), 4)
        1.7371
    """

    score_name = "R2"

    def __init__(self, sigma: float = 1.0) -> None:
        self.sigma = check_positive("sigma", sigma)

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        squares = (outputs - targets).flatten(1).square()
        constant = 0.5 * squares.shape[1] * math.log(2 * math.pi * self.sigma**2)
        return squares.sum(1) / (2 * self.sigma**2) + constant

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean = outputs.detach()
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
        return mean + self.sigma * noise

    def hessian_root(self, outputs: Tensor) -> Tensor:
        width = outputs[0].numel()
        unit = torch.eye(width, device=outputs.device, dtype=outputs.dtype) / self.sigma
        return unit[:, None].expand(width, len(outputs), width).reshape(width, *outputs.shape)

    def hessian_product(self, outputs: Tensor, u: Tensor, targets: Tensor) -> Tensor:
        return u / self.sigma**2

    def pool(self, outputs: Tensor) -> Tensor:
        return outputs.mean(0)  # the mean alone: the spread of the means is not in sigma

    def check(self, outputs: Tensor, targets: Tensor, where: str = "the model") -> None:
        check_same_shape(outputs, targets, where)

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        y, error = targets.double().flatten(1), (outputs - targets).double()
        count = torch.full((1,), len(y), device=y.device, dtype=torch.float64)
        return torch.cat([error.square().sum()[None], count, y.sum(0), y.square().sum(0)])

    def score(self, tally: Tensor) -> float:
        total, squares = tally[2:].chunk(2)
        spread = float((squares - total.square() / tally[1]).sum())
        return 1.0 - float(tally[0]) / spread if spread > 0 else float("nan")
