"""Who should be looked at: by what was refused of him, and by where his updates point. Pure, and seeded by nothing.

Two rules.

- *refused*: of a gateway's last REFUSED_OF updates, REFUSED_MOST or more were refused for what they were (their length,
  their numbers, their form), or came a second time with other bytes.
- *against*: what a gateway has sent lately points away from what the others have sent.

Updates are sparse: two honest ones of the same round hardly share a coordinate, and their cosine says next to nothing.
What they come to over some rounds does. So of each gateway the sum of its updates is kept, older ones fading with each
version, as a sketch of WIDTH numbers (Charikar, Chen, Farach-Colton 2002: count sketch) which keeps cosines to within
1 / sqrt(WIDTH). A gateway is against the others where that cosine is below BELOW_ZERO, and below that of the fleet's
median gateway by BELOW_FLEET: gateways that see different things pull in different directions, all of them. And it has
to last: over its last updates the cosines of the single ones have a mean below zero by two standard errors. Who alone
has recordings of some class is not judged by this (`watch`): it cannot but pull where nobody else does.

Refuses to know the ledger, rounds and what becomes of a flag. docs/robustness.md has what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import numpy as np
from fedmq_compression.pipeline import Decoded
from numpy.typing import NDArray

__all__ = [
    "BELOW_FLEET",
    "BELOW_ZERO",
    "COSINES",
    "FADING",
    "LEAST_UPDATES",
    "REFUSED_MOST",
    "REFUSED_OF",
    "WIDTH",
    "against",
    "agreement",
    "cosine",
    "faded",
    "refused_again",
    "sketch",
]

WIDTH = 1024
"""Numbers of a sketch."""

AT_ONCE = 1 << 18
"""Coordinates that are hashed at once: memory beside the update's own."""

FADING = 0.9
"""What is left of an older update with each version."""

LEAST_UPDATES = 8
"""Of a gateway, in versions of the lineage, before it is judged; and of others whom it is compared with."""

LEAST_GATEWAYS = 4
"""Whose direction is known, the judged one counted: of two that contradict one another nobody can say who is right."""

COSINES = 16
"""A gateway's last updates whose cosines are looked at."""

BELOW_ZERO = 0.4
BELOW_FLEET = 0.45

REFUSED_OF = 8
REFUSED_MOST = 4

FAULTS = frozenset({"norm", "non finite", "malformed"})
"""Verdicts for which the update itself is to blame."""


def agreement(
    update: Decoded, weight: int, total: NDArray[np.int64] | NDArray[np.float64], square: float
) -> float | None:
    """Cosine of an update with the rest of the sum that it is in; None where either is nothing.

    `total` is the weighted sum in the update's steps, `square` its squared length. Leaves the update out without making
    the rest: it needs no memory but the update's own.
    """
    steps = update.steps.astype(np.float64)
    own = float(steps @ steps)
    along = float(steps @ (total if update.indices is None else total[update.indices]))
    rest = square - 2.0 * weight * along + weight * weight * own
    # What is left of the sum by rounding is nothing.
    if own <= 0 or rest <= 1e-9 * square:
        return None
    return max(-1.0, min(1.0, (along - weight * own) / math.sqrt(own * rest)))


def sketch(update: Decoded, weight: int) -> NDArray[np.float64]:
    """`(WIDTH,) float64` of an update times its weight. Linear: sketches add up as updates do."""
    made = np.zeros(WIDTH)
    for start in range(0, len(update.steps), AT_ONCE):
        steps = update.steps[start : start + AT_ONCE]
        within = np.arange(start, start + len(steps)) if update.indices is None else update.indices[start:][:AT_ONCE]
        places, signs = _hashes(within)
        made += np.bincount(places, weights=signs * steps, minlength=WIDTH)
    return made * (update.step * weight)


def _hashes(coordinates: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """A place and a sign for each, the same on every machine (a multiplicative hash, twice)."""
    mixed = (coordinates.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    places = (mixed >> np.uint64(32)) % np.uint64(WIDTH)
    signs = np.where(mixed >> np.uint64(63), 1.0, -1.0)
    return places.astype(np.int64), signs


def faded(direction: NDArray[np.float64], versions: int) -> NDArray[np.float64]:
    """What is left of it so many versions later."""
    return direction * FADING**versions


def cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """None where either is nothing."""
    lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return max(-1.0, min(1.0, float(one @ other) / lengths)) if lengths > 0 else None


def against(toward: float | None, fleet: Sequence[float], cosines: Sequence[float]) -> str | None:
    """What speaks for it that a gateway points away from the others, in words; None where too little does.

    `toward` is its cosine with the others over the last versions, `fleet` those of all gateways, and `cosines` those of
    its last updates one by one.
    """
    if toward is None or len(cosines) < LEAST_UPDATES or len(fleet) < LEAST_GATEWAYS:
        return None
    middle = median(fleet)
    if toward > min(-BELOW_ZERO, middle - BELOW_FLEET):
        return None
    mean = sum(cosines) / len(cosines)
    error = math.sqrt(sum((c - mean) ** 2 for c in cosines) / (len(cosines) - 1) / len(cosines))
    if mean + 2 * error >= 0:
        return None
    return (
        f"its updates point away from the others': cosine {toward:+.2f} over the last versions, {middle:+.2f} in the"
        f" middle of the fleet; of its last {len(cosines)} updates {mean:+.3f}, give or take {error:.3f}"
    )


def refused_again(latest: Sequence[tuple[str, int]]) -> str | None:
    """The same for updates that were refused: (verdict, conflicts) of its last ones, the newest first."""
    looked_at = latest[:REFUSED_OF]
    at_fault = [verdict if verdict in FAULTS else "conflict" for verdict, n in looked_at if verdict in FAULTS or n]
    if len(at_fault) < REFUSED_MOST:
        return None
    kinds = ", ".join(f"{kind} {at_fault.count(kind)}" for kind in sorted(set(at_fault)))
    return f"{len(at_fault)} of its last {len(looked_at)} updates were at fault: {kinds}"
