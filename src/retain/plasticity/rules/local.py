"""A rule of eight coefficients, made of what is known at the two ends of a synapse."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from retain.errors import InputError, check_positive, nearest
from retain.models.assembly import Assembly, FeedForwardAssembly
from retain.plasticity.rules.base import Rule
from retain.seeds import generator

Feedback = Literal["none", "random", "transport"]
When = Literal["always", "mistakes"]
START = {"error": 0.1, "label": 0.0, "decay": 0.0, "feedback": 0.1, "hebb": 0.0, "oja": 0.0, "exponent": 0.0, "horizon": 1000.0}
"""The eight coefficients before any learning: a delta rule at the output, feedback at the inputs, both at a tenth and steady, and nothing else."""
FINE = 1e-4
"""Genes are about linear in a coefficient below this size, and logarithmic above."""


class LocalRule(Rule):
    r"""Eight coefficients change the output and the input weights of a network with one layer, in units that carry over to any size.

    With :math:`h = \mathrm{cap}(W_{in} x)`, :math:`p = \mathrm{softmax}(W_{out} h)`, the label's indicator :math:`y`, the error :math:`e = y - p`, and the
    rates of the n units that fired relative to their root mean square, :math:`\hat h_i = h_i \sqrt{n} / |h|`, after sample :math:`t = 0, 1, \dots`:

    .. math::
        \Delta W^{out}_{ri} &= \eta_t \left[(c_{error}\, e_r + c_{label}\, y_r)\, h_i / |h|^2 - c_{decay}\, \hat h_i^2\, W^{out}_{ri}\right] \\
        \Delta W^{in}_{jk} &= \eta_t\, \mathrm{fired}_j
            \left[c_{feedback}\, f_j\, x_k / |x| + c_{hebb}\, h_j\, x_k / |x|^2 - c_{oja}\, \hat h_j^2\, W^{in}_{jk}\right] \\
        \eta_t &= (1 + t / c_{horizon})^{-c_{exponent}}

    Every term is a product of what is known before the synapse, behind it, and its own weight; :math:`|x|`, :math:`|h|`, n and the softmax's sum are one number
    for a whole layer (divisive normalisation). A term in p would be none of its own, since :math:`p = y - e`. Scaling the inputs, other numbers of inputs,
    units or classes leave the coefficients' meaning as it is, as long as input weights start with variance 1. The feedback f says how local the rule is:

    * ``random``: :math:`f = B e`, B standard normal, fixed, drawn by the network's seed: feedback alignment (Lillicrap et al. 2016), direct as in Nøkland 2016.
      Strictly local.
    * ``transport``: :math:`f \propto W_{out}^\top e`, scaled to :math:`|f|^2 = n |e|^2` over the units that fired, the mean of the random one. This is the
      direction of the gradient and **not** local: a synapse would have to know the weights of others.
    * ``none``: the input weights stay as they are, and the currents of all samples are computed at once.

    The decays are those of Oja (1982), in relative rates. Nothing is clipped: weights of a rule that diverges become infinite, and
    :func:`~retain.learn_online` says when. Rules of few local terms with learned coefficients: Jordan et al. 2021; Confavreux et al. 2020; Shervani-Tabar and
    Rosenbaum 2023. As a network's ``reset`` leaves input weights alone, build the network anew for every run.

    Args:
        feedback: ``random``, ``transport`` or ``none``.
        when: Change weights ``always`` or on ``mistakes`` only.
        average: Answer with the mean of the weights after each sample instead of the last.
        coefficients: Any of ``error``, ``label``, ``decay``, ``feedback``, ``hebb``, ``oja``, ``exponent`` and ``horizon``; the others are those of a start
            without learning, 0.1 for ``error`` and ``feedback``, a steady rate, and no other term.

    Raises:
        InputError: If a setting or a coefficient is not known, or out of range.

    Example:
        >>> from retain.plasticity import LocalRule
        >>> rule = LocalRule("random", coefficients={"oja": 1e-4})
        >>> rule.description(), rule.coefficients()["oja"]
        ('local, random feedback', 0.0001)
    """

    family = "local"

    def __init__(self, feedback: Feedback = "random", *, when: When = "always", average: bool = False, coefficients: Mapping[str, float] | None = None) -> None:
        super().__init__()
        for name, given, choices in (("feedback", feedback, get_args(Feedback)), ("when", when, get_args(When))):
            if given not in choices:
                raise InputError(name, f"one of {', '.join(choices)}", repr(given), nearest(str(given), choices))
        self.feedback, self.when, self.average = feedback, when, bool(average)
        values = dict(START)
        for name, value in (coefficients or {}).items():
            if name not in START:
                raise InputError("coefficients", f"some of {', '.join(START)}", repr(name), nearest(str(name), START))
            if not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise InputError(f"coefficient '{name}'", "a finite number", value)
            values[name] = float(value)
        check_positive("coefficient 'horizon'", values["horizon"])
        self.values = nn.Parameter(torch.tensor(list(values.values()), dtype=torch.float64), requires_grad=False)

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, without the coefficients."""
        return {"feedback": self.feedback, "when": self.when, "average": self.average}

    def coefficients(self) -> dict[str, float]:
        """The coefficients by name."""
        return dict(zip(START, self.values.tolist(), strict=True))

    def genes(self) -> list[float]:
        """The coefficients on the scale that evolution varies them on: the inverse hyperbolic sine of c / 0.0001, 4 exponents, the horizon's logarithm."""
        *terms, exponent, horizon = self.values.tolist()
        return [*(math.asinh(value / FINE) for value in terms), 4 * exponent, math.log(horizon)]

    def express(self, genes: Sequence[float]) -> None:
        """Set the coefficients from their genes."""
        *terms, exponent, horizon = genes
        with torch.no_grad():
            self.values.copy_(torch.tensor([*(FINE * math.sinh(gene) for gene in terms), exponent / 4, math.exp(horizon)], dtype=torch.float64))

    def check(self, net: Assembly) -> None:
        """Raise if the rule can't be used in this network.

        Raises:
            InputError: With the reason and the alternative.
        """
        if not isinstance(net, FeedForwardAssembly):
            raise InputError("net", "a feed-forward network of one layer for a local rule", f"a {net.kind} one", "Pass FeedForwardAssembly(..., layers=1).")
        if net.layers != 1:
            hint = "Pass FeedForwardAssembly(..., layers=1), whose input weights this rule can learn, or use a TableRule."
            raise InputError("layers", "1 for a local rule, which has terms for input and output weights only", net.layers, hint)

    def drawn_feedback(self, net: Assembly) -> Tensor:
        """B, ``[classes, width]``, standard normal, drawn by the network's seed."""
        weight = net.output_weight
        return torch.randn(weight.shape, generator=generator(net.seed, "feedback"), dtype=torch.float64).to(weight.device, weight.dtype)

    def description(self) -> str:
        """One line for tables and cards."""
        words = ["local", "input weights fixed" if self.feedback == "none" else f"{self.feedback} feedback", "on mistakes" * (self.when == "mistakes")]
        return ", ".join(filter(None, [*words, "averaged" * self.average]))
