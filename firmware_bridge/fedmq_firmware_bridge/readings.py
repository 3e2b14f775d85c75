"""From frames to readings: what was lost, where the signal is whole, and when it was on the gateway's clock.

Owns the bookkeeping of one line: its sensors and their sequences. Refuses to know bytes, ports and how clocks are
compared (`clocks`). Pure: the time at which bytes came is an argument.

Rules:
- A `Stretch` is whole: consecutive samples, at one rate and scale. It never spans a gap, a restart of the sensor, or
  samples that the sensor itself says it lost. What follows the stretch before it without a gap says so (`follows`).
- Sequences count losses exactly, also over a wrap; only what a sensor sent after the last frame that came before its
  restart, nobody can know. A frame that comes twice counts once.
- A restart is another `boot` number. A sensor that has none (0) is found out by a sequence or a clock that went back.
- Nothing from outside grows without bound: a line follows `MAX_SENSORS` sensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from fedmq_firmware_bridge.clocks import ClockMap
from fedmq_firmware_bridge.frames import Frame, FrameError, Hello, Int16s, Samples

__all__ = ["MAX_SENSORS", "Float32s", "Line", "Sensor", "SensorCounts", "Stretch", "in_units"]

MAX_SENSORS = 64

Float32s: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

_WRAP = 1 << 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Stretch:
    """Consecutive samples of one sensor."""

    sensor: int
    boot: int
    taken_at: float
    """Seconds on the gateway's clock, at the first sample: late by what a frame is under way at least."""
    taken_us: int
    """The same on the sensor's own clock, in microseconds."""
    rate_hz: float
    scale: float
    """Units of one step; the sensor's hello names the unit, and corrects each channel."""
    values: Int16s | Float32s
    """(n, channels) int16, or float32 where a source gives numbers and no steps (their `scale` is 1)."""
    follows: bool
    """Whether no sample is missing between this and the sensor's stretch before it."""


def in_units(stretch: Stretch, hello: Hello) -> Float32s:
    """The samples in the units that the hello names: (n, channels) float32, (step * scale - offset) * gain."""
    told, sent = len(hello.channels), stretch.values.shape[1]
    if told != sent:
        raise FrameError(f"sensor {stretch.sensor}: {told} channels in the hello, {sent} in samples")
    offset = np.array([channel.offset for channel in hello.channels], dtype=np.float32)
    gain = np.array([channel.gain for channel in hello.channels], dtype=np.float32)
    values: Float32s = (stretch.values * np.float32(stretch.scale) - offset) * gain
    return values


@dataclass(slots=True)
class SensorCounts:
    """What has come from one sensor, and what has not."""

    hellos: int = 0
    frames: int = 0
    samples: int = 0
    """Of each channel."""
    lost_frames: int = 0
    """Frames of samples that were sent and did not come."""
    gaps: int = 0
    """How often one or more were missing."""
    duplicates: int = 0
    restarts: int = 0
    overruns: int = 0
    """How often the sensor said that it had lost samples."""
    jumps: int = 0
    """How often its clock did not agree with its samples: some were skipped, and it did not say so."""


@dataclass(slots=True)
class Sensor:
    """What is known of one sensor on a line."""

    counts: SensorCounts = field(default_factory=SensorCounts)
    hello: Hello | None = None
    """The last one, of the boot at hand."""
    clock: ClockMap = field(default_factory=ClockMap)
    boot: int = 0
    last: Samples | None = None
    """The last frame of samples of the boot at hand."""
    from_start: bool = False
    """Whether the boot at hand has been heard from its start, so that frames missing before the first count as lost."""

    def restart(self) -> None:
        self.counts.restarts += 1
        self.last = self.hello = None
        self.clock = ClockMap()
        self.from_start = True


