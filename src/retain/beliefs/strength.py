r"""What other people's lambdas are in our strength.

The loss is ``mean nll + strength * energy / m`` with ``energy = n/2 (theta - c)' P (theta - c)``: strength 1 is the Bayesian
answer for every n and m.
"""

from __future__ import annotations

from typing import Literal

from retain.errors import InputError, check_positive


def strength_from_lambda(value: float, n: float, m: float, loss: Literal["mean", "sum"] = "mean") -> float:
    r"""The strength equal to a paper's :math:`\lambda` in :math:`L + \frac{\lambda}{2} \sum_j F_j (\theta_j - c_j)^2`.

    With L the mean loss over the new task it is :math:`\lambda m / n`; with L the sum over the m samples it is :math:`\lambda / n`.
    F is the mean over samples in both.

    Args:
        value: The paper's lambda, at least 0.
        n: Old samples behind the belief.
        m: Samples of the new task.
        loss: Whether L is a ``mean`` or a ``sum``.

    Returns:
        The strength, dimensionless.

    Raises:
        InputError: If a number is out of range or the loss is neither.

    Example:
        >>> strength_from_lambda(5000, n=60_000, m=60_000)
        5000.0
    """
    check_positive("lambda", value, zero=True)
    check_positive("n", n)
    check_positive("m", m)
    if loss not in ("mean", "sum"):
        raise InputError("loss", "'mean' or 'sum'", repr(loss))
    return value * m / n if loss == "mean" else value / n


def strength_from_importance(value: float, n: float, m: float) -> float:
    r"""The strength equal to an ``importance`` in ``mean loss + importance * sum(F * (theta - c)**2)``, with no half: twice a lambda.

    Args:
        value: The importance, at least 0.
        n: Old samples behind the belief.
        m: Samples of the new task.

    Returns:
        ``2 * value * m / n``, dimensionless.

    Raises:
        InputError: If a number is out of range.

    Example:
        >>> strength_from_importance(1000, n=60_000, m=60_000)  # the published tutorial
        2000.0
    """
    return strength_from_lambda(2 * value, n, m)
