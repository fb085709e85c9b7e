"""A small residual network."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from retain.errors import InputError, check_count
from retain.seeds import seeded


class ResNet(nn.Module):
    """The residual network for small images, of 6n + 2 layers (He et al. 2016, section 4.2, https://arxiv.org/abs/1512.03385).

    Three stages of n blocks with ``width``, 2 ``width`` and 4 ``width`` channels; shortcuts that change shape are 1x1 convolutions (option B). Activations are
    modules, so that :func:`~retain.models.sparsify` can replace them.

    Args:
        depth: 8, 14, 20, ...
        width: Channels of the first stage.
        channels: Of the images.
        classes: Outputs.
        seed: Of the initialisation; ``None`` draws from torch's global generator.

    Raises:
        InputError: If the depth is not 6n + 2.

    Example:
        >>> import torch
        >>> ResNet(8, 4, seed=0)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, depth: int = 8, width: int = 16, channels: int = 1, classes: int = 10, *, seed: int | None = None) -> None:
        super().__init__()
        for name, value in (("depth", depth), ("width", width), ("channels", channels), ("classes", classes)):
            check_count(name, value)
        if depth < 8 or (depth - 2) % 6:
            raise InputError("depth", "6n + 2: 8, 14, 20, ...", depth)
        if seed is not None:
            with seeded(seed, "initialisation"):
                self.layers = self._build(depth, width, channels, classes)
        else:
            self.layers = self._build(depth, width, channels, classes)

    @staticmethod
    def _build(depth: int, width: int, channels: int, classes: int) -> nn.Sequential:
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(channels, width, 3, padding=1, bias=False), norm=nn.BatchNorm2d(width), relu=nn.ReLU())
        inside = width
        for stage in range(3):
            outside = width * 2**stage
            for block in range((depth - 2) // 6):
                layers[f"stage{stage + 1}_block{block + 1}"] = _Block(inside, outside, 2 if stage and not block else 1)
                inside = outside
        layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": nn.Linear(inside, classes)}
        return nn.Sequential(layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``[B, C]`` of images ``[B, channels, H, W]``."""
        outputs: Tensor = self.layers(inputs)
        return outputs


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.relu1 = nn.ReLU()
        self.conv2, self.norm2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        self.shortcut = nn.Identity() if inside == outside and stride == 1 else nn.Conv2d(inside, outside, 1, stride, bias=False)
        self.relu2 = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(inputs)))))
        outputs: Tensor = self.relu2(inner + self.shortcut(inputs))
        return outputs
