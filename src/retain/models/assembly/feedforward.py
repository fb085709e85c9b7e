"""The feed-forward assembly: layers of units, the first driven by the inputs, the others by plastic weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from retain.errors import check_count
from retain.models.assembly.base import Activity, Assembly, drive, kcap


class FeedForwardAssembly(Assembly):
    r"""Layers of units: :math:`h_0 = \mathrm{cap}(W_{in} x)`, :math:`h_l = \mathrm{cap}(W_l h_{l-1})`, logits :math:`W_{out} h_{L-1}`.

    With the k-cap of :func:`~retain.models.kcap`. The first hidden layer's weights are random; those of the other L - 1 and the output's are plastic. The
    states of a unit are silent (0) and fired (1). As in the code of "Learning with Plasticity Rules: Generalization and Robustness" (Cristian, Dabagia,
    Papadimitriou and Vempala 2021).

    Args:
        inputs: Values an input has.
        classes: Outputs.
        layers: Hidden layers, L.
        **settings: ``width``, ``p``, ``cap``, ``ties``, ``start``, ``seed`` and ``dtype`` of :class:`~retain.models.Assembly`.

    Raises:
        InputError: If a size is out of range.

    Example:
        >>> import torch
        >>> from retain.models import FeedForwardAssembly
        >>> net = FeedForwardAssembly(784, 10, layers=2)
        >>> net(torch.rand(3, 1, 28, 28)).argmax(1)  # nothing has been learned: class 0
        tensor([0, 0, 0])
    """

    def __init__(self, inputs: int, classes: int, layers: int = 2, **settings: Any) -> None:
        self.layers = check_count("layers", layers)
        super().__init__(inputs, classes, layers - 1, **settings)

    @property
    def states(self) -> int:
        """Two: silent and fired."""
        return 2

    @property
    def kind(self) -> str:
        """``feed-forward``."""
        return "feed-forward"

    def propagate(self, current: Tensor, plastic: Sequence[Tensor]) -> Activity:
        """The pass from the first layer's currents to the logits."""
        rates, fired = kcap(current, self.cap, self.ties)
        states = [fired.long()]
        for weight in plastic[:-1]:
            rates, fired = kcap(drive(rates, weight), self.cap, self.ties)
            states.append(fired.long())
        return Activity(drive(rates, plastic[-1]), states, states[1:])
