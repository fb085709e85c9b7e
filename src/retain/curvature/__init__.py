"""How sure we are of every weight: the Fisher information, and products with curvature that is never formed."""

from retain.curvature.density import Density, density
from retain.curvature.fisher import Fisher, fisher, sensitivity
from retain.curvature.operators import CurvatureOperator
from retain.curvature.outputs import LabelRule
from retain.curvature.products import fisher_operator, ggn, hessian
from retain.curvature.solve import Solution, conjugate_gradient
from retain.curvature.spectrum import Eigenpairs, Lanczos, eigenvalues, lanczos, trace

__all__ = [
    "CurvatureOperator",
    "Density",
    "Eigenpairs",
    "Fisher",
    "LabelRule",
    "Lanczos",
    "Solution",
    "conjugate_gradient",
    "density",
    "eigenvalues",
    "fisher",
    "fisher_operator",
    "ggn",
    "hessian",
    "lanczos",
    "sensitivity",
    "trace",
]
