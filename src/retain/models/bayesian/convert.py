"""Bayesian models from plain ones, and posteriors as priors."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from retain.errors import InputError, nearest
from retain.models.bayesian.base import BayesianLayer, Estimator, bayesian_layers
from retain.models.bayesian.convolution import BayesianConv1d, BayesianConv2d
from retain.models.bayesian.coupling import FlowKind, MakeFlow
from retain.models.bayesian.embedding import BayesianEmbedding
from retain.models.bayesian.linear import BayesianLinear
from retain.models.bayesian.multiplicative import MultiplicativeLinear
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
    num_flows: int | None = None,
    flow: Literal["planar"] | FlowKind | MakeFlow = "planar",
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
        num_flows: Steps of the flows; none by default of ``planar``, 2 of others.
        flow: ``planar`` bends all entries of each tensor, with ``estimator="weights"``. Any other makes every linear layer a
            :class:`~retain.models.MultiplicativeLinear`, with this flow of its inputs' factors; layers of other types are refused.
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
    kinds = ("planar", *get_args(FlowKind))
    if not callable(flow) and flow not in kinds:
        raise InputError("flow", f"one of {', '.join(kinds)}, or a function", repr(flow), nearest(str(flow), kinds))
    plain = unwrap(model)
    if any(isinstance(module, BayesianLayer) for module in plain.modules()):
        raise InputError("model", "a model without Bayesian layers", f"{type(plain).__name__}, which has some", "It is Bayesian already.")
    paths = _to_convert(plain, [keep] if isinstance(keep, str) else list(keep))
    if not paths:
        raise InputError("model", f"at least one of {', '.join(layer.__name__ for layer in LAYERS)}", f"none in {type(plain).__name__}")
    settings: dict[str, Any] = {"logvar": logvar, "prior": density, "estimator": estimator}
    layers = dict(LAYERS)
    if flow != "planar":
        settings |= {"flow": flow, "num_flows": 2 if num_flows is None else num_flows}
        layers = {nn.Linear: MultiplicativeLinear}
        for path in paths:
            if type(module := plain.get_submodule(path)) not in layers:
                hint = "Factors of inputs are for linear layers: use flow='planar', or leave it as it is with keep=."
                raise InputError(f"module '{path or 'model'}'", f"Linear with flow={flow!r}", type(module).__name__, hint)
    else:
        settings["num_flows"] = 0 if num_flows is None else num_flows
    made = copy(plain)
    new = {made.get_submodule(path): layers[type(made.get_submodule(path))].of(made.get_submodule(path), **settings) for path in paths}
    for module in list(made.modules()):
        for name, child in module._modules.items():
            if child in new:  # in every place where it stands: one layer stays one
                module._modules[name] = new[child]
        if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerEncoder):
            # torch's fast path in evaluation mode reads the weights past their layers, so nothing would be drawn
            module.activation_relu_or_gelu, module.use_nested_tensor = 0, False
    made = cast(Module, new.get(made, made))
    if prior is not None and density is None:
        set_prior(made, prior)
    return made


def _to_convert(model: nn.Module, patterns: list[str]) -> list[str]:
    """Where the layers are that get a Bayesian form, each once; raises where one cannot."""
    everywhere = dict(model.named_modules(remove_duplicate=False))
    kept: set[nn.Module] = set()
    for path, module in everywhere.items():
        if any(fnmatchcase(path, pattern) or fnmatchcase(type(module).__name__, pattern) for pattern in patterns):
            kept.update(module.modules())
    owners = {
        parameter: f"{path}.{name}" for path, module in everywhere.items() if module in kept for name, parameter in module.named_parameters(recurse=False)
    }
    found = []
    for path, module in model.named_modules():
        own = {} if module in kept else dict(module.named_parameters(recurse=False))
        if not own:
            continue
        kind, hint = type(module).__name__, f"Leave it as it is with keep=({type(module).__name__!r},): its weights then have no posterior."
        if type(module) not in LAYERS:
            kinds = ", ".join(layer.__name__ for layer in LAYERS)
            raise InputError(f"module '{path or 'model'}'", f"{kinds}, or a module without parameters of its own", kind, hint)
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if "forward" in vars(module) or module._modules or not own.keys() <= {"weight", "bias"} or any(getattr(module, name) for name in hooks):
            more = "one with hooks, parameters or a forward of its own, which its Bayesian form would lose"
            raise InputError(f"module '{path or 'model'}'", f"a {kind} as torch makes it", more, f"Remove them first. {hint}")
        for name, parameter in own.items():
            if parameter in owners:
                tied = "Tied weights would come apart: untie them, or pass both modules in keep."
                raise InputError(f"parameter '{path}.{name}'", "one of its own", f"'{owners[parameter]}' again", tied)
            owners[parameter] = f"{path}.{name}"
        found.append(path)
    return found


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
