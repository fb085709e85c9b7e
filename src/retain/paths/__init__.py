"""Model to model: paths of distributions from what one network answers to what another does, and what each step loses."""

from retain.paths.bridges import BRIDGES, Bridge, ExponentialBridge, GreatCircleBridge, MeanBridge, MixtureBridge
from retain.paths.drift import Drift, shifts, spike
from retain.paths.result import Path
from retain.paths.schedules import SCHEDULES, Course, FisherSpeed, Geometric, Linear, RetentionBudget, Schedule, SineSquared
from retain.paths.strategies import (
    STRATEGIES,
    Distillation,
    FirstOrder,
    Frozen,
    Joined,
    Move,
    Optimal,
    PruningRamp,
    Retention,
    Strategy,
    Sudden,
    TaskLoss,
    Walk,
)
from retain.paths.traverse import traverse

__all__ = [
    "BRIDGES",
    "SCHEDULES",
    "STRATEGIES",
    "Bridge",
    "Course",
    "Distillation",
    "Drift",
    "ExponentialBridge",
    "FirstOrder",
    "FisherSpeed",
    "Frozen",
    "Geometric",
    "GreatCircleBridge",
    "Joined",
    "Linear",
    "MeanBridge",
    "MixtureBridge",
    "Move",
    "Optimal",
    "Path",
    "PruningRamp",
    "Retention",
    "RetentionBudget",
    "Schedule",
    "SineSquared",
    "Strategy",
    "Sudden",
    "TaskLoss",
    "Walk",
    "shifts",
    "spike",
    "traverse",
]
