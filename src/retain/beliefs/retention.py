"""How much to keep: the retention law."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from retain.beliefs.belief import Belief
from retain.errors import InputError, check_positive


class Retention(NamedTuple):
    """What the law found for a model or a layer."""

    strength: float
    """How much the old samples should weigh; times the belief's n it is a number of samples."""
    effective: float
    r"""Directions that the old samples have decided, :math:`p_\text{eff}`."""
    distance: float
    r"""Squared distance of the two fits per sample, :math:`d^\top P d`, or :math:`\|d\|^2` in the published form."""
    drift: float
    """What of it is not noise, at least 0."""


@dataclass(frozen=True)
class RetentionLaw:
    r"""The strength at which a compromise between old and new weights errs least, given how far the tasks are apart.

    With :math:`\hat\theta_A` from :math:`n_A` and :math:`\hat\theta_B` from :math:`n_B` samples, each fitted freely, the pull of strength s
    leads to their mean with weights :math:`s n_A : n_B`. Errors measured in the Fisher's metric, :math:`v_A = p_\text{eff} / n_A`,
    :math:`v_B = p_\text{eff} / n_B` and the drift :math:`D^2 = \max(0, d^\top P d - v_A - v_B)`, of which a share :math:`\rho` of the interest is in
    the old task, are least at

    .. math:: s = \frac{n_B}{n_A} \cdot \frac{v_B + \rho D^2}{v_A + (1 - \rho) D^2}.

    With :math:`\rho = 0` only the new task counts and s never exceeds 1; with :math:`\rho = n_A / (n_A + n_B)` it is 1. With
    ``form="published"`` it is the law of W. E. Durno, Sufficiency and Efficiency in Deep RL (2024), Euclidean and without the noise of the
    estimates: :math:`\lambda = \operatorname{tr}(P^{-1}) / (2 \|d\|^2)` samples, at most :math:`n_A + n_B`. That takes the old weights as exact and is
    infinite where a weight has no Fisher, so the belief's prior is in the inverse.

    Args:
        by: One strength for the ``model``, or one a ``layer``. A strength for each weight is worse: it follows the noise.
        share: :math:`\rho`, between 0 and 1: how much the old task matters.
        form: ``corrected`` or ``published``.
        anchor: Whether the old weights are ``estimated`` from the old samples or ``exact``.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> import torch
        >>> from retain.beliefs import Belief, Diagonal
        >>> old = Belief({"w": torch.zeros(20)}, Diagonal({"w": torch.ones(20)}), n=200, prior=1e-9)
        >>> new = {"w": torch.full((20,), 0.55**0.5 / 20**0.5)}  # a drift of 0.05 and the noise of both fits
        >>> found = RetentionLaw()(old, new, n=50)["model"]
        >>> s = found.strength
        >>> round(50 / (50 + s * 200), 4)  # the weight of the new fit
        0.2727
    """

    by: Literal["model", "layer"] = "model"
    share: float = 0.0
    form: Literal["corrected", "published"] = "corrected"
    anchor: Literal["estimated", "exact"] = "estimated"

    def __post_init__(self) -> None:
        for name, options in (("by", ("model", "layer")), ("form", ("corrected", "published")), ("anchor", ("estimated", "exact"))):
            if getattr(self, name) not in options:
                raise InputError(name, " or ".join(map(repr, options)), repr(getattr(self, name)))
        if not 0 <= self.share <= 1:
            raise InputError("share", "a number between 0 and 1", self.share)
        if self.form == "published" and self.share:
            raise InputError("share", "0 with form='published', which serves the new task alone", self.share)

    def __call__(self, belief: Belief, theta: Mapping[str, Tensor], n: float) -> dict[str, Retention]:
        """The strengths.

        Args:
            belief: What the old samples taught.
            theta: Weights fitted to the new samples without any pull.
            n: The new samples.

        Returns:
            What was found, by layer, or under ``model``.

        Raises:
            InputError: If n is not above 0 or the belief rests on no samples.
        """
        check_positive("n", n)
        check_positive("the belief's n", belief.n)
        groups: dict[str, list[str]] = {}
        for name in belief.precision.names:
            groups.setdefault(layer_of(name) if self.by == "layer" else "model", []).append(name)
        variance = belief.variance()
        away = {name: theta[name].detach() - belief.centre[name] for name in belief.precision.names}
        return {group: self._one(belief, names, variance, away, n) for group, names in groups.items()}

    def _one(self, belief: Belief, names: list[str], variance: Mapping[str, Tensor], away: Mapping[str, Tensor], n: float) -> Retention:
        old = belief.n
        spread = sum(float(variance[name].double().sum()) for name in names)  # of the old weights, tr (nP + prior)^-1
        effective = sum(variance[name].numel() for name in names) - belief.prior * spread
        if self.form == "published":
            distance = sum(float(away[name].double().square().sum()) for name in names)
            samples = old * spread / (2 * distance) if distance else old + n
            return Retention(min(samples, old + n) / old, effective, distance, distance)
        here = {name: value if name in names else torch.zeros_like(value) for name, value in away.items()}
        distance = belief.precision.quadratic(here)
        a, b = 0.0 if self.anchor == "exact" else effective / old, effective / n
        drift = max(0.0, distance - a - b)
        below = a + (1 - self.share) * drift
        strength = n / old * (b + self.share * drift) / below if below > 0 else (old + n) / old
        return Retention(strength, effective, distance, drift)


def layer_of(name: str) -> str:
    """The module that a parameter belongs to: its name without the last part."""
    return name.rpartition(".")[0] or name
