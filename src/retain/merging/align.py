"""One network's hidden units put into the order of another's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retain.diagnosis.inputs import same
from retain.diagnosis.inputs import weights as parameters_of
from retain.errors import RetainError, check_count
from retain.figures import Table
from retain.merging.symmetries import Example, Group, Member, Symmetries, left_out, reordered
from retain.models.parameters import unwrap
from retain.seeds import generator

_LEAST = 1e-12  # gains below this share of the largest possible sum are rounding


@dataclass(frozen=True, repr=False)
class Alignment:
    """A model with its units in another's order.

    Args:
        model: A new one, which computes what the old one did.
        permutations: By group of units: which old unit stands at each place.
        symmetries: The groups, and what was left out.
        similarity: Cosine of the reference's weights and the model's, before and after, by group, over all weights that the group permutes.
        distance: Between all weights of both, before and after.
        sweeps: Rounds over all groups that the better start took; the last changed nothing, unless they ran out.
    """

    model: nn.Module
    permutations: dict[str, Tensor]
    symmetries: Symmetries
    similarity: dict[str, tuple[float, float]]
    distance: tuple[float, float]
    sweeps: int

    @property
    def left_out(self) -> dict[str, str]:
        """Why an axis stays as it is, by parameter."""
        return self.symmetries.left_out

    def table(self, rows: int = 30) -> Table:
        """Units moved and similarity before and after, by group.

        Args:
            rows: At most so many groups, the first ones.

        Returns:
            A table that prints and shows itself in a notebook.
        """
        body = []
        for name, order in list(self.permutations.items())[:rows]:
            before, after = self.similarity[name]
            moved = int((order != torch.arange(len(order))).sum())
            body.append([name, str(len(order)), str(moved), f"{before:.3f}", f"{after:.3f}"])
        more = f"{len(self.permutations) - rows} more groups are not shown. " if len(self.permutations) > rows else ""
        note = f"Distance of all weights {self.distance[0]:.4g} before, {self.distance[1]:.4g} after. {more}{left_out(self.left_out)}".rstrip()
        return Table("Hidden units in the reference's order", ["group", "units", "moved", "cosine before", "after"], body, note)

    def _repr_html_(self) -> str:
        return self.table().html()

    def __repr__(self) -> str:
        return self.table().text()


def align(model: nn.Module, reference: nn.Module, task: Any, *, sweeps: int = 100, seed: int = 0) -> Alignment:
    r"""Permute a model's hidden units so that its weights come closest to a reference's: weight matching.

    Ainsworth, Hayase and Srinivasa 2023, algorithm 1 (https://arxiv.org/abs/2209.04836): over permutations :math:`\pi` of the hidden units, maximise
    :math:`\langle \theta_\mathrm{ref}, \pi(\theta) \rangle`, which minimises the distance. Group by group in random order, with the others held, that is
    a linear assignment problem, solved exactly (Crouse 2016, https://doi.org/10.1109/TAES.2016.140952, in scipy); rounds go on until no group gains.
    A step is taken only if the sum itself rises, so it ends, in a local maximum. Two starts are taken, and the better end: the order that there is, as in the
    paper, and one grown from the inputs, in which every group is placed by those weights alone whose other axes are placed (of a permuted copy that is
    the answer, which the paper's start may miss in deep networks). The groups are those of :func:`~retain.merging.symmetries`; buffers, such as
    batch-norm statistics, move along and do not count. At the end both models answer the same samples, and have to agree.

    Args:
        model: The model whose units move; it is not changed.
        reference: The model whose order they take; same names and shapes.
        task: A task or whatever makes one, or a tensor of inputs; 8 samples of it are used, and no labels.
        sweeps: Rounds over all groups, at most.
        seed: Of the order of the groups.

    Returns:
        The permuted model, permutations, similarities, and what was left out.

    Raises:
        InputError: If the models differ in architecture (the first differing name is given), a weight is not finite, or the model cannot take the inputs.
        RetainError: If scipy is missing, or the permuted model would not compute the same.

    Example:
        >>> import torch
        >>> from retain import models, tasks
        >>> from retain.merging import align, symmetries
        >>> net, digits = models.MLP(64, 32, 10, seed=0), tasks.digits()
        >>> shuffled = symmetries(net, digits).permuted(net, {"layers.fc1": torch.randperm(32)})
        >>> found = align(shuffled, net, digits)
        >>> found.distance[0] > 1, found.distance[1], torch.equal(found.model.layers.fc1.weight, net.layers.fc1.weight)
        (True, 0.0, True)
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise RetainError("Alignment solves assignment problems with scipy: pip install 'retain[merging]' brings it.") from error
    check_count("sweeps", sweeps)
    ref, own = ({name: p.to("cpu", torch.float64) for name, p in parameters_of(m, name).items()} for m, name in ((reference, "reference"), (model, "model")))
    same(ref, own, "model")
    example = Example(model, task)
    found = example.symmetries()
    ends = []
    for grown in (False, True):
        matching = _Matching(found.groups, ref, own, linear_sum_assignment)
        if grown:
            matching.grow()
        rounds = matching.climb(sweeps, seed)
        ends.append((_inner(ref, matching.now), -rounds, matching))
    _, rounds, best = max(ends, key=lambda end: end[:2])
    orders, now = best.orders, best.now
    if not example.agrees(found.permuted(example.model, orders)):
        raise RetainError("The permuted model does not answer as the model does, so it is not handed over. Pass inputs that use all of the model.")
    similarity = {name: (_cosine(group, ref, own), _cosine(group, ref, now)) for name, group in found.groups.items()}
    distance = (_distance(ref, own), _distance(ref, now))
    return Alignment(found.permuted(unwrap(model), orders), orders, found, similarity, distance, -rounds)


class _Matching:
    """Weights on their way into the reference's order."""

    def __init__(self, groups: dict[str, Group], ref: dict[str, Tensor], own: dict[str, Tensor], solve: Callable[..., Any]) -> None:
        self.groups, self.ref, self.now, self.solve = groups, ref, dict(own), solve
        self.orders = {name: torch.arange(group.size) for name, group in groups.items()}

    def grow(self) -> None:
        """From input to output, every group by those weights alone whose other axes have their order already: others would only be noise."""
        open_axes = {(member.name, member.axis): name for name, group in self.groups.items() for member in group.members}
        for name in self.groups:
            placed = [member for member in self._members(name) if not any(w == member.name and axis != member.axis for w, axis in open_axes)]
            if placed:
                self._move(name, self._best(name, placed))
                open_axes = {place: other for place, other in open_axes.items() if other != name}

    def climb(self, sweeps: int, seed: int) -> int:
        """Group by group in random order, all others held, until none gains; how many rounds that took."""
        names = list(self.groups)
        for done in range(1, sweeps + 1):
            gained = [self._gains(names[i]) for i in torch.randperm(len(names), generator=generator(seed, "order", done)).tolist()]
            if not any(gained):
                return done
        return sweeps

    def _gains(self, name: str) -> bool:
        step = self._best(name, self._members(name))
        after = self._moved(name, step)
        scale = math.sqrt(_inner(after, after) * sum(float(self.ref[w].square().sum()) for w in after))
        if gained := _inner(self.ref, after) > _inner(self.ref, {w: self.now[w] for w in after}) + _LEAST * scale:
            self._move(name, step)
        return gained

    def _members(self, name: str) -> list[Member]:
        return [member for member in self.groups[name].members if member.name in self.ref]  # buffers do not count

    def _best(self, name: str, members: list[Member]) -> Tensor:
        """The order of the units as they stand that is worth most; [i, j] is what unit j is worth where unit i stands."""
        size = self.groups[name].size
        worth = torch.zeros(size, size, dtype=torch.float64)
        for member in members:
            rows, columns = (found[member.name].movedim(member.axis, 0).reshape(size, -1) for found in (self.ref, self.now))
            worth += rows @ columns.T
        return torch.as_tensor(self.solve(worth.numpy(), maximize=True)[1])

    def _moved(self, name: str, step: Tensor) -> dict[str, Tensor]:
        after = {member.name: self.now[member.name] for member in self._members(name)}
        for member in self._members(name):
            after[member.name] = reordered(after[member.name], member, step)
        return after

    def _move(self, name: str, step: Tensor) -> None:
        self.now |= self._moved(name, step)
        self.orders[name] = self.orders[name][step]


def _inner(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Over the second one's names."""
    return math.fsum(float((first[name] * value).sum()) for name, value in second.items())


def _cosine(group: Group, first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    names = {member.name for member in group.members if member.name in first}
    a, b = ({name: found[name] for name in names} for found in (first, second))
    norms = math.sqrt(_inner(a, a) * _inner(b, b))
    return _inner(a, b) / norms if norms else math.nan


def _distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((first[name] - value).square().sum()) for name, value in second.items()))
