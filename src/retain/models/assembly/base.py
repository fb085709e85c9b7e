"""What assemblies share: a random graph, k-cap, and weights that a rule may change."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from retain.errors import InputError, check_count, check_share, nearest
from retain.seeds import generator

Ties = Literal["fire", "silent"]
Start = Literal["zeros", "ones", "uniform"]


def kcap(values: Tensor, cap: int | None, ties: Ties = "fire") -> tuple[Tensor, Tensor]:
    r"""ReLU, and of each row only the ``cap`` largest entries: :math:`h_i = \max(a_i, 0)\,\mathbb{1}[i \text{ fired}]`.

    Of equal entries the first fire. Because of the ReLU these ties are common: where fewer than ``cap`` entries are positive, the first of the others
    fire too, at rate 0. That is how the published code breaks the symmetry of a network whose weights are all zero.

    Args:
        values: ``[..., w]``.
        cap: How many fire, from 1 to w; with ``None`` every positive entry does.
        ties: ``silent`` lets no unit of rate 0 fire.

    Returns:
        Rates and a mask of what fired, both ``[..., w]``.

    Example:
        >>> import torch
        >>> from retain.models import kcap
        >>> kcap(torch.tensor([-1.0, -2.0, 3.0]), 2)
        (tensor([0., 0., 3.]), tensor([ True, False,  True]))
    """
    rates = values.relu()
    if cap is None:
        fired = rates > 0
    else:
        # not the indices of topk, which leaves the order of equal entries open
        threshold = rates.detach().topk(cap, dim=-1, sorted=False).values.amin(-1, keepdim=True)
        above, equal = rates > threshold, rates == threshold
        fired = above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= cap - above.sum(-1, keepdim=True, dtype=torch.int32)))
        if ties == "silent":
            fired = fired & (rates > 0)
    return rates * fired, fired


def drive(rates: Tensor, weight: Tensor) -> Tensor:
    """What units send through weights, ``rates @ weight.mT``.

    A single sample's sums are taken row by row: a product of matrices may add up equal rows in different orders, so that rounding decides between units
    (or answers) that tie. Equal rows are common where weights start at zero.

    Args:
        rates: ``[..., B, pre]``.
        weight: ``[..., post, pre]``.

    Returns:
        ``[..., B, post]``.
    """
    return (weight * rates).sum(-1).unsqueeze(-2) if rates.shape[-2] == 1 else rates @ weight.mT


@dataclass
class Activity:
    """What a forward pass did.

    Args:
        logits: ``[..., B, classes]``.
        pre: For every plastic matrix, hidden ones first, the states of its presynaptic units, ``[..., B, w]``, whole numbers from 0.
        post: For every hidden plastic matrix the states of its postsynaptic units, ``[..., B, w]``.
    """

    logits: Tensor
    pre: list[Tensor]
    post: list[Tensor]


class Assembly(nn.Module, ABC):
    """A random graph of ``width`` units a layer, of which ``cap`` fire.

    ``input_weight`` (``[width, inputs]``) is random and fixed, or trained by gradient descent; the matrices of ``hidden`` (``[width, width]``, row =
    postsynaptic) and ``output_weight`` (``[classes, width]``) are plastic. Graph and input weights exist once, drawn by ``seed``; edges are independent
    with probability ``p``, except the output's, which are all there. There are no biases.

    Args:
        inputs: Values an input has.
        classes: Outputs.
        matrices: Hidden plastic matrices.
        width: Units a layer.
        p: Probability of an edge.
        cap: Units that fire, at most ``width``; ``None`` lets every positive unit fire.
        ties: Whether units of rate 0 ``fire`` where too few are positive (as published) or stay ``silent``.
        start: Plastic weights at a reset: ``zeros`` (as published for additive rules), ``ones`` (for multiplicative rules), or ``uniform`` in
            [-0.5, 0.5], the published start of gradient descent.
        seed: Of graph and weights.
        dtype: Of the weights.

    Raises:
        InputError: If a size is out of range, such as a cap above the width.
    """

    input_mask: Tensor

    def __init__(
        self,
        inputs: int,
        classes: int,
        matrices: int,
        *,
        width: int = 100,
        p: float = 0.5,
        cap: int | None = 50,
        ties: Ties = "fire",
        start: Start = "zeros",
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.inputs, self.classes, self.width = check_count("inputs", inputs), check_count("classes", classes), check_count("width", width)
        self.p, self.seed = check_share("p", p), check_count("seed", seed, least=0)
        if cap is not None and check_count("cap", cap) > width:
            raise InputError("cap", f"at most the width, {width}", cap, "Lower the cap, or pass cap=None to let every positive unit fire.")
        for name, value, known in (("ties", ties, get_args(Ties)), ("start", start, get_args(Start))):
            if value not in known:
                raise InputError(name, f"one of {', '.join(known)}", repr(value), nearest(str(value), known))
        self.cap, self.ties, self.start = cap, ties, start
        self.input_weight = nn.Parameter(torch.randn(width, inputs, generator=generator(seed, "initialisation"), dtype=dtype))
        self.register_buffer("input_mask", self._edges("graph", -1, inputs))
        self.hidden = nn.ParameterList(torch.empty(width, width, dtype=dtype) for _ in range(matrices))
        for i in range(matrices):
            self.register_buffer(f"mask{i}", self._edges("graph", i, width))
        self.output_weight = nn.Parameter(torch.empty(classes, width, dtype=dtype))
        self.reset()

    def _edges(self, name: str, index: int, sources: int) -> Tensor:
        return torch.rand(self.width, sources, generator=generator(self.seed, name, index + 1)) < self.p

    @property
    @abstractmethod
    def states(self) -> int:
        """States of a unit that a rule can tell apart."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """``feed-forward`` or ``recurrent``."""

    @property
    def masks(self) -> list[Tensor]:
        """The edges of the hidden plastic matrices, ``[width, width]`` each."""
        return [self.get_buffer(f"mask{i}") for i in range(len(self.hidden))]

    @property
    def plastic(self) -> list[Tensor]:
        """The plastic matrices, the output's last; entries without an edge are 0."""
        return [*(weight * mask for weight, mask in zip(self.hidden, self.masks, strict=True)), self.output_weight]

    def put(self, plastic: Sequence[Tensor]) -> None:
        """Set the plastic matrices, in the order of :attr:`plastic`."""
        with torch.no_grad():
            for own, value in zip([*self.hidden, self.output_weight], plastic, strict=True):
                own.copy_(value)

    def reset(self) -> None:
        """Put the plastic matrices at their start."""
        draws = generator(self.seed, "plastic")
        with torch.no_grad():
            for weight in (*self.hidden, self.output_weight):
                if self.start == "uniform":
                    weight.copy_(torch.rand(weight.shape, generator=draws, dtype=weight.dtype) - 0.5)
                else:
                    weight.fill_(0.0 if self.start == "zeros" else 1.0)

    def current(self, inputs: Tensor) -> Tensor:
        """What the inputs drive the first units with: ``[B, width]`` of inputs ``[B, ...]``.

        Args:
            inputs: One row a sample.

        Returns:
            The currents.

        Raises:
            InputError: If the inputs have another size.
        """
        flat = inputs.flatten(1)
        if flat.shape[1] != self.inputs:
            raise InputError("inputs", f"{self.inputs} values each, as the network has", flat.shape[1])
        weight = (self.input_weight * self.input_mask).T
        if flat.requires_grad or (torch.is_grad_enabled() and weight.requires_grad):
            return flat.to(weight.dtype) @ weight
        rows = max(1, 2**24 // max(self.inputs, self.width))  # a conversion of all at once would double the memory
        return torch.cat([part.to(weight.dtype) @ weight for part in flat.split(rows)])

    @abstractmethod
    def propagate(self, current: Tensor, plastic: Sequence[Tensor]) -> Activity:
        """The pass from the first units' currents to the logits.

        Args:
            current: ``[..., B, width]``.
            plastic: Matrices in the order of :attr:`plastic`, ``[..., post, pre]``; leading axes stand for several networks.

        Returns:
            Logits and states.
        """

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of inputs ``[B, ...]``."""
        return self.propagate(self.current(inputs), self.plastic).logits

    def architecture(self) -> dict[str, str | int | float | None]:
        """What a rule's card says about a network, and what networks that are run together share."""
        return {"kind": self.kind, "matrices": len(self.hidden), "width": self.width, "p": self.p, "cap": self.cap, "states": self.states, "ties": self.ties}

    def extra_repr(self) -> str:
        """What stands in the module's repr."""
        return f"{self.inputs} -> {self.classes}, width={self.width}, p={self.p}, cap={self.cap}, ties={self.ties!r}, start={self.start!r}"


def floor_of_double_softmax(classes: int) -> float:
    r"""The smallest cross-entropy of a softmax that is put through a softmax again: :math:`\ln(1 + (m - 1)/e)` nats.

    Args:
        classes: m.

    Returns:
        The floor in nats.

    Example:
        >>> from retain.models.assembly.base import floor_of_double_softmax
        >>> f"{floor_of_double_softmax(2):.4f} {floor_of_double_softmax(10):.4f}"
        '0.3133 1.4612'
    """
    return math.log1p((classes - 1) / math.e)
