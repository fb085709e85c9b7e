"""Bayesian models from plain ones, and posteriors as priors."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from retain.errors import InputError
from retain.models.bayesian.base import BayesianLayer, Estimator, bayesian_layers
from retain.models.bayesian.convolution import BayesianConv1d, BayesianConv2d
from retain.models.bayesian.embedding import BayesianEmbedding
from retain.models.bayesian.linear import BayesianLinear
from retain.models.bayesian.priors import GaussianPrior, Prior
from retain.models.parameters import copy, unwrap

LAYERS: dict[type[nn.Module], type[BayesianLayer]] = {
    nn.Linear: BayesianLinear,
    nn.Conv1d: BayesianConv1d,
    nn.Conv2d: BayesianConv2d,
    nn.Embedding: BayesianEmbedding,
}
Module = TypeVar("Module", bound=nn.Module)


def bayesian(
    model: Module,
    prior: Prior | nn.Module | None = None,
    *,
    logvar: float = -10.0,
    estimator: Estimator = "local",
    num_flows: int = 0,
    keep: Iterable[str] = (),
) -> Module:
    r"""A copy of a model in which every weight is a Gaussian about its value.

    Linear layers, convolutions over one and two axes and embeddings are replaced by their Bayesian forms, under the same names; what has no
    parameters stays. The copy answers as the model did in evaluation mode, and draws in training mode.

    Args:
        model: Any module of such layers.
        prior: A :class:`~retain.models.GaussianPrior` (width 1 by default), a :class:`~retain.models.ScaleMixture`, or a Bayesian model of the same
            architecture, whose posterior becomes the prior; see :func:`set_prior`.
        logvar: Initial :math:`\log \sigma^2` of every weight; small, or the noise hides what the means know.
        estimator: ``local``, ``flipout`` or ``weights``, see :class:`BayesianLayer`.
        num_flows: Planar flows on every tensor, with ``estimator="weights"``.
        keep: Names or types of modules that stay as they are, with ``*``: ``("bn*", "LayerNorm")``. Their weights are certain, and no prior holds them.

    Returns:
        The Bayesian model.

    Raises:
        InputError: If a module cannot be converted, or nothing can be.

    Example:
        >>> from retain.models import MLP, bayesian
        >>> bayesian(MLP(784, 400, 10, seed=0), logvar=-8).layers.fc2
        BayesianLinear(
          in_features=400, out_features=10, estimator=local
          (priors): ModuleDict(
            (weight): GaussianPrior(mean=0, std=1)
            (bias): GaussianPrior(mean=0, std=1)
          )
          (flows): ModuleDict()
        )
    """
    density = prior if isinstance(prior, Prior) else None
    if prior is not None and not isinstance(prior, nn.Module):
        raise InputError("prior", "a prior such as GaussianPrior(std=0.1), or a Bayesian model", type(prior).__name__)
    made = copy(unwrap(model))
    if any(isinstance(module, BayesianLayer) for module in made.modules()):
        raise InputError("model", "a model without Bayesian layers", f"{type(made).__name__}, which has some", "It is Bayesian already.")
    patterns = [keep] if isinstance(keep, str) else list(keep)
    settings: dict[str, Any] = {"logvar": logvar, "prior": density, "estimator": estimator, "num_flows": num_flows}
    new: dict[nn.Module, BayesianLayer] = {}
    owners: dict[Tensor, str] = {}

    def walk(module: nn.Module, path: str) -> nn.Module:
        if any(fnmatchcase(path, pattern) or fnmatchcase(type(module).__name__, pattern) for pattern in patterns):
            return module
        if module in new:  # one layer in several places stays one
            return new[module]
        kind = LAYERS.get(type(module))
        own = dict(module.named_parameters(recurse=False))
        if own and (kind is None or type(module).forward is not getattr(nn, type(module).__name__).forward):
            kinds = ", ".join(layer.__name__ for layer in LAYERS)
            hint = f"Leave it as it is with keep=({type(module).__name__!r},): its weights then have no posterior."
            raise InputError(f"module '{path or 'model'}'", f"{kinds}, or a module without parameters of its own", type(module).__name__, hint)
        for name, parameter in own.items():
            if parameter in owners:
                raise InputError(
                    f"parameter '{path}.{name}'",
                    "one of its own",
                    f"'{owners[parameter]}' again",
                    "Tied weights would come apart: untie them, or pass both modules in keep.",
                )
            owners[parameter] = f"{path}.{name}"
        if kind is not None:
            new[module] = kind.of(module, **settings)
            return new[module]
        for name, child in module.named_children():
            setattr(module, name, walk(child, f"{path}.{name}".lstrip(".")))
        return module

    made = cast(Module, walk(made, ""))
    if not new:
        raise InputError("model", f"at least one of {', '.join(layer.__name__ for layer in LAYERS)}", f"none in {type(made).__name__}")
    if prior is not None and density is None:
        set_prior(made, prior)
    return made


def set_prior(model: nn.Module, source: nn.Module, *, start: bool = False) -> None:
    """Make the posterior of one Bayesian model the prior of another.

    Args:
        model: Changed in place.
        source: A Bayesian model of the same architecture, without flows (its posterior has to be Gaussian).
        start: Also start the new posterior there: variational continual learning does. A posterior that starts elsewhere is far from a
            narrow prior, millions of nats, and learns nothing but the way back.

    Raises:
        InputError: If the architectures differ: the first layer that does is named.
    """
    mine, theirs = bayesian_layers(model), bayesian_layers(source)
    for name in mine:
        if name not in theirs:
            raise InputError("prior", f"a posterior of layer '{name}'", f"layers {', '.join(theirs)}", "Give both models the same architecture.")
        for part, (mean, _) in mine[name].posterior.items():
            found = theirs[name].posterior.get(part)
            if found is None or found[0].shape != mean.shape:
                shape = "none" if found is None else list(found[0].shape)
                raise InputError(
                    f"prior of layer '{name}'", f"{part} of shape {list(mean.shape)}", f"shape {shape}" if found else shape, "Give both models the same sizes."
                )
        if theirs[name].flows:
            raise InputError(f"prior of layer '{name}'", "a Gaussian posterior", "one with flows", "Train without flows, or fit a Gaussian to its draws.")
    more = [name for name in theirs if name not in mine]
    if more:
        raise InputError("prior", f"layers {', '.join(mine)}", f"layer '{more[0]}' too", "Give both models the same architecture.")
    for name, layer in mine.items():
        for part, (mean, logvar) in theirs[name].posterior.items():
            put_prior(layer, part, mean.detach(), logvar.detach())
            if start:
                with torch.no_grad():
                    for mine_, value in zip(layer.posterior[part], (mean, logvar), strict=True):
                        mine_.copy_(value)


def put_prior(layer: BayesianLayer, part: str, mean: Tensor, logvar: Tensor) -> None:
    """Give one tensor of a layer a Gaussian prior of mean and log-variance, on the layer's device."""
    here = layer.posterior[part][0]
    layer.priors[part] = GaussianPrior(mean, precision=(-logvar).exp()).to(here.device, here.dtype)
