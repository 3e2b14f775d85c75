"""The connection that carries everything: connect, last will, publish, receive, reconnect. Only this module knows paho.

Owns one thread that owns one socket. That thread drives paho as its documentation describes for a foreign event
loop, so that paho starts no thread of its own and never writes from the caller's. What happens on the connection
becomes an `Event`, and the owner of a session takes events with `next` in a thread of its own.

Refuses to know topics, messages and rounds. Rules it keeps:

- nothing is queued for later: `publish` while not connected returns False, and what the broker has not acknowledged
  when a connection ends is sent again only if the broker kept the session. The owner sends again what still matters
  when it sees `Connected`;
- a QoS 0 message is one try: what the connection had not carried when it ended is gone, without a word. In return its
  topic is sent once in a connection, and by a number of one byte or two afterwards, where the broker takes that (MQTT
  5.0, section 3.3.2.3.4);
- subscriptions are remembered and renewed on every connect, in one SUBSCRIBE, whatever the broker remembers;
- a message that the broker would refuse for its size raises: paho would send it, be cut off, and send it again, for
  ever. For the same reason QoS and retain are lowered to what the broker offers;
- callbacks only note and enqueue. An exception in one would end paho's loop while it still says "connected";
- what comes in is bounded in bytes and number. When the owner does not keep up, the newest messages are dropped
  and told of, since an application receipt heals that and a blocked network thread does not. What waits of one topic
  takes no more room than is left beside it, so that a flood on one does not push out what comes on others;
- waits before a reconnect are drawn from [0, cap) with a doubling cap ("full jitter", Brooker 2015, "Exponential
  Backoff And Jitter"), so that a fleet does not come back as one; the first one after a connection was lost from
  [0, spread), where the owner has said over how long its fleet spreads out.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fedmq_protocol.carried import CLOSING_SEGMENTS, carried
from fedmq_protocol.secrets import SecretError, open_secret

__all__ = [
    "MAX_PACKET_BYTES",
    "ConnectFailed",
    "Connected",
    "Connection",
    "Denied",
    "Disconnected",
    "Dropped",
    "Event",
    "MessageTooLarge",
    "MqttSession",
    "Received",
    "Session",
    "TopicAliases",
    "Will",
    "publish_packet_bytes",
    "retry_delay_seconds",
]

MAX_PACKET_BYTES = 262_144
"""No MQTT packet is larger, sent or received; the largest message of the topic table is half of it."""

CONNECT_TIMEOUT_SECONDS = 10.0
"""How long a broker may take from the TCP connection to its CONNACK."""

RENEWAL_LOOK_SECONDS = 30.0
"""How often it is looked whether the certificate's files hold another one."""

_INBOX_BYTES = 64 << 20
_INBOX_MESSAGES = 65_536
_GIVE_UP_AFTER = 3
"""Short connections in a row that ended with the same message under way, before it is held to be their cause."""

_TAKEN_OVER = 0x8E
_UNSUPPORTED_PROTOCOL = 0x84

_ProtocolName = Literal["5", "3.1.1"]


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where and how to connect. Raises ValueError that names the field."""

    host: str
    port: int
    client_id: str
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    """`auto` is MQTT 5 where the broker speaks it, else 3.1.1; what worked is kept for the next connect."""
    keepalive_seconds: int = 60
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    """TLS against the system's certificate authorities; implied by any of the files below."""
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    session_expiry_seconds: int = 600
    """How long the broker keeps subscriptions and messages for us while we are away; 0 starts clean each time.
    MQTT 3.1.1 knows kept or clean only, and leaves the time to the broker's configuration."""
    reconnect_min_seconds: float = 1.0
    reconnect_max_seconds: float = 60.0
    max_inflight: int = 8
    """QoS 1 messages sent and not yet acknowledged; more wait in memory."""

    def __post_init__(self) -> None:
        if not self.host:
            raise ValueError("host: expected a name or an address, got nothing")
        _check_range("port", self.port, 1, 65_535)
        if not self.client_id or len(self.client_id.encode()) > 256:
            raise ValueError(f"client_id: expected 1 to 256 bytes, got {len(self.client_id.encode())}")
        if self.protocol not in ("auto", "5", "3.1.1"):
            raise ValueError(f"protocol: expected auto, 5 or 3.1.1, got {self.protocol!r}")
        _check_range("keepalive_seconds", self.keepalive_seconds, 1, 65_535)
        _check_range("session_expiry_seconds", self.session_expiry_seconds, 0, 0xFFFF_FFFE)
        _check_range("max_inflight", self.max_inflight, 1, 65_535)
        if not 0 < self.reconnect_min_seconds <= self.reconnect_max_seconds:
            raise ValueError(
                "reconnect_min_seconds: expected more than 0 and at most reconnect_max_seconds "
                f"({self.reconnect_max_seconds}), got {self.reconnect_min_seconds}"
            )
        if self.password is not None and self.username is None:
            raise ValueError("password: given without a username")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file: expected both or neither")

    @property
    def uses_tls(self) -> bool:
        return self.tls or self.ca_file is not None or self.cert_file is not None


