"""Adversarial noise: is a network that learned by a rule harder to mislead than the same network that learned by gradient descent?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from retain.models.assembly import Assembly
from retain.plasticity import learn_online
from retain.seeds import generator
from retain.studies.base import Keeper
from retain.studies.plasticity import gradient
from retain.studies.plasticity.common import inputs_of, target, tell
from retain.studies.plasticity.spec import PlasticitySpec
from retain.studies.plasticity.variants import rules, wide
from retain.studies.steps import once
from retain.training.recorder import Recorder

NETS = ("prepost-2", "averaged", "local-transport", "tuned-1", "tuned-2")


def stages(spec: PlasticitySpec) -> list[str]:
    """Network by network."""
    return [f"{name}@noise" for name in NETS]


def margin(net: Assembly, images: Tensor, labels: Tensor) -> Tensor:
    """How far each label's logit is above the largest other; unlike a likelihood it does not saturate, so no gradient is hidden by large weights."""
    logits = net(images)
    label = one_hot(labels, logits.shape[1]).bool()
    others: Tensor = logits.masked_fill(label, -torch.inf).amax(1)
    found: Tensor = logits.masked_select(label) - others
    return found


def attack(net: Assembly, images: Tensor, labels: Tensor, size: float, steps: int) -> Tensor:
    r"""Images in reach that lower the margin: :math:`x \leftarrow \Pi(x - \alpha\,\mathrm{sign}\,\nabla_x m)`, within ``size`` of each pixel and within [0, 1].

    One step of the whole size is the fast gradient sign method (Goodfellow, Shlens and Szegedy 2015, https://arxiv.org/abs/1412.6572); several of 2.5 size /
    steps are projected gradient descent (Madry et al. 2018, https://arxiv.org/abs/1706.06083), of which the images of the lowest margin are kept.

    Args:
        net: The network.
        images: ``[N, ...]`` in [0, 1].
        labels: ``[N]``.
        size: Largest change of a pixel.
        steps: Steps.

    Returns:
        The images.
    """
    low, high = (images - size).clamp(min=0), (images + size).clamp(max=1)
    length = size if steps == 1 else 2.5 * size / steps
    found, worst = images, torch.full((len(images),), torch.inf, dtype=net.input_weight.dtype)
    here = images
    for step in range(steps + 1):
        here = here.detach().requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            margins = margin(net, here, labels)
        better = margins.detach() < worst
        worst = worst.where(~better, margins.detach())
        found = here.detach().where(better.view(-1, *[1] * (images.ndim - 1)), found)
        if step < steps:
            (slope,) = torch.autograd.grad(margins.sum(), here)
            here = (here.detach() - length * slope.sign()).clamp(low, high)
    return found


def run(spec: PlasticitySpec, seed: int, keeper: Keeper) -> list[dict[str, Any]]:
    """Every network."""
    return [{"net": name, **once(keeper.recorder(f"{name}@noise"), _attacked, spec, name, seed)} for name in NETS]


def _attacked(spec: PlasticitySpec, name: str, seed: int, recorder: Recorder) -> dict[str, Any]:
    task = target(spec, "mnist", seed)
    layers = 2 if name.endswith("2") else 1

    def make() -> Assembly:
        return wide(spec, inputs_of(task), layers, spec.width, spec.cap / spec.width, seed)

    if name.startswith("tuned"):
        _, net = gradient.tuned(make, task, spec.rates, passes=spec.passes, seed=seed, every=0)
    else:
        net = make()
        learn_online(net, rules(spec, name, seed)[0], task, epochs=spec.passes, score_every=0, seed=seed)
    data: Any = task.test
    images, labels = data.inputs[: spec.attacked], data.targets[: spec.attacked]
    draws = generator(seed, "noise")
    accuracy: dict[str, list[float]] = {"random": [], "fgsm": [], "pgd": []}
    for size in spec.sizes:
        signs = 2.0 * torch.randint(0, 2, images.shape, generator=draws) - 1
        moved = {
            "random": (images + size * signs).clamp(0, 1),
            "fgsm": attack(net, images, labels, size, 1),
            "pgd": attack(net, images, labels, size, spec.pgd_steps),
        }
        with torch.no_grad():
            for kind, values in moved.items():
                accuracy[kind].append(float((net(values).argmax(1) == labels).double().mean()))
        tell(recorder, f"size {size:g}", len(accuracy["pgd"]), len(spec.sizes), math.nan, **{kind: values[-1] for kind, values in accuracy.items()})
    return {"sizes": list(spec.sizes), **accuracy}
