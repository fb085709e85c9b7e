"""A linear layer with uncertain weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.models.bayesian.base import BayesianLayer
from retain.models.bayesian.local import LocalLinear


class BayesianLinear(BayesianLayer):
    r""":math:`y = x W^\top + b` with Gaussian W and b; see :class:`BayesianLayer`.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        bias: Whether there is a b.
        **settings: ``logvar``, ``prior``, ``estimator`` and ``num_flows``, as for :class:`BayesianLayer`.

    Example:
        >>> import torch
        >>> from retain.models import BayesianLinear
        >>> BayesianLinear(4, 3, logvar=-4)(torch.rand(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **settings: Any) -> None:
        source = nn.Linear(in_features, out_features, bias)
        super().__init__(source, **settings)
        self.configure(source)

    def configure(self, source: nn.Linear) -> None:
        """Its sizes."""
        self.in_features, self.out_features = source.in_features, source.out_features

    def map(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``inputs @ weight.T + bias``."""
        return F.linear(inputs, weight, bias)

    def _local(self, inputs: Tensor) -> Tensor:
        if torch.is_autocast_enabled(inputs.device.type) or torch._C._are_functorch_transforms_active():
            return super()._local(inputs)  # composed operations know what to do there
        (mean, logvar), (bias, bias_logvar) = self.posterior["weight"], self.posterior.get("bias", (None, None))
        variances = self._variance("weight"), None if bias is None else self._variance("bias")
        outputs: Tensor = LocalLinear.apply(inputs if inputs.ndim == 2 else inputs.reshape(-1, inputs.shape[-1]), mean, logvar, bias, bias_logvar, *variances)
        return outputs if inputs.ndim == 2 else outputs.view(*inputs.shape[:-1], outputs.shape[-1])

    def extra_repr(self) -> str:
        """What stands in the module's repr."""
        return f"in_features={self.in_features}, out_features={self.out_features}, estimator={self.estimator}"
