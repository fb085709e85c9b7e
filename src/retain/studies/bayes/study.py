"""Digits 0-4, then 5-9: does the posterior of the first task, as the prior of the second, speed up learning, and does it remember?

The published notebook (Bayesian transfer learning, Bayes by Backprop in PyTorch) answered no twice: 66.5 % against 97.1 % from scratch on the second task,
and chance on the first. Its new posterior started at random, millions of nats from its needle of a prior, and its divergence was weighed as often as a batch
has samples.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from retain.errors import InputError
from retain.figures import Figure, Table
from retain.models import bayesian
from retain.studies.base import Keeper, Outcome, Plan, Study
from retain.studies.bayes import chains, digits, prediction, single
from retain.studies.bayes import figures as show
from retain.studies.bayes.common import images, net, ten_digits
from retain.studies.bayes.spec import PRESETS, BayesSpec
from retain.studies.steps import measured_step
from retain.tasks import fashion_mnist
from retain.training.devices import choose_device

_LEAST = 100  # training images: every task has some


class BayesStudy(Study):
    """The posterior study."""

    name = "bayes"
    title = "A posterior as the next prior"
    question = (
        "A Bayesian network has learned the digits 0-4. Its posterior becomes the prior for the digits 5-9: is the second task learned faster or better than "
        "from scratch, and what is remembered of the first?"
    )
    spec_type = BayesSpec
    citations: ClassVar[list[str]] = [
        "blundell2015weight",
        "nguyen2018variational",
        "loo2020generalized",
        "kingma2015variational",
        "rezende2015variational",
        "kirkpatrick2017overcoming",
        "lakshminarayanan2017simple",
        "guo2017calibration",
        "depeweg2018decomposition",
        "goodfellow2013empirical",
        "zenke2017continual",
        "lecun1998gradient",
        "xiao2017fashion",
    ]
    presets = PRESETS
    more = "More questions"

    def stages(self, spec: BayesSpec) -> list[str]:
        """Part by part."""
        found = digits.stages(spec) if "digits" in spec.parts else []
        found += chains.stages(spec) + single.stages(spec)
        return found + (prediction.stages(spec) if "prediction" in spec.parts else [])

    def check(self, spec: BayesSpec) -> None:
        """Load the data, and see that nothing is asked for twice."""
        choose_device(spec.device)
        if spec.start is not None:
            raise InputError("--from", "a study that starts from a stored model", "bayes", "It trains its first tasks itself.")
        spec.check_once("parts", "fractions", "heads", "arms", "chained", "angles", "schemes", "flows", "nets", "cuts")
        for name in ("schemes", "flows"):
            if name in spec.parts and not getattr(spec, name):
                raise InputError(name, f"at least one, since the part '{name}' is to run", "none")
        left = ten_digits(spec, 0).n
        if left < _LEAST:
            raise InputError("validation", f"at least {_LEAST} training images left", f"{left} left of {left + spec.validation}", "Hold out fewer.")
        if "prediction" in spec.parts:
            fashion_mnist(spec.data, embedded=spec.embedded)

    def plan(self, spec: BayesSpec) -> Plan:
        """Time a step of the Bayesian network and multiply."""
        self.check(spec)
        torch.set_num_threads(spec.threads)
        task, model = ten_digits(spec, 0), bayesian(net(spec.hidden, 10, 0))
        second, batch = measured_step(model, task, spec.batch_size, "adam", spec.lr)
        passes = digits.samples(spec) if "digits" in spec.parts else 0.0
        passes += chains.samples(spec) + single.samples(spec) + (prediction.samples(spec) if "prediction" in spec.parts else 0.0)
        steps = round(passes * -(-task.n // spec.batch_size))
        overhead = 2.0  # scoring after every epoch, and the divergence
        return Plan(sum(p.numel() for p in model.parameters()), {task.id: task.n}, self.stages(spec), steps, steps * second * overhead * spec.draws, batch)

    def run(self, spec: BayesSpec, seed: int, keeper: Keeper) -> dict[str, Any]:
        """Every part."""
        found: dict[str, Any] = {}
        seed += spec.offset
        if "digits" in spec.parts:
            found["digits"] = digits.run(spec, seed, keeper)
            keeper.notice("verdict", text=f"Seed {seed}: {show.sentence(spec, [found])}")
        for part in chains.CHAINS:
            if part in spec.parts:
                found[part] = chains.run(spec, part, seed, keeper)
        if "schemes" in spec.parts:
            found["schemes"] = single.run_schemes(spec, seed, keeper)
        if "flows" in spec.parts:
            found["flows"] = single.run_flows(spec, seed, keeper)
        if "prediction" in spec.parts:
            found["prediction"] = prediction.run(spec, seed, keeper)
        return found

    def summarise(self, spec: BayesSpec, results: list[dict[str, Any]]) -> Outcome:
        """The sentence, the tables and the figures of the report."""
        notes = [images(spec.embedded, spec.data).note] if spec.embedded else []
        tables: list[Table] = []
        figures: list[Figure] = []
        for part in spec.parts:
            found = show.SHOWN[part](spec, results, part)
            tables += found[0]
            figures += found[1]
        if "digits" in spec.parts:
            notes.append(
                "Reported by the notebook, 600 epochs: 97.1, 96.0 and about 89.5 % from scratch on 5-9 with all, half and a tenth of the data, 66.5, 50 and "
                "30 % with the posterior as prior, and chance on 0-4 afterwards."
            )
        if "prediction" in spec.parts:
            notes.append("Reported by Blundell et al. 2015, 2 x 400 units, test error: scale mixture 1.36 %, Gaussian 1.82 %, SGD 1.83 %, dropout 1.51 %.")
        if {"permuted", "split"} & set(spec.parts):
            notes.append("Reported by Nguyen et al. 2018: permuted MNIST 90 % (93 with a coreset of 200), split MNIST 97.0 % (98.4 with a coreset of 40).")
        return Outcome(show.sentence(spec, results), tables, figures, notes, show.numbers(spec, results))
