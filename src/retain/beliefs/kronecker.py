"""Layers whose inputs and outputs are correlated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from retain.beliefs.blocks import Eigenbasis, Pairs, block_from
from retain.beliefs.diagonal import Diagonal
from retain.beliefs.precision import Precision, Sizes, Weights, mismatch
from retain.errors import InputError


class Layer(NamedTuple):
    """A weight, its bias if the two are one block, and the block."""

    shape: torch.Size
    bias: str | None
    block: Pairs | Eigenbasis


class Kronecker(Precision):
    r"""A precision of a block a layer, each a Kronecker product: :math:`P W = \sum_t G_t W A_t`, and a diagonal for other parameters.

    A layer's weights are laid out as W ``[O, I]``, a convolution's with channels and kernel flattened, with the bias as the last
    column. A is the second moment of the layer's inputs and G that of the gradients at its outputs (Martens and Grosse 2015,
    https://arxiv.org/abs/1503.05671). Products of different tasks do not add to a product: a sum keeps a list of pairs (Ritter, Botev
    and Barber 2018, https://arxiv.org/abs/1805.07810), and :meth:`in_one_basis` brings a long list into one eigenbasis and says what that
    loses. With eigenvalues measured in that basis it is EKFAC (George et al. 2018, https://arxiv.org/abs/1806.03884).

    Args:
        layers: Blocks by the name of the weight.
        rest: The diagonal of parameters without a block.

    Raises:
        InputError: If a parameter is in both.

    Example:
        >>> import torch
        >>> pair = Pairs([(torch.tensor([[2.0]]), torch.eye(2))])
        >>> P = Kronecker({"w": Layer(torch.Size([1, 2]), None, pair)}, Diagonal({}))
        >>> P.quadratic({"w": torch.tensor([[1.0, 1.0]])})
        4.0
    """

    kind = "kronecker"

    def __init__(self, layers: Mapping[str, Layer], rest: Diagonal) -> None:
        self.layers, self.rest = dict(layers), rest
        twice = [name for name in self._in_blocks() if name in rest]
        if twice:
            raise InputError("rest", "parameters without a block", repr(twice[0]))

    @property
    def names(self) -> tuple[str, ...]:
        return (*self._in_blocks(), *self.rest.names)

    @property
    def pairs(self) -> int:
        """The longest list of Kronecker products in a block; 0 if all are in one basis."""
        return max((len(layer.block.pairs) for layer in self.layers.values() if isinstance(layer.block, Pairs)), default=0)

    @property
    def error(self) -> float:
        """The largest relative error that a block's eigenbasis has made, see :class:`~retain.beliefs.blocks.Eigenbasis`."""
        return max((layer.block.error for layer in self.layers.values() if isinstance(layer.block, Eigenbasis)), default=0.0)

    def in_one_basis(self) -> Self:
        """Every block in one Kronecker eigenbasis: exact for one pair, else see :attr:`error`."""
        return self._carry(type(self)({name: layer._replace(block=layer.block.eigen()) for name, layer in self.layers.items()}, self.rest))

    def damped(self, share: float) -> Self:
        r"""Every factor raised: :math:`G + \text{share} \cdot \bar\lambda_G I` and the same for A, with :math:`\bar\lambda` the mean eigenvalue.

        The factored damping of Martens and Grosse 2015, section 6.3, with a share of each factor's own scale; the diagonal of the other parameters stays.

        Args:
            share: At least 0.

        Returns:
            A precision that holds every direction of a block a little.

        Example:
            >>> import torch
            >>> pair = Pairs([(torch.diag(torch.tensor([3.0, 1.0])), torch.eye(1))])
            >>> P = Kronecker({"w": Layer(torch.Size([2, 1]), None, pair)}, Diagonal({})).damped(0.5)
            >>> P.diagonal()["w"].flatten()
            tensor([6., 3.])
        """
        return self._carry(type(self)({name: layer._replace(block=layer.block.damped(share)) for name, layer in self.layers.items()}, self.rest))

    def product(self, delta: Weights) -> dict[str, Tensor]:
        return self._over(lambda name, layer: layer.block.product(self._matrix(name, layer, delta)), self.rest.product(delta))

    def scaled(self, factor: float) -> Self:
        return self._carry(
            type(self)({name: layer._replace(block=layer.block.scaled(factor)) for name, layer in self.layers.items()}, self.rest.scaled(factor))
        )

    def plus(self, other: Precision) -> Precision:
        if isinstance(other, Diagonal) and not any(name in other for name in self._in_blocks()):
            other = Kronecker({}, other)
        if not isinstance(other, Kronecker):
            raise mismatch(self, other)
        layers = dict(self.layers)
        for name, layer in other.layers.items():
            if name in layers and layers[name].bias != layer.bias:
                raise InputError(
                    f"precision of '{name}'", f"a block with bias {layers[name].bias!r}", f"one with {layer.bias!r}", "Was the bias frozen meanwhile?"
                )
            layers[name] = layer._replace(block=layers[name].block.plus(layer.block)) if name in layers else layer  # type: ignore[arg-type]
        rest = self.rest.plus(other.rest)
        assert isinstance(rest, Diagonal)
        return Kronecker(layers, rest)

    def diagonal(self) -> dict[str, Tensor]:
        return self._over(lambda name, layer: layer.block.diagonal(), self.rest.diagonal())

    def logdet(self, n: float, prior: float, shapes: Mapping[str, torch.Size]) -> float:
        return self.rest.logdet(n, prior, shapes) + sum(layer.block.eigen().logdet(n, prior) for layer in self.layers.values())

    def variance(self, n: float, prior: float, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        return self._over(lambda name, layer: layer.block.eigen().variance(n, prior), self.rest.variance(n, prior, shapes))

    def sample(self, n: float, prior: float, shapes: Mapping[str, torch.Size], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        return self._over(lambda name, layer: layer.block.eigen().sample(n, prior, generator), self.rest.sample(n, prior, shapes, generator))

    def shrink(self, delta: Weights, sizes: Sizes, rate: float) -> dict[str, Tensor]:
        def one(name: str, layer: Layer) -> Tensor:
            names = [name] if layer.bias is None else [name, layer.bias]
            numbers = {sizes[part] for part in names if not isinstance(sizes[part], Tensor)}
            size: Tensor | float
            if len(numbers) == 1 and not any(isinstance(sizes[part], Tensor) for part in names):
                size = float(numbers.pop())
            else:
                size = self._matrix(name, layer, {part: torch.as_tensor(sizes[part]).to(delta[part]).expand_as(delta[part]) for part in names})
            return layer.block.shrink(self._matrix(name, layer, delta), size, rate)

        return self._over(one, self.rest.shrink(delta, sizes, rate))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        layers = {name: layer._replace(block=layer.block.mapped(change)) for name, layer in self.layers.items()}
        return self._carry(type(self)(layers, self.rest.mapped(change)))

    def grown(self, old: Mapping[str, torch.Size], new: Mapping[str, torch.Size]) -> Self:
        layers = {name: Layer(new[name], layer.bias, layer.block.grown(new[name][0] - old[name][0])) for name, layer in self.layers.items()}
        return self._carry(type(self)(layers, self.rest.grown(old, new)))

    def state_dict(self) -> dict[str, Any]:
        layers = {name: {"shape": list(layer.shape), "bias": layer.bias, **layer.block.state_dict()} for name, layer in self.layers.items()}
        return {"kind": self.kind, "layers": layers, "rest": self.rest.values}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        layers = {name: Layer(torch.Size(one["shape"]), one["bias"], block_from(one)) for name, one in state["layers"].items()}
        return cls(layers, Diagonal(state["rest"]))

    def __repr__(self) -> str:
        kept = f"{self.pairs} pairs" if self.pairs else f"one basis, error {self.error:.2g}"
        return f"Kronecker({len(self.layers)} layers, {kept}, {len(self.rest.names)} other parameters)"

    def _in_blocks(self) -> list[str]:
        return [part for name, layer in self.layers.items() for part in (name, layer.bias) if part is not None]

    def _matrix(self, name: str, layer: Layer, values: Weights) -> Tensor:
        W = values[name].flatten(1)
        return W if layer.bias is None else torch.cat([W, values[layer.bias][:, None].to(W.dtype)], 1)

    def _over(self, make: Callable[[str, Layer], Tensor], rest: dict[str, Tensor]) -> dict[str, Tensor]:
        """Matrices of all blocks, taken apart into weights and biases, and the rest."""
        found: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            W = make(name, layer)
            if layer.bias is not None:
                found[layer.bias] = W[:, -1].contiguous()
                W = W[:, :-1]
            found[name] = W.reshape(layer.shape)
        return {**found, **rest}
