"""What the loop costs beside a bare one: one epoch of MNIST, 784-256-10, batch 32, SGD, in one process and on one thread.

    python bench/loop.py [--data DIR] [--rounds N]

The bare loop slices tensors and does nothing else. Every round times each variant on 60,000 images in turn, in CPU seconds; the
figures are medians over rounds of the ratio to the bare loop of the same round. Without the raw files the embedded 10,000 images
are repeated six times: the work is the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import retain
from retain import methods, models, tasks
from retain.errors import InputError


def data(folder: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        task = tasks.mnist(folder) if folder else tasks.mnist(embedded=True)
    except InputError as error:
        raise SystemExit(str(error)) from None
    times = 60_000 // task.n
    return task.data.inputs.repeat(times, 1, 1, 1), task.data.targets.repeat(times)


def bare(model: nn.Module, x: torch.Tensor, y: torch.Tensor, fused: bool) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=fused)
    model.train()
    total = torch.zeros(())
    for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(32):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        total += loss.detach()


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--data", help="folder with MNIST/raw")
    words.add_argument("--rounds", type=int, default=5)
    options = words.parse_args()
    torch.set_num_threads(1)
    x, y = data(options.data)
    tiny = (x[:32], y[:32])  # scoring is not what is timed
    start = models.MLP(784, 256, 10, seed=0)

    def ours(method: methods.Method) -> Callable[[], object]:
        task = retain.Task((x, y), test=tiny, id="mnist")
        method.consolidate(start, retain.Task((x[:2000], y[:2000]), n=60_000))
        return lambda: retain.learn(models.copy(start), [task], method, batch_size=32, optimizer="sgd", lr=1e-3, consolidate_last=False)

    variants: dict[str, Callable[[], object]] = {
        "bare loop": lambda: bare(models.copy(start), x, y, fused=True),
        "bare loop, optimiser not fused": lambda: bare(models.copy(start), x, y, fused=False),
        "learn, plain": ours(methods.Plain()),
        "learn, EWC, gradient": ours(methods.EWC(1.0)),
        "learn, EWC, proximal": ours(methods.EWC(1.0, pull="proximal")),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.rounds + 1):
        for name, run in variants.items():
            begin = time.process_time()
            run()
            seconds[name].append(time.process_time() - begin)
    print(f"torch {torch.__version__}, {options.rounds} rounds after a warm-up, CPU time on one thread, 60,000 images")
    print(f"{'':32}{'seconds':>9}{'ratio':>8}{'range':>16}")
    for name, found in seconds.items():
        ratios = [a / b for a, b in zip(found[1:], seconds["bare loop"][1:], strict=True)]
        print(f"{name:32}{statistics.median(found[1:]):9.2f}{statistics.median(ratios):8.2f}{min(ratios):10.2f}-{max(ratios):.2f}")


if __name__ == "__main__":
    main()
