"""The connection, against real brokers, and against scripted ones for what those do not do."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from broker_fixtures import PATIENCE_SECONDS, eventually, expect, joined
from certificates import Authority
from counting_proxy import CountingProxy
from fedmq_broker_config.render import BrokerSettings, Certificates
from fedmq_broker_config.run import EmbeddedBroker, LocalBroker, find_mosquitto, free_port
from fedmq_protocol import session as module
from fedmq_protocol.session import (
    MAX_PACKET_BYTES,
    Connected,
    ConnectFailed,
    Connection,
    Denied,
    Disconnected,
    Dropped,
    MessageTooLarge,
    MqttSession,
    Received,
    TopicAliases,
    Will,
    publish_packet_bytes,
    retry_delay_seconds,
)
from hypothesis import given
from hypothesis import strategies as st
from scripted_broker import CONNACK_5, CONNACK_311, CONNACK_311_WRONG_PROTOCOL, ScriptedBroker, hold

Make = Callable[..., MqttSession]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes sessions that reconnect fast, and stops them after the test."""
    made: list[MqttSession] = []

    def make_session(port: int, client_id: str = "one", *, will: Will | None = None, **changes: Any) -> MqttSession:
        settings = {"reconnect_min_seconds": 0.02, "reconnect_max_seconds": 0.2} | changes
        connection = Connection(host="127.0.0.1", port=port, client_id=client_id, **settings)
        made.append(MqttSession(connection, will, Random(1)))
        return made[-1]

    yield make_session
    for session in made:
        session.stop(flush_seconds=0.0)


@pytest.fixture(params=["mosquitto-5", "mosquitto-3.1.1", "embedded-5", "embedded-3.1.1"])
def any_broker(request: pytest.FixtureRequest) -> tuple[int, str]:
    """Each kind of broker with each protocol: its port, and the protocol spoken there."""
    kind, _, protocol = request.param.partition("-")
    if kind == "mosquitto":
        broker = request.getfixturevalue("mosquitto")
        return broker.port, protocol
    broker = request.getfixturevalue("embedded_broker")
    return (broker.port if protocol == "5" else broker.port_311), protocol


def kill(session: MqttSession) -> None:
    """End the socket as a dead process would: no DISCONNECT, no return."""
    session._stopping.set()
    client = session._client
    assert client is not None
    sock = client.socket()
    assert sock is not None
    sock.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
    assert session._thread is not None
    session._thread.join(PATIENCE_SECONDS)


T = "fl/1/plant/up/one/"
STATUS, ANSWER, PLAN = T + "status", T + "answer", "fl/1/plant/down/plan"


@pytest.mark.broker
def test_a_message_arrives_as_it_was_sent_on_every_broker_and_protocol(any_broker: tuple[int, str], make: Make) -> None:
    port, protocol = any_broker
    receiver, sender = make(port, "receiver", protocol=protocol), make(port, "sender", protocol=protocol)
    receiver.subscribe("fl/1/plant/up/+/+", PLAN)
    receiver.start()
    assert joined(receiver).protocol == protocol
    sender.start()
    joined(sender)
    payload = bytes(range(256)) * 512
    assert sender.publish(ANSWER, payload)
    assert sender.publish(PLAN, b"", expiry_seconds=60)
    assert sender.publish(STATUS, b"q0", qos=0)
    got = {event.topic: event.payload for event in (expect(receiver, Received) for _ in range(3))}
    assert got == {ANSWER: payload, PLAN: b"", STATUS: b"q0"}
    eventually(lambda: sender.outstanding == 0, "acknowledgements")


@pytest.mark.broker
def test_a_will_is_sent_for_the_dead_and_not_for_who_leaves(any_broker: tuple[int, str], make: Make) -> None:
    port, protocol = any_broker
    watcher = make(port, "watcher", protocol=protocol)
    watcher.subscribe("fl/1/plant/up/+/status")
    watcher.start()
    joined(watcher)
    leaver = make(port, "two", will=Will("fl/1/plant/up/two/status", b"offline"), protocol=protocol)
    leaver.start()
    joined(leaver)
    leaver.stop(flush_seconds=1.0)
    dead = make(port, "one", will=Will(STATUS, b"offline"), protocol=protocol)
    dead.start()
    joined(dead)
    kill(dead)
    assert expect(watcher, Received) == Received(STATUS, b"offline", False)

    late = make(port, "late", protocol=protocol)
    late.subscribe("fl/1/plant/up/+/status")
    late.start()
    assert expect(late, Received) == Received(STATUS, b"offline", True)


