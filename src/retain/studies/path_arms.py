"""What the path study compares: strategies with their settings by arm, and pairs of networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from retain.models import MLP, Conv, Ensemble, ResNet
from retain.paths import Distillation, Frozen, Optimal, PruningRamp, Retention, Strategy, Sudden, TaskLoss
from retain.studies.path_spec import Arm, Pair


class Way(NamedTuple):
    """A strategy with what goes with it.

    Args:
        title: For tables.
        make: From a factor on its learning rate or damping, and settings, to the strategy.
        schedule: Of q.
        bridge: Between the models.
        few: Settings where samples are scarce and not time; ``early``: begin at the study's ``q_early``.
    """

    title: str
    make: Callable[..., Strategy]
    schedule: str = "linear"
    bridge: str = "mixture"
    few: Mapping[str, Any] = MappingProxyType({})


def _law(**settings: Any) -> Callable[..., Strategy]:
    def make(factor: float = 1.0, **more: Any) -> Strategy:
        chosen = {"iterations": 15, "damping": 1e-3, **settings, **more}
        return Optimal(**{**chosen, "damping": factor * chosen["damping"]})

    return make


def _descent(kind: Callable[..., Strategy], *first: Any, **settings: Any) -> Callable[..., Strategy]:
    def make(factor: float = 1.0, **more: Any) -> Strategy:
        chosen = {**settings, **more}
        return kind(*first, **{**chosen, "lr": factor * chosen["lr"]})

    return make


def _still(kind: type[Strategy]) -> Callable[..., Strategy]:
    return lambda factor=1.0, **more: kind()


def _ramp(**settings: Any) -> Strategy:
    return PruningRamp(Distillation(**settings))


# learning rates and dampings: the best on validation images of a seed that is not reported, preset 'tune'
_EARLY = {"early": True}
WAYS: dict[Arm, Way] = {
    "sudden": Way("sudden switch", _still(Sudden)),
    "frozen": Way("frozen", _still(Frozen)),
    "task": Way("labels, on the mixture", _descent(TaskLoss, lr=0.4)),
    "task-target": Way("labels, on the sparse net", _descent(TaskLoss, "target", lr=0.1, batch_size=64), few={"batch_size": 32, "lr": 0.05}),
    "kd": Way("distillation, SGD", _descent(Distillation, lr=0.1, batch_size=64), few={"batch_size": 32}),
    "kd-adam": Way("distillation, Adam", _descent(Distillation, optimizer="adam", lr=8e-3, batch_size=64)),
    "kd-reverse": Way("reverse distillation, SGD", _descent(Distillation, "reverse", lr=0.025, batch_size=64), few={"batch_size": 32, "lr": 0.02}),
    "kd-skew": Way("skew distillation, SGD", _descent(Distillation, "skew", lr=0.8, batch_size=64)),
    "ramp": Way("distillation, gates close slowly", _descent(_ramp, lr=0.2, batch_size=64)),
    "optimal": Way("optimal law", _law(), "geometric", few=_EARLY),
    "optimal-linear": Way("optimal law, q linear", _law(), few=_EARLY),
    "optimal-sin2": Way("optimal law, q = sin²", _law(), "sin2", few=_EARLY),
    "optimal-fisher": Way("optimal law, constant Fisher speed", _law(), "fisher-speed", few=_EARLY),
    "optimal-budget": Way("optimal law, retention budget", _law(), "retention-budget", few=_EARLY),
    "optimal-exponential": Way("optimal law, exponential bridge", _law(), "geometric", "exponential", few=_EARLY),
    "optimal-circle": Way("optimal law, great circle", _law(), "geometric", "great-circle", few=_EARLY),
    "optimal-kfac": Way("optimal law, KFAC", _law(solver="kfac", damping=2.5e-4), "geometric"),
    "optimal-floor": Way("optimal, rate floor", _law(solver="kfac", damping=2e-3, rate=0.7, trust=0.5, momentum=False)),
    "natural": Way(
        "natural-gradient distillation", _law(solver="kfac", rate=1.0, trust=0.5, metric="target", momentum=False), few={"batch_size": 256, "damping": 5e-3}
    ),
    "retention-optimal": Way("retention, the law's share", _descent(Retention, "optimal", lr=0.4)),
    "retention-none": Way("retention, nothing kept", _descent(Retention, "none", lr=0.4)),
    "retention-0.5": Way("retention, share 0.5", _descent(Retention, 0.5, lr=0.4)),
    "retention-0.9": Way("retention, share 0.9", _descent(Retention, 0.9, lr=0.4)),
    "retention-0.99": Way("retention, share 0.99", _descent(Retention, 0.99, lr=0.4)),
    "retention-all": Way("retention, everything kept", _descent(Retention, "all", lr=0.4)),
    "retention-replay": Way("retention, the law's share, replay of 10,000", _descent(Retention, "optimal", replay=10000, lr=0.4)),
}
SMOOTH = ("kd",)
"""Arms that have a temperature, raised in the long runs."""


def pair(name: Pair, seed: int) -> tuple[list[nn.Module], Callable[[list[nn.Module]], nn.Module], nn.Module]:
    """Two kinds of networks.

    Args:
        name: Of the pair.
        seed: Of their initialisation.

    Returns:
        Networks to train as the source, a function that joins them, and the fresh target.
    """

    def one(models: list[nn.Module]) -> nn.Module:
        return models[0]

    wide = [MLP(784, 512, 256, 128, 10, seed=seed)]
    if name == "wide-narrow":
        return list(wide), one, MLP(784, 48, 24, 10, seed=seed + 1)
    if name == "mlp-cnn":
        return list(wide), one, Conv(28, 10, seed=seed + 1)
    if name == "cnn-mlp":
        return [Conv(28, 10, seed=seed)], one, MLP(784, 128, 10, seed=seed + 1)
    if name == "resnet-resnet":
        return [ResNet(8, 12, seed=seed)], one, ResNet(8, 6, seed=seed + 1)
    members: list[nn.Module] = [MLP(784, 128, 64, 10, seed=seed + i) for i in range(5)]
    return members, Ensemble, MLP(784, 128, 64, 10, seed=seed + 9)


PAIRS: dict[Pair, str] = {
    "wide-narrow": "MLP 784-512-256-128-10 to MLP 784-48-24-10",
    "mlp-cnn": "the same MLP to a small CNN",
    "cnn-mlp": "a small CNN to MLP 784-128-10",
    "resnet-resnet": "ResNet-8 of width 12 to one of width 6",
    "ensemble-one": "five MLPs 784-128-64-10 to one",
}
