"""What crosses the broker, as values and as bytes.

A message is one envelope byte, a body, and a trailer: the seal. The envelope's high half is the version of the wire,
its low half says what the seal is: nothing, a signature of 64 bytes (what is broadcast) or a MAC of 8 (what one
gateway sends or gets). `split` takes it off; who made it, and whether it had to be there, `signing` says.

The body is MessagePack, coded by position, its type told by a number at its front. Every type has a home in the
topic table, and `from_bytes` refuses what stands on another's topic. Size is checked before anything is decoded;
numbers and lengths as they are decoded. A gateway's name is never in a body: the topic says who speaks.

What is sent every round says nothing that the other end knows already: times count from the lineage's start, and a
digest that only has to notice a mistake is cut short.

Compatible changes add a field at the end, with a default: older software ignores it. Fields at the end that hold
nothing are not sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from fedmq_protocol.condition import AlertOrders, Condition, FleetLimits, Noted
from fedmq_protocol.reasons import Reason
from fedmq_protocol.task import MAX_LEVEL, MAX_PARAMETERS, Task
from fedmq_protocol.topics import Channel, Direction, TopicSpec
from fedmq_protocol.vitals import VitalsCode

__all__ = [
    "BEYOND_UNIT",
    "MIN_STATISTICS_WINDOWS",
    "SEAL_BYTES",
    "AskChunks",
    "AskModel",
    "AskVerdict",
    "Assignment",
    "Birth",
    "BlobRef",
    "CatchUp",
    "CatchUpKind",
    "Chunk",
    "Decline",
    "Evaluation",
    "Held",
    "Leave",
    "Message",
    "MessageError",
    "Missing",
    "PersonalOutcome",
    "PersonalPolicy",
    "PersonalTrial",
    "Receipt",
    "Release",
    "Roots",
    "RoundKind",
    "RoundPlan",
    "Seal",
    "Sealed",
    "SensorHealth",
    "Slot",
    "Statistics",
    "Trial",
    "Update",
    "Verdict",
    "Welcome",
    "ask_after_seconds",
    "bitmap",
    "check_of",
    "from_bytes",
    "kinds_on",
    "sealed",
    "split",
    "to_bytes",
]

WIRE_VERSION = 3

MAX_BLOB = 8 * MAX_PARAMETERS
"""No transfer is longer, in bytes; each receiver sets its own, lower bound from the task."""

MAX_MISSING = 512
"""Chunks that one message asks for again; more are asked for afterwards."""


MIN_STATISTICS_WINDOWS = 20
"""Windows that statistics must be over to count. A gateway with fewer declines: what it sent would be dropped."""


class MessageError(ValueError):
    """Bytes that are not a message of ours, or not one that belongs on this topic."""


class Verdict(IntEnum):
    """The coordinator's word on an answer. Numbers are fixed for ever."""

    ACCEPTED = 0
    """Counts in this round or, below quorum, in the next: residual = y - payload."""
    CLOSED = 1
    """The round had closed: residual = y."""
    WRONG_BASE = 2
    """Trained from another model than the plan's: residual = y."""
    NOT_DRAWN = 3
    """The gateway was not asked: residual = y."""
    NORM = 4
    """Longer than the task allows: residual = 0, for putting it back would be refused for ever."""
    NON_FINITE = 5
    """Numbers that are not numbers: residual = 0."""
    MALFORMED = 6
    """Not a payload of the task's codec: residual = 0."""
    CONFLICT = 7
    """Another answer of the same gateway to the same round came first: residual = y."""
    UNKNOWN = 8
    """Never seen, and the round is open: send it again."""
    ABANDONED = 9
    """The round was given up, or belongs to another lineage: residual = y, or zero where the lineage is new."""
    SET_ASIDE = 10
    """The coordinator takes no updates of this gateway until an operator readmits it: residual = y."""


class RoundKind(IntEnum):
    TRAINING = 0
    STATISTICS = 1
    """Feature statistics instead of training: the federation learns its scaler."""
    REST = 2
    """Nobody is drawn: the plan only carries the last delta, and the run has come to its end for now."""


class CatchUpKind(IntEnum):
    CHAIN = 0
    """Every broadcast delta from `start` to `number`, each behind its level."""
    MERGED = 1
    """Their integer sum."""
    KEYFRAME = 2
    """Difference of `number` to the seeded start; `start` is 0 and means nothing else."""


