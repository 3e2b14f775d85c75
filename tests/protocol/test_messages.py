"""Every message on its own topic and on no other, and every kind of junk: `MessageError`, or nothing at all."""

from __future__ import annotations

import math
import random
import struct
import tracemalloc
from typing import Any

import msgspec
import pytest
from fedmq_protocol.condition import (
    AlertOrder,
    AlertOrders,
    AlertState,
    Condition,
    Done,
    FleetLimit,
    FleetLimits,
    MachineState,
    Measured,
    Noted,
    SpreadOf,
    SummaryOf,
    to_quantiles,
    to_trend,
)
from fedmq_protocol.messages import (
    MAX_MISSING,
    AskChunks,
    AskModel,
    AskVerdict,
    Assignment,
    Birth,
    BlobRef,
    CatchUp,
    CatchUpKind,
    Chunk,
    Decline,
    Evaluation,
    Held,
    Leave,
    Message,
    MessageError,
    Missing,
    Receipt,
    Release,
    Roots,
    RoundKind,
    RoundPlan,
    SensorHealth,
    Slot,
    Statistics,
    Trial,
    Update,
    Verdict,
    Welcome,
    ask_after_seconds,
    bitmap,
    check_of,
    from_bytes,
    to_bytes,
)
from fedmq_protocol.reasons import Reason
from fedmq_protocol.task import ModelSpec, Task
from fedmq_protocol.topics import CHUNK_BYTES, TABLE, Channel, Direction, spec

STATUS = spec(Direction.UP, Channel.STATUS)
ANSWER = spec(Direction.UP, Channel.ANSWER)
STATISTICS = spec(Direction.UP, Channel.STATISTICS)
ASK = spec(Direction.UP, Channel.ASK)
TRIAL = spec(Direction.UP, Channel.TRIAL)
WELCOME = spec(Direction.CMD, Channel.WELCOME)
RECEIPT = spec(Direction.CMD, Channel.RECEIPT)
PLAN = spec(Direction.DOWN, Channel.PLAN)
MODEL = spec(Direction.DOWN, Channel.MODEL)
CONDITION = spec(Direction.UP, Channel.CONDITION)
TOLD = spec(Direction.CMD, Channel.CONDITION)
CHUNKS = (spec(Direction.UP, Channel.CHUNK), spec(Direction.CMD, Channel.CHUNK), spec(Direction.DOWN, Channel.CHUNK))

TASK = Task(
    name="bearings",
    model=ModelSpec(kind="mlp", sizes=(4, 3, 2)),
    classes=("normal", "inner race"),
    initial=bytes(range(8)),
)
REF = BlobRef(digest=bytes(range(32)), length=100_000, chunk_bytes=CHUNK_BYTES)
BIRTH = Birth(
    nonce=b"8 bytes!",
    software="fedmq 0.1.0",
    engines=("numpy", "onnxruntime"),
    signal_samples={"normal": 480_000, "Läuferschaden": 12},
    sent=12_000,
    received=34_000,
    held=(Held(lineage=1, version=40, task=bytes(8), counter=7),),
    tags=("pump", "Linie 3"),
    sensors=(SensorHealth(name="motor", rate_pct=99, silent_seconds=2, lost_frames=5, failed=3, flat=True),),
    root=1,
    card=bytes(115),
    vitals=5_539,
)
UPDATE = Update(
    round_id=41,
    base=40,
    counter=8,
    payload=b"coded delta",
    sent=12_345,
    received=34_567,
    loss=4_321,
    evaluation=Evaluation(metric=9_871, loss=432, windows=120),
    vitals=73,
)
ROUND = RoundPlan(
    round_id=41,
    lineage=1,
    kind=RoundKind.TRAINING,
    base=40,
    model=0xDEADBEEF,
    closes_after=3_600,
    drawn=0b1001001,
    accepted=0b1000001,
    since=1,
    level=1,
    delta=b"coded delta",
)
GREETING = Welcome(
    nonce=b"8 bytes!",
    now=1_790_000_000.25,
    roster=3,
    spread=5,
    tasks=(
        Assignment(
            lineage=1,
            counter=7,
            task=TASK,
            scaler=bytes(32),
            plan=ROUND,
            releases=2,
            release=Release(version=12, model=bytes(8), forced=True),
        ),
    ),
)

