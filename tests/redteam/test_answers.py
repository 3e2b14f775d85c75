"""Answers of a gateway that was enrolled like any other: what it may send, and what becomes of it.

Each attack gives an answer that is right but for one thing, to a round that asked for it. The first test is the
measure: a right answer of the same make is taken.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from fedmq_compression.frame import MAX_SCALE, deflate
from fedmq_compression.indices import Layout
from fedmq_coordinator.ledger import Answer
from fedmq_protocol.messages import SEAL_BYTES, BlobRef, Chunk, Leave, RoundPlan, Seal, Statistics, Update, to_bytes
from fedmq_protocol.session import Connected, Connection, Disconnected, MessageTooLarge, MqttSession
from fedmq_protocol.topics import Channel, Direction, spec
from redteam import FLOATS, MAIN, Insider, Outcome, Stand, cmd, up
from redteam_payloads import Forger, bomb, honest_frame, lying_bomb

pytestmark = [pytest.mark.broker, pytest.mark.slow]

Forge = Callable[[Forger], bytes]


def forger_for(stand: Stand, mallory: Insider, plan: RoundPlan) -> Forger:
    return Forger(mallory.task(stand.task_names[plan.lineage]), plan, stand.steps(plan))


def is_refused_as(
    stand: Stand, who: str, forge: Forge, reason: str, *, task: str = MAIN, verdict: str = "malformed"
) -> Answer:
    """The answer is refused for that reason and none before it; the round that it was for closes with the others'."""
    with stand.insider(who, tags=(FLOATS,) if task == FLOATS else ()) as mallory:
        plan = mallory.next_plan(task)
        mallory.answer(plan, forge(forger_for(stand, mallory, plan)))
        assert stand.verdict(mallory, plan) == verdict
        stand.refusal(mallory, plan.round_id, reason)
        closed = stand.honest_round_went_on(plan.round_id, task)
        assert closed.id == plan.round_id, "the attacked round itself was to close with the honest answers"
        (answer,) = stand.answers(mallory, plan)
    assert answer.weight == 0
    assert answer.counted_in is None
    return answer


@pytest.mark.parametrize("task", [MAIN, FLOATS])
def test_the_measure_a_right_answer_of_the_same_make_is_taken(stand: Stand, task: str) -> None:
    with stand.insider(f"mallory-right-{task}", tags=(FLOATS,)) as mallory:
        for make in (
            (lambda f: f.honest(), lambda f: f.packed(honest_frame(f.count)))
            if task == MAIN
            else (lambda f: f.honest(), lambda f: f.floats(np.full(f.length, 2.0**-10, dtype=np.float32)))
        ):
            plan = mallory.next_plan(task)
            mallory.answer(plan, make(forger_for(stand, mallory, plan)))
            assert stand.verdict(mallory, plan) == "accepted"
            stand.honest_round_went_on(plan.round_id, task)


# -- bytes that are no payload ---------------------------------------------------------------------------------


@pytest.mark.attack("zstd bomb")
@pytest.mark.parametrize(
    ("kind", "forge", "reason"),
    [
        ("open", lambda f: f.packed(bomb(7_000_000)), "a zstd frame of 7000000 bytes, expected a plain one of"),
        ("lying", lambda f: f.packed(lying_bomb(f.count, 60)), "a zstd frame is broken: zstd decompress error"),
    ],
)
def test_a_bomb_is_refused_before_it_is_unpacked(
    stand: Stand, outcome: Outcome, kind: str, forge: Forge, reason: str
) -> None:
    before = stand.program("coordinator").memory_bytes("VmHWM")
    is_refused_as(stand, "mallory-bomb", forge, reason)
    grown = stand.program("coordinator").memory_bytes("VmHWM") - before
    assert grown < 6_000_000, f"the coordinator's peak grew by {grown:,} bytes"
    outcome("coordinator: the frame's stated size is not what the task makes of it")


