"""Fine-tuning by adapters of low rank."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import InputError, RetainError, check_count, check_positive
from retain.models.parameters import copy, evaluating
from retain.recipes.base import Phase, Place
from retain.recipes.probe import LPFT
from retain.recipes.watching import Watching
from retain.seeds import seeded
from retain.tasks.batch import apply, first_samples

_ADAPTER = "retain"
"""What the adapters are called in their layers."""


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise RetainError(f"Adapters of low rank need the package peft: pip install 'retain[lora]' (it said: {error}).") from error
    return peft


def adapt(model: nn.Module, targets: Sequence[str], rank: int, alpha: float) -> None:
    """Put adapters into layers, in place; what requires a gradient goes on doing so, and the model answers as before.

    Args:
        model: The model.
        targets: The layers' names.
        rank: Of each adapter.
        alpha: Its scale times the rank.
    """
    peft = _peft()
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # a pattern for whole names: peft takes a list's names for ends of names
    pattern = "|".join(re.escape(name) for name in targets)
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern, bias="none"), model, _ADAPTER)
    for parameter, before in wanted:
        parameter.requires_grad_(before)


def unadapt(model: nn.Module, *, merge: bool = True) -> None:
    """Put the layers back that :func:`adapt` wrapped.

    Args:
        model: The model, in place.
        merge: Whether the adapters become part of the weights; otherwise they are dropped.
    """
    layer_type = _peft().tuners.lora.LoraLayer
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, layer_type):
            continue
        if merge:
            layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())
    vars(model).pop("peft_config", None)


def find_targets(place: Place, rank: int, alpha: float = 1.0) -> tuple[list[str], dict[str, str]]:
    """The layers that adapters of low rank can be put into, and merged exactly: linear layers and two-dimensional convolutions, the head apart.

    One pass of a few samples says which layers are used; each is then tried on a copy of its own.

    Args:
        place: Model, head and task.
        rank: Of the adapters.
        alpha: Their scale times the rank.

    Returns:
        The names, and the names of those left out with the reason.

    Raises:
        InputError: If the model has adapters already.
    """
    model, (batch, *_) = place.model, place.task.to(*_kind(place.model)).batches(2)
    lora = _peft().tuners.lora
    if any(isinstance(layer, lora.LoraLayer) for layer in model.modules()):
        raise InputError("model", "a model without adapters", "some of peft's", "Merge them first.")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d) and not place.in_head(name)}
    watching = Watching(list(layers), inputs=True)
    with torch.no_grad(), evaluating(model):
        watching.watch(model)
        apply(model, first_samples(batch, 2))
    inputs = watching.caught()
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    targets, left = [], {}
    for name, layer in layers.items():
        if not all(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
            reason = "its weights are frozen"
        elif any(owners[id(parameter)] > 1 for parameter in layer.parameters()):
            reason = "its weights have two places in the model"
        elif name not in inputs:
            reason = "the model answers without calling it"
        elif isinstance(layer, nn.Conv2d) and layer.groups > 1:
            reason = f"{layer.groups} groups: an adapter of all channels cannot be merged"
        else:
            reason = _tried(layer, inputs[name], rank, alpha)
        if reason:
            left[name] = reason
        else:
            targets.append(name)
    return targets, left


def _kind(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    anyone = next(model.parameters())
    return anyone.device, anyone.dtype


def _tried(layer: nn.Module, inputs: Tensor, rank: int, alpha: float) -> str:
    """Why a layer can't be adapted and merged; nothing if it can."""
    trial = nn.Sequential(copy(layer)).eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # what peft warns of shows in the answers
            adapt(trial, ["0"], rank, alpha)
            for name, parameter in trial.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
            adapted = trial(inputs)
            unadapt(trial)
            merged = trial(inputs)
    except (ValueError, TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
        return f"peft said: {str(error).splitlines()[0]}" if str(error) else f"peft raised {type(error).__name__}"
    same = adapted.shape == merged.shape and bool((adapted - merged).abs().max() <= 1e-3 * adapted.abs().max())
    return "" if same else "merged it answers differently"


class LoRA(LPFT):
    r"""Fine-tuning by adapters of low rank, through the library peft: :math:`W = W_0 + \frac{\alpha}{r} B A`, of which B and A are trained.

    Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang and Chen 2022, "LoRA: Low-Rank Adaptation of Large Language Models" (https://arxiv.org/abs/2106.09685),
    section 4.1. A is drawn and B starts at 0. All linear layers and two-dimensional convolutions before the head are adapted, but for those that can't be:
    grouped convolutions, frozen or shared weights, layers whose forward pass isn't called, and those that answer differently once merged. The head is
    trained whole, alone first; since B is 0 then, the adapters change nothing in that phase. Biases and normalisation layers stay as they are, batch-norm
    statistics too with ``batchnorm="freeze"``.

    After training the adapters are merged into the weights: the model has its own class and names again, and answers as it did with them. ``result.found``
    tells ``rank`` and ``alpha``, the names ``targets``, and ``left_out``: names with the reason. Needs ``pip install 'retain[lora]'``.

    Args:
        rank: r, of every adapter.
        alpha: Scale of the adapters, times the rank.
        boost: Factor of the learning rate while the adapters are trained: the change starts at 0, and its parts are small.
        penalty: Of the head that is fitted alone, see :class:`~retain.recipes.LinearProbe`.

    Raises:
        InputError: If a setting is out of range; on use, if there is nothing to adapt.
        RetainError: On use, if peft is not installed.

    Example:
        >>> import retain
        >>> from retain import models, tasks
        >>> result = retain.finetune(models.MLP(64, 32, 32, 10, seed=0), tasks.digits(), "lora", epochs=2)
        >>> result.found["targets"], result.parameters["trained"] < result.parameters["total"]
        (['layers.fc1', 'layers.fc2'], True)
    """

    name = "lora"
    summary = "the head, and adapters of low rank that are merged into the weights"
    citation = "hu2022lora"

    def __init__(self, rank: int = 8, alpha: float = 16.0, boost: float = 1.0, penalty: float | None = None) -> None:
        super().__init__(penalty)
        self.rank, self.alpha, self.boost = check_count("rank", rank), check_positive("alpha", alpha), check_positive("boost", boost)

    def start(self, place: Place) -> nn.Module:
        """The model as it is, if peft is there."""
        _peft()
        return place.model

    @contextmanager
    def during(self, place: Place) -> Iterator[dict[str, Any]]:
        """Adapters around all phases, merged at the end; if training fails they are dropped. Yields targets, what was left out, rank and scale."""
        with seeded(place.seed, "adapters"):
            targets, left = find_targets(place, self.rank, self.alpha)
            if not targets:
                found = f"nothing in {type(place.model).__name__}"
                raise InputError("recipe", f"something for '{self.name}' to adapt before the head", found, "Take 'linear-probe', or 'fine-tune'.")
            adapt(place.model, targets, self.rank, self.alpha)
        done, short = False, torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # torch's short cut through transformer layers reads weights past their adapters
        try:
            yield {"rank": self.rank, "alpha": self.alpha, "targets": targets, "left_out": left}
            done = True
        finally:
            torch.backends.mha.set_fastpath_enabled(short)
            unadapt(place.model, merge=done)

    def phases(self, place: Place) -> Sequence[Phase]:
        """The head, then head and adapters."""
        probe, _ = super().phases(place)
        return [probe, Phase("adapters", 1.0, lambda name: f".{_ADAPTER}." in name or place.in_head(name), self.boost)]

    def settings(self) -> dict[str, Any]:
        """Everything the recipe was made with."""
        return {"rank": self.rank, "alpha": self.alpha, "boost": self.boost, **super().settings()}
