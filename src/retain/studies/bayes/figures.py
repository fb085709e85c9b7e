"""What the posterior study shows: its sentence, tables and figures, from the plain results of its seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from retain.figures import Bars, Figure, Lines, Matrices, Series, Table
from retain.metrics import Estimate, average_accuracy, backward_transfer, estimate
from retain.studies.bayes.spec import BayesSpec

Results = Sequence[dict[str, Any]]
Shown = tuple[list[Table], list[Figure]]
ARMS = {
    "scratch": "from scratch",
    "weights": "weights only",
    "posterior": "posterior as prior",
    "exact": "posterior as prior, untempered",
    "ewc": "EWC",
}
HEADS = {"separate": "separate heads", "shared": "one head of five outputs"}
CHAINED = {"vcl": "VCL", "exact": "VCL, untempered", "coreset": "VCL with coreset", "ewc": "EWC", "plain": "plain"}
SCHEMES = {
    "per-sample": "KL / N: the bound",
    "blundell": "Blundell's",
    "warm-up": "warm-up",
    "none": "none: the likelihood alone",
    "over-batches": "1 / M on a batch's mean (the notebook's)",
}
NETS = {"plain": "plain network", "gaussian": "Bayesian, Gaussian prior", "mixture": "Bayesian, scale mixture", "ensemble": "deep ensemble"}
COLORS = {"vcl": 2, "exact": 3, "coreset": 5, "ewc": 4, "plain": 6}  # in streams, with those of the same method among the arms
STREAMS = {"rotation": "Rotated digits", "permuted": "Permuted pixels", "split": "Pairs of digits"}
WHICH = {"rotation": "", "permuted": "", "split": "; 1 is the pair 0 and 1, 2 the pair 2 and 3, and so on"}


def _entry(result: dict[str, Any], part: str, **which: Any) -> dict[str, Any]:
    """One run of one seed."""
    found: dict[str, Any] = next(e for e in result[part] if all(e[key] == value for key, value in which.items()))
    return found


def _of(results: Results, part: str, pick: Callable[[dict[str, Any]], float], **which: Any) -> Estimate:
    return estimate(pick(_entry(r, part, **which)) for r in results)


def _end(task: int) -> Callable[[dict[str, Any]], float]:
    """Accuracy at the end: with the draws that stand behind a final answer, where there are any."""
    return lambda e: float((e.get("sampled") or e["rows"][-1])[task])


def first_epoch(entry: dict[str, Any]) -> float:
    """Accuracy on the new task after one epoch of it."""
    return float(list(entry["history"][0]["accuracy"].values())[1])


def epochs_to_share(entry: dict[str, Any], share: float = 0.95) -> float:
    """Epochs until the new task's accuracy is a share of its last."""
    course = [list(epoch["accuracy"].values())[1] for epoch in entry["history"]]
    return float(next(i + 1 for i, value in enumerate(course) if value >= share * course[-1]))


def _final(task: int) -> Callable[[dict[str, Any]], float]:
    """Accuracy on one task after the last."""
    return lambda e: float(e["rows"][-1][task])


def _before(entry: dict[str, Any]) -> float:
    """Accuracy on the new task before it is learned."""
    return float(entry["rows"][-2][1])


