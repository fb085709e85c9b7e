"""Linear systems with a matrix that can only be multiplied with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from retain.curvature.matrixfree.operators import CurvatureOperator
from retain.errors import InputError, check_count, check_positive

_PART = 1 << 14  # entries whose products are summed in their own type

Vector = TypeVar("Vector", Tensor, dict[str, Tensor])


@dataclass(frozen=True)
class Solution(Generic[Vector]):
    r"""What :func:`conjugate_gradient` found.

    Args:
        solution: x, of the kind of b.
        iterations: Products taken, without those that measure the residual.
        residual: :math:`\|b - (A + \lambda I) x\| / \|b\|`, measured and not carried along.
        converged: Whether the residual is within the tolerance.
    """

    solution: Vector
    iterations: int
    residual: float
    converged: bool


def conjugate_gradient(
    operator: CurvatureOperator | Callable[[Vector], Vector],
    b: Vector,
    damping: float = 0.0,
    tolerance: float = 1e-6,
    iterations: int = 100,
    start: Vector | None = None,
    preconditioner: Callable[[Vector], Vector] | None = None,
    *,
    measure: bool = True,
) -> Solution[Vector]:
    r"""Solve :math:`(A + \lambda I)\,x = b` for a symmetric positive definite A (Hestenes and Stiefel 1952, J. Res. NBS 49(6)).

    Inner products are summed in float64. When the recursion says it is done, the residual is measured; if rounding has carried it
    away, the search starts anew from there.

    Args:
        operator: What :func:`~retain.curvature.matrixfree.products.ggn` and the like make, or any function :math:`v \mapsto Av`.
        b: A flat tensor ``[p]`` or a dict of tensors by parameter name; its type is that of the arithmetic.
        damping: :math:`\lambda`, at least 0, beside what the operator has of its own.
        tolerance: Relative residual at which to stop, above 0.
        iterations: Most products.
        start: A first guess like b; zeros by default.
        preconditioner: A symmetric positive definite function :math:`r \mapsto M^{-1} r` with M near A.
        measure: Measure the residual at the end, which takes a product; else it is the recursion's, good enough for a few iterations.

    Returns:
        The solution with its measured residual; look at ``converged``.

    Raises:
        InputError: If a number is not finite, or a direction with :math:`v^\top A v \le 0` is met.

    Example:
        >>> import torch
        >>> from retain.curvature.matrixfree.solve import conjugate_gradient
        >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
        >>> found = conjugate_gradient(lambda v: A @ v, torch.tensor([1.0, 2.0]))
        >>> found.iterations, found.converged
        (2, True)
        >>> torch.allclose(A @ found.solution, torch.tensor([1.0, 2.0]))
        True
    """
    check_positive("damping", damping, zero=True)
    check_positive("tolerance", tolerance)
    check_count("iterations", iterations)
    call: Any = operator
    right = _flat(b, b, "b")
    size = _norm(right)
    if not math.isfinite(size):
        raise InputError("b", "finite numbers", "NaN or infinity")

    def product(v: Tensor) -> Tensor:
        return _flat(call(_like(v, b)), b, "operator").to(right) + damping * v

    def precondition(r: Tensor) -> Tensor:
        return r if preconditioner is None else _flat(preconditioner(_like(r, b)), b, "preconditioner").to(right)

    x = torch.zeros_like(right) if start is None else _flat(start, b, "start").to(right).clone()
    r = right if start is None else right - product(x)
    residual, taken = _norm(r), 0
    while residual > tolerance * size and taken < iterations:
        begun = residual
        p = z = precondition(r)
        rho = _dot(r, z)
        while taken < iterations:
            Ap = product(p)
            curvature = _dot(p, Ap)
            taken += 1
            if not math.isfinite(curvature):
                raise InputError("operator", "finite products", f"NaN or infinity in product {taken}", "Check the model's weights and the data.")
            if curvature <= 0 or rho <= 0:
                found = f"v'Av = {curvature / _dot(p, p):.3g} v'v" if curvature <= 0 else f"r'Mr = {rho:.3g} from the preconditioner"
                raise InputError("operator", "positive curvature in every direction", f"{found} in product {taken}", "Add damping, or take ggn for hessian.")
            step = rho / curvature
            x = x + step * p
            r = r - step * Ap
            if _norm(r) <= tolerance * size:
                break
            z = precondition(r)
            before, rho = rho, _dot(r, z)
            p = z + (rho / before) * p
        r = right - product(x) if measure else r
        residual = _norm(r)
        if residual > 0.5 * begun or not measure:
            break  # as near as the arithmetic allows
    return Solution(_like(x, b), taken, residual / size if size else residual, residual <= tolerance * size)


def _dot(a: Tensor, b: Tensor) -> float:
    """In float64 from parts in the vectors' own type: as precise as is needed, without copies."""
    return float(torch.stack([x @ y for x, y in zip(a.split(_PART), b.split(_PART), strict=True)]).double().sum())


def _norm(a: Tensor) -> float:
    return float(torch.linalg.vector_norm(a, dtype=torch.float64))


def _flat(value: Any, b: Tensor | Mapping[str, Tensor], parameter: str) -> Tensor:
    """``value`` as a flat tensor, checked to be like ``b``."""
    if isinstance(b, Mapping):
        if not isinstance(value, Mapping) or set(value) != set(b) or any(value[name].shape != part.shape for name, part in b.items()) or not b:
            raise InputError(parameter, "a dict of tensors with the names and shapes of b", type(value).__name__)
        return torch.cat([value[name].detach().reshape(-1) for name in b])
    if not isinstance(value, Tensor) or value.ndim != 1 or value.shape != b.shape:
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(parameter, "a dict or a flat tensor [p]" if value is b else f"a tensor of shape {list(b.shape)}", found)
    return value.detach()


def _like(flat: Tensor, b: Vector) -> Vector:
    if isinstance(b, Tensor):
        return flat
    parts = flat.split([part.numel() for part in b.values()])
    return cast(Vector, {name: part.view(like.shape) for (name, like), part in zip(b.items(), parts, strict=True)})