@pytest.mark.attack("truncated frame")
@pytest.mark.parametrize(
    ("kind", "forge", "reason"),
    [
        # The checksum is over what is left, so that it is the frame itself that gives it away.
        ("frame", lambda f: f.packed(honest_frame(f.count)[:-3]), "a zstd frame ends after"),
        ("payload", lambda f: f.honest()[:-7], "the checksum does not fit"),
        ("empty", lambda f: b"", "a payload of 0 bytes"),
    ],
)
def test_a_truncated_frame_is_refused(stand: Stand, outcome: Outcome, kind: str, forge: Forge, reason: str) -> None:
    is_refused_as(stand, "mallory-truncated", forge, reason)
    outcome("coordinator: checksum, and the frame's own length")


@pytest.mark.attack("trailing second frame")
@pytest.mark.parametrize(
    ("kind", "forge", "reason"),
    [
        ("frame", lambda f: f.packed(honest_frame(f.count) + deflate(b"and more")), "a zstd frame ends after"),
        (
            "skippable",
            lambda f: f.packed(honest_frame(f.count) + b"\x50\x2a\x4d\x18\x01\x00\x00\x00!"),
            "a zstd frame ends after",
        ),
        ("tail", lambda f: f.sealed(f.packed(honest_frame(f.count))[:-2] + bytes(40)), "bits after the end"),
    ],
)
def test_nothing_rides_along_behind_a_frame(
    stand: Stand, outcome: Outcome, kind: str, forge: Forge, reason: str
) -> None:
    is_refused_as(stand, "mallory-trailing", forge, reason)
    outcome("coordinator: a frame must end where its payload says")


