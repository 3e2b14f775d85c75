"""How values lie among the tenths of what is normal: a tenth of them in each, where nothing has changed.

Owns the counts, what is typical of several days of them, and how far they are from even: the population stability
index. Refuses to know what the values are, whose they are and what follows from them. Pure.

The tenths are those of each machine's own baseline (the probability integral transform), so that shares of machines at
different levels may be added up, and one of them that stands for a day moves nothing. No value can be told from ten
counts without that baseline.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import TypeAlias

from fedmq_protocol.sketch import Summary

__all__ = [
    "PARTS",
    "Counts",
    "Shares",
    "as_many_as",
    "by_chance",
    "counts_of",
    "mean",
    "per_mille",
    "shares_of",
    "stability",
    "typical",
]

PARTS = 10

Counts: TypeAlias = tuple[int, ...]
"""`PARTS` of them, of 0 or more, from the lowest tenth to the top one."""
Shares: TypeAlias = tuple[float, ...]
"""The same as parts of 1."""

_ZERO = -1 << 60
"""Place of values of 0: below all bins."""


def counts_of(then: Summary, now: Summary) -> Counts:
    """Of the values of `now`, how many lie in each tenth of `then`. Raises ValueError where either is empty.

    A value that cannot be told from many of `then` is spread over all that these take up, as the non-randomized
    transform does (Czado, Gneiting, Held 2009, "Predictive Model Assessment for Count Data", Biometrics 65(4), section
    2.1): values that come in steps are even, too, where nothing has changed.
    """
    if not then.count or not now.count:
        raise ValueError(f"expected values to compare, got {now.count} to hold against {then.count}")
    before = _places(then)
    found = [0.0] * PARTS
    at = below = 0
    for place, count in _places(now):
        while at < len(before) and before[at][0] < place:
            below += before[at][1]
            at += 1
        if at < len(before) and before[at][0] == place:
            start, end = float(below), float(below + before[at][1])
        else:
            # Where none of `then` lay it takes up half a value of the one below, and of the one above.
            start, end = max(below - 0.5, 0.0), min(below + 0.5, then.count)
        for part, share in _overlaps(start / then.count, end / then.count):
            found[part] += count * share
    return _whole(found, now.count)


def shares_of(counts: Sequence[int]) -> Shares:
    """Raises ValueError where there are none."""
    total = sum(counts)
    if not total:
        raise ValueError("expected counts, got none")
    return tuple(count / total for count in counts)


def typical(days: Sequence[Counts]) -> Shares:
    """Of several days: the median of each tenth's share, so that one hot day of three moves nothing. Raises ValueError
    without a day."""
    medians = [median(column) for column in zip(*map(shares_of, days), strict=True)]
    if not medians:
        raise ValueError("expected a day at least, got none")
    total = sum(medians)
    # Where no tenth is full on most days, as with a handful of values, nothing is typical of them but their mean.
    return tuple(one / total for one in medians) if total else mean(map(shares_of, days))


def mean(every: Iterable[Shares]) -> Shares:
    """Each weighs alike."""
    columns = list(zip(*every, strict=True))
    return tuple(sum(column) / len(column) for column in columns)


def per_mille(shares: Sequence[float]) -> Counts:
    """1,000 in all."""
    return _whole([1000 * share for share in shares], 1000)


def stability(shares: Sequence[float], least: float) -> float:
    """The population stability index against even tenths (Yurdakul, Naranjo 2020, "Statistical properties of the
    population stability index", J. Risk Model Validation 14(3)): about 0 where nothing has changed, from 0.1 on there
    is a moderate change, above 0.25 a great one; of few values also by chance. `least`: a share below that counts as
    that, for an empty tenth would make the index infinite."""
    even = 1 / PARTS
    return sum((share - even) * math.log(share / even) for share in (max(one, least) for one in shares))


def as_many_as(then: int, now: int) -> float:
    """Of how many values the shares would depend as much on chance, were the tenths known for sure: here they are those
    of `then` values, 1 or more, and `now` lie among them."""
    return 1 / (1 / then + 1 / now)


def by_chance(values: float) -> float:
    """What the index of so many values (`as_many_as`) does not exceed by chance where nothing has changed: it is then a
    chi-squared of PARTS - 1 degrees of freedom over their number (same paper), here at its mean and three standard
    deviations."""
    freedom = PARTS - 1
    return (freedom + 3 * math.sqrt(2 * freedom)) / values


def _places(summary: Summary) -> list[tuple[int, int]]:
    """Bins and their counts, in order."""
    return [(_ZERO, summary.zeros)] * (summary.zeros > 0) + sorted(summary.bins.items())


def _overlaps(start: float, end: float) -> Iterable[tuple[int, float]]:
    """Which share of the stretch from `start` to `end`, both of 0 to 1, lies in which tenth."""
    for part in range(min(int(start * PARTS), PARTS - 1), PARTS):
        inside = min(end, (part + 1) / PARTS) - max(start, part / PARTS)
        if inside > 0:
            yield part, inside / (end - start)


def _whole(parts: Sequence[float], total: int) -> Counts:
    """Whole numbers of that sum: what is missing goes to the largest remainders."""
    whole = [int(part) for part in parts]
    order = sorted(range(len(parts)), key=lambda at: (whole[at] - parts[at], at))
    for at in order[: total - sum(whole)]:
        whole[at] += 1
    return tuple(whole)
