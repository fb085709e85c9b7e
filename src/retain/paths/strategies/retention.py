"""Fit the mixture to data, held by a belief about the point before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from retain.beliefs import Belief, RetentionLaw
from retain.curvature import fisher
from retain.errors import InputError, check_count, check_share
from retain.methods.ssr import SSR
from retain.paths.strategies.base import Move, Walk
from retain.paths.strategies.firstorder import FirstOrder
from retain.paths.strategies.joined import Joined
from retain.seeds import generator
from retain.tasks.batch import Batch
from retain.tasks.data import TensorData
from retain.tasks.task import Task
from retain.training.optimizers import OptimizerFactory, Schedule

Bias = Callable[[float], float]


class Retention(FirstOrder):
    r"""The notebook's own plan: at each q fit the mixture to data, weighted against a belief about the point before.

    .. math:: \mathcal{L}(\theta) = \pi\,\overline{-\log p_q(y)} + (1 - \pi)\,\tfrac12 (\theta - \theta_{n})^\top \hat F\,(\theta - \theta_{n}),

    with :math:`\hat F` what is known about the path so far: the mixture's Fisher, low rank plus diagonal (:class:`~retain.methods.SSR`), measured
    after each step and taken into the belief with the weight that was retained. The retained share :math:`1 - \pi` comes from the retention law (W.
    E. Durno 2024): :math:`\pi = n_B / (s\,n_A + n_B)` with s of :class:`~retain.beliefs.RetentionLaw`, :math:`n_A` the belief's samples and
    :math:`n_B` those of a step. As its author does, the drift is that of the last step, whose fit was held, so that no second fit is needed.

    Labels are followed, not the source, so this strategy also serves data that change on the way (:class:`retain.paths.Drift`). There the law looks one
    step ahead only: information that matters late is given up early, unless a person's ``bias`` asks for it to be kept.

    Args:
        retained: ``optimal``, ``none``, ``all``, or the share :math:`1 - \pi` in [0, 1].
        rank: Directions of the belief.
        samples: Behind each measurement of the Fisher.
        every: Iterations between measurements.
        replay: Old samples kept (a reservoir); half of each batch is drawn from them, and the Fisher is measured on them. 0: none.
        least: With ``optimal``: the smallest share (the notebook's :math:`\pi_{\max} = 0.9`).
        bias: Added to the share at q, such as :func:`retain.paths.spike`; the sum is cut to [0, 1].
        law: The form of the law.
        optimizer: See :class:`FirstOrder`.
        lr: Learning rate.
        schedule: Course of the learning rate.
        warmup: Share of the path over which it rises.
        batch_size: Samples a step.

    Raises:
        InputError: If a setting is out of range.
    """

    name = "retention"
    summary = "fit the mixture to data, held by a low-rank belief about the point before (the notebook's plan)"

    def __init__(
        self,
        retained: float | Literal["optimal", "none", "all"] = "optimal",
        *,
        rank: int = 5,
        samples: int = 256,
        every: int = 10,
        replay: int = 0,
        least: float = 0.1,
        bias: Bias | None = None,
        law: RetentionLaw | None = None,
        optimizer: str | OptimizerFactory = "momentum",
        lr: float = 0.1,
        schedule: Schedule = "cosine",
        warmup: float = 0.05,
        batch_size: int = 256,
    ) -> None:
        super().__init__(optimizer, lr, schedule=schedule, warmup=warmup, batch_size=batch_size)
        named = {"none": 0.0, "all": 1.0}
        if isinstance(retained, str) and retained not in (*named, "optimal"):
            raise InputError("retained", "'optimal', 'none', 'all' or a share in [0, 1]", repr(retained))
        self.retained: float | str = "optimal" if retained == "optimal" else check_share("retained", named.get(str(retained), retained))  # type: ignore[arg-type]
        self.rank, self.samples, self.every = check_count("rank", rank), check_count("samples", samples), check_count("every", every)
        self.replay, self.least = check_count("replay", replay, least=0), check_share("least", least)
        self.bias, self.law = bias, law or RetentionLaw()

    def begin(self, walk: Walk) -> None:
        """Nothing is held, nothing kept."""
        super().begin(walk)
        self._joined = Joined(walk)
        self._pull: SSR | None = None
        self._belief: Belief | None = None
        self._share = 1.0 if self.retained == 1.0 else 0.0  # there is nothing to hold to before the first measurement
        self._seen = self._since = self._step_samples = 0
        self._memory: tuple[Tensor, Tensor] | None = None
        self._places = generator(walk.seed, "replay")
        if self.replay and not isinstance(walk.task.data, TensorData):
            raise InputError("replay", "data that are tensors", type(walk.task.data).__name__, "Pass replay=0, or tensors.")

    def update(self, move: Move) -> dict[str, Any]:
        """Renew the belief where q has moved, then one step."""
        if self._since >= self.every and move.start > 0:  # at q = 0 the answers do not depend on the target: there is nothing to know
            self._renew(move)
        self._joined.q = move.to
        facts = {"share": self._share}
        if self._share < 1:
            facts |= super().update(self._with_memory(move))
        self._since += 1
        self._seen += len(move.batch.targets)
        self._step_samples += len(move.batch.targets)
        self._last = move.batch
        self._remember(move.batch)
        return facts

    def loss(self, move: Move) -> Tensor:
        """The labels' negative log likelihood under the bridge's point."""
        return move.walk.task.likelihood.mean_nll(move.walk.bridge.at(move.to, move.source, move.outputs()), move.batch.targets)

    def step(self, move: Move) -> None:
        """The optimiser's step, and the pull after it."""
        if self._pull is not None:
            self._pull.before_step(self._joined, self._steps)
        super().step(move)
        if self._pull is not None:
            self._pull.after_step(self._joined, self._steps)

    def _renew(self, move: Move) -> None:
        """Take what the last step taught into the belief, and say how much of it to keep in the next."""
        walk, joined, n = move.walk, self._joined, float(self._step_samples)
        theta = {name: p.detach().clone() for name, p in joined.named_parameters() if p.requires_grad}
        share = self.least if self.retained == "optimal" else float(self.retained)
        if self.retained == "optimal" and self._belief is not None:
            kept = self._belief.n * self.law(self._belief, theta, n)["model"].strength
            share = max(self.least, kept / (kept + n))
        if self.bias is not None:
            share = min(1.0, max(0.0, share + self.bias(move.to)))
        self._share, self._pull = share, None
        if 0 < share < 1:
            known = self._known(walk)
            precision = fisher(joined, known, structure="low-rank", rank=self.rank, samples=min(self.samples, known.n), seed=walk.seed)
            if self._belief is None:
                self._belief = Belief(theta, precision, n)
            else:  # the share that is kept is kept for good
                before = Belief(self._belief.centre, self._belief.precision, n * share / (1 - share))
                self._belief = before.update(theta, precision, n)
            self._pull = SSR(share / (1 - share), pull="proximal", rank=self.rank)
            self._pull.belief = Belief(theta, self._belief.precision, 1.0)
            self._pull.begin(joined, replace(walk.task, n=1))
        self._since = self._step_samples = 0

    def _known(self, walk: Walk) -> Task:
        """The samples that the belief is measured on."""
        options: dict[str, Any] = {"likelihood": walk.task.likelihood, "active": walk.task.active}
        pair = self._memory or (self._last.inputs, self._last.targets)
        if isinstance(pair[0], Tensor):
            return Task(pair, **options)
        return Task([pair], n=len(pair[1]), **options)

    def _remember(self, batch: Batch) -> None:
        """A reservoir: every sample seen so far is in it with the same probability (Vitter 1985, algorithm R)."""
        if not self.replay:
            return
        inputs, targets = batch.inputs, batch.targets
        if self._memory is None:
            self._memory = inputs[:0].clone(), targets[:0].clone()
        room = self.replay - len(self._memory[1])
        if room:
            self._memory = torch.cat([self._memory[0], inputs[:room]]), torch.cat([self._memory[1], targets[:room]])
            inputs, targets = inputs[room:], targets[room:]
        seen = self._seen - len(targets) + torch.arange(1, len(targets) + 1)
        places = (torch.rand(len(targets), generator=self._places, dtype=torch.float64) * seen).long()
        last = {place: row for row, place in enumerate(places.tolist()) if place < self.replay}  # of two samples for one place the later one
        if last:
            into, rows = (torch.tensor(list(part), device=targets.device) for part in (last.keys(), last.values()))
            self._memory[0][into], self._memory[1][into] = inputs[rows], targets[rows]

    def _with_memory(self, move: Move) -> Move:
        """The move with half of its batch drawn from memory."""
        if self._memory is None:
            return move
        half = len(move.batch.targets) // 2
        rows = torch.randint(len(self._memory[1]), (half,), generator=self._places).to(move.batch.targets.device)
        new = len(move.batch.targets) - half
        inputs = torch.cat([move.batch.inputs[:new], self._memory[0][rows]])
        batch = Batch(inputs, torch.cat([move.batch.targets[:new], self._memory[1][rows]]), move.batch.task)
        return move.elsewhere(batch, move.walk.ask(batch))
