"""What learns. Any ``nn.Module`` works; these are the ones that the studies use."""

from retain.models.assembly import Activity, Assembly, FeedForwardAssembly, RecurrentAssembly, kcap
from retain.models.bayesian import (
    BayesianConv1d,
    BayesianConv2d,
    BayesianEmbedding,
    BayesianLinear,
    CouplingFlows,
    Flow,
    GaussianPrior,
    MultiplicativeLinear,
    PlanarFlows,
    ScaleMixture,
    ZukoFlows,
    bayesian,
    kl,
    prune,
    sampling,
    set_prior,
    signal_to_noise,
)
from retain.models.conv import Conv
from retain.models.ensemble import Ensemble
from retain.models.gates import Gate, SoftmaxThreshold, TopK
from retain.models.heads import features, find_head, replace_head
from retain.models.mixture import Mixture
from retain.models.mlp import MLP
from retain.models.parameters import copy, named_parameters, unwrap
from retain.models.pretrained import Preprocessing, load_weights, pretrained, read_weights
from retain.models.resnet import ResNet
from retain.models.sparse import ActiveLinear, calibrate, skip_inactive, sparsify
from retain.models.vae import VAE

__all__ = [
    "MLP",
    "ActiveLinear",
    "Activity",
    "Assembly",
    "BayesianConv1d",
    "BayesianConv2d",
    "BayesianEmbedding",
    "BayesianLinear",
    "Conv",
    "CouplingFlows",
    "Ensemble",
    "FeedForwardAssembly",
    "Flow",
    "Gate",
    "GaussianPrior",
    "Mixture",
    "MultiplicativeLinear",
    "PlanarFlows",
    "Preprocessing",
    "RecurrentAssembly",
    "ResNet",
    "ScaleMixture",
    "SoftmaxThreshold",
    "TopK",
    "VAE",
    "ZukoFlows",
    "bayesian",
    "calibrate",
    "copy",
    "features",
    "find_head",
    "kcap",
    "kl",
    "load_weights",
    "named_parameters",
    "pretrained",
    "prune",
    "read_weights",
    "replace_head",
    "sampling",
    "set_prior",
    "signal_to_noise",
    "skip_inactive",
    "sparsify",
    "unwrap",
]