def sentence(spec: BayesSpec, results: Results) -> str:
    """The headline: of the digits, else of what was run."""
    if "digits" in spec.parts:
        head = spec.heads[0]
        parts = []
        for fraction in dict.fromkeys((spec.fractions[0], spec.fractions[-1])):
            ends = []
            for arm in [arm for arm in ("scratch", "posterior", "ewc") if arm in spec.arms] or spec.arms:
                new, old = (_of(results, "digits", _end(task), head=head, fraction=fraction, arm=arm) for task in (1, 0))
                ends.append(f"{ARMS[arm]} {new.percent()} %" + ("" if arm == "scratch" else f" ({old.percent()} % kept of 0-4)"))
            parts.append(f"with {100 * fraction:g} % of the images of 5-9: {', '.join(ends)}")
        return f"Digits 0-4, then 5-9, {HEADS[head]}: {'; '.join(parts)}."
    parts = []
    for part in spec.parts:
        if part in STREAMS:
            ends = [f"{CHAINED[name]} {_of(results, part, _average, method=name).percent()} %" for name in spec.chained]
            parts.append(f"{STREAMS[part]}, {_count(len(results[0][part][0]['tasks']), 'task')}: {', '.join(ends)}")
        elif part == "prediction":
            ends = [f"{NETS[name]} {_of(results, part, _error, net=name).percent(2)} %" for name in spec.nets]
            parts.append(f"Test error: {', '.join(ends)}")
    return f"{'; '.join(parts) or 'How the divergence is weighed'} ({_seeds(results)})."


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def _seeds(results: Results) -> str:
    return _count(len(results), "seed")


def _bands(results: Results) -> str:
    return f"Bands are one standard error over {_seeds(results)}." if len(results) > 1 else "One seed."


def _average(entry: dict[str, Any]) -> float:
    return average_accuracy(entry["rows"])


def _error(entry: dict[str, Any]) -> float:
    return 1.0 - float(entry["accuracy"])


def numbers(spec: BayesSpec, results: Results) -> dict[str, Any]:
    """The main numbers, for machines."""
    found: dict[str, Any] = {}
    if "digits" in spec.parts:
        for entry in results[0]["digits"]:
            which = {key: entry[key] for key in ("head", "fraction", "arm")}
            name = f"{entry['arm']}, {entry['head']}, {entry['fraction']:g}"
            found[name] = {task: _of(results, "digits", _end(j), **which)._asdict() for j, task in enumerate(("0-4", "5-9"))}
    for part in spec.parts:
        if part in STREAMS:
            found[part] = {name: _of(results, part, _average, method=name)._asdict() for name in spec.chained}
        elif part == "prediction":
            found[part] = {name: {"error": _of(results, part, _error, net=name)._asdict()} for name in spec.nets}
    return found


def _digits(spec: BayesSpec, results: Results, part: str) -> Shown:
    tables: list[Table] = []
    figures: list[Figure] = []
    for head in spec.heads:
        rows = []
        for fraction in spec.fractions:
            for arm in spec.arms:
                which = {"head": head, "fraction": fraction, "arm": arm}

                def of(pick: Callable[[dict[str, Any]], float], which: dict[str, Any] = which) -> Estimate:
                    return _of(results, part, pick, **which)

                steps = of(epochs_to_share)
                nats = "" if arm == "ewc" else _nats(of(lambda e: e["moved"]))
                kept = "" if arm == "scratch" else of(_end(0)).percent()
                held = of(lambda e: e["validation_rows"][-1][1]).percent()
                cells = [of(_end(1)).percent(), held, kept, of(_before).percent(), of(first_epoch).percent(), _plain(steps), nats]
                rows.append([f"{ARMS[arm]}, {100 * fraction:g}\u00a0%", *cells])
        columns = ["", "5-9, %", "validation, %", "0-4 kept, %", "before, %", "epoch 1, %", "epochs to 95 %", "moved, nats"]
        note = (
            "By share of the images of 5-9. Test accuracy on 5-9 at the end, on its validation images, and of 0-4, asked again without training; 5-9 before "
            "training (the jump-start) and after one epoch; epochs to 95 % of the arm's own final accuracy; nats from the old posterior to the new. "
            f"Tempered: beta {spec.beta:g}, strength {spec.strength:g}; untempered: 1 and 1."
        )
        tables.append(Table(f"Digits 0-4, then 5-9: {HEADS[head]}", columns, rows, note))
        for task, title in ((1, "5-9 while they are learned"), (0, "0-4 meanwhile, without training")):
            panels = {}
            for fraction in spec.fractions:
                arms = [arm for arm in spec.arms if task or arm != "scratch"]
                panels[f"{100 * fraction:g} % of the images"] = [_course(results, head, fraction, arm, task) for arm in arms]
            figures.append(
                Lines(
                    f"Accuracy on {title}: {HEADS[head]}",
                    "epoch of 5-9",
                    "test accuracy, %",
                    panels=panels,
                    id=f"{head}-{'new' if task else 'old'}",
                    caption=f"Epoch 0 is before training. During training the means of the weights answer. {_bands(results)}",
                )
            )
    return tables, figures


