"""A summary of many values in few bytes, from which quantiles can be told and which can be merged.

Owns the summary and its bytes. Refuses to know what the values are, whose they are and what follows from them. Pure.

The summary is DDSketch (Masson, Rim, Lee 2019, "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with
Relative-Error Guarantees", PVLDB 12(12), arXiv:1908.10693): values are counted in bins whose edges grow by a constant
factor. Rules kept here:

- A quantile is off by at most `ACCURACY` of its true value (theorem 1), as long as no bins had to be joined. Above
  `MAX_BINS` the lowest are (section 2.2): with 1 % that is a range of more than 10^8 from smallest to largest value,
  and high quantiles, which limits are made of, stay right.
- Merging adds counts: it is commutative and associative, and the same as if one had seen all values. So a federation
  can merge its gateways' summaries, and no single score leaves a gateway.
- The bytes hold a version, are at most `MAX_BYTES`, and are checked whole before any of them counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["ACCURACY", "MAX_BINS", "MAX_BYTES", "SMALLEST", "Summary", "SummaryError", "merged"]

ACCURACY = 0.01
MAX_BINS = 1024
MAX_COUNT = 1 << 53
"""Of one summary: far beyond what a fleet measures, and exact in a float."""
SMALLEST, LARGEST = 1e-12, 1e12
"""What is smaller counts as 0, what is larger as `LARGEST`."""
VERSION = 1
MAX_BYTES = 2 + 10 + 2 + MAX_BINS * 12

_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_LOG_GAMMA = math.log(_GAMMA)
_FIRST, _LAST = (math.ceil(math.log(edge) / _LOG_GAMMA) for edge in (SMALLEST, LARGEST))


class SummaryError(ValueError):
    """Bytes that are no summary."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Counts of values of 0 or more. It does not change: `seen` and `merge` make another one."""

    zeros: int = 0
    """Values of 0, or too small to tell apart from it."""
    bins: Mapping[int, int] = field(default_factory=dict)
    """How many values lay in (gamma^(i-1), gamma^i], by i."""

    @property
    def count(self) -> int:
        return self.zeros + sum(self.bins.values())

    def seen(self, *values: float) -> Summary:
        """With these values too. Raises ValueError for one that is negative or not finite."""
        zeros, bins = self.zeros, dict(self.bins)
        for value in values:
            if not 0 <= value < math.inf:
                raise ValueError(f"expected a finite value of 0 or more, got {value}")
            if value < SMALLEST:
                zeros += 1
                continue
            place = math.ceil(math.log(min(value, LARGEST)) / _LOG_GAMMA)
            bins[place] = bins.get(place, 0) + 1
        return Summary(zeros=zeros, bins=_joined(bins))

    def merge(self, other: Summary) -> Summary:
        bins = dict(self.bins)
        for place, count in other.bins.items():
            bins[place] = bins.get(place, 0) + count
        return Summary(zeros=self.zeros + other.zeros, bins=_joined(bins))

    def quantile(self, share: float) -> float:
        """The smallest value that at least `share` of all are not above, to `ACCURACY`. Raises ValueError without
        values."""
        count = self.count
        if not count or not 0 <= share <= 1:
            raise ValueError(f"expected a share from 0 to 1 of at least one value, got {share} of {count}")
        rank = max(1, math.ceil(share * count))
        below = self.zeros
        if rank <= below:
            return 0.0
        place = 0
        for place in sorted(self.bins):
            below += self.bins[place]
            if rank <= below:
                break
        return 2 * _GAMMA**place / (_GAMMA + 1)

    def share_above(self, value: float) -> float:
        """Of all values, how many are above; those in its own bin are not."""
        if not self.count:
            return 0.0
        if value < SMALLEST:
            return 1 - self.zeros / self.count
        edge = math.ceil(math.log(min(value, LARGEST)) / _LOG_GAMMA)
        return sum(count for place, count in self.bins.items() if place > edge) / self.count

    def to_bytes(self) -> bytes:
        """Version, zeros, number of bins, then of each its distance from the one before and its count, as varints."""
        coded = bytearray([VERSION])
        _put(coded, self.zeros)
        _put(coded, len(self.bins))
        last = _FIRST - 1
        for place in sorted(self.bins):
            _put(coded, place - last)
            _put(coded, self.bins[place])
            last = place
        return bytes(coded)

    @classmethod
    def from_bytes(cls, data: bytes) -> Summary:
        """Raises SummaryError."""
        if not 0 < len(data) <= MAX_BYTES:
            raise SummaryError(f"expected a summary of 1 to {MAX_BYTES:,} bytes, got {len(data):,}")
        if data[0] != VERSION:
            raise SummaryError(f"expected a summary of version {VERSION}, got {data[0]}: is one side's software newer?")
        reader = _Reader(data, 1)
        zeros, size = reader.take(), reader.take()
        if size > MAX_BINS:
            raise SummaryError(f"expected at most {MAX_BINS:,} bins, got {size:,}")
        bins: dict[int, int] = {}
        place, total = _FIRST - 1, zeros
        for _ in range(size):
            gap, count = reader.take(), reader.take()
            place, total = place + gap, total + count
            if not gap or not count or place > _LAST:
                raise SummaryError("expected bins in order, none of them empty")
            bins[place] = count
        if reader.at != len(data) or total > MAX_COUNT:
            raise SummaryError("expected the end after the last bin, and counts that can be true")
        return cls(zeros=zeros, bins=bins)


def merged(summaries: Iterable[Summary]) -> Summary:
    whole = Summary()
    for one in summaries:
        whole = whole.merge(one)
    return whole


def _joined(bins: dict[int, int]) -> dict[int, int]:
    """At most `MAX_BINS`: the lowest become one."""
    if len(bins) <= MAX_BINS:
        return bins
    ordered = sorted(bins)
    kept = ordered[-MAX_BINS:]
    whole = {place: bins[place] for place in kept}
    whole[kept[0]] += sum(bins[place] for place in ordered[:-MAX_BINS])
    return whole


def _put(coded: bytearray, number: int) -> None:
    """As a varint: seven bits a byte, the lowest first."""
    while number > 0x7F:
        coded.append(number & 0x7F | 0x80)
        number >>= 7
    coded.append(number)


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self.at = at

    def take(self) -> int:
        number, shift = 0, 0
        while True:
            if self.at >= len(self._data) or shift > 56:
                raise SummaryError("expected a whole summary, got part of one")
            byte = self._data[self.at]
            self.at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number
