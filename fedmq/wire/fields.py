"""What each field of each message tells: one line a field, beside the types of `fedmq_protocol.messages`.

Owns the words, and the table of docs/data-flows.md that is rendered from them, from the types and from the topic
table. Refuses to know how bytes are read (see `reading`).

A field that has no line here is told of as such wherever it is shown, and a test fails: nothing can be added to the
wire without somebody who says what it tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import msgspec
from fedmq_protocol.messages import kinds_on
from fedmq_protocol.topics import TABLE, Direction, TopicSpec
from msgspec import inspect

__all__ = ["ABOUT", "BEGIN", "END", "About", "Leaf", "Origin", "leaves", "markdown", "put_markdown", "structs_in"]

BEGIN, END = "<!-- begin: fedmq wire fields -->", "<!-- end: fedmq wire fields -->"
"""What stands between them in docs/data-flows.md is rendered."""


class Origin(Enum):
    """Where what a field holds comes from."""

    DATA = "data"
    """Computed from recordings: sums, scores, counts, a trained model's changes. Never the recordings themselves."""
    MACHINE = "machine"
    """How the gateway, its link or its sensors are."""
    NAME = "name"
    """A word that people have chosen."""
    PROTOCOL = "protocol"
    """Numbers of rounds and versions, times, digests: what keeps both ends in step."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What is said of one field."""

    tells: str
    origin: Origin
    float32: bool = False
    """Whether its bytes are little-endian float32."""


def _data(tells: str, *, float32: bool = False) -> About:
    return About(tells=tells, origin=Origin.DATA, float32=float32)


def _machine(tells: str) -> About:
    return About(tells=tells, origin=Origin.MACHINE)


def _name(tells: str) -> About:
    return About(tells=tells, origin=Origin.NAME)


def _protocol(tells: str, *, float32: bool = False) -> About:
    return About(tells=tells, origin=Origin.PROTOCOL, float32=float32)


_SENT = "bytes that its process has sent so far: how busy it was, and nothing of what it measured"
_RECEIVED = "bytes that its process has received so far"
_VITALS = (
    "how full its battery is, whether there is mains power, the kind of its link and whether that is metered, in one"
    " number; not sent with `tell_vitals = false`"
)
_BEYOND = "what TCP/IP and TLS have put around these bytes, in 64 bytes: pings and reconnects are in it"

