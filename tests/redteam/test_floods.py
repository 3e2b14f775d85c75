"""A gateway that asks too much: what others have to do for it stays less than what it does itself."""

from __future__ import annotations

import hashlib
import time

import pytest
from fedmq_protocol.messages import AskChunks, AskModel, AskVerdict, CatchUp, MessageError, from_bytes, split
from fedmq_protocol.task import short
from fedmq_protocol.topics import Channel, Direction, spec
from redteam import FLOATS, MAIN, Outcome, Stand, cmd, down

pytestmark = [pytest.mark.broker, pytest.mark.slow]

QUESTIONS = 1000
FLOOD_SECONDS = 4


@pytest.mark.attack("flood of 1,000 messages a second")
@pytest.mark.parametrize("kind", ["questions", "junk"])
def test_a_flood_of_one_gateway_is_dropped_unread_and_the_rounds_go_on(
    stand: Stand, outcome: Outcome, kind: str
) -> None:
    before = stand.refused_messages(Channel.ASK, "rate")
    with stand.insider("mallory-floods") as mallory:
        question = mallory.wire(Channel.ASK, AskVerdict(round_id=1, counter=1, digest=bytes(8)))
        data = question if kind == "questions" else b"junk"
        first = stand.newest_round() + 1
        for _ in range(FLOOD_SECONDS):
            for _ in range(QUESTIONS):
                mallory.throw(mallory.own(Channel.ASK), data, qos=0)
            time.sleep(1.0)
        # While it lasts and behind it: nobody waits in a queue for the flood to be over.
        stand.honest_round_went_on(first)
        stand.site.poll(
            lambda: stand.refused_messages(Channel.ASK, "rate") > before + FLOOD_SECONDS * QUESTIONS / 4,
            "the flood to be dropped",
        )
        assert f"{mallory.name} asks for more than its share" in stand.coordinator_log
        stand.honest_round_went_on()
    outcome("coordinator: a rate for each gateway; more is dropped unread")


@pytest.mark.attack("catch-up requests as an amplifier")
def test_many_questions_for_a_model_have_one_answer_for_all(stand: Stand, outcome: Outcome) -> None:
    with stand.insider("mallory-asks") as mallory:
        mallory.subscribe(down(Channel.MODEL))
        plan = mallory.next_plan(MAIN)
        mallory.decline(plan)
        answers_before = len(stand.catch_ups())
        asked = 0
        for number in range(QUESTIONS):
            # Each from another version, so that each would have another answer.
            data = mallory.wire(Channel.ASK, AskModel(lineage=plan.lineage, version=number % (plan.base + 1)))
            asked += len(mallory.own(Channel.ASK)) + len(data)
            mallory.throw(mallory.own(Channel.ASK), data, qos=0)
        stand.site.poll(lambda: len(stand.catch_ups()) > answers_before, "an answer")
        stand.honest_round_went_on()
        mallory.until(lambda: mallory.heard(down(Channel.MODEL)), "an answer")
        heard = mallory.heard(down(Channel.MODEL))
    assert all(isinstance(answer_of(data), CatchUp) for data in heard)
    answers = stand.catch_ups()[answers_before:]
    assert len(answers) < QUESTIONS / 20, "many questions were answered one by one"
    answered = sum(row.bytes for row in answers)
    assert answered < asked, f"{asked:,} bytes of questions brought {answered:,} bytes of answers"
    outcome("coordinator: questions are gathered and answered once for all", "no gain")


@pytest.mark.attack("catch-up requests as an amplifier")
def test_the_same_chunks_are_not_sent_as_often_as_somebody_asks_for_them(stand: Stand, outcome: Outcome) -> None:
    own = cmd("mallory-chunks", Channel.CHUNK)
    with stand.insider("mallory-chunks", tags=(FLOATS,)) as mallory:
        plan = mallory.next_plan(FLOATS)
        mallory.decline(plan)
        assert isinstance(plan.delta, bytes)
        transfer = short(hashlib.sha256(plan.delta).digest())
        asked = 0
        for _ in range(QUESTIONS):
            # The same chunk many times in one question, and the same question many times.
            data = mallory.wire(Channel.ASK, AskChunks(transfer=transfer, missing=(0,) * 100))
            asked += len(mallory.own(Channel.ASK)) + len(data)
            mallory.throw(mallory.own(Channel.ASK), data, qos=0)
        stand.honest_round_went_on()
        # What comes last was answered last.
        mallory.say(Channel.ASK, AskVerdict(round_id=1, counter=1, digest=bytes(8)))
        mallory.until(lambda: mallory.heard(cmd(mallory.name, Channel.RECEIPT)), "a receipt")
        answered = sum(len(own) + len(data) for data in mallory.heard(own))
    assert answered < asked, f"{asked:,} bytes of questions brought {answered:,} bytes of answers"
    outcome("coordinator: what one gateway is sent because it asks is bounded", "no gain")


def answer_of(data: bytes) -> object:
    try:
        return from_bytes(spec(Direction.DOWN, Channel.MODEL), split(data).plain)
    except MessageError as error:
        return error
