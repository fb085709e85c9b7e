"""How fast the loss rises around a model, measured so that rescaling the weights does not matter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from retain.diagnosis.inputs import BACKWARD, as_checked, held, weights
from retain.diagnosis.walk import Walker
from retain.errors import InputError, RetainError, check_count, check_positive, nearest
from retain.figures import Lines, Series, Table
from retain.metrics import Estimate, estimate
from retain.models.parameters import evaluating
from retain.seeds import generator
from retain.tasks.batch import apply
from retain.tasks.task import Task
from retain.training.recorder import Recorder, Silent

CAVEAT = (
    "Less sharp does not mean that it generalises better: across fine-tuned networks even adaptive sharpness correlates weakly with test accuracy, and often "
    "the wrong way under shift (Andriushchenko et al. 2023). Compare models at the same radius and on the same samples only."
)
Norm = Literal["l2", "linf"]


@dataclass(frozen=True, repr=False)
class Sharpness:
    """Rises of the loss in nats.

    Args:
        loss: At the model.
        worst: The largest rise found within ``rho``, a lower bound of the true one.
        average: The mean rise under random changes of size ``sigma``, with its standard error.
        ascent: The rise after every step of the search.
        rho: Radius of the worst case.
        sigma: Size of the random changes.
        adaptive: Whether both are relative to each weight's size.
        norm: In which the radius is measured.
    """

    loss: float
    worst: float
    average: Estimate
    ascent: list[float]
    rho: float
    sigma: float
    adaptive: bool
    norm: str

    def table(self) -> Table:
        """Worst and average rise."""
        kind = "adaptive" if self.adaptive else "plain, not invariant to rescaling"
        body = [
            [f"largest rise within {self.rho:g} ({self.norm})", f"{self.worst:.4g}", ""],
            [f"mean rise at {self.sigma:g}", f"{self.average.mean:.4g}", f"{self.average.error:.1g}"],
        ]
        return Table(f"Sharpness, {kind}: rise of the loss, nats", ["", "nats", "error"], body, CAVEAT)

    def figures(self) -> list[Lines]:
        """The search for the worst case."""
        steps = [float(i) for i in range(len(self.ascent))]
        return [Lines("Search for the largest rise", "step", "rise, nats", [Series("rise", steps, self.ascent)], id="sharpness")]

    def _repr_html_(self) -> str:
        return self.table().html()

    def __repr__(self) -> str:
        return self.table().text()


def sharpness(
    model: nn.Module,
    task: Any,
    *,
    rho: float | None = None,
    sigma: float = 0.05,
    adaptive: bool = True,
    norm: Norm = "l2",
    steps: int = 20,
    draws: int = 8,
    part: str = "data",
    samples: int = 256,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> Sharpness:
    r"""The rise of the loss, in the worst direction and on average, in units of each weight's own size.

    With :math:`c = |w|` (``adaptive``) or 1,

    .. math:: S_{\max} = \max_{\|\delta / c\|_p \le \rho} L(w + \delta) - L(w), \qquad
              S_{\mathrm{avg}} = \mathbb{E}_{z \sim N(0, I)} L(w + \sigma c z) - L(w).

    Kwon et al. 2021 (ASAM, https://arxiv.org/abs/2102.11600), section 3.1; Andriushchenko et al. 2023 (https://arxiv.org/abs/2302.07011), section 3. Any
    rescaling of weights that keeps the answers, such as of the units of a ReLU network, keeps both where they are adaptive, and neither where they are not
    (Dinh et al. 2017, https://arxiv.org/abs/1703.04933). The maximum is sought by projected gradient ascent with normalised steps in the coordinates
    :math:`\delta / c`, the best point kept: the first step is ASAM's. Random changes come in pairs :math:`\pm z`, which cancels the slope. Departure: the
    samples are one set, not means over many small ones. Batch norm is in evaluation mode.

    Args:
        model: Any module.
        task: The samples.
        rho: Radius; by default 0.5 if adaptive and 0.05 if not (Kwon's and Foret's), for ``linf`` a hundredth of these.
        sigma: Size of the random changes: a share of each weight, or in units of the weights if not adaptive.
        adaptive: Measure changes in units of each weight's size.
        norm: ``l2`` or ``linf``, of the worst case.
        steps: Gradients of the search.
        draws: Pairs of random changes.
        part: ``data``, ``validation`` or ``test``.
        samples: Drawn at random (of a loader: the first).
        seed: Of samples and changes.
        recorder: Where progress is reported, an event a gradient and a pair.

    Returns:
        Both rises.

    Raises:
        InputError: If a number is out of range or a weight is not finite.
        RetainError: If the loss has no finite gradient at the model.

    Example:
        >>> from retain import models, tasks
        >>> from retain.diagnosis import sharpness
        >>> found = sharpness(models.MLP(64, 32, 10, seed=0), tasks.digits(), steps=3, draws=2)
        >>> found.worst > found.average.mean
        True
    """
    if norm not in get_args(Norm):
        raise InputError("norm", "'l2' or 'linf'", repr(norm), nearest(str(norm), get_args(Norm)))
    rho = (0.5 if adaptive else 0.05) * (1 if norm == "l2" else 0.01) if rho is None else check_positive("rho", rho)
    check_positive("sigma", sigma)
    check_count("steps", steps)
    check_count("draws", draws)
    origin = weights(model)
    task, recorder = as_checked(task), recorder or Silent()
    fixed = held(model, task, part, samples, seed, BACKWARD)
    walker = Walker(model, {part: fixed})
    scale = {name: w.abs() if adaptive else torch.ones_like(w) for name, w in origin.items()}
    walker.go([])
    loss = walker.measure()[part].nll

    def event(name: str, number: int, of: int, rise: float) -> None:
        recorder.event("step", task=name, epoch=number, epochs=of, loss=loss + rise, accuracy={})

    at = {name: torch.zeros_like(w) for name, w in origin.items()}  # delta / c
    draw, ascent, scaled = generator(seed, "sharpness"), [0.0], dict(at)
    for step in range(steps):
        value, slope = _gradient(walker, fixed)
        if step:
            ascent.append(value - loss)
            event("sharpness, worst", step, steps, ascent[-1])
        for name, g in slope.items():
            g.mul_(scale[name])
        size = _norm(slope)
        if not math.isfinite(size):
            if not step:
                raise RetainError("model: expected a finite gradient of the loss, found NaN or infinity. Check the weights and the data.")
            break  # the loss is infinite in reach: it is in the list
        if not size:  # at a stationary point any direction is as good
            slope = {name: torch.randn(w.shape, generator=draw).to(w) * scale[name] for name, w in origin.items()}
            size = _norm(slope)
            if not size:
                raise InputError("model", "a weight other than 0", "none", "Adaptive sharpness moves weights in proportion to their size.")
        pace = 2 * rho * (1 - step / steps)  # twice the radius goes across the ball, as power iteration would
        for name, g in slope.items():
            at[name].add_(g.sign() if norm == "linf" else g, alpha=pace if norm == "linf" else pace / size)
        if norm == "linf":
            for value_ in at.values():
                value_.clamp_(-rho, rho)
        elif (far := _norm(at)) > rho:
            for value_ in at.values():
                value_.mul_(rho / far)
        scaled = {name: value_ * scale[name] for name, value_ in at.items()}
        walker.go([(1.0, scaled)])
    ascent.append(walker.measure()[part].nll - loss)
    rises = []
    for number in range(draws):
        change = {name: torch.randn(w.shape, generator=draw, dtype=torch.float32).to(w).mul_(scale[name]) for name, w in origin.items()}
        pair = []
        for sign in (1, -1):
            walker.go([(sign * sigma, change)])
            pair.append(walker.measure()[part].nll)
        rises.append(math.fsum(pair) / 2 - loss)
        event("sharpness, average", number + 1, draws, rises[-1])
    return Sharpness(loss, max(ascent), estimate(rises), ascent, rho, sigma, adaptive, norm)


def _gradient(walker: Walker, task: Task) -> tuple[float, dict[str, Tensor]]:
    """Mean loss and its gradient at the walker's weights."""
    parameters = {name: p for name, p in walker.model.named_parameters() if name in walker.own}
    total, units = 0.0, 0.0
    found = {name: torch.zeros_like(p) for name, p in walker.own.items()}
    for p in parameters.values():
        p.requires_grad_(True)
    with torch.enable_grad(), evaluating(walker.model):
        for batch in task.batches(1):
            loss = task.likelihood.nll(apply(walker.model, batch), batch.targets).sum()
            for (name, _), g in zip(parameters.items(), torch.autograd.grad(loss, list(parameters.values()), allow_unused=True), strict=True):
                if g is not None:
                    found[name] += g
            total += loss.item()
            units += float(task.likelihood.units(batch.targets).sum())
    for p in parameters.values():
        p.requires_grad_(False)
    for g in found.values():
        g.div_(units)
    return total / units, found


def _norm(vectors: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(torch.linalg.vector_norm(v, dtype=torch.float64).square()) for v in vectors.values()))
