"""A batch's share of a matrix as products, by differentiating twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from retain.curvature.outputs import LabelRule, vectors_at
from retain.errors import InputError
from retain.likelihoods import Likelihood
from retain.tasks.batch import Batch
from retain.tasks.task import Task

Linear = Callable[[Tensor], Tensor]  # flat
Rule = Callable[[Tensor, Batch, int, float, list[nn.Parameter]], Linear]  # from outputs, batch, its number, observations, parameters


def gauss_newton(likelihood: Likelihood) -> Rule:
    """The rule of the generalised Gauss-Newton matrix."""

    def rule(outputs: Tensor, batch: Batch, number: int, n: float, parameters: list[nn.Parameter]) -> Linear:
        at = outputs.detach()
        return _through_outputs(outputs, parameters, lambda u: likelihood.hessian_product(at, u, batch.targets) / n)

    return rule


def outer(task: Task, labels: LabelRule, draws: int, draw: torch.Generator) -> Rule:
    """The rule of sums of outer products of gradients; labels are drawn at the first pass and kept."""
    likelihood = task.likelihood
    kept: list[list[Tensor]] = []  # labels by batch

    def rule(outputs: Tensor, batch: Batch, number: int, n: float, parameters: list[nn.Parameter]) -> Linear:
        at, answers = outputs.detach(), [batch.targets]
        if labels != "empirical":
            if number == len(kept):
                drawn = [likelihood.sample(at, draw) for _ in range(draws)] if labels == "sampled" else [likelihood.predict(at)]
                kept.append([likelihood.relabel(one, batch.targets) for one in drawn])
            answers = kept[number]
        s = torch.cat([vectors_at(task, at, answer, "empirical", 1, draw) for answer in answers])

        def middle(u: Tensor) -> Tensor:
            along = (s * u).flatten(2).sum(2) / (len(s) * n)
            return (s * along.reshape(*along.shape, *[1] * (u.ndim - 1))).sum(0)

        return _through_outputs(outputs, parameters, middle)

    return rule


def second_derivative(likelihood: Likelihood) -> Rule:
    """The rule of the Hessian."""

    def rule(outputs: Tensor, batch: Batch, number: int, n: float, parameters: list[nn.Parameter]) -> Linear:
        with torch.enable_grad():
            gradient = torch.autograd.grad(likelihood.nll(outputs, batch.targets).sum() / n, parameters, create_graph=True, allow_unused=True)
            flat = _flat(gradient, parameters)
        _check_whole(gradient)
        if not flat.requires_grad:
            return torch.zeros_like
        return lambda v: _flat(torch.autograd.grad(flat, parameters, v, retain_graph=True, allow_unused=True), parameters)

    return rule


def _through_outputs(outputs: Tensor, parameters: list[nn.Parameter], middle: Callable[[Tensor], Tensor]) -> Linear:
    r""":math:`v \mapsto J^\top M J v` with M = ``middle``, from one graph for any number of v."""
    w = torch.zeros_like(outputs, requires_grad=True)
    with torch.enable_grad():
        pulled = torch.autograd.grad(outputs, parameters, w, create_graph=True, allow_unused=True)  # linear in w
        flat = _flat(pulled, parameters)
    _check_whole(pulled)
    if all(z is None for z in pulled):
        return torch.zeros_like

    def product(v: Tensor) -> Tensor:
        (u,) = torch.autograd.grad(flat, w, v, retain_graph=True)
        return _flat(torch.autograd.grad(outputs, parameters, middle(u), retain_graph=True, allow_unused=True), parameters)

    return product


def _flat(parts: Sequence[Tensor | None], parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat([torch.zeros_like(p).reshape(-1) if part is None else part.reshape(-1) for p, part in zip(parameters, parts, strict=True)])


def _check_whole(tensors: Sequence[Tensor | None]) -> None:
    """Refuse a graph with an operation marked as differentiable once: autograd takes all that lies behind it for 0."""
    left, seen = [t.grad_fn for t in tensors if t is not None], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise InputError("model", "operations that can be differentiated twice", "one marked once_differentiable", "Use a plain form of it meanwhile.")
        left += [other for other, _ in node.next_functions]
