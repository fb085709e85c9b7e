"""What adversarial noise shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retain.figures import Figure, Lines, Series, Table
from retain.metrics import Estimate, estimate
from retain.studies.plasticity.names import VARIANTS, count
from retain.studies.plasticity.noise import NETS
from retain.studies.plasticity.spec import PlasticitySpec

Results = Sequence[dict[str, Any]]
KINDS = {"random": "random signs", "fgsm": "one gradient step", "pgd": "several gradient steps"}


def _found(results: Results, net: str, kind: str, place: int) -> Estimate:
    return estimate(entry[kind][place] for result in results for entry in result["noise"] if entry["net"] == net)


def sentence(spec: PlasticitySpec, results: Results) -> str:
    """The accuracies under the attack, in the middle of the sizes."""
    place = len(spec.sizes) // 2
    said = [f"{VARIANTS[net]} {_found(results, net, 'pgd', place).percent()} % (of {_found(results, net, 'pgd', 0).percent()})" for net in NETS]
    return f"Under gradient steps of size {spec.sizes[place]:g}: {', '.join(said)} ({count(len(results), 'run')})."


def numbers(spec: PlasticitySpec, results: Results) -> dict[str, Any]:
    """Accuracy under several gradient steps, by network, then by size."""
    return {f"{net}, noise": {f"size {size:g}": _found(results, net, "pgd", i)._asdict() for i, size in enumerate(spec.sizes)} for net in NETS}


def shown(spec: PlasticitySpec, results: Results) -> tuple[list[Table], list[Figure]]:
    """A table of accuracies, and a panel for each kind of noise."""
    rows = [[VARIANTS[net], KINDS[kind], *(_found(results, net, kind, i).percent() for i in range(len(spec.sizes)))] for net in NETS for kind in KINDS]
    note = (
        f"Accuracy on {spec.attacked:,} test images, width {spec.width}, mean ± standard error over {count(len(results), 'run')}, by the "
        "largest change of a pixel in [0, 1]. The gradient is that of the margin between "
        f"the label and the largest other logit, which does not saturate; {spec.pgd_steps} steps. Networks that are less accurate to begin with "
        "have less to lose."
    )
    table = Table("Noise", ["network", "noise", *(f"{size:g}" for size in spec.sizes)], rows, note)
    panels = {}
    for kind, title in KINDS.items():
        panels[title] = [
            Series(
                VARIANTS[net],
                list(spec.sizes),
                [100 * _found(results, net, kind, i).mean for i in range(len(spec.sizes))],
                color=color,
                dashed=net.startswith("tuned"),
            )
            for color, net in enumerate(NETS)
        ]
    return [table], [
        Lines(
            "Noise",
            "largest change of a pixel",
            "accuracy, %",
            panels=panels,
            id="noise",
            caption="White-box attacks, and random signs of the same size beside them.",
        )
    ]
