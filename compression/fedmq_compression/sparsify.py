"""Which coordinates are worth sending: the largest.

Owns the choice alone. Refuses to know how values or indices are coded. Deterministic: the same magnitudes give the
same choice on every machine, ties go to the lower index.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["largest"]

SAMPLED_FROM = 4096
"""Below this length a partition of everything is as fast as a sample."""

SAMPLE = 2048
"""Coordinates of the sample, at least."""

SAMPLED_HITS = 32
"""So many of the wanted coordinates are expected in the sample; that there be twice as many is one in ten million."""


def largest(magnitudes: NDArray[np.float32], count: int, least: float) -> NDArray[np.int64]:
    """Indices, increasing, of the `count` largest magnitudes `(length,)`, of those that are `least` or more.

    A strided sample gives a threshold that about twice `count` pass; only those are partitioned. Where the
    sample misleads (fewer pass), all are. So the choice is the exact one, and the sample only saves time.
    """
    candidates = _candidates(magnitudes, count)
    found = magnitudes if candidates is None else magnitudes[candidates]
    if count < found.size:
        smallest = np.partition(found, found.size - count)[found.size - count]
        chosen = found > smallest
        ties = np.flatnonzero(found == smallest)
        chosen[ties[: count - np.count_nonzero(chosen)]] = True
        chosen &= found >= least
    else:
        chosen = found >= least
    at = np.flatnonzero(chosen)
    return at if candidates is None else candidates[at]


def _candidates(magnitudes: NDArray[np.float32], count: int) -> NDArray[np.int64] | None:
    """Indices that hold the `count` largest for certain, or None for all."""
    # Odd, so that it does not fall in step with the rows of a weight matrix.
    stride = min(magnitudes.size // SAMPLE, count // SAMPLED_HITS) | 1
    if magnitudes.size < SAMPLED_FROM or stride == 1:
        return None
    sample = magnitudes[::stride]
    wanted = min(sample.size, 2 * count // stride)
    threshold = np.partition(sample, sample.size - wanted)[sample.size - wanted]
    candidates = np.flatnonzero(magnitudes >= threshold)
    return candidates if candidates.size >= count else None
