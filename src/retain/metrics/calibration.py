"""Whether a model's probabilities are what they say: calibration by bins, and the Brier score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retain.errors import InputError, check_count

TOLERANCE = 1e-3
"""How far a row's sum may be from 1: room for the rounding of single precision, not for scores that are no probabilities."""


def check_probabilities(probabilities: Tensor, *dims: str) -> Tensor:
    """Return ``probabilities`` if they are such: every entry at least 0, every row (the last axis) with sum 1.

    Args:
        probabilities: The tensor to check.
        *dims: Names of its axes, such as ``"N", "C"``, for the error message.

    Returns:
        The tensor, in single precision at least.

    Raises:
        InputError: If it is no such tensor, or empty, or a row does not sum to 1 within 0.001.
    """
    wanted = f"a tensor of probabilities [{', '.join(dims)}]"
    if not isinstance(probabilities, Tensor):
        raise InputError("probabilities", wanted, type(probabilities).__name__)
    if probabilities.ndim != len(dims) or probabilities.numel() == 0:
        raise InputError("probabilities", wanted, f"shape {list(probabilities.shape)}")
    if not probabilities.is_floating_point():
        raise InputError("probabilities", wanted, probabilities.dtype)
    values = probabilities.float() if probabilities.element_size() < 4 else probabilities
    if not torch.isfinite(values).all():
        raise InputError("probabilities", "finite numbers", "NaN or infinity")
    off = float((values.detach().sum(-1) - 1).abs().max())
    if off > TOLERANCE or bool((values < 0).any()):
        found = "a negative one" if bool((values < 0).any()) else f"a row whose sum is off by {off:.3g}"
        raise InputError("probabilities", "rows of numbers of at least 0 that sum to 1", found, "For outputs of a classifier pass outputs.softmax(-1).")
    return values


def _labelled(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    values = check_probabilities(probabilities, "N", "C").detach()
    count, classes = values.shape
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise InputError("targets", "a tensor of class indices [N]", targets.dtype if isinstance(targets, Tensor) else type(targets).__name__)
    if targets.shape != (count,):
        raise InputError("targets", f"one label for each of the {count} rows", f"shape {list(targets.shape)}")
    if bool(((targets < 0) | (targets >= classes)).any()):
        raise InputError("targets", f"labels from 0 to {classes - 1}", f"labels from {int(targets.min())} to {int(targets.max())}")
    return values, targets.to(values.device, torch.long)


@dataclass(frozen=True)
class Calibration:
    """What a reliability diagram shows; all numbers but the counts are in [0, 1].

    Args:
        confidence: Mean top probability by bin, ``nan`` for an empty bin.
        accuracy: Share of right answers by bin, ``nan`` for an empty bin.
        count: Samples by bin.
        error: The expected calibration error.
        largest: The maximum calibration error.
    """

    confidence: list[float]
    accuracy: list[float]
    count: list[int]
    error: float
    largest: float


def calibration(probabilities: Tensor, targets: Tensor, bins: int = 15) -> Calibration:
    r"""Confidence against accuracy in bins of equal width (Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017).

    A sample belongs to bin :math:`b` of :math:`B` if its top probability is in :math:`((b - 1) / B, b / B]`. With :math:`n_b` samples
    there, the expected error is :math:`\sum_b \frac{n_b}{N} |\mathrm{acc}_b - \mathrm{conf}_b|` and the maximum one the largest
    :math:`|\mathrm{acc}_b - \mathrm{conf}_b|` of a bin that is not empty. Both depend on the number of bins, and the expected error
    is biased upwards where bins hold few samples.

    Args:
        probabilities: Rows of class probabilities, ``[N, C]``.
        targets: The true classes, ``[N]``, whole numbers below C.
        bins: How many bins of equal width.

    Returns:
        Confidence, accuracy and count by bin, and both errors.

    Raises:
        InputError: If rows are no probabilities, labels do not fit, or bins is below 1.

    Example:
        >>> import torch
        >>> found = calibration(torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.0, 1.0]]), torch.tensor([0, 1, 1]), bins=4)
        >>> found.confidence, found.accuracy, found.count
        ([nan, nan, 0.75, 1.0], [nan, nan, 0.5, 1.0], [0, 0, 2, 1])
        >>> round(found.error, 4), found.largest
        (0.1667, 0.25)
    """
    check_count("bins", bins)
    values, labels = _labelled(probabilities, targets)
    top, answer = values.max(-1)
    # edges in the precision of the probabilities, so that 0.2 is at the edge 1/5 and not a rounding error above it
    edges = (torch.arange(1, bins, dtype=torch.float64) / bins).to(top.dtype)
    top, right = top.cpu(), (answer == labels).cpu().double()
    place = torch.bucketize(top, edges)
    count = torch.bincount(place, minlength=bins)
    confidence = torch.bincount(place, top.double(), minlength=bins) / count
    accuracy = torch.bincount(place, right, minlength=bins) / count
    gap = (accuracy - confidence).abs()
    error = float((gap * count).nansum()) / len(labels)
    return Calibration(confidence.tolist(), accuracy.tolist(), count.tolist(), error, float(gap[count > 0].max()))


def expected_calibration_error(probabilities: Tensor, targets: Tensor, bins: int = 15) -> float:
    """The expected calibration error alone, in [0, 1]; see :func:`calibration`.

    Args:
        probabilities: Rows of class probabilities, ``[N, C]``.
        targets: The true classes, ``[N]``.
        bins: How many bins of equal width.

    Returns:
        The mean distance of accuracy and confidence, weighed by the samples of a bin.

    Raises:
        InputError: If rows are no probabilities, labels do not fit, or bins is below 1.

    Example:
        >>> import torch
        >>> expected_calibration_error(torch.tensor([[0.75, 0.25], [0.75, 0.25]]), torch.tensor([0, 1]))
        0.25
    """
    return calibration(probabilities, targets, bins).error


def brier(probabilities: Tensor, targets: Tensor) -> float:
    r"""Mean squared distance to the truth, :math:`\frac1N \sum_n \sum_c (p_{nc} - [c = y_n])^2` (Brier 1950).

    The sum runs over all classes, so the score is in [0, 2], and for two classes twice the square of one probability's error.

    Args:
        probabilities: Rows of class probabilities, ``[N, C]``.
        targets: The true classes, ``[N]``, whole numbers below C.

    Returns:
        0 for certain and right, 2 for certain and wrong.

    Raises:
        InputError: If rows are no probabilities or labels do not fit.

    Example:
        >>> import torch
        >>> brier(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([0, 0]))
        0.25
    """
    values, labels = _labelled(probabilities, targets)
    own = values.gather(1, labels[:, None])[:, 0]
    # |p - e|^2 = |p|^2 - p_y^2 + (1 - p_y)^2 would cancel near certainty
    others = values.scatter(1, labels[:, None], 0.0).square().sum(-1)
    return float((others + (1 - own).square()).cpu().double().mean())
