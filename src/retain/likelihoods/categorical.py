"""One of C classes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.errors import InputError
from retain.likelihoods.base import Likelihood


class Categorical(Likelihood):
    r"""Softmax over C logits: :math:`-\log p(y = c \mid f) = \log \sum_k e^{f_k} - f_c`.

    Outputs ``[B, C]`` are logits, targets ``[B]`` are class indices in 0..C-1.

    The Hessian root is the Cholesky factor of :math:`\operatorname{diag}(p) - p p^\top`, which has C - 1 columns: with
    :math:`r_k = \sum_{j \ge k} p_j`, entry k of column k is :math:`\sqrt{p_k r_{k+1} / r_k}` and entry j > k is
    :math:`-p_j \sqrt{p_k / (r_k r_{k+1})}` (Tanabe and Sagae 1992, theorem 1).

    Example:
        >>> import torch
        >>> from retain.likelihoods import Categorical
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> root = Categorical().hessian_root(logits)[:, 0]
        >>> p = logits.softmax(1)[0]
        >>> torch.allclose(root.T @ root, torch.diag(p) - torch.outer(p, p))
        True
    """

    score_name = "accuracy"

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    def mean_nll(self, outputs: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        if weight is None:
            return F.cross_entropy(outputs, targets)
        return super().mean_nll(outputs, targets, weight)

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        probabilities = outputs.detach().softmax(1)
        if generator is not None:  # the generator lives on the CPU so that every device draws the same labels
            drawn = torch.multinomial(probabilities.cpu(), 1, generator=generator)
            return drawn.squeeze(1).to(outputs.device)
        return torch.multinomial(probabilities, 1).squeeze(1)

    def hessian_root(self, outputs: Tensor) -> Tensor:
        p = outputs.detach().softmax(1)
        rest = p.flip(1).cumsum(1).flip(1)  # of class k and all that follow; summed from the small end, so that no digits cancel
        after = rest[:, 1:]
        down = p[:, :-1] / rest[:, :-1]  # p_k / (rest from k)
        column = (down / after).nan_to_num(0.0, 0.0, 0.0).sqrt()
        classes = torch.arange(p.shape[1], device=p.device)
        root = (-column.T[:, :, None] * p).masked_fill(classes <= classes[:-1, None, None], 0.0)
        root[classes[:-1], :, classes[:-1]] = (down * after).sqrt().T
        return root

    def hessian_product(self, outputs: Tensor, u: Tensor, targets: Tensor) -> Tensor:
        p = outputs.detach().softmax(1)
        pu = p * u
        return pu - p * pu.sum(1, keepdim=True)

    def pool(self, outputs: Tensor) -> Tensor:
        return mean_of_softmaxes(outputs)

    def check(self, outputs: Tensor, targets: Tensor, where: str = "the model") -> None:
        if outputs.ndim != 2:
            raise InputError("outputs", f"logits of shape [batch, classes] from {where}", list(outputs.shape), "For sequences use likelihoods.Tokens().")
        if targets.is_floating_point() or targets.ndim != 1:
            raise InputError(
                "targets",
                "class indices, whole numbers of shape [batch]",
                f"{targets.dtype} of shape {list(targets.shape)}",
                "For real-valued targets pass likelihood=likelihoods.Gaussian().",
            )
        if len(targets) and (int(targets.min()) < 0 or int(targets.max()) >= outputs.shape[1]):
            raise InputError(
                "targets",
                f"labels from 0 to {outputs.shape[1] - 1}, the {outputs.shape[1]} outputs of {where}",
                f"labels from {int(targets.min())} to {int(targets.max())}",
                "Renumber the labels or give the model more outputs.",
            )

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        correct = (outputs.argmax(1) == targets).sum()
        return torch.stack([correct, torch.full_like(correct, len(targets))]).double()

    def score(self, tally: Tensor) -> float:
        return float(tally[0] / tally[1])


def mean_of_softmaxes(outputs: Tensor) -> Tensor:
    """Logits ``[..., C]`` whose softmax is the mean of the softmaxes of ``[S, ..., C]``: logarithms of the mean probabilities."""
    return F.log_softmax(outputs, -1).logsumexp(0) - math.log(len(outputs))
