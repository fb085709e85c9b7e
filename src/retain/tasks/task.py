"""A task: data, what an answer is worth, and which outputs compete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from retain.errors import InputError, check_count
from retain.likelihoods import Categorical, Likelihood, Tokens
from retain.tasks.batch import Batch
from retain.tasks.data import Data, TensorData, as_data


@dataclass(frozen=True, eq=False)
class Task:
    """Something to learn.

    Args:
        data: Training data: a pair of arrays ``(inputs, targets)``, a Dataset, a DataLoader or :class:`~retain.tasks.Data`.
        test: Test data of the same kinds, only ever looked at.
        validation: Held-out data of the same kinds, on which choices are made.
        likelihood: What an answer is worth; classification by default.
        classes: The outputs that belong to this task; read from the labels where they are tensors.
        id: A short name for tables and files.
        n: Training observations, the ``m`` of the design's energy/m; needed where the data cannot tell.
        active: The outputs that compete when this task is asked, set by the stream's scenario; ``None`` is all.
        class_names: Names for pictures, by class index.
        note: A remark that has to stand wherever a number on this task is printed.
        version: Raised when the task's content changes, so that old results are not compared with new ones.

    Raises:
        InputError: If data are empty, not finite, of the wrong type, ``n`` is needed and missing, or a loss stands for the likelihood.

    Example:
        >>> import torch
        >>> from retain.tasks import Task
        >>> task = Task((torch.rand(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])), id="toy")
        >>> task
        Task('toy', n=6, classes=3, likelihood=Categorical())
    """

    data: Any
    test: Any = None
    validation: Any = None
    likelihood: Likelihood = field(default_factory=Categorical)
    classes: tuple[int, ...] | None = None
    id: str = "task"
    n: int = 0
    active: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    note: str = ""
    version: int = 1

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        if not isinstance(self.likelihood, Likelihood):
            name = self.likelihood.__name__ if isinstance(self.likelihood, type) else type(self.likelihood).__name__
            hint = "For CrossEntropyLoss pass Categorical(), for BCEWithLogitsLoss Bernoulli(), for MSELoss Gaussian(sigma)."
            raise InputError("likelihood", "one of retain.likelihoods, which gives one value per sample", name, hint)
        put("data", as_data(self.data))
        for name in ("test", "validation"):
            if getattr(self, name) is not None:
                put(name, as_data(getattr(self, name)))
        discrete = isinstance(self.likelihood, Categorical)
        if self.classes is None and discrete and isinstance(self.data, TensorData) and not self.data.targets.is_floating_point():
            put("classes", tuple(int(label) for label in self.data.targets.unique()))
        if not self.n:
            size = self.data.size
            if isinstance(self.likelihood, Tokens) and isinstance(self.data, TensorData):
                size = int(self.likelihood.units(self.data.targets).sum())
            elif isinstance(self.likelihood, Tokens):
                size = None
            if size is None:
                unit = "tokens" if isinstance(self.likelihood, Tokens) else "samples"
                raise InputError("n", f"the number of training {unit}, since the data cannot tell", "nothing", f"Pass Task(..., n=<{unit}>).")
            put("n", size)
        check_count("n", self.n)
        self._check_shapes()

    def _check_shapes(self) -> None:
        for name in ("test", "validation"):
            part: Data | None = getattr(self, name)
            if part is None or part.shape is None or self.data.shape is None:
                continue
            images = len(part.shape) == len(self.data.shape) == 3  # [C, H, W]: what was trained on small ones may be asked about larger ones
            if part.shape[:1] != self.data.shape[:1] if images else part.shape != self.data.shape:
                raise InputError(f"{name} of task '{self.id}'", f"inputs of shape {list(self.data.shape)}", list(part.shape))

    def batches(self, batch_size: int, generator: torch.Generator | None = None, part: str = "data") -> Iterator[Batch]:
        """The samples of one part (``data``, ``validation`` or ``test``) as batches of this task."""
        return self.get(part).batches_of(self, batch_size, generator)

    def check(self, outputs: Tensor, targets: Tensor, part: str = "data", *, first: bool, where: str = "the model") -> None:
        """Raise if outputs and targets of a part do not fit: tensors are checked whole at the first batch, loaders batch by batch."""
        data = self.get(part)
        whole = isinstance(data, TensorData)
        if whole and not first:
            return
        labels = isinstance(self.likelihood, Categorical)
        checked = data.targets if isinstance(data, TensorData) and labels else targets
        self.likelihood.check(outputs, checked, f"{where} on task '{self.id}'")
        if labels and self.active is not None:
            stray = sorted(set(checked.unique().tolist()) - set(self.active))
            if stray:
                raise InputError("targets", f"the active classes {list(self.active)} of task '{self.id}'", f"label {stray[0]}", "Pass Task(..., classes=...).")

    def get(self, part: str) -> Data:
        """One part of the data; the training data stand in for a missing test set only if asked for by name."""
        found: Data | None = getattr(self, part)
        if found is None:
            raise InputError(part, f"{part} data in task '{self.id}'", "none", f"Pass Task(..., {part}=...).")
        return found

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Task:
        """The same task with its tensors on ``device``."""
        parts = {name: getattr(self, name) and getattr(self, name).to(device, dtype) for name in ("data", "test", "validation")}
        return replace(self, **parts)

    def hold_out(self, size: int, generator: torch.Generator) -> Task:
        """The task with ``size`` training samples, drawn at random, set aside as validation data.

        Args:
            size: How many.
            generator: Draws them.

        Returns:
            A task with ``size`` fewer training samples.

        Raises:
            InputError: If the data are not tensors or there are too few of them.
        """
        if not isinstance(self.data, TensorData):
            raise InputError("data", "tensors to draw a validation set from", type(self.data).__name__, "Pass Task(..., validation=...).")
        if not 0 < size < self.data.size:
            raise InputError("validation", f"between 1 and {self.data.size - 1} samples", size)
        order = torch.randperm(self.data.size, generator=generator)
        return replace(self, data=self.data.take(order[size:]), validation=self.data.take(order[:size]), n=0)

    def __repr__(self) -> str:
        classes = f", classes={len(self.classes)}" if self.classes else ""
        return f"Task({self.id!r}, n={self.n}{classes}, likelihood={self.likelihood!r})"


def as_task(value: Any, likelihood: Likelihood | None = None, *, n: int = 0, id: str = "data") -> Task:
    """A task as it is, or whatever makes one.

    Args:
        value: A task, a pair of arrays, a Dataset or a DataLoader.
        likelihood: What the outputs mean, if ``value`` is not a task; classification by default.
        n: Observations, if the data cannot tell.
        id: The name of a new task.

    Returns:
        The task.

    Raises:
        InputError: If a task comes with a likelihood that is not its own.
    """
    if not isinstance(value, Task):
        return Task(value, likelihood=likelihood or Categorical(), n=n, id=id)
    if likelihood is not None and likelihood != value.likelihood:
        raise InputError("likelihood", f"that of the task, {value.likelihood!r}, or none", repr(likelihood))
    return value
