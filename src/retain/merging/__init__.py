"""One model out of several: averages, averages that know what each weight is worth, and units put into one order first."""

from retain.merging.align import Alignment, align
from retain.merging.average import average
from retain.merging.fisher import fisher_average
from retain.merging.line import AlignedBarrier, aligned_barrier
from retain.merging.symmetries import Group, Member, Symmetries, symmetries

__all__ = [
    "AlignedBarrier",
    "Alignment",
    "Group",
    "Member",
    "Symmetries",
    "align",
    "aligned_barrier",
    "average",
    "fisher_average",
    "symmetries",
]
