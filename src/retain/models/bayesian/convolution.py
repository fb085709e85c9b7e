"""Convolutions with uncertain weights."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from retain.models.bayesian.base import BayesianLayer, _signs


class _BayesianConv(BayesianLayer):
    """A convolution; see :class:`BayesianLayer`.

    Under ``local`` every position is drawn on its own; ``flipout`` and ``weights`` keep the covariance of positions.
    """

    axes: int

    def configure(self, source: Any) -> None:
        """Stride, padding and so on."""
        self.padding_mode: str = source.padding_mode
        self.padding: Any = source.padding
        for name in ("stride", "dilation", "groups", "in_channels", "out_channels", "kernel_size"):
            setattr(self, name, getattr(source, name))
        self._pads = list(source._reversed_padding_repeated_twice)

    def map(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution."""
        padding = self.padding
        if self.padding_mode != "zeros":
            inputs, padding = F.pad(inputs, self._pads, mode=self.padding_mode), 0
        convolve: Any = F.conv1d if self.axes == 1 else F.conv2d
        outputs: Tensor = convolve(inputs, weight, bias, self.stride, padding, self.dilation, self.groups)
        return outputs

    def signs(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """One sign for each sample and channel, so that the positions of a sample share the draw."""
        ones = [1] * self.axes
        return tuple(_signs(t.new_empty(*t.shape[: -self.axes], *ones)) for t in (inputs, outputs))  # type: ignore[return-value]

    def along_outputs(self, values: Tensor, outputs: Tensor) -> Tensor:
        """One value a channel."""
        return values.reshape(-1, *[1] * self.axes)

    def extra_repr(self) -> str:
        """What stands in the module's repr."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, estimator={self.estimator}"


class BayesianConv1d(_BayesianConv):
    """A convolution over one axis with Gaussian weights.

    Args:
        in_channels: Channels of the inputs ``[B, C, L]``.
        out_channels: Channels of the outputs.
        kernel_size: Width of the kernel.
        stride: Step between positions.
        padding: As for ``nn.Conv1d``; so are ``dilation``, ``groups``, ``bias`` and ``padding_mode``.
        dilation: Distance of the kernel's entries.
        groups: Blocks of channels.
        bias: Whether there is one.
        padding_mode: What stands outside.
        **settings: ``logvar``, ``prior``, ``estimator`` and ``num_flows``, as for :class:`BayesianLayer`.

    Example:
        >>> import torch
        >>> from retain.models import BayesianConv1d
        >>> BayesianConv1d(2, 3, 5)(torch.rand(1, 2, 10)).shape
        torch.Size([1, 3, 6])
    """

    axes = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | str = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        **settings: Any,
    ) -> None:
        source = nn.Conv1d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        super().__init__(source, **settings)
        self.configure(source)


class BayesianConv2d(_BayesianConv):
    """A convolution over two axes with Gaussian weights.

    Args:
        in_channels: Channels of the inputs ``[B, C, H, W]``.
        out_channels: Channels of the outputs.
        kernel_size: Side or sides of the kernel.
        stride: Step between positions.
        padding: As for ``nn.Conv2d``; so are ``dilation``, ``groups``, ``bias`` and ``padding_mode``.
        dilation: Distance of the kernel's entries.
        groups: Blocks of channels.
        bias: Whether there is one.
        padding_mode: What stands outside.
        **settings: ``logvar``, ``prior``, ``estimator`` and ``num_flows``, as for :class:`BayesianLayer`.

    Example:
        >>> import torch
        >>> from retain.models import BayesianConv2d
        >>> BayesianConv2d(1, 4, 3, padding=1)(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    axes = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | str | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        **settings: Any,
    ) -> None:
        source = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        super().__init__(source, **settings)
        self.configure(source)