def _course(results: Results, head: str, fraction: float, arm: str, task: int) -> Series:
    def course(entry: dict[str, Any]) -> list[float]:
        return [entry["rows"][-2][task], *(list(epoch["accuracy"].values())[task] for epoch in entry["history"])]

    columns = list(zip(*(course(_entry(r, "digits", head=head, fraction=fraction, arm=arm)) for r in results), strict=True))
    return _series(ARMS[arm], [float(x) for x in range(len(columns))], columns, list(ARMS).index(arm))


def _series(name: str, x: list[float], columns: Sequence[Sequence[float]], color: int | None = None, scale: float = 100.0) -> Series:
    found = [estimate(values) for values in columns]
    return Series(name, x, [scale * e.mean for e in found], [scale * e.error for e in found], color=color)


def _chain(spec: BayesSpec, results: Results, part: str) -> Shown:
    names = [(name.partition("-")[2] or name) + ("°" if part == "rotation" else "") for name in results[0][part][0]["tasks"]]
    rows = []
    for name in spec.chained:
        cells = [_of(results, part, _final(j), method=name).percent() for j in (range(len(names)) if len(names) <= 5 else (0, -1))]
        back = _of(results, part, lambda e: backward_transfer(e["rows"]), method=name).percent() if len(names) > 1 else ""
        held = _of(results, part, lambda e: math.fsum(e["validation_rows"][-1]) / len(names), method=name).percent()
        rows.append([CHAINED[name], _of(results, part, _average, method=name).percent(2 if part == "split" else 1), held, back, *cells])
    shown = names if len(names) <= 5 else [names[0], names[-1]]
    seeds, size = len(results), f"hidden layers {list(spec.chain_hidden)}, {_count(spec.chain_epochs, 'epoch')} a task"
    table = Table(
        f"{STREAMS[part]}: {_count(len(names), 'task')} one after the other",
        ["", "average, %", "(validation)", "backward transfer, points", *(f"{n}, %" for n in shown)],
        rows,
        f"Test accuracy after the last task{WHICH[part]}; {_seeds(results)}, {size}. VCL: beta {spec.beta:g}, strength {spec.strength:g}; untempered: 1 and 1.",
    )
    mean = {
        CHAINED[name]: [
            [100 * math.fsum(_entry(r, part, method=name)["rows"][i][j] for r in results) / seeds for j in range(len(names))] for i in range(len(names) + 1)
        ]
        for name in spec.chained
    }
    course = [
        _series(
            CHAINED[name],
            [float(i) for i in range(1, len(names) + 1)],
            [[math.fsum(_entry(r, part, method=name)["rows"][i][:i]) / i for r in results] for i in range(1, len(names) + 1)],
            COLORS[name],
        )
        for name in spec.chained
    ]
    lines = Lines(
        f"{STREAMS[part]}: mean accuracy on the tasks so far",
        "tasks learned",
        "test accuracy, %",
        course,
        id=part,
        caption=_bands(results),
    )
    if len(names) > 5:
        return [table], [lines]
    matrix = Matrices(
        f"{STREAMS[part]}: accuracy matrix, %",
        mean,
        names,
        ["before", *(f"after {n}" for n in names)],
        id=f"{part}-matrix",
        caption=f"Test accuracy on the column's task after the row's was learned, mean of {_seeds(results)}{WHICH[part]}.",
    )
    return [table], [lines, matrix]


