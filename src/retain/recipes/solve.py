"""Solving for a head: what a linear layer on fixed features has best."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retain.tasks import Task

PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5)
_STEPS = 300


def solve_head(head: nn.Linear, task: Task, penalty: float | None = None) -> dict[str, Any]:
    r"""Fit a linear layer to features: :math:`\min_{W, b} \overline{nll}(Wx + b) + \frac{\lambda s}{2} \|W\|_F^2`, which is convex.

    s is the mean of :math:`\|x - \bar x\|^2`, so that :math:`\lambda` means the same whatever the features' scale. Minimised to the end in float64 by L-BFGS
    (Liu and Nocedal 1989, "On the limited memory BFGS method for large scale optimization") on centred features: no learning rate, no epochs.

    Args:
        head: The layer, filled in place.
        task: Features ``[N, d]`` and labels, as :func:`~retain.models.features` gives them.
        penalty: :math:`\lambda`; ``None`` tries 0.01, 0.001, 0.0001 and 0.00001 and keeps the one with the best held-out likelihood, or takes 0.001 where
            nothing is held out.

    Returns:
        The penalty, the mean training likelihood in nats, and the training accuracy.

    Example:
        >>> from torch import nn
        >>> from retain import models, tasks
        >>> from retain.recipes import solve_head
        >>> known = models.features(models.MLP(64, 128, 10, seed=0), tasks.digits())
        >>> solve_head(nn.Linear(128, 10), known, penalty=1e-4)["score"] > 0.98
        True
    """
    inputs, targets = _all(task, "data")
    centre = inputs.mean(0)
    inputs = inputs - centre
    scale = float(inputs.square().sum(1).mean()) or 1.0
    weight = torch.zeros(head.out_features, head.in_features, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(head.out_features, dtype=torch.float64, requires_grad=head.bias is not None)
    held = None if task.validation is None or penalty is not None else _all(task, "validation")
    tried = [] if penalty is not None else list(PENALTIES) if held is not None else [1e-3]
    best: dict[str, Any] = {}
    for strength in tried or [float(penalty or 0.0)]:
        nll = _fit(weight, bias, inputs, targets, strength * scale, task)
        with torch.no_grad():
            aside = nll if held is None else float(task.likelihood.mean_nll(torch.addmm(bias, held[0] - centre, weight.T), held[1]))
            if not best or aside < best["aside"]:
                score = task.likelihood.score(task.likelihood.tally(torch.addmm(bias, inputs, weight.T), targets))
                best = {"penalty": strength, "loss": nll, "score": score, "aside": aside, "weight": weight.detach().clone(), "bias": bias.detach().clone()}
    with torch.no_grad():
        head.weight.copy_(best["weight"])
        if head.bias is not None:
            head.bias.copy_(best["bias"] - best["weight"] @ centre)
    return {key: best[key] for key in ("penalty", "loss", "score")}


def _fit(weight: Tensor, bias: Tensor, inputs: Tensor, targets: Tensor, penalty: float, task: Task) -> float:
    free = [part for part in (weight, bias) if part.requires_grad]
    solver = torch.optim.LBFGS(free, max_iter=_STEPS, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def nll() -> Tensor:
        return task.likelihood.mean_nll(torch.addmm(bias, inputs, weight.T), targets)

    def closure() -> float:
        solver.zero_grad()
        total = nll() + penalty / 2 * weight.square().sum()
        total.backward()
        return float(total.detach())

    solver.step(closure)
    return float(nll().detach())


def _all(task: Any, part: str) -> tuple[Tensor, Tensor]:
    pairs = [(inputs.detach().cpu().double(), targets.cpu()) for inputs, targets in getattr(task, part).batches(4096)]
    return torch.cat([inputs for inputs, _ in pairs]), torch.cat([targets for _, targets in pairs])
