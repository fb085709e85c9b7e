"""Variational continual learning with a few old examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from retain.errors import InputError, check_count, check_positive
from retain.methods.vcl import VCL
from retain.models.parameters import copy
from retain.seeds import generator, seeded
from retain.tasks.batch import Batch, apply
from retain.tasks.data import TensorData
from retain.tasks.task import Task, as_task


class CoresetVCL(VCL):
    r"""Variational continual learning that refreshes itself with a few examples of every task before it answers.

    After task t a coreset :math:`C_t` of its examples joins those of the tasks before. The belief that is carried on, :math:`\tilde q_t`, never sees them as
    such; to answer, a copy is trained on them with :math:`\tilde q_t` as its prior:
    :math:`q_t = \arg\min_q \mathbb{E}_q[\text{nll}_{C}] + \mathrm{KL}(q \,\|\, \tilde q_t)`. Algorithm 1 of Nguyen et al. 2018 (https://arxiv.org/abs/1710.10628).
    Departure: a task's examples stay in its training data too, where the paper leaves them out until the task is over.

    Args:
        size: Examples kept of each task.
        choose: ``random``, or ``k-center``: each next one is farthest from those chosen (Gonzalez 1985), in the inputs' Euclidean distance.
        epochs: Steps of the refreshing, each on all examples of a task.
        lr: Their learning rate (Adam).
        seed: Draws the examples.
        **settings: As for :class:`VCL`.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.permute(tasks.digits(), 3)
        >>> result = learn(models.MLP(64, 32, 10, seed=0), stream, methods.CoresetVCL(40, lr=0.01), epochs=20, lr=0.005)
        >>> bool(result.accuracy[3].min() > 0.75)  # without the coreset 0.74
        True
    """

    name = "vcl-coreset"
    summary = "variational continual learning, refreshed with a few old examples before it answers"
    citation = "nguyen2018variational"
    answers_from_memory = True

    def __init__(
        self, size: int = 200, *, choose: Literal["random", "k-center"] = "random", epochs: int = 100, lr: float = 1e-3, seed: int = 0, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.size, self.epochs, self.lr, self.seed = check_count("size", size), check_count("epochs", epochs), check_positive("lr", lr), seed
        if choose not in ("random", "k-center"):
            raise InputError("choose", "'random' or 'k-center'", repr(choose))
        self.choose = choose
        self._kept: list[dict[str, Any]] = []  # inputs, targets and active outputs of each task's examples
        self._refreshed: nn.Module | None = None

    def begin(self, model: nn.Module, task: Task) -> None:
        """Let go of the refreshed copy, and begin."""
        super().begin(model, task)
        self._refreshed = None

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Remember the posterior, keep some examples, and refresh a copy with all that were kept."""
        super().consolidate(model, task)
        task = as_task(task)
        if not isinstance(task.data, TensorData):
            raise InputError("data", "tensors to keep examples of", type(task.data).__name__, "Pass Task((inputs, targets)).")
        chosen = choose_examples(task.data.inputs, self.size, self.choose, generator(self.seed, "coreset", len(self._kept)))
        examples = task.data.take(chosen)
        self._kept.append({"inputs": examples.inputs, "targets": examples.targets, "active": task.active})
        self._refreshed = self._refresh(model, task)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """The refreshed copy's answer; during a task the model's own."""
        return super().predict(self._refreshed or model, batch)

    def _refresh(self, model: nn.Module, last: Task) -> nn.Module:
        made, was = copy(model), model.training
        tasks = [replace(last, data=(k["inputs"], k["targets"]), test=None, validation=None, classes=None, active=k["active"], n=0) for k in self._kept]
        helper = VCL(beta=self.beta, strength=self.strength)  # at the pace of Adam, whatever learns the tasks
        helper.posterior = self.posterior
        helper.begin(made, replace(tasks[-1], active=None, n=sum(task.n for task in tasks)))
        steps = torch.optim.Adam(helper.groups(made, self.lr), lr=self.lr)
        made.train()
        with seeded(self.seed, "refresh", len(tasks)):
            for _ in range(self.epochs):
                for task in tasks:
                    steps.zero_grad()
                    batch = next(iter(task.batches(task.n)))
                    task.likelihood.mean_nll(apply(made, batch), batch.targets).backward()
                    helper.before_step(made, steps)
                    steps.step()
                    helper.after_step(made, steps)
        return made.train(was)

    def state_dict(self) -> dict[str, Any]:
        """What VCL remembers, the examples and the refreshed copy."""
        return {**super().state_dict(), "kept": self._kept, "refreshed": None if self._refreshed is None else self._refreshed.state_dict()}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Take it up again."""
        super().load_state_dict(state, model)
        place = next(model.parameters()).device
        self._kept = [
            {"inputs": k["inputs"].to(place), "targets": k["targets"].to(place), "active": None if k["active"] is None else tuple(k["active"])}
            for k in state["kept"]
        ]
        self._refreshed = None
        if state["refreshed"] is not None:
            self._refreshed = copy(model)
            self._refreshed.load_state_dict(state["refreshed"])

    def settings(self) -> dict[str, Any]:
        """What it was made with."""
        return {**{name: getattr(self, name) for name in ("size", "choose", "epochs", "lr", "seed")}, **super().settings()}


def choose_examples(inputs: Tensor, size: int, choose: str, draw: torch.Generator) -> Tensor:
    """Places of ``size`` examples, or of all if there are fewer.

    Args:
        inputs: ``[N, ...]``.
        size: How many.
        choose: ``random`` or ``k-center``.
        draw: Draws them, or the first centre.

    Returns:
        Whole numbers.
    """
    order = torch.randperm(len(inputs), generator=draw)[: min(size, len(inputs))].to(inputs.device)
    if choose == "random":
        return order
    flat = inputs.flatten(1).float()
    chosen = order[:1].tolist()
    nearest = (flat - flat[chosen[0]]).square().sum(1)
    while len(chosen) < min(size, len(inputs)):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (flat - flat[chosen[-1]]).square().sum(1))
    return torch.tensor(chosen, device=inputs.device)
