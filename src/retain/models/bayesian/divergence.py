"""How far a Bayesian model's posterior is from its prior, in nats."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from retain.models.bayesian.base import LOGVAR, BayesianLayer, bayesian_layers, only

Rows = Mapping[BayesianLayer, Tensor]
"""Which output units of a layer count, one entry a unit; a layer that is not named counts whole."""


def kl(model: nn.Module | Mapping[str, BayesianLayer], *, strength: float = 1.0, rows: Rows | None = None) -> Tensor:
    r""":math:`\mathrm{KL}(q \,\|\, p)` of all weights in nats, a scalar with gradients: what the posterior has learned beyond its prior.

    The loss of variational inference, the negative evidence lower bound per sample, is ``mean_nll + kl(model) / N`` with N training samples
    (Graves 2011; Blundell et al. 2015, https://arxiv.org/abs/1505.05424, eq. 1). Gaussian priors have a closed form; scale mixtures and flows are
    estimated from one draw of the weights, without bias. With flows :math:`z_K` of :math:`z_0 \sim q_0`, the estimate is
    :math:`\log q_0(z_0) - \sum_k \log|\det_k| - \log p(z_K)`. A :class:`~retain.models.MultiplicativeLinear` counts with an upper bound.

    Args:
        model: A model with Bayesian layers, or the layers themselves by name.
        strength: Factor of the quadratic part, see :class:`~retain.models.GaussianPrior`.
        rows: Output units that count, by layer.

    Returns:
        A scalar in nats.

    Raises:
        InputError: If the model has no Bayesian layer.

    Example:
        >>> from retain.models import MLP, bayesian, kl
        >>> model = bayesian(MLP(4, 3, seed=0), logvar=0.0)
        >>> means = sum(float(p.detach().square().sum()) for name, p in model.named_parameters() if "logvar" not in name)
        >>> abs(float(kl(model).detach()) - 0.5 * means) < 1e-5  # a width of 1 on both sides: only the means count
        True
    """
    return torch.stack(list(kl_by_layer(model, strength=strength, rows=rows).values())).sum()


def kl_by_layer(model: nn.Module | Mapping[str, BayesianLayer], *, strength: float = 1.0, rows: Rows | None = None) -> dict[str, Tensor]:
    """:func:`kl` by the name of the layer."""
    found = {}
    for name, layer in bayesian_layers(model).items():
        total = torch.zeros((), device=layer.posterior["weight"][0].device)
        for part in layer.random:
            total = total + layer.divergence(part, strength, _units(layer, rows))
        found[name] = total
    return found


def add_kl_gradient(
    model: nn.Module | Mapping[str, BayesianLayer], scale: float, *, strength: float = 1.0, rows: Rows | None = None, after_forward: bool = False
) -> None:
    """Add ``scale`` times the gradient of :func:`kl` to every ``.grad``, in closed form where there is one; frozen tensors are left alone.

    Args:
        model: A model with Bayesian layers, or the layers themselves by name.
        scale: Usually 1/N.
        strength: As for :func:`kl`.
        rows: As for :func:`kl`.
        after_forward: The parameters haven't changed since the last random forward pass, as before an optimiser's step: saves time.
    """
    for layer in bayesian_layers(model).values():
        units = _units(layer, rows)
        for part, (mean, logvar) in layer.posterior.items():
            trained = [p for p in (mean, logvar) if p.requires_grad]
            if part in layer.flows:
                with torch.enable_grad():
                    divergence = scale * layer.divergence(part, strength, units)
                if divergence.requires_grad:
                    divergence.backward()
                continue
            if not trained:
                continue
            prior = layer.prior(part)
            with torch.no_grad():
                for parameter in trained:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                direct = units is None and len(trained) == 2
                onto = (mean.grad, logvar.grad) if direct else (torch.zeros_like(mean), torch.zeros_like(mean))
                assert onto[0] is not None and onto[1] is not None
                prior.add_gradients(mean, layer.variance(part, after_forward=after_forward), onto, scale, strength)  # type: ignore[arg-type]
                for parameter, gradient in () if direct else zip((mean, logvar), onto, strict=True):
                    if parameter.requires_grad:
                        assert parameter.grad is not None and gradient is not None
                        parameter.grad.add_(only(gradient, units))


def _units(layer: BayesianLayer, rows: Rows | None) -> Tensor | None:
    return layer.counted(None if rows is None else rows.get(layer))


def broken(model: nn.Module | Mapping[str, BayesianLayer]) -> str | None:
    """The first parameter of a Bayesian layer that is no longer finite, or whose variance isn't, by name; ``None`` if all are well."""
    found: dict[str, Tensor] = {}
    for name, layer in bayesian_layers(model).items():
        for part, (mean, logvar) in layer.posterior.items():
            least, most = logvar.detach().aminmax()
            found[f"{name}.{part}".lstrip(".")] = mean.detach().sum()
            found[f"{name}.{part}{LOGVAR}".lstrip(".")] = least + most.exp()
    if bool(torch.isfinite(torch.stack(list(found.values()))).all()):
        return None
    return next(name for name, value in found.items() if not bool(torch.isfinite(value)))
