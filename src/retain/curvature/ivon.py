"""Improved variational online Newton: an optimiser that learns a Gaussian over the weights, and can start from an earlier one."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from retain.errors import InputError, RetainError, check_positive

# of every parameter in order: mean and precision, both of the parameter's shape
Posterior: TypeAlias = Sequence[tuple[Tensor, Tensor]]


class IVON(Optimizer):
    r"""Learns :math:`q(\theta) = \mathcal{N}\big(m, \operatorname{diag}(\lambda (h + \delta))^{-1}\big)`; the parameters hold the mean m.

    Improved variational online Newton (Shen et al. 2024, algorithm 1, https://arxiv.org/abs/2402.17641). It descends
    :math:`\lambda\, \mathbb{E}_q[\bar\ell(\theta)] + \mathrm{KL}(q \,\|\, p)` with the prior
    :math:`p = \mathcal{N}(0, (\lambda\delta)^{-1} I)`. In step t, with :math:`\sigma^2 = 1 / (\lambda (h + \delta))`, for every weight:

    .. math::
        \theta &= m + \sigma \epsilon, \quad \epsilon \sim \mathcal{N}(0, 1), \qquad
        \hat g = \nabla \bar\ell(\theta), \qquad \hat h = \hat g\, (\theta - m) / \sigma^2 \\
        g &\leftarrow \beta_1 g + (1 - \beta_1) \hat g \\
        h &\leftarrow \beta_2 h + (1 - \beta_2) \hat h + \tfrac12 (1 - \beta_2)^2 (h - \hat h)^2 / (h + \delta) \\
        m &\leftarrow m - \alpha \Big(\frac{g}{1 - \beta_1^t} + \delta (m - m_0)\Big) \Big/ (h + \delta)

    with :math:`m_0 = 0`. The third term of h keeps :math:`h + \delta` above 0 whatever :math:`\hat h` is; h itself may fall below 0.

    The gradient is taken at sampled weights: forward and backward pass inside ``with optimizer.sampled():``, then ``step()``.
    Several blocks before one step average their :math:`\hat g` and :math:`\hat h`, weights that a block's loss does not reach counting
    as 0. After a block ``p.grad`` holds the average :math:`\hat g`, which ``step()`` uses: it may be clipped in between. Parameters
    that no block's loss has reached stay as they are. A ``torch.amp.GradScaler`` does not fit: a block reads its gradients before they are unscaled.

    Our extension to continual learning, after variational continual learning (Nguyen et al. 2018, eq. 1,
    https://arxiv.org/abs/1710.10628): the posterior of the tasks so far :math:`\mathcal{N}(m_0, \operatorname{diag}(s_0)^{-1})` is the
    prior of the next. Then :math:`\delta = s_0 / \lambda` differs by weight, and h counts the new data only. The means may be held harder or softer than
    that, by a pull :math:`\kappa\delta` in place of :math:`\delta` in the last equation, which leaves the variances alone. See :meth:`set_prior`.

    Args:
        params: What it trains: parameters, or groups with settings of their own.
        lr: Learning rate :math:`\alpha`, above 0. Steps are Newton's, so 1 is a full one; the first are
            :math:`\alpha / (h_0 + \delta)` times the gradient.
        ess: Effective sample size :math:`\lambda`, above 0: the number of training samples N, as the loss is their mean. Less makes
            the posterior wider (tempering).
        weight_decay: :math:`\delta`, above 0: the prior's precision divided by ``ess``. Ignored where there is a ``prior``.
        beta1: Momentum of the gradient, in [0, 1).
        beta2: Momentum of the Hessian, in [0, 1). Its average reaches :math:`1 / (1 - \beta_2)` steps back: short training needs less
            than the paper's 0.99999.
        hess_init: :math:`h_0`, the Hessian at the start, above 0, in nats per sample and squared unit of the parameter. Too small
            makes the first samples wild and the first steps long.
        prior: What :meth:`posterior` returned after the tasks before; by default the isotropic prior.

    Raises:
        InputError: If a setting is out of range, or the prior does not fit the parameters.

    Example:
        >>> import torch
        >>> from retain.seeds import seeded
        >>> from retain.curvature import IVON
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = IVON([weight], lr=0.05, ess=100, weight_decay=0.01, beta2=0.999)
        >>> with seeded(0, "noise"):
        ...     for _ in range(2000):  # 100 samples with mean 2 and variance 1: the exact posterior is N(200 / 101, 1 / 101)
        ...         optimizer.zero_grad()
        ...         with optimizer.sampled():
        ...             (0.5 * (weight - 2) ** 2).sum().backward()
        ...         optimizer.step()
        >>> mean, precision = optimizer.posterior()[0]
        >>> abs(float(mean) - 200 / 101) < 0.05, abs(float(precision) / 101 - 1) < 0.1
        (True, True)
    """

    _inside = False  # on the class, since copies of an optimiser get its state only

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        *,
        ess: float,
        weight_decay: float = 1e-4,
        beta1: float = 0.9,
        beta2: float = 0.99999,
        hess_init: float = 1.0,
        prior: Posterior | None = None,
    ) -> None:
        settings = {"lr": lr, "ess": ess, "weight_decay": weight_decay, "beta1": beta1, "beta2": beta2, "hess_init": hess_init}
        super().__init__(params, {**settings, "samples": 0})
        if prior is not None:
            self.set_prior(prior)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train more parameters, such as a new head's, from the isotropic prior.

        Args:
            param_group: ``params``, and the settings in which the group differs.

        Raises:
            InputError: If a setting is out of range.
        """
        group = {**self.defaults, **param_group}
        for name in ("lr", "ess", "weight_decay", "hess_init"):
            check_positive(name, group[name])
        for name in ("beta1", "beta2"):
            if not (isinstance(group[name], numbers.Real) and 0 <= group[name] < 1):
                raise InputError(name, "a number of at least 0 and below 1", repr(group[name]))
        super().add_param_group(param_group)

    @contextmanager
    def sampled(self) -> Iterator[None]:
        r"""Inside the block the weights are a draw from the posterior, :math:`\theta = m + \sigma\epsilon`; afterwards exactly m again.

        Run the forward and the backward pass inside. The block begins without gradients, and what the loss leaves in ``p.grad`` counts
        as one sample for the next :meth:`step`. Without a backward pass nothing is counted, which is how to predict with a draw; nor
        is anything if the block raises. The noise is from torch's global generator, so :func:`retain.seeds.seeded` governs it.

        Raises:
            RetainError: If blocks are nested.

        Yields:
            Nothing.
        """
        self._check_outside("sampled()")
        groups = [(group, [p for p in group["params"] if p.requires_grad]) for group in self.param_groups]
        params = [p for _, chosen in groups for p in chosen]
        means, gradients, factors, done = [p.detach().clone() for p in params], [p.grad for p in params], [], False
        self._inside = True
        try:
            for group, chosen in groups:
                factors += self._perturb(group, chosen)
            for p in params:
                p.grad = None
            yield
            done = self._gather(params, factors)
        finally:
            with torch.no_grad():
                for p, mean in zip(params, means, strict=True):
                    p.copy_(mean)
            if not done:
                for p, gradient in zip(params, gradients, strict=True):
                    p.grad = gradient
            self._inside = False

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move mean and Hessian by the average of the samples since the last step.

        Args:
            closure: Computes the loss and its gradient; called in a :meth:`sampled` block.

        Returns:
            What the closure returned.

        Raises:
            RetainError: If no gradient was taken at sampled weights, or a :meth:`sampled` block is open.
        """
        loss = None
        self._check_outside("step()")
        if closure is not None:
            with torch.enable_grad(), self.sampled():
                loss = closure()
        if not self.param_groups[0]["samples"]:
            raise RetainError("step: expected a gradient at sampled weights, found none. Call loss.backward() inside 'with optimizer.sampled():' first.")
        with torch.no_grad():
            for group in self.param_groups:
                self._update(group)
                group["samples"] = 0
        return loss

    def posterior(self) -> list[tuple[Tensor, Tensor]]:
        r"""The Gaussian learned so far: m and :math:`\lambda (h + \delta)` of every parameter, in order.

        Returns:
            Copies, each of the parameter's shape; the precision in 1 per squared unit of the parameter, all data and the prior counted.

        Raises:
            RetainError: If a :meth:`sampled` block is open.
        """
        self._check_outside("posterior()")
        found = []
        for group in self.param_groups:
            for p, curvature in zip(group["params"], self._curvature(group, group["params"]), strict=True):
                found.append((p.detach().clone(), curvature * group["ess"]))
        return found

    def set_prior(self, posterior: Posterior, ess: float | None = None, *, pull: Sequence[Tensor] | None = None) -> None:
        r"""Start on new data with what the old data taught: the prior becomes :math:`\mathcal{N}(m_0, \operatorname{diag}(s_0)^{-1})`.

        From here on :math:`\delta = s_0 / \lambda` for every weight, the decay pulls to :math:`m_0`, and h, gradient momentum and step
        count start afresh, since the old data are all in :math:`s_0`. The weights stay where they are. To put a prior on a weight
        without data, such as a new head's, give it a mean and a precision of your choice.

        Args:
            posterior: :math:`m_0` and :math:`s_0` of every parameter in order, as :meth:`posterior` returns them.
            ess: The effective sample size of the new data; by default every group's stays.
            pull: :math:`\kappa`, the factor at least 0 by which the step of every mean is held harder than its precision says, in the parameter's shape; by
                default 1. Where it is below 1 the step is still divided by :math:`h + \delta`.

        Raises:
            InputError: If the prior does not fit the parameters, or ess is out of range.
            RetainError: If a :meth:`sampled` block is open.
        """
        self._check_outside("set_prior()")
        sizes = [group["ess"] if ess is None else check_positive("ess", ess) for group in self.param_groups]
        params = [p for group in self.param_groups for p in group["params"]]
        if len(posterior) != len(params):
            raise InputError("prior", f"a mean and a precision for each of {len(params)} parameters", len(posterior))
        for k, (p, (mean, precision)) in enumerate(zip(params, posterior, strict=True)):
            for name, value in (("mean", mean), ("precision", precision)):
                if value.shape != p.shape:
                    raise InputError(f"prior of parameter {k}", f"a {name} of shape {list(p.shape)}", list(value.shape))
                if not bool(torch.isfinite(value).all()):
                    raise InputError(f"prior of parameter {k}", f"a finite {name}", "nan or inf")
            if not bool((precision > 0).all()):
                raise InputError(f"prior of parameter {k}", "a precision above 0", float(precision.min()))
        if pull is not None and [factor.shape for factor in pull] != [p.shape for p in params]:
            raise InputError("pull", f"factors in the shapes of {len(params)} parameters", [list(factor.shape) for factor in pull])
        if pull is not None and not all(bool((factor >= 0).all() and torch.isfinite(factor).all()) for factor in pull):
            raise InputError("pull", "finite factors of at least 0", "others")
        left, factors = iter(posterior), None if pull is None else iter(pull)
        for group, size in zip(self.param_groups, sizes, strict=True):
            group["ess"], group["samples"] = size, 0
            for p in group["params"]:
                mean, precision = next(left)
                self.state[p] = {"prior_mean": mean.detach().clone().to(p), "delta": (precision.detach() / size).to(p)}
                if factors is not None:
                    self.state[p]["pull"] = self.state[p]["delta"] * next(factors).to(p)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over another optimiser's state, as a copy: training both on does not mix them.

        Args:
            state_dict: What ``state_dict()`` returned.
        """
        super().load_state_dict(copy.deepcopy(state_dict))
        for p, state in self.state.items():
            if "sample_gradient" in state:
                p.grad = state["sample_gradient"]

    def _check_outside(self, call: str) -> None:
        if self._inside:
            raise RetainError(f"{call}: expected the weights to be the mean, found a draw. Leave the 'with optimizer.sampled():' block first.")

    def _states(self, group: dict[str, Any], params: list[nn.Parameter]) -> list[dict[str, Any]]:
        for p in params:
            if "hessian" not in self.state[p]:
                self.state[p].update(step=0, momentum=torch.zeros_like(p), hessian=torch.full_like(p, group["hess_init"]))
        return [self.state[p] for p in params]

    def _delta(self, group: dict[str, Any], states: Sequence[dict[str, Any]]) -> Any:
        """A number, or tensors with a prior; Any, since torch's foreach functions take either."""
        return [state["delta"] for state in states] if "delta" in states[0] else group["weight_decay"]

    @torch.no_grad()
    def _curvature(self, group: dict[str, Any], params: list[nn.Parameter]) -> list[Tensor]:
        """The sum h + delta, in tensors of its own."""
        if not params:
            return []
        states = self._states(group, params)
        return list(torch._foreach_add([state["hessian"] for state in states], self._delta(group, states)))

    @torch.no_grad()
    def _perturb(self, group: dict[str, Any], params: list[Any]) -> list[Tensor]:
        """Move the parameters from m to theta, and return (theta - m) / sigma^2."""
        if not params:
            return []
        inverse = self._curvature(group, params)
        torch._foreach_mul_(inverse, group["ess"])
        torch._foreach_sqrt_(inverse)
        noise = [torch.randn_like(p) for p in params]
        torch._foreach_addcdiv_(params, noise, inverse)
        torch._foreach_mul_(noise, inverse)
        return noise

    @torch.no_grad()
    def _gather(self, params: list[nn.Parameter], factors: Sequence[Tensor]) -> bool:
        """Average this block's gradient and Hessian with those of the blocks before; False if it has none."""
        if all(p.grad is None for p in params):
            return False
        n = self.param_groups[0]["samples"] + 1
        reached = [(p, factor) for p, factor in zip(params, factors, strict=True) if p.grad is not None or "sample_gradient" in self.state[p]]
        states = [self.state[p] for p, _ in reached]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p, _ in reached]
        hessians = [factor for _, factor in reached]
        torch._foreach_mul_(hessians, gradients)
        for state, gradient, hessian in zip(states, gradients, hessians, strict=True):
            if n == 1:
                state.update(sample_gradient=gradient, sample_hessian=hessian)
            elif "sample_gradient" not in state:
                state.update(sample_gradient=torch.zeros_like(gradient), sample_hessian=torch.zeros_like(hessian))
        if n > 1:
            torch._foreach_lerp_([state["sample_gradient"] for state in states], gradients, 1 / n)
            torch._foreach_lerp_([state["sample_hessian"] for state in states], hessians, 1 / n)
        for p in params:
            p.grad = self.state[p].get("sample_gradient")
        for group in self.param_groups:
            group["samples"] = n
        return True

    def _update(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if "sample_gradient" in self.state.get(p, ())]
        if not params:
            return
        states = self._states(group, params)
        taken = [state.pop("sample_gradient") for state in states]
        gradients = [kept if p.grad is None else p.grad for p, kept in zip(params, taken, strict=True)]
        change = [state.pop("sample_hessian") for state in states]
        momenta, hessians, delta = [state["momentum"] for state in states], [state["hessian"] for state in states], self._delta(group, states)
        for state in states:
            state["step"] += 1

        torch._foreach_lerp_(momenta, gradients, 1 - group["beta1"])
        curvature = torch._foreach_add(hessians, delta)
        torch._foreach_sub_(change, hessians)
        torch._foreach_mul_(change, 1 - group["beta2"])
        torch._foreach_add_(hessians, change)
        torch._foreach_mul_(change, change)
        torch._foreach_addcdiv_(hessians, change, curvature, value=0.5)

        # in the tensors at hand: fresh ones cost more than the arithmetic
        move = change
        torch._foreach_copy_(move, momenta)
        torch._foreach_div_(move, [1 - group["beta1"] ** state["step"] for state in states])
        if "delta" in states[0]:
            torch._foreach_copy_(curvature, params)
            torch._foreach_sub_(curvature, [state["prior_mean"] for state in states])
            pull = [state["pull"] for state in states] if "pull" in states[0] else delta
            torch._foreach_addcmul_(move, curvature, pull)
            if pull is not delta:
                delta = torch._foreach_maximum(pull, delta)
        else:
            torch._foreach_add_(move, params, alpha=delta)
        torch._foreach_copy_(curvature, hessians)
        torch._foreach_add_(curvature, delta)
        torch._foreach_addcdiv_(params, move, curvature, value=-group["lr"])
