"""The contract of a method: hooks with working defaults."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from retain.tasks.batch import Batch, apply
from retain.tasks.task import Task


class Method:
    """Something that carries knowledge from one task to the next.

    A method sees the unwrapped module, tensors and torch's own optimiser, and nothing of the loop around it, so it works in
    anyone's. Every hook has a default that does nothing; a method overrides the few it needs.
    """

    name: ClassVar[str] = ""
    """The name on the command line and in tables."""
    summary: ClassVar[str] = ""
    """One line for listings."""
    citation: ClassVar[str] = ""
    """Key of the paper in ``references.bib``."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """Change the model before any optimiser exists; a model that it has changed before is returned as it is."""
        return model

    def groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        """What an optimiser trains, as torch's parameter groups; a group may have a learning rate of its own."""
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]

    answers_from_memory: bool = False
    """Whether :meth:`predict` needs what :meth:`consolidate` noted of a task to answer about it: ``learn`` then never leaves it out."""

    own: Optimizer | None = None
    """What :meth:`optimizer` made for the task at hand; :func:`retain.attach` takes no other."""

    def optimizer(self, model: nn.Module, lr: float) -> Optimizer | None:
        """An optimiser of the method's own, kept in ``own``; ``None`` leaves the choice to the loop.

        ``learn`` asks for it after :meth:`begin`, a person's loop before ``attach``, so :meth:`begin` has to tell the one that is there of the task.
        Where it has a context ``sampled()``, the forward and backward pass of every step belong inside.

        Args:
            model: The unwrapped model, after :meth:`prepare`.
            lr: Learning rate.

        Returns:
            The optimiser, or ``None``.
        """
        return None

    @property
    def scouts(self) -> bool:
        """Whether the next task has to be fitted freely before :meth:`begin`, by a copy of the model; ``learn`` does it."""
        return False

    def scout(self, model: nn.Module, task: Task) -> None:
        """Look at a model that learned the task freely."""

    def begin(self, model: nn.Module, task: Task) -> None:
        """Before a task is learned. When a task is gone on with, :meth:`load_state_dict` follows and has to restore what this did."""

    def augment(self, batch: Batch, model: nn.Module) -> Batch:
        """Add to a batch, such as old examples."""
        return batch

    def penalty(self, model: nn.Module, batch: Batch, outputs: Tensor) -> Tensor | None:
        """A data-dependent term in nats per new sample, reusing the outputs; ``None`` is none."""
        return None

    @property
    def adds_to_loss(self) -> bool:
        """Whether it works by :meth:`penalty`, which a loop of one's own has to add then."""
        return type(self).penalty is not Method.penalty

    def before_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """On the final gradients, just before the optimiser's step."""

    def after_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Just after a step that was taken."""

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """After a task: remember. What changes the model's answers here has to change its parameters or buffers, or :meth:`predict` too."""

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Answer; differs from the forward pass for some methods."""
        return apply(model, batch)

    def report(self, model: nn.Module) -> dict[str, float]:
        """What the method has to say of the model after an epoch: numbers by name, for events and curves."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers: tensors and plain values only."""
        return {}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Remember what :meth:`state_dict` described."""

    def settings(self) -> dict[str, Any]:
        """What the method was made with."""
        return {}

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.settings().items())
        return f"{type(self).__name__}({inside})"

    def __str__(self) -> str:
        return self.name


class Plain(Method):
    """Fine-tuning: nothing but the last weights crosses over. The baseline of every comparison."""

    name = "plain"
    summary = "fine-tuning, nothing protects the old task"
