r"""Curves from one model's answers to another's, and their tangents.

For one input let :math:`p_d` be the source's answer, :math:`z` the target's outputs, and :math:`p_q` a point of the bridge. Moving q and the target's weights
together moves :math:`p_q`; in coordinates in which the Fisher metric is the identity,

.. math:: d\psi = r\,dq + T J\,d\theta,

with the velocity r of the bridge at fixed weights, T the derivative by the outputs and J the model's Jacobian. The information lost in the step is
:math:`\tfrac12 \mathbb{E} \|d\psi\|^2` nats, so the step that loses least solves a least-squares problem. On all three bridges

.. math:: q\,T^\top r = \nabla_z D_q,

so that step is a natural-gradient step of size dq / q on a divergence :math:`D_q` from the source, written at each bridge.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.errors import InputError, nearest
from retain.likelihoods import Gaussian, Likelihood
from retain.models.mixture import mix
from retain.paths.families import Family, Normal, Softmax, angle, family_of

_HIGHEST = 40.0  # exponents are cut here, where a probability has underflown anyway


@dataclass(frozen=True)
class Tangent:
    """How a point of a bridge moves, sample by sample, in coordinates in which the Fisher metric is the identity.

    Args:
        velocity: r, per unit of q, ``[B, C]``.
        slope: Gradient of the divergence from the source by the outputs, q T' r, ``[B, C]``.
        push: T: a change of the outputs ``[B, C]`` to a change of the point.
        pull: T': the transpose.
    """

    velocity: Tensor
    slope: Tensor
    push: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor], Tensor]

    def metric(self, u: Tensor) -> Tensor:
        """The Fisher information of the point about the outputs, times a vector: T' T u."""
        return self.pull(self.push(u))


class Bridge(ABC):
    """A curve from the source's answer at q = 0 to the target's at q = 1."""

    name: ClassVar[str]
    family: Family

    @abstractmethod
    def at(self, q: float, source: Tensor, outputs: Tensor) -> Tensor:
        """The point, in the family's coordinates, from the source's answer and the target's outputs."""

    @abstractmethod
    def divergence(self, q: float, source: Tensor, outputs: Tensor) -> Tensor:
        """How far the point is from the source, in nats, ``[B]``; the optimal step is a natural-gradient step on its mean."""

    @abstractmethod
    def tangent(self, q: float, source: Tensor, outputs: Tensor) -> Tangent:
        """How the point moves; the outputs are taken as they are, without a graph."""


class MixtureBridge(Bridge):
    r"""The mixture :math:`p_q = (1 - q)\,p_d + q\,p_s`: the published one, and the default.

    :math:`D_q = \mathrm{KL}(p_d \| p_q)`, the skew divergence of Lee (1999) and of DistiLLM (Ko et al. 2024, https://arxiv.org/abs/2402.03898). At q = 1 it is
    distillation; as q goes to 0 it is :math:`\tfrac{q^2}{2} \chi^2(p_s \| p_d)`, which the classes that the source excludes dominate: start above
    0, and use damping. It is bounded by :math:`\log \tfrac{1}{1 - q}`, so plain gradient descent on it stalls on examples that are badly wrong.

    Example:
        >>> import torch
        >>> d, z = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[2.0, 0.0]])
        >>> MixtureBridge().at(0.5, d, z).exp()
        tensor([[0.6904, 0.3096]])
    """

    name = "mixture"

    def __init__(self) -> None:
        self.family: Family = Softmax()

    def at(self, q: float, source: Tensor, outputs: Tensor) -> Tensor:
        """Log-probabilities of the mixture."""
        return mix(q, source, F.log_softmax(outputs, 1))

    def divergence(self, q: float, source: Tensor, outputs: Tensor) -> Tensor:
        """KL(p_d || p_q)."""
        return self.family.kl(source, self.at(q, source, outputs))

    def tangent(self, q: float, source: Tensor, outputs: Tensor) -> Tangent:
        """In coordinates dp / sqrt(p_q)."""
        logs = F.log_softmax(outputs.detach(), 1)
        point = mix(q, source, logs)
        p = logs.exp()
        # the target's share of every probability, q p_s / p_q, in [0, 1]; all terms are written in it, so none overflows
        share = torch.zeros_like(p) if q == 0 else (logs - point + math.log(q)).exp()
        weight = share * (point / 2).exp()
        weighed = share * source.exp()
        velocity = (logs - point / 2).clamp_max(_HIGHEST).exp() - (source - point / 2).clamp_max(_HIGHEST).exp()

        def push(u: Tensor) -> Tensor:
            return weight * (u - (p * u).sum(-1, keepdim=True))

        def pull(w: Tensor) -> Tensor:
            x = weight * w
            return x - p * x.sum(-1, keepdim=True)

        return Tangent(velocity, p * weighed.sum(1, keepdim=True) - weighed, push, pull)


