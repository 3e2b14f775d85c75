"""A model down the line: an image goes to a sensor in chunks, and is in force once the sensor says so.

Owns the payloads of orders and acks, and `Download`, which decides what to send next. Refuses to know ports, clocks and
what is in an image beyond its length and the CRC-32 that it ends with (`fedmq_models.sensor_image`). Pure: the time is
an argument. The sensor's side is `firmware_bridge/firmware/fedmq_slots.c`; `docs/frames.md` has both byte by byte.

Rules:
- One order is under way at a time, and only an ack to the last one sent counts. A sensor that erases flash cannot
  listen, and on RS-485 two must not speak at once.
- Every ack tells all that the sensor has, so that the next order follows from the last ack alone: after a loss, after a
  restart of the sensor or of the sender, and whatever another sender had begun.
- Doing an order twice does no harm. Without an answer it is sent again, after twice the time as before.
- The sensor alone decides whether an image is right. What it refuses for good ends the download with its reason.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from functools import partial

from fedmq_firmware_bridge.frames import Frame, FrameError, Kind, Opaque, encode

__all__ = ["CHUNK_BYTES", "Ack", "Download", "Order", "Outcome", "Stage", "drive", "order", "read_ack"]

CHUNK_BYTES = 256
"""A multiple of what any flash writes at once. An image's last chunk may be shorter."""
FIRST_TIMEOUT_S = 0.5
LONGEST_TIMEOUT_S = 8.0
"""Longer than any flash takes to erase a slot."""
PATIENCE_S = 60.0
"""Without progress for so long a download has failed."""
MOST_BEGINS = 5
"""How often a sensor may forget what it had received, or find its checksum wrong."""

_ORDER = struct.Struct("<BxxxII")
_ACK = struct.Struct("<BBBxIIIIII")
_CRC = struct.Struct("<I")
_NONE = 0xFF


class Order(IntEnum):
    """What a frame of kind 0x82 asks of a sensor."""

    ASK = 0
    BEGIN = 1
    CHUNK = 2
    FINISH = 3


class Outcome(IntEnum):
    """What a sensor says came of an order."""

    DONE = 0
    UNKNOWN_ORDER = 1
    NOT_BEGUN = 2
    INCOMPLETE = 3
    TOO_LONG = 4
    CHECKSUM = 6
    MALFORMED = 7
    UNFIT = 8
    SELF_TEST = 9
    FLASH = 10


_FINAL = {
    Outcome.UNKNOWN_ORDER: "its firmware does not know this order",
    Outcome.TOO_LONG: "the image is longer than its slots",
    Outcome.MALFORMED: "it cannot read the image: its firmware is older, or the image is none",
    Outcome.UNFIT: "the model is for another rate, scale or number of channels, or needs more memory than it has",
    Outcome.SELF_TEST: "it computes other numbers than the gateway does, so that its old model stays in force",
    Outcome.FLASH: "its flash could not be erased or written",
}
"""Outcomes that sending again does not mend."""


@dataclass(frozen=True, kw_only=True)
class Ack:
    """What came of an order, and all that the sensor has."""

    sensor: int
    order: int
    outcome: int
    """Of `Outcome`, or one from the future."""
    answers: int
    """Sequence of the frame that it answers."""
    slot: int | None
    """That is in force: 0 or 1. None: no model is."""
    in_force: int
    """Id of that model's image; 0 where none is."""
    version: int
    """Of that model; 0 where none is."""
    incoming: int
    """Id of the image that is being received; 0 where none is."""
    received: int
    """Bytes of it, from its first one on without a gap."""
    room: int
    """Bytes of the longest image that fits."""


def order(what: Order, *, sensor: int, sequence: int, image: int = 0, number: int = 0, chunk: bytes = b"") -> Opaque:
    """An order as a frame. image: id; number: the image's length for BEGIN, the chunk's place in it for CHUNK."""
    payload = _ORDER.pack(what, image, number) + chunk
    return Opaque(kind=Kind.MODEL_CHUNK, sensor=sensor, sequence=sequence, payload=payload)


def read_ack(frame: Opaque) -> Ack:
    """Raises FrameError for another kind, or a payload that contradicts itself."""
    if frame.kind != Kind.ACK or len(frame.payload) != _ACK.size:
        raise FrameError(
            f"ack: {_ACK.size} bytes of kind {Kind.ACK:#04x} expected, {len(frame.payload)} of {frame.kind:#04x} came"
        )
    what, outcome, slot, answers, in_force, version, incoming, received, room = _ACK.unpack(frame.payload)
    if slot not in (0, 1, _NONE):
        raise FrameError(f"ack: slot 0, 1 or {_NONE} expected, {slot} came")
    return Ack(
        sensor=frame.sensor,
        order=what,
        outcome=outcome,
        answers=answers,
        slot=None if slot == _NONE else slot,
        in_force=in_force,
        version=version,
        incoming=incoming,
        received=received,
        room=room,
    )


class Stage(Enum):
    """How far a download has come."""

    ASKING = "asking what the sensor has"
    BEGINNING = "waiting until the sensor has made room"
    SENDING = "sending chunks"
    FINISHING = "waiting for the sensor's checks and its self-test"
    IN_FORCE = "the sensor runs it"
    FAILED = "it has failed"


