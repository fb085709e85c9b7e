"""What is called the Fisher, five ways: how far each is from the exact one while an MLP learns MNIST, and what that does to EWC's strength.

    python bench/fishers.py [--data DIR] [--seeds N] [--no-strength]

MLP 784-256-256-10, SGD with momentum 0.9, lr 0.1, cosine to 0 over 10 epochs, batch 128, on all training images. Fresh and after epochs
1, 3 and 10 the diagonals are taken on the first 10,240 training images, as means over them: the label rules with ``retain.fisher``, the
squares of batches' mean gradients (true labels, shuffled, no batch left over) with plain torch. The last column is another network of the
same kind that has learned only the first 1,024 images, for 100 epochs, and is measured on those. "by formula" is what squares of means
should be: trace / B + (1 - 1/B) |mean gradient|^2, corrected for drawing without replacement. "drawn labels, x 32": they are drawn from
the model, and the square of the mean is multiplied by B. Empirical and predicted are taken on test images too, and drawn labels on 512
images 20 times.

The second part goes on from the model after epoch 10 to 10,240 images of Fashion-MNIST, the same ten outputs, 3 epochs, with the proximal
pull towards each of the diagonals, n = 60,000, and scores both tests; in the last column the strength is 300 divided by the diagonal's
trace ratio. Without the raw files the embedded images are used: 10,000 a task, and n is still 60,000. About five minutes a seed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retain
from retain import methods, models, tasks
from retain.beliefs import Belief, Diagonal
from retain.errors import InputError
from retain.training.recorder import Silent

EPOCHS = (1, 3, 10)
TRAINING: dict[str, Any] = {"batch_size": 128, "optimizer": "momentum", "lr": 0.1, "schedule": "cosine", "consolidate_last": False}
BATCHES = (1, 32, 128)
IMAGES = 10_240  # a multiple of the batches
FEW, REPEATS = 512, 20
SMALL, LONG = 1024, 100  # images and epochs of the network that fits to the end
FITTED = f"{SMALL:,} images x {LONG}"
STRENGTHS = (10, 100, 1e3, 1e4, 1e5, 1e6)
MATCHED = 300.0  # divided by the ratio of traces in the last column
OLD = 60_000
DRAWN = "mean of 32 squared, drawn labels, x 32"
Values = Mapping[str, Tensor]
Found = dict[str, dict[str, list[float]]]  # row, column, seeds


class Snapshots(Silent):
    """Copies of the model after some epochs."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.kept = model, {"fresh": models.copy(model)}

    def event(self, kind: str, **fields: Any) -> None:
        """Keep a copy, if it is an epoch's turn."""
        if kind == "epoch" and fields["epoch"] in EPOCHS:
            self.kept[f"epoch {fields['epoch']}"] = models.copy(self.model)


def flat(values: Values) -> Tensor:
    return torch.cat([v.flatten() for v in values.values()]).double()


def squared_means(model: nn.Module, x: Tensor, y: Tensor, size: int, seed: int) -> dict[str, Tensor]:
    """What many codes for EWC do: the gradient of a batch's mean loss, squared; the mean over batches."""
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    batches = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).split(size)
    for rows in batches:
        gradients = torch.autograd.grad(F.cross_entropy(model(x[rows]), y[rows]), list(parameters.values()))
        for sum_, g in zip(total.values(), gradients, strict=True):
            sum_ += g.square()
    return {name: sum_ / len(batches) for name, sum_ in total.items()}


