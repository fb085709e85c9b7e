"""One network's presentation by the compiled kernels: arrays in, arrays out."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retain.models.assembly import Assembly, RecurrentAssembly
from retain.plasticity.rules import TableRule
from retain.plasticity.trace import IDLE, Trace


def available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


class Compiled:
    """The plastic weights of one network as the kernels want them, with the presentation of samples.

    Args:
        net: The network; read, not changed.
        rule: The rule; without one the network only answers.
        mean: Answer with the averaged weights.
    """

    def __init__(self, net: Assembly, rule: TableRule | None = None) -> None:
        from retain.plasticity import kernels

        self.net, self.rule, self.kernels = net, rule, kernels
        self.dtype = net.output_weight.detach().cpu().numpy().dtype
        self.put([weight.detach().cpu() for weight in net.plastic])
        square = (0, net.width, net.width)
        masks = [mask.cpu() for mask in net.masks]
        self.edges = np.ascontiguousarray(torch.stack(masks).mT.numpy().astype(self.dtype)) if masks else np.zeros(square, self.dtype)
        indegree = self.edges.sum(1).astype(np.int64)
        self.graph = (self.edges, indegree, -1 if net.cap is None else net.cap, net.ties == "silent")
        # what a network without a rule answers with: no table is ever read
        nothing = np.zeros((0, 2, 2, 1), self.dtype), np.zeros((2, 2, 1), self.dtype)
        self.numbers = (*nothing, 0, self.dtype.type(0), False, False, False, False)
        if rule is not None:
            self.read(rule)

    def put(self, plastic: list[Tensor]) -> None:
        """Start from these plastic matrices, in the network's order."""
        square = (0, self.net.width, self.net.width)
        self.weights = np.array(torch.stack(plastic[:-1]).mT.numpy(), order="C") if len(plastic) > 1 else np.zeros(square, self.dtype)
        self.out = np.array(plastic[-1].T.numpy(), order="C")
        self.counted = 0
        self.mean: tuple[Any, Any] | None = None

    def read(self, rule: TableRule) -> None:
        """Take over the rule's numbers."""
        tables = [table.detach().cpu().numpy().astype(self.dtype) for table in rule.tables(self.net)]
        hidden = np.ascontiguousarray(np.stack(tables[:-1])) if len(tables) > 1 else np.zeros((0, 2, 2, 1), self.dtype)
        counting = self.kernels.COUNTING[rule.output.counting]
        flags = (rule.form == "multiplicative", rule.when == "mistakes", rule.edges == "all", rule.gated)
        self.numbers = (hidden, np.ascontiguousarray(tables[-1]), counting, self.dtype.type(rule.rate), *flags)

    def _run(self, current: Any, labels: Any, learn: bool, state: Any, kept: Any) -> Any:
        if isinstance(self.net, RecurrentAssembly):
            return self.kernels.recurrent(current, labels, learn, self.graph, self.numbers, state, kept, self.net.rounds)
        return self.kernels.feed_forward(current, labels, learn, self.graph, self.numbers, state, kept)

    def _nothing(self) -> Any:
        return np.zeros((0, 0, 0), np.uint8), np.zeros((0, 0), np.int8), np.zeros((0, 0, 0), np.int16)

    def present(self, current: Tensor, labels: Tensor, *, record: bool = False) -> Any:
        """Learn from samples in turn.

        Args:
            current: ``[T, width]``.
            labels: ``[T]``.
            record: Keep the states, see :meth:`trace`.

        Returns:
            What was predicted before each update, ``[T]``.
        """
        assert self.rule is not None
        steps, matrices = len(current), len(self.weights)
        arrays = current.numpy(), labels.numpy()
        average = self.rule.average
        lag, out_lag = (np.zeros_like(self.weights), np.zeros_like(self.out)) if average else (self.weights[:0], self.out[:0])
        self.kept = self._nothing()
        if record:
            rows = 1 if isinstance(self.net, RecurrentAssembly) else matrices + 1
            self.kept = (
                np.zeros((steps, rows, self.net.width), np.uint8),
                np.zeros((steps, self.net.classes), np.int8),
                np.zeros((steps, matrices, self.net.width), np.int16),
            )
        predicted = self._run(*arrays, True, (self.weights, self.out, lag, out_lag), self.kept)
        if average:
            before = self.mean or (0.0, 0.0)
            total = self.counted + steps
            hidden, out = (
                (self.counted * old + steps * new - late) / total for old, new, late in zip(before, (self.weights, self.out), (lag, out_lag), strict=True)
            )
            self.mean, self.counted = (hidden, out), total
        return predicted

    def answer(self, current: Tensor) -> Any:
        """What is predicted, ``[T]``, by the weights that answer."""
        weights, out = self.mean or (self.weights, self.out)
        state = (weights, out, self.weights[:0], self.out[:0])
        return self._run(current.numpy(), np.zeros(len(current), np.int64), False, state, self._nothing())

    def plastic(self, *, running: bool = False) -> list[Tensor]:
        """The plastic matrices that answer, in the network's order; with ``running`` those that learn."""
        weights, out = (self.weights, self.out) if running or self.mean is None else self.mean
        return [*torch.from_numpy(np.ascontiguousarray(weights)).mT.contiguous(), torch.from_numpy(np.ascontiguousarray(out.T))]

    def trace(self, predicted: Tensor) -> Trace:
        """The last recorded presentation, for :func:`~retain.plasticity.replay.table_gradient`; a network is one run of it."""
        fired, columns, counts = (torch.from_numpy(part).long() for part in self.kept)
        changed = (columns != IDLE).any(1)
        recurrent = isinstance(self.net, RecurrentAssembly)
        cells = []
        for k in range(len(self.weights)):
            pre, post = fired[:, 0 if recurrent else k], fired[:, 0 if recurrent else k + 1]
            cells.append((pre[None], post.masked_fill(~changed[:, None], IDLE)[None], counts[:, k][None]))
        last = fired[:, -1]
        assert self.rule is not None
        counting = self.rule.output.counting
        count = {
            "none": 0 * columns,
            "count": last.sum(1, keepdim=True).expand_as(columns),
            "percent": (20 * last.sum(1, keepdim=True) // self.net.width).expand_as(columns),
        }
        cells.append((last[None], columns[None], count[counting][None]))
        weights = [weight[None] for weight in self.plastic(running=True)]
        mean = [weight[None] for weight in self.plastic()] if self.rule.average else None
        return Trace(weights, mean, predicted[None], cells)
