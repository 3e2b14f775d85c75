"""The codec's inner loops as machine code, where numba is installed (`pip install 'fedmq[fast]'`).

Owns the only door to numba, and the choice between it and numpy. Refuses to know the layout: `kernels` does. Payloads
are the same bytes and results the same numbers either way; only the time differs.

Rules:
- Nothing is imported or compiled before the first payload is decoded: a program's start does not pay for it.
- A function here answers None (or False) where its caller is to take numpy's way: nothing is compiled, or the kernel
  is not content with the bytes. So numpy has the last word on what is wrong with a payload.
- Whatever hinders compiling costs speed and a line in the log, never a payload.

Machine code is kept beside this file or in the user's cache, as numba does it: whoever can write there could change
the program as well.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmq_compression import kernels

__all__ = ["active", "add", "checksum", "gaps", "ranked"]

log = logging.getLogger(__name__)

enabled = os.environ.get("FEDMQ_COMPILED") != "0" and find_spec("numba") is not None
"""Whether to compile at all."""

INT64 = np.dtype(np.int64)
Int64s = NDArray[np.int64]
Kernel = Callable[..., Any]

BYTES = "Bytes(uint8, 1, 'C', readonly=True)"
GIVEN = "Array({}, {}, 'C', readonly=True)".format
"""An array that may be read-only."""

SIGNATURES: dict[Kernel, str] = {
    kernels.add: "boolean(int64[::1], int64[::1], int64[::1], int64)",
    kernels.checksum: f"int64({BYTES}, int64)",
    kernels.gaps: f"boolean({BYTES}, int64, int64, int64, int64, boolean, int64, int64[::1], int64[::1])",
    kernels.ranked: f"boolean({BYTES}, int64, {GIVEN('int32', 1)}, {GIVEN('int8', 1)}, {GIVEN('int64', 2)}, int64,"
    " int64[::1], int64[::1])",
}


def active() -> bool:
    """Whether decoding runs as machine code, in this process, from now on."""
    return enabled and all(_compiled(kernel) is not None for kernel in SIGNATURES)


def add(total: Int64s, indices: Int64s, steps: Int64s, weight: int) -> bool:
    """Adds `weight` times the steps to `total` at strictly increasing indices, in place; False: nothing was added."""
    kernel = _compiled(kernels.add) if enabled else None
    if kernel is None or not (_plain(total) and _plain(indices) and _plain(steps)):
        return False
    return bool(kernel(total, indices, steps, index(weight)))


def checksum(data: bytes, start: int) -> int | None:
    """CRC-16/IBM-3740 that goes on from `start`."""
    kernel = _compiled(kernels.checksum) if enabled else None
    return None if kernel is None or type(data) is not bytes else int(kernel(data, start))


def gaps(
    data: bytes, start: int, length: int, count: int, divisor: int, *, unsent: bool, scale: int = 0
) -> tuple[Int64s, Int64s] | None:
    """`(count,)` indices below `length` that Golomb-coded gaps from bit `start` to the end tell.

    With a scale also the steps, of which the signs come first.
    """
    kernel = _compiled(kernels.gaps) if enabled else None
    told = length - count if unsent else count
    # A number takes a bit at least: no more is allocated than the payload can fill.
    if kernel is None or type(data) is not bytes or start + told > 8 * len(data):
        return None
    indices = np.empty(count, INT64)
    steps = np.empty(count if scale else 0, INT64)
    return (indices, steps) if kernel(data, start, length, told, divisor, unsent, scale, indices, steps) else None


def ranked(
    data: bytes,
    start: int,
    count: int,
    order: NDArray[np.int32],
    lean: NDArray[np.int8],
    blocks: Int64s,
    scale: int = 0,
) -> tuple[Int64s, Int64s] | None:
    """`(count,)` indices that are told along a ranking from bit `start` to the end, and with a scale the steps."""
    kernel = _compiled(kernels.ranked) if enabled else None
    if kernel is None or type(data) is not bytes:
        return None
    indices = np.empty(count, INT64)
    steps = np.empty(count if scale else 0, INT64)
    return (indices, steps) if kernel(data, start, order, lean, blocks, scale, indices, steps) else None


def _plain(numbers: Int64s) -> bool:
    """Whether these are what the kernels are compiled for: int64 side by side, aligned and writeable."""
    return numbers.flags.carray and numbers.dtype == INT64 and numbers.ndim == 1


@cache
def _compiled(kernel: Kernel) -> Kernel | None:
    """The kernel as machine code, from the cache on disk where there is one; None where that cannot be had."""
    numba = _numba()
    if numba is None:
        return None
    try:
        return _jit(numba, kernel, keep=True)
    except Exception as unkept:  # of many kinds: no folder to write to, a full disk, a file that a power cut broke
        log.info("%s is compiled in each process anew, set NUMBA_CACHE_DIR: %s", kernel.__name__, unkept)
    try:
        return _jit(numba, kernel, keep=False)
    except Exception as broken:
        log.warning("numba does not compile %s, numpy does its work: %s", kernel.__name__, broken)
        return None


def _jit(numba: Any, kernel: Kernel, *, keep: bool) -> Kernel:
    compiled: Kernel = numba.njit(SIGNATURES[kernel], cache=keep)(kernel)
    return compiled


@cache
def _numba() -> Any:
    """numba, told of the functions that kernels call; None where it cannot be had."""
    try:
        import numba
        from numba.extending import register_jitable
    except Exception as broken:  # such as an ImportError, where numpy is newer than numba knows
        log.warning("numba is installed and cannot be imported, numpy does its work: %s", broken)
        return None
    # At DEBUG it tells of every step of compiling, thousands of lines.
    logging.getLogger("numba").setLevel(logging.INFO)
    for helper in kernels.HELPERS:
        register_jitable(helper)
    return numba
