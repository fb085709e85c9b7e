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


class Linearised:
    """A model's outputs to first order in its weights, from one graph for any number of products.

    Args:
        outputs: Of a batch, with their graph, which is kept.
        parameters: Flat vectors are laid out in their order.
        at: A vector at the outputs; its pullback comes for free, as :attr:`first`.

    Raises:
        InputError: If the model uses an operation that can be differentiated once only.
    """

    def __init__(self, outputs: Tensor, parameters: Sequence[nn.Parameter], at: Tensor | None = None) -> None:
        self._outputs, self._parameters = outputs, parameters
        self._w = torch.zeros_like(outputs, requires_grad=True) if at is None else at.detach().clone().requires_grad_()
        with torch.enable_grad():
            pulled = torch.autograd.grad(outputs, parameters, self._w, create_graph=True, allow_unused=True)  # linear in w
            self._flat = _flat(pulled, parameters)
        _check_whole(pulled)
        self.first = self._flat.detach()
        """J' at."""

    def push(self, v: Tensor) -> Tensor:
        """J v: a flat change of the weights to a change of the outputs."""
        if not self._flat.requires_grad:  # no output depends on a weight
            return torch.zeros_like(self._outputs)
        found: Tensor = torch.autograd.grad(self._flat, self._w, v, retain_graph=True)[0]
        return found

    def pull(self, u: Tensor) -> Tensor:
        """J' u: a vector at the outputs to a flat one over the weights."""
        return _flat(torch.autograd.grad(self._outputs, self._parameters, u, retain_graph=True, allow_unused=True), self._parameters)


def _through_outputs(outputs: Tensor, parameters: list[nn.Parameter], middle: Callable[[Tensor], Tensor]) -> Linear:
    r""":math:`v \mapsto J^\top M J v` with M = ``middle``, from one graph for any number of v."""
    model = Linearised(outputs, parameters)
    return lambda v: model.pull(middle(model.push(v)))


def _flat(parts: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor:
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
