"""A model that another run has trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from retain.errors import InputError
from retain.training import load


def load_start(spec: Any, seed: int, model: nn.Module, name: str) -> None:
    """Fill the model with what a run of the study kept of this seed under ``name``, or with one that ``retain.save`` kept.

    Args:
        spec: The study's settings; ``start`` is the folder.
        seed: Of the run.
        model: Filled in place.
        name: That the run kept it under.

    Raises:
        InputError: If there is none, or it may have been trained on images that are held out here.
    """
    folder = Path(spec.start or "")
    if not (folder / "model.safetensors").exists():
        stored = json.loads((folder / "spec.json").read_text())["settings"] if (folder / "spec.json").exists() else {}
        for key in ("validation", "embedded"):
            if stored.get(key) != getattr(spec, key):  # else images held out here may have been trained on there
                raise InputError(
                    "--from", f"a run with {key}={getattr(spec, key)}", f"{key}={stored.get(key)} in {folder}", f"Pass --set {key}={stored.get(key)}."
                )
        folder = folder / f"seed-{seed}" / name
        if not (folder / "model.safetensors").exists():
            raise InputError("--from", f"a run with a model '{name}' of seed {seed}", f"none in {folder}", "Pass fewer --seeds.")
    load(folder, model)
