"""Closed forms for per-sample gradients, a kind of layer a file.

To add one: a function from a layer, its positional inputs and its output to :class:`Found`, and a line in ``RULES``. A rule is only
believed after it gave autograd's own gradients on the first samples (``probe.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from retain.curvature.rules import attention, convolution, embedding, linear, normalisation, recurrent
from retain.curvature.rules.base import Found, Part, Site


class Rule(NamedTuple):
    """How a module's sites are found: the names of its positional arguments, and the function."""

    sites: Callable[[nn.Module, tuple[Any, ...], Any], Found]
    arguments: tuple[str, ...] = ("input",)


_RECURRENT = Rule(recurrent.sites, ("input", "hx"))
# by exact type: a subclass may compute something else
RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: Rule(linear.sites),
    nn.modules.linear.NonDynamicallyQuantizableLinear: Rule(linear.sites),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), Rule(convolution.sites)),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), Rule(convolution.sites, ("input", "output_size"))),
    **dict.fromkeys((nn.LayerNorm, nn.RMSNorm), Rule(normalisation.sites, ("input",))),
    **dict.fromkeys((nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), Rule(normalisation.sites)),
    nn.Embedding: Rule(embedding.sites),
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), _RECURRENT),
    nn.MultiheadAttention: Rule(attention.sites, attention.ARGUMENTS),
}

__all__ = ["RULES", "Found", "Part", "Rule", "Site"]