@dataclass(slots=True)
class Line:
    """The sensors of one serial line."""

    sensors: dict[int, Sensor] = field(default_factory=dict)
    strangers: int = 0
    """Frames of sensors beyond `MAX_SENSORS`."""

    def take(self, frames: Iterable[Frame], received_at: float) -> list[Stretch]:
        """What the frames bring, in their order; neighbours without a gap come as one stretch.

        `received_at`: seconds on the gateway's clock as the bytes were read. It must not be set back.
        """
        runs: list[_Run] = []
        open_runs: dict[int, _Run] = {}
        for frame in frames:
            if not isinstance(frame, Samples | Hello) or (sensor := self._sensor(frame.sensor)) is None:
                continue
            if isinstance(frame, Hello):
                _greet(sensor, frame, received_at)
                continue
            follows = _follow(sensor, frame, received_at)
            if follows is None:
                continue
            run = open_runs.get(frame.sensor)
            if run is not None and follows:
                run.blocks.append(frame.values)
                continue
            run = open_runs[frame.sensor] = _Run(first=frame, clock=sensor.clock, follows=follows)
            runs.append(run)
        return [run.stretch() for run in runs]

    def _sensor(self, number: int) -> Sensor | None:
        sensor = self.sensors.get(number)
        if sensor is None:
            if len(self.sensors) >= MAX_SENSORS:
                self.strangers += 1
                return None
            sensor = self.sensors[number] = Sensor()
        return sensor


@dataclass(slots=True)
class _Run:
    """A stretch that is being put together."""

    first: Samples
    clock: ClockMap
    follows: bool
    blocks: list[Int16s] = field(default_factory=list)

    def stretch(self) -> Stretch:
        first = self.first
        return Stretch(
            sensor=first.sensor,
            boot=first.boot,
            taken_at=self.clock.to_gateway(first.taken_us),
            taken_us=first.taken_us,
            rate_hz=first.rate_hz,
            scale=first.scale,
            values=np.concatenate([first.values, *self.blocks]) if self.blocks else first.values,
            follows=self.follows,
        )


def _greet(sensor: Sensor, hello: Hello, received_at: float) -> None:
    told = [heard.now_us for heard in (sensor.hello,) if heard] + [heard.taken_us for heard in (sensor.last,) if heard]
    if told and (hello.boot != sensor.boot or hello.now_us < max(told)):
        sensor.restart()
    if hello.sequence == 0:
        sensor.from_start = True
    sensor.boot, sensor.hello = hello.boot, hello
    sensor.counts.hellos += 1
    sensor.clock.observe(hello.now_us, received_at)


def _follow(sensor: Sensor, frame: Samples, received_at: float) -> bool | None:
    """Whether the frame goes on from the last one without a gap; None where it is the last one again."""
    counts, last = sensor.counts, sensor.last
    if last is not None and (frame.boot, frame.sequence, frame.taken_us) == (last.boot, last.sequence, last.taken_us):
        counts.duplicates += 1
        return None
    if (last or sensor.hello) is not None and (frame.boot != sensor.boot or _went_back(last, frame)):
        sensor.restart()
        last = None
    if last is not None:
        missing = (frame.sequence - last.sequence - 1) % _WRAP
    else:
        missing = frame.sequence if sensor.from_start else 0
    counts.lost_frames += missing
    counts.gaps += missing > 0
    counts.overruns += frame.overrun
    follows = last is not None and missing == 0 and not frame.overrun
    if last is not None and follows:
        agrees = _agrees(last, frame)
        counts.jumps += not agrees
        follows = agrees and _shape(last) == _shape(frame)
    counts.frames += 1
    counts.samples += len(frame.values)
    sensor.boot, sensor.last = frame.boot, frame
    # A frame leaves after its last sample.
    sensor.clock.observe(frame.taken_us + round(len(frame.values) * 1e9 / frame.rate_mhz), received_at)
    return follows


def _went_back(last: Samples | None, frame: Samples) -> bool:
    """Its clock, or its sequence by less than half of all numbers."""
    if last is None:
        return False
    return frame.taken_us < last.taken_us or (frame.sequence - last.sequence - 1) % _WRAP >= _WRAP // 2


def _agrees(last: Samples, frame: Samples) -> bool:
    """Whether the clock went on by what the last frame's samples took, to half of that or 10 ms.

    A sensor chip samples by its own oscillator, up to some per cent off its nominal rate; the stamp is an interrupt's.
    """
    took_us = len(last.values) * 1e9 / last.rate_mhz
    return abs(frame.taken_us - last.taken_us - took_us) <= max(took_us / 2, 10_000)


def _shape(frame: Samples) -> tuple[int, float, int]:
    return frame.rate_mhz, frame.scale, frame.values.shape[1]
