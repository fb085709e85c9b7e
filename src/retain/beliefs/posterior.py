"""From a Bayesian model's posterior to a belief, and back."""

from __future__ import annotations

import torch
from torch import nn

from retain.beliefs.belief import Belief
from retain.beliefs.diagonal import Diagonal
from retain.errors import InputError, check_positive
from retain.models.bayesian import bayesian_layers, put_prior


def from_posterior(model: nn.Module, n: float, prior: float = 1e-6) -> Belief:
    r"""What a trained Bayesian model believes, as a diagonal :class:`Belief`: :math:`c = \mu` and :math:`nP + \delta = \sigma^{-2}`.

    The posterior contains its prior already, so this belief replaces the one that was the prior; adding them would count it twice.

    Args:
        model: A model with Bayesian layers, without flows.
        n: Samples that it has learned.
        prior: :math:`\delta`; the precision of a weight is never below it.

    Returns:
        The belief, under the plain model's parameter names.

    Raises:
        InputError: If a number is out of range or the model is not Bayesian.

    Example:
        >>> from retain.beliefs import from_posterior
        >>> from retain.models import MLP, bayesian
        >>> belief = from_posterior(bayesian(MLP(4, 3, seed=0), logvar=0.0), n=100)
        >>> [round(float(v.max()), 4) for v in belief.variance().values()]
        [1.0, 1.0]
    """
    check_positive("n", n)
    centre, precision = {}, {}
    for name, layer in bayesian_layers(model).items():
        if layer.flows:
            raise InputError(f"posterior of layer '{name}'", "a Gaussian", "one with flows")
        for part, (mean, logvar) in layer.posterior.items():
            full = f"{name}.{part}".lstrip(".")
            centre[full] = mean.detach().clone()
            precision[full] = ((-logvar.detach()).exp() - prior).clamp_min(0.0) / n
    return Belief(centre, Diagonal(precision), n, prior)


def as_prior(model: nn.Module, belief: Belief, *, start: bool = False) -> None:
    r"""Make a belief the prior of a Bayesian model: a Laplace approximation, whatever its structure, becomes a Gaussian a weight.

    Of all factorised Gaussians, the one of precision :math:`\operatorname{diag}(nP + \delta I)` has the smallest divergence from the belief, so that is
    the prior; its variances are below the belief's own where weights depend on each other.

    Args:
        model: A Bayesian model; changed in place.
        belief: Over the plain model's parameter names.
        start: Also start the posterior there.

    Raises:
        InputError: If the belief does not know a weight, or knows it in another shape.
    """
    known = belief.precision.diagonal()
    for name, layer in bayesian_layers(model).items():
        for part, (mean, logvar) in layer.posterior.items():
            full = f"{name}.{part}".lstrip(".")
            if full not in known or belief.centre[full].shape != mean.shape:
                found = f"shape {list(belief.centre[full].shape)}" if full in known else "none"
                raise InputError(f"prior of '{full}'", f"a belief of shape {list(mean.shape)}", found, "Give both models the same architecture.")
            width = -(belief.n * known[full].to(mean.device) + belief.prior).log().expand_as(mean)
            put_prior(layer, part, belief.centre[full], width)
            if start:
                with torch.no_grad():
                    mean.copy_(belief.centre[full])
                    logvar.copy_(width)
