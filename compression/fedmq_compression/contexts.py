"""What the model's past tells about a delta: which coordinates are likely to be sent, and with which sign.

Owns the ranking of coordinates by how much their row and their column have moved since the seeded start, and the
coding of a support along that ranking. Refuses to know rounds, versions and how values are quantized.

Why this works: supports of successive rounds are far from independent, for a unit whose input is always zero never
moves and a unit that learns moves in all its weights. What moved is the sum of everything that was ever broadcast,
and whoever holds the base version holds that sum: base minus seeded start. So both ends have the same contexts
whenever they have the same base, however they came by it, and nothing has to be kept, sent or caught up for it.
docs/decisions/0010 holds this against a decaying record of broadcasts.

Whole numbers throughout: floating-point logarithms differ between machines, and one coordinate out of place would
turn the whole payload into noise.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from fedmq_compression.bits import BitReader, Bits, fields, gaps_of, golomb, natural_divisor, one_golomb, ragged_golomb
from fedmq_compression.frame import PayloadError

__all__ = ["Contexts", "code_ranked", "code_signs", "read_ranked", "read_signs"]

ROW_WEIGHT = 4
COLUMN_WEIGHT = 3
"""Of the logarithms of a row's and a column's movement: as a logistic regression on recorded training found them."""

FLOOR_SHARE = 64
"""A row that moved less than this part of the average one counts as not having moved."""

SHARE_BITS = 10
FIRST_SHARE = 860
"""Of what lies within a class's end, the share expected within the next class's end, in 1/1024: the first guess."""


class SignPlan(IntEnum):
    """How signs are told, in two bits."""

    PLAIN = 0
    """A bit each, 1 where negative."""
    COLUMN = 1
    """As the sign before in the same column, or not: a unit's error has one sign for all its inputs."""
    LEAN = 2
    """As the displacement at this coordinate, or not; a bit each where there is none."""


def _thresholds() -> NDArray[np.int64]:
    """The least whole number whose logarithm to base 2 is i / 8, for i = 1, 2, …: exact on every machine."""
    found = []
    for eighth in range(1, 8 * 40):
        power = 1 << eighth
        root = round(2 ** (eighth / 8))
        while root**8 >= power:
            root -= 1
        while root**8 < power:
            root += 1
        found.append(root)
    return np.array(found, dtype=np.int64)


_LOG_TABLE = _thresholds()


