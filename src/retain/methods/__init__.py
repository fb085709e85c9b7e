"""What is carried from task to task: one contract, one method a file."""

from retain.methods.agem import AGEM
from retain.methods.base import Method, Plain
from retain.methods.compose import compose
from retain.methods.coreset import CoresetVCL
from retain.methods.derpp import DERpp
from retain.methods.er import ER
from retain.methods.ewc import EWC
from retain.methods.generative import GenerativeReplay
from retain.methods.icarl import ICaRL
from retain.methods.l2sp import L2SP
from retain.methods.laplace import StructuredLaplace
from retain.methods.lwf import LwF
from retain.methods.mas import MAS
from retain.methods.newton_vcl import NewtonVCL
from retain.methods.online_ewc import OnlineEWC
from retain.methods.quadratic import Quadratic
from retain.methods.rwalk import RWalk
from retain.methods.separate import SeparateNetworks
from retain.methods.si import SI
from retain.methods.ssr import SSR
from retain.methods.vcl import VCL
from retain.methods.weighting import Blundell, NoDivergence, OverBatches, PerSample, WarmUp, Weighting
from retain.methods.xdg import XdG

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        *(Plain, EWC, OnlineEWC, StructuredLaplace, SSR, SI, MAS, RWalk, L2SP, LwF, ER, AGEM, DERpp, GenerativeReplay, VCL, CoresetVCL, NewtonVCL),
        *(ICaRL, XdG, SeparateNetworks),
    )
}

__all__ = [
    "AGEM",
    "DERpp",
    "ER",
    "EWC",
    "L2SP",
    "MAS",
    "METHODS",
    "Blundell",
    "CoresetVCL",
    "GenerativeReplay",
    "ICaRL",
    "LwF",
    "Method",
    "NewtonVCL",
    "NoDivergence",
    "OnlineEWC",
    "OverBatches",
    "PerSample",
    "Plain",
    "Quadratic",
    "RWalk",
    "SI",
    "SSR",
    "SeparateNetworks",
    "StructuredLaplace",
    "VCL",
    "WarmUp",
    "Weighting",
    "XdG",
    "compose",
]
