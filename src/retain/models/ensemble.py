"""Several models that answer as one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from retain.errors import InputError
from retain.likelihoods.categorical import mean_of_softmaxes


class Ensemble(nn.Module):
    r"""The mean of several classifiers' probabilities, as logits: :math:`\log \frac1M \sum_m p_m(y \mid x)` (Lakshminarayanan et al. 2017, https://arxiv.org/abs/1612.01474).

    Args:
        models: Classifiers with the same outputs.

    Raises:
        InputError: If there is none.

    Example:
        >>> import torch
        >>> from retain.models import MLP, Ensemble
        >>> both = Ensemble([MLP(4, 3, seed=0), MLP(4, 3, seed=1)])
        >>> torch.allclose(both(torch.rand(2, 4)).exp().sum(1), torch.ones(2))
        True
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        if not len(self.models):
            raise InputError("models", "at least one model", "none")

    def forward(self, inputs: Tensor) -> Tensor:
        """Logarithms of the mean probabilities, ``[B, C]``."""
        return mean_of_softmaxes(torch.stack([model(inputs) for model in self.models]))
