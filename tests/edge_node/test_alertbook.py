"""The book: one transaction for what follows from some windows, and what it remembers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fedmq_edge_node.alarms import Cleared, Evidence, Kind, Raised
from fedmq_edge_node.alertbook import Alertbook, BookError, BookFailure, Position
from fedmq_edge_node.watching import Drift
from msgspec import structs

RAISED = Raised(
    machine="pump-3",
    kind="anomaly",
    at=20.0,
    from_at=10.0,
    level=2.0,
    severity="alarm",
    evidence=(Evidence(name="velocity", value=2.0, limit=1.0, unit="mm/s", trend=((1.0, 0.5),)),),
    sensor="x",
)
CLEARED = Cleared(machine="pump-3", kind="anomaly", at=60.0, to_at=50.0, level=3.0)
DRIFT = Drift(at=1.0, machine="pump-3", sensor="x", band="all", measure="velocity", index=0.5, was=1.0, now=1.4)
PLACE = Position(run=3, sample=24_000, at=20.0)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Alertbook]:
    opened = Alertbook(tmp_path / "alerts.sqlite")
    yield opened
    opened.close()


def test_what_ends_a_step_halfway_leaves_nothing_of_it(book: Alertbook) -> None:
    book.tell({"pager": ["raised"]})

    def power_cut(point: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        book.step(
            at=20.0,
            positions={"s/1": PLACE},
            parts={"pump-3": {"state": b"1"}},
            outcomes=[RAISED],
            standings={"pump-3": {"at": 1.0}},
            crash_point=power_cut,
        )
    assert (book.alerts(), book.positions(), book.parts(), book.standings(), book.notes("pager")) == (
        [],
        {},
        {},
        {},
        [],
    )
    book.step(at=20.0, positions={"s/1": PLACE}, outcomes=[RAISED])
    assert [alert.evidence for alert in book.alerts()] == [RAISED.evidence]
    assert book.positions() == {"s/1": PLACE}
    assert len(book.notes("pager")) == 1


def test_parts_are_as_they_were_said_last_also_for_another_process(book: Alertbook) -> None:
    book.step(at=0.0, parts={"a": {"x": b"1", "y": b"2"}, "b": {"x": b"3"}})
    book.step(at=0.0, parts={"a": {"x": b"4"}})
    other = Alertbook.existing(book.path)
    assert other.parts() == {"a": {"x": b"4"}, "b": {"x": b"3"}}
    other.step(at=0.0, parts={"a": {"z": b"5"}})
    assert Alertbook.existing(book.path).parts()["a"] == {"z": b"5"}
    other.close()


def test_a_cleared_alert_may_still_be_judged_and_a_judged_one_stays_so(book: Alertbook) -> None:
    book.step(at=0.0, outcomes=[RAISED])
    book.step(at=0.0, outcomes=[CLEARED])
    assert (book.alert(1).state, book.alert(1).to_at, book.alert(1).level) == ("cleared", 50.0, 3.0)
    assert book.decide(1, "ball", who="ann", at=70.0)[0].state == "confirmed"
    assert book.step(at=0.0, outcomes=[RAISED]) == [2]
    book.decide(2, None, who="ann", at=70.0)
    book.step(at=0.0, outcomes=[CLEARED])
    assert [alert.state for alert in book.alerts()] == ["dismissed", "confirmed"]


def raised(kind: Kind, from_at: float, machine: str = "pump-3") -> Raised:
    return structs.replace(RAISED, kind=kind, from_at=from_at, at=from_at + 10.0, machine=machine)


@pytest.fixture
def several(book: Alertbook) -> Alertbook:
    """1 was over before 2 began; 2, 3 and 5 overlap; 4 is of another machine."""
    book.step(at=0.0, outcomes=[raised("vibration", 10.0)])
    book.step(at=0.0, outcomes=[structs.replace(CLEARED, kind="vibration", to_at=50.0)])
    book.step(at=0.0, outcomes=[raised("defect", 60.0), raised("anomaly", 70.0), raised("fault", 70.0, "fan-1")])
    book.step(at=0.0, outcomes=[structs.replace(CLEARED, kind="anomaly", to_at=90.0), raised("fault", 200.0)])
    return book


def test_one_verdict_is_given_of_the_alerts_that_overlap_each_once(several: Alertbook) -> None:
    several.tell({"pager": ["confirmed"]})
    assert [one.id for one in several.overlapping(several.alert(2))] == [3, 5]
    assert [one.id for one in several.overlapping(several.alert(3))] == [2]
    for _ in range(2):
        several.decide(2, "ball", who="ann", at=300.0, overlapping=True)
    assert {one.id: one.verdict for one in several.alerts()} == {1: None, 2: "ball", 3: "ball", 4: None, 5: "ball"}
    assert [(order.alert, order.detail) for order in several.orders()] == [(2, "ball"), (3, "ball"), (5, "ball")]
    assert [note.step.alert for note in several.notes("pager")] == [2, 3, 5]


def test_who_has_a_verdict_keeps_it_when_another_one_is_given_of_the_others(several: Alertbook) -> None:
    several.decide(3, None, who="ann", at=300.0)
    assert [one.id for one in several.decide(2, "ball", who="ann", at=301.0, overlapping=True)] == [2, 5]
    assert several.alert(3).state == "dismissed"


def test_a_verdict_of_several_is_given_of_all_or_of_none(several: Alertbook, monkeypatch: pytest.MonkeyPatch) -> None:
    add, done = several._add_order, []

    def full(machine: str, what: str, at: float, who: str, alert: int | None, detail: str) -> None:
        if done:
            raise BookFailure("the disk is full")
        done.append(alert)
        add(machine, what, at, who, alert, detail)

    with monkeypatch.context() as disk:
        disk.setattr(several, "_add_order", full)
        with pytest.raises(BookFailure):
            several.decide(2, "ball", who="ann", at=300.0, overlapping=True)
    assert several.orders() == []
    assert {one.verdict for one in several.alerts()} == {None}


def test_a_drift_is_noted_and_told(book: Alertbook) -> None:
    book.tell({"pager": ["drift"], "mail": ["raised"]})
    book.step(at=0.0, drifts=[DRIFT])
    (step,) = book.happenings("pump-3")
    assert (step.what, "was 1 and is 1.4" in step.text) == ("drift", True)
    assert [note.step.what for note in book.notes("pager")] == ["drift"]
    assert book.notes("mail") == []


def test_an_order_waits_until_it_is_acted_on(book: Alertbook) -> None:
    book.event("pump-3", "replaced", who="an\nn", at=5.0, noted_at=6.0)
    (order,) = book.orders()
    assert (order.what, order.detail, order.at, order.who) == ("event", "replaced", 5.0, "ann")
    book.step(at=7.0, orders=[order.id])
    assert book.orders() == []


@pytest.mark.parametrize(("machine", "event"), [("pump-3", "burnt"), ("", "replaced"), (" x", "replaced")])
def test_an_event_that_makes_no_sense_is_refused(book: Alertbook, machine: str, event: str) -> None:
    with pytest.raises(BookError, match="expected"):
        book.event(machine, event, who="ann", at=5.0, noted_at=6.0)
    assert book.orders() == []
