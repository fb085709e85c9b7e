"""What inference costs when the next layer reads active units only, beside the dense network: one process, one thread.

    python bench/sparse.py [--rounds N]

Networks of three hidden layers of equal width and random weights, inputs of 784. Columns: the dense network with ReLU; the same with
top-K gates, computed densely; and after ``skip_inactive``. Times are CPU seconds of a forward pass, medians over rounds of the ratio of the
dense network to each in the same round: above 1 is faster than dense. The first layer sees all of its inputs and is dense in all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from retain import models


def seconds(model: nn.Module, x: torch.Tensor, passes: int) -> float:
    start = time.process_time()
    with torch.inference_mode():
        for _ in range(passes):
            model(x)
    return (time.process_time() - start) / passes


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--rounds", type=int, default=7)
    rounds = words.parse_args().rounds
    torch.set_num_threads(1)
    print(f"{'width':>6} {'K':>4} {'K/n':>6} {'batch':>6} {'dense ms':>9} {'gates, dense':>13} {'skip_inactive':>14} {'range':>12}")
    for width in (512, 1024, 4096):
        dense = models.MLP(784, width, width, width, 10, seed=0).eval()
        for K in sorted({5, 10, width // 100, width // 20}):
            gated = models.sparsify(dense, K)
            fast = models.skip_inactive(gated)
            for batch in (1, 256):
                x = torch.rand(batch, 784)
                with torch.inference_mode():
                    assert torch.allclose(fast(x), gated(x), atol=1e-4)
                passes = max(3, round(0.1 / seconds(dense, x, 3)))
                found: dict[str, list[float]] = {"dense": [], "gated": [], "fast": []}
                for _ in range(rounds):
                    for name, model in (("dense", dense), ("gated", gated), ("fast", fast)):
                        found[name].append(seconds(model, x, passes))
                ratios = {name: [a / b for a, b in zip(found["dense"], found[name], strict=True)] for name in ("gated", "fast")}
                print(
                    f"{width:6d} {K:4d} {K / width:6.1%} {batch:6d} {1000 * statistics.median(found['dense']):9.3f} "
                    f"{statistics.median(ratios['gated']):13.2f} {statistics.median(ratios['fast']):14.2f} "
                    f"{min(ratios['fast']):5.2f}-{max(ratios['fast']):5.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
