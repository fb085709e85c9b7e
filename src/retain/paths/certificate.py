"""What a step lost, measured on samples of their own."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import InputError, RetainError, RetainWarning
from retain.models.gates import Gate
from retain.models.parameters import evaluating
from retain.paths.strategies.base import Walk
from retain.tasks.batch import Batch, apply
from retain.tasks.task import Task

_WATCHED = (Gate, nn.ReLU)


class Certifier:
    r"""Measures every step of a path on the same samples, whatever the strategy says of itself.

    Of a step from :math:`p_n` (q and weights before) to :math:`p_{n+1}` it measures the loss :math:`\mathrm{KL}(p_n \| p_{n+1})` in nats and the
    Fisher-Rao length (root mean square over samples), and what moving q alone would have lost, so that ``retained`` is the share of that loss which
    the change of weights saved: 1 - KL(step) / KL(q alone). Lengths add up from the source itself, the way to the first q included, so by the
    triangle inequality the sum is at least the distance from the source to the target, whatever the path.

    Args:
        walk: The path.
        samples: Inputs and targets to measure on.
        task: That they belong to.
    """

    def __init__(self, walk: Walk, samples: list[Batch], task: Task) -> None:
        self.walk, self.task = walk, task
        self._batches = samples
        self._sources = [walk.ask(batch) for batch in samples]
        self._before: list[Tensor] = []
        self._last: list[Tensor] = []
        self._layers = {name: module for name, module in walk.target.named_modules() if isinstance(module, _WATCHED)}
        self.length = 0.0

    def measure(self, q_before: float, q: float, *, begin: bool = False) -> dict[str, Any]:
        """The step from the point measured last to the present one.

        Args:
            q_before: Where q was.
            q: Where it is.
            begin: Measure the start of the path, which is no step.

        Returns:
            Plain numbers.

        Raises:
            InputError: At the start, if no unit of some layer is on for any sample.
            RetainError: If the target's answers are not finite.
        """
        walk, likelihood = self.walk, self.task.likelihood
        bridge, family = walk.bridge, walk.bridge.family
        outputs, active = self._outputs()
        dead = [name for name, units in active.items() if units == 0]
        if dead:
            _complain(dead[0], self._layers[dead[0]], begin=begin)
        points, sums = [], torch.zeros(6, dtype=torch.float64)
        count, scores = 0, []
        for place, (batch, source, z) in enumerate(zip(self._batches, self._sources, outputs, strict=True)):
            now, answer = bridge.at(q, source, z), family.answer(z)
            points.append(now)
            scores.append((likelihood.tally(z, batch.targets), likelihood.tally(now, batch.targets)))
            sums[0] += family.kl(source, answer).double().sum().cpu()
            sums[1] += family.kl(source, now).double().sum().cpu()
            sums[2] += likelihood.nll(z, batch.targets).double().sum().cpu()
            if begin:
                sums[5] += family.distance(source, now).double().square().sum().cpu()
            else:
                then = self._before[place]
                still = bridge.at(q, source, self._last[place])  # what moving q alone would have come to
                sums[3] += family.kl(then, now).double().sum().cpu()
                sums[4] += family.kl(then, still).double().sum().cpu()
                sums[5] += family.distance(then, now).double().square().sum().cpu()
            count += len(batch.targets)
        self._before, self._last = points, outputs
        means = (sums / count).tolist()
        if not all(map(math.isfinite, means)):
            raise RetainError("The target no longer answers with finite numbers. Lower the strategy's learning rate, or raise its damping.")
        length = means[5] ** 0.5
        self.length += length
        found = {
            "q": q,
            "dq": q - q_before,
            "accuracy": likelihood.score(sum((one for one, _ in scores[1:]), scores[0][0])),
            "mixture_accuracy": likelihood.score(sum((two for _, two in scores[1:]), scores[0][1])),
            "nll": means[2],
            "kl_target": means[0],
            "kl_mixture": means[1],
            "active": active,
        }
        if begin:
            return {**found, "length": self.length}
        return {**found, "kl_step": means[3], "kl_frozen": means[4], "length_step": length, "length": self.length, "retained": _share(means[3], means[4])}

    def distance(self) -> float:
        """The Fisher-Rao distance from the source to the target as it is, root mean square: no path between them is shorter."""
        family = self.walk.bridge.family
        outputs, _ = self._outputs()
        total = sum(float(family.distance(s, family.answer(z)).double().square().sum()) for s, z in zip(self._sources, outputs, strict=True))
        return float((total / sum(len(batch.targets) for batch in self._batches)) ** 0.5)

    def _outputs(self) -> tuple[list[Tensor], dict[str, float]]:
        counts: dict[str, float] = dict.fromkeys(self._layers, 0.0)
        rows = dict.fromkeys(self._layers, 0)

        def see(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                axis = module.axis(output) if isinstance(module, Gate) else 1 if output.ndim > 3 else -1
                counts[name] += float(output.count_nonzero())
                rows[name] += output.numel() // output.shape[axis]

            return hook

        handles = [module.register_forward_hook(see(name)) for name, module in self._layers.items()]
        try:
            with torch.no_grad(), evaluating(self.walk.target):
                found = [apply(self.walk.target, batch) for batch in self._batches]
        finally:
            for handle in handles:
                handle.remove()
        return found, {name: counts[name] / rows[name] for name in self._layers if rows[name]}


def _share(lost: float, frozen: float) -> float | None:
    return 1 - lost / frozen if frozen > 1e-12 else None


def _complain(name: str, module: nn.Module, *, begin: bool) -> None:
    repair = "Pass its inputs through retain.models.calibrate, or use fallback=True." if isinstance(module, Gate) else "Initialise the layer before it anew."
    if begin:
        raise InputError(f"target layer '{name}'", "a unit that is on for some sample", f"none: {module}", repair)
    warnings.warn(f"In layer '{name}' no unit is on for any sample any more ({module}).", RetainWarning, stacklevel=4)