@pytest.mark.broker
def test_a_session_gets_what_it_missed_while_away(any_broker: tuple[int, str], make: Make) -> None:
    port, protocol = any_broker
    sender, first = make(port, "sender", protocol=protocol), make(port, "one", protocol=protocol)
    first.subscribe(PLAN)
    for session in (sender, first):
        session.start()
        joined(session)
    # The broker has processed the subscription once a message comes back by it.
    sender.publish(PLAN, b"0")
    expect(first, Received)
    first.stop(flush_seconds=1.0)
    sender.publish(PLAN, b"1")
    eventually(lambda: sender.outstanding == 0, "acknowledgement")
    again = make(port, "one", protocol=protocol)
    again.start()
    assert joined(again).session_present
    assert expect(again, Received).payload == b"1"


@pytest.mark.broker
@pytest.mark.parametrize("end", ["restart", "kill -9"])
def test_subscriptions_are_renewed_after_the_broker_came_back(mosquitto: LocalBroker, make: Make, end: str) -> None:
    receiver, sender = make(mosquitto.port, "receiver"), make(mosquitto.port, "sender")
    receiver.subscribe(PLAN)
    for session in (receiver, sender):
        session.start()
        joined(session)
    if end == "restart":
        mosquitto.restart()
    else:
        mosquitto.kill()
        expect(sender, Disconnected)
        assert not sender.publish(PLAN, b"while it was down")
        expect(sender, ConnectFailed)
        mosquitto.start()
    for session in (receiver, sender):
        assert not joined(session).session_present
    assert sender.publish(PLAN, b"back")
    assert expect(receiver, Received).payload == b"back"


@pytest.mark.broker
def test_a_dropped_subscription_stays_dropped(mosquitto: LocalBroker, make: Make) -> None:
    session = make(mosquitto.port)
    model = "fl/1/plant/down/model"
    session.subscribe(PLAN, model)
    session.start()
    joined(session)
    session.unsubscribe(model)
    mosquitto.restart()
    expect(session, Disconnected)
    joined(session)
    session.publish(model, b"1")
    session.publish(PLAN, b"2")
    assert expect(session, Received).topic == PLAN


@pytest.mark.broker
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_counted_bytes_equal_those_on_the_socket_across_reconnects(
    mosquitto: LocalBroker, make: Make, protocol: str
) -> None:
    with CountingProxy("127.0.0.1", mosquitto.port) as proxy:
        session = make(proxy.port, will=Will(STATUS, b"offline"), protocol=protocol, keepalive_seconds=1, username=None)
        session.subscribe(PLAN)
        session.start()
        joined(session)
        for size in (0, 1, 120, 130, 20_000, 100_000):
            assert session.publish(PLAN, bytes(size))
            expect(session, Received)

        def counted_equal() -> bool:
            counted = (session.bytes_sent, session.bytes_received)
            return session.outstanding == 0 and counted == (proxy.bytes_up, proxy.bytes_down)

        # What is on its way between proxy and session as a connection ends is rightly counted by one of them only.
        eventually(counted_equal, "equal counts before the cut")
        proxy.cut()
        expect(session, Disconnected)
        joined(session)
        session.publish(PLAN, b"again", qos=0)
        expect(session, Received)
        before = proxy.bytes_up
        eventually(lambda: proxy.bytes_up >= before + 4, "two pings of the idle connection")
        eventually(counted_equal, "equal counts after the reconnect")
        session.stop(flush_seconds=1.0)
        eventually(lambda: proxy.bytes_up == session.bytes_sent, "equal counts with the DISCONNECT")
        assert proxy.connections == 2


@pytest.mark.broker
def test_a_repeated_message_is_counted_each_time(mosquitto: LocalBroker, make: Make) -> None:
    with CountingProxy("127.0.0.1", mosquitto.port) as proxy:
        session, payload = make(proxy.port), bytes(5_000)
        session.start()
        joined(session)
        proxy.swallow_down = True
        assert session.publish(PLAN, payload)
        eventually(lambda: proxy.bytes_up > 5_000, "the message to have passed")
        proxy.cut()
        proxy.swallow_down = False
        assert joined(session).session_present
        eventually(lambda: session.outstanding == 0, "the acknowledgement of the repeated message")
        assert session.bytes_sent > 2 * len(payload)
        assert session.bytes_sent == proxy.bytes_up


