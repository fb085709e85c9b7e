"""The Hessian of the loss at a model: its outermost eigenvalues, its trace, and where all eigenvalues lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retain.curvature import Density, density, hessian, lanczos, trace
from retain.diagnosis.inputs import TWICE, as_checked, held, weights
from retain.errors import InputError, check_count, check_positive
from retain.figures import Lines, Table
from retain.metrics import Estimate
from retain.models.parameters import copy, unwrap
from retain.training.recorder import Recorder, Silent

CAVEAT = (
    "Of the samples drawn, in the weights' own coordinates: rescaling the layers of a ReLU network changes every eigenvalue and no answer, and "
    "a small trace does not imply generalisation."
)


@dataclass(frozen=True, repr=False)
class Spectrum:
    """Eigenvalues of the Hessian of the mean loss, nats per squared unit of the weights.

    Args:
        largest: The largest eigenvalues found, largest first.
        smallest: The smallest, below 0 unless the loss is convex here.
        residuals: By largest eigenvalue, then of the smallest: a true eigenvalue lies within.
        trace: Their sum, with its standard error over probes.
        density: Of all eigenvalues.
        size: How many there are.
        samples: That the loss is the mean of.
    """

    largest: list[float]
    smallest: float
    residuals: list[float]
    trace: Estimate
    density: Density
    size: int
    samples: int

    def table(self) -> Table:
        """Eigenvalues and trace."""
        body = [[f"eigenvalue {i + 1}", f"{value:.4g}", f"{error:.1g}"] for i, (value, error) in enumerate(zip(self.largest, self.residuals, strict=False))]
        body.append(["smallest eigenvalue", f"{self.smallest:.4g}", f"{self.residuals[-1]:.1g}"])
        body.append(["trace", f"{self.trace.mean:.4g}", f"{self.trace.error:.1g}"])
        body.append(["mean eigenvalue", f"{self.trace.mean / self.size:.4g}", f"{self.trace.error / self.size:.1g}"])
        return Table("Hessian of the loss", ["", "nats", "error"], body, f"{self.samples} samples, {self.size:,} weights. {CAVEAT}")

    def figures(self) -> list[Lines]:
        """The spectral density."""
        figure = self.density.figure("Eigenvalues of the Hessian")
        figure.id = "spectrum"
        return [figure]

    def _repr_html_(self) -> str:
        return self.table().html()

    def __repr__(self) -> str:
        return self.table().text()


def spectrum(
    model: nn.Module,
    task: Any,
    *,
    k: int = 3,
    steps: int = 40,
    probes: int = 8,
    part: str = "data",
    samples: int = 64,
    memory: float = 2e9,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> Spectrum:
    r"""Outermost eigenvalues, trace and spectral density of the Hessian, :math:`\frac1n \sum_i \nabla^2 (-\log p(y_i \mid x_i))`, from products alone.

    Eigenvalues are the Ritz values of one Lanczos run with full reorthogonalisation, with their residual norms; the trace is Hutchinson's; the density
    stochastic Lanczos quadrature (Ghorbani, Krishnan and Xiao 2019, https://arxiv.org/abs/1901.10159; Yao et al. 2020, PyHessian,
    https://arxiv.org/abs/1912.07145): see :mod:`retain.curvature`. One start finds an eigenvalue once, however often it occurs. All weights count, frozen
    ones too, in evaluation mode, on a copy.

    Args:
        model: Any module.
        task: The samples.
        k: Largest eigenvalues wanted.
        steps: Of Lanczos' iteration, a product and a vector in memory each.
        probes: Of the trace, a product each; a quarter of them serve the density, ``steps`` products each.
        part: ``data``, ``validation`` or ``test``.
        samples: Drawn at random (of a loader: the first).
        memory: Bytes that vectors may take, which bounds ``steps``.
        seed: Of samples and probes.
        recorder: Where progress is reported, an event a product.

    Returns:
        The spectrum.

    Raises:
        InputError: If a number is out of range, or an operation of the model cannot be differentiated twice.

    Example:
        >>> from retain import models, tasks
        >>> from retain.diagnosis import spectrum
        >>> found = spectrum(models.MLP(64, 32, 10, seed=0), tasks.digits(), steps=20)
        >>> found.largest[0] > found.largest[1] > 0 > found.smallest
        True
    """
    for name, value, least in (("k", k, 1), ("steps", steps, k + 1), ("probes", probes, 2)):
        check_count(name, value, least=least)
    check_positive("memory", memory)
    weights(model)
    task, recorder = as_checked(task), recorder or Silent()
    fixed = held(model, task, part, samples, seed, TWICE)
    own = copy(unwrap(model))
    for p in own.parameters():
        p.requires_grad_(p.is_floating_point())
    with hessian(own, fixed, seed=seed) as H:
        like = torch.empty(H.size, dtype=H.dtype, device=H.device)
        steps = min(steps, int(memory / (H.size * like.element_size())), H.size)
        if steps < min(k + 1, H.size):
            raise InputError("memory", f"room for {k + 1} vectors of {H.size:,} weights, {(k + 1) * H.size * like.element_size():,} bytes", f"{memory:g}")
        starts = max(1, probes // 4)
        total, done = steps * (1 + starts) + probes, 0

        def product(v: Tensor) -> Tensor:
            nonlocal done
            done += 1
            recorder.event("step", task="spectrum", epoch=done, epochs=total, loss=float("nan"), accuracy={})
            return H @ v

        run = lanczos(product, steps, seed, like=like)
        values, S = torch.linalg.eigh(run.tridiagonal)
        residuals, values = (run.remainder * S[-1].abs()).flip(0), values.flip(0)
        del run  # the basis, before the density makes its own
        found = trace(product, probes, seed, like=like)
        spread = density(product, steps, starts, seed=seed, like=like)
    last = [float(residuals[-1])]
    return Spectrum(values[:k].tolist(), float(values[-1]), residuals[:k].tolist() + last, found, spread, H.size, sum(len(b.targets) for b in fixed.batches(1)))
