"""A broker in memory: the same `Session` as the real one, single-threaded and deterministic.

Owns what a broker owns: subscriptions, retained messages, wills, sessions that are kept for who is away, and what waits
for them. Refuses to know time and links: a `BrokerSession` hands everything over at once, and its owner takes it with
`next`, which never waits. So a test tells a story step by step:

    broker = Broker()
    gateway = broker.session("g1", will=Will("w/g1", b"offline"))
    gateway.start()
    assert gateway.next(0) == Connected(...)
    gateway.kill()          # a power cut: the broker publishes the will
    broker.restart()        # everyone loses the connection, and the broker what it kept in memory

`network.LinkedSession` puts a link between the two. Byte counts are those of MQTT 5 packets of the same content; they
are an estimate where a real broker has a choice.

A connection that ends takes with it what it carried at QoS 0, in either direction, unless the receiver has taken it
already: a real one may be luckier, and never less so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
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

__all__ = ["Broker", "BrokerSession", "Message", "Published", "matches"]

MOSQUITTO_ALIASES = 10
"""Its `max_topic_alias` where nothing else is set."""

MOST_WAITING = 1000
"""Mosquitto keeps so many messages for an absent client, and then drops the newest."""


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


class Message:
    """One message on its way; the same object for all who get it."""

    __slots__ = ("expires_at", "qos", "received", "retain", "sender", "size")

    def __init__(
        self, received: Received, *, qos: int, retain: bool = False, sender: str = "", expires_at: float | None = None
    ) -> None:
        self.received = received
        self.qos = qos
        self.retain = retain
        self.sender = sender
        self.expires_at = expires_at
        self.size = publish_packet_bytes(
            received.topic, len(received.payload), qos=qos, mqtt5=True, expires=expires_at is not None
        )
        """Bytes of the packet to a subscriber."""


class _Kept:
    """What the broker knows of one client: its subscriptions, its connection, and what waits while there is none."""

    __slots__ = ("client_id", "filters", "left_at", "session", "waiting")

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.filters: dict[str, None] = {}
        self.session: BrokerSession | None = None
        self.waiting: list[Message] = []
        self.left_at = 0.0


class _Tree:
    """Filters by level, so that a topic finds its own without a look at all the others."""

    __slots__ = ("filters", "levels")

    def __init__(self) -> None:
        self.levels: dict[str, _Tree] = {}
        self.filters: list[str] = []

    def add(self, text: str) -> None:
        node = self
        for level in text.split("/"):
            node = node.levels.setdefault(level, _Tree())
        node.filters.append(text)

    def find(self, topic: str) -> list[str]:
        found: list[str] = []
        self._find(topic.split("/"), 0, found)
        if topic.startswith("$"):
            found = [text for text in found if text[0] not in "+#"]
        return found

    def _find(self, parts: list[str], at: int, found: list[str]) -> None:
        many = self.levels.get("#")
        if many is not None:
            found += many.filters
        if at == len(parts):
            found += self.filters
            return
        for level in (parts[at], "+"):
            below = self.levels.get(level)
            if below is not None:
                below._find(parts, at + 1, found)


class Broker:
    """Topics, retained messages, wills and kept sessions, without a network.

    `allow(client_id, topic, write)` is the ACL; None allows everything. `max_packet_bytes` is what CONNACK announces.
    `log` holds every message published, in order, where `keep_log` is set.
    """

    def __init__(
        self,
        *,
        max_packet_bytes: int | None = None,
        allow: Callable[[str, str, bool], bool] | None = None,
        clock: Callable[[], float] = lambda: 0.0,
        keep_log: bool = True,
    ) -> None:
        self.max_packet_bytes = max_packet_bytes
        self.log: list[Published] = []
        self.retained: dict[str, tuple[bytes, int]] = {}
        """Payload and QoS by topic."""
        self.up = True
        self._allow = allow
        self._clock = clock
        self._keep_log = keep_log
        self._wanting: list[BrokerSession] = []
        self._clients: dict[str, _Kept] = {}
        self._by_filter: dict[str, dict[str, _Kept]] = {}
        self._tree = _Tree()
        self._found: dict[str, list[str]] = {}
        self._denied: set[str] = set()

    def session(self, client_id: str, *, will: Will | None = None, session_expiry_seconds: int = 600) -> BrokerSession:
        """A session of this broker, not started yet."""
        return BrokerSession(self, client_id, will, session_expiry_seconds)

    # -- the life of the broker --------------------------------------------------------------------------------

    def stop(self, *, keeps: bool = False) -> None:
        """The broker goes away, wills unsent; with `keeps` it has retained messages and sessions on disk."""
        self.up = False
        for kept in list(self._clients.values()):
            session = kept.session
            if session is None:
                continue
            kept.session, kept.left_at = None, self._clock()
            if not session.session_expiry_seconds:
                self._forget_client(kept)
            # What was on its way to this client at QoS 1 is on disk, too.
            kept.waiting += session._lose("the connection was lost", retry_in_seconds=1.0)
        if not keeps:
            for kept in list(self._clients.values()):
                self._forget_client(kept)
            self.retained.clear()

    def start(self) -> None:
        """The broker is back; every session that wants to be connected connects."""
        self.up = True
        for session in list(self._wanting):
            session._connect()

    def restart(self, *, keeps: bool = False) -> None:
        self.stop(keeps=keeps)
        self.start()

    # -- messages ----------------------------------------------------------------------------------------------

    def publish(
        self,
        client_id: str,
        topic: str,
        payload: bytes,
        retain: bool,
        qos: int = 1,
        expiry_seconds: int | None = None,
    ) -> bool:
        """Take a message and hand it to everyone subscribed; False where the ACL forbids."""
        allow = self._allow
        if allow is not None and not allow(client_id, topic, True):
            return False
        if self._keep_log:
            self.log.append(Published(client_id, topic, payload, retain))
        if retain and payload:
            self.retained[topic] = payload, qos
        elif retain:
            self.retained.pop(topic, None)
        expires_at = None if expiry_seconds is None else self._clock() + expiry_seconds
        message = Message(Received(topic, payload, False), qos=qos, sender=client_id, expires_at=expires_at)
        for kept in self._subscribed(topic):
            if allow is not None and not allow(kept.client_id, topic, False):
                continue
            if kept.session is not None:
                kept.session._send_down(message)
            elif qos and len(kept.waiting) < MOST_WAITING:
                kept.waiting.append(message)
        return True

    def _subscribed(self, topic: str) -> Iterable[_Kept]:
        found = self._found.get(topic)
        if found is None:
            found = self._found[topic] = self._tree.find(topic)
        if not found:
            return ()
        if len(found) == 1:
            return list(self._by_filter[found[0]].values())
        return {kept.client_id: kept for text in found for kept in self._by_filter[text].values()}.values()

    def _send_retained(self, session: BrokerSession, filters: Iterable[str]) -> None:
        found: dict[str, None] = {}
        for text in filters:
            fixed = min(text.find(wild) if wild in text else len(text) for wild in "+#")
            if fixed == len(text):
                if text in self.retained:
                    found[text] = None
                continue
            begins = text[: max(0, fixed - 1)]  # a/# is also a
            for topic in self.retained:
                if topic.startswith(begins) and matches(text, topic):
                    found[topic] = None
        for topic in found:
            if self._allow is None or self._allow(session.client_id, topic, False):
                payload, qos = self.retained[topic]
                session._send_down(Message(Received(topic, payload, True), qos=qos))

    # -- clients -----------------------------------------------------------------------------------------------

    def _attach(self, session: BrokerSession) -> list[Message] | None:
        """Attach a session, pushing out another one of its client id; what waited for it, None without a session."""
        kept = self._clients.get(session.client_id)
        if kept is not None and kept.session is not None and kept.session is not session:
            old = kept.session
            self._detach(old, send_will=True)
            for message in old._lose("Session taken over", retry_in_seconds=60.0):
                self._wait(session.client_id, message)
            kept = self._clients.get(session.client_id)
        present = kept is not None and bool(session.session_expiry_seconds)
        if kept is not None and (not present or self._clock() - kept.left_at > session.session_expiry_seconds):
            self._forget_client(kept)
            kept, present = None, False
        if kept is None:
            kept = self._clients[session.client_id] = _Kept(session.client_id)
        kept.session = session
        waiting, kept.waiting = kept.waiting, []
        now = self._clock()
        return [m for m in waiting if m.expires_at is None or m.expires_at > now] if present else None

    def _wait(self, client_id: str, message: Message) -> None:
        """Keep a message of QoS 1 for a client that is away, where it is known at all."""
        kept = self._clients.get(client_id)
        if kept is not None and kept.session is None and len(kept.waiting) < MOST_WAITING:
            kept.waiting.append(message)

    def _detach(self, session: BrokerSession, *, send_will: bool, lost: bool = True) -> None:
        """Forget a connection; where it was `lost`, what it carried at QoS 0 is gone."""
        kept = self._clients.get(session.client_id)
        if kept is None or kept.session is not session:
            return
        if lost:
            for other in self._clients.values():
                if other.session is not None:
                    other.session._forget(session.client_id)
        kept.session, kept.left_at = None, self._clock()
        if not session.session_expiry_seconds:
            self._forget_client(kept)
        if send_will and session.will is not None:
            self.publish(session.client_id, session.will.topic, session.will.payload, session.will.retain)

    def _forget_client(self, kept: _Kept) -> None:
        for text in kept.filters:
            self._by_filter[text].pop(kept.client_id, None)
        self._clients.pop(kept.client_id, None)

    def _subscribe(self, session: BrokerSession, filters: Iterable[str]) -> None:
        kept = self._clients.get(session.client_id)
        if kept is None or kept.session is not session:
            return
        for text in filters:
            kept.filters[text] = None
            if text not in self._by_filter:
                self._by_filter[text] = {}
                self._tree.add(text)
                self._found.clear()
            self._by_filter[text][session.client_id] = kept
        self._send_retained(session, filters)

    def _unsubscribe(self, session: BrokerSession, filters: Iterable[str]) -> None:
        kept = self._clients.get(session.client_id)
        if kept is None or kept.session is not session:
            return
        for text in filters:
            kept.filters.pop(text, None)
            if text in self._by_filter:
                self._by_filter[text].pop(session.client_id, None)


class BrokerSession:
    """A `Session` on a `Broker`."""

    def __init__(self, broker: Broker, client_id: str, will: Will | None, session_expiry_seconds: int) -> None:
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
        """What the owner asked for: over how long a fleet spreads out that has lost its connections at once."""
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
        allowed = self.broker.max_packet_bytes or MAX_PACKET_BYTES
        size = publish_packet_bytes(topic, len(payload), qos=qos, mqtt5=True, expires=expires, aliased=not qos)
        if size > allowed:
            raise MessageTooLarge(f"{topic}: a packet of {size:,} bytes, at most {allowed:,} are taken: send chunks")
        if not self.connected:
            return False
        if not qos:
            short, alias = self._aliases.shorten(topic)
            aliased = alias is not None
            size = publish_packet_bytes(short, len(payload), qos=0, mqtt5=True, expires=expires, aliased=aliased)
        self.bytes_sent += size
        self._send_up(topic, bytes(payload), qos, retain, expiry_seconds, size)
        return True

    def subscribe(self, *filters: str) -> None:
        new = [text for text in filters if text not in self.filters]
        self.filters.update(dict.fromkeys(new))
        if new and self.connected:
            self._send_subscribe(new)

    def unsubscribe(self, *filters: str) -> None:
        known = [text for text in filters if text in self.filters]
        for text in known:
            del self.filters[text]
        if known and self.connected:
            self._send_unsubscribe(known)

    def next(self, timeout_seconds: float | None) -> Event | None:
        return self._events.popleft()[0] if self._events else None

    def spread_reconnects(self, seconds: float) -> None:
        self.spread_seconds = seconds

    def stop(self, *, flush_seconds: float) -> None:
        self._leave(send_will=False, lost=False)
        self._put(Disconnected("stopped", None))

    # What only a test or a simulation can do.

    def kill(self) -> None:
        """The process dies: its inbox is gone, the broker sends its will, and it does not come back."""
        self._leave(send_will=True, lost=True)
        self._events.clear()

    def cut(self) -> None:
        """The link breaks: the broker sends the will, and nothing passes until `heal`."""
        self.broker._detach(self, send_will=True)
        for message in self._lose("the connection was lost", retry_in_seconds=1.0):
            self.broker._wait(self.client_id, message)

    def heal(self) -> None:
        """The link is back."""
        if not self.connected:
            self._connect()

    # What a link does otherwise.

    def _send_up(
        self, topic: str, payload: bytes, qos: int, retain: bool, expiry_seconds: int | None, size: int
    ) -> None:
        # Nothing expires where no time passes.
        self.bytes_received += 4 if qos else 0
        if not self.broker.publish(self.client_id, topic, payload, retain, qos) and qos:
            self._put(Denied(topic, "Not authorized"))

    def _send_down(self, message: Message) -> None:
        self.bytes_received += message.size
        self.bytes_sent += 4 if message.qos else 0
        self._events.append((message.received, None if message.qos else message.sender))

    def _send_subscribe(self, filters: list[str]) -> None:
        self.bytes_sent += 5 + sum(3 + len(text) for text in filters)
        self.bytes_received += 5 + len(filters)
        self.broker._subscribe(self, filters)

    def _send_unsubscribe(self, filters: list[str]) -> None:
        self.bytes_sent += 5 + sum(2 + len(text) for text in filters)
        self.bytes_received += 5 + len(filters)
        self.broker._unsubscribe(self, filters)

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

    def _connect_bytes(self) -> int:
        will_bytes = 0 if self.will is None else 5 + len(self.will.topic) + len(self.will.payload)
        return 25 + len(self.client_id) + will_bytes

    def _connect(self) -> None:
        if not self._wanted:
            return
        if not self.broker.up:
            self._put(ConnectFailed("nothing listens there (connection refused): is a broker running?", 1.0))
            return
        waiting = self.broker._attach(self)
        self.connected = True
        self._aliases = TopicAliases(MOSQUITTO_ALIASES)
        self.bytes_sent += self._connect_bytes()
        self.bytes_received += 10
        self._put(Connected(waiting is not None, "5", self.broker.max_packet_bytes))
        for message in waiting or ():
            self._send_down(message)
        if self.filters:
            self._send_subscribe(list(self.filters))

    def _lose(self, reason: str, *, retry_in_seconds: float) -> list[Message]:
        """The connection has ended; returns what was on its way here at QoS 1 and waits at the broker now."""
        if self.connected:
            self.connected = False
            self._forget(None)
            self._put(Disconnected(reason, retry_in_seconds))
        return []