@pytest.mark.broker
def test_what_was_not_acknowledged_is_forgotten_with_the_session(mosquitto: LocalBroker, make: Make) -> None:
    with CountingProxy("127.0.0.1", mosquitto.port) as proxy:
        session = make(proxy.port, session_expiry_seconds=0)
        session.start()
        joined(session)
        proxy.swallow_down = True
        session.publish(PLAN, bytes(5_000))
        eventually(lambda: proxy.bytes_up > 5_000, "the message to have passed")
        proxy.cut()
        proxy.swallow_down = False
        assert not joined(session).session_present
        assert session.outstanding == 0


@pytest.mark.broker
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_message_too_large_raises_and_the_connection_stays(mosquitto: LocalBroker, make: Make, protocol: str) -> None:
    session = make(mosquitto.port, protocol=protocol)
    session.subscribe(PLAN)
    session.start()
    connected = joined(session)
    overhead = publish_packet_bytes(PLAN, MAX_PACKET_BYTES, qos=1, mqtt5=protocol == "5", expires=False)
    largest = MAX_PACKET_BYTES - (overhead - MAX_PACKET_BYTES)
    if connected.max_packet_bytes is not None:
        assert connected.max_packet_bytes == mosquitto.settings.max_packet_bytes
    with pytest.raises(MessageTooLarge, match=r"down/plan: a packet of 262,145 bytes, at most 262,144"):
        session.publish(PLAN, bytes(largest + 1))
    assert session.publish(PLAN, bytes(largest))
    assert len(expect(session, Received).payload) == largest


def test_the_size_that_the_broker_announces_is_kept(make: Make) -> None:
    def announces_100_bytes(connection: socket.socket, first: bytes) -> None:
        connection.sendall(bytes.fromhex("2008 00 00 05 27 00000064"))
        hold(connection)

    with ScriptedBroker(announces_100_bytes) as broker:
        session = make(broker.port)
        session.start()
        assert joined(session).max_packet_bytes == 100
        with pytest.raises(MessageTooLarge, match="at most 100"):
            session.publish("a", bytes(100))
        assert session.publish("a", bytes(80))


def test_qos_and_retain_are_lowered_to_what_the_broker_offers(make: Make) -> None:
    published = []

    def offers_little(connection: socket.socket, first: bytes) -> None:
        connection.sendall(bytes.fromhex("2007 00 00 04 2400 2500"))
        published.append(connection.recv(4096))
        hold(connection)

    with ScriptedBroker(offers_little) as broker:
        session = make(broker.port)
        session.start()
        joined(session)
        assert session.publish("a", b"1", qos=1, retain=True)
        eventually(lambda: bool(published), "the message")
        assert published == [bytes.fromhex("3005 0001 61 00 31")]


def test_a_topic_is_sent_once_and_by_its_number_from_then_on() -> None:
    aliases = TopicAliases(2)
    assert aliases.shorten("a") == ("a", 1)
    assert aliases.shorten("b") == ("b", 2)
    assert aliases.shorten("c") == ("c", None), "no number is left, and none is taken away"
    assert [aliases.shorten(topic) for topic in ("a", "b", "c")] == [("", 1), ("", 2), ("c", None)]
    assert TopicAliases(0).shorten("a") == ("a", None)


def test_aliases_end_with_their_connection_and_are_never_above_qos_0(make: Make) -> None:
    published: list[list[bytes]] = []

    def takes_one_alias(connection: socket.socket, first: bytes) -> None:
        """CONNACK with Topic Alias Maximum 1; hangs up after five packets."""
        connection.sendall(bytes.fromhex("2006 00 00 03 220001"))
        came: list[bytes] = []
        published.append(came)
        while len(came) < 5 and (data := connection.recv(4096)):
            while data:
                came.append(data[: 2 + data[1]])
                data = data[2 + data[1] :]

    def of(topic: str, properties: str, payload: bytes) -> bytes:
        body = len(topic).to_bytes(2, "big") + topic.encode() + bytes.fromhex(properties) + payload
        return bytes([0x30, len(body)]) + body

    with ScriptedBroker(takes_one_alias) as broker:
        session = make(broker.port)
        session.start()
        for connection in range(2):
            joined(session)
            assert session.publish("a", b"1", qos=0)
            assert session.publish("a", b"2", qos=0)
            assert session.publish("b", b"3", qos=0)
            assert session.publish("a", b"4", qos=0, expiry_seconds=7)
            assert session.publish("a", b"5", qos=1)
            expect(session, Disconnected)
            assert published[connection][:4] == [
                of("a", "03 230001", b"1"),
                of("", "03 230001", b"2"),
                of("b", "00", b"3"),
                of("", "08 0200000007 230001", b"4"),
            ]
            again = published[connection][4]
            assert again[0] & 0x06 == 0x02
            assert again[2:5] == b"\0\x01a", "paho may send it again on a connection that knows no number"


