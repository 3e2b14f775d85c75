"""What the coordinator makes of what a gateway says of its machines, message by message."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedmq_coordinator.audit import AuditLog, Who
from fedmq_coordinator.conditions import MOST_ALERTS, Conditions, order_key
from fedmq_coordinator.control import AlertOrder, place_alert_order
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.outbox import Outbox
from fedmq_coordinator.roster import Roster
from fedmq_coordinator.settings import DriftSettings, FleetSettings
from fedmq_protocol.condition import (
    MAX_MACHINES,
    MAX_SPREADS,
    AlertState,
    Condition,
    Done,
    MachineState,
    Noted,
    SpreadOf,
    SummaryOf,
)
from fedmq_protocol.messages import from_bytes
from fedmq_protocol.task import Windowing
from fedmq_protocol.topics import parse
from ledgers import a_gateway

NOW = 1_700_000_000.0


class Fixture:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ledger = Ledger(directory / "ledger.sqlite")
        for place in range(2):
            self.ledger.save_gateway(a_gateway(f"g{place}", place))
        self.outbox = Outbox("test")
        self.conditions = Conditions(
            ledger=self.ledger,
            roster=Roster(self.ledger, windowing=Windowing()),
            outbox=self.outbox,
            settings=FleetSettings(),
            drift=DriftSettings(),
        )
        self.counter = 0

    def hear(
        self, gateway: str = "g0", *, book: bytes = b"book", since: int = 0, upto: int = 0, **more: object
    ) -> Noted:
        self.counter += 1
        values: dict[str, object] = {"counter": self.counter, "book": book, "since": since, "upto": upto}
        self.conditions.on_condition(gateway, Condition(**(values | more)), 100, NOW)  # type: ignore[arg-type]
        (said,) = self.outbox.take()
        answer = from_bytes(parse(said.topic).spec, said.payload)
        assert isinstance(answer, Noted)
        return answer


@pytest.fixture
def there(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path)


def alert(number: int, state: str = "open") -> AlertState:
    return AlertState(
        number=number,
        machine="pump-1",
        kind="vibration",
        state=state,  # type: ignore[arg-type]
        severity="warning",
        level=120,
        sensor="de",
        label=None,
        verdict=None,
        opened_at=1000 + number,
        from_at=1000,
        to_at=None,
    )


def machine(name: str = "pump-1", **more: object) -> MachineState:
    values: dict[str, object] = {
        "name": name,
        "kind": "pump",
        "state": "running",
        "zone": None,
        "learnt_pct": 0,
        "level": 0,
        "at": 1,
    }
    return MachineState(**(values | more))  # type: ignore[arg-type]


def test_what_lies_between_is_asked_for_before_what_follows_is_taken(there: Fixture) -> None:
    assert there.hear(upto=3, alerts=(alert(1),)).cursor == 3
    # It never heard of changes 4 and 5: its answer says so, and the gateway goes on from there.
    assert there.hear(since=5, upto=6, alerts=(alert(2),)).cursor == 3
    assert [one.number for one in there.ledger.alerts()] == [1]
    assert there.hear(since=3, upto=6, alerts=(alert(2),)).cursor == 6
    assert {one.number for one in there.ledger.alerts()} == {1, 2}


def test_an_older_word_changes_nothing_that_is_newer(there: Fixture) -> None:
    there.hear(upto=1, alerts=(alert(1),), machines=(machine(),))
    there.hear(since=1, upto=2, alerts=(alert(1, "confirmed"),), machines=(machine(state="stopped"),))
    there.counter = 0
    assert there.hear(upto=1, alerts=(alert(1),), machines=(machine(),)).cursor == 2
    assert [one.state for one in there.ledger.alerts()] == ["confirmed"]
    assert [one.state for one in there.ledger.machines()] == ["stopped"]


def test_a_gateway_changes_rows_of_its_own_alone(there: Fixture) -> None:
    there.hear("g0", upto=1, alerts=(alert(1),), machines=(machine(),))
    there.hear("g1", upto=1, alerts=(alert(1, "dismissed"),), machines=(machine(state="stopped"),))
    there.hear("g1", book=b"next", anew=True, gone=("pump-1",))
    assert [one.state for one in there.ledger.alerts(gateway="g0")] == ["open"]
    assert [one.state for one in there.ledger.machines()] == ["running"]


def test_who_was_never_born_is_not_heard(there: Fixture) -> None:
    there.conditions.on_condition("g7", Condition(counter=1, book=b"book", since=0, upto=1, alerts=(alert(1),)), 9, NOW)
    assert there.outbox.take() == []
    assert there.ledger.watches() == []


def test_what_one_gateway_may_have_on_record_is_bounded(there: Fixture) -> None:
    for first in range(0, 320, 64):
        there.hear(machines=tuple(machine(f"m-{n}") for n in range(first, first + 64)))
    assert len(there.ledger.machines("g0")) == MAX_MACHINES
    for first in range(0, MOST_ALERTS + 160, 16):
        alerts = tuple(alert(n, "dismissed") for n in range(first + 1, first + 17))
        there.hear(since=first, upto=first + 16, alerts=alerts)
    assert len(there.ledger.alerts(gateway="g0")) == MOST_ALERTS
    before = there.hear()
    assert there.hear(summaries=(SummaryOf(kind="pump", band="", measure="x", sketch=b"junk"),)).check == before.check
    assert there.ledger.summaries() == []
    assert ("condition", "no summary", 1, 4) in there.ledger.refused()


def spread(measure: str = "velocity", shares: tuple[int, ...] = (100,) * 10) -> SpreadOf:
    return SpreadOf(kind="pump", band="all", measure=measure, machines=2, windows=900, shares=shares)


def test_spreads_of_a_gateway_are_kept_bounded_and_forgotten_when_they_are_gone(there: Fixture) -> None:
    before = there.hear()
    assert there.hear(spreads=(spread(),)).check != before.check
    (kept,) = there.ledger.spreads("g0")
    assert (kept.measure, kept.machines, kept.windows, kept.shares) == ("velocity", 2, 900, (100,) * 10)
    assert there.hear(spreads=(spread(shares=()),)).check == before.check
    assert there.ledger.spreads() == []
    for first in range(0, 320, 64):
        there.hear(spreads=tuple(spread(f"score {n}") for n in range(first, first + 64)))
    assert len(there.ledger.spreads("g0")) == MAX_SPREADS
    there.hear(spreads=(spread("score 0", (0,) * 9 + (1000,)),))
    assert max(one.shares[-1] for one in there.ledger.spreads("g0")) == 1000
    there.hear(anew=True)
    assert there.ledger.spreads() == []


def test_only_the_gateway_that_an_order_is_for_says_that_it_is_done(there: Fixture) -> None:
    for name in ("g0", "g1"):
        there.hear(name, upto=1, alerts=(alert(1),))
    there.ledger.commit()
    who = Who(user="ann", uid=1000, how="local")
    audit = AuditLog(there.directory / "audit.log")
    number = place_alert_order(there.ledger, audit, who, AlertOrder(gateway="g0", alert=1, what="ack"), NOW)
    (order,) = there.ledger.alert_orders_waiting()
    there.hear("g1", done=(Done(key=order_key(order), done=True),))
    assert [one.id for one in there.ledger.alert_orders_waiting()] == [number]
    there.hear("g0", done=(Done(key=order_key(order), done=True, text="acknowledged"),))
    (order,) = there.ledger.orders_of_alert("g0", 1)
    assert (order.done, order.result) == (True, "acknowledged")
