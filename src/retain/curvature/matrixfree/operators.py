"""Curvature as a matrix that is never formed, only multiplied with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from functools import reduce
from itertools import zip_longest
from types import TracebackType
from typing import Self, overload

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from retain.curvature.matrixfree.linear import Linear, Rule
from retain.curvature.matrixfree.passes import Passes
from retain.errors import InputError, RetainError, check_positive, nearest
from retain.models.parameters import evaluating, named_parameters, unwrap
from retain.seeds import seeded
from retain.tasks.batch import Batch, apply

_STALE = "operator: the model has changed since it was made. Make it again."


class CurvatureOperator:
    r"""A symmetric matrix over p weights as products :math:`v \mapsto (C + \lambda I)\,v`, made by ``ggn``, ``fisher_operator`` and ``hessian``.

    ``operator @ v`` takes a flat tensor ``[p]``, k of them as ``[p, k]``, or a dict by parameter name, and returns the same kind
    in the same type. The matrix is a mean per observation in nats per squared unit of the weights. It is that of the weights it
    was made at: after a training step, make it again.

    If the data are one batch, the graph is kept, and a product costs 1.2 to 1.5 forward and backward passes; memory is about twice
    that of a training step on all the data until :meth:`close` or the end of a ``with`` block. Of several batches the graph of one
    is held at a time and made again in every pass, which doubles the cost. A batch that is not that of the first pass is refused.

    Args:
        model: The model, in evaluation mode during products only.
        passes: The data.
        rule: Makes from outputs, batch, batch number, observations and parameters the product with the batch's share.
        names: Parameters, by name or by pattern such as ``"layers.*"``; all trainable ones by default.
        damping: :math:`\lambda`, at least 0.
        seed: Seed of what a loader draws.

    Raises:
        InputError: If a name is unknown or the outputs do not fit the data.
    """

    def __init__(self, model: nn.Module, passes: Passes, rule: Rule, names: str | Iterable[str] | None, damping: float, seed: int) -> None:
        self._model, self._passes, self._rule, self._seed = unwrap(model), passes, rule, seed
        self._parameters = _select(named_parameters(self._model), names)
        self.names, self.damping = tuple(self._parameters), check_positive("damping", damping, zero=True)
        self._sizes = [p.numel() for p in self._parameters.values()]
        self.size = sum(self._sizes)
        self.shape = (self.size, self.size)
        self._kept: Linear | None = None
        self._closed = False
        self.n = self._begin()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, the widest if there are several."""
        return reduce(torch.promote_types, (p.dtype for p in self._parameters.values()))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self._parameters.values())).device

    @overload
    def __matmul__(self, v: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def __matmul__(self, v: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        if isinstance(v, Mapping):
            return self.unflatten(self @ self.flatten(v))
        if not isinstance(v, Tensor) or v.ndim not in (1, 2) or len(v) != self.size or 0 in v.shape:
            raise InputError(
                "vector",
                f"a dict by parameter name or a tensor of shape [{self.size}] or [{self.size}, k]",
                list(v.shape) if isinstance(v, Tensor) else type(v).__name__,
            )
        v = v.detach()
        columns = [v] if v.ndim == 1 else v.unbind(1)
        found = self._products([column.to(self.device, self.dtype).contiguous() for column in columns])
        result = (found[0] if v.ndim == 1 else torch.stack(found, 1)).to(v)
        if self.damping:
            result.add_(v, alpha=self.damping)
        if not math.isfinite(float(result.sum())):
            self._refuse(v, result)
        return result

    __call__ = __matmul__

    def flatten(self, vector: Mapping[str, Tensor]) -> Tensor:
        """One flat tensor ``[p]`` of a tensor for every parameter.

        Args:
            vector: By parameter name, each of the parameter's shape.

        Returns:
            The entries in the order of ``names``.

        Raises:
            InputError: If a name is missing or unknown, or a shape is another.
        """
        if set(vector) != set(self.names):
            odd = sorted(set(vector) ^ set(self.names))[0]
            raise InputError("vector", f"a tensor for each of the {len(self.names)} parameters", f"'{odd}' {'too many' if odd in vector else 'missing'}")
        for name, p in self._parameters.items():
            if vector[name].shape != p.shape:
                raise InputError(f"vector['{name}']", f"the parameter's shape {list(p.shape)}", list(vector[name].shape))
        return torch.cat([vector[name].detach().reshape(-1) for name in self.names])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """A tensor for every parameter from a flat one ``[p]``, the inverse of :meth:`flatten`.

        Args:
            vector: The entries in the order of ``names``.

        Returns:
            Views of the vector by parameter name.

        Raises:
            InputError: If its shape is not ``[p]``.
        """
        if vector.shape != (self.size,):
            raise InputError("vector", f"a tensor of shape [{self.size}]", list(vector.shape))
        parts = vector.split(self._sizes)
        return {name: part.view(p.shape) for (name, p), part in zip(self._parameters.items(), parts, strict=True)}

    def close(self) -> None:
        """Free the graph; the operator cannot be used afterwards."""
        self._kept, self._closed = None, True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CurvatureOperator(size={self.size}, parameters={len(self.names)}, n={self.n:g}, damping={self.damping:g})"

    def _begin(self) -> float:
        """Count the observations; keep the graph if there is one batch."""
        n, number, outputs, only = 0.0, 0, None, None
        with self._reading():
            for number, batch in enumerate(self._passes.read(), start=1):
                n += float(self._passes.task.likelihood.units(batch.targets).sum())
                if number == 1:
                    outputs, only = self._outputs(batch, 0), batch
                else:
                    outputs = only = None
            if not n:
                raise InputError("targets", "at least one observation that counts", "none", "Every target is marked as padding.")
            if outputs is not None and only is not None:
                self._kept = self._rule(outputs, only, 0, n, list(self._parameters.values()))
        return n

    def _outputs(self, batch: Batch, number: int) -> Tensor:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused attentions can be differentiated only once
            outputs = apply(self._model, batch)
        if not outputs.requires_grad:
            raise InputError("model", "outputs that depend on its weights", "outputs without a gradient", "Its forward must not detach them.")
        self._passes.task.check(outputs, batch.targets, first=number == 0)
        if not number:
            found = list(self._passes.task.likelihood.nll(outputs.detach(), batch.targets).shape)
            if found != [len(batch.targets)]:
                raise InputError("likelihood", f"one value per sample from nll, shape [{len(batch.targets)}]", f"shape {found}", "Leave the batch unreduced.")
        return outputs

    def _products(self, vectors: list[Tensor]) -> list[Tensor]:
        """Products with every vector."""
        if self._closed:
            raise RetainError("operator: it was closed and its graph is gone. Make it again.")
        if self._stamp != self._state():
            raise RetainError(_STALE)
        if self._kept is not None:
            with _clear():
                return [self._kept(v) for v in vectors]
        if any(a is not b for a, b in zip_longest(self._watched, self._tensors())):
            raise RetainError(_STALE)
        parameters = list(self._parameters.values())
        totals = [torch.zeros_like(v) for v in vectors]
        with self._reading():
            for number, batch in enumerate(self._passes.read()):
                product = self._rule(self._outputs(batch, number), batch, number, self.n, parameters)
                for total, v in zip(totals, vectors, strict=True):
                    total += product(v)
                del product  # its graph, before the next is made
        return totals

    @contextmanager
    def _reading(self) -> Iterator[None]:
        recurrent = any(isinstance(module, nn.RNNBase) for module in self._model.modules())
        once = torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()  # its recurrent layers can be differentiated only once
        with _clear(), evaluating(self._model), seeded(self._seed, "order"), once:  # a loader that shuffles by torch's generators repeats itself
            yield
        self._watched = self._tensors()
        self._stamp = self._state()

    def _tensors(self) -> list[Tensor]:
        return [*self._model.parameters(), *self._model.buffers()]

    def _state(self) -> list[tuple[int, int, bool]]:
        """What changes with a training step; batch norm's statistics change together with their counter."""
        return [(t._version, t.data_ptr(), t.requires_grad) for t in self._watched]

    def _refuse(self, v: Tensor, result: Tensor) -> None:
        if not bool(torch.isfinite(v).all()):
            raise InputError("vector", "finite numbers", "NaN or infinity")
        for name, part in self.unflatten(torch.isfinite(result).reshape(self.size, -1).all(1)).items():
            if not bool(part.all()):
                raise InputError(f"product at '{name}'", "finite numbers", "NaN or infinity", "Check the model's weights and the data.")


@contextmanager
def _clear() -> Iterator[None]:
    """What autograd says in other words."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "inplace operation" in text:
            raise RetainError(_STALE) from error
        if "derivative for" in text or "not have been used in the graph" in text:
            raise InputError("model", "operations that can be differentiated twice", text.splitlines()[0]) from error
        raise


def _select(parameters: dict[str, nn.Parameter], names: str | Iterable[str] | None) -> dict[str, nn.Parameter]:
    if names is None:
        return parameters
    patterns = [names] if isinstance(names, str) else list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise InputError("names", "names or patterns of trainable parameters", repr(pattern), nearest(str(pattern), parameters))
    if not patterns:
        raise InputError("names", "at least one name or pattern", "none", "Leave it out to take all trainable parameters.")
    return {name: p for name, p in parameters.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
