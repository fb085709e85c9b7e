"""What the forgetting study compares: its methods by arm, and the forms of the retention law."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from retain.beliefs import RetentionLaw, strength_from_importance
from retain.methods import EWC, L2SP, MAS, SI, SSR, Quadratic, RWalk, StructuredLaplace
from retain.seeds import derive
from retain.studies.forgetting_spec import ForgettingSpec, Law

if TYPE_CHECKING:
    from retain.tasks import Task

WATCHING = ("si", "rwalk")
"""Arms that have to see the first task being learned."""
SCALED = ("laplace", "ekfac", "ssr", "si", "mas", "rwalk")
"""Arms whose trade-off is taken at multiples of their strength."""
OLD_SHARE = 0.9
LAWS: dict[Law, tuple[str, RetentionLaw]] = {
    "model": ("whole model", RetentionLaw()),
    "layer": ("by layer", RetentionLaw(by="layer")),
    "share": (f"whole model, old-task share {OLD_SHARE:g}", RetentionLaw(share=OLD_SHARE)),
    "published": ("published form", RetentionLaw(form="published")),
}


def strength_of(spec: ForgettingSpec, arm: str, old: Task, new: Task) -> float:
    """The strength that an arm is run with."""
    if arm == "ewc":
        return spec.strength if spec.importance is None else strength_from_importance(spec.importance, old.n, new.n)
    return float(getattr(spec, f"strength_{arm}"))


def ewc(spec: ForgettingSpec, seed: int, strength: float | dict[str, float], samples: int | None) -> EWC:
    """EWC with the study's labels; only the arm's own samples are drawn with replacement."""
    replacement = spec.fisher_replacement and samples is not None
    return EWC(strength, spec.labels, samples, replacement=replacement, pull=spec.pull, seed=_labels(seed))


def make(spec: ForgettingSpec, arm: str, seed: int, strength: float | dict[str, float], old: Task) -> Quadratic:
    """The method of an arm.

    Args:
        spec: The study's settings.
        arm: Its name.
        seed: The run's seed.
        strength: Its strength, by pattern if it differs by layer; L2-SP's is its tau.
        old: The first task.

    Returns:
        A method that knows nothing yet.
    """
    every = spec.every if spec.pull == "proximal" else 1
    if arm == "ewc":
        return ewc(spec, seed, strength, spec.fisher_samples)
    if arm in ("laplace", "ekfac"):
        structure: Literal["kronecker", "ekfac"] = "ekfac" if arm == "ekfac" else "kronecker"
        return StructuredLaplace(strength, spec.labels, structure=structure, pull=spec.pull, every=every, seed=_labels(seed))
    if arm == "ssr":
        samples = None if spec.ssr_samples is None else min(spec.ssr_samples, old.n)
        return SSR(strength, spec.labels, samples, rank=spec.rank, pull=spec.pull, every=every, seed=_labels(seed))
    if arm == "si":
        return SI(strength, pull=spec.pull)
    if arm == "mas":
        return MAS(strength, pull=spec.pull, seed=_labels(seed))
    if arm == "rwalk":
        return RWalk(strength, spec.labels, pull=spec.pull, seed=_labels(seed))
    assert arm == "l2sp" and isinstance(strength, float)
    return L2SP(tau=strength, pull=spec.pull)


def _labels(seed: int) -> int:
    return derive(seed, "labels") % 2**31
