"""For a moment: the optimiser has moved to retain.curvature."""

from retain.curvature.ivon import IVON

__all__ = ["IVON"]
