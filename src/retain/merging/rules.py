"""How torch's functions move axes: one rule a family."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from retain.merging.axes import Axes, Axis

Rule: TypeAlias = Callable[[Axes, Any, tuple[Any, ...], dict[str, Any], Tensor], tuple[Axis, ...] | None]
"""From the axes known so far, the function, what it was given and what it made to the axes of what it made; ``None`` if the case is not covered."""

_LOOKING = (
    "shape size dim ndim ndimension numel nelement dtype device layout stride storage_offset is_contiguous is_floating_point is_complex is_cuda is_cpu is_mps "
    "is_meta is_nested is_sparse is_quantized is_leaf requires_grad grad_fn element_size get_device len assert itemsize nbytes has_names names"
)
_ELEMENTWISE = (
    "relu relu6 leaky_relu rrelu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh hardshrink softshrink tanhshrink threshold sigmoid logsigmoid "
    "tanh softplus softsign softmax log_softmax dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout add sub mul div true_divide rsub "
    "radd rmul rdiv rtruediv truediv neg negative abs absolute square sqrt rsqrt exp expm1 log log1p log2 pow rpow reciprocal sign sin cos erf clamp "
    "clamp_min clamp_max clip maximum minimum where lerp addcmul addcdiv masked_fill eq ne lt le gt ge logical_not logical_and logical_or isnan floor ceil "
    "round positive nan_to_num weight_norm contiguous clone detach to type type_as float double half bfloat16 data zeros_like ones_like full_like alias"
)
_POOLING = "max_pool avg_pool adaptive_avg_pool adaptive_max_pool lp_pool"

SILENT = frozenset(_LOOKING.split())
"""Functions that look at what a tensor is and not at what it holds."""


def elementwise(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...]:
    """Axes that lie on one another, counted from the last, have one order; those of length 1 fit any."""
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    found = []
    for place, size in enumerate(made.shape, start=-made.ndim):
        meeting = [axes.of(value)[place] for value in given if value.ndim >= -place and value.shape[place] == size]
        for axis in meeting[1:]:
            axes.tie(meeting[0], axis)
        found.append(meeting[0] if meeting else axes.free(size))
    return tuple(found)


def prelu(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...]:
    """A slope for each channel, or one for all."""
    x, weight = _given(args, kwargs, "input", "weight")
    if weight.numel() > 1:
        axes.tie(axes.of(x)[1], axes.of(weight)[0])
    return axes.of(x)


def linear(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...] | None:
    """Inputs meet the weight's columns, its rows are the outputs."""
    x, weight, bias = _given(args, kwargs, "input", "weight", "bias")
    if weight.ndim != 2:
        return None
    rows, columns = axes.of(weight)
    axes.tie(axes.of(x)[-1], columns)
    if bias is not None:
        axes.tie(rows, axes.of(bias)[0])
    return *axes.of(x)[:-1], rows


def matmul(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...] | None:
    """The last axis of the first meets the last but one of the second; those before lie on one another."""
    x, y = args[:2]
    if x.ndim < 2 or y.ndim < 2:
        return None
    (*outer, rows, inner), (*others, meets, columns) = axes.of(x), axes.of(y)
    axes.tie(inner, meets)
    batch = []
    for place, size in enumerate(made.shape[:-2], start=2 - made.ndim):
        meeting = [found[place] for found in (outer, others) if len(found) >= -place and found[place].size == size]
        for axis in meeting[1:]:
            axes.tie(meeting[0], axis)
        batch.append(meeting[0])
    return *batch, rows, columns


