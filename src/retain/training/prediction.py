"""What a model answers, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retain import metrics
from retain.errors import InputError, check_count
from retain.likelihoods import Categorical
from retain.metrics import Calibration, Uncertainty
from retain.models import Ensemble, sampling
from retain.models.bayesian import BayesianLayer
from retain.models.parameters import evaluating
from retain.seeds import seeded
from retain.tasks.batch import apply
from retain.tasks.task import Task, as_task


@dataclass(frozen=True, eq=False)
class Prediction:
    """Probabilities of every class by every draw of the model.

    Args:
        draws: ``[S, N, C]``.
        targets: The right classes, ``[N]``.
    """

    draws: Tensor
    targets: Tensor

    @property
    def mean(self) -> Tensor:
        """The predictive distribution, the mean over draws, ``[N, C]``."""
        return self.draws.mean(0)

    @property
    def accuracy(self) -> float:
        """Share of samples whose most probable class is right."""
        return float((self.mean.argmax(1) == self.targets).double().mean())

    @property
    def nll(self) -> float:
        """Mean negative log probability of the right class in nats."""
        right = self.mean.gather(1, self.targets[:, None])[:, 0]
        return float(-right.clamp_min(torch.finfo(right.dtype).tiny).log().double().mean())

    @property
    def uncertainty(self) -> Uncertainty:
        """Entropy in nats, split into what more data could not (aleatoric) and could (epistemic) remove."""
        return metrics.uncertainty(self.draws)

    @property
    def calibration(self) -> Calibration:
        """Confidence against accuracy."""
        return metrics.calibration(self.mean, self.targets)


def predict(model: nn.Module, task: Any, *, part: str = "test", samples: int = 10, batch_size: int = 1000, seed: int = 0) -> Prediction:
    r"""Answer one part of a task: :math:`p(y \mid x) = \frac1S \sum_s p(y \mid x, w_s)` with :math:`w_s \sim q`.

    A model with Bayesian layers draws its weights S times; the members of an :class:`~retain.models.Ensemble` are its draws; any other model has one.

    Args:
        model: A classifier.
        task: A classification task, or whatever makes one.
        part: ``test``, ``validation`` or ``data``.
        samples: S.
        batch_size: Samples a pass.
        seed: Of the draws.

    Returns:
        The prediction, on the CPU.

    Raises:
        InputError: If the task is not one of classes, or a number is out of range.

    Example:
        >>> from retain import models, predict, tasks
        >>> found = predict(models.bayesian(models.MLP(64, 10, seed=0), logvar=-2), tasks.digits(), samples=5)
        >>> found.draws.shape, bool(found.uncertainty.epistemic.mean() > 0)
        (torch.Size([5, 360, 10]), True)
    """
    check_count("samples", samples)
    check_count("batch_size", batch_size)
    anyone = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    task = as_task(task).to(anyone.device, anyone.dtype)
    if not isinstance(task.likelihood, Categorical):
        raise InputError("task", "a classification task", repr(task.likelihood), "For other likelihoods average the outputs of retain.models.sampling.")
    members = list(model.models) if isinstance(model, Ensemble) else [model]
    draws = []
    with torch.no_grad(), evaluating(model), seeded(seed, "prediction"):
        for member in members:
            random = any(isinstance(module, BayesianLayer) for module in member.modules())
            for _ in range(samples if random else 1):
                draws.append(_pass(member, task, part, batch_size, random=random))
    targets = torch.cat([batch.targets.cpu() for batch in task.batches(batch_size, part=part)])
    return Prediction(torch.stack(draws), targets)


def _pass(model: nn.Module, task: Task, part: str, batch_size: int, *, random: bool) -> Tensor:
    """One draw of the weights for each batch."""
    found = []
    for number, batch in enumerate(task.batches(batch_size, part=part)):
        if random:
            with sampling(model):
                outputs = apply(model, batch)
        else:
            outputs = apply(model, batch)
        task.check(outputs, batch.targets, part, first=number == 0)
        found.append(outputs.float().softmax(1).cpu())
    return torch.cat(found)