@pytest.mark.broker
def test_what_goes_by_a_number_arrives_under_its_topic_on_every_broker_and_after_a_reconnect(
    any_broker: tuple[int, str], make: Make
) -> None:
    port, protocol = any_broker
    receiver = make(port, "receiver", protocol=protocol)
    receiver.subscribe("fl/1/plant/up/+/+")
    receiver.start()
    joined(receiver)
    topics = [f"fl/1/plant/up/g{number}/answer" for number in range(12)]  # more than Mosquitto has numbers for
    with CountingProxy("127.0.0.1", port) as proxy:
        sender = make(proxy.port, "sender", protocol=protocol)
        sender.start()
        for _ in range(2):
            joined(sender)
            sizes = []
            for turn in range(3):
                before = proxy.bytes_up
                for topic in topics:
                    assert sender.publish(topic, bytes([turn]), qos=0)
                    assert expect(receiver, Received) == Received(topic, bytes([turn]))
                eventually(lambda: sender.bytes_sent == proxy.bytes_up, "the session to have counted what passed")
                sizes.append(proxy.bytes_up - before)
            whole = [publish_packet_bytes(t, 1, qos=0, mqtt5=protocol == "5", expires=False) for t in topics]
            if protocol == "5":
                by_number = publish_packet_bytes("", 1, qos=0, mqtt5=True, expires=False, aliased=True)
                assert sizes[1] == sizes[2] <= 10 * by_number + sum(whole[10:])
            else:
                assert sizes == [sum(whole)] * 3
            proxy.cut()
            expect(sender, Disconnected)


def test_a_message_that_ends_every_connection_is_given_up_and_told(make: Make) -> None:
    """Hosted brokers hang up at a message over their limit, and keep the session that will repeat it."""
    repeats = []

    def hangs_up_at_a_publish(connection: socket.socket, first: bytes) -> None:
        connection.sendall(bytes.fromhex("20020100"))
        while data := connection.recv(4096):
            if data[0] & 0xF0 == 0x30:
                repeats.append(data)
                return

    with ScriptedBroker(hangs_up_at_a_publish) as broker:
        session = make(broker.port, protocol="3.1.1", reconnect_max_seconds=5.0)
        session.start()
        joined(session)
        assert session.publish("a", b"too much")
        denied = expect(session, Denied)
        assert denied.topic == "a"
        assert "3 connections in a row" in denied.reason
        joined(session)
        assert session.outstanding == 0
        assert len(repeats) == 3


def test_a_subscription_that_is_refused_is_told(make: Make) -> None:
    def refuses_the_second(connection: socket.socket, first: bytes) -> None:
        connection.sendall(CONNACK_311)
        mid = connection.recv(4096)[2:4]
        connection.sendall(b"\x90\x04" + mid + b"\x01\x80")
        hold(connection)

    with ScriptedBroker(refuses_the_second) as broker:
        session = make(broker.port, protocol="3.1.1")
        session.subscribe("mine", "of others")
        session.start()
        assert expect(session, Denied).topic == "of others"


@pytest.mark.parametrize("refusal", [CONNACK_311_WRONG_PROTOCOL, bytes.fromhex("2003008400"), b""])
def test_a_broker_without_mqtt_5_is_spoken_to_in_3_1_1_and_stays_so(make: Make, refusal: bytes) -> None:
    def only_311(connection: socket.socket, first: bytes) -> None:
        if first[8] == 5:
            connection.sendall(refusal)
            return
        connection.sendall(CONNACK_311)
        if len(broker.protocol_levels) > 2:
            hold(connection)

    with ScriptedBroker(only_311) as broker:
        session = make(broker.port)
        session.start()
        assert "trying MQTT 3.1.1" in expect(session, ConnectFailed).reason
        assert joined(session).protocol == "3.1.1"
        expect(session, Disconnected)
        assert joined(session).protocol == "3.1.1"
        assert broker.protocol_levels == [5, 4, 4]


def test_a_chosen_protocol_is_not_changed(make: Make) -> None:
    with ScriptedBroker(lambda connection, first: connection.sendall(CONNACK_311_WRONG_PROTOCOL)) as broker:
        session = make(broker.port, protocol="5")
        session.start()
        for _ in range(3):
            assert "Unsupported protocol version" in expect(session, ConnectFailed).reason
        assert set(broker.protocol_levels) == {5}


