"""Every decoder of bytes from outside, each as one function of bytes, with valid inputs to start from.

Owns what is asked of a decoder: it takes the bytes or refuses them with its one exception, and what it takes is well
formed. Refuses to know where the bytes come from: random mutation, a guided fuzzer and the kept corpus all call
`Decoder.read`, which lets out whatever should not have happened.

An input starts with a few bytes that choose length, spec or topic; the rest is the body. The checksum is put behind it
here, since otherwise it would stop nearly everything; one bit of the choice leaves it off. To add a decoder, write its
function and its seeds, and name both in `decoders`.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from unittest import mock

import fastcrc
import msgspec
import numpy as np
from cobs import cobs
from fedmq_compression import pipeline
from fedmq_compression.bits import BitReader, golomb
from fedmq_compression.contexts import Contexts
from fedmq_compression.frame import PayloadError, deflate, inflate, seal
from fedmq_compression.indices import Layout, Support, rivals
from fedmq_compression.integers import layouts
from fedmq_compression.pipeline import CodecSpec, decode, decode_integers, encode, encode_integers
from fedmq_edge_node.memory import GatewayState
from fedmq_edge_node.work import ModelMismatch, advance, catch_up
from fedmq_firmware_bridge import downloads, frames, lines, probing, readings, scores
from fedmq_firmware_bridge.store import SensorInfo
from fedmq_models import bundle as bundles
from fedmq_models import sensor_image
from fedmq_models.interpreter import Interpreter
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
    PersonalOutcome,
    PersonalPolicy,
    PersonalTrial,
    Receipt,
    Release,
    Roots,
    RoundKind,
    RoundPlan,
    Seal,
    SensorHealth,
    Slot,
    Statistics,
    Trial,
    Update,
    Verdict,
    Welcome,
    from_bytes,
    split,
    to_bytes,
)
from fedmq_protocol.reasons import Reason
from fedmq_protocol.signing import Chain, TrustError, read_card
from fedmq_protocol.sketch import Summary, SummaryError
from fedmq_protocol.task import Codec, ModelSpec, Task, initial_steps, model_digest, short
from fedmq_protocol.topics import TABLE, Direction, parse, topic
from fedmq_protocol.transfer import Incoming, TransferError, chunks, refer
from numpy.typing import NDArray

from fedmq.bridge.mqtt import read_label

# Where this is not run by pytest.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from bundles import bundle_of, slow, with_noise, with_preparation, with_values
from trust import TrustAuthority

__all__ = ["LENGTHS", "Decoder", "decoders", "every_payload"]

LENGTHS = (1, 2, 7, 8, 9, 64, 203, 400, 700, 1000, 2000, 4099, 10_000, 18_308, 100_000, 1_000_000)
DENSITIES = (0.001, 0.01, 0.02, 0.1, 0.3, 0.5, 0.8, 1.0)
BITS = (1, 4, 8, 32)
STEPS = (2.0**-24, 2.0**-12, 2.0**-4, 2.0**-20)
MAX_ABS = (1 << 30, 1 << 20, 127, 0)
UNSEALED = 0x80
"""Of the first byte: the body is the whole payload, checksum and all."""


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """`read` says whether the bytes were taken, and `chosen` how many of them choose rather than being decoded."""

    name: str
    chosen: int
    read: Callable[[bytes], bool]
    seeds: tuple[bytes, ...] = field(repr=False)
    units: Callable[[bytes], int] = field(default=lambda data: 0)
    """What its time and memory may grow with beside the input: the task's length."""


def decoders() -> dict[str, Decoder]:
    """All of them by name; making the seeds takes a second or two."""
    made = (
        Decoder(name="delta", chosen=2, read=read_delta, seeds=tuple(delta_seeds()), units=delta_length),
        Decoder(name="ranked", chosen=2, read=read_ranked, seeds=tuple(ranked_seeds()), units=ranked_length),
        Decoder(name="integers", chosen=2, read=read_integers, seeds=tuple(integer_seeds()), units=integers_length),
        Decoder(name="zstd", chosen=1, read=read_zstd, seeds=tuple(zstd_seeds()), units=zstd_size),
        Decoder(name="golomb", chosen=4, read=read_golomb, seeds=tuple(golomb_seeds())),
        Decoder(name="message", chosen=1, read=read_message, seeds=tuple(message_seeds())),
        Decoder(name="summary", chosen=1, read=read_summary, seeds=tuple(summary_seeds())),
        Decoder(name="sealed", chosen=1, read=read_sealed, seeds=tuple(sealed_seeds())),
        Decoder(name="trust", chosen=1, read=read_trust, seeds=tuple(trust_seeds())),
        Decoder(name="transfer", chosen=2, read=read_transfer, seeds=tuple(transfer_seeds())),
        Decoder(name="catchup", chosen=1, read=read_catch_up, seeds=tuple(catch_up_seeds())),
        Decoder(name="frame", chosen=1, read=read_frame, seeds=tuple(frame_seeds())),
        # What it takes is run once, too.
        Decoder(name="bundle", chosen=1, read=read_bundle, seeds=tuple(bundle_seeds()), units=lambda data: 1 << 17),
        Decoder(name="image", chosen=1, read=read_image, seeds=tuple(image_seeds())),
        Decoder(name="answer", chosen=1, read=read_answer, seeds=tuple(answer_seeds())),
        Decoder(name="text", chosen=1, read=read_text, seeds=tuple(text_seeds())),
    )
    return {decoder.name: decoder for decoder in made}


