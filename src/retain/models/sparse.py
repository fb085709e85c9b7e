"""Sparse networks from dense ones: put gates in, set their scale, and compute only what they let through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.errors import InputError
from retain.models.gates import Gate, SoftmaxThreshold, TopK, spread_of
from retain.models.parameters import copy, evaluating

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus, nn.Tanh, nn.Sigmoid, Gate)
_PASSES = (nn.Dropout, nn.Identity)  # do nothing in evaluation mode


def sparsify(model: nn.Module, K: int, gate: Literal["top-k", "softmax"] | Callable[[], Gate] = "top-k", *, only: str = "*", data: Any = None) -> nn.Module:
    """A copy of a model with a gate in place of every activation module; the weights are the same.

    Args:
        model: Any module whose activations are modules (``nn.ReLU``, ``nn.GELU``, ...); gates that are there already are replaced.
        K: At most so many units of a layer are on (with ``softmax``: K - 1).
        gate: ``top-k`` for :class:`TopK`, ``softmax`` for :class:`SoftmaxThreshold`, or a function that makes gates.
        only: Replace only activations whose name fits this pattern, such as ``"features.*"``.
        data: Inputs to :func:`calibrate` softmax gates on.

    Returns:
        The sparse model.

    Raises:
        InputError: If no activation fits, or a layer that can be seen is narrower than K.

    Example:
        >>> from retain.models import MLP, sparsify
        >>> sparsify(MLP(784, 512, 256, 10), K=10).layers.relu2
        TopK(K=10)
    """
    kinds: dict[Any, Callable[[], Gate]] = {"top-k": lambda: TopK(K), "softmax": lambda: SoftmaxThreshold(K)}
    if isinstance(gate, str) and gate not in kinds:
        raise InputError("gate", "'top-k', 'softmax' or a function that makes gates", repr(gate))
    make = kinds[gate] if isinstance(gate, str) else gate
    made = copy(model)
    every = made.named_modules(remove_duplicate=False)  # one activation may stand in several places
    names = [name for name, module in every if isinstance(module, _ACTIVATIONS) and fnmatchcase(name, only)]
    if not names:
        hint = "Functions such as F.relu cannot be replaced: make them modules, or build the model with retain.models.TopK."
        raise InputError("model", f"an activation module with a name like '{only}'", f"none in {type(model).__name__}", hint)
    before = dict(_layers_before(made))
    for name in names:
        new, layer = make(), before.get(name)
        if isinstance(layer, nn.Linear):
            new.check_width(layer.out_features, f"the layer before '{name}'")
        elif layer is not None:
            new.check_width(layer.out_channels, f"the layer before '{name}'")
            new.dim = 1
        parent, _, last = name.rpartition(".")
        setattr(made.get_submodule(parent), last, new)
    return made if data is None else calibrate(made, data)


def calibrate(model: nn.Module, data: Tensor) -> nn.Module:
    r"""Set scale and gain of every :class:`SoftmaxThreshold`, first to last.

    The scale gives logits a spread of :math:`\sqrt{2 \ln n}` over n units; the gain makes the mean norm of what comes out that of a ReLU's output.

    Args:
        model: Changed in place.
        data: Some inputs of the model; a few hundred are enough.

    Returns:
        The model.

    Raises:
        InputError: If it has no such gate, or a layer answers the same in all its units.

    Example:
        >>> import torch
        >>> from retain.models import MLP, calibrate, sparsify
        >>> model = calibrate(sparsify(MLP(20, 64, 3, seed=0), 10, "softmax"), torch.rand(100, 20))
        >>> bool(model.layers.relu1.scale > 1)
        True
    """
    gates = {module: name for name, module in model.named_modules() if isinstance(module, SoftmaxThreshold)}
    if not gates:
        raise InputError("model", "a SoftmaxThreshold gate", "none", "Make one with sparsify(model, K, 'softmax').")

    def before(gate: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(gate, SoftmaxThreshold)
        axis = gate.axis(inputs[0])
        spread = float(inputs[0].std(axis).mean())
        if not spread > 0:
            raise InputError(f"layer before '{gates[gate]}'", "units that answer differently", f"a spread of {spread:.3g}", "Initialise its weights anew.")
        gate.scale.fill_(spread_of(inputs[0].shape[axis]) / spread)
        gate.gain.fill_(1.0)
        gate.gain.fill_(float(inputs[0].relu().norm(dim=axis).mean() / gate.forward(inputs[0]).norm(dim=axis).mean()))

    handles = [gate.register_forward_pre_hook(before) for gate in gates]
    try:
        with evaluating(model), torch.no_grad():
            model(data)
    finally:
        for handle in handles:
            handle.remove()
    return model


class ActiveLinear(nn.Module):
    r"""A gate and the linear layer behind it, computed on the active units only: :math:`y = b + \sum_{j\ \mathrm{on}} h_j W_{:,j}`.

    K columns of the weight are read for every sample instead of all n: exact, and less work by n/K. For inference: the weight is a transposed copy.

    Args:
        gate: What chooses the units.
        linear: The layer behind it.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, gate: Gate, linear: nn.Linear) -> None:
        super().__init__()
        self.gate = gate
        self.register_buffer("weight", linear.weight.detach().T.contiguous())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """``[..., n]`` before the gate to ``[..., out]``."""
        if self.gate.axis(inputs) not in (-1, inputs.ndim - 1):
            raise InputError("inputs", "units on the last axis, where the linear layer has them", f"on axis {self.gate.axis(inputs)} of {list(inputs.shape)}")
        values, places = self.gate.active(inputs)
        flat, weights = places.reshape(-1, places.shape[-1]), values.reshape(-1, values.shape[-1])
        rows = F.embedding_bag(flat, self.weight, per_sample_weights=weights, mode="sum")
        outputs = rows if self.bias is None else rows.add_(self.bias)
        return outputs.reshape(*inputs.shape[:-1], -1)

    def extra_repr(self) -> str:
        """What stands in the module's repr."""
        return f"in_features={self.weight.shape[0]}, out_features={self.weight.shape[1]}, bias={self.bias is not None}"


