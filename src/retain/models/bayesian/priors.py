"""What is believed of a weight before any data: Gaussian, a scale mixture, or another posterior."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from retain.errors import InputError, check_positive


class Prior(nn.Module, ABC):
    r"""A factorised density p(w) over the entries of one tensor, and its divergence from a Gaussian :math:`q = \mathcal{N}(\mu, \sigma^2)`."""

    @abstractmethod
    def log_density(self, weight: Tensor) -> Tensor:
        r""":math:`\log p(w)` of every entry in nats, shaped like the weight."""

    @abstractmethod
    def kl(self, mean: Tensor, logvar: Tensor, strength: float = 1.0) -> Tensor:
        r""":math:`\mathrm{KL}(q \,\|\, p)` of every entry in nats, with gradients. A prior without a closed form draws one sample of q: unbiased."""

    @abstractmethod
    def add_gradients(self, mean: Tensor, variance: Tensor, onto: tuple[Tensor, Tensor], scale: float, strength: float = 1.0) -> None:
        r"""Add ``scale`` times the gradients of the summed :meth:`kl` by :math:`\mu` and by :math:`\log \sigma^2` to two tensors, without autograd."""

    @abstractmethod
    def as_gaussian(self) -> GaussianPrior:
        """The Gaussian of the same mean and variance."""


class GaussianPrior(Prior):
    r"""A Gaussian :math:`\mathcal{N}(m, s^2)`. The divergence has a closed form.

    With precision :math:`p = 1/s^2`,

    .. math:: \mathrm{KL}(q \,\|\, p) = \tfrac12 \left[ p \left(\sigma^2 + (\mu - m)^2\right) - 1 - \log p - \log \sigma^2 \right].

    ``strength`` multiplies the term in :math:`(\mu - m)^2` alone (Loo, Swaroop and Turner 2020, https://arxiv.org/abs/2011.12328, eq. 6).

    Args:
        mean: m, a number or a tensor of the weight's shape.
        std: s, a number above 0.
        precision: :math:`1/s^2` instead of ``std``: a tensor of positive, finite values.

    Raises:
        InputError: If a value is out of range.

    Example:
        >>> import torch
        >>> GaussianPrior(0.0, 1.0).kl(torch.tensor(1.0), torch.tensor(0.0))
        tensor(0.5000)
    """

    mean: Tensor
    precision: Tensor

    def __init__(self, mean: float | Tensor = 0.0, std: float = 1.0, *, precision: Tensor | None = None) -> None:
        super().__init__()
        if precision is None:
            precision = torch.tensor(_width("std", std) ** -2)
        elif not bool(torch.isfinite(precision).all()) or not bool((precision > 0).all()):
            raise InputError("precision", "finite values above 0", f"values from {float(precision.min()):g} to {float(precision.max()):g}")
        centre = torch.as_tensor(mean, dtype=precision.dtype)
        if not bool(torch.isfinite(centre).all()):
            raise InputError("mean", "finite values", "some that are not")
        self.register_buffer("mean", centre.detach().clone())
        self.register_buffer("precision", precision.detach().clone())

    def log_density(self, weight: Tensor) -> Tensor:
        """See :meth:`Prior.log_density`."""
        away = (weight - self.mean).square()
        return 0.5 * (self.precision.log() - math.log(2 * math.pi) - self.precision * away)

    def kl(self, mean: Tensor, logvar: Tensor, strength: float = 1.0) -> Tensor:
        """See :meth:`Prior.kl`."""
        moved = logvar.exp() + strength * (mean - self.mean).square()
        return 0.5 * (self.precision * moved - 1 - self.precision.log() - logvar)

    def add_gradients(self, mean: Tensor, variance: Tensor, onto: tuple[Tensor, Tensor], scale: float, strength: float = 1.0) -> None:
        """See :meth:`Prior.add_gradients`."""
        by_mean, by_logvar = onto
        if self.precision.ndim:
            by_mean.addcmul_(mean - self.mean, self.precision, value=scale * strength)
            by_logvar.addcmul_(variance, self.precision, value=0.5 * scale).sub_(0.5 * scale)
        else:  # one number for all: fewer passes over the weights
            precision, centre = float(self.precision), self.mean
            by_mean.add_(mean, alpha=scale * strength * precision)
            if centre.ndim or float(centre):
                by_mean.sub_(centre, alpha=scale * strength * precision)
            by_logvar.add_(variance, alpha=0.5 * scale * precision).sub_(0.5 * scale)

    def as_gaussian(self) -> GaussianPrior:
        """Itself."""
        return self

    def extra_repr(self) -> str:
        """What stands in the module's repr."""
        if self.mean.ndim or self.precision.ndim:
            return f"shape={list(self.mean.shape)}"
        return f"mean={float(self.mean):g}, std={float(self.precision) ** -0.5:g}"


class ScaleMixture(Prior):
    r"""A wide and a narrow Gaussian: :math:`p(w) = \pi\,\mathcal{N}(w; 0, \sigma_1^2) + (1 - \pi)\,\mathcal{N}(w; 0, \sigma_2^2)`.

    Equation 7 of Blundell et al. 2015 (https://arxiv.org/abs/1505.05424). The logarithm is taken as a log-sum-exp. There is no closed form of the
    divergence: the entropy of q is exact and :math:`\mathbb{E}_q \log p` is estimated from one sample of the weight.

    Args:
        pi: Weight of the wide one, strictly between 0 and 1.
        sigma1: Its width.
        sigma2: Width of the narrow one; the paper tries exp(-6) to exp(-8).

    Raises:
        InputError: If a value is out of range.

    Example:
        >>> import torch
        >>> prior = ScaleMixture(0.25, 1.0, 0.01)
        >>> density = 0.25 * torch.distributions.Normal(0, 1.0).log_prob(torch.tensor(0.02)).exp()
        >>> density += 0.75 * torch.distributions.Normal(0, 0.01).log_prob(torch.tensor(0.02)).exp()
        >>> torch.allclose(prior.log_density(torch.tensor(0.02)).exp(), density)
        True
    """

    pi: Tensor
    sigma1: Tensor
    sigma2: Tensor

    def __init__(self, pi: float = 0.5, sigma1: float = 1.0, sigma2: float = math.exp(-6)) -> None:
        super().__init__()
        if not 0 < pi < 1:
            raise InputError("pi", "a number strictly between 0 and 1", pi, "For a single Gaussian pass GaussianPrior(std=...).")
        for name, value in (("pi", pi), ("sigma1", _width("sigma1", sigma1)), ("sigma2", _width("sigma2", sigma2))):
            self.register_buffer(name, torch.tensor(float(value)))

    def log_density(self, weight: Tensor) -> Tensor:
        """See :meth:`Prior.log_density`."""
        wide = self.pi.log() - self.sigma1.log() - 0.5 * (weight / self.sigma1).square()
        narrow = torch.log1p(-self.pi) - self.sigma2.log() - 0.5 * (weight / self.sigma2).square()
        return torch.logaddexp(wide, narrow) - 0.5 * math.log(2 * math.pi)

    def kl(self, mean: Tensor, logvar: Tensor, strength: float = 1.0) -> Tensor:
        """See :meth:`Prior.kl`; ``strength`` has no meaning here and has to be 1."""
        _only_one(strength)
        weight = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        return -0.5 * (logvar + 1 + math.log(2 * math.pi)) - self.log_density(weight)

    def add_gradients(self, mean: Tensor, variance: Tensor, onto: tuple[Tensor, Tensor], scale: float, strength: float = 1.0) -> None:
        """See :meth:`Prior.add_gradients`."""
        _only_one(strength)
        moved = variance.sqrt().mul_(torch.randn_like(mean))
        weight = mean + moved
        p1, p2 = self.sigma1**-2, self.sigma2**-2
        odds = ((1 - self.pi) / self.sigma2).log() - (self.pi / self.sigma1).log()
        if p1 > p2:
            p1, p2, odds = p2, p1, -odds
        # posterior of the narrow one at this weight; of the wide one it would cancel where that is sure
        share = torch.addcmul(odds, weight, weight, value=-0.5 * float(p2 - p1)).sigmoid_()
        by_mean = share.mul_(p2 - p1).add_(p1).mul_(weight)
        onto[0].add_(by_mean, alpha=scale)
        onto[1].addcmul_(moved, by_mean, value=0.5 * scale).sub_(0.5 * scale)

    def as_gaussian(self) -> GaussianPrior:
        """The Gaussian of the same variance."""
        return GaussianPrior(0.0, precision=1 / (self.pi * self.sigma1**2 + (1 - self.pi) * self.sigma2**2))

    def extra_repr(self) -> str:
        """What stands in the module's repr."""
        return f"pi={float(self.pi):g}, sigma1={float(self.sigma1):g}, sigma2={float(self.sigma2):g}"


def prior_from_state(state: Mapping[str, Tensor]) -> Prior:
    """A prior of the kind and shape that a state dict describes; the values are loaded by torch afterwards."""
    if "sigma1" in state:
        return ScaleMixture()
    return GaussianPrior(torch.zeros_like(state["mean"]), precision=torch.ones_like(state["precision"]))


def _width(name: str, value: float) -> float:
    if not 1e-15 <= check_positive(name, value) <= 1e15:
        raise InputError(name, "a width between 1e-15 and 1e15, whose square 32 bits can hold", value)
    return float(value)


def _only_one(strength: float) -> None:
    if strength != 1:
        raise InputError("strength", "1 with a scale mixture, which has no quadratic part", strength, "Use a GaussianPrior.")
