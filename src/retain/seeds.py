"""Named random generators: one seed, many independent streams, so that adding a method leaves the data order as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from retain.errors import check_count


def derive(seed: int, name: str, *index: int) -> int:
    """A 63-bit seed for the stream ``name`` (and its position, such as task and epoch).

    Args:
        seed: The run's seed, at least 0.
        name: The stream: ``initialisation``, ``order``, ``labels``, ``replay``, ``classes``, ``noise``,
            ``permutation``, ``coreset`` and so on.
        *index: The position in the stream.

    Returns:
        A whole number below 2**63 that depends on all arguments and on nothing else.

    Example:
        >>> derive(0, "order", 1, 0) == derive(0, "order", 1, 0) != derive(0, "order", 1, 1)
        True
    """
    check_count("seed", seed, least=0)
    text = ":".join([str(seed), name, *map(str, index)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, name: str, *index: int) -> torch.Generator:
    """A CPU generator for one named stream (see :func:`derive`)."""
    return torch.Generator().manual_seed(derive(seed, name, *index))


@contextmanager
def seeded(seed: int, name: str, *index: int) -> Iterator[None]:
    """Inside the block torch's global generators follow the named stream; afterwards they are as they were.

    This covers what draws from the global generators by itself: initialisation, dropout, a DataLoader's shuffling.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, name, *index))
        yield
