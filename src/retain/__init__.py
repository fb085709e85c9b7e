"""Retain carries what a model has learned to the next task, dataset or architecture, and measures what it kept.

Public names are loaded when they are first used, so ``import retain`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = (
    "beliefs",
    "curvature",
    "diagnosis",
    "figures",
    "likelihoods",
    "merging",
    "methods",
    "metrics",
    "models",
    "paths",
    "plasticity",
    "recipes",
    "runs",
    "studies",
    "tasks",
    "training",
)
_NAMES = {
    "Belief": "beliefs",
    "Result": "training",
    "Task": "tasks",
    "attach": "training",
    "diagnose": "diagnosis",
    "evaluate": "training",
    "finetune": "recipes",
    "fisher": "curvature",
    "learn": "training",
    "learn_online": "plasticity",
    "load": "training",
    "measure": "training",
    "meta_learn": "plasticity",
    "predict": "training",
    "save": "training",
    "traverse": "paths",
}

__all__ = [
    "Belief",
    "Result",
    "Task",
    "attach",
    "beliefs",
    "curvature",
    "diagnose",
    "diagnosis",
    "evaluate",
    "figures",
    "finetune",
    "fisher",
    "learn",
    "learn_online",
    "likelihoods",
    "load",
    "measure",
    "merging",
    "meta_learn",
    "methods",
    "metrics",
    "models",
    "paths",
    "plasticity",
    "predict",
    "recipes",
    "runs",
    "save",
    "studies",
    "tasks",
    "training",
    "traverse",
]

if TYPE_CHECKING:
    from retain import (
        beliefs,
        curvature,
        diagnosis,
        figures,
        likelihoods,
        merging,
        methods,
        metrics,
        models,
        paths,
        plasticity,
        recipes,
        runs,
        studies,
        tasks,
        training,
    )
    from retain.beliefs import Belief
    from retain.curvature import fisher
    from retain.diagnosis import diagnose
    from retain.paths import traverse
    from retain.plasticity import learn_online, meta_learn
    from retain.recipes import finetune
    from retain.tasks import Task
    from retain.training import Result, attach, evaluate, learn, load, measure, predict, save


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"retain.{_NAMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"retain.{name}")
    raise AttributeError(f"module 'retain' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
