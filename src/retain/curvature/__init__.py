"""How sure we are of every weight: the Fisher information."""

from retain.curvature.fisher import Fisher, fisher, sensitivity
from retain.curvature.outputs import LabelRule

__all__ = ["Fisher", "LabelRule", "fisher", "sensitivity"]
