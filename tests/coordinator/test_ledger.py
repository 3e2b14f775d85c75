"""The ledger: what a transaction keeps, what is erased, and which files are refused."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from fedmq_coordinator.ledger import Answer, Ledger, LedgerError, Round, Wire
from hypothesis import given, settings
from hypothesis import strategies as st

ROUND = Round(
    id=1,
    lineage=1,
    kind="training",
    base=0,
    opened_at=10.0,
    closes_at=40.0,
    closed_at=None,
    outcome="open",
    drawn=1,
    plan_bytes=200,
    version=None,
    metric=None,
    loss=None,
    metric_source=None,
)
ANSWER = Answer(
    round=1,
    gateway="a",
    received_at=12.0,
    kind="update",
    verdict="accepted",
    reason=None,
    counter=1,
    digest=b"d",
    samples=5,
    weight=5,
    payload_bytes=3,
    dense_bytes=400,
    nonce=b"n",
    sent=1,
    received=2,
    held_out_metric=None,
    held_out_loss=None,
    held_out_windows=None,
    owed=False,
    payload=b"abc",
    counted_in=1,
)
WIRE = Wire(gateway="a", nonce=b"n", sent=10, received=20, reported_at=5.0, final=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def test_what_was_committed_is_there_after_opening_again(path: Path) -> None:
    ledger = Ledger(path)
    ledger.book("bearings").open_round(ROUND)
    ledger.book("bearings").save_answer(ANSWER)
    ledger.put("key", b"value")
    ledger.commit()
    ledger.close()

    again = Ledger(path, read_only=True)

    assert again.rounds() == [ROUND]
    assert again.answers() == [ANSWER]
    assert again.get("key") == b"value"
    again.close()


def test_what_was_not_committed_is_gone_after_rollback_and_after_closing(path: Path) -> None:
    ledger = Ledger(path)
    ledger.book("bearings").open_round(ROUND)
    ledger.rollback()
    assert ledger.rounds() == []
    ledger.book("bearings").open_round(ROUND)
    ledger.close()

    assert Ledger(path).rounds() == []


def test_another_reader_sees_nothing_before_the_commit(path: Path) -> None:
    ledger = Ledger(path)
    reader = Ledger(path, read_only=True)
    ledger.book("bearings").open_round(ROUND)
    assert reader.rounds() == []

    ledger.commit()

    assert reader.rounds() == [ROUND]


def test_a_snapshot_stays_at_its_moment_while_the_coordinator_writes(path: Path) -> None:
    ledger = Ledger(path)
    reader = Ledger(path, read_only=True)
    with reader.snapshot():
        assert reader.rounds() == []
        ledger.book("bearings").open_round(ROUND)
        ledger.commit()
        assert reader.rounds() == []

    assert reader.rounds() == [ROUND]


def test_a_second_answer_of_a_gateway_to_a_round_is_refused_by_the_file(path: Path) -> None:
    ledger = Ledger(path)
    ledger.book("bearings").save_answer(ANSWER)

    with pytest.raises(sqlite3.IntegrityError):
        ledger.book("bearings").save_answer(replace(ANSWER, digest=b"other"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), st.booleans()), min_size=1, max_size=8))
def test_cumulative_wire_is_never_lowered(reports: list[tuple[int, int, bool]]) -> None:
    ledger = Ledger(Path(":memory:"))
    for place, (sent, received, final) in enumerate(reports):
        ledger.save_wire(replace(WIRE, sent=sent, received=received, reported_at=50.0 - place, final=final))
    ledger.commit()

    (wire,) = ledger.wires()
    ledger.close()

    assert (wire.sent, wire.received) == (max(r[0] for r in reports), max(r[1] for r in reports))
    assert wire.reported_at == 50.0
    assert wire.final == any(r[2] for r in reports)


def test_each_process_of_a_gateway_has_its_own_counter(path: Path) -> None:
    ledger = Ledger(path)
    ledger.save_wire(WIRE)
    ledger.save_wire(replace(WIRE, nonce=b"restarted", sent=1))

    assert sorted(w.sent for w in ledger.wires()) == [1, 10]


def test_erasing_payloads_settles_what_was_owed_and_keeps_the_record(path: Path) -> None:
    ledger = Ledger(path)
    ledger.book("bearings").open_round(ROUND)
    ledger.book("bearings").save_answer(ANSWER)
    ledger.book("bearings").save_answer(replace(ANSWER, gateway="b", verdict="late", payload=None))
    ledger.book("bearings").owe(1)
    assert [a.gateway for a in ledger.owed()] == ["a"]

    ledger.book("bearings").erase_payloads()
    ledger.commit()

    assert ledger.owed() == []
    assert [a.payload for a in ledger.answers()] == [None, None]
    assert [a.payload_bytes for a in ledger.answers()] == [3, 3]


def test_a_roll_back_brings_erased_payloads_again(path: Path) -> None:
    ledger = Ledger(path)
    ledger.book("bearings").save_answer(ANSWER)
    ledger.commit()
    ledger.book("bearings").erase_payloads()
    ledger.rollback()

    assert [a.payload for a in ledger.answers()] == [b"abc"]


def test_a_foreign_sqlite_file_is_refused_and_left_as_it_was(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    other.close()
    before = path.read_bytes()

    with pytest.raises(LedgerError, match="not a ledger of fedmq"):
        Ledger(path)
    with pytest.raises(LedgerError, match="not a ledger of fedmq"):
        Ledger(path, read_only=True)

    assert path.read_bytes() == before


@pytest.mark.parametrize("read_only", [False, True])
def test_a_ledger_of_another_schema_is_refused(path: Path, read_only: bool) -> None:
    Ledger(path).close()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()

    with pytest.raises(LedgerError, match="schema 99, which is newer than this software can read"):
        Ledger(path, read_only=read_only)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_that_is_no_database_is_refused_by_name(path: Path, read_only: bool) -> None:
    path.write_bytes(b"\xff" * 8192)

    with pytest.raises(LedgerError, match=r"cannot use the ledger .*ledger\.sqlite"):
        Ledger(path, read_only=read_only)


def damage(path: Path, first: int) -> None:
    """Everything from this page on."""
    content = bytearray(path.read_bytes())
    content[first * 4096 :] = b"\xff" * (len(content) - first * 4096)
    path.write_bytes(content)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_damaged_schema_is_named_as_the_file_is_opened(path: Path, read_only: bool) -> None:
    Ledger(path).close()
    damage(path, 1)

    with pytest.raises(LedgerError, match=r"ledger\.sqlite.* damaged: put a backup in its place"):
        Ledger(path, read_only=read_only)


def test_damage_further_behind_is_named_by_who_reads_it_and_before_a_coordinator_works_on_it(path: Path) -> None:
    ledger = Ledger(path)
    for number in range(1, 400):
        ledger.book("bearings").open_round(replace(ROUND, id=number))
    ledger.commit()
    ledger.close()
    damage(path, path.stat().st_size // 4096 - 4)
    reader = Ledger(path, read_only=True)

    with pytest.raises(LedgerError, match=r"ledger\.sqlite.* damaged: put a backup in its place"):
        reader.rounds()
    with pytest.raises(LedgerError, match=r"ledger\.sqlite.* damaged: put a backup in its place"):
        Ledger(path)


def test_reading_a_missing_file_names_it_and_creates_nothing(path: Path) -> None:
    with pytest.raises(LedgerError, match=r"no ledger at .*ledger\.sqlite"):
        Ledger(path, read_only=True)

    assert not path.exists()


def test_a_read_only_ledger_cannot_be_written(path: Path) -> None:
    Ledger(path).close()
    reader = Ledger(path, read_only=True)

    with pytest.raises(LedgerError, match="cannot be written"):
        reader.put("key", b"value")


# --- late ------------------------------------------------------------------------------------------------------------


def test_a_late_answer_stays_with_its_round_and_counts_in_another(path: Path) -> None:
    ledger = Ledger(path).book("bearings")
    ledger.open_round(ROUND)
    ledger.open_round(replace(ROUND, id=3))
    ledger.save_answer(ANSWER)
    late = replace(ANSWER, gateway="b", counted_in=3)
    ledger.save_answer(late)
    ledger.save_answer(replace(ANSWER, round=3, gateway="c", counted_in=3))
    ledger.save_answer(replace(ANSWER, round=3, gateway="d", verdict="norm", counted_in=None))
    assert [a.late for a in ledger.answers()] == [False, True, False, False]
    assert [(a.round, a.gateway) for a in ledger.summed(3)] == [(1, "b"), (3, "c")]
    assert [(a.round, a.gateway) for a in ledger.summed(1)] == [(1, "a")]
    assert ledger.updates_since(1) == 2, "of those who were in time"


def test_one_that_comes_while_no_round_is_open_is_owed_to_the_next_and_again_where_that_misses_its_quorum(
    path: Path,
) -> None:
    ledger = Ledger(path).book("bearings")
    ledger.open_round(ROUND)
    ledger.open_round(replace(ROUND, id=2))
    ledger.save_answer(replace(ANSWER, owed=True, counted_in=None))
    ledger.count_owed(2)
    assert [a.counted_in for a in ledger.summed(2)] == [2]
    ledger.save_answer(replace(ANSWER, round=2, counted_in=2))
    ledger.owe(2)
    ledger.count_owed(3)
    assert [(a.round, a.counted_in, a.owed) for a in ledger.summed(3)] == [(1, 2, True), (2, 2, True)]
    ledger.erase_payloads()
    assert ledger.summed(4) == []


def test_rounds_between_are_those_of_one_lineage(path: Path) -> None:
    ledger = Ledger(path).book("bearings")
    for number, lineage in ((1, 1), (2, 9), (3, 1), (4, 1)):
        ledger.open_round(replace(ROUND, id=number, lineage=lineage))
    assert [ledger.rounds_between(1, earlier, later) for earlier, later in ((1, 1), (1, 3), (1, 4), (3, 4))] == [
        0,
        1,
        2,
        1,
    ]


def test_the_best_of_earlier_metrics_is_the_lowest_where_less_is_better(path: Path) -> None:
    ledger = Ledger(path).book("bearings")
    for number, metric in enumerate((30.0, 12.0, 20.0, 18.0), start=1):
        ledger.open_round(replace(ROUND, id=number, lineage=1))
        ledger.set_metric(number, metric=metric, loss=0.1, source="test set")
    assert ledger.metrics(1, last=2) == [30.0, 20.0, 18.0]
    assert ledger.metrics(1, last=2, direction=-1) == [12.0, 20.0, 18.0]
