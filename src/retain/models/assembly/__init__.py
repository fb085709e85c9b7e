"""Assemblies: random graphs of rate units of which few fire, learned by local plasticity rules."""

from retain.models.assembly.base import Activity, Assembly, kcap
from retain.models.assembly.feedforward import FeedForwardAssembly
from retain.models.assembly.recurrent import RecurrentAssembly

__all__ = ["Activity", "Assembly", "FeedForwardAssembly", "RecurrentAssembly", "kcap"]
