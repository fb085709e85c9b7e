"""What was kept: numbers from the accuracy matrix, and means with their errors.

Row ``i``, column ``j`` of the matrix R is the accuracy on task ``j`` after learning ``i`` tasks; row 0 is before any learning,
so R has one row more than columns.
"""

from retain.metrics.matrix import average_accuracy, backward_transfer, forgetting, forward_transfer, learning_accuracy
from retain.metrics.statistics import Estimate, estimate

__all__ = [
    "Estimate",
    "average_accuracy",
    "backward_transfer",
    "estimate",
    "forgetting",
    "forward_transfer",
    "learning_accuracy",
]
