"""Where readings come from: what the bridge asks of a source, and the native stream as one.

A source runs in a thread of its own, hands over what it hears, and answers for its line. Others than serial ports join
by the same few words: a field bus that is polled, a topic of a broker.

    Source   runs until it is told to stop, and `emit`s what it hears; nothing from outside ends it
    Talk     what is spoken on a byte stream: bytes and the time in, `Heard` out. Pure
    Native   the Talk of `frames` and `readings`

What a sensor's microcontroller says beside samples comes to `Native.on_opaque`; what is to be said to it goes by
`port.Port.write`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from fedmq_firmware_bridge.frames import AskHello, Decoder, Opaque, encode
from fedmq_firmware_bridge.readings import Line, SensorCounts, Stretch
from fedmq_firmware_bridge.store import SensorInfo

__all__ = ["DeviceReport", "Emit", "Heard", "LineReport", "Native", "Source", "Talk"]


@dataclass(frozen=True, kw_only=True)
class Heard:
    """A stretch, and whose it is. Its `rate_hz` is the rate that the sensor promises; its times are monotonic.

    `sensor.source` is the name of the source that emits it, and `sensor.number` its sensors' keys in `LineReport`.
    """

    sensor: SensorInfo
    stretch: Stretch


Emit: TypeAlias = Callable[[list[Heard]], None]


@dataclass(frozen=True, kw_only=True)
class DeviceReport:
    """How one device of a polled line is: one that never answered has no samples to be known by."""

    address: int
    machine: str
    requests: int
    answers: int
    silent: int
    garbled: int
    """Answers that made no sense: mostly a checksum that did not hold."""
    refused: Mapping[str, int]
    """By the exception's code, and what it means."""
    not_numbers: int
    skipped: int
    failures_in_a_row: int
    """0 while it is there."""


@dataclass(frozen=True, kw_only=True)
class LineReport:
    """How a source is. All counts are since the bridge started."""

    connected: bool
    problem: str = ""
    """Why it is not connected."""
    opened: int = 0
    """How often: more than once where a cable was pulled or a device went away."""
    bytes: int = 0
    failed: int = 0
    """Frames whose checksum did not hold."""
    malformed: int = 0
    """What else could not be read: no frame, no line, no number."""
    sensors: Mapping[int, SensorCounts] = field(default_factory=dict)
    devices: tuple[DeviceReport, ...] = ()
    """Of a line that is polled."""


class Source(Protocol):
    @property
    def name(self) -> str:
        """As the settings call it; no two are alike."""

    def run(self, emit: Emit, stop: threading.Event) -> None:
        """Until `stop` is set, and not a second longer. What goes wrong outside is retried with a back-off."""

    def report(self) -> LineReport:
        """At any time, from any thread."""


class Talk(Protocol):
    def opened(self) -> bytes:
        """The stream begins anew, and what was cut is gone; what to say to the other side."""

    def take(self, data: bytes, received_at: float) -> list[Heard]: ...

    def report(self) -> LineReport:
        """`connected`, `problem` and `opened` are the port's to say."""


@dataclass(kw_only=True)
class Native:
    """The native stream on one line. `machines` says where each sensor sits, by its number; others are at `machine`."""

    source: str
    machine: str
    machines: Mapping[int, str] = field(default_factory=dict)
    on_opaque: Callable[[Opaque], None] = lambda frame: None
    decoder: Decoder = field(default_factory=Decoder)
    line: Line = field(default_factory=Line)

    def opened(self) -> bytes:
        self.decoder = Decoder(counts=self.decoder.counts)
        # A zero ends what the sensor may have heard of somebody else.
        return b"\0" + encode(AskHello(sensor=0xFFFF, sequence=0))

    def take(self, data: bytes, received_at: float) -> list[Heard]:
        frames = self.decoder.feed(data)
        for frame in frames:
            if isinstance(frame, Opaque):
                self.on_opaque(frame)
        return [
            Heard(sensor=self._info(stretch.sensor), stretch=stretch) for stretch in self.line.take(frames, received_at)
        ]

    def report(self) -> LineReport:
        counts = self.decoder.counts
        return LineReport(
            connected=True,
            bytes=counts.bytes,
            failed=counts.failed,
            malformed=counts.malformed + counts.oversized,
            sensors={number: sensor.counts for number, sensor in list(self.line.sensors.items())},
        )

    def _info(self, number: int) -> SensorInfo:
        hello = self.line.sensors[number].hello
        return SensorInfo(
            source=self.source,
            number=number,
            name=(hello.name if hello else "") or f"{self.source}-{number}",
            machine=self.machines.get(number, self.machine),
            channels=hello.channels if hello else (),
        )
