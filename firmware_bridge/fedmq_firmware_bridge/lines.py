"""Readings as text: lines of CSV or JSON on a serial port, and messages of a broker. One line is one sample.

For sensors that nobody wants to give new firmware to: slower than the native stream, without checksums, and with
losses that only a sequence or a clock in each line can tell. Pure: the time at which a line came is an argument.

Rules:
- A line of more than `MAX_LINE` bytes is thrown away up to its end. What cannot be read is counted, and ends nothing;
  the samples before and after it are never joined.
- Where a line has a sequence, losses, repeats and restarts follow from it; else from the sensor's clock; else a silence
  is a gap, and a lost line may go unnoticed.
- Only numbers that float32 can hold are samples. `true` and `false` are 1 and 0, for contacts and switches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fedmq_firmware_bridge.clocks import ClockMap
from fedmq_firmware_bridge.frames import Channel
from fedmq_firmware_bridge.readings import SensorCounts, Stretch
from fedmq_firmware_bridge.sources import Heard, LineReport
from fedmq_firmware_bridge.store import SensorInfo

__all__ = ["MAX_LINE", "Columns", "Rows", "TextLine", "read_csv", "read_json"]

MAX_LINE = 4096
MOST = 3e38
"""What float32 holds."""
SKIPPED = "-"
BARE = "value"
"""What the one channel of a bare number is called."""
SILENT_PERIODS = 3.0
SILENT_SECONDS = 2.0

Row = list[float]


class _UnreadableError(ValueError):
    pass


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What a line holds. `time` and `sequence` are columns that are no channels."""

    names: tuple[str, ...] = ()
    """Of a CSV line every column, of JSON the wanted keys; empty for a bare number."""
    units: tuple[str, ...] = ()
    """One for each channel, or one for all."""
    rate_hz: float
    time: str | None = None
    time_unit: Literal["s", "ms", "us"] = "ms"
    sequence: str | None = None

    @property
    def wanted(self) -> tuple[str, ...]:
        return self.names or (BARE,)

    @property
    def channels(self) -> tuple[Channel, ...]:
        names = [name for name in self.wanted if name not in (self.time, self.sequence, SKIPPED)]
        units = self.units if len(self.units) == len(names) else (self.units or ("",)) * len(names)
        return tuple(
            Channel(name=name.rpartition(".")[2][:8], unit=unit)
            for name, unit in zip(names, units[: len(names)], strict=True)
        )


def read_csv(text: str, columns: Columns) -> Row:
    """The columns of a line, in order; those that are not wanted as 0. Raises ValueError."""
    cells = text.replace(";", ",").split(",")
    if len(cells) != len(columns.wanted):
        raise _UnreadableError(f"{len(columns.wanted)} columns expected, {len(cells)} came")
    return [0.0 if name == SKIPPED else _number(float(cell)) for name, cell in zip(columns.wanted, cells, strict=True)]


