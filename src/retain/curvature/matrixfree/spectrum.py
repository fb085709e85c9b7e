"""Traces and eigenvalues from products alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from retain.curvature.matrixfree.operators import CurvatureOperator
from retain.errors import InputError, check_count, check_positive, nearest
from retain.metrics import Estimate, estimate
from retain.seeds import generator

Operator = CurvatureOperator | Callable[[Tensor], Tensor]
Which = Literal["magnitude", "largest", "smallest"]


class Lanczos(NamedTuple):
    r"""A basis in which the matrix is tridiagonal: :math:`A Q = Q T + r e_m^\top` with m steps.

    ``tridiagonal`` is T ``[m, m]`` in float64, ``basis`` Q ``[p, m]`` with orthonormal columns, ``remainder`` the norm of r, 0 if
    the basis spans an invariant space.
    """

    tridiagonal: Tensor
    basis: Tensor
    remainder: float


class Eigenpairs(NamedTuple):
    r"""Eigenvalues ``[k]`` in float64, vectors ``[p, k]`` of norm 1, and :math:`\|A q - \lambda q\|` of each, within which a true eigenvalue lies."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: bool


def trace(operator: Operator, probes: int = 32, seed: int = 0, *, like: Tensor | None = None) -> Estimate:
    r"""The sum of the eigenvalues, :math:`\operatorname{tr} A \approx \frac1m \sum_i z_i^\top A z_i` with random signs z (Hutchinson 1990).

    Args:
        operator: What :func:`~retain.curvature.matrixfree.products.ggn` and the like make, or any function on flat tensors.
        probes: m, one product each.
        seed: Seed of the signs.
        like: A flat tensor of the size and type of the probes, if the operator is a plain function.

    Returns:
        The estimate and its standard error over the probes.

    Raises:
        InputError: If ``like`` is needed and missing.

    Example:
        >>> import torch
        >>> from retain.curvature.matrixfree.spectrum import trace
        >>> trace(lambda v: torch.tensor([1.0, 2.0]) * v, probes=4, like=torch.zeros(2))
        Estimate(mean=3.0, error=0.0, seeds=4)
    """
    check_count("probes", probes)
    pattern, draw = vector_like(operator, like), generator(seed, "probes")
    drawn = (signs(pattern, draw) for _ in range(probes))
    return estimate(float(z.double() @ _finite(operator(z)).double()) for z in drawn)


def lanczos(operator: Operator, steps: int = 30, seed: int = 0, *, start: Tensor | None = None, like: Tensor | None = None) -> Lanczos:
    r"""Lanczos' iteration (1950) with every vector orthogonalised twice against all before it.

    Memory is ``steps`` vectors. It stops early when the vectors span an invariant space. One start finds an eigenvalue once,
    however many vectors it has; :func:`eigenvalues` finds them all.

    Args:
        operator: What :func:`~retain.curvature.matrixfree.products.ggn` and the like make, or any function on flat tensors.
        steps: Most products.
        seed: Seed of the start.
        start: The first vector, not 0; normal random numbers by default.
        like: A flat tensor of the size and type of the vectors, if the operator is a plain function and there is no start.

    Returns:
        T, Q and the norm of what is left.

    Raises:
        InputError: If ``start`` is 0 or ``like`` is needed and missing.

    Example:
        >>> import torch
        >>> from retain.curvature.matrixfree.spectrum import lanczos
        >>> found = lanczos(lambda v: torch.tensor([1.0, 2.0, 4.0]).double() * v, start=torch.ones(3).double())
        >>> [round(value, 6) for value in torch.linalg.eigvalsh(found.tridiagonal).tolist()]
        [1.0, 2.0, 4.0]
    """
    check_count("steps", steps)
    pattern = vector_like(operator, start if start is not None else like)
    q = start.detach() if start is not None else _normal(pattern, 1, generator(seed, "probes")).squeeze(1)
    if not 0 < _norm(q) < math.inf:
        raise InputError("start", "finite numbers that are not all 0", f"a vector of norm {_norm(q):g}")
    steps = min(steps, len(pattern))
    Q = pattern.new_zeros(steps, len(pattern))  # rows, so that a vector is contiguous
    T = torch.zeros(steps, steps, dtype=torch.float64)
    beta, scale = _norm(q), 0.0
    for i in range(steps):
        Q[i] = q / beta
        r = _finite(operator(Q[i])).to(Q)
        T[i, i] = float(Q[i].double() @ r.double())
        for _ in range(2):
            r = r - Q[: i + 1].T @ (Q[: i + 1] @ r)
        q, beta = r, _norm(r)
        scale = max(scale, abs(float(T[i, i])), beta)
        if beta <= 10 * torch.finfo(Q.dtype).eps * scale:
            return Lanczos(T[: i + 1, : i + 1], Q[: i + 1].T, 0.0)
        if i + 1 < steps:
            T[i, i + 1] = T[i + 1, i] = beta
    return Lanczos(T, Q.T, beta)


