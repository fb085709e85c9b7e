"""Dark experience replay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import check_positive
from retain.methods.memory import Replaying, unmasked
from retain.models.parameters import evaluating
from retain.tasks.batch import Batch, apply
from retain.tasks.task import Task


class DERpp(Replaying):
    r"""Dark experience replay: old samples are kept with what the network answered when it learned them, and it is held to both answer and label.

    .. math:: \mathcal{L}(\theta) = \overline{\text{nll}}_B(\theta) + \alpha \, \overline{(z' - h_\theta(x'))^2}
       + \beta \, \overline{\text{nll}}\big(y'', h_\theta(x'')\big)

    with two draws :math:`(x', z')` and :math:`(x'', y'')` from a reservoir of samples, outputs z and labels. Algorithm 2 of Buzzega et al. 2020
    (https://arxiv.org/abs/2004.07211): every batch is offered to the reservoir after its step, with the outputs before it, so samples of the task at hand
    are replayed too, and with several epochs are offered several times. The squares' mean is over samples and outputs, as in the authors' code, on
    whose scale the published values of alpha stand; the paper writes a norm. :math:`\beta = 0` is DER, algorithm 1.

    All outputs are kept and held, those too that do not compete yet: an old sample's answer to classes that are still to come stays where it was, and new
    classes cannot take old samples. Where outputs are masked (scenario ``class`` or ``task``) that needs one more forward pass of the new batch, in
    evaluation mode.

    Args:
        size: Samples kept.
        alpha: Factor of the squares, in nats per squared output; the authors use 0.1 to 1, and the default on split MNIST with 200 samples.
        beta: Factor of the old labels' loss; the authors use 0.5 and 1, and the default likewise.
        batch: Old samples a draw; as many as there are new ones by default.
        seed: Seed of what is kept and drawn.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> from retain import learn, methods, models, tasks
        >>> stream = tasks.split(tasks.digits(), 2, scenario="class")
        >>> result = learn(models.MLP(64, 32, 10, seed=0), stream, methods.DERpp(100), epochs=20, lr=0.005)
        >>> bool(result.accuracy[2].min() > 0.75)  # fine-tuning: 0
        True
    """

    name = "der++"
    summary = "dark experience replay: old samples, their labels and what the network answered"
    citation = "buzzega2020dark"

    def __init__(self, size: int = 200, alpha: float = 0.2, beta: float = 1.0, *, batch: int | None = None, seed: int = 0) -> None:
        super().__init__(size, batch, seed)
        self.alpha, self.beta = check_positive("alpha", alpha, zero=True), check_positive("beta", beta, zero=True)

    def penalty(self, model: nn.Module, batch: Batch, outputs: Tensor) -> Tensor | None:
        """Both terms, each on a draw of its own; the batch waits for its step."""
        found = None
        if len(self.memory) and (self.alpha or self.beta):
            first, second = self.drawn(batch), self.drawn(batch)
            terms = [self.alpha * self.distance(model, first, batch.task)] if self.alpha else []
            if self.beta:
                terms.append(self.beta * batch.task.likelihood.mean_nll(self.ask(model, second, batch.task), second["targets"]))
            found = sum(terms[1:], start=terms[0])
        if model.training:
            self._waiting.append(self._kept(model, batch, outputs))
        return found

    def distance(self, model: nn.Module, rows: dict[str, Tensor], task: Task) -> Tensor:
        """Mean square between the outputs of now and of then.

        Args:
            model: The model.
            rows: Samples from memory.
            task: The task at hand.

        Returns:
            A scalar.
        """
        outputs = apply(model, Batch(rows["inputs"], rows["targets"], unmasked(task)))
        return (outputs - rows["outputs"]).square().mean()

    def seen(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The batch and the model's answers."""
        return self._kept(model, batch, apply(model, batch))

    def _kept(self, model: nn.Module, batch: Batch, outputs: Tensor) -> dict[str, Tensor]:
        if batch.task.active is not None:
            with evaluating(model), torch.no_grad():
                outputs = apply(model, Batch(batch.inputs, batch.targets, unmasked(batch.task)))
        return self.rows(batch, outputs=outputs.detach().to(next(model.parameters()).dtype))  # of the weights' type, whatever the pass was in

    def settings(self) -> dict[str, Any]:
        """What it was made with."""
        return {name: getattr(self, name) for name in ("size", "alpha", "beta", "batch", "seed")}