# --- deltas ----------------------------------------------------------------------------------------------------------


def delta_length(data: bytes) -> int:
    return LENGTHS[data[1] & 15] if len(data) > 1 else 0


def delta_choice(bits: int, density: float, step: float, length: int) -> bytes:
    first = BITS.index(bits) | STEPS.index(step) << 2
    return bytes([first, LENGTHS.index(length) | DENSITIES.index(density) << 4])


def read_delta(data: bytes, contexts: Contexts | None = None) -> bool:
    if len(data) < 2:
        return False
    length = delta_length(data) if contexts is None else contexts.length
    spec = CodecSpec(bits=BITS[data[0] & 3], step=STEPS[data[0] >> 2 & 3], density=DENSITIES[data[1] >> 4 & 7])
    body = data[2:]
    agreed = spec.agreed(length) + (b"" if contexts is None else contexts.mark)
    payload = body if data[0] & UNSEALED else seal(body, agreed)
    try:
        decoded = decode(payload, length, spec, contexts=contexts)
    except PayloadError:
        return False
    check_decoded(decoded, length, spec)
    return True


def check_decoded(decoded: pipeline.Decoded, length: int, spec: CodecSpec) -> None:
    """What any caller may rely on."""
    assert decoded.length == length
    assert decoded.step == spec.step
    assert decoded.steps.dtype == np.int64
    if decoded.indices is None:
        assert decoded.steps.size == length == spec.target(length)
    else:
        assert decoded.indices.dtype == np.int64
        assert decoded.indices.size == decoded.steps.size <= 2 * spec.target(length) + 16
        assert np.all(np.diff(decoded.indices) > 0), "indices are unsorted or come twice"
        assert decoded.steps.all(), "a coordinate is sent that does not change"
        if decoded.indices.size:
            assert decoded.indices[0] >= 0
            assert decoded.indices[-1] < length
    values = decoded.steps * decoded.step
    assert np.array_equal(values.astype(np.float32), values), "a value is not exact in float32"
    assert np.abs(values).max(initial=0) < 64


def every_payload(delta: NDArray[np.float32], spec: CodecSpec) -> Iterator[tuple[bytes, pipeline.Encoded]]:
    """The payload of each layout that can say this delta, not only the winner's, with what it must decode to."""
    encoded = encode(delta, spec)
    yield encoded.payload, encoded
    indices = encoded.sent.indices
    if indices is None or not indices.size:
        return
    for support in rivals(indices, delta.size):
        with chosen_support(support):
            yield encode(delta, spec).payload, encoded


@contextmanager
def chosen_support(support: object) -> Iterator[None]:
    with mock.patch.object(pipeline, "code_support", return_value=support):
        yield


