"""Values as a few bits each: a level times one scale, or float32.

Owns the rounding, and the bytes of the levels. Refuses to know which coordinates they belong to. Every decoded value
is a whole number of steps, less than `LIMIT` in magnitude, and exact in float32: a scale has at most 11 significant
bits and a level 8.

Levels at 1 bit are -1 and 1. At 4 and 8 bits a sparse delta has no use for a level of zero (it would not be sent), so
its levels are -8 to -1 and 1 to 8 (128); a dense one has -7 to 7 (127). At 32 bits a value is itself, in float32.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedmq_compression.frame import MAX_SCALE, PayloadError, snap_scale

__all__ = ["LIMIT", "codes_size", "from_codes", "levels_of", "most_steps", "to_codes"]

LIMIT = 64.0
"""Every value, before and after coding, is below this in magnitude, so that a weighted sum fits int64."""


def most_steps(step: float) -> int:
    """The largest whole number of steps that stays below `LIMIT`."""
    return math.ceil(LIMIT / step) - 1


def highest_level(bits: int, *, dense: bool) -> int:
    return 1 if bits == 1 else (1 << (bits - 1)) - dense


def levels_of(
    values: NDArray[np.float32], bits: int, step: float, *, dense: bool, gain: float = 1.0
) -> tuple[NDArray[np.int64], int]:
    """`(levels, scale)` of values `(n,)`, n >= 1: a value decodes to level times scale steps.

    The scale is `gain` times the mean magnitude at 1 bit (signSGD with its scale, Karimireddy et al. 2019,
    arXiv:1901.09847), and at 4 and 8 bits the largest magnitude over the highest level. At 32 bits it is one step.
    Levels come out as zero where nothing of the value is left; all of them are where the scale is less than half a
    step. Raises ValueError for a gain outside [1, 2): at 2, what comes back is as large as what was sent.
    """
    if not 1 <= gain < 2:
        raise ValueError(f"gain is {gain}, expected at least 1 and less than 2")
    most = most_steps(step)
    if bits == 32:
        return np.clip(np.rint(values.astype(np.float64) / step), -most, most).astype(np.int64), 1
    highest = highest_level(bits, dense=dense)
    magnitudes = np.abs(values)
    if bits == 1:
        mean = gain * float(magnitudes.mean(dtype=np.float64)) / step
        if mean < 0.5:
            return np.zeros(values.size, dtype=np.int64), 1
        return np.where(values < 0, -1, 1).astype(np.int64), snap_scale(mean, at_most=most)
    scale = snap_scale(float(magnitudes.max()) / step / highest, at_most=most // highest, upwards=True)
    levels = np.rint(values.astype(np.float64) / (scale * step))
    return np.clip(levels, -highest, highest).astype(np.int64), scale


def codes_size(count: int, bits: int) -> int:
    """Bytes of `count` codes."""
    return (count * bits + 7) // 8


def to_codes(levels: NDArray[np.int64], bits: int, step: float, *, dense: bool) -> bytes:
    """Levels as bytes, the first in the highest bits; float32 little-endian at 32 bits.

    1 bit: 1 where negative. 4 and 8 bits, dense: level plus 8 (128). Sparse: the sign, then the magnitude less one.
    """
    if bits == 32:
        return (levels * step).astype("<f4").tobytes()
    if bits == 1:
        return np.packbits(levels < 0).tobytes()
    half = 1 << (bits - 1)
    codes = levels + half if dense else np.where(levels < 0, half, 0) + np.abs(levels) - 1
    if bits == 8:
        return codes.astype(np.uint8).tobytes()
    padded = np.append(codes, 0) if codes.size % 2 else codes
    return (padded[::2] << 4 | padded[1::2]).astype(np.uint8).tobytes()


def from_codes(data: bytes, count: int, bits: int, scale: int, step: float, *, dense: bool) -> NDArray[np.int64]:
    """Steps `(count,) int64` of what `to_codes` made; bits after the last code are not looked at."""
    if bits == 32:
        return _from_float32(data, step, dense=dense)
    raw = np.frombuffer(data, dtype=np.uint8)
    if bits == 1:
        _check_scale(scale, 1 if count else 0, step)
        steps = np.unpackbits(raw, count=count).astype(np.int64)
        steps *= -2 * scale
        steps += scale
        return steps
    codes = raw if bits == 8 else np.stack([raw >> 4, raw & 15], axis=1).ravel()[:count]
    half = 1 << (bits - 1)
    if dense:
        levels = codes.astype(np.int64) - half
        if levels.size and levels.min() == -half:
            raise PayloadError(f"a level of {-half}, expected {1 - half} to {half - 1}")
    else:
        magnitudes = (codes & (half - 1)).astype(np.int64) + 1
        levels = np.where(codes >= half, -magnitudes, magnitudes)
    _check_scale(scale, int(np.abs(levels).max(initial=0)), step)
    return levels * scale


def _check_scale(scale: int, highest: int, step: float) -> None:
    """Raises PayloadError where the highest level would lead to values of `LIMIT` or more."""
    if scale > MAX_SCALE or highest * scale > most_steps(step):
        raise PayloadError(f"a scale of {scale} steps leads to values of {LIMIT} or more")


def _from_float32(data: bytes, step: float, *, dense: bool) -> NDArray[np.int64]:
    values = np.frombuffer(data, dtype="<f4")
    if not np.isfinite(values).all() or float(np.abs(values).max(initial=0)) >= LIMIT:
        raise PayloadError(f"a value is not finite or not below {LIMIT} in magnitude")
    steps = values.astype(np.float64) / step
    whole = steps.astype(np.int64)
    if not np.array_equal(whole, steps):
        raise PayloadError(f"a value is not a whole number of steps of {step}")
    if not dense and not whole.all():
        raise PayloadError("a value of zero is sent, expected only others")
    return whole
