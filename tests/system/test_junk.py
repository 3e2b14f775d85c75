"""Junk on every topic, from a client that may write them all: dropped, told of once, and the run goes on."""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import zstandard
from broker_fixtures import joined
from fedmq_broker_config.run import LocalBroker
from fedmq_compression.frame import seal
from fedmq_compression.pipeline import CodecSpec, PayloadError, decode
from fedmq_edge_node.samples import FEATURES
from fedmq_protocol.messages import (
    MAX_BLOB,
    Assignment,
    Birth,
    BlobRef,
    Chunk,
    Decline,
    Held,
    Leave,
    Message,
    MessageError,
    RoundKind,
    RoundPlan,
    Statistics,
    Update,
    Welcome,
    from_bytes,
    to_bytes,
)
from fedmq_protocol.reasons import Reason
from fedmq_protocol.session import Connection, MqttSession, Received
from fedmq_protocol.task import UPLINK_STEP, Task
from fedmq_protocol.topics import TABLE, Channel, Direction, parse, spec, topic
from processes import FEDERATION, Site, small_fleet

from fedmq.programs import load_task

pytestmark = [pytest.mark.broker, pytest.mark.slow]

JUNK = 2_000
GROWTH_BYTES = 16_000_000
LIAR = "liar"
PLAN = topic(FEDERATION, Direction.DOWN, Channel.PLAN)


def answer_topic(gateway: str) -> str:
    return topic(FEDERATION, Direction.UP, Channel.ANSWER, gateway)


def truncated(message: Message, rng: Random) -> bytes:
    whole = to_bytes(message)
    return whole[: rng.randrange(1, len(whole))]


def junk(gateway: str, rng: Random) -> Iterator[tuple[str, bytes]]:
    """Topic and bytes that are no message, on each row of the table in turn; without end."""
    valid: dict[Channel, Message] = {
        Channel.ANSWER: Update(round_id=1, base=0, counter=1, payload=b"\x20" * 40, sent=1000, received=1000, loss=0),
        Channel.STATUS: Birth(
            nonce=bytes(8), software="x", engines=("numpy",), signal_samples={"normal": 70_000}, sent=1, received=1,
            held=(Held(lineage=1, version=1, task=bytes(8), counter=1),),
        ),
        Channel.CHUNK: Chunk(transfer=bytes(8), index=0, data=bytes(50)),
        Channel.WELCOME: Welcome(
            nonce=bytes(8), now=1.0, roster=0, spread=0, tasks=(Assignment(lineage=1, counter=0),)
        ),
    }  # fmt: skip
    # What every gateway would believe, were it not for one number.
    not_a_time = to_bytes(valid[Channel.WELCOME]).replace(struct.pack(">d", 1.0), struct.pack(">d", float("nan")))
    while True:
        for row in TABLE:
            where = topic(FEDERATION, row.direction, row.channel, None if row.direction is Direction.DOWN else gateway)
            yield where, rng.randbytes(rng.choice((1, 7, 300, 3000)))
            yield where, truncated(valid.get(row.channel, valid[Channel.ANSWER]), rng)
            yield where, b"\x10" + to_bytes(valid[Channel.ANSWER])[1:]  # wire version 1
            yield where, b"\x3f" + to_bytes(valid[Channel.ANSWER])[1:]  # a trailer that nobody knows
            yield where, b"\x30\x9c\xc6\xff\xff\xff\xff"  # a list whose first bytes are said to be 4 GB long
            yield where, b"\x30" + b"\x91" * 900  # lists in lists
        yield topic(FEDERATION, Direction.CMD, Channel.WELCOME, gateway), not_a_time


def read_by_somebody(where: str) -> bool:
    """Whether a program of ours is subscribed: none is to `report` or `fleet`, and to `model` only who waits for it."""
    return not where.endswith(("/report", "/fleet", "/model"))


