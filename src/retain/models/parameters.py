"""Parameters by canonical name, whatever a model is wrapped in."""

from __future__ import annotations

import copy as _copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

_WRAPPERS = ("_orig_mod", "module")  # torch.compile; DataParallel, DistributedDataParallel
Module = TypeVar("Module", bound=nn.Module)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``, DataParallel and DistributedDataParallel wrappers.

    Args:
        model: Any module.

    Returns:
        The module itself where nothing is wrapped.

    Example:
        >>> from torch import nn
        >>> inner = nn.Linear(2, 2)
        >>> unwrap(nn.DataParallel(inner)) is inner
        True
    """
    while True:
        inside = next((model._modules[name] for name in _WRAPPERS if list(model._modules) == [name]), None)
        if inside is None or type(model).__module__.split(".")[0] != "torch":
            return model
        model = inside


def named_parameters(model: nn.Module, *, trainable: bool = True) -> dict[str, nn.Parameter]:
    """Parameters by the name they have in the unwrapped model; a tied parameter appears once.

    Args:
        model: Any module, wrapped or not.
        trainable: Only those that require a gradient.

    Returns:
        A dict in the model's own order.
    """
    return {name: p for name, p in unwrap(model).named_parameters() if p.requires_grad or not trainable}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is in evaluation mode; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def copy(model: Module) -> Module:
    """A model with the same weights and no ties to the original."""
    return _copy.deepcopy(model)