def _schemes(spec: BayesSpec, results: Results, part: str) -> Shown:
    def course(entry: dict[str, Any], key: str) -> list[float]:
        return [epoch[key] if key == "kl" else next(iter(epoch[key].values())) for epoch in entry["history"]]

    kind, titles = ("scheme", SCHEMES) if part == "schemes" else ("flows", {count: _count(count, "flow") for count in spec.flows})
    chosen: Sequence[Any] = spec.schemes if part == "schemes" else spec.flows
    rows = []
    for value in chosen:
        end = {key: estimate(course(_entry(r, part, **{kind: value}), key)[-1] for r in results) for key in ("accuracy", "validation", "nll", "kl")}
        weight = [f"{_entry(results[0], part, scheme=value)['weight']:.2f}"] if part == "schemes" else []  # the same in every seed
        worst = _of(results, part, lambda e: min(course(e, "accuracy")[len(e["history"]) // 2 :]), **{kind: value})
        rows.append([titles[value], *weight, end["accuracy"].percent(), end["validation"].percent(), worst.percent(), _plain(end["nll"], 3), _nats(end["kl"])])
    factor = ["mean factor of KL / N"] if part == "schemes" else []
    columns = ["", *factor, "test, %", "(validation)", "lowest since half, %", "nll, nats", "KL, nats"]
    title = "How the divergence is weighed: ten digits" if part == "schemes" else "Planar flows on the weights: ten digits"
    note = "M: batches a pass; a mean factor of 1 is the bound. " if factor else "Weights are drawn once a batch; a log-determinant counts once a tensor. "
    size = f"{_count(spec.single_epochs, 'epoch')}, hidden layers {list(spec.hidden if part == 'schemes' else spec.flow_hidden)}, beta 1. "
    more = "'Lowest since half': in the second half of the epochs. nll: of a test image. KL: of the posterior from the prior, all weights together."
    table = Table(title, columns, rows, note + size + more)
    x = [float(i) for i in range(1, spec.single_epochs + 1)]
    figures: list[Figure] = []
    for key, heading in (("accuracy", "test accuracy, %"), ("kl", "divergence from the prior, nats")):
        scale = 100.0 if key == "accuracy" else 1.0
        lines = [
            _series(titles[value], x, list(zip(*(course(_entry(r, part, **{kind: value}), key) for r in results), strict=True)), i, scale)
            for i, value in enumerate(chosen)
        ]
        name = title if key == "accuracy" else f"{title}, divergence"
        log = key == "kl" and part == "schemes"  # the schemes' lie orders of magnitude apart
        figures.append(Lines(name, "epoch", heading, lines, y_log=log, id=f"{part}-{key}", caption=_bands(results)))
    return [table], figures


def _prediction(spec: BayesSpec, results: Results, part: str) -> Shown:
    rows = []
    for name in spec.nets:

        def of(pick: Callable[[dict[str, Any]], float], name: str = name) -> Estimate:
            return _of(results, part, pick, net=name)

        epistemic = of(lambda e: e["auroc_epistemic"]).percent() if "auroc_epistemic" in _entry(results[0], part, net=name) else ""
        split = [
            " / ".join(f"{estimate(_entry(r, part, net=name)['entropies'][k][i] for r in results).mean:.3f}" for i in (0, 1))
            for k in ("aleatoric", "epistemic")
        ]
        held = of(lambda e: 1 - e["validation"]).percent(2)
        rows.append(
            [
                NETS[name],
                of(_error).percent(2),
                held,
                _plain(of(lambda e: e["nll"]), 4),
                of(lambda e: e["ece"]).percent(2),
                of(lambda e: e["auroc"]).percent(),
                epistemic,
                *split,
            ]
        )
    columns = [
        "",
        "error, %",
        "(validation)",
        "nll, nats",
        "ECE, %",
        "AUROC total, %",
        "AUROC epistemic, %",
        "aleatoric: digits / clothes",
        "epistemic: digits / clothes",
    ]
    note = (
        f"{_count(spec.answers, 'draw')} of the weights, or {_count(spec.members, 'member')}. "
        "ECE: expected calibration error, 15 bins. AUROC: how often clothing has the "
        "larger entropy (total) or mutual information (epistemic) than a digit. Entropies in nats."
    )
    tables = [Table("What the answers are worth: ten digits", columns, rows, note)]
    seeds = len(results)
    bins = {name: [_pooled(results, part, name, i) for i in (0, 1)] for name in spec.nets}
    reliability = [Series("perfect", [0.0, 100.0], [0.0, 100.0], color=7, dashed=True)]
    for i, name in enumerate(spec.nets):
        pairs = [(100 * c, 100 * a) for c, a in zip(*bins[name], strict=True) if not math.isnan(c)]  # bins of fewer than 20 images are left out
        reliability.append(Series(NETS[name], [c for c, _ in pairs], [a for _, a in pairs], color=i))
    figures: list[Figure] = [
        Lines(
            "Reliability",
            "confidence, %",
            "accuracy, %",
            reliability,
            id="reliability",
            caption=f"Test images, {_seeds(results)}, in 15 bins of equal width; those of fewer than 20 images are left out. Below the diagonal a model is "
            "surer than it is right.",
        )
    ]
    if spec.nets:
        top = math.log(10)
        edges = [f"{top * i / 5:.2f}-{top * (i + 1) / 5:.2f}" for i in range(5)]
        panels: dict[str, dict[str, list[float]]] = {"digits": {}, "clothes": {}}
        for name in spec.nets:
            stacks = [_entry(r, part, net=name)["histogram"] for r in results]
            for i, panel in enumerate(panels.values()):
                panel[NETS[name]] = [100 * math.fsum(stack[i][5 * b + k] for stack in stacks for k in range(5)) / seeds for b in range(5)]
        caption = f"Test images of MNIST (digits) and Fashion-MNIST (clothes) by the entropy of their answers, at most ln 10 = 2.30; {_seeds(results)}."
        figures.append(Bars("Entropy of the answers", "images, %", edges, panels, x_label="entropy, nats", id="entropy", caption=caption))
    cut = [name for name in spec.nets if results[0][part][spec.nets.index(name)]["pruned"]]
    if cut and spec.cuts:
        lines, cells = [], []
        for name in cut:
            columns_ = [[1 - _entry(r, part, net=name)["pruned"][k][1] for r in results] for k in range(len(spec.cuts))]
            lines.append(_series(NETS[name], [100 * c for c in spec.cuts], columns_, spec.nets.index(name)))
            cells.append([NETS[name], *(estimate(values).percent(2) for values in columns_)])
        tables.append(Table("Test error after pruning by signal to noise, %", ["weights removed", *(f"{100 * c:g} %" for c in spec.cuts)], cells))
        figures.append(
            Lines(
                "Pruning by signal to noise",
                "weights removed, %",
                "test error, %",
                lines,
                id="pruning",
                caption=f"One threshold for all layers; biases stay. {_bands(results)}",
            )
        )
    return tables, figures


def _pooled(results: Results, part: str, name: str, which: int) -> list[float]:
    """Mean confidence (0) or accuracy (1) of each bin over all seeds, weighted by counts."""
    entries = [_entry(r, part, net=name)["bins"] for r in results]
    found = []
    for b in range(len(entries[0][0])):
        count = sum(e[2][b] for e in entries)
        found.append(math.fsum(e[which][b] * e[2][b] for e in entries if e[2][b]) / count if count >= 20 else math.nan)
    return found


def _plain(value: Estimate, digits: int = 1) -> str:
    return f"{value.mean:.{digits}f}" + ("" if math.isnan(value.error) else f" ± {value.error:.{digits}f}")


def _nats(value: Estimate) -> str:
    return f"{value.mean:,.0f}" + ("" if math.isnan(value.error) else f" ± {value.error:,.0f}")


SHOWN: dict[str, Callable[[BayesSpec, Results, str], Shown]] = {
    "digits": _digits,
    "rotation": _chain,
    "permuted": _chain,
    "split": _chain,
    "schemes": _schemes,
    "flows": _schemes,
    "prediction": _prediction,
}
