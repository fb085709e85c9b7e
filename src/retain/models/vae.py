"""A variational autoencoder: inputs that look like those it has seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from retain.errors import InputError, check_count
from retain.likelihoods import Bernoulli, Gaussian
from retain.models.mlp import MLP


class VAE(nn.Module):
    r"""A variational autoencoder of two multilayer perceptrons, with a standard normal prior and a diagonal Gaussian posterior.

    .. math:: \text{ELBO}(x) = \mathbb{E}_{q(z \mid x)}\big[\log p(x \mid z)\big] - \mathrm{KL}\big(q(z \mid x) \,\|\, \mathcal{N}(0, I)\big)
       \le \log p(x) \quad [\text{nats}], \qquad \mathrm{KL} = \tfrac12 \sum_j \big(\mu_j^2 + s_j^2 - 1 - \log s_j^2\big)

    with :math:`q(z \mid x) = \mathcal{N}(\mu(x), \operatorname{diag} s^2(x))` from the encoder and :math:`p(x \mid z)` from the decoder. Equations 3 and 10 of
    Kingma and Welling 2014 (https://arxiv.org/abs/1312.6114). Under :class:`~retain.likelihoods.Bernoulli` a pixel between 0 and 1 is a soft target, as is
    usual; as a density of grey values that misses its normaliser (Loaiza-Ganem and Cunningham 2019, https://arxiv.org/abs/1907.06845), so ELBOs of grey
    pictures compare with each other and not with those of a Gaussian.

    Args:
        shape: Of one input, or how many values it has.
        hidden: Widths of the encoder's hidden layers, from the input on; the decoder has them in reverse.
        latent: Dimensions of z.
        likelihood: Of the inputs: ``Bernoulli()`` for values in [0, 1] (the default), ``Gaussian(sigma)`` for any.
        seed: Of the initialisation; ``None`` draws from torch's global generator.

    Raises:
        InputError: If a size is below 1, or the likelihood is another.

    Example:
        >>> import torch
        >>> from retain import models, tasks
        >>> images, draw = tasks.digits().data.inputs, torch.Generator().manual_seed(0)
        >>> vae = models.VAE((1, 8, 8), hidden=(64,), latent=8, seed=0)
        >>> optimizer, first = torch.optim.Adam(vae.parameters(), lr=0.01), float(vae.elbo(images, draw).mean().detach())
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     (-vae.elbo(images, draw).mean()).backward()
        ...     _ = optimizer.step()
        >>> first < -44 and float(vae.elbo(images, draw).mean().detach()) > -30
        True
        >>> vae.sample(2, draw).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        hidden: Sequence[int] = (400, 400),
        latent: int = 100,
        likelihood: Bernoulli | Gaussian | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.shape = tuple(check_count("shape", size) for size in ((shape,) if isinstance(shape, int) else shape))
        self.likelihood = check_pixels(likelihood)
        self.latent = check_count("latent", latent)
        size = math.prod(self.shape)
        self.encoder = MLP(size, *hidden, 2 * latent, seed=seed)
        self.decoder = MLP(latent, *reversed(hidden), size, seed=None if seed is None else seed + 1)

    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior, ``[B, latent]`` each."""
        mean, logvar = self.encoder(inputs).chunk(2, dim=1)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        """What the likelihood takes as outputs: logits, or means for a Gaussian; ``[B, *shape]``."""
        outputs: Tensor = self.decoder(z).unflatten(1, self.shape)
        return outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """The decoder's outputs at the posterior's mean."""
        return self.decode(self.encode(inputs)[0])

    def elbo(self, inputs: Tensor, draw: torch.Generator | None = None) -> Tensor:
        """The bound of every input's log likelihood with one draw of z, an unbiased estimate that gradients flow through.

        Args:
            inputs: ``[B, *shape]``.
            draw: A CPU generator for z; torch's global one by default.

        Returns:
            ``[B]``, in nats.
        """
        mean, logvar = self.encode(inputs)
        noise = torch.randn(mean.shape, generator=draw, dtype=mean.dtype).to(mean.device)
        outputs = self.decode(mean + (logvar / 2).exp() * noise)
        divergence = (mean.square() + logvar.exp() - 1 - logvar).sum(1) / 2
        return -self.likelihood.nll(outputs, inputs) - divergence

    @torch.no_grad()
    def sample(self, count: int, draw: torch.Generator | None = None) -> Tensor:
        """New inputs: z from the prior, and the mean of what the decoder says of it.

        Args:
            count: How many.
            draw: A CPU generator; torch's global one by default.

        Returns:
            ``[count, *shape]``, without a gradient.
        """
        anyone = next(self.parameters())
        outputs = self.decode(torch.randn(count, self.latent, generator=draw, dtype=anyone.dtype).to(anyone.device))
        return outputs.sigmoid() if isinstance(self.likelihood, Bernoulli) else outputs


def check_pixels(likelihood: Bernoulli | Gaussian | None) -> Bernoulli | Gaussian:
    """The likelihood of inputs, Bernoulli if there is none.

    Args:
        likelihood: What was asked for.

    Returns:
        That, or Bernoulli.

    Raises:
        InputError: If it is another.
    """
    if likelihood is None:
        return Bernoulli()
    if not isinstance(likelihood, Bernoulli | Gaussian):
        raise InputError("likelihood", "Bernoulli() or Gaussian(sigma), for the inputs", repr(likelihood))
    return likelihood
