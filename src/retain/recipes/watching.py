"""What a penalty sees of the ordinary forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from retain.methods import Method
from retain.tasks import Batch


class Watching(Method):
    """A method whose penalty is of what layers give, or are given, in the ordinary forward pass: no other pass is needed.

    Hooks are set just before the pass and taken away by :meth:`caught`, so none is left on the model after a step.

    Args:
        names: The layers' names.
        inputs: Catch what they are given; otherwise what they give.
    """

    def __init__(self, names: Sequence[str] = (), *, inputs: bool = False) -> None:
        self.names, self.inputs = list(names), inputs
        self._hooks: list[RemovableHandle] = []
        self._found: dict[str, Tensor] = {}

    def augment(self, batch: Batch, model: nn.Module) -> Batch:
        """The batch as it is; the hooks are set."""
        self.watch(model)
        return batch

    def watch(self, model: nn.Module) -> None:
        """Set the hooks; those of a pass that failed are taken away first."""
        self.caught()
        for name in self.names:

            def catch(module: nn.Module, given: tuple[Any, ...], answer: Any = None, *, name: str = name) -> None:
                self._found[name] = given[0] if self.inputs else answer

            layer = model.get_submodule(name)
            self._hooks.append(layer.register_forward_pre_hook(catch) if self.inputs else layer.register_forward_hook(catch))

    def caught(self) -> dict[str, Tensor]:
        """Take the hooks away, and hand over what they caught: by name, the last call's."""
        for hook in self._hooks:
            hook.remove()
        found, self._hooks, self._found = self._found, [], {}
        return found
