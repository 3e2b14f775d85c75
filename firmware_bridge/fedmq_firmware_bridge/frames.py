"""The native stream: what a sensor's microcontroller and a gateway say to each other over a serial line, as bytes.

Owns the byte layout, its checks, and the decoder that finds frames in a stream that may be cut, noisy or hostile.
Refuses to know ports, clocks and what a frame means beside the ones before it (`readings`). The same layout in C99 is
in `firmware_bridge/firmware`; `docs/frames.md` has it byte by byte, and says why each field is there.

    frame  = COBS(header | payload | CRC-32 | CRC-16) 0x00
    header = version u8 | kind u8 | sensor u16 | boot u16 | sequence u32         all little-endian

Rules:
- `Decoder.feed` takes bytes cut anywhere, never raises on what they hold, and keeps at most `MAX_ENCODED` of them.
- What stands between two delimiters is one frame, or counted once: as a failed check, malformed or oversized.
- Both checksums must hold. CRC-16/IBM-3740 alone finds every three flipped bits, but lets one in 65,536 of the frames
  pass that lost or won a byte; a noisy line brings thousands of those a day. Together they are a code of 48 bits.
- A frame of a kind or version from the future that passes its checks is handed on or counted, and ends nothing.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeAlias

import fastcrc
import numpy as np
from cobs import cobs

__all__ = [
    "MAX_CHANNELS",
    "MAX_ENCODED",
    "MAX_PAYLOAD",
    "VERSION",
    "AskHello",
    "Channel",
    "Counts",
    "Decoder",
    "Frame",
    "FrameError",
    "Hello",
    "Int16s",
    "Kind",
    "Opaque",
    "Samples",
    "encode",
]

VERSION = 1

MAX_PAYLOAD = 1008
"""Bytes. With header and checksums 1,024: what a microcontroller with 4 KiB of RAM can still hold one of."""

MAX_CHANNELS = 16

_HEADER = struct.Struct("<BBHHI")
_CHECKS = struct.Struct("<IH")
_SAMPLES = struct.Struct("<QIfBBH")
_HELLO = struct.Struct("<16s16s16sQIfBB")
_CHANNEL = struct.Struct("<8s8sff")

_LEAST = _HEADER.size + _CHECKS.size
_MOST = _LEAST + MAX_PAYLOAD

MAX_ENCODED = _MOST + -(-_MOST // 254)
"""Most bytes between two delimiters: COBS adds one for each 254 begun."""

_OVERRUN = 0x01

Int16s: TypeAlias = np.ndarray[Any, np.dtype[np.int16]]


class FrameError(ValueError):
    """The values do not make a frame, or the bytes do not hold one."""


class Kind(IntEnum):
    """What a payload is. From 0x80 on: towards the sensor. Those of models travel as `Opaque`."""

    HELLO = 0x01
    SAMPLES = 0x02
    SCORE = 0x03
    """What a model on the sensor found: `scores`."""
    ACK = 0x04
    """What came of an order: `downloads`."""
    ASK_HELLO = 0x81
    MODEL_CHUNK = 0x82
    """An order, such as a chunk of a model: `downloads`."""


@dataclass(frozen=True, kw_only=True)
class _Head:
    """What every frame begins with."""

    sensor: int
    """0 to 65,535: which sensor on this line. Several may share one."""
    boot: int = 0
    """0 to 65,535: differs from start to start of the firmware. 0 where it cannot tell."""
    sequence: int
    """0 to 2^32 - 1: counts the sensor's frames of this kind since its start, and wraps."""

    def __post_init__(self) -> None:
        _whole("sensor", self.sensor, 0, 0xFFFF)
        _whole("boot", self.boot, 0, 0xFFFF)
        _whole("sequence", self.sequence, 0, 0xFFFFFFFF)


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples(_Head):
    """Consecutive samples of all channels."""

    taken_us: int
    """Microseconds on the sensor's own clock, at the first sample. 64 bits: never wraps."""
    rate_mhz: int
    """Samples per second of one channel, times 1,000."""
    scale: float
    """Units of one step, as float32. What the unit is, is in the hello."""
    overrun: bool = False
    """Whether samples were lost on the sensor just before these."""
    values: Int16s
    """(n, channels) int16. Read-only where it comes from the decoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _whole("taken_us", self.taken_us, 0, (1 << 64) - 1)
        _whole("rate_mhz", self.rate_mhz, 1, 0xFFFFFFFF)
        object.__setattr__(self, "scale", _scale("scale", self.scale))
        values = self.values
        if values.dtype != np.int16 or values.ndim != 2:
            raise FrameError(f"values: (n, channels) int16 expected, {values.shape} {values.dtype} given")
        count, channels = values.shape
        _whole("channels", channels, 1, MAX_CHANNELS)
        _whole("samples", count, 1, (MAX_PAYLOAD - _SAMPLES.size) // (2 * channels))

    @property
    def rate_hz(self) -> float:
        return self.rate_mhz / 1000

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Samples) and encode(self) == encode(other)

    def __hash__(self) -> int:
        return hash((self.sensor, self.boot, self.sequence, self.taken_us))


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One channel's calibration: value = (step * scale - offset) * gain, in `unit`."""

    name: str
    """Such as "x"; in a hello up to 8 characters of ASCII."""
    unit: str
    """Such as "m/s2"; in a hello up to 8 characters of ASCII."""
    offset: float = 0.0
    """In `unit`, as float32: what the channel reads where there is nothing to read."""
    gain: float = 1.0
    """As float32: what is left to multiply by after that."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "offset", _float32("offset", self.offset))
        object.__setattr__(self, "gain", _float32("gain", self.gain))
        if self.gain == 0:
            raise FrameError("gain: a number other than 0 expected")


@dataclass(frozen=True, kw_only=True)
class Hello(_Head):
    """Who a sensor is. Sent at its start, every few seconds, and when asked."""

    uid: bytes
    """16 bytes, the chip's serial number with zeros behind it: the same for the life of the device."""
    name: str
    """Up to 16 characters of ASCII: what people call it."""
    firmware: str
    """Up to 16 characters of ASCII: the version of its firmware."""
    now_us: int
    """Microseconds on the sensor's own clock, as this was sent."""
    rate_mhz: int
    scale: float
    """Rate and scale that the next samples will have."""
    channels: tuple[Channel, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.uid) != 16:
            raise FrameError(f"uid: 16 bytes expected, {len(self.uid)} given")
        _text("name", self.name, 16)
        _text("firmware", self.firmware, 16)
        _whole("now_us", self.now_us, 0, (1 << 64) - 1)
        _whole("rate_mhz", self.rate_mhz, 1, 0xFFFFFFFF)
        object.__setattr__(self, "scale", _scale("scale", self.scale))
        _whole("channels", len(self.channels), 1, MAX_CHANNELS)
        for channel in self.channels:
            _text("name", channel.name, 8)
            _text("unit", channel.unit, 8)


