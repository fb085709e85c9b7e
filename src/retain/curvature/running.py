"""Kronecker factors that follow a model while it moves, and the step that they make of a gradient."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from retain.curvature.capture import Capture
from retain.curvature.outputs import gradients_at
from retain.curvature.pieces import total_power
from retain.curvature.probe import forward, pieces, trusted
from retain.curvature.structures.kronecker import Sharing, blocks_of, inputs_of, slopes_of, whole, with_ones
from retain.errors import InputError, check_count, check_positive
from retain.models.parameters import named_parameters
from retain.tasks.batch import Batch


class _Block(NamedTuple):
    bias: str | None
    slopes: Tensor
    inputs: Tensor


class RunningKronecker:
    r"""A Kronecker approximation of a Fisher as a running mean over batches, and its damped inverse (KFAC).

    .. math:: \Delta W = (G + \tfrac{\sqrt\lambda}{\pi} I)^{-1}\, \nabla W\, (A + \pi \sqrt\lambda I)^{-1},
        \qquad \pi^2 = \frac{\operatorname{tr} A / \dim A}{\operatorname{tr} G / \dim G}

    (Martens and Grosse 2015, sections 5 and 6.3, https://arxiv.org/abs/1503.05671). Vectors at the outputs are the caller's, so the Fisher may be that of any
    distribution made of the outputs. Parameters without a block (norms, embeddings, grouped convolutions) have a damped diagonal; parameters without a
    closed form are refused. Use it in a ``with`` block, the model in evaluation mode.

    Args:
        model: Any module.
        decay: Weight of the past in the running mean, in [0, 1); the first batches count equally.
        refresh: Take the inverses anew once in so many batches.
        sharing: Of layers at many positions, see :func:`retain.fisher`.

    Raises:
        InputError: If a number is out of range.
    """

    def __init__(self, model: nn.Module, decay: float = 0.95, refresh: int = 10, sharing: Sharing = "expand") -> None:
        if not 0 <= check_positive("decay", decay, zero=True) < 1:
            raise InputError("decay", "a number in [0, 1)", decay)
        self.decay, self.refresh, self.sharing = decay, check_count("refresh", refresh), sharing
        self.model = model
        self.parameters = named_parameters(model)
        self._names = {id(p): name for name, p in self.parameters.items()}
        self._capture = Capture(model, set(self._names))
        self._biases: dict[str, str | None] | None = None
        self._blocks: dict[str, _Block] = {}
        self._rest: dict[str, Tensor] = {}
        self._inverses: dict[str, tuple[Tensor, Tensor]] = {}
        self._seen, self._inverted, self._damping = 0, 0, 0.0

    def __enter__(self) -> Self:
        self._capture.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._capture.__exit__(kind, value, trace)

    def forward(self, batch: Batch) -> Tensor:
        """The model's outputs with their graph; :meth:`observe` needs them."""
        if self._biases is None:
            found = trusted(self._capture, self.model, batch, self._names, self.parameters)
            missing = [name for name in self.parameters if name not in found]
            if missing:
                hint = "Use another solver, such as Gauss-Newton with conjugate gradients, which takes any module."
                raise InputError("model", "layers with Kronecker factors or a diagonal", f"none for '{missing[0]}'", hint)
        return forward(self._capture, self.model, batch)

    def observe(self, outputs: Tensor, vectors: Tensor) -> None:
        """Take a batch into the running mean.

        Args:
            outputs: What :meth:`forward` returned last; their graph is kept.
            vectors: ``[K, B, C]``, whose outer products sum over k to K times the wanted Fisher of each sample's outputs.
        """
        uses = self._capture.uses
        with torch.no_grad():
            found = pieces(self._capture, gradients_at(outputs, [use.site.out for use in uses], vectors, keep=True), self._names)
            if self._biases is None:
                self._biases = blocks_of(found)
            count = vectors.shape[0] * vectors.shape[1]
            keep = min(self.decay, self._seen / (self._seen + 1))
            for weight, bias in self._biases.items():
                piece = whole(weight, found)
                g, parts = slopes_of(piece, self.sharing), [(a.T @ a, a.sum(0), len(a)) for a in inputs_of(piece, self.sharing)]
                rows = sum(n for *_, n in parts)
                A: Tensor = sum(moment for moment, *_ in parts) / rows  # type: ignore[assignment]
                if bias is not None:
                    A = with_ones(A, sum(total for _, total, _ in parts) / rows)  # type: ignore[arg-type]
                G = g.T @ g / count
                old = self._blocks.get(weight)
                self._blocks[weight] = _Block(bias, G, A) if old is None else _Block(bias, old.slopes.lerp_(G, 1 - keep), old.inputs.lerp_(A, 1 - keep))
            covered = {*self._biases, *self._biases.values()}
            for name, parts_of in found.items():
                if name not in covered:
                    power = total_power([(part.place, part.piece) for _, part in parts_of], self.parameters[name].shape, 2) / count
                    self._rest[name] = power if name not in self._rest else self._rest[name].lerp_(power, 1 - keep)
        self._seen += 1

    def solve(self, gradient: dict[str, Tensor], damping: float) -> dict[str, Tensor]:
        r"""The damped inverse applied to a gradient.

        Args:
            gradient: By parameter name.
            damping: :math:`\lambda`, above 0.

        Returns:
            A direction, by parameter name.
        """
        if not self._inverses or self._seen - self._inverted >= self.refresh or not 0.5 < damping / self._damping < 2:
            self._invert(damping)
        found: dict[str, Tensor] = {}
        for weight, block in self._blocks.items():
            left, right = self._inverses[weight]
            W = gradient[weight].flatten(1)
            if block.bias is not None:
                W = torch.cat([W, gradient[block.bias][:, None]], 1)
            W = left @ W @ right
            if block.bias is not None:
                found[block.bias], W = W[:, -1], W[:, :-1]
            found[weight] = W.reshape(gradient[weight].shape)
        for name, power in self._rest.items():
            found[name] = gradient[name] / (power + damping)
        return found

    def _invert(self, damping: float) -> None:
        self._inverted, self._damping = self._seen, damping
        tiny = 1e-12
        for weight, (_, G, A) in self._blocks.items():
            ratio = ((A.trace() / len(A)).clamp_min(tiny) / (G.trace() / len(G)).clamp_min(tiny)).sqrt()
            root = damping**0.5
            self._inverses[weight] = (_damped_inverse(G, root / ratio), _damped_inverse(A, root * ratio))


def _damped_inverse(matrix: Tensor, damping: Tensor) -> Tensor:
    whole = matrix.clone()
    whole.diagonal().add_(damping)
    factor, failed = torch.linalg.cholesky_ex(whole)
    if int(failed):  # rounding left it indefinite: float64 has the digits
        factor = torch.linalg.cholesky(whole.double()).to(whole.dtype)
    inverse: Tensor = torch.cholesky_inverse(factor)
    return inverse
