"""The bound of a variational autoencoder, against closed forms of the linear Gaussian case and against importance weighting."""

import math

import pytest
import torch

from retain import models
from retain.errors import InputError
from retain.likelihoods import Bernoulli, Categorical, Gaussian

SIGMA = 0.5


def linear(latent=2, size=3, likelihood=None, seed=0):
    """No hidden layers: x = W z + b + noise, and a posterior with its mean linear in x; in double precision."""
    return models.VAE(size, hidden=(), latent=latent, likelihood=likelihood or Gaussian(SIGMA), seed=seed).double()


def decoder(vae):
    layer = vae.decoder.layers.fc1
    return layer.weight.detach(), layer.bias.detach()


def log_evidence(vae, x):
    """log N(x; b, W W^T + sigma^2 I)."""
    w, b = decoder(vae)
    return torch.distributions.MultivariateNormal(b, w @ w.T + SIGMA**2 * torch.eye(len(b), dtype=b.dtype)).log_prob(x)


def draws(vae, x, count):
    """Independent estimates of the bound of every row, ``[count, len(x)]``."""
    return vae.elbo(x.repeat(count, 1), torch.Generator().manual_seed(0)).detach().reshape(count, len(x))


def data(n=6, size=3):
    return torch.randn(n, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_bound_is_its_closed_form_on_average():
    vae, x = linear(), data()
    w, b = decoder(vae)
    mean, logvar = vae.encode(x)
    far = (x - mean @ w.T - b).square().sum(1) + (logvar.exp() * w.square().sum(0)).sum(1)
    expected = -far / (2 * SIGMA**2) - 1.5 * math.log(2 * math.pi * SIGMA**2)
    posterior = torch.distributions.Normal(mean, (logvar / 2).exp())
    expected -= torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1)
    found = draws(vae, x, 20_000)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - expected).abs() < 4 * error).all() and (error < 0.05).all()
    assert (expected.detach() < log_evidence(vae, x)).all()


def test_with_the_true_posterior_the_bound_is_the_evidence():
    vae, x = linear(), data()
    with torch.no_grad():
        w = torch.linalg.qr(vae.decoder.layers.fc1.weight).Q * torch.tensor([0.7, 1.4], dtype=torch.float64)  # the posterior's covariance is then diagonal
        vae.decoder.layers.fc1.weight.copy_(w)
        variance = 1 / (1 + w.square().sum(0) / SIGMA**2)
        to_mean = variance[:, None] * w.T / SIGMA**2
        encoder = vae.encoder.layers.fc1
        encoder.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
        encoder.bias.copy_(torch.cat([-to_mean @ decoder(vae)[1], variance.log()]))
        found = draws(vae, x, 20_000)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - log_evidence(vae, x)).abs() < 4 * error).all() and (error < 0.02).all()


def test_under_bernoulli_importance_weights_come_from_below():
    vae = models.VAE(4, hidden=(5,), latent=1, seed=0).double()
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]  # the evidence by quadrature
    p = torch.distributions.Bernoulli(logits=vae.decode(z))
    inside = torch.stack([p.log_prob(row).sum(1) for row in x], 1) + torch.distributions.Normal(0.0, 1.0).log_prob(z)
    evidence = inside.logsumexp(0) + math.log(16 / 4000)
    mean, logvar = vae.encode(x)
    q = torch.distributions.Normal(mean, (logvar / 2).exp())
    z = q.mean + q.stddev * torch.randn(20_000, 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ratio = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(2) - q.log_prob(z).sum(2)
    weights = (ratio + torch.distributions.Bernoulli(logits=vae.decode(z.flatten(0, 1)).unflatten(0, (20_000, 2))).log_prob(x).sum(2)).detach()
    assert torch.allclose(weights.logsumexp(0) - math.log(20_000), evidence.detach(), atol=0.01)
    found = draws(vae, x, 20_000).mean(0)
    assert torch.allclose(found, weights.mean(0), atol=0.02) and (found < evidence).all()


def test_what_is_sampled_follows_the_decoder():
    vae = linear()
    w, b = decoder(vae)
    drawn = vae.sample(50_000, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.mean(0), b, atol=0.02) and torch.allclose(drawn.T.cov(), w @ w.T, atol=0.03)
    pictures = models.VAE((1, 2, 3), hidden=(4,), latent=2, seed=0)
    drawn = pictures.sample(5, torch.Generator().manual_seed(0))
    assert drawn.shape == (5, 1, 2, 3) and drawn.min() > 0 and drawn.max() < 1 and not drawn.requires_grad
    assert torch.equal(drawn, pictures.sample(5, torch.Generator().manual_seed(0)))
    assert pictures(drawn).shape == (5, 1, 2, 3)


def test_seeds_give_the_same_network_and_two_different_halves():
    first, again, other = (models.VAE(8, hidden=(8,), latent=4, seed=seed) for seed in (0, 0, 1))
    pairs = zip(first.parameters(), again.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in pairs)
    assert not torch.equal(first.encoder.layers.fc1.weight, first.decoder.layers.fc2.weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": 0}, "shape: expected a whole number"),
        ({"hidden": (0,)}, "sizes: expected a whole number"),
        ({"latent": 0}, "latent: expected a whole number"),
        ({"likelihood": Categorical()}, r"likelihood: expected Bernoulli\(\) or Gaussian\(sigma\)"),
    ],
)
def test_settings_out_of_range_are_named(options, words):
    with pytest.raises(InputError, match=words):
        models.VAE(**{"shape": 4, **options})


def test_the_default_likelihood_is_that_of_pixels():
    assert models.VAE(4).likelihood == Bernoulli()
