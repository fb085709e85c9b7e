"""Fine-tuning that holds feature maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import InputError, check_count, check_positive
from retain.methods.base import Method
from retain.models.parameters import copy, evaluating
from retain.recipes.base import Phase, Place, blocks
from retain.recipes.probe import LPFT
from retain.recipes.watching import Watching
from retain.seeds import generator
from retain.tasks import Batch, Task
from retain.tasks.batch import apply, first_samples


def outer(model: nn.Module, head: str, batch: Batch, layers: int = 4) -> list[str]:
    """The blocks whose outputs stand for a model's features: of each resolution the last, and of these the last few.

    Blocks (:func:`~retain.recipes.blocks`) that give maps ``[B, C, H, W]`` or vectors ``[B, C]`` count, each vector for itself; the head does not. In a
    ResNet these are the outputs of its four stages.

    Args:
        model: The model.
        head: The head's name.
        batch: A few samples, for one pass in evaluation mode.
        layers: How many at most.

    Returns:
        Names, from the inputs to the head.

    Raises:
        InputError: If no block gives such outputs.

    Example:
        >>> from retain import models, tasks
        >>> from retain.recipes.delta import outer
        >>> outer(models.ResNet(8, 4, seed=0), "layers.head", next(tasks.digits().batches(2)), layers=2)
        ['layers.stage2_block1', 'layers.stage3_block1']
    """
    watching = Watching([name for name, _ in blocks(model) if name and name != head and not head.startswith(f"{name}.")])
    with torch.no_grad(), evaluating(model):
        watching.watch(model)
        apply(model, batch)
    last: dict[Any, str] = {}
    for name, given in watching.caught().items():
        if isinstance(given, Tensor) and given.ndim in (2, 4) and len(given) == len(batch.targets):
            last[tuple(given.shape[2:]) if given.ndim == 4 else name] = name
    if not last:
        raise InputError("recipe", "blocks that give maps [B, C, H, W] or vectors [B, C]", f"none in {type(model).__name__}", "Take 'l2-sp'.")
    return list(last.values())[-layers:]


@contextmanager
def _gated(model: nn.Module, gates: dict[str, Tensor]) -> Iterator[None]:
    """Inside the block every channel of the named layers is multiplied by a number."""

    def gate(values: Tensor) -> Any:
        return lambda module, given, answer: answer * values.view(1, -1, *[1] * (answer.ndim - 2))

    hooks = [model.get_submodule(name).register_forward_hook(gate(values)) for name, values in gates.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def rises(model: nn.Module, batch: Batch, channels: dict[str, int], *, exact: bool = False) -> dict[str, Tensor]:
    """How much the mean negative log-likelihood rises when a channel of a layer's output is switched off.

    Args:
        model: The model, in evaluation mode.
        batch: The samples.
        channels: Number of channels, by layer.
        exact: Switch each off, a pass a channel; otherwise to first order by one pass: minus the derivative by a factor of the channel, at 1.

    Returns:
        By layer, a number a channel, in nats.
    """
    anyone = next(model.parameters())
    ones = {name: torch.ones(count, device=anyone.device, dtype=anyone.dtype) for name, count in channels.items()}

    def loss(gates: dict[str, Tensor]) -> Tensor:
        with _gated(model, gates):
            return batch.task.likelihood.mean_nll(apply(model, batch), batch.targets, batch.weight)

    if not exact:
        with torch.enable_grad():
            gates = {name: values.requires_grad_() for name, values in ones.items()}
            slopes = torch.autograd.grad(loss(gates), list(gates.values()))
        return {name: -slope for name, slope in zip(gates, slopes, strict=True)}
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        whole = loss({})
        for name, values in ones.items():
            off = 1 - torch.eye(len(values), device=values.device, dtype=values.dtype)
            found[name] = torch.stack([loss({name: row}) for row in off]) - whole
    return found


class FeatureMaps(Watching):
    """Holds the outputs of a model's outer blocks at those of the model that it was told of, the channels that matter more firmly.

    Args:
        head: The head's name.
        strength: See :class:`DELTA`.
        layers: Blocks at most.
        samples: Of the training data, for the attention.
        exact: See :class:`DELTA`.
        temperature: See :class:`DELTA`.
        seed: Of the samples.
    """

    name = "delta"

    def __init__(
        self, head: str, strength: float = 1.0, layers: int = 4, samples: int = 256, *, exact: bool = False, temperature: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.head, self.strength, self.layers, self.samples, self.exact = head, strength, layers, samples, exact
        self.temperature, self.seed = temperature, seed
        self.attention: dict[str, Tensor] = {}
        self._start: nn.Module | None = None

    def consolidate(self, model: nn.Module, task: Task) -> None:
        """Keep a copy of the model, and measure what its channels are worth to a task."""
        anyone = next(model.parameters())
        task = task.to(anyone.device, anyone.dtype)
        self._start = start = copy(model).eval().requires_grad_(False)
        total: dict[str, Tensor] = {}
        seen, channels = 0, dict[str, int]()
        for batch in task.batches(min(self.samples, 64), generator(self.seed, "attention")):
            batch = first_samples(batch, self.samples - seen)
            if not seen:
                self.names = outer(start, self.head, batch, self.layers)
                channels = {name: maps.shape[1] for name, maps in self._old(batch).items()}
            found = rises(start, batch, channels, exact=self.exact)
            total = {name: total.get(name, 0) + rise * len(batch.targets) for name, rise in found.items()}
            seen += len(batch.targets)
            if seen >= self.samples:
                break
        self.attention = {name: torch.softmax(rise / seen / self.temperature, 0) for name, rise in total.items()}

    def _old(self, batch: Batch) -> dict[str, Tensor]:
        assert self._start is not None
        watching = Watching(self.names)
        with torch.no_grad():
            watching.watch(self._start)
            apply(self._start, batch)
        return watching.caught()

    def penalty(self, model: nn.Module, batch: Batch, outputs: Tensor) -> Tensor | None:
        """Half the strength times the weighted squared distance of the maps; nothing before :meth:`consolidate`."""
        new = self.caught()
        if self._start is None:
            return None
        old = self._old(batch)
        terms = [(new[name] - old[name]).square().flatten(2) if new[name].ndim > 2 else (new[name] - old[name]).square()[..., None] for name in self.names]
        distance = sum((term.mean((0, 2)) @ self.attention[name] for name, term in zip(self.names, terms, strict=True)), torch.zeros_like(outputs.sum()))
        return 0.5 * self.strength * distance

    def settings(self) -> dict[str, Any]:
        """What the method was made with."""
        return {"strength": self.strength, "layers": self.layers, "samples": self.samples, "exact": self.exact, "temperature": self.temperature}


class DELTA(LPFT):
    r"""Fine-tuning that holds the feature maps of the outer blocks near those of the start, the channels that the task needs more firmly.

    .. math:: \mathcal{L}(\theta) = \overline{\text{nll}}_B(\theta) + \frac{\text{strength}}{2B} \sum_{i=1}^{B} \sum_l \frac{1}{H_l W_l}
        \sum_j a_{lj} \, \|F_{lj}(x_i, \theta) - F_{lj}(x_i, \theta_0)\|^2,
        \quad a_l = \operatorname{softmax}_j \left( \frac{L(\theta_0 \setminus lj) - L(\theta_0)}{T} \right)

    :math:`F_{lj}` is the j-th channel of block l's output, and :math:`L(\theta_0 \setminus lj)` the mean negative log-likelihood of the start, with its head
    trained, on training data while that channel is switched off. Li, Xiong, Wang, Rao, Liu, Chen and Huan 2019, "DELTA: Deep Learning Transfer using
    Feature Map with Attention" (https://arxiv.org/abs/1901.09229), section 3.

    Departures: the rise of the loss is estimated to first order, :math:`-\partial L / \partial g_{lj}` at :math:`g_{lj} = 1` for a factor g of the channel,
    which takes one pass back instead of one forward a channel; ``exact=True`` takes them all. Channels of the blocks' outputs are switched off, not filters
    inside. The distance is a mean over positions, so that maps of all sizes count alike. The decay of the new head is the optimiser's own.

    The blocks are found: of each resolution the last one, and of these the last four, a ResNet's stages (:func:`~retain.recipes.delta.outer`). The start
    computes its maps in evaluation mode; with ``batchnorm="track"`` the new ones are of batch statistics, as in the authors' code, and the penalty does not
    begin at 0.

    Args:
        strength: How firmly; 0 is LP-FT. The pull is a gradient: with a large rate a large strength diverges.
        layers: Blocks at most.
        samples: Of the training data, for the attention.
        exact: Switch off each channel in turn.
        temperature: T, in nats: above it the attention is nearly even, below it few channels have it all. The paper's is 1.
        penalty: Of the head that is fitted alone, see :class:`~retain.recipes.LinearProbe`.

    Raises:
        InputError: If a setting is out of range; on use, if the model has no such blocks.

    Example:
        >>> from retain.recipes import DELTA
        >>> DELTA(strength=0.3).settings()["layers"]
        4
    """

    name = "delta"
    summary = "all weights, feature maps held at the start's by attention"
    citation = "li2019delta"

    def __init__(
        self,
        strength: float = 0.1,
        layers: int = 4,
        samples: int = 256,
        exact: bool = False,
        temperature: float = 1.0,
        penalty: float | None = None,
    ) -> None:
        super().__init__(penalty)
        self.strength, self.temperature = check_positive("strength", strength, zero=True), check_positive("temperature", temperature)
        self.layers, self.samples, self.exact = check_count("layers", layers), check_count("samples", samples), bool(exact)

    def phases(self, place: Place) -> Sequence[Phase]:
        """The head, then everything, held."""
        probe, _ = super().phases(place)
        method: Method = FeatureMaps(place.head, self.strength, self.layers, self.samples, exact=self.exact, temperature=self.temperature, seed=place.seed)
        return [probe, Phase("held", method=method, anchored=True)]

    def settings(self) -> dict[str, Any]:
        """Everything the recipe was made with."""
        own = {"strength": self.strength, "layers": self.layers, "samples": self.samples, "exact": self.exact, "temperature": self.temperature}
        return {**own, **super().settings()}