@dataclass(slots=True)
class Download:
    """One image to one sensor.

    Send what `due` gives, hand every frame that comes to `take`, and call `due` again when `next_at` is reached, until
    `ended`. Raises FrameError for bytes whose CRC-32 does not hold: those are no image, or half of one.
    """

    sensor: int
    image: bytes
    sequence: int = 0
    """Of the next order. Take another one for each download, so that an ack of an earlier one does not count."""
    stage: Stage = Stage.ASKING
    reason: str = ""
    """Of a failure."""
    received: int = 0
    """Bytes that the sensor has."""
    sent_frames: int = 0
    repeated_frames: int = 0
    """Of those: without an answer to the one before."""
    begins: int = 0
    next_at: float = -float("inf")
    """When `due` has something to send."""
    id: int = field(init=False)
    _timeout_s: float = FIRST_TIMEOUT_S
    _waits_for: int | None = None
    """Sequence of the order that is under way."""
    _progress_at: float | None = None

    def __post_init__(self) -> None:
        if len(self.image) <= _CRC.size or self.image[-_CRC.size :] != _CRC.pack(zlib.crc32(self.image[: -_CRC.size])):
            raise FrameError(f"an image that ends with its CRC-32 expected, {len(self.image)} other bytes given")
        (self.id,) = _CRC.unpack(self.image[-_CRC.size :])

    @property
    def ended(self) -> bool:
        return self.stage in (Stage.IN_FORCE, Stage.FAILED)

    def due(self, now: float) -> list[Opaque]:
        """What to send now: nothing, or one order. `now` is in seconds and never goes back."""
        if self.ended or now < self.next_at:
            return []
        if self._progress_at is None:
            self._progress_at = now
        if now - self._progress_at >= PATIENCE_S:
            self._fail(
                f"no answer within {PATIENCE_S:g} s: is sensor {self.sensor} on this line, and does its firmware take "
                "models?"
                if self.stage is Stage.ASKING
                else f"no progress within {PATIENCE_S:g} s while {self.stage.value}, {self.received:,} bytes there"
            )
            return []
        if self._waits_for is not None:
            self.repeated_frames += 1
            self._timeout_s = min(2 * self._timeout_s, LONGEST_TIMEOUT_S)
        self.sent_frames += 1
        self._waits_for = self.sequence
        self.sequence = (self.sequence + 1) % (1 << 32)
        self.next_at = now + self._timeout_s
        return [self._order(self._waits_for)]

    def take(self, frame: Frame, now: float) -> None:
        """A frame from the line, of whatever kind and sensor."""
        if self.ended or not isinstance(frame, Opaque) or frame.kind != Kind.ACK or frame.sensor != self.sensor:
            return
        try:
            ack = read_ack(frame)
        except FrameError:
            return  # it counts as lost: the order is sent again
        if ack.answers != self._waits_for:
            return
        self._waits_for, self._timeout_s, self.next_at = None, FIRST_TIMEOUT_S, now
        before = self.stage, self.received
        self._go_on(ack)
        if (self.stage, self.received) != before:
            self._progress_at = now

    def _go_on(self, ack: Ack) -> None:
        """The stage that follows from what the sensor has."""
        ours = ack.incoming == self.id and ack.received <= len(self.image)
        self.received = ack.received if ours else 0
        if ack.slot is not None and ack.in_force == self.id:
            self.stage, self.received = Stage.IN_FORCE, len(self.image)
        elif ack.room < len(self.image):
            self._fail(f"the image has {len(self.image):,} bytes, the sensor's slots hold {ack.room:,}")
        elif ack.outcome in _FINAL:
            self._fail(f"the sensor refused it: {_FINAL[Outcome(ack.outcome)]}")
        elif not ours:
            self.begins += 1
            self.stage = Stage.BEGINNING
            if self.begins > MOST_BEGINS:
                self._fail(f"the sensor lost what it had received, or found it damaged, {MOST_BEGINS} times")
        elif self.received < len(self.image):
            self.stage = Stage.SENDING
        else:
            self.stage = Stage.FINISHING

    def _order(self, sequence: int) -> Opaque:
        ordered = partial(order, sensor=self.sensor, sequence=sequence, image=self.id)
        match self.stage:
            case Stage.BEGINNING:
                return ordered(Order.BEGIN, number=len(self.image))
            case Stage.SENDING:
                chunk = self.image[self.received : self.received + CHUNK_BYTES]
                return ordered(Order.CHUNK, number=self.received, chunk=chunk)
            case Stage.FINISHING:
                return ordered(Order.FINISH)
            case _:
                return ordered(Order.ASK)

    def _fail(self, reason: str) -> None:
        self.stage, self.reason = Stage.FAILED, reason


def drive(
    download: Download,
    write: Callable[[bytes], object],
    read: Callable[[float], Iterable[Frame]],
    clock: Callable[[], float],
) -> None:
    """Runs a download to its end over any line.

    read: the frames that come within so many seconds, sooner where some do; clock: seconds that never go back. Frames
    of other kinds go by `download`: whoever wants them takes them inside `read`.
    """
    while not download.ended:
        for ordered in download.due(clock()):
            write(encode(ordered))
        for frame in read(max(0.0, download.next_at - clock())):
            download.take(frame, clock())
