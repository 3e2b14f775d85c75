"""The layouts that others send sparse signs in: yardsticks for the codec, and no part of it.

Owns six ways to tell which coordinates are sent, each as bits that can be decoded again, and the message made of
those and of one sign a coordinate. Written to be plainly right, not to be fast. Every rival gets the coding that
suits it best where it has a choice, and its count for nothing, because both ends could agree on that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

__all__ = ["RIVALS", "MissingRivalError", "Rival", "entropy_bits", "log2_choose"]

Bits = NDArray[np.uint8]
"""One bit a byte, `(n,) uint8` of 0 and 1."""

Indices = NDArray[np.int64]
"""Coordinates that are sent, strictly increasing."""

ZSTD_LEVEL = 19


class MissingRivalError(ImportError):
    """pyroaring is not installed."""


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One layout: `bits(indices, length)`, and `indices(bits, length, count)`, which undoes it."""

    name: str
    bits: Callable[[Indices, int], Bits]
    indices: Callable[[Bits, int, int], Indices]
    """Up to seven zeros may follow the bits."""

    def encode(self, indices: Indices, negative: NDArray[np.bool_], length: int) -> bytes:
        """Signs, then indices, padded once at the end."""
        return np.packbits(np.concatenate([negative.astype(np.uint8), self.bits(indices, length)])).tobytes()

    def decode(self, data: bytes, length: int, count: int) -> tuple[Indices, NDArray[np.bool_]]:
        bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
        return self.indices(bits[count:], length, count), bits[:count].astype(np.bool_)


def log2_choose(length: int, count: int) -> float:
    """log2 of the number of ways to choose: what a support costs where all are equally likely, in bits."""
    whole = math.lgamma(length + 1) - math.lgamma(count + 1) - math.lgamma(length - count + 1)
    return max(0.0, whole / math.log(2))


def entropy_bits(negative: NDArray[np.bool_]) -> float:
    """Empirical entropy of the signs of one message, all of them together, in bits (Shannon 1948)."""
    share = float(negative.mean()) if negative.size else 0.0
    each = sum(-p * math.log2(p) for p in (share, 1 - share) if p > 0)
    return negative.size * each


# --- Bitmap: a bit for each coordinate -------------------------------------------------------------------------------


def _bitmap(indices: Indices, length: int) -> Bits:
    bits = np.zeros(length, dtype=np.uint8)
    bits[indices] = 1
    return bits


def _from_bitmap(bits: Bits, length: int, count: int) -> Indices:
    return np.flatnonzero(bits[:length])


# --- Gaps as varints (LEB128) ----------------------------------------------------------------------------------------


def _varint(indices: Indices, length: int) -> Bits:
    gaps = np.diff(indices, prepend=-1) - 1
    groups = np.stack([gaps >> shift & 127 for shift in range(0, 35, 7)], axis=1)
    used = np.stack([(gaps >> shift) > 0 for shift in range(0, 35, 7)], axis=1)
    used[:, 0] = True
    more = np.zeros_like(used)
    more[:, :-1] = used[:, 1:]
    return np.unpackbits((groups | more << 7)[used].astype(np.uint8))


def _from_varint(bits: Bits, length: int, count: int) -> Indices:
    gaps, value, shift = [], 0, 0
    for byte in _whole_bytes(bits):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            gaps.append(value)
            value, shift = 0, 0
    return _from_gaps(np.array(gaps, dtype=np.int64))


# --- Elias-Fano: low bits as they are, high bits as steps in unary (Elias 1974, Fano 1971) ---------------------------