@pytest.mark.parametrize(
    "junk",
    [
        bytes.fromhex("20030000ff"),  # a CONNACK whose properties never end
        bytes.fromhex("2002"),  # cut off
        bytes.fromhex("f000"),  # AUTH, which nobody asked for
        bytes.fromhex("90020001"),  # a SUBACK of nothing
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        bytes(64),
        b"\xff" * 64,
    ],
)
def test_junk_instead_of_an_answer_is_told_and_tried_again(make: Make, junk: bytes) -> None:
    with ScriptedBroker(lambda connection, first: connection.sendall(junk)) as broker:
        session = make(broker.port)
        session.start()
        for _ in range(3):
            assert "expected an answer (CONNACK)" in expect(session, ConnectFailed).reason


@pytest.mark.parametrize(
    "packet",
    [
        bytes.fromhex("300400ff6100"),  # a topic longer than its packet
        bytes.fromhex("3603000161"),  # QoS 3
        bytes.fromhex("30050001 61 05 26"),  # properties longer than the packet
        bytes.fromhex("4000"),  # an empty PUBACK
        bytes.fromhex("9000"),  # an empty SUBACK
        bytes.fromhex("30ffffff7f"),  # a packet of 256 MB is announced
    ],
)
def test_a_malformed_packet_ends_the_connection_and_not_the_session(make: Make, packet: bytes) -> None:
    def sends_junk_first(connection: socket.socket, first: bytes) -> None:
        connection.sendall(CONNACK_5 + (packet if len(broker.protocol_levels) == 1 else b""))
        if len(broker.protocol_levels) > 1:
            hold(connection)

    with ScriptedBroker(sends_junk_first) as broker:
        session = make(broker.port)
        session.start()
        joined(session)
        expect(session, Disconnected)
        joined(session)
        assert session.publish("a", b"1")


def test_an_announced_giant_packet_is_refused_before_memory_is_spent(make: Make) -> None:
    def announces_a_giant(connection: socket.socket, first: bytes) -> None:
        connection.sendall(CONNACK_5 + bytes.fromhex("30ffffff7f"))
        hold(connection)

    with ScriptedBroker(announces_a_giant) as broker:
        session = make(broker.port)
        session.start()
        assert "a packet of 268,435,455 bytes came in" in expect(session, Disconnected).reason


def test_a_topic_that_is_no_text_is_dropped_and_told(make: Make) -> None:
    def sends_bad_topic(connection: socket.socket, first: bytes) -> None:
        connection.sendall(CONNACK_5 + bytes.fromhex("3005 0002 fffe 00") + bytes.fromhex("3005 0001 61 00 31"))
        hold(connection)

    with ScriptedBroker(sends_bad_topic) as broker:
        session = make(broker.port)
        session.start()
        assert expect(session, Dropped) == Dropped(1)
        assert expect(session, Received) == Received("a", b"1", False)


@pytest.mark.broker
def test_a_silent_broker_is_left_after_the_keepalive(mosquitto: LocalBroker, make: Make) -> None:
    with CountingProxy("127.0.0.1", mosquitto.port) as proxy:
        session = make(proxy.port, keepalive_seconds=1)
        session.start()
        joined(session)
        proxy.swallow_down = True
        assert "within 1 s" in expect(session, Disconnected).reason


def test_a_broker_that_never_answers_is_given_up_in_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_SECONDS", 0.1)
    with ScriptedBroker(lambda connection, first: hold(connection)) as broker:
        session = make(broker.port, protocol="5")
        session.start()
        assert "expected an answer (CONNACK) to MQTT 5, got nothing within" in expect(session, ConnectFailed).reason


def test_no_broker_is_told_with_the_place_and_retried(make: Make) -> None:
    port = free_port()
    session = make(port)
    session.start()
    failed = expect(session, ConnectFailed)
    assert f"127.0.0.1:{port}: nothing listens there" in failed.reason
    assert failed.retry_in_seconds is not None
    with ScriptedBroker(lambda connection, first: None) as other:
        assert other.port != port
    expect(session, ConnectFailed)


def test_an_unknown_host_is_told() -> None:
    session = MqttSession(Connection(host="no-such-host.invalid", port=1883, client_id="one"))
    session.start()
    assert "no-such-host.invalid:1883" in expect(session, ConnectFailed).reason
    session.stop(flush_seconds=0)


def test_while_not_connected_nothing_is_taken_and_nothing_is_sent_later(make: Make) -> None:
    published = threading.Event()

    def waits_for_a_publish(connection: socket.socket, first: bytes) -> None:
        connection.sendall(CONNACK_5)
        while data := connection.recv(4096):
            if data[0] & 0xF0 == 0x30:
                published.set()

    with ScriptedBroker(waits_for_a_publish) as broker:
        session = make(broker.port)
        assert not session.publish("a", b"before the start")
        session.start()
        joined(session)
        session.subscribe("b")
        session.stop(flush_seconds=0.2)
        assert not session.publish("a", b"after the end")
        assert not published.is_set()


