"""Rules of plasticity, learned on a synthetic task and carried to images.

The published notebook (dataset generalization, Columbia 2020, after Cristian, Dabagia, Papadimitriou and Vempala 2021) finished two of its eight rows: the
recurrent network, 11 to 23 %, and PrePost with two hidden layers, 53 to 63 % in four of five runs.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from retain.errors import InputError, RetainError
from retain.figures import Figure, Table
from retain.plasticity import TableRule, learn_online
from retain.plasticity.compiled import available
from retain.plasticity.learners import NUMBA_HINT
from retain.plasticity.losses import check_loss
from retain.studies.base import Keeper, Outcome, Plan, Study
from retain.studies.plasticity import carry, noise, rows, variants
from retain.studies.plasticity import figures as show
from retain.studies.plasticity.common import inputs_of, network, target, whole
from retain.studies.plasticity.spec import PRESETS, PlasticitySpec
from retain.tasks import Task

PARTS: dict[str, Any] = {"rows": rows, "variants": variants, "carry": carry, "noise": noise}


class PlasticityStudy(Study):
    """The plasticity study."""

    name = "plasticity"
    title = "A rule learned, then carried"
    question = (
        "How a synapse changes is learned on a synthetic task of two classes. Carried to images of ten, with no gradient descent and no other "
        "weights: how much "
        "does the rule learn there?"
    )
    spec_type = PlasticitySpec
    citations: ClassVar[list[str]] = [
        "cristian2021learning",
        "confavreux2020meta",
        "shervani2023meta",
        "freund1999large",
        "lillicrap2016random",
        "nokland2016direct",
        "oja1982simplified",
        "hansen2001completely",
        "wierstra2014natural",
        "goodfellow2015explaining",
        "madry2018towards",
        "lecun1998gradient",
        "xiao2017fashion",
    ]
    presets = PRESETS
    more = "More questions"

    def stages(self, spec: PlasticitySpec) -> list[str]:
        """Part by part."""
        return [stage for part in spec.experiments for stage in PARTS[part].stages(spec)]

    def check(self, spec: PlasticitySpec) -> None:
        """Load the data, and see that the sizes go together and nothing is asked for twice."""
        if spec.device not in ("auto", "cpu"):
            raise InputError("device", "cpu: this study's rules run in compiled code", repr(spec.device))
        if not available():
            raise RetainError(f"The plasticity study needs numba. {NUMBA_HINT.split(',')[0]}.")
        if spec.start is not None:
            raise InputError("--from", "a study that starts from a stored model", "plasticity", "It learns its rules itself.")
        if spec.cap > spec.width:
            raise InputError("cap", f"at most the width, {spec.width}", spec.cap)
        check_loss(spec.loss, spec.double_softmax)
        averaged = ("averaged" in spec.variants and "variants" in spec.experiments) or {"carry", "noise"} & set(spec.experiments)
        if spec.form == "multiplicative" and averaged:
            hint = "Leave 'averaged' out of the variants, and run no carrying or noise."
            raise InputError("form", "additive, since averaged weights are asked for", "multiplicative", hint)
        spec.check_once("experiments", "rows", "rates", "variants", "widths", "targets", "carried", "carry_widths", "carry_layers", "carry_shares", "sizes")
        for name in self._images(spec):
            task = whole(name, spec.embedded, spec.data)
            if name != "digits" and spec.validation >= task.n:
                raise InputError("validation", f"fewer than the {task.n} training images of {name}", spec.validation)

    @staticmethod
    def _images(spec: PlasticitySpec) -> list[str]:
        """The data sets that are used."""
        return sorted({"mnist", *(spec.targets if "variants" in spec.experiments else ()), *(("fashion",) if "carry" in spec.experiments else ())})

    def plan(self, spec: PlasticitySpec) -> Plan:
        """Time a thousand images of the PrePost loop and multiply."""
        self.check(spec)
        torch.set_num_threads(spec.threads)
        task = target(spec, "mnist", 0)
        net = network(spec, inputs_of(task), 10, 2, 0)
        data: Any = task.data
        few = Task((data.inputs[:1000], data.targets[:1000]), id="mnist")
        rule = TableRule.fit(net)
        learn_online(net, rule, few, score_every=0)  # compiles, or loads what was compiled
        second = learn_online(net, rule, few, score_every=0).seconds / 1000
        stages = self.stages(spec)
        images = spec.passes * task.n * len(stages)
        meta = spec.upstream_points * spec.rule_epochs * len([stage for stage in stages if "tuned" not in stage])
        tried = 1.5 * len(spec.rates)  # gradient descent at every rate, on nets of several depths or sizes
        wide = len(spec.targets) * sum(0.5 + width / spec.width for width in spec.widths)  # what a stage of the variants learns, in multiples of the loop's net
        share = {"rows": 1.5, "variants": 2 * wide, "carry": 6.0, "noise": 3.0}
        loops = sum(share[stage.split("@")[1]] * (tried if "tuned" in stage else 1) for stage in stages)
        scored = 2.0 + 15_000 / spec.curve_every / 4 if not spec.embedded else 2.5  # what scoring costs beside learning
        seconds = scored * spec.passes * task.n * loops * second + 1.5 * meta * 1e-4
        parameters = sum(p.numel() for p in net.parameters())
        return Plan(parameters, {task.id: task.n}, self.stages(spec), images, seconds, f"one image, {1e6 * second:.1f} microseconds")

    def run(self, spec: PlasticitySpec, seed: int, keeper: Keeper) -> dict[str, Any]:
        """Every part."""
        found: dict[str, Any] = {}
        seed += spec.offset
        for part in spec.experiments:
            found[part] = PARTS[part].run(spec, seed, keeper)
            keeper.notice("verdict", text=f"Seed {seed}: {show.sentence(spec, [found], part)}")
        return found

    def summarise(self, spec: PlasticitySpec, results: list[dict[str, Any]]) -> Outcome:
        """The sentence, the tables and the figures of the report."""
        said = sorted({whole(name, spec.embedded, spec.data).note for name in self._images(spec)} - {""}) if spec.embedded else []
        notes = [note for note in said if not any(other != note and other.startswith(note) for other in said)]  # the longer one says it all
        tables: list[Table] = []
        figures: list[Figure] = []
        for part in spec.experiments:
            found = show.SHOWN[part](spec, results)
            tables += found[0]
            figures += found[1]
        if "rows" in spec.experiments:
            notes.append(
                "Reported by the notebook, test accuracy on MNIST after one epoch, 5 runs: recurrent 11.0, 18.7, 23.2, 22.9, 17.9 %; PrePost "
                "with two hidden layers 62.3, "
                "52.8, 62.5, 59.6 % (the fifth run was interrupted). The other rows were never run."
            )
        headline = " ".join(show.sentence(spec, results, part) for part in spec.experiments[:2])
        return Outcome(headline, tables, figures, notes, show.numbers(spec, results))
