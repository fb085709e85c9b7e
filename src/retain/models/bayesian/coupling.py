"""Flows of a vector: half of it moves, and the other half says where to."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.errors import InputError, RetainError, check_count, nearest

FlowKind = Literal["coupling", "zuko"]
MakeFlow = Callable[[int], "Flow"]
"""From the number of entries to flows of one's own."""


class Flow(nn.Module, ABC):
    """An invertible map of the last axis, which knows its log-determinant."""

    @abstractmethod
    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Where values ``[..., D]`` go, and the logarithm of the determinant's size of each, ``[...]``."""

    @abstractmethod
    def inverse(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Where values ``[..., D]`` came from, and the log-determinant of the way back, ``[...]``."""


class CouplingFlows(Flow):
    r"""A chain of masked RealNVP steps with gated updates on a vector of D entries.

    With a mask m of zeros and ones, :math:`h = \tanh(f(m \circ z))`, :math:`\mu = g(h)`, :math:`\sigma = \operatorname{sigmoid}(k(h))`, linear f, g and k,

    .. math:: z' = m \circ z + (1 - m) \circ \left(\sigma \circ z + (1 - \sigma) \circ \mu\right), \qquad
       \log\left|\det \frac{\partial z'}{\partial z}\right| = (1 - m)^\top \log \sigma

    Louizos and Welling 2017 (https://arxiv.org/abs/1703.01961), the masked RealNVP of their q(z); couplings are of Dinh et al. 2017
    (https://arxiv.org/abs/1605.08803, eq. 9), the gate of Kingma et al. 2016 (https://arxiv.org/abs/1606.04934, eq. 14). The paper draws a new mask for
    every pass; here each mask is drawn once, half of the entries, and the next step moves the other half: so the chain is one function, and has an inverse.

    Args:
        size: D.
        count: Steps; with 0 nothing moves.
        hidden: Width of h.

    Raises:
        InputError: If a number is too small.

    Example:
        >>> import torch
        >>> flows = CouplingFlows(6, 4)
        >>> z = torch.randn(3, 6)
        >>> moved, logdet = flows(z)
        >>> logdet.shape, bool(torch.allclose(flows.inverse(moved)[0], z, atol=1e-5))
        (torch.Size([3]), True)
    """

    masks: Tensor

    def __init__(self, size: int, count: int = 2, hidden: int = 50) -> None:
        super().__init__()
        self.size, self.count, self.hidden = check_count("size", size), check_count("count", count, least=0), check_count("hidden", hidden)
        masks = torch.zeros(count, size)
        masks[::2, torch.randperm(size)[: size // 2]] = 1
        masks[1::2] = 1 - masks[:1]
        self.register_buffer("masks", masks)
        self.inner = nn.ModuleList(nn.Linear(size, hidden) for _ in range(count))
        self.outer = nn.ModuleList(nn.Linear(hidden, 2 * size) for _ in range(count))
        for layer in self.outer:
            nn.init.constant_(layer.bias[size:], 2.0)  # type: ignore[index]  # gates start nearly open, as in the authors' code

    def _step(self, step: int, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """1 - m, g(h) and k(h)."""
        mask = self.masks[step]
        target, gate = self.outer[step](torch.tanh(self.inner[step](mask * values))).chunk(2, -1)
        return 1 - mask, target, gate

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Flow.forward`."""
        total = values.new_zeros(values.shape[:-1])
        for step in range(self.count):
            free, target, gate = self._step(step, values)
            values = torch.lerp(values, target, free * torch.sigmoid(-gate))
            total = total + (free * F.logsigmoid(gate)).sum(-1)
        return values, total

    def inverse(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Flow.inverse`."""
        total = values.new_zeros(values.shape[:-1])
        for step in reversed(range(self.count)):
            free, target, gate = self._step(step, values)
            values = values + free * torch.exp(-gate) * (values - target)  # 1 / sigma = 1 + exp(-gate)
            total = total - (free * F.logsigmoid(gate)).sum(-1)
        return values, total

    def extra_repr(self) -> str:
        """What stands in the module's repr."""
        return f"{self.size}, count={self.count}, hidden={self.hidden}"


class ZukoFlows(Flow):
    """Flows of the library zuko (https://zuko.readthedocs.io), which ``pip install retain[flows]`` brings.

    Args:
        size: Entries of a vector.
        count: Transformations.
        hidden: Width of the networks inside.
        kind: A class of ``zuko.flows`` that takes ``transforms`` and ``hidden_features``: ``NICE`` (affine couplings), ``MAF``, ``NSF`` and others.
        **options: More for that class, such as ``passes=2``, which makes couplings of autoregressive flows.

    Raises:
        InputError: If a number is below 1, or zuko has no such flow.

    Example:
        >>> import torch
        >>> moved, logdet = ZukoFlows(6, 2, kind="NSF", passes=2)(torch.randn(3, 6))
        >>> moved.shape, logdet.shape
        (torch.Size([3, 6]), torch.Size([3]))
    """

    def __init__(self, size: int, count: int = 2, hidden: int = 50, kind: str = "NICE", **options: Any) -> None:
        super().__init__()
        sizes = {"features": check_count("size", size), "transforms": check_count("count", count)}
        flows = _zuko()
        known = [name for name, value in vars(flows).items() if isinstance(value, type) and value is not flows.Flow and issubclass(value, flows.Flow)]
        if kind not in known:
            raise InputError("kind", "a flow of zuko.flows", repr(kind), nearest(str(kind), known))
        self.transform = getattr(flows, kind)(**sizes, hidden_features=(check_count("hidden", hidden),), **options).transform

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Flow.forward`."""
        moved, logdet = self.transform().call_and_ladj(values)
        return moved, logdet

    def inverse(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Flow.inverse`."""
        moved, logdet = self.transform().inv.call_and_ladj(values)
        return moved, logdet


def make_flow(flow: FlowKind | MakeFlow, size: int, count: int) -> Flow:
    """Flows of vectors with ``size`` entries: ``count`` steps of a kind, or what a function makes."""
    if callable(flow):
        made = flow(size)
        if not isinstance(made, Flow):
            raise InputError("flow", "a function that returns a Flow, such as lambda size: CouplingFlows(size, 4)", type(made).__name__)
        return made
    if flow not in get_args(FlowKind):
        raise InputError("flow", f"one of {', '.join(get_args(FlowKind))}, or a function", repr(flow), nearest(str(flow), get_args(FlowKind)))
    return CouplingFlows(size, count) if flow == "coupling" else ZukoFlows(size, count)


def _zuko() -> Any:
    try:
        return importlib.import_module("zuko.flows")
    except ImportError as error:
        raise RetainError("flow='zuko' needs the package zuko, which is not installed. Run pip install retain[flows], or use flow='coupling'.") from error
