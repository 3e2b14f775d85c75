"""One update, told from every side: what is checked, in which order, what a repeat hears, and when a round closes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fedmq_compression.pipeline import CodecSpec, Decoded, PayloadError, decode, encode
from fedmq_coordinator.rounds import Judgement, Record, Round, admit, examine
from fedmq_protocol.messages import RoundKind, RoundPlan, Slot, Verdict

CLOSES_AT = 1_000
DIGEST, OTHER = b"8 bytes!", b"8 others"
ASKED = frozenset({"g0", "g1", "g2"})


def plan(**changes: Any) -> RoundPlan:
    values: dict[str, Any] = {
        "round_id": 5,
        "lineage": 1,
        "kind": RoundKind.TRAINING,
        "base": 4,
        "model": 0x1234_5604,
        "closes_after": CLOSES_AT - 1,
        "drawn": 0b111,
        "accepted": 0,
        "since": 1,
        "level": 0,
    }
    return RoundPlan(**(values | changes))


def round_(*, target: int = 3, quorum: int = 2, close_when_answered: bool = True, **changes: Any) -> Round:
    return Round(plan(**changes), asked=ASKED, target=target, quorum=quorum, close_when_answered=close_when_answered)


def judged(**changes: Any) -> Judgement | None:
    """`admit` on a good update of gateway g1, but for `changes`."""
    values: dict[str, Any] = {
        "round_": round_(),
        "newest_round": 5,
        "round_id": 5,
        "base": 4,
        "counter": 8,
        "digest": DIGEST,
        "gateway": "g1",
        "roster": 1,
        "record": Record(round_id=4, counter=7, digest=OTHER, verdict=Verdict.ACCEPTED),
        "closed": None,
        "version": 4,
        "staleness": 0,
        "now": 900.0,
    }
    return admit(**(values | changes))


def verdict(**changes: Any) -> Verdict | None:
    judgement = judged(**changes)
    return None if judgement is None else judgement.verdict


# --- admitted or not -------------------------------------------------------------------------------------------------


def test_a_good_update_deserves_to_be_decoded() -> None:
    assert judged() is None
    assert judged(record=None) is None
    assert judged(now=float(CLOSES_AT)) is None


ONE_FAULT: list[tuple[dict[str, Any], Verdict]] = [
    ({"record": Record(round_id=5, counter=8, digest=OTHER, verdict=Verdict.ACCEPTED)}, Verdict.CONFLICT),
    ({"round_id": 6}, Verdict.ABANDONED),
    ({"round_id": 4, "record": None}, Verdict.CLOSED),
    ({"round_": None}, Verdict.CLOSED),
    ({"round_": None, "newest_round": 4}, Verdict.ABANDONED),
    ({"round_": round_(kind=RoundKind.STATISTICS)}, Verdict.NOT_DRAWN),
    ({"round_": round_(kind=RoundKind.REST)}, Verdict.NOT_DRAWN),
    ({"roster": None}, Verdict.NOT_DRAWN),
    ({"roster": 3}, Verdict.NOT_DRAWN),
    ({"roster": 1 << 20}, Verdict.NOT_DRAWN),
    ({"base": 3}, Verdict.WRONG_BASE),
    ({"base": 5}, Verdict.WRONG_BASE),
    ({"now": CLOSES_AT + 0.001}, Verdict.CLOSED),
    ({"counter": 7}, Verdict.ABANDONED),
    ({"counter": 0}, Verdict.ABANDONED),
]


@pytest.mark.parametrize(("changes", "expected"), ONE_FAULT)
def test_each_fault_has_its_verdict_and_says_why(changes: dict[str, Any], expected: Verdict) -> None:
    judgement = judged(**changes)
    assert judgement is not None
    assert judgement.verdict is expected
    assert judgement.why
    assert judgement.decoded is None


def test_above_64_gateways_the_slot_says_who_was_drawn() -> None:
    rules = [Slot(seed=bytes(8), slots=4, slot=slot) for slot in range(4)]
    said = [verdict(round_=round_(drawn=rule), roster=99) for rule in rules]
    assert sorted(said, key=str) == sorted([None] + [Verdict.NOT_DRAWN] * 3, key=str)
    assert [one is None for one in said] == [rule.includes("g1") for rule in rules]


def test_what_is_wrong_with_the_round_comes_before_what_is_wrong_with_the_update() -> None:
    record = Record(round_id=5, counter=8, digest=OTHER, verdict=Verdict.ACCEPTED)
    order: list[tuple[dict[str, Any], Verdict]] = [
        ({"record": record}, Verdict.CONFLICT),
        ({"round_": round_(round_id=6), "newest_round": 6}, Verdict.CLOSED),
        ({"roster": 60}, Verdict.NOT_DRAWN),
        ({"base": 3}, Verdict.WRONG_BASE),
        ({"now": 2_000.0}, Verdict.CLOSED),
        ({"counter": 1}, Verdict.ABANDONED),
    ]
    for first, later in itertools.combinations(range(len(order)), 2):
        assert verdict(**(order[later][0] | order[first][0])) is order[first][1]
    everything: dict[str, Any] = {}
    for changes, _ in reversed(order):
        everything |= changes
    assert verdict(**everything) is Verdict.CONFLICT


# --- repeats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", list(Verdict))
def test_a_repeat_hears_its_first_verdict_even_after_closing(first: Verdict) -> None:
    record = Record(round_id=5, counter=8, digest=DIGEST, verdict=first)
    for changes in ({}, {"now": 5_000.0}, {"round_": None, "newest_round": 9}, {"roster": None}, {"base": 0}):
        assert judged(record=record, **changes) == Judgement(verdict=first, repeat=True)


def test_another_answer_to_the_same_round_is_a_conflict_and_leaves_the_record_alone() -> None:
    record = Record(round_id=5, counter=8, digest=DIGEST, verdict=Verdict.ACCEPTED)
    for changes in ({"digest": OTHER}, {"counter": 9}, {"digest": OTHER, "counter": 9}, {"digest": b""}):
        judgement = judged(**({"record": record} | changes))
        assert judgement is not None
        assert (judgement.verdict, judgement.repeat) == (Verdict.CONFLICT, True)


def test_of_a_round_that_never_was_nothing_is_written() -> None:
    for changes in ({"round_id": 6}, {"round_": None, "newest_round": 0}, {"round_id": 1 << 40}):
        judgement = judged(**changes)
        assert judgement is not None
        assert (judgement.verdict, judgement.repeat) == (Verdict.ABANDONED, True)


def test_a_counter_may_leave_out_numbers_but_not_come_again() -> None:
    # An update that was never sent still took a number.
    assert verdict(counter=1 << 60) is None
    assert verdict(counter=7) is Verdict.ABANDONED


# --- what is inside --------------------------------------------------------------------------------------------------

SPEC = CodecSpec(bits=8, density=1.0, step=2.0**-24)


def payload(values: list[float]) -> bytes:
    return encode(np.array(values, dtype=np.float32), SPEC).payload


def test_a_sound_update_is_accepted_with_what_it_holds() -> None:
    sent = payload([3.0, 4.0])
    judgement = examine(lambda: decode(sent, 2, SPEC), max_norm=6.0)
    assert judgement.verdict is Verdict.ACCEPTED
    assert not judgement.repeat
    assert judgement.decoded is not None
    assert np.array_equal(judgement.decoded.dense(), decode(sent, 2, SPEC).dense())


def test_an_update_longer_than_the_task_allows_is_refused_and_not_handed_on() -> None:
    sent = payload([3.0, 4.0])
    norm = decode(sent, 2, SPEC).norm()
    assert examine(lambda: decode(sent, 2, SPEC), max_norm=norm).verdict is Verdict.ACCEPTED
    judgement = examine(lambda: decode(sent, 2, SPEC), max_norm=math.nextafter(norm, 0))
    assert judgement.verdict is Verdict.NORM
    assert judgement.decoded is None
    assert "at most" in judgement.why


def test_a_norm_that_is_not_a_number_is_never_within_the_bound() -> None:
    class Odd(Decoded):
        def norm(self) -> float:
            return math.nan

    empty = np.zeros(0, dtype=np.int64)
    odd = Odd(length=1, indices=empty, steps=empty, step=2.0**-24)
    assert examine(lambda: odd, max_norm=1e9).verdict is Verdict.NORM


@pytest.mark.parametrize("junk", [b"", b"\x00", bytes(100), b"\xff" * 64, payload([3.0, 4.0])[:-1], payload([1.0] * 3)])
def test_what_is_not_a_payload_of_the_task_is_malformed(junk: bytes) -> None:
    judgement = examine(lambda: decode(junk, 2, SPEC), max_norm=1e9)
    assert judgement.verdict is Verdict.MALFORMED
    assert judgement.decoded is None
    assert judgement.why


def test_a_float32_payload_with_nan_is_refused() -> None:
    dense = CodecSpec(bits=32, density=1.0, step=2.0**-24)
    good = encode(np.array([1.5, -2.5], dtype=np.float32), dense).payload
    for wrong in (np.nan, np.inf, -np.inf):
        body = good.replace(np.float32(1.5).tobytes(), np.float32(wrong).tobytes())
        assert body != good
        judgement = examine(lambda body=body: decode(body, 2, dense), max_norm=1e9)  # type: ignore[misc]
        assert judgement.verdict in (Verdict.MALFORMED, Verdict.NON_FINITE)


def test_a_fault_of_our_own_is_not_taken_for_the_gateway_s() -> None:
    def broken() -> Decoded:
        raise KeyError("a mistake in this program")

    with pytest.raises(KeyError):
        examine(broken, max_norm=1.0)

    def refused() -> Decoded:
        raise PayloadError("checksum")

    assert examine(refused, max_norm=1.0).why == "checksum"


# --- closing ---------------------------------------------------------------------------------------------------------


def test_a_round_closes_once_all_asked_have_answered_in_either_way() -> None:
    running = round_()
    for gateway, update in (("g0", True), ("g2", False)):
        running.count(gateway, update=update)
        assert not running.should_close(900.0)
    running.count("g1", update=True)
    assert running.should_close(900.0)
    assert running.answered == ASKED


def test_an_answer_of_one_who_was_not_there_at_the_opening_does_not_stand_for_one_who_was() -> None:
    running = round_()
    for gateway in ("g0", "g1", "late"):
        running.count(gateway, update=True)
    assert not running.should_close(900.0)


def test_a_round_closes_at_its_time_whoever_has_answered() -> None:
    running = round_()
    assert not running.should_close(CLOSES_AT - 0.001)
    assert running.should_close(float(CLOSES_AT))
    assert running.should_close(CLOSES_AT + 1e6)


def test_an_over_drawn_round_closes_with_the_updates_hoped_for_and_declines_do_not_count() -> None:
    running = round_(target=2, close_when_answered=False)
    running.count("g0", update=True)
    running.count("g1", update=False)
    assert not running.should_close(900.0)
    running.count("g2", update=True)
    assert running.should_close(900.0)


def test_a_round_that_waits_for_its_time_does_so_though_all_have_answered() -> None:
    running = round_(close_when_answered=False)
    for gateway in ASKED:
        running.count(gateway, update=True)
    assert not running.should_close(900.0)
    assert running.should_close(1_000.0)


def test_a_round_that_asked_nobody_is_not_answered_by_all() -> None:
    empty = Round(plan(), asked=frozenset(), target=1, quorum=1)
    assert not empty.should_close(900.0)
    assert empty.should_close(1_000.0)


def test_a_plan_of_rest_never_closes() -> None:
    assert not round_(kind=RoundKind.REST).should_close(1e9)


def test_quorum_counts_updates_only_and_each_gateway_once() -> None:
    running = round_(quorum=2)
    running.count("g0", update=True)
    running.count("g0", update=True)
    running.count("g1", update=False)
    assert not running.has_quorum
    running.count("g2", update=True)
    assert running.has_quorum


@pytest.mark.parametrize("quorum", [-1, 0, 1])
def test_a_version_needs_one_update_whatever_the_quorum(quorum: int) -> None:
    running = round_(quorum=quorum)
    assert not running.has_quorum
    running.count("g0", update=True)
    assert running.has_quorum


def test_judging_changes_nothing() -> None:
    running = round_()
    for changes, _ in ONE_FAULT:
        judged(**({"round_": running} | changes))
    judged(round_=running)
    assert running.answered == set()


def test_the_life_of_an_update_from_first_word_to_lost_receipt() -> None:
    running = round_()
    assert judged(round_=running, record=None) is None
    judgement = examine(lambda: decode(payload([0.5, 0.25]), 2, SPEC), max_norm=10.0)
    assert judgement.verdict is Verdict.ACCEPTED
    running.count("g1", update=True)
    record = Record(round_id=5, counter=8, digest=DIGEST, verdict=judgement.verdict)
    # The receipt is lost; the gateway asks with the same bytes, then sends others, then its disk is restored.
    assert verdict(round_=running, record=record) is Verdict.ACCEPTED
    assert verdict(round_=running, record=record, digest=OTHER) is Verdict.CONFLICT
    following = round_(round_id=6, base=5, model=5)
    assert verdict(round_=following, newest_round=6, record=record, round_id=6, base=5, counter=9) is None
    assert verdict(round_=following, newest_round=6, record=record, round_id=6, base=5) is Verdict.ABANDONED
    assert verdict(round_=following, newest_round=6, record=replace(record, counter=0), round_id=6, base=5) is None


# --- late ------------------------------------------------------------------------------------------------------------


def late(**changes: Any) -> Verdict | None:
    """Of a good update to round 5, base 4, which closed while rounds went on to 9 and the model to version 8."""
    going_on = round_(round_id=9, base=8, model=8)
    values: dict[str, Any] = {
        "round_": going_on,
        "newest_round": 9,
        "closed": plan(),
        "version": 8,
        "staleness": 4,
        "now": 5_000.0,
    }
    return verdict(**(values | changes))


def test_an_update_to_a_closed_round_is_admitted_where_its_base_is_not_too_far_behind() -> None:
    assert late() is None
    assert late(round_=None) is None, "no round has to be open: it is owed to the next"
    assert late(staleness=3) is Verdict.CLOSED
    assert late(version=9) is Verdict.CLOSED
    assert late(closed=None) is Verdict.CLOSED, "a round of another lineage, or one that is forgotten"
    assert late(staleness=0, version=4) is Verdict.CLOSED, "no task of this kind"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"roster": 3}, Verdict.NOT_DRAWN),
        ({"roster": None}, Verdict.NOT_DRAWN),
        ({"base": 8}, Verdict.WRONG_BASE),
        ({"counter": 7}, Verdict.ABANDONED),
        ({"closed": plan(kind=RoundKind.STATISTICS)}, Verdict.NOT_DRAWN),
        ({"record": Record(round_id=5, counter=8, digest=DIGEST, verdict=Verdict.CLOSED)}, Verdict.CLOSED),
        ({"record": Record(round_id=5, counter=8, digest=OTHER, verdict=Verdict.ACCEPTED)}, Verdict.CONFLICT),
    ],
)
def test_a_late_update_is_checked_against_the_round_that_it_answers(changes: Any, expected: Verdict) -> None:
    assert late(**changes) is expected


def test_what_comes_between_closing_time_and_close_counts_where_late_ones_do() -> None:
    assert verdict(now=CLOSES_AT + 0.5) is Verdict.CLOSED
    assert verdict(now=CLOSES_AT + 0.5, staleness=1) is None


# --- buffered --------------------------------------------------------------------------------------------------------


def buffered(target: int) -> Round:
    return Round(plan(), asked=ASKED, target=target, quorum=target, buffered=True)


def test_a_buffered_round_closes_with_so_many_updates_of_whichever_rounds() -> None:
    running = buffered(3)
    running.count_owed()
    running.count_late("g2")
    assert not running.should_close(900.0)
    assert not running.has_quorum
    running.count("g0", update=True)
    assert running.should_close(900.0)
    assert running.has_quorum
    assert running.answered == {"g0"}
    assert running.heard == {"g0", "g2"}


def test_a_buffered_round_with_fewer_at_its_closing_time_misses_its_quorum() -> None:
    running = buffered(3)
    running.count("g0", update=True)
    running.count_late("g1")
    assert running.should_close(float(CLOSES_AT))
    assert not running.has_quorum


def test_a_buffered_round_does_not_wait_once_nobody_can_answer_any_more() -> None:
    running = buffered(3)
    running.count("g0", update=True)
    running.count("g1", update=False)
    running.refuse("g2")
    assert running.should_close(900.0)


def test_a_synchronous_round_counts_its_own_updates_for_its_quorum() -> None:
    running = round_(quorum=2, target=2)
    running.count_late("g0")
    running.count_owed()
    running.count("g1", update=True)
    assert not running.has_quorum
    assert not running.should_close(900.0)


# --- asked in vain ---------------------------------------------------------------------------------------------------


def test_silence_counts_once_a_round_has_taken_all_its_time_and_a_refused_answer_at_once() -> None:
    running = round_(target=1)
    running.count("g0", update=True)
    running.refuse("g1")
    assert running.failed(900.0) == {"g1"}
    assert running.failed(float(CLOSES_AT)) == {"g1", "g2"}


def test_who_declines_or_is_late_has_not_failed() -> None:
    running = round_()
    running.count("g0", update=False)
    running.count_late("g2")
    assert running.failed(float(CLOSES_AT)) == {"g1"}
