"""Experience replay."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from retain.errors import InputError, check_positive
from retain.methods.memory import Choose, Replaying, Weight, balance
from retain.tasks.batch import Batch


class ER(Replaying):
    r"""Experience replay: a few old samples are kept, and every step learns from some of them too.

    .. math:: \mathcal{L}(\theta) = \tfrac1k \, \overline{\text{nll}}_B(\theta) + \big(1 - \tfrac1k\big) \, \overline{\text{nll}}_M(\theta)

    with a batch B of task k and as many samples M drawn from memory. These weights are those of van de Ven, Tuytelaars and Tolias 2022
    (https://doi.org/10.1038/s42256-022-00568-3), as if all tasks so far were learned at once; ``weight="samples"`` is the mean over both,
    algorithm 1 of Chaudhry et al. 2019 (https://arxiv.org/abs/1902.10486). A loop's loss stays the new batch's, and the penalty is what is missing:
    :math:`(1 - \frac1k)(\overline{\text{nll}}_M - \overline{\text{nll}}_B)`. The old samples have a forward pass of their own.

    By default the memory takes a task in when it is over, every sample offered once however many epochs there were, and old tasks alone are replayed. With
    ``online=True`` every batch is offered after its step, as Chaudhry et al. do; samples of the task at hand are then replayed too, from its second step
    on, and with several epochs are offered several times.

    Args:
        size: Samples kept, in all or of every class, see ``choose``.
        choose: ``reservoir``: ``size`` in all, every sample ever offered equally likely. ``balanced``: ``size`` in all, as many of each class of each task.
            ``per-class``: ``size`` of each class of each task.
        strength: Factor of the old samples' loss.
        weight: ``tasks`` as above, ``samples`` as above, or ``sum``: the new batch's loss plus ``strength`` times the old samples'.
        batch: Old samples a step; as many as there are new ones by default.
        online: Take samples in as they pass.
        seed: Seed of what is kept and drawn.

    Raises:
        InputError: If a setting is out of range, or ``online`` is asked for with another choice than ``reservoir``.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 2, scenario="class")
        >>> result = learn(models.MLP(64, 32, 10, seed=0), stream, methods.ER(100), epochs=20, lr=0.005)
        >>> bool(result.accuracy[2].min() > 0.75)  # fine-tuning: 0
        True
    """

    name = "er"
    summary = "experience replay: learn from a few old samples beside the new ones"
    citation = "chaudhry2019tiny"

    def __init__(
        self,
        size: int = 1000,
        choose: Choose = "reservoir",
        *,
        strength: float = 1.0,
        weight: Weight = "tasks",
        batch: int | None = None,
        online: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(size, batch, seed, choose)
        if weight not in ("tasks", "samples", "sum"):
            raise InputError("weight", "'tasks', 'samples' or 'sum'", repr(weight))
        if online and choose != "reservoir":
            raise InputError("online", f"False with choose={choose!r}", online, "Only a reservoir can be kept without knowing what is to come.")
        self.online = online
        self.strength, self.weight = check_positive("strength", strength, zero=True), weight

    def penalty(self, model: nn.Module, batch: Batch, outputs: Tensor) -> Tensor | None:
        """What makes the loss that of new and old samples."""
        if self.online and model.training:
            self._waiting.append(self.rows(batch))
        if not len(self.memory) or (self.weight == "sum" and not self.strength) or (self.weight == "tasks" and not self.tasks):
            return None
        rows, likelihood = self.drawn(batch), batch.task.likelihood
        old = likelihood.mean_nll(self.ask(model, rows, batch.task), rows["targets"])
        share = len(rows["targets"]) / (len(rows["targets"]) + len(batch.targets)) if self.weight == "samples" else self.tasks / (self.tasks + 1)
        return balance(likelihood.mean_nll(outputs, batch.targets, batch.weight), old, self.weight, self.strength, share)

    def settings(self) -> dict[str, Any]:
        """What it was made with."""
        return {name: getattr(self, name) for name in ("size", "choose", "strength", "weight", "batch", "online", "seed")}