def eigenvalues(
    operator: Operator,
    k: int = 1,
    which: Which = "magnitude",
    tolerance: float = 1e-4,
    iterations: int = 100,
    seed: int = 0,
    *,
    like: Tensor | None = None,
) -> Eigenpairs:
    r"""The outermost k eigenvalues and their vectors, by block Lanczos with restarts (Golub and Underwood 1977; Wu and Simon 2000).

    Blocks of k find eigenvalues that occur up to k times. Memory is about 12 k vectors, at least 40.

    Args:
        operator: What :func:`~retain.curvature.matrixfree.products.ggn` and the like make, or any function on flat tensors.
        k: How many, at most the size of the matrix.
        which: ``magnitude`` (largest absolute value first), ``largest`` or ``smallest`` (with their signs).
        tolerance: Residual at which to stop, relative to the largest absolute eigenvalue met, above 0.
        iterations: Most blocks of at most k products.
        seed: Seed of the start.
        like: A flat tensor of the size and type of the vectors, if the operator is a plain function.

    Returns:
        Values, vectors and residual norms, in the order asked for; look at ``converged``.

    Raises:
        InputError: If ``which`` is unknown, k is too large or ``like`` is needed and missing.

    Example:
        >>> import torch
        >>> from retain.curvature.matrixfree.spectrum import eigenvalues
        >>> found = eigenvalues(lambda v: torch.tensor([1.0, -5.0, 4.0, 4.0]).double() * v, k=3, like=torch.zeros(4).double())
        >>> [round(value, 6) for value in found.values.tolist()]
        [-5.0, 4.0, 4.0]
    """
    if which not in get_args(Which):
        raise InputError("which", "'magnitude', 'largest' or 'smallest'", repr(which), nearest(str(which), get_args(Which)))
    check_count("k", k)
    check_count("iterations", iterations)
    check_positive("tolerance", tolerance)
    pattern = vector_like(operator, like)
    if k > len(pattern):
        raise InputError("k", f"at most the {len(pattern)} rows of the matrix", k)
    Q = torch.linalg.qr(_normal(pattern, k, generator(seed, "probes")))[0]
    AQ = _columns(operator, Q)
    for block in range(iterations):
        T = Q.T.double() @ AQ.double()
        values, S = torch.linalg.eigh((T + T.T) / 2)
        order = (values.abs() if which == "magnitude" else values).argsort(descending=which != "smallest")
        values, S = values[order], S[:, order].to(Q)
        vectors = Q @ S[:, :k]
        R = AQ @ S[:, :k] - vectors * values[:k].to(Q)
        residuals = torch.linalg.vector_norm(R, dim=0, dtype=torch.float64)
        open_ = residuals > tolerance * values.abs().max()
        if not bool(open_.any()) or block == iterations - 1:
            break
        if Q.shape[1] >= max(5 * k, 20):
            Q, AQ = Q @ S[:, : 2 * k + 2], AQ @ S[:, : 2 * k + 2]
        new = _beside(R[:, open_], Q)
        if not new.shape[1]:
            break
        Q, AQ = torch.cat([Q, new], 1), torch.cat([AQ, _columns(operator, new)], 1)
    return Eigenpairs(values[:k], vectors, residuals, not bool(open_.any()))


def vector_like(operator: Operator, like: Tensor | None) -> Tensor:
    """An empty vector of the operator's size and type."""
    if like is None and isinstance(operator, CurvatureOperator):
        return torch.empty(operator.size, dtype=operator.dtype, device=operator.device)
    if not isinstance(like, Tensor) or like.ndim != 1 or not like.is_floating_point() or not len(like):
        raise InputError("like", "a flat tensor of floating point numbers, of the operator's size", like if like is None else type(like).__name__)
    return like


def signs(pattern: Tensor, draw: torch.Generator) -> Tensor:
    """A vector of -1 and 1, each as likely."""
    return (2 * torch.randint(2, pattern.shape, generator=draw) - 1).to(pattern)


def _normal(pattern: Tensor, k: int, draw: torch.Generator) -> Tensor:
    return torch.randn(len(pattern), k, generator=draw, dtype=torch.float64).to(pattern)


def _columns(operator: Operator, V: Tensor) -> Tensor:
    if isinstance(operator, CurvatureOperator):
        return _finite(operator @ V)
    return torch.stack([_finite(operator(v)).to(V) for v in V.T], 1)


def _finite(product: Tensor) -> Tensor:
    if not math.isfinite(float(product.sum())) and not bool(torch.isfinite(product).all()):
        raise InputError("operator", "finite products", "NaN or infinity")
    return product


def _norm(v: Tensor) -> float:
    return float(torch.linalg.vector_norm(v, dtype=torch.float64))


def _beside(R: Tensor, Q: Tensor) -> Tensor:
    """An orthonormal basis of what R has beside the span of Q."""
    small, size = 100 * torch.finfo(R.dtype).eps, torch.linalg.vector_norm(R, dim=0)
    for _ in range(2):
        R = R - Q @ (Q.T @ R)
    left = torch.linalg.vector_norm(R, dim=0)
    R = R[:, left > small * size] / left[left > small * size]
    basis, mix = torch.linalg.qr(R)
    basis = basis[:, mix.diagonal().abs() > small]
    orthogonal: Tensor = torch.linalg.qr(basis - Q @ (Q.T @ basis))[0]
    return orthogonal
