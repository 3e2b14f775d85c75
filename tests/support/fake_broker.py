"""A broker in memory: the same `Session` as the real one, single-threaded and deterministic.

Nothing happens by itself. A message reaches a session's inbox as it is published, and its owner takes it with `next`,
which never waits. So a test tells a story step by step, and thousands of sessions run in one process:

    broker = FakeBroker()
    gateway = broker.session("g1", will=Will("w/g1", b"offline"))
    gateway.start()
    assert gateway.next(0) == Connected(...)
    gateway.kill()          # a power cut: the broker publishes the will
    broker.restart()        # everyone loses the connection, and the broker what it kept in memory

Byte counts are those of MQTT 5 packets of the same content, so that a simulation can say what a round costs; they are
an estimate where a real broker has a choice. `broker.log` holds every message published, in order.

A connection that ends takes with it what it carried at QoS 0, in either direction, unless the receiver has taken it
already: a real one may be luckier, and never less so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fedmq_protocol.session import (
    MAX_PACKET_BYTES,
    Connected,
    ConnectFailed,
    Denied,
    Disconnected,
    Event,
    MessageTooLarge,
    Received,
    TopicAliases,
    Will,
    publish_packet_bytes,
)

MOSQUITTO_ALIASES = 10
"""Its `max_topic_alias` where nothing else is set."""


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a topic belongs to a filter with + and # (MQTT 5.0, section 4.7)."""
    filter_parts, parts = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and filter_parts[0] in ("+", "#"):
        return False
    for i, wanted in enumerate(filter_parts):
        if wanted == "#":
            return True
        if i >= len(parts) or wanted not in ("+", parts[i]):
            return False
    return len(filter_parts) == len(parts)


@dataclass(frozen=True)
class Published:
    """One message as the broker took it."""

    client_id: str
    topic: str
    payload: bytes
    retain: bool


class FakeBroker:
    """Topics, retained messages, wills and kept sessions, without a network.

    `allow(client_id, topic, write)` is the ACL, everything by default. `max_packet_bytes` is what CONNACK announces.
    """

    def __init__(
        self,
        *,
        max_packet_bytes: int | None = None,
        allow: Callable[[str, str, bool], bool] = lambda client_id, topic, write: True,
    ) -> None:
        self.max_packet_bytes = max_packet_bytes
        self.log: list[Published] = []
        self.retained: dict[str, tuple[bytes, int]] = {}
        """Payload and QoS by topic."""
        self.up = True
        self._allow = allow
        self._wanting: list[FakeSession] = []
        self._sessions: dict[str, FakeSession] = {}
        self._kept: dict[str, list[str]] = {}
        self._waiting: dict[str, list[Received]] = {}

    def session(self, client_id: str, *, will: Will | None = None, session_expiry_seconds: int = 600) -> FakeSession:
        """A session of this broker, not started yet."""
        return FakeSession(self, client_id, will, session_expiry_seconds)

    def stop(self, *, keeps: bool = False) -> None:
        """The broker goes away, wills unsent; with `keeps` it has retained messages and sessions on disk."""
        self.up = False
        for session in list(self._sessions.values()):
            if keeps and session.session_expiry_seconds:
                self._kept[session.client_id] = list(session.filters)
            session._lose("the connection was lost", retry_in_seconds=1.0)
        self._sessions.clear()
        if not keeps:
            self._kept.clear()
            self._waiting.clear()
            self.retained.clear()

    def start(self) -> None:
        """The broker is back; every session that wants to be connected connects."""
        self.up = True
        for session in list(self._wanting):
            session._connect()

    def restart(self, *, keeps: bool = False) -> None:
        self.stop(keeps=keeps)
        self.start()

    def publish(self, client_id: str, topic: str, payload: bytes, retain: bool, qos: int = 1) -> bool:
        """Take a message and hand it to everyone subscribed; False where the ACL forbids."""
        if not self._allow(client_id, topic, True):
            return False
        self.log.append(Published(client_id, topic, payload, retain))
        if retain and payload:
            self.retained[topic] = payload, qos
        elif retain:
            self.retained.pop(topic, None)
        for session in list(self._sessions.values()):
            if any(matches(text, topic) for text in session.filters) and self._allow(session.client_id, topic, False):
                session._receive(Received(topic, payload, False), qos, client_id)
        for absent, filters in self._kept.items():
            waiting = self._waiting.setdefault(absent, [])
            # Mosquitto keeps a thousand for an absent client, and then drops the newest; of QoS 0 it keeps nothing.
            wanted = any(matches(text, topic) for text in filters) and self._allow(absent, topic, False)
            if wanted and qos and len(waiting) < 1000:
                waiting.append(Received(topic, payload, False))
        return True

    def _attach(self, session: FakeSession) -> list[Received] | None:
        """Attach a session, pushing out another one of its client id; what waited for it, None without a session."""
        old = self._sessions.get(session.client_id)
        if old is not None and old is not session:
            self._detach(old, send_will=True)
            old._lose("Session taken over", retry_in_seconds=60.0)
        kept = self._kept.pop(session.client_id, None)
        waiting = self._waiting.pop(session.client_id, [])
        self._sessions[session.client_id] = session
        return None if kept is None or not session.session_expiry_seconds else waiting

    def _detach(self, session: FakeSession, *, send_will: bool, lost: bool = True) -> None:
        """Forget a connection; where it was `lost`, what it carried at QoS 0 is gone."""
        if self._sessions.get(session.client_id) is not session:
            return
        if lost:
            for other in self._sessions.values():
                other._forget(session.client_id)
        del self._sessions[session.client_id]
        if session.session_expiry_seconds:
            self._kept[session.client_id] = list(session.filters)
        if send_will and session.will is not None:
            self.publish(session.client_id, session.will.topic, session.will.payload, session.will.retain)

    def _send_retained(self, session: FakeSession, filters: list[str]) -> None:
        for topic, (payload, qos) in list(self.retained.items()):
            if any(matches(text, topic) for text in filters) and self._allow(session.client_id, topic, False):
                session._receive(Received(topic, payload, True), qos, "")


