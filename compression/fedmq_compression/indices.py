"""Which coordinates are sent, as bits: Golomb-coded gaps and their rivals, the smallest wins.

Owns the layouts of the index part. Refuses to know values.

Gaps between random indices are geometric, and Golomb's code is the best whole-bit code for those: with the divisor
that both ends compute from length and count it stays within 1 % of log2 C(length, count). Left out, because they
never win: a raw bitmap (Golomb with divisor 1 is one, less its tail) and Elias-Fano (a quotient for each gap sums to
no more than one of the last index, at two bits against one and a half).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fedmq_compression.bits import BitReader, best_divisor, gaps_of, golomb, golomb_bits, natural_divisor
from fedmq_compression.frame import LEAST_FRAME_BITS, PayloadError, deflate, inflate, varint

__all__ = ["Layout", "Support", "code_support", "read_support", "rivals"]


BITMAP_FROM = 64
"""A bitmap is tried where more than one in so many coordinates is sent."""


class Layout(IntEnum):
    """How the sent coordinates are told. Numbers 6 to 14 are free for later, 15 for a second byte of layouts."""

    NOTHING = 0
    """No coordinate is sent."""
    DENSE = 1
    """All are."""
    GAPS = 2
    """Golomb code of the gaps between those that are sent."""
    UNSENT_GAPS = 3
    """The same of those that are not sent, for a density above one half."""
    BITMAP = 4
    """A bitmap, one bit a coordinate, as a zstd frame: for supports that lie in clusters."""
    RANKED = 5
    """Golomb codes along the ranking that both ends make from the base version (`contexts`)."""


@dataclass(frozen=True, kw_only=True)
class Support:
    """A coded index part."""

    layout: Layout
    divisor: int | None
    """Golomb's, where it is not the one that length and count give."""
    bits: NDArray[np.uint8]

    @property
    def cost(self) -> int:
        """Bits, the stated divisor included."""
        return self.bits.size + (0 if self.divisor is None else 8 * len(varint(self.divisor)))


def code_support(indices: NDArray[np.int64], length: int) -> Support:
    """The cheapest coding of strictly increasing indices below `length`, at least one and not all."""
    if 2 * indices.size > length:
        return min(rivals(indices, length), key=lambda support: support.cost)
    # A cost needs no bits to be made.
    gaps = gaps_of(indices)
    natural = natural_divisor(length, indices.size)
    best, bits = best_divisor(gaps, natural)
    plain = bits if best == natural else golomb_bits(gaps, natural)
    stated = best != natural and bits + 8 * len(varint(best)) < plain
    coded = Support(
        layout=Layout.GAPS,
        divisor=best if stated else None,
        bits=golomb(gaps, best if stated else natural),
    )
    # Of few indices gaps are always the cheapest, and what is as short as any frame needs no rival.
    if BITMAP_FROM * indices.size <= length or coded.cost <= LEAST_FRAME_BITS:
        return coded
    bitmap = _bitmap(indices, length)
    return bitmap if bitmap.cost < coded.cost else coded


def rivals(indices: NDArray[np.int64], length: int) -> list[Support]:
    """Every coding that has a chance, each of which decodes to the same indices."""
    codings = _gaps(Layout.GAPS, indices, length)
    if 2 * indices.size > length:
        mask = np.ones(length, dtype=bool)
        mask[indices] = False
        codings += _gaps(Layout.UNSENT_GAPS, np.flatnonzero(mask), length)
    if BITMAP_FROM * indices.size > length:
        codings.append(_bitmap(indices, length))
    return codings


def _bitmap(indices: NDArray[np.int64], length: int) -> Support:
    mask = np.zeros(length, dtype=bool)
    mask[indices] = True
    frame = deflate(np.packbits(mask).tobytes())
    return Support(layout=Layout.BITMAP, divisor=None, bits=np.unpackbits(np.frombuffer(frame, dtype=np.uint8)))


def read_support(reader: BitReader, layout: Layout, length: int, count: int, divisor: int | None) -> NDArray[np.int64]:
    """The indices that the rest of the bits tell, `(count,) int64`, strictly increasing; 1 <= count <= length."""
    if layout is Layout.GAPS:
        return _read_gaps(reader, length, count, divisor)
    if layout is Layout.UNSENT_GAPS:
        mask = np.ones(length, dtype=bool)
        mask[_read_gaps(reader, length, length - count, divisor)] = False
        return np.flatnonzero(mask)
    frame = np.packbits(reader.bits(reader.left // 8 * 8)).tobytes()
    reader.end()
    bitmap = np.unpackbits(np.frombuffer(inflate(frame, (length + 7) // 8), dtype=np.uint8))
    if bitmap[length:].any():
        raise PayloadError(f"a bitmap has bits after its {length} coordinates")
    indices = np.flatnonzero(bitmap)
    if indices.size != count:
        raise PayloadError(f"a bitmap tells {indices.size} coordinates, expected {count}")
    return indices


def _gaps(layout: Layout, indices: NDArray[np.int64], length: int) -> list[Support]:
    gaps = gaps_of(indices)
    natural = natural_divisor(length, indices.size)
    best, _ = best_divisor(gaps, natural)
    codings = [Support(layout=layout, divisor=None, bits=golomb(gaps, natural))]
    if best != natural:
        codings.append(Support(layout=layout, divisor=best, bits=golomb(gaps, best)))
    return codings


def _read_gaps(reader: BitReader, length: int, count: int, divisor: int | None) -> NDArray[np.int64]:
    natural = natural_divisor(length, count)
    if divisor == natural:
        raise PayloadError(f"a divisor of {divisor} is stated, which length and count give anyway")
    gaps = reader.golomb(count, divisor or natural, each=length, total=length)
    reader.end()
    indices: NDArray[np.int64] = np.cumsum(gaps + 1) - 1
    if count and indices[-1] >= length:
        raise PayloadError(f"coordinate {indices[-1]} is sent, expected less than {length}")
    return indices
