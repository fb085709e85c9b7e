"""Activations that leave few units on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from retain.errors import InputError, check_count, check_positive


class Gate(nn.Module, ABC):
    """An activation that leaves at most ``most`` units of a layer on, sample by sample.

    Args:
        K: What the kind of gate says.
        dim: The axis of the units; by default the last of ``[B, n]`` and ``[B, T, n]``, and the channels of ``[B, n, H, W]``, where every place has units
            of its own.

    Raises:
        InputError: If K is below 1.
    """

    def __init__(self, K: int, dim: int | None = None) -> None:
        super().__init__()
        self.K, self.dim = check_count("K", K), dim

    @property
    @abstractmethod
    def most(self) -> int:
        """The largest number of units that can be on."""

    @abstractmethod
    def active(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Values and indices of the units that may be on along the last axis, ``[..., most]`` each; values that are 0 stand for none."""

    def axis(self, inputs: Tensor) -> int:
        """The axis of the units."""
        return (1 if inputs.ndim > 3 else -1) if self.dim is None else self.dim

    def check_width(self, width: int, where: str = "the gate's inputs") -> None:
        """Raise if K cannot be had of a layer of this width."""
        if width < self.K:
            raise InputError("K", f"at most the {width} units of {where}", self.K, "Lower K, or leave that layer as it is.")

    def extra_repr(self) -> str:
        """What stands in the module's repr."""
        return f"K={self.K}" + (f", dim={self.dim}" if self.dim is not None else "")


class TopK(Gate):
    r"""ReLU on the K largest units: :math:`h_i = \max(a_i, 0)\,\mathbb{1}[a_i \text{ among the K largest}]`.

    The k-sparse activation of Makhzani and Frey (2013, https://arxiv.org/abs/1312.5663), with a ReLU. The choice is locally constant, so the Jacobian
    is exact almost everywhere: gradients and Gauss-Newton products are true derivatives. Of equal units exactly as many are kept as fit.

    Args:
        K: Units kept, from 1 to the layer's width.
        dim: The axis of the units, see :class:`Gate`.

    Raises:
        InputError: If K is below 1, or above the width of what comes in.

    Example:
        >>> import torch
        >>> from retain.models import TopK
        >>> TopK(2)(torch.tensor([[3.0, -1.0, 1.0, 2.0]]))
        tensor([[3., 0., 0., 2.]])
    """

    @property
    def most(self) -> int:
        """K."""
        return self.K

    def forward(self, inputs: Tensor) -> Tensor:
        """Gated activations, shaped like the inputs."""
        axis = self.axis(inputs)
        self.check_width(inputs.shape[axis])
        values, places = inputs.topk(self.K, axis, sorted=False)
        return torch.zeros_like(inputs).scatter(axis, places, values.relu())

    def active(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Values and indices of the units that may be on along the last axis."""
        self.check_width(inputs.shape[-1])
        values, places = inputs.topk(self.K, -1, sorted=False)
        return values.relu(), places


class SoftmaxThreshold(Gate):
    r"""Softmax over a layer, entries above 1/K kept: :math:`h_i = g\,p_i\,\mathbb{1}[p_i > 1/K]`, :math:`p = \operatorname{softmax}(s\,a)`.

    The activation of the published notebook (s = g = 1). Because the entries sum to 1, **at most K - 1 are kept** (K of them above 1/K would sum to more), and
    K = 1 would keep none. A freshly initialised layer of n units answers about 1/n everywhere, so nothing passes and no gradient flows. The repairs:

    - ``scale`` s, which :func:`calibrate` sets so that logits have a spread of :math:`\sqrt{2 \ln n}`, where the softmax of n independent
      Gaussian logits condenses on a few (the freezing of Derrida's random energy model, 1981);
    - ``gain`` g, which :func:`calibrate` sets so that what comes out is as large as a ReLU's output. It is the same as larger weights behind the gate, and
      makes the difference: with it a network that was trained with ReLUs is a good start, without it layers collapse to one unit a class;
    - ``fallback``: where nothing is above 1/K, the largest entry is kept;
    - ``straight_through``: the backward pass is that of the whole softmax (Bengio, Leonard and Courville 2013, https://arxiv.org/abs/1308.3432). These are not
      derivatives of the forward pass, so second-order steps should not be trusted with them.

    Args:
        K: The threshold is 1/K; at least 2.
        scale: s, above 0.
        gain: g, above 0.
        fallback: Keep the largest entry where none is above the threshold.
        straight_through: Let gradients pass as if nothing were cut.
        dim: The axis of the units, see :class:`Gate`.

    Raises:
        InputError: If K is below 2, or above the width of what comes in, or the scale is out of range.

    Example:
        >>> import torch
        >>> from retain.models import SoftmaxThreshold
        >>> SoftmaxThreshold(4)(torch.tensor([[2.0, 2.0, 2.0, -5.0], [0.0, 0.0, 0.0, 0.0]])).count_nonzero(1)
        tensor([3, 1])
    """

    scale: Tensor
    gain: Tensor

    def __init__(self, K: int, scale: float = 1.0, gain: float = 1.0, *, fallback: bool = True, straight_through: bool = True, dim: int | None = None) -> None:
        super().__init__(K, dim)
        if K < 2:
            raise InputError("K", "at least 2 for a softmax gate", K, "Entries above 1/1 do not exist; at most K - 1 are kept.")
        self.register_buffer("scale", torch.tensor(check_positive("scale", scale)))
        self.register_buffer("gain", torch.tensor(check_positive("gain", gain)))
        self.fallback, self.straight_through = fallback, straight_through

    @property
    def most(self) -> int:
        """K - 1."""
        return self.K - 1

    def _kept(self, p: Tensor, dim: int) -> Tensor:
        kept = p > 1 / self.K
        if self.fallback:
            kept = kept.scatter(dim, p.argmax(dim, keepdim=True), True)  # the largest is above the threshold if any is
        return kept

    def forward(self, inputs: Tensor) -> Tensor:
        """Gated activations, shaped like the inputs."""
        axis = self.axis(inputs)
        self.check_width(inputs.shape[axis])
        p = (inputs * self.scale).softmax(axis)
        cut = p * self._kept(p.detach(), axis)
        return self.gain * (p + (cut - p).detach() if self.straight_through and p.requires_grad else cut)

    def active(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Values and indices of the units that may be on along the last axis."""
        self.check_width(inputs.shape[-1])
        p = (inputs * self.scale).softmax(-1)
        values, places = p.topk(min(self.most, p.shape[-1]), -1)
        kept = values > 1 / self.K
        if self.fallback:
            kept[..., 0] = True
        return self.gain * values * kept, places

    def extra_repr(self) -> str:
        """What stands in the module's repr."""
        numbers = f"scale={float(self.scale):.3g}, gain={float(self.gain):.3g}"
        return f"{super().extra_repr()}, {numbers}, fallback={self.fallback}, straight_through={self.straight_through}"


def spread_of(width: int) -> float:
    r"""The standard deviation :math:`\sqrt{2 \ln n}` at which the softmax of n independent Gaussian logits condenses."""
    return math.sqrt(2 * math.log(width))