class FakeSession:
    """A `Session` on a `FakeBroker`."""

    def __init__(self, broker: FakeBroker, client_id: str, will: Will | None, session_expiry_seconds: int) -> None:
        self.broker = broker
        self.client_id = client_id
        self.will = will
        self.session_expiry_seconds = session_expiry_seconds
        self.filters: dict[str, None] = {}
        self.connected = False
        self.bytes_sent = 0
        self.bytes_received = 0
        self.outstanding = 0
        self.spread_seconds = 0.0
        """What the owner asked for; who drives the time heals the link accordingly."""
        self._wanted = False
        self._aliases = TopicAliases(0)
        self._events: deque[tuple[Event, str | None]] = deque()
        """Each with who sent it, where it is a message of QoS 0."""

    def start(self) -> None:
        self._wanted = True
        self.broker._wanting.append(self)
        self._connect()

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_seconds: int | None = None
    ) -> bool:
        expires = expiry_seconds is not None
        size = publish_packet_bytes(topic, len(payload), qos=qos, mqtt5=True, expires=expires, aliased=not qos)
        allowed = self.broker.max_packet_bytes or MAX_PACKET_BYTES
        if size > allowed:
            raise MessageTooLarge(f"{topic}: a packet of {size:,} bytes, at most {allowed:,} are taken: send chunks")
        if not self.connected:
            return False
        if not qos:
            short, alias = self._aliases.shorten(topic)
            aliased = alias is not None
            size = publish_packet_bytes(short, len(payload), qos=0, mqtt5=True, expires=expires, aliased=aliased)
        self.bytes_sent += size
        self.bytes_received += 4 if qos else 0
        if not self.broker.publish(self.client_id, topic, bytes(payload), retain, qos) and qos:
            self._put(Denied(topic, "Not authorized"))
        return True

    def subscribe(self, *filters: str) -> None:
        new = [text for text in filters if text not in self.filters]
        self.filters.update(dict.fromkeys(new))
        if new and self.connected:
            self._send_subscribe(new)

    def unsubscribe(self, *filters: str) -> None:
        for text in filters:
            self.filters.pop(text, None)

    def next(self, timeout_seconds: float | None) -> Event | None:
        return self._events.popleft()[0] if self._events else None

    def spread_reconnects(self, seconds: float) -> None:
        self.spread_seconds = seconds

    def stop(self, *, flush_seconds: float) -> None:
        self._leave(send_will=False, lost=False)
        self._put(Disconnected("stopped", None))

    # What only a test can do.

    def kill(self) -> None:
        """The process dies: its inbox is gone, the broker sends its will, and it does not come back."""
        self._leave(send_will=True, lost=True)
        self._events.clear()

    def cut(self) -> None:
        """The link breaks: the broker sends the will, and nothing passes until `heal`."""
        self.broker._detach(self, send_will=True)
        self._lose("the connection was lost", retry_in_seconds=1.0)

    def heal(self) -> None:
        """The link is back."""
        if not self.connected:
            self._connect()

    def _leave(self, *, send_will: bool, lost: bool) -> None:
        self._wanted = False
        if self in self.broker._wanting:
            self.broker._wanting.remove(self)
        self.connected = False
        self.broker._detach(self, send_will=send_will, lost=lost)

    def _put(self, event: Event) -> None:
        self._events.append((event, None))

    def _forget(self, sender: str | None) -> None:
        """Lose what this sender sent at QoS 0 and was not taken yet; None is everyone."""
        self._events = deque((event, who) for event, who in self._events if who is None or sender not in (None, who))

    def _connect(self) -> None:
        if not self._wanted:
            return
        if not self.broker.up:
            self._put(ConnectFailed("nothing listens there (connection refused): is a broker running?", 1.0))
            return
        waiting = self.broker._attach(self)
        self.connected = True
        self._aliases = TopicAliases(MOSQUITTO_ALIASES)
        will_bytes = 0 if self.will is None else 5 + len(self.will.topic) + len(self.will.payload)
        self.bytes_sent += 25 + len(self.client_id) + will_bytes
        self.bytes_received += 10
        self._put(Connected(waiting is not None, "5", self.broker.max_packet_bytes))
        for message in waiting or ():
            self._receive(message, 1, "")
        if self.filters:
            self._send_subscribe(list(self.filters))

    def _send_subscribe(self, filters: list[str]) -> None:
        self.bytes_sent += 5 + sum(3 + len(text) for text in filters)
        self.bytes_received += 5 + len(filters)
        self.broker._send_retained(self, filters)

    def _receive(self, message: Received, qos: int, sender: str) -> None:
        size = publish_packet_bytes(message.topic, len(message.payload), qos=qos, mqtt5=True, expires=False)
        self.bytes_received += size
        self.bytes_sent += 4 if qos else 0
        self._events.append((message, None if qos else sender))

    def _lose(self, reason: str, *, retry_in_seconds: float) -> None:
        if self.connected:
            self.connected = False
            self._forget(None)
            self._put(Disconnected(reason, retry_in_seconds))