@dataclass(frozen=True)
class Will:
    """What the broker publishes for us when the connection ends without a DISCONNECT."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True


@dataclass(frozen=True)
class Connected:
    """The broker answered. Send again now what still matters; `max_packet_bytes` is None where it did not say."""

    session_present: bool
    protocol: str
    max_packet_bytes: int | None


@dataclass(frozen=True)
class Disconnected:
    """A connection that had been accepted has ended; None seconds: by `stop`, it is not retried."""

    reason: str
    retry_in_seconds: float | None


@dataclass(frozen=True)
class ConnectFailed:
    """An attempt to connect came to nothing: what was expected, and what came."""

    reason: str
    retry_in_seconds: float | None


@dataclass(frozen=True)
class Received:
    """A message. `retained`: the broker had it before we subscribed."""

    topic: str
    payload: bytes = field(repr=False)
    retained: bool = False


@dataclass(frozen=True)
class Denied:
    """The broker did not take a message or a subscription, most often by its ACL.

    MQTT 3.1.1 cannot say it of a message: there it just disappears.
    """

    topic: str
    reason: str


@dataclass(frozen=True)
class Dropped:
    """Messages lost since the last `Dropped`, because they were not taken in time or had no readable topic."""

    messages: int


Event = Connected | Disconnected | ConnectFailed | Received | Denied | Dropped


class MessageTooLarge(ValueError):
    """The broker would refuse this message for its size."""


class Session(Protocol):
    """What the services know of a connection. Also implemented in memory, for tests and for simulation."""

    @property
    def bytes_sent(self) -> int:
        """Bytes of MQTT packets handed to the socket since construction, all kinds, across reconnects; below TLS."""

    @property
    def bytes_received(self) -> int:
        """Bytes of MQTT packets taken from the socket since construction."""

    @property
    def outstanding(self) -> int:
        """QoS 1 messages that the broker has not acknowledged yet."""

    def start(self) -> None:
        """Begin to connect, and keep connected until `stop`; returns at once."""

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_seconds: int | None = None
    ) -> bool:
        """Hand a message to the connection; False when not connected, and then nothing is kept.

        With QoS 0 it may be lost at the end of a connection, and an ACL that forbids it is not told of (`Denied`).
        Raises MessageTooLarge. `expiry_seconds` is what MQTT 5 can say and MQTT 3.1.1 cannot: ignored there.
        """

    def subscribe(self, *filters: str) -> None:
        """Subscribe with QoS 1, now if connected and on every connect from now on."""

    def unsubscribe(self, *filters: str) -> None:
        """Forget filters, now if connected and for every connect from now on."""

    def next(self, timeout_seconds: float | None) -> Event | None:
        """The next event; None when there was none in time, or when the session has stopped and all are taken."""

    def spread_reconnects(self, seconds: float) -> None:
        """From now on, when a connection is lost, first wait for a random part of so many seconds: all who lost it
        with us come back, too."""

    def stop(self, *, flush_seconds: float) -> None:
        """Wait up to `flush_seconds` for acknowledgements, then leave with a DISCONNECT: the will is not sent."""


def retry_delay_seconds(attempt: int, connection: Connection, rng: Random, spread_seconds: float = 0.0) -> float:
    """How long to wait before a reconnect, after `attempt` attempts (from 0) that did not last: full jitter.

    `spread_seconds` is over how long a fleet spreads out that has lost its connections at once, 0 where none was lost.
    """
    # The exponent is bounded because 2.0**1100 raises, after a weekend without a broker.
    cap = min(connection.reconnect_max_seconds, connection.reconnect_min_seconds * 2.0 ** min(attempt, 32))
    return rng.uniform(0.0, max(cap, spread_seconds))


class TopicAliases:
    """Numbers for topics, good within one connection (MQTT 5.0, section 3.3.2.3.4). First come, first served."""

    def __init__(self, most: int) -> None:
        """`most` is the Topic Alias Maximum of the broker's CONNACK; 0 is none."""
        self._most = most
        self._numbers: dict[str, int] = {}

    def shorten(self, topic: str) -> tuple[str, int | None]:
        """The topic to send, empty where the broker knows its number, and its number, None where there is none left."""
        known = self._numbers.get(topic)
        if known is not None:
            return "", known
        if len(self._numbers) >= self._most:
            return topic, None
        self._numbers[topic] = len(self._numbers) + 1
        return topic, self._numbers[topic]


