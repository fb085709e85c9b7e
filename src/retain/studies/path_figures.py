"""What the path study shows: its sentence, tables and figures, from the plain results of its seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from retain.figures import Bars, Figure, Lines, Series, Table
from retain.metrics import Estimate, estimate
from retain.studies.path_arms import PAIRS, WAYS
from retain.studies.path_spec import Arm, PathSpec
from retain.studies.path_spikes import CASES

Results = Sequence[dict[str, Any]]
PAIR_ARMS: tuple[Arm, ...] = ("kd", "optimal", "natural")
_SHOWN: tuple[Arm, ...] = ("natural", "kd", "optimal", "kd-adam", "task-target", "task", "retention-optimal")
_COLORS: dict[str, int] = {arm: i for i, arm in enumerate((*_SHOWN, "", "kd-skew"))}


def pick(result: dict[str, Any], arm: str, K: int, budget: str, factor: float = 1.0) -> dict[str, Any]:
    """One traversal of one seed."""
    found: dict[str, Any] = next(w for w in result["ways"] if (w["arm"], w["K"], w["budget"], w["factor"]) == (arm, K, budget, factor))
    return found


def _known(results: Results, K: int, budget: str) -> list[Arm]:
    """Strategies that took this way in every seed, in order."""
    first = [w["arm"] for w in results[0]["ways"] if (w["K"], w["budget"], w["factor"]) == (K, budget, 1.0)]
    return [arm for arm in first if all(any(w["arm"] == arm and (w["K"], w["budget"]) == (K, budget) for w in r["ways"]) for r in results)]


def _of(results: Results, arm: str, K: int, budget: str, key: str = "accuracy", factor: float = 1.0) -> Estimate:
    return estimate(pick(r, arm, K, budget, factor)[key] for r in results)


def _equal(spec: PathSpec, budget: str) -> str:
    if budget == "seconds":
        return f"{spec.seconds:g} CPU seconds"
    return f"{spec.samples:,} samples" if budget == "samples" else f"{spec.steps} steps of q with {spec.iterations} updates each"


def sentence(spec: PathSpec, results: Results) -> str:
    """The headline: the best way under each budget, the law, and distillation."""
    K, dense = spec.K[0], estimate(r["dense"]["accuracy"] for r in results)
    parts = []
    for budget in spec.budgets:
        known = _known(results, K, budget)
        shown = [arm for arm in ("natural", "optimal", "kd", "kd-adam", "retention-optimal") if arm in known] or known
        if set(shown) - {"sudden", "frozen"}:
            ends = ", ".join(f"{WAYS[arm].title} {_of(results, arm, K, budget).percent()} %" for arm in shown)
            parts.append(f"after {_equal(spec, budget)}: {ends}")
    if spec.long and all(r["long"] for r in results):
        ends = "; ".join(f"K = {k}: " + ", ".join(f"{WAYS[arm].title} {_longer(results, arm, k, 'accuracy').percent()} %" for arm in spec.long) for k in spec.K)
        parts.append(f"after {spec.epochs} epochs: {ends}")
    sudden = f", {_of(results, 'sudden', K, spec.budgets[0]).percent()} % with no training" if "sudden" in spec.arms else ""
    return "; ".join([f"{dense.percent()} % dense becomes sparse (K = {K}{sudden})", *parts]) + "."


def tables(spec: PathSpec, results: Results) -> list[Table]:
    """Every comparison."""
    found = [_main(spec, results, budget) for budget in spec.budgets]
    if len(spec.multiples) > 1:
        found = [_tuning(spec, results, budget) for budget in spec.budgets]
    if spec.long:
        found.append(_long(spec, results))
    if spec.pairs:
        found.append(_pairs(spec, results))
    if spec.spikes:
        found.append(_spikes(results))
    return found


def _main(spec: PathSpec, results: Results, budget: str) -> Table:
    other = ("samples", "samples") if budget == "seconds" else ("seconds", "CPU s")
    columns = ["", *(f"K = {K}, %" for K in spec.K), "KL, nats", "length", "apart", other[1]]
    dense = estimate(r["dense"]["accuracy"] for r in results)
    rows = [["dense source", *(dense.percent() for _ in spec.K), "", "", "", ""]]
    K = spec.K[0]
    for arm in _known(results, K, budget):
        ends = [_of(results, arm, k, budget).percent() if arm in _known(results, k, budget) else "" for k in spec.K]
        kl, length, apart, spent = (_of(results, arm, K, budget, key).mean for key in ("kl", "length", "distance", other[0]))
        rows.append([WAYS[arm].title, *ends, f"{kl:.3f}", f"{length:.2f}", f"{apart:.2f}", f"{spent:,.0f}" if other[0] == "samples" else f"{spent:.1f}"])
    seeds = f"mean ± standard error over {len(results)} seeds" if len(results) > 1 else "one seed: no error can be given"
    note = (
        f"Test accuracy of the sparse network alone, {seeds}. From KL on: of K = {K}. KL is from source to target at the end; "
        "length is the path's Fisher-Rao length, apart the distance of its ends, below which no path can be."
    )
    return Table(f"After {_equal(spec, budget)}", columns, rows, note)


def _tuning(spec: PathSpec, results: Results, budget: str) -> Table:
    rows = []
    for arm in spec.arms:
        for K in spec.K:
            ends = {f: _of(results, arm, K, budget, "validation", f) for f in spec.multiples}
            best = max(ends, key=lambda f: ends[f].mean)
            rows.append([f"{WAYS[arm].title}, K = {K}", *(end.percent() for end in ends.values()), f"x{best:g}"])
    heading = ["validation accuracy, %", *(f"x{f:g}" for f in spec.multiples), "best"]
    return Table(
        f"Learning rates (the optimal law: dampings) after {_equal(spec, budget)}",
        heading,
        rows,
        "Choices are made on these images, which nothing else is measured on.",
    )


def _longer(results: Results, arm: str, K: int, key: str) -> Estimate:
    return estimate(next(w for w in r["long"] if (w["arm"], w["K"]) == (arm, K))[key] for r in results)


def _long(spec: PathSpec, results: Results) -> Table:
    rows = [
        [WAYS[arm].title, *(_longer(results, arm, K, "accuracy").percent() for K in spec.K), f"{_longer(results, arm, spec.K[0], 'seconds').mean:.0f}"]
        for arm in spec.long
    ]
    moved = f", images moved by up to {spec.shift} pixel" if spec.shift else ""
    return Table(f"After {spec.epochs} epochs{moved}", ["", *(f"K = {K}, %" for K in spec.K), "CPU s"], rows)


def _pairs(spec: PathSpec, results: Results) -> Table:
    rows = []
    for name in spec.pairs:
        here = [[w for w in r["pairs"] if w["pair"] == name] for r in results]
        ends = [estimate(next(w for w in ways if w["arm"] == arm)["accuracy"] for ways in here).percent() for arm in PAIR_ARMS]
        rows.append([PAIRS[name], estimate(ways[0]["source"] for ways in here).percent(), *ends])
    columns = ["", "source %", *(f"{WAYS[arm].title} %" for arm in PAIR_ARMS)]
    return Table(f"Other pairs, after {spec.pair_seconds:g} CPU seconds from a fresh target", columns, rows)


def _spikes(results: Results) -> Table:
    rows = []
    for place, (_, (title, _)) in enumerate(CASES.items()):
        first, second = (estimate(r["spikes"][place][key] for r in results) for key in ("first", "second"))
        rows.append([title, first.percent(), second.percent()])
    note = (
        "Labels follow data that change from MNIST to Fashion-MNIST on the way, by two thirds of it; the law looks one step ahead. Where MNIST is asked for "
        "at the end (early information matters late), the spike is worth its price; where only Fashion-MNIST is, it is a loss."
    )
    return Table("A person's bias: a retention spike at q = 0.4 to 1", ["retention", "MNIST %", "Fashion-MNIST %"], rows, note)


def figures(spec: PathSpec, results: Results) -> list[Figure]:
    """Accuracy over samples and time, the mixture against the target, what steps lose, and the shares on the way."""
    found: list[Figure] = []
    if any(arm in _SHOWN for arm in spec.arms):
        found += [*(_over(spec, results, budget) for budget in spec.budgets), _along(spec, results), _lost(spec, results)]
    if spec.spikes:
        found.append(_shares(results))
    return found or [_bars(spec, results)]


def _curve(ways: list[dict[str, Any]], x: str, y: str, name: str, color: int | None, value: Callable[[float], float] = lambda share: 100 * share) -> Series:
    """A quantity over the certified steps: means over seeds at the same step."""
    xs, ys, errors = [], [], []
    for steps in zip(*(way["steps"] for way in ways), strict=False):
        found = [step.get(y) for step in steps]
        if any(one is None or math.isnan(one) for one in found):
            continue
        end = estimate(value(one) for one in found)
        xs.append(math.fsum(step[x] for step in steps) / len(steps))
        ys.append(end.mean)
        errors.append(end.error)
    return Series(name, xs, ys, errors if len(ways) > 1 else None, color=color)


def _picked(results: Results, arm: str, K: int, budget: str) -> list[dict[str, Any]]:
    return [pick(r, arm, K, budget) for r in results]


def _over(spec: PathSpec, results: Results, budget: str) -> Lines:
    x, label = ("seconds", "CPU seconds") if budget == "seconds" else ("samples", "samples seen")
    panels = {}
    for K in spec.K[:2]:
        shown = [arm for arm in _SHOWN if arm in _known(results, K, budget)]
        panels[f"K = {K}"] = [
            _curve(_picked(results, arm, K, budget), x, "accuracy", WAYS[arm].title, _COLORS[arm], lambda share: 100 * (1 - share)) for arm in shown
        ]
    return Lines(
        f"The sparse network alone, {_equal(spec, budget)}",
        label,
        "test error, %",
        panels=panels,
        y_log=True,
        id=f"over-{budget}",
        caption="Bands are one standard error over seeds. Each line ends where its budget does; learning rates and q are timed to it.",
    )


def _along(spec: PathSpec, results: Results) -> Lines:
    K, budget = spec.K[0], spec.budgets[0]
    shown = [arm for arm in ("optimal", "kd", "kd-adam", "task", "retention-optimal") if arm in spec.arms][:3]
    panels = {
        WAYS[arm].title: [
            _curve(_picked(results, arm, K, budget), "q", "mixture_accuracy", "mixture", 7),
            _curve(_picked(results, arm, K, budget), "q", "accuracy", "sparse alone", _COLORS[arm]),
        ]
        for arm in shown
    }
    return Lines(
        f"Mixture and sparse network along q, K = {K}",
        "q",
        "test accuracy, %",
        panels=panels,
        marks={"q = 0.5": 0.5},
        id="along",
        caption=(
            "Up to q = 0.5 the mixture answers as the dense network does where that is sure, whatever the sparse one has learned: "
            "its flat curve proves nothing. Only the "
            "other one can be deployed."
        ),
    )


def _lost(spec: PathSpec, results: Results) -> Lines:
    K, budget = spec.K[0], spec.budgets[0]
    shown = [arm for arm in ("natural", "kd", "optimal", "task", "kd-skew", "retention-optimal") if arm in spec.arms]
    return Lines(
        f"From the dense network to the sparse one, K = {K}",
        "q",
        "KL, nats",
        [_curve(_picked(results, arm, K, budget), "q", "kl_target", WAYS[arm].title, _COLORS[arm], lambda nats: nats) for arm in shown],
        y_log=True,
        id="lost",
        caption="How far the sparse network's answers are from the source's, KL(source || target) in nats on test images.",
    )


def _bars(spec: PathSpec, results: Results) -> Bars:
    """What is left to show where nothing was trained."""
    groups = [f"K = {K}" for K in spec.K]
    bars = {WAYS[arm].title: [100 * _of(results, arm, K, spec.budgets[0]).mean for K in spec.K] for arm in spec.arms}
    return Bars("The sparse network as it was given", "test accuracy, %", groups, {"": bars}, id="given")


def _shares(results: Results) -> Lines:
    panels: dict[str, list[Series]] = {"retained share": [], "MNIST, %": []}
    for place, (_, (title, _)) in enumerate(CASES.items()):
        q = results[0]["spikes"][place]["q"]
        for panel, key, scale in (("retained share", "share", 1), ("MNIST, %", "course", 100)):
            columns = [estimate(values) for values in zip(*(r["spikes"][place][key] for r in results), strict=True)]
            panels[panel].append(
                Series(title, q, [scale * c.mean for c in columns], [scale * c.error for c in columns] if len(results) > 1 else None, color=place)
            )
    caption = "Left: what the law, or a person, keeps at each step. Right: accuracy of the sparse network on MNIST while the data become Fashion-MNIST."
    return Lines("A path on which the data change", "q", "", panels=panels, id="shares", caption=caption)


__all__ = ["PAIR_ARMS", "figures", "pick", "sentence", "tables"]
