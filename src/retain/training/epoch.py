"""What is summed up over the steps of an epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from retain.likelihoods import Likelihood

_STEPS, _ROOM = 64, 1 << 18  # steps that wait, and values of their outputs, at most


class Epoch:
    """Loss and score of an epoch, summed up once in many steps: one by one, they take a tenth of a small network's step.

    Args:
        likelihood: What counts the score.
    """

    def __init__(self, likelihood: Likelihood) -> None:
        self.likelihood, self.steps = likelihood, 0
        self._total: Tensor | None = None
        self._tally: Tensor | None = None
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._values = 0

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Take a step in.

        Args:
            loss: A scalar.
            outputs: What the model answered, ``[B, ...]``.
            targets: One a sample.
        """
        outputs, large = outputs.detach(), outputs.numel() > _ROOM
        alike = not self._waiting or (outputs.shape[1:], targets.shape[1:]) == tuple(one.shape[1:] for one in self._waiting[-1][1:])
        if not alike or self._values + outputs.numel() > _ROOM:
            self._settle()  # sequences of another length, or many values
        if not large:  # what waits is copied: loaders and compiled models may write the next batch into the same memory
            outputs, targets = outputs.clone(), targets.clone()
        self._waiting.append((loss.detach().clone(), outputs, targets))
        self.steps, self._values = self.steps + 1, self._values + outputs.numel()
        if large or len(self._waiting) == _STEPS:
            self._settle()

    def mean(self) -> float:
        """The mean loss of a step."""
        self._settle()
        assert self._total is not None
        return float(self._total) / self.steps

    def score(self) -> float:
        """The score of all samples."""
        self._settle()
        assert self._tally is not None
        return self.likelihood.score(self._tally)

    def _settle(self) -> None:
        if not self._waiting:
            return
        losses, outputs, targets = zip(*self._waiting, strict=True)
        self._waiting, self._values = [], 0
        total = torch.stack(losses).double().sum()
        with torch.no_grad():
            counted = self.likelihood.tally(*((outputs[0], targets[0]) if len(losses) == 1 else (torch.cat(outputs), torch.cat(targets))))
        self._total = total if self._total is None else self._total + total
        self._tally = counted if self._tally is None else self._tally + counted
