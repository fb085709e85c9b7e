"""The Gauss-Newton matrix, the Fisher and the Hessian of a model on data, without ever forming them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from retain.curvature.inputs import check_rule, check_suits, prepared
from retain.curvature.matrixfree.linear import gauss_newton, outer, second_derivative
from retain.curvature.matrixfree.operators import CurvatureOperator
from retain.curvature.matrixfree.passes import Passes
from retain.curvature.outputs import LabelRule
from retain.errors import check_count
from retain.likelihoods import Likelihood
from retain.seeds import generator


def ggn(
    model: nn.Module,
    data: Any,
    likelihood: Likelihood | None = None,
    samples: int | None = None,
    *,
    batch_size: int | None = None,
    names: str | Iterable[str] | None = None,
    damping: float = 0.0,
    seed: int = 0,
) -> CurvatureOperator:
    r"""The generalised Gauss-Newton matrix, :math:`G = \frac1n \sum_i J_i^\top H_i J_i`.

    :math:`J = \partial f/\partial\theta` is the Jacobian of the outputs and :math:`H = \nabla_f^2(-\log p)`. G is positive
    semi-definite, and for Retain's likelihoods the exact Fisher (Schraudolph 2002, Neural Computation 14(7); Martens 2020,
    https://arxiv.org/abs/1412.1193). :math:`Jv` comes from differentiating :math:`J^\top w` with respect to w.

    Args:
        model: Any module, on any device.
        data: A :class:`~retain.tasks.Task` (its training part) or whatever makes one: a pair of arrays, a DataLoader.
        likelihood: What the outputs mean, if ``data`` is not a task; classification by default.
        samples: Use this many samples, drawn at random (of a loader: the first); all by default.
        batch_size: Samples per batch; by default all, in one batch whose graph is kept. A loader has its own.
        names: Parameters, by name or pattern; all trainable ones by default.
        damping: Added to the diagonal, in nats per squared unit, at least 0.
        seed: Seed of the samples.

    Returns:
        The matrix, per observation, to be multiplied with ``@``.

    Raises:
        InputError: If the outputs do not fit the data, or a loss is given in place of a likelihood.
        RetainError: If the model has no trainable parameter.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from retain.curvature.matrixfree.products import ggn
        >>> from retain.likelihoods import Gaussian
        >>> model, x = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [3.0]])
        >>> ggn(model, (x, x), Gaussian(sigma=2.0)) @ torch.tensor([2.0])  # 2 times the mean of x**2 / sigma**2
        tensor([2.5000])
    """
    return fisher_operator(model, data, "exact", likelihood, samples, batch_size=batch_size, names=names, damping=damping, seed=seed)


def fisher_operator(
    model: nn.Module,
    data: Any,
    labels: LabelRule = "exact",
    likelihood: Likelihood | None = None,
    samples: int | None = None,
    *,
    draws: int = 1,
    batch_size: int | None = None,
    names: str | Iterable[str] | None = None,
    damping: float = 0.0,
    seed: int = 0,
) -> CurvatureOperator:
    r"""The Fisher information as a whole matrix, :math:`F = \frac1n \sum_i \mathbb{E}_y[g_i g_i^\top]` with :math:`g = \nabla_\theta \log p(y \mid x, \theta)`.

    The label rules are those of :func:`retain.fisher`, whose result is this matrix's diagonal; ``exact`` is :func:`ggn`. Products
    are :math:`J^\top s\,(s^\top J v)` with s the gradients at the outputs. Labels are drawn once, so all products are of one matrix.

    Args:
        model: Any module, on any device.
        data: A :class:`~retain.tasks.Task` (its training part) or whatever makes one: a pair of arrays, a DataLoader.
        labels: ``exact``, ``sampled``, ``empirical`` or ``predicted``; only the first two are the Fisher.
        likelihood: What the outputs mean, if ``data`` is not a task; classification by default.
        samples: Use this many samples, drawn at random (of a loader: the first); all by default.
        draws: Labels drawn per sample under ``sampled``.
        batch_size: Samples per batch; by default all, in one batch whose graph is kept. A loader has its own.
        names: Parameters, by name or pattern; all trainable ones by default.
        damping: Added to the diagonal, in nats per squared unit, at least 0.
        seed: Seed of the samples and of the drawn labels.

    Returns:
        The matrix, per observation, to be multiplied with ``@``.

    Raises:
        InputError: If the label rule is unknown or does not suit the outputs, or a loss is given in place of a likelihood.
        RetainError: If the model has no trainable parameter.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from retain.curvature.matrixfree.products import fisher_operator
        >>> from retain.likelihoods import Gaussian
        >>> model, x = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [3.0]])
        >>> _ = nn.init.ones_(model.weight)
        >>> fisher_operator(model, (x, x + 1), "empirical", Gaussian()) @ torch.tensor([1.0])  # the mean of x**2 (y - f)**2
        tensor([5.])
    """
    check_count("draws", draws)
    check_rule(labels)
    _, task = prepared(model, data, likelihood)
    check_suits(labels, task.likelihood, "'exact' or 'sampled'")
    rule = gauss_newton(task.likelihood) if labels == "exact" else outer(task, labels, draws, generator(seed, "labels"))
    return CurvatureOperator(model, Passes(task, samples, batch_size, seed), rule, names, damping, seed)


def hessian(
    model: nn.Module,
    data: Any,
    likelihood: Likelihood | None = None,
    samples: int | None = None,
    *,
    batch_size: int | None = None,
    names: str | Iterable[str] | None = None,
    damping: float = 0.0,
    seed: int = 0,
) -> CurvatureOperator:
    r"""The Hessian of the mean negative log likelihood, :math:`H = \frac1n \sum_i \nabla_\theta^2 (-\log p(y_i \mid x_i, \theta))`.

    It may have negative eigenvalues. Products differentiate the gradient along v (Pearlmutter 1994, Neural Computation 6(1)).

    Args:
        model: Any module, on any device.
        data: A :class:`~retain.tasks.Task` (its training part) or whatever makes one: a pair of arrays, a DataLoader.
        likelihood: What the outputs mean, if ``data`` is not a task; classification by default.
        samples: Use this many samples, drawn at random (of a loader: the first); all by default.
        batch_size: Samples per batch; by default all, in one batch whose graph is kept. A loader has its own.
        names: Parameters, by name or pattern; all trainable ones by default.
        damping: Added to the diagonal, in nats per squared unit, at least 0.
        seed: Seed of the samples.

    Returns:
        The matrix, per observation, to be multiplied with ``@``.

    Raises:
        InputError: If the outputs do not fit the data, or a loss is given in place of a likelihood.
        RetainError: If the model has no trainable parameter.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from retain.curvature.matrixfree.products import hessian
        >>> from retain.likelihoods import Gaussian
        >>> model, x = nn.Linear(1, 1), torch.tensor([[1.0], [3.0]])
        >>> hessian(model, (x, x), Gaussian()) @ {"weight": torch.ones(1, 1), "bias": torch.zeros(1)}
        {'weight': tensor([[5.]]), 'bias': tensor([2.])}
    """
    _, task = prepared(model, data, likelihood)
    return CurvatureOperator(model, Passes(task, samples, batch_size, seed), second_derivative(task.likelihood), names, damping, seed)
