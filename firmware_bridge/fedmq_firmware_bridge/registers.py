"""Register maps: what a kind of Modbus sensor keeps in which register, as TOML, and its registers as values in units.

    title = "WitMotion WTVB01-485"      # a map is one kind of sensor
    source = "the manual, its revision and its section"

    [[group]]                           # registers that are read together: a row of one table
    name = "vibration"
    function = "holding"                # or "input"
    period_seconds = 1.0

    [[group.channel]]
    name = "velocity_x"
    address = 0x3A                      # as on the wire, from 0: 40059 where a manual counts from 40001
    type = "int16"                      # int16, uint16, int32, uint32, float32
    unit = "mm/s"
    scale = 1.0                         # value = raw * scale + offset

Owns maps, the reads that they come to, and decoding. Refuses to know lines, devices and time.

Rules:
- Few reads: registers side by side are one read, also over gaps of up to `read_across` registers that are of no use.
  A channel is never split, and no read is longer than `registers_per_read`, which the protocol bounds at 125.
- A map that exists is right: `parse` names every mistake, with its key.
"""

from __future__ import annotations

import struct
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from fedmq_firmware_bridge.tables import Table, TableError, build, number, tables, text

__all__ = [
    "MAX_READ",
    "Channel",
    "Function",
    "Group",
    "Read",
    "RegisterMap",
    "included_maps",
    "load",
    "parse",
]

MAX_READ = 125
"""Registers that one answer may hold (Modbus Application Protocol V1.1b3, sections 6.3 and 6.4)."""

MAX_CHANNELS = 128
MAX_GROUPS = 16
MAX_MAP_BYTES = 64 << 10

Float32s: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Function: TypeAlias = Literal["holding", "input"]
Order: TypeAlias = Literal["big", "little"]

_FORMATS = {"int16": ">h", "uint16": ">H", "int32": ">i", "uint32": ">I", "float32": ">f"}
_NAME = r"[a-z][a-z0-9_]{0,31}"
_NAME_IS = "up to 32 of a-z, 0-9 and _, a letter first"


@dataclass(frozen=True, kw_only=True)
class Channel(Table):
    """One value of a sensor: one register, or two of them."""

    name: str = text(_NAME, _NAME_IS)
    address: int = number(0, 65_535)
    """As it is on the wire, from 0."""
    type: Literal["int16", "uint16", "int32", "uint32", "float32"]
    unit: str = text(r"[^\x00-\x1f\x7f]{0,16}", "up to 16 characters")
    """Empty for what has none, such as a kurtosis."""
    scale: float = 1.0
    offset: float = 0.0
    word_order: Order = "big"
    """Of a value of two registers: which comes first, the one with the high bits or the one with the low ones."""
    byte_order: Order = "big"
    """Within a register. Modbus says big; some sensors do not."""

    def check(self) -> Iterable[tuple[str, str]]:
        if self.address + self.width > 65_536:
            yield "address", f"expected up to {65_536 - self.width:,}: {self.type} has {self.width} registers"
        if self.scale == 0:
            yield "scale", "expected another number than 0"
        if self.width == 1 and self.word_order != "big":
            yield "word_order", f"{self.type} has one register"

    @property
    def width(self) -> int:
        """In registers."""
        return struct.calcsize(_FORMATS[self.type]) // 2

    def decode(self, registers: Sequence[int]) -> float:
        """The value in its unit: raw * scale + offset. `registers`: as many as `width`, in the order of the wire."""
        words = registers if self.word_order == "big" else registers[::-1]
        raw = b"".join(word.to_bytes(2, self.byte_order) for word in words)
        value: float = struct.unpack(_FORMATS[self.type], raw)[0]
        return value * self.scale + self.offset


