"""The experiments: each a question, a specification with presets, a run, and what it says.

Names are looked up without importing torch; :func:`find` loads the study itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from retain.errors import InputError, nearest

if TYPE_CHECKING:
    from retain.studies.base import Study

_STUDIES = {
    "forgetting": "retain.studies.forgetting:Forgetting",
    "bayes": "retain.studies.bayes:BayesStudy",
    "path": "retain.studies.path:PathStudy",
    "plasticity": "retain.studies.plasticity:PlasticityStudy",
    "finetune": "retain.studies.finetune:FinetuneStudy",
    "benchmark": "retain.studies.benchmark:BenchmarkStudy",
}
SUMMARIES = {
    "forgetting": "MNIST, then Fashion-MNIST: how much of the first survives, with and without elastic weight consolidation",
    "bayes": "digits 0-4, then 5-9: the posterior over the weights becomes the next prior",
    "path": "a dense network becomes a sparse one, step by step: which way loses the least information",
    "plasticity": "a rule of plasticity, learned on a synthetic task, carried to MNIST: how much does it learn there",
    "finetune": "a pretrained and an untrained network learn a few images a class: what helps, and what of the start is it",
    "benchmark": "methods of continual learning in three scenarios, with error bars, beside what papers report",
}


def names() -> list[str]:
    """The studies there are."""
    return list(_STUDIES)


def find(name: str) -> Study:
    """A study by name.

    Args:
        name: Its name.

    Returns:
        The study.

    Raises:
        InputError: If there is none of this name.
    """
    if name not in _STUDIES:
        raise InputError("study", "a study's name", repr(name), nearest(name, _STUDIES))
    module, attribute = _STUDIES[name].split(":")
    study: Study = getattr(importlib.import_module(module), attribute)()
    return study
