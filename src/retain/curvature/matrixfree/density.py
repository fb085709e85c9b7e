"""Where the eigenvalues lie, all of them, from products alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from retain.curvature.matrixfree.spectrum import Operator, lanczos, signs, vector_like
from retain.errors import InputError, check_count, check_positive
from retain.figures.specs import Lines, Series
from retain.seeds import generator


@dataclass(frozen=True, eq=False)
class Density:
    """How many of the eigenvalues lie where, as a density that integrates to 1.

    Args:
        grid: Eigenvalues, evenly spaced, float64.
        density: The density there, per unit of eigenvalue.
        nodes: The points from which it was smoothed.
        weights: Their shares, which sum to 1.
        width: Standard deviation of the smoothing normal distribution.
    """

    grid: Tensor
    density: Tensor
    nodes: Tensor
    weights: Tensor
    width: float

    def figure(self, title: str = "Spectral density") -> Lines:
        """The density as a line on a logarithmic axis, cut off where it is below a billionth of its peak."""
        seen = self.density.clamp_min(1e-9 * float(self.density.max()))
        return Lines(title, "eigenvalue", "density", [Series("density", self.grid.tolist(), seen.tolist())], y_log=True)


def density(
    operator: Operator, steps: int = 60, probes: int = 4, width: float | None = None, points: int = 1001, seed: int = 0, *, like: Tensor | None = None
) -> Density:
    r"""The density of all eigenvalues by stochastic Lanczos quadrature.

    Every probe's tridiagonal matrix is a Gauss quadrature of the spectrum (Golub and Welsch 1969, Math. Comp. 23): nodes at its
    eigenvalues, weights the squared first entries of its eigenvectors. Averaged over probes and smoothed (Lin, Saad and Yang 2016,
    https://arxiv.org/abs/1308.5467; Ghorbani, Krishnan and Xiao 2019, https://arxiv.org/abs/1901.10159).

    Args:
        operator: What :func:`~retain.curvature.matrixfree.products.ggn` and the like make, or any function on flat tensors.
        steps: Products per probe, and vectors held in memory.
        probes: Random starts.
        width: Standard deviation of the smoothing, in units of the eigenvalues; a hundredth of their range by default.
        points: Of the grid.
        seed: Seed of the probes.
        like: A flat tensor of the size and type of the vectors, if the operator is a plain function.

    Returns:
        A grid and the density on it, which integrates to 1.

    Raises:
        InputError: If the grid is too coarse for the width, or ``like`` is needed and missing.

    Example:
        >>> import torch
        >>> from retain.curvature.matrixfree.density import density
        >>> found = density(lambda v: torch.tensor([0.0, 0.0, 0.0, 1.0]) * v, probes=1, width=0.1, like=torch.zeros(4))
        >>> round(float(torch.trapezoid(found.density, found.grid)), 6), [round(w, 2) for w in found.weights.tolist()]
        (1.0, [0.75, 0.25])
    """
    check_count("probes", probes)
    check_count("points", points, least=2)
    pattern, draw = vector_like(operator, like), generator(seed, "probes")
    found = [torch.linalg.eigh(lanczos(operator, steps, start=signs(pattern, draw)).tridiagonal) for _ in range(probes)]
    nodes, weights = torch.cat([values for values, _ in found]), torch.cat([vectors[0].square() for _, vectors in found]) / probes
    low, high = float(nodes.min()), float(nodes.max())
    if width is None:
        width = 0.01 * ((high - low) or abs(high) or 1.0)
    reach = 6 * check_positive("width", width)
    grid = torch.linspace(low - reach, high + reach, points, dtype=torch.float64)
    if float(grid[1] - grid[0]) > width:
        raise InputError("points", f"at least {math.ceil((high - low) / width) + 13} for width={width:g}", points, "Raise points or width.")
    total = torch.zeros_like(grid)
    for node, weight in zip(nodes, weights, strict=True):
        total += weight * torch.exp(-0.5 * ((grid - node) / width).square())
    return Density(grid, total / (width * math.sqrt(2 * math.pi)), nodes, weights, width)
