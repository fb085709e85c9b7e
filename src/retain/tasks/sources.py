"""Tasks with real data: MNIST, Fashion-MNIST, digits, and arrays of your own."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retain.errors import InputError, RetainError
from retain.likelihoods import Likelihood
from retain.tasks.data import TensorData
from retain.tasks.stored import StoredData
from retain.tasks.task import Task

FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DIGIT_CLASSES = tuple(str(digit) for digit in range(10))
OWN_SPLIT = (
    "Fashion-MNIST is split here into training and test images by us, because our source pooled them: figures are comparable "
    "with published ones only to about half a point."
)
# The order of the official training labels: tells the published split from one of our own.
_OFFICIAL_FASHION_START = [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
_RAW_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def mnist(data: str | Path | None = None, *, embedded: bool = False) -> Task:
    """Handwritten digits (LeCun, Cortes and Burges, CC BY-SA 3.0): 60,000 training and 10,000 test images.

    Inputs ``[N, 1, 28, 28]`` in [0, 1], kept as bytes and made a batch at a time, targets the digits.

    Args:
        data: A folder with ``MNIST/raw``; by default the folder in the environment variable RETAIN_DATA, and without one a
            cache in the home directory, to which torchvision downloads.
        embedded: Use the 10,000 + 2,000 images that come with Retain, even by class; no network is needed.

    Returns:
        The task, with test set and class names.

    Raises:
        InputError: If the folder lacks a file.
        RetainError: If the download fails.
    """
    return _images("mnist", "MNIST", DIGIT_CLASSES, data, embedded)


def fashion_mnist(data: str | Path | None = None, *, embedded: bool = False) -> Task:
    """Articles of clothing (Xiao, Rasul and Vollgraf 2017, https://arxiv.org/abs/1708.07747, MIT licence), in MNIST's format.

    Args:
        data: A folder with ``FashionMNIST/raw``; see :func:`mnist`.
        embedded: Use the 10,000 + 2,000 images that come with Retain.

    Returns:
        The task. Its ``note`` says so where the split is not the published one.

    Raises:
        InputError: If the folder lacks a file.
        RetainError: If the download fails.
    """
    task = _images("fashion", "FashionMNIST", FASHION_CLASSES, data, embedded)
    if not embedded and task.data.targets[:10].tolist() == _OFFICIAL_FASHION_START:
        object.__setattr__(task, "note", "")
    return task


def digits() -> Task:
    """The 8x8 digits of scikit-learn (UCI optical digits, Alpaydin and Kaynak 1998, CC BY 4.0), which come with Retain.

    Inputs ``[N, 1, 8, 8]`` in [0, 1]; the first 1,437 are for training and the last 360 for testing.

    Returns:
        The task.
    """
    stored = _embedded("digits")
    images, labels = torch.from_numpy(stored["images"]).float().unsqueeze(1) / 16, torch.from_numpy(stored["labels"]).long()
    cut = 1437
    return Task(
        TensorData(images[:cut], labels[:cut]),
        test=TensorData(images[cut:], labels[cut:]),
        id="digits",
        class_names=DIGIT_CLASSES,
    )


def arrays(inputs: Any, targets: Any, *, test: Any = None, likelihood: Likelihood | None = None, id: str = "arrays") -> Task:
    """Arrays or tensors of your own as a task.

    Args:
        inputs: One row a sample.
        targets: One row a sample.
        test: A pair of the same for testing.
        likelihood: Classification by default; ``Gaussian(sigma)`` for regression.
        id: The task's name.

    Returns:
        The task.

    Example:
        >>> import numpy as np
        >>> from retain import likelihoods, tasks
        >>> x = np.linspace(-1, 1, 50)[:, None]
        >>> tasks.arrays(x, 2 * x, likelihood=likelihoods.Gaussian(sigma=0.1), id="line")
        Task('line', n=50, likelihood=Gaussian(sigma=0.1))
    """
    options: dict[str, Any] = {} if likelihood is None else {"likelihood": likelihood}
    return Task((inputs, targets), test=test, id=id, **options)


def _embedded(name: str) -> dict[str, Any]:
    with (resources.files("retain.tasks") / "embedded" / f"{name}.npz").open("rb") as file:
        return dict(np.load(file, allow_pickle=False))


def _images(id: str, folder: str, names: tuple[str, ...], data: str | Path | None, embedded: bool) -> Task:
    note = OWN_SPLIT if id == "fashion" else ""
    if embedded:
        stored = {key: torch.from_numpy(value) for key, value in _embedded(id).items()}
        parts = [(stored[f"{part}_images"], stored[f"{part}_labels"]) for part in ("train", "test")]
        note = f"Embedded subset: 10,000 training and 2,000 test images. {note}".strip()
    else:
        parts = [_read(folder, data, train) for train in (True, False)]
    train, test = (StoredData(images.unsqueeze(1), labels.long()) for images, labels in parts)
    return Task(train, test=test, id=id, class_names=names, note=note)


def _read(folder: str, data: str | Path | None, train: bool) -> tuple[Tensor, Tensor]:
    given = data or os.environ.get("RETAIN_DATA")
    root = Path(given) if given else Path.home() / ".cache" / "retain"
    raw = root / folder / "raw"
    missing = [name for name in _RAW_FILES if not (raw / name).exists()]
    if given and missing:
        raise InputError(
            "data",
            f"the file {raw / missing[0]}",
            f"{len(missing)} of {len(_RAW_FILES)} files missing" if root.exists() else "no such folder",
            "Point --data or RETAIN_DATA at a folder in torchvision's layout, or use the embedded subset.",
        )
    from torchvision import datasets  # slow to import, and not needed for embedded data

    try:
        source = getattr(datasets, folder)(root, train=train, download=bool(missing))
    except (RuntimeError, OSError) as error:
        raise RetainError(
            f"{folder} could not be downloaded to {root} ({error}). Put its raw files into {raw} and pass --data {root} "
            "(or set RETAIN_DATA), or use the embedded subset."
        ) from error
    return source.data, source.targets
