"""Whom to ask next on a Modbus line, and what the answers come to.

    [[modbus]]
    port = "/dev/serial/by-id/usb-FTDI_USB-RS485-if00-port0"
    baud = 19200
    parity = "N"
    timeout_seconds = 0.2

    [[modbus.device]]
    address = 80
    map = "witmotion-wtvb01-485"     # or the path of a .toml file of your own
    machine = "pump-3"

Owns a line's settings, its order of requests, its rows and its counts. Refuses to know ports and bytes. Pure: answers
and the time come in, requests and rows go out.

A line takes one request at a time. A device that does not answer holds up all others for a timeout, so it must be asked
rarely, and never before others who wait. Rules:

- Each group of a device is due at its period. Of what is due, what has been due for longest is asked first.
- Whoever was silent, or could not be understood, rests: for its period, then twice that, and so on up to `REST_MOST`.
  The same holds for one group that was refused: its device answers at once, and its other groups go on.
- A device that was not heard last time is never asked while one that was heard still waits since the timeout before.
  So a group that is due waits for one timeout at most, however many devices are gone. Only as several devices go at
  once, and as a line starts, others pay for each of them, once.
- A row is whole or is not there: if one of its reads fails, it is begun anew when it is next due.
- Nothing is asked twice in a row: what is lost is lost, and counted.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from fedmq_firmware_bridge.registers import Float32s, Group, Read, RegisterMap, load
from fedmq_firmware_bridge.tables import Table, build_all, number, tables, text

__all__ = [
    "EXCEPTIONS",
    "REST_MOST",
    "Answer",
    "DeviceCounts",
    "Failure",
    "ModbusDevice",
    "ModbusLine",
    "Refused",
    "Request",
    "Rows",
    "Schedule",
    "modbus_lines",
]

REST_MOST = 60.0
"""Seconds for which a device that does not answer is left alone at most, unless its period is longer."""

REST_TIMEOUTS = 4
"""Timeouts for which it is left alone at least: the line has four fifths of its time for others."""

LATENCY_SECONDS = 0.02
"""What a sensor and a USB adapter take beside the bytes' time, at least: FTDI's adapters hold bytes back for 16 ms."""

MAX_DEVICES = 247

EXCEPTIONS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledge",
    6: "device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target failed to respond",
}
"""What a device says instead of registers (Modbus Application Protocol V1.1b3, section 7)."""

Float64s: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class ModbusDevice(Table):
    """One sensor on a line."""

    address: int = number(1, MAX_DEVICES)
    registers: RegisterMap = field(metadata={"key": "map", "read": load})
    machine: str = text(
        r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", "up to 64 of A-Z, a-z, 0-9, _, . and -, a letter or digit first"
    )
    """Which machine it sits on: the name that its rows are kept under."""


@dataclass(frozen=True, kw_only=True)
class ModbusLine(Table):
    """One serial line, and who is on it. `[[modbus]]` in the settings."""

    port: str = text(r"\S.{0,1023}", "the path of a serial port")
    devices: tuple[ModbusDevice, ...] = tables("device", MAX_DEVICES)
    name: str = text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "1 to 63 letters, digits, '.', '_' or '-'", default="modbus")
    """What the line is called; no two of a bridge are alike."""
    baud: int = number(1_200, 1_000_000, default=19_200)
    parity: Literal["N", "E", "O"] = "N"
    stop_bits: Literal[1, 2] = 1
    timeout_seconds: float = number(0.005, 10.0, default=0.2)
    """From a request until its answer must be whole."""
    local_echo: bool = False
    """Whether the adapter hears what it says itself."""

    def check(self) -> Iterable[tuple[str, str]]:
        addresses = Counter(device.address for device in self.devices)
        for address in sorted(address for address, times in addresses.items() if times > 1):
            yield "device", f"address {address} is there twice: both sensors would answer at once"
        longest = max(self.seconds(read) for device in self.devices for read in _reads(device)) + LATENCY_SECONDS
        if self.timeout_seconds < longest:
            told = f"at {self.baud:,} baud the longest answer takes {longest:.3f} s; expected that or more"
            yield "timeout_seconds", f"{told}, got {self.timeout_seconds}"
        load = sum(
            sum(self.seconds(read) + self.silence_seconds for read in group.reads) / group.period_seconds
            for device in self.devices
            for group in device.registers.groups
        )
        if load > 1:
            told = f"at {self.baud:,} baud the bytes alone take {load:.1f} s of each second"
            yield "device", f"{told}: raise baud, lengthen periods, or split the line"

    @property
    def character_seconds(self) -> float:
        """A start bit, eight bits, a parity bit if there is one, and stop bits."""
        return (9 + (self.parity != "N") + self.stop_bits) / self.baud

    @property
    def silence_seconds(self) -> float:
        """What must pass between frames (Modbus over Serial Line V1.02, section 2.5.1.1)."""
        return max(3.5 * self.character_seconds, 0.00175)

    def seconds(self, read: Read) -> float:
        """For the bytes of a request of 8 and its answer of 5 and 2 for each register."""
        return (8 + 5 + 2 * read.count) * self.character_seconds


def _reads(device: ModbusDevice) -> Iterable[Read]:
    return (read for group in device.registers.groups for read in group.reads)


def modbus_lines(document: Mapping[str, Any], folder: Path) -> tuple[ModbusLine, ...]:
    """The lines of a settings file, `[[modbus]]`; none if it has none. Raises TableError with every mistake.

    `folder`: where the paths of maps start.
    """
    if "modbus" not in document:
        return ()
    return build_all(ModbusLine, _placed(document["modbus"], folder), key="modbus")


def _placed(lines: Any, folder: Path) -> Any:
    """Paths of maps from the file's folder. What is not as expected stays, for `build_all` to name."""
    if not isinstance(lines, list):
        return lines
    placed: list[Any] = []
    for line in lines:
        devices = line.get("device") if isinstance(line, Mapping) else None
        if not isinstance(devices, list):
            placed.append(line)
            continue
        moved = [
            {**device, "map": str(folder / name)}
            if isinstance(device, Mapping) and isinstance(name := device.get("map"), str) and name.endswith(".toml")
            else device
            for device in devices
        ]
        placed.append({**line, "device": moved})
    return placed


