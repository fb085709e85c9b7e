"""The whole matrix, for small models and as a yardstick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from retain.beliefs.diagonal import Diagonal
from retain.beliefs.precision import Precision, Sizes, Weights, mismatch, noise
from retain.errors import InputError


class Full(Precision):
    r"""A dense precision ``[p, p]`` over the concatenation of the named parameters, each flattened row by row.

    Args:
        matrix: P, symmetric and positive semi-definite up to rounding.
        shapes: The parameters in order, with their shapes.

    Raises:
        InputError: If the matrix does not fit the shapes, is not symmetric or not finite.

    Example:
        >>> import torch
        >>> P = Full(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), {"w": torch.Size([2])})
        >>> P.quadratic({"w": torch.tensor([1.0, -1.0])})
        2.0
    """

    kind = "full"

    def __init__(self, matrix: Tensor, shapes: Mapping[str, torch.Size]) -> None:
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        size = sum(shape.numel() for shape in self.shapes.values())
        if matrix.shape != (size, size):
            raise InputError("matrix", f"one of {size} x {size}, the number of weights", list(matrix.shape))
        if not bool(torch.isfinite(matrix).all()) or not torch.allclose(matrix, matrix.T, rtol=1e-3, atol=1e-5 * float(matrix.abs().max())):
            raise InputError("matrix", "a finite symmetric matrix", "NaN, infinity or an asymmetric one")
        self.matrix = matrix.detach()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    def product(self, delta: Weights) -> dict[str, Tensor]:
        flat = self._flat(delta)
        return self._apart(self.matrix.to(flat.dtype) @ flat)

    def scaled(self, factor: float) -> Self:
        return self.mapped(lambda value: value * factor)

    def plus(self, other: Precision) -> Precision:
        if isinstance(other, Diagonal):
            shapes = {name: self.shapes.get(name, p.shape) for name, p in other.values.items()}
            other = Full(torch.diag(torch.cat([p.expand(shapes[name]).flatten() for name, p in other.values.items()])), shapes)
        if not isinstance(other, Full):
            raise mismatch(self, other)
        shapes = {**self.shapes, **other.shapes}
        total = self.matrix.new_zeros(sum(s.numel() for s in shapes.values()), sum(s.numel() for s in shapes.values()))
        starts, start = {}, 0
        for name, shape in shapes.items():
            starts[name] = torch.arange(start, start + shape.numel(), device=total.device)
            start += shape.numel()
        for one in (self, other):
            place = torch.cat([starts[name] for name in one.shapes])
            total[place[:, None], place] += one.matrix
        return Full(total, shapes)

    def diagonal(self) -> dict[str, Tensor]:
        return self._apart(self.matrix.diagonal())

    def logdet(self, n: float, prior: float, shapes: Mapping[str, torch.Size]) -> float:
        return 2 * float(self._root(n, prior).diagonal().log().sum())

    def variance(self, n: float, prior: float, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        return self._apart(torch.cholesky_inverse(self._root(n, prior)).diagonal().to(self.matrix.dtype))

    def sample(self, n: float, prior: float, shapes: Mapping[str, torch.Size], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        root = self._root(n, prior)
        drawn = torch.linalg.solve_triangular(root.T, noise(root[0], generator)[:, None], upper=True)[:, 0]
        return self._apart(drawn.to(self.matrix.dtype))

    def shrink(self, delta: Weights, sizes: Sizes, rate: float) -> dict[str, Tensor]:
        # (H + rP)^-1 H delta = (I + r H^-1 P)^-1 delta
        flat = self._flat(delta)
        size = torch.cat([torch.as_tensor(sizes[name], dtype=flat.dtype, device=flat.device).expand(shape).flatten() for name, shape in self.shapes.items()])
        unit = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
        return self._apart(torch.linalg.solve(unit + rate * size[:, None] * self.matrix.to(flat.dtype), flat))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        made = object.__new__(type(self))
        made.shapes, made.matrix = self.shapes, change(self.matrix)
        return self._carry(made)

    def grown(self, old: Mapping[str, torch.Size], new: Mapping[str, torch.Size]) -> Self:
        shapes = {name: torch.Size(new[name]) for name in self.shapes}
        place, start = [], 0
        for name, shape in self.shapes.items():  # rows grow at the end, so a parameter's old weights stay together
            place.append(torch.arange(start, start + shape.numel(), device=self.matrix.device))
            start += shapes[name].numel()
        rows, matrix = torch.cat(place), self.matrix.new_zeros(start, start)
        matrix[rows[:, None], rows] = self.matrix
        return self._carry(type(self)(matrix, shapes))

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "matrix": self.matrix, "shapes": {name: list(shape) for name, shape in self.shapes.items()}}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(state["matrix"], {name: torch.Size(shape) for name, shape in state["shapes"].items()})

    def _root(self, n: float, prior: float) -> Tensor:
        matrix = self.matrix.double()
        unit = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
        root: Tensor = torch.linalg.cholesky(n * (matrix + matrix.T) / 2 + prior * unit)
        return root

    def _flat(self, delta: Weights) -> Tensor:
        return torch.cat([delta[name].reshape(-1) for name in self.shapes])

    def _apart(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
