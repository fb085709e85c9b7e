"""Which hidden units of a model can change places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from retain.diagnosis.inputs import as_checked
from retain.diagnosis.inputs import weights as parameters_of
from retain.errors import InputError, RetainError
from retain.figures import Table
from retain.merging.axes import FIXED, Axis, Units
from retain.merging.follow import Follower
from retain.models.parameters import copy, unwrap
from retain.seeds import generator, seeded
from retain.tasks.batch import Batch, apply, first_samples

Module = TypeVar("Module", bound=nn.Module)
_SAMPLES = 8
_SLACK = 1e-6  # of the largest output, in float64: rounding is below a millionth of that, a wrong permutation far above


class Member(NamedTuple):
    """An axis of a parameter or buffer along which the units of a group lie; each is a run of so many entries (such as a channel's pixels)."""

    name: str
    axis: int
    run: int


@dataclass(frozen=True)
class Group:
    """Units that change places together.

    Args:
        size: How many.
        members: Where they lie.
    """

    size: int
    members: tuple[Member, ...]


@dataclass(frozen=True, repr=False)
class Symmetries:
    """The permutations of hidden units that leave what a model computes as it is.

    Args:
        groups: By the layer whose outputs they are, in the model's order.
        left_out: Why an axis stays as it is, by parameter, where it is not for being an input, an output or a position.
    """

    groups: dict[str, Group]
    left_out: dict[str, str]

    def apply(self, values: Mapping[str, Tensor], permutations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Permute tensors by parameter or buffer name: weights, a diagonal Fisher, an optimiser's averages.

        Args:
            values: Tensors of the shapes of the parameters of these names.
            permutations: By group: which old unit stands at each place. Groups that are not named stay.

        Returns:
            New tensors where units moved, the same ones elsewhere.

        Raises:
            InputError: If there is no such group, or its permutation is none.

        Example:
            >>> import torch
            >>> from retain import models, tasks
            >>> from retain.merging import symmetries
            >>> net = models.MLP(64, 3, 10, seed=0)
            >>> found = symmetries(net, tasks.digits())
            >>> moved = found.apply({"layers.fc1.bias": torch.tensor([1.0, 2.0, 3.0])}, {"layers.fc1": torch.tensor([2, 0, 1])})
            >>> moved["layers.fc1.bias"]
            tensor([3., 1., 2.])
        """
        found = dict(values)
        for name, order in permutations.items():
            if name not in self.groups:
                raise InputError("permutations", f"groups {', '.join(self.groups) or 'none'}", repr(name))
            group = self.groups[name]
            if sorted(order.tolist()) != list(range(group.size)):
                raise InputError(f"permutations['{name}']", f"every number below {group.size} once", order.tolist()[:10])
            for member in group.members:
                if member.name in found:
                    found[member.name] = reordered(found[member.name], member, order)
        return found

    def permuted(self, model: Module, permutations: Mapping[str, Tensor]) -> Module:
        """A copy of a model of this architecture with its units at other places.

        Args:
            model: Any model of the same names and shapes.
            permutations: As for :meth:`apply`.

        Returns:
            A new model that computes the same.
        """
        made = copy(model)
        own = _state(unwrap(made))
        with torch.no_grad():
            for name, value in self.apply({name: value.detach() for name, value in own.items()}, permutations).items():
                own[name].copy_(value)
        return made

    def table(self) -> Table:
        """Groups, their units, and where these lie."""
        body = [[name, str(group.size), str(len(group.members))] for name, group in self.groups.items()]
        return Table("Hidden units that can change places", ["group", "units", "axes"], body, left_out(self.left_out))

    def _repr_html_(self) -> str:
        return self.table().html()

    def __repr__(self) -> str:
        return self.table().text()


def symmetries(model: nn.Module, task: Any) -> Symmetries:
    """The groups of hidden units that can be put into another order without changing what a model computes.

    The model runs once on samples, and every call to torch is watched: linear layers, convolutions (of depthwise ones inputs and outputs move together, of
    grouped ones whole groups), batch, layer, group and RMS norm, element-wise functions, pooling, sums and means, reshaping (a channel becomes a run of
    positions), transposition, matrix products. Axes that meet have one order, so additions unite groups, and so do weights that are used twice. What goes in
    and what comes out stays. A function that is not known pins all that goes into it. Then random permutations are tried: a group that changes an output
    is left out. So a function that was misunderstood costs a symmetry and never an answer. This runs on a copy on the CPU in double precision.

    Args:
        model: Any module, in any mode; it is asked in evaluation mode and is not changed.
        task: A task or whatever makes one, or a tensor of inputs; 8 samples of it are used, and no labels.

    Returns:
        The groups, and why other axes stay.

    Raises:
        InputError: If the model has no finite weights, or cannot take the inputs.
        RetainError: If the model's outputs are not finite, or groups that may be permuted one by one may not be together.

    Example:
        >>> from retain import models, tasks
        >>> from retain.merging import symmetries
        >>> symmetries(models.MLP(64, 32, 16, 10, seed=0), tasks.digits()).groups["layers.fc2"]
        Group(size=16, members=(Member(name='layers.fc2.weight', axis=0, run=1), Member(name='layers.fc2.bias', axis=0, run=1), \
Member(name='layers.fc3.weight', axis=1, run=1)))
    """
    return Example(model, task).symmetries()


class Example:
    """A working copy of a model on the CPU in double precision, samples, and its answers to them.

    Args:
        model: The model.
        task: Samples.
    """

    def __init__(self, model: nn.Module, task: Any) -> None:
        parameters_of(model)
        self.model = copy(unwrap(model)).to("cpu", torch.float64).eval().requires_grad_(False)
        self.batch = _samples(task)
        self.outputs = self.answers(self.model)

    def answers(self, model: nn.Module) -> Tensor:
        """What a model says to the samples; one that draws at random draws the same each time."""
        with torch.no_grad(), seeded(0, "noise"):
            return apply(model, self.batch)

    def agrees(self, model: nn.Module) -> bool:
        """Whether a model says the same, up to rounding."""
        return bool((self.answers(model) - self.outputs).abs().max() <= _SLACK * self.outputs.abs().max())

    def symmetries(self) -> Symmetries:
        """As :func:`symmetries`."""
        if not bool(torch.isfinite(self.outputs).all()):
            raise RetainError("The model's outputs are not finite, so that nothing can be compared. Take inputs or a checkpoint where they are.")
        state = _state(self.model)
        with torch.no_grad(), seeded(0, "noise"), Follower(state, [x for x in tree_leaves(self.batch.inputs) if isinstance(x, Tensor)]) as follower:
            outputs = apply(self.model, self.batch)
            follower.pin(outputs, FIXED)
        found = _grouped(follower.result(), {name for name, _ in self.model.named_parameters()})
        orders = {name: _another(group.size, i) for i, (name, group) in enumerate(found.groups.items())}
        if self.agrees(found.permuted(self.model, orders)):
            return found
        wrong = [name for name, order in orders.items() if not self.agrees(found.permuted(self.model, {name: order}))]
        out = {member.name: "permuting it changes the outputs" for name in wrong for member in found.groups[name].members}
        kept = Symmetries({name: group for name, group in found.groups.items() if name not in wrong}, found.left_out | out)
        if not self.agrees(kept.permuted(self.model, {name: orders[name] for name in kept.groups})):
            raise RetainError("Permutations that leave the model's outputs as they are one by one change them together, so that none can be trusted.")
        return kept


def reordered(value: Tensor, member: Member, order: Tensor) -> Tensor:
    """A tensor with units, each a run of entries, at other places along an axis."""
    order = order.to(value.device)
    entries = (order[:, None] * member.run + torch.arange(member.run, device=value.device)).flatten()
    return value.index_select(member.axis, entries)


def left_out(reasons: Mapping[str, str]) -> str:
    """A remark on what stays as it is."""
    if not reasons:
        return ""
    why: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        why.setdefault(reason, []).append(name)
    shown = (f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''} ({reason})" for reason, names in why.items())
    return f"Left as they are: {'; '.join(shown)}."


def _another(size: int, i: int) -> Tensor:
    """A random order that is not the one there is."""
    order = torch.randperm(size, generator=generator(0, "permutation", i))
    return order.roll(1) if torch.equal(order, torch.arange(size)) else order


def _samples(task: Any) -> Batch:
    if isinstance(task, Tensor):
        task = (task, torch.zeros(len(task), dtype=torch.long))
    # outputs that do not compete would be the lowest number there is, beside which every difference is small
    task = replace(as_checked(task).to(torch.device("cpu"), torch.float64), active=None)
    with seeded(0, "samples"):
        return first_samples(next(iter(task.batches(_SAMPLES, generator(0, "samples")))), _SAMPLES)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _grouped(axes: Mapping[str, tuple[Axis, ...]], parameters: set[str]) -> Symmetries:
    """Axes by the units along them, and why the others stay."""
    together: dict[Units, list[Member]] = {}
    reasons: dict[str, str] = {}
    for name, found in axes.items():
        for place, axis in enumerate(found):
            if axis.units.pinned is None and axis.units.size > 1:
                together.setdefault(axis.units, []).append(Member(name, place, axis.run))
            elif axis.units.pinned not in (None, FIXED) and name in parameters and axis.units.size > 1:
                reasons.setdefault(name, str(axis.units.pinned))
    groups: dict[str, Group] = {}
    for units, members in together.items():
        first = next((member for member in members if member.axis == 0), members[0]).name
        layer = first.rpartition(".")[0]
        groups[first if not layer or layer in groups else layer] = Group(units.size, tuple(members))
    return Symmetries(groups, reasons)
