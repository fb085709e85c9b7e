"""Plasticity: learn how to learn on a synthetic task, and carry the rule to another data set, size and depth."""

from retain.plasticity.cards import load_rule, save_rule
from retain.plasticity.evolution import EvolutionResult, evolve
from retain.plasticity.families import draw_tasks, image_like
from retain.plasticity.meta import MetaResult, meta_learn
from retain.plasticity.online import OnlineResult, learn_online
from retain.plasticity.rules import PERCEPTRON, TABLES, LocalRule, NetworkRule, PostCount, PrePost, PrePostCount, PrePostPercent, Rule, Table, TableRule
from retain.plasticity.shipped import learned, learned_names

__all__ = [
    "PERCEPTRON",
    "TABLES",
    "EvolutionResult",
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
    "draw_tasks",
    "evolve",
    "image_like",
    "learn_online",
    "learned",
    "learned_names",
    "load_rule",
    "meta_learn",
    "save_rule",
]
