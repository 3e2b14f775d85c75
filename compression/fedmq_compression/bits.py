"""Numbers as bits, whole arrays at a time.

Owns fixed-width fields, unary numbers, and the Golomb code made of both. Refuses to know what the numbers mean.

Bits are filled from the highest of a byte down, and fields are written high bit first. The parts of a code word do
not stand side by side: all fields come first, then all unary parts. That costs no bit and lets numpy write and read
them without a loop over the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedmq_compression.frame import PayloadError

__all__ = [
    "BitReader",
    "Bits",
    "best_divisor",
    "fields",
    "gaps_of",
    "golomb",
    "golomb_bits",
    "natural_divisor",
    "one_golomb",
    "ragged_golomb",
    "truncated_binary",
    "unary",
]

Bits = NDArray[np.uint8]
"""One bit a byte, `(n,) uint8` of 0 and 1, as numpy packs and unpacks them."""

Numbers = NDArray[np.int64]

BLOCK = 1 << 13
"""Numbers that a reader unpacks at a time."""
UNARY_BLOCK = 1 << 15
"""Bits of a unary part that it does."""
RAGGED_BLOCK = 1 << 12
"""Numbers of different widths at a time: each stands in a row that is as long as the widest, eight bytes a bit."""


def fields(numbers: Numbers, width: int) -> Bits:
    """Each number in `width` bits, high bit first; 0 <= number < 2^width, and width below 64."""
    if not width:
        return np.zeros(0, dtype=np.uint8)
    columns = (numbers << (64 - width)).astype(">u8").view(np.uint8).reshape(-1, 8)[:, : (width + 7) // 8]
    return np.unpackbits(columns, axis=1, count=width).ravel()


def unary(numbers: Numbers) -> Bits:
    """Each number as that many zeros and a one."""
    if not numbers.size:
        return np.zeros(0, dtype=np.uint8)
    ends = np.cumsum(numbers + 1)
    ends -= 1
    bits = np.zeros(int(ends[-1]) + 1, dtype=np.uint8)
    bits[ends] = 1
    return bits


def ragged_fields(numbers: Numbers, widths: Numbers) -> Bits:
    """Each number in its own width, high bit first."""
    blocks = [np.zeros(0, dtype=np.uint8)]
    for first in range(0, numbers.size, RAGGED_BLOCK):
        some = widths[first : first + RAGGED_BLOCK, None]
        shifts = some - 1 - np.arange(int(some.max()), dtype=np.int64)
        bits = (numbers[first : first + RAGGED_BLOCK, None] >> np.maximum(shifts, 0)) & 1
        blocks.append(bits[shifts >= 0].astype(np.uint8))
    return np.concatenate(blocks)


def gaps_of(numbers: Numbers) -> Numbers:
    """How many whole numbers are left out before each of strictly increasing ones, at least one of them, all >= 0."""
    gaps = numbers.copy()
    gaps[1:] -= numbers[:-1]
    gaps[1:] -= 1
    return gaps


def golomb(numbers: Numbers, divisor: int) -> Bits:
    """Golomb code (Golomb 1966) of numbers >= 0; with a power of two as its divisor it is Rice's (1971).

    The remainder is in truncated binary: `width` bits for all, then one more for those that need it, then the
    quotients in unary.
    """
    quotients, remainders = _divided(numbers, divisor)
    width, short = truncated_binary(divisor)
    long = np.flatnonzero(remainders >= short)
    coded = remainders[long] + short
    remainders[long] = coded >> 1
    return np.concatenate([fields(remainders, width), (coded & 1).astype(np.uint8), unary(quotients)])


def ragged_golomb(numbers: Numbers, divisors: Numbers) -> Bits:
    """The same with a divisor for each number."""
    quotients, remainders = np.divmod(numbers, divisors)
    widths, short = _truncated_binaries(divisors)
    long = remainders >= short
    coded = np.where(long, remainders + short, remainders)
    heads = np.where(long, coded >> 1, coded)
    return np.concatenate([ragged_fields(heads, widths), (coded[long] & 1).astype(np.uint8), unary(quotients)])


def one_golomb(number: int, divisor: int) -> list[int]:
    """The same of one number, without numpy, which would take ten times as long."""
    quotient, remainder = divmod(number, divisor)
    width, short = truncated_binary(divisor)
    if remainder >= short:
        remainder += short
        width += 1
    return [remainder >> shift & 1 for shift in range(width - 1, -1, -1)] + [0] * quotient + [1]


def golomb_bits(numbers: Numbers, divisor: int) -> int:
    """Length of `golomb(numbers, divisor)`, without making it."""
    quotients, remainders = _divided(numbers, divisor)
    width, short = truncated_binary(divisor)
    return int(quotients.sum()) + numbers.size * (width + 1) + int(np.count_nonzero(remainders >= short))


def natural_divisor(total: int, count: int) -> int:
    """The divisor that suits `count` numbers of sum `total` spread at random: their mean times ln 2.

    In whole numbers, because both ends compute it (Gallager and van Voorhis 1975).
    """
    return max(1, total * 355 // (max(1, count) * 512))


def best_divisor(numbers: Numbers, start: int) -> tuple[int, int]:
    """`(divisor, bits)` of the cheapest divisor found by walking from `start` in half octaves while it gets better."""
    best, bits = start, golomb_bits(numbers, start)
    for ladder in (_downwards(start), _upwards(start, int(numbers.max(initial=0)))):
        for divisor in ladder:
            cost = golomb_bits(numbers, divisor)
            if cost >= bits:
                break
            best, bits = divisor, cost
    return best, bits


class BitReader:
    """A cursor over the bits of bytes from outside, from bit `start` on.

    Bits are unpacked a block at a time, into eight times their memory and more: bytes that nobody asked for cost
    nothing, however many there are.
    """

    def __init__(self, data: bytes, start: int = 0) -> None:
        if start > 8 * len(data):
            raise PayloadError(f"{start} bits expected, {8 * len(data)} there")
        self._bytes: NDArray[np.uint8] = np.frombuffer(data, dtype=np.uint8)
        self._at = start

    @property
    def left(self) -> int:
        return 8 * self._bytes.size - self._at

    def bits(self, count: int) -> Bits:
        if count > self.left:
            raise PayloadError(f"{count} more bits expected, {self.left} there")
        self._at += count
        return self._unpack(self._at - count, self._at)

    def fields(self, count: int, width: int) -> Numbers:
        if count * width > self.left:
            raise PayloadError(f"{count * width} more bits expected, {self.left} there")
        numbers = np.zeros(count, dtype=np.int64)
        if not width:
            return numbers
        weights = 1 << np.arange(width - 1, -1, -1, dtype=np.int64)
        for first in range(0, count, BLOCK):
            block = numbers[first : first + BLOCK]
            block[:] = self.bits(block.size * width).reshape(block.size, width) @ weights
        return numbers

    def number(self, divisor: int, *, each: int) -> int:
        """One Golomb-coded number, none above `each`."""
        width, short = truncated_binary(divisor)
        number = 0
        for bit in self.bits(width).tolist():
            number = number << 1 | bit
        if number >= short:
            number += number - short + int(self.bits(1)[0])
        # Looked for no further than a number within bounds can reach.
        quotient = self._unpack(self._at, self._at + each // divisor + 1).tobytes().find(1)
        if quotient < 0 or number + quotient * divisor > each:
            raise PayloadError(f"a number is not told, or above {each}")
        self._at += quotient + 1
        return number + quotient * divisor

    def ragged_golomb(self, divisors: Numbers, *, each: int) -> Numbers:
        """What the function of that name wrote, none above `each`."""
        widths, short = _truncated_binaries(divisors)
        numbers = self._ragged_fields(widths)
        long = numbers >= short
        numbers[long] += numbers[long] - short[long] + self.bits(int(np.count_nonzero(long)))
        quotients = self.unary(divisors.size)
        # Checked before the product, which could otherwise leave int64.
        if quotients.size and int(quotients.max()) > each:
            raise PayloadError(f"a number of {int(quotients.max())} or more, expected {each} at most")
        numbers += quotients * divisors
        return numbers

    def _ragged_fields(self, widths: Numbers) -> Numbers:
        numbers = np.zeros(widths.size, dtype=np.int64)
        for first in range(0, widths.size, RAGGED_BLOCK):
            some = widths[first : first + RAGGED_BLOCK]
            bits = self.bits(int(some.sum()))
            if bits.size:
                shifts = some[:, None] - 1 - np.arange(int(some.max()), dtype=np.int64)
                there = shifts >= 0
                wide = np.zeros(shifts.shape, dtype=np.int64)
                wide[there] = bits
                np.sum(wide << np.maximum(shifts, 0), axis=1, out=numbers[first : first + RAGGED_BLOCK])
        return numbers

    def golomb(self, count: int, divisor: int, *, each: int, total: int | None = None) -> Numbers:
        """`count` numbers of which none is above `each`, and the quotients sum to those of `total` at most."""
        width, short = truncated_binary(divisor)
        numbers = self.fields(count, width)
        if short < 1 << width:  # else the divisor is a power of two, and no remainder takes one bit more
            long = np.flatnonzero(numbers >= short)
            numbers[long] += numbers[long] - short + self.bits(long.size)
        quotients = self.unary(count)
        if count:
            # Checked before the product, which could otherwise leave int64.
            largest = int(quotients.max())
            if largest > each // divisor:
                raise PayloadError(f"a number of {largest * divisor} or more, expected {each} at most")
            if total is not None and (sum_of := int(quotients.sum())) > total // divisor:
                raise PayloadError(f"numbers of sum {sum_of * divisor} or more, expected {total} at most")
            quotients *= divisor
            numbers += quotients
            if (largest := int(numbers.max())) > each:
                raise PayloadError(f"a number of {largest}, expected {each} at most")
        return numbers

    def end(self) -> None:
        """What is left must be the padding of the last byte: fewer than eight bits, all zero."""
        left = self.left
        if left >= 8 or self.bits(left).any():
            raise PayloadError(f"{left} bits after the end, expected fewer than 8, all zero")

    def unary(self, count: int) -> Numbers:
        """Each number's zeros before its one. Looks no further than the last one that is wanted."""
        ends = np.empty(count, dtype=np.int64)
        found, at = 0, self._at
        while found < count:
            if at >= 8 * self._bytes.size:
                raise PayloadError(f"{count} numbers in unary expected, {found} there")
            block = np.flatnonzero(self._unpack(at, at + UNARY_BLOCK))[: count - found]
            ends[found : found + block.size] = block + at
            found += block.size
            at += UNARY_BLOCK
        if not count:
            return ends
        start, self._at = self._at, int(ends[-1]) + 1
        ends[1:] -= ends[:-1]
        ends -= 1
        ends[0] += 1 - start
        return ends

    def _unpack(self, start: int, stop: int) -> Bits:
        """The bits from `start` up to `stop`, or to the end."""
        return np.unpackbits(self._bytes[start // 8 : (stop + 7) // 8])[start % 8 : stop - start // 8 * 8]


def _divided(numbers: Numbers, divisor: int) -> tuple[Numbers, Numbers]:
    """Quotients and remainders of numbers >= 0; numpy's divmod, which minds signs, takes longer."""
    quotients = numbers // divisor
    return quotients, numbers - quotients * divisor


def truncated_binary(divisor: int) -> tuple[int, int]:
    """`(width, short)`: remainders below `short` take `width` bits, the others one more."""
    width = divisor.bit_length() - 1
    return width, (2 << width) - divisor


def _truncated_binaries(divisors: Numbers) -> tuple[Numbers, Numbers]:
    """The same for several; equal ones mostly stand side by side."""
    starts = np.flatnonzero(np.diff(divisors, prepend=0))
    runs = np.diff(starts, append=divisors.size)
    each = [truncated_binary(divisor) for divisor in divisors[starts].tolist()]
    widths, short = np.array(each, dtype=np.int64).reshape(-1, 2).T
    return np.repeat(widths, runs), np.repeat(short, runs)


def _downwards(divisor: int) -> Iterator[int]:
    while divisor > 1:
        divisor = -(-divisor * 181 // 256) if divisor > 3 else divisor - 1
        yield divisor


def _upwards(divisor: int, largest: int) -> Iterator[int]:
    """Up to the largest number: past it every quotient is zero."""
    while divisor * 362 // 256 < largest:
        divisor = -(-divisor * 362 // 256)
        yield divisor
