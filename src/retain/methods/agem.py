"""Averaged gradient episodic memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from retain.methods.memory import Choose, Replaying
from retain.models.parameters import named_parameters
from retain.tasks.batch import Batch
from retain.tasks.task import Task

_DRAWN = 256


class AGEM(Replaying):
    r"""Averaged gradient episodic memory: a step may not raise the loss on old samples, to first order.

    .. math:: \tilde g = g - \min\Big(0, \frac{g^\top g_M}{g_M^\top g_M}\Big) \, g_M, \qquad g_M = \nabla_\theta \overline{\text{nll}}_M(\theta)

    Equation 11 and algorithm 2 of Chaudhry, Ranzato, Rohrbach and Elhoseiny 2019 (https://arxiv.org/abs/1812.00420): g is the step's gradient, M a batch drawn
    from a memory of all old tasks. Where the two agree, g is left as it is; where they do not, it is projected onto what leaves the old loss alone. The
    parameters that the step trains are one vector. Under an optimiser that scales or remembers gradients, as Adam does, the step is not the projected
    direction, and may raise the old loss after all.

    A reservoir by default; the memory takes a task in when it is over, so that the samples are those of earlier tasks alone.

    Args:
        size: Samples kept, in all or of every class, see ``choose``.
        choose: ``reservoir``, ``balanced`` or ``per-class``, see :class:`~retain.methods.ER`.
        batch: Old samples a step; by default as many as there are new ones, or 256 in a loop that does not hand its batches to the penalty.
        seed: Seed of what is kept and drawn.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 2, scenario="domain", relabel=True)
        >>> result = learn(models.MLP(64, 32, 5, seed=0), stream, methods.AGEM(100), epochs=20, optimizer="sgd", lr=0.05)
        >>> bool(result.accuracy[2, 0] > 0.6)  # fine-tuning: 0.4, replay of the same samples: 0.87
        True
    """

    name = "a-gem"
    summary = "averaged gradient episodic memory: no step against the gradient on old samples"
    citation = "chaudhry2019efficient"

    def __init__(self, size: int = 1000, choose: Choose = "reservoir", *, batch: int | None = None, seed: int = 0) -> None:
        super().__init__(size, batch, seed, choose)
        self.turned, self.steps = torch.zeros(()), 0
        """How many steps of the task at hand had their gradient projected, of how many."""
        self._task: Task | None = None
        self._new = 0  # samples that passed since the last step

    def begin(self, model: nn.Module, task: Task) -> None:
        """Count from zero."""
        super().begin(model, task)
        self.turned, self.steps, self._task, self._new = torch.zeros(()), 0, task, 0

    def penalty(self, model: nn.Module, batch: Batch, outputs: Tensor) -> None:
        """None; the batch says how many old samples to draw, and which outputs compete."""
        if model.training:
            self._task, self._new = batch.task, self._new + len(batch.targets)

    @property
    def adds_to_loss(self) -> bool:
        """No: it works on the gradient."""
        return False

    def before_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Project the gradient, if it goes against that of old samples."""
        count, self._new = self.batch or self._new or _DRAWN, 0
        if not len(self.memory) or self._task is None:
            return
        known = [p for p in named_parameters(model).values() if p.grad is not None]
        with torch.enable_grad():
            rows = self.memory.sample(count)
            loss = self._task.likelihood.mean_nll(self.ask(model, rows, self._task), rows["targets"])
            old = torch.autograd.grad(loss, known, allow_unused=True)
        pairs = [(p.grad, g) for p, g in zip(known, old, strict=True) if g is not None]
        if not pairs:  # old and new samples share no parameter
            return
        with torch.no_grad():
            mine, theirs = map(list, zip(*pairs, strict=True))
            along = torch.stack([(a * b).sum() for a, b in zip(mine, theirs, strict=True)]).sum()
            size = torch.stack([b.square().sum() for b in theirs]).sum()
            share = (along / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp_max(0)  # no look at it: a device would have to wait
            torch._foreach_sub_(mine, torch._foreach_mul(theirs, share))
            self.turned = self.turned.to(share.device) + (share < 0)
            self.steps += 1

    def report(self, model: nn.Module) -> dict[str, float]:
        """The share of the task's steps whose gradient was projected."""
        return {"projected": float(self.turned) / self.steps} if self.steps else {}

    def state_dict(self) -> dict[str, Any]:
        """The memory, and how many steps were projected."""
        return {**super().state_dict(), "turned": self.turned, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Take it up again."""
        super().load_state_dict(state, model)
        self.turned, self.steps, self._new = state["turned"], state["steps"], 0

    def settings(self) -> dict[str, Any]:
        """What it was made with."""
        return {name: getattr(self, name) for name in ("size", "choose", "batch", "seed")}
