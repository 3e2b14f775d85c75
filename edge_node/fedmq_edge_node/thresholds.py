"""What is normal, as quantiles: the limit that follows from a summary of what was seen.

Owns the rule for a limit. Refuses to know what the values are, whose they are and when they start anew; how they are
summed up is `fedmq_protocol.sketch`'s, for summaries go from machine to machine. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedmq_protocol.sketch import ACCURACY, MAX_BINS, MAX_BYTES, SMALLEST, Summary, SummaryError, merged

__all__ = [
    "ACCURACY",
    "MAX_BINS",
    "MAX_BYTES",
    "Rule",
    "Summary",
    "SummaryError",
    "limit",
    "limit_of",
    "lower_limit",
    "merged",
    "robust_bound",
]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a limit follows from what is normal."""

    quantile: float = 0.99
    margin: float = 1.5
    """How far the limit is beyond the quantile, in its distances from the median."""
    least_factor: float = 1.5
    """The limit is so many medians at least: a very steady machine must not alarm for a change that is nothing."""


def limit(summary: Summary, rule: Rule) -> float:
    """From enough healthy windows. Raises ValueError without values."""
    median, high = summary.quantile(0.5), summary.quantile(rule.quantile)
    return max(high + rule.margin * (high - median), rule.least_factor * median, SMALLEST)


def lower_limit(summary: Summary, rule: Rule) -> float | None:
    """The same downwards, from enough healthy windows; None where so little is normal, too. Raises ValueError without
    values."""
    median, low = summary.quantile(0.5), summary.quantile(1 - rule.quantile)
    found = min(low - rule.margin * (median - low), median / rule.least_factor)
    return found if found > SMALLEST else None


def limit_of(quantiles: Mapping[float, float], rule: Rule) -> float | None:
    """The same from quantiles by their shares, of which the nearest at or above the rule's is taken; None where there
    is none, or no median."""
    shares = [share for share in sorted(quantiles) if share >= rule.quantile]
    if not shares or 0.5 not in quantiles:
        return None
    median, high = quantiles[0.5], max(quantiles[shares[0]], quantiles[0.5])
    return max(high + rule.margin * (high - median), rule.least_factor * median, SMALLEST)


ROBUST_DEVIATIONS = 6.0
IQR_DEVIATIONS = 1.349
"""Between the quartiles of a normal distribution."""


def robust_bound(summary: Summary, rule: Rule) -> float:
    """Beyond which a value is suspect while there are too few for a limit: six deviations of the logarithm above the
    median, the deviation from the quartiles, which a quarter of faulty windows does not move far (Huber, Ronchetti
    2009, *Robust Statistics*, section 1.4 on breakdown). Raises ValueError without values."""
    low, median, high = (summary.quantile(share) for share in (0.25, 0.5, 0.75))
    spread = (high / low) ** (ROBUST_DEVIATIONS / IQR_DEVIATIONS) if low else 1.0
    # Few values make a narrow spread by chance.
    return max(median * spread, 2.0 * rule.least_factor * median, SMALLEST)