ALERT = AlertState(
    number=12,
    machine="pump-3",
    kind="defect",
    state="open",
    severity="alarm",
    level=161,
    sensor="pump-3-de",
    label="outer race",
    verdict=None,
    opened_at=1_790_000_000,
    from_at=1_789_999_980,
    to_at=None,
    evidence=(Measured(name="outer race line", value=5.6, limit=3.5, was=1.2, trend=to_trend([(5.0, 1.0)], 9.0)),),
)
CONDITION_OF = Condition(
    counter=4,
    book=b"book",
    since=7,
    upto=9,
    alerts=(ALERT,),
    machines=(MachineState(name="pump-3", kind="pump", state="running", zone="B", learnt_pct=40, level=161, at=5),),
    gone=("fan-1",),
    summaries=(SummaryOf(kind="pump", band="all", measure="acceleration", sketch=b"counts"),),
    done=(Done(key=bytes(8), done=True),),
    limits=bytes(8),
    spreads=(SpreadOf(kind="pump", band="all", measure="velocity", machines=3, windows=900, shares=(100,) * 10),),
)
NOTED = Noted(book=b"book", cursor=9, check=bytes(8), counter=4)
LIMIT = FleetLimit(kind="pump", band="all", measure="kurtosis", gateways=5, quantiles=to_quantiles([3, 3, 4, 4, 5]))

EVERY: list[tuple[Message, tuple[Any, ...]]] = [
    (BIRTH, (STATUS,)),
    (Leave(nonce=bytes(8), clean=True, sent=5, received=6), (STATUS,)),
    (UPDATE, (ANSWER,)),
    (Decline(round_id=41, reason=next(iter(Reason)), sent=1, received=2), (ANSWER,)),
    (Statistics(round_id=1, count=400, mean=bytes(32), m2=bytes(32), sent=1, received=2), (STATISTICS,)),
    (AskVerdict(round_id=41, counter=8, digest=bytes(8)), (ASK,)),
    (AskModel(lineage=1, version=12, wanted=10), (ASK,)),
    (AskChunks(transfer=bytes(8), missing=(0, 3, 1 << 24)), (ASK,)),
    (Chunk(transfer=bytes(8), index=2, data=b"piece"), (*CHUNKS, MODEL)),
    (ROUND, (PLAN,)),
    (GREETING, (WELCOME,)),
    (Receipt(round_id=41, counter=8, verdict=Verdict.ACCEPTED), (RECEIPT,)),
    (Missing(transfer=bytes(8), missing=(1, 2)), (RECEIPT,)),
    (CatchUp(lineage=1, kind=CatchUpKind.CHAIN, start=3, number=40, model=bytes(8), body=REF), (MODEL,)),
    (Trial(lineage=1, version=12, in_service=10, windows=40, metric=9_800, before=9_900), (TRIAL,)),
    (Roots(nonce=bytes(8), roots=(bytes(100), bytes(200))), (WELCOME,)),
    (CONDITION_OF, (CONDITION,)),
    (NOTED, (TOLD,)),
    (AlertOrders(orders=(AlertOrder(key=bytes(8), book=b"book", alert=12, what="ack", who="ann", at=9),)), (TOLD,)),
    (FleetLimits(limits=(LIMIT,)), (TOLD,)),
]
VARIANTS: list[tuple[Message, Any]] = [
    (msgspec.structs.replace(UPDATE, payload=REF, evaluation=None), ANSWER),
    (msgspec.structs.replace(UPDATE, vitals=None), ANSWER),
    (Decline(round_id=41, reason=next(iter(Reason)), sent=1, received=2, vitals=0xFFFF), ANSWER),
    (Statistics(round_id=1, count=400, mean=bytes(32), m2=bytes(32), sent=1, received=2, vitals=0), STATISTICS),
    (msgspec.structs.replace(ROUND, delta=REF, drawn=Slot(seed=bytes(8), slots=10, slot=9)), PLAN),
    (msgspec.structs.replace(ROUND, delta=None, kind=RoundKind.REST, drawn=0, scaler=bytes(64)), PLAN),
    (msgspec.structs.replace(GREETING, tasks=(Assignment(lineage=1, counter=7), *GREETING.tasks)), WELCOME),
    (Leave(nonce=bytes(8), clean=False), STATUS),
    (msgspec.structs.replace(GREETING, condition=NOTED), WELCOME),
]


