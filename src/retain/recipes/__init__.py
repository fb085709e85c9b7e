"""Recipes of fine-tuning: which weights learn when, and what holds them meanwhile. One recipe a file."""

from retain.recipes.base import Phase, Place, Recipe, blocks
from retain.recipes.bss import BSS
from retain.recipes.delta import DELTA
from retain.recipes.gradual import GradualUnfreezing
from retain.recipes.held import HeldFisher, HeldL2SP
from retain.recipes.layerwise import LayerwiseDecay
from retain.recipes.lora import LoRA
from retain.recipes.partial import BiasesOnly, NormsOnly
from retain.recipes.plain import FineTune, Scratch
from retain.recipes.probe import LPFT, LinearProbe
from retain.recipes.solve import solve_head
from retain.recipes.soup import Soup
from retain.recipes.starts import STARTS, mean_variance, permuted, reinitialised
from retain.recipes.stochnorm import StochasticNormalisation
from retain.recipes.tune import FineTuned, finetune
from retain.recipes.wise import WiSEFT

RECIPES: dict[str, type[Recipe]] = {
    recipe.name: recipe
    for recipe in (
        Scratch,
        FineTune,
        LinearProbe,
        LPFT,
        HeldL2SP,
        HeldFisher,
        DELTA,
        BSS,
        StochasticNormalisation,
        LayerwiseDecay,
        GradualUnfreezing,
        WiSEFT,
        Soup,
        LoRA,
        NormsOnly,
        BiasesOnly,
    )
}

__all__ = [
    "BSS",
    "DELTA",
    "LPFT",
    "RECIPES",
    "STARTS",
    "BiasesOnly",
    "FineTune",
    "FineTuned",
    "GradualUnfreezing",
    "HeldFisher",
    "HeldL2SP",
    "LayerwiseDecay",
    "LinearProbe",
    "LoRA",
    "NormsOnly",
    "Phase",
    "Place",
    "Recipe",
    "Scratch",
    "Soup",
    "StochasticNormalisation",
    "WiSEFT",
    "blocks",
    "finetune",
    "mean_variance",
    "permuted",
    "reinitialised",
    "solve_head",
]
