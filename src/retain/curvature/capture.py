"""Which layers a forward pass went through, and what went into and came out of them."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from retain.curvature.rules import RULES, Site


class Use(NamedTuple):
    """A site and the module that it belongs to."""

    module: str
    site: Site


class Capture:
    """Records the sites of all modules that have a rule while it is open.

    A module that follows may overwrite an output in place (``ReLU(inplace=True)``); the gradient at the stored tensor would then
    be the one behind that module. Such outputs are found by their version counter, and :meth:`stale` says that the forward pass
    has to be repeated, in which they are handed on as copies.

    Args:
        model: The model.
        trainable: Identities of the parameters wanted; modules that own none of them are not watched.
    """

    def __init__(self, model: nn.Module, trainable: set[int]) -> None:
        self.modules = {
            name: module
            for name, module in model.named_modules()
            if type(module) in RULES
            and "forward" not in vars(module)
            and not module._forward_pre_hooks
            and any(id(p) in trainable for p in module.parameters())
        }
        self.uses: list[Use] = []
        self.recording = False
        """Whether a forward pass counts; the slow way runs the model too."""
        self.axes: dict[tuple[str, int], int] = {}
        """Where the samples are, by module and number of its site; first where nothing is said."""
        self._versions: list[int] = []
        self._copied: set[str] = set()
        self._handles: dict[str, RemovableHandle] = {}

    def __enter__(self) -> Capture:
        for name, module in self.modules.items():
            # first, so that what other hooks make of the output comes after it
            self._handles[name] = module.register_forward_hook(self._hook(name), prepend=True, with_kwargs=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles.values():
            handle.remove()
        self.clear()

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        rule = RULES[type(self.modules[name])]

        def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
            if not self.recording:
                return None
            given = [*inputs, *(None for _ in rule.arguments[len(inputs) :])]
            for key, value in keywords.items():
                given[rule.arguments.index(key)] = value
            while len(given) > len(inputs) and rule.arguments[len(given) - 1] not in keywords:
                given.pop()
            found = rule.sites(module, tuple(given), output)
            if found.output is not None and not _same(found.output, output):
                return None  # the layer computes something else than its kind does
            output = output if found.output is None else found.output
            for site in found.sites:
                if not site.out.requires_grad:
                    continue  # under no_grad: nothing reaches it
                site.axis = self.axes.get((name, sum(use.module == name for use in self.uses)), 0)
                self.uses.append(Use(name, site))
                self._versions.append(site.out._version)
            if name in self._copied:
                return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, output)
            return None if found.output is None else output

        return hook

    def clear(self) -> None:
        """Forget the last forward pass."""
        self.uses, self._versions = [], []

    def keep_batched(self, count: int) -> None:
        """Forget sites whose sample axis is not as long as the batch: there the layer was used in another way than before."""
        self.uses = [use for use in self.uses if use.site.axis < use.site.out.ndim and use.site.out.shape[use.site.axis] == count]

    def drop(self, name: str) -> None:
        """Watch this module no more."""
        del self.modules[name]
        self._handles.pop(name).remove()

    def stale(self) -> bool:
        """Whether an output was overwritten since; those are copied from now on, and the forward pass has to be repeated."""
        changed = {use.module for use, version in zip(self.uses, self._versions, strict=True) if use.site.out._version != version}
        self._copied |= changed
        return bool(changed)


def _same(first: Any, second: Any) -> bool:
    """Whether two outputs, nested as they may be, agree to rounding."""
    pairs = zip(tree_leaves(first), tree_leaves(second), strict=False)
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor))
