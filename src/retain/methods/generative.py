"""Deep generative replay."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from retain.errors import InputError, check_count, check_positive
from retain.likelihoods import Bernoulli, Gaussian
from retain.methods.base import Method
from retain.methods.lwf import distilled, frozen
from retain.methods.memory import Active, balance, on_device, unmasked, within
from retain.models.vae import VAE, check_pixels
from retain.seeds import derive, generator
from retain.tasks.batch import Batch, apply, mask
from retain.tasks.task import Task, as_task


class GenerativeReplay(Method):
    r"""Deep generative replay: a second network learns to make inputs like those of the tasks so far, and the network as it was says what they are.

    .. math:: \mathcal{L}(\theta) = \tfrac1k \, \overline{\text{nll}}_B(\theta) + \big(1 - \tfrac1k\big) \, \overline{\text{nll}}_{\tilde B}(\theta), \qquad
       \mathcal{L}(\phi) = -\tfrac1k \, \overline{\text{ELBO}}_B(\phi) - \big(1 - \tfrac1k\big) \, \overline{\text{ELBO}}_{\tilde B}(\phi)

    with a batch B of task k and as many inputs :math:`\tilde B`, made by the generator :math:`\phi` as it was before the task, whose labels are the most
    probable ones under :math:`\theta` as it was before the task. Section 3 of Shin et al. 2017 (https://arxiv.org/abs/1705.08690). No old data are kept: what
    remains is a generator, and during a task two frozen copies.

    As in the comparison of van de Ven, Tuytelaars and Tolias 2022 (https://doi.org/10.1038/s42256-022-00568-3), and other than in the paper: the generator is
    a :class:`~retain.models.VAE` in place of a GAN; it takes one step of an Adam of its own, which runs on from task to task, for every step of the network, on
    the same batch and the same replays; and with a head a task every replay is asked of every old head, with the mean over these. Departure from both: a
    loop's loss stays the new batch's, and the penalty is what is missing: :math:`(1 - \frac1k)(\overline{\text{nll}}_{\tilde B} - \overline{\text{nll}}_B)`.

    A replay is asked among the outputs that compete now if those include the old ones (class-incremental streams), or else among the old ones. A task that
    nobody watched (a model trained elsewhere, :meth:`consolidate` alone) has its generator trained from the task's data then. All draws come from a
    generator of random numbers of its own.

    Args:
        strength: Factor of the replays' loss.
        soft: Hold the network to the old one's probabilities in place of the labels: :math:`T^2` times the divergence at temperature T, as
            :class:`LwF` does, with 0 for the classes that are new.
        temperature: T.
        weight: ``tasks`` as above, or ``sum``: the new batch's loss plus ``strength`` times the replays'.
        batch: Replays a step; as many as there are new samples by default.
        hidden: Widths of the generator's hidden layers.
        latent: Dimensions of its latent space.
        likelihood: Of the inputs: ``Bernoulli()`` for values in [0, 1], the default, ``Gaussian(sigma)`` for any; sigma is about the error of a pixel.
        lr: Learning rate of the generator.
        epochs: Passes over the data of a task that nobody watched.
        seed: Of the generator's initialisation and of all draws.

    Raises:
        InputError: If a setting is out of range, inputs are not one floating point tensor of one shape, or not in [0, 1] under ``Bernoulli()``.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 2, scenario="class")
        >>> method = methods.GenerativeReplay(hidden=(64,), latent=10, lr=0.005)
        >>> result = learn(models.MLP(64, 32, 10, seed=0), stream, method, epochs=40, lr=0.005)
        >>> bool(result.accuracy[2].min() > 0.6)  # fine-tuning: 0
        True
    """

    name = "generative-replay"
    summary = "deep generative replay: a generator makes the old inputs, the old network labels them"
    citation = "shin2017continual"

    def __init__(
        self,
        strength: float = 1.0,
        *,
        soft: bool = False,
        temperature: float = 2.0,
        weight: Literal["tasks", "sum"] = "tasks",
        batch: int | None = None,
        hidden: Sequence[int] = (400, 400),
        latent: int = 100,
        likelihood: Bernoulli | Gaussian | None = None,
        lr: float = 1e-3,
        epochs: int = 10,
        seed: int = 0,
    ) -> None:
        self.strength, self.temperature = check_positive("strength", strength, zero=True), check_positive("temperature", temperature)
        if weight not in ("tasks", "sum"):
            raise InputError("weight", "'tasks' or 'sum'", repr(weight))
        self.weight, self.soft = weight, bool(soft)
        self.batch = None if batch is None else check_count("batch", batch)
        self.hidden, self.latent = tuple(check_count("hidden", width) for width in hidden), check_count("latent", latent)
        self.likelihood, self.lr = check_pixels(likelihood), check_positive("lr", lr)
        self.epochs, self.seed = check_count("epochs", epochs), check_count("seed", seed, least=0)
        self.tasks = 0
        """How many tasks are over."""
        self.old: list[Active] = []
        """The outputs that competed for them; a set that another holds is left out."""
        self.generator: VAE | None = None
        """What learns the inputs; made when the first batch shows their shape."""
        self.previous: VAE | None = None
        """The generator as it was before the task at hand."""
        self.teacher: nn.Module | None = None
        """The model as it was before the task at hand."""
        self.draw = generator(self.seed, "generator")
        self._adam: torch.optim.Adam | None = None
        self._waiting: list[tuple[Tensor, Tensor | None]] = []  # inputs and replays that passed since the last step
        self._watched = False  # whether the generator has had a step of the task at hand
        self._elbo: Tensor | None = None

    def begin(self, model: nn.Module, task: Task) -> None:
        """Keep copies of the model and of the generator."""
        self._waiting, self._watched = [], False
        if self.tasks and self.generator is not None:
            self.teacher, self.previous = frozen(model), frozen(self.generator)

    def penalty(self, model: nn.Module, batch: Batch, outputs: Tensor) -> Tensor | None:
        """What makes the loss that of new samples and replays; the generator learns from both after the step."""
        inputs = self._checked(batch.inputs)
        replays = None
        if self.previous is not None:
            replays = self.previous.sample(self.batch or len(inputs), self.draw).to(inputs.dtype)
        self._waiting.append((inputs.detach(), replays))
        if replays is None or (self.weight == "sum" and not self.strength):
            return None
        old = self.replayed(model, replays, batch.task)
        return balance(batch.task.likelihood.mean_nll(outputs, batch.targets, batch.weight), old, self.weight, self.strength, self.tasks / (self.tasks + 1))

    def replayed(self, model: nn.Module, replays: Tensor, task: Task) -> Tensor:
        """The loss of replays under what the old network said of them: the mean over old heads if there are several.

        Args:
            model: The model.
            replays: Inputs.
            task: The task at hand.

        Returns:
            A scalar, in nats per replay.
        """
        assert self.teacher is not None
        asked, likelihood = Batch(replays, replays, unmasked(task)), task.likelihood  # it is not learned from targets
        with torch.no_grad():
            before = apply(self.teacher, asked)
        now = apply(model, asked)
        total = now.new_zeros(())
        for own in self.old:
            among = task.active if within(own, task.active) else own
            if self.soft:
                total = total + distilled(likelihood, before, now, self.temperature, own, among).mean()
            else:
                total = total + likelihood.mean_nll(mask(now, among), likelihood.predict(mask(before, own)))
        return total / len(self.old)

    def after_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """The generator's step, on what passed since the last one."""
        if self._waiting:
            inputs = torch.cat([new for new, _ in self._waiting])
            replays = [old for _, old in self._waiting if old is not None]
            self._waiting = []
            self._learn(inputs, torch.cat(replays) if replays else None)

    def _learn(self, inputs: Tensor, replays: Tensor | None) -> None:
        if self.generator is None:
            made = VAE(inputs.shape[1:], hidden=self.hidden, latent=self.latent, likelihood=self.likelihood, seed=derive(self.seed, "generator"))
            self.generator = made.to(inputs.device, inputs.dtype)
        if self._adam is None:
            self._adam = torch.optim.Adam(self.generator.parameters(), lr=self.lr, fused=True)
        with torch.enable_grad():
            bounds = self.generator.elbo(inputs if replays is None else torch.cat([inputs, replays]), self.draw)  # one pass for both
            bound = bounds[: len(inputs)].mean()
            self._elbo = bound.detach()
            if replays is not None:
                bound = (bound + self.tasks * bounds[len(inputs) :].mean()) / (self.tasks + 1)
            self._adam.zero_grad()
            (-bound).backward()
            self._adam.step()
        self._watched = True

    def _checked(self, inputs: Any) -> Tensor:
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            kinds = f"{inputs.dtype}" if isinstance(inputs, Tensor) else f"{type(inputs).__name__} of {len(tree_leaves(inputs))}"
            raise InputError("inputs", "one floating point tensor, since a generator has to make such", kinds, "Use LwF, which makes no inputs.")
        if self.generator is not None and tuple(inputs.shape[1:]) != self.generator.shape:
            raise InputError("inputs", f"the shape of those the generator has learned, {list(self.generator.shape)}", list(inputs.shape[1:]))
        if isinstance(self.likelihood, Bernoulli):
            low, high = (float(value) for value in inputs.detach().aminmax())
            if low < 0 or high > 1:
                hint = "Leave out the normalisation, or pass likelihood=likelihoods.Gaussian(sigma), which takes any values."
                raise InputError("inputs", "values in [0, 1], since likelihood=Bernoulli()", f"{low:.3g} to {high:.3g}", hint)
        return inputs

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Count the task; the generator of one that nobody watched learns its data now."""
        task = as_task(task)
        if not self._watched:
            if self.generator is not None and self.previous is None:
                self.previous = frozen(self.generator)
            for epoch in range(self.epochs):
                for batch in on_device(task, model).batches(128, generator(self.seed, "generator", self.tasks, epoch)):
                    inputs = self._checked(batch.inputs)
                    self._learn(inputs, None if self.previous is None else self.previous.sample(len(inputs), self.draw))
        self.tasks += 1
        if not any(within(task.active, own) for own in self.old):
            self.old = [own for own in self.old if not within(own, task.active)] + [task.active]
        self.teacher, self.previous, self._waiting, self._watched = None, None, [], False

    def report(self, model: nn.Module) -> dict[str, float]:
        """The generator's bound on the last new batch, in nats per sample."""
        return {} if self._elbo is None else {"elbo": float(self._elbo)}

    def state_dict(self) -> dict[str, Any]:
        """The generator with its optimiser, the copies, where the draws stand, and which outputs old inputs are asked about."""
        return {
            "tasks": self.tasks,
            "old": self.old,
            "watched": self._watched,
            "draw": self.draw.get_state(),
            "shape": None if self.generator is None else self.generator.shape,
            "adam": None if self._adam is None else self._adam.state_dict(),
            **{name: None if part is None else part.state_dict() for name, part in self._networks().items()},
        }

    def _networks(self) -> dict[str, nn.Module | None]:
        return {"generator": self.generator, "previous": self.previous, "teacher": self.teacher}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Take it up again, on the model's device."""
        self.tasks, self.old = state["tasks"], [None if own is None else tuple(own) for own in state["old"]]
        self._watched, self._waiting, self._elbo = state["watched"], [], None
        self.draw.set_state(state["draw"].cpu())
        self.generator = self._adam = self.previous = self.teacher = None
        if state["generator"] is not None:
            made = VAE(state["shape"], hidden=self.hidden, latent=self.latent, likelihood=self.likelihood, seed=0)
            self.generator = made.to(next(model.parameters()).device, next(iter(state["generator"].values())).dtype)
            self.generator.load_state_dict(state["generator"])
        if state["adam"] is not None and self.generator is not None:
            self._adam = torch.optim.Adam(self.generator.parameters(), lr=self.lr, fused=True)
            self._adam.load_state_dict(deepcopy(state["adam"]))  # it would go on in the same memory
        if state["previous"] is not None and self.generator is not None:
            self.previous = frozen(self.generator)
            self.previous.load_state_dict(state["previous"])
        if state["teacher"] is not None:
            self.teacher = frozen(model)
            self.teacher.load_state_dict(state["teacher"])

    def settings(self) -> dict[str, Any]:
        """What it was made with."""
        names = ("strength", "soft", "temperature", "weight", "batch", "hidden", "latent", "likelihood", "lr", "epochs", "seed")
        return {name: getattr(self, name) for name in names}
