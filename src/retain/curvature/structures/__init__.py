"""What is kept of the Fisher: its diagonal, a few directions, Kronecker factors, or all of it."""

from retain.curvature.structures.diagonal import diagonal
from retain.curvature.structures.full import full
from retain.curvature.structures.kronecker import Sharing, ekfac, kronecker
from retain.curvature.structures.lowrank import low_rank

__all__ = ["Sharing", "diagonal", "ekfac", "full", "kronecker", "low_rank"]