class Failure(enum.Enum):
    """Why there is no answer."""

    SILENT = "silent"
    """Nothing came: no such device, no power, a broken wire."""
    GARBLED = "garbled"
    """Bytes came, and no answer to this request: a checksum does not hold, two talk at once, another was late."""


@dataclass(frozen=True)
class Refused:
    """The device answered that it will not: an exception, in Modbus's words."""

    code: int

    def __str__(self) -> str:
        return EXCEPTIONS.get(self.code, f"exception {self.code}")


Answer: TypeAlias = "Sequence[int] | Refused | Failure"
"""Registers, as many as asked for, or why there are none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Rows of one table: what a group's registers said, in units."""

    device: ModbusDevice
    table: str
    """The group's name."""
    names: tuple[str, ...]
    units: tuple[str, ...]
    taken_at: Float64s
    """(n,) seconds on the gateway's clock, as the first registers of each row came."""
    values: Float32s
    """(n, channels) float32"""


@dataclass(slots=True)
class DeviceCounts:
    """What has come from one device, and what has not."""

    requests: int = 0
    answers: int = 0
    """With registers."""
    rows: int = 0
    silent: int = 0
    garbled: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    """Exceptions by their code."""
    not_numbers: int = 0
    """Rows left out, as a value was infinite or none."""
    skipped: int = 0
    """Rows that were never asked for, as the line was busy past their time."""
    failures_in_a_row: int = 0
    """Requests without any answer since the last one with one: 0 while the device is there."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to ask next."""

    device: ModbusDevice
    read: Read
    place: int
    """Which of the schedule's tables it is for."""


@dataclass(slots=True)
class _Station:
    """A device, as the line has come to know it."""

    device: ModbusDevice
    counts: DeviceCounts = field(default_factory=DeviceCounts)
    heard: bool = False
    """Whether it answered its last request, with whatever."""


