"""What was kept: numbers from the accuracy matrix, means with their errors, methods compared; what is known: calibration and uncertainty.

Row ``i``, column ``j`` of the matrix R is the accuracy on task ``j`` after learning ``i`` tasks; row 0 is before any learning,
so R has one row more than columns.
"""

from retain.metrics.bootstrap import Paired, bootstrap, paired
from retain.metrics.calibration import Calibration, brier, calibration, expected_calibration_error
from retain.metrics.matrix import anytime, average_accuracy, backward_transfer, forgetting, forward_transfer, intransigence, learning_accuracy
from retain.metrics.ranks import Ranks, ranks
from retain.metrics.statistics import Estimate, Interval, estimate, interval
from retain.metrics.uncertainty import Uncertainty, auroc, uncertainty

__all__ = [
    "Calibration",
    "Estimate",
    "Interval",
    "Paired",
    "Ranks",
    "Uncertainty",
    "anytime",
    "auroc",
    "average_accuracy",
    "backward_transfer",
    "bootstrap",
    "brier",
    "calibration",
    "estimate",
    "interval",
    "expected_calibration_error",
    "forgetting",
    "forward_transfer",
    "intransigence",
    "learning_accuracy",
    "paired",
    "ranks",
    "uncertainty",
]