def convolution(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...] | None:
    """Channels, like a linear layer's; with groups, whole groups of channels move, and a depthwise layer's outputs with its inputs."""
    x, weight, bias, *_, groups = _given(args, kwargs, "input", "weight", "bias", "stride", "padding", "", "groups")
    if x.ndim != weight.ndim:
        return None  # a sample without a batch
    groups = groups or 1
    channels, kernel = axes.of(x)[1], axes.of(weight)
    inside, outside = kernel[:2] if "transpose" in func.__name__ else (kernel[1], kernel[0])
    for axis in (*axes.of(x)[2:], *kernel[2:]):
        axes.pin(axis)
    if groups == 1:
        axes.tie(channels, inside)
        out = outside
    else:
        block = axes.free(groups).units
        axes.tie(channels, Axis(block, channels.size // groups))
        axes.pin(kernel[1])
        axes.tie(kernel[0], Axis(block, kernel[0].size // groups))
        out = Axis(block, made.shape[1] // groups)
    if bias is not None:
        axes.tie(out, axes.of(bias)[0])
    return axes.of(x)[0], out, *_fixed(axes, made.shape[2:])


def batch_norm(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...]:
    """Statistics, scale and shift belong to a channel."""
    x, *own = _given(args, kwargs, "input", "running_mean", "running_var", "weight", "bias")
    for value in own:
        if value is not None:
            axes.tie(axes.of(x)[1], axes.of(value)[0])
    return axes.of(x)


def layer_norm(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...]:
    """Means and variances over axes do not see the order along them; scale and shift have it."""
    x, _, *own = _given(args, kwargs, "input", "normalized_shape", "weight", "bias")
    for value in own:
        if isinstance(value, Tensor):  # the last of rms_norm is a number
            for mine, its in zip(axes.of(x)[-value.ndim :], axes.of(value), strict=True):
                axes.tie(mine, its)
    return axes.of(x)


def group_norm(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...]:
    """One group for all channels, or one a channel, fits any order; else whole groups move."""
    x, groups, *own = _given(args, kwargs, "input", "num_groups", "weight", "bias")
    channels = axes.of(x)[1]
    if 1 < groups < channels.size:
        axes.tie(channels, Axis(axes.free(groups).units, channels.size // groups))
    for value in own:
        if value is not None:
            axes.tie(channels, axes.of(value)[0])
    return axes.of(x)


def pooling(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...] | None:
    """Positions stay, channels pass."""
    x, places = args[0], int(func.__name__[-2])
    kept = axes.of(x)[: x.ndim - places]
    for axis in axes.of(x)[x.ndim - places :]:
        axes.pin(axis)
    return *kept, *_fixed(axes, made.shape[x.ndim - places :])


def resized(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...] | None:
    """An axis whose length changes keeps its order; so do positions that are interpolated between."""
    x = args[0] if args else kwargs["input"]
    positions = 2 if func.__name__ == "interpolate" else x.ndim - len(_given(args, kwargs, "input", "pad")[1]) // 2
    for axis in axes.of(x)[positions:]:
        axes.pin(axis)
    return *axes.of(x)[:positions], *_fixed(axes, made.shape[positions:])


def reduced(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...] | None:
    """What is summed over does not see the order."""
    x, dim = _given(args, kwargs, "input", "dim")
    if "axis" in kwargs or isinstance(dim, Tensor | bool):
        return None
    gone = set(range(x.ndim)) if dim is None else {d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)}
    if made.ndim == x.ndim:
        return tuple(axes.free(1) if place in gone else axis for place, axis in enumerate(axes.of(x)))
    return tuple(axis for place, axis in enumerate(axes.of(x)) if place not in gone)


def moved(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...]:
    """Transposed: where each axis goes is seen by moving one without entries whose lengths all differ."""
    x = args[0] if args else kwargs["input"]
    shown = func(torch.empty(tuple(range(2, 2 + x.ndim)), device="meta"), *args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
    return tuple(axes.of(x)[length - 2] for length in shown.shape)


def expanded(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...]:
    """Repeated entries are equal, so that any order fits."""
    return elementwise(axes, func, args[:1], {}, made)


def reshaped(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...] | None:
    """Axes joined, such as channels and positions: whole runs move. An axis taken apart: its first part may move."""
    x = args[0] if args else kwargs["input"]
    if made.dtype != x.dtype or made.numel() != x.numel() or not made.numel():
        return None
    old = [axis for axis in axes.of(x) if axis.size > 1]
    new = [(place, size) for place, size in enumerate(made.shape) if size > 1]
    found = [axes.free(1) for _ in made.shape]
    while old:
        before, after = [old.pop(0)], [new.pop(0)]
        while (inside := math.prod(axis.size for axis in before)) != (outside := math.prod(size for _, size in after)):
            if inside < outside:
                before.append(old.pop(0))
            else:
                after.append(new.pop(0))
        for (place, _), axis in zip(after, _regrouped(axes, before, [size for _, size in after]), strict=True):
            found[place] = axis
    return tuple(found)


def _regrouped(axes: Axes, before: list[Axis], after: list[int]) -> list[Axis]:
    """Axes of the same entries, several made one, one made several, or both at once."""
    if len(before) == len(after) == 1:
        return before
    if len(before) == 1:
        first = axes.free(after[0])
        axes.tie(before[0], Axis(first.units, math.prod(after[1:])))
        return [first, *(axes.fixed(size, "is taken apart") for size in after[1:])]
    why = "is joined with another axis"
    for axis in before[1:] if len(after) == 1 else before:
        axes.pin(axis, why)
    if len(after) == 1:
        return [Axis(before[0].units, before[0].run * math.prod(axis.size for axis in before[1:]))]
    return [axes.fixed(size, why) for size in after]


def indexed(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...] | None:
    """Picking entries keeps the order of the axis picked from, and leaves the others alone."""
    x, index = args
    index = list(index) if isinstance(index, tuple) else [index]
    if any(not (part is None or part is Ellipsis or isinstance(part, slice) or type(part) is int) for part in index):
        return None
    if Ellipsis not in index:
        index.append(Ellipsis)
    at, whole = index.index(Ellipsis), x.ndim - sum(part is not None and part is not Ellipsis for part in index)
    index[at : at + 1] = [slice(None)] * whole
    own, found = iter(axes.of(x)), []
    for part in index:
        axis = axes.free(1) if part is None else next(own)
        if part is None or part == slice(None):
            found.append(axis)
            continue
        axes.pin(axis, "is taken apart")
        if isinstance(part, slice):
            found.append(axes.fixed(made.shape[len(found)], "is taken apart"))
    return tuple(found)


def joined(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...] | None:
    """Along the axis of ``cat`` order stays; the others lie on one another."""
    values, dim = _given(args, kwargs, "tensors", "dim")
    dim = (dim or 0) % made.ndim
    if any(value.ndim != made.ndim for value in values):
        return None
    for value in values:
        axes.pin(axes.of(value)[dim], "is joined with other channels by 'cat'")
    found = []
    for place, size in enumerate(made.shape):
        for value in values[1:] if place != dim else []:
            axes.tie(axes.of(values[0])[place], axes.of(value)[place])
        found.append(axes.fixed(size, "is joined with other channels by 'cat'") if place == dim else axes.of(values[0])[place])
    return tuple(found)


def embedding(axes: Axes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> tuple[Axis, ...]:
    """Which row is which stays; what a row holds may have any order."""
    index, weight = _given(args, kwargs, "input", "weight")
    axes.pin(axes.of(weight)[0])
    for axis in axes.of(index):
        axes.pin(axis)
    return *axes.of(index), axes.of(weight)[1]


def _given(args: tuple[Any, ...], kwargs: dict[str, Any], *names: str) -> tuple[Any, ...]:
    """Arguments by name, wherever they stand; ``None`` for those left out."""
    return tuple(args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names))


def _fixed(axes: Axes, shape: Any) -> tuple[Axis, ...]:
    return tuple(axes.fixed(size) for size in shape)


RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), elementwise),
    **{f"{name}{d}d": pooling for name in _POOLING.split() for d in (1, 2, 3)},
    **{f"conv{kind}{d}d": convolution for kind in ("", "_transpose") for d in (1, 2, 3)},
    **dict.fromkeys(("mean", "sum", "amax", "amin", "std", "var", "logsumexp", "prod"), reduced),
    **dict.fromkeys(("permute", "transpose", "t", "T", "mT", "swapaxes", "swapdims", "movedim", "moveaxis"), moved),
    **dict.fromkeys(("flatten", "unflatten", "reshape", "view", "squeeze", "unsqueeze", "view_as", "reshape_as"), reshaped),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expanded),
    **dict.fromkeys(("matmul", "rmatmul", "bmm", "mm"), matmul),
    **dict.fromkeys(("batch_norm", "instance_norm"), batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), layer_norm),
    **dict.fromkeys(("interpolate", "pad"), resized),
    "prelu": prelu,
    "linear": linear,
    "group_norm": group_norm,
    "getitem": indexed,
    "cat": joined,
    "embedding": embedding,
}
