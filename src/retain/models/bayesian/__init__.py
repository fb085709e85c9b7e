"""Layers whose weights are distributions, their priors, and how far the two are apart."""

from retain.models.bayesian.base import LOGVAR, BayesianLayer, Estimator, bayesian_layers, sampling
from retain.models.bayesian.convert import bayesian, put_prior, set_prior
from retain.models.bayesian.convolution import BayesianConv1d, BayesianConv2d
from retain.models.bayesian.coupling import CouplingFlows, Flow, ZukoFlows
from retain.models.bayesian.divergence import add_kl_gradient, broken, kl, kl_by_layer
from retain.models.bayesian.embedding import BayesianEmbedding
from retain.models.bayesian.flows import PlanarFlows
from retain.models.bayesian.linear import BayesianLinear
from retain.models.bayesian.multiplicative import Auxiliary, MultiplicativeLinear
from retain.models.bayesian.priors import GaussianPrior, Prior, ScaleMixture
from retain.models.bayesian.pruning import prune, signal_to_noise

__all__ = [
    "LOGVAR",
    "Auxiliary",
    "BayesianConv1d",
    "BayesianConv2d",
    "BayesianEmbedding",
    "BayesianLayer",
    "BayesianLinear",
    "CouplingFlows",
    "Estimator",
    "Flow",
    "GaussianPrior",
    "MultiplicativeLinear",
    "PlanarFlows",
    "Prior",
    "ScaleMixture",
    "ZukoFlows",
    "add_kl_gradient",
    "bayesian",
    "bayesian_layers",
    "broken",
    "kl",
    "kl_by_layer",
    "prune",
    "put_prior",
    "sampling",
    "set_prior",
    "signal_to_noise",
]