@dataclass(frozen=True, kw_only=True)
class Read:
    """One request: `count` registers from `address` on."""

    function: Function
    address: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Group(Table):
    """Channels that are read together: one row of a table at a time."""

    name: str = text(_NAME, _NAME_IS)
    period_seconds: float = number(0.01, 86_400.0)
    channels: tuple[Channel, ...] = tables("channel", MAX_CHANNELS)
    function: Function = "holding"
    read_across: int = number(0, MAX_READ, default=0)
    """Registers of no use that may be read along to save a request. Sensors may refuse addresses that they lack."""
    registers_per_read: int = number(2, MAX_READ, default=MAX_READ)

    def check(self) -> Iterable[tuple[str, str]]:
        return _twice("channel", [channel.name for channel in self.channels])

    @cached_property
    def reads(self) -> tuple[Read, ...]:
        """The fewest requests that bring all channels, by address."""
        reads: list[Read] = []
        for channel in sorted(self.channels, key=lambda one: (one.address, one.width)):
            end = channel.address + channel.width
            if reads:
                last = reads[-1]
                last_end = last.address + last.count
                count = max(end, last_end) - last.address
                if channel.address <= last_end + self.read_across and count <= self.registers_per_read:
                    reads[-1] = Read(function=self.function, address=last.address, count=count)
                    continue
            reads.append(Read(function=self.function, address=channel.address, count=channel.width))
        return tuple(reads)

    def decode(self, answers: Sequence[Sequence[int]]) -> Float32s:
        """One row, (channels,) float32. `answers`: the registers of each of `reads`, in that order."""
        at = {
            read.address + position: register
            for read, answer in zip(self.reads, answers, strict=True)
            for position, register in zip(range(read.count), answer, strict=True)
        }
        values = [
            channel.decode([at[channel.address + position] for position in range(channel.width)])
            for channel in self.channels
        ]
        with np.errstate(over="ignore"):  # what float32 cannot hold comes as infinite, as a sensor's own floats may
            return np.array(values, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class RegisterMap(Table):
    """What one kind of sensor keeps in its registers."""

    title: str = text(r".*\S.*", "a name")
    source: str = text(r"(?s).*\S.*", "where the registers are from")
    """Where the addresses, types and scales are from."""
    groups: tuple[Group, ...] = tables("group", MAX_GROUPS)

    def check(self) -> Iterable[tuple[str, str]]:
        return _twice("group", [group.name for group in self.groups])


def parse(content: str) -> RegisterMap:
    """The map of a TOML document. Raises TableError with every mistake."""
    try:
        document = tomllib.loads(content)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise TableError([("", f"not TOML: {error}")]) from None
    return build(RegisterMap, document)


def included_maps() -> tuple[str, ...]:
    """Names of the maps that come with the package."""
    folder = resources.files("fedmq_firmware_bridge") / "maps"
    return tuple(sorted(path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml")))


def load(name: str) -> RegisterMap:
    """A map by its name, if it comes with the package, or by the path of its `.toml` file. Raises TableError."""
    included = included_maps()
    if name in included:
        return parse((resources.files("fedmq_firmware_bridge") / "maps" / f"{name}.toml").read_text(encoding="utf-8"))
    if not name.endswith(".toml"):
        expected = "expected the path of a .toml file, or one of " + ", ".join(included)
        raise TableError([("", f"{expected}; got {name[:60]!r}")])
    try:
        with Path(name).open("rb") as file:
            content = file.read(MAX_MAP_BYTES + 1)
    except OSError as error:
        raise TableError([("", f"{name}: cannot be read: {error.strerror or error}")]) from None
    if len(content) > MAX_MAP_BYTES:
        raise TableError([("", f"{name}: expected a map of at most {MAX_MAP_BYTES:,} bytes")])
    try:
        return parse(content.decode())
    except UnicodeDecodeError as error:
        raise TableError([("", f"{name}: not UTF-8 at byte {error.start}")]) from None
    except TableError as error:
        raise TableError([(f"{name}: {key}" if key else name, told) for key, told in error.mistakes]) from None


def _twice(key: str, names: Sequence[str]) -> Iterable[tuple[str, str]]:
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield key, f"{name} is there twice"