def publish_packet_bytes(
    topic: str, payload_bytes: int, *, qos: int, mqtt5: bool, expires: bool, aliased: bool = False
) -> int:
    """Size of a PUBLISH packet on the wire (MQTT 5.0, section 3.3); `topic` is what stands in it."""
    remaining = 2 + len(topic.encode()) + (2 if qos else 0) + payload_bytes
    if mqtt5:
        remaining += 1 + (5 if expires else 0) + (3 if aliased else 0)
    length_bytes = 1 + sum(remaining >= 1 << bits for bits in (7, 14, 21))
    return 1 + length_bytes + remaining


class MqttSession:
    """A `Session` over TCP or TLS. Certificates are read here: raises ValueError for a file that cannot be used."""

    def __init__(self, connection: Connection, will: Will | None = None, rng: Random | None = None) -> None:
        self._connection = connection
        self._will = will
        self._rng = rng or Random()  # noqa: S311 - jitter, not a secret
        self._tls = _tls_context(connection) if connection.uses_tls else None
        self._certificate = _stamp(connection)
        self._looked_at = time.monotonic()
        self._renewing = False
        self._bytes = _Counter()
        self._inbox = _Inbox(_INBOX_BYTES, _INBOX_MESSAGES)
        self._protocol: _ProtocolName = "3.1.1" if connection.protocol == "3.1.1" else "5"
        self._protocol_worked = False
        self._client: _Client | None = None
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._stopping = threading.Event()
        self._stop_at = 0.0
        self._spread_seconds = 0.0
        # Held while a message is handed to paho, so that a connection cannot end and begin anew in between.
        self._publish_lock = threading.Lock()
        self._limits: _Limits | None = None
        # Paho calls on_subscribe in the network thread: its packet's filters must be noted by then.
        self._subscribe_lock = threading.RLock()
        self._filters: dict[str, None] = {}
        self._unanswered: dict[int, list[str]] = {}
        # Written by callbacks of the network thread and read by the same.
        self._refusal: ReasonCode | None = None
        self._end: tuple[bool, ReasonCode] | None = None

    @property
    def bytes_sent(self) -> int:
        return self._bytes.sent

    @property
    def bytes_received(self) -> int:
        return self._bytes.received

    @property
    def bytes_beyond(self) -> int | None:
        """What TCP/IP and TLS have put around these bytes so far, both ways: handshakes, headers, acknowledgements,
        repeats. None where the system does not tell."""
        return self._bytes.beyond()

    @property
    def outstanding(self) -> int:
        client = self._client
        return 0 if client is None else client.outstanding()

    def start(self) -> None:
        if self._thread is not None:
            raise RuntimeError("a session is started once")
        name = f"mqtt {self._connection.client_id}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_seconds: int | None = None
    ) -> bool:
        with self._publish_lock:
            client, limits = self._client, self._limits
            mqtt5 = client is not None and client.mqtt5
            # With a number beside the topic, which is as long as it can get.
            size = publish_packet_bytes(
                topic, len(payload), qos=qos, mqtt5=mqtt5, expires=expiry_seconds is not None, aliased=not qos
            )
            allowed = MAX_PACKET_BYTES if limits is None else limits.packet_bytes
            if size > allowed:
                raise MessageTooLarge(
                    f"{topic}: a packet of {size:,} bytes, at most {allowed:,} are taken: send chunks"
                )
            if client is None or limits is None or self._stopping.is_set():
                return False
            qos = min(qos, limits.qos)
            alias = None
            if mqtt5 and qos == 0:
                # Never above QoS 0: paho sends such a packet again on the next connection, where the number means
                # nothing. What is queued at QoS 0 it forgets on reconnecting, and numbers are this connection's.
                topic, alias = limits.aliases.shorten(topic)
            properties = None
            if mqtt5 and (expiry_seconds is not None or alias is not None):
                properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
                if expiry_seconds is not None:
                    properties.MessageExpiryInterval = expiry_seconds
                if alias is not None:
                    properties.TopicAlias = alias
            sent = client.publish_now(topic, payload, qos, retain and limits.retain, properties)
        self._wake()
        return sent

    def subscribe(self, *filters: str) -> None:
        with self._subscribe_lock:
            new = [text for text in filters if text not in self._filters]
            self._filters.update(dict.fromkeys(new))
            if new and self._limits is not None and self._client is not None:
                self._send_subscribe(self._client, new)
        self._wake()

    def unsubscribe(self, *filters: str) -> None:
        with self._subscribe_lock:
            known = [text for text in filters if text in self._filters]
            for text in known:
                del self._filters[text]
            if known and self._limits is not None and self._client is not None:
                self._client.unsubscribe(known)
        self._wake()

    def next(self, timeout_seconds: float | None) -> Event | None:
        return self._inbox.take(timeout_seconds)

    def spread_reconnects(self, seconds: float) -> None:
        self._spread_seconds = seconds

    def stop(self, *, flush_seconds: float) -> None:
        self._stop_at = time.monotonic() + flush_seconds
        self._stopping.set()
        self._wake()
        if self._thread is not None:
            # A thread in the middle of a TCP connect or a name lookup ends by itself; nobody needs to wait for it.
            self._thread.join(flush_seconds + 2.0)
        self._inbox.close()

    # The network thread, from here on.

    def _run(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            ended = self._live()
            if self._stopping.is_set():
                if ended.connected:
                    self._inbox.put(Disconnected("stopped", None))
                break
            # A connection must have lasted before the next one may be quick again: being let in proves nothing.
            attempt = 0 if ended.lasted_seconds >= self._connection.reconnect_max_seconds else attempt
            spread = self._spread_seconds if ended.connected else 0.0
            delay = retry_delay_seconds(attempt, self._connection, self._rng, spread)
            if self._renewing:
                delay, self._renewing = 0.0, False
            if ended.taken_over:
                # Two processes with one client id push each other out; at least it shall not be fast.
                delay = self._connection.reconnect_max_seconds * self._rng.uniform(0.5, 1.0)
            attempt += 1
            if ended.connected:
                self._protocol_worked = True
                self._give_up_what_kills(ended)
                hint = "" if attempt < 3 or ended.taken_over else f"; {self._hint}"
                self._inbox.put(Disconnected(ended.reason + hint, delay))
            elif self._other_protocol(ended):
                delay = 0.0
                self._inbox.put(ConnectFailed(f"{ended.reason}; trying MQTT {self._protocol}", delay))
            else:
                self._inbox.put(ConnectFailed(ended.reason, delay))
            self._stopping.wait(delay)
        self._inbox.close()
        self._wake_read.close()
        self._wake_write.close()

    def _give_up_what_kills(self, ended: _Ended) -> None:
        """Forget messages that broker after broker hangs up on: paho would repeat them for ever.

        A hosted broker ends the connection at a message over its limit, and MQTT 3.1.1 has no way to announce one.
        """
        client = self._client
        assert client is not None
        if ended.lasted_seconds >= self._connection.reconnect_max_seconds:
            client.survived.clear()
        for topic in client.give_up(_GIVE_UP_AFTER):
            reason = f"given up: {_GIVE_UP_AFTER} connections in a row ended while it was under way"
            self._inbox.put(Denied(topic, reason))

    @property
    def _hint(self) -> str:
        # Mosquitto 2.0 and MQTT 3.1.1 close a connection without saying that another client took its place.
        return f"it happens again and again: is client id {self._connection.client_id!r} in use twice?"

    def _other_protocol(self, ended: _Ended) -> bool:
        """Change the protocol where that may help; True when the next attempt need not wait."""
        if self._connection.protocol != "auto" or not ended.protocol_refused:
            return False
        if self._protocol_worked and not ended.protocol_named:
            return False
        was_5 = self._protocol == "5"
        self._protocol = "3.1.1" if was_5 else "5"
        self._protocol_worked = False
        self._client = None
        return was_5

    def _live(self) -> _Ended:
        """One connection from its TCP handshake to its end."""
        connection = self._connection
        client = self._client or self._new_client()
        self._client = client
        self._refusal = None
        self._end = None
        where = f"{connection.host}:{connection.port}"
        try:
            self._take_certificate()
            client.reconnect()
        except (OSError, ValueError) as error:
            # ValueError: a host name that cannot be encoded.
            client.close()
            return _Ended(reason=f"{where}: {_say(error)}")
        began = time.monotonic()
        try:
            problem = self._serve(client, began + CONNECT_TIMEOUT_SECONDS)
        except Exception as error:
            # Paho's decoders raise whatever a malformed packet provokes. It is told of, and the connection ends.
            problem = f"{type(error).__name__} in the MQTT client: {error}"
        connected = self._limits is not None
        with self._publish_lock:
            self._limits = None
        client.close()
        with self._subscribe_lock:
            self._unanswered.clear()
        if connected:
            if self._renewing:
                problem = "left, to come back with a new certificate"
            return _Ended(
                reason=f"{where}: {problem or self._say_end()}",
                connected=True,
                lasted_seconds=time.monotonic() - began,
                taken_over=self._end is not None and self._end[1].value == _TAKEN_OVER,
            )
        if self._refusal is not None:
            who = "" if connection.username is None else f", user {connection.username!r}"
            return _Ended(
                reason=f"{where}: the broker refused client {connection.client_id!r}{who}: {self._refusal}",
                protocol_refused=self._refusal.value == _UNSUPPORTED_PROTOCOL,
                protocol_named=self._refusal.value == _UNSUPPORTED_PROTOCOL,
            )
        came = problem or "a closed connection"
        if self._tls is not None and problem is None and connection.cert_file is not None:
            # With TLS 1.3 a client believes that it is in before the broker has looked at its certificate.
            came += ": is its certificate expired, revoked, or of another authority than the broker's?"
        return _Ended(
            reason=f"{where}: expected an answer (CONNACK) to MQTT {self._protocol}, got {came}",
            protocol_refused=True,
        )

    def _serve(self, client: _Client, connack_by: float) -> str | None:
        """Move bytes until the socket closes; returns what to say of it where paho does not."""
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        registered = -1
        connection = self._connection
        idle_seconds = min(5.0, connection.keepalive_seconds / 4)
        leaving_at: float | None = None
        while (sock := client.socket()) is not None:
            now = time.monotonic()
            wait = idle_seconds
            if self._limits is None:
                if now >= connack_by:
                    return f"nothing within {CONNECT_TIMEOUT_SECONDS:.0f} s"
                if self._stopping.is_set():
                    return "stopped"
                wait = min(wait, connack_by - now)
            elif leaving_at is not None:
                if now >= leaving_at:
                    return "the DISCONNECT could not be written"
                wait = min(wait, leaving_at - now)
            elif self._stopping.is_set():
                if now >= self._stop_at or (client.outstanding() == 0 and not client.want_write()):
                    leaving_at = now + 1.0
                    client.disconnect()
                    continue
                wait = min(wait, self._stop_at - now)
            elif self._renewing:
                leaving_at = now + 1.0
                client.disconnect()
                continue
            elif now - self._looked_at >= RENEWAL_LOOK_SECONDS and client.outstanding() == 0:
                self._looked_at = now
                self._renewing = _stamp(connection) != self._certificate

            events = select.POLLIN | (select.POLLOUT if client.want_write() else 0)
            if registered != sock.fileno():
                registered = sock.fileno()
                poller.register(registered, events)
            else:
                poller.modify(registered, events)
            # Bytes that TLS has decrypted already are not seen by poll.
            buffered = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
            ready = dict(poller.poll(0 if buffered else wait * 1000.0))
            if self._wake_read.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    self._wake_read.recv(4096)
            if buffered or ready.get(registered, 0) & ~select.POLLOUT:
                client.loop_read()
            if client.want_write():
                client.loop_write()
            client.loop_misc()
        return client.complaint

    def _take_certificate(self) -> None:
        """Who renews a certificate puts it into its file. Raises OSError, and ValueError for one without its key."""
        stamp = _stamp(self._connection)
        if self._tls is not None and stamp != self._certificate:
            _load_certificate(self._tls, self._connection)
            self._certificate = stamp

    def _new_client(self) -> _Client:
        connection = self._connection
        mqtt5 = self._protocol == "5"
        clean = connection.session_expiry_seconds == 0
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=connection.client_id,
            clean_session=None if mqtt5 else clean,
            protocol=MQTTProtocolVersion.MQTTv5 if mqtt5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.counter = self._bytes
        client.max_inflight_messages_set(connection.max_inflight)
        if connection.username is not None:
            client.username_pw_set(connection.username, connection.password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, self._will.qos, self._will.retain)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = lambda *_: self._bytes.close()
        # With a function here paho never writes from the caller's thread, where two writers could mix packets.
        client.on_socket_register_write = lambda *_: None
        if mqtt5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.MaximumPacketSize = MAX_PACKET_BYTES
            if not clean:
                properties.SessionExpiryInterval = connection.session_expiry_seconds
            client.connect_async(
                connection.host,
                connection.port,
                connection.keepalive_seconds,
                clean_start=clean,
                properties=properties,
            )
        else:
            client.connect_async(connection.host, connection.port, connection.keepalive_seconds)
        return client

    def _send_subscribe(self, client: _Client, filters: list[str]) -> None:
        _, mid = client.subscribe([(text, 1) for text in filters])
        if mid is not None:
            self._unanswered[mid] = filters

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it wakes anyway
            self._wake_write.send(b"\0")

    def _say_end(self) -> str:
        if self._end is None:
            return "the connection was closed"
        from_broker, reason = self._end
        if from_broker and reason.value == _TAKEN_OVER:
            return f"{reason}: another client came with our client id {self._connection.client_id!r}"
        if from_broker:
            return f"the broker ended the connection: {reason}"
        if reason.getName() == "Keep alive timeout":
            return f"no sign of life from the broker within {self._connection.keepalive_seconds} s (keep alive timeout)"
        return "the connection was lost"

    # Paho's callbacks: they note and enqueue, and must not raise.

    def _on_socket_open(self, client: Any, userdata: Any, sock: Any) -> None:
        _no_delay(client, userdata, sock)
        self._bytes.open(sock)

    def _on_connect(self, client: paho.Client, _: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        assert isinstance(client, _Client)
        if reason.is_failure:
            self._refusal = reason
            return
        if not flags.session_present:
            # MQTT 5.0, 3.2.2.1.1: no session at the broker, so ours is discarded; the owner sends again what matters.
            client.drop_out_messages()
        said = getattr(properties, "MaximumPacketSize", None)
        client.bound_inflight(getattr(properties, "ReceiveMaximum", 65_535))
        limits = _Limits(
            packet_bytes=min(MAX_PACKET_BYTES, said or MAX_PACKET_BYTES),
            qos=getattr(properties, "MaximumQoS", 1),
            retain=bool(getattr(properties, "RetainAvailable", 1)),
            aliases=TopicAliases(getattr(properties, "TopicAliasMaximum", 0)),
        )
        with self._subscribe_lock:
            self._limits = limits
            if self._filters:
                self._send_subscribe(client, list(self._filters))
        self._inbox.put(Connected(flags.session_present, self._protocol, said))

    def _on_disconnect(self, client: Any, _: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._end = (flags.is_disconnect_packet_from_server, reason)

    def _on_message(self, client: Any, _: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            self._inbox.drop()
            return
        self._inbox.put(Received(topic, bytes(message.payload), message.retain))

    def _on_publish(self, client: paho.Client, _: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        assert isinstance(client, _Client)
        if reason.is_failure:
            self._inbox.put(Denied(client.topic_of(mid), str(reason)))

    def _on_subscribe(self, client: Any, _: Any, mid: int, reasons: list[ReasonCode], properties: Any) -> None:
        with self._subscribe_lock:
            filters = self._unanswered.pop(mid, [])
        for text, reason in zip(filters, reasons, strict=False):
            if reason.is_failure:
                self._inbox.put(Denied(text, str(reason)))


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """What the broker of the present connection takes."""

    packet_bytes: int
    qos: int
    retain: bool
    aliases: TopicAliases
    """Of this connection: the next one begins with none."""


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """How a connection, or the attempt at one, came to its end."""

    reason: str
    connected: bool = False
    lasted_seconds: float = 0.0
    taken_over: bool = False
    protocol_refused: bool = False
    """The other protocol may be worth a try."""
    protocol_named: bool = False
    """The broker said itself that the protocol was the reason."""


class _Counter:
    """Bytes of MQTT, written by the network thread alone, and what carried them."""

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self._sock: socket.socket | None = None
        self._carried: int | None = 0
        """At the IP level, by the connections that have ended; None once one of them could not tell."""
        self._lock = threading.Lock()

    def open(self, sock: socket.socket) -> None:
        with self._lock:
            self._sock = sock

    def close(self) -> None:
        """To be called while the socket can still be asked."""
        with self._lock:
            if self._sock is None:
                return
            told, self._sock = carried(self._sock), None
            if told is None or self._carried is None:
                self._carried = None
            else:
                self._carried += told[0] + CLOSING_SEGMENTS * told[1]

    def beyond(self) -> int | None:
        with self._lock:
            carried_now = self._carried
            if carried_now is not None and self._sock is not None:
                told = carried(self._sock)
                carried_now = None if told is None else carried_now + told[0]
            return None if carried_now is None else max(0, carried_now - self.sent - self.received)


class _Client(paho.Client):
    """Paho's client with counted bytes and a bound on what it reads; the only place that touches its inside."""

    counter: _Counter
    complaint: str | None = None

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.survived: dict[int, int] = {}
        """How many connections each message under way has seen the end of."""

    @property
    def mqtt5(self) -> bool:
        return self.protocol == MQTTProtocolVersion.MQTTv5

    def reconnect(self) -> MQTTErrorCode:
        self.complaint = None
        return super().reconnect()

    def _sock_send(self, buf: bytes | bytearray) -> int:
        sent = super()._sock_send(buf)
        self.counter.sent += sent
        return sent

    def _sock_recv(self, bufsize: int) -> bytes:
        # Paho asks for what is left of a packet, so this is the packet's own claim, before any memory is spent on it.
        if bufsize > MAX_PACKET_BYTES:
            self.complaint = f"a packet of {bufsize:,} bytes came in, at most {MAX_PACKET_BYTES:,} are read"
            raise ConnectionError(self.complaint)
        data = super()._sock_recv(bufsize)
        self.counter.received += len(data)
        return data

    def publish_now(self, topic: str, payload: bytes, qos: int, retain: bool, properties: Properties | None) -> bool:
        """Publish on the present connection or not at all."""
        info = self.publish(topic, payload, qos, retain, properties)
        if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
            return True
        # Paho keeps what it could not send, and would send it after the next connect.
        with self._out_message_mutex:
            if info.rc == MQTTErrorCode.MQTT_ERR_NO_CONN:
                self._out_messages.pop(info.mid, None)
        return False

    def give_up(self, after: int) -> list[str]:
        """Between connections: forget the messages that saw `after` of them end, and return their topics."""
        with self._out_message_mutex:
            self.survived = {mid: self.survived.get(mid, 0) + 1 for mid in self._out_messages}
            mids = [mid for mid, ends in self.survived.items() if ends >= after]
            return [self._out_messages.pop(mid).topic for mid in mids]

    def outstanding(self) -> int:
        return len(self._out_messages)

    def topic_of(self, mid: int) -> str:
        message = self._out_messages.get(mid)
        return "?" if message is None else message.topic

    def bound_inflight(self, receive_maximum: int) -> None:
        """Honour the broker's Receive Maximum, which paho does not."""
        self._max_inflight_messages = min(self._max_inflight_messages, receive_maximum)

    def close(self) -> None:
        self._sock_close()


class _Inbox:
    """Events on their way to the session's owner; bounded, and closing wakes whoever waits.

    A topic may hold as much as is free: one that is flooded ends with half of the room, k of them with k/(k + 1), and
    the rest stays for the others (Choudhury and Hahne 1998, "Dynamic Queue Length Thresholds").
    """

    def __init__(self, max_bytes: int, max_messages: int) -> None:
        self._max_bytes = max_bytes
        self._max_messages = max_messages
        self._events: deque[Event] = deque()
        self._payload_bytes = 0
        self._of_topic: dict[str, tuple[int, int]] = {}
        """Messages that wait, and their bytes."""
        self._dropped = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, event: Event) -> None:
        with self._changed:
            # What is not a message comes at most a few times per attempt to connect: it always finds a place.
            if isinstance(event, Received) and not self._make_room(event):
                self._dropped += 1
            else:
                self._events.append(event)
            self._changed.notify()

    def _make_room(self, event: Received) -> bool:
        size = len(event.payload)
        messages, held = self._of_topic.get(event.topic, (0, 0))
        free_messages = self._max_messages - len(self._events)
        free_bytes = self._max_bytes - self._payload_bytes
        if messages >= free_messages or held >= free_bytes or size > free_bytes:
            return False
        self._of_topic[event.topic] = messages + 1, held + size
        self._payload_bytes += size
        return True

    def drop(self) -> None:
        with self._changed:
            self._dropped += 1
            self._changed.notify()

    def take(self, timeout_seconds: float | None) -> Event | None:
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._dropped or self._closed, timeout_seconds)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                return Dropped(dropped)
            if not self._events:
                return None
            event = self._events.popleft()
            if isinstance(event, Received):
                self._payload_bytes -= len(event.payload)
                messages, held = self._of_topic.pop(event.topic)
                if messages > 1:
                    self._of_topic[event.topic] = messages - 1, held - len(event.payload)
            return event

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _check_range(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{what}: expected {low} to {high}, got {value}")


def _tls_context(connection: Connection) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=connection.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ca_file {connection.ca_file}: expected PEM certificates: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_certificate(context, connection)
    return context


def _load_certificate(context: ssl.SSLContext, connection: Connection) -> None:
    """For the connections that begin from now on."""
    if connection.cert_file is not None:
        for name, path in (("cert_file", connection.cert_file), ("key_file", connection.key_file)):
            if path is None or not os.access(path, os.R_OK):
                raise ValueError(f"{name} {path}: expected a readable PEM file")
        assert connection.key_file is not None  # the loop above saw to it
        try:
            with open_secret(connection.key_file) as key:
                # By its descriptor: what is loaded is the file that was judged.
                context.load_cert_chain(connection.cert_file, f"/proc/self/fd/{key}")
        except SecretError as error:
            raise ValueError(f"key_file {error}") from error
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"cert_file {connection.cert_file} with its key_file: {error}") from error


def _stamp(connection: Connection) -> tuple[tuple[int, int, int] | None, ...]:
    """Another one where another file is in the place of the certificate or its key."""
    return tuple(_file_stamp(path) for path in (connection.cert_file, connection.key_file) if path is not None)


def _file_stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _no_delay(client: Any, userdata: Any, sock: Any) -> None:
    # Small packets, far apart: waiting to fill a segment saves nothing and costs 40 ms a time.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _say(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there (connection refused): is a broker running?"
    if isinstance(error, TimeoutError):
        return "no answer to the TCP connection in time"
    if isinstance(error, socket.gaierror):
        return f"the host name is not known: {error.strerror}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    return f"{type(error).__name__}: {error}"
