"""Fine-tuning a model by a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import InputError, check_count, check_positive, nearest
from retain.figures import Lines, Series, Table
from retain.figures.draw import draw
from retain.models import features, find_head, replace_head
from retain.models.parameters import unwrap
from retain.recipes.base import Phase, Place, Recipe
from retain.recipes.solve import solve_head
from retain.seeds import derive
from retain.tasks import Task
from retain.training import learn
from retain.training.batchnorm import BatchNormPolicy
from retain.training.devices import choose_device
from retain.training.evaluation import evaluate
from retain.training.optimizers import OptimizerFactory, Schedule
from retain.training.recorder import Recorder, Silent

PARTS = ("data", "validation", "test")


@dataclass
class FineTuned:
    """How fine-tuning went.

    Args:
        recipe: Its name.
        model: The model.
        head: The head's name.
        history: Every epoch of every phase: ``phase``, ``epoch`` (counted through), the running training ``loss`` and ``score``, and test and held-out
            ``accuracy``, ``nll``, ``validation`` and ``validation_nll`` where there are such data. A head that is solved for is epoch 0.
        accuracy: At the end, by part: ``data`` (training), ``validation``, ``test``.
        nll: The same for the mean negative log-likelihood, in nats.
        parameters: ``total``, and ``trained`` in any phase, among them adapters that are part of the weights by now.
        start: The weights before the first phase, on the CPU, for :func:`retain.diagnose`.
        found: What the recipe had to tell, such as WiSE-FT's curve.
    """

    recipe: str
    model: nn.Module
    head: str
    history: list[dict[str, Any]] = field(default_factory=list)
    accuracy: dict[str, float] = field(default_factory=dict)
    nll: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    start: dict[str, Tensor] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """Training accuracy minus test accuracy, at the end: the generalisation gap."""
        return self.accuracy["data"] - self.accuracy["test"]

    def table(self) -> Table:
        """Accuracies and likelihoods at the end."""
        names = {"data": "training", "validation": "held out", "test": "test"}
        rows = [[names[part], f"{100 * value:.1f}", f"{self.nll[part]:.3f}"] for part, value in self.accuracy.items()]
        note = f"{self.parameters['trained']:,} of {self.parameters['total']:,} parameters trained, head '{self.head}'."
        return Table(self.recipe, ["data", "accuracy %", "nll, nats"], rows, note)

    def plot(self) -> Any:
        """Accuracies over the epochs, as a matplotlib figure."""
        series = []
        for name, key in (("training, running", "score"), ("held out", "validation"), ("test", "accuracy")):
            points = [(float(entry["epoch"]), 100 * entry[key]) for entry in self.history if entry.get(key) is not None]
            if points:
                series.append(Series(name, [x for x, _ in points], [y for _, y in points], dashed=key == "score"))
        return draw(Lines(self.recipe, "epoch", "accuracy, %", series))

    def _repr_html_(self) -> str:
        return self.table().html()


def finetune(
    model: nn.Module,
    task: Task,
    recipe: str | Recipe = "lp-ft",
    *,
    epochs: int = 10,
    batch_size: int = 32,
    lr: float = 0.01,
    optimizer: str | OptimizerFactory = "momentum",
    schedule: Schedule = "cosine",
    head: str | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    batchnorm: BatchNormPolicy = "track",
    score_every: int = 1,
    cached: Task | None = None,
    recorder: Recorder | None = None,
) -> FineTuned:
    """Teach a trained model a new task, by a recipe.

    The head is found (:func:`~retain.models.find_head`) and, where its outputs are not the task's classes, replaced by one that answers 0. Where a recipe
    fits the head alone, its inputs are computed once, in evaluation mode, and the head is solved for: that takes no epochs.

    Args:
        model: Any module with a linear head; trained in place.
        task: Classification; test and held-out data are scored after every epoch, and held-out data choose where a recipe has a choice.
        recipe: A name, see :data:`~retain.recipes.RECIPES`, or a recipe.
        epochs: Passes over the training data, shared out among the phases that train (at least one each).
        batch_size: Samples a step.
        lr: Learning rate; phases have factors of their own.
        optimizer: As for :func:`~retain.learn`.
        schedule: Within each phase, as for :func:`~retain.learn`.
        head: The head's name, where it can't be found.
        seed: Of the data order, the head and whatever the recipe draws.
        device: As for :func:`~retain.learn`.
        batchnorm: ``track`` adapts statistics to the new data, ``freeze`` keeps them.
        score_every: Score held-out and test data after every so many epochs of a phase, and after its last; 0 is at the end alone.
        cached: What :func:`~retain.models.features` of this model and task gave, to spare a first phase that fits the head alone the same pass.
        recorder: Gets an event each epoch.

    Returns:
        Curves, accuracies, the gap between training and test, and the start.

    Raises:
        InputError: If a setting doesn't fit, or the head can't be found.
        RetainError: If the loss is no longer finite.

    Example:
        >>> import retain
        >>> from retain import models, tasks
        >>> digits = tasks.digits()
        >>> first, second = tasks.split(digits, 2, scenario="class")
        >>> model = models.MLP(64, 64, 10, seed=0)
        >>> _ = retain.learn(model, [first], epochs=20)
        >>> retain.finetune(model, second, "linear-probe").accuracy["test"] > 0.5
        True
    """
    from retain.recipes import RECIPES  # the list of all recipes imports this module's neighbours

    check_count("epochs", epochs)
    check_count("score_every", score_every, least=0)
    check_positive("lr", lr)
    if not isinstance(model, nn.Module):
        raise InputError("model", "an nn.Module", repr(model))
    if not isinstance(task, Task):
        raise InputError("task", "a task", type(task).__name__, "Pass retain.Task((inputs, labels)).")
    if task.classes is None:
        raise InputError("task", "a task of classes", f"'{task.id}' without any", "Pass Task(..., classes=...).")
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise InputError("recipe", "a recipe's name", repr(recipe), nearest(recipe, RECIPES))
        recipe = RECIPES[recipe]()
    if not isinstance(recipe, Recipe):
        raise InputError("recipe", "a recipe or its name", repr(recipe))
    if batchnorm not in ("track", "freeze"):
        raise InputError("batchnorm", "'track' or 'freeze'", repr(batchnorm))
    model = unwrap(model)
    name, layer = find_head(model, head)
    if cached is not None and not isinstance(cached, Task):
        raise InputError("cached", "the task that models.features gives", type(cached).__name__)
    if cached is not None and (cached.n != task.n or cached.data.shape != (layer.in_features,)):
        raise InputError("cached", f"{layer.in_features} features of each of the {task.n} samples", f"{cached.n} of shape {list(cached.data.shape or ())}")
    classes = max(task.classes) + 1
    if layer.weight.shape[0] != classes:
        replace_head(model, classes, name=name, seed=seed, zero=True)
    place = Place(model, name, task, seed, batchnorm)
    model = recipe.start(place).to(choose_device(device))
    place = replace(place, model=model)
    result = FineTuned(recipe.name, model, name, start=_state(model, "cpu"))
    trained: dict[str, int] = {}
    with recipe.during(place) as told:
        states, out, done = [_state(model)], recorder or Silent(), 0
        wanted = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
        phases = recipe.phases(place)
        for number, (phase, passes) in enumerate(zip(phases, shared_out(phases, epochs), strict=True)):
            options: dict[str, Any] = {"epochs": passes, "batch_size": batch_size, "lr": lr * phase.lr, "optimizer": optimizer, "schedule": schedule}
            options |= {"seed": derive(seed, "phase", number), "device": device, "score_every": score_every}
            options |= {"recorder": Counted(out, phase.name, done, epochs, recipe.name)}
            for key, parameter in model.named_parameters():
                parameter.requires_grad_(wanted[key] and phase.trains(key))
                trained |= {key: parameter.numel()} if parameter.requires_grad else {}
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise InputError("recipe", f"something to train in the phase '{phase.name}'", f"nothing in {type(model).__name__}")
            if phase.since is not None:
                model.load_state_dict(states[phase.since])
            try:
                _run(place, phase, batchnorm, options, None if number else cached)
            finally:
                for key, parameter in model.named_parameters():
                    parameter.requires_grad_(wanted.get(key, True))
            result.history += options["recorder"].entries
            done += passes
            states.append(_state(model))
    result.found = {**told, **recipe.finish(place, states)}
    answering, asked = model, task
    if cached is not None and all(phase.solved for phase in phases):
        answering, asked = model.get_submodule(name), cached  # the body answers as it did
    for part in PARTS:
        if getattr(asked, part) is not None:
            scored = evaluate(answering, asked.to(choose_device(device)), part=part)
            result.accuracy[part], result.nll[part] = scored.score, scored.nll
    result.parameters = {"total": sum(parameter.numel() for parameter in model.parameters()), "trained": sum(trained.values())}
    return result


def shared_out(phases: Any, epochs: int) -> list[int]:
    """Epochs by phase: rounded shares, at least one each, the last phase taking what is left; none for what is solved.

    Args:
        phases: With shares.
        epochs: Altogether.

    Returns:
        A whole number a phase.

    Example:
        >>> from retain.recipes import LPFT, Phase
        >>> from retain.recipes.tune import shared_out
        >>> shared_out([Phase("a", 0.5), Phase("b", 0.5)], 5), shared_out([Phase("a", 0.1), Phase("b", 0.9)], 2)
        ([2, 3], [1, 1])
    """
    trained = [phase for phase in phases if not phase.solved]
    found = iter([max(1, round(phase.share * epochs)) for phase in trained[:-1]])
    counts = [0 if phase.solved else next(found, 0) for phase in phases]
    return [max(1, epochs - sum(counts)) if trained and phase is trained[-1] else count for phase, count in zip(phases, counts, strict=True)]


class Counted(Silent):
    """A recorder that numbers the epochs of all phases through, and keeps them; a phase is no place to go on from.

    Args:
        out: Where events go.
        phase: The phase's name.
        before: Epochs before it.
        epochs: Of all phases.
        recipe: The recipe's name.
    """

    def __init__(self, out: Recorder, phase: str, before: int, epochs: int, recipe: str) -> None:
        self.out, self.phase, self.before, self.epochs, self.recipe = out, phase, before, epochs, recipe
        self.entries: list[dict[str, Any]] = []

    def event(self, kind: str, **fields: Any) -> None:
        """Pass it on, with the epoch counted through."""
        if kind == "epoch":
            fields |= {
                "epoch": fields["epoch"] + self.before,
                "epochs": max(self.epochs, fields["epoch"] + self.before),
                "method": self.recipe,
                "phase": self.phase,
            }
            kept = {key: next(iter(fields[key].values()), None) for key in ("accuracy", "nll", "validation", "validation_nll")}
            self.entries.append({"phase": self.phase, "epoch": fields["epoch"], "loss": fields["loss"], "score": fields["score"], **kept})
        self.out.event(kind, **fields)


def _run(place: Place, phase: Phase, batchnorm: BatchNormPolicy, options: Mapping[str, Any], cached: Task | None) -> None:
    model, task = place.model, place.task
    if phase.anchored and phase.method is not None:
        phase.method.consolidate(model, phase.anchor or task)
    if phase.solved:
        _solve(place, phase, options, cached)
        return
    with frozen_statistics(model, batchnorm == "freeze"):
        learn(model, [task], phase.method, batchnorm="track", consolidate_last=False, **options)


def _solve(place: Place, phase: Phase, options: Mapping[str, Any], cached: Task | None) -> None:
    head: Any = place.model.get_submodule(place.head)
    task = place.task if options["score_every"] else replace(place.task, test=None)
    known = cached or features(place.model, task.to(choose_device(options["device"])), name=place.head)
    found = solve_head(head, known, phase.penalty)
    scores: dict[str, dict[str, float]] = {key: {} for key in ("accuracy", "nll", "validation", "validation_nll")}
    for part, keys in (("test", ("accuracy", "nll")), ("validation", ("validation", "validation_nll"))):
        if options["score_every"] and getattr(known, part) is not None:
            scored = evaluate(head, known, part=part)
            scores[keys[0]][task.id], scores[keys[1]][task.id] = scored.score, scored.nll
    options["recorder"].event("epoch", task=task.id, epoch=0, loss=found["loss"], score=found["score"], **scores)


class frozen_statistics:
    """Inside the block batch-norm layers stay in evaluation mode, whatever ``train()`` says.

    Args:
        model: The model.
        on: Whether to.
    """

    def __init__(self, model: nn.Module, on: bool) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)] if on else []

    def __enter__(self) -> None:
        for layer in self.layers:
            layer.train = lambda mode=True, layer=layer: nn.Module.train(layer, False)  # type: ignore[method-assign,misc]

    def __exit__(self, *error: object) -> None:
        for layer in self.layers:
            del layer.train


def _state(model: nn.Module, device: str | None = None) -> dict[str, Tensor]:
    return {name: value.detach().to(device or value.device, copy=True) for name, value in model.state_dict().items()}
