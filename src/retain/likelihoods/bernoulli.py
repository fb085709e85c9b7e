"""Yes or no, D times."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.errors import InputError
from retain.likelihoods.base import Likelihood, check_same_shape


class Bernoulli(Likelihood):
    r"""Independent yes/no targets with logits f: :math:`-\log p = \sum_d \log(1 + e^{f_d}) - y_d f_d`.

    Outputs and targets ``[B, D]``; targets lie in [0, 1] (soft targets are allowed).

    Example:
        >>> import torch
        >>> from retain.likelihoods import Bernoulli
        >>> Bernoulli().nll(torch.zeros(1, 2), torch.ones(1, 2))
        tensor([1.3863])
    """

    score_name = "accuracy"

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").flatten(1).sum(1)

    def predict(self, outputs: Tensor) -> Tensor:
        return (outputs > 0).to(outputs.dtype)

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        p = outputs.detach().sigmoid()
        if generator is not None:
            return torch.bernoulli(p.cpu(), generator=generator).to(outputs.device)
        return torch.bernoulli(p)

    def hessian_root(self, outputs: Tensor) -> Tensor:
        p = outputs.detach().flatten(1).sigmoid()
        root = (p * (1 - p)).sqrt()
        unit = torch.eye(root.shape[1], device=root.device, dtype=root.dtype)
        return (unit[:, None] * root[None]).reshape(root.shape[1], *outputs.shape)

    def hessian_product(self, outputs: Tensor, u: Tensor, targets: Tensor) -> Tensor:
        f = outputs.detach()
        return f.sigmoid() * (-f).sigmoid() * u  # 1 - p would round to 0

    def pool(self, outputs: Tensor) -> Tensor:
        return F.logsigmoid(outputs).logsumexp(0) - F.logsigmoid(-outputs).logsumexp(0)

    def check(self, outputs: Tensor, targets: Tensor, where: str = "the model") -> None:
        check_same_shape(outputs, targets, where)
        if targets.numel() and (float(targets.min()) < 0 or float(targets.max()) > 1):
            raise InputError("targets", "values from 0 to 1", f"{float(targets.min()):g} to {float(targets.max()):g}")

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        correct = ((outputs > 0) == (targets > 0.5)).sum()
        return torch.stack([correct, torch.full_like(correct, targets.numel())]).double()

    def score(self, tally: Tensor) -> float:
        return float(tally[0] / tally[1])