def refused(data: bytes, on: Any) -> str:
    with pytest.raises(MessageError) as raised:
        from_bytes(on, data)
    return str(raised.value)


def with_body(body: Any) -> bytes:
    """An envelope of ours around any MessagePack."""
    return b"\x30" + msgspec.msgpack.encode(body)


def body_of(message: Message) -> list[Any]:
    """All fields: the type's number, then each in its place, those at the end that hold nothing as well."""
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    assert isinstance(fields, list)
    return fields


# --- whose topic it is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("message", "homes"), EVERY, ids=lambda value: type(value).__name__)
def test_a_message_comes_back_from_its_own_topic_and_from_no_other(message: Message, homes: tuple[Any, ...]) -> None:
    data = to_bytes(message)
    for row in TABLE:
        if row in homes:
            assert from_bytes(row, data) == message
        else:
            refused(data, row)


def test_every_type_of_message_is_among_those_tested() -> None:
    assert {type(message) for message, _ in EVERY} == set(Message.__args__)


@pytest.mark.parametrize(("message", "home"), VARIANTS, ids=lambda value: type(value).__name__)
def test_what_may_be_left_out_or_stand_in_comes_back_too(message: Message, home: Any) -> None:
    assert from_bytes(home, to_bytes(message)) == message


def test_the_task_in_a_welcome_is_the_same_task() -> None:
    welcome = from_bytes(WELCOME, to_bytes(GREETING))
    assert isinstance(welcome, Welcome)
    (assignment,) = welcome.tasks
    assert assignment.task is not None
    assert assignment.task.digest == TASK.digest


def test_nothing_is_read_from_the_report_topic() -> None:
    assert "nothing is read" in refused(to_bytes(ROUND), spec(Direction.DOWN, Channel.REPORT))


# --- the envelope ----------------------------------------------------------------------------------------------------


def test_only_this_wire_version_without_a_seal_is_decoded() -> None:
    body = to_bytes(ROUND)[1:]
    for envelope in range(256):
        if envelope == 0x30:
            continue
        complaint = refused(bytes([envelope]) + body, PLAN)
        assert ("seal" if envelope >> 4 == 3 else "wire version") in complaint


def test_the_envelope_is_looked_at_before_the_body() -> None:
    assert "wire version 15" in refused(b"\xf0\xc1\xc1\xc1", PLAN)
    assert "empty" in refused(b"", PLAN)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.direction.value}-{row.channel.value}")
def test_the_size_is_checked_before_anything_is_decoded(row: Any) -> None:
    # The version is wrong too, which is not even looked at.
    data = b"\xf0" + bytes(row.max_bytes)
    assert refused(data, row) == f"{row.max_bytes + 1} bytes, at most {row.max_bytes} expected"
    assert "bytes, at most" not in refused(data[:-1], row)


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_an_update_costs_at_most_22_bytes_beyond_its_payload() -> None:
    update = Update(round_id=127, base=127, counter=127, payload=bytes(200), sent=65_535, received=65_535, loss=5_000)
    assert len(to_bytes(update)) == 200 + 17
    later = msgspec.structs.replace(update, round_id=255, counter=255, sent=200_000, received=400_000)
    assert len(to_bytes(later)) <= 200 + 23
    much_later = msgspec.structs.replace(later, round_id=65_535, counter=65_535)
    assert len(to_bytes(much_later)) <= 200 + 25


def test_battery_and_link_cost_an_answer_one_byte_or_three() -> None:
    told = msgspec.structs.replace(UPDATE, beyond=100, cpu=25)
    bare = len(to_bytes(msgspec.structs.replace(told, vitals=None)))
    assert len(to_bytes(msgspec.structs.replace(told, vitals=127))) == bare + 1
    assert len(to_bytes(msgspec.structs.replace(told, vitals=0xFFFF))) == bare + 3


def test_a_plan_costs_25_bytes_beyond_its_delta_in_a_small_fleet_and_at_most_48_in_any() -> None:
    plan = msgspec.structs.replace(
        ROUND, round_id=127, lineage=1_790_000_000, base=126, drawn=0x7F, accepted=0x7F, delta=bytes(200)
    )
    assert len(to_bytes(plan)) == 200 + 25
    everybody = bitmap(range(64))
    week = msgspec.structs.replace(plan, round_id=65_535, base=65_534, closes_after=7 * 86_400)
    for drawn, accepted in ((everybody, everybody), (Slot(seed=bytes(8), slots=100, slot=99), 0)):
        assert len(to_bytes(msgspec.structs.replace(week, drawn=drawn, accepted=accepted))) <= 200 + 48


