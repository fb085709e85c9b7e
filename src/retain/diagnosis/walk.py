"""A working copy of a model whose weights are moved about, and what it answers there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from retain.diagnosis.inputs import weights
from retain.errors import InputError
from retain.models.parameters import copy, evaluating, unwrap
from retain.tasks.batch import Batch, apply
from retain.tasks.task import Task
from retain.training.evaluation import Evaluation
from retain.training.recorder import Recorder


class Walker:
    """One copy of a model, moved in place; the model itself is never touched.

    Args:
        model: The model at the origin.
        parts: Samples by name, as :func:`~retain.diagnosis.inputs.held` makes them, on which losses are measured.
        anew: Samples from which batch-norm statistics are estimated anew at every point; ``None`` keeps those in place.
    """

    def __init__(self, model: nn.Module, parts: Mapping[str, Task], anew: Task | None = None) -> None:
        self.origin, self.buffers = weights(model), statistics(model)
        self.model = copy(unwrap(model)).requires_grad_(False).eval()
        self.own = weights(self.model)
        self.batches, self.statistics = {name: list(task.batches(1)) for name, task in parts.items()}, anew
        self._noise = torch.Generator().manual_seed(0).get_state()

    def go(self, steps: Iterable[tuple[float, Mapping[str, Tensor]]]) -> None:
        """Go to the origin plus a sum of scaled directions; a parameter that a direction does not name stays."""
        steps = [(scale, direction) for scale, direction in steps if scale]
        for name, p in self.own.items():
            p.copy_(self.origin[name])
            for scale, direction in steps:
                if name in direction:
                    p.add_(direction[name].to(p), alpha=scale)

    def between(self, other: Mapping[str, Tensor], buffers: Mapping[str, Tensor], t: float) -> None:
        """Go to (1 - t) origin + t other, with the buffers (batch-norm statistics) between theirs; at 0 and 1 the ends exactly."""
        for mine, start, end in ((self.own, self.origin, other), (statistics(self.model), self.buffers, buffers)):
            for name, p in mine.items():
                torch.lerp(start[name], end[name].to(p), t, out=p)

    def measure(self, *, anew: bool = True) -> dict[str, Evaluation]:
        """Score and loss here, by part, with batch-norm statistics ``anew`` if there are samples for them; a loss that is no number counts as infinite."""
        if self.statistics is not None and anew:
            reestimate(self.model, self.statistics)
        return {name: self._score(batches) for name, batches in self.batches.items()}

    def _score(self, batches: list[Batch]) -> Evaluation:
        """As :func:`~retain.training.evaluate`, thousands of times: what it prepares and checks in every call is done once here."""
        likelihood = batches[0].task.likelihood
        tally = nll = units = torch.zeros((), dtype=torch.float64, device=batches[0].targets.device)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._noise)  # the same at every point, if the model draws
            for batch in batches:
                outputs = apply(self.model, batch)
                tally = tally + likelihood.tally(outputs, batch.targets)
                nll = nll + likelihood.nll(outputs, batch.targets).double().sum()
                units = units + likelihood.units(batch.targets).double().sum()
        loss = float(nll / units)
        return Evaluation(likelihood.score(tally), math.inf if math.isnan(loss) else loss)


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """The floating point buffers by canonical name: batch norm's statistics, in the main."""
    return {name: b for name, b in unwrap(model).named_buffers() if b.is_floating_point()}


def norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch-norm layers that store statistics."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None]


def reestimate(model: nn.Module, task: Task) -> None:
    r"""Estimate batch-norm statistics anew from the training data of a task, in place.

    Weights between two networks do not have the statistics between theirs, so that stored or interpolated ones make barriers of their own (Jordan et
    al. 2023, REPAIR, https://arxiv.org/abs/2211.08403). Every batch is normalised by itself, as in training; means :math:`m_b` and unbiased variances
    :math:`v_b` over :math:`n_b` values are pooled as if of one batch, :math:`v = \frac{1}{N-1} \sum_b (n_b - 1) v_b + n_b (m_b - m)^2`, so that the
    last, smaller batch counts as what it is. All other layers are in evaluation mode.

    Args:
        model: The model, changed in its batch-norm buffers only.
        task: Its training data are read.

    Raises:
        InputError: If no batch has two values a channel.
    """
    layers = norms(model)
    counts: dict[nn.Module, int] = {}
    sums: dict[nn.modules.batchnorm._BatchNorm, tuple[int, Tensor, Tensor]] = {}

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts[module] = inputs[0].numel() // inputs[0].shape[1]

    momenta = {layer: layer.momentum for layer in layers}
    handles = [layer.register_forward_pre_hook(count) for layer in layers]
    try:
        with torch.no_grad(), evaluating(model):
            for layer in layers:
                layer.train()
                layer.momentum = 1.0
            for batch in task.batches(1):
                if len(batch.targets) < 2:
                    continue  # some layers have one value a channel, and that has no variance
                apply(model, batch)
                for layer in layers:
                    if n := counts.pop(layer, 0):
                        mean, variance = (b.to(torch.float64, copy=True) for b in (layer.running_mean, layer.running_var))  # type: ignore[union-attr]
                        sums[layer] = _pooled(sums.get(layer), n, mean, variance)
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            layer.momentum = momenta[layer]
    if layers and not sums:
        raise InputError("samples", "at least two, to estimate batch-norm statistics", "single ones", "Raise samples, or pass reestimate=False.")
    for layer, (_, mean, variance) in sums.items():
        layer.running_mean.copy_(mean)  # type: ignore[union-attr]
        layer.running_var.copy_(variance)  # type: ignore[union-attr]


def _pooled(before: tuple[int, Tensor, Tensor] | None, n: int, mean: Tensor, variance: Tensor) -> tuple[int, Tensor, Tensor]:
    """Number, mean and unbiased variance of two sets of values together."""
    if before is None:
        return n, mean, variance
    m, first, spread = before
    total, gap = m + n, mean - first
    return total, first + gap * (n / total), ((m - 1) * spread + (n - 1) * variance + gap.square() * (m * n / total)) / (total - 1)


def said(recorder: Recorder, measure: str, number: int, of: int, found: Evaluation) -> None:
    """Report progress in the words that the live display knows."""
    recorder.event("step", task=measure, epoch=number, epochs=of, loss=found.nll, accuracy={"score": found.score})