def bomb(task: Task) -> bytes:
    """A payload whose checksum, head and scale are right, and whose zstd frame holds far more than it should."""
    parameters = task.model.parameters
    coding = CodecSpec(bits=task.up.bits, density=task.up.density, step=UPLINK_STEP)
    assert coding.bits == 8
    assert coding.density == 1.0
    frame = zstandard.ZstdCompressor(level=19, write_content_size=True).compress(bytes(8_000_000))
    payload = seal(b"\x14\x05" + frame[len(zstandard.FRAME_HEADER) :], coding.agreed(parameters))
    assert len(payload) < 1000
    with pytest.raises(PayloadError, match="a zstd frame of 8000000 bytes"):
        decode(payload, parameters, coding)
    return payload


def lies(task: Task) -> tuple[Callable[[RoundPlan], list[Message]], ...]:
    """Answers that are messages, each to a round that the liar was drawn for, and each untrue in another way."""

    def update(plan: RoundPlan, payload: bytes | BlobRef) -> Update:
        return Update(
            round_id=plan.round_id, base=plan.base_mark, counter=1000 + plan.round_id, payload=payload,
            sent=0, received=0, loss=0,
        )  # fmt: skip

    reference = BlobRef(digest=bytes(32), length=3000, chunk_bytes=1024)
    return (
        lambda plan: [update(plan, bomb(task))],
        lambda plan: [update(plan, b"\x14\x05not a frame")],
        lambda plan: [update(plan, bytes(120_000))],
        lambda plan: [update(plan, BlobRef(digest=bytes(32), length=MAX_BLOB, chunk_bytes=1024))],
        # A reference that may be, and chunks that are not what it says; then an end to it.
        lambda plan: [
            update(plan, reference),
            Chunk(transfer=bytes(8), index=0, data=bytes(7)),
            Chunk(transfer=bytes(8), index=99, data=bytes(1024)),
            Decline(round_id=plan.round_id, reason=Reason.ERROR, sent=0, received=0),
        ],
        # Refused, and declined as well.
        lambda plan: [
            update(plan, b""),
            Decline(round_id=plan.round_id, reason=Reason.BATTERY, sent=1 << 44, received=1 << 44),
        ],
    )


def test_junk_on_every_topic_is_told_of_once_and_dropped_and_memory_stays(
    tmp_path: Path, mosquitto: LocalBroker
) -> None:
    fleet = small_fleet(3)
    rounds = 20
    with Site(
        tmp_path,
        fleet,
        port=mosquitto.port,
        rounds=rounds,
        # Its layout is the one that may hold a zstd frame.
        task={"codec.up_bits": 8, "codec.least_density": 1.0, "codec.most_density": 1.0},
        round_={"interval_seconds": 0.4, "closing_seconds": 20},
        # All of it is to be read.
        coordinator={"limits.messages_burst": 1_000_000},
    ) as site:
        site.start()
        site.wait(lambda ledger: len(site.training("applied")) >= 2, "two rounds")
        task = load_task(site.ledger.only)
        liar = MqttSession(Connection(host="127.0.0.1", port=mosquitto.port, client_id=LIAR))
        liar.subscribe(PLAN)
        liar.start()
        try:
            joined(liar)
            memory = {name: program.memory_bytes() for name, program in site.programs.items()}
            sent = throw_junk(liar, fleet.gateways[0].name)
            told_lies = tell_lies(liar, lies(task))
            tell_statistics(liar)
            site.wait_for_rest()
        finally:
            liar.stop(flush_seconds=5.0)

        for name, program in site.programs.items():
            growth = program.memory_bytes() - memory[name]
            assert growth < GROWTH_BYTES, f"{name} grew by {growth:,} bytes over {JUNK} messages"
        # Every message that somebody reads has its line, and only one, with its topic and its size.
        logs = {name: program.text() for name, program in site.programs.items()}
        for (where, size), count in sent.items():
            for reader in readers(where, site):
                line = f"dropped {size} bytes on {where}:"
                assert logs[reader].count(line) == count, f"{reader} should say {count} times: {line}"
        for where, size in told_lies:
            assert logs["coordinator"].count(f"refused {size} bytes on {where},") >= 1
        assert "a zstd frame of 8000000 bytes" in logs["coordinator"]
        assert "nan or infinity" in logs["coordinator"]
        assert "Traceback" not in "".join(logs.values())
        refused = sum(messages for _, _, messages, _ in site.ledger.refused())
        assert refused == 1 + sum(count for (where, _), count in sent.items() if "/up/" in where)

        assert {a.verdict for a in site.answers_of(LIAR, "update")} == {"malformed"}
        assert len(site.training("applied")) == rounds
        for row in site.training():
            honest = {a.gateway for a in site.ledger.answers(row.id) if a.verdict == "accepted" and a.kind == "update"}
            assert honest == set(site.names), f"round {row.id}"
            assert row.closed_at is not None
            assert row.closed_at < row.closes_at, f"round {row.id} waited for a liar"
        site.finish()
        site.assert_one_model_everywhere()


