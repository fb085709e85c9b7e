"""The Fisher information of a model on data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from retain.curvature.capture import Capture
from retain.curvature.persample import squares
from retain.curvature.rules import RULES
from retain.errors import InputError, RetainError, check_count, nearest
from retain.likelihoods import Categorical, Gaussian, Likelihood, Tokens
from retain.models.parameters import evaluating, named_parameters, unwrap
from retain.seeds import generator, seeded
from retain.tasks.batch import Batch, apply
from retain.tasks.data import TensorData
from retain.tasks.task import Task, as_task

LabelRule = Literal["exact", "sampled", "empirical", "predicted"]
_MOST_EXACT = 100


class Fisher(dict[str, Tensor]):
    """Diagonal of the Fisher by parameter name, a mean per observation in nats per squared unit of the parameter.

    Args:
        values: The diagonal.
        n: Observations it was averaged over.
        labels: The label rule.
        slow: Parameters without a closed form, for which per-sample gradients were taken.
    """

    def __init__(self, values: dict[str, Tensor], n: float, labels: str, slow: tuple[str, ...]) -> None:
        super().__init__(values)
        self.n, self.labels, self.slow = n, labels, slow


def fisher(
    model: nn.Module,
    data: Any,
    labels: LabelRule = "exact",
    structure: Literal["diagonal"] = "diagonal",
    likelihood: Likelihood | None = None,
    samples: int | None = None,
    *,
    draws: int = 1,
    replacement: bool = False,
    batch_size: int = 500,
    seed: int = 0,
) -> Fisher:
    r"""Fisher information of every weight, :math:`F_j = \frac1n \sum_i \mathbb{E}_{y}\big[(\partial_j \log p(y \mid x_i, \theta))^2\big]`.

    The label rule says what y is. ``exact`` takes the expectation over the model's own answers in closed form, ``sampled`` draws
    them, ``empirical`` takes the data's label and ``predicted`` the most probable answer. Only the first two are the Fisher; on
    a confident model the last two are far too small (on the difference: Kunstner, Balles and Hennig 2019,
    https://arxiv.org/abs/1905.12558; van de Ven 2025, https://arxiv.org/abs/2502.11756). Squares are taken per sample, never of a
    batch's mean gradient.

    ``nn.Linear`` and ``nn.Conv2d`` have closed forms; every other parameter goes through per-sample gradients and is listed in
    the result's ``slow``. The model is in evaluation mode meanwhile; its mode, buffers and gradients are left as they were.

    Args:
        model: Any module, on any device.
        data: A :class:`~retain.tasks.Task` (its training part) or whatever makes one: a pair of arrays, a DataLoader.
        labels: The label rule.
        structure: ``diagonal``.
        likelihood: What the outputs mean, if ``data`` is not a task; classification by default.
        samples: Use this many samples, drawn at random (of a loader: the first); all by default.
        draws: Labels drawn per sample under ``sampled``.
        replacement: Draw the samples with replacement.
        batch_size: Samples per pass; memory grows with it.
        seed: Seed of the samples and of the drawn labels.

    Returns:
        A mapping from parameter name to a tensor of the parameter's shape and type.

    Raises:
        InputError: If the label rule is unknown or does not suit the outputs, or a value is not finite.
        RetainError: If the model has no trainable parameter.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import retain
        >>> model, x = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [3.0]])
        >>> F = retain.fisher(model, (x, x), likelihood=retain.likelihoods.Gaussian(sigma=2.0))
        >>> F["weight"]  # the mean of x**2 / sigma**2
        tensor([[1.2500]])
    """
    if labels not in get_args(LabelRule):
        raise InputError("labels", "a label rule", repr(labels), nearest(str(labels), get_args(LabelRule)))
    if structure != "diagonal":
        raise InputError("structure", "'diagonal'", repr(structure))
    check_count("batch_size", batch_size)
    check_count("draws", draws)
    task = as_task(data, likelihood, n=1)  # n is not used here
    if labels in ("empirical", "predicted") and isinstance(task.likelihood, Tokens):
        raise InputError(
            "labels", "'sampled' for sequences", repr(labels), "The tokens of a sequence share its gradient; only for drawn labels do their cross terms vanish."
        )
    if labels == "predicted" and isinstance(task.likelihood, Gaussian):
        raise InputError("labels", "'exact', 'sampled' or 'empirical' for a Gaussian likelihood", "'predicted'", "At the predicted value every gradient is 0.")
    model = unwrap(model)
    parameters = named_parameters(model)
    if not parameters:
        raise RetainError("model: expected trainable parameters, found none. Unfreeze a layer first.")
    anyone = next(iter(parameters.values()))
    device, dtype = anyone.device, anyone.dtype
    totals = {name: torch.zeros(p.shape, dtype=torch.float64, device=device) for name, p in parameters.items()}
    draw = generator(seed, "labels")
    fast = _with_rules(model, parameters)
    covered: set[str] = set()
    seen = 0.0
    with evaluating(model), seeded(seed, "order"), Capture(fast) as capture:
        for number, batch in enumerate(_chosen(task.to(device, dtype), samples, batch_size, replacement, generator(seed, "samples"))):
            if number == 0:
                _keep_trusted(capture, model, batch)
            with torch.enable_grad():
                capture.clear()
                outputs = apply(model, batch)
                if capture.stale():
                    capture.clear()
                    outputs = apply(model, batch)
            task.check(outputs, batch.targets, first=number == 0)
            vectors = _vectors(task, outputs, batch.targets, labels, draws, draw)
            once = [name for name in fast if capture.calls.get(name) == 1 and len(capture.inputs[name]) == len(batch.targets)]
            gradients = _at_outputs(outputs, [capture.outputs[name] for name in once], vectors)
            covered = set()
            for name, gradient in zip(once, gradients, strict=True):
                for part, found in RULES[type(fast[name])](fast[name], capture.inputs[name], gradient).items():
                    full = f"{name}.{part}" if name else part
                    if full in totals:
                        covered.add(full)
                        totals[full] += found
            rest = {name: p for name, p in parameters.items() if name not in covered}
            if rest:
                for name, values in squares(model, rest, batch, vectors).items():
                    totals[name] += values
            seen += float(task.likelihood.units(batch.targets).sum())
    draws_taken = draws if labels == "sampled" else 1
    result = {name: (total / (seen * draws_taken)).to(parameters[name].dtype) for name, total in totals.items()}
    for name, values in result.items():
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"gradient of '{name}'", "finite numbers", "NaN or infinity", "Check the model's weights and the data.")
    return Fisher(result, seen, labels, tuple(name for name in parameters if name not in covered))


def _chosen(task: Task, samples: int | None, batch_size: int, replacement: bool, draw: torch.Generator) -> Iterator[Batch]:
    data = task.data
    if samples is None:
        yield from task.batches(batch_size)
        return
    check_count("samples", samples)
    if isinstance(data, TensorData):
        if not replacement and samples > data.size:
            raise InputError("samples", f"at most the {data.size} samples of the data", samples, "Leave it out to use all.")
        rows = torch.randint(data.size, (samples,), generator=draw) if replacement else torch.randperm(data.size, generator=draw)[:samples]
        rows = rows.to(data.inputs.device)
        for part in rows.split(batch_size):
            yield Batch(data.inputs[part], data.targets[part], task)
        return
    left = samples
    for batch in task.batches(batch_size):
        keep = min(left, len(batch.targets))
        yield Batch(tree_map(lambda t, k=keep: t[:k] if isinstance(t, Tensor) else t, batch.inputs), batch.targets[:keep], task)
        left -= keep
        if not left:
            return


def _with_rules(model: nn.Module, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Module]:
    """Modules with a closed form whose parameters belong to them alone."""
    owners: Counter[int] = Counter()
    for module in model.modules():
        owners.update(id(p) for p in module._parameters.values() if p is not None)
    trainable = {id(p) for p in parameters.values()}
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in RULES
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and all(owners[id(p)] == 1 for p in module._parameters.values() if p is not None)
        and any(id(p) in trainable for p in module._parameters.values())
    }


def _keep_trusted(capture: Capture, model: nn.Module, batch: Batch) -> None:
    """Drop layers whose closed form would not be the whole gradient, found with a single sample.

    A layer's first axis has to be the sample, and its weight must not be used beside it (``F.linear(h, layer.weight)``): the
    gradient through the captured output has to be the weight's whole gradient.
    """
    single = Batch(tree_map(lambda t: t[:1] if isinstance(t, Tensor) else t, batch.inputs), batch.targets[:1], batch.task)
    capture.clear()
    with torch.enable_grad():
        outputs = apply(model, single)
        if capture.stale():
            capture.clear()
            outputs = apply(model, single)
        direction = torch.arange(1, outputs.numel() + 1, device=outputs.device, dtype=outputs.dtype).reshape(outputs.shape) / outputs.numel()
        for name, layer in list(capture.modules.items()):
            if capture.calls.get(name) != 1 or len(capture.inputs[name]) != 1:
                capture.drop(name)
                continue
            own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
            whole = torch.autograd.grad(outputs, own, direction, retain_graph=True, allow_unused=True)
            (at,) = torch.autograd.grad(outputs, capture.outputs[name], direction, retain_graph=True, allow_unused=True)
            if at is None:
                capture.drop(name)
                continue
            through = torch.autograd.grad(capture.outputs[name], own, at, retain_graph=True)
            if any(w is None or not torch.allclose(w, t, rtol=1e-3, atol=1e-6 + 1e-4 * float(t.abs().max())) for w, t in zip(whole, through, strict=True)):
                capture.drop(name)


def _vectors(task: Task, outputs: Tensor, targets: Tensor, labels: str, draws: int, draw: torch.Generator) -> Tensor:
    """Gradients at the outputs, ``[K, *outputs.shape]``, whose outer products sum to the label rule's Fisher of the outputs."""
    likelihood = task.likelihood
    if labels == "exact":
        classes = outputs[0].numel() if not task.active else len(task.active)
        if classes > _MOST_EXACT and not isinstance(likelihood, Tokens):
            raise InputError("labels", f"'sampled' for more than {_MOST_EXACT} outputs", f"'exact' with {classes}", "Pass labels='sampled', draws=1 or more.")
        root = likelihood.hessian_root(outputs)
        return root[list(task.active)] if task.active and isinstance(likelihood, Categorical) else root
    found = []
    for _ in range(draws if labels == "sampled" else 1):
        if labels == "sampled":
            targets = likelihood.relabel(likelihood.sample(outputs, draw), targets)
        elif labels == "predicted":
            targets = likelihood.relabel(likelihood.predict(outputs.detach()), targets)
        free = outputs.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(likelihood.nll(free, targets).sum(), free)
        found.append(gradient)
    return torch.stack(found)


def _at_outputs(outputs: Tensor, layers: list[Tensor], vectors: Tensor) -> list[Tensor]:
    """Gradients at the layers' outputs for every vector, ``[K, *layer.shape]`` each."""
    if not layers:
        return []
    if len(vectors) == 1:
        single = torch.autograd.grad(outputs, layers, vectors[0], allow_unused=True)
        return [torch.zeros_like(layer)[None] if g is None else g[None] for layer, g in zip(layers, single, strict=True)]
    batched: tuple[Tensor | None, ...]
    try:
        batched = torch.autograd.grad(outputs, layers, vectors, is_grads_batched=True, allow_unused=True, retain_graph=True)
    except RuntimeError:  # an operation without a batching rule: one vector after the other
        rows = [torch.autograd.grad(outputs, layers, v, allow_unused=True, retain_graph=True) for v in vectors]
        columns: list[Any] = list(zip(*rows, strict=True))
        batched = tuple([None if column[0] is None else torch.stack(column) for column in columns])
    return [
        torch.zeros(len(vectors), *layer.shape, device=layer.device, dtype=layer.dtype) if g is None else g for layer, g in zip(layers, batched, strict=True)
    ]