@dataclass(slots=True)
class _Table:
    """A group of a device, and the row that is under way."""

    station: _Station
    group: Group
    due_at: float
    answers: list[Sequence[int]] = field(default_factory=list)
    taken_at: float = 0.0
    refusals: int = 0


class Schedule:
    """The requests of one line, in their order. `now` is always the same clock, which nobody sets."""

    def __init__(self, line: ModbusLine, now: float) -> None:
        self._least_rest = REST_TIMEOUTS * line.timeout_seconds
        self._stations = tuple(_Station(device) for device in line.devices)
        self._tables = tuple(
            _Table(station=station, group=group, due_at=now)
            for station in self._stations
            for group in station.device.registers.groups
        )
        self._stalled_at = -math.inf
        """When the last timeout was over."""

    @property
    def counts(self) -> dict[int, DeviceCounts]:
        """By address."""
        return {station.device.address: station.counts for station in self._stations}

    def next(self, now: float) -> Request | float:
        """What to ask, or when there will be something. The same again until its answer was taken."""
        due = [place for place, table in enumerate(self._tables) if table.due_at <= now]
        if not due:
            return min(table.due_at for table in self._tables)
        first = [place for place in due if self._waits_since_a_timeout(self._tables[place])]
        place = min(first or due, key=lambda one: self._tables[one].due_at)
        table = self._tables[place]
        return Request(device=table.station.device, read=table.group.reads[len(table.answers)], place=place)

    def _waits_since_a_timeout(self, table: _Table) -> bool:
        return table.station.heard and table.due_at <= self._stalled_at

    def take(self, request: Request, answer: Answer, now: float) -> Rows | None:
        """What has come of the last request; a row, if it was the last of one. `now`: as it came, or was given up."""
        table = self._tables[request.place]
        station, counts = table.station, table.station.counts
        counts.requests += 1
        station.heard = not isinstance(answer, Failure)
        if isinstance(answer, Failure):
            counts.silent += answer is Failure.SILENT
            counts.garbled += answer is Failure.GARBLED
            counts.failures_in_a_row += 1
            self._stalled_at = now
            self._rest(station, now)
            return None
        counts.failures_in_a_row = 0
        if isinstance(answer, Refused):
            counts.refused[answer.code] += 1
            table.refusals += 1
            _begin_anew(table, now + _pause(table.refusals, table.group.period_seconds))
            return None
        counts.answers += 1
        if not table.answers:
            table.taken_at = now
        table.answers.append(answer)
        return self._row(table, now) if len(table.answers) == len(table.group.reads) else None

    def _rest(self, station: _Station, now: float) -> None:
        tables = [table for table in self._tables if table.station is station]
        base = max(min(table.group.period_seconds for table in tables), self._least_rest)
        until = now + _pause(station.counts.failures_in_a_row, base)
        for table in tables:
            _begin_anew(table, max(table.due_at, until))

    def _row(self, table: _Table, now: float) -> Rows | None:
        counts, group = table.station.counts, table.group
        values = group.decode(table.answers)
        table.refusals = 0
        missed = max(0, math.floor((now - table.due_at) / group.period_seconds))
        counts.skipped += missed
        _begin_anew(table, table.due_at + (missed + 1) * group.period_seconds)
        if not np.isfinite(values).all():
            counts.not_numbers += 1
            return None
        counts.rows += 1
        return Rows(
            device=table.station.device,
            table=group.name,
            names=tuple(channel.name for channel in group.channels),
            units=tuple(channel.unit for channel in group.channels),
            taken_at=np.array([table.taken_at]),
            values=values[np.newaxis],
        )


def _begin_anew(table: _Table, due_at: float) -> None:
    table.answers = []
    table.due_at = due_at


def _pause(failures: int, base: float) -> float:
    """Seconds to leave somebody alone after so many failures in a row."""
    return max(base, min(REST_MOST, base * 2.0 ** min(failures - 1, 30)))
