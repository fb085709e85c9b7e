"""Sequences of classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.errors import InputError
from retain.likelihoods.base import Likelihood
from retain.likelihoods.categorical import mean_of_softmaxes


class Tokens(Likelihood):
    r"""A class at every position: :math:`-\log p = \sum_t \log \sum_k e^{f_{tk}} - f_{t y_t}` over positions that count.

    Outputs ``[B, T, V]``, targets ``[B, T]``; positions whose target is ``ignore`` are left out. The observation is the token:
    means, a task's ``n`` and a belief's ``n`` count tokens, not sequences.

    Args:
        ignore: The target that marks padding.

    Example:
        >>> import torch
        >>> from retain.likelihoods import Tokens
        >>> targets = torch.tensor([[1, -100]])
        >>> Tokens().nll(torch.zeros(1, 2, 4), targets), Tokens().units(targets)
        (tensor([1.3863]), tensor([1.]))
    """

    score_name = "accuracy"

    def __init__(self, ignore: int = -100) -> None:
        self.ignore = ignore

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.movedim(-1, 1), targets, ignore_index=self.ignore, reduction="none").sum(1)

    def units(self, targets: Tensor) -> Tensor:
        return (targets != self.ignore).sum(1).float()

    def relabel(self, drawn: Tensor, targets: Tensor) -> Tensor:
        return drawn.where(targets != self.ignore, targets)

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-1)

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        p = outputs.detach().softmax(-1).flatten(0, 1)
        drawn = torch.multinomial(p.cpu() if generator else p, 1, generator=generator)
        return drawn.reshape(outputs.shape[:2]).to(outputs.device)

    def hessian_root(self, outputs: Tensor) -> Tensor:
        raise InputError(
            "labels",
            "'sampled' for sequences",
            "'exact'",
            f"An exact sum would need one backward pass for each of {outputs.shape[1] * outputs.shape[2]} token-class pairs.",
        )

    def hessian_product(self, outputs: Tensor, u: Tensor, targets: Tensor) -> Tensor:
        p = outputs.detach().softmax(-1)
        pu = p * u
        return (pu - p * pu.sum(-1, keepdim=True)) * (targets != self.ignore).unsqueeze(-1)

    def pool(self, outputs: Tensor) -> Tensor:
        return mean_of_softmaxes(outputs)

    def check(self, outputs: Tensor, targets: Tensor, where: str = "the model") -> None:
        if outputs.ndim != 3 or targets.shape != outputs.shape[:2]:
            raise InputError(
                "targets",
                f"token indices of shape [batch, length] for logits [batch, length, vocabulary] from {where}",
                f"{list(targets.shape)} for {list(outputs.shape)}",
            )
        counted = targets[targets != self.ignore]
        if len(counted) and (int(counted.min()) < 0 or int(counted.max()) >= outputs.shape[2]):
            raise InputError("targets", f"tokens from 0 to {outputs.shape[2] - 1}", f"{int(counted.min())} to {int(counted.max())}")

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        counted = targets != self.ignore
        correct = ((outputs.argmax(-1) == targets) & counted).sum()
        return torch.stack([correct, counted.sum()]).double()

    def score(self, tally: Tensor) -> float:
        return float(tally[0] / tally[1])