def skip_inactive(model: nn.Module) -> nn.Module:
    """A copy for inference in which every linear layer right behind a gate reads the columns of active units only.

    Pays where K is a small part of a wide layer, most for single samples; ``bench/sparse.py`` says where. Pairs are found inside
    ``nn.Sequential``, also with dropout between them.

    Args:
        model: A model with gates, such as :func:`sparsify` makes.

    Returns:
        A model in evaluation mode that answers the same to rounding; its weights are copies and cannot be trained.

    Raises:
        InputError: If no linear layer follows a gate.

    Example:
        >>> import torch
        >>> from retain.models import MLP, skip_inactive, sparsify
        >>> model = sparsify(MLP(20, 64, 3, seed=0), K=4)
        >>> x = torch.rand(5, 20)
        >>> torch.allclose(skip_inactive(model)(x), model(x), atol=1e-6)
        True
    """
    made = copy(model).eval()
    found = 0
    for sequence in [module for module in made.modules() if isinstance(module, nn.Sequential)]:
        children = list(sequence._modules.items())  # a layer may stand in several places
        for i, (name, gate) in enumerate(children):
            if not isinstance(gate, Gate) or gate.dim not in (None, -1):
                continue
            following = next(((key, child) for key, child in children[i + 1 :] if not isinstance(child, _PASSES)), None)
            if following is not None and type(following[1]) is nn.Linear:
                setattr(sequence, name, nn.Identity())
                setattr(sequence, following[0], ActiveLinear(gate, following[1]))
                found += 1
    if not found:
        raise InputError("model", "a linear layer right behind a gate in an nn.Sequential", "none", "Make one with sparsify(model, K).")
    return made.requires_grad_(False)


def _layers_before(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Linear layers and convolutions right before activations, where both stand in one ``nn.Sequential``."""
    for place, sequence in model.named_modules(remove_duplicate=False):
        if not isinstance(sequence, nn.Sequential):
            continue
        layer = None
        for name, child in sequence._modules.items():
            if isinstance(child, nn.Linear | nn.modules.conv._ConvNd):
                layer = child
            elif isinstance(child, _ACTIVATIONS):
                if layer is not None:
                    yield f"{place}.{name}" if place else name, layer
            elif not isinstance(child, (*_PASSES, nn.modules.batchnorm._BatchNorm)):
                layer = None