@dataclass(frozen=True, kw_only=True)
class AskHello(_Head):
    """Towards the sensor: who are you? Sensor 0xFFFF asks all on the line."""


@dataclass(frozen=True, kw_only=True)
class Opaque(_Head):
    """A frame that passed its checks and whose payload this module does not read."""

    kind: int
    payload: bytes

    def __post_init__(self) -> None:
        super().__post_init__()
        _whole("kind", self.kind, 0, 0xFF)
        _whole("payload bytes", len(self.payload), 0, MAX_PAYLOAD)
        if self.kind in _READERS:
            raise FrameError(f"kind: {Kind(self.kind).name} has a type of its own")


Frame: TypeAlias = Hello | Samples | AskHello | Opaque


@dataclass(slots=True)
class Counts:
    """What a decoder has seen. `frames` + `failed` + `malformed` + `oversized` is what stood between delimiters."""

    bytes: int = 0
    frames: int = 0
    failed: int = 0
    """A checksum did not hold."""
    malformed: int = 0
    """Not COBS, too short, of another version, or checksums hold and the payload contradicts itself."""
    oversized: int = 0


@dataclass(slots=True)
class Decoder:
    """Finds the frames in a stream. One for each line: it remembers the frame that has only begun."""

    counts: Counts = field(default_factory=Counts)
    _begun: bytes = b""
    _flooded: bool = False
    """More than a frame came without a delimiter; all up to the next one is thrown away."""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that end in `data`, in order."""
        self.counts.bytes += len(data)
        *ended, begun = data.split(b"\0")
        frames: list[Frame] = []
        for part in ended:
            self._begin(part)
            if self._flooded:
                self.counts.oversized += 1
            elif self._begun and (frame := self._read(self._begun)) is not None:
                frames.append(frame)
            self._begun, self._flooded = b"", False
        self._begin(begun)
        return frames

    def _begin(self, part: bytes) -> None:
        self._flooded = self._flooded or len(self._begun) + len(part) > MAX_ENCODED
        self._begun = b"" if self._flooded else self._begun + part

    def _read(self, encoded: bytes) -> Frame | None:
        """The frame, or None and one more in a count."""
        counts = self.counts
        try:
            body = cobs.decode(encoded)
        except cobs.DecodeError:
            counts.malformed += 1
            return None
        if len(body) > _MOST:
            counts.oversized += 1
            return None
        if len(body) < _LEAST:
            counts.malformed += 1
            return None
        if _checks(body[: -_CHECKS.size]) != body[-_CHECKS.size :]:
            counts.failed += 1
            return None
        try:
            frame = _parse(body)
        except FrameError:
            counts.malformed += 1
            return None
        counts.frames += 1
        return frame


def encode(frame: Frame) -> bytes:
    """The frame as it stands on the line, with its delimiter behind it."""
    kind, payload = _payload(frame)
    body = _HEADER.pack(VERSION, kind, frame.sensor, frame.boot, frame.sequence) + payload
    return bytes(cobs.encode(body + _checks(body))) + b"\0"


def _checks(body: bytes) -> bytes:
    return _CHECKS.pack(zlib.crc32(body), fastcrc.crc16.ibm_3740(body))


# --- reading ---------------------------------------------------------------------------------------------------------


def _parse(body: bytes) -> Frame:
    version, kind, sensor, boot, sequence = _HEADER.unpack_from(body)
    if version != VERSION:
        raise FrameError(f"version {VERSION} expected, {version} came")
    payload = body[_HEADER.size : -_CHECKS.size]
    head = {"sensor": sensor, "boot": boot, "sequence": sequence}
    reader = _READERS.get(kind)
    if reader is None:
        return Opaque(kind=kind, payload=payload, **head)
    return reader(payload, head)


def _samples(payload: bytes, head: dict[str, int]) -> Samples:
    if len(payload) < _SAMPLES.size:
        raise FrameError(f"samples: at least {_SAMPLES.size} bytes expected, {len(payload)} came")
    taken_us, rate_mhz, scale, channels, flags, count = _SAMPLES.unpack_from(payload)
    if len(payload) != _SAMPLES.size + 2 * channels * count:
        raise FrameError(f"samples: {count} of {channels} channels do not make {len(payload)} bytes")
    if flags & ~_OVERRUN:
        raise FrameError(f"samples: flags {flags:#04x} are not known")
    values = np.frombuffer(payload, dtype="<i2", offset=_SAMPLES.size).astype(np.int16, copy=False)
    return Samples(
        taken_us=taken_us,
        rate_mhz=rate_mhz,
        scale=scale,
        overrun=bool(flags & _OVERRUN),
        values=values.reshape(count, channels),
        **head,
    )


def _hello(payload: bytes, head: dict[str, int]) -> Hello:
    if len(payload) < _HELLO.size:
        raise FrameError(f"hello: at least {_HELLO.size} bytes expected, {len(payload)} came")
    uid, name, firmware, now_us, rate_mhz, scale, count, zero = _HELLO.unpack_from(payload)
    if zero != 0 or len(payload) != _HELLO.size + _CHANNEL.size * count:
        raise FrameError(f"hello: {count} channels do not make {len(payload)} bytes")
    channels = tuple(
        Channel(name=_from_text(label), unit=_from_text(unit), offset=offset, gain=gain)
        for label, unit, offset, gain in _CHANNEL.iter_unpack(payload[_HELLO.size :])
    )
    return Hello(
        uid=uid,
        name=_from_text(name),
        firmware=_from_text(firmware),
        now_us=now_us,
        rate_mhz=rate_mhz,
        scale=scale,
        channels=channels,
        **head,
    )


def _ask_hello(payload: bytes, head: dict[str, int]) -> AskHello:
    if payload:
        raise FrameError(f"ask hello: 0 bytes expected, {len(payload)} came")
    return AskHello(**head)


_READERS: dict[int, Callable[[bytes, dict[str, int]], Frame]] = {
    Kind.SAMPLES: _samples,
    Kind.HELLO: _hello,
    Kind.ASK_HELLO: _ask_hello,
}


# --- writing ---------------------------------------------------------------------------------------------------------


def _payload(frame: Frame) -> tuple[int, bytes]:
    if isinstance(frame, Samples):
        count, channels = frame.values.shape
        fields = (frame.taken_us, frame.rate_mhz, frame.scale, channels, _OVERRUN * frame.overrun, count)
        return Kind.SAMPLES, _SAMPLES.pack(*fields) + frame.values.astype("<i2", copy=False).tobytes()
    if isinstance(frame, Hello):
        texts = (frame.uid, frame.name.encode("ascii"), frame.firmware.encode("ascii"))
        told = _HELLO.pack(*texts, frame.now_us, frame.rate_mhz, frame.scale, len(frame.channels), 0)
        return Kind.HELLO, told + b"".join(
            _CHANNEL.pack(channel.name.encode("ascii"), channel.unit.encode("ascii"), channel.offset, channel.gain)
            for channel in frame.channels
        )
    if isinstance(frame, AskHello):
        return Kind.ASK_HELLO, b""
    return frame.kind, frame.payload


# --- values ----------------------------------------------------------------------------------------------------------


def _whole(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise FrameError(f"{what}: {least} to {most} expected, {value} given")


def _float32(what: str, value: float) -> float:
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        rounded = math.inf
    if not math.isfinite(rounded):
        raise FrameError(f"{what}: a number that float32 can hold expected, {value} given")
    return rounded


def _scale(what: str, value: float) -> float:
    rounded = _float32(what, value)
    if rounded <= 0:
        raise FrameError(f"{what}: a number above 0 expected, {value} given")
    return rounded


def _text(what: str, value: str, most: int) -> None:
    if len(value) > most or not value.isascii() or (value and not value.isprintable()):
        raise FrameError(f"{what}: up to {most} printable characters of ASCII expected, {len(value)} given")


def _from_text(padded: bytes) -> str:
    text = padded.rstrip(b"\0")
    if not text.isascii():
        raise FrameError("text: ASCII expected")
    return text.decode("ascii")