class ExponentialBridge(Bridge):
    r"""The geometric mixture :math:`p_q \propto p_d^{1-q} p_s^{q}`: logits are interpolated (the bridge of TAID, https://arxiv.org/abs/2501.16937).

    :math:`D_q = \mathrm{KL}(p_q \| p_d)`, whose metric has no 1 / p_d in it: well conditioned as q goes to 0. At q = 1 it is reverse distillation.

    Example:
        >>> import torch
        >>> d, z = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[2.0, 0.0]])
        >>> ExponentialBridge().at(0.5, d, z).exp()
        tensor([[0.7311, 0.2689]])
    """

    name = "exponential"

    def __init__(self) -> None:
        self.family: Family = Softmax()

    def at(self, q: float, source: Tensor, outputs: Tensor) -> Tensor:
        """Log-probabilities of the geometric mixture."""
        return F.log_softmax((1 - q) * source + q * F.log_softmax(outputs, 1), 1)

    def divergence(self, q: float, source: Tensor, outputs: Tensor) -> Tensor:
        """KL(p_q || p_d)."""
        return self.family.kl(self.at(q, source, outputs), source)

    def tangent(self, q: float, source: Tensor, outputs: Tensor) -> Tangent:
        """In coordinates sqrt(p_q) dlog p."""
        logs = F.log_softmax(outputs.detach(), 1)
        p = self.at(q, source, outputs.detach()).exp()
        root, away = p.sqrt(), logs - source
        centred = away - (p * away).sum(1, keepdim=True)

        def push(u: Tensor) -> Tensor:
            return q * root * (u - (p * u).sum(-1, keepdim=True))

        def pull(w: Tensor) -> Tensor:
            x = root * w
            return q * (x - p * x.sum(-1, keepdim=True))

        return Tangent(root * centred, q**2 * p * centred, push, pull)


