"""Whole numbers to bytes without loss: merged deltas, which are mostly zero, and keyframes, which are small.

Owns the rival layouts, the smallest of which wins. Refuses to know what the numbers stand for.

Bytes from outside raise `PayloadError` and nothing else; memory is bounded by length and payload.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fedmq_compression.bits import BitReader, best_divisor, fields, gaps_of, golomb, natural_divisor
from fedmq_compression.frame import LEAST_FRAME_BITS, PayloadError, Reader, deflate, inflate, seal, unseal, varint

__all__ = ["Plan", "decode_integers", "encode_integers", "layouts"]

MAX_ABS = 1 << 30
MAX_LENGTH = (1 << 31) - 1
MAX_NAMES = 1 << 16
"""Distinct magnitudes that are worth listing."""


class Plan(IntEnum):
    """How the numbers are laid out. The head byte is 0x80 plus this, so that no delta's payload looks like one."""

    ZEROS = 0
    """All are zero."""
    PLANES = 1
    """Every number, zigzag, as byte planes in a zstd frame."""
    GOLOMB = 2
    """Every number, zigzag, Golomb-coded."""
    SPARSE_GOLOMB = 3
    """The gaps between those that are not zero, and their magnitudes, Golomb-coded; signs as bits."""
    SPARSE_NAMED = 4
    """The gaps and signs as above; the distinct magnitudes once, then which of them is where."""
    SPARSE_PACKED = 5
    """The same, with what is where as byte planes in a zstd frame: for where some are frequent."""


def encode_integers(values: NDArray[np.int32]) -> bytes:
    """Codes `(length,) int32` of magnitude 2^30 at most, without loss."""
    if values.ndim != 1 or not 1 <= values.size <= MAX_LENGTH or values.dtype != np.int32:
        raise ValueError(f"values are {values.shape} {values.dtype}, expected (length,) int32")
    wide = values.astype(np.int64)
    if np.abs(wide).max() > MAX_ABS:
        raise ValueError(f"a value of magnitude {np.abs(wide).max()}, expected {MAX_ABS} at most")
    return seal(min(layouts(wide), key=len), _agreed(values.size))


def decode_integers(payload: bytes, length: int, max_abs: int = MAX_ABS) -> NDArray[np.int32]:
    """What `encode_integers` made of `length` numbers, none above `max_abs` in magnitude; else a `PayloadError`."""
    if not 1 <= length <= MAX_LENGTH or not 0 <= max_abs <= MAX_ABS:
        raise ValueError(f"length {length} and max_abs {max_abs}, expected up to {MAX_LENGTH} and {MAX_ABS}")
    # Planes of five bytes would never be made: four hold every number, and zstd adds little to what it cannot shrink.
    reader = Reader(unseal(payload, _agreed(length), at_most=5 * length + 64))
    head = reader.byte()
    if head not in [0x80 | plan for plan in Plan]:
        raise PayloadError(f"a head of {head:#x}, expected 0x80 to {0x80 | max(Plan):#x}: made by a newer version?")
    plan = Plan(head & 0x7F)
    if plan is Plan.ZEROS:
        if reader.rest():
            raise PayloadError("an all-zero vector carries more than its head")
        return np.zeros(length, dtype=np.int32)
    if plan is Plan.PLANES:
        values = _read_planes(reader, length)
    elif plan is Plan.GOLOMB:
        divisor = reader.varint(what="the divisor", at_least=1, at_most=2 * MAX_ABS)
        bits = BitReader(reader.rest())
        values = _unzigzag(bits.golomb(length, divisor, each=2 * MAX_ABS))
        bits.end()
    else:
        values = _read_sparse(reader, plan, length)
    if np.abs(values).max() > max_abs:
        raise PayloadError(f"a value of magnitude {np.abs(values).max()}, expected {max_abs} at most")
    return values.astype(np.int32)


def layouts(values: NDArray[np.int64]) -> list[bytes]:
    """Every layout that has a chance, head included, checksum not; each decodes to the same numbers."""
    indices = np.flatnonzero(values)
    if not indices.size:
        return [bytes([0x80 | Plan.ZEROS])]
    made = [_planes(values)]
    zigzag = _zigzag(values)
    divisor, cost = best_divisor(zigzag, natural_divisor(int(zigzag.sum()), zigzag.size))
    if cost < 8 * len(made[0]):
        made.append(bytes([0x80 | Plan.GOLOMB]) + varint(divisor) + np.packbits(golomb(zigzag, divisor)).tobytes())
    return made + _sparse(values[indices], indices, values.size)


# --- dense -----------------------------------------------------------------------------------------------------------


def _planes(values: NDArray[np.int64]) -> bytes:
    zigzag = _zigzag(values)
    width = (int(zigzag.max()).bit_length() + 7) // 8
    return bytes([0x80 | Plan.PLANES, width]) + _pack_planes(zigzag, width)


def _read_planes(reader: Reader, length: int) -> NDArray[np.int64]:
    width = reader.varint(what="the width", at_least=1, at_most=4)
    return _unzigzag(_unpack_planes(reader.rest(), length, width))