ABOUT: dict[str, About] = {
    # -- a gateway says -----------------------------------------------------------------------------------------
    "Birth.nonce": _protocol("8 random bytes of this start of the process"),
    "Birth.software": _machine("version of fedmq that it runs"),
    "Birth.engines": _machine("runtimes that are installed"),
    "Birth.signal_samples": _data(
        "labels that its recordings have, and how many samples of signal of each: which faults it has seen, and for"
        " how long"
    ),
    "Birth.sent": _machine(_SENT),
    "Birth.received": _machine(_RECEIVED),
    "Birth.held": _protocol("the tasks that it has, and how far it is with each"),
    "Birth.tags": _name("what the plant calls it: words of its settings"),
    "Birth.sensors": _machine("how the sensors of its bridge are, and their names"),
    "Birth.root": _protocol("which version of the federation's keys it believes"),
    "Birth.card": _protocol("its public key, with the issuer's signature; the private one never leaves"),
    "Birth.beyond": _machine(_BEYOND),
    "Birth.vitals": _machine(_VITALS),
    "Held.lineage": _protocol("which line of versions"),
    "Held.version": _protocol("which version it has"),
    "Held.task": _protocol("short digest of the task as it knows it"),
    "Held.counter": _protocol("number of its last update"),
    "SensorHealth.name": _name("the sensor, as the bridge's settings call it"),
    "SensorHealth.rate_pct": _machine("samples that came, of those that it promises"),
    "SensorHealth.silent_seconds": _machine("for how long it has been silent"),
    "SensorHealth.lost_frames": _machine("frames that did not come"),
    "SensorHealth.failed": _machine("checksums that did not hold"),
    "SensorHealth.clipping": _machine("whether it reaches the end of its range"),
    "SensorHealth.flat": _machine("whether it says the same all the time"),
    "Leave.nonce": _protocol("which start of the process has ended"),
    "Leave.clean": _machine("whether it was stopped in order, or its connection was lost"),
    "Leave.sent": _machine(_SENT),
    "Leave.received": _machine(_RECEIVED),
    "Leave.beyond": _machine(_BEYOND),
    "Update.round_id": _protocol("the round that it answers"),
    "Update.base": _protocol("7 bits of the digest of the model that it trained from"),
    "Update.counter": _protocol("number of the update, which never goes back"),
    "Update.payload": _data(
        "the coded delta: how its training has changed the model's parameters, most often only the largest part, with"
        " what earlier rounds left. It can give away training data in part"
    ),
    "Update.sent": _machine(_SENT),
    "Update.received": _machine(_RECEIVED),
    "Update.loss": _data("mean training loss over its windows: how well the model fits them"),
    "Update.evaluation": _data(
        "score of the shared model on its held-out windows; not sent where the coordinator tests"
    ),
    "Update.beyond": _machine(_BEYOND),
    "Update.cpu": _machine("CPU time that its process spent on this answer, in 1/100 s"),
    "Update.vitals": _machine(_VITALS),
    "Evaluation.metric": _data("the metric, in 1/10,000"),
    "Evaluation.loss": _data("the loss, in 1/10,000"),
    "Evaluation.windows": _data("how many windows it has held out"),
    "BlobRef.digest": _protocol("sha256 of what follows in chunks"),
    "BlobRef.length": _protocol("how many bytes follow in chunks"),
    "BlobRef.chunk_bytes": _protocol("size of a chunk"),
    "Decline.round_id": _protocol("the round that it answers"),
    "Decline.reason": _machine(
        "which gate is shut: of what was measured, `vitals` tells battery and link, and no more"
    ),
    "Decline.sent": _machine(_SENT),
    "Decline.received": _machine(_RECEIVED),
    "Statistics.round_id": _protocol("the round that it answers"),
    "Decline.beyond": _machine(_BEYOND),
    "Decline.cpu": _machine("CPU time that its process spent before it declined, in 1/100 s"),
    "Decline.vitals": _machine(_VITALS),
    "Statistics.count": _data("how many windows it has"),
    "Statistics.mean": _data(
        "mean of each feature over all of its windows: how strongly and in which bands its machines vibrate",
        float32=True,
    ),
    "Statistics.m2": _data(
        "sum of the squared differences from that mean, of each feature: their spread", float32=True
    ),
    "Statistics.sent": _machine(_SENT),
    "Statistics.received": _machine(_RECEIVED),
    "Statistics.beyond": _machine(_BEYOND),
    "Statistics.cpu": _machine("CPU time that its process spent on this answer, in 1/100 s"),
    "Statistics.vitals": _machine(_VITALS),
    "AskVerdict.round_id": _protocol("the round of the update that it asks about"),
    "AskVerdict.counter": _protocol("number of that update"),
    "AskVerdict.digest": _protocol("short digest of its payload"),
    "AskModel.lineage": _protocol("which line of versions"),
    "AskModel.version": _protocol("the version that it has"),
    "AskModel.wanted": _protocol("the released version that it asks for"),
    "AskChunks.transfer": _protocol("short digest of what it receives in chunks"),
    "AskChunks.missing": _protocol("numbers of the chunks that did not come"),
    "Chunk.transfer": _protocol("short digest of the whole"),
    "Chunk.index": _protocol("which piece"),
    "Chunk.data": _data(
        "from a gateway: a piece of a coded delta, as in Update.payload, where that is too large for one message; to"
        " gateways: a piece of a model or of a bundle"
    ),
    "Trial.lineage": _protocol("which line of versions"),
    "Trial.version": _protocol("the released version that was tried"),
    "Trial.in_service": _protocol("the version that serves now"),
    "Trial.windows": _data("how many held-out windows both were scored on"),
    "Trial.metric": _data("score of the released version on them, in 1/10,000"),
    "Trial.before": _data("score of the version that served until then, in 1/10,000"),
    "Trial.personal": _data("how its personal model compares; the personal model itself never leaves"),
    "PersonalTrial.outcome": _data("whether the personal model serves, or why not"),
    "PersonalTrial.windows": _data("how many held-out windows it was scored on"),
    "PersonalTrial.metric": _data("its score, in 1/10,000"),
    "PersonalTrial.shared": _data("score of the version in service on the same windows"),
    "Condition.counter": _protocol("number of the message since the process started"),
    "Condition.book": _protocol("4 random bytes of the watch's alertbook"),
    "Condition.since": _protocol("number of the last change of an alert that was told before"),
    "Condition.upto": _protocol("and of the last one that is told now"),
    "Condition.alerts": _data("its watch's alerts that have changed, as they are now"),
    "Condition.anew": _protocol("whether machines, summaries and spreads that were told before count no more"),
    "Condition.machines": _machine("how its watch's machines are, where that has changed"),
    "Condition.gone": _name("machines that are watched no more"),
    "Condition.summaries": _data("what is normal at its machines of each kind, once it is learnt"),
    "Condition.done": _protocol("what came of orders for alerts"),
    "Condition.limits": _protocol("short digest of the fleet's limits that its watch has"),
    "Condition.spreads": _data("how its machines of each kind hold to what is normal for them, where that has changed"),
    "AlertState.number": _protocol("number of the alert in its book"),
    "AlertState.machine": _name("the machine, as the plant calls it"),
    "AlertState.kind": _data("what it goes by: velocity, a bearing's line, a learnt limit, a model"),
    "AlertState.state": _data("whether somebody is on it, and what was said of it"),
    "AlertState.severity": _data("warning or alarm"),
    "AlertState.level": _data("the worst level, in 1/100 of the limit"),
    "AlertState.sensor": _name("the sensor, as the bridge's settings call it"),
    "AlertState.label": _data("the fault that a model or a bearing's line names"),
    "AlertState.verdict": _data(
        "the fault that somebody has confirmed: a label of recordings, or `other:` and a cause in their own words"
    ),
    "AlertState.opened_at": _data("when it was raised"),
    "AlertState.from_at": _data("since when its cause has been there"),
    "AlertState.to_at": _data("until when"),
    "AlertState.evidence": _data("what it goes by, six things at most"),
    "Measured.name": _data("what was measured, such as velocity"),
    "Measured.value": _data("its value over two seconds of signal, and no sample of it"),
    "Measured.limit": _data("the limit that held for it"),
    "Measured.unit": _protocol("its unit"),
    "Measured.was": _data("what is typical of the machine"),
    "Measured.trend": _data(
        "of the first thing measured, at most 24 means over stretches of the machine's time: seconds from when the"
        " alert was raised, and value, in turn",
        float32=True,
    ),
    "Measured.by": _protocol("whether the limit is the machine's own or the fleet's"),
    "MachineState.name": _name("the machine, as the plant calls it"),
    "MachineState.kind": _name("what it is, such as pump"),
    "MachineState.state": _data("whether it stands, starts, runs or stops: when production is on"),
    "MachineState.zone": _data("zone of its vibration, A to D of ISO 20816-3"),
    "MachineState.learnt_pct": _data("how far what is normal for it is learnt"),
    "MachineState.level": _data("its worst level, in 1/100 of the limit"),
    "MachineState.at": _data("time of the last window that was judged"),
    "MachineState.drift": _data("measures that are not distributed as they were"),
    "MachineState.event": _name("what was done to it, such as bearing-changed"),
    "MachineState.baseline_at": _data("and when"),
    "SummaryOf.kind": _name("kind of machine"),
    "SummaryOf.band": _machine("band of speed and load, by the machine's settings"),
    "SummaryOf.measure": _data("what was measured"),
    "SummaryOf.sketch": _data(
        "how many windows of healthy running lay in which range of values, 2 % wide, over all machines of the kind: how"
        " strongly they vibrate, and for how long they have run"
    ),
    "SpreadOf.kind": _name("kind of machine"),
    "SpreadOf.band": _machine("band of speed and load, by the machine's settings"),
    "SpreadOf.measure": _data("what was measured"),
    "SpreadOf.machines": _machine("over how many machines it is the mean"),
    "SpreadOf.windows": _data("of about how many windows: how far it may be chance"),
    "SpreadOf.shares": _data(
        "which share of the windows of a typical day lay in which tenth of what is normal for their machine, per mille:"
        " whether it vibrates more or less than it did, and not how strongly"
    ),
    "Done.key": _protocol("which order"),
    "Done.done": _protocol("whether it was carried out"),
    "Done.text": _data("why not"),
    # -- the coordinator says -----------------------------------------------------------------------------------
    "Noted.book": _protocol("the alertbook that is on record"),
    "Noted.cursor": _protocol("number of the last change of an alert that is on record"),
    "Noted.check": _protocol("digest of the machines, summaries and spreads that are on record"),
    "Noted.counter": _protocol("the message that it answers"),
    "AlertOrders.orders": _protocol("what people have said of alerts"),
    "AlertOrder.key": _protocol("8 bytes by which a repeat is known"),
    "AlertOrder.book": _protocol("the alertbook that the alert stands in"),
    "AlertOrder.alert": _protocol("number of the alert"),
    "AlertOrder.what": _protocol("somebody is on it, it was a fault, or it was nothing"),
    "AlertOrder.fault": _name("which fault, or `other:` and a cause in their own words"),
    "AlertOrder.who": _name("who said so"),
    "AlertOrder.at": _protocol("and when"),
    "FleetLimits.limits": _data("what is normal at most gateways, for kinds of machines that this one has"),
    "FleetLimit.kind": _name("kind of machine"),
    "FleetLimit.band": _machine("band of speed and load"),
    "FleetLimit.measure": _data("what was measured"),
    "FleetLimit.gateways": _data("how many gateways have learnt it"),
    "FleetLimit.quantiles": _data("medians over gateways of quantiles of theirs", float32=True),
    "Welcome.condition": _protocol("how much of the gateway's machines is on record"),
    "RoundPlan.round_id": _protocol("the round"),
    "RoundPlan.lineage": _protocol("which line of versions"),
    "RoundPlan.kind": _protocol("training, statistics, or the last plan of a run"),
    "RoundPlan.base": _protocol("the version to train from"),
    "RoundPlan.model": _protocol("4 bytes of its digest"),
    "RoundPlan.closes_after": _protocol("when the round closes"),
    "RoundPlan.drawn": _protocol("who is asked: a bit for each gateway, or a slot of a hash"),
    "RoundPlan.accepted": _protocol("whose update to the round before was accepted"),
    "RoundPlan.since": _protocol("rounds since the task's last one"),
    "RoundPlan.level": _protocol("how dense the deltas of this round are"),
    "RoundPlan.delta": _data("what all accepted updates together have changed in the model, coded"),
    "RoundPlan.scaler": _data("centre and scale of each feature: medians over gateways", float32=True),
    "RoundPlan.release": _protocol("how many versions were released so far"),
    "Slot.seed": _protocol("seed of the draw"),
    "Slot.slots": _protocol("how many slots"),
    "Slot.slot": _protocol("the slot that is asked"),
    "Welcome.nonce": _protocol("the birth that it answers"),
    "Welcome.now": _protocol("the coordinator's time"),
    "Welcome.roster": _protocol("the gateway's place in plans"),
    "Welcome.spread": _protocol("over how many seconds gateways spread out when all come back"),
    "Welcome.tasks": _protocol("the tasks that the gateway takes part in"),
    "Assignment.lineage": _protocol("which line of versions"),
    "Assignment.counter": _protocol("number of the gateway's last update on record"),
    "Assignment.task": _protocol("the whole task: model, windows, recipe, codec"),
    "Assignment.scaler": _data("centre and scale of each feature: medians over gateways", float32=True),
    "Assignment.plan": _protocol("the plan at hand"),
    "Assignment.releases": _protocol("how many versions were released so far"),
    "Assignment.release": _protocol("the version to be put in service"),
    "Assignment.personal": _protocol("whether and how gateways make a model of their own"),
    "Release.version": _protocol("which version"),
    "Release.model": _protocol("short digest of it"),
    "Release.forced": _protocol("whether it is put in service without a comparison"),
    "PersonalPolicy.mode": _protocol("which part of the model is fitted"),
    "PersonalPolicy.margin": _protocol("how much better a personal model must be"),
    "PersonalPolicy.epochs": _protocol("passes over the gateway's windows"),
    "Receipt.round_id": _protocol("the round of the answer"),
    "Receipt.counter": _protocol("number of the update"),
    "Receipt.verdict": _protocol("what became of it"),
    "Missing.transfer": _protocol("short digest of what the gateway sends in chunks"),
    "Missing.missing": _protocol("numbers of the chunks that did not come"),
    "CatchUp.lineage": _protocol("which line of versions"),
    "CatchUp.kind": _protocol("a chain of deltas, their sum, or the difference to the start"),
    "CatchUp.start": _protocol("the version that it goes on from"),
    "CatchUp.number": _protocol("the version that it leads to"),
    "CatchUp.model": _protocol("short digest of that version"),
    "CatchUp.body": _data("what the federation has changed in the model, coded"),
    "CatchUp.until": _protocol("until when somebody waits for it"),
    "Roots.nonce": _protocol("the birth that it answers"),
    "Roots.roots": _protocol("the federation's public keys since then, each version signed by the one before"),
    # -- the task, which a welcome carries ----------------------------------------------------------------------
    "Task.name": _name("name of the task"),
    "Task.model": _protocol("the model's kind and sizes"),
    "Task.classes": _name("labels that the model tells apart"),
    "Task.windowing": _protocol("how recordings are cut into windows and features"),
    "Task.recipe": _protocol("how gateways train"),
    "Task.up": _protocol("how gateways code what they send"),
    "Task.down": _protocol("how the coordinator codes what it sends"),
    "Task.grid_bits": _protocol("step of a parameter"),
    "Task.seed": _protocol("seed of the first parameters"),
    "Task.initial": _protocol("short digest of the first parameters"),
    "Task.min_windows": _protocol("windows that a gateway must have"),
    "Task.max_norm": _protocol("length that an update may have"),
    "Task.held_out_reports": _protocol("whether updates bring the score on held-out windows"),
    "Task.anomaly_label": _name("the label of healthy windows"),
    "Task.levels": _protocol("how far deltas may be thickened"),
    "Task.staleness": _protocol("how late updates may be"),
    "ModelSpec.kind": _protocol("kind of the model"),
    "ModelSpec.sizes": _protocol("units of each layer"),
    "ModelSpec.bundle": _protocol("sha256 of the bundle"),
    "ModelSpec.bundle_bytes": _protocol("its length"),
    "ModelSpec.parts": _protocol("parts of its parameters"),
    "ModelSpec.loss": _protocol("what it is trained for"),
    "Block.shape": _protocol("shape of a part"),
    "Block.limit": _protocol("bound of its first values"),
    "Block.filled": _protocol("its first value"),
    "Windowing.samples": _protocol("samples of a window"),
    "Windowing.hop": _protocol("samples from window to window"),
    "Windowing.sampling_rate_hz": _protocol("rate that recordings must have"),
    "Windowing.features": _protocol("which features are made"),
    "Windowing.held_out": _protocol("share of recordings that is kept for scores"),
    "Windowing.channels": _protocol("channels of a recording"),
    "Windowing.scaling": _protocol("whether the federation learns a scaler"),
    "Windowing.remaining_most": _protocol("samples of life left that are told apart"),
    "Recipe.learning_rate": _protocol("step of the training"),
    "Recipe.momentum": _protocol("momentum of the training"),
    "Recipe.local_epochs": _protocol("passes over a gateway's windows"),
    "Recipe.batch_size": _protocol("windows of a batch"),
    "Recipe.proximal": _protocol("pull towards the shared model"),
    "Recipe.clip_norm": _protocol("length that a gateway's own delta may have"),
    "Recipe.optimizer": _protocol("which optimiser"),
    "Recipe.time_budget_seconds": _protocol("time that a training may take"),
    "Codec.bits": _protocol("bits of a value"),
    "Codec.density": _protocol("share of the parameters that is sent"),
    "Codec.gain": _protocol("factor on values of one bit"),
    "Codec.most": _protocol("density up to which a level thickens"),
}
"""By type and field."""


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """A field of a message as a row of the table."""

    spec: TopicSpec
    message: type[msgspec.Struct]
    path: str
    """From the message on, such as `evaluation.metric`."""
    key: str
    """As `ABOUT` has it: the type that the field stands in, and its name."""
    kind: str
    """Its type and bounds, in words."""


