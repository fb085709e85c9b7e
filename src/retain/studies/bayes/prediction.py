"""What the answers are worth: error, calibration, strange inputs, and how many weights are needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from retain import metrics
from retain.methods import Plain
from retain.models import Ensemble, GaussianPrior, ScaleMixture, prune
from retain.seeds import derive
from retain.studies.base import Keeper
from retain.studies.bayes.common import net, options, record, ten_digits, vcl
from retain.studies.bayes.spec import BayesSpec
from retain.tasks import Task, fashion_mnist
from retain.training import learn, predict

_EDGES = 25


def stages(spec: BayesSpec) -> list[str]:
    """Every network; the members of the ensemble are stages of their own."""
    names: list[str] = []
    for name in spec.nets:
        names += [f"member {k}@prediction" for k in range(spec.members)] if name == "ensemble" else [f"{name}@prediction"]
    return names


def samples(spec: BayesSpec) -> float:
    """Training images that all stages see, in multiples of the ten digits."""
    return spec.net_epochs * len(stages(spec))


def run(spec: BayesSpec, seed: int, keeper: Keeper) -> list[dict[str, Any]]:
    """Train every network on the ten digits and question it."""
    digits, strange, found = ten_digits(spec, seed), fashion_mnist(spec.data, embedded=spec.embedded), []
    for name in spec.nets:
        history: list[Any] = []
        model: nn.Module
        if name == "ensemble":
            model = Ensemble([_train(spec, "plain", seed, keeper, f"member {k}@prediction", k)[0] for k in range(spec.members)])
        else:
            model, entry = _train(spec, name, seed, keeper, f"{name}@prediction")
            history = entry["history"]
            keeper.keep(name, model)
        pruned = []
        if name in ("gaussian", "mixture"):
            for cut in spec.cuts:
                lighter = prune(model, cut)
                pruned.append([cut, *(predict(lighter, digits, part=part, samples=spec.answers).accuracy for part in ("test", "validation"))])
        found.append({"net": name, "pruned": pruned, "history": history, **_asked(model, digits, strange, spec)})
    return found


def _train(spec: BayesSpec, name: str, seed: int, keeper: Keeper, stage: str, member: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    priors = {"gaussian": GaussianPrior(std=spec.prior_std), "mixture": ScaleMixture(spec.pi, spec.sigma1, spec.sigma2)}
    method = vcl(spec, prior=priors[name], beta=spec.net_beta, strength=1.0) if name in priors else Plain()
    own = derive(seed, "member", member) if member else seed
    result = learn(
        net(spec.net_hidden, 10, own),
        [ten_digits(spec, seed)],
        method,
        epochs=spec.net_epochs,
        seed=own,
        recorder=keeper.recorder(stage),
        consolidate_last=False,
        **options(spec, plain=name == "plain"),
    )
    assert result.model is not None
    return result.model, record(result)


def _asked(model: nn.Module, digits: Task, strange: Task, spec: BayesSpec) -> dict[str, Any]:
    """Error, calibration and uncertainty on the test images, and on those of another data set."""
    known, held_out, other = (
        predict(model, task, part=part, samples=spec.answers) for task, part in ((digits, "test"), (digits, "validation"), (strange, "test"))
    )
    inside, outside = known.uncertainty, other.uncertainty
    entry: dict[str, Any] = {
        "accuracy": known.accuracy,
        "validation": held_out.accuracy,
        "nll": known.nll,
        "ece": known.calibration.error,
        "bins": [known.calibration.confidence, known.calibration.accuracy, known.calibration.count],
        "auroc": metrics.auroc(inside.total, outside.total),
        "entropies": {},
    }
    if len(known.draws) > 1:
        entry["auroc_epistemic"] = metrics.auroc(inside.epistemic, outside.epistemic)
    for kind in ("total", "aleatoric", "epistemic"):
        entry["entropies"][kind] = [float(getattr(part, kind).mean()) for part in (inside, outside)]
    top = float(torch.tensor(10.0).log())
    entry["histogram"] = [torch.histc(part.total, _EDGES, 0.0, top).div(len(part.total)).tolist() for part in (inside, outside)]
    return entry