def _pack_planes(numbers: NDArray[np.int64], width: int) -> bytes:
    """A zstd frame of the numbers' low bytes, then their next ones, and so on for `width` bytes."""
    return deflate(numbers.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :width].T.tobytes())


def _unpack_planes(frame: bytes, count: int, width: int) -> NDArray[np.int64]:
    planes = np.frombuffer(inflate(frame, width * count), dtype=np.uint8).reshape(width, count)
    numbers = np.zeros(count, dtype=np.int64)
    for plane in planes[::-1]:
        numbers <<= 8
        numbers |= plane
    return numbers


# --- sparse ----------------------------------------------------------------------------------------------------------


def _sparse(values: NDArray[np.int64], indices: NDArray[np.int64], length: int) -> list[bytes]:
    """All three open with the count, two divisors, and a stream of signs and gaps."""
    gaps = gaps_of(indices)
    gap_divisor, _ = best_divisor(gaps, natural_divisor(length, indices.size))
    told = varint(indices.size) + varint(gap_divisor)
    places = np.concatenate([(values < 0).astype(np.uint8), golomb(gaps, gap_divisor)])
    magnitudes = np.abs(values) - 1
    made = []

    divisor, cost = best_divisor(magnitudes, natural_divisor(int(magnitudes.sum()), magnitudes.size))
    # Past that many bits each, the unary parts would cost more memory than the layout could ever save.
    if cost < 40 * values.size:
        head = bytes([0x80 | Plan.SPARSE_GOLOMB]) + told + varint(divisor)
        made.append(head + np.packbits(np.concatenate([places, golomb(magnitudes, divisor)])).tobytes())

    names, which = np.unique(magnitudes, return_inverse=True)
    if names.size <= MAX_NAMES:
        steps_up = gaps_of(names)
        divisor, _ = best_divisor(steps_up, natural_divisor(int(steps_up.sum()), names.size))
        told += varint(divisor) + varint(names.size)
        places = np.concatenate([places, golomb(steps_up, divisor)])
        bits = np.concatenate([places, fields(which, _name_bits(names.size))])
        made.append(bytes([0x80 | Plan.SPARSE_NAMED]) + told + np.packbits(bits).tobytes())
        if values.size * _name_bits(names.size) <= LEAST_FRAME_BITS:
            return made  # no frame is shorter, and it states its size besides
        frame = _pack_planes(which, _name_bytes(names.size))
        stream = np.packbits(places).tobytes()
        made.append(bytes([0x80 | Plan.SPARSE_PACKED]) + told + varint(len(frame)) + frame + stream)
    return made


def _read_sparse(reader: Reader, plan: Plan, length: int) -> NDArray[np.int64]:
    count = reader.varint(what="the count", at_least=1, at_most=length)
    gap_divisor = reader.varint(what="the divisor of the gaps", at_least=1, at_most=MAX_LENGTH)
    divisor = reader.varint(what="the divisor of the values", at_least=1, at_most=MAX_ABS)
    which = None
    total = 0
    if plan is not Plan.SPARSE_GOLOMB:
        total = reader.varint(what="the number of distinct values", at_least=1, at_most=min(count, MAX_NAMES))
    if plan is Plan.SPARSE_PACKED:
        frame = reader.take(reader.varint(what="the size of a zstd frame", at_least=1, at_most=2 * count + 64))
        which = _unpack_planes(frame, count, _name_bytes(total))
    bits = BitReader(reader.rest())
    signs = bits.bits(count)
    # In place where it can be, since here memory is at its highest: all of this may be as long as the vector.
    indices = bits.golomb(count, gap_divisor, each=length, total=length)
    indices += 1
    np.cumsum(indices, out=indices)
    indices -= 1
    if indices[-1] >= length:
        raise PayloadError(f"coordinate {indices[-1]}, expected less than {length}")
    if plan is Plan.SPARSE_GOLOMB:
        magnitudes = bits.golomb(count, divisor, each=MAX_ABS - 1)
        magnitudes += 1
    else:
        names = np.cumsum(bits.golomb(total, divisor, each=MAX_ABS, total=MAX_ABS) + 1)
        if which is None:
            which = bits.fields(count, _name_bits(total))
        if int(which.max()) >= total:
            raise PayloadError(f"distinct value number {which.max()}, expected less than {total}")
        magnitudes = names[which]
    bits.end()
    whole = np.zeros(length, dtype=np.int64)
    np.negative(magnitudes, out=magnitudes, where=signs == 1)
    whole[indices] = magnitudes
    return whole


def _name_bits(names: int) -> int:
    return (names - 1).bit_length()


def _name_bytes(names: int) -> int:
    return 1 if names <= 1 << 8 else 2


def _zigzag(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, -1, 1, -2, … as 0, 1, 2, 3, …"""
    return (values << 1) ^ (values >> 63)


def _unzigzag(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    return (numbers >> 1) ^ -(numbers & 1)


def _agreed(length: int) -> bytes:
    """What both ends must agree on: the checksum starts with it."""
    return struct.pack("<BI", 0, length)
