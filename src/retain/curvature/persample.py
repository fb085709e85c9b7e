"""Powers of per-sample gradients of any parameter, the slow way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from retain.errors import InputError
from retain.tasks.batch import Batch, apply, first_samples

_CHUNK = 1 << 24  # entries of per-sample gradients held at a time


def powers(model: nn.Module, parameters: dict[str, nn.Parameter], batch: Batch, vectors: Tensor, exponent: int = 2) -> dict[str, Tensor]:
    """Sums over samples and vectors of powers of per-sample gradients, by ``vmap`` or, where that fails, by a loop.

    Args:
        model: The model, in evaluation mode.
        parameters: The parameters wanted, by name.
        batch: The samples.
        vectors: Gradients at the outputs, ``[K, *outputs.shape]``.
        exponent: 1 (absolute values) or 2.

    Returns:
        A tensor of each parameter's shape.
    """
    try:
        few = first_samples(batch, 2)
        quick, sure = (way(model, parameters, few, vectors[:, :2], exponent) for way in (_by_vmap, _by_loop))
        if all(torch.allclose(quick[name], sure[name], rtol=1e-3, atol=1e-6 + 1e-4 * float(sure[name].max())) for name in parameters):
            return _by_vmap(model, parameters, batch, vectors, exponent)
    except (RuntimeError, InputError):  # recurrent layers and control flow that depends on data have no batching rule
        pass
    return _by_loop(model, parameters, batch, vectors, exponent)


@torch.no_grad()  # the transforms differentiate all the same; no graph outlives them
def _by_vmap(model: nn.Module, parameters: dict[str, nn.Parameter], batch: Batch, vectors: Tensor, exponent: int) -> dict[str, Tensor]:
    free = {name: p.detach() for name, p in parameters.items()}

    def one(inputs: Any, v: Tensor) -> dict[str, Tensor]:
        single = tree_map(lambda t: t.unsqueeze(0) if isinstance(t, Tensor) else t, inputs)

        def forward(values: dict[str, Tensor]) -> Tensor:
            def call(*args: Any, **kwargs: Any) -> Any:
                return torch.func.functional_call(model, values, args, kwargs)

            return apply(call, Batch(single, batch.targets[:1], batch.task))[0]  # type: ignore[arg-type]

        _, pull = torch.func.vjp(forward, free)[:2]
        rows = [pull(vector)[0] for vector in v]  # a vmap within the other gives wrong values for some layers (PReLU)
        return {name: sum(row[name].abs().pow(exponent) for row in rows) for name in free}

    # powers are summed within chunks, so memory stays bounded
    step = max(1, _CHUNK // (sum(p.numel() for p in free.values()) * len(vectors)))
    totals = {name: torch.zeros_like(p) for name, p in free.items()}
    per_sample = vectors.transpose(0, 1)
    for start in range(0, len(batch.targets), step):
        part = slice(start, start + step)
        inputs = tree_map(lambda t, part=part: t[part] if isinstance(t, Tensor) else t, batch.inputs)
        for name, values in torch.func.vmap(one)(inputs, per_sample[part]).items():
            totals[name] += values.sum(0)
    return totals


def _by_loop(model: nn.Module, parameters: dict[str, nn.Parameter], batch: Batch, vectors: Tensor, exponent: int) -> dict[str, Tensor]:
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for b in range(len(batch.targets)):
        for name, g in _one_by_one(model, parameters, batch, vectors, b).items():
            totals[name] += g.abs().pow(exponent).sum(0)
    return totals


def rows(model: nn.Module, parameters: dict[str, nn.Parameter], batch: Batch, vectors: Tensor) -> dict[str, Tensor]:
    """The per-sample gradients themselves, ``[K, B, *shape]``, by a loop over samples."""
    found = [_one_by_one(model, parameters, batch, vectors, b) for b in range(len(batch.targets))]
    return {name: torch.stack([one[name] for one in found], 1) for name in parameters}


def _one_by_one(model: nn.Module, parameters: dict[str, nn.Parameter], batch: Batch, vectors: Tensor, b: int) -> dict[str, Tensor]:
    """Gradients of one sample, ``[K, *shape]``."""
    inputs = tree_map(lambda t: t[b : b + 1] if isinstance(t, Tensor) else t, batch.inputs)
    with torch.enable_grad():
        outputs = apply(model, Batch(inputs, batch.targets[b : b + 1], batch.task))
    columns: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for v in vectors[:, b : b + 1]:
        found = torch.autograd.grad(outputs, list(parameters.values()), v, retain_graph=True, allow_unused=True)
        for (name, p), g in zip(parameters.items(), found, strict=True):
            columns[name].append(torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g)
    return {name: torch.stack(column) for name, column in columns.items()}
