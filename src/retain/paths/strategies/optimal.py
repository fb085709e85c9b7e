"""The step that loses the least information."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from retain.curvature.matrixfree.linear import Linearised
from retain.curvature.matrixfree.solve import conjugate_gradient
from retain.curvature.running import RunningKronecker
from retain.errors import InputError, RetainError, check_count, check_positive, nearest
from retain.paths.bridges import Tangent
from retain.paths.strategies.base import Move, Strategy, Walk
from retain.seeds import generator
from retain.tasks.batch import apply

Solver = Literal["gauss-newton", "kfac", "kfac-cg"]


_SMALLEST, _LARGEST = 1e-8, 1e4  # damping


class Optimal(Strategy):
    r"""Move q, and change the weights so that the least information is lost: the published law, and relaxations of it.

    With velocity r, outputs' derivative T and Jacobian J (see :mod:`retain.paths.bridges`) a step loses
    :math:`\tfrac12 \mathbb{E} \|r\,dq + T J\,d\theta\|^2` nats. The weights that lose least move by

    .. math:: d\theta = -\frac{dq}{q'} F^{-1} \nabla_\theta \mathbb{E} D_{q'}, \qquad F = \mathbb{E}\, J^\top T^\top T J,

    a natural-gradient step of size dq / q' on the divergence from the source, with everything taken at the new q' (a Gauss-Newton step towards
    staying where the path was: at the old q the law divides by 0 at the start). A whole path has :math:`\sum dq / q' \approx \ln(1 / q_0)` units of
    natural-gradient time, however fine the grid: finer steps are not longer training. ``rate`` lifts that limit.

    ``gauss-newton`` solves by conjugate gradients, warm-started, each product an exact one with the batch's F. ``kfac`` takes the running Kronecker
    factors of F for a direction, and then its best multiple under the exact F, or with ``momentum`` the best combination of it and the step before,
    a two-dimensional problem (Martens and Grosse 2015, section 7, https://arxiv.org/abs/1503.05671). ``kfac-cg`` preconditions conjugate gradients
    with the factors. With ``adapt``, damping follows Levenberg and Marquardt: by how much the batch's divergence changed, over how much was
    predicted; a step that raises it is taken back.

    Args:
        solver: ``gauss-newton``, for any module, or ``kfac``, for modules with closed forms.
        rate: A floor for dq / q' that falls to 0 along the path: the step is max(dq / q', rate (1 - progress)). 0 is the law.
        metric: ``path``: at q'. ``target``: at q = 1, which is natural-gradient distillation.
        iterations: Most products of conjugate gradients a step.
        tolerance: Relative residual at which they stop, above 0.
        damping: :math:`\lambda` at the start, of F / q², above 0.
        trust: Largest Fisher length of a step, root mean square over the batch: longer ones are shortened to it. ``None`` is the law.
        momentum: With ``kfac``: combine with the step before.
        decay: With ``kfac``: weight of the past in the factors, in [0, 1).
        refresh: With ``kfac``: take inverses anew once in so many steps.
        adapt: Measure the change, and adapt the damping, once in so many steps; 0 never, which was the best on MNIST.
        batch_size: Samples a step. Curvature and gradient are of the same batch, so small ones are overfitted.

    Raises:
        InputError: If a setting is out of range.
    """

    name = "optimal"
    summary = "natural-gradient step of size dq/q on the divergence from the source: loses the least information"
    citation = "durno2024sufficiency"
    evaluation = True

    def __init__(
        self,
        solver: Solver = "gauss-newton",
        *,
        rate: float = 0.0,
        metric: Literal["path", "target"] = "path",
        iterations: int = 10,
        tolerance: float = 1e-4,
        damping: float = 1e-3,
        momentum: bool = True,
        trust: float | None = None,
        decay: float = 0.95,
        refresh: int = 10,
        adapt: int = 0,
        batch_size: int = 512,
    ) -> None:
        if solver not in get_args(Solver):
            raise InputError("solver", "a solver", repr(solver), nearest(str(solver), get_args(Solver)))
        if metric not in ("path", "target"):
            raise InputError("metric", "'path' or 'target'", repr(metric))
        self.solver, self.metric, self.momentum = solver, metric, momentum
        self.rate = check_positive("rate", rate, zero=True)
        self.iterations, self.tolerance = check_count("iterations", iterations), check_positive("tolerance", tolerance)
        self.damping = check_positive("damping", damping)
        self.trust = None if trust is None else check_positive("trust", trust)
        self.decay, self.refresh, self.adapt = decay, check_count("refresh", refresh), check_count("adapt", adapt, least=0)
        self.batch_size = check_count("batch_size", batch_size)
        self._factors: RunningKronecker | None = None

    @property
    def divides(self) -> bool:  # type: ignore[override]
        """The law does; with ``metric="target"`` nothing is taken at q."""
        return self.metric == "path"

    def begin(self, walk: Walk) -> None:
        """Nothing is known of the curvature."""
        self._damping = self.damping
        self._before: Tensor | None = None
        self._factors = RunningKronecker(walk.target, self.decay, self.refresh) if self.solver != "gauss-newton" else None
        self._noise = generator(walk.seed, "noise")
        if self._factors:
            self._factors.__enter__()

    def end(self, walk: Walk) -> None:
        """Let the factors go."""
        if self._factors:
            self._factors.__exit__(None, None, None)
        self._factors = self._before = None

    def update(self, move: Move) -> dict[str, Any]:
        """One damped natural-gradient step."""
        walk = move.walk
        parameters = list(walk.parameters.values())
        q = move.to if self.metric == "path" else 1.0
        eta = min(1.0, max(move.rate, self.rate * (1 - move.progress)))
        outputs = self._factors.forward(move.batch) if self._factors else move.outputs()
        tangent = walk.bridge.tangent(q, move.source, outputs)
        n, scale = len(outputs), 1 / q**2  # F / q² and its gradient keep their size as q goes to 0
        if self._factors:
            self._observe(tangent, outputs, scale)
        model = Linearised(outputs, parameters, tangent.slope * (scale / n))
        gradient = _finite(model.first)
        solve = self._by_factors if self.solver == "kfac" else self._by_products
        step, change = solve(model, tangent, gradient, scale / n)  # of the weights, and of the outputs by them
        bend = float((change * tangent.metric(change)).sum()) * scale / n
        if self.trust is not None and eta * (bend / scale) ** 0.5 > self.trust:
            eta = self.trust / (bend / scale) ** 0.5
        predicted = float(eta * (gradient @ step) + 0.5 * eta**2 * bend) / scale
        facts: dict[str, Any] = {"rate": eta, "damping": self._damping, "predicted": predicted}
        if move.to > move.start and self.metric == "path":
            facts["kept"] = _kept(tangent, eta * change, move.to - move.start)
        with torch.no_grad():
            _add(parameters, step, eta)
            if self.adapt and move.number % self.adapt == 0:
                facts |= self._judged(move, outputs, parameters, step, eta, predicted, q)
        self._before = step
        return facts

    def _observe(self, tangent: Tangent, outputs: Tensor, scale: float) -> None:
        assert self._factors is not None
        noise = torch.randn(outputs.shape, generator=self._noise, dtype=outputs.dtype).to(outputs.device)
        self._factors.observe(outputs, tangent.pull(noise)[None] * scale**0.5)

    def _by_products(self, model: Linearised, tangent: Tangent, gradient: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        def product(v: Tensor) -> Tensor:
            return model.pull(tangent.metric(model.push(v)) * weight)

        start = None if self._before is None else 0.9 * self._before
        found = conjugate_gradient(
            product,
            -gradient,
            self._damping,
            tolerance=self.tolerance,
            iterations=self.iterations,
            start=start,
            preconditioner=self._precondition if self._factors else None,
            measure=False,
        )
        return found.solution, model.push(found.solution)

    def _by_factors(self, model: Linearised, tangent: Tangent, gradient: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        directions = [-self._precondition(gradient)]
        if self.momentum and self._before is not None:
            directions.append(self._before)
        pushed = [model.push(direction) for direction in directions]
        bent = torch.stack([torch.stack([(a * tangent.metric(b)).sum() * weight for b in pushed]) for a in pushed]).double()
        inner = torch.stack([torch.stack([a @ b for b in directions]) for a in directions]).double()
        slope = torch.stack([gradient @ direction for direction in directions]).double()
        share = -torch.linalg.pinv(_finite(bent + self._damping * inner), rtol=1e-10, hermitian=True) @ slope

        def combined(parts: list[Tensor]) -> Tensor:
            return torch.stack([float(alpha) * part for alpha, part in zip(share, parts, strict=True)]).sum(0)

        return combined(directions), combined(pushed)

    def _precondition(self, gradient: Tensor) -> Tensor:
        assert self._factors is not None
        parameters = self._factors.parameters
        parts = gradient.split([p.numel() for p in parameters.values()])
        named = {name: part.view_as(p) for (name, p), part in zip(parameters.items(), parts, strict=True)}
        solved = self._factors.solve(named, self._damping)
        return torch.cat([solved[name].reshape(-1) for name in parameters])

    def _judged(self, move: Move, outputs: Tensor, parameters: list[Any], step: Tensor, eta: float, predicted: float, q: float) -> dict[str, Any]:
        """Compare the batch's divergence with what was predicted, and adapt the damping."""
        bridge = move.walk.bridge
        before = float(bridge.divergence(q, move.source, outputs.detach()).mean())
        after = float(bridge.divergence(q, move.source, apply(move.walk.target, move.batch)).mean())
        actual = after - before
        ratio = actual / predicted if predicted < 0 else 0.0
        if ratio > 0.75:
            self._damping *= 0.8
        elif ratio < 0.25:
            self._damping *= 1.5
        self._damping = min(max(self._damping, _SMALLEST), _LARGEST)
        taken_back = not actual <= max(0.0, 0.02 * before)
        if taken_back:
            _add(parameters, step, -eta)
            self._damping *= 4
            step.zero_()
        return {"actual": actual, "taken_back": taken_back}


def _kept(tangent: Tangent, change: Tensor, dq: float) -> float:
    """The share of the loss of moving q alone that the step saves, to first order and on its own batch."""
    alone = tangent.velocity * dq
    return 1 - float((alone + tangent.push(change)).square().sum() / alone.square().sum().clamp_min(1e-30))


def _finite(values: Tensor) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise RetainError("The target's answers are no longer finite. Lower the rate, raise the damping, or bound steps with Optimal(trust=0.3).")
    return values


def _add(parameters: list[Any], flat: Tensor, factor: float) -> None:
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.data.add_(part.view_as(p), alpha=factor)
