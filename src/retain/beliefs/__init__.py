"""What n samples taught us: Gaussian beliefs over the weights, their algebra, and what a strength means."""

from retain.beliefs.belief import Belief, product
from retain.beliefs.precision import Diagonal, Identity
from retain.beliefs.strength import strength_from_importance, strength_from_lambda

__all__ = ["Belief", "Diagonal", "Identity", "product", "strength_from_importance", "strength_from_lambda"]
