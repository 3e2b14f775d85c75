"""Feature scaling for a whole federation, from each gateway's count, mean and M2.

Owns how the statistics of many gateways become one scaler. Refuses to pool them: one gateway that measures in wrong
units, or lies, would own a pooled mean and variance (macro-F1 .997 became .167). Medians over gateways are moved by
no minority (Huber, Ronchetti 2009, Robust Statistics, section 3.2). Gateways count alike, however many windows they
have: a weight would hand the median to the largest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fedmq_protocol.messages import MIN_STATISTICS_WINDOWS
from numpy.typing import NDArray

__all__ = ["MIN_WINDOWS", "check", "combine"]

MIN_WINDOWS = MIN_STATISTICS_WINDOWS
"""A gateway with fewer windows has no spread worth telling."""

MAX_MAGNITUDE = 1e9
"""No feature or spread of ours comes near it; its square still fits float64 with ease, and itself float32."""

Statistics = tuple[int, NDArray[np.float64], NDArray[np.float64]]


def combine(gateways: Sequence[Statistics]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and scale `(features,)` float32 from `(count, mean, m2)` of each gateway; the scale is above 0.

    The centre is the median of the gateways' means. The variance is the median of `m2/count + (mean - centre)^2`:
    each gateway's own estimate of the spread about the common centre, so that what sets gateways apart counts as
    well as what varies within one. A feature without any spread is left unscaled. Raises ValueError without
    gateways, and for statistics that cannot be: use `check` first to refuse a single gateway.
    """
    if not gateways:
        raise ValueError("expected the statistics of at least one gateway, got none")
    features = len(gateways[0][1])
    for statistics in gateways:
        check(statistics, features)
    counts = np.array([count for count, _, _ in gateways], dtype=np.float64)[:, None]
    means = np.stack([mean for _, mean, _ in gateways])
    squares = np.stack([m2 for _, _, m2 in gateways])
    centre = np.median(means, axis=0)
    variance = np.median(squares / counts + (means - centre) ** 2, axis=0)
    scale = np.sqrt(variance)
    # Rounding alone gives a constant feature a tiny spread; dividing by it would make noise of it.
    constant = scale <= 1e-6 * np.maximum(np.abs(centre), 1.0)
    return centre.astype(np.float32), np.where(constant, 1.0, scale).astype(np.float32)


def check(statistics: Statistics, features: int) -> None:
    """Raises ValueError for statistics that no honest gateway sends; they come from outside."""
    count, mean, m2 = statistics
    if count < MIN_WINDOWS:
        raise ValueError(f"expected statistics over at least {MIN_WINDOWS} windows, got {count}")
    if mean.shape != (features,) or m2.shape != (features,):
        raise ValueError(f"expected {features} means and M2s, got {mean.shape} and {m2.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(m2).all()):
        raise ValueError("expected finite means and M2s, got nan or infinity")
    if (m2 < 0).any():
        raise ValueError(f"expected M2 of at least 0, got {m2.min()}")
    if (np.abs(mean) > MAX_MAGNITUDE).any() or (m2 > count * MAX_MAGNITUDE**2).any():
        raise ValueError(f"expected means and spreads of at most {MAX_MAGNITUDE:g}")