def test_a_receipt_costs_at_most_8_bytes() -> None:
    assert len(to_bytes(Receipt(round_id=255, counter=255, verdict=Verdict.ACCEPTED))) <= 8
    assert len(to_bytes(Receipt(round_id=65_535, counter=65_535, verdict=Verdict.ACCEPTED))) <= 10


def test_a_decline_costs_at_most_16_bytes() -> None:
    assert len(to_bytes(Decline(round_id=255, reason=next(iter(Reason)), sent=200_000, received=400_000))) <= 16


def test_fields_at_the_end_that_hold_nothing_are_not_sent() -> None:
    bare = msgspec.structs.replace(UPDATE, evaluation=None, vitals=None)
    assert to_bytes(bare) == with_body(body_of(bare)[:-4])
    rest = msgspec.structs.replace(ROUND, delta=None)
    assert to_bytes(rest) == with_body(body_of(rest)[:-3])
    only_a_scaler = msgspec.structs.replace(ROUND, delta=None, scaler=bytes(64))
    assert to_bytes(only_a_scaler) == with_body(body_of(only_a_scaler)[:-1])


def test_the_largest_chunk_and_the_longest_list_fit_their_topics() -> None:
    chunk = Chunk(transfer=bytes(8), index=1 << 24, data=bytes(4 * CHUNK_BYTES))
    for row in (*CHUNKS, MODEL):
        assert from_bytes(row, to_bytes(chunk)) == chunk
    numbers = tuple(range((1 << 24) - MAX_MISSING, 1 << 24))
    asked = AskChunks(transfer=bytes(8), missing=numbers)
    assert from_bytes(ASK, to_bytes(asked)) == asked
    missing = Missing(transfer=bytes(8), missing=numbers)
    assert from_bytes(RECEIPT, to_bytes(missing)) == missing


# --- fields come and go ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("message", "homes"), EVERY, ids=lambda value: type(value).__name__)
def test_fields_that_a_newer_version_adds_are_passed_over(message: Message, homes: tuple[Any, ...]) -> None:
    longer = with_body([*body_of(message), "something", {"more": [1, 2.5, None]}, b"bytes"])
    assert from_bytes(homes[0], longer) == message


def test_fields_that_an_older_version_does_not_know_take_their_defaults() -> None:
    assert from_bytes(STATUS, with_body([2, bytes(8), False])) == Leave(nonce=bytes(8), clean=False)
    short_update = from_bytes(ANSWER, with_body(body_of(UPDATE)[:-4]))
    assert short_update == msgspec.structs.replace(UPDATE, evaluation=None, vitals=None)
    short_plan = from_bytes(PLAN, with_body(body_of(ROUND)[:-3]))
    assert short_plan == msgspec.structs.replace(ROUND, delta=None, scaler=None, release=None)
    short_birth = from_bytes(STATUS, with_body(body_of(BIRTH)[:-7]))
    older = {"held": (), "tags": (), "sensors": (), "root": None, "card": None, "vitals": None}
    assert short_birth == msgspec.structs.replace(BIRTH, **older)


def test_a_field_without_a_default_must_be_there() -> None:
    for message, homes in EVERY:
        body = body_of(message)
        refused(with_body(body[: min(2, len(body) - 1)]), homes[0])


# --- lies ------------------------------------------------------------------------------------------------------------


def put(message: Message, place: int, value: Any) -> bytes:
    """The message with one field of another value; place 0 is the type's number."""
    fields = body_of(message)
    fields[place] = value
    return with_body(fields)


@pytest.mark.parametrize("now", [math.nan, math.inf, -math.inf])
def test_a_welcome_whose_time_is_not_a_number_is_refused(now: float) -> None:
    assert "unix seconds" in refused(put(GREETING, 2, now), WELCOME)


