"""How a sensor is: its rate against the one it promises, clipping, a flat line, and since when it is silent. Pure.

A sensor rarely breaks all at once: a cable corrodes and frames go missing, an accelerometer hits its end stop, a
frozen chip repeats one number at its full rate. None of these looks like an error to a program that only counts bytes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmq_firmware_bridge.readings import Float32s, SensorCounts
from fedmq_firmware_bridge.sources import Heard
from fedmq_firmware_bridge.store import SensorInfo

__all__ = ["SPAN_SECONDS", "Watch", "states"]

SPAN_SECONDS = 60.0
SPAN_SAMPLES = 20.0
"""Rate and clipping are those of the last minute, or of so many samples where these take longer."""
FLAT_SECONDS = 5.0
"""A channel that shows one number for so long, and 20 samples at least, is flat."""
FLAT_SAMPLES = 20
SILENT_SECONDS = 10.0
SILENT_PERIODS = 3.0
SLOW_SHARE = 0.95
CLIPPED_SHARE = 0.001
INT16_LIMIT = 32_767


@dataclass(slots=True)
class Watch:
    """One sensor. Times are monotonic seconds; `now` of `report` must not go back."""

    clips_at: int = INT16_LIMIT
    """Steps at which the sensor's scale ends, either way."""
    info: SensorInfo | None = None
    promised_hz: float = 0.0
    seen_at: float | None = None
    _samples: int = 0
    _block: int = 0
    """Samples that came together last."""
    _clipped: int = 0
    _marks: deque[tuple[float, int, int]] = field(default_factory=deque)
    """Time, samples and clipped ones of each report of the last minute."""
    _last: NDArray[Any] | None = None
    _flat: NDArray[np.int64] | None = None
    """For how many samples each channel has not moved."""

    def observe(self, heard: Heard, now: float) -> None:
        stretch = heard.stretch
        values = stretch.values
        if self.seen_at is None:
            # What comes first was taken before it came.
            self._marks.append((now - len(values) / stretch.rate_hz, 0, 0))
        self.info, self.promised_hz, self.seen_at = heard.sensor, stretch.rate_hz, now
        low, high = values.min(axis=0), values.max(axis=0)
        self._samples += len(values)
        self._block = len(values)
        if values.dtype == np.int16 and (int(high.max()) >= self.clips_at or int(low.min()) <= -self.clips_at):
            wide = values.astype(np.int32)
            self._clipped += int((np.abs(wide) >= self.clips_at).any(axis=1).sum())
        self._follow_flat(values, low, high)

    def _follow_flat(self, values: NDArray[Any] | Float32s, low: NDArray[Any], high: NDArray[Any]) -> None:
        still = low == high
        if self._last is None or self._flat is None or len(self._last) != values.shape[1]:
            self._flat = np.where(still, len(values), 0)
        else:
            self._flat = np.where(still, np.where(low == self._last, self._flat, 0) + len(values), 0)
        self._last = values[-1]

    def report(self, now: float, unix: float, counts: SensorCounts) -> dict[str, Any]:
        """As plain values, for status and metrics. `unix` is the same moment on the wall."""
        assert self.info is not None  # a watch is made as its sensor is first heard
        assert self.seen_at is not None
        self._marks.append((now, self._samples, self._clipped))
        wanted = max(SPAN_SECONDS, SPAN_SAMPLES / self.promised_hz)
        while len(self._marks) > 2 and now - self._marks[1][0] >= wanted:
            self._marks.popleft()
        then, samples, clipped = self._marks[0]
        span = now - then
        grown = self._samples - samples
        return {
            "source": self.info.source,
            "number": self.info.number,
            "name": self.info.name,
            "machine": self.info.machine,
            "channels": [channel.name for channel in self.info.channels],
            "units": [channel.unit for channel in self.info.channels],
            "promised_hz": self.promised_hz,
            "achieved_hz": grown / span if span >= 1 else None,
            # What is on its way is not missing.
            "slow": span >= 1 and (grown + self._block) / span < SLOW_SHARE * self.promised_hz,
            "last_seen_at": unix - (now - self.seen_at),
            "samples": self._samples,
            "clipped_share": (self._clipped - clipped) / grown if grown else 0.0,
            "flat_channels": self._flat_channels(),
            "lost_frames": counts.lost_frames,
            "gaps": counts.gaps,
            "duplicates": counts.duplicates,
            "restarts": counts.restarts,
            "overruns": counts.overruns,
            "jumps": counts.jumps,
        }

    def _flat_channels(self) -> list[int]:
        if self._flat is None:
            return []
        least = max(FLAT_SAMPLES, FLAT_SECONDS * self.promised_hz)
        return [place for place, samples in enumerate(self._flat.tolist()) if samples >= least]


def states(report: dict[str, Any], now: float) -> list[str]:
    """What is wrong with a sensor, in words, the gravest first; nothing where it is well. `now` in Unix seconds."""
    silent = now - report["last_seen_at"]
    wrong = []
    if silent > max(SILENT_SECONDS, SILENT_PERIODS / report["promised_hz"]):
        wrong.append("silent")
    elif report["slow"]:
        wrong.append("slow")
    if report["flat_channels"]:
        wrong.append("flat")
    if report["clipped_share"] > CLIPPED_SHARE:
        wrong.append("clipping")
    if not report["channels"]:
        wrong.append("no hello")
    return wrong
