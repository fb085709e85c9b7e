"""Gradient descent on the same networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from retain.models.assembly import Assembly
from retain.plasticity.compiled import Compiled, available
from retain.plasticity.losses import loss_of
from retain.seeds import generator
from retain.tasks import Task


def answers(net: Assembly, task: Task, part: str) -> float:
    """The share of a part's samples that a network answers correctly."""
    data: Any = task.get(part)
    with torch.no_grad():
        if not available():
            return float((torch.cat([net(rows).argmax(1) for rows in data.inputs.split(5000)]) == data.targets).double().mean())
        return float((torch.from_numpy(Compiled(net).answer(net.current(data.inputs))) == data.targets).double().mean())


def descend(
    net: Assembly, task: Task, parameters: list[nn.Parameter], *, lr: float, batch: int, passes: int, seed: int, every: int, double: bool
) -> dict[str, Any]:
    """Adam on a network's weights, in place; accuracies every so many samples, or at the ends with ``every=0``.

    Args:
        net: The network.
        task: Its data.
        parameters: What is trained.
        lr: Learning rate.
        batch: Samples a step.
        passes: Over the data.
        seed: Of their order.
        every: Samples between two scores.
        double: A softmax inside the loss's.

    Returns:
        Plain values, as :func:`~retain.studies.plasticity.common.record` makes them.
    """
    data: Any = task.data
    adam = torch.optim.Adam(parameters, lr=lr)
    found: dict[str, Any] = {"samples": [], "updates": [], "validation": [], "test": [], "diverged": 0}
    seen, steps, due = 0, 0, every

    def score() -> None:
        found["samples"].append(seen)
        found["updates"].append(steps)
        for part in ("validation", "test"):
            found[part].append(answers(net, task, part))

    score()
    for epoch in range(passes):
        for rows in torch.randperm(len(data.targets), generator=generator(seed, "order", epoch)).split(batch):
            adam.zero_grad()
            loss_of(net(data.inputs[rows]), data.targets[rows], double_softmax=double).backward()
            adam.step()
            seen, steps = seen + len(rows), steps + 1
            if every and seen >= due:
                score()
                due += every
    if found["samples"][-1] != seen:
        score()
    return found


def published(net: Assembly, task: Task, *, passes: int, seed: int, every: int) -> dict[str, Any]:
    """As the notebook meant it: batches of 256, rate 0.005, a double softmax; its hidden matrices, in a plain list, do not learn."""
    with torch.no_grad():
        net.input_weight.copy_(torch.rand(net.input_weight.shape, generator=generator(seed, "initialisation"), dtype=net.input_weight.dtype) - 0.5)
    return descend(net, task, [net.input_weight, net.output_weight], lr=0.005, batch=256, passes=passes, seed=seed, every=every, double=True)


def scaled(net: Assembly) -> None:
    """Put a network at a start from which gradient descent works: every unit's sum of a variance of about 1."""
    draws = generator(net.seed, "plastic")
    with torch.no_grad():
        net.input_weight.div_((net.inputs * net.p) ** 0.5)
        for weight, share in [*((hidden, net.p) for hidden in net.hidden), (net.output_weight, 1.0)]:
            fan = share * (net.cap or net.width)
            weight.copy_(torch.randn(weight.shape, generator=draws, dtype=weight.dtype) / fan**0.5)


def tuned(make: Callable[[], Assembly], task: Task, rates: tuple[float, ...], *, passes: int, seed: int, every: int) -> tuple[dict[str, Any], Assembly]:
    """Adam on all weights, batches of 100, at the rate that is best on the validation images.

    Args:
        make: Makes the network anew.
        task: Its data.
        rates: Learning rates.
        passes: Over the data.
        seed: Of their order.
        every: Samples between two scores, at the best rate.

    Returns:
        Plain values, with the rate and what each rate reached on the validation images; and the network that the best rate made.
    """

    def trained(rate: float, every: int) -> tuple[dict[str, Any], Assembly]:
        net = make()
        scaled(net)
        return descend(net, task, list(net.parameters()), lr=rate, batch=100, passes=passes, seed=seed, every=every, double=False), net

    tried = [trained(rate, 0)[0]["validation"][-1] for rate in rates]
    rate = rates[max(range(len(rates)), key=tried.__getitem__)]
    found, net = trained(rate, every)
    return {"rate": rate, "tried": tried, **found}, net
