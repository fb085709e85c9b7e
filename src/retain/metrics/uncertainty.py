"""What an ensemble does not know: uncertainty in two parts, and how well a score tells strange samples from known ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retain.errors import InputError
from retain.metrics.calibration import check_probabilities


class Uncertainty(NamedTuple):
    """Uncertainty by sample in nats, each ``[N]``: of the whole, of the data (aleatoric) and of the weights (epistemic)."""

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def uncertainty(probabilities: Tensor) -> Uncertainty:
    r"""Entropy of the mean, mean of the entropies, and their difference, with :math:`\bar p = \frac1S \sum_s p_s`.

    .. math:: H[\bar p] = \tfrac1S \sum_s H[p_s] + I, \qquad H[p] = -\sum_c p_c \ln p_c

    The mutual information :math:`I` of answer and weights is what the members disagree about (BALD, Houlsby et al. 2011; Depeweg et al.
    2018): 0 where all give the same probabilities. Differences below zero, which only rounding can give, are set to zero.

    Args:
        probabilities: Rows of class probabilities of S members or draws of the weights, ``[S, N, C]``.

    Returns:
        Three tensors ``[N]`` in nats: ``total`` and ``aleatoric`` in [0, ln C], ``epistemic`` in [0, ln min(S, C)].

    Raises:
        InputError: If rows are no probabilities or the shape is another.

    Example:
        >>> import torch
        >>> agree, differ = [[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]
        >>> found = uncertainty(torch.tensor([agree, differ]).transpose(0, 1))
        >>> [[round(value, 3) for value in part.tolist()] for part in found]
        [[0.693, 0.693], [0.693, 0.0], [0.0, 0.693]]
    """
    values = check_probabilities(probabilities, "S", "N", "C")
    total = torch.special.entr(values.mean(0)).sum(-1).clamp(min=0)
    aleatoric = torch.special.entr(values).sum(-1).mean(0).clamp(min=0)
    return Uncertainty(total, aleatoric, (total - aleatoric).clamp(min=0))


def _scores(name: str, scores: Tensor) -> Tensor:
    if not isinstance(scores, Tensor) or scores.is_complex():
        raise InputError(name, "a tensor of scores [n]", scores.dtype if isinstance(scores, Tensor) else type(scores).__name__)
    if scores.ndim != 1 or len(scores) == 0:
        raise InputError(name, "a tensor of at least one score [n]", f"shape {list(scores.shape)}")
    if bool(torch.isnan(scores).any()):
        raise InputError(name, "scores that can be compared", "NaN")
    return scores.detach().cpu().double()


def auroc(inside: Tensor, outside: Tensor) -> float:
    r"""How well a score tells samples of another kind: :math:`P(o > i) + \frac12 P(o = i)` over all pairs of an outside and an inside score.

    The area under the curve of true against false alarms (Hanley and McNeil 1982), by the count of Mann and Whitney (1947) in
    O(n log n); as a measure of out-of-distribution detection after Hendrycks and Gimpel (2017).

    Args:
        inside: Scores of known samples, ``[n]``; infinite ones are allowed.
        outside: Scores of strange samples, ``[m]``, which ought to be higher: an uncertainty, not a confidence.

    Returns:
        A number in [0, 1]: 1 where every strange sample has a higher score than every known one, 0.5 for chance.

    Raises:
        InputError: If scores are missing, not a number, or of another shape.

    Example:
        >>> import torch
        >>> auroc(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.3, 0.9]))
        0.9166666666666666
    """
    known, strange = _scores("inside", inside).sort().values, _scores("outside", outside)
    below, upto = (torch.searchsorted(known, strange, right=right) for right in (False, True))
    return int((below + upto).sum()) / (2 * len(known) * len(strange))