def test_credentials_that_are_refused_are_told_without_the_password(make: Make) -> None:
    with ScriptedBroker(lambda connection, first: connection.sendall(bytes.fromhex("2003008700"))) as broker:
        session = make(broker.port, client_id="g1", username="g1", password="secret")
        session.start()
        reason = expect(session, ConnectFailed).reason
        assert "refused client 'g1', user 'g1': Not authorized" in reason
        assert "secret" not in reason + repr(session._connection)
        assert set(broker.protocol_levels) == {5}


def test_a_client_id_in_use_twice_is_named_and_does_not_fight_fast(make: Make) -> None:
    def pushes_out(connection: socket.socket, first: bytes) -> None:
        connection.sendall(CONNACK_5 + bytes.fromhex("e0028e00"))
        hold(connection)

    with ScriptedBroker(pushes_out) as broker:
        session = make(broker.port, client_id="twin", reconnect_max_seconds=30.0)
        session.start()
        gone = expect(session, Disconnected)
        assert "Session taken over: another client came with our client id 'twin'" in gone.reason
        assert gone.retry_in_seconds is not None
        assert 15.0 <= gone.retry_in_seconds <= 30.0


@pytest.mark.broker
def test_a_client_id_in_use_twice_is_suspected_where_the_broker_does_not_say(
    mosquitto: LocalBroker, make: Make
) -> None:
    first, second = make(mosquitto.port, "twin", protocol="3.1.1"), make(mosquitto.port, "twin", protocol="3.1.1")
    first.start()
    second.start()
    expect(first, Disconnected, lambda event: "client id 'twin' in use twice?" in event.reason)