Nonce: TypeAlias = Annotated[bytes, Meta(min_length=8, max_length=8)]
ShortDigest: TypeAlias = Annotated[bytes, Meta(min_length=8, max_length=8)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 62))]
SocketBytes: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 44))]
"""Of one process since its start, 17 TB at most: the sums of half a million starts are what the ledger can hold."""
RoundId: TypeAlias = Annotated[int, Meta(ge=1, le=(1 << 40))]
VersionNumber: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 40))]
Lineage: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 40))]
"""Unix seconds of its start, so that no two are alike even where the coordinator's disk was lost; 0 is none."""
Check: TypeAlias = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
"""The first 4 bytes of a digest. That a wrong model has the right one happens once in 2^32; every later version's check
is over all of the model again, so it would be found a round later."""
Loss: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 40)]
"""In whole 1/10,000."""
Level: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_LEVEL)]
"""How much denser than the task's codecs say: `fedmq_protocol.task.Codec.at`."""
Places: TypeAlias = Annotated[int, Meta(ge=0)]
"""Gateways of a fleet of at most 64: bit i is the one at place i of the roster. At most 64 bits long on the wire."""
Beyond: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 40)]
"""What TCP/IP and TLS have put around the socket bytes of this process so far, both ways, in whole BEYOND_UNIT bytes;
None where the system does not count it."""
CpuTime: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 32)]
"""Of this process, in 1/100 s; None where nobody measured it."""
Label: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]
Tag: TypeAlias = Annotated[str, Meta(min_length=1, max_length=32)]

BEYOND_UNIT = 64
"""Bytes: so that a count takes 3 on the wire until it comes to 4 MB."""

MAX_TASKS = 64
"""Tasks that one gateway takes part in."""

MAX_ROOTS = 64
"""Roots that one message brings; a gateway that is further behind walks in steps."""


class BlobRef(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=0):
    """Stands where bytes were too many for one message: they follow in chunks, named by the digest's first 8 bytes."""

    digest: Annotated[bytes, Meta(min_length=32, max_length=32)]
    length: Annotated[int, Meta(ge=1, le=MAX_BLOB)]
    chunk_bytes: Annotated[int, Meta(ge=256, le=128 * 1024)]


# -- gateway to coordinator -------------------------------------------------------------------------------------


