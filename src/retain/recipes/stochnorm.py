"""Fine-tuning with batch norm that draws between its two statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import InputError, check_share
from retain.recipes.base import Place
from retain.recipes.probe import LPFT

_BatchNorm = nn.modules.batchnorm._BatchNorm


class StochNorm(_BatchNorm):
    r"""What a batch norm is made of while it is trained: each channel is normalised by the batch's statistics or by the running ones.

    .. math:: \hat x = s\, \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + (1 - s)\, \frac{x - \tilde\mu}{\sqrt{\tilde\sigma^2 + \epsilon}},
        \quad P(s = 1) = p

    s is drawn for each channel at each step; the running :math:`\tilde\mu, \tilde\sigma^2` are those from before the step, and follow the batch as ever.
    Kou, You, Long and Wang 2020, algorithm 1. In evaluation mode it is a batch norm.

    It stands before the layer's own class, whose forward pass it takes once for each statistics: activations that are part of the layer stay so.
    """

    p: float

    def forward(self, input: Tensor) -> Tensor:
        """Normalise."""
        mean, var = self.running_mean, self.running_var
        if not self.training or mean is None or var is None:
            return super().forward(input)
        # copies, since the way back reads them after the other pass has moved the running ones
        self.running_mean, self.running_var, self.training = mean.clone(), var.clone(), False
        try:
            running = super().forward(input)
        finally:
            self.running_mean, self.running_var, self.training = mean, var, True
        batch = super().forward(input)
        chosen = (torch.rand(self.num_features) < self.p).to(input.device)  # on the CPU: the same draws on every device
        return torch.where(chosen.view(1, -1, *[1] * (input.ndim - 2)), batch, running)


def stochastic(kind: type[nn.Module]) -> type[nn.Module]:
    """A class of batch norms, made stochastic; only its forward pass in training mode differs."""
    return type(f"Stochastic{kind.__name__}", (StochNorm, kind), {})


class StochasticNormalisation(LPFT):
    """Fine-tuning with stochastic normalisation: half the channels see the running statistics, which know the old data, and half the batch's.

    Kou, You, Long and Wang 2020, "Stochastic Normalization" (NeurIPS), algorithm 1. The layers change their class for the time of training alone: names,
    parameters and statistics stay where they are, and the model that comes back has ordinary batch norms. The head is trained alone first, in evaluation
    mode, where nothing is drawn.

    Args:
        p: Probability of the batch's statistics: 1 is batch norm, 0 the running statistics alone.
        penalty: Of the head that is fitted alone, see :class:`~retain.recipes.LinearProbe`.

    Raises:
        InputError: If a setting is out of range; on use, if the model has no batch norm with running statistics, or ``batchnorm`` is not ``track``.

    Example:
        >>> import retain
        >>> from retain import models, tasks
        >>> result = retain.finetune(models.ResNet(8, 4, seed=0), tasks.digits(), "stochnorm", epochs=2, lr=0.001)
        >>> result.found["layers"], type(result.model.layers.norm).__name__
        (7, 'BatchNorm2d')
    """

    name = "stochnorm"
    summary = "all weights, batch norm drawing between the batch's statistics and the running ones"
    citation = "kou2020stochastic"

    def __init__(self, p: float = 0.5, penalty: float | None = None) -> None:
        super().__init__(penalty)
        self.p = check_share("p", p)

    @contextmanager
    def during(self, place: Place) -> Iterator[dict[str, Any]]:
        """Stochastic layers around all phases; yields their number."""
        layers: list[Any] = [layer for layer in place.model.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None]
        if not layers:
            raise InputError("recipe", f"batch norm with running statistics for '{self.name}'", f"none in {type(place.model).__name__}", "Take 'lp-ft'.")
        if place.batchnorm != "track":
            hint = "Kept statistics are used in training too, which is 'lp-ft'."
            raise InputError("batchnorm", f"'track' for '{self.name}', which draws between the two statistics", repr(place.batchnorm), hint)
        kinds = [type(layer) for layer in layers]
        drawing = {kind: stochastic(kind) for kind in set(kinds)}
        for layer, kind in zip(layers, kinds, strict=True):
            layer.__class__ = drawing[kind]
            layer.p = self.p
        try:
            yield {"layers": len(layers)}
        finally:
            for layer, kind in zip(layers, kinds, strict=True):
                layer.__class__ = kind
                del layer.p

    def settings(self) -> dict[str, Any]:
        """Everything the recipe was made with."""
        return {"p": self.p, **super().settings()}
