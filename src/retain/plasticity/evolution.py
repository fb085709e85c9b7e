"""Evolving a rule: draw rules, let each learn, keep to where the good ones lie."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch

from retain.errors import InputError, check_count, check_positive, nearest
from retain.figures import Lines, Series, Table
from retain.figures.draw import draw
from retain.models.assembly import Assembly, FeedForwardAssembly
from retain.plasticity.learners import learner
from retain.plasticity.meta import build
from retain.plasticity.online import check_task
from retain.plasticity.rules import LocalRule, Rule, TableRule
from retain.seeds import derive, generator
from retain.tasks import Task, TensorData
from retain.training.recorder import Recorder, Silent

Method = Literal["cmaes", "xnes"]
WORST = -1.0
"""The fitness of a rule that diverges, below any accuracy."""
NETS: tuple[Mapping[str, Any], ...] = ({"width": 100, "cap": 50, "p": 1.0, "dtype": torch.float32}, {"width": 200, "cap": 60, "p": 1.0, "dtype": torch.float32})


@dataclass
class EvolutionResult:
    """How evolution went. Accuracies are means over tasks, on samples that were not learned from.

    Args:
        method: ``cmaes`` or ``xnes``.
        horizons: The samples that rules learned from, by generation; accuracies of different horizons are not to be compared.
        best: The best rule's accuracy, by generation.
        mean: The mean accuracy of those that did not diverge, NaN where all did.
        diverged: How many rules diverged on a task, by generation.
        start: Accuracy of the rule before evolution, on the tasks for the choice at the longest horizon; -1 where it diverges.
        chosen: Accuracy of the chosen rule there.
        candidates: How many rules the choice was from, the start among them.
    """

    method: str
    horizons: list[int] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    diverged: list[int] = field(default_factory=list)
    start: float = float("nan")
    chosen: float = float("nan")
    candidates: int = 0

    def table(self) -> Table:
        """The rule before and after."""
        said = "diverges" if self.start == WORST else f"{100 * self.start:.1f}"
        note = f"{self.method}, {len(self.best)} generations, {sum(self.diverged)} divergences on the way; the choice was among {self.candidates} rules."
        return Table("Evolving a rule", ["rule", "accuracy on the tasks for the choice, %"], [["start", said], ["chosen", f"{100 * self.chosen:.1f}"]], note)

    def plot(self) -> Any:
        """The accuracies over the generations, as a matplotlib figure."""
        xs = [float(i + 1) for i in range(len(self.best))]
        series = [Series("best", xs, [100 * value for value in self.best]), Series("mean", xs, [100 * value for value in self.mean], dashed=True)]
        return draw(Lines("Evolving a rule", "generations", "accuracy, %", series))

    def _repr_html_(self) -> str:
        return self.table().html()


def genes_of(rule: Rule) -> list[float]:
    """The vector that evolution varies: a local rule's genes, any other rule's parameters one after the other."""
    if isinstance(rule, LocalRule):
        return rule.genes()
    return [float(value) for parameter in rule.parameters() for value in parameter.detach().flatten()]


def express(rule: Rule, genes: Sequence[float]) -> None:
    """Set a rule from its vector."""
    if isinstance(rule, LocalRule):
        rule.express(genes)
        return
    rest = torch.as_tensor(np.asarray(genes), dtype=torch.float64)
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.copy_(rest[: parameter.numel()].view_as(parameter))
            rest = rest[parameter.numel() :]


def network(rule: Rule, task: Task, settings: Mapping[str, Any], seed: int) -> Assembly:
    """A network that a rule fits, for a task."""
    if isinstance(rule, TableRule):
        return build(rule, task, seed, **settings)
    if not isinstance(task.data, TensorData) or task.classes is None:
        raise InputError(f"task '{task.id}'", "labelled samples held in tensors", type(task.data).__name__)
    return FeedForwardAssembly(task.data.inputs[0].numel(), max(task.classes) + 1, layers=1, **settings, seed=seed)


def success(rule: Rule, task: Task, horizon: int, settings: Mapping[str, Any], seed: int, engine: str = "auto") -> float | None:
    """Accuracy on a task's validation data after learning from ``horizon`` samples, in a network drawn by the seed; ``None`` if the rule diverges.

    Args:
        rule: The rule.
        task: The task.
        horizon: Samples; more than there are go round again.
        settings: Of the network.
        seed: Of network and order.
        engine: As for :func:`~retain.learn_online`.

    Returns:
        The share in [0, 1], or ``None``.

    Raises:
        InputError: If the task has no validation data.
    """
    net = network(rule, task, settings, seed)
    parts = check_task(net, task)
    if "validation" not in parts:
        raise InputError(f"task '{task.id}'", "validation data, on which a rule's success is measured", "none", "Pass validation=... when drawing it.")
    work, data, asked = learner(net, rule, engine), parts["data"], parts["validation"]
    size = len(data.targets)
    rows = torch.cat([torch.randperm(size, generator=generator(seed, "order", i)) for i in range(-(-horizon // size))])[:horizon]
    used = rows.unique()
    prepared = work.prepare(data.inputs[used])[torch.searchsorted(used, rows)]
    work.present(prepared, data.targets[rows].long())
    if not work.finite():
        return None
    return float((work.answer(work.prepare(asked.inputs)) == asked.targets).double().mean())


def evolve(
    rule: Rule,
    tasks: Sequence[Task],
    *,
    choice: Sequence[Task] | None = None,
    method: Method = "cmaes",
    generations: int = 40,
    population: int = 16,
    horizons: Sequence[int] = (300, 1000, 3000, 8000),
    nets: Sequence[Mapping[str, Any]] = NETS,
    tasks_each: int = 4,
    spread: float = 0.5,
    seed: int = 0,
    engine: str = "auto",
    recorder: Recorder | None = None,
) -> EvolutionResult:
    r"""Learn a rule by evolution: no gradient, any rule, and success is what it should be, accuracy on samples that were not learned from.

    In each generation the search draws rules around where it stands; each learns the same tasks in the same networks, online, for the generation's horizon; and
    the ranks of their mean accuracies move the search on. A rule that leaves a weight that is not finite on any task has the worst rank and is counted.
    Horizons grow over the generations, since a rule that is good for hundreds of samples may diverge over thousands. At the end the best rule of each
    generation of the last horizon, where the search stands, and the start are compared on tasks for the choice; the best is taken, be it the start.

    CMA-ES (Hansen and Ostermeier 2001) or exponential natural evolution (Wierstra et al. 2014), by the package ``cmaes``. Only labels of the tasks that are
    passed are used: for a rule that is to be carried to a real data set pass made-up ones (:func:`~retain.plasticity.draw_tasks`).

    Args:
        rule: The rule, changed in place. Its facts are filled in.
        tasks: The tasks, each with validation data.
        choice: Tasks to choose by at the end; by default ``tasks``, and these should be others.
        method: ``cmaes`` or ``xnes``.
        generations: Generations.
        population: Rules a generation.
        horizons: Samples to learn from: each for an equal share of the generations, in this order.
        nets: Settings of :class:`~retain.models.FeedForwardAssembly` to take in turn.
        tasks_each: Tasks a generation, drawn from all.
        spread: Standard deviation of the first generation, in the units of a local rule's genes (a factor of 1.6 in a coefficient at 0.5) or of parameters.
        seed: Of everything.
        engine: As for :func:`~retain.learn_online`.
        recorder: Gets an event each generation.

    Returns:
        Fitness and divergences by generation, and what the choice was.

    Raises:
        InputError: If a setting is out of range, all rules diverge at the end, or the package is missing.

    Example:
        >>> from retain import plasticity
        >>> rule = plasticity.LocalRule("none")
        >>> tasks = plasticity.draw_tasks(2, kinds=("teacher",), n=300, validation=300)
        >>> result = plasticity.evolve(rule, tasks, generations=3, population=6, horizons=(300,), tasks_each=2)
        >>> result.chosen >= result.start
        True
    """
    for name, value, least in (("generations", generations, 1), ("population", population, 4), ("tasks_each", tasks_each, 1)):
        check_count(name, value, least=least)
    check_positive("spread", spread)
    if method not in get_args(Method):
        raise InputError("method", f"one of {', '.join(get_args(Method))}", repr(method), nearest(str(method), get_args(Method)))
    choice = tasks if choice is None else choice
    for name, given in (("tasks", tasks), ("choice", choice)):
        if not isinstance(given, Sequence) or not all(isinstance(task, Task) for task in given):
            raise InputError(name, "a list of tasks", type(given).__name__, "Pass what plasticity.draw_tasks returns, or [task].")
    if not isinstance(horizons, Sequence):
        raise InputError("horizons", "a list of whole numbers", repr(horizons), "Pass horizons=(300,), say.")
    for name, count in (("tasks", len(tasks)), ("horizons", len(horizons)), ("nets", len(nets)), ("choice", len(choice))):
        if not count:
            raise InputError(name, "at least one", "none")
    for horizon in horizons:
        check_count("horizons", horizon)
    if importlib.util.find_spec("cmaes") is None:
        raise InputError("method", "the package 'cmaes' to be installed", "no module 'cmaes'", "Install it with pip install 'retain[plasticity]'.")
    import cmaes

    kind = cmaes.CMA if method == "cmaes" else cmaes.XNES
    search = kind(mean=np.array(genes_of(rule)), sigma=spread, seed=derive(seed, "search") % 2**32, population_size=population)
    drawn, trial = generator(seed, "tasks"), copy.deepcopy(rule)
    result, out = EvolutionResult(method), recorder or Silent()
    candidates = [np.array(genes_of(rule))]

    def fitness(genes: Any, asked: Sequence[Task], horizon: int, round: int) -> float:
        express(trial, list(genes))
        shares = []
        for i, task in enumerate(asked):
            share = success(trial, task, horizon, nets[(round + i) % len(nets)], derive(seed, "networks", round, i), engine)
            if share is None:
                return WORST
            shares.append(share)
        return sum(shares) / len(shares)

    for number in range(generations):
        horizon = horizons[number * len(horizons) // generations]
        asked = [tasks[int(i)] for i in torch.randperm(len(tasks), generator=drawn)[:tasks_each]]
        genes = [search.ask() for _ in range(population)]
        values = [fitness(own, asked, horizon, number + 1) for own in genes]
        search.tell([(own, -value) for own, value in zip(genes, values, strict=True)])
        alive = [value for value in values if value > WORST]
        result.horizons.append(horizon)
        result.best.append(max(values))
        result.mean.append(sum(alive) / len(alive) if alive else float("nan"))
        result.diverged.append(population - len(alive))
        if number * len(horizons) // generations == len(horizons) - 1 and alive:
            candidates.append(genes[values.index(max(values))])
        said = {"horizon": horizon, "best": result.best[-1], "mean": result.mean[-1], "diverged": result.diverged[-1]}
        out.event("evolution", generation=number + 1, **said)
    mean = search.mean if method == "cmaes" else search._mean
    candidates.append(np.array(mean))
    values = [fitness(own, choice, horizons[-1], 0) for own in candidates]
    result.start, result.chosen, result.candidates = values[0], max(values), len(values)
    if result.chosen == WORST:
        raise InputError("rule", "one of which some variant does not diverge", "divergence of all candidates", "Start from smaller rates or a smaller spread.")
    express(rule, list(candidates[values.index(result.chosen)]))
    rule.facts |= {"learned_on": [task.id for task in tasks], "chosen_on": [task.id for task in choice], "method": method}
    rule.facts |= {"generations": generations, "population": population, "horizons": list(horizons), "meta_seed": seed, "divergences": sum(result.diverged)}
    rule.facts |= {"accuracy": {"start": result.start, "chosen": result.chosen}}
    return result
