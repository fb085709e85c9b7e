"""What went into and came out of layers during one forward pass."""

from __future__ import annotations

from types import TracebackType

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Capture:
    """Records input and output of the given modules while it is open.

    A module that follows may overwrite an output in place (``ReLU(inplace=True)``); the gradient at the stored tensor would then
    be the one behind that module. Such outputs are found by their version counter, and :meth:`stale` says whose output has to be
    handed on as a copy, in a second forward pass.

    Args:
        modules: Modules by name.
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.calls: dict[str, int] = {}
        self._versions: dict[str, int] = {}
        self._copied: set[str] = set()
        self._handles: dict[str, RemovableHandle] = {}

    def __enter__(self) -> Capture:
        for name, module in self.modules.items():
            self._handles[name] = module.register_forward_hook(self._hook(name))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles.values():
            handle.remove()

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            self.calls[name] = self.calls.get(name, 0) + 1
            if not inputs or not isinstance(output, Tensor):  # called with keywords: not ours
                self.calls[name] = 2
                return None
            self.inputs[name], self.outputs[name] = inputs[0].detach(), output
            self._versions[name] = output._version
            return output.clone() if name in self._copied else None

        return hook

    def clear(self) -> None:
        """Forget the last forward pass."""
        self.inputs, self.outputs, self.calls = {}, {}, {}

    def drop(self, name: str) -> None:
        """Watch this module no more."""
        del self.modules[name]
        self._handles.pop(name).remove()

    def stale(self) -> bool:
        """Whether an output was overwritten since; those are copied from now on, and the forward pass has to be repeated."""
        changed = {name for name, output in self.outputs.items() if output._version != self._versions[name]}
        self._copied |= changed
        return bool(changed)
