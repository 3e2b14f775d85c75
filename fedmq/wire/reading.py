"""Bytes on a topic as fields that people can read. Pure: what came and when goes in, a `Seen` comes out.

Owns the walk through a message by its type: each field with its name, its value and the bytes that it takes on the
wire. The walk knows no message by name, so that a field that is added to a type shows by itself. `Watch` remembers the
tasks, plans and transfers that went by, to say of a payload what it is.

The rule it keeps: nothing is hidden. msgspec passes over elements behind those that a type has, as it must for newer
senders; here each of them is shown, and marked as unknown. What is no message at all is shown with its size and digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from fedmq_protocol.messages import (
    SEAL_BYTES,
    Birth,
    BlobRef,
    CatchUp,
    Chunk,
    Decline,
    Message,
    MessageError,
    RoundPlan,
    Seal,
    Statistics,
    Update,
    Welcome,
    from_bytes,
    split,
)
from fedmq_protocol.signing import seal_of
from fedmq_protocol.task import Codec, Task, short
from fedmq_protocol.topics import Channel, Topic, parse
from fedmq_protocol.transfer import BUNDLE_CHUNK_BYTES
from fedmq_protocol.vitals import ToldVitals
from msgspec import inspect

from fedmq.wire.fields import ABOUT

__all__ = ["Field", "Seen", "Watch"]

REMEMBERED = 256
"""Tasks, plans and transfers of which the newest are kept, each."""

SHOWN = 200
"""Characters of a text, and elements of a list, that are shown."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One value of a message, and what it is made of."""

    name: str
    key: str
    """Type and field as `fields.ABOUT` has them; empty for what stands in a list."""
    size: int
    """Bytes on the wire, with MessagePack's own."""
    value: Any
    """As JSON could say it; None where `inner` says it, or nothing was sent."""
    inner: tuple[Field, ...] = ()
    problem: str = ""
    """Why this version cannot say what it is; empty where it can."""

    def walk(self) -> Iterator[Field]:
        """Itself and everything within."""
        yield self
        for field in self.inner:
            yield from field.walk()


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One message that went by."""

    at: float
    """Unix seconds, by the observer's clock."""
    topic: str
    direction: str
    """`up`, `down`, `cmd`; `?` on a topic that is none of the table."""
    gateway: str
    channel: str
    kind: str
    """Type of the message; `?` where it is none."""
    size: int
    """Bytes of the payload."""
    retained: bool
    seal: Seal
    fields: tuple[Field, ...]
    overhead: int
    """Bytes that are no field and no trailer: the envelope and the type's number."""
    notes: tuple[str, ...] = ()
    problem: str = ""
    """Why it is no message of ours; empty where it is one."""

    @property
    def seal_bytes(self) -> int:
        return SEAL_BYTES[self.seal]

    @property
    def unexplained(self) -> tuple[Field, ...]:
        """Fields at any depth that this version cannot explain."""
        return tuple(field for top in self.fields for field in top.walk() if field.problem)


K = TypeVar("K")
V = TypeVar("V")


