"""What a recipe is: phases of training, what each trains, and what holds the weights meanwhile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from retain.methods import Method
from retain.tasks import Task


@dataclass(frozen=True)
class Phase:
    """A part of training.

    Args:
        name: For tables.
        share: Share of the epochs, in (0, 1]; a phase that is solved takes none.
        trains: Whether a parameter is trained, by its name; the others keep their values.
        lr: Factor of the learning rate.
        method: What holds weights, or adds to the loss.
        anchor: Data on which the method is told, before the phase, what to hold; ``None`` for a method that needs none, or isn't told.
        anchored: Tell it.
        solved: The head alone is fitted, to the end: its inputs are computed once (:func:`~retain.recipes.solve_head`).
        penalty: Of the head that is solved for; ``None`` chooses.
        since: Begin where the model was after so many phases, not where the last one ended.
    """

    name: str
    share: float = 1.0
    trains: Callable[[str], bool] = field(default=lambda name: True)
    lr: float = 1.0
    method: Method | None = None
    anchored: bool = False
    anchor: Task | None = None
    solved: bool = False
    penalty: float | None = None
    since: int | None = None


@dataclass
class Place:
    """What a recipe may look at.

    Args:
        model: The model, with its new head, before any training.
        head: The head's name.
        task: The task.
        seed: Of whatever is drawn.
        batchnorm: Whether batch-norm statistics follow the data: ``track`` or ``freeze``.
    """

    model: nn.Module
    head: str
    task: Task
    seed: int = 0
    batchnorm: str = "track"

    def in_head(self, name: str) -> bool:
        """Whether a parameter is the head's."""
        return name == self.head or name.startswith(f"{self.head}.")


class Recipe(ABC):
    """How a model that learned one thing is made to learn another: phases, and what is done before and after them."""

    name: ClassVar[str]
    summary: ClassVar[str]
    citation: ClassVar[str] = ""
    """Key of the paper in ``references.bib``."""

    def start(self, place: Place) -> nn.Module:
        """Change the model before anything is trained; by default it stays as it is."""
        return place.model

    @contextmanager
    def during(self, place: Place) -> Iterator[dict[str, Any]]:
        """Around all phases: change layers for the time of training, and back again; yields what there is to tell, plain values."""
        yield {}

    @abstractmethod
    def phases(self, place: Place) -> Sequence[Phase]:
        """What is trained, one after the other; their shares add up to 1."""

    def finish(self, place: Place, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Change the model after training, given its state before the first phase and after each; returns what there is to tell, plain values."""
        return {}

    def settings(self) -> dict[str, Any]:
        """What the recipe was made with."""
        return {}

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.settings().items())
        return f"{type(self).__name__}({inside})"


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks of a model in order, from the inputs to the head: its children, with containers taken apart.

    A model that is one large child and a small rest, such as a backbone in a wrapper, is taken apart one level further.

    Args:
        model: Any module.

    Returns:
        Names and modules that own parameters; together they own all of them, except those that the model or a container owns itself.

    Example:
        >>> from retain.models import MLP
        >>> from retain.recipes import blocks
        >>> [name for name, _ in blocks(MLP(4, 3, 2, seed=0))]
        ['layers.fc1', 'layers.fc2']
    """
    total = sum(p.numel() for p in model.parameters())
    found: list[tuple[str, nn.Module]] = []

    def walk(name: str, module: nn.Module, depth: int) -> None:
        size = sum(p.numel() for p in module.parameters())
        if not size:
            return
        children = list(module.named_children())
        wrapper = size > 0.9 * total and depth < 3 and len(children) > 1
        if children and (isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) or wrapper):
            for child, inner in children:
                walk(f"{name}.{child}" if name else child, inner, depth + 1)
        else:
            found.append((name, module))

    for child, inner in model.named_children():
        walk(child, inner, 1)
    return found or [("", model)]
