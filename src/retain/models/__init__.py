"""What learns. Any ``nn.Module`` works; these are the ones that the studies use."""

from retain.models.conv import Conv
from retain.models.ensemble import Ensemble
from retain.models.gates import Gate, SoftmaxThreshold, TopK
from retain.models.mixture import Mixture
from retain.models.mlp import MLP
from retain.models.parameters import copy, named_parameters, unwrap
from retain.models.resnet import ResNet
from retain.models.sparse import ActiveLinear, calibrate, skip_inactive, sparsify

__all__ = [
    "MLP",
    "ActiveLinear",
    "Conv",
    "Ensemble",
    "Gate",
    "Mixture",
    "ResNet",
    "SoftmaxThreshold",
    "TopK",
    "calibrate",
    "copy",
    "named_parameters",
    "skip_inactive",
    "sparsify",
    "unwrap",
]
