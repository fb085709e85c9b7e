"""Watching a model at work: which axes of which weights meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from retain.merging.axes import Axes, Axis
from retain.merging.rules import RULES, SILENT


class Follower(TorchFunctionMode):
    """Inside the block every call to torch is answered as ever, and ties the axes that it makes meet.

    A call without a rule pins the axes of all that goes into it, so that not knowing a function costs symmetries and never correctness.

    Args:
        weights: Parameters and buffers by name.
        inputs: What the model will be given.
    """

    def __init__(self, weights: Mapping[str, Tensor], inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.axes = Axes()
        self.weights = dict(weights)
        self._names = {id(value): name for name, value in weights.items()}
        self.unused = set(weights)
        for value in weights.values():
            self.axes.put(value, tuple(self.axes.free(size) for size in value.shape))
        for value in inputs:
            self.axes.put(value, tuple(self.axes.fixed(size) for size in value.shape))

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Call the function, then take note of it."""
        kwargs = kwargs or {}
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        shapes = [value.shape for value in given]
        found = func(*args, **kwargs)
        name = _name(func)
        if name in SILENT:
            return found
        for value in given:
            self.unused.discard(self._names.get(id(value), ""))
        made = [value for value in tree_leaves(found) if isinstance(value, Tensor)]
        axes = None
        if name in RULES and len(made) == 1 and [value.shape for value in given] == shapes:
            axes = RULES[name](self.axes, func, args, kwargs, made[0])
        if axes is not None and self._fits(made[0], axes, given):
            self.axes.put(made[0], axes)
            return found
        why = f"'{name}' is not followed"
        for value in given:
            self.pin(value, why)
        for value in made:  # also one changed in place, whose shape may be another now
            self.axes.put(value, tuple(self.axes.fixed(size, why) for size in value.shape))
        return found

    def _fits(self, made: Tensor, axes: tuple[Axis, ...], given: list[Tensor]) -> bool:
        """Whether a rule said something of the right shape and, of a tensor changed in place, nothing new."""
        if tuple(axis.size for axis in axes) != tuple(made.shape):
            return False
        if not any(made is value for value in given):
            return True
        return all(new.size == 1 or new.root == old.root for new, old in zip(axes, self.axes.of(made), strict=True))

    def pin(self, value: Tensor, why: str) -> None:
        """Keep the order along every axis of a tensor."""
        for axis in self.axes.of(value):
            self.axes.pin(axis, why)

    def result(self) -> dict[str, tuple[Axis, ...]]:
        """The axes of every parameter and buffer, by their roots."""
        for name in self.unused:
            self.pin(self.weights[name], "not used on the example")
        return {name: tuple(axis.root for axis in self.axes.of(value)) for name, value in self.weights.items()}


def _name(func: Any) -> str:
    """One name for a function, a method and its in-place form; for a property its own."""
    name = getattr(func, "__name__", "") or type(func).__name__
    return str(getattr(func.__self__, "__name__", name)) if name == "__get__" and hasattr(func, "__self__") else name.strip("_")
