"""Close the gates slowly."""

from __future__ import annotations

from typing import Any

from torch.utils.hooks import RemovableHandle

from retain.errors import InputError
from retain.models.gates import Gate
from retain.paths.strategies.base import Move, Strategy, Walk
from retain.paths.strategies.distillation import Distillation


class PruningRamp(Strategy):
    r"""Another strategy while the gates' K falls from their layer's width: :math:`K_t = K + (n - K)(1 - t/t_1)^3` (Zhu and Gupta 2017, eq. 1, https://arxiv.org/abs/1710.01878).

    Args:
        strategy: What moves the weights; distillation by default.
        until: :math:`t_1`, the share of the path at which K is reached, in (0, 1].

    Raises:
        InputError: If ``until`` is out of range.
    """

    name = "ramp"
    summary = "distillation while the gates close slowly"
    citation = "zhu2017prune"

    def __init__(self, strategy: Strategy | None = None, until: float = 0.6) -> None:
        if not 0 < until <= 1:
            raise InputError("until", "a number in (0, 1]", until)
        self.strategy, self.until = strategy or Distillation(), until
        self._handles: list[RemovableHandle] = []

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """That of the strategy."""
        return self.strategy.batch_size

    @property
    def evaluation(self) -> bool:  # type: ignore[override]
        """That of the strategy."""
        return self.strategy.evaluation

    @property
    def divides(self) -> bool:  # type: ignore[override]
        """That of the strategy."""
        return self.strategy.divides

    def begin(self, walk: Walk) -> None:
        """Remember the gates' own K; widths are seen in the first pass."""
        self._final = {gate: gate.K for gate in walk.target.modules() if isinstance(gate, Gate)}
        if not self._final:
            raise InputError("target", "gates to close slowly", "none", "Make it with retain.models.sparsify.")
        self._handles = [gate.register_forward_pre_hook(self._see) for gate in self._final]
        self.strategy.begin(walk)

    def _see(self, gate: Any, inputs: tuple[Any, ...]) -> None:
        if self._left is not None:
            width = inputs[0].shape[gate.axis(inputs[0])]
            gate.K = round(self._final[gate] + (width - self._final[gate]) * self._left)

    _left: float | None = None

    def update(self, move: Move) -> dict[str, Any]:
        """Set K, then let the strategy move."""
        self._left = max(0.0, 1 - move.progress / self.until) ** 3
        try:
            facts = self.strategy.update(move.elsewhere())
        finally:
            self._left = None
            for gate, K in self._final.items():
                gate.K = K
        return facts

    def end(self, walk: Walk) -> None:
        """Take the hooks away."""
        while self._handles:
            self._handles.pop().remove()
        self.strategy.end(walk)
