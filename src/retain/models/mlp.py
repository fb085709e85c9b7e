"""A multilayer perceptron."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import Tensor, nn

from retain.errors import InputError, check_count
from retain.seeds import seeded


class MLP(nn.Module):
    """Linear layers with ReLU between them; inputs are flattened.

    Args:
        *sizes: Widths from input to output, such as ``784, 256, 256, 10``.
        output_relu: Put a ReLU on the outputs too. This is a defect of the published EWC tutorial, kept for its preset: logits
            cannot be negative and a class whose unit is dead stays so.
        seed: Seed of the initialisation; ``None`` draws from torch's global generator.

    Raises:
        InputError: If there are fewer than two sizes or one is below 1.

    Example:
        >>> import torch
        >>> MLP(784, 32, 10, seed=0)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *sizes: int, output_relu: bool = False, seed: int | None = None) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise InputError("sizes", "at least two widths, input and output", list(sizes))
        for width in sizes:
            check_count("sizes", width)
        if seed is not None:
            with seeded(seed, "initialisation"):
                self.layers = self._build(sizes, output_relu)
        else:
            self.layers = self._build(sizes, output_relu)

    @staticmethod
    def _build(sizes: tuple[int, ...], output_relu: bool) -> nn.Sequential:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (inside, outside) in enumerate(pairwise(sizes), start=1):
            layers[f"fc{i}"] = nn.Linear(inside, outside)
            if i < len(sizes) - 1 or output_relu:
                layers[f"relu{i}"] = nn.ReLU()
        return nn.Sequential(layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``[B, C]`` of inputs ``[B, ...]``."""
        outputs: Tensor = self.layers(inputs.flatten(1))
        return outputs
