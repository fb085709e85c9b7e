"""Two models and a coin."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.errors import InputError, check_share


class Mixture(nn.Module):
    r"""Two classifiers joined by a Bernoulli variable: :math:`p_q(y \mid x) = (1 - q)\,p_1(y \mid x) + q\,p_2(y \mid x)`.

    The answer is :math:`\log p_q`, which is a valid vector of logits: its softmax is :math:`p_q` again. So losses, Fishers and evaluation take a mixture like
    any other classifier. ``sampled`` draws the variable instead: every row is answered by the second model with probability q and by the
    first otherwise, each model sees its own rows only, and the mean of the probabilities over many draws is the exact :math:`p_q`. A model of
    probability 0 is not asked.

    The sampled form with the row's own likelihood is the *complete-data* model: its Fisher has no term between q and the weights, so information is
    kept along a path in q only by the exact, marginal form.

    Args:
        model1: Logits ``[B, C]``; has probability 1 - q.
        model2: Logits ``[B, C]``; has probability q.
        q: In [0, 1]; may be set later.
        sampled: Draw the variable in every forward pass.
        generator: What it is drawn from, on the CPU; torch's global generator by default.

    Raises:
        InputError: If q is outside [0, 1] or the models answer in different shapes.

    Example:
        >>> import torch
        >>> from retain.models import MLP, Mixture
        >>> x = torch.rand(3, 4)
        >>> first, second = MLP(4, 2, seed=0), MLP(4, 8, 2, seed=1)
        >>> expected = 0.75 * first(x).softmax(1) + 0.25 * second(x).softmax(1)
        >>> torch.allclose(Mixture(first, second, 0.25)(x).exp(), expected)
        True
    """

    _q: Tensor

    def __init__(self, model1: nn.Module, model2: nn.Module, q: float, *, sampled: bool = False, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.model1, self.model2, self.sampled, self.generator = model1, model2, sampled, generator
        self.register_buffer("_q", torch.zeros((), dtype=torch.float64))
        self.q = q

    @property
    def q(self) -> float:
        """The probability of the second model."""
        return float(self._q)

    @q.setter
    def q(self, value: float) -> None:
        self._q.fill_(check_share("q", value))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logarithms of the mixture's probabilities, or of each row's own model, ``[B, C]``."""
        if self.sampled:
            return self._drawn(inputs)
        q = self.q
        if q in (0.0, 1.0):
            return _log_probabilities(self.model2 if q else self.model1, inputs)
        first, second = _log_probabilities(self.model1, inputs), _log_probabilities(self.model2, inputs)
        _check_alike(first, second)
        return mix(q, first, second)

    def _drawn(self, inputs: Tensor) -> Tensor:
        chosen = (torch.rand(len(inputs), generator=self.generator) < self.q).to(inputs.device)
        parts = [(rows, _log_probabilities(model, inputs[rows])) for model, rows in ((self.model1, ~chosen), (self.model2, chosen)) if bool(rows.any())]
        if len(parts) == 2:
            _check_alike(parts[0][1], parts[1][1])
        outputs = parts[0][1].new_empty(len(inputs), parts[0][1].shape[1])
        for rows, answer in parts:
            outputs[rows] = answer
        return outputs

    def extra_repr(self) -> str:
        """What stands in the module's repr."""
        return f"q={self.q:g}" + (", sampled" if self.sampled else "")


def mix(q: float, first: Tensor, second: Tensor) -> Tensor:
    """Logarithm of (1 - q) p_1 + q p_2 from those of p_1 and p_2, exact at both ends."""
    if q == 0:
        return first + 0 * second
    if q == 1:
        return second
    return torch.logaddexp(first + math.log1p(-q), second + math.log(q))


def _log_probabilities(model: nn.Module, inputs: Tensor) -> Tensor:
    outputs: Tensor = model(inputs)
    if outputs.ndim != 2:
        raise InputError("outputs", f"logits of shape [batch, classes] from {type(model).__name__}", list(outputs.shape))
    return F.log_softmax(outputs, 1)


def _check_alike(first: Tensor, second: Tensor) -> None:
    if first.shape[1] != second.shape[1]:
        raise InputError("model2", f"{first.shape[1]} outputs, as model1 has", second.shape[1], "Only models that answer in the same classes can be mixed.")
