"""What is carried from task to task: one contract, one method a file."""

from retain.methods.base import Method, Plain
from retain.methods.ewc import EWC
from retain.methods.l2sp import L2SP
from retain.methods.laplace import StructuredLaplace
from retain.methods.quadratic import Quadratic

METHODS: dict[str, type[Method]] = {method.name: method for method in (Plain, EWC, L2SP, StructuredLaplace)}

__all__ = ["EWC", "L2SP", "METHODS", "Method", "Plain", "Quadratic", "StructuredLaplace"]
