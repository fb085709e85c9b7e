"""Fine-tuning a few parameters of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from retain.errors import InputError, check_positive
from retain.recipes.base import Phase, Place, Recipe

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class NormsOnly(Recipe):
    """Train the scales and shifts of normalisation layers, and the head: a per cent of the parameters, or less.

    Frankle, Schwab and Morcos 2021, "Training BatchNorm and Only BatchNorm" (https://arxiv.org/abs/2003.00152).

    Args:
        lr: Factor of the learning rate.

    Raises:
        InputError: If the factor is not positive; on use, if the model has no such layers.

    Example:
        >>> from retain.recipes import NormsOnly
        >>> NormsOnly()
        NormsOnly(lr=1.0)
    """

    name = "norms-only"
    summary = "normalisation layers and the head"
    citation = "frankle2021training"

    def __init__(self, lr: float = 1.0) -> None:
        self.lr = check_positive("lr", lr)

    def chosen(self, model: nn.Module) -> set[str]:
        """Names of what is trained beside the head."""
        found = {name: module for name, module in model.named_modules() if isinstance(module, NORMS)}
        return {f"{name}.{inner}" for name, module in found.items() for inner, _ in module.named_parameters(recurse=False)}

    def phases(self, place: Place) -> Sequence[Phase]:
        """One."""
        chosen = self.chosen(place.model)
        if not any(not place.in_head(name) for name in chosen):
            hint = "Take 'linear-probe', or 'fine-tune'."
            raise InputError("recipe", f"something for '{self.name}' to train before the head", f"nothing in {type(place.model).__name__}", hint)
        return [Phase(self.name, trains=lambda name: name in chosen or place.in_head(name), lr=self.lr)]

    def settings(self) -> dict[str, Any]:
        """The factor."""
        return {"lr": self.lr}


class BiasesOnly(NormsOnly):
    """Train the biases, and the head.

    Ben Zaken, Ravfogel and Goldberg 2022, "BitFit" (https://arxiv.org/abs/2106.10199).

    Args:
        lr: Factor of the learning rate.

    Raises:
        InputError: If the factor is not positive; on use, if the model has no biases.

    Example:
        >>> from retain.recipes import BiasesOnly
        >>> BiasesOnly(lr=3.0)
        BiasesOnly(lr=3.0)
    """

    name = "biases-only"
    summary = "biases and the head"
    citation = "zaken2022bitfit"

    def chosen(self, model: nn.Module) -> set[str]:
        """Names of what is trained beside the head."""
        return {name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"}
