"""Whether two models' features say the same about samples: centred kernel alignment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from retain.diagnosis.inputs import FORWARD, as_checked, held, part_of, weights
from retain.errors import InputError, nearest
from retain.figures import Lines, Matrices, Series, Table
from retain.models.parameters import evaluating, unwrap
from retain.tasks.batch import apply
from retain.tasks.task import Task
from retain.training.recorder import Recorder, Silent

CAVEAT = (
    "CKA is blind to what is orthogonal to the large directions of the features: 1 does not mean equal answers, and a few far samples can dominate it. "
    "Debiased, it is about 0 for unrelated features and may fall below."
)
_STORED = 1_000_000_000  # bytes of features held at a time
_PART = 4_000_000  # numbers converted to float64 at a time
_MOST = 16  # layers compared if none are named


def linear_cka(X: Tensor, Y: Tensor, *, debiased: bool = True) -> float:
    r"""Centred kernel alignment of two sets of features of the same samples, with linear kernels.

    With :math:`K = XX^\top` and :math:`L = YY^\top`, biased: :math:`\langle HKH, HLH\rangle / (\|HKH\|\,\|HLH\|)`, H the centring matrix (Kornblith et al.
    2019, https://arxiv.org/abs/1905.00414); for more features than samples it is near 1 whatever they are. Debiased: each :math:`\langle\cdot,\cdot\rangle`
    becomes the unbiased estimator of the Hilbert-Schmidt criterion,
    :math:`\frac{1}{n(n-3)}[\operatorname{tr} KL + \frac{1^\top K 1\,1^\top L1}{(n-1)(n-2)} - \frac{2}{n-2}1^\top KL1]`
    with the diagonals of K and L set to 0 (Song et al. 2012, J. Mach. Learn. Res. 13, eq. 5; Nguyen, Raghu and Kornblith 2021,
    https://arxiv.org/abs/2010.15327; Murphy, Zylberberg and Fyshe 2024, https://arxiv.org/abs/2405.01012). That is the inner product of U-centred matrices
    (Székely and Rizzo 2014, https://arxiv.org/abs/1310.2926), so its norms are never negative and no root of a negative number can arise. All in float64.

    Args:
        X: Features of the first model, ``[n, ...]``.
        Y: Features of the second model, ``[n, ...]``.
        debiased: Take the unbiased estimator, which needs n of at least 4.

    Returns:
        1 for equal features up to rotation, scale and shift; about 0 for unrelated ones.

    Raises:
        InputError: If the samples differ in number, are fewer than 4 (2 if biased), or the features are constant or not finite.

    Example:
        >>> import torch
        >>> from retain.diagnosis import linear_cka
        >>> X, Y = torch.randn(50, 400), torch.randn(50, 400)
        >>> linear_cka(X, Y, debiased=False) > 0.8, abs(linear_cka(X, Y)) < 0.2
        (True, True)
    """
    least = 4 if debiased else 2
    if len(X) != len(Y):
        raise InputError("Y", f"features of the same {len(X)} samples as X", f"{len(Y)} samples")
    if len(X) < least:
        raise InputError("X", f"at least {least} samples, below which the estimator is not defined", len(X), "Collect the features of several batches.")
    first, second = (_centred(_gram(_checked(name, value)), debiased) for name, value in (("X", X), ("Y", Y)))
    if first is None or second is None:
        raise InputError("X" if first is None else "Y", "features that vary over the samples", "constant ones", "Without variance there is nothing to align.")
    return float(first.flatten() @ second.flatten())


@dataclass(frozen=True, repr=False)
class Similarity:
    """Debiased CKA between the layers of two models.

    Args:
        layers: Of both models, from input to output.
        matrix: Row i, column j: layer i of the first model with layer j of the second.
        samples: n, over all batches.
        left_out: Why a layer is missing, by name.
    """

    layers: tuple[str, ...]
    matrix: list[list[float]]
    samples: int
    left_out: dict[str, str]

    @property
    def same(self) -> dict[str, float]:
        """Each layer with its own counterpart."""
        return {name: self.matrix[i][i] for i, name in enumerate(self.layers)}

    def table(self) -> Table:
        """Each layer with its own counterpart."""
        out = f" Left out: {'; '.join(f'{name} ({why})' for name, why in self.left_out.items())}." if self.left_out else ""
        note = f"{self.samples} samples. {CAVEAT}{out}"
        return Table("Similarity of features (linear CKA, debiased)", ["layer", "CKA"], [[name, f"{value:.3f}"] for name, value in self.same.items()], note)

    def figures(self) -> list[Lines | Matrices]:
        """Layer by layer, and all pairs."""
        depth, names = [float(i + 1) for i in range(len(self.layers))], [str(i + 1) for i in range(len(self.layers))]
        line = Lines("Similarity of features", "layer, from the input", "CKA", [Series("same layer", depth, list(self.same.values()))], id="cka")
        every = {"": [[100 * value for value in row] for row in self.matrix]}
        unit = ".0f" if len(names) <= 10 else ""
        return [line, Matrices("CKA of all pairs, %", every, names, names, unit, x_label="layer after", y_label="layer before", id="cka-pairs")]

    def _repr_html_(self) -> str:
        return self.table().html()

    def __repr__(self) -> str:
        return self.table().text()


def cka(
    before: nn.Module,
    after: nn.Module,
    task: Any,
    *,
    layers: str | Iterable[str] | None = None,
    part: str | None = None,
    samples: int = 256,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> Similarity:
    """Debiased linear CKA between the layers of two models on the same samples.

    Both models see the same samples in the same batches. Batches only bound the memory: their features are put together before anything is estimated, so
    that a last batch of 2 or 3, for which no unbiased estimator exists, does no harm; only n of all samples has to be at least 4. Convolutions' maps and
    sequences are flattened. Features are held for a few layers at a time (at most about 1 GB), in as many passes as that takes.

    Args:
        before: The first model.
        after: The second; the named layers must exist in both, and may differ in width.
        task: The samples, and how the model is applied.
        layers: Names or patterns of modules, such as ``"layer*.conv2"``; by default modules with weight matrices or kernels, at most 16, evenly spaced.
        part: Of the task; by default the test data, else the validation data, else the training data.
        samples: n, drawn at random (of a loader: the first).
        seed: Of the draw.
        recorder: Where progress is reported.

    Returns:
        Similarities of all pairs of layers.

    Raises:
        InputError: If a name matches no layer, there are fewer than 4 samples, or no layer gives features that vary.

    Example:
        >>> from retain import models, tasks
        >>> from retain.diagnosis import cka
        >>> found = cka(models.MLP(64, 32, 10, seed=0), models.MLP(64, 32, 10, seed=1), tasks.digits())
        >>> found.layers, found.same["layers.fc1"] > 0.5
        (('layers.fc1', 'layers.fc2'), True)
    """
    task, recorder = replace(as_checked(task), active=None), recorder or Silent()  # features are compared, not answers
    for name, model in (("before", before), ("after", after)):
        weights(model, name)
    names = _chosen(unwrap(before), unwrap(after), layers)
    grams, left_out, n = [], {}, 0
    for number, model in enumerate((unwrap(before), unwrap(after)), start=1):
        fixed = held(model, task, part or part_of(task), samples, seed, FORWARD, check=False)
        n = sum(len(batch.targets) for batch in fixed.batches(1))
        if n < 4:
            raise InputError("samples", "at least 4, below which the unbiased estimator is not defined", n)
        found, why = _grams(model, fixed, names)
        grams.append(found)
        left_out.update(why)
        recorder.event("cka", model=number, layers=len(found))
    kept = [name for name in names if name not in left_out]
    if not kept:
        raise InputError("layers", "layers whose outputs vary over the samples", "; ".join(f"{name} ({why})" for name, why in left_out.items()))
    first, second = (torch.stack([found[name].flatten() for name in kept]) for found in grams)
    return Similarity(tuple(kept), (first @ second.T).tolist(), n, left_out)


def _chosen(before: nn.Module, after: nn.Module, layers: str | Iterable[str] | None) -> list[str]:
    there = dict(after.named_modules())
    known = [name for name, _ in before.named_modules() if name in there and name]
    if layers is None:
        found = [name for name in known if any(p.ndim > 1 for p in before.get_submodule(name).parameters(recurse=False))]
        if not found:
            raise InputError("layers", "layers with weights that both models have", "none", "Name them: layers=('encoder', 'head').")
        return [found[round(i * (len(found) - 1) / max(1, _MOST - 1))] for i in range(_MOST)] if len(found) > _MOST else found
    patterns = [layers] if isinstance(layers, str) else list(layers)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise InputError("layers", "names or patterns of layers that both models have", repr(pattern), nearest(str(pattern), known))
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _grams(model: nn.Module, task: Task, names: list[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Centred Gram matrices of norm 1 by layer, and the reasons why some are missing."""
    batches = list(task.batches(1))
    n = sum(len(batch.targets) for batch in batches)
    found: dict[str, Tensor] = {}
    why: dict[str, str] = {}
    with torch.no_grad(), evaluating(model):
        with _watched(model, names) as seen:
            apply(model, batches[0])
            sizes = {name: value.element_size() * value[0].numel() * n for name, value in seen.items() if len(value) == len(batches[0].targets)}
            why |= {name: "its output has no axis of samples" if name in seen else "it was not called" for name in names if name not in sizes}
        group: list[str] = []
        for number, name in enumerate(sizes):
            group.append(name)
            following = list(sizes.values())[number + 1 : number + 2]
            if following and sum(sizes[other] for other in group) + following[0] <= _STORED:
                continue
            parts: dict[str, list[Tensor]] = {name: [] for name in group}
            with _watched(model, group) as seen:
                for batch in batches:
                    apply(model, batch)
                    for name in group:
                        parts[name].append(seen[name])
            for name in group:
                features = torch.cat(parts.pop(name))
                centred = _centred(_gram(features), debiased=True) if bool(torch.isfinite(features).all()) else None
                if centred is None:
                    why[name] = "its output is constant or not finite"
                else:
                    found[name] = centred
            group = []
    return found, why


@contextmanager
def _watched(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """What leaves the named modules in the latest forward pass, flattened; copies, since what follows may overwrite it in place."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            leaf = next((part for part in tree_leaves(output) if isinstance(part, Tensor)), None)
            if leaf is not None and leaf.ndim:
                seen[name] = leaf.detach().flatten(1).clone() if leaf.ndim > 1 else leaf.detach()[:, None].clone()

        return keep

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _checked(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.ndim:
        raise InputError(name, "a tensor of floating point features [n, ...]", value.dtype if isinstance(value, Tensor) else type(value).__name__)
    if not bool(torch.isfinite(value).all()):
        raise InputError(name, "finite numbers", "NaN or infinity")
    return value.detach().flatten(1) if value.ndim > 1 else value.detach()[:, None]


def _gram(X: Tensor) -> Tensor:
    """Inner products of centred features in float64, a part of the features at a time."""
    total = torch.zeros(len(X), len(X), dtype=torch.float64, device=X.device)
    for part in X.split(max(1, _PART // len(X)), 1):
        exact = part.double()
        exact = exact - exact.mean(0)
        total.addmm_(exact, exact.T)
    return total


def _centred(K: Tensor, debiased: bool) -> Tensor | None:
    """A Gram matrix of centred features, U-centred if debiased, divided by its norm; ``None`` if all features are constant."""
    n, size = len(K), float(K.diagonal().sum())
    if debiased:
        K = K.clone().fill_diagonal_(0)
        rows = K.sum(0)
        K = (K - (rows[:, None] + rows) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))).fill_diagonal_(0)
    norm = float(torch.linalg.matrix_norm(K))
    return K / norm if norm > 1e-12 * size and math.isfinite(norm) else None