class Watch:
    """Reads one message after another, and remembers what later ones refer to."""

    def __init__(self) -> None:
        self._tasks: dict[int, Task] = {}
        self._plans: dict[int, RoundPlan] = {}
        self._transfers: dict[bytes, tuple[int, str]] = {}
        """Chunks and what they are of, by the short digest."""
        self._seals = False
        """Whether a sealed message went by: then this federation seals."""

    def read(self, text: str, payload: bytes, *, retained: bool, at: float) -> Seen:
        """Never raises: what cannot be read is told of."""
        try:
            where = parse(text)
        except ValueError as error:
            return self._strange(text, None, payload, retained, at, str(error))
        if not payload:
            return self._seen(where, text, payload, retained, at, kind="nothing", notes=("takes back what was kept",))
        if where.channel in (Channel.REPORT, Channel.FLEET):
            return self._report(where, text, payload, retained, at)
        try:
            taken = split(payload)
            plain = taken.plain
            message = from_bytes(where.spec, plain)
        except MessageError as error:
            return self._strange(text, where, payload, retained, at, str(error))
        fields = _struct(_type_info(type(message)), plain[1:]) + _hidden(plain[1:])
        covered = sum(field.size for field in fields)
        return self._seen(
            where, text, payload, retained, at,
            kind=type(message).__name__,
            seal=taken.seal,
            fields=fields,
            overhead=len(payload) - len(taken.trailer) - covered,
            notes=(*self._explain(where, message), *_vitals(message), *self._unsealed(where, message, taken.seal)),
        )  # fmt: skip

    def _seen(
        self, where: Topic | None, text: str, payload: bytes, retained: bool, at: float, *, kind: str,
        seal: Seal = Seal.NONE, fields: tuple[Field, ...] = (), overhead: int = 0, notes: tuple[str, ...] = (),
        problem: str = "",
    ) -> Seen:  # fmt: skip
        return Seen(
            at=at,
            topic=text,
            direction="?" if where is None else where.direction.value,
            gateway="" if where is None or where.gateway is None else where.gateway,
            channel="?" if where is None else where.channel.value,
            kind=kind,
            size=len(payload),
            retained=retained,
            seal=seal,
            fields=fields,
            overhead=overhead,
            notes=notes,
            problem=problem,
        )

    def _strange(self, text: str, where: Topic | None, payload: bytes, retained: bool, at: float, problem: str) -> Seen:
        """What it holds, as far as MessagePack says it of its own."""
        whole = Field(name="payload", key="", size=len(payload), value=_told(payload), problem="not a message of ours")
        return self._seen(where, text, payload, retained, at, kind="?", fields=(whole,), problem=problem)

    def _report(self, where: Topic, text: str, payload: bytes, retained: bool, at: float) -> Seen:
        """JSON for people's tools: its keys are its fields."""
        try:
            values = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
            fields = tuple(
                Field(name=key, key="", size=len(bytes(raw)), value=_told(msgspec.json.decode(raw)))
                for key, raw in values.items()
            )
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return self._strange(text, where, payload, retained, at, f"not a JSON object: {error}")
        covered = sum(field.size for field in fields)
        return self._seen(
            where, text, payload, retained, at, kind=where.channel.value, fields=fields, overhead=len(payload) - covered
        )

    def _unsealed(self, where: Topic, message: Message, seal: Seal) -> tuple[str, ...]:
        """Where a seal is not the one that receivers ask for. Whether it is genuine, only they can say."""
        self._seals = self._seals or seal is not Seal.NONE
        if not self._seals or seal is seal_of(where, message):
            return ()
        return (f"! seal {seal.name.lower()}, {seal_of(where, message).name.lower()} expected: its receivers drop it",)

    # -- what it means ------------------------------------------------------------------------------------------

    def _explain(self, where: Topic, message: msgspec.Struct) -> Iterator[str]:
        match message:
            case Welcome():
                for assignment in message.tasks:
                    if assignment.task is not None:
                        self._note_task(assignment.lineage, assignment.task)
                    if assignment.plan is not None:
                        _keep(self._plans, assignment.plan.round_id, assignment.plan)
                        yield from self._explain_plan(assignment.plan)
            case RoundPlan():
                _keep(self._plans, message.round_id, message)
                yield from self._explain_plan(message)
            case Update():
                plan = self._plans.get(message.round_id)
                yield self._coded(f"update of {where.gateway} to round {message.round_id}", message.payload, plan,
                                  up=True)  # fmt: skip
            case CatchUp():
                way = message.kind.name.lower()
                yield self._coded(f"catch-up ({way}) to version {message.number}", message.body, None, up=False)
            case Statistics():
                features = len(message.mean) // 4
                yield f"mean and spread of {features:,} features over {message.count:,} windows: sums, no window"
            case Chunk():
                count, what = self._transfers.get(message.transfer, (0, ""))
                yield (
                    f"chunk {message.index + 1:,} of {count:,} of the {what}"
                    if what
                    else f"chunk {message.index + 1:,} of a transfer whose beginning was not seen"
                )

    def _explain_plan(self, plan: RoundPlan) -> Iterator[str]:
        if plan.delta is not None:
            yield self._coded(f"delta to version {plan.base}", plan.delta, plan, up=False)

    def _note_task(self, lineage: int, task: Task) -> None:
        _keep(self._tasks, lineage, task)
        if task.model.bundle:
            count = -(-task.model.bundle_bytes // BUNDLE_CHUNK_BYTES)
            _keep(self._transfers, short(task.model.bundle), (count, f"bundle of task {task.name}"))

    def _coded(self, what: str, payload: bytes | BlobRef, plan: RoundPlan | None, *, up: bool) -> str:
        """What a payload is, and how it travels. The level of a catch-up stands in its body, one for each delta."""
        if isinstance(payload, BlobRef):
            count = -(-payload.length // payload.chunk_bytes)
            _keep(self._transfers, short(payload.digest), (count, what))
            size, way = payload.length, f", in {count:,} chunks"
        else:
            size, way = len(payload), ""
        task = None if plan is None else self._tasks.get(plan.lineage)
        if plan is None or task is None:
            unknown = "" if not up and plan is None else "; its task was not seen yet, so its density is not known"
            return f"{what}: coded changes of the model's parameters, {size:,} bytes{way}{unknown}"
        count = task.model.parameters
        codec = (task.up if up else task.down).at(plan.level)
        coded = f"coded delta of {count:,} parameters, {_density(codec, count)}"
        return f"{what}: {coded}; {size:,} bytes{way}, {4 * count:,} as float32"


def _vitals(message: Message) -> Iterator[str]:
    if isinstance(message, Birth | Update | Decline | Statistics) and message.vitals is not None:
        yield f"vitals: {ToldVitals.of(message.vitals)}"


def _density(codec: Codec, parameters: int) -> str:
    bits = "float32" if codec.bits == 32 else f"{codec.bits} bit{'s' if codec.bits > 1 else ''} each"
    if codec.density == 1:
        return f"all of them, {bits}"
    return f"at most {max(1, round(codec.density * parameters)):,} of them ({codec.density:.3%}), {bits}"


def _keep(where: dict[K, V], key: K, value: V) -> None:
    where.pop(key, None)
    where[key] = value
    if len(where) > REMEMBERED:
        del where[next(iter(where))]


# -- the walk ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _type_info(cls: type[msgspec.Struct]) -> inspect.StructType:
    told = inspect.type_info(cls)
    assert isinstance(told, inspect.StructType)
    return told


def _struct(kind: inspect.Type, data: bytes) -> tuple[Field, ...]:
    """The fields of a struct that is coded by position; those that were left out at its end are left out here."""
    assert isinstance(kind, inspect.StructType)
    elements = [bytes(raw) for raw in msgspec.msgpack.decode(data, type=list[msgspec.Raw])]
    if kind.tag is not None:
        elements = elements[1:]
    fields = [
        _value(field.name, f"{kind.cls.__name__}.{field.name}", field.type, element)
        for field, element in zip(kind.fields, elements, strict=False)
    ]
    for place, element in enumerate(elements[len(kind.fields) :], start=len(kind.fields) + 1):
        problem = f"element {place} of {kind.cls.__name__}, which has {len(kind.fields)} fields in this version"
        fields.append(_unknown(f"#{place}", element, problem))
    return tuple(fields)


def _hidden(body: bytes) -> tuple[Field, ...]:
    """Nothing, where the values alone make these bytes. MessagePack can say one value in several ways, and a map can
    say a key twice: a place to hide something that no decoder shows."""
    try:
        plainest = len(_ENCODER.encode(values := msgspec.msgpack.decode(body)))
        if _ENCODER.encode(values) == body:
            return ()
        said = f"the same values take {plainest:,} bytes as fedmq codes them, and these are {len(body):,}"
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        said = f"it cannot be coded again: {error}"
    return (Field(name="coding", key="", size=0, value=None, problem=f"not as fedmq codes: {said}"),)


_ENCODER = msgspec.msgpack.Encoder()


def _value(name: str, key: str, kind: inspect.Type, data: bytes) -> Field:
    """One value by its type. A type that messages have not had so far is shown, and marked."""
    problem = "a field of which nobody has said what it tells" if key and key not in ABOUT else ""
    chosen = _choose(kind, data)
    inner: tuple[Field, ...] = ()
    value: Any = None
    match chosen:
        case inspect.StructType():
            inner = _struct(chosen, data)
        case inspect.VarTupleType() | inspect.ListType():
            elements = [bytes(raw) for raw in msgspec.msgpack.decode(data, type=list[msgspec.Raw])]
            if not elements or _is_plain(chosen.item_type):
                value = _told(msgspec.msgpack.decode(data))
            else:
                inner = tuple(_value(str(at), "", chosen.item_type, one) for at, one in enumerate(elements, start=1))
        case inspect.EnumType():
            decoded = msgspec.msgpack.decode(data)
            value = chosen.cls(decoded).name.lower() if decoded in [one.value for one in chosen.cls] else decoded
        case inspect.NoneType() | inspect.BoolType() | inspect.IntType() | inspect.FloatType() | inspect.StrType():
            value = _told(msgspec.msgpack.decode(data))
        case inspect.BytesType() | inspect.LiteralType() | inspect.DictType():
            value = _told(msgspec.msgpack.decode(data))
        case _:
            return _unknown(name, data, problem or f"of a type that this version cannot read ({_name(kind)})", key)
    return Field(name=name, key=key, size=len(data), value=value, inner=inner, problem=problem)


def _name(kind: inspect.Type) -> str:
    return type(kind).__name__


def _is_plain(kind: inspect.Type) -> bool:
    return isinstance(
        kind, inspect.IntType | inspect.FloatType | inspect.StrType | inspect.BoolType | inspect.BytesType
    )


def _choose(kind: inspect.Type, data: bytes) -> inspect.Type | None:
    """Of a union the type that is there, by MessagePack's first byte and a struct's number; None where none fits."""
    if not isinstance(kind, inspect.UnionType):
        return kind
    fits = [one for one in kind.types if _FITS.get(type(one), _never)(data[0])]
    structs = [one for one in fits if isinstance(one, inspect.StructType)]
    if len(structs) > 1:
        tag = msgspec.msgpack.decode(msgspec.msgpack.decode(data, type=list[msgspec.Raw])[0])
        return next((one for one in structs if one.tag == tag), None)
    return fits[0] if fits else None


def _never(first: int) -> bool:
    return False


def _is_array(first: int) -> bool:
    return first >> 4 == 9 or first in (0xDC, 0xDD)


def _is_int(first: int) -> bool:
    return first < 0x80 or first >= 0xE0 or 0xCC <= first <= 0xD3


_FITS: dict[type[inspect.Type], Callable[[int], bool]] = {
    inspect.NoneType: lambda first: first == 0xC0,
    inspect.BoolType: lambda first: first in (0xC2, 0xC3),
    inspect.IntType: _is_int,
    inspect.EnumType: _is_int,
    inspect.FloatType: lambda first: first in (0xCA, 0xCB) or _is_int(first),
    inspect.StrType: lambda first: 0xA0 <= first <= 0xBF or first in (0xD9, 0xDA, 0xDB),
    inspect.BytesType: lambda first: first in (0xC4, 0xC5, 0xC6),
    inspect.StructType: _is_array,
    inspect.VarTupleType: _is_array,
    inspect.ListType: _is_array,
    inspect.DictType: lambda first: first >> 4 == 8 or first in (0xDE, 0xDF),
}
"""By the first byte of a value (MessagePack's specification, section "Formats")."""


def _unknown(name: str, data: bytes, problem: str, key: str = "") -> Field:
    try:
        value = _told(msgspec.msgpack.decode(data))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value = _told(data)
    return Field(name=name, key=key, size=len(data), value=value, problem=problem)


def _told(value: Any) -> Any:
    """As JSON can say it: bytes by their length and digest, what is long cut short, with its length."""
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return value if len(value) <= SHOWN else f"{value[:SHOWN]}… ({len(value):,} characters)"
        case bytes() | bytearray() | memoryview():
            data = bytes(value)
            return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()[:16]}
        case list() | tuple():
            shown = [_told(one) for one in value[:SHOWN]]
            return shown if len(value) <= SHOWN else [*shown, f"… ({len(value):,} in all)"]
        case dict():
            return {str(_told(key)): _told(one) for key, one in value.items()}
        case _:
            return f"{type(value).__name__}: {str(value)[:SHOWN]}"