def delta_seeds() -> Iterator[bytes]:
    rng = np.random.default_rng(1)
    for bits in BITS:
        for density in DENSITIES:
            for length in (9, 203, 700, 4099):
                step = STEPS[int(rng.integers(4))]
                spec = CodecSpec(bits=bits, density=density, step=step)
                values = rng.normal(size=length).astype(np.float32)
                lumps = (0.5 * (np.arange(length) // 50 % 4 == 0)).astype(np.float32)
                for delta in (values, lumps):
                    for payload, _ in every_payload(delta, spec):
                        if len(payload) < 3000:
                            yield delta_choice(bits, density, step, length) + payload[:-2]
    for bits, density, length in ((1, 0.01, 18_308), (1, 0.001, 100_000), (1, 0.001, 1_000_000), (8, 0.001, 100_000)):
        spec = CodecSpec(bits=bits, density=density, step=STEPS[1])
        delta = rng.normal(size=length).astype(np.float32)
        yield delta_choice(bits, density, STEPS[1], length) + encode(delta, spec).payload[:-2]
    yield (
        delta_choice(1, 0.01, STEPS[0], 700)
        + encode(np.zeros(700, np.float32), CodecSpec(bits=1, density=0.01, step=STEPS[0])).payload[:-2]
    )


# --- deltas along a ranking ------------------------------------------------------------------------------------------


def contexts_of(shapes: tuple[tuple[int, int], ...], seed: int) -> Contexts:
    """As after some rounds: a few rows and columns have moved, and most have not."""
    rng = np.random.default_rng(seed)
    blocks = [
        np.outer(rng.random(rows) ** 6, rng.random(columns) ** 6) * rng.choice([-99, 99], (rows, columns))
        for rows, columns in shapes
    ]
    return Contexts.of(np.concatenate([block.ravel() for block in blocks]).astype(np.int32), shapes)


RANKED = (
    contexts_of(((1, 1),), 1),
    contexts_of(((3, 1), (1, 4)), 2),
    contexts_of(((20, 10),), 3),
    contexts_of(((23, 16), (17, 12), (13, 4)), 4),
    contexts_of(((65, 30), (31, 10)), 5),
    contexts_of(((100, 100),), 6),
    Contexts.of(np.zeros(700, dtype=np.int32), ((700, 1),)),
    contexts_of(((1000, 300),), 7),
)


def ranked_length(data: bytes) -> int:
    return RANKED[data[1] & 7].length if len(data) > 1 else 0


def read_ranked(data: bytes) -> bool:
    return len(data) >= 2 and read_delta(data, RANKED[data[1] & 7])


def ranked_seeds() -> Iterator[bytes]:
    for number, contexts in enumerate(RANKED[:-1]):
        for bits in BITS:
            for density in DENSITIES:
                spec = CodecSpec(bits=bits, density=density, step=STEPS[1])
                choice = bytes([BITS.index(bits) | 1 << 2, number | DENSITIES.index(density) << 4])
                for payload, _ in ranked_payloads(likely(contexts, number), spec, contexts):
                    if len(payload) < 4000:
                        yield choice + payload[:-2]


def likely(contexts: Contexts, seed: int) -> NDArray[np.float32]:
    """A delta that is largest where the model has moved, with the signs of its columns."""
    rng = np.random.default_rng(seed)
    sizes = rng.exponential(size=contexts.length) * np.where(contexts.rank < contexts.length // 8, 1.0, 0.1)
    columns = contexts.columns_of(np.arange(contexts.length))
    return (sizes * np.where(columns % 3 == 0, -1, 1)).astype(np.float32)


def ranked_payloads(
    delta: NDArray[np.float32], spec: CodecSpec, contexts: Contexts
) -> Iterator[tuple[bytes, pipeline.Encoded]]:
    """The payload that wins, and the ranked one: where that is dearer, its rival is made to look dearer still."""
    encoded = encode(delta, spec, contexts=contexts)
    yield encoded.payload, encoded
    indices = encoded.sent.indices
    if indices is not None and 0 < indices.size < contexts.length:
        dear = Support(layout=Layout.GAPS, divisor=None, bits=np.zeros(40 * contexts.length, dtype=np.uint8))
        with chosen_support(dear):
            yield encode(delta, spec, contexts=contexts).payload, encoded


# --- whole numbers ---------------------------------------------------------------------------------------------------


def integers_length(data: bytes) -> int:
    return LENGTHS[data[1] & 15] if len(data) > 1 else 0


def read_integers(data: bytes, *, code_again: bool = True) -> bool:
    if len(data) < 2:
        return False
    length, max_abs = integers_length(data), MAX_ABS[data[0] & 3]
    body = data[2:]
    payload = body if data[0] & UNSEALED else seal(body, integers_agreed(length))
    try:
        values = decode_integers(payload, length, max_abs)
    except PayloadError:
        return False
    assert values.shape == (length,)
    assert values.dtype == np.int32
    assert np.abs(values.astype(np.int64)).max() <= max_abs
    if code_again and length <= 20_000:
        again = decode_integers(encode_integers(values), length, max_abs)
        assert np.array_equal(again, values)
    return True


def integers_agreed(length: int) -> bytes:
    return b"\0" + length.to_bytes(4, "little")


def integer_seeds() -> Iterator[bytes]:
    rng = np.random.default_rng(2)
    for length in (9, 203, 700, 4099):
        few = rng.integers(-9, 10, length) * (rng.random(length) < 0.02)
        named = rng.choice([-40, 25, 999_999], length) * (rng.random(length) < 0.1)
        small = np.rint(rng.normal(size=length) * 9).astype(np.int64)
        large = rng.integers(-(1 << 30), (1 << 30) + 1, length)
        for values in (few, named, small, large, np.zeros(length, np.int64), np.arange(length) // 50 * 1000):
            for body in layouts(values.astype(np.int64)):
                if len(body) < 4000:
                    yield bytes([0, LENGTHS.index(length)]) + body
    sparse = np.zeros(1_000_000, np.int64)
    sparse[rng.choice(sparse.size, 300, replace=False)] = rng.integers(-50, 51, 300)
    for body in layouts(sparse)[-3:]:
        yield bytes([0, LENGTHS.index(sparse.size)]) + body


# --- zstd ------------------------------------------------------------------------------------------------------------


def zstd_size(data: bytes) -> int:
    return (*LENGTHS, 0)[data[0] % 17] if data else 0


def read_zstd(data: bytes) -> bool:
    if not data:
        return False
    size = zstd_size(data)
    try:
        content = inflate(data[1:], size)
    except PayloadError:
        return False
    assert len(content) == size
    return True


def zstd_seeds() -> Iterator[bytes]:
    rng = np.random.default_rng(3)
    for number, size in enumerate((*LENGTHS[:14], 100_000, 1_000_000, 0)):
        contents = [bytes(size), (b"abcd" * (size // 4 + 1))[:size]]
        if size < 5000:
            contents += [rng.bytes(size), bytes(rng.geometric(0.3, size).clip(0, 255).astype(np.uint8))]
        for content in contents:
            yield bytes([number]) + deflate(content)


# --- Golomb ----------------------------------------------------------------------------------------------------------


def read_golomb(data: bytes) -> bool:
    """The bit reader by itself, with any divisor, count and bounds."""
    if len(data) < 4:
        return False
    count, divisor = data[0] + 256 * (data[3] & 3), max(1, (data[1] & 63) << data[1] // 64 * 9)
    each = (1 << data[2] % 32) - 1
    total = None if data[3] & 4 else each
    reader = BitReader(data[4:], start=min(data[3] >> 4, 8 * len(data[4:])))
    try:
        numbers = reader.golomb(count, divisor, each=each, total=total)
        reader.end()
    except PayloadError:
        return False
    assert numbers.shape == (count,)
    assert numbers.min(initial=0) >= 0
    assert numbers.max(initial=0) <= each
    return True


def golomb_seeds() -> Iterator[bytes]:
    rng = np.random.default_rng(4)
    for count in (1, 3, 20, 90, 300):
        for coded_divisor in (0, 1, 5, 63, 64 + 3, 128 + 1):
            divisor = max(1, (coded_divisor & 63) << coded_divisor // 64 * 9)
            numbers = rng.integers(0, 4 * divisor, count)
            body = np.packbits(golomb(numbers, divisor)).tobytes()
            yield bytes([count % 256, coded_divisor, 31, 4 | count // 256]) + body


# --- messages --------------------------------------------------------------------------------------------------------


TASK = Task(
    name="bearings",
    model=ModelSpec(kind="mlp", sizes=(4, 3, 2)),
    classes=("normal", "inner race"),
    initial=bytes(range(8)),
)


def messages() -> list[Message]:
    """One of every kind, and some with what may be left out or stand in."""
    ref = BlobRef(digest=bytes(range(32)), length=100_000, chunk_bytes=32 * 1024)
    update = Update(
        round_id=41,
        base=40,
        counter=8,
        payload=b"coded delta",
        sent=12_345,
        received=34_567,
        loss=1_234,
        evaluation=Evaluation(metric=9_871, loss=432, windows=120),
        vitals=73,
    )
    plan = RoundPlan(
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
    welcome = Welcome(
        nonce=b"8 bytes!",
        now=1.79e9,
        roster=3,
        spread=2,
        tasks=(
            Assignment(
                lineage=1,
                counter=7,
                task=TASK,
                scaler=bytes(32),
                plan=plan,
                releases=1,
                release=Release(version=3, model=bytes(8), forced=False),
                personal=PersonalPolicy(mode="head", margin=0.02, epochs=10),
            ),
        ),
    )
    birth = Birth(
        nonce=b"8 bytes!",
        software="fedmq 0.1.0",
        engines=("numpy", "onnxruntime"),
        signal_samples={"normal": 480_000, "Läuferschaden": 12},
        sent=12_000,
        received=34_000,
        held=(Held(lineage=1, version=40, task=bytes(8), counter=7),),
        tags=("pump", "line-3"),
        sensors=(SensorHealth(name="motor", rate_pct=99, silent_seconds=2, lost_frames=5, failed=3, flat=True),),
        vitals=0,
    )
    slot = Slot(seed=bytes(8), slots=10, slot=9)
    return [
        birth,
        Leave(nonce=bytes(8), clean=True, sent=5, received=6),
        Leave(nonce=bytes(8), clean=False),
        update,
        msgspec.structs.replace(update, payload=ref, evaluation=None),
        Decline(round_id=41, reason=next(iter(Reason)), sent=1, received=2),
        Decline(round_id=41, reason=next(iter(Reason)), sent=1, received=2, vitals=5_539),
        Statistics(round_id=1, count=400, mean=bytes(32), m2=bytes(32), sent=1, received=2),
        AskVerdict(round_id=41, counter=8, digest=bytes(8)),
        AskModel(lineage=1, version=12),
        Trial(lineage=1, version=12, in_service=10, windows=40, metric=9_800, before=9_900),
        Trial(
            lineage=1,
            version=12,
            in_service=10,
            windows=40,
            metric=9_800,
            before=9_900,
            personal=PersonalTrial(outcome=PersonalOutcome.SERVES, windows=40, metric=9_950, shared=9_900),
        ),
        AskChunks(transfer=bytes(8), missing=(0, 3, 1 << 24)),
        Chunk(transfer=bytes(8), index=2, data=b"piece"),
        plan,
        msgspec.structs.replace(plan, delta=ref, drawn=slot),
        msgspec.structs.replace(plan, delta=None, kind=RoundKind.REST, drawn=0, scaler=bytes(64)),
        welcome,
        msgspec.structs.replace(welcome, tasks=()),
        Receipt(round_id=41, counter=8, verdict=Verdict.ACCEPTED),
        Missing(transfer=bytes(8), missing=(1, 2)),
        CatchUp(lineage=1, kind=CatchUpKind.CHAIN, start=3, number=40, model=bytes(8), body=ref),
        CatchUp(lineage=1, kind=CatchUpKind.KEYFRAME, start=0, number=40, model=bytes(8), body=b"numbers", until=600),
        Roots(nonce=bytes(8), roots=(bytes(200),)),
        Condition(
            counter=4,
            book=b"book",
            since=7,
            upto=9,
            alerts=(
                AlertState(
                    number=12,
                    machine="pump-3",
                    kind="defect",
                    state="open",
                    severity="alarm",
                    level=161,
                    sensor="de",
                    label="outer race",
                    verdict=None,
                    opened_at=1_790_000_000,
                    from_at=1_789_999_980,
                    to_at=None,
                    evidence=(Measured(name="line", value=5.6, limit=3.5, was=1.2, trend=to_trend([(5, 1)], 9)),),
                ),
            ),
            machines=(
                MachineState(name="pump-3", kind="pump", state="running", zone="B", learnt_pct=40, level=161, at=5),
            ),
            gone=("fan-1",),
            summaries=(SummaryOf(kind="pump", band="all", measure="crest", sketch=Summary().seen(3.0).to_bytes()),),
            done=(Done(key=bytes(8), done=False, text="no such alert"),),
            limits=bytes(8),
            spreads=(SpreadOf(kind="pump", band="all", measure="crest", machines=3, windows=900, shares=(100,) * 10),),
        ),
        Noted(book=b"book", cursor=9, check=bytes(8), counter=4),
        AlertOrders(orders=(AlertOrder(key=bytes(8), book=b"book", alert=12, what="confirm", fault="ball"),)),
        FleetLimits(
            limits=(
                FleetLimit(
                    kind="pump", band="all", measure="crest", gateways=5, quantiles=to_quantiles([3, 3, 4, 4, 5])
                ),
            )
        ),
    ]


def read_message(data: bytes) -> bool:
    """On the row of the table that the first byte names; what is read can be sent again and comes back the same."""
    if not data:
        return False
    row = TABLE[data[0] % len(TABLE)]
    try:
        message = from_bytes(row, data[1:])
    except MessageError:
        return False
    assert from_bytes(row, to_bytes(message)) == message
    return True


def read_summary(data: bytes) -> bool:
    """What is read has quantiles in order, and says the same again."""
    try:
        summary = Summary.from_bytes(data)
    except SummaryError:
        return False
    assert Summary.from_bytes(summary.to_bytes()) == summary
    if summary.count:
        quantiles = [summary.quantile(share) for share in (0.0, 0.5, 0.99, 1.0)]
        assert quantiles == sorted(quantiles)
        assert all(0 <= value < float("inf") for value in quantiles)
    assert summary.merge(summary).count == 2 * summary.count
    return True


def summary_seeds() -> Iterator[bytes]:
    for values in ((), (0.0,), (5.0, 5.0), (1e-12, 1.0, 1e12), tuple(0.01 * n for n in range(1, 200))):
        yield Summary().seen(*values).to_bytes()


def message_seeds() -> Iterator[bytes]:
    for message in messages():
        data = to_bytes(message)
        for number, row in enumerate(TABLE):
            try:
                from_bytes(row, data)
            except MessageError:
                continue
            yield bytes([number]) + data


# --- seals, roots and cards ------------------------------------------------------------------------------------------

AUTHORITY = TrustAuthority()
LATER = TrustAuthority()
LATER.rotate()


def read_sealed(data: bytes) -> bool:
    """To the coordinator, or to a gateway, on the row that the first byte names: nothing is believed that was not said
    with the keys of this federation."""
    if not data:
        return False
    row = TABLE[data[0] % len(TABLE)]
    text = topic("test", row.direction, row.channel, None if row.direction is Direction.DOWN else "g1")
    where = parse(text)
    try:
        found = split(data[1:])
        message = from_bytes(row, found.plain)
        if row.direction is Direction.UP:
            SEALED_COORDINATOR.check(text, where, message, found)
        else:
            SEALED_GATEWAY.check(text, where, message, found)
    except MessageError:
        return False
    assert found.seal is Seal.NONE or data[1:] in SAID
    return True


def sealed_seeds() -> Iterator[bytes]:
    """All that the two have to say to each other."""
    for message in (*messages(), BORN):
        for number, row in enumerate(TABLE):
            text = topic("test", row.direction, row.channel, None if row.direction is Direction.DOWN else "g1")
            with suppress(MessageError):
                from_bytes(row, to_bytes(message))
                seals = SEALED_GATEWAY if row.direction is Direction.UP else SEALED_COORDINATOR
                said = seals.seal(text, parse(text), message, to_bytes(message))
                SAID.add(said)
                if read_sealed(bytes([number]) + said):  # a birth must show the card
                    yield bytes([number]) + said


SEALED_GATEWAY = AUTHORITY.gateway("g1", bytes(8))
SEALED_COORDINATOR = AUTHORITY.coordinator()
SEALED_COORDINATOR.know("g1", bytes(8), SEALED_GATEWAY.card)
SAID: set[bytes] = set()
BORN = Birth(
    nonce=bytes(8),
    software="fedmq",
    engines=(),
    signal_samples={},
    sent=0,
    received=0,
    root=1,
    card=SEALED_GATEWAY.card,
)


def read_trust(data: bytes) -> bool:
    """A file of roots, a root that is to lead on, and a card; what the first byte says."""
    if not data:
        return False
    body = data[1:]
    try:
        if data[0] % 3 == 0:
            assert Chain.read(body.decode("latin-1"), "test").newest.federation == "test"
        elif data[0] % 3 == 1:
            assert AUTHORITY.chain.walk([body]).newest == AUTHORITY.chain.newest
        else:
            read_card(body, federation="test", gateway="g1", issuer=AUTHORITY.chain.newest.issuer)
            assert body == SEALED_GATEWAY.card
    except TrustError:
        return False
    return True


def trust_seeds() -> Iterator[bytes]:
    yield b"\0" + AUTHORITY.chain.text().encode()
    yield b"\0" + LATER.chain.text().encode()
    yield b"\0" + Chain(LATER.signed[1:]).text().encode()
    yield b"\1" + AUTHORITY.signed[0]
    yield b"\2" + SEALED_GATEWAY.card


# --- transfers -------------------------------------------------------------------------------------------------------


def read_transfer(data: bytes) -> bool:
    """A reference and then chunks, as they would come: coded one after another, each behind its length."""
    if len(data) < 2:
        return False
    max_bytes = 1 << data[0] % 24
    at, incoming = 2, None
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        coded = data[at + 2 : at + 2 + size]
        at += 2 + size
        try:
            if incoming is None:
                incoming = Incoming(msgspec.msgpack.decode(coded, type=BlobRef), max_bytes)
            else:
                incoming.add(msgspec.msgpack.decode(coded, type=Chunk))
        except (msgspec.MsgspecError, TransferError):
            if incoming is None:
                return False
    if incoming is None:
        return False
    missing = incoming.missing()
    assert len(missing) <= 512
    assert bool(missing) != incoming.complete
    try:
        blob = incoming.blob()
    except TransferError:
        return False
    assert len(blob) == incoming.ref.length <= max_bytes
    return True


def transfer_seeds() -> Iterator[bytes]:
    rng = random.Random(5)
    for size, chunk_bytes in ((1, 256), (256, 256), (257, 256), (1000, 256), (3000, 700)):
        blob = rng.randbytes(size)
        ref = refer(blob, chunk_bytes)
        coded = [msgspec.msgpack.encode(item) for item in (ref, *chunks(blob, ref))]
        yield bytes([20, 0]) + b"".join(len(item).to_bytes(2, "big") + item for item in coded)


# --- catching up -----------------------------------------------------------------------------------------------------


def gateway_task() -> Task:
    model = ModelSpec(kind="mlp", sizes=(6, 5, 3))
    initial = short(model_digest(initial_steps(model, 0, 12)))
    codec = Codec(bits=1, density=0.1)
    return Task(name="small", model=model, classes=("a", "b", "c"), initial=initial, up=codec, down=codec)


GATEWAY_TASK = gateway_task()
START = initial_steps(GATEWAY_TASK.model, 0, 12)
MOVED = np.rint(np.random.default_rng(8).standard_cauchy(START.size) * 5).astype(np.int32)
GATEWAY = GatewayState(
    lineage=1,
    task=GATEWAY_TASK,
    version=3,
    steps=START + MOVED,
    residual=np.zeros(GATEWAY_TASK.model.parameters, np.float32),
)
DOWN = CodecSpec(bits=1, density=0.1, step=GATEWAY_TASK.grid_step)
DOWN_CONTEXTS = Contexts.of(MOVED, GATEWAY_TASK.model.shapes)


def read_catch_up(data: bytes) -> bool:
    """A chain, a merged delta, a keyframe, or a plan's delta, as a gateway at version 3 takes it."""
    if not data:
        return False
    kind = data[0] & 3
    body = data[1:] if data[0] & UNSEALED else sealed_catch_up(kind, data[1:])
    try:
        if kind == 3:
            plan = RoundPlan(
                round_id=9,
                lineage=1,
                kind=RoundKind.TRAINING,
                base=4,
                model=1,
                closes_after=1,
                drawn=0,
                accepted=0,
                since=1,
                level=0,
            )
            advance(GATEWAY, plan, body)
        else:
            message = CatchUp(lineage=1, kind=CatchUpKind(kind), start=3, number=5, model=bytes(8), body=b"")
            catch_up(GATEWAY, message, body)
    except ModelMismatch as mismatch:
        # Decoded as far as the digest, which is never the one that is promised here.
        return "promised" in str(mismatch)
    raise AssertionError("a model of another digest was taken")


def sealed_catch_up(kind: int, body: bytes) -> bytes:
    agreed = DOWN.agreed(START.size) + DOWN_CONTEXTS.mark
    if kind == 3:
        return seal(body, agreed)
    if kind != CatchUpKind.CHAIN:
        return seal(body, integers_agreed(START.size))
    # Of a chain only the first can be sealed here: the others' contexts come of it.
    with suppress(msgspec.MsgspecError):
        chain = msgspec.msgpack.decode(body, type=list[tuple[int, bytes]])
        return msgspec.msgpack.encode([(level, seal(delta, agreed)) for level, delta in chain[:1]] + chain[1:])
    return body


def catch_up_seeds() -> Iterator[bytes]:
    rng = np.random.default_rng(6)
    deltas, moved = [], MOVED
    for _ in range(6):
        contexts = Contexts.of(moved, GATEWAY_TASK.model.shapes)
        encoded = encode(rng.normal(size=START.size).astype(np.float32), DOWN, contexts=contexts)
        deltas.append(encoded.payload)
        moved = moved + encoded.sent.whole_steps()
    for count in (0, 1, 2, 6):
        chain = [(0, delta[:-2]) for delta in deltas[:1][:count]] + [(0, delta) for delta in deltas[1:count]]
        yield b"\x00" + msgspec.msgpack.encode(chain)
    for kind in (1, 2):
        for body in layouts(np.rint(rng.normal(size=START.size) * 3).astype(np.int64)):
            yield bytes([kind]) + body
    for _ in range(4):
        delta = rng.normal(size=START.size).astype(np.float32)
        for payload, _ in ranked_payloads(delta, DOWN, DOWN_CONTEXTS):
            yield b"\x03" + payload[:-2]


# --- frames of a sensor ----------------------------------------------------------------------------------------------


def read_frame(data: bytes) -> bool:
    """Kind, sensor, boot, sequence and payload of one frame; what is taken is written again as the same bytes."""
    if not data:
        return False
    stream = data[1:] + b"\0" if data[0] & UNSEALED else sealed_frame(data[1:])
    decoder = frames.Decoder()
    taken = decoder.feed(stream)
    readings.Line().take(taken, 1.0)
    if not data[0] & UNSEALED and taken:
        assert b"".join(map(frames.encode, taken)) == stream
    counts = decoder.counts
    assert counts.frames == len(taken)
    assert counts.frames + counts.failed + counts.malformed + counts.oversized == sum(map(bool, stream.split(b"\0")))
    return bool(taken)


def sealed_frame(body: bytes) -> bytes:
    whole = bytes([frames.VERSION]) + body
    return cobs.encode(whole + struct.pack("<IH", zlib.crc32(whole), fastcrc.crc16.ibm_3740(whole))) + b"\0"


def frame_seeds() -> Iterator[bytes]:
    rng = np.random.default_rng(9)
    head = {"sensor": 3, "boot": 7, "sequence": 258}
    made: list[frames.Frame] = [
        frames.AskHello(**head),
        frames.Opaque(kind=0x82, payload=rng.bytes(60), **head),
        *(
            frames.Hello(
                uid=rng.bytes(16),
                name="pump-3",
                firmware="1.4.2",
                now_us=20_480_123,
                rate_mhz=3_200_000,
                scale=0.0383,
                channels=tuple(frames.Channel(name=f"c{n}", unit="m/s2", offset=0.5, gain=1.01) for n in range(count)),
                **head,
            )
            for count in (1, 3, 16)
        ),
        *(
            frames.Samples(
                taken_us=20_480_000,
                rate_mhz=3_200_000,
                scale=0.0383,
                values=rng.integers(-300, 300, shape).astype(np.int16),
                **head,
            )
            for shape in ((1, 1), (2, 3), (64, 3), (30, 16))
        ),
    ]
    for frame in made:
        coded = frames.encode(frame)
        yield b"\0" + cobs.decode(coded[:-1])[1:-6]
        yield bytes([UNSEALED]) + coded[:-1]


# --- bundles ---------------------------------------------------------------------------------------------------------


def read_bundle(data: bytes) -> bool:
    """A file, or its content, which is then wrapped here: digest and frame would stop nearly everything."""
    if not data:
        return False
    file = data[1:]
    if not data[0] & UNSEALED:
        body = len(file).to_bytes(4, "big") + deflate(file)
        file = bundles.MAGIC + bytes([bundles.VERSION]) + hashlib.sha256(body).digest() + body
    try:
        bundle = bundles.from_bytes(file)
    except bundles.BundleError:
        return False
    assert bundles.from_bytes(bundles.to_bytes(bundle)) == bundle
    manifest = bundle.manifest
    model = bundle.model(bytes(32), 1)
    assert model.parameters == manifest.length
    with suppress(bundles.BundleError):  # values too large for the grid
        steps = bundles.start_of(model, 0, 12, bundle)
        assert (steps.shape, steps.dtype) == ((model.parameters,), np.int32)
    # What was checked runs, and gives what it was checked to give.
    flat = np.zeros(model.parameters, dtype=np.float32)
    (out,) = Interpreter(bundle.infer_one).run([flat, np.zeros((1, *manifest.inputs), dtype=np.float32)])
    assert out.size == manifest.outputs
    return True


def bundle_seeds() -> Iterator[bytes]:
    small = ModelSpec(kind="mlp", sizes=(6, 4, 3))
    for made in (
        bundle_of(small),
        with_values(bundle_of(small)),
        with_noise(bundle_of(small)),
        with_preparation(bundle_of(small), samples=2),
        slow(bundle_of(small), nodes=2, side=32),
        bundle_of(ModelSpec(kind="cnn1d", sizes=(64, 4, 3))),
    ):
        yield b"\x00" + msgspec.msgpack.encode(made)
        yield bytes([UNSEALED]) + bundles.to_bytes(made)


# --- models on sensors -----------------------------------------------------------------------------------------------


GOLDEN = Path(__file__).parents[1] / "vectors" / "downloads.json"


def read_image(data: bytes) -> bool:
    """A model as data, its length and checksum mended; what is taken computes, and can be written again."""
    if not data:
        return False
    body = data[1:]
    if not data[0] & UNSEALED and len(body) >= 12:
        body = body[:8] + struct.pack("<I", len(body) + 4) + body[12:]
        body += struct.pack("<I", zlib.crc32(body))
    try:
        image = sensor_image.from_bytes(body)
    except sensor_image.ImageError:
        return False
    windows = np.zeros((3, image.samples, image.channels), dtype=np.int16)
    windows[1:] = np.array([-32768, 32767], dtype=np.int16)[:, None, None]
    outputs, found = image.run(windows)
    assert outputs.min() >= -127
    assert found.min() >= 0
    again = sensor_image.from_bytes(sensor_image.to_bytes(image))
    assert np.array_equal(again.run(windows)[0], outputs)
    return True


def image_seeds() -> Iterator[bytes]:
    for golden in json.loads(GOLDEN.read_text(encoding="ascii"))["images"]:
        data = bytes.fromhex(golden["image"])
        yield b"\0" + data[:-4]
        yield bytes([UNSEALED]) + data


def read_answer(data: bytes) -> bool:
    """Kind and payload of what a sensor says: an ack, of which a download makes the next order, or a score."""
    if not data:
        return False
    kind = frames.Kind.SCORE if data[0] & 1 else frames.Kind.ACK
    frame = frames.Opaque(kind=kind, sensor=3, sequence=0, payload=data[1 : 1 + frames.MAX_PAYLOAD])
    download = downloads.Download(sensor=3, image=bytes(600) + struct.pack("<I", zlib.crc32(bytes(600))), sequence=1000)
    download.due(0.0)
    download.take(frame, 0.1)
    assert 0 <= download.received <= len(download.image)
    for ordered in download.due(0.2):
        assert len(ordered.payload) <= 12 + downloads.CHUNK_BYTES
    try:
        if kind == frames.Kind.ACK:
            downloads.read_ack(frame)
        else:
            assert np.isfinite(scores.read_score(frame).values).all()
    except frames.FrameError:
        return False
    return True


def answer_seeds() -> Iterator[bytes]:
    golden = json.loads(GOLDEN.read_text(encoding="ascii"))
    sent = [(b"\0", turn["ack"]) for turn in golden["conversation"]] + [(b"\1", score) for score in golden["scores"]]
    for first, encoded in sent:
        yield first + cobs.decode(bytes.fromhex(encoded)[:-1])[10:-6]


# --- readings as text ------------------------------------------------------------------------------------------------

COLUMNS = (
    lines.Columns(names=("x", "y"), units=("g",), rate_hz=10.0),
    lines.Columns(names=("n", "t", "-", "x"), rate_hz=10.0, sequence="n", time="t"),
    lines.Columns(names=("t", "a.x"), rate_hz=0.01, time="t", time_unit="s"),
    lines.Columns(rate_hz=1.0),
)
KINDS: tuple[Literal["csv", "json"], ...] = ("csv", "json")


def read_text(data: bytes) -> bool:
    """Columns and kind, then what comes on a port; also what a probe and a label by message make of it."""
    if not data:
        return False
    columns, body = COLUMNS[data[0] & 3], data[1:]
    info = SensorInfo(source="hall", number=0, name="hall", machine="m", channels=columns.channels)
    line = lines.TextLine(sensor=info, kind=KINDS[data[0] >> 2 & 1], rows=lines.Rows(columns=columns))
    line.opened()
    half = len(body) // 2
    heard = [*line.take(body[:half], 1.0), *line.take(body[half:] + b"\n", 1.5)]
    samples = sum(len(one.stretch.values) for one in heard)
    assert samples == line.rows.counts.samples <= body.count(b"\n") + 1
    assert all(np.isfinite(one.stretch.values).all() for one in heard)
    probing.recognise(body, 1.0)
    try:
        read_label(body, LABELLED_AT)
    except ValueError:
        return bool(heard)
    return True


LABELLED_AT = datetime(2026, 11, 29, tzinfo=UTC)


def text_seeds() -> Iterator[bytes]:
    yield b"\x00" + b"1,2\n3;4\r\n-5e-3,6\nboot: v1\n7,8\n"
    yield b"\x01" + b"0,0,9,1.5\n1,100,9,1.5\n4,400,9,1.5\n4,400,9,1.5\n0,10,9,1\n"
    yield b"\x06" + b'{"t": 1, "a": {"x": 1.5}}\n{"t": 101.5, "a.x": true}\n{"t": 3}\n'
    yield b"\x07" + b"21.5\n22\n-1e30\n1e999\nfalse\n"
    yield b"\x04" + b'{"machine": "m", "from": "2026-11-29T08:00", "to": "now", "label": "ball"}'
    yield b"\x04" + b'{"machine": "m", "from": 10, "to": "90m", "label": "ball"}'