def _low_width(length: int, count: int) -> int:
    return max(0, (length // max(1, count)).bit_length() - 1)


def _elias_fano(indices: Indices, length: int) -> Bits:
    width = _low_width(length, indices.size)
    return np.concatenate([_fields(indices, width), _unary(np.diff(indices >> width, prepend=0))])


def _from_elias_fano(bits: Bits, length: int, count: int) -> Indices:
    width = _low_width(length, count)
    low = _from_fields(bits, count, width)
    return (np.cumsum(_from_unary(bits[count * width :], count)) << width) + low


# --- Rice: gaps by a power of two (Rice 1971) ------------------------------------------------------------------------


def _rice_width(length: int, count: int) -> int:
    """The best one for geometric gaps of this density (Kiely 2004, IPN Progress Report 42-159)."""
    density = count / length
    if not 0 < density < 1:
        return 0
    golden = (math.sqrt(5) + 1) / 2
    return max(0, 1 + math.floor(math.log2(math.log(golden - 1) / math.log(1 - density))))


def _rice(indices: Indices, length: int) -> Bits:
    gaps = np.diff(indices, prepend=-1) - 1
    width = _rice_width(length, indices.size)
    return np.concatenate([_fields(gaps, width), _unary(gaps >> width)])


def _from_rice(bits: Bits, length: int, count: int) -> Indices:
    width = _rice_width(length, count)
    low = _from_fields(bits, count, width)
    return _from_gaps((_from_unary(bits[count * width :], count) << width) + low)


# --- Roaring bitmaps, in their portable serialised form (Lemire et al. 2018, arXiv:1709.07821) -----------------------


def _pyroaring() -> Any:
    try:
        import pyroaring
    except ImportError:
        raise MissingRivalError(
            "the roaring rival needs pyroaring: pip install 'fedmq[bench]' (or pyroaring alone)"
        ) from None
    return pyroaring


def _roaring(indices: Indices, length: int) -> Bits:
    bitmap = _pyroaring().BitMap(indices.astype(np.uint32))
    bitmap.run_optimize()
    return np.unpackbits(np.frombuffer(bitmap.serialize(), dtype=np.uint8))


def _from_roaring(bits: Bits, length: int, count: int) -> Indices:
    return np.array(_pyroaring().BitMap.deserialize(_whole_bytes(bits)), dtype=np.int64)


# --- int32 indices, and zstd at its best usual level -----------------------------------------------------------------


def _raw_zstd(indices: Indices, length: int) -> Bits:
    frame = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(indices.astype("<i4").tobytes())
    return np.unpackbits(np.frombuffer(frame, dtype=np.uint8))


def _from_raw_zstd(bits: Bits, length: int, count: int) -> Indices:
    raw = zstandard.ZstdDecompressor().decompress(_whole_bytes(bits), max_output_size=4 * count)
    return np.frombuffer(raw, dtype="<i4").astype(np.int64)


# --- What they are made of -------------------------------------------------------------------------------------------


def _whole_bytes(bits: Bits) -> bytes:
    return np.packbits(bits[: bits.size // 8 * 8]).tobytes()


def _from_gaps(gaps: NDArray[np.int64]) -> Indices:
    indices: Indices = np.cumsum(gaps + 1) - 1
    return indices


def _fields(numbers: NDArray[np.int64], width: int) -> Bits:
    shifts = np.arange(width - 1, -1, -1, dtype=np.int64)
    return ((numbers[:, None] >> shifts) & 1).astype(np.uint8).ravel()


def _from_fields(bits: Bits, count: int, width: int) -> NDArray[np.int64]:
    weights = 1 << np.arange(width - 1, -1, -1, dtype=np.int64)
    return bits[: count * width].reshape(count, width).astype(np.int64) @ weights


def _unary(numbers: NDArray[np.int64]) -> Bits:
    ends = np.cumsum(numbers + 1)
    bits = np.zeros(int(ends[-1]) if ends.size else 0, dtype=np.uint8)
    bits[ends - 1] = 1
    return bits


def _from_unary(bits: Bits, count: int) -> NDArray[np.int64]:
    return np.diff(np.flatnonzero(bits)[:count], prepend=-1) - 1


RIVALS = (
    Rival(name="Rice", bits=_rice, indices=_from_rice),
    Rival(name="Elias-Fano", bits=_elias_fano, indices=_from_elias_fano),
    Rival(name="varint", bits=_varint, indices=_from_varint),
    Rival(name="zstd-19", bits=_raw_zstd, indices=_from_raw_zstd),
    Rival(name="roaring", bits=_roaring, indices=_from_roaring),
    Rival(name="bitmap", bits=_bitmap, indices=_from_bitmap),
)
"""`zstd-19` is int32 indices, compressed."""
