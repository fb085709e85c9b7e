"""Variational continual learning by an optimiser that learns the posterior while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from retain.curvature import IVON
from retain.errors import InputError, RetainError, check_count, check_positive
from retain.methods.base import Method
from retain.methods.vcl import known
from retain.models.parameters import evaluating, named_parameters
from retain.tasks.batch import Batch, apply
from retain.tasks.task import Task

_Gaussians = dict[str, tuple[Tensor, Tensor]]  # mean and precision by parameter name


class NewtonVCL(Method):
    r"""Variational continual learning on a plain model: an optimiser learns mean and precision of every weight, and they are the next task's prior.

    .. math:: q_t = \arg\min_q\; \frac{N_t}{\beta}\, \mathbb{E}_{w \sim q}\big[\overline{\text{nll}}_t(w)\big] + \mathrm{KL}\big(q \,\|\, q_{t-1}\big),
       \qquad q_t = \mathcal{N}\big(m, \operatorname{diag}(s_t)^{-1}\big), \quad s_t = s_{t-1} + \frac{N_t}{\beta} h_t

    The bound of Nguyen et al. 2018 (https://arxiv.org/abs/1710.10628), descended by improved variational online Newton (:class:`retain.curvature.IVON`;
    Shen et al. 2024, https://arxiv.org/abs/2402.17641): the parameters hold the means, gradients are taken at draws, and a running mean estimates the
    curvature :math:`h_t` of the new data. The model stays as it is, a step costs one pass, and the means are a network like any other.

    The running mean of the curvature starts at ``hess_init``, of which :math:`\beta_2^T` is left after T steps and counts as if the data had said it: the
    posterior is narrower than they justify where few steps are taken, which keeps more and is not Bayes. Weights that no sample of a task has reached
    (output units that do not compete, inputs that are always 0) keep their prior, mean and precision.

    The optimiser is the method's own: ``learn`` uses it in place of its argument ``optimizer``. A loop of one's own takes it from
    ``method.optimizer(model, lr)`` for every task, before :func:`retain.attach`, and runs forward and backward pass inside
    ``with optimizer.sampled():``. Its learning rate is that of a Newton step: about 0.1, not Adam's 0.001. A ``torch.amp.GradScaler`` does not fit: its
    scale would multiply the curvature.

    Args:
        prior_std: Width of the Gaussian about 0 that is believed before the first task.
        hess_init: Curvature at the start of every task, above 0, in nats per sample and squared unit of the weight: the first steps are
            lr / ``hess_init`` times the gradient, or less where a prior holds the weight.
        beta1: Momentum of the gradient.
        beta2: Momentum of the curvature, whose mean reaches :math:`1 / (1 - \beta_2)` steps back: fewer than a task has.
        beta: Tempering of the divergence, above 0; 1 is the Bayesian answer.
        strength: Factor of the pull to the old means, for weights that old data have reached; 1 is the Bayesian answer. The precisions are left as they are,
            so it does not compound over tasks (as in Loo, Swaroop and Turner 2020, https://arxiv.org/abs/2011.12328).
        answers: Draws of the weights whose mean is the answer; 0 answers with the means of the weights.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 2, scenario="task")
        >>> result = learn(models.MLP(64, 32, 10, seed=0), stream, methods.NewtonVCL(beta=0.1), epochs=20, lr=0.1, schedule="cosine")
        >>> bool(result.accuracy[2].min() > 0.9)
        True
    """

    name = "newton-vcl"
    summary = "variational continual learning by an optimiser that learns the posterior (IVON)"
    citation = "shen2024variational"

    def __init__(
        self,
        *,
        prior_std: float = 0.3,
        hess_init: float = 0.1,
        beta1: float = 0.9,
        beta2: float = 0.999,
        beta: float = 1.0,
        strength: float = 1.0,
        answers: int = 10,
    ) -> None:
        self.prior_std, self.hess_init = check_positive("prior_std", prior_std), check_positive("hess_init", hess_init)
        self.beta1, self.beta2 = (_momentum(name, value) for name, value in (("beta1", beta1), ("beta2", beta2)))
        self.beta, self.strength = check_positive("beta", beta), check_positive("strength", strength, zero=True)
        self.answers = check_count("answers", answers, least=0)
        self.posterior: _Gaussians | None = None
        """Mean and precision of every weight after the last task, by parameter name; ``None`` before one was learned."""
        self._seen: dict[str, Tensor] = {}  # whether data of the tasks so far have reached a weight
        self._new = 0

    def optimizer(self, model: nn.Module, lr: float) -> IVON:
        """The optimiser that learns the posterior of the next task, or of the one that has begun."""
        self.own = IVON(self.groups(model, lr), lr, ess=1.0, hess_init=self.hess_init, beta1=self.beta1, beta2=self.beta2)
        if not self.own.param_groups[0]["params"]:
            raise RetainError("model: expected trainable parameters, found none. Unfreeze a layer first.")
        self._tell(model)
        return self.own

    def begin(self, model: nn.Module, task: Task) -> None:
        """Make the last posterior the prior."""
        self._new = task.n
        self._tell(model)

    def before_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """See which weights the data reach: those where a sum of squared gradients is not 0. It is kept in the optimiser's state."""
        found = [(optimizer.state[p], p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [gradient for _, gradient in found]
        for state, gradient in found:
            if "reached" not in state:
                state["reached"] = torch.zeros_like(gradient)
        reached = [state["reached"] for state, _ in found]
        torch._foreach_addcmul_(reached, gradients, gradients)

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Remember the posterior.

        Raises:
            RetainError: If the method's optimiser did not learn the task.
        """
        found = self._learned(model)
        if found is None or self.own is None or not self._new:
            raise RetainError(
                f"{self}: expected that its own optimiser learned the task, found that it did not. Use retain.learn, or step "
                "method.optimizer(model, lr) in your loop: the posterior is learned on the way and cannot be measured afterwards."
            )
        for name, p in named_parameters(model).items():
            reached = _reached(self.own, p)
            self._seen[name] = reached | self._seen.get(name, reached)
        self.posterior, self.own, self._new = found, None, 0

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of the answers of several draws of the weights; before anything was learned the model's own answer."""
        learned = (self._learned(model) or self.posterior) if self.answers else None
        with evaluating(model):
            if learned is None:
                return apply(model, batch)
            found = []
            for _ in range(self.answers):
                with _drawn(model, learned):
                    found.append(apply(model, batch))
            return batch.task.likelihood.pool(torch.stack(found))

    def state_dict(self) -> dict[str, Any]:
        """The posterior that is the next prior, and which weights its data reached; what the task at hand says is in the optimiser's state."""
        return {"posterior": self.posterior, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Take it up again."""
        place = next(model.parameters()).device
        stored = state["posterior"]
        self.posterior = None if stored is None else {name: (mean.to(place), precision.to(place)) for name, (mean, precision) in stored.items()}
        self._seen = {name: value.to(place) for name, value in state["seen"].items()}

    def settings(self) -> dict[str, Any]:
        """What it was made with."""
        return {name: getattr(self, name) for name in ("prior_std", "hess_init", "beta1", "beta2", "beta", "strength", "answers")}

    def _before(self, name: str, p: nn.Parameter) -> tuple[Tensor, Tensor]:
        """What was believed of a parameter before the task at hand."""
        if self.posterior is None:
            return torch.zeros_like(p), torch.full_like(p, self.prior_std**-2)
        return known(self.posterior, name, p)

    def _tell(self, model: nn.Module) -> None:
        """Prior and size of the task, to the optimiser; whichever of the two comes later calls this."""
        if not self._new or not _trains(self.own, model):
            return
        assert isinstance(self.own, IVON)
        ess = self._new / self.beta
        if self.posterior is None:
            for group in self.own.param_groups:
                group.update(ess=ess, weight_decay=self.prior_std**-2 / ess)
            return
        names = {id(p): name for name, p in named_parameters(model, trainable=False).items()}
        params = [(names[id(p)], p) for group in self.own.param_groups for p in group["params"]]
        prior = [self._before(name, p) for name, p in params]
        pull = [1 + (self.strength - 1) * self._seen[name].to(p) for name, p in params]
        self.own.set_prior(prior, ess, pull=None if self.strength == 1 else pull)

    def _learned(self, model: nn.Module) -> _Gaussians | None:
        """The posterior of the task at hand, if the method's optimiser is learning it."""
        if not _trains(self.own, model):
            return None
        assert isinstance(self.own, IVON)
        params, found = (p for group in self.own.param_groups for p in group["params"]), {}
        at_work = {id(p): gaussian for p, gaussian in zip(params, self.own.posterior(), strict=True)}
        for name, p in named_parameters(model).items():
            reached, before = _reached(self.own, p), self._before(name, p)
            mean, precision = (torch.where(reached, new, old) for new, old in zip(at_work[id(p)], before, strict=True))
            found[name] = (mean, precision)
        return found


def _trains(optimizer: Optimizer | None, model: nn.Module) -> bool:
    if optimizer is None:
        return False
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {id(p) for p in named_parameters(model).values()} <= trained


def _reached(optimizer: Optimizer, p: nn.Parameter) -> Tensor:
    total: Tensor = optimizer.state[p].get("reached", torch.zeros_like(p))
    return total != 0


@contextmanager
def _drawn(model: nn.Module, gaussians: _Gaussians) -> Iterator[None]:
    """Inside the block the weights are a draw about their means; afterwards exactly the means again."""
    params = [(p, gaussians[name][1]) for name, p in named_parameters(model).items() if name in gaussians]
    means = [p.detach().clone() for p, _ in params]
    try:
        with torch.no_grad():
            for p, precision in params:
                p.addcdiv_(torch.randn_like(p), precision.sqrt())
        yield
    finally:
        with torch.no_grad():
            for (p, _), mean in zip(params, means, strict=True):
                p.copy_(mean)


def _momentum(name: str, value: float) -> float:
    if check_positive(name, value, zero=True) >= 1:
        raise InputError(name, "a number of at least 0 and below 1", value)
    return float(value)
