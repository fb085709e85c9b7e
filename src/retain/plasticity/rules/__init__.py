"""Plasticity rules: how a weight changes by what is known at its two ends."""

import torch

from retain.plasticity.rules.base import Rule
from retain.plasticity.rules.counts import PostCount, PrePostCount, PrePostPercent
from retain.plasticity.rules.local import LocalRule
from retain.plasticity.rules.network import NetworkRule
from retain.plasticity.rules.prepost import PrePost
from retain.plasticity.rules.table import Table
from retain.plasticity.rules.tablerule import TABLES, TableRule

FAMILIES: dict[str, type[Rule]] = {kind.family: kind for kind in (TableRule, LocalRule)}
PERCEPTRON = torch.tensor([[0.0, 0.0], [1.0, -1.0]], dtype=torch.float64)
"""The output table that, on mistakes and for label and predicted unit only, is the perceptron of what fired."""

__all__ = [
    "FAMILIES",
    "PERCEPTRON",
    "TABLES",
    "LocalRule",
    "NetworkRule",
    "PostCount",
    "PrePost",
    "PrePostCount",
    "PrePostPercent",
    "Rule",
    "Table",
    "TableRule",
]
