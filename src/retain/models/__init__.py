"""What learns. Any ``nn.Module`` works; these are the ones that the studies use."""

from retain.models.conv import Conv
from retain.models.mlp import MLP
from retain.models.parameters import copy, named_parameters, unwrap

__all__ = ["MLP", "Conv", "copy", "named_parameters", "unwrap"]
