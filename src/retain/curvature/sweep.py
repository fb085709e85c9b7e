"""One pass over data that hands out per-sample gradients: what every curvature is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from retain.curvature.capture import Capture
from retain.curvature.inputs import check_rule, check_suits, drawn_rows, prepared, up_to
from retain.curvature.outputs import gradients_at, vectors_at
from retain.curvature.probe import Pieces, forward, pieces, trusted
from retain.errors import InputError, check_count
from retain.likelihoods import Likelihood
from retain.models.parameters import evaluating, unwrap
from retain.seeds import generator, seeded
from retain.tasks.batch import Batch
from retain.tasks.data import TensorData, all_finite


class Gradients(NamedTuple):
    """What a batch gives."""

    pieces: Pieces
    """Per-sample gradients of the parameters with a closed form, and the site of each piece."""
    slow: dict[str, nn.Parameter]
    """The other parameters."""
    batch: Batch
    vectors: Tensor
    """Gradients at the outputs, ``[K, *outputs.shape]``."""


class Sweep:
    """Data, a model and a label rule, ready for passes over the per-sample gradients.

    Args:
        model: Any module.
        data: A task or whatever makes one.
        labels: The label rule, see :func:`retain.fisher`, or a function from a batch's outputs to vectors at them.
        likelihood: What the outputs mean, if ``data`` is not a task.
        samples: Use this many samples.
        draws: Labels drawn per sample.
        replacement: Draw the samples with replacement.
        batch_size: Samples per pass.
        seed: Seed of samples and labels.

    Raises:
        InputError: If a setting does not fit.
        RetainError: If the model has no trainable parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        labels: Any = "exact",
        likelihood: Likelihood | None = None,
        samples: int | None = None,
        draws: int = 1,
        replacement: bool = False,
        batch_size: int = 500,
        seed: int = 0,
    ) -> None:
        if not callable(labels):
            check_rule(labels)
        check_count("batch_size", batch_size)
        check_count("draws", draws)
        self.model = unwrap(model)
        self.parameters, self.task = prepared(self.model, data, likelihood)
        check_suits(labels, self.task.likelihood, "'sampled'")
        for name, p in self.parameters.items():
            if p.is_complex():
                raise InputError(f"type of '{name}'", "a real parameter", p.dtype, "Store real and imaginary parts as two parameters.")
        self.labels, self.samples, self.replacement, self.batch_size, self.seed = labels, samples, replacement, batch_size, seed
        self.draws = draws if labels == "sampled" else 1
        self.seen = 0.0
        self.slow: tuple[str, ...] = ()
        """After a pass: parameters without a closed form."""

    def __iter__(self) -> Iterator[Gradients]:
        """A pass over the data, the model being in evaluation mode; every pass sees the same samples and labels."""
        names = {id(p): name for name, p in self.parameters.items()}
        draw = generator(self.seed, "labels")
        self.seen, used = 0.0, {}
        slow: set[str] = set()
        with evaluating(self.model), seeded(self.seed, "order"), Capture(self.model, set(names)) as capture:
            for number, batch in enumerate(self._chosen()):
                if number == 0:
                    used = trusted(capture, self.model, batch, names, self.parameters)
                outputs = forward(capture, self.model, batch)
                self.task.check(outputs, batch.targets, first=number == 0)
                vectors = self.labels(outputs) if callable(self.labels) else vectors_at(self.task, outputs, batch.targets, self.labels, self.draws, draw)
                capture.keep_batched(len(batch.targets))
                found = pieces(capture, gradients_at(outputs, [use.site.out for use in capture.uses], vectors), names)
                capture.clear()
                found = {name: parts for name, parts in found.items() if len(parts) == used.get(name)}
                rest = {name: p for name, p in self.parameters.items() if name not in found}
                slow |= set(rest)
                self.slow = tuple(name for name in self.parameters if name in slow)
                yield Gradients(found, rest, batch, vectors)
                self.seen += float(self.task.likelihood.units(batch.targets).sum())

    def check_finite(self, values: dict[str, Tensor]) -> None:
        """Raise if a result is not finite, naming its parameter."""
        for name, value in values.items():
            if not all_finite(value):
                raise InputError(f"gradient of '{name}'", "finite numbers", "NaN or infinity", "Check the model's weights and the data.")

    def _chosen(self) -> Iterator[Batch]:
        data, samples, batch_size = self.task.data, self.samples, self.batch_size
        if samples is None:
            yield from self.task.batches(batch_size)
            return
        check_count("samples", samples)
        if isinstance(data, TensorData):
            for part in drawn_rows(data, samples, self.seed, replacement=self.replacement).split(batch_size):
                some = data.take(part)
                yield Batch(some.inputs, some.targets, self.task)
            return
        yield from up_to(self.task.batches(batch_size), samples)
