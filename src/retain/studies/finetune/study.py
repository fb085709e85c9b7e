"""Why does transfer regularise? A pretrained and an untrained network learn a few images a class, by every recipe and beside controls.

The published notebook (implicit regularization in transfer learning: ResNet-50, Flowers-102) never finished an epoch, and its untrained arm was given the
other model's parameters.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from retain.errors import InputError, nearest
from retain.figures import Figure, Table
from retain.recipes import RECIPES
from retain.studies.base import Keeper, Outcome, Plan, Study
from retain.studies.finetune import curves, figures, inside_figures, small, small_figures
from retain.studies.finetune.common import MEMBERS, arms, drawn, network, pictures, pool
from retain.studies.finetune.spec import CONTROLS, PRESETS, FinetuneSpec
from retain.studies.steps import measured_step
from retain.training.devices import choose_device

_COST = {"linear-probe": 0.1, "soup": float(MEMBERS)}
"""Of an arm, in multiples of fine-tuning."""


class FinetuneStudy(Study):
    """The fine-tuning study."""

    name = "finetune"
    title = "Why transfer regularises"
    question = (
        "A network that was trained on much learns a task of few images: how much better is it than one that starts at random, by which recipe, and what of "
        "the start is it that helps?"
    )
    spec_type = FinetuneSpec
    citations: ClassVar[list[str]] = [
        "neyshabur2020transferred",
        "raghu2019transfusion",
        "zhang2017understanding",
        "kumar2022finetuning",
        "li2018explicit",
        "wortsman2022robust",
        "howard2018universal",
        "li2018visualizing",
        "andriushchenko2023modern",
        "kornblith2019similarity",
        "nilsback2008automated",
    ]
    presets = PRESETS
    more = "Looking inside"

    def stages(self, spec: FinetuneSpec) -> list[str]:
        """Arm by arm and size by size, then the small problem."""
        return [*(curves.stages(spec) if self._images(spec) else []), *(small.stages(spec) if "small" in spec.sections else [])]

    @staticmethod
    def _images(spec: FinetuneSpec) -> bool:
        return bool({"curves", "inside"} & set(spec.sections))

    def check(self, spec: FinetuneSpec) -> None:
        """Read the pictures and the network, and see that there are enough of each class."""
        choose_device(spec.device)
        spec.check_once("sections", "per_class", "recipes", "controls", "rates", "small_samples", "small_related")
        if spec.start is not None:
            raise InputError("--from", "a study that starts from a stored model", "finetune", "Set model to the network to start from.")
        for recipe in spec.recipes:
            if recipe not in RECIPES:
                raise InputError("recipes", "recipes", repr(recipe), nearest(recipe, RECIPES))
        known = [arm.name for arm in arms(spec.model_copy(update={"recipes": tuple(RECIPES), "controls": CONTROLS}))]
        for name in spec.own_rates:
            if name not in known:
                raise InputError("own_rates", "names of recipes and controls", repr(name), nearest(name, known))
        if spec.surface_points % 2 == 0:
            raise InputError("surface_points", "an odd number, so that the model is on the grid", spec.surface_points, f"Take {spec.surface_points + 1}.")
        if not self._images(spec):
            return
        for name, side in (("size", spec.size), ("test_size", spec.test_size or spec.size)):
            if "shuffled-blocks" in spec.controls and side % spec.block:
                raise InputError("block", f"a divisor of the {side} pixels of {name}", spec.block)
        if spec.test_crop is not None and spec.test_size is None:
            raise InputError("test_crop", "null without test_size", spec.test_crop, f"Pass test_size={spec.size} too.")
        task = pictures(spec)
        if task.test is None:
            raise InputError("data", "test images", "none", "Give the folder a share for testing.")
        network(spec, len(task.classes or ()))
        pool(spec, spec.offset)

    def plan(self, spec: FinetuneSpec) -> Plan:
        """Time a few training steps and multiply."""
        self.check(spec)
        torch.set_num_threads(spec.threads)
        if not self._images(spec):
            return Plan(0, {}, self.stages(spec), 0, 20.0, "points of a function")
        task = pool(spec, spec.offset)
        model = network(spec, len(task.classes or ()))
        one = drawn(task, curves.sizes(spec)[0], spec.offset)
        second, batch = measured_step(model, one, spec.batch_size, spec.optimizer, spec.rates[0])
        steps = 0
        for n in curves.sizes(spec):
            images = drawn(task, n, spec.offset).n
            passes = max(spec.epochs * -(-images // spec.batch_size), spec.least_steps)
            again = 2 if "inside" in spec.sections and n == spec.inside_at else 1
            steps += passes * again + (passes * len(spec.rates) if n == spec.tune_at and len(spec.rates) > 1 else 0)
        total = sum(steps * _COST.get(arm.recipe, 1.0) for arm in arms(spec))
        tested = (task.test.size or 0) / spec.batch_size / 3 * len(curves.sizes(spec)) * len(arms(spec))  # a forward pass is a third of a step
        looked = len(arms(spec)) * 20 * spec.looked / spec.batch_size / 2 if "inside" in spec.sections else 0
        parameters = sum(p.numel() for p in model.parameters())
        return Plan(parameters, {task.id: task.n}, self.stages(spec), int(total), second * (total + tested + looked), batch)

    def run(self, spec: FinetuneSpec, seed: int, keeper: Keeper) -> dict[str, Any]:
        """Every part."""
        seed += spec.offset
        found: dict[str, Any] = {}
        if self._images(spec):
            task = pictures(spec)
            found |= {"curves": curves.run(spec, seed, keeper), "images": task.n, "classes": len(task.classes or ())}
            keeper.notice("verdict", text=f"Seed {seed}: {figures.sentence(spec, [found])}")
        if "small" in spec.sections:
            found["small"] = small.run(spec, seed, keeper)
            keeper.notice("verdict", text=f"Seed {seed}: {small_figures.sentence(spec, [found['small']])}")
        return found

    def summarise(self, spec: FinetuneSpec, results: list[dict[str, Any]]) -> Outcome:
        """The sentences, tables and figures of the report."""
        tables: list[Table] = []
        drawn_figures: list[Figure] = []
        said, notes = [], []
        numbers: dict[str, Any] = {}
        parts = [(figures, results)] if self._images(spec) else []
        parts += [(inside_figures, results)] if "inside" in spec.sections else []
        parts += [(small_figures, [result["small"] for result in results])] if "small" in spec.sections else []
        for module, found in parts:
            more = module.shown(spec, found)
            tables += more[0]
            drawn_figures += more[1]
            if module is not inside_figures:
                said.append(module.sentence(spec, found))
                numbers |= module.numbers(spec, found)
        if self._images(spec):
            larger = f", asked at {spec.test_size} px" if spec.test_size else ""
            notes.append(f"{spec.model}, {spec.size} px{larger}. {pictures(spec).note}".strip())
        return Outcome(" ".join(said), tables, drawn_figures, notes, numbers)
