"""Learning without forgetting."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.errors import InputError, check_positive
from retain.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, Tokens
from retain.methods.base import Method
from retain.methods.memory import Active, balance, unmasked, within
from retain.models.parameters import copy
from retain.tasks.batch import Batch, apply
from retain.tasks.task import Task, as_task


class LwF(Method):
    r"""Learning without forgetting: on the new data the network is held to what it answered before the task.

    .. math:: \mathcal{L}(\theta) = \tfrac1k \, \overline{\text{nll}}_B(\theta) + \big(1 - \tfrac1k\big) \, \text{strength} \cdot
       \frac{T^2}{|B|} \sum_{x \in B} \mathrm{KL}\big(p_\text{old}^T(x) \,\|\, p_\theta^T(x)\big)

    at task k, with :math:`p^T` the softmax of the outputs over T, among the outputs that competed for old tasks alone: all of them in a domain-incremental
    stream, all old classes in a class-incremental one, and with a head a task the mean over old heads. No old data are needed. Equations 2 and 3 of Li
    and Hoiem 2017 (https://arxiv.org/abs/1606.09282) with the factor :math:`T^2` of Hinton, Vinyals and Dean 2015 (https://arxiv.org/abs/1503.02531),
    which keeps the gradient's size; the weights are those of van de Ven, Tuytelaars and Tolias 2022 (https://doi.org/10.1038/s42256-022-00568-3), whose code
    has no :math:`T^2` (``strength=0.25`` at T = 2). A loop's loss stays the likelihood, and the penalty is what is missing:
    :math:`(1 - \frac1k)(\text{strength} \cdot \text{distillation} - \overline{\text{nll}}_B)`.

    Departures: a divergence in place of a cross-entropy, which differ by what no weight changes; the mean over old heads where the paper takes the sum; the
    paper's first stage, which trains the new head alone, is left out, as in van de Ven's comparison.

    Under :class:`~retain.likelihoods.Bernoulli` every output has two classes, under :class:`~retain.likelihoods.Gaussian` the divergence is that of two
    normal distributions, and T has no part in it. With a head a task every step has one more forward pass, since the loop's outputs are masked.

    Args:
        strength: Factor of the distillation.
        temperature: T.
        weight: ``tasks`` as above, or ``sum``: the loss plus ``strength`` times the distillation, the paper's.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 2, scenario="task")
        >>> result = learn(models.MLP(64, 32, 10, seed=0), stream, methods.LwF(), epochs=20, optimizer="momentum", lr=0.05)
        >>> bool(result.accuracy[2].min() > 0.9)
        True
    """

    name = "lwf"
    summary = "learning without forgetting: hold the answers on new data to those before"
    citation = "li2018learning"

    def __init__(self, strength: float = 1.0, temperature: float = 2.0, *, weight: Literal["tasks", "sum"] = "tasks") -> None:
        self.strength, self.temperature = check_positive("strength", strength, zero=True), check_positive("temperature", temperature)
        if weight not in ("tasks", "sum"):
            raise InputError("weight", "'tasks' or 'sum'", repr(weight))
        self.weight = weight
        self.tasks = 0
        """How many tasks are over."""
        self.old: list[Active] = []
        """The outputs that competed for them; a set that another holds is left out."""
        self.teacher: nn.Module | None = None
        """The model as it was before the task at hand; ``None`` if it has learned nothing yet."""

    def begin(self, model: nn.Module, task: Task) -> None:
        """Keep a copy of the model."""
        self.teacher = _frozen(model) if self.old else None

    def penalty(self, model: nn.Module, batch: Batch, outputs: Tensor) -> Tensor | None:
        """What makes the loss that of labels and old answers."""
        if self.teacher is None or (self.weight == "sum" and not self.strength):
            return None
        old = self.distance(model, batch, outputs)
        new = batch.task.likelihood.mean_nll(outputs, batch.targets, batch.weight)
        return balance(new, old, self.weight, self.strength, self.tasks / (self.tasks + 1))

    def distance(self, model: nn.Module, batch: Batch, outputs: Tensor) -> Tensor:
        """The distillation: what the new answers differ from the old ones, in nats per observation times squared temperature.

        Args:
            model: The model.
            batch: New samples.
            outputs: The model's outputs for them, masked as :func:`retain.tasks.apply` does.

        Returns:
            A scalar.
        """
        assert self.teacher is not None
        asked = Batch(batch.inputs, batch.targets, unmasked(batch.task))
        with torch.no_grad():
            before = apply(self.teacher, asked)
        if not all(within(own, batch.task.active) for own in self.old):
            outputs = apply(model, asked)  # those that are masked now
        likelihood, total = batch.task.likelihood, outputs.new_zeros(())
        for own in self.old:
            then, now = (before, outputs) if own is None else (before[..., list(own)], outputs[..., list(own)])
            each = divergence(likelihood, then, now, self.temperature)
            counted = (batch.targets != likelihood.ignore).to(each.dtype) if isinstance(likelihood, Tokens) else torch.ones_like(each)
            total = total + (each * counted).sum() / counted.sum().clamp_min(1)
        return total / len(self.old)

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Note which outputs competed; the task's data are not read."""
        active = as_task(task).active
        self.tasks += 1
        if not any(within(active, own) for own in self.old):
            self.old = [own for own in self.old if not within(own, active)] + [active]
        self.teacher = None

    def state_dict(self) -> dict[str, Any]:
        """The copy, and which outputs it is asked about."""
        return {"tasks": self.tasks, "old": self.old, "teacher": None if self.teacher is None else self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Take it up again."""
        self.tasks, self.old = state["tasks"], [None if own is None else tuple(own) for own in state["old"]]
        self.teacher = None
        if state["teacher"] is not None:
            self.teacher = _frozen(model)
            self.teacher.load_state_dict(state["teacher"])

    def settings(self) -> dict[str, Any]:
        """What it was made with."""
        return {name: getattr(self, name) for name in ("strength", "temperature", "weight")}


def divergence(likelihood: Likelihood, before: Tensor, now: Tensor, temperature: float) -> Tensor:
    r""":math:`T^2 \, \mathrm{KL}(p_\text{before}^T \| p_\text{now}^T)` of every observation, in nats times squared temperature.

    Args:
        likelihood: What the outputs mean.
        before: Outputs, ``[B, C]``, or ``[B, T, C]`` for sequences.
        now: Outputs of the same shape.
        temperature: What logits are divided by.

    Returns:
        ``[B]``, or ``[B, T]`` for sequences.

    Raises:
        InputError: If the likelihood is of no known kind.

    Example:
        >>> import torch
        >>> from retain.likelihoods import Categorical
        >>> divergence(Categorical(), torch.zeros(1, 2), torch.tensor([[0.0, 2.0]]), temperature=1.0)
        tensor([0.4338])
    """
    if isinstance(likelihood, Gaussian):
        return (now - before).flatten(1).square().sum(1) / (2 * likelihood.sigma**2)
    if isinstance(likelihood, Bernoulli):  # yes or no: a softmax over the logit and 0
        before, now = (torch.stack([logits, torch.zeros_like(logits)], -1) for logits in (before, now))
    elif not isinstance(likelihood, Categorical | Tokens):
        raise InputError("likelihood", "Categorical, Tokens, Bernoulli or Gaussian, whose divergence is known", repr(likelihood))
    p, q = (F.log_softmax(logits / temperature, -1) for logits in (before, now))
    each = temperature**2 * (p.exp() * (p - q)).sum(-1)
    return each.flatten(1).sum(1) if isinstance(likelihood, Bernoulli) else each


def _frozen(model: nn.Module) -> nn.Module:
    return copy(model).eval().requires_grad_(False)
