"""Sums that the ledger makes are the report's figures, to the last byte, however the ledger came to be as it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from fedmq_coordinator import retention, tallies
from fedmq_coordinator.absent import ABSENT, Absence, to_bytes
from fedmq_coordinator.ledger import Flag, Ledger
from fedmq_coordinator.report import Traffic, build
from fedmq_coordinator.tallies import TaskTally
from ledgers import START, a_decline, a_gateway, a_round, a_wire, an_answer, write_plant
from machine_rows import a_drift, a_fleet_spread
from plant import Plant


def assert_like_the_report(ledger: Ledger) -> dict[str, TaskTally]:
    fleet = tallies.build(ledger)
    for told in fleet.tasks:
        report = build(ledger, told.task)
        assert (told.wire, told.payload, told.dense) == (report.wire, report.payload, report.dense), told.task
        assert fleet.raw_bytes == report.raw_bytes
        closed = [line for line in report.rounds if line.closed_at is not None]
        assert told.outcomes == dict(Counter(line.outcome for line in closed))
        assert told.seconds == [line.seconds for line in closed]
        assert told.declines == report.declines
        assert {n: c for n, c in told.updates_of.items() if c} == {
            g.name: g.accepted for g in report.gateways if g.accepted
        }
        assert {n: c for n, c in told.declines_of.items() if c} == {
            g.name: g.declined for g in report.gateways if g.declined
        }
        assert sum(told.answers.values()) == sum(g.answered for g in report.gateways)
        refused = {name: count for name, count in told.answers.items() if not name.endswith(",accepted")}
        assert refused == {f"{line.kind},{line.verdict}": line.answers for line in report.verdicts}
        assert told.owed == report.owed
        assert told.cpu_seconds == report.cpu_seconds
        assert told.metric == report.metric_last
        assert told.metric_name == report.metric_name
        assert told.catch_ups == {line.kind: (line.published, line.bytes) for line in report.catch_ups}
        assert (told.set_aside, told.flagged) == (len(report.set_aside), len(report.flagged))
        assert sum(messages for messages, _ in fleet.refused.values()) == sum(line.messages for line in report.refused)
    return {told.task: told for told in fleet.tasks}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return write_plant(tmp_path / "ledger.sqlite")


def test_of_a_plausible_plant(ledger: Ledger) -> None:
    told = assert_like_the_report(ledger)["bearings"]
    assert told.payload.down > 0
    assert told.answers["statistics,accepted"] == 7


def test_drift_counts_kinds_of_machines_and_measures_that_have_drifted(ledger: Ledger) -> None:
    assert tallies.build(ledger).drifts == 0
    ledger.save_fleet_drifts([a_drift()])
    ledger.save_fleet_spreads([a_fleet_spread(), a_fleet_spread("velocity", stability=0.01, since=None)])
    ledger.commit()
    assert tallies.build(ledger).drifts == 2


def test_of_nothing_at_all(tmp_path: Path) -> None:
    assert tallies.build(Ledger(tmp_path / "ledger.sqlite")).tasks == []


def test_as_old_rounds_are_summed_up_nothing_changes(ledger: Ledger) -> None:
    before = tallies.build(ledger)
    while retention.fold(ledger, keep_rounds=10):
        ledger.commit()
        assert_like_the_report(ledger)
    after = tallies.build(ledger)
    assert ledger.only.folded()
    assert (after.tasks[0].wire, after.tasks[0].payload) == (before.tasks[0].wire, before.tasks[0].payload)
    assert after.tasks[0].answers == before.tasks[0].answers


def test_flags_and_pauses_are_counted(ledger: Ledger) -> None:
    gateway = ledger.gateways()[2]
    ledger.only.put(ABSENT, to_bytes({gateway.name: Absence(missed=6, pauses=2, left=2, nonce=gateway.nonce)}))
    for name, state in (("bay1-press", "flagged"), ("bay2-fan", "readmitted")):
        ledger.only.save_flag(Flag(gateway=name, at=START, round=3, state=state, reason="against", evidence="x"))
    ledger.commit()
    told = assert_like_the_report(ledger)["bearings"]
    assert (told.set_aside, told.flagged) == (1, 1)


def test_of_several_tasks_each_has_its_stretches_and_joining_is_of_none(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    names = ["bearings", "pumps"]
    for place, gateway in enumerate(("a", "b", "c")):
        ledger.save_gateway(a_gateway(gateway, place))
    sent = Counter[str]()
    for number in range(1, 31):
        book = ledger.book(names[number % 2])
        book.open_round(a_round(number))
        for place, gateway in enumerate(("a", "b", "c")):
            if (number + place) % 5 == 0:
                continue
            sent[gateway] += 100 + 7 * number
            nonce = b"1" if number < 15 or gateway != "b" else b"2"
            told = sent[gateway] if nonce == b"1" else sent[gateway] - 900
            if place == 2 and number % 7 == 0:
                book.save_answer(a_decline(number, gateway, "battery", sent=told, received=2 * told, nonce=nonce))
            else:
                counted = number if number % 4 else number + 1
                book.save_answer(
                    an_answer(number, gateway, sent=told, received=2 * told, nonce=nonce, counted_in=counted)
                )
            ledger.save_wire(a_wire(gateway, told + 20, 2 * told + 30, nonce=nonce))
    # A process that has answered nothing, and one whose counter fell back.
    ledger.save_wire(a_wire("c", 77, 78, nonce=b"9"))
    ledger.book("pumps").open_round(a_round(31))
    ledger.book("pumps").save_answer(an_answer(31, "a", sent=1, received=1, nonce=b"1"))
    ledger.commit()
    told = assert_like_the_report(ledger)
    whole = Traffic(up=ledger.wire_totals()[0], down=ledger.wire_totals()[1])
    assert 0 < told["bearings"].wire.up + told["pumps"].wire.up < whole.up
    while retention.fold(ledger, keep_rounds=12):
        ledger.commit()
        assert_like_the_report(ledger)
    assert {name: one.wire for name, one in assert_like_the_report(ledger).items()} == {
        name: one.wire for name, one in told.items()
    }


def test_of_a_run_with_kills(tmp_path: Path) -> None:
    plant = Plant(tmp_path, gateways=3, rounds=8)
    plant.run_until(lambda: plant.version >= 3)
    plant.kill_gateway("g1")
    plant.run_until(lambda: plant.version >= 4)
    plant.start_gateway("g1")
    plant.run_to_rest()
    assert_like_the_report(plant.ledger)
