"""What gateways and coordinator say to each other of machines: how they are, which alerts there are, what is normal.

Owns the types and their bounds; they are messages as those in `messages` are, which lists them. Refuses to know where a
machine's state comes from and what is done with it.

A gateway with a watch beside it says *state*, never differences that must not be lost:

- Alerts go by a cursor. Every change of an alert has a number in the gateway's book, and a `Condition` brings the
  alerts that changed after `since`, as they are now, up to `upto`. The coordinator takes it where `since` is no later
  than what it has on record, and tells in `Noted` and in its welcome how far that is: from there the gateway goes on.
- Machines, summaries and spreads are told when they are others than before. Both ends keep a mark of each, and the sum
  of the marks (`check_of_marks`) is in `Noted` and in the welcome: where the sums differ, the gateway tells all of them
  anew.

So whatever is lost, or a disk of either side that goes back in time, is found out by the next word. No signal, no
window and no single value is in any of it but what an alert goes by: a trend has means over stretches of time, a
summary counts of bins, a spread shares of tenths.

The coordinator says what people have ordered of an alert (`AlertOrders`, until the gateway says that it is done), and
which limits follow from what is normal at most gateways (`FleetLimits`).
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from fedmq_protocol.spread import PARTS

__all__ = [
    "ALERT_KINDS",
    "ALERT_STATES",
    "MAX_ALERTS",
    "MAX_EVIDENCE",
    "MAX_LIMITS",
    "MAX_MACHINES",
    "MAX_SKETCH_BYTES",
    "MAX_SPREADS",
    "MAX_SUMMARIES",
    "MAX_TREND",
    "ORDERS",
    "OTHER",
    "QUANTILES",
    "WAITING_STATES",
    "AlertKind",
    "AlertOrder",
    "AlertOrders",
    "AlertSeverity",
    "AlertStanding",
    "AlertState",
    "AlertVerb",
    "Condition",
    "Done",
    "FleetLimit",
    "FleetLimits",
    "MachineState",
    "Measured",
    "Noted",
    "SpreadOf",
    "SummaryOf",
    "check_of_marks",
    "is_other",
    "limits_mark",
    "mark_of",
    "meet",
    "other_cause",
    "quantiles_of",
    "read_trend",
    "to_quantiles",
    "to_trend",
]

MAX_MACHINES = 256
"""Of one gateway."""
MAX_ALERTS = 16
"""In one message."""
MAX_SUMMARIES = 256
"""Of one gateway."""
MAX_SPREADS = 256
"""Of one gateway."""
MAX_SKETCH_BYTES = 4096
MAX_TREND = 24
MAX_EVIDENCE = 6
MAX_LIMITS = 128
"""That one gateway is told."""

AlertKind: TypeAlias = Literal["vibration", "defect", "anomaly", "fault", "life"]
AlertStanding: TypeAlias = Literal["open", "acknowledged", "confirmed", "dismissed", "cleared"]
AlertSeverity: TypeAlias = Literal["warning", "alarm"]
AlertVerb: TypeAlias = Literal["ack", "confirm", "dismiss"]

ALERT_KINDS: tuple[AlertKind, ...] = get_args(AlertKind)
ALERT_STATES: tuple[AlertStanding, ...] = get_args(AlertStanding)
WAITING_STATES: tuple[AlertStanding, ...] = ("open", "acknowledged", "cleared")
"""Nobody has said yet what it was."""
ORDERS: tuple[AlertVerb, ...] = get_args(AlertVerb)
OTHER = "other:"
"""Begins what is confirmed of a cause that no classifier learns, such as `other: unbalance`."""

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
"""That a `FleetLimit` has, in this order."""

_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\Z"
"""It is shown to people, a line each."""
_Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=_PRINTABLE)]
_Word = Annotated[str, Meta(max_length=64, pattern=_PRINTABLE)]
_Number = Annotated[int, Meta(ge=0, le=(1 << 62))]
_Seconds = Annotated[int, Meta(ge=0, le=1 << 34)]
"""Unix seconds, whole."""
_Hundredths = Annotated[int, Meta(ge=0, le=1 << 31)]
_Measure = Annotated[str, Meta(min_length=1, max_length=160, pattern=_PRINTABLE)]
Mark: TypeAlias = Annotated[bytes, Meta(min_length=8, max_length=8)]
Book: TypeAlias = Annotated[bytes, Meta(min_length=4, max_length=4)]


class Measured(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One thing that an alert goes by."""

    name: _Measure
    value: float
    limit: float
    unit: _Word = ""
    was: float | None = None
    """Typical of the machine's baseline; None where that is nothing yet."""
    trend: Annotated[bytes, Meta(max_length=8 * MAX_TREND)] = b""
    """As `to_trend` makes it: of the first evidence alone."""
    by: _Word = ""
    """Whose limit it is: "fleet", or the machine's own."""

    def __post_init__(self) -> None:
        numbers = (self.value, self.limit, 0.0 if self.was is None else self.was)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"{self.name}: expected finite numbers, got {numbers}")


