"""Plasticity: learn how to learn on a synthetic task, and carry the rule to another data set, size and depth."""

from retain.plasticity.cards import load_rule, save_rule
from retain.plasticity.meta import MetaResult, meta_learn
from retain.plasticity.online import OnlineResult, learn_online
from retain.plasticity.rules import PERCEPTRON, TABLES, LocalRule, NetworkRule, PostCount, PrePost, PrePostCount, PrePostPercent, Rule, Table, TableRule

__all__ = [
    "PERCEPTRON",
    "TABLES",
    "LocalRule",
    "MetaResult",
    "NetworkRule",
    "OnlineResult",
    "PostCount",
    "PrePost",
    "PrePostCount",
    "PrePostPercent",
    "Rule",
    "Table",
    "TableRule",
    "learn_online",
    "load_rule",
    "meta_learn",
    "save_rule",
]