def test_what_the_owner_does_not_take_in_time_is_dropped_counted_and_told(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_INBOX_MESSAGES", 4)

    def sends_ten(connection: socket.socket, first: bytes) -> None:
        connection.sendall(CONNACK_5 + b"".join(bytes([0x30, 5, 0, 1, 97, 0, 48 + i]) for i in range(10)) + b"\xe0\x00")
        hold(connection)

    with ScriptedBroker(sends_ten) as broker:
        session = make(broker.port, reconnect_max_seconds=60.0, reconnect_min_seconds=60.0)
        session.start()
        eventually(lambda: session._inbox._dropped == 8, "eight of ten to be dropped")
        assert expect(session, Dropped) == Dropped(8)
        assert isinstance(session.next(0), Connected)
        assert [expect(session, Received).payload for _ in range(2)] == [b"0", b"1"]


def test_the_inbox_is_bounded_in_bytes() -> None:
    inbox = module._Inbox(100, 1000)
    for _ in range(3):
        inbox.put(Received("a", bytes(40)))
    inbox.put(Disconnected("gone", 1.0))
    assert [type(inbox.take(0)) for _ in range(5)] == [Dropped, Received, Received, Disconnected, type(None)]
    inbox.put(Received("a", bytes(100)))
    assert isinstance(inbox.take(0), Received)


@given(
    flooded=st.integers(1, 6),
    each=st.integers(100, 400),
    size=st.integers(0, 40),
)
def test_a_flood_leaves_room_for_what_comes_on_other_topics(flooded: int, each: int, size: int) -> None:
    inbox = module._Inbox(4_000, 200)
    for n in range(flooded * each):
        inbox.put(Received(f"up/loud/{n % flooded}", bytes(size)))
    # Of what the flood has left it may take the half.
    due = min(200, 4_000 // 41) // (flooded + 1) // 2 - 1
    for n in range(due):
        inbox.put(Received("up/quiet/answer", bytes([n])))
    taken = []
    while (event := inbox.take(0)) is not None:
        taken.append(event)
    quiet = [event for event in taken if isinstance(event, Received) and event.topic == "up/quiet/answer"]
    assert len(quiet) == due
    assert [event.payload[0] for event in quiet] == sorted(event.payload[0] for event in quiet)
    assert inbox._of_topic == {}


def test_next_waits_no_longer_once_the_session_has_stopped(make: Make) -> None:
    session = make(free_port())
    session.start()
    session.stop(flush_seconds=0.0)
    while session.next(None) is not None:
        pass
    assert session.next(None) is None


@pytest.mark.broker
def test_stopping_waits_for_what_is_under_way(mosquitto: LocalBroker, make: Make) -> None:
    receiver, sender = make(mosquitto.port, "receiver"), make(mosquitto.port, "sender")
    receiver.subscribe(ANSWER)
    for session in (receiver, sender):
        session.start()
        joined(session)
    for i in range(200):
        assert sender.publish(ANSWER, i.to_bytes(2, "big") + bytes(5_000))
    sender.stop(flush_seconds=PATIENCE_SECONDS)
    assert sender.outstanding == 0
    got = [int.from_bytes(expect(receiver, Received).payload[:2], "big") for _ in range(200)]
    assert got == list(range(200))


@pytest.mark.broker
def test_many_threads_may_publish_at_once(mosquitto: LocalBroker, make: Make) -> None:
    receiver, sender = make(mosquitto.port, "receiver"), make(mosquitto.port, "sender")
    receiver.subscribe(ANSWER)
    for session in (receiver, sender):
        session.start()
        joined(session)

    def publish(thread: int) -> None:
        for i in range(50):
            assert sender.publish(ANSWER, bytes([thread, i]) + bytes(1000 * thread))

    threads = [threading.Thread(target=publish, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    got = [expect(receiver, Received).payload for _ in range(200)]
    assert {(p[0], p[1]) for p in got} == {(thread, i) for thread in range(4) for i in range(50)}
    assert all(len(p) == 2 + 1000 * p[0] for p in got)


@pytest.mark.broker
def test_an_exception_in_the_client_is_told_and_the_session_goes_on(
    mosquitto: LocalBroker, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make(mosquitto.port)
    session.subscribe(PLAN)
    session.start()
    joined(session)
    broken = True

    def misread(event: object) -> None:
        nonlocal broken
        if broken and isinstance(event, Received):
            broken = False
            raise RuntimeError("a defect")
        put(event)

    put = session._inbox.put
    monkeypatch.setattr(session._inbox, "put", misread)
    session.publish(PLAN, b"1")
    assert "RuntimeError in the MQTT client: a defect" in expect(session, Disconnected).reason
    joined(session)
    session.publish(PLAN, b"2")
    expect(session, Received, lambda event: event.payload == b"2")


def test_the_embedded_broker_is_found_by_protocol_on_either_port(embedded_broker: EmbeddedBroker, make: Make) -> None:
    for port, protocol in ((embedded_broker.port, "5"), (embedded_broker.port_311, "3.1.1")):
        session = make(port, f"auto-{protocol}")
        session.start()
        assert joined(session).protocol == protocol


@given(
    topic=st.text(min_size=1, max_size=40).filter(lambda t: not set(t) & set("+#\0") and t.isprintable()),
    size=st.sampled_from([0, 1, 100, 127, 128, 200, 16_383, 16_384, 70_000]),
    qos=st.sampled_from([0, 1]),
    mqtt5=st.booleans(),
    expires=st.booleans(),
    aliased=st.booleans(),
)
def test_the_size_of_a_packet_is_known_before_it_is_sent(
    topic: str, size: int, qos: int, mqtt5: bool, expires: bool, aliased: bool
) -> None:
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    version = MQTTProtocolVersion.MQTTv5 if mqtt5 else MQTTProtocolVersion.MQTTv311
    client = Client(CallbackAPIVersion.VERSION2, "one", protocol=version)
    ours, theirs = socket.socketpair()
    client._sock = ours
    client.on_socket_register_write = lambda *_: None
    properties = Properties(PacketTypes.PUBLISH)
    if expires:
        properties.MessageExpiryInterval = 7
    if aliased:
        properties.TopicAlias = 3
    client.publish(topic, bytes(size), qos, False, properties)
    (packet,) = client._out_packet
    assert packet["to_process"] == publish_packet_bytes(
        topic, size, qos=qos, mqtt5=mqtt5, expires=expires, aliased=aliased
    )
    theirs.close()


@given(attempt=st.integers(0, 5000), seed=st.integers(0, 100))
def test_waits_are_drawn_below_a_doubling_cap(attempt: int, seed: int) -> None:
    connection = Connection(host="h", port=1, client_id="c", reconnect_min_seconds=1.0, reconnect_max_seconds=60.0)
    delay = retry_delay_seconds(attempt, connection, Random(seed))
    assert 0.0 <= delay <= min(60.0, 2.0 ** min(attempt, 10))


@given(attempt=st.integers(0, 40), seed=st.integers(0, 100), spread=st.floats(0.0, 86_400.0))
def test_after_a_lost_connection_a_fleet_comes_back_over_the_whole_spread(
    attempt: int, seed: int, spread: float
) -> None:
    connection = Connection(host="h", port=1, client_id="c", reconnect_min_seconds=1.0, reconnect_max_seconds=60.0)
    cap = max(spread, min(60.0, 2.0 ** min(attempt, 10)))
    delay = retry_delay_seconds(attempt, connection, Random(seed), spread)
    assert delay == Random(seed).uniform(0.0, cap)


def test_a_fleet_of_a_thousand_comes_back_evenly() -> None:
    connection = Connection(host="h", port=1, client_id="c")
    delays = [retry_delay_seconds(0, connection, Random(seed), 100.0) for seed in range(1000)]
    in_each_tenth = [sum(10 * tenth <= delay < 10 * tenth + 10 for delay in delays) for tenth in range(10)]
    assert min(in_each_tenth) > 60
    assert max(in_each_tenth) < 140


def test_only_a_connection_that_was_lost_is_taken_up_again_over_the_spread(make: Make) -> None:
    """Between attempts that fail, a session waits as before: its fleet is spread out by then."""
    accepted: list[bytes] = []

    def once(connection: socket.socket, first: bytes) -> None:
        accepted.append(first)
        connection.sendall(CONNACK_5)

    with ScriptedBroker(once) as broker:
        session = make(broker.port, reconnect_min_seconds=0.001, reconnect_max_seconds=0.002)
        session.spread_reconnects(0.3)
        session.start()
        joined(session)
        lost = expect(session, Disconnected)
        assert lost.retry_in_seconds is not None
        assert 0.002 < lost.retry_in_seconds <= 0.3
    failed = expect(session, ConnectFailed)
    assert failed.retry_in_seconds is not None
    assert failed.retry_in_seconds <= 0.002


def test_waits_differ_between_gateways() -> None:
    connection = Connection(host="h", port=1, client_id="c")
    assert len({retry_delay_seconds(3, connection, Random(seed)) for seed in range(100)}) == 100


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"host": ""}, "host"),
        ({"port": 0}, "port"),
        ({"port": 65_536}, "port"),
        ({"client_id": ""}, "client_id"),
        ({"protocol": "4"}, "protocol"),
        ({"keepalive_seconds": 0}, "keepalive_seconds"),
        ({"session_expiry_seconds": -1}, "session_expiry_seconds"),
        ({"max_inflight": 0}, "max_inflight"),
        ({"reconnect_min_seconds": 0.0}, "reconnect_min_seconds"),
        ({"reconnect_min_seconds": 61.0}, "reconnect_min_seconds"),
        ({"password": "x"}, "password"),
        ({"cert_file": Path("a")}, "cert_file and key_file"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_its_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Connection(**({"host": "h", "port": 1883, "client_id": "c"} | changes))


@pytest.mark.parametrize("name", ["ca_file", "cert_file"])
def test_a_certificate_that_cannot_be_read_is_refused_by_its_path(tmp_path: Path, name: str) -> None:
    missing = tmp_path / "missing.pem"
    files = {"ca_file": missing} if name == "ca_file" else {"cert_file": missing, "key_file": missing}
    with pytest.raises(ValueError, match=r"missing\.pem"):
        MqttSession(Connection(host="h", port=1883, client_id="c", **files))


def test_paho_is_kept_quiet_and_out_of_the_log(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), ScriptedBroker(lambda connection, first: connection.sendall(bytes(9))) as b:
        session = make(b.port)
        session.start()
        expect(session, ConnectFailed)
    assert caplog.records == []


# --- a renewed certificate --------------------------------------------------------------------------------------------


@pytest.mark.broker
def test_a_renewed_certificate_is_taken_without_a_restart_and_a_wrong_one_is_told(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_mosquitto() is None:
        pytest.skip("needs Mosquitto")
    monkeypatch.setattr(module, "RENEWAL_LOOK_SECONDS", 0.05)
    authority = Authority(tmp_path / "ca")
    server_cert, server_key = authority.issue("broker", address="127.0.0.1")
    access = Certificates(ca_file=authority.ca_file, cert_file=server_cert, key_file=server_key)
    with LocalBroker(BrokerSettings(access=access), directory=tmp_path / "broker") as broker:
        cert, key = authority.issue("g1")
        session = make(broker.port, "g1", ca_file=authority.ca_file, cert_file=cert, key_file=key, keepalive_seconds=1)
        session.start()
        joined(session)

        right, _ = authority.issue("g1", file="renewed")
        (tmp_path / "ca" / "renewed.key").replace(key)
        # Between the two renames the certificate and the key do not belong together.
        assert "new certificate" in expect(session, Disconnected).reason
        assert "key_file" in expect(session, ConnectFailed).reason
        right.replace(cert)
        joined(session)
