"""Trees of tensors and plain values in one safetensors file, written whole or not at all; and save and load on top."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from retain.beliefs import Belief
from retain.errors import InputError, RetainError
from retain.models.parameters import unwrap

SCHEMA = 1


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: under a temporary name, synced, renamed.

    Raises:
        RetainError: If the disk is full or read-only; the old file, if there was one, is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RetainError(
            f"{path} could not be written: {error.strerror or error}. Nothing that was there is lost; free some space or choose another folder."
        ) from error


def write_tree(path: Path, tree: Mapping[str, Any]) -> None:
    """Write nested dicts and lists of tensors and plain values as one safetensors file; the structure is JSON in its header.

    Args:
        path: The file.
        tree: Dicts (keys are strings or whole numbers), lists, tuples (read back as lists), tensors, numbers, strings, ``None``.

    Raises:
        InputError: If a value is of another kind.
        RetainError: If the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}

    def describe(value: Any, where: str) -> Any:
        if isinstance(value, Tensor):
            # a copy each: safetensors refuses memory that is shared
            name = str(len(tensors))
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"items": [[key, describe(entry, f"{where}/{key}")] for key, entry in value.items()]}
        if isinstance(value, list | tuple):
            return [describe(entry, f"{where}/{i}") for i, entry in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise InputError(f"state at {where}", "tensors, numbers, strings, dicts and lists", type(value).__name__)

    skeleton = describe(tree, "")
    # one entry: safetensors writes several in no fixed order, and equal states are to be equal files
    write_file(path, to_bytes(tensors, metadata={"retain": json.dumps({"schema": SCHEMA, "tree": skeleton})}))


def read_tree(path: Path) -> dict[str, Any]:
    """Read what :func:`write_tree` wrote. Nothing is unpickled.

    Args:
        path: The file.

    Returns:
        The tree, tensors on the CPU.

    Raises:
        InputError: If there is no such file, or it is not one of ours.
    """
    try:
        with safe_open(path, "pt") as file:
            header = dict(json.loads((file.metadata() or {}).get("retain", "{}")))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError("file", f"a stored file {path}", "nothing there") from error
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise InputError("file", f"a safetensors file at {path}", f"something else ({error})") from error
    if header.get("schema") != SCHEMA:
        raise InputError("schema", f"{SCHEMA} in {path}", header.get("schema", "none"), "It was written by another version of retain.")

    def build(value: Any) -> Any:
        if isinstance(value, dict):
            if "tensor" in value:
                return tensors[value["tensor"]]
            return {key: build(entry) for key, entry in value["items"]}
        if isinstance(value, list):
            return [build(entry) for entry in value]
        return value

    try:
        tree: dict[str, Any] = build(header["tree"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("file", f"a whole file at {path}", f"a damaged one ({error!r})", "Remove it.") from error
    return tree


def save(folder: str | Path, model: nn.Module, belief: Belief | None = None, spec: Mapping[str, Any] | None = None) -> Path:
    """Keep a model, what it is sure of, and how it came about, in one folder.

    ``model.safetensors`` holds the model's state alone, so anything that reads safetensors can read it; ``belief.safetensors``
    and ``spec.json`` are written where given.

    Args:
        folder: The folder; made if missing.
        model: Any module.
        belief: A belief, such as ``method.belief``.
        spec: Plain values.

    Returns:
        The folder.

    Raises:
        InputError: If the spec holds something that JSON cannot.
        RetainError: If the folder cannot be written.

    Example:
        >>> import tempfile, retain
        >>> model = retain.models.MLP(4, 2, seed=0)
        >>> folder = retain.save(tempfile.mkdtemp(), model, spec={"sizes": [4, 2]})
        >>> spec, belief = retain.load(folder, retain.models.MLP(4, 2, seed=1))
        >>> spec["sizes"], belief
        ([4, 2], None)
    """
    target = Path(folder)
    weights = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in unwrap(model).state_dict().items()}
    try:
        text = json.dumps({**(spec or {}), "schema": SCHEMA}, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError("spec", "plain values that JSON can hold", str(error)) from error
    write_file(target / "model.safetensors", to_bytes(weights))
    if belief is not None:
        write_tree(target / "belief.safetensors", belief.state_dict())
    else:
        (target / "belief.safetensors").unlink(missing_ok=True)  # one of another model would mislead
    write_file(target / "spec.json", text.encode())
    return target


def load(folder: str | Path, model: nn.Module) -> tuple[dict[str, Any], Belief | None]:
    """Fill a model with what :func:`save` kept.

    Args:
        folder: The folder.
        model: A module of the same architecture, filled in place.

    Returns:
        The spec, and the belief or ``None``.

    Raises:
        InputError: If the folder holds no model, or one of another shape.
    """
    source = Path(folder)
    path = source / "model.safetensors"
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError("folder", f"a file {path}", "nothing there", "Pass a folder that retain.save wrote.") from error
    except (SafetensorError, OSError) as error:
        raise InputError("folder", f"a safetensors file at {path}", f"something else ({error})") from error
    model = unwrap(model)
    own = model.state_dict()
    replaced = _replaced(model, weights)
    for name in (name for name in {**own, **weights} if not name.startswith(replaced)):
        here, there = (tuple(found[name].shape) if name in found else None for found in (own, weights))
        if here != there:
            raise InputError(
                f"'{name}'",
                f"shape {there} as stored in {path}" if there else "no such parameter, as none is stored",
                here or "no such parameter",
                "Build the model as it was saved.",
            )
    specification, stored = source / "spec.json", source / "belief.safetensors"
    try:
        spec: dict[str, Any] = json.loads(specification.read_text()) if specification.exists() else {}
        belief = Belief.from_state_dict(read_tree(stored)) if stored.exists() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("folder", f"a spec and a belief that can be read in {source}", f"a damaged file ({error})") from error
    model.load_state_dict(weights)  # last: a damaged folder leaves the model as it was
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return spec, None if belief is None else belief.to(device)


def _replaced(model: nn.Module, stored: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What the state's names start with where a module takes over whatever was stored: a prior that has become another one since."""
    found = (f"{name}.{part}".lstrip(".") for name, module in model.named_modules() for part in getattr(module, "replaced_on_load", ()))
    return tuple(start for start in found if any(name.startswith(start) for name in stored))
