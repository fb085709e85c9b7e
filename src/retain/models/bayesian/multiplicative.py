"""A linear layer whose inputs are multiplied by random factors, drawn from a flow."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.errors import InputError, check_count
from retain.models.bayesian.base import BayesianLayer, only
from retain.models.bayesian.coupling import Flow, FlowKind, MakeFlow, make_flow
from retain.models.bayesian.linear import BayesianLinear
from retain.models.bayesian.local import TINY


class MultiplicativeLinear(BayesianLinear):
    r"""A linear layer with a posterior that is no Gaussian: a mixture of Gaussians, one for each vector z of factors of the inputs.

    .. math:: q(W \mid z) = \prod_{ij} \mathcal{N}\left(z_i \mu_{ij}, \sigma_{ij}^2\right), \qquad
       z = \text{flow}(z_0), \quad z_0 \sim \mathcal{N}(m, \operatorname{diag} s^2), \qquad q(W) = \int q(W \mid z)\, q(z)\, dz

    Multiplicative normalizing flows (Louizos and Welling 2017, https://arxiv.org/abs/1703.01961, Algorithm 1 and eq. 8-10). The flow has as many dimensions
    as there are inputs, i, not as many as weights; weights of one input covary, and q(W) may have several modes. The density q(W) is not known, so the
    divergence is bounded with an auxiliary :math:`r(z \mid W)`, which guesses the factors from the weights:

    .. math:: \mathrm{KL}(q(W) \,\|\, p(W)) \le
       \mathbb{E}_{q(z)\, q(W \mid z)}\left[\mathrm{KL}(q(W \mid z) \,\|\, p(W)) + \log q(z) - \log r(z \mid W)\right]

    The gap is the mean divergence of :math:`q(z \mid W)` from r, see :class:`Auxiliary`. As in the paper every row of the inputs has factors of its own under
    ``local`` (and ``flipout``), and the divergence is estimated from one z. Under ``weights``, and so inside :func:`~retain.models.sampling`, one z and one W
    are drawn for the whole batch: one function. Evaluation answers with :math:`\text{flow}(m)_i\, \mu_{ij}`. The bias has a plain Gaussian. Unlike the
    paper's, the factors start at about 1 (m is what the flow takes to 1), so that a converted layer answers as it did.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        bias: Whether there is a b.
        num_flows: Steps of the flow of z, and of that inside r; with 0 the factors are Gaussian.
        flow: ``coupling``, ``zuko``, or a function from the number of inputs to a :class:`~retain.models.Flow` of one's own.
        z_logvar: Initial :math:`\log s^2` of every factor.
        **settings: ``logvar``, ``prior`` and ``estimator``, as for :class:`BayesianLayer`.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> import torch
        >>> from retain.models import MultiplicativeLinear, kl
        >>> layer = MultiplicativeLinear(4, 3, num_flows=2)
        >>> layer(torch.rand(2, 4)).shape, kl(layer).shape
        (torch.Size([2, 3]), torch.Size([]))
    """

    auxiliary: Auxiliary

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        num_flows: int = 2,
        flow: FlowKind | MakeFlow = "coupling",
        z_logvar: float = -4.0,
        **settings: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias, **settings)
        self._multiply(num_flows, flow, z_logvar)

    @classmethod
    def of(cls, source: Any, *, num_flows: int = 2, flow: FlowKind | MakeFlow = "coupling", z_logvar: float = -4.0, **settings: Any) -> Self:
        """See :meth:`BayesianLayer.of`."""
        made = super().of(source, **settings)
        made._multiply(num_flows, flow, z_logvar)
        return made

    def _multiply(self, num_flows: int, flow: FlowKind | MakeFlow, z_logvar: float) -> None:
        count, mean = check_count("num_flows", num_flows, least=0), self.posterior["weight"][0]
        if not math.isfinite(z_logvar):
            raise InputError("z_logvar", "a finite number", z_logvar)
        made = make_flow(flow, self.in_features, count).to(mean.device, mean.dtype)
        self.flows["weight"] = made
        self.auxiliary = Auxiliary(make_flow(flow, self.in_features, count), self.in_features).to(mean.device, mean.dtype)
        ones = torch.ones(self.in_features, device=mean.device, dtype=mean.dtype)
        with torch.no_grad():
            self.z_mean = nn.Parameter(made.inverse(ones)[0])
        self.z_logvar = nn.Parameter(torch.full_like(ones, z_logvar))
        for part in (self.z_mean, self.z_logvar, made, self.auxiliary):
            part.requires_grad_(mean.requires_grad)

    def factors(self, *shape: int) -> Tensor:
        """Draws of z, ``[*shape, in_features]``."""
        return self._draw(*shape)[0]

    def _draw(self, *shape: int) -> tuple[Tensor, Tensor]:
        middle = self.z_mean.expand(*shape, self.in_features)
        found: tuple[Tensor, Tensor] = self.flow("weight")(torch.addcmul(middle, (0.5 * self.z_logvar).exp(), torch.randn_like(middle)))
        return found

    def centre(self, name: str) -> Tensor | None:
        """See :meth:`BayesianLayer.centre`: of the weights those at the factors in the middle."""
        if name != "weight":
            return super().centre(name)
        middle: Tensor = self.flow(name)(self.z_mean)[0] * self.posterior[name][0]
        return middle

    def draw(self, name: str) -> Tensor | None:
        """See :meth:`BayesianLayer.draw`."""
        if name != "weight":
            return super().draw(name)
        mean, logvar = self.posterior[name]
        return torch.addcmul(self.factors() * mean, (0.5 * logvar).exp(), torch.randn_like(mean))

    def _expected(self, inputs: Tensor) -> Tensor:
        return super()._expected(inputs * self.factors(*inputs.shape[:-1]))

    def _local(self, inputs: Tensor) -> Tensor:
        return BayesianLayer._local(self, inputs)  # the one function of a plain linear layer knows no factors

    def divergence(self, name: str, strength: float = 1.0, units: Tensor | None = None) -> Tensor:
        r"""See :meth:`BayesianLayer.divergence`; of the weights one draw of the upper bound.

        Args:
            name: Of the tensor.
            strength: Factor of the quadratic part of :math:`\mathrm{KL}(q(W \mid z) \,\|\, p(W))`.
            units: Output units that count, one entry a unit; r looks at no other.

        Returns:
            A scalar.
        """
        if name != "weight":
            return super().divergence(name, strength, units)
        z, logdet = self._draw()
        mean, logvar = self.posterior[name]
        mean = mean * z
        # of log q(z_0) its mean: the same gradient with less noise
        log_q = -0.5 * (self.z_logvar + 1 + math.log(2 * math.pi)).sum() - logdet
        log_r: Tensor = self.auxiliary(z, mean, logvar.exp(), units)
        return only(self.prior(name).kl(mean, logvar, strength), units).sum() + log_q - log_r

    def extra_repr(self) -> str:
        """What stands in the module's repr."""
        return f"{super().extra_repr()}, multiplicative"


class Auxiliary(nn.Module):
    r"""The guess :math:`r(z \mid W)` of the factors that weights W ``[O, D]`` were drawn with: the closer to :math:`q(z \mid W)`, the tighter the bound.

    With :math:`t = \tfrac1O \sum_o \tanh\left(\sum_i W_{oi} c_i\right)`,

    .. math:: \log r(z \mid W) = \log \mathcal{N}\left(f(z);\, b_1 t,\, \operatorname{diag} e^{b_2 t}\right) + \log\left|\det \partial f / \partial z\right|

    Equations 8-10 of Louizos and Welling 2017 (https://arxiv.org/abs/1703.01961), the variance as in the authors' code. f is the inverse of r's flow,
    and has parameters of its own; the bound asks for this direction alone. Of a Gaussian W only :math:`c^\top W` is drawn, O numbers.

    Args:
        flow: f.
        size: D.

    Raises:
        InputError: If the size is below 1.

    Example:
        >>> import torch
        >>> from retain.models import CouplingFlows
        >>> guess = Auxiliary(CouplingFlows(4), 4)
        >>> guess(torch.ones(4), torch.randn(3, 4), torch.ones(3, 4)).shape
        torch.Size([])
    """

    def __init__(self, flow: Flow, size: int) -> None:
        super().__init__()
        check_count("size", size)
        self.flow = flow
        self.c, self.b1, self.b2 = (nn.Parameter(torch.randn(size) / size**0.5) for _ in range(3))

    def forward(self, z: Tensor, mean: Tensor, variance: Tensor, units: Tensor | None = None) -> Tensor:
        r"""One draw of :math:`\log r(z \mid W)` for independent Gaussian weights, in nats.

        Args:
            z: ``[D]``.
            mean: Of W, ``[O, D]``.
            variance: Of W; 0 where W is known.
            units: Rows of W that count, one entry a row.

        Returns:
            A scalar.
        """
        along = F.linear(mean, self.c)
        along = along + (F.linear(variance, self.c.square()) + TINY).sqrt() * torch.randn_like(along)
        t = torch.tanh(along).mean() if units is None else only(torch.tanh(along), units).sum() / units.sum().clamp_min(1)
        moved, logdet = self.flow(z)
        away, logvar = moved - self.b1 * t, self.b2 * t
        total: Tensor = logdet - 0.5 * (logvar + away.square() * (-logvar).exp() + math.log(2 * math.pi)).sum()
        return total
