"""Tasks from photographs: a folder per class, and Flowers-102."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retain.errors import InputError, RetainError, check_count, check_share, nearest
from retain.seeds import generator
from retain.tasks.data import Data
from retain.tasks.images import Channels, ImageData, check_storage, statistics
from retain.tasks.task import Task

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_PARTS = {"data": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
_FLOWERS = ("jpg", "imagelabels.mat", "setid.mat")
Files = list[tuple[Path, int]]
Progress = Callable[[int, int], None]


@dataclass
class _Reader:
    """Reads pictures as squares of bytes, and remembers which could not be read."""

    size: int
    mean: Channels | None
    std: Channels | None
    crop: float
    interpolation: str
    broken: str
    storage: str
    progress: Progress | None
    skipped: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_count("size", self.size)
        check_storage(self.storage)
        statistics(self.mean, self.std, 3)
        if check_share("crop", self.crop) == 0:
            raise InputError("crop", "a share of the shorter side above 0", self.crop)
        if self.broken not in ("raise", "skip"):
            raise InputError("broken", "'raise' or 'skip'", repr(self.broken))
        if self.interpolation not in ("bilinear", "bicubic"):
            raise InputError("interpolation", "'bilinear' or 'bicubic'", repr(self.interpolation), nearest(str(self.interpolation), ("bilinear", "bicubic")))

    def square(self, path: Path) -> Tensor:
        """One picture, ``[3, size, size]``: the middle square, resized with antialiasing."""
        from PIL import Image, ImageOps

        try:
            with Image.open(path) as opened:
                if opened.mode.startswith(("I", "F")):
                    raise ValueError(f"pixels of mode {opened.mode}; only pictures of 8 bits are read")
                # a JPEG of twice that or more is decoded at a half, a quarter or an eighth: three times as fast, within half a level of 255 on average
                opened.draft(None, (round(3 * self.size / self.crop),) * 2)
                upright = ImageOps.exif_transpose(opened)
                # a palette with transparency loses it in two steps, or Pillow warns
                picture = (upright.convert("RGBA") if "transparency" in upright.info else upright).convert("RGB")
        except MemoryError:
            raise
        except Exception as error:  # decoders of damaged files raise whatever they like
            found = "an empty file" if path.is_file() and path.stat().st_size == 0 else f"one that cannot be decoded ({error})"
            raise InputError(f"image {path}", "a picture", found, "Remove it, or pass broken='skip'.") from error
        side = self.crop * min(picture.size)
        left, top = ((length - side) / 2 for length in picture.size)
        kind = Image.Resampling.BICUBIC if self.interpolation == "bicubic" else Image.Resampling.BILINEAR
        small = picture.resize((self.size, self.size), kind, box=(left, top, left + side, top + side))
        return torch.from_numpy(np.array(small)).permute(2, 0, 1)

    def read(self, files: Files, names: Sequence[str], per_class: int | None, done: int, total: int) -> tuple[Data, int]:
        """All pictures in order, or the first ``per_class`` of each class, and how many are done by then."""
        counts = dict.fromkeys((label for _, label in files), 0)
        wanted = len(files) if per_class is None else per_class * len(counts)
        images = torch.empty(wanted, 3, self.size, self.size, dtype=torch.uint8)
        labels: list[int] = []
        failed = len(self.skipped)
        for path, label in files:
            if counts[label] == per_class:
                continue
            try:
                images[len(labels)] = self.square(path)
            except InputError:
                if self.broken == "raise":
                    raise
                self.skipped.append(path)
                continue
            labels.append(label)
            counts[label] += 1
            if self.progress is not None:
                self.progress(done + len(labels) + (len(self.skipped) - failed if per_class is None else 0), total)
        for label, count in counts.items():
            if count == 0 or (per_class is not None and count < per_class):
                raise InputError(f"class '{names[label]}'", f"{per_class or 'at least 1'} pictures that can be read", count)
        data = ImageData(images[: len(labels)], torch.tensor(labels), self.mean, self.std)
        return data.tensors() if self.storage == "float" else data, done + wanted

    def task(self, parts: dict[str, Files], names: Sequence[str], per_class: int | None, id: str, note: str) -> Task:
        sizes = {part: len(files) for part, files in parts.items()}
        if per_class is not None:
            sizes["data"] = min(sizes["data"], per_class * len({label for _, label in parts["data"]}))
        done = 0
        made: dict[str, Any] = {}
        for part, files in parts.items():
            made[part], done = self.read(files, names, per_class if part == "data" else None, done, sum(sizes.values()))
        if self.skipped:
            few = ", ".join(path.name for path in self.skipped[:3]) + (", ..." if len(self.skipped) > 3 else "")
            note = f"{note} Skipped {len(self.skipped)} broken image{'s' * (len(self.skipped) > 1)}: {few}.".strip()
        return Task(made.pop("data"), **made, classes=tuple(range(len(names))), class_names=tuple(names), id=id, note=note)


class _Line:
    """Progress on one line of a terminal, for whoever waits longer than a moment."""

    def __init__(self, id: str) -> None:
        self.id, self.next, self.shown = id, time.monotonic() + 2, False

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() > self.next or (self.shown and done == total):
            sys.stderr.write(f"\r{self.id}: {done:,} of {total:,} images read" + "\n" * (done == total))
            sys.stderr.flush()
            self.next, self.shown = time.monotonic() + 0.5, True


def folder(
    path: str | Path,
    *,
    size: int = 128,
    per_class: int | None = None,
    test: float = 0.2,
    validation: float = 0.1,
    mean: Channels | None = None,
    std: Channels | None = None,
    crop: float = 1.0,
    interpolation: str = "bilinear",
    seed: int = 0,
    broken: str = "raise",
    storage: str = "float",
    progress: Progress | None = None,
) -> Task:
    r"""Photographs of your own: a folder for each class, named after it, with its pictures inside.

    The middle square of each picture is resized to ``size`` x ``size`` with antialiasing; values are
    :math:`(x/255 - \mathrm{mean})/\mathrm{std}`. Every class is split by itself, by seed and file names alone. Where the folder holds
    ``train`` and perhaps ``test`` and ``val``, with the classes inside, that split is taken and only what is missing is drawn from
    ``train``. Pictures stand one of each class in turn, so the first few of them are of all classes.

    Args:
        path: The folder.
        size: Pixels a side.
        per_class: Training pictures of each class, the rest of the training part is not read; ``None`` is all. Nested: with one seed, the 5 are among the 10.
        test: Share of each class for testing; 0 is no test set.
        validation: Share of each class to make choices on; 0 is none.
        mean: Subtracted, a number or one a channel; ``None`` is 0. The preprocessing that :func:`retain.models.pretrained` returns can be
            passed as ``**preprocessing``: size, mean, std, crop and interpolation.
        std: Divided by; ``None`` is 1.
        crop: Share of the shorter side that the middle square has.
        interpolation: ``bilinear`` or ``bicubic``.
        seed: Of split and choice.
        broken: ``raise`` at a picture that cannot be decoded, or ``skip`` it: the task's ``note`` says how many and which.
        storage: ``float``: tensors of 12 ``size``^2 bytes a picture (786 MB for 4,000 of 128 pixels); ``bytes``: an
            :class:`~retain.tasks.ImageData` of a quarter of that, normalised batch by batch to the same bits.
        progress: Called after each picture with how many are read and how many there are; by default a line on a terminal after two seconds.

    Returns:
        The task, with the folders' names as class names, in order.

    Raises:
        InputError: If it is no such folder, has fewer than two classes, an empty one, one too small for the split, or a broken picture.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from retain import tasks
        >>> place = Path(tempfile.mkdtemp())
        >>> for kind in ("green", "red"):
        ...     (place / kind).mkdir()
        ...     for number in range(10):
        ...         Image.new("RGB", (30 + number, 40), kind).save(place / kind / f"{number}.png")
        >>> task = tasks.folder(place, size=32, per_class=5)
        >>> task.n, task.test.size, task.class_names, task.data.shape
        (10, 4, ('green', 'red'), (3, 32, 32))
    """
    root = Path(path)
    if per_class is not None:
        check_count("per_class", per_class)
    for name, share in (("test", test), ("validation", validation)):
        check_share(name, share)
    if not root.is_dir():
        raise InputError("path", "a folder with a folder for each class", f"{'a file' if root.exists() else 'nothing'} at {root}")
    id = root.resolve().name
    reader = _Reader(size, mean, std, crop, interpolation, broken, storage, progress or _line(id))
    given = {part: root / name for part, options in _PARTS.items() for name in reversed(options) if (root / name).is_dir()}
    inside = "data" in given and any(_classes(given["data"]))
    names = [entry.name for entry in _classes(given["data"] if inside else root)]
    if len(names) < 2:
        found = f"only '{names[0]}'" if names else ("pictures without folders" if _pictures(root, deep=False) else "no folder")
        raise InputError("path", f"a folder for each of at least two classes in {root}", found, "Sort the pictures into folders named after their classes.")
    by_part: dict[str, list[list[Path]]] = {"data": []}
    shares = {part: share for part, share in (("validation", validation), ("test", test)) if share and not (inside and part in given)}
    for name in names:
        parts = _shared(_filled((given["data"] if inside else root) / name), name, shares, seed)
        for part, files in parts.items():
            by_part.setdefault(part, []).append(files)
    for part in ("validation", "test"):
        if inside and part in given:
            place = given[part]
            others = [entry.name for entry in _classes(place)]
            if not others:
                raise InputError("path", f"a folder for each class in {place}", "none", f"Remove {place} or fill it.")
            if strange := sorted(set(others) - set(names)):
                what = f"class '{strange[0]}' in {place}"
                raise InputError(what, "a folder of the same name among the training pictures", "none", nearest(strange[0], names))
            by_part[part] = [_filled(place / name) if name in others else [] for name in names]
    if per_class is not None:
        name, files = min(zip(names, by_part["data"], strict=True), key=lambda pair: len(pair[1]))
        if len(files) < per_class:
            raise InputError("per_class", f"at most {len(files)}, the training pictures of class '{name}'", per_class)
    note = f"Split by us, a class at a time, with seed {seed}." if shares else ""
    return reader.task({part: _in_turn(lists) for part, lists in by_part.items()}, names, per_class, id, note)


def flowers102(
    data: str | Path | None = None,
    *,
    size: int = 128,
    per_class: int | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
    crop: float = 1.0,
    interpolation: str = "bilinear",
    seed: int = 0,
    broken: str = "raise",
    storage: str = "float",
    progress: Progress | None = None,
) -> Task:
    """Photographs of 102 flowers in their official split: 1,020 for training, 1,020 for validation, 6,149 for testing.

    Nilsback and Zisserman 2008, "Automated Flower Classification over a Large Number of Classes"
    (https://www.robots.ox.ac.uk/~vgg/data/flowers/102/). Read through torchvision, which needs scipy: ``pip install 'retain[images]'``.

    Args:
        data: A folder with ``flowers-102`` as torchvision lays it out; by default the folder in the environment variable RETAIN_DATA,
            and without one a cache in the home directory, to which torchvision downloads 345 MB.
        size: Pixels a side.
        per_class: Training pictures of each class, of 10; ``None`` is all.
        mean: See :func:`folder`, as for all that follows.
        std: Divided by.
        crop: Share of the shorter side that the middle square has.
        interpolation: ``bilinear`` or ``bicubic``.
        seed: Of the choice of ``per_class`` pictures.
        broken: ``raise`` or ``skip``.
        storage: ``float`` (1.6 GB at 128 pixels) or ``bytes``.
        progress: Called after each picture.

    Returns:
        The task, with validation and test set.

    Raises:
        InputError: If the folder lacks a file.
        RetainError: If the download fails, files are damaged, or scipy is missing.
    """
    if per_class is not None:
        check_count("per_class", per_class)
    reader = _Reader(size, mean, std, crop, interpolation, broken, storage, progress or _line("flowers102"))
    given = data or os.environ.get("RETAIN_DATA")
    root = Path(given) if given else Path.home() / ".cache" / "retain"
    base = root / "flowers-102"
    missing = [name for name in _FLOWERS if not (base / name).exists()]
    if given and missing:
        found = f"{len(missing)} of {len(_FLOWERS)} missing" if root.exists() else "no such folder"
        hint = "Point data or RETAIN_DATA at a folder in torchvision's layout, or at none to download."
        raise InputError("data", f"{base / missing[0]}", found, hint)
    try:
        import scipy  # noqa: F401  # torchvision reads the labels with it
    except ModuleNotFoundError as error:
        raise RetainError("Flowers-102 keeps its labels in MATLAB files: pip install 'retain[images]' brings scipy, which reads them.") from error
    from torchvision.datasets import Flowers102

    parts: dict[str, Files] = {}
    names = tuple(getattr(Flowers102, "classes", None) or (str(number) for number in range(1, 103)))
    for part, split in (("data", "train"), ("validation", "val"), ("test", "test")):
        try:
            source = Flowers102(root, split=split, download=bool(missing))
        except (RuntimeError, OSError) as error:
            raise RetainError(
                f"Flowers-102 could not be {'downloaded to' if missing else 'read from'} {base} ({error}). Put 102flowers.tgz (unpacked: jpg), "
                f"imagelabels.mat and setid.mat from https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ there."
            ) from error
        lists: list[list[Path]] = [[] for _ in names]
        for file, label in zip(source._image_files, source._labels, strict=True):
            lists[label].append(Path(file))
        if part == "data":
            lists = [_drawn(files, name, seed) for files, name in zip(lists, names, strict=True)]
        parts[part] = _in_turn(lists)
    return reader.task(parts, names, per_class, "flowers102", "")


def _classes(root: Path) -> list[Path]:
    return sorted((entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__"))), key=lambda entry: entry.name)


def _pictures(root: Path, *, deep: bool = True) -> list[Path]:
    files = (file for file in (root.rglob("*") if deep else root.iterdir()) if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    return sorted(files, key=lambda file: file.relative_to(root).as_posix())


def _filled(place: Path) -> list[Path]:
    files = _pictures(place)
    if not files:
        raise InputError(f"class '{place.name}'", f"pictures in {place} ({', '.join(SUFFIXES[:3])}, ...)", "none", "Remove the folder or fill it.")
    return files


def _drawn(files: list[Path], name: str, seed: int) -> list[Path]:
    """The files in random order; another class more or less leaves it as it was."""
    return [files[i] for i in torch.randperm(len(files), generator=generator(seed, f"split:{name}")).tolist()]


def _shared(files: list[Path], name: str, shares: dict[str, float], seed: int) -> dict[str, list[Path]]:
    order = _drawn(files, name, seed)
    parts: dict[str, list[Path]] = {"data": []}
    for part, share in shares.items():
        count = max(1, round(share * len(files)))
        parts[part], order = sorted(order[:count]), order[count:]
    if not order:
        wanted = f"more pictures than the {len(files)} that {' and '.join(shares)} take"
        raise InputError(f"class '{name}'", wanted, len(files), "Add pictures, or lower the shares.")
    return parts | {"data": order}


def _in_turn(lists: list[list[Path]]) -> Files:
    """One file of each class in turn, until all are used."""
    return [(path, label) for _, label, path in sorted((place, label, path) for label, files in enumerate(lists) for place, path in enumerate(files))]


def _line(id: str) -> Progress | None:
    return _Line(id) if sys.stderr.isatty() else None
