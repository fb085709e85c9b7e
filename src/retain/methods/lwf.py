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
from retain.models.parameters import Module, copy
from retain.tasks.batch import Batch, apply
from retain.tasks.task import Task, as_task


class LwF(Method):
    r"""Learning without forgetting: on the new data the network is held to what it answered before the task.

    .. math:: \mathcal{L}(\theta) = \tfrac1k \, \overline{\text{nll}}_B(\theta) + \big(1 - \tfrac1k\big) \, \text{strength} \cdot
       \frac{T^2}{|B|} \sum_{x \in B} \mathrm{KL}\big(p_\text{old}^T(x) \,\|\, p_\theta^T(x)\big)

    at task k, with :math:`p^T` the softmax of the outputs over T: before, among the outputs that competed for old tasks, and now, among all that compete. In a
    domain-incremental stream both are all outputs, and with a head a task both are an old head, with the mean over these. In a class-incremental one a class
    that is new has the target 0:

    .. math:: \mathrm{KL}\big(p_\text{old}^T \,\|\, p_\theta^T\big) = \sum_{c \in \text{old}} p_c \log \frac{p_c}{q_c}, \quad
       q_c = \frac{e^{f_c / T}}{\sum_{j \in \text{old} \cup \text{new}} e^{f_j / T}}

    which holds old classes up against new ones, and so also against the new data's labels. With ``among="old"`` q, too, is a softmax among the old classes, and
    nothing but the new labels compares them with new ones.

    No old data are needed. Equations 2 and 3 of Li and Hoiem 2017 (https://arxiv.org/abs/1606.09282) with the factor :math:`T^2` of Hinton, Vinyals and Dean
    2015 (https://arxiv.org/abs/1503.02531), which keeps the gradient's size; the weights count every task as one, as replay's do. A loop's loss stays the
    likelihood, and the penalty is what is missing: :math:`(1 - \frac1k)(\text{strength} \cdot \text{distillation} - \overline{\text{nll}}_B)`. The code of van
    de Ven, Tuytelaars and Tolias 2022 (https://doi.org/10.1038/s42256-022-00568-3) has no :math:`T^2` and other weights: ``strength=0.25`` and
    ``weight="past"``, in class-incremental streams ``weight="sum"``.

    Departures: a divergence in place of a cross-entropy, which differ by what no weight changes; the mean over old heads where the paper takes the sum; the
    paper's first stage, which trains the new head alone, is left out, as in van de Ven's comparison. ``weight="past"`` is the sum over heads.

    Under :class:`~retain.likelihoods.Bernoulli` every output has two classes, under :class:`~retain.likelihoods.Gaussian` the divergence is that of two
    normal distributions, and T has no part in it. With a head a task every step has one more forward pass, since the loop's outputs are masked.

    Args:
        strength: Factor of the distillation.
        temperature: T.
        weight: ``tasks`` as above; ``sum``: the loss plus ``strength`` times the distillation; ``past``: that times the number of tasks before, which
            with a head a task is the paper's sum over old heads.
        among: The outputs of the network's softmax: ``competing``, all that compete now, or ``old``, those of old tasks.

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

    def __init__(
        self,
        strength: float = 1.0,
        temperature: float = 2.0,
        *,
        weight: Literal["tasks", "sum", "past"] = "tasks",
        among: Literal["old", "competing"] = "competing",
    ) -> None:
        self.strength, self.temperature = check_positive("strength", strength, zero=True), check_positive("temperature", temperature)
        if weight not in ("tasks", "sum", "past"):
            raise InputError("weight", "'tasks', 'sum' or 'past'", repr(weight))
        if among not in ("old", "competing"):
            raise InputError("among", "'old' or 'competing'", repr(among))
        self.weight, self.among = weight, among
        self.tasks = 0
        """How many tasks are over."""
        self.old: list[Active] = []
        """The outputs that competed for them; a set that another holds is left out."""
        self.teacher: nn.Module | None = None
        """The model as it was before the task at hand; ``None`` if it has learned nothing yet."""

    def begin(self, model: nn.Module, task: Task) -> None:
        """Keep a copy of the model."""
        self.teacher = frozen(model) if self.old else None

    def penalty(self, model: nn.Module, batch: Batch, outputs: Tensor) -> Tensor | None:
        """What makes the loss that of labels and old answers."""
        if self.teacher is None or (self.weight != "tasks" and not self.strength):
            return None
        old = self.distance(model, batch, outputs)
        if self.weight == "past":
            return self.tasks * self.strength * old
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
        free = Batch(batch.inputs, batch.targets, unmasked(batch.task))
        with torch.no_grad():
            before = apply(self.teacher, free)
        if not all(within(own, batch.task.active) for own in self.old):
            outputs = apply(model, free)  # those that are masked now
        likelihood, total = batch.task.likelihood, outputs.new_zeros(())
        for own in self.old:
            asked = own if self.among == "old" or not within(own, batch.task.active) else batch.task.active
            each = distilled(likelihood, before, outputs, self.temperature, own, asked)
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
            self.teacher = frozen(model)
            self.teacher.load_state_dict(state["teacher"])

    def settings(self) -> dict[str, Any]:
        """What it was made with."""
        return {name: getattr(self, name) for name in ("strength", "temperature", "weight", "among")}


def distilled(likelihood: Likelihood, before: Tensor, now: Tensor, temperature: float, own: Active, asked: Active) -> Tensor:
    """The divergence of every observation from what was answered among the outputs ``own`` to what is answered among ``asked``, which hold them.

    Args:
        likelihood: What the outputs mean.
        before: All old outputs, ``[..., C]``.
        now: All outputs now, of the same shape.
        temperature: What logits are divided by.
        own: The outputs that competed then; ``None`` is all.
        asked: Those that compete now; an output that is not in ``own`` has the target 0.

    Returns:
        ``[B]``, or ``[B, T]`` for sequences, in nats times squared temperature.
    """
    then = before if own is None else before[..., list(own)]
    if own == asked or not isinstance(likelihood, Categorical | Tokens):  # outputs that do not compete are compared one by one
        return divergence(likelihood, then, now if own is None else now[..., list(own)], temperature)
    columns = range(now.shape[-1]) if asked is None else asked
    places = [list(columns).index(column) for column in (own or range(before.shape[-1]))]
    return divergence(likelihood, then, now[..., list(columns)], temperature, places)


def divergence(likelihood: Likelihood, before: Tensor, now: Tensor, temperature: float, places: list[int] | None = None) -> Tensor:
    r""":math:`T^2 \, \mathrm{KL}(p_\text{before}^T \| p_\text{now}^T)` of every observation, in nats times squared temperature.

    Args:
        likelihood: What the outputs mean.
        before: Outputs, ``[B, C]``, or ``[B, T, C]`` for sequences.
        now: Outputs of the same shape, or with ``places`` more of them.
        temperature: What logits are divided by.
        places: For classes, where among the outputs ``now`` those ``before`` are; any other had probability 0.

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
    q = q if places is None else q[..., places]
    each = temperature**2 * (p.exp() * (p - q)).sum(-1)
    return each.flatten(1).sum(1) if isinstance(likelihood, Bernoulli) else each


def frozen(model: Module) -> Module:
    """A copy in evaluation mode that is not trained."""
    return copy(model).eval().requires_grad_(False)
