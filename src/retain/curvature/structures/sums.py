"""Sums over batches: precise, without paying for it at every batch."""

from __future__ import annotations

from torch import Tensor

_SETTLE = 16  # batches added in their own type before they go into the float64 sum
_PANEL = 160  # columns of a second moment that are computed together


class RunningSum:
    """A sum of tensors that is kept in float64, into which a few at a time are added in their own type."""

    def __init__(self) -> None:
        self.recent: Tensor | None = None
        self.settled: Tensor | None = None
        self.count = 0

    def add(self, value: Tensor) -> None:
        """Add a tensor, which may be changed afterwards."""
        self.recent = value if self.recent is None else self.recent.add_(value)
        self._counted()

    def total(self) -> Tensor:
        """The sum, in float64 where there were many."""
        if self.settled is None:
            assert self.recent is not None
            return self.recent
        return self.settled if self.recent is None else self.settled + self.recent

    def _counted(self) -> None:
        self.count += 1
        if self.count % _SETTLE == 0 and self.recent is not None:
            self.settled = self.recent.double() if self.settled is None else self.settled.add_(self.recent)
            self.recent = None


class Moment(RunningSum):
    r"""The sum of :math:`a a^\top` over the rows a of matrices: symmetric, so only the panels right of the diagonal are computed."""

    def add(self, value: Tensor) -> None:
        """Add the rows of ``[n, size]``."""
        size = value.shape[1]
        if self.recent is None:
            self.recent = value.new_zeros(size, size)
        for start in range(0, size, _PANEL):
            end = min(start + _PANEL, size)
            self.recent[start:end, start:].addmm_(value[:, start:end].T, value[:, start:])
        self._counted()

    def total(self) -> Tensor:
        """The whole symmetric sum; what lies left of the diagonal is copied over from the right."""
        whole = super().total()
        for start in range(0, len(whole), _PANEL):
            end = min(start + _PANEL, len(whole))
            whole[end:, start:end] = whole[start:end, end:].T
        return whole
