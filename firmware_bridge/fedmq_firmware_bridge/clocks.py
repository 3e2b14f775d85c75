"""A sensor's clock in terms of the gateway's, from when frames came.

Owns the map and its estimate of offset and drift. Refuses to know frames. Pure: both times are arguments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["BUCKETS", "BUCKET_US", "ClockMap"]

BUCKET_US = 4_000_000
BUCKETS = 256
"""Together 17 minutes: as long as a crystal's temperature may be taken for constant."""

LEAST_SPAN_US = 30_000_000
"""Below this no drift is told from the jitter of the line."""

STEP_S = 1.0
"""Bytes that came this long before they can have been sent: the sensor's clock was set, and the map begins anew."""


@dataclass(slots=True)
class ClockMap:
    """One sensor's clock in terms of the gateway's.

    Every frame brings a pair: the sensor's clock as it was made, the gateway's as it came. Their difference is the
    clocks' offset plus a delay, and delays are never negative: they only ever push the difference up. So what is true
    lies below all of them, and the smallest ones tell it (Cristian, "Probabilistic clock synchronization", 1989; NTP's
    clock filter, RFC 5905 section 10, does the same). With drift, the offset is a line. It is taken as the one below
    all points that is closest to them in sum: an edge of their lower convex hull, the one at the points' mean time
    (Moon, Skelly and Towsley, "Estimation and removal of clock skew from network delay measurements", INFOCOM 1999).

    What remains is the smallest delay itself: a frame's time on the line plus what the firmware takes, always the same.
    Points are kept as the minimum of each `BUCKET_US`.
    """

    _minima: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=BUCKETS))
    """Of each bucket that is over: sensor's time in us, difference in s."""
    _least: tuple[int, float] | None = None
    """Of the bucket at hand."""
    _latest_us: int = 0
    _line: tuple[int, float, float] | None = None
    """Anchor in us, difference there in s, and its change in s for each us."""

    def observe(self, sensor_us: int, received_at: float) -> None:
        """One pair. The gateway's clock must be one that nobody sets; a sensor's time that goes back is left out."""
        if sensor_us < self._latest_us:
            return
        difference = received_at - sensor_us * 1e-6
        if self._least is not None and difference < self._offset(sensor_us) - STEP_S:
            self._minima.clear()
            self._least = self._line = None
        if self._least is None:
            self._least = (sensor_us, difference)
        elif sensor_us // BUCKET_US > self._latest_us // BUCKET_US:
            self._minima.append(self._least)
            self._least = (sensor_us, difference)
            self._line = _lowest_line(self._minima)
        elif difference < self._least[1]:
            self._least = (sensor_us, difference)
        self._latest_us = sensor_us

    def to_gateway(self, sensor_us: int) -> float:
        """Seconds on the gateway's clock; `observe` must have been called before."""
        return sensor_us * 1e-6 + self._offset(sensor_us)

    @property
    def drift_ppm(self) -> float | None:
        """How much faster the gateway's clock runs, in millionths; None while it cannot be told."""
        return None if self._line is None or self._span_us() < LEAST_SPAN_US else self._line[2] * 1e12

    def _span_us(self) -> int:
        return self._minima[-1][0] - self._minima[0][0] if self._minima else 0

    def _offset(self, sensor_us: int) -> float:
        if self._line is not None:
            anchor_us, difference, slope = self._line
            return difference + slope * (sensor_us - anchor_us)
        if self._least is None:
            raise ValueError("a clock map needs an observation first")
        return self._least[1]


def _lowest_line(points: Iterable[tuple[int, float]]) -> tuple[int, float, float]:
    """The line below all points with the smallest sum of distances; flat where they span too little."""
    ordered = list(points)
    begin_us, end_us = ordered[0][0], ordered[-1][0]
    if end_us - begin_us < LEAST_SPAN_US:
        anchor_us, difference = min(ordered, key=lambda point: point[1])
        return anchor_us, difference, 0.0
    hull: list[tuple[int, float]] = []
    for point in ordered:
        while len(hull) >= 2 and not _turns_left(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    mean_us = sum(at_us for at_us, _ in ordered) / len(ordered)
    right = next(index for index, (at_us, _) in enumerate(hull) if at_us >= mean_us and index > 0)
    (left_us, low), (right_us, high) = hull[right - 1], hull[right]
    return left_us, low, (high - low) / (right_us - left_us)


def _turns_left(a: tuple[int, float], b: tuple[int, float], c: tuple[int, float]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]) > 0
