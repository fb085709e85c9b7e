"""How the target's weights answer a move of q; one strategy a file."""

from retain.errors import InputError, nearest
from retain.paths.strategies.base import Move, Strategy, Walk
from retain.paths.strategies.distillation import Distillation
from retain.paths.strategies.firstorder import FirstOrder
from retain.paths.strategies.joined import Joined
from retain.paths.strategies.optimal import Optimal
from retain.paths.strategies.ramp import PruningRamp
from retain.paths.strategies.retention import Retention
from retain.paths.strategies.still import Frozen, Sudden
from retain.paths.strategies.taskloss import TaskLoss

STRATEGIES: dict[str, type[Strategy]] = {kind.name: kind for kind in (Optimal, Retention, Distillation, TaskLoss, PruningRamp, Frozen, Sudden)}


def strategy_for(strategy: str | Strategy) -> Strategy:
    """The strategy meant by a name.

    Args:
        strategy: A strategy, or a name: that strategy with its defaults.

    Returns:
        The strategy.

    Raises:
        InputError: If there is none of this name.
    """
    if isinstance(strategy, Strategy):
        return strategy
    if strategy not in STRATEGIES:
        raise InputError("strategy", "a strategy or its name", repr(strategy), nearest(str(strategy), STRATEGIES))
    return STRATEGIES[strategy]()


__all__ = [
    "STRATEGIES",
    "Distillation",
    "FirstOrder",
    "Frozen",
    "Joined",
    "Move",
    "Optimal",
    "PruningRamp",
    "Retention",
    "Strategy",
    "Sudden",
    "TaskLoss",
    "Walk",
    "strategy_for",
]
