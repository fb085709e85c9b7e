"""What happens to batch-norm statistics, which no belief protects."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from retain.errors import InputError

BatchNormPolicy = Literal["freeze", "track", "per-task"]


class BatchNormKeeper:
    """Keeps a model's batch-norm statistics as the policy says.

    Args:
        model: The model.
        policy: ``freeze`` after the first task (later tasks use its statistics), ``track`` through all tasks as torch does, or
            ``per-task``: each task is evaluated with its own.
        stored: Statistics by task id; those of finished tasks are added.

    Raises:
        InputError: If the policy is unknown.
    """

    def __init__(self, model: nn.Module, policy: BatchNormPolicy, stored: dict[str, dict[str, Tensor]] | None = None) -> None:
        if policy not in ("freeze", "track", "per-task"):
            raise InputError("batchnorm", "'freeze', 'track' or 'per-task'", repr(policy))
        self.policy = policy
        self.layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
        self.stored = {} if stored is None else stored

    def training(self, *, first: bool) -> None:
        """After ``model.train()``: put the layers in the mode for training the first task, or a later one."""
        if self.policy == "freeze" and not first:
            for layer in self.layers.values():
                layer.eval()

    def finished(self, task: str) -> None:
        """After a task was learned."""
        if self.policy == "per-task" and self.layers:
            self.stored[task] = self._now()

    def enter(self, task: str) -> dict[str, Tensor] | None:
        """Put a task's own statistics in place; hand the result to :meth:`leave`."""
        if task not in self.stored:
            return None
        before = self._now()
        self._put(self.stored[task])
        return before

    def leave(self, before: dict[str, Tensor] | None) -> None:
        """Put back what :meth:`enter` replaced."""
        if before is not None:
            self._put(before)

    def _now(self) -> dict[str, Tensor]:
        return {f"{name}.{key}": value.clone() for name, layer in self.layers.items() for key, value in layer.named_buffers()}

    def _put(self, values: dict[str, Tensor]) -> None:
        for name, layer in self.layers.items():
            for key, buffer in layer.named_buffers():
                buffer.copy_(values[f"{name}.{key}"])
