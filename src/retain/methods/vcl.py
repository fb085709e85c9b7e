"""Variational continual learning: the posterior becomes the prior."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from retain.errors import DivergedError, InputError, check_count, check_positive
from retain.methods.base import Method
from retain.methods.weighting import PerSample, Weighting
from retain.models.bayesian import (
    LOGVAR,
    BayesianLayer,
    Estimator,
    Prior,
    add_kl_gradient,
    bayesian,
    bayesian_layers,
    broken,
    kl,
    put_prior,
    sampling,
)
from retain.models.bayesian.base import check_estimator
from retain.models.parameters import evaluating
from retain.seeds import seeded
from retain.tasks.batch import Batch, apply, first_samples
from retain.tasks.task import Task, as_task


class VCL(Method):
    r"""Variational continual learning: what was learned is a distribution over the weights, and it is the next task's prior.

    .. math:: \mathcal{L}_t(q) = \mathbb{E}_{w \sim q}\big[\overline{\text{nll}}_t(w)\big] + \frac{\beta}{N_t}\, \mathrm{KL}\big(q \,\|\, q_{t-1}\big),
       \qquad q_t = \arg\min_q \mathcal{L}_t(q)

    Algorithm 1 of Nguyen et al. 2018 (https://arxiv.org/abs/1710.10628) without a coreset, which :class:`CoresetVCL` adds. The new posterior *starts* at
    the old one, mean and variance. The divergence is in closed form and joins the gradients once a step, so a loop's loss stays the likelihood alone.

    With :math:`\beta \to 0` and the first prior's variance multiplied by :math:`\beta` it becomes online EWC of strength and decay 1, with
    :math:`\beta\sigma^{-2}` for its precision; ``strength`` multiplies the quadratic part, :math:`\lambda` of Loo, Swaroop and Turner 2020
    (https://arxiv.org/abs/2011.12328).

    Under separate heads (scenario ``task`` or ``class``) output units that no task has asked for yet keep their start and their prior: the divergence of
    units that do not compete is left out. They are found where the model's last module is a Bayesian layer, whose answer is the model's as it stands;
    elsewhere all units count. Norm layers and other modules in ``keep``
    have no posterior, and nothing holds their weights.

    Args:
        prior: What is believed before the first task; a Gaussian of width 1 by default. Not used if the model is Bayesian already.
        logvar: Initial log-variance of the weights; used likewise, as are ``num_flows`` and ``keep``.
        beta: Tempering of the divergence, above 0; 1 is the Bayesian answer.
        strength: Factor of the quadratic part alone, where the prior is a posterior; the first prior has 1.
        weighting: How the divergence is spread over the steps, see :class:`~retain.methods.Weighting`.
        estimator: ``local``, ``flipout`` or ``weights``.
        samples: Draws a step: the expectation's estimate is their mean.
        answers: Draws of the weights whose mean is the answer; 0 answers with the means of the weights.
        pace: Learning rate of the log-variances over that of the means. A weight that the data say nothing about is to widen from ``logvar`` to the
            prior's variance, a long way for Adam's steps of lr.
        num_flows: Planar flows on every tensor. As a prior the posterior is then replaced by the Gaussian of its draws' means and variances.
        keep: Modules that stay plain, see :func:`retain.models.bayesian`.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 2, scenario="task")
        >>> result = learn(models.MLP(64, 32, 10, seed=0), stream, methods.VCL(beta=0.01, strength=30), epochs=20, lr=0.005)
        >>> bool(result.accuracy[2].min() > 0.85)
        True
    """

    name = "vcl"
    summary = "variational continual learning: the posterior over the weights becomes the next prior"
    citation = "nguyen2018variational"

    def __init__(
        self,
        prior: Prior | None = None,
        *,
        logvar: float = -10.0,
        beta: float = 1.0,
        strength: float = 1.0,
        weighting: Weighting | None = None,
        estimator: Estimator = "local",
        samples: int = 1,
        answers: int = 10,
        pace: float = 10.0,
        num_flows: int = 0,
        keep: Iterable[str] = (),
    ) -> None:
        self.prior, self.logvar, self.keep = prior, logvar, (keep,) if isinstance(keep, str) else tuple(keep)
        self.num_flows = check_count("num_flows", num_flows, least=0)
        self.estimator: Estimator = check_estimator(estimator, num_flows)
        if not math.isfinite(logvar):
            raise InputError("logvar", "a finite number", logvar)
        self.beta, self.strength = check_positive("beta", beta), check_positive("strength", strength, zero=True)
        self.pace = check_positive("pace", pace)
        self.weighting = weighting or PerSample()
        if not isinstance(self.weighting, Weighting):
            raise InputError("weighting", "a weighting such as methods.WarmUp(steps=1000)", repr(weighting))
        self.samples, self.answers = check_count("samples", samples), check_count("answers", answers, least=0)
        self.posterior: dict[str, tuple[Tensor, Tensor]] | None = None
        """Mean and log-variance of every uncertain tensor after the last task, by parameter name; ``None`` before one was learned."""
        self.seen: Tensor | None = None
        """Output units that some task has asked for; ``None`` where all compete."""
        self._active: Tensor | None = None
        self._layers: dict[str, BayesianLayer] = {}  # of the model at hand: looking for them takes time
        self._new = self._steps = 0

    def prepare(self, model: nn.Module) -> nn.Module:
        """The Bayesian form of a plain model."""
        if any(isinstance(module, BayesianLayer) for module in model.modules()):
            return model
        return bayesian(model, self.prior, logvar=self.logvar, estimator=self.estimator, num_flows=self.num_flows, keep=self.keep)

    def groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        """Means, and log-variances at their own pace."""
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        widths = [p for name, p in named.items() if name.endswith(LOGVAR)]
        others = [p for name, p in named.items() if not name.endswith(LOGVAR)]
        return [{"params": group, "lr": rate} for group, rate in ((others, lr), (widths, lr * self.pace)) if group]

    def begin(self, model: nn.Module, task: Task) -> None:
        """Make the last posterior the prior."""
        layers = self._layers = bayesian_layers(model)  # says so if there is none
        self._new, self._steps = task.n, 0
        head = _head(model, task)
        self._active = None
        if head is not None:
            units = head.posterior["weight"][0]
            self._active = torch.zeros(len(units), dtype=torch.bool, device=units.device)
            self._active[list(task.active or ())] = True
        if self.posterior is None:
            return
        for name, layer in layers.items():
            for part in layer.random:
                mean, logvar = known(self.posterior, f"{name}.{part}".lstrip("."), layer.posterior[part][0])
                if layer is head and self.seen is not None:
                    before, unseen = layer.prior(part).as_gaussian(), ~self.seen.to(mean.device)
                    mean, logvar = mean.clone(), logvar.clone()
                    mean[unseen] = before.mean.expand_as(mean)[unseen]
                    logvar[unseen] = -before.precision.log().expand_as(mean)[unseen]
                put_prior(layer, part, mean, logvar)

    def penalty(self, model: nn.Module, batch: Batch, outputs: Tensor) -> Tensor | None:
        """With several draws: what makes the loss their mean. The divergence is not in it, see :meth:`before_step`."""
        if self.samples == 1 or not model.training:
            return None
        likelihood = batch.task.likelihood
        more = [likelihood.mean_nll(apply(model, batch), batch.targets, batch.weight) for _ in range(self.samples - 1)]
        first = likelihood.mean_nll(outputs, batch.targets, batch.weight)
        return (sum(more) - (self.samples - 1) * first) / self.samples

    @property
    def adds_to_loss(self) -> bool:
        """With several draws alone: the divergence joins the gradients."""
        return self.samples > 1

    def before_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Add the gradient of the divergence.

        Raises:
            DivergedError: If a mean or a variance is no longer finite.
        """
        self._check(self._layers)
        scale = self.weighting.factor(self._steps) * self.beta / self._new
        if scale:
            add_kl_gradient(self._layers, scale, strength=1.0 if self.posterior is None else self.strength, rows=self._rows(self._layers), after_forward=True)

    def after_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Count the step."""
        self._steps += 1

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Remember the posterior."""
        task = as_task(task)
        layers = self._layers = bayesian_layers(model)
        self._check(self._layers)
        self.posterior = {f"{name}.{part}".lstrip("."): _gaussian(layer, part) for name, layer in layers.items() for part in layer.random}
        if task.active is None:
            self.seen = None
        elif (head := _head(model, task)) is not None:
            units = len(head.posterior["weight"][0])
            seen = torch.zeros(units, dtype=torch.bool) if self.seen is None else self.seen.clone()
            seen[list(task.active)] = True
            self.seen = seen

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of the answers of several draws of the weights."""
        with evaluating(model):
            if not self.answers:
                return apply(model, batch)
            with sampling(model):
                return batch.task.likelihood.pool(torch.stack([apply(model, batch) for _ in range(self.answers)]))

    def divergence(self, model: nn.Module) -> float:
        """Nats between the posterior and the prior of the task at hand: how far the posterior has moved.

        Args:
            model: The model, or one of its form: its own priors count, and in its last layer the units that compete in the task at hand.

        Returns:
            A number of at least 0 (an estimate, with flows or a scale mixture).
        """
        with torch.no_grad():
            layers = bayesian_layers(model)
            return float(kl(layers, rows=self._rows(layers)))

    def report(self, model: nn.Module) -> dict[str, float]:
        """The divergence."""
        self._check(bayesian_layers(model))
        with seeded(0, "divergence"):  # draws, with flows or a scale mixture: the same in every run
            return {"kl": self.divergence(model)}

    def state_dict(self) -> dict[str, Any]:
        """The posterior that is the next prior, which outputs it knows, and the steps that were counted."""
        return {"posterior": self.posterior, "seen": self.seen, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Take it up again."""
        stored = state["posterior"]
        place = next(model.parameters()).device
        self.posterior = None if stored is None else {name: (mean.to(place), logvar.to(place)) for name, (mean, logvar) in stored.items()}
        self.seen, self._steps = state["seen"], state["steps"]

    def settings(self) -> dict[str, Any]:
        """What it was made with."""
        names = ("prior", "logvar", "beta", "strength", "weighting", "estimator", "samples", "answers", "pace", "num_flows", "keep")
        return {name: getattr(self, name) for name in names}

    def _rows(self, layers: dict[str, BayesianLayer]) -> dict[BayesianLayer, Tensor] | None:
        return None if self._active is None else {list(layers.values())[-1]: self._active}

    def _check(self, layers: dict[str, BayesianLayer]) -> None:
        name = broken(layers)
        if name is not None:
            raise DivergedError(
                f"The posterior of '{name}' is no longer finite after step {self._steps} of this task ({self!r}). What was saved last is kept. "
                "Lower lr, or start at a smaller logvar."
            )


def known(posterior: Mapping[str, tuple[Tensor, Tensor]], name: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """What a posterior says of a parameter; raises where it doesn't know it in this shape."""
    found = posterior.get(name)
    if found is None or found[0].shape != like.shape:
        what = "none" if found is None else f"shape {list(found[0].shape)}"
        hint = "Was the model rebuilt? Carry on with the one that learned."
        raise InputError(f"prior of '{name}'", f"a posterior of shape {list(like.shape)}", what, hint)
    return found


def _gaussian(layer: BayesianLayer, part: str) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the posterior; with flows those of 100 draws."""
    mean, logvar = (value.detach().clone() for value in layer.posterior[part])
    if part not in layer.flows:
        return mean, logvar
    with torch.no_grad():
        draws = torch.stack([layer.draw(part) for _ in range(100)])  # type: ignore[misc]
    return draws.mean(0), draws.var(0).log()


def _head(model: nn.Module, task: Task) -> BayesianLayer | None:
    """The layer whose answer is the model's, if the task's classes are only some of its units."""
    if task.active is None:
        return None
    last = list(bayesian_layers(model).values())[-1]
    found: list[Tensor] = []
    handle = last.register_forward_hook(lambda module, inputs, outputs: found.append(outputs))
    try:
        with evaluating(model), torch.no_grad():
            outputs = apply(model, first_samples(next(iter(replace(task, active=None).batches(2))), 2))
    finally:
        handle.remove()
    return last if found and found[-1] is outputs else None