@pytest.mark.parametrize(
    ("message", "place", "value", "home"),
    [
        (UPDATE, 1, 0, ANSWER),
        (UPDATE, 1, (1 << 40) + 1, ANSWER),
        (UPDATE, 2, -1, ANSWER),
        (UPDATE, 2, 128, ANSWER),
        (UPDATE, 3, (1 << 62) + 1, ANSWER),
        (UPDATE, 3, (1 << 64) - 1, ANSWER),
        (UPDATE, 3, 1.5, ANSWER),
        (UPDATE, 3, True, ANSWER),
        (UPDATE, 4, "text, not bytes", ANSWER),
        (UPDATE, 4, [0, bytes(31), 10, 256], ANSWER),
        (UPDATE, 4, [0, bytes(32), 0, 256], ANSWER),
        (UPDATE, 4, [0, bytes(32), 1 << 40, 256], ANSWER),
        (UPDATE, 4, [0, bytes(32), 10, 255], ANSWER),
        (UPDATE, 4, [0, bytes(32), 10, 1 << 20], ANSWER),
        (UPDATE, 4, [1, bytes(32), 10, 256], ANSWER),
        (UPDATE, 7, -1, ANSWER),
        (UPDATE, 7, (1 << 40) + 1, ANSWER),
        (UPDATE, 7, 0.5, ANSWER),
        (UPDATE, 7, None, ANSWER),
        (UPDATE, 8, [1 << 32, 0, 1], ANSWER),
        (UPDATE, 11, -1, ANSWER),
        (UPDATE, 11, 1 << 16, ANSWER),
        (UPDATE, 11, True, ANSWER),
        (UPDATE, 11, [42, True], ANSWER),
        (EVERY[3][0], 7, 1 << 16, ANSWER),
        (EVERY[4][0], 9, "wifi", STATISTICS),
        (UPDATE, 8, [0, -1, 1], ANSWER),
        (UPDATE, 8, [0, 0, 0], ANSWER),
        (EVERY[3][0], 2, min(Reason) - 1, ANSWER),
        (EVERY[3][0], 2, max(Reason) + 1, ANSWER),
        (EVERY[4][0], 3, bytes(3), STATISTICS),
        (EVERY[4][0], 3, bytes(8 * 4096 + 1), STATISTICS),
        (EVERY[5][0], 3, bytes(7), ASK),
        (EVERY[7][0], 2, [], ASK),
        (EVERY[7][0], 2, list(range(MAX_MISSING + 1)), ASK),
        (EVERY[7][0], 2, [-1], ASK),
        (EVERY[8][0], 3, b"", MODEL),
        (ROUND, 3, 3, PLAN),
        (ROUND, 5, -1, PLAN),
        (ROUND, 5, 1 << 32, PLAN),
        (ROUND, 6, 1 << 41, PLAN),
        (ROUND, 6, -(1 << 41), PLAN),
        (ROUND, 7, -1, PLAN),
        (ROUND, 7, b"\x01", PLAN),
        (ROUND, 8, -1, PLAN),
        (ROUND, 9, -1, PLAN),
        (ROUND, 9, 0, PLAN),
        (ROUND, 9, None, PLAN),
        (ROUND, 10, -1, PLAN),
        (ROUND, 10, 16, PLAN),
        (ROUND, 10, None, PLAN),
        (ROUND, 13, 0, PLAN),
        (ROUND, 8, None, PLAN),
        (ROUND, 7, [1, bytes(8), 0, 0], PLAN),
        (ROUND, 7, [2, bytes(8), 1, 0], PLAN),
        (ROUND, 12, bytes(8 * 4096 + 1), PLAN),
        (EVERY[11][0], 3, 11, RECEIPT),
        (EVERY[11][0], 3, -1, RECEIPT),
        (BIRTH, 1, bytes(7), STATUS),
        (BIRTH, 2, "x" * 33, STATUS),
        (BIRTH, 3, ["numpy"] * 9, STATUS),
        (BIRTH, 4, {"": 1}, STATUS),
        (BIRTH, 4, {"x" * 65: 1}, STATUS),
        (BIRTH, 4, {"normal": -1}, STATUS),
        (BIRTH, 4, {str(i): 1 for i in range(33)}, STATUS),
        (BIRTH, 7, [[1, 40, bytes(7), 7]], STATUS),
        (BIRTH, 7, [[1, 40, bytes(8), 7]] * 65, STATUS),
        (BIRTH, 8, [""], STATUS),
        (BIRTH, 8, ["x" * 33], STATUS),
        (BIRTH, 8, ["x"] * 17, STATUS),
        (BIRTH, 13, 1 << 16, STATUS),
        (GREETING, 4, -1, WELCOME),
        (GREETING, 5, [[1, 7]] * 65, WELCOME),
        (EVERY[14][0], 4, -1, TRIAL),
    ],
)
def test_a_value_out_of_bounds_is_refused(message: Message, place: int, value: Any, home: Any) -> None:
    from_bytes(home, to_bytes(message))
    refused(put(message, place, value), home)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (1, ["mlp", [4]]),
        (1, ["mlp", [4, 0, 2]]),
        (1, ["mlp", [65_536] * 32]),
        (1, ["softmax", [4, 3, 2]]),
        (1, ["forest", [4, 2]]),
        (2, ["one class only"]),
        (2, ["twice", "twice"]),
        (4, [math.nan]),
        (4, [0.05, math.nan]),
        (5, [1, math.nan]),
        (5, [2, 0.01]),
        (5, [1, 0.0]),
        (7, 25),
        (8, -1),
        (9, bytes(7)),
        (11, math.inf),
        (11, math.nan),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(place: int, value: Any) -> None:
    fields = body_of(GREETING)
    fields[5][0][2][place] = value
    refused(with_body(fields), WELCOME)


