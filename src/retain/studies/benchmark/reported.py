"""What papers report, in per cent with the standard error where it is given: never ours."""

from __future__ import annotations

from retain.studies.benchmark.spec import PRESETS, BenchmarkSpec

_THREE = "van de Ven, Tuytelaars and Tolias 2022"
_FEEDBACK = "van de Ven and Tolias 2018"
_RITTER = "Ritter, Botev and Barber 2018"
# by stream and number of tasks, scenario and method
_NUMBERS: dict[tuple[str, int], dict[str, dict[str, tuple[float, float]]]] = {
    ("split", 5): {
        "task": {
            "plain": (84.3, 1.0),
            "ewc": (99.06, 0.15),
            "si": (99.20, 0.11),
            "lwf": (99.60, 0.03),
            "er": (98.98, 0.07),
            "generative-replay": (99.50, 0.03),
            "a-gem": (98.5, 0.1),
            "xdg": (98.74, 0.0),
            "separate": (99.57, 0.0),
            "joint": (99.67, 0.03),
        },
        "domain": {
            "plain": (60.1, 1.7),
            "ewc": (63.0, 1.6),
            "si": (66.9, 1.1),
            "lwf": (72.2, 1.2),
            "er": (93.75, 0.24),
            "generative-replay": (95.6, 0.3),
            "a-gem": (87.7, 1.3),
            "joint": (98.6, 0.05),
        },
        "class": {
            "plain": (19.9, 0.02),
            "ewc": (20.6, 0.5),
            "si": (21.2, 0.6),
            "lwf": (21.9, 0.3),
            "er": (88.79, 0.20),
            "generative-replay": (90.4, 0.2),
            "a-gem": (65.1, 3.6),
            "icarl": (92.5, 0.1),
            "joint": (98.2, 0.04),
        },
    },
    ("permuted", 10): {
        "domain": {
            "plain": (78.51, 0.0),
            "ewc": (94.31, 0.0),
            "online-ewc": (94.42, 0.0),
            "si": (95.33, 0.0),
            "lwf": (72.64, 0.0),
            "generative-replay": (95.09, 0.0),
            "joint": (97.59, 0.0),
        },
    },
    ("permuted", 50): {"domain": {"laplace": (90.0, 0.0)}},
}
_SOURCES = {("split", 5): _THREE, ("permuted", 10): f"{_FEEDBACK}, whose standard errors are at most 0.62", ("permuted", 50): f"{_RITTER}: above 90"}


_SETTING = ("units", "train_steps", "batch_size", "optimizer", "lr", "schedule", "carry_optimizer", "pad", "class_order", "budget", "budget_of")
_PRESETS = {("split", 5): "split-mnist", ("permuted", 10): "permuted-mnist-10", ("permuted", 50): "permuted-mnist-50"}


def _published(spec: BenchmarkSpec) -> bool:
    """Whether network, steps and the like are those of the preset that follows the paper."""
    name = _PRESETS.get((spec.stream, spec.experiences))
    if name is None:
        return False
    published = BenchmarkSpec.parse(PRESETS[name])
    return all(getattr(spec, key) == getattr(published, key) for key in _SETTING)


def source(spec: BenchmarkSpec) -> str:
    """Who reports on this stream; empty if nobody here, or if the images are only a part."""
    return "" if spec.embedded or not _published(spec) else _SOURCES.get((spec.stream, spec.experiences), "")


def reported(spec: BenchmarkSpec, scenario: str, method: str) -> tuple[float, float] | None:
    """Average accuracy at the end, in per cent, and its standard error (0: not given).

    Args:
        spec: The settings; on embedded images, or in another setting than the paper's, nothing is reported.
        scenario: By name.
        method: By name.

    Returns:
        Both, or ``None`` if nothing is reported.
    """
    if spec.embedded or not _published(spec):
        return None
    return _NUMBERS.get((spec.stream, spec.experiences), {}).get(scenario, {}).get(method)