def throw_junk(liar: MqttSession, victim: str) -> Counter[tuple[str, int]]:
    """How often which topic got bytes of which size."""
    sent: Counter[tuple[str, int]] = Counter()
    for where, data in junk(victim, Random(0)):
        while liar.outstanding > 20:
            time.sleep(0.001)
        assert liar.publish(where, data)
        if read_by_somebody(where):
            sent[where, len(data)] += 1
        if sent.total() >= JUNK:
            return sent
    raise AssertionError("unreachable: there is no end of junk")


def tell_lies(liar: MqttSession, answers: tuple[Callable[[RoundPlan], list[Message]], ...]) -> list[tuple[str, int]]:
    """Join as a gateway, and give each untrue answer to a round of its own; topic and size of the updates."""
    birth = Birth(
        nonce=bytes(8), software="lies", engines=(), signal_samples={"normal": 100_000}, sent=0, received=0,
    )  # fmt: skip
    liar.publish(topic(FEDERATION, Direction.UP, Channel.STATUS, LIAR), to_bytes(birth), retain=False)
    told = []
    left = list(answers)
    until = time.monotonic() + 60.0
    while left:
        assert time.monotonic() < until, f"{len(left)} lies could not be told"
        event = liar.next(1.0)
        plan = plan_of(event) if isinstance(event, Received) else None
        if plan is None or plan.kind is not RoundKind.TRAINING or not plan.draws(3, LIAR):
            continue
        for message in left.pop(0)(plan):
            channel = Channel.CHUNK if isinstance(message, Chunk) else Channel.ANSWER
            liar.publish(topic(FEDERATION, Direction.UP, channel, LIAR), to_bytes(message))
            if isinstance(message, Update) and not (
                isinstance(message.payload, BlobRef) and message.payload.length < MAX_BLOB
            ):
                size = message.payload.length if isinstance(message.payload, BlobRef) else len(message.payload)
                told.append((answer_topic(LIAR), size))
    # It leaves, else every later round would wait for it.
    gone = Leave(nonce=bytes(8), clean=True)
    liar.publish(topic(FEDERATION, Direction.UP, Channel.STATUS, LIAR), to_bytes(gone))
    return told


def tell_statistics(liar: MqttSession) -> None:
    """Numbers that are none."""
    nothing = np.full(FEATURES, np.nan, dtype=np.float32).tobytes()
    message = Statistics(round_id=1, count=100, mean=nothing, m2=nothing, sent=0, received=0)
    liar.publish(topic(FEDERATION, Direction.UP, Channel.STATISTICS, LIAR), to_bytes(message))


def plan_of(received: Received) -> RoundPlan | None:
    """The plan in a message, for its topic carries our own junk too."""
    try:
        message = from_bytes(spec(Direction.DOWN, Channel.PLAN), received.payload)
    except MessageError:
        return None
    return message if isinstance(message, RoundPlan) else None


def readers(where: str, site: Site) -> tuple[str, ...]:
    """Who is subscribed to a topic."""
    parsed = parse(where)
    if parsed.direction is Direction.UP:
        return ("coordinator",)
    return site.names if parsed.gateway is None else (parsed.gateway,)