def leaves(direction: Direction) -> Iterator[Leaf]:
    """Every field of every message in this direction, in the topic table's order; those within fields, too."""
    for row in TABLE:
        if row.direction is direction:
            for message in kinds_on(row):
                for path, key, kind in _fields(message, "", ()):
                    yield Leaf(spec=row, message=message, path=path, key=key, kind=kind)


def _fields(struct: type[msgspec.Struct], prefix: str, within: tuple[type, ...]) -> Iterator[tuple[str, str, str]]:
    told = inspect.type_info(struct)
    assert isinstance(told, inspect.StructType)
    for field in told.fields:
        yield f"{prefix}{field.name}", f"{struct.__name__}.{field.name}", words(field.type)
        for inner in structs_in(field.type):
            if inner not in within:
                yield from _fields(inner, f"{prefix}{field.name}.", (*within, struct))


def structs_in(kind: inspect.Type) -> Iterator[type[msgspec.Struct]]:
    """The types of struct that a value of this type may be or hold at its next level."""
    match kind:
        case inspect.StructType():
            yield kind.cls
        case inspect.UnionType():
            for one in kind.types:
                yield from structs_in(one)
        case inspect.VarTupleType() | inspect.ListType():
            yield from structs_in(kind.item_type)
        case inspect.DictType():
            yield from structs_in(kind.value_type)


