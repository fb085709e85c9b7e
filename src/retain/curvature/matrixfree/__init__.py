"""Products with curvature that is never formed, and what follows from products alone."""

from retain.curvature.matrixfree.density import Density, density
from retain.curvature.matrixfree.operators import CurvatureOperator
from retain.curvature.matrixfree.products import fisher_operator, ggn, hessian
from retain.curvature.matrixfree.solve import Solution, conjugate_gradient
from retain.curvature.matrixfree.spectrum import Eigenpairs, Lanczos, eigenvalues, lanczos, trace

__all__ = [
    "CurvatureOperator",
    "Density",
    "Eigenpairs",
    "Lanczos",
    "Solution",
    "conjugate_gradient",
    "density",
    "eigenvalues",
    "fisher_operator",
    "ggn",
    "hessian",
    "lanczos",
    "trace",
]
