r"""A target function and related ones, points of them, and two ways to learn one: gradient descent, and ridge regression in closed form.

The functions are sums of ReLU features of random directions. The target is one function; a source shares none, some or all of its directions, and has
coefficients of its own. A function has variance 1, so that a mean squared error is a share of the variance, 1 - R^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retain.models import MLP, copy
from retain.seeds import generator
from retain.training.optimizers import factor

FEATURES = 10  # of a function
BATCH = 100  # points a step, at most
Points = tuple[Tensor, Tensor]  # inputs [N, d], values [N, 1]


@dataclass(frozen=True)
class Function:
    r"""A sum of ReLU features, :math:`(\sum_j a_j \max(w_j^\top x, 0) - \mu) / \sigma`.

    Args:
        directions: ``[m, d]``, of norm 1.
        coefficients: ``[m]``.
        mean: Of the sum.
        deviation: Of the sum.
    """

    directions: Tensor
    coefficients: Tensor
    mean: float = 0.0
    deviation: float = 1.0

    def __call__(self, inputs: Tensor) -> Tensor:
        """Values ``[N, 1]`` of inputs ``[N, d]``."""
        found: Tensor = (inputs @ self.directions.T).relu() @ self.coefficients
        return ((found - self.mean) / self.deviation)[:, None]

    def standardised(self, seed: int) -> Function:
        """The function with mean 0 and variance 1 on 20,000 normal inputs."""
        values = self(torch.randn(20_000, self.directions.shape[1], generator=generator(seed, "standardise")))
        return Function(self.directions, self.coefficients, float(values.mean()), float(values.std()))


def functions(dim: int, share: float, seed: int) -> tuple[Function, Function]:
    """A target, which does not depend on the share, and a source that has a share of its directions; coefficients are signs, drawn for each.

    Args:
        dim: d.
        share: Share of the directions in common, rounded to whole features.
        seed: Of both.

    Returns:
        Target and source.
    """
    made = []
    for name in ("target", "source"):
        draws = generator(seed, name)
        directions = torch.randn(FEATURES, dim, generator=draws)
        signs = 2.0 * torch.randint(0, 2, (FEATURES,), generator=draws) - 1
        made.append((directions / directions.norm(dim=1, keepdim=True), signs))
    (target, first), (other, second) = made
    common = round(share * FEATURES)
    source = torch.cat([target[:common], other[common:]])
    return Function(target, first).standardised(seed), Function(source, second).standardised(seed)


def sampled(function: Function, size: int, noise: float, seed: int, name: str) -> Points:
    """Normal inputs and values of a function with normal noise."""
    draws = generator(seed, name)
    inputs = torch.randn(size, function.directions.shape[1], generator=draws)
    return inputs, function(inputs) + noise * torch.randn(size, 1, generator=draws)


def error(model: nn.Module, points: Points) -> float:
    """A model's mean squared error, infinite where an answer is no number."""
    with torch.no_grad():
        return squares(model(points[0]), points[1])


def squares(outputs: Tensor, targets: Tensor) -> float:
    """Their mean squared difference, infinite where it is no number."""
    found = float((outputs - targets).double().square().mean())
    return found if math.isfinite(found) else math.inf


def ridge(inputs: Tensor, targets: Tensor, strength: float) -> Tensor:
    r"""Weights, and last the constant, that minimise :math:`\frac{1}{n} \|y - Xw - c\|^2 + \lambda \|w\|^2`, in double precision.

    Args:
        inputs: X, ``[n, p]``.
        targets: y, ``[n, 1]``.
        strength: Lambda, above 0; the constant is free.

    Returns:
        ``[p + 1, 1]``.
    """
    X, y = inputs.double(), targets.double()
    middle, level = X.mean(0), y.mean(0)
    X = X - middle
    weights = torch.linalg.solve(X.T @ X / len(X) + strength * torch.eye(X.shape[1], dtype=X.dtype), X.T @ (y - level) / len(X))
    return torch.cat([weights, (level - middle @ weights)[None]])


def descend(models: list[MLP], rates: list[float], points: Points, steps: int, seed: int, kept: list[int]) -> dict[int, list[MLP]]:
    """Gradient descent with momentum 0.9 on half the squared error, the rate falling to 0 along a cosine, of several models at once.

    The models are one stack of weights, since networks this small cost their overhead. A model's loss times its rate, at rate 1, is its loss at its rate.

    Args:
        models: Of one shape; they stay as they are.
        rates: One each.
        points: At most 100 a step, in an order drawn anew each pass.
        steps: How many.
        seed: Of the order.
        kept: After which steps the models are kept.

    Returns:
        The models by step.
    """
    stack = [torch.stack([p.detach() for p in group]).requires_grad_() for group in zip(*(model.parameters() for model in models), strict=True)]
    scale, optimizer = torch.tensor(rates), torch.optim.SGD(stack, lr=1.0, momentum=0.9)
    draws, order = generator(seed, "order"), torch.empty(0, dtype=torch.long)
    found = {0: models}
    for step in range(steps):
        inputs, targets = points
        if len(inputs) > BATCH:
            if len(order) < BATCH:  # what a pass leaves over is dropped
                order = torch.randperm(len(inputs), generator=draws)
            inputs, targets, order = inputs[order[:BATCH]], targets[order[:BATCH]], order[BATCH:]
        hidden = inputs.expand(len(models), *inputs.shape)
        for layer in range(0, len(stack), 2):
            hidden = torch.baddbmm(stack[layer + 1].unsqueeze(1), hidden.relu() if layer else hidden, stack[layer].mT)
        loss = (0.5 * (hidden - targets).square().mean((1, 2))) @ scale
        optimizer.param_groups[0]["lr"] = factor("cosine", step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step + 1 in kept:
            found[step + 1] = [_unstacked(model, [values[place] for values in stack]) for place, model in enumerate(models)]
    return {step: found[step] for step in kept}


def _unstacked(model: MLP, values: list[Tensor]) -> MLP:
    found = copy(model)
    with torch.no_grad():
        for parameter, value in zip(found.parameters(), values, strict=True):
            parameter.copy_(value)
    return found
