"""A Gaussian belief over the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retain.beliefs.diagonal import Diagonal
from retain.beliefs.precision import Precision, from_state
from retain.errors import InputError, check_positive
from retain.models.parameters import named_parameters


class Belief:
    r"""What n samples taught us about the weights: :math:`\theta \sim \mathcal{N}\big(c, (nP + \delta I)^{-1}\big)`.

    A Laplace approximation: at a minimum c of the loss on n samples, the Fisher P is the curvature per sample, so the negative
    log posterior rises by :meth:`energy` (MacKay 1992; Kirkpatrick et al. 2017, eq. 3, https://arxiv.org/abs/1612.00796).

    Args:
        centre: The weights at which the samples were learned, by canonical parameter name.
        precision: P, per sample.
        n: How many samples stand behind it, at least 0.
        prior: :math:`\delta`, the precision that every weight has without any sample; above 0, since many weights (dead pixels)
            have no Fisher at all.

    Raises:
        InputError: If n or the prior is out of range, or centre and precision disagree in shape.

    Example:
        >>> import torch
        >>> from retain.beliefs import Belief, Diagonal
        >>> first = Belief({"w": torch.tensor([0.0])}, Diagonal({"w": torch.tensor([2.0])}), n=10)
        >>> first.energy({"w": torch.tensor([1.0])})
        10.0
        >>> second = first.update({"w": torch.tensor([1.0])}, Diagonal({"w": torch.tensor([5.0])}), n=20)
        >>> second.n, second.centre["w"], second.precision.values["w"]
        (30.0, tensor([1.]), tensor([4.]))
    """

    def __init__(self, centre: Mapping[str, Tensor], precision: Precision, n: float, prior: float = 1.0) -> None:
        self.n, self.prior = check_positive("n", n, zero=True), check_positive("prior", prior)
        self.centre = {name: value.detach().clone() for name, value in centre.items()}
        self.precision = precision
        if not isinstance(precision, Precision):
            raise InputError("precision", "a precision such as Diagonal(values)", type(precision).__name__)
        missing = [name for name in precision.names if name not in self.centre]
        if missing:
            raise InputError("centre", f"an entry for '{missing[0]}', as the precision has one", "none")
        for name, p in precision.diagonal().items():
            if p.ndim and p.shape != self.centre[name].shape:
                raise InputError(f"precision of '{name}'", f"the centre's shape {list(self.centre[name].shape)}", list(p.shape))

    def energy(self, theta: Mapping[str, Tensor]) -> float:
        r""":math:`\frac{n}{2} (\theta - c)^\top P (\theta - c)` in nats: what the old samples lose by moving to theta.

        Args:
            theta: Weights by name; parameters that the belief does not know are free.

        Returns:
            A number of at least 0.

        Raises:
            InputError: If a weight that the belief knows is missing.
        """
        missing = [name for name in self.precision.names if name not in theta]
        if missing:
            raise InputError("theta", f"a value for '{missing[0]}'", "none", "Was a layer renamed or removed?")
        return 0.5 * self.n * self.precision.quadratic({name: theta[name] - self.centre[name] for name in self.precision.names})

    def update(self, theta: Mapping[str, Tensor], precision: Precision, n: float) -> Belief:
        r"""The belief after ``n`` more samples were learned under this one's pull, ending at ``theta``.

        The weights at theta already contain the old belief, so the precisions add and the centre becomes theta:
        :math:`nP \leftarrow n_1 P_1 + n_2 P_2`, :math:`c \leftarrow \theta`. Averaging the centres here would count the first
        task twice (Huszar 2018, https://arxiv.org/abs/1712.03847).

        Args:
            theta: The weights after the new task.
            precision: The new task's precision at theta, per sample.
            n: The new task's samples.

        Returns:
            A belief of ``self.n + n`` samples.
        """
        total = self.n + n
        if total == 0:
            return Belief({**self.centre, **theta}, precision, 0, self.prior)
        mean = self.precision.scaled(self.n / total).plus(precision.scaled(n / total))
        return Belief({**self.centre, **theta}, mean, total, self.prior)

    def variance(self) -> dict[str, Tensor]:
        r"""Variance of every weight that the belief knows, the diagonal of :math:`(nP + \delta I)^{-1}`, by parameter name."""
        return self.precision.variance(self.n, self.prior, self._shapes())

    def trace_of_inverse(self) -> float:
        r""":math:`\operatorname{tr}\,(nP + \delta I)^{-1}`: the expected squared distance of the weights from the centre."""
        return sum(float(value.double().sum()) for value in self.variance().values())

    def logdet(self) -> float:
        r""":math:`\log\det(nP + \delta I)` over the weights that the belief knows."""
        return self.precision.logdet(self.n, self.prior, self._shapes())

    def effective_parameters(self) -> float:
        r"""How many directions n samples have decided: :math:`\operatorname{tr}\, nP(nP + \delta I)^{-1}` (MacKay 1992)."""
        return sum(shape.numel() for shape in self._shapes().values()) - self.prior * self.trace_of_inverse()

    def sample(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        r"""Weights drawn from :math:`\mathcal{N}(c, (nP + \delta I)^{-1})`.

        Args:
            generator: Where the numbers come from, on the CPU.

        Returns:
            Weights by name, for those that the belief knows.
        """
        drawn = self.precision.sample(self.n, self.prior, self._shapes(), generator)
        return {name: self.centre[name] + value.to(self.centre[name].dtype) for name, value in drawn.items()}

    def _shapes(self) -> dict[str, torch.Size]:
        return {name: self.centre[name].shape for name in self.precision.names}

    def to(self, device: torch.device) -> Belief:
        """The belief with its tensors on ``device``."""
        return Belief({name: value.to(device) for name, value in self.centre.items()}, self.precision.to(device), self.n, self.prior)

    def fitted(self, model: nn.Module) -> Belief:
        """The belief in the shape and on the device of a model: unknown parameters are free, and so are a grown head's new rows.

        Args:
            model: The model that is to be pulled.

        Returns:
            This belief, or a padded one.

        Raises:
            InputError: If a parameter has shrunk or changed its shape otherwise.
        """
        here = self.to(next((p.device for p in model.parameters()), torch.device("cpu")))
        centre, old = dict(here.centre), here._shapes()
        for name, p in named_parameters(model, trainable=False).items():
            if name not in old or p.shape == old[name]:
                continue
            if p.shape[1:] != old[name][1:] or p.shape[0] < old[name][0]:
                raise InputError(
                    f"shape of '{name}'", f"{list(old[name])}, or more rows", list(p.shape), "A belief follows a head that grows, not other changes."
                )
            centre[name] = torch.cat([centre[name], p.detach()[old[name][0] :]])
        new = {name: centre[name].shape for name in old}
        return Belief(centre, here.precision if new == old else here.precision.grown(old, new), self.n, self.prior)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {"centre": self.centre, "precision": self.precision.state_dict(), "n": self.n, "prior": self.prior}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Belief:
        """The belief that :meth:`state_dict` described."""
        return cls(state["centre"], from_state(state["precision"]), state["n"], state["prior"])

    def __repr__(self) -> str:
        return f"Belief(n={self.n:g}, precision={self.precision!r}, prior={self.prior:g})"


def product(a: Belief, b: Belief) -> Belief:
    r"""Two beliefs learned independently of each other, multiplied: precisions add, the centre is their precision-weighted mean.

    :math:`nP = n_a P_a + n_b P_b`, :math:`c = (nP)^{-1}(n_a P_a c_a + n_b P_b c_b)`. Where both precisions are 0 the centre is b's.
    Applied to the centres of a sequence it is the original EWC with a penalty for every task, merged exactly into one.

    Args:
        a: A belief.
        b: A belief over the same parameters, or some of them.

    Returns:
        A belief of ``a.n + b.n`` samples.

    Raises:
        InputError: If a precision is not diagonal.

    Example:
        >>> import torch
        >>> from retain.beliefs import Belief, Diagonal, product
        >>> one = Diagonal({"w": torch.ones(1)})
        >>> product(Belief({"w": torch.zeros(1)}, one, n=1), Belief({"w": torch.ones(1)}, one, n=3)).centre["w"]
        tensor([0.7500])
    """
    if not (isinstance(a.precision, Diagonal) and isinstance(b.precision, Diagonal)):
        raise InputError("precision", "diagonal ones, whose product has a centre in closed form", f"{a.precision!r} and {b.precision!r}")
    total = a.n + b.n
    if total == 0:
        return b
    pa, pb = a.precision.scaled(a.n / total), b.precision.scaled(b.n / total)
    both = pa.plus(pb)
    centre = {**a.centre, **b.centre, **{name: a.centre[name] for name in pa.values if name not in pb}}
    for name in both.names:
        if name in pa and name in pb:
            weight, sure = pb.values[name].double(), pa.values[name].double() + pb.values[name].double()
            share = torch.where(sure > 0, weight / sure.clamp_min(torch.finfo(torch.float64).tiny), torch.ones_like(sure))
            centre[name] = (a.centre[name] + share * (b.centre[name] - a.centre[name])).to(b.centre[name].dtype)
    return Belief(centre, both, total, b.prior)