class Held(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a gateway has of one task."""

    lineage: Lineage
    version: VersionNumber
    task: ShortDigest
    counter: Count
    """Of its last update: never goes back, unless the gateway was restored from an old image."""


class SensorHealth(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How a sensor of the gateway's bridge is, in a few bytes. Counts are since the bridge started."""

    name: Annotated[str, Meta(max_length=16)]
    rate_pct: Annotated[int, Meta(ge=0, le=1000)]
    """Of the samples it promises, in the minute before it was last looked at."""
    silent_seconds: Annotated[int, Meta(ge=0, le=1 << 32)]
    lost_frames: Annotated[int, Meta(ge=0, le=1 << 48)] = 0
    failed: Annotated[int, Meta(ge=0, le=1 << 48)] = 0
    """Checksums that did not hold, on its whole line."""
    clipping: bool = False
    flat: bool = False


class Birth(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=1):
    """A gateway is here. Retained; sent on every connect."""

    nonce: Nonce
    """Drawn when the process starts: the welcome must echo it, and it tells clones apart."""
    software: Annotated[str, Meta(max_length=32)]
    engines: Annotated[tuple[Annotated[str, Meta(max_length=32)], ...], Meta(max_length=8)]
    signal_samples: Annotated[dict[Label, Annotated[int, Meta(ge=0, le=1 << 48)]], Meta(max_length=32)]
    """Samples of raw signal at hand, by label. Windows cannot be counted before the task is known."""
    sent: SocketBytes
    received: SocketBytes
    held: Annotated[tuple[Held, ...], Meta(max_length=MAX_TASKS)] = ()
    tags: Annotated[tuple[Tag, ...], Meta(max_length=16)] = ()
    """What it is and what it watches, as the plant calls it: a task, a pause or a release can be for some tags only."""
    sensors: Annotated[tuple[SensorHealth, ...], Meta(max_length=16)] = ()
    """Those that its windows come from, where they come from a bridge."""
    root: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None
    """Version of the federation's root that it holds; None where nothing is sealed."""
    card: Annotated[bytes, Meta(max_length=512)] | None = None
    """Its key, with the signature of the federation's issuer: see `signing`."""
    beyond: Beyond | None = None
    vitals: VitalsCode | None = None
    """Its battery and link, as `ToldVitals` codes them; None where it does not tell. The same in every answer."""


class Leave(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=2):
    """A gateway is gone: its last will (`clean` false, no totals), or its own word on a clean stop. Retained."""

    nonce: Nonce
    clean: bool
    sent: SocketBytes = 0
    received: SocketBytes = 0
    beyond: Beyond | None = None


class Evaluation(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The plan's base version on the gateway's own held-out windows, in whole 1/10,000."""

    metric: Annotated[int, Meta(ge=-(1 << 31), le=1 << 31)]
    loss: Loss
    windows: Annotated[int, Meta(ge=1, le=1 << 31)]


class Update(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=3):
    """The answer "yes": a coded delta. How many windows it comes from, the birth has told."""

    round_id: RoundId
    base: Annotated[int, Meta(ge=0, le=127)]
    """`RoundPlan.base_mark` of the plan that it answers: 7 bits, since the round says the version already. It differs
    where two histories of one federation have met, after a coordinator was put back from an older copy."""
    counter: Count
    payload: bytes | BlobRef
    sent: SocketBytes
    received: SocketBytes
    """Socket bytes of this process so far, this message not yet among them."""
    loss: Loss
    """Mean over its windows while it trained: what the coordinator sets the level by."""
    evaluation: Evaluation | None = None
    beyond: Beyond | None = None
    cpu: CpuTime | None = None
    """From the plan to this answer: windows cut anew, training, scoring, coding."""
    vitals: VitalsCode | None = None


class Decline(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=4):
    """The answer "not now". It costs a gateway nothing, needs no receipt and is not repeated."""

    round_id: RoundId
    reason: Reason
    sent: SocketBytes
    received: SocketBytes
    beyond: Beyond | None = None
    cpu: CpuTime | None = None
    """None where it declined before it had begun."""
    vitals: VitalsCode | None = None


class Statistics(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=5):
    """The answer to a statistics round: little-endian float32, one of each per feature, of sums made in float64."""

    round_id: RoundId
    count: Annotated[int, Meta(ge=1, le=1 << 31)]
    mean: Annotated[bytes, Meta(min_length=4, max_length=4 * 4096)]
    m2: Annotated[bytes, Meta(min_length=4, max_length=4 * 4096)]
    """Sum of squared differences from the mean (Welford 1962)."""
    sent: SocketBytes
    received: SocketBytes
    beyond: Beyond | None = None
    cpu: CpuTime | None = None
    vitals: VitalsCode | None = None


class AskVerdict(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=6):
    """What became of my pending update?"""

    round_id: RoundId
    counter: Count
    digest: ShortDigest


class AskModel(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=7):
    """I missed deltas. Answered once for all who ask, on a topic that is subscribed only while waiting."""

    lineage: Lineage
    version: VersionNumber
    wanted: VersionNumber | None = None
    """A released version, to be put in service; None for the newest, to train from."""


class PersonalOutcome(IntEnum):
    """What a gateway found of a personal model. Numbers are fixed for ever."""

    SERVES = 0
    """It is better by the margin: the gateway scores with it."""
    NO_BETTER = 1
    """Not better by the margin."""
    CLASS_LOST = 2
    """Better on the whole, but worse at one of the classes."""
    FEW_WINDOWS = 3
    """Too few windows, to train on or held out, to tell."""
    ONE_CLASS = 4
    """Fewer than two classes at hand, or no faulty window beside healthy ones: nothing to tell apart."""
    FAILED = 5
    """It could not be trained, or came to numbers that are none."""


class PersonalTrial(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A gateway's personal model beside the version in service that it was made of, on the same held-out windows."""

    outcome: PersonalOutcome
    windows: Annotated[int, Meta(ge=0, le=1 << 31)]
    metric: Annotated[int, Meta(ge=-(1 << 31), le=1 << 31)] | None = None
    """Of the personal model, in whole 1/10,000; None where none was made."""
    shared: Annotated[int, Meta(ge=-(1 << 31), le=1 << 31)] | None = None
    """Of the version in service."""


class Trial(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=15):
    """What came of a released version beside the one in service, on the gateway's own held-out windows."""

    lineage: Lineage
    version: VersionNumber
    in_service: VersionNumber
    """The version in service after the trial: `version` where it took over."""
    windows: Annotated[int, Meta(ge=0, le=1 << 31)]
    """Held-out windows that both were scored on; 0 where none are at hand, or no comparison was asked for."""
    metric: Annotated[int, Meta(ge=-(1 << 31), le=1 << 31)]
    """Of the released version, in whole 1/10,000."""
    before: Annotated[int, Meta(ge=-(1 << 31), le=1 << 31)] | None = None
    """Of the version that was in service until then; None where there was none."""
    personal: PersonalTrial | None = None
    """Of the version in service after the trial, which is told again once it is known. None where none is kept."""


class AskChunks(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=8):
    """These chunks of a broadcast blob did not come."""

    transfer: ShortDigest
    missing: Annotated[tuple[Annotated[int, Meta(ge=0, le=1 << 24)], ...], Meta(min_length=1, max_length=MAX_MISSING)]


class Chunk(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=9):
    """A piece of a blob. Either direction."""

    transfer: ShortDigest
    index: Annotated[int, Meta(ge=0, le=1 << 24)]
    data: Annotated[bytes, Meta(min_length=1, max_length=128 * 1024)]


# -- coordinator to gateways ------------------------------------------------------------------------------------


def bitmap(places: Iterable[int]) -> int:
    """`Places` of the roster as a number. Raises OverflowError for a place beyond 63."""
    number = sum(1 << place for place in set(places))
    if number >> 64:
        raise OverflowError(f"expected places of 0 to 63, got {number.bit_length() - 1}")
    return number


def check_of(digest: bytes) -> int:
    """The `Check` of a model's digest."""
    return int.from_bytes(digest[:4], "big")


def ask_after_seconds(left_seconds: float) -> float:
    """How long a gateway waits for the word on its update before it asks, `left_seconds` before the round closes.

    Half of that, so that a short round costs no question, and one that did not arrive can still be sent again.
    """
    return max(5.0, left_seconds / 2)


class Slot(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=1):
    """Who is drawn, in a larger fleet: those whose hash(seed, name) mod slots is `slot`."""

    seed: Annotated[bytes, Meta(min_length=8, max_length=8)]
    slots: Annotated[int, Meta(ge=1, le=1 << 31)]
    slot: Annotated[int, Meta(ge=0, le=1 << 31)]

    def includes(self, gateway: str) -> bool:
        return self.slot_of(gateway) == self.slot

    def slot_of(self, gateway: str) -> int:
        """The slot of this cycle that the gateway falls into."""
        hashed = hashlib.sha256(self.seed + gateway.encode()).digest()
        return int.from_bytes(hashed[:8], "little") % self.slots


class RoundPlan(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=10):
    """All that changes from round to round, what became of the answers to the last one, and the delta to the base."""

    round_id: RoundId
    lineage: Lineage
    kind: RoundKind
    base: VersionNumber
    model: Check
    """Of the base version, to be checked after the delta is applied."""
    closes_after: Annotated[int, Meta(ge=-(1 << 40), le=1 << 40)]
    """Seconds from the lineage's start to the closing time, by the coordinator's clock."""
    drawn: Places | Slot
    accepted: Places
    """Whose update to the round before, `round_id - since`, was accepted. That stands in place of their receipts in a
    fleet of at most 64; 0 in a larger one, and where that round was of another lineage or asked for no updates."""
    since: Annotated[int, Meta(ge=1, le=1 << 40)]
    """Rounds since the task's last one, this one counted: more than 1 where those of other tasks lie between."""
    level: Level
    """At which the delta is coded, and the updates that this plan asks for."""
    delta: bytes | BlobRef | None = None
    """From version base - 1 to base; None at the start of a lineage."""
    scaler: Annotated[bytes, Meta(max_length=8 * 4096)] | None = None
    """Only in the first plan after a statistics round: means, then scales, little-endian float32."""
    release: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None
    """How many releases there have been of this task; a gateway that has heard of another number is born again, and its
    welcome says what that means for it. None where there was none."""

    @property
    def closes_at(self) -> int:
        """Whole unix seconds, by the coordinator's clock."""
        return self.lineage + self.closes_after

    @property
    def base_mark(self) -> int:
        """What an update repeats of the base."""
        return self.model & 127

    def draws(self, place: int, gateway: str) -> bool:
        """Whether the gateway at this place of the roster is asked."""
        if isinstance(self.drawn, Slot):
            return self.drawn.includes(gateway)
        return bool(self.drawn >> place & 1)

    def settles(self, round_id: int, place: int) -> bool:
        """Whether this says that the update which the gateway at this place sent to that round was accepted."""
        return round_id == self.round_id - self.since and bool(self.accepted >> place & 1)


class Release(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A version to be put in service, where it is no worse than what is there."""

    version: VersionNumber
    model: ShortDigest
    forced: bool
    """Put in service without a comparison: the plant went back to it."""


class PersonalPolicy(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """That each gateway makes a model of its own out of the version in service, and when it may score with it.

    No part of the task: the rounds and the model that they make are the same with it and without.
    """

    mode: Literal["head", "copy"]
    """What is fitted to the gateway's own windows: the last layer, on the shared ones before it, or all of it."""
    margin: Annotated[float, Meta(gt=0, lt=1)]
    """How much better it must be: in the metric itself, or of an error the share that it must be smaller by."""
    epochs: Annotated[int, Meta(ge=1, le=1000)]


class Assignment(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How a task stands, for one gateway that takes part in it."""

    lineage: Lineage
    counter: Count
    """Highest counter that the coordinator has on record for this gateway."""
    task: Task | None = None
    """None where the birth named the same, with the same lineage."""
    scaler: Annotated[bytes, Meta(max_length=8 * 4096)] | None = None
    plan: RoundPlan | None = None
    """The round in progress, if there is one."""
    releases: Annotated[int, Meta(ge=0, le=1 << 31)] = 0
    """As `RoundPlan.release` has it."""
    release: Release | None = None
    """The newest one that is for this gateway."""
    personal: PersonalPolicy | None = None
    """None: every gateway scores with the version in service."""


class Welcome(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=11):
    """Answer to a birth. No welcome, no training: it brings the time, the tasks and the state of affairs."""

    nonce: Nonce
    now: float
    """Unix seconds at the coordinator; the gateway adds its monotonic clock from here on."""
    roster: Annotated[int, Meta(ge=0, le=1 << 31)]
    spread: Annotated[int, Meta(ge=0, le=86_400)]
    """Seconds over which the fleet's gateways spread out when all come back at once: each waits for a random part."""
    tasks: Annotated[tuple[Assignment, ...], Meta(max_length=MAX_TASKS)]
    """Every task that this gateway takes part in; one that it holds and that is not here is over for it."""
    condition: Noted | None = None
    """What is on record of its machines; None where it has told of none."""

    def __post_init__(self) -> None:
        # Also false for what is not a number; the end is the year 2514, before calendars of 32 or 64 bits object.
        if not 0 <= self.now <= 1 << 34:
            raise ValueError(f"expected a time of 0 to {1 << 34} unix seconds, got {self.now}")


class Receipt(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=12):
    """The coordinator's word on an answer, after it is on disk. Of an accepted one the next plan may tell instead."""

    round_id: RoundId
    counter: Count
    verdict: Verdict


class Missing(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=13):
    """The coordinator lacks these chunks of the gateway's own blob."""

    transfer: ShortDigest
    missing: Annotated[tuple[Annotated[int, Meta(ge=0, le=1 << 24)], ...], Meta(min_length=1, max_length=MAX_MISSING)]


class CatchUp(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=14):
    """What takes a gateway from an earlier version to `number`, without loss."""

    lineage: Lineage
    kind: CatchUpKind
    start: VersionNumber
    number: VersionNumber
    model: ShortDigest
    """Of version `number`."""
    body: bytes | BlobRef
    until: Annotated[int, Meta(ge=-(1 << 40), le=1 << 40)] | None = None
    """Seconds from the lineage's start, by the coordinator's clock, after which nobody waits for it any more."""


class Roots(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=16):
    """The federation's roots since the one that a gateway has told of: each vouches for the next. It carries no seal
    of its own, and needs none."""

    nonce: Nonce
    roots: Annotated[tuple[Annotated[bytes, Meta(max_length=1024)], ...], Meta(min_length=1, max_length=MAX_ROOTS)]


Message: TypeAlias = (
    Birth
    | Leave
    | Update
    | Decline
    | Statistics
    | AskVerdict
    | AskModel
    | AskChunks
    | Chunk
    | Trial
    | RoundPlan
    | Welcome
    | Receipt
    | Missing
    | CatchUp
    | Roots
    | Condition
    | Noted
    | AlertOrders
    | FleetLimits
)

_HOMES: dict[tuple[Direction, Channel], Any] = {
    (Direction.UP, Channel.STATUS): Birth | Leave,
    (Direction.UP, Channel.ANSWER): Update | Decline,
    (Direction.UP, Channel.STATISTICS): Statistics,
    (Direction.UP, Channel.ASK): AskVerdict | AskModel | AskChunks,
    (Direction.UP, Channel.CHUNK): Chunk,
    (Direction.UP, Channel.TRIAL): Trial,
    (Direction.UP, Channel.CONDITION): Condition,
    (Direction.CMD, Channel.WELCOME): Welcome | Roots,
    (Direction.CMD, Channel.RECEIPT): Receipt | Missing,
    (Direction.CMD, Channel.CHUNK): Chunk,
    (Direction.CMD, Channel.CONDITION): Noted | AlertOrders | FleetLimits,
    (Direction.DOWN, Channel.PLAN): RoundPlan,
    (Direction.DOWN, Channel.CHUNK): Chunk,
    (Direction.DOWN, Channel.MODEL): CatchUp | Chunk,
}

_DECODERS = {home: msgspec.msgpack.Decoder(kind) for home, kind in _HOMES.items()}
_ENCODER = msgspec.msgpack.Encoder()


class Seal(IntEnum):
    """What stands behind a message's body, by the envelope's low half."""

    NONE = 0
    SIGNATURE = 1
    """Ed25519, of the coordinator (RFC 8032)."""
    MAC = 2
    """From a key that one gateway and the coordinator share."""


SEAL_BYTES = {Seal.NONE: 0, Seal.SIGNATURE: 64, Seal.MAC: 8}


@dataclass(frozen=True)
class Sealed:
    """A message's bytes as they came, taken apart."""

    plain: bytes
    """As `from_bytes` takes it: the envelope says that nothing stands behind the body."""
    seal: Seal
    trailer: bytes = field(repr=False)
    covered: bytes = field(repr=False)
    """What the seal is over: all but itself."""


def split(data: bytes) -> Sealed:
    """Takes the seal off; raises MessageError where the envelope or the length cannot be."""
    if not data:
        raise MessageError("empty")
    version, low = data[0] >> 4, data[0] & 15
    if version != WIRE_VERSION:
        raise MessageError(f"wire version {version}, {WIRE_VERSION} expected")
    if low not in SEAL_BYTES:
        raise MessageError(f"seal of kind {low}, 0 to {max(SEAL_BYTES)} expected")
    seal = Seal(low)
    size = SEAL_BYTES[seal]
    if len(data) <= size:
        raise MessageError(f"{len(data)} bytes with a seal of {size}")
    cut = len(data) - size
    return Sealed(bytes([WIRE_VERSION << 4]) + data[1:cut], seal, data[cut:], data[:cut])


def sealed(plain: bytes, seal: Seal) -> bytes:
    """What a seal of this kind is to be made over, from what `to_bytes` gave; the seal is put behind it."""
    return bytes([WIRE_VERSION << 4 | seal]) + plain[1:]


def kinds_on(spec: TopicSpec) -> tuple[type[msgspec.Struct], ...]:
    """The types of message that stand on a topic of this row; none where people's tools alone read."""
    home = _HOMES.get((spec.direction, spec.channel))
    return () if home is None else get_args(home) or (home,)


def to_bytes(message: Message) -> bytes:
    body = bytearray(_ENCODER.encode(message))
    empty = 0
    for name in reversed(message.__struct_fields__):
        if getattr(message, name) is not None:
            break
        empty += 1
    if empty and body[0] >> 4 == 9:
        # An array of at most 15 says its length in its first byte, and each None at the end is one byte, nil.
        del body[-empty:]
        body[0] -= empty
    return bytes([WIRE_VERSION << 4]) + body


def from_bytes(spec: TopicSpec, data: bytes) -> Message:
    """The message that `data`, without a seal, holds on a topic of this row; raises MessageError and nothing else."""
    if len(data) > spec.max_bytes:
        raise MessageError(f"{len(data)} bytes, at most {spec.max_bytes} expected")
    if not data:
        raise MessageError("empty")
    version, low = data[0] >> 4, data[0] & 15
    if version != WIRE_VERSION:
        raise MessageError(f"wire version {version}, {WIRE_VERSION} expected")
    if low != Seal.NONE:
        raise MessageError(f"seal of kind {low}, none expected: here nothing is sealed")
    decoder = _DECODERS.get((spec.direction, spec.channel))
    if decoder is None:
        raise MessageError(f"nothing is read from {spec.direction.value}/…/{spec.channel.value}")
    try:
        return decoder.decode(memoryview(data)[1:])  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, ValueError, RecursionError, UnicodeDecodeError) as error:
        raise MessageError(f"not a message: {error}") from None
