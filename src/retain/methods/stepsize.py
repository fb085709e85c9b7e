"""The metric an optimiser steps in, for proximal steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from retain.errors import RetainError


def step_sizes(optimizer: Optimizer, parameters: list[torch.nn.Parameter]) -> list[Tensor | float]:
    r"""The inverse metric :math:`H^{-1}` of every parameter: how far one unit of lasting gradient moves it.

    Plain SGD steps by lr, momentum beta in the long run by lr / (1 - beta) (times one minus the dampening), Adam and AdamW by
    :math:`\text{lr} / (\sqrt{\hat v} + \epsilon)`. A proximal step in the Euclidean metric instead would weaken the pull under Adam by
    :math:`\sqrt{\hat v}`, a factor of about 1000.

    Args:
        optimizer: SGD, Adam or AdamW, after its step.
        parameters: Parameters of that optimiser.

    Returns:
        A number or a tensor of the parameter's shape for each.

    Raises:
        RetainError: If the optimiser is of another kind, or does not own a parameter.
    """
    owner = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    sizes: list[Tensor | float] = []
    for parameter in parameters:
        group = owner.get(id(parameter))
        if group is None:
            sizes.append(0.0)  # not trained by this optimiser, so it has not moved
        elif isinstance(optimizer, torch.optim.SGD) and not group.get("maximize"):
            lasting = (1 - group["dampening"]) / (1 - group["momentum"]) if 0 < group["momentum"] < 1 else 1.0
            sizes.append(float(group["lr"]) * lasting)
        elif isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) and not group.get("maximize"):
            state = optimizer.state[parameter]
            if not state:
                sizes.append(0.0)  # no gradient has reached it yet
                continue
            square = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
            corrected = square / (1 - group["betas"][1] ** float(state["step"]))
            sizes.append(float(group["lr"]) / (corrected.sqrt_() + group["eps"]))
        else:
            raise RetainError(
                f"optimizer: expected SGD, Adam or AdamW (minimising) for a proximal pull, found {type(optimizer).__name__}, whose "
                "metric is not known. Use pull='gradient', which works with every optimiser."
            )
    return sizes
