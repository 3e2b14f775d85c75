"""What is on record of the fleet's machines, as pages and commands read it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from fedmq_coordinator.audit import AuditLog, Who
from fedmq_coordinator.control import (
    MOST_ALERT_ORDERS,
    AlertOrder,
    Answer,
    Control,
    ControlError,
    Look,
    Outcome,
    Roles,
    place_alert_order,
)
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.machines import LOST, WAITING, Proposal, alerts_of, machines_of, machines_told, spreads_of
from fedmq_coordinator.tasks import AlertWish, state_of_affairs
from machine_rows import EVEN, HIGHER, RAISED_AT, a_drift, a_fleet_spread, a_machine, a_watch, an_alert

DAEMON, BIN, SYS = 1, 2, 3
"""Users that every Debian has."""
ANN = Who(user="ann", uid=1000, how="local")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for gateway in ("g0", "g1"):
        ledger.save_watch(a_watch(gateway))
        ledger.save_machine(a_machine(gateway))
    for number, state in enumerate(("open", "acknowledged", "cleared", "confirmed", "dismissed"), start=1):
        ledger.save_alert(an_alert("g0", number, state=state))
    ledger.save_alert(an_alert("g1", 1, machine="pump-9"))
    ledger.commit()
    return ledger


def test_alerts_come_newest_first_and_by_what_is_asked(ledger: Ledger) -> None:
    assert [one.place for one in ledger.alerts(gateway="g0")] == ["g0/5", "g0/4", "g0/3", "g0/2", "g0/1"]
    assert {one.place for one in ledger.alerts(states=WAITING)} == {"g0/1", "g0/2", "g0/3", "g1/1"}
    assert [one.place for one in ledger.alerts(machine="pump-9")] == ["g1/1"]
    assert [one.place for one in ledger.alerts(since=RAISED_AT + 4)] == ["g0/5", "g0/4"]
    assert [one.place for one in ledger.alerts(last=1)] == ["g0/5"]
    assert ledger.count_alerts()["open", "warning"] == 2


def test_an_alert_brings_its_evidence_and_a_trend_that_can_be_drawn(ledger: Ledger) -> None:
    alert = ledger.alert("g0", 1)
    assert alert is not None
    worst, other = alert.evidence
    assert (worst.name, worst.value, worst.limit, worst.unit, worst.was) == ("velocity", 3.4, 2.8, "mm/s", 1.1)
    assert len(worst.trend) == 24
    assert worst.trend[-1] == (alert.opened_at - 3600.0, pytest.approx(3.3))
    assert other.trend == ()


def test_a_number_means_the_alert_of_the_book_in_force(ledger: Ledger) -> None:
    ledger.save_watch(a_watch("g0", book=b"next"))
    ledger.lose_alerts("g0", b"next", LOST, WAITING)
    assert ledger.alert("g0", 1) is None
    ledger.save_alert(an_alert("g0", 1, book=b"next", machine="fan-1"))
    found = ledger.alert("g0", 1)
    assert found is not None
    assert found.machine == "fan-1"
    states = {(one.book, one.number): one.state for one in ledger.alerts(gateway="g0")}
    assert states[b"book", 1] == LOST
    assert states[b"book", 4] == "confirmed"


def test_the_oldest_decided_alerts_make_room_and_those_that_wait_stay(ledger: Ledger) -> None:
    ledger.trim_alerts("g0", 3, WAITING)
    assert {one.number for one in ledger.alerts(gateway="g0")} == {1, 2, 3}
    assert len(ledger.alerts(gateway="g1")) == 1


def test_programs_read_machines_and_alerts_as_plain_values(ledger: Ledger) -> None:
    (machine, _) = machines_of(ledger)
    assert (machine["gateway"], machine["name"], machine["zone"], machine["drifting"]) == ("g0", "pump-1", "B", [])
    alert = next(one for one in alerts_of(ledger) if one["alert"] == "g0/1")
    assert (alert["to"], len(alert["evidence"][0]["trend"])) == (None, 24)


def test_fleet_drifts_and_proposals_are_kept_as_they_were_saved(ledger: Ledger) -> None:
    ledger.save_fleet_drifts([a_drift()])
    (drift,) = ledger.fleet_drifts()
    assert drift.share == 0.4
    ledger.save_fleet_drifts([])
    assert ledger.fleet_drifts() == []
    book = ledger.book("pumps")
    book.save_proposal(Proposal(at=1.0, reason="4 of 10 pumps have drifted", state="proposed"))
    assert book.proposal() == Proposal(at=1.0, reason="4 of 10 pumps have drifted", state="proposed")


def test_the_status_says_how_machines_are_and_what_is_proposed(ledger: Ledger) -> None:
    book = ledger.book("pumps")
    ledger.save_fleet_drifts([a_drift()])
    book.save_proposal(Proposal(at=1.0, reason="4 of 10 pumps at 3 gateways", state="proposed"))
    told = dict(machines_told(ledger, book))
    assert told["machines"] == "2 at 2 gateways: 2 running; told in 6 messages, 1,800 bytes"
    assert told["alerts"] == "4 wait for somebody"
    assert told["drift"].startswith("4 of 10 pumps at 3 gateways are not what they were: acceleration, kurtosis; ")
    assert "normal" not in told
    assert told["proposal"].endswith("Order it with `fedmq task retrain pumps`")
    book.save_proposal(Proposal(at=1.0, reason="4 of 10 pumps at 3 gateways", state="opened", opened_at=2.0))
    assert dict(machines_told(ledger, book))["training"] == "goes on, for 4 of 10 pumps at 3 gateways"


def test_the_status_says_how_machines_of_a_kind_hold_to_what_is_normal_for_them(ledger: Ledger) -> None:
    ledger.save_fleet_spreads(
        [
            a_fleet_spread(),
            a_fleet_spread("velocity", shares=EVEN, stability=0.012, since=None),
            a_fleet_spread("velocity", band="0.91 x speed", shares=EVEN, stability=0.08, since=None),
            a_fleet_spread("crest", kind="fan", machines=1, gateways=1, shares=EVEN, stability=0.0, since=None),
        ]
    )
    told = machines_told(ledger, ledger.book("pumps"))
    assert [text for heading, text in told if heading == "normal"] == [
        "1 fan at 1 gateway, each against its own, by index (0: as it was): crest 0.00",
        "12 pumps at 5 gateways, each against its own, by index (0: as it was):"
        " acceleration 0.45, velocity (0.91 x speed) 0.08, velocity 0.01",
    ]
    (drift,) = (text for heading, text in told if heading == "drift")
    assert drift.startswith(
        "acceleration of 12 pumps at 5 gateways together is higher: 29 % of windows lie in the top tenth of normal,"
        " where 10 % did (index 0.45); since "
    )


def test_programs_read_spreads_with_the_farthest_first_and_scores_of_one_task_alone(ledger: Ledger) -> None:
    ledger.save_fleet_spreads(
        [
            a_fleet_spread("velocity", stability=0.9, since=None),
            a_fleet_spread("acceleration"),
            a_fleet_spread("score of pumps of version 1-7-ab", stability=0.02, since=None),
            a_fleet_spread("score of fans of version 1-2-cd", stability=0.01, since=None),
        ]
    )
    ledger.commit()
    everything = [one.measure for one in spreads_of(ledger)]
    assert everything == [
        *("acceleration", "velocity"),
        *("score of pumps of version 1-7-ab", "score of fans of version 1-2-cd"),
    ]
    assert [one.measure for one in spreads_of(ledger, "pumps")] == everything[:3]
    first = state_of_affairs(ledger, 1.0)["machines"]["spreads"][0]
    assert (first["index"], first["machines"], first["gateways"], first["drifting_since"]) == (0.45, 12, 5, RAISED_AT)
    assert first["shares"] == [share / 1000 for share in HIGHER]


def test_an_order_for_an_alert_waits_and_is_no_order_of_a_task(ledger: Ledger, tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit.log")
    wanted = AlertOrder(gateway="g0", alert=1, what="confirm", fault="ball", on_behalf="bob")
    number = place_alert_order(ledger, audit, ANN, wanted, 5.0)
    assert ledger.orders_waiting() == []
    (order,) = ledger.orders_of_alert("g0", 1)
    assert (order.id, order.verb, order.task, order.done) == (number, "confirm", "g0/1", None)
    assert [one.id for one in ledger.alert_orders_waiting()] == [number]


@pytest.mark.parametrize(
    ("order", "why"),
    [
        (AlertOrder(gateway="g0", alert=99, what="ack"), "no alert g0/99 is on record"),
        (AlertOrder(gateway="g7", alert=1, what="ack"), "no alert g7/1 is on record"),
        (AlertOrder(gateway="g0", alert=1, what="confirm"), "expected a fault with confirm"),
        (AlertOrder(gateway="g0", alert=1, what="dismiss", fault="ball"), "expected a fault with confirm"),
        (AlertOrder(gateway="g0", alert=1, what="ack", on_behalf="a\nb"), "expected printable texts"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(ledger: Ledger, tmp_path: Path, order: AlertOrder, why: str) -> None:
    with pytest.raises(ControlError, match=why):
        place_alert_order(ledger, AuditLog(tmp_path / "audit.log"), ANN, order, 5.0)
    assert ledger.alert_orders_waiting() == []


def asked(ledger: Ledger, tmp_path: Path, request: object, uid: int) -> Answer:
    roles = Roles(operators=("daemon",), viewers=("bin",), own_uid=4242)
    control = Control(ledger.path, AuditLog(tmp_path / "audit.log"), roles, clock=lambda: 9.0)
    return control.answer(msgspec.json.encode(request), uid, uid)


def test_by_the_socket_operators_order_viewers_look_and_others_do_neither(ledger: Ledger, tmp_path: Path) -> None:
    wanted = AlertOrder(gateway="g0", alert=1, what="dismiss", on_behalf="ann")
    look = Look(what="alerts", form="json")
    assert "a viewer, and orders are for operators" in asked(ledger, tmp_path, wanted, BIN).error
    assert "neither an operator nor a viewer" in asked(ledger, tmp_path, look, SYS).error
    assert len(msgspec.json.decode(asked(ledger, tmp_path, look, BIN).text)) == 6
    machines = msgspec.json.decode(asked(ledger, tmp_path, Look(what="machines", form="json"), BIN).text)
    assert [one["gateway"] for one in machines] == ["g0", "g1"]
    assert ledger.alert_orders_waiting() == []
    number = asked(ledger, tmp_path, wanted, DAEMON).order
    (order,) = ledger.alert_orders_waiting()
    assert (order.id, AlertWish.read(order).said_by) == (number, "ann by daemon")
    assert asked(ledger, tmp_path, Outcome(order=number), BIN).done is None
    log = (tmp_path / "audit.log").read_text()
    assert "alert g0/1" in log
    assert "ordered for ann" in log


def test_so_many_orders_wait_for_one_gateway_and_no_more(ledger: Ledger, tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit.log")
    for _ in range(MOST_ALERT_ORDERS):
        place_alert_order(ledger, audit, ANN, AlertOrder(gateway="g0", alert=1, what="ack"), 5.0)
    with pytest.raises(ControlError, match="orders wait for g0 already"):
        place_alert_order(ledger, audit, ANN, AlertOrder(gateway="g0", alert=1, what="ack"), 5.0)
    place_alert_order(ledger, audit, ANN, AlertOrder(gateway="g1", alert=1, what="ack"), 5.0)
