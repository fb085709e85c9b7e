"""How sure we are of every weight: the Fisher information, and products with curvature that is never formed."""

from retain.curvature.fisher import Fisher, fisher, sensitivity
from retain.curvature.ivon import IVON
from retain.curvature.matrixfree import (
    CurvatureOperator,
    Density,
    Eigenpairs,
    Lanczos,
    Solution,
    conjugate_gradient,
    density,
    eigenvalues,
    fisher_operator,
    ggn,
    hessian,
    lanczos,
    trace,
)
from retain.curvature.outputs import LabelRule

__all__ = [
    "CurvatureOperator",
    "Density",
    "Eigenpairs",
    "Fisher",
    "IVON",
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