def test_text_that_is_not_utf_8_is_refused() -> None:
    data = to_bytes(BIRTH)
    for wrong in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80"):
        refused(data.replace(b"fed", wrong.ljust(3, b"x")), STATUS)
        refused(data.replace(b"normal", wrong.ljust(6, b"x")), STATUS)


@pytest.mark.parametrize("place", range(len(body_of(GREETING))))
@pytest.mark.parametrize("bomb", [b"\x91", b"\xdd\x00\x00\x00\x01", b"\x81\x01", b"\xdf\x00\x00\x00\x01\x01"])
def test_a_value_nested_without_end_is_refused_wherever_it_stands(place: int, bomb: bytes) -> None:
    parts = [msgspec.msgpack.encode(field) for field in body_of(GREETING)]
    parts[place] = bomb * (100_000 // len(bomb)) + b"\xc0"
    refused(b"\x30\x96" + b"".join(parts), WELCOME)


def test_a_value_nested_without_end_in_an_unknown_field_is_refused_or_passed_over() -> None:
    """How deep a skipped value may go is the interpreter's own limit: all that is asked is that nothing breaks."""
    bomb = b"\x30\x95\x07\x01\x01\xc0" + b"\x91" * 4_000 + b"\xc0"
    try:
        message = from_bytes(ASK, bomb)
    except MessageError:
        return
    assert message == AskModel(lineage=1, version=1)


@pytest.mark.parametrize("claim", [0xFFFFFFFF, 0x7FFFFFFF, 1 << 24])
def test_a_length_that_lies_costs_no_memory(claim: int) -> None:
    heads = [kind + struct.pack(">I", claim) for kind in (b"\xc6", b"\xdb", b"\xdd", b"\xdf", b"\xc9")]
    attempts = [b"\x30" + head for head in heads]
    for message, homes in EVERY:
        parts = [msgspec.msgpack.encode(field) for field in body_of(message)]
        for place in range(len(parts)):
            for head in heads:
                lie = b"".join([*parts[:place], head, *parts[place + 1 :]])
                attempts.append(b"\x30" + bytes([0x90 | len(parts)]) + lie)
                refused(attempts[-1], homes[0])
    tracemalloc.start()
    for data in attempts:
        for row in (STATUS, ANSWER, WELCOME, MODEL):
            refused(data, row)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


# --- junk ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("message", "homes"), EVERY, ids=lambda value: type(value).__name__)
def test_a_message_cut_anywhere_is_refused(message: Message, homes: tuple[Any, ...]) -> None:
    data = to_bytes(message)
    for end in range(len(data)):
        refused(data[:end], homes[0])


@pytest.mark.parametrize(("message", "homes"), EVERY, ids=lambda value: type(value).__name__)
def test_bytes_after_a_message_are_refused(message: Message, homes: tuple[Any, ...]) -> None:
    for tail in (b"\x00", b"\xc0", bytes(64), to_bytes(message)):
        refused(to_bytes(message) + tail, homes[0])


def read_or_refuse(data: bytes) -> int:
    """On how many topics `data` is a message. Whatever is read can be sent again and comes back the same."""
    read = 0
    for row in TABLE:
        try:
            message = from_bytes(row, data)
        except MessageError:
            continue
        read += 1
        assert from_bytes(row, to_bytes(message)) == message
    return read


def test_random_bytes_raise_nothing_but_message_errors() -> None:
    rng = random.Random(1)
    for _ in range(15_000):
        body = rng.randbytes(rng.randrange(64))
        read_or_refuse(b"\x20" + body)
        # With the right beginning junk gets further.
        read_or_refuse(b"\x30" + bytes([0x90 | rng.randrange(2, 12), rng.randrange(15)]) + body)


def test_damaged_messages_raise_nothing_but_message_errors() -> None:
    rng = random.Random(2)
    whole = [to_bytes(message) for message, _ in [*EVERY, *VARIANTS]]
    read = 0
    for _ in range(30_000):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
            place = rng.randrange(len(data))
            match rng.randrange(5):
                case 0:
                    data[place] ^= 1 << rng.randrange(8)
                case 1:
                    data[place] = rng.randrange(256)
                case 2:
                    del data[place : place + rng.randrange(1, 5)]
                case 3:
                    data[place:place] = rng.randbytes(rng.randrange(1, 5))
                case _:
                    other = rng.choice(whole)
                    start = rng.randrange(len(other))
                    data[place : place + 8] = other[start : start + 8]
            if not data:
                break
        read += bool(read_or_refuse(bytes(data)))
    # Payloads and counters may hold anything, so that some pass; were it nearly none, the damage would be too coarse.
    assert read > 1_000


# --- who is drawn ----------------------------------------------------------------------------------------------------


def test_a_plan_draws_and_settles_exactly_the_places_it_was_made_of() -> None:
    rng = random.Random(3)
    for _ in range(200):
        drawn, accepted = (set(rng.sample(range(64), rng.randrange(65))) for _ in range(2))
        plan = msgspec.structs.replace(ROUND, drawn=bitmap(drawn), accepted=bitmap(accepted))
        assert from_bytes(PLAN, to_bytes(plan)) == plan
        assert {place for place in range(70) if plan.draws(place, "any")} == drawn
        assert {place for place in range(70) if plan.settles(plan.round_id - 1, place)} == accepted
        assert not plan.draws(1 << 31, "any")


def test_a_plan_settles_updates_to_the_round_before_it_and_to_no_other() -> None:
    plan = msgspec.structs.replace(ROUND, accepted=bitmap(range(64)))
    assert [r for r in range(1, 100) if plan.settles(r, 5)] == [plan.round_id - 1]


def test_places_are_those_of_a_fleet_of_64() -> None:
    assert bitmap([]) == 0
    assert bitmap([0, 3, 3]) == 0b1001
    assert bitmap([63]) == 1 << 63
    with pytest.raises(OverflowError, match="got 64"):
        bitmap([64])


def test_closing_time_counts_from_the_start_of_the_lineage_whatever_the_clock_says_since() -> None:
    assert ROUND.closes_at == 3_601
    early = msgspec.structs.replace(ROUND, lineage=1_790_000_000, closes_after=-1_000)
    assert from_bytes(PLAN, to_bytes(early)) == early
    assert early.closes_at == 1_789_999_000


def test_a_gateway_waits_for_half_of_what_is_left_and_five_seconds_at_least() -> None:
    assert [ask_after_seconds(left) for left in (-10.0, 0.0, 10.0, 11.0, 120.0)] == [5.0, 5.0, 5.0, 5.5, 60.0]


def test_a_check_is_the_beginning_of_a_digest_and_its_mark_the_end_of_the_check() -> None:
    assert check_of(bytes.fromhex("deadbeef00112233")) == ROUND.model
    assert ROUND.base_mark == 0xEF & 127


def test_a_gateway_is_in_one_slot_of_a_cycle_whatever_its_place() -> None:
    for name in ("g1", "press-4", "Z"):
        rules = [Slot(seed=b"cycle 01", slots=7, slot=slot) for slot in range(7)]
        assert sum(rule.includes(name) for rule in rules) == 1
        plans = [msgspec.structs.replace(ROUND, drawn=rule) for rule in rules]
        assert [plan.draws(0, name) for plan in plans] == [plan.draws(99, name) for plan in plans]


def test_the_slot_of_a_name_is_the_same_on_every_machine() -> None:
    slots = {}
    for name in ("g1", "g2", "press-4"):
        (slots[name],) = (slot for slot in range(10) if Slot(seed=b"cycle 01", slots=10, slot=slot).includes(name))
    assert slots == {"g1": 9, "g2": 2, "press-4": 8}
