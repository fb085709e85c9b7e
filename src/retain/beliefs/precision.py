"""How sure a belief is of every weight, per sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from retain.errors import InputError


class Diagonal:
    r"""A precision that treats weights as independent: :math:`P = \operatorname{diag}(p)` with :math:`p \ge 0`.

    Args:
        values: Tensors by parameter name, each of the parameter's shape (or one number for all of it, shape ``[]``), in nats
            per sample and squared unit of the parameter.

    Raises:
        InputError: If a value is negative or not finite.

    Example:
        >>> import torch
        >>> P = Diagonal({"w": torch.tensor([1.0, 3.0])})
        >>> P.quadratic({"w": torch.tensor([2.0, 1.0])})
        7.0
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        for name, p in values.items():
            if not bool(torch.isfinite(p).all()) or (p.numel() and float(p.min()) < 0):
                raise InputError(f"precision of '{name}'", "finite values of at least 0", f"values from {float(p.min()):g} to {float(p.max()):g}")
        self.values = {name: p.detach() for name, p in values.items()}

    def quadratic(self, delta: Mapping[str, Tensor]) -> float:
        r""":math:`\delta^\top P \delta`, summed in float64; parameters that are not known count nothing."""
        return sum(float((p.double() * delta[name].detach().double().square()).sum()) for name, p in self.values.items())

    def scaled(self, factor: float) -> Diagonal:
        """The precision times a factor of at least 0."""
        return Diagonal({name: p * factor for name, p in self.values.items()})

    def plus(self, other: Diagonal) -> Diagonal:
        """The sum of two precisions; a parameter that only one of them knows keeps that one's."""
        total = dict(self.values)
        for name, p in other.values.items():
            total[name] = total[name] + p if name in total else p
        return Diagonal(total)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.values)} parameters)"


class Identity(Diagonal):
    """The precision 1 on every weight of the named parameters.

    Args:
        names: The parameters it covers.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__({name: torch.ones(()) for name in names})