@dataclass(frozen=True, kw_only=True, eq=False)
class Contexts:
    """A ranking of all coordinates, most likely first, which both ends make from the same base version."""

    length: int
    mark: bytes
    """Four bytes that stand for the displacement: the checksum binds them."""
    rank: NDArray[np.int32] = field(repr=False)
    """Rank of each coordinate, `(length,)`."""
    lean: NDArray[np.int8] = field(repr=False)
    """Sign of each coordinate's displacement, `(length,)`."""
    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, displacement: NDArray[np.int32], shapes: Sequence[tuple[int, int]]) -> Contexts:
        """From the base version minus the seeded start, `(length,) int32`, in steps.

        `shapes` cuts the vector into blocks of (rows, columns), row-major, in order: one for each layer, its biases as
        the last row. Raises ValueError where they do not add up to the length.
        """
        length = sum(rows * columns for rows, columns in shapes)
        if displacement.dtype != np.int32 or displacement.shape != (length,):
            raise ValueError(f"displacement is {displacement.shape} {displacement.dtype}, expected ({length},) int32")
        # Falling order of the score, so that the sort below needs no copy of its own.
        order = np.argsort(_falling(displacement, shapes), kind="stable").astype(np.int32)
        rank = np.empty(length, dtype=np.int32)
        rank[order] = np.arange(length, dtype=np.int32)
        return cls(
            length=length,
            mark=zlib.crc32(np.ascontiguousarray(displacement, dtype="<i4").data).to_bytes(4, "big"),
            rank=rank,
            lean=(displacement > 0).astype(np.int8) - (displacement < 0),
            shapes=tuple(shapes),
        )

    def columns_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each coordinate the number of its column, counted through all blocks."""
        sizes = np.array([rows * columns for rows, columns in self.shapes], dtype=np.int64)
        widths = np.array([columns for _, columns in self.shapes], dtype=np.int64)
        ends = np.cumsum(sizes)
        block = np.searchsorted(ends, indices, side="right")
        within = (indices - (ends - sizes)[block]) % widths[block]
        return np.asarray(within + (np.cumsum(widths) - widths)[block])

    @cached_property
    def order(self) -> NDArray[np.int32]:
        """Coordinate at each rank, `(length,)`. Only who decodes needs it, and a gateway has memory for one of both."""
        order = np.empty(self.length, dtype=np.int32)
        order[self.rank] = np.arange(self.length, dtype=np.int32)
        return order

    @cached_property
    def blocks(self) -> NDArray[np.int64]:
        """The shapes, `(n, 2)`."""
        return np.array(self.shapes, dtype=np.int64).reshape(-1, 2)

    def ends(self, count: int) -> list[int]:
        """Ranks at which classes end, for a support of `count`: half octaves, down from all to about as many."""
        found = [self.length]
        while True:
            half_octaves = len(found)
            end = self.length >> (half_octaves // 2)
            if half_octaves % 2:
                end = end * 181 >> 8
            if end < max(8, count):
                return found[::-1]
            found.append(end)


def _falling(displacement: NDArray[np.int32], shapes: Sequence[tuple[int, int]]) -> NDArray[np.int16]:
    """Every coordinate's score, negated."""
    moved = np.abs(displacement)
    # Movement is counted in 1/256 of a step, so that a model that has hardly moved still has shades.
    scale = max(1, (int(moved.sum(dtype=np.int64)) << 8) // moved.size // FLOOR_SHARE)
    falling = np.empty(moved.size, dtype=np.int16)
    start = 0
    for rows, columns in shapes:
        stop = start + rows * columns
        block = moved[start:stop].reshape(rows, columns)
        along_rows = -ROW_WEIGHT * _log((block.sum(axis=1, dtype=np.int64) << 8) // columns // scale)
        along_columns = -COLUMN_WEIGHT * _log((block.sum(axis=0, dtype=np.int64) << 8) // rows // scale)
        np.add.outer(
            along_rows.astype(np.int16), along_columns.astype(np.int16), out=falling[start:stop].reshape(rows, columns)
        )
        start = stop
    return falling


# --- the support ------------------------------------------------------------------------------------------------------


def code_ranked(contexts: Contexts, indices: NDArray[np.int64]) -> Bits:
    """The bits that tell strictly increasing coordinates, at least one and not all, to who has the same contexts.

    How many of each class, from the least likely on; then, of all classes together, the Golomb-coded gaps between
    the ranks of those that are sent, or of those that are not where these are fewer.
    """
    ranks = np.sort(contexts.rank[indices]).astype(np.int64)
    ends = contexts.ends(indices.size)
    within = np.searchsorted(ranks, ends).tolist()
    classes = _Classes(ends, within)
    told = classes.turned_over(ranks)
    before = np.roll(told, 1)
    opens, starts = classes.opens()
    before[opens] = starts - 1
    return np.concatenate(
        [np.array(_code_counts(within), dtype=np.uint8), ragged_golomb(told - before - 1, classes.divisors())]
    )


def read_ranked(reader: BitReader, contexts: Contexts, count: int) -> NDArray[np.int64]:
    """The coordinates that `code_ranked` told, `(count,) int64`, strictly increasing."""
    ends = contexts.ends(count)
    classes = _Classes(ends, _read_counts(reader, count, len(ends)))
    if (classes.sent > classes.sizes).any():
        raise PayloadError("more coordinates of a class are sent than it has")
    steps = np.cumsum(reader.ragged_golomb(classes.divisors(), each=contexts.length) + 1)
    opens, starts = classes.opens()
    behind = np.concatenate([[0], steps])[opens]
    told = steps + np.repeat(starts - 1 - behind, classes.told[classes.told > 0])
    if (told >= np.repeat(classes.starts + classes.sizes, classes.told)).any():
        raise PayloadError("a coordinate beyond its class is told")
    return np.sort(contexts.order[classes.turned_over(told, back=True)]).astype(np.int64)


class _Classes:
    """The ranking, cut where the classes end: what is told of each, the sent ranks or the others."""

    def __init__(self, ends: list[int], within: list[int]) -> None:
        bounds, passed = np.array([0, *ends], dtype=np.int64), np.array([0, *within], dtype=np.int64)
        self.starts = bounds[:-1]
        self.sizes = np.diff(bounds)
        self.sent = np.diff(passed)
        self._over = 2 * self.sent > self.sizes
        self.told = np.where(self._over, self.sizes - self.sent, self.sent)

    def divisors(self) -> NDArray[np.int64]:
        """Golomb's, for each number that is told."""
        each = [natural_divisor(size, told) for size, told in zip(self.sizes.tolist(), self.told.tolist(), strict=True)]
        return np.repeat(np.array(each, dtype=np.int64), self.told)

    def opens(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the classes of which something is told: where its first number stands, and its first rank."""
        some = self.told > 0
        return (np.cumsum(self.told) - self.told)[some], self.starts[some]

    def turned_over(self, ranks: NDArray[np.int64], *, back: bool = False) -> NDArray[np.int64]:
        """From the sent ranks to those that are told, or back: the others of a class of which most are sent."""
        if not self._over.any():
            return ranks
        given = self.told if back else self.sent
        parts = np.split(ranks, np.cumsum(given)[:-1])
        for number in np.flatnonzero(self._over):
            others = np.ones(int(self.sizes[number]), dtype=bool)
            others[parts[number] - self.starts[number]] = False
            parts[number] = np.flatnonzero(others) + self.starts[number]
        return np.concatenate(parts)


class _Shares:
    """What is expected of the next class, from the ones before: both ends go through the same states."""

    def __init__(self, count: int) -> None:
        self.count = count
        """How many are sent within the class's end."""
        self._share = FIRST_SHARE

    def expected(self) -> tuple[int, int]:
        """How many of them lie within the next class's end, and the divisor for what differs from that."""
        middle = (self.count * self._share + (1 << (SHARE_BITS - 1))) >> SHARE_BITS
        spread = isqrt(self.count * self._share * ((1 << SHARE_BITS) - self._share))
        return middle, max(1, spread * 5 >> (SHARE_BITS + 2))

    def found(self, inner: int) -> None:
        if self.count >= 4:
            newest = ((inner << SHARE_BITS) + (1 << (SHARE_BITS - 1))) // (self.count + 1)
            self._share = min((1 << SHARE_BITS) - 32, max(32, (self._share + newest) // 2))
        self.count = inner


def _code_counts(within: list[int]) -> list[int]:
    """`within[i]` coordinates are sent at ranks below the end of class i: told from the last but one to the first."""
    shares = _Shares(within[-1])
    bits: list[int] = []
    for inner in reversed(within[:-1]):
        middle, divisor = shares.expected()
        bits += one_golomb(_folded(inner, middle, shares.count), divisor)
        shares.found(inner)
    return bits


def _read_counts(reader: BitReader, count: int, classes: int) -> list[int]:
    shares = _Shares(count)
    within = [count]
    for _ in range(classes - 1):
        middle, divisor = shares.expected()
        shares.found(_unfolded(reader.number(divisor, each=shares.count), middle, shares.count))
        within.append(shares.count)
    return within[::-1]


def _folded(number: int, middle: int, most: int) -> int:
    """0 to `most` as 0 to `most`, the middle first and then outwards, by turns while both sides last."""
    sides = min(middle, most - middle)
    away = number - middle
    if abs(away) > sides:
        return abs(away) + sides
    return 2 * away if away >= 0 else -2 * away - 1


def _unfolded(folded: int, middle: int, most: int) -> int:
    sides = min(middle, most - middle)
    if folded > 2 * sides:
        away = folded - sides
        return middle - away if middle > most - middle else middle + away
    return middle + folded // 2 if folded % 2 == 0 else middle - (folded + 1) // 2


# --- signs ------------------------------------------------------------------------------------------------------------


def code_signs(contexts: Contexts, indices: NDArray[np.int64], negative: NDArray[np.bool_]) -> Bits:
    """The bits that tell which values are negative: the plan in two bits, and the cheapest plan's."""
    plans = {
        SignPlan.PLAIN: negative.astype(np.uint8),
        SignPlan.COLUMN: _code_by_column(contexts, indices, negative),
        SignPlan.LEAN: _code_by_lean(contexts, indices, negative),
    }
    plan = min(plans, key=lambda plan: (plans[plan].size, plan))
    return np.concatenate([np.array([plan >> 1, plan & 1], dtype=np.uint8), plans[plan]])


def read_signs(reader: BitReader, contexts: Contexts, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which values are negative, `(count,)`."""
    plan = int(reader.fields(1, 2)[0])
    if plan == SignPlan.PLAIN:
        return np.asarray(reader.bits(indices.size) == 1)
    if plan == SignPlan.COLUMN:
        return _read_by_column(reader, contexts, indices)
    if plan == SignPlan.LEAN:
        return _read_by_lean(reader, contexts, indices)
    raise PayloadError(f"signs are told by plan {plan}, expected 0 to {max(SignPlan)}")


def _by_column(contexts: Contexts, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The coordinates' places in order of their columns, and in that order which is its column's first."""
    columns = contexts.columns_of(indices)
    order = np.argsort(columns, kind="stable")
    sorted_columns = columns[order]
    first = np.ones(indices.size, dtype=bool)
    first[1:] = sorted_columns[1:] != sorted_columns[:-1]
    return order, first


def _code_by_column(contexts: Contexts, indices: NDArray[np.int64], negative: NDArray[np.bool_]) -> Bits:
    order, first = _by_column(contexts, indices)
    signs = negative[order]
    turns = signs.copy()
    turns[1:] ^= signs[:-1]
    return np.concatenate([signs[first].astype(np.uint8), _code_rare(turns[~first])])


def _read_by_column(reader: BitReader, contexts: Contexts, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
    order, first = _by_column(contexts, indices)
    turns = np.empty(indices.size, dtype=bool)
    firsts = reader.bits(int(np.count_nonzero(first))) == 1
    turns[~first] = _read_rare(reader, int(np.count_nonzero(~first)))
    turns[first] = False
    # Within a column the parity of all turns so far, against the parity at the column's first.
    parity = np.cumsum(turns)
    column = np.cumsum(first) - 1
    signs = np.asarray((parity - parity[first][column]) % 2 == 1)
    negative: NDArray[np.bool_] = np.empty(indices.size, dtype=bool)
    negative[order] = signs ^ firsts[column]
    return negative


def _code_by_lean(contexts: Contexts, indices: NDArray[np.int64], negative: NDArray[np.bool_]) -> Bits:
    lean = contexts.lean[indices]
    leans = lean != 0
    turns = negative[leans] ^ (lean[leans] < 0)
    return np.concatenate([negative[~leans].astype(np.uint8), _code_rare(turns)])


def _read_by_lean(reader: BitReader, contexts: Contexts, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
    lean = contexts.lean[indices]
    leans = lean != 0
    negative = np.empty(indices.size, dtype=bool)
    negative[~leans] = reader.bits(int(np.count_nonzero(~leans))) == 1
    negative[leans] = _read_rare(reader, int(np.count_nonzero(leans))) ^ (lean[leans] < 0)
    return negative


def _code_rare(flags: NDArray[np.bool_]) -> Bits:
    """How many are set, and the Golomb-coded gaps between those, or between the others where these are fewer."""
    count = int(np.count_nonzero(flags))
    told = np.flatnonzero(flags if 2 * count <= flags.size else ~flags)
    head = fields(np.array([count], dtype=np.int64), flags.size.bit_length())
    if not told.size:
        return head
    return np.concatenate([head, golomb(gaps_of(told), natural_divisor(flags.size, told.size))])


def _read_rare(reader: BitReader, size: int) -> NDArray[np.bool_]:
    count = int(reader.fields(1, size.bit_length())[0])
    if count > size:
        raise PayloadError(f"{count} signs of {size} turn")
    few = min(count, size - count)
    flags = np.zeros(size, dtype=bool)
    if few:
        gaps = reader.golomb(few, natural_divisor(size, few), each=size, total=size)
        told = np.cumsum(gaps + 1) - 1
        if told[-1] >= size:
            raise PayloadError(f"sign {int(told[-1])} of {size} turns")
        flags[told] = True
    return ~flags if 2 * count > size else flags


# --- numbers ----------------------------------------------------------------------------------------------------------


def _log(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Eight times the logarithm to base 2 of numbers >= 0 plus one, rounded down."""
    return np.asarray(np.searchsorted(_LOG_TABLE, numbers + 1, side="right"))