class GreatCircleBridge(Bridge):
    r"""The shortest curve: :math:`\sqrt{p_q} = \frac{\sin((1-q)\Omega) \sqrt{p_d} + \sin(q\Omega) \sqrt{p_s}}{\sin \Omega}`,
    :math:`\cos\Omega = \sum \sqrt{p_d p_s}`.

    :math:`D_q = \tfrac12 (2 q \Omega)^2`, half the squared Fisher-Rao distance from the source.

    Example:
        >>> import torch
        >>> d, z = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[2.0, 0.0]])
        >>> GreatCircleBridge().at(0.5, d, z).exp()
        tensor([[0.7097, 0.2903]])
    """

    name = "great-circle"

    def __init__(self) -> None:
        self.family: Family = Softmax()

    def _ends(self, source: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = (source / 2).exp(), (F.log_softmax(outputs, 1) / 2).exp()
        return a, b, angle(a, b).clamp_min(1e-4)[:, None]  # nearer than this the curve is straight

    def at(self, q: float, source: Tensor, outputs: Tensor) -> Tensor:
        """Log-probabilities of the point."""
        a, b, omega = self._ends(source, outputs)
        root = (((1 - q) * omega).sin() * a + (q * omega).sin() * b) / omega.sin()
        return F.log_softmax(2 * root.clamp_min(torch.finfo(root.dtype).tiny).log(), 1)

    def divergence(self, q: float, source: Tensor, outputs: Tensor) -> Tensor:
        """Half the squared Fisher-Rao distance from the source to the point."""
        a, b, _ = self._ends(source, outputs)
        return 2 * (q * angle(a, b)).square()

    def tangent(self, q: float, source: Tensor, outputs: Tensor) -> Tangent:
        """In coordinates 2 dsqrt(p)."""
        a, b, omega = self._ends(source, outputs.detach())
        sin = omega.sin()
        along, back = (q * omega), ((1 - q) * omega)
        velocity = 2 * omega * (along.cos() * b - back.cos() * a) / sin
        point = (back.sin() * a + along.sin() * b) / sin
        # how the point moves when the angle does, with both ends held
        turn = ((1 - q) * back.cos() * a + q * along.cos() * b - point * omega.cos()) / sin
        reach, p = along.sin() / sin, b.square()

        def push(u: Tensor) -> Tensor:
            change = b * (u - (p * u).sum(-1, keepdim=True))  # 2 d sqrt(p_s)
            return reach * change - turn * (a * change).sum(-1, keepdim=True) / sin

        def pull(w: Tensor) -> Tensor:
            x = b * (reach * w - a * (turn * w).sum(-1, keepdim=True) / sin)
            return x - p * x.sum(-1, keepdim=True)

        slope = -2 * q**2 * omega / sin * (a * b - p * (a * b).sum(1, keepdim=True))
        return Tangent(velocity, slope, push, pull)


class MeanBridge(Bridge):
    r"""Regression: :math:`\mathcal{N}(\mu_q, \sigma^2)` with :math:`\mu_q = (1 - q)\,\mu_d + q\,\mu_s`, the exponential bridge of normal distributions.

    :math:`D_q = \tfrac{q^2}{2 \sigma^2} \|\mu_s - \mu_d\|^2`.

    Args:
        sigma: The noise's standard deviation.
    """

    name = "exponential"

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma
        self.family: Family = Normal(sigma)

    def at(self, q: float, source: Tensor, outputs: Tensor) -> Tensor:
        """The mean."""
        return (1 - q) * source + q * outputs

    def divergence(self, q: float, source: Tensor, outputs: Tensor) -> Tensor:
        """KL, which is symmetric here."""
        return self.family.kl(self.at(q, source, outputs), source)

    def tangent(self, q: float, source: Tensor, outputs: Tensor) -> Tangent:
        """In units of sigma."""
        away, scale = outputs.detach() - source, q / self.sigma
        return Tangent(away / self.sigma, away * scale**2, lambda u: u * scale, lambda w: w * scale)


BRIDGES: dict[str, Callable[[], Bridge]] = {kind.name: kind for kind in (MixtureBridge, ExponentialBridge, GreatCircleBridge)}


def bridge_for(bridge: str | Bridge, likelihood: Likelihood) -> Bridge:
    """The bridge meant by a name.

    Args:
        bridge: ``mixture``, ``exponential`` or ``great-circle``, or a bridge.
        likelihood: The task's.

    Returns:
        The bridge.

    Raises:
        InputError: If there is none of this name, or it does not exist for this likelihood.
    """
    family = family_of(likelihood)
    if isinstance(likelihood, Gaussian):
        if bridge not in ("exponential", "mixture") and not isinstance(bridge, MeanBridge):
            raise InputError("bridge", "'exponential' for regression", repr(bridge))
        if bridge == "mixture":
            hint = "A mixture of two normal distributions is not one. Pass bridge='exponential', which interpolates the means."
            raise InputError("bridge", "'exponential' for regression", "'mixture'", hint)
        bridge = bridge if isinstance(bridge, Bridge) else MeanBridge(likelihood.sigma)
    if isinstance(bridge, Bridge):
        if vars(bridge.family) != vars(family) or type(bridge.family) is not type(family):
            raise InputError("bridge", f"one for {likelihood!r}", type(bridge).__name__)
        return bridge
    if bridge not in BRIDGES:
        raise InputError("bridge", "a bridge or its name", repr(bridge), nearest(str(bridge), BRIDGES))
    return BRIDGES[bridge]()