@pytest.mark.attack("NaN, infinity and overflowing scale")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 64.0, 3e38])
def test_numbers_that_are_none_are_refused(stand: Stand, outcome: Outcome, value: float) -> None:
    def one_of_them(forger: Forger) -> bytes:
        values = np.zeros(forger.length, dtype=np.float32)
        values[forger.length // 2] = value
        return forger.floats(values)

    is_refused_as(stand, "mallory-floats", one_of_them, "a value is not finite or not below 64", task=FLOATS)
    outcome("coordinator: decoder")


@pytest.mark.attack("NaN, infinity and overflowing scale")
def test_a_scale_that_overflows_is_refused(stand: Stand, outcome: Outcome) -> None:
    forge: Forge = lambda f: f.with_scale(MAX_SCALE)  # noqa: E731
    is_refused_as(stand, "mallory-scale", forge, "steps leads to values of 64.0 or more")
    outcome("coordinator: decoder")


@pytest.mark.attack("NaN, infinity and overflowing scale")
def test_statistics_that_are_no_numbers_are_refused(stand: Stand, outcome: Outcome) -> None:
    before = stand.refused_messages(Channel.STATISTICS, "statistics that cannot be")
    nothing = np.full(22, np.nan, dtype="<f4").tobytes()
    with stand.insider("mallory-statistics") as mallory:
        mallory.say(Channel.STATISTICS, Statistics(round_id=1, count=100, mean=nothing, m2=nothing, sent=0, received=0))
        stand.site.poll(
            lambda: stand.refused_messages(Channel.STATISTICS, "statistics that cannot be") == before + 1,
            "the statistics to be refused",
        )
        assert "expected finite means and M2s, got nan or infinity" in stand.coordinator_log
        stand.honest_round_went_on()
    outcome("coordinator: decoder")


@pytest.mark.attack("indices out of range, duplicate, unsorted")
@pytest.mark.parametrize(
    ("kind", "forge", "reason"),
    [
        # The last one lies behind the model's end.
        ("beyond", lambda f: f.with_gaps(_gaps(f, last=f.length)), "expected less than"),
        # Twice the same would be a gap of -1, and one that comes before the last a lower one still: in whole numbers
        # without a sign, these are large.
        ("duplicate", lambda f: f.with_gaps(_gaps(f, last=(1 << 12) - 1)), "a number of"),
        ("unsorted", lambda f: f.with_gaps(_gaps(f, last=(1 << 12) - 5)), "a number of"),
        (
            "twice in a bitmap",
            lambda f: f.with_bitmap(np.arange(f.length) < f.count - 1, f.count - 2),
            "a bitmap tells",
        ),
        (
            "bitmap beyond",
            lambda f: f.with_bitmap(np.ones(f.length + 4, dtype=bool), f.count - 1),
            "a bitmap has bits after",
        ),
    ],
)
def test_indices_that_cannot_be_are_refused(
    stand: Stand, outcome: Outcome, kind: str, forge: Forge, reason: str
) -> None:
    answer = is_refused_as(stand, "mallory-indices", forge, reason)
    assert answer.verdict == "malformed"
    outcome("coordinator: decoder; what is sorted and told once is all that the layouts can say")


def _gaps(forger: Forger, *, last: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    gaps = np.zeros(forger.count, dtype=np.int64)
    gaps[-1] = last
    return gaps


@pytest.mark.attack("wrong shape, dtype or version")
@pytest.mark.parametrize(
    ("kind", "forge", "reason"),
    [
        ("shape", lambda f: f.honest(length=f.length - 1), "the checksum does not fit"),
        ("dtype", lambda f: f.honest(bits=32), "the checksum does not fit"),
        ("few-bits", lambda f: f.honest(bits=4), "the checksum does not fit"),
        ("layout", lambda f: f.sealed(bytes([9 << 4]) + f.honest()[1:-2]), "made by a newer version?"),
        ("dense", lambda f: f.sealed(bytes([Layout.DENSE << 4]) + f.honest()[1:-2]), "layout DENSE, where"),
    ],
)
def test_another_shape_dtype_or_version_is_refused(
    stand: Stand, outcome: Outcome, kind: str, forge: Forge, reason: str
) -> None:
    is_refused_as(stand, "mallory-shape", forge, reason)
    outcome("coordinator: the checksum binds length and codec of the task")


@pytest.mark.attack("wrong shape, dtype or version")
def test_another_version_of_the_wire_is_refused(stand: Stand, outcome: Outcome) -> None:
    before = stand.refused_messages(Channel.ANSWER, "wire version 2")
    with stand.insider("mallory-wire") as mallory:
        plan = mallory.next_plan(MAIN)
        payload = forger_for(stand, mallory, plan).honest()
        update = Update(
            round_id=plan.round_id, base=plan.base_mark, counter=1, payload=payload, sent=0, received=0, loss=0
        )
        data = mallory.wire(Channel.ANSWER, update)
        mallory.publish(mallory.own(Channel.ANSWER), bytes([2 << 4 | data[0] & 15]) + data[1:])
        stand.site.poll(
            lambda: stand.refused_messages(Channel.ANSWER, "wire version 2") == before + 1, "the message to be refused"
        )
        assert f"dropped {len(data)} bytes on {mallory.own(Channel.ANSWER)}: wire version 2" in stand.coordinator_log
        assert stand.answers(mallory, plan) == []
    stand.honest_round_went_on(plan.round_id)
    outcome("coordinator: the message's envelope")


# -- who answers what, and how often -----------------------------------------------------------------------------


@pytest.mark.attack("duplicate delivery")
def test_what_comes_twice_counts_once(stand: Stand, outcome: Outcome) -> None:
    with stand.insider("mallory-twice") as mallory:
        plan = mallory.next_plan(MAIN)
        payload = forger_for(stand, mallory, plan).honest()
        first = mallory.answer(plan, payload)
        for _ in range(5):
            mallory.say(Channel.ANSWER, first)
        # Other bytes under the same round are no second answer, either.
        mallory.answer(plan, payload, counter=first.counter + 1)
        assert stand.verdict(mallory, plan) == "accepted"
        stand.refusal(mallory, plan.round_id, "it answered this round before, with other bytes")
        closed = stand.honest_round_went_on(plan.round_id)
        assert closed.id == plan.round_id
        (answer,) = stand.answers(mallory, plan)
        # Its weight is that of its windows, once; nobody else's is touched.
        assert answer.counter == first.counter
        assert answer.counted_in == plan.round_id
    summary = f"round {plan.round_id} applied: {len(stand.names) + 1} updates, "
    assert summary in stand.coordinator_log
    outcome("coordinator: one answer a gateway and round; a repeat gets its first verdict", "counted once")


@pytest.mark.attack("replay from an old round")
def test_an_answer_to_an_old_round_changes_nothing(stand: Stand, outcome: Outcome) -> None:
    with stand.insider("mallory-replay") as mallory:
        old = mallory.next_plan(MAIN)
        payload = forger_for(stand, mallory, old).honest()
        mallory.answer(old, payload)
        assert stand.verdict(mallory, old) == "accepted"
        stand.honest_round_went_on(old.round_id)
        plan = mallory.next_plan(MAIN)
        # To rounds that are over: to one that it has answered, and to one from before its time.
        mallory.answer(old, payload, counter=1 + (1 << 20))
        stand.refusal(mallory, old.round_id, "it answered this round before, with other bytes")
        before = replace_round(old, stand.first_round())
        mallory.answer(before, payload, counter=2 + (1 << 20))
        stand.refusal(mallory, before.round_id, "the round had closed")
        # To the round that is open: the old base as it was, and then said to be the new one.
        mallory.answer(plan, payload, base=old.base_mark)
        assert stand.verdict(mallory, plan) == "wrong base"
        assert stand.honest_round_went_on(plan.round_id).id == plan.round_id
        plan = mallory.next_plan(MAIN)
        mallory.answer(plan, payload, counter=3 + (1 << 20))
        stand.refusal(mallory, plan.round_id, "the checksum does not fit")
        assert stand.honest_round_went_on(plan.round_id).id == plan.round_id
        # What counted has counted once.
        assert stand.answers(mallory, old)[0].counted_in == old.round_id
        assert not [a for a in stand.answers(mallory, before) if a.verdict == "accepted"]
    outcome("coordinator: the round is over, or its base is another")


@pytest.mark.attack("answer from a gateway that was not drawn")
def test_who_was_not_drawn_is_not_heard(stand: Stand, outcome: Outcome) -> None:
    # It is no member of the second task, so that no plan of that draws it; it hears them all the same.
    with stand.insider("mallory-uninvited") as mallory:
        for _ in range(20):
            plan = mallory.next_plan(FLOATS, drawn=False)
            mallory.answer(plan, bytes(3000), counter=plan.round_id)
            line = stand.refusal(mallory, plan.round_id, "")
            assert stand.answers(mallory, plan) == []
            stand.honest_round_went_on(plan.round_id, FLOATS)
            if "it was not drawn for this round" in line:
                break
            assert "the round had closed" in line  # it came after the others
        else:
            raise AssertionError("every round had closed before the answer came")
    outcome("coordinator: it was not drawn for this round")


@pytest.mark.attack("identity in the payload differs from the topic")
def test_who_speaks_is_told_by_the_topic_and_nothing_else(stand: Stand, outcome: Outcome) -> None:
    victim = "honest-1"
    nonce = next(g.nonce for g in stand.site.ledger.gateways() if g.name == victim)
    with stand.insider("mallory-masked") as mallory:
        plan = mallory.next_plan(MAIN)
        payload = forger_for(stand, mallory, plan).honest()
        update = Update(
            round_id=plan.round_id, base=plan.base_mark, counter=7, payload=payload, sent=1 << 43, received=1 << 43,
            loss=0,
        )  # fmt: skip
        # One more field, as a message with a name in it would have it, behind nil for those that it leaves out.
        named = bytearray(to_bytes(update))
        left_out = len(Update.__struct_fields__) + 1 - (named[1] & 0x0F)
        named += b"\xc0" * left_out + b"\xa8honest-1"
        named[1] += left_out + 1
        mallory.publish(mallory.own(Channel.ANSWER), mallory.wire(Channel.ANSWER, update, plain=bytes(named)))
        assert stand.verdict(mallory, plan) == "accepted"
        # A good-bye with the nonce of somebody else's start.
        mallory.say(Channel.STATUS, Leave(nonce=nonce, clean=True, sent=1, received=1))
        closed = stand.honest_round_went_on(plan.round_id)
        assert closed.id == plan.round_id
        own = [a for a in stand.site.ledger.answers(plan.round_id) if a.gateway == victim]
        assert len(own) == 1
        assert own[0].sent < 1 << 43
        assert stand.answers(mallory, plan)[0].sent == 1 << 43
        stand.honest_round_went_on()
    assert next(g for g in stand.site.ledger.gateways() if g.name == victim).present
    outcome("coordinator: a gateway is who the topic says; messages hold no name", "booked under its own name")


@pytest.mark.attack("inflated sample count")
def test_a_gateway_that_boasts_of_its_samples_weighs_no_more_than_four_of_the_middle(
    stand: Stand, outcome: Outcome
) -> None:
    with stand.insider("mallory-boasts", signal_samples=1 << 40) as mallory:
        plan = mallory.next_plan(MAIN)
        mallory.answer(plan, forger_for(stand, mallory, plan).honest())
        assert stand.verdict(mallory, plan) == "accepted"
        stand.honest_round_went_on(plan.round_id)
        (answer,) = stand.answers(mallory, plan)
        honest = [a.weight for a in stand.site.ledger.answers(plan.round_id) if a.gateway in stand.names]
    assert answer.samples > 1_000_000
    assert answer.weight <= 4 * max(honest)
    outcome("coordinator: a gateway counts at most four times the median", "bounded")


def replace_round(plan: RoundPlan, round_id: int) -> RoundPlan:
    return msgspec.structs.replace(plan, round_id=round_id)


# -- size ----------------------------------------------------------------------------------------------------------


@pytest.mark.attack("oversize message")
def test_a_message_that_is_too_large_is_refused_before_it_is_sent_and_the_connection_stands(
    stand: Stand, outcome: Outcome
) -> None:
    own = stand.keys.issue("mallory-large")
    session = MqttSession(
        Connection(
            host="127.0.0.1", port=stand.port, client_id=own.name,
            ca_file=stand.keys.ca_file, cert_file=own.cert_file, key_file=own.key_file,
        )
    )  # fmt: skip
    session.start()
    try:
        assert isinstance(session.next(10.0), Connected)
        with pytest.raises(MessageTooLarge, match="send chunks"):
            session.publish(up(own.name, Channel.ANSWER), bytes(300_000))
        # It is not sent later, either: what comes behind it goes through, on the same connection.
        assert session.publish(up(own.name, Channel.ANSWER), b"small")
        stand.site.poll(
            lambda: f"dropped 5 bytes on {up(own.name, Channel.ANSWER)}" in stand.coordinator_log, "the small message"
        )
        assert not isinstance(session.next(0.0), Disconnected)
        stand.honest_round_went_on()
    finally:
        session.stop(flush_seconds=1.0)
    assert stand.broker_log().count(f" as {own.name} (") == 1
    assert "300000 bytes" not in stand.coordinator_log
    outcome("the sender's own session, before a byte is sent")


@pytest.mark.attack("oversize message")
def test_a_client_that_sends_too_much_is_cut_off_and_nobody_reads_it(stand: Stand, outcome: Outcome) -> None:
    own = stand.keys.issue("mallory-huge")
    with stand.client(own) as client:
        assert "the connection ended" in client.publish(up(own.name, Channel.ANSWER), bytes(300_000))
        stand.honest_round_went_on()
    # Within the broker's bound, and over the topic's.
    most = spec(Direction.UP, Channel.ANSWER).max_bytes
    size = most + 1 + SEAL_BYTES[Seal.MAC]
    with stand.client(own) as client:
        assert client.publish(up(own.name, Channel.ANSWER), b"\x32" + bytes(size - 1)) == "Success"
        line = f"dropped {size} bytes on {up(own.name, Channel.ANSWER)}: {most + 1} bytes, at most {most} expected"
        stand.site.poll(lambda: line in stand.coordinator_log, "a line of the oversize message")
        stand.honest_round_went_on()
    assert stand.refused_messages(Channel.ANSWER, f"{most + 1} bytes, at most") >= 1
    outcome("broker: max_packet_size; coordinator: the topic's bound")


@pytest.mark.attack("oversize message")
def test_a_reference_to_more_than_the_task_can_take_is_refused(stand: Stand, outcome: Outcome) -> None:
    reference = BlobRef(digest=bytes(32), length=300_000_000, chunk_bytes=65_536)
    with stand.insider("mallory-reference") as mallory:
        plan = mallory.next_plan(MAIN)
        mallory.answer(plan, reference)
        assert stand.verdict(mallory, plan) == "malformed"
        stand.refusal(mallory, plan.round_id, "a blob of 300000000 bytes, at most")
        mallory.say(Channel.CHUNK, Chunk(transfer=bytes(8), index=0, data=bytes(65_536)))
        closed = stand.honest_round_went_on(plan.round_id)
        assert closed.id == plan.round_id
        assert mallory.heard(cmd(mallory.name, Channel.RECEIPT))
    outcome("coordinator: the task says how long an answer may be")