def words(kind: inspect.Type) -> str:
    """A type as people read it; its own name where it is none of those that messages have had so far."""
    match kind:
        case inspect.NoneType():
            return "nothing"
        case inspect.BoolType():
            return "yes or no"
        case inspect.IntType():
            return "whole number"
        case inspect.FloatType():
            return "number"
        case inspect.StrType():
            return "text" + _most(kind.max_length, "characters")
        case inspect.BytesType():
            if kind.min_length is not None and kind.min_length == kind.max_length:
                return f"{kind.min_length} bytes"
            return "bytes" + _most(kind.max_length, "")
        case inspect.EnumType():
            return f"one of {len(kind.cls)} words ({kind.cls.__name__})"
        case inspect.LiteralType():
            return "one of " + ", ".join(map(str, kind.values))
        case inspect.StructType():
            return kind.cls.__name__
        case inspect.VarTupleType() | inspect.ListType():
            count = "" if kind.max_length is None else f"at most {kind.max_length:,} "
            return f"list of {count}{words(kind.item_type)}"
        case inspect.DictType():
            return f"{words(kind.key_type)} to {words(kind.value_type)}" + _most(kind.max_length, "entries")
        case inspect.UnionType():
            return " or ".join(words(one) for one in kind.types)
        case _:
            return f"of a type that this version cannot describe ({type(kind).__name__})"


