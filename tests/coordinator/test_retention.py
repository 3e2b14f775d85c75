"""Old rounds are summed up, and the report says what it said before."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from fedmq_coordinator import retention
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.report import Report, build
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import START, a_gateway, a_round, a_wire, an_answer, write_plant


def without_single_answers(report: Report) -> Report:
    """But for what needs every answer by itself."""
    return msgspec.structs.replace(report, folded_rounds=0, wire_per_gateway_round_median=None)


def fold_all(ledger: Ledger, keep: int) -> int:
    folded = 0
    while many := retention.fold(ledger, keep_rounds=keep):
        folded += many
        ledger.commit()
    return folded


@pytest.mark.parametrize("keep", [4, 5, 20, 38])
def test_the_report_is_the_same_before_and_after(tmp_path: Path, keep: int) -> None:
    ledger = write_plant(tmp_path / "ledger.sqlite")
    before = build(ledger)

    folded = fold_all(ledger, keep)

    after = build(ledger)
    assert folded + 1 == after.folded_rounds == 40 - keep  # this plant counts from 0, which the first batch takes along
    assert without_single_answers(after) == without_single_answers(before)
    assert {a.round for a in ledger.answers()} == set(range(40 - keep, 40))
    assert len(ledger.rounds()) == 40


@settings(max_examples=30, deadline=None)
@given(cosines=st.lists(st.floats(-1, 1) | st.none(), min_size=12, max_size=12), keep=st.integers(1, 5))
def test_where_updates_pointed_is_in_the_report_still(cosines: list[float | None], keep: int) -> None:
    ledger = Ledger(Path(":memory:"))
    book = ledger.book("pumps")
    ledger.save_gateway(a_gateway("a", 0))
    for number, cosine in enumerate(cosines, start=1):
        book.open_round(a_round(number))
        book.save_answer(an_answer(number, "a", norm=1.5, cosine=cosine, conflicts=number % 3))
    ledger.commit()
    before = build(ledger)

    assert fold_all(ledger, keep) == 12 - keep

    assert without_single_answers(build(ledger)) == without_single_answers(before)
    known = [cosine for cosine in cosines if cosine is not None]
    mean = before.gateways[0].cosine
    assert (mean is None) == (not known)
    assert mean is None or abs(mean - sum(known) / len(known)) <= 1e-4
    assert before.gateways[0].conflicts == 12
    ledger.close()


def test_a_few_rounds_are_summed_up_at_a_time(tmp_path: Path) -> None:
    ledger = write_plant(tmp_path / "ledger.sqlite")
    assert retention.fold(ledger, keep_rounds=10) == retention.ROUNDS_AT_ONCE
    ledger.rollback()
    assert build(ledger).folded_rounds == 0


def test_rounds_that_are_owed_anything_stay_as_they_are(tmp_path: Path) -> None:
    ledger = write_plant(tmp_path / "ledger.sqlite", rounds=19)  # the round below quorum is owed by the open one
    assert ledger.owed()
    assert fold_all(ledger, 1) == 16
    assert {a.round for a in ledger.owed()} == {17}


def test_a_round_that_is_summed_up_takes_no_more_answers(tmp_path: Path) -> None:
    ledger = write_plant(tmp_path / "ledger.sqlite")
    book = ledger.only
    assert book.has_round(3)
    fold_all(ledger, 20)
    assert not book.has_round(3)
    assert book.has_round(39)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_tasks_whose_rounds_overlap_are_summed_up_without_a_byte_lost(data: st.DataObject) -> None:
    """Answers of one process go back and forth between long rounds of one task and short ones of another."""
    ledger = Ledger(Path(":memory:"))
    books = [ledger.book("pumps"), ledger.book("fans")]
    names = ["a", "b"]
    for place, name in enumerate(names):
        ledger.save_gateway(a_gateway(name, place))
    now, sent = START, dict.fromkeys(names, 0)
    rounds = data.draw(st.integers(4, 14))
    waiting: list[tuple[int, str]] = []
    for number in range(1, rounds + 1):
        now += 10
        book = books[data.draw(st.integers(0, 1))]
        book.open_round(a_round(number, opened_at=now, closes_at=now + 1e6, closed_at=now + 1e6))
        waiting += [(number, name) for name in names]
        for _ in range(data.draw(st.integers(0, 4))):
            if not waiting:
                break
            answered, name = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            now += 1
            sent[name] += data.draw(st.integers(0, 50))
            ledger.save_wire(a_wire(name, sent[name], 2 * sent[name], final=False))
            book.save_answer(an_answer(answered, name, sent[name], 2 * sent[name], received_at=now))
    for name in names:
        ledger.save_wire(a_wire(name, sent[name] + 7, 2 * sent[name] + 7))
    ledger.commit()
    before = [without_single_answers(build(ledger, book.name)) for book in books]

    fold_all(ledger, data.draw(st.integers(1, 5)))

    after = [without_single_answers(build(ledger, book.name)) for book in books]
    ledger.close()
    assert after == before


def test_deltas_that_nobody_can_ask_for_are_emptied_once(tmp_path: Path) -> None:
    ledger = write_plant(tmp_path / "ledger.sqlite")
    book = ledger.only
    before = build(ledger)

    book.empty_deltas(1, 10)
    book.empty_deltas(1, 12)
    book.empty_deltas(1, 5)

    ledger.commit()
    versions = book.versions(1)
    assert [v.number for v in versions if v.delta == b""] == list(range(13))
    assert build(ledger) == before