class AlertState(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """An alert as it is now."""

    number: _Number
    """In the gateway's book."""
    machine: _Name
    kind: AlertKind
    state: AlertStanding
    severity: AlertSeverity
    level: _Hundredths
    """The highest that is known; 100 is the limit."""
    sensor: _Word
    label: _Word | None
    """The fault that it names itself."""
    verdict: _Word | None
    """The fault that somebody confirmed, or another cause."""
    opened_at: _Seconds
    from_at: _Seconds
    to_at: _Seconds | None
    """None while its cause is there."""
    evidence: Annotated[tuple[Measured, ...], Meta(max_length=MAX_EVIDENCE)] = ()


class MachineState(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A machine as it was when it was last told of."""

    name: _Name
    kind: _Name
    """What it is, such as pump: machines of a kind are compared."""
    state: Annotated[str, Meta(max_length=16, pattern=_PRINTABLE)]
    """stopped | starting | running | stopping"""
    zone: Literal["A", "B", "C", "D"] | None
    """A to D of ISO 20816-3."""
    learnt_pct: Annotated[int, Meta(ge=0, le=100)]
    """How far its normal is learnt, where it works now; 100: it is."""
    level: _Hundredths
    """The highest of its kinds of alert; 100 is the limit."""
    at: _Seconds
    """Of the last window that was judged."""
    drift: Annotated[tuple[_Measure, ...], Meta(max_length=8)] = ()
    """Measures that are not distributed as in its baseline, and have not been for long."""
    event: _Word | None = None
    """What made it another machine, such as bearing-changed,"""
    baseline_at: _Seconds | None = None
    """and when."""


class SummaryOf(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What is normal of one measure at this gateway's machines of a kind: learnt, and merged over them."""

    kind: _Name
    band: _Word
    measure: _Measure
    sketch: Annotated[bytes, Meta(max_length=MAX_SKETCH_BYTES)]
    """As `sketch.Summary.to_bytes` gives it; empty: it is known no more."""


class SpreadOf(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How a measure lies lately among the tenths of what is normal, each machine held against its own; the mean over
    this gateway's machines of a kind."""

    kind: _Name
    band: _Word
    measure: _Measure
    machines: Annotated[int, Meta(ge=1, le=MAX_MACHINES)]
    """Of which it is the mean."""
    windows: Annotated[int, Meta(ge=1, le=1 << 31)]
    """As how many it is: `spread.as_many_as`."""
    shares: Annotated[tuple[Annotated[int, Meta(ge=0, le=1000)], ...], Meta(max_length=PARTS)]
    """Per mille of the windows in each tenth, the lowest first; empty: it is known no more."""

    def __post_init__(self) -> None:
        if self.shares and (len(self.shares) != PARTS or sum(self.shares) != 1000):
            raise ValueError(f"expected {PARTS} shares that are 1,000 per mille in all, got {self.shares}")


class Done(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What came of an order."""

    key: Mark
    done: bool
    text: Annotated[str, Meta(max_length=200, pattern=_PRINTABLE)] = ""
    """Why not, where it could not be."""


class Condition(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=17):
    """A gateway tells of its machines what the coordinator does not know yet."""

    counter: _Number
    """Of this start of the gateway; `Noted` repeats it."""
    book: Book
    """Which book: another one counts its alerts from 1 again."""
    since: _Number
    upto: _Number
    """Of changes to alerts: all after `since` up to `upto` are in `alerts`."""
    alerts: Annotated[tuple[AlertState, ...], Meta(max_length=MAX_ALERTS)] = ()
    anew: bool = False
    """Machines, summaries and spreads that were told before count no more: all follow."""
    machines: Annotated[tuple[MachineState, ...], Meta(max_length=64)] = ()
    gone: Annotated[tuple[_Name, ...], Meta(max_length=64)] = ()
    """Machines that are watched no more."""
    summaries: Annotated[tuple[SummaryOf, ...], Meta(max_length=64)] = ()
    done: Annotated[tuple[Done, ...], Meta(max_length=16)] = ()
    limits: Mark | None = None
    """`limits_mark` of the fleet's limits that its watch has."""
    spreads: Annotated[tuple[SpreadOf, ...], Meta(max_length=64)] | None = None
    """None where there are none, as most of the time: that costs no byte."""


class Noted(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=18):
    """What the coordinator has on record of a gateway's machines."""

    book: Book
    cursor: _Number
    """Changes of alerts up to this one are on record."""
    check: Mark
    """`check_of_marks` over machines, summaries and spreads."""
    counter: _Number | None = None
    """The `Condition` that it answers; None in a welcome."""


class AlertOrder(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Somebody has said what an alert is."""

    key: Mark
    """The same at every repeat."""
    book: Book
    alert: _Number
    what: AlertVerb
    fault: _Word = ""
    """Of a confirmation: a class, or what `other_cause` gives."""
    who: _Word = ""
    at: _Seconds = 0


class AlertOrders(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=19):
    """What people have ordered, in order; repeated until the gateway says that it is done."""

    orders: Annotated[tuple[AlertOrder, ...], Meta(min_length=1, max_length=16)]


class FleetLimit(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What is normal of a measure at most gateways that have machines of the kind."""

    kind: _Name
    band: _Word
    measure: _Measure
    gateways: Annotated[int, Meta(ge=1, le=1 << 31)]
    quantiles: Annotated[bytes, Meta(min_length=4 * len(QUANTILES), max_length=4 * len(QUANTILES))]
    """`QUANTILES`, each the median over the gateways', as little-endian float32."""


class FleetLimits(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=20):
    """All that are for this gateway's kinds of machines; those told before count no more."""

    limits: Annotated[tuple[FleetLimit, ...], Meta(max_length=MAX_LIMITS)]


_ENCODER = msgspec.msgpack.Encoder()


def meet(one: tuple[float, float | None], other: tuple[float, float | None]) -> bool:
    """Whether two alerts of a machine overlap in time: each from when to when, None where it goes on."""
    return (other[1] is None or one[0] <= other[1]) and (one[1] is None or other[0] <= one[1])


def other_cause(what: str) -> str:
    """A cause that is no class, as a verdict names it."""
    return f"{OTHER} {what}"


def is_other(fault: str) -> bool:
    """Whether a verdict names a cause that is no class: then nothing is learnt from its windows."""
    return fault.startswith(OTHER)


def mark_of(one: MachineState | SummaryOf | SpreadOf) -> bytes:
    """8 bytes that differ where what is told differs. What moves all the time is not in it, or by its class alone: a
    gateway that has been away must be able to tell that nothing has changed."""
    told: object = one
    if isinstance(one, MachineState):
        level = sum(one.level >= bound for bound in (80, 100))
        told = (one.name, one.kind, one.state, one.zone, one.learnt_pct // 10, level, one.drift, one.event)
        told = (*told, one.baseline_at)
    elif isinstance(one, SpreadOf):
        # To the next tenth: where nothing has changed each share is about one, and stays clear of where that ends.
        told = (one.kind, one.band, one.measure, one.machines, [(share + 50) // 100 for share in one.shares])
    return hashlib.blake2b(_ENCODER.encode(told), digest_size=8).digest()


def check_of_marks(marks: Iterable[bytes]) -> bytes:
    """Of all that is told, in whatever order."""
    check = 0
    for mark in marks:
        check ^= int.from_bytes(mark, "big")
    return check.to_bytes(8, "big")


def limits_mark(limits: Sequence[FleetLimit]) -> bytes:
    return hashlib.blake2b(_ENCODER.encode(tuple(limits)), digest_size=8).digest()


def to_quantiles(values: Sequence[float]) -> bytes:
    """Raises ValueError for another number of them than QUANTILES has."""
    if len(values) != len(QUANTILES):
        raise ValueError(f"expected {len(QUANTILES)} quantiles, got {len(values)}")
    return struct.pack(f"<{len(QUANTILES)}f", *values)


def quantiles_of(coded: bytes) -> tuple[float, ...]:
    """What `to_quantiles` was given, as float32."""
    return struct.unpack(f"<{len(QUANTILES)}f", coded)


def to_trend(points: Sequence[tuple[float, float]], base_at: float) -> bytes:
    """The last MAX_TREND times and values: little-endian float32 pairs, times in seconds from `base_at`."""
    kept = points[-MAX_TREND:]
    return b"".join(struct.pack("<ff", at - base_at, value) for at, value in kept)


def read_trend(coded: bytes, base_at: float) -> list[tuple[float, float]]:
    """What `to_trend` was given, as float32; what is no whole pair is left out."""
    whole = len(coded) // 8 * 8
    return [(base_at + at, value) for at, value in struct.iter_unpack("<ff", coded[:whole])]
