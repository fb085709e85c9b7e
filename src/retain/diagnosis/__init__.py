"""Why: what changed inside a model, where it went, and what the loss looks like around it."""

from retain.diagnosis.barrier import Barrier, barrier
from retain.diagnosis.cka import Similarity, cka, linear_cka
from retain.diagnosis.distance import Distance, Moved, distance

__all__ = ["Barrier", "Distance", "Moved", "Similarity", "barrier", "cka", "distance", "linear_cka"]
