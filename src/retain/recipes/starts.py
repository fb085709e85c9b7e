"""Starts to compare a pretrained one with: what of it matters."""

from __future__ import annotations

import torch
from torch import nn

from retain.errors import InputError
from retain.seeds import generator, seeded


def reinitialised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all weights as the layers themselves do, in place; batch-norm statistics are reset.

    Args:
        model: Any module whose parameters belong to layers with ``reset_parameters``, or that are no layer's: those are drawn with the scale that they have.
        seed: Of the draws.

    Returns:
        The model.

    Example:
        >>> import torch
        >>> from retain.models import MLP
        >>> from retain.recipes import reinitialised
        >>> a, b = (reinitialised(MLP(4, 3, seed=s), seed=7) for s in (0, 1))
        >>> torch.equal(a.layers.fc1.weight, b.layers.fc1.weight)
        True
    """
    drawn: set[int] = set()
    with seeded(seed, "initialisation"):
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
                drawn |= {id(p) for p in module.parameters(recurse=False)}
    rest = {name: p for name, p in model.named_parameters() if id(p) not in drawn}
    _gaussian(rest, seed)
    return model


def mean_variance(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every weight tensor from a Gaussian of its own mean and variance, in place: the scale is kept, everything else is lost.

    The "Mean Var" start of Raghu, Zhang, Kleinberg and Bengio 2019, "Transfusion" (https://arxiv.org/abs/1902.07208). Buffers, such as batch-norm
    statistics, are reset: they belong to features that are gone.

    Args:
        model: Any module.
        seed: Of the draws.

    Returns:
        The model.

    Example:
        >>> from retain.models import MLP
        >>> from retain.recipes import mean_variance
        >>> model = MLP(100, 100, seed=0)
        >>> before = float(model.layers.fc1.weight.detach().std())
        >>> abs(float(mean_variance(model).layers.fc1.weight.detach().std()) / before - 1) < 0.05
        True
    """
    _gaussian(dict(model.named_parameters()), seed)
    _forget_statistics(model)
    return model


def permuted(model: nn.Module, seed: int = 0) -> nn.Module:
    """Shuffle the entries of every weight tensor, in place: its values are kept to the last bit, their places are lost.

    Args:
        model: Any module.
        seed: Of the permutations.

    Returns:
        The model.

    Example:
        >>> import torch
        >>> from retain.models import MLP
        >>> from retain.recipes import permuted
        >>> model = MLP(9, 4, seed=0)
        >>> before = model.layers.fc1.weight.clone()
        >>> after = permuted(model).layers.fc1.weight
        >>> torch.equal(after, before), torch.equal(after.flatten().sort()[0], before.flatten().sort()[0])
        (False, True)
    """
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            order = torch.randperm(parameter.numel(), generator=generator(seed, "permutation", i)).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    _forget_statistics(model)
    return model


def _gaussian(parameters: dict[str, nn.Parameter], seed: int) -> None:
    draws = generator(seed, "initialisation", 1)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if not parameter.isfinite().all():
                raise InputError(f"'{name}'", "finite weights", "NaN or infinity")
            noise = torch.randn(parameter.shape, generator=draws).to(parameter)
            parameter.copy_(parameter.mean() + (parameter.std(correction=0) * noise))


def _forget_statistics(model: nn.Module) -> None:
    for module in model.modules():
        reset = getattr(module, "reset_running_stats", None)
        if callable(reset):
            reset()


STARTS = {"random": reinitialised, "mean-variance": mean_variance, "permuted": permuted}
