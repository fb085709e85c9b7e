"""What the meta level minimises."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from retain.errors import InputError, nearest

Loss = Literal["cross_entropy", "mse"]


def check_loss(loss: str, double_softmax: bool) -> None:
    """Raise if there is no such loss.

    Raises:
        InputError: If the name is not known, or a double softmax is asked for with the squared error.
    """
    if loss not in get_args(Loss):
        raise InputError("loss", f"one of {', '.join(get_args(Loss))}", repr(loss), nearest(str(loss), get_args(Loss)))
    if loss == "mse" and double_softmax:
        raise InputError("double_softmax", "the cross-entropy, which it belongs to", "loss='mse'", "Pass double_softmax=False.")


def loss_of(logits: Tensor, labels: Tensor, loss: Loss = "cross_entropy", double_softmax: bool = False) -> Tensor:
    r"""The mean loss of a batch.

    Args:
        logits: ``[B, classes]``.
        labels: ``[B]``.
        loss: ``cross_entropy`` in nats, or ``mse``: the squared error of the softmax against the label's indicator, a mean over the classes.
        double_softmax: Put the softmax through a softmax again, as the published code does; the loss is then at least
            :math:`\ln(1 + (m - 1)/e)`, 0.3133 for two classes and 1.4612 for ten.

    Returns:
        A scalar.
    """
    if loss == "mse":
        return mse_loss(logits.softmax(1), one_hot(labels, logits.shape[1]).to(logits.dtype))
    return cross_entropy(logits.softmax(1) if double_softmax else logits, labels)
