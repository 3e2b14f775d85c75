"""The broker in memory keeps the promises that the real one keeps."""

from collections.abc import Callable

import pytest
from broker_fixtures import eventually, expect
from fake_broker import FakeBroker, FakeSession, matches
from fedmq_broker_config.run import LocalBroker
from fedmq_protocol.session import (
    Connected,
    ConnectFailed,
    Connection,
    Denied,
    Disconnected,
    MessageTooLarge,
    MqttSession,
    Received,
    Session,
    Will,
)


def everything(session: Session) -> list[object]:
    events = []
    while (event := session.next(0)) is not None:
        events.append(event)
    return events


def started(broker: FakeBroker, client_id: str, *filters: str, will: Will | None = None) -> FakeSession:
    session = broker.session(client_id, will=will)
    session.subscribe(*filters)
    session.start()
    assert session.next(0) == Connected(False, "5", None)
    return session


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/+/+", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("a", "A", False),
    ],
)
def test_filters_match_as_the_standard_says(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter, topic) is expected


def test_a_message_reaches_who_subscribed_and_nobody_else() -> None:
    broker = FakeBroker()
    one, two = started(broker, "one", "a/+"), started(broker, "two", "b/#")
    assert two.publish("a/x", b"1")
    assert everything(one) == [Received("a/x", b"1", False)]
    assert everything(two) == []


def test_retained_messages_come_on_subscribing_and_an_empty_one_clears() -> None:
    broker = FakeBroker()
    one = started(broker, "one")
    one.publish("a", b"1", retain=True)
    assert everything(started(broker, "two", "a")) == [Received("a", b"1", True)]
    one.publish("a", b"", retain=True)
    assert everything(started(broker, "three", "a")) == []


def test_a_killed_session_leaves_its_will_and_a_stopped_one_does_not() -> None:
    broker = FakeBroker()
    watcher = started(broker, "watcher", "w/#")
    started(broker, "one", will=Will("w/one", b"offline")).kill()
    started(broker, "two", will=Will("w/two", b"offline")).stop(flush_seconds=0)
    assert everything(watcher) == [Received("w/one", b"offline", False)]


def test_a_kept_session_gets_what_it_missed_and_a_clean_one_does_not() -> None:
    broker = FakeBroker()
    sender = started(broker, "sender")
    one = started(broker, "one", "a")
    one.cut()
    sender.publish("a", b"1")
    one.heal()
    events = everything(one)
    assert isinstance(events[0], Disconnected)
    assert events[1:] == [Connected(True, "5", None), Received("a", b"1", False)]

    one.kill()
    sender.publish("a", b"2")
    clean = broker.session("one", session_expiry_seconds=0)
    clean.start()
    assert everything(clean) == [Connected(False, "5", None)]


def test_at_qos_0_nothing_is_kept_for_the_absent_and_a_lost_connection_takes_along_what_was_under_way() -> None:
    broker = FakeBroker()
    sender, one = started(broker, "sender"), started(broker, "one", "a")

    one.cut()
    sender.publish("a", b"while away", qos=0)
    one.heal()
    assert [event for event in everything(one) if isinstance(event, Received)] == []

    for lose in (one.cut, sender.cut, sender.kill, lambda: broker.restart(keeps=True)):
        for session in (one, sender):
            session.heal()
            session.start()
        everything(one)
        sender.publish("a", b"taken", qos=0)
        assert everything(one) == [Received("a", b"taken", False)]
        sender.publish("a", b"under way", qos=0)
        sender.publish("a", b"kept", qos=1)
        lose()
        assert [event.payload for event in everything(one) if isinstance(event, Received)] == [b"kept"]

    for session in (one, sender):
        session.heal()
    everything(one)
    sender.publish("a", b"last words", qos=0)
    sender.stop(flush_seconds=1.0)
    assert everything(one) == [Received("a", b"last words", False)]


def test_bytes_are_those_of_a_topic_sent_once_and_no_acknowledgement_at_qos_0() -> None:
    one = started(FakeBroker(), "one")
    counts = []
    for _ in range(3):
        before = one.bytes_sent, one.bytes_received
        one.publish("a/long/topic", b"payload", qos=0)
        counts.append((one.bytes_sent - before[0], one.bytes_received - before[1]))
    assert counts == [(2 + 2 + 12 + 4 + 7, 0), (2 + 2 + 4 + 7, 0), (2 + 2 + 4 + 7, 0)]


def test_a_restart_forgets_sessions_and_subscriptions_are_renewed() -> None:
    broker = FakeBroker()
    one, two = started(broker, "one", "a"), started(broker, "two")
    broker.stop()
    assert not two.publish("a", b"lost")
    two.heal()
    broker.start()
    assert two.publish("a", b"kept")
    assert [type(event) for event in everything(one)] == [Disconnected, Connected, Received]
    assert [type(event) for event in everything(two)] == [Disconnected, ConnectFailed, Connected]


