"""Whether the closed forms of a model's layers are its gradients, found on two samples."""

from __future__ import annotations

from collections import Counter, defaultdict

import torch
from torch import Tensor, nn

from retain.curvature.capture import Capture
from retain.curvature.outputs import gradients_at
from retain.curvature.rules import Part
from retain.errors import InputError
from retain.tasks.batch import Batch, apply, first_samples

Pieces = dict[str, list[tuple[int, Part]]]  # by parameter: the number of the site, and the part


def forward(capture: Capture, model: nn.Module, batch: Batch) -> Tensor:
    """The model's outputs, with the sites that they went through in ``capture.uses``."""
    capture.recording = True
    with torch.enable_grad():
        capture.clear()
        outputs = apply(model, batch)
        if capture.stale():
            capture.clear()
            outputs = apply(model, batch)
    capture.recording = False
    return outputs


def pieces(capture: Capture, gradients: list[Tensor], names: dict[int, str]) -> Pieces:
    """The pieces of every parameter's gradient, from the gradients at the sites.

    Args:
        capture: After a forward pass.
        gradients: ``[K, *out.shape]`` for every site.
        names: Canonical names of the trainable parameters by identity.

    Returns:
        Pieces by canonical name.
    """
    found: Pieces = defaultdict(list)
    for number, (use, gradient) in enumerate(zip(capture.uses, gradients, strict=True)):
        for part in use.site.parts(gradient):
            name = names.get(id(capture.modules[use.module].get_parameter(part.name)))
            if name is not None:
                found[name].append((number, part))
    return found


def trusted(capture: Capture, model: nn.Module, batch: Batch, names: dict[int, str], parameters: dict[str, nn.Parameter]) -> dict[str, int]:
    """Parameters whose closed form is their whole gradient, with the number of times each is used.

    A layer's input has to have the samples on one axis, and its weight must not be used beside it (``F.linear(h, layer.weight)``).
    So the closed form is compared with autograd on two samples, of which one has a gradient: it has to have the whole of it, and the other
    nothing. Modules of which nothing can be trusted are watched no more.

    Args:
        capture: Open.
        model: The model.
        batch: A batch; its first two samples are used.
        names: Canonical names of the trainable parameters by identity.
        parameters: The trainable parameters by name.

    Returns:
        Uses by canonical name.

    Raises:
        InputError: If the model's answer for a sample depends on the others of its batch.
    """
    one, two = (first_samples(batch, count) for count in (1, 2))
    alone = forward(capture, model, one)
    before = [(use.module, use.site.out.shape) for use in capture.uses]
    outputs = forward(capture, model, two)
    sizes = alone.detach().abs()
    largest = float(sizes.where(sizes < torch.finfo(sizes.dtype).max, 0).max())  # without masked outputs
    if not torch.allclose(alone[0], outputs[0], rtol=1e-2, atol=1e-3 * largest + 1e-6, equal_nan=True):
        raise InputError(
            "model",
            "an answer for each sample that does not depend on the others of its batch",
            "one that changes with the batch",
            "Batch norm without stored statistics does this; without gradients of single samples there is no Fisher.",
        )
    after = [(use.module, use.site.out.shape) for use in capture.uses]
    if [name for name, _ in before] != [name for name, _ in after]:
        return _none(capture)
    count, unmoved = len(two.targets), set()
    place: Counter[str] = Counter()
    for use, (_, small), (_, large) in zip(capture.uses, before, after, strict=True):
        axes = [axis for axis, (a, b) in enumerate(zip(small, large, strict=False)) if a != b] if count > 1 else [0]
        good = len(axes) == 1 and len(small) == len(large) and small[axes[0]] == 1 and large[axes[0]] == count and (not axes[0] or use.site.movable)
        if good:
            use.site.axis = capture.axes[use.module, place[use.module]] = axes[0]
        else:
            unmoved.add(use.module)
        place[use.module] += 1
    for name in unmoved:
        capture.drop(name)
    capture.uses = [use for use in capture.uses if use.module not in unmoved]
    if not capture.uses:
        return {}

    own = count - 1  # the sample whose gradient is looked at; the other has to have none
    direction = torch.zeros_like(outputs)
    direction[own] = torch.linspace(0.5, 1, outputs[own].numel(), device=outputs.device, dtype=outputs.dtype).reshape(outputs[own].shape)
    whole = torch.autograd.grad(outputs, list(parameters.values()), direction, retain_graph=True, allow_unused=True)
    found = pieces(capture, gradients_at(outputs, [use.site.out for use in capture.uses], direction[None]), names)
    good_names: dict[str, int] = {}
    for (name, parameter), gradient in zip(parameters.items(), whole, strict=True):
        if name not in found:
            continue
        mine = parameter.new_zeros(1, count, *parameter.shape)
        for _, part in found[name]:
            (mine if part.place is None else mine[:, :, part.place]).add_(part.piece.rows(slice(0, count)))
        size = 0.0
        if gradient is not None:
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            size = float(gradient.norm())
            mine[0, own] -= gradient
        if float(mine.norm()) <= 1e-3 * size + 1e-7 * parameter.numel() ** 0.5:
            good_names[name] = len(found[name])
    owned = Counter(use.module for use in capture.uses if any(names.get(id(p)) in good_names for p in capture.modules[use.module].parameters()))
    for name in [name for name in capture.modules if not owned[name]]:
        capture.drop(name)
    return good_names


def _none(capture: Capture) -> dict[str, int]:
    for name in list(capture.modules):
        capture.drop(name)
    return {}
