"""Incremental classifier and representation learning."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from retain.errors import InputError, check_count
from retain.likelihoods import Bernoulli, Categorical
from retain.methods.base import Method
from retain.methods.lwf import frozen
from retain.methods.memory import on_device, unmasked, within
from retain.models.heads import features, find_head
from retain.seeds import generator
from retain.tasks.batch import Batch, apply, mask
from retain.tasks.task import Task


class ICaRL(Method):
    r"""iCaRL: a few chosen samples of each class, whose mean feature answers; the network is trained on all classes' yes and no.

    .. math:: \hat y(x) = \arg\min_y \big\| \phi(x) - \mu_y \big\|, \qquad
       \mathcal{L}(\theta) = \frac{1}{|D|} \sum_{(x, c) \in D} \Big[ \sum_{y \in \text{new}} \mathrm{bce}\big([y = c], g_y(x)\big)
       + \sum_{y \in \text{old}} \mathrm{bce}\big(\sigma(g_y^\text{old}(x)), g_y(x)\big) \Big]

    with :math:`\phi` what the last linear layer is given, at length 1, :math:`\mu_y` the mean of class y's kept samples, at length 1 too, D the new data and
    all that is kept, :math:`g` the outputs, and :math:`g^\text{old}` those before the task. Algorithms 1 to 5 of Rebuffi et al. 2017
    (https://arxiv.org/abs/1611.07725). Kept are those whose mean stays nearest to their class's, in this order (herding), so the first m of them are the m to
    keep when room gets short.

    Departures: a step sees the new batch and as many kept samples, weighted as their shares of D, where the paper draws from D, whose few kept samples are
    then in few batches; a loop's loss stays the new batch's, and the penalty is what is missing. A class that comes again (domain-incremental streams) is
    learned from its labels, and chosen anew from what is kept of it and what is new. Until the task at hand is over its new classes have no mean: whoever
    asks among them gets the network's outputs.

    Answers are minus squared distances, among the outputs that compete; their softmax is flat, and no probability to rely on.

    Args:
        size: Samples kept, in all or of every class, see ``choose``.
        choose: ``balanced``: ``size`` in all, as many of each class and at least one, as in the paper. ``per-class``: ``size`` of each class.
        batch: Kept samples a step; as many as there are new ones by default.
        head: Name of the last linear layer, where :func:`retain.models.find_head` cannot find it.
        seed: Draws which kept samples a step sees.

    Raises:
        InputError: If a setting is out of range, a task has no classes, inputs are not one tensor, or the model has no last linear layer.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 2, scenario="class")
        >>> result = learn(models.MLP(64, 32, 10, seed=0), stream, methods.ICaRL(100), epochs=20, lr=0.005)
        >>> bool(result.accuracy[2].min() > 0.75)  # fine-tuning: 0
        True
    """

    name = "icarl"
    summary = "iCaRL: chosen samples of each class, whose mean feature answers"
    citation = "rebuffi2017icarl"
    answers_from_memory = True

    def __init__(
        self, size: int = 2000, choose: Literal["balanced", "per-class"] = "balanced", *, batch: int | None = None, head: str | None = None, seed: int = 0
    ) -> None:
        if choose not in ("balanced", "per-class"):
            raise InputError("choose", "'balanced' or 'per-class'", repr(choose))
        self.size, self.choose, self.head, self.seed = check_count("size", size), choose, head, check_count("seed", seed, least=0)
        self.batch = None if batch is None else check_count("batch", batch)
        self.classes: list[int] = []
        """Labels of what is kept."""
        self.met: set[int] = set()
        """Classes of the tasks that are over; one of which there was no sample has no mean, and is never the answer."""
        self.inputs: Tensor | None = None
        """What is kept, class by class, the most telling first."""
        self.labels: Tensor | None = None
        """Its labels."""
        self.teacher: nn.Module | None = None
        """The model as it was before the task at hand."""
        self.draw = generator(self.seed, "replay")
        self._found: tuple[list[Tensor], Tensor] | None = None  # the classes' means, and of which weights

    @property
    def kept(self) -> dict[int, Tensor]:
        """What is kept by class, the most telling first."""
        if self.inputs is None or self.labels is None:
            return {}
        return {label: self.inputs[self.labels == label] for label in self.classes}

    def begin(self, model: nn.Module, task: Task) -> None:
        """Keep a copy of the model."""
        outputs = find_head(model, self.head)[1].out_features
        if max(_classes(task)) >= outputs:
            raise InputError("classes", f"below {outputs}, the outputs of the last layer", max(_classes(task)), "Give the model more outputs.")
        self.teacher, self._found = frozen(model) if self.classes else None, None

    def penalty(self, model: nn.Module, batch: Batch, outputs: Tensor) -> Tensor:
        """What makes the loss that of every class's yes and no, on new and kept samples."""
        known = (*self.classes, *_classes(batch.task))
        seen = outputs if within(known, batch.task.active) else None
        total = self.loss(model, batch, seen)
        if self.teacher is not None and self.inputs is not None and self.labels is not None:
            places = torch.randperm(len(self.labels), generator=self.draw)[: self.batch or len(batch.targets)].to(self.labels.device)
            share = len(self.labels) / (len(self.labels) + batch.task.n)
            total = (1 - share) * total + share * self.loss(model, Batch(self.inputs.index_select(0, places), self.labels[places], batch.task))
        return total - batch.task.likelihood.mean_nll(outputs, batch.targets, batch.weight)

    def loss(self, model: nn.Module, batch: Batch, outputs: Tensor | None = None) -> Tensor:
        """Mean over samples of the sum over classes: classes of the batch's task against labels, others against what the old network said.

        Args:
            model: The model.
            batch: Samples, new or kept.
            outputs: The model's, where all classes so far compete; a forward pass by default.

        Returns:
            A scalar, in nats per sample.
        """
        new = _classes(batch.task)
        old = [label for label in self.classes if label not in new] if self.teacher is not None else []
        asked = Batch(batch.inputs, batch.targets, unmasked(batch.task))
        now = apply(model, asked) if outputs is None else outputs
        goal = F.one_hot(batch.targets.long(), now.shape[-1]).to(now.dtype)
        if old and self.teacher is not None:
            with torch.no_grad():
                goal[:, old] = apply(self.teacher, asked)[:, old].sigmoid().to(goal.dtype)
        columns = [*old, *new]
        return Bernoulli().mean_nll(now[:, columns], goal[:, columns], batch.weight)

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Choose what to keep of the task's classes, and of older ones the first."""
        task = on_device(task, model)
        self.met |= set(_classes(task))
        parts = list(task.batches(1000))
        for batch in parts:
            if not isinstance(batch.inputs, Tensor):
                kinds = f"{type(batch.inputs).__name__} of {len(tree_leaves(batch.inputs))}"
                raise InputError("inputs", "a tensor, since a memory keeps rows of it", kinds)
        inputs, targets = torch.cat([batch.inputs for batch in parts]), torch.cat([batch.targets for batch in parts])
        kept, labels = self.kept, targets.unique().tolist()
        each = self.size if self.choose == "per-class" else max(1, self.size // len({*kept, *labels}))
        for label in labels:
            rows = inputs[targets == label]
            rows = torch.cat([kept[label].to(rows), rows]) if label in kept else rows
            kept[label] = rows[herd(F.normalize(features(model, rows, name=self.head, batch_size=1000)), each)]
        self.classes, counts = list(kept), [min(each, len(rows)) for rows in kept.values()]
        self.inputs = torch.cat([rows[:each] for rows in kept.values()])
        self.labels = torch.tensor(self.classes).repeat_interleave(torch.tensor(counts)).to(self.inputs.device)
        self.teacher, self._found = None, None

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Minus the squared distance to every class's mean; the network's outputs while a class that competes has none."""
        asked = batch.task.classes if batch.task.active is None else batch.task.active
        if not self.classes or not set(asked or ()) <= self.met:
            return apply(model, batch)
        phi = F.normalize(features(model, batch.inputs, name=self.head, batch_size=len(batch.targets)))
        outputs = phi.new_full((len(phi), find_head(model, self.head)[1].out_features), torch.finfo(phi.dtype).min)
        means = self.means(model)
        lengths = means.any(1).to(means.dtype)  # 1 but for a class without a feature, exactly: all classes are as far from a sample without one
        outputs[:, self.classes] = 2 * phi @ means.T - phi.square().sum(1, keepdim=True) - lengths
        return mask(outputs, batch.task.active)

    def means(self, model: nn.Module) -> Tensor:
        """The mean feature of each class's kept samples, ``[classes, d]`` at length 1, as in :attr:`classes`; measured again when the weights change."""
        state = [*model.parameters(), *model.buffers()]
        if self._found is None or not _same(self._found[0], state):  # values, as a fused optimiser's step leaves no other trace
            rows = [F.normalize(features(model, one, name=self.head, batch_size=1000)).mean(0) for one in self.kept.values()]
            self._found = [tensor.detach().clone() for tensor in state], F.normalize(torch.stack(rows))
        return self._found[1]

    def state_dict(self) -> dict[str, Any]:
        """What is kept, the copy, and where the draws stand."""
        teacher = None if self.teacher is None else self.teacher.state_dict()
        return {
            "classes": self.classes,
            "met": sorted(self.met),
            "inputs": self.inputs,
            "labels": self.labels,
            "teacher": teacher,
            "draw": self.draw.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Take it up again, on the model's device."""
        place = next(model.parameters()).device
        self.classes, self.met = list(state["classes"]), set(state["met"])
        self.inputs, self.labels = (None if state[name] is None else state[name].to(place) for name in ("inputs", "labels"))
        self.draw.set_state(state["draw"].cpu())
        self.teacher, self._found = None, None
        if state["teacher"] is not None:
            self.teacher = frozen(model)
            self.teacher.load_state_dict(state["teacher"])

    def settings(self) -> dict[str, Any]:
        """What it was made with."""
        return {name: getattr(self, name) for name in ("size", "choose", "batch", "head", "seed")}


def _same(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(a.shape == b.shape and a.device == b.device and torch.equal(a, b) for a, b in zip(some, others, strict=True))


def herd(phi: Tensor, count: int) -> Tensor:
    r"""Rows whose mean stays nearest to the mean of all, one after another.

    Algorithm 4 of Rebuffi et al. 2017, without taking a row twice: the k-th is :math:`\arg\min_i \| \mu - (\phi_i + \sum_{j<k} \phi_j) / k \|`.

    Args:
        phi: ``[n, d]``, each of length 1.
        count: How many; at most n are there.

    Returns:
        Their places, in order.

    Example:
        >>> import torch
        >>> herd(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), 2)
        tensor([1, 2])
    """
    mean = F.normalize(phi.mean(0), dim=0)
    left, total, taken = torch.zeros_like(phi[:, 0]), torch.zeros_like(mean), []
    for k in range(1, min(count, len(phi)) + 1):
        near = phi @ (k * mean - total) + left  # the distance, but for what is the same for all
        best = (near >= near.max() - 16 * k * torch.finfo(near.dtype).eps).int().argmax()  # of equal ones the first, whatever the last digit says
        left[best] = -torch.inf
        total = total + phi[best]
        taken.append(best)
    return torch.stack(taken)


def _classes(task: Task) -> tuple[int, ...]:
    """The labels of a task."""
    if not isinstance(task.likelihood, Categorical):
        raise InputError("task", "classes, whose means can answer", f"{task.likelihood!r} in task '{task.id}'", "Use ER, which replays anything.")
    if task.classes is None:
        raise InputError("classes", f"those of task '{task.id}', since the data cannot tell", "none", "Pass Task(..., classes=...).")
    return task.classes
