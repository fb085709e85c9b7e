"""What all Bayesian layers share: a Gaussian over each of their tensors, and three ways to pass it through the layer."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Self, cast, get_args

import torch
from torch import Tensor, nn

from retain.errors import InputError, check_count, nearest
from retain.models.bayesian.flows import PlanarFlows
from retain.models.bayesian.local import TINY, exponential
from retain.models.bayesian.priors import GaussianPrior, Prior, prior_from_state

Estimator = Literal["local", "flipout", "weights"]
LOGVAR = "_logvar"
"""What the name of a log-variance ends in; the mean keeps the weight's own name."""


class BayesianLayer(nn.Module):
    r"""A layer whose weights are uncertain: :math:`q(w) = \mathcal{N}(\mu, \operatorname{diag} \sigma^2)`, independent entries.

    The mean of ``weight`` is the parameter ``weight``, so that everything that knows the plain layer's names knows the means; the logarithm of the variance
    is ``weight_logvar``. In training mode, and inside :func:`sampling`, the forward pass is random; otherwise it uses the means. The estimators:

    - ``weights``: one draw :math:`w = \mu + \sigma \epsilon` for the whole batch (Blundell et al. 2015, https://arxiv.org/abs/1505.05424).
    - ``local``: what the sum of many weights does to an output is drawn instead of the weights, one draw a sample and output:
      :math:`y \sim \mathcal{N}(x^\top \mu, (x^2)^\top \sigma^2)` (Kingma, Salimans and Welling 2015, https://arxiv.org/abs/1506.02557, eq. 6). Exact
      for linear layers; of a convolution or embedding every position is drawn on its own, which keeps the variances and drops the covariances.
    - ``flipout``: one draw for the batch, decorrelated by random signs a sample: :math:`y = x^\top \mu + ((x \circ s)^\top (\sigma\epsilon)) \circ r`
      (Wen et al. 2018, https://arxiv.org/abs/1803.04386, eq. 3); the bias is drawn for each sample.

    Args:
        source: The plain layer: its values become the means.
        logvar: Initial :math:`\log \sigma^2` of every entry.
        prior: What was believed before, :class:`GaussianPrior` of width 1 by default; copied for each tensor.
        estimator: ``local``, ``flipout`` or ``weights``.
        num_flows: Planar flows on each tensor, which need ``estimator="weights"``.

    Raises:
        InputError: If a setting is out of range.
    """

    priors: nn.ModuleDict
    flows: nn.ModuleDict
    replaced_on_load: tuple[str, ...] = ("priors.",)

    def __init__(self, source: nn.Module, logvar: float = -10.0, prior: Prior | None = None, estimator: Estimator = "local", num_flows: int = 0) -> None:
        super().__init__()
        if not math.isfinite(logvar):
            raise InputError("logvar", "a finite number", logvar)
        if prior is not None and not isinstance(prior, Prior):
            raise InputError("prior", "a prior such as GaussianPrior(std=0.1)", type(prior).__name__)
        self.estimator: Estimator = check_estimator(estimator, check_count("num_flows", num_flows, least=0))
        self.drawing: Estimator | None = None
        self.random: tuple[str, ...] = tuple(name for name, p in source.named_parameters(recurse=False))
        self._variances: dict[str, Tensor] = {}  # of the last random forward pass, until they are taken
        self.priors, self.flows = nn.ModuleDict(), nn.ModuleDict()
        for name in self.random:
            mean: Tensor = getattr(source, name)
            self.register_parameter(name, nn.Parameter(mean.detach().clone(), mean.requires_grad))
            self.register_parameter(name + LOGVAR, nn.Parameter(torch.full_like(mean, logvar), mean.requires_grad))
            self.priors[name] = copy.deepcopy(prior or GaussianPrior()).to(mean.device, mean.dtype)
            if num_flows:
                self.flows[name] = PlanarFlows(mean.numel(), num_flows).to(mean.device, mean.dtype).requires_grad_(mean.requires_grad)
        if "bias" not in self.random:
            self.register_parameter("bias", None)
        self.train(source.training)

    @classmethod
    def of(cls, source: Any, **settings: Any) -> Self:
        """The Bayesian form of a plain layer.

        Args:
            source: The layer; not changed.
            **settings: As for the class.

        Returns:
            The new layer.
        """
        made = cls.__new__(cls)
        BayesianLayer.__init__(made, source, **settings)
        made.configure(source)
        return made

    @abstractmethod
    def configure(self, source: Any) -> None:
        """Take over what the plain layer knows beside its weights."""

    @abstractmethod
    def map(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The plain layer's function."""

    def signs(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Random signs for :math:`s` and :math:`r` of Flipout, to be multiplied with inputs and outputs."""
        return _signs(inputs), _signs(outputs)

    @property
    def posterior(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and log-variance of every uncertain tensor, by name; with flows these are of the base distribution."""
        own: Any = self._parameters
        return {name: (own[name], own[name + LOGVAR]) for name in self.random}

    def prior(self, name: str) -> Prior:
        """The prior of a tensor."""
        found = self.priors[name]
        assert isinstance(found, Prior)
        return found

    def flow(self, name: str) -> nn.Module:
        """The flows of a tensor: called, they return where a value goes and the logarithm of the determinant's size."""
        return self.flows[name]

    def divergence(self, name: str, strength: float = 1.0, units: Tensor | None = None) -> Tensor:
        r""":math:`\mathrm{KL}(q \,\|\, p)` of a tensor in nats, with gradients; see :func:`~retain.models.kl`.

        Args:
            name: Of the tensor.
            strength: Factor of the quadratic part, where there are no flows.
            units: Output units that count, one entry a unit; with planar flows, which mix all entries, the tensor counts whole.

        Returns:
            A scalar; with flows an estimate from one draw.
        """
        mean, logvar = self.posterior[name]
        if name not in self.flows:
            return only(self.prior(name).kl(mean, logvar, strength), units).sum()
        noise = torch.randn_like(mean)
        weight, logdet = self.flow(name)(torch.addcmul(mean, (0.5 * logvar).exp(), noise))
        log_q: Tensor = -0.5 * (logvar + noise.square() + math.log(2 * math.pi)).sum() - logdet
        return log_q - self.prior(name).log_density(weight).sum()

    def counted(self, units: Tensor | None) -> Tensor | None:
        """Of the output units that are asked for (``None``: all) those that have a divergence."""
        return units

    def variance(self, name: str, *, after_forward: bool = False) -> Tensor:
        r""":math:`\sigma^2` of a tensor, without gradients.

        Args:
            name: Of the tensor.
            after_forward: The parameters haven't changed since the last random forward pass: what it computed may be taken, once.

        Returns:
            A tensor of the weight's shape.
        """
        kept = self._variances.pop(name, None)
        return kept if kept is not None and after_forward else exponential(self.posterior[name][1])

    def _variance(self, name: str) -> Tensor:
        found = exponential(self.posterior[name][1])
        if isinstance(self.posterior[name][1], nn.Parameter):  # not what torch.func puts in its place
            self._variances[name] = found
        return found

    def centre(self, name: str) -> Tensor | None:
        """The mean of a tensor, or where flows take it; ``None`` if the layer has none of that name."""
        if name not in self.random:
            return None
        mean: Tensor = getattr(self, name)
        return self.flow(name)(mean)[0] if name in self.flows else mean

    def draw(self, name: str) -> Tensor | None:
        """A draw of a tensor; ``None`` if the layer has none of that name."""
        if name not in self.random:
            return None
        mean, logvar = self.posterior[name]
        weight = torch.addcmul(mean, (0.5 * logvar).exp(), torch.randn_like(mean))
        return self.flow(name)(weight)[0] if name in self.flows else weight

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's answer: random in training mode and inside :func:`sampling`, else that of the means."""
        estimator = self.drawing or (self.estimator if self.training else None)
        if estimator is None:
            weight = self.centre("weight")
            assert weight is not None
            return self.map(inputs, weight, self.centre("bias"))
        if estimator == "weights":
            weight = self.draw("weight")
            assert weight is not None
            return self.map(inputs, weight, self.draw("bias"))
        return self._local(inputs) if estimator == "local" else self._flipout(inputs)

    def _expected(self, inputs: Tensor) -> Tensor:
        """What the noise is added to."""
        bias = self.posterior.get("bias")
        return self.map(inputs, self.posterior["weight"][0], None if bias is None else bias[0])

    def _local(self, inputs: Tensor) -> Tensor:
        outputs, bias = self._expected(inputs), self.posterior.get("bias")
        variance = self.map(inputs.square(), self.posterior["weight"][1].exp(), None if bias is None else bias[1].exp())
        return torch.addcmul(outputs, (variance + TINY).sqrt(), torch.randn_like(outputs))

    def _flipout(self, inputs: Tensor) -> Tensor:
        (mean, logvar), bias = self.posterior["weight"], self.posterior.get("bias")
        outputs = self._expected(inputs)
        moved = (0.5 * logvar).exp() * torch.randn_like(mean)
        s, r = self.signs(inputs, outputs)
        outputs = torch.addcmul(outputs, self.map(inputs * s, moved, None), r)
        if bias is None:
            return outputs
        deviation = self.along_outputs((0.5 * bias[1]).exp(), outputs)
        return torch.addcmul(outputs, deviation, torch.randn_like(r))

    def along_outputs(self, values: Tensor, outputs: Tensor) -> Tensor:
        """One value a unit, shaped to be multiplied with the outputs."""
        return values

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        for name in self.random:  # the prior may have become another one since
            start = f"{prefix}priors.{name}."
            stored = {key.removeprefix(start): value for key, value in state_dict.items() if key.startswith(start)}
            if stored:
                mean: Tensor = getattr(self, name)
                self.priors[name] = prior_from_state(stored).to(mean.device, mean.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)


def check_estimator(estimator: str, num_flows: int) -> Estimator:
    """The estimator, if there is one of this name and it goes with the flows."""
    if estimator not in get_args(Estimator):
        raise InputError("estimator", f"one of {', '.join(get_args(Estimator))}", repr(estimator), nearest(str(estimator), get_args(Estimator)))
    if num_flows and estimator != "weights":
        raise InputError("estimator", "'weights' with flows, which move the weights themselves", repr(estimator), "Pass estimator='weights'.")
    return cast(Estimator, estimator)


def bayesian_layers(model: nn.Module | Mapping[str, BayesianLayer]) -> dict[str, BayesianLayer]:
    """The Bayesian layers of a model by name.

    Args:
        model: Any module; layers by name, as this function returns them, are handed back.

    Returns:
        The layers in the model's own order.

    Raises:
        InputError: If there is none.
    """
    if isinstance(model, Mapping):
        return dict(model)
    found = {name: module for name, module in model.named_modules() if isinstance(module, BayesianLayer)}
    if not found:
        raise InputError("model", "a model with Bayesian layers", f"{type(model).__name__} with none", "Make one with retain.models.bayesian(model).")
    return found


@contextmanager
def sampling(model: nn.Module, estimator: Estimator = "weights") -> Iterator[None]:
    """Inside the block every forward pass is random, also in evaluation mode; afterwards it is as it was.

    Args:
        model: A model with Bayesian layers.
        estimator: By default one draw of the weights for each pass: one function for the whole batch.

    Yields:
        Nothing.

    Example:
        >>> import torch
        >>> from retain.models import MLP, bayesian, sampling
        >>> model = bayesian(MLP(4, 3, seed=0), logvar=0.0).eval()
        >>> x = torch.rand(2, 4)
        >>> torch.equal(model(x), model(x))
        True
        >>> with sampling(model):
        ...     torch.equal(model(x), model(x))
        False
    """
    layers = list(bayesian_layers(model).values())
    for layer in layers:
        check_estimator(estimator, sum(isinstance(flow, PlanarFlows) for flow in layer.flows.values()))
    before = [layer.drawing for layer in layers]
    for layer in layers:
        layer.drawing = estimator
    try:
        yield
    finally:
        for layer, drawing in zip(layers, before, strict=True):
            layer.drawing = drawing


def only(values: Tensor, units: Tensor | None) -> Tensor:
    """Values ``[U, ...]`` of the units that count; the others are 0."""
    return values if units is None else values * units.reshape(-1, *[1] * (values.ndim - 1))


def _signs(like: Tensor) -> Tensor:
    """Random signs, 64 from each whole number that is drawn: a draw for each takes ten times as long."""
    words = torch.empty((like.numel() + 63) // 64, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    bits = (words.view(torch.uint8)[:, None] >> torch.arange(8, dtype=torch.uint8, device=like.device)).bitwise_and_(1)
    return bits.flatten()[: like.numel()].to(like.dtype).mul_(2).sub_(1).view(like.shape)
