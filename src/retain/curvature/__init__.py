"""How sure we are of every weight: the Fisher information."""

from retain.curvature.fisher import Fisher, LabelRule, fisher

__all__ = ["Fisher", "LabelRule", "fisher"]
