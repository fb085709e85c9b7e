"""What a sample costs that is learned by a rule: compiled code beside a plain loop in torch, and the published row from beginning to end.

    python bench/plasticity.py [--data DIR] [--rounds N] [--only WORD]

Width 100, p 0.5, cap 50, double precision, one pass over MNIST in which every sample changes the plastic weights; one process, one thread, CPU seconds.
The plain loop is what a person would write: for each sample the product with the input weights, topk (with its own order of ties), and updates of the
blocks of edges whose ends are in the same states. It and the torch reference see fewer samples, since their cost is the same for each. Figures are medians
over rounds of samples a CPU second and of the ratio to the plain loop of the same round. Runs side by side count every run's samples. The kernel alone
starts from the first layer's product of matrices; end to end includes it. Without the raw files the embedded 10,000 images are repeated six times: the work
is the same.

The last table is the published experiment: five rules learned on a halfspace (50 epochs, fixed input weights), then five passes over MNIST, each scored on
validation and test data every 500 samples.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numba
import torch
from torch import Tensor

import retain
from retain import models, tasks
from retain.errors import InputError
from retain.plasticity import TableRule
from retain.plasticity.compiled import Compiled
from retain.plasticity.trace import present

PLAIN = 1500  # samples of the plain loop and of the reference
SIDE_BY_SIDE = 64


def data(folder: str | None) -> retain.Task:
    try:
        return tasks.mnist(folder) if folder else tasks.mnist(embedded=True)
    except InputError as error:
        raise SystemExit(str(error)) from None


@dataclass(frozen=True)
class Setting:
    """A network and a rule for it."""

    name: str
    make: Callable[[], models.FeedForwardAssembly | models.RecurrentAssembly]
    table: str = "prepost"

    def fresh(self) -> tuple[models.FeedForwardAssembly | models.RecurrentAssembly, TableRule]:
        """The network, and its rule of random numbers."""
        net = self.make()
        rule = TableRule.fit(net, self.table, seed=0)
        draws = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in rule.parameters():
                p.copy_(torch.randn(p.shape, generator=draws))
        return net, rule


SETTINGS = [
    Setting("PrePost, 2 layers", lambda: models.FeedForwardAssembly(784, 10, layers=2)),
    Setting("PrePostCount, 4 layers", lambda: models.FeedForwardAssembly(784, 10, layers=4), "prepostcount"),
    Setting("PrePost, recurrent, 2 rounds", lambda: models.RecurrentAssembly(784, 10, rounds=2)),
]


def topk(values: Tensor, cap: int) -> tuple[Tensor, Tensor]:
    kept, index = values.relu().topk(cap)
    rates, fired = torch.zeros_like(values), torch.zeros_like(values, dtype=torch.bool)
    rates[index], fired[index] = kept, True
    return rates, fired


def change(weight: Tensor, mask: Tensor, pre: Tensor, post: Tensor, table: Tensor, count: bool) -> None:
    """Add a table's number to every edge, a block for each pair of states."""
    counted = (mask[:, pre == 1].sum(1) if count else torch.zeros_like(post)).long()
    for s in range(table.shape[0]):
        for p in range(table.shape[1]):
            rows, columns = (post == p).nonzero()[:, :1], (pre == s).nonzero()[:, 0]
            weight[rows, columns] += mask[rows, columns] * (0.01 * table[s, p][counted[rows]])


def plain(net: models.FeedForwardAssembly | models.RecurrentAssembly, rule: TableRule, x: Tensor, y: Tensor) -> None:
    """The loop that a person would write."""
    cap, counting = net.cap or net.width, rule.kind == "prepostcount"
    everywhere = torch.ones(10, net.width, dtype=torch.bool)
    with torch.no_grad():
        first = net.input_weight * net.input_mask
        tables = [table.clone() for table in rule.tables(net)]
        hidden, out = [torch.zeros(net.width, net.width, dtype=torch.float64) for _ in net.hidden], torch.zeros(10, net.width, dtype=torch.float64)
        for sample, label in zip(x, y.tolist(), strict=True):
            current = first @ sample.flatten().double()
            rates, fired = topk(current, cap)
            if isinstance(net, models.RecurrentAssembly):
                history = fired.long()
                for _ in range(net.rounds):
                    rates, fired = topk(hidden[0] @ (rates + current), cap)
                    history = 2 * history + fired
                pre, post = [history], [history]
            else:
                pre = [fired.long()]
                for weight in hidden:
                    rates, fired = topk(weight @ rates, cap)
                    pre.append(fired.long())
                history, post = pre[-1], pre[1:]
            _ = (out @ rates).argmax()
            for weight, mask, before, after, table in zip(hidden, net.masks, pre, post, tables, strict=False):
                if table.shape[0] == 2:
                    change(weight, mask, before, after, table, counting)
                else:  # sixty-four pairs of histories: one look-up for all edges
                    weight += mask * (0.01 * table[before[None, :], after[:, None], 0])
            column = torch.ones(10, dtype=torch.long)
            column[label] = 0
            change(out, everywhere, history, column, tables[-1], counting)


