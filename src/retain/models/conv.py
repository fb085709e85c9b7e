"""A small convolutional network."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext

from torch import Tensor, nn

from retain.errors import check_count
from retain.seeds import seeded


class Conv(nn.Module):
    """Two 5x5 convolutions with pooling, one hidden layer: a LeNet with ReLU, for square grey images.

    Args:
        side: Pixels a side, at least 16.
        outputs: Number of outputs.
        channels: Channels of the two convolutions.
        hidden: Width of the hidden layer.
        seed: Seed of the initialisation; ``None`` draws from torch's global generator.

    Raises:
        InputError: If a size is too small.

    Example:
        >>> import torch
        >>> Conv(28, 10, seed=0)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, side: int, outputs: int, channels: tuple[int, int] = (16, 32), hidden: int = 128, seed: int | None = None) -> None:
        super().__init__()
        check_count("side", side, least=16)
        check_count("outputs", outputs)
        flat = channels[1] * (((side - 4) // 2 - 4) // 2) ** 2
        with seeded(seed, "initialisation") if seed is not None else nullcontext():
            layers: OrderedDict[str, nn.Module] = OrderedDict(
                conv1=nn.Conv2d(1, channels[0], 5),
                pool1=nn.MaxPool2d(2),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(channels[0], channels[1], 5),
                pool2=nn.MaxPool2d(2),
                relu2=nn.ReLU(),
                flatten=nn.Flatten(),
                fc1=nn.Linear(flat, hidden),
                relu3=nn.ReLU(),
                fc2=nn.Linear(hidden, outputs),
            )
            self.layers = nn.Sequential(layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``[B, C]`` of images ``[B, 1, side, side]``."""
        outputs: Tensor = self.layers(inputs)
        return outputs
