"""The Fisher information of a model on data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args, overload

from torch import Tensor, nn

from retain.beliefs import Precision
from retain.curvature.outputs import LabelRule
from retain.curvature.structures import Sharing, diagonal, ekfac, full, kronecker, low_rank
from retain.curvature.sweep import Sweep
from retain.errors import InputError, nearest
from retain.likelihoods import Likelihood

Structure = Literal["diagonal", "low-rank", "kronecker", "ekfac", "full"]


class Fisher(dict[str, Tensor]):
    """Diagonal of the Fisher by parameter name, a mean per observation in nats per squared unit of the parameter.

    Args:
        values: The diagonal.
        n: Observations it was averaged over.
        labels: The label rule.
        slow: Parameters without a closed form, for which per-sample gradients were taken.
    """

    def __init__(self, values: dict[str, Tensor], n: float, labels: str, slow: tuple[str, ...]) -> None:
        super().__init__(values)
        self.n, self.labels, self.slow = n, labels, slow


@overload
def fisher(
    model: nn.Module,
    data: Any,
    labels: LabelRule = "exact",
    structure: Literal["diagonal"] = "diagonal",
    likelihood: Likelihood | None = None,
    samples: int | None = None,
    *,
    draws: int = 1,
    replacement: bool = False,
    batch_size: int = 500,
    seed: int = 0,
    sharing: Sharing = "expand",
    rank: int = 10,
) -> Fisher: ...


@overload
def fisher(
    model: nn.Module,
    data: Any,
    labels: LabelRule = "exact",
    *,
    structure: Literal["low-rank", "kronecker", "ekfac", "full"],
    likelihood: Likelihood | None = None,
    samples: int | None = None,
    draws: int = 1,
    replacement: bool = False,
    batch_size: int = 500,
    seed: int = 0,
    sharing: Sharing = "expand",
    rank: int = 10,
) -> Precision: ...


def fisher(
    model: nn.Module,
    data: Any,
    labels: LabelRule = "exact",
    structure: Structure = "diagonal",
    likelihood: Likelihood | None = None,
    samples: int | None = None,
    *,
    draws: int = 1,
    replacement: bool = False,
    batch_size: int = 500,
    seed: int = 0,
    sharing: Sharing = "expand",
    rank: int = 10,
) -> Fisher | Precision:
    r"""Fisher information of every weight, :math:`F_j = \frac1n \sum_i \mathbb{E}_{y}\big[(\partial_j \log p(y \mid x_i, \theta))^2\big]`.

    The label rule says what y is. ``exact`` takes the expectation over the model's own answers in closed form, ``sampled`` draws
    them, ``empirical`` takes the data's label and ``predicted`` the most probable answer. Only the first two are the Fisher; on
    a confident model the last two are far too small (on the difference: Kunstner, Balles and Hennig 2019,
    https://arxiv.org/abs/1905.12558; van de Ven 2025, https://arxiv.org/abs/2502.11756). Squares are taken per sample, never of a
    batch's mean gradient.

    Linear and convolutional layers (1-3 dimensions, transposed), embeddings, layer, RMS, group and batch norm, recurrent layers and
    multi-head attention have closed forms, also where a parameter is tied or a layer is used several times. Every other parameter
    goes through per-sample gradients, by ``vmap`` or a loop, and is listed in the result's ``slow``. The model is in evaluation mode
    meanwhile; its mode, buffers and gradients are left as they were.

    Args:
        model: Any module, on any device.
        data: A :class:`~retain.tasks.Task` (its training part) or whatever makes one: a pair of arrays, a DataLoader.
        labels: The label rule.
        structure: ``diagonal``; ``low-rank``, the largest directions and the diagonal of the rest; ``kronecker``, a product a layer;
            ``ekfac``, its eigenvalues measured in a second pass; ``full``, the whole matrix of a small model.
        likelihood: What the outputs mean, if ``data`` is not a task; classification by default.
        samples: Use this many samples, drawn at random (of a loader: the first); all by default.
        draws: Labels drawn per sample under ``sampled``.
        replacement: Draw the samples with replacement.
        batch_size: Samples per pass; memory grows with it.
        seed: Seed of the samples and of the drawn labels.
        sharing: How ``kronecker`` treats a layer at many positions, see :func:`~retain.curvature.structures.kronecker.kronecker`.
        rank: Directions kept by ``low-rank``.

    Returns:
        For ``diagonal`` a mapping from parameter name to a tensor of the parameter's shape and type, else a
        :class:`~retain.beliefs.Precision`.

    Raises:
        InputError: If the label rule is unknown or does not suit the outputs, or a value is not finite.
        RetainError: If the model has no trainable parameter.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import retain
        >>> model, x = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [3.0]])
        >>> F = retain.fisher(model, (x, x), likelihood=retain.likelihoods.Gaussian(sigma=2.0))
        >>> F["weight"]  # the mean of x**2 / sigma**2
        tensor([[1.2500]])
    """
    if structure not in get_args(Structure):
        raise InputError("structure", f"one of {', '.join(get_args(Structure))}", repr(structure), nearest(str(structure), get_args(Structure)))
    if sharing not in get_args(Sharing):
        raise InputError("sharing", "'expand' or 'reduce'", repr(sharing))
    sweep = Sweep(model, data, labels, likelihood, samples, draws, replacement, batch_size, seed)
    if structure == "kronecker":
        return kronecker(sweep, sharing)
    if structure == "ekfac":
        return ekfac(sweep)
    if structure == "low-rank":
        return low_rank(sweep, rank)
    if structure == "full":
        return full(sweep)
    values = diagonal(sweep)
    return Fisher(values, sweep.seen, labels, sweep.slow)


def sensitivity(
    model: nn.Module, data: Any, at_outputs: Callable[[Tensor], Tensor], *, samples: int | None = None, batch_size: int = 500, seed: int = 0
) -> dict[str, Tensor]:
    r"""Mean over samples of absolute gradients, :math:`\frac1n \sum_i |\partial_j h(f(x_i))|`, of a function h of the outputs.

    Args:
        model: Any module.
        data: A task or whatever makes one; labels are not read.
        at_outputs: The gradient of h, from outputs ``[B, ...]`` to a tensor of that shape.
        samples: Use this many samples; all by default.
        batch_size: Samples per pass.
        seed: Seed of the samples.

    Returns:
        A tensor of each parameter's shape.
    """
    return diagonal(Sweep(model, data, lambda outputs: at_outputs(outputs.detach())[None], samples=samples, batch_size=batch_size, seed=seed), 1)
