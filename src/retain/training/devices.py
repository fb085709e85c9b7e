"""Devices, precision, what the processor makes of tiny numbers, and what becomes of freed memory."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, get_args

import torch

from retain.errors import InputError, nearest

Precision = Literal["float32", "float64", "bfloat16"]


def choose_device(device: str | torch.device) -> torch.device:
    """The device meant by a name; ``auto`` is CUDA where there is one, else the CPU.

    Args:
        device: The name.

    Returns:
        The device, tried.

    Raises:
        InputError: If there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError("device", "'auto', 'cpu', 'cuda' or 'cuda:0'", repr(str(device)), str(error).splitlines()[0]) from error
    return chosen


def dtype_of(precision: Precision) -> torch.dtype:
    """The type weights and inputs are kept in: float32 also under ``bfloat16``, which is mixed."""
    if precision not in get_args(Precision):
        raise InputError("precision", "a known precision", repr(precision), nearest(str(precision), get_args(Precision)))
    return torch.float64 if precision == "float64" else torch.float32


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Numbers below 1e-38 count as 0 meanwhile, on processors that can.

    Moments of weights without a gradient decay to such numbers within a thousand steps of Adam and stay there, and arithmetic with them takes up to a hundred
    times as long. It holds for the calling thread, and for those that torch starts meanwhile.
    """
    before = float(torch.full((), 1e-40, dtype=torch.float32, device="cpu") * 1) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def keep_freed_memory() -> bool:
    """Large blocks that tensors free stay with this process, where its C library is glibc, and are not asked of the system and cleared anew.

    That is a fifth to a quarter of a step's time on a CPU where layers are wide or images large; the process holds what it needed at its peak until it ends.
    Who sets ``MALLOC_MMAP_THRESHOLD_`` or ``MALLOC_TRIM_THRESHOLD_`` decides instead.

    Returns:
        Whether it is so now.
    """
    if sys.platform != "linux" or {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    trim, mapped, most = -1, -3, 2**31 - 1  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, bytes
    return mallopt is not None and all(mallopt(what, most) for what in (trim, mapped))
