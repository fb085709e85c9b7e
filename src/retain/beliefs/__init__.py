"""What n samples taught us: Gaussian beliefs over the weights, their algebra, and what a strength means."""

from retain.beliefs.belief import Belief, product
from retain.beliefs.blocks import Eigenbasis, Pairs
from retain.beliefs.diagonal import Diagonal, Identity
from retain.beliefs.full import Full
from retain.beliefs.kronecker import Kronecker, Layer
from retain.beliefs.lowrank import LowRankPlusDiagonal
from retain.beliefs.posterior import as_prior, from_posterior
from retain.beliefs.precision import Precision
from retain.beliefs.retention import Retention, RetentionLaw
from retain.beliefs.strength import strength_from_importance, strength_from_lambda

__all__ = [
    "Belief",
    "Diagonal",
    "Eigenbasis",
    "Full",
    "Identity",
    "Kronecker",
    "Layer",
    "LowRankPlusDiagonal",
    "Pairs",
    "Precision",
    "Retention",
    "RetentionLaw",
    "as_prior",
    "from_posterior",
    "product",
    "strength_from_importance",
    "strength_from_lambda",
]
