"""A method in a loop of your own: two lines."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from retain.errors import RetainError, RetainWarning
from retain.methods.base import Method
from retain.models.parameters import named_parameters, unwrap
from retain.tasks.batch import Batch
from retain.tasks.task import Task, as_task


class Guard:
    """A method attached to an optimiser; made by :func:`attach`.

    Args:
        method: The method.
        model: The unwrapped model.
        optimizer: The optimiser whose steps it joins.
        task: The task being learned.
    """

    def __init__(self, method: Method, model: nn.Module, optimizer: Optimizer, task: Task) -> None:
        self.method, self.model, self.optimizer, self.task = method, model, optimizer, task
        self._done = self._asked = False
        self._handles = [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)]

    def penalty(self, batch: Batch | tuple[Any, Tensor], outputs: Tensor) -> Tensor:
        """The data-dependent term of the loss, a scalar in nats per sample; 0 for methods that have none, and those that have one take no step without it.

        Args:
            batch: A :class:`~retain.tasks.Batch`, or ``(inputs, targets)``.
            outputs: The model's outputs for it.

        Returns:
            A scalar to add to the loss.
        """
        if not isinstance(batch, Batch):
            batch = Batch(*batch, self.task)
        self._asked = True
        found = self.method.penalty(self.model, batch, outputs)
        return outputs.new_zeros(()) if found is None else found

    def consolidate(self) -> None:
        """Remember this task, and let go of the optimiser.

        Raises:
            RetainError: If this was done before: the task would count twice.
        """
        if self._done:
            raise RetainError("guard: expected to consolidate once, found a second call, which would count the task twice. Attach again for another task.")
        self._done = True
        self.detach()
        self.method.consolidate(self.model, self.task)

    def detach(self) -> None:
        """Let go of the optimiser without remembering."""
        for handle in self._handles:
            handle.remove()

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [value for value in args if value is not optimizer]  # torch hands the optimiser itself along
        if (given[0] if given else kwargs.get("closure")) is not None:
            raise RetainError(
                "optimizer.step(closure): expected a step without a closure, found one. The closure recomputes the gradients after "
                "the pull was added. Call backward() yourself, then step()."
            )
        if self.method.adds_to_loss and not self._asked:
            raise RetainError(
                f"guard.penalty: expected it in the loss, found a step without it; {self.method} works by it. "
                "Write loss = loss + guard.penalty((inputs, targets), outputs) before backward()."
            )
        # A fused optimiser under a GradScaler divides by the scale inside its step, so the pull would be divided too.
        scale: Tensor | None = getattr(optimizer, "grad_scale", None)
        if scale is not None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            torch._foreach_mul_(gradients, 1.0 / float(scale))
            optimizer.grad_scale = None  # type: ignore[attr-defined]
        if not self._skipped(optimizer):
            self.method.before_step(self.model, optimizer)

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._asked = False
        if not self._skipped(optimizer):
            self.method.after_step(self.model, optimizer)

    @staticmethod
    def _skipped(optimizer: Optimizer) -> bool:
        """Whether a GradScaler has found an overflow, so that the fused step changes nothing."""
        found: Tensor | None = getattr(optimizer, "found_inf", None)
        return found is not None and bool(found)


def attach(method: Method, model: nn.Module, optimizer: Optimizer, task: Any, *, n: int = 0) -> Guard:
    """Join a method to a loop of your own.

    ``method.begin`` is called now; ``before_step`` and ``after_step`` run inside every ``optimizer.step()`` through torch's own
    hooks. Gradient accumulation, clipping and a GradScaler work as they are: the pull is added once a step, to the final
    gradients, and a step that the scaler skips is not counted.

    Args:
        method: The method. If it has not seen the old task, call ``method.consolidate(model, old_task)`` first.
        model: The model, wrapped (DataParallel, ``torch.compile``) or not.
        optimizer: The optimiser that your loop steps.
        task: The new task: a :class:`~retain.tasks.Task`, or the DataLoader or arrays that your loop reads.
        n: Samples of the new task, if ``task`` cannot tell.

    Returns:
        A guard: ``guard.penalty(batch, outputs)`` is added to the loss for methods that work by it, such as replay and distillation;
        ``guard.consolidate()`` at the end.

    Raises:
        RetainError: If the optimiser only works with a closure, trains none of the model's parameters, or is not the method's own where it has one.

    Example:
        >>> import torch, retain
        >>> from retain import methods, models, tasks
        >>> old, new = tasks.split(tasks.digits(), 2, scenario="task")
        >>> model, method = models.MLP(64, 10, seed=0), methods.EWC()
        >>> method.consolidate(model, old)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> guard = retain.attach(method, model, optimizer, new)
        >>> for batch in new.batches(64):
        ...     optimizer.zero_grad()
        ...     torch.nn.functional.cross_entropy(model(batch.inputs), batch.targets).backward()
        ...     _ = optimizer.step()
        >>> guard.consolidate()
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise RetainError("optimizer: expected one that steps without a closure, found LBFGS. Use SGD or Adam.")
    plain = unwrap(model)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in trained for p in named_parameters(plain).values()):
        raise RetainError(
            "optimizer: expected one that trains the model's parameters, found one that trains none of them. Make it after method.prepare(model)."
        )
    if type(method).optimizer is not Method.optimizer and method.own is not optimizer:
        raise RetainError(
            f"optimizer: expected the one that {method} makes for this task, found another ({type(optimizer).__name__}). "
            "Take optimizer = method.optimizer(model, lr) before every task."
        )
    task = as_task(task, n=n, id="new")
    if type(method).augment is not Method.augment:
        raise RetainError(f"method: expected one that adds nothing to the batch, found {method}. Use retain.learn, or call method.augment in your loop.")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats for module in plain.modules()):
        warnings.warn(
            "The model's batch-norm statistics move with the new data, and no belief protects them: put those layers in eval().", RetainWarning, stacklevel=2
        )
    method.begin(plain, task)
    return Guard(method, plain, optimizer, task)