def _most(count: int | None, unit: str) -> str:
    return "" if count is None else f", at most {count:,}{' ' + unit if unit else ''}"


def markdown(direction: Direction = Direction.UP) -> str:
    """The tables of docs/data-flows.md. Raises ValueError that names the fields of which nobody has said what they
    tell."""
    silent = sorted({leaf.key for leaf in leaves(direction)} - ABOUT.keys())
    if silent:
        raise ValueError(
            f"expected a line in fedmq/wire/fields.py for every field, there is none for {', '.join(silent)}"
        )
    lines: list[str] = []
    spec: TopicSpec | None = None
    message: type[msgspec.Struct] | None = None
    for leaf in leaves(direction):
        if leaf.spec is not spec:
            spec, message = leaf.spec, None
            if lines:
                lines.append("")
            where = f"{spec.direction.value}/<gateway>/{spec.channel.value}"
            kept = ", kept by the broker" if spec.retained else ""
            lines += [
                f"### `{where}`: {spec.about}",
                "",
                f"At most {spec.max_bytes:,} bytes a message, QoS {spec.qos}{kept}.",
                "",
                "| Message | Field | What it may be | From | What it tells |",
                "|---|---|---|---|---|",
            ]
        about = ABOUT[leaf.key]
        name = "" if leaf.message is message else f"`{leaf.message.__name__}`"
        message = leaf.message
        origin = f"**{about.origin.value}**" if about.origin is Origin.DATA else about.origin.value
        lines.append(f"| {name} | `{leaf.path}` | {leaf.kind} | {origin} | {about.tells} |")
    return "\n".join(lines) + "\n"


def put_markdown(page: str, direction: Direction = Direction.UP) -> str:
    """A page with its tables rendered anew between the marks. Raises ValueError where they are not there once."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"expected the marks {BEGIN} and {END} once, in this order")
    return f"{before}{BEGIN}\n\n{markdown(direction)}\n{END}{after}"
