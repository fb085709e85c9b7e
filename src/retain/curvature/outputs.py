"""Gradients at a model's outputs, and from there at tensors inside."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from retain.errors import InputError
from retain.likelihoods import Categorical, Tokens
from retain.tasks.task import Task

LabelRule = Literal["exact", "sampled", "empirical", "predicted"]
_MOST_EXACT = 100


def vectors_at(task: Task, outputs: Tensor, targets: Tensor, labels: str, draws: int, draw: torch.Generator) -> Tensor:
    """Gradients at the outputs, ``[K, *outputs.shape]``, whose outer products sum to ``draws`` times the label rule's Fisher of the outputs."""
    likelihood = task.likelihood
    if labels == "exact":
        classes = outputs[0].numel() if not task.active else len(task.active)
        if classes > _MOST_EXACT and not isinstance(likelihood, Tokens):
            raise InputError("labels", f"'sampled' for more than {_MOST_EXACT} outputs", f"'exact' with {classes}", "Pass labels='sampled', draws=1 or more.")
        if not task.active or not isinstance(likelihood, Categorical):
            return likelihood.hessian_root(outputs)
        # the root for the outputs that compete; nothing reaches the others
        few = likelihood.hessian_root(outputs[:, list(task.active)])
        root = few.new_zeros(len(few), *outputs.shape)
        root[:, :, list(task.active)] = few
        return root
    found = []
    for _ in range(draws):
        if labels == "sampled":
            targets = likelihood.relabel(likelihood.sample(outputs, draw), targets)
        elif labels == "predicted":
            targets = likelihood.relabel(likelihood.predict(outputs.detach()), targets)
        free = outputs.detach().requires_grad_()
        with torch.enable_grad():
            nll = likelihood.nll(free, targets)
            if nll.shape != targets.shape[:1]:
                raise InputError(
                    "likelihood", f"one nll per sample, of shape [{len(targets)}]", list(nll.shape), "A loss that is already a mean or a sum hides the samples."
                )
            (gradient,) = torch.autograd.grad(nll.sum(), free)
        found.append(gradient)
    return torch.stack(found)


def gradients_at(outputs: Tensor, places: list[Tensor], vectors: Tensor, *, keep: bool = False) -> list[Tensor]:
    """Gradients at tensors of the graph for every vector, ``[K, *place.shape]`` each; the graph is used up unless it is to be kept."""
    if not places:
        return []
    if len(vectors) == 1:
        single = torch.autograd.grad(outputs, places, vectors[0], allow_unused=True, retain_graph=keep)
        return [torch.zeros_like(place)[None] if g is None else g[None] for place, g in zip(places, single, strict=True)]
    batched: tuple[Tensor | None, ...]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of operations that are batched by a loop inside torch
            batched = torch.autograd.grad(outputs, places, vectors, is_grads_batched=True, allow_unused=True, retain_graph=True)
    except RuntimeError:  # an operation without a batching rule: one vector after the other
        rows = [torch.autograd.grad(outputs, places, v, allow_unused=True, retain_graph=True) for v in vectors]
        columns: list[Any] = list(zip(*rows, strict=True))
        batched = tuple([None if column[0] is None else torch.stack(column) for column in columns])
    return [place.new_zeros(len(vectors), *place.shape) if g is None else g for place, g in zip(places, batched, strict=True)]