@pytest.mark.parametrize("keeps", [True, False])
def test_a_restart_keeps_what_is_on_disk(keeps: bool) -> None:
    broker = FakeBroker()
    one = started(broker, "one")
    one.publish("a", b"1", retain=True)
    broker.restart(keeps=keeps)
    assert Connected(keeps, "5", None) in everything(one)
    assert everything(started(broker, "two", "a")) == ([Received("a", b"1", True)] if keeps else [])


def test_a_second_session_with_the_same_client_id_pushes_out_the_first() -> None:
    broker = FakeBroker()
    first = started(broker, "same")
    second = broker.session("same")
    second.start()
    assert [type(event) for event in everything(first)] == [Disconnected]
    assert not first.publish("a", b"")
    assert second.publish("a", b"")


def test_what_the_acl_forbids_is_denied_and_reaches_nobody() -> None:
    broker = FakeBroker(allow=lambda client_id, topic, write: not write or topic == f"up/{client_id}")
    watcher = started(broker, "watcher", "up/#")
    one = started(broker, "one")
    one.publish("up/two", b"1")
    one.publish("up/one", b"2")
    assert everything(one) == [Denied("up/two", "Not authorized")]
    assert everything(watcher) == [Received("up/one", b"2", False)]


def test_a_message_over_the_announced_size_raises() -> None:
    session = FakeBroker(max_packet_bytes=100).session("one")
    session.start()
    with pytest.raises(MessageTooLarge, match="at most 100"):
        session.publish("a", bytes(100))


def story(
    session: Callable[[str, Will | None], Session],
    restart: Callable[[], None],
    events: Callable[[Session, int], list[object]],
) -> list[list[object]]:
    """One life of two sessions on a broker, told by the events that each sees. Counts say how many must come."""
    up, down, cmd = "fl/1/plant/up", "fl/1/plant/down/plan", "fl/1/plant/cmd"
    one, two = session("one", Will(f"{up}/one/status", b"off")), session("two", None)
    one.subscribe(down, f"{cmd}/one/+")
    two.subscribe(f"{up}/#")
    told = []
    for each in (one, two):
        each.start()
        told.append(events(each, 1))
    one.publish(f"{up}/one/status", b"on", retain=True)
    told.append(events(two, 1))
    two.publish(down, b"plan")
    told.append(events(one, 1))
    two.publish(f"{cmd}/one/receipt", b"to one")
    two.publish(f"{cmd}/two/receipt", b"to nobody")
    told.append(events(one, 1))
    for payload in (b"first", b"second"):
        one.publish(f"{up}/one/answer", payload, qos=0)
        told.append(events(two, 1))
    one.stop(flush_seconds=1.0)
    told.append(events(one, 1))
    two.publish(f"{cmd}/one/receipt", b"while away")
    two.publish(f"{cmd}/one/receipt", b"while away, for the present only", qos=0)
    told.append(events(two, 0))
    again = session("one", None)
    again.start()
    told.append(events(again, 2))
    late = session("late", None)
    late.subscribe(f"{up}/+/status")
    late.start()
    told.append(events(late, 2))
    restart()
    for each in (again, two, late):
        told.append(events(each, 2))
    again.publish(f"{up}/one/ask", b"back")
    told.append(events(two, 1))
    return told


@pytest.mark.broker
def test_one_story_has_the_same_events_in_memory_and_on_mosquitto(mosquitto: LocalBroker) -> None:
    def plain(event: object) -> object:
        if isinstance(event, Connected):
            return ("connected", event.session_present)
        return "disconnected" if isinstance(event, Disconnected) else event

    real: list[MqttSession] = []

    def connect(client_id: str, will: Will | None) -> MqttSession:
        connection = Connection(host="127.0.0.1", port=mosquitto.port, client_id=client_id, reconnect_min_seconds=0.02)
        real.append(MqttSession(connection, will))
        return real[-1]

    def wait_for(session: Session, count: int) -> list[object]:
        wanted = (Connected, Disconnected, Received)
        seen = [plain(expect(session, wanted)) for _ in range(count)]  # type: ignore[arg-type]
        assert isinstance(session, MqttSession)
        eventually(lambda: not session._unanswered and not session.outstanding, "a quiet connection")
        return seen

    fake = FakeBroker()
    in_memory = story(
        lambda client_id, will: fake.session(client_id, will=will),
        fake.restart,
        lambda session, count: [plain(event) for event in everything(session)],
    )
    on_mosquitto = story(connect, mosquitto.restart, wait_for)
    for session in real:
        session.stop(flush_seconds=0.0)
    assert in_memory == on_mosquitto


def test_a_session_keeps_the_spread_that_it_was_told() -> None:
    session = FakeBroker().session("g1")
    session.spread_reconnects(40.0)
    assert session.spread_seconds == 40.0
