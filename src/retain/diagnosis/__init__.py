"""Why: what changed inside a model, where it went, and what the loss looks like around it."""

from retain.diagnosis.barrier import Barrier, barrier
from retain.diagnosis.cka import Similarity, cka, linear_cka
from retain.diagnosis.diagnose import Diagnosis, diagnose
from retain.diagnosis.distance import Distance, Moved, distance
from retain.diagnosis.landscape import Surface, directions, landscape
from retain.diagnosis.sharpness import Sharpness, sharpness
from retain.diagnosis.spectrum import Spectrum, spectrum
from retain.diagnosis.trajectory import Plane, Trajectory, random_walk

__all__ = [
    "Barrier",
    "Diagnosis",
    "Distance",
    "Moved",
    "Plane",
    "Sharpness",
    "Similarity",
    "Spectrum",
    "Surface",
    "Trajectory",
    "barrier",
    "cka",
    "diagnose",
    "directions",
    "distance",
    "landscape",
    "linear_cka",
    "random_walk",
    "sharpness",
    "spectrum",
]
