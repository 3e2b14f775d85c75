"""What is worth a message about machines, when, and how large; and orders that are carried out once."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
from fedmq_edge_node.alertbook import Alertbook, BookFailure
from fedmq_edge_node.courier import Courier
from fedmq_protocol.condition import (
    AlertOrder,
    AlertOrders,
    Condition,
    FleetLimit,
    FleetLimits,
    Noted,
    check_of_marks,
    limits_mark,
    mark_of,
    to_quantiles,
)
from fedmq_protocol.messages import from_bytes, to_bytes
from fedmq_protocol.topics import Channel, Direction, spec
from watched_machines import AT, WatchedMachines

UP = spec(Direction.UP, Channel.CONDITION)
KEY = b"8 bytes!"


class Far:
    """A coordinator that takes what is sent, and answers."""

    def __init__(self, courier: Courier) -> None:
        self.courier = courier
        self.now = 0.0
        self.marks: dict[str, bytes] = {}
        self.book = b""
        self.cursor = 0
        self.sent: list[Condition] = []

    def step(self, seconds: float = 1.0) -> Condition | None:
        self.now += seconds
        message = self.courier.step(self.now)
        if message is not None:
            data = to_bytes(message)
            assert from_bytes(UP, data) == message
            self.sent.append(message)
        return message

    def answer(self, message: Condition) -> None:
        if message.book != self.book:
            self.book, self.cursor, self.marks = message.book, 0, {}
        if message.anew:
            self.marks.clear()
        for machine in message.machines:
            self.marks[machine.name] = mark_of(machine)
        for name in message.gone:
            del self.marks[name]
        for summary in message.summaries:
            self.marks[f"{summary.kind} {summary.band} {summary.measure}"] = mark_of(summary)
        for spread in message.spreads or ():
            key = f"spread {spread.kind} {spread.band} {spread.measure}"
            if spread.shares:
                self.marks[key] = mark_of(spread)
            else:
                del self.marks[key]
        if message.since <= self.cursor:
            self.cursor = max(self.cursor, message.upto)
        self.courier.noted(self.noted(message.counter), self.now)

    def noted(self, counter: int | None = None) -> Noted:
        return Noted(book=self.book, cursor=self.cursor, check=check_of_marks(self.marks.values()), counter=counter)

    def settle(self) -> list[Condition]:
        """All that is to be said now."""
        said = []
        for _ in range(400):
            message = self.step()
            if message is not None:
                said.append(message)
                self.answer(message)
        return said


@pytest.fixture
def watch(tmp_path: Path) -> WatchedMachines:
    watch = WatchedMachines(tmp_path / "alerts.sqlite")
    watch.stand()
    return watch


def far(watch: WatchedMachines) -> Far:
    return Far(Courier(watch.book.path, every_seconds=60.0))


def test_nothing_is_said_before_the_coordinator_has_said_what_it_has(watch: WatchedMachines) -> None:
    other = far(watch)
    assert other.settle() == []
    other.courier.welcomed(None, other.now)
    (message,) = other.settle()
    assert [machine.name for machine in message.machines] == ["pump-1"]
    other.courier.disconnected()
    watch.raise_alert()
    assert other.settle() == []


def test_an_alert_goes_at_once_and_how_machines_are_now_and_then(watch: WatchedMachines) -> None:
    other = far(watch)
    other.courier.welcomed(None, other.now)
    other.settle()
    watch.stand(state="stopped")
    watch.raise_alert()
    began = other.now
    first = next(message for _ in range(100) if (message := other.step()) is not None)
    assert [alert.number for alert in first.alerts] == [1]
    assert other.now - began <= 5
    other.answer(first)
    for turn in range(40):
        watch.stand(state="running" if turn % 2 else "stopped")
        if (message := other.step(10.0)) is not None:
            other.answer(message)
    assert len([one for one in other.sent if one.machines and one is not first]) <= 8


def test_one_message_is_on_its_way_and_is_said_again_as_things_are_by_then(watch: WatchedMachines) -> None:
    other = far(watch)
    watch.raise_alert()
    other.courier.welcomed(None, other.now)
    sent = []
    for second in range(3600):
        if second == 10:
            watch.book.acknowledge(1, who="ann", at=AT)
        if (message := other.step()) is not None:
            sent.append((other.now, message))
    assert 5 <= len(sent) <= 8
    pauses = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(sent)]
    assert pauses == sorted(pauses)
    assert [message.alerts[0].state for _, message in sent[:2]] == ["open", "acknowledged"]
    assert len({message.counter for _, message in sent}) == len(sent)
    # The answer to one that was given up says nothing of the last one.
    other.courier.noted(Noted(book=b"....", cursor=0, check=bytes(8), counter=sent[0][1].counter), other.now)
    assert other.step() is None


def test_however_much_there_is_no_message_is_too_large_and_all_of_it_arrives(watch: WatchedMachines) -> None:
    for n in range(300):
        watch.stand(f"machine-{n:03}-" + "x" * 40, kind="k" * 60)
        watch.learn(f"machine-{n:03}-" + "x" * 40, seed=n)
    for n in range(270):
        watch.raise_alert(f"pump-{n}")
    other = far(watch)
    other.courier.welcomed(None, other.now)
    said = other.settle()
    assert max(len(to_bytes(message)) for message in said) <= UP.max_bytes
    numbers = [alert.number for message in said for alert in message.alerts]
    # Of a long history only the newest are told to a coordinator that knows none.
    assert numbers == list(range(270 - 256 + 1, 271))
    assert len({machine.name for message in said for machine in message.machines}) == 256
    assert other.settle() == []


def test_a_summary_is_told_once_it_is_learnt_and_when_it_has_grown_by_a_quarter(watch: WatchedMachines) -> None:
    other = far(watch)
    watch.learn(done=False)
    other.courier.welcomed(None, other.now)
    assert not any(message.summaries for message in other.settle())
    watch.learn()
    (message,) = other.settle()
    (first,) = message.summaries
    watch.stand("pump-2")
    watch.learn("pump-2", centre=2.0)
    (message,) = other.settle()
    (second,) = message.summaries
    assert (second.kind, second.measure) == (first.kind, first.measure)
    assert len(second.sketch) > len(first.sketch)


EVEN = (10,) * 10
HIGHER = (2, 3, 4, 6, 8, 10, 11, 12, 15, 29)


def test_how_machines_hold_to_their_normal_is_told_as_the_mean_over_them(watch: WatchedMachines) -> None:
    other = far(watch)
    watch.learn(epochs=[EVEN, EVEN])
    other.courier.welcomed(None, other.now)
    assert not any(message.spreads for message in other.settle()), "of two days alone nothing is typical"
    watch.learn(epochs=[EVEN] * 3)
    watch.stand("pump-2")
    watch.learn("pump-2", centre=50.0, epochs=[EVEN, HIGHER, HIGHER])
    watch.stand("fan-1", kind="fan")
    watch.learn("fan-1", epochs=[HIGHER, EVEN, EVEN])
    told = {one.kind: one for message in other.settle() for one in message.spreads or ()}
    assert (told["pump"].machines, told["pump"].band, told["pump"].measure) == (2, "all", "acceleration")
    assert told["pump"].shares == (60, 65, 70, 80, 90, 100, 105, 110, 125, 195)
    assert told["fan"].shares == (100,) * 10
    # By chance two machines are as sure as one of twice as many windows: 500 of a baseline and 100 of a day each.
    assert (told["pump"].windows, told["fan"].windows) == (166, 83)


def test_a_spread_is_told_again_where_it_has_changed_and_not_for_chance(watch: WatchedMachines) -> None:
    other = far(watch)
    watch.learn(epochs=[EVEN] * 3)
    other.courier.welcomed(None, other.now)
    other.settle()
    watch.learn(epochs=[(11, 9, 10, 10, 10, 10, 10, 10, 9, 11)] * 3)
    assert other.settle() == []
    # Neither at a restart of the gateway, by which all is held against what the coordinator has.
    other.courier = Courier(watch.book.path, every_seconds=60.0)
    other.courier.welcomed(other.noted(), other.now)
    assert other.settle() == []
    watch.learn(epochs=[(14, 6, 10, 10, 10, 10, 10, 10, 6, 14)] * 3)
    (message,) = other.settle()
    assert [one.shares[0] for one in message.spreads or ()] == [140]
    assert (message.machines, message.summaries) == ((), ())


def test_a_spread_that_is_known_no_more_is_told_as_gone(watch: WatchedMachines) -> None:
    other = far(watch)
    watch.learn(epochs=[EVEN] * 3)
    other.courier.welcomed(None, other.now)
    other.settle()
    watch.learn()
    (message,) = other.settle()
    assert [(one.measure, one.shares) for one in message.spreads or ()] == [("acceleration", ())]
    assert other.settle() == []
    assert other.courier.step(other.now) is None


def test_however_many_are_gone_at_once_no_message_holds_more_than_it_may(watch: WatchedMachines) -> None:
    """As when another version of a model comes, and its scores of each band with it."""
    other = far(watch)
    measures = [f"score of pumps of version {n}" for n in range(100)]
    watch.learn(epochs=[EVEN] * 3, measures=measures)
    other.courier.welcomed(None, other.now)
    assert sum(len(message.spreads or ()) for message in other.settle()) == 100
    watch.forget()
    told = [one for message in other.settle() for one in message.spreads or ()]
    assert {one.measure for one in told if not one.shares} == set(measures)
    assert other.settle() == []


def test_a_book_that_was_put_back_from_an_older_copy_is_told_as_another_one(tmp_path: Path) -> None:
    watch = WatchedMachines(tmp_path / "alerts.sqlite")
    watch.stand()
    watch.raise_alert()
    watch.book._execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copyfile(watch.book.path, tmp_path / "older")
    watch.raise_alert("pump-2")
    other = far(watch)
    other.courier.welcomed(None, other.now)
    other.settle()
    before = other.book
    other.courier.disconnected()
    watch.book.close()
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"alerts.sqlite{suffix}").unlink(missing_ok=True)
    shutil.copyfile(tmp_path / "older", tmp_path / "alerts.sqlite")
    again = WatchedMachines(tmp_path / "alerts.sqlite")
    again.raise_alert("pump-9")
    other.courier = Courier(again.book.path)
    other.cursor += 1  # the copy has come as far by its own count, and further than this it has not
    other.courier.welcomed(other.noted(), other.now)
    said = other.settle()
    assert other.book != before
    assert [(alert.number, alert.machine) for message in said for alert in message.alerts] == [
        (1, "pump-1"),
        (2, "pump-9"),
    ]


def test_without_a_book_nothing_is_said_and_it_is_found_once_it_is_there(tmp_path: Path) -> None:
    courier = Courier(tmp_path / "watch" / "alerts.sqlite")
    other = Far(courier)
    courier.welcomed(None, other.now)
    courier.orders(AlertOrders(orders=(AlertOrder(key=KEY, book=b"book", alert=1, what="ack"),)), other.now)
    assert other.settle() == []
    watch = WatchedMachines(tmp_path / "watch" / "alerts.sqlite")
    watch.stand()
    assert [machine.name for message in other.settle() for machine in message.machines] == ["pump-1"]


def test_a_book_in_whose_place_another_one_lies_is_told_anew_without_a_restart(tmp_path: Path) -> None:
    watch = WatchedMachines(tmp_path / "alerts.sqlite")
    watch.stand()
    watch.raise_alert()
    other = far(watch)
    other.courier.welcomed(None, other.now)
    other.settle()
    watch.book.close()
    for path in tmp_path.glob("alerts.sqlite*"):
        path.unlink()
    again = WatchedMachines(tmp_path / "alerts.sqlite")
    again.stand("pump-9")
    again.raise_alert("pump-9")
    said = other.settle()
    assert [alert.machine for message in said for alert in message.alerts] == ["pump-9"]
    assert [machine.name for message in said for machine in message.machines] == ["pump-9"]


def test_a_damaged_book_keeps_no_gateway_from_its_work(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "alerts.sqlite"
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    other = Far(Courier(path))
    other.courier.welcomed(None, other.now)
    other.courier.orders(AlertOrders(orders=(AlertOrder(key=KEY, book=b"book", alert=1, what="ack"),)), other.now)
    other.courier.limits(FleetLimits(limits=()), other.now)
    assert other.settle() == []
    assert sum("nothing is told of machines" in record.getMessage() for record in caplog.records) == 1


def test_an_order_is_carried_out_once_and_answered_each_time(watch: WatchedMachines) -> None:
    number = watch.raise_alert()
    other = far(watch)
    other.courier.welcomed(None, other.now)
    other.settle()
    book = bytes.fromhex(watch.book.told_as())
    orders = AlertOrders(
        orders=(
            AlertOrder(key=b"order--1", book=book, alert=number, what="ack", who="ann", at=int(AT) + 5),
            AlertOrder(key=b"order--2", book=book, alert=number, what="confirm", fault="ball", who="ann"),
            AlertOrder(key=b"order--3", book=book, alert=99, what="ack"),
            AlertOrder(key=b"order--4", book=b"gone", alert=number, what="dismiss"),
        )
    )
    for _ in range(3):
        other.courier.orders(orders, other.now)
        done = {one.key: one for message in other.settle() for one in message.done}
        assert [done[key].done for key in (b"order--1", b"order--2", b"order--3", b"order--4")] == [
            *(True, True, False, False)
        ]
        assert "there is no alert 99" in done[b"order--3"].text
    assert [step.what for step in watch.book.steps(number)] == ["raised", "acknowledged", "confirmed"]
    # Somebody on site says something else later: the order that comes once more does not take it back.
    watch.book.decide(number, None, who="bob", at=AT)
    other.courier.orders(orders, other.now)
    assert watch.book.alert(number).state == "dismissed"


def test_an_order_and_that_it_was_carried_out_are_one_transaction(watch: WatchedMachines) -> None:
    number = watch.raise_alert()
    watch.book._db.execute("PRAGMA query_only = 1")
    with pytest.raises(BookFailure):
        watch.book.obey("00", number, "ack", "", who="ann", at=AT)
    watch.book._db.execute("PRAGMA query_only = 0")
    assert watch.book.alert(number).state == "open"
    assert watch.book.obey("00", number, "ack", "", who="ann", at=AT) == (True, "acknowledged")
    assert Alertbook.existing(watch.book.path).obey("00", number, "ack", "", who="x", at=AT) == (True, "acknowledged")


def test_limits_reach_the_book_and_the_coordinator_hears_that_they_did(watch: WatchedMachines) -> None:
    other = far(watch)
    other.courier.welcomed(None, other.now)
    other.settle()
    good = FleetLimit(
        kind="pump", band="all", measure="acceleration", gateways=3, quantiles=to_quantiles([1, 2, 3, 4, 5])
    )
    broken = FleetLimit(
        kind="pump", band="all", measure="crest", gateways=3, quantiles=to_quantiles([1, 2, 3, 4, float("nan")])
    )
    told = FleetLimits(limits=(good, broken))
    other.courier.limits(told, other.now)
    (message,) = other.settle()
    assert message.limits == limits_mark(told.limits)
    assert "acceleration" in watch.book.fleet_limits()
    assert "crest" not in watch.book.fleet_limits()


def test_messages_are_as_small_as_the_documents_say(tmp_path: Path) -> None:
    """docs/architecture.md has these figures."""
    watch = WatchedMachines(tmp_path / "alerts.sqlite")
    watch.stand("pump-3")
    other = far(watch)
    other.courier.welcomed(None, other.now)
    (machine,) = other.settle()
    watch.raise_alert("pump-3")
    (alert,) = other.settle()
    watch.learn("pump-3")
    (summary,) = other.settle()
    assert [len(to_bytes(message)) for message in (machine, alert, summary)] == [51, 345, 111]
    assert len(summary.summaries[0].sketch) == 68
    measures = ("acceleration", "velocity", "kurtosis", "crest")
    watch.learn("pump-3", measures=measures)
    other.settle()
    watch.learn("pump-3", epochs=[HIGHER] * 3, measures=measures)
    (day,) = other.settle()
    assert (len(day.spreads or ()), len(to_bytes(day))) == (4, 161)
    assert len(to_bytes(other.noted(1))) == 21
    order = AlertOrder(
        key=KEY, book=other.book, alert=12, what="confirm", fault="outer_race", who="ann", at=1_790_000_000
    )
    assert len(to_bytes(AlertOrders(orders=(order,)))) == 50
    limits = tuple(
        FleetLimit(kind="pump", band="all", measure=name, gateways=5, quantiles=to_quantiles([1, 2, 3, 4, 5]))
        for name in ("acceleration", "velocity", "kurtosis", "crest")
    )
    assert len(to_bytes(FleetLimits(limits=limits))) == 173