def rank(v: Tensor) -> Tensor:
    return v.argsort().argsort().double()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def agreement(exact: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation over the weights whose exact value is not 0."""
    a, b = rank(exact[exact > 0]), rank(other[exact > 0])
    return cosine(a - a.mean(), b - b.mean())


def five(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> dict[str, Values]:
    found: dict[str, Values] = {
        "exact": retain.fisher(model, (x, y)),
        "sampled, 1 draw": retain.fisher(model, (x, y), "sampled", seed=seed),
        "sampled, 10 draws": retain.fisher(model, (x, y), "sampled", draws=10, seed=seed),
        "empirical": retain.fisher(model, (x, y), "empirical"),
        "predicted": retain.fisher(model, (x, y), "predicted"),
    }
    for size in BATCHES:
        found[f"mean of {size} squared"] = squared_means(model, x, y, size, seed)
    with torch.no_grad():
        drawn = torch.multinomial(model(x).softmax(1), 1, generator=torch.Generator().manual_seed(seed)).squeeze(1)
    found[DRAWN] = {name: 32 * v for name, v in squared_means(model, x, drawn, 32, seed).items()}
    return found


def by_formula(model: nn.Module, x: Tensor, y: Tensor, empirical: float, size: int) -> float:
    """Expected trace of the squared means of batches drawn without replacement."""
    gradient = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    mean = sum(float(g.double().square().sum()) for g in gradient)
    return mean + (empirical - mean) / size * (len(x) - size) / (len(x) - 1)


def note(where: Found, name: str, at: str, value: float) -> None:
    where.setdefault(name, {}).setdefault(at, []).append(value)


def compare(model: nn.Module, x: Tensor, y: Tensor, at: str, found: Mapping[str, Values], into: tuple[Found, Found, Found, Found, Found]) -> None:
    about, ratio, off, angle, ranks = into
    with torch.no_grad():
        p = model(x).softmax(1)
    exact, at_outputs, unsure = flat(found["exact"]), 1 - p.square().sum(1), p.amax(1) < 0.9
    note(about, "accuracy on these images, %", at, 100 * float((p.argmax(1) == y).double().mean()))
    note(about, "mean largest probability", at, float(p.amax(1).mean()))
    note(about, "images under 0.9, %", at, 100 * float(unsure.double().mean()))
    note(about, "their share of the outputs' Fisher, %", at, 100 * float(at_outputs[unsure].sum() / at_outputs.sum()))
    note(about, "trace of the exact Fisher", at, float(exact.sum()))
    empirical = float(flat(found["empirical"]).sum())
    for name in list(found)[1:]:
        other = flat(found[name])
        note(ratio, name, at, float(other.sum() / exact.sum()))
        note(angle, name, at, cosine(exact, other))
        note(ranks, name, at, agreement(exact, other))
    for size in BATCHES[1:]:
        note(off, f"empirical / mean of {size} squared", at, empirical / float(flat(found[f"mean of {size} squared"]).sum()))
        note(off, f"    by formula, {size}", at, empirical / by_formula(model, x, y, empirical, size))


def on_test(model: nn.Module, test: tuple[Tensor, Tensor], at: str, into: Found) -> None:
    exact = float(flat(retain.fisher(model, test)).sum())
    note(into, "empirical, test images", at, float(flat(retain.fisher(model, test, "empirical")).sum()) / exact)
    note(into, "predicted, test images", at, float(flat(retain.fisher(model, test, "predicted")).sum()) / exact)


def cell(values: Iterable[float], form: str = ".3g") -> str:
    some = list(values)
    return f"{statistics.mean(some):{form}} ({min(some):{form}}-{max(some):{form}})"


def table(title: str, rows: Mapping[str, list[str]], head: Iterable[object]) -> None:
    print(f"\n{title}\n{'':42}" + "".join(f"{h!s:>32}" for h in head))
    for name, cells in rows.items():
        print(f"{name:42}" + "".join(f"{c:>32}" for c in cells), flush=True)


def part(task: retain.Task, count: int, test: bool = False) -> tuple[Tensor, Tensor]:
    data: Any = task.test if test else task.data
    return data.inputs[:count], data.targets[:count]


def strengths(model: nn.Module, old: retain.Task, new: retain.Task, found: Mapping[str, Values], seed: int) -> dict[tuple[str, str], tuple[float, float]]:
    """Test accuracies on both tasks, in percent, after learning the new one."""
    x, y = part(new, IMAGES)
    stream = [old, retain.Task((x, y), test=new.test, id=new.id)]
    start, scores = retain.training.measure(model, stream), {}
    centre = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, values in found.items():
        ratio = float(flat(values).sum() / flat(found["exact"]).sum())
        for title, strength in {**{f"strength {s:g}": s for s in STRENGTHS}, f"{MATCHED:g} / ratio": MATCHED / ratio}.items():
            method = methods.EWC(strength, pull="proximal")
            method.belief = Belief(centre, Diagonal(dict(values)), n=OLD)
            result = retain.learn(models.copy(model), stream, method, after=start, epochs=3, seed=seed, **TRAINING)
            scores[name, title] = (100 * float(result.accuracy[-1, 0]), 100 * float(result.accuracy[-1, 1]))
    return scores


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--data", help="folder with MNIST/raw and FashionMNIST/raw")
    words.add_argument("--seeds", type=int, default=3)
    words.add_argument("--no-strength", action="store_true", help="leave out the second part")
    options = words.parse_args()
    torch.set_num_threads(1)
    try:
        old, new = (load(options.data) if options.data else load(embedded=True) for load in (tasks.mnist, tasks.fashion_mnist))
    except InputError as error:
        raise SystemExit(str(error)) from None
    (x, y), test = part(old, IMAGES), part(old, IMAGES, test=True)
    if len(x) % max(BATCHES):
        x, y = x[: -(len(x) % max(BATCHES))], y[: -(len(y) % max(BATCHES))]

    about: Found = {}
    ratio: Found = {}
    off: Found = {}
    held: Found = {}
    angle: Found = {}
    ranks: Found = {}
    few: dict[str, list[float]] = {}
    kept: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for seed in range(options.seeds):
        model, small = (models.MLP(784, 256, 256, 10, seed=seed) for _ in range(2))
        snapshots = Snapshots(model)
        retain.learn(model, [old], epochs=max(EPOCHS), seed=seed, recorder=snapshots, **TRAINING)
        found = {}
        for at, snapshot in snapshots.kept.items():
            found = five(snapshot, x, y, seed)
            compare(snapshot, x, y, at, found, (about, ratio, off, angle, ranks))
            on_test(snapshot, test, at, held)
        few_images = retain.Task((x[:SMALL], y[:SMALL]), test=test, id="few")
        retain.learn(small, [few_images], epochs=LONG, seed=seed, **TRAINING)
        compare(small, x[:SMALL], y[:SMALL], FITTED, five(small, x[:SMALL], y[:SMALL], seed), (about, ratio, off, angle, ranks))
        on_test(small, test, FITTED, held)
        exact = flat(retain.fisher(model, (x[:FEW], y[:FEW])))
        for draws, title in ((1, "1 draw"), (10, "10 draws")):
            for repeat in range(REPEATS):
                other = flat(retain.fisher(model, (x[:FEW], y[:FEW]), "sampled", draws=draws, seed=repeat))
                few.setdefault(f"trace, {title}", []).append(float(other.sum() / exact.sum()))
                few.setdefault(f"cosine, {title}", []).append(cosine(exact, other))
        if not options.no_strength:
            used = {name: found[name] for name in found if name not in ("mean of 1 squared", DRAWN)}
            for key, scores in strengths(model, old, new, used, seed).items():
                kept.setdefault(key, []).append(scores)
        print(f"seed {seed} done", flush=True)

    print(f"torch {torch.__version__}, {options.seeds} seeds, mean (least-most), {len(x)} images of {old.data.size} trained on")
    titles = {
        "the model": about,
        "trace / trace of exact": {**ratio, **held},
        "times too small against empirical": off,
        "cosine with exact": angle,
        "rank correlation with exact, where that is not 0": ranks,
    }
    for title, rows in titles.items():
        columns = list(next(iter(rows.values())))
        table(title, {name: [cell(by[at]) for at in columns] for name, by in rows.items()}, columns)
    table(f"sampled on {FEW} images after epoch {max(EPOCHS)}, {REPEATS} times a seed", {name: [cell(v)] for name, v in few.items()}, ["against exact"])
    for i, title in enumerate(("kept, MNIST %", "learned, Fashion-MNIST %", "mean of the two, %")):
        if not kept:
            break
        cells: dict[str, list[str]] = {}
        for (name, _), pairs in kept.items():
            cells.setdefault(name, []).append(cell([pair[i] if i < 2 else sum(pair) / 2 for pair in pairs], ".1f"))
        table(title, cells, dict.fromkeys(column for _, column in kept))


if __name__ == "__main__":
    main()