def reference(net: models.FeedForwardAssembly | models.RecurrentAssembly, rule: TableRule, current: Tensor, labels: Tensor, runs: int) -> None:
    """Our own definition in torch, of several runs side by side."""
    weights = [weight.detach().expand(runs, -1, -1) for weight in net.plastic]
    masks = [mask.expand(runs, -1, -1) for mask in [*net.masks, torch.ones_like(net.output_weight, dtype=torch.bool)]]
    with torch.no_grad():
        present(net, rule, weights, masks, current.expand(runs, -1, -1), labels.expand(runs, -1))


def rates(setting: Setting, x: Tensor, y: Tensor, rounds: int) -> dict[str, list[float]]:
    """Samples a CPU second of each way, by round."""
    net, rule = setting.fresh()
    with torch.no_grad():
        current = net.current(x)
    few = max(20, PLAIN // SIDE_BY_SIDE)

    def end_to_end() -> None:
        with torch.no_grad():
            Compiled(net, rule).present(net.current(x), y)

    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "a plain loop in torch": (PLAIN, lambda: plain(net, rule, x[:PLAIN], y[:PLAIN])),
        "compiled, the kernel": (len(x), lambda: Compiled(net, rule).present(current, y)),
        "compiled, end to end": (len(x), end_to_end),
        "torch reference, 1 run": (PLAIN, lambda: reference(net, rule, current[:PLAIN], y[:PLAIN], 1)),
        f"torch reference, {SIDE_BY_SIDE} runs": (few * SIDE_BY_SIDE, lambda: reference(net, rule, current[:few], y[:few], SIDE_BY_SIDE)),
    }
    Compiled(net, rule).present(current[:10], y[:10])  # compile
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, (samples, run) in ways.items():
            begin = time.process_time()
            run()
            found[name].append(samples / (time.process_time() - begin))
    return {name: values[1:] for name, values in found.items()}


def row(task: retain.Task) -> None:
    """The published row of PrePost with two layers, five runs."""
    mnist = task.hold_out(5000 if task.n == 60_000 else 1000, torch.Generator().manual_seed(0))
    times = 60_000 // task.n
    mnist = replace(mnist, data=(mnist.data.inputs.repeat(times, 1, 1, 1), mnist.data.targets.repeat(times)), n=0)
    begin, learned, spent = time.process_time(), [], []
    for seed in range(5):
        net = models.FeedForwardAssembly(16, 2, layers=2, seed=seed)
        rule = TableRule.fit(net, seed=seed)
        up = retain.meta_learn(rule, tasks.halfspace(16, seed=seed), net, epochs=50, input_lr=None, double_softmax=True, seed=seed)
        learned.append((rule, up.final("test")))
    spent.append(time.process_time() - begin)
    print(f"\nthe published row: five rules, 50 epochs of a halfspace each, then {mnist.n:,} samples of MNIST, scored every 500")
    print(f"{'seed':>4}{'halfspace %':>13}{'MNIST test %':>14}{'CPU s':>8}{'of them learning':>18}")
    for seed, (rule, before) in enumerate(learned):
        start = time.process_time()
        net = models.FeedForwardAssembly(784, 10, layers=2, seed=100 + seed)
        found = retain.learn_online(net, rule, mnist, score_every=500, seed=seed)
        spent.append(time.process_time() - start)
        print(f"{seed:4}{100 * before:13.1f}{100 * found.final():14.1f}{spent[-1]:8.1f}{found.seconds:18.2f}")
    print(f"{sum(spent):.1f} CPU seconds, {spent[0]:.1f} of them for the five rules")


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--data", help="folder with MNIST/raw")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--only", default="", help="settings whose name has this in it; the last table is called 'row'")
    options = words.parse_args()
    torch.set_num_threads(1)
    task = data(options.data)
    times = 60_000 // task.n
    order = torch.randperm(times * task.n, generator=torch.Generator().manual_seed(0))
    x, y = task.data.inputs.repeat(times, 1, 1, 1)[order], task.data.targets.repeat(times)[order]
    print(f"torch {torch.__version__}, numba {numba.__version__}, {options.rounds} rounds after a warm-up, CPU time on one thread, {len(x):,} images")
    for setting in SETTINGS:
        if options.only not in setting.name:
            continue
        found = rates(setting, x, y, options.rounds)
        base = found["a plain loop in torch"]
        print(f"\n{setting.name:32}{'samples/s':>12}{'range':>20}{'ratio':>9}{'range':>16}")
        for name, values in found.items():
            ratios = [a / b for a, b in zip(values, base, strict=True)]
            reach, between = f"{min(values):,.0f}-{max(values):,.0f}", f"{min(ratios):.1f}-{max(ratios):.1f}"
            print(f"{name:32}{statistics.median(values):12,.0f}{reach:>20}{statistics.median(ratios):9.1f}{between:>16}")
    if options.only in "row":
        row(task)


if __name__ == "__main__":
    main()