def read_json(text: str, columns: Columns) -> Row:
    """The wanted keys of an object, or a bare number. Raises ValueError."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise _UnreadableError("nested too deeply") from None
    if not columns.names:
        return [_number(value)]
    return [_number(_find(value, name)) for name in columns.names]


def _find(value: Any, name: str) -> Any:
    if isinstance(value, dict) and name in value:
        return value[name]
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise _UnreadableError(f"the key {name} expected")
        value = value[part]
    return value


def _number(value: Any) -> float:
    # Compared as it is: an integer of JSON may be too large for a float.
    if not isinstance(value, int | float) or not -MOST <= value <= MOST:
        raise _UnreadableError("a number that float32 can hold expected")
    return float(value)


_READERS: dict[str, Callable[[str, Columns], Row]] = {"csv": read_csv, "json": read_json}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


@dataclass(kw_only=True)
class Rows:
    """Rows of one sensor to stretches."""

    columns: Columns
    counts: SensorCounts = field(default_factory=SensorCounts)
    _clock: ClockMap = field(default_factory=ClockMap)
    _broken: bool = True
    """What comes next follows nothing."""
    _index: int = 0
    """Samples since the map of the clock began: the clock of a sensor that has none."""
    _sequence: int | None = None
    _told_us: int | None = None
    _received_at: float | None = None
    _block: list[Row] = field(default_factory=list)
    _block_us: int = 0
    _block_follows: bool = False
    _done: list[Stretch] = field(default_factory=list)

    def broke(self) -> None:
        """Something could not be read: a sample is missing here."""
        self._broken = True

    def take(self, row: Sequence[float], received_at: float) -> None:
        columns = self.columns
        named = dict(zip(columns.wanted, row, strict=True))
        sequence = None if columns.sequence is None else int(named[columns.sequence])
        told_us = None if columns.time is None else round(named[columns.time] * _SECONDS[columns.time_unit] * 1e6)
        if not self._goes_on(sequence, told_us, received_at):
            return
        self._sequence, self._told_us, self._received_at = sequence, told_us, received_at
        taken_us = round(self._index * 1e6 / columns.rate_hz) if told_us is None else told_us
        if self._broken or not self._block:
            self._end_block()
            self._block_us, self._block_follows = taken_us, not self._broken
        self._broken = False
        self._index += 1
        self._clock.observe(taken_us, received_at)
        skipped = (columns.time, columns.sequence, SKIPPED)
        self._block.append([value for name, value in zip(columns.wanted, row, strict=True) if name not in skipped])
        self.counts.frames += 1
        self.counts.samples += 1

    def drain(self) -> list[Stretch]:
        """What has come since the last time."""
        self._end_block()
        done, self._done = self._done, []
        return done

    def _goes_on(self, sequence: int | None, told_us: int | None, received_at: float) -> bool:
        """Whether the row is a new one; notes what is missing before it."""
        if self._received_at is None:
            return True
        period_us = 1e6 / self.columns.rate_hz
        if sequence is not None and self._sequence is not None:
            missing = sequence - self._sequence - 1
            back = missing < 0
        elif told_us is not None and self._told_us is not None:
            back = told_us <= self._told_us
            missing = -1 if told_us == self._told_us else round((told_us - self._told_us) / period_us) - 1
        else:
            silent = received_at - self._received_at
            missing, back = 0, False
            if silent > max(SILENT_SECONDS, SILENT_PERIODS * period_us / 1e6):
                missing = max(1, round(silent * 1e6 / period_us) - 1)
                self._restart_clock()
        if back and missing == -1:
            self.counts.duplicates += 1
            return False
        if back:
            self.counts.restarts += 1
            self._restart_clock()
        elif missing > 0:
            self.counts.lost_frames += missing
            self.counts.gaps += 1
            self._broken = True
        return True

    def _restart_clock(self) -> None:
        self._end_block()
        self._clock, self._index, self._broken = ClockMap(), 0, True

    def _end_block(self) -> None:
        if not self._block:
            return
        self._done.append(
            Stretch(
                sensor=0,
                boot=0,
                taken_at=self._clock.to_gateway(self._block_us),
                taken_us=self._block_us,
                rate_hz=self.columns.rate_hz,
                scale=1.0,
                values=np.array(self._block, dtype=np.float32),
                follows=self._block_follows,
            )
        )
        self._block = []


@dataclass(kw_only=True)
class TextLine:
    """Lines of text on a port: a `Talk`. One sensor."""

    sensor: SensorInfo
    kind: Literal["csv", "json"]
    rows: Rows
    _bytes: int = 0
    _malformed: int = 0
    _begun: bytes = b""
    _flooded: bool = False
    _mid_line: bool = True
    """The line at hand began before the port was opened: it is no error that it makes no sense."""

    def opened(self) -> bytes:
        self._begun, self._flooded, self._mid_line = b"", False, True
        self.rows.broke()
        return b""

    def take(self, data: bytes, received_at: float) -> list[Heard]:
        self._bytes += len(data)
        *ended, begun = data.split(b"\n")
        for part in ended:
            self._begin(part)
            self._read(received_at)
            self._begun, self._flooded, self._mid_line = b"", False, False
        self._begin(begun)
        return [Heard(sensor=self.sensor, stretch=stretch) for stretch in self.rows.drain()]

    def report(self) -> LineReport:
        return LineReport(
            connected=True,
            bytes=self._bytes,
            malformed=self._malformed,
            sensors={self.sensor.number: self.rows.counts},
        )

    def _begin(self, part: bytes) -> None:
        self._flooded = self._flooded or len(self._begun) + len(part) > MAX_LINE
        self._begun = b"" if self._flooded else self._begun + part

    def _read(self, received_at: float) -> None:
        if not self._flooded and not self._begun.strip():
            return
        try:
            if self._flooded:
                raise _UnreadableError(f"at most {MAX_LINE} bytes expected")
            text = self._begun.decode("utf-8")
            row = _READERS[self.kind](text, self.rows.columns)
        except ValueError:  # UnicodeDecodeError and JSONDecodeError are some
            self.rows.broke()
            self._malformed += not self._mid_line
            return
        self.rows.take(row, received_at)
