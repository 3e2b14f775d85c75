"""Links: what lies between a session and the broker, as bytes a second, seconds and shares of what goes wrong.

Owns how long a packet takes, and what becomes of what was under way when a connection ended. Refuses to know what a
message says. The rules are those of MQTT over TCP, seen from outside:

- within a connection that nothing disturbs messages arrive in order; a lost TCP segment costs time, and no message;
- what was under way at QoS 0 when a connection ended is gone; at QoS 1 it is sent again over the next connection, if
  the broker has kept the session, and then it may come a second time;
- a disturbed link does worse than MQTT allows within a connection, as bridges, proxies and full queues do: it loses
  messages of QoS 0, doubles, delays and so reorders; it may even swallow a message of QoS 1 that was acknowledged.

Which message meets with what is drawn from the link's own generator, or read from a list, message by message: so what
happened by chance can be told again, one mishap less, to find the shortest story.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from fedmq_protocol.session import Connected, ConnectFailed, Denied, Disconnected, Event, Received, TopicAliases, Will

from fedmq.simulate.broker import MOSQUITTO_ALIASES, Broker, BrokerSession, Message
from fedmq.simulate.scheduler import Scheduler, Trace

__all__ = ["Link", "LinkedSession", "Mishap", "Mishaps", "Noise", "Shape", "Way"]

SEGMENT_BYTES = 1_400
"""Of MQTT in a TCP segment, about."""
RETRANSMIT_SECONDS = 0.2
"""TCP's least time-out (Linux), to which a round trip is added; it doubles with each loss in a row."""
CONNECT_TIMEOUT_SECONDS = 10.0
RECONNECT_MOST_SECONDS = 60.0
KEEPALIVE_SECONDS = 90.0
"""One and a half times the keepalive of 60 s: after that a broker gives up a client that is silent."""
LATE_SECONDS = 20.0
"""Longest delay of a message that is late for no reason."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a link is like when nothing disturbs it; the same both ways."""

    rate: float = 0.0
    """Bytes a second; 0 is no limit."""
    latency: float = 0.02
    """Seconds, one way."""
    jitter: float = 0.0
    """Seconds that are added at most, drawn anew for each message."""
    loss: float = 0.0
    """Share of TCP segments that are lost and sent again."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Shares of messages that meet with a mishap."""

    lose: float = 0.0
    double: float = 0.0
    delay: float = 0.0
    swallow: float = 0.0


@dataclass(frozen=True, kw_only=True, order=True)
class Mishap:
    """What becomes of one message: the `number`th on its topic that goes this way over this link, from 0.

    By topic, so that it meets the same message where a gateway is left out.
    """

    link: str
    way: str
    topic: str
    number: int
    kind: str
    """lose | double | delay | swallow"""
    seconds: float = 0.0


class Way:
    """One direction of a link."""

    __slots__ = ("arrived", "carried", "free_at", "last", "link", "messages", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.free_at = 0.0
        self.last = 0.0
        self.messages: dict[str, int] = {}
        """By topic."""
        self.carried = 0
        """Bytes of MQTT packets that set out this way."""
        self.arrived = 0
        """And those that came to its end, as a counter at the client's cable would have them, either way."""


Mishaps = dict[tuple[str, str, int], Mishap]
"""By way, topic and number."""


class Link:
    """`mishaps` is the list to follow; None: draw, and note in `happened`."""

    def __init__(self, name: str, shape: Shape, rng: Random, mishaps: Mishaps | None) -> None:
        self.name = name
        self.shape = shape
        self.noise: Noise | None = None
        self.blocked_until = 0.0
        self.happened: list[Mishap] = []
        self.swallowed = False
        self.up = Way("up")
        self.down = Way("down")
        self._rng = rng
        # Of their own, so that a story with one mishap less takes as long; made where it is needed.
        self._mishap_seed = rng.getrandbits(64)
        self._mishap_rng: Random | None = None
        self._mishaps = mishaps

    def carry(self, way: Way, at: float, size: int) -> float:
        """When a packet arrives that leaves at `at`, or as soon as the way is free."""
        shape = self.shape
        if shape.rate:
            way.free_at = at = max(at, way.free_at) + size / shape.rate
        at += shape.latency
        if shape.jitter:
            at += shape.jitter * self._rng.random()
        if shape.loss:
            at += self._retransmissions(size)
        way.carried += size
        if at < way.last:
            return way.last
        way.last = at
        return at

    def _retransmissions(self, size: int) -> float:
        shape, waited = self.shape, 0.0
        for _ in range(1 + size // SEGMENT_BYTES):
            pause = RETRANSMIT_SECONDS + 2 * shape.latency
            while self._rng.random() < shape.loss:
                waited += pause
                pause = min(2 * pause, 60.0)
                if shape.rate:
                    waited += min(size, SEGMENT_BYTES) / shape.rate
        return waited

    def mishap(self, way: Way, topic: str) -> Mishap | None:
        """What becomes of the next message on this topic that goes this way."""
        number = way.messages.get(topic, 0)
        way.messages[topic] = number + 1
        if self._mishaps is not None:
            return self._mishaps.get((way.name, topic, number))
        noise = self.noise
        if noise is None:
            return None
        if self._mishap_rng is None:
            self._mishap_rng = Random(self._mishap_seed)
        drawn = self._mishap_rng.random()
        for kind, share in (
            ("lose", noise.lose),
            ("double", noise.double),
            ("delay", noise.delay),
            ("swallow", noise.swallow),
        ):
            if drawn < share:
                seconds = 0.0 if kind in ("lose", "swallow") else LATE_SECONDS * self._mishap_rng.random() ** 2
                found = Mishap(link=self.name, way=way.name, topic=topic, number=number, kind=kind, seconds=seconds)
                self.happened.append(found)
                return found
            drawn -= share
        return None


_Up = tuple[int, int, str, bytes, int, bool, int | None, int]
"""Epoch, number, topic, payload, QoS, retain, expiry in seconds, bytes of the packet."""


class LinkedSession(BrokerSession):
    """A session whose messages take their time.

    `sends_at` says when its owner is as it speaks (it may be busy until then), `deliver` hands an event to it.
    """

    def __init__(
        self,
        broker: Broker,
        client_id: str,
        will: Will | None,
        *,
        link: Link,
        scheduler: Scheduler,
        trace: Trace,
        rng: Random,
        sends_at: Callable[[], float],
        deliver: Callable[[Event], None],
        session_expiry_seconds: int = 600,
    ) -> None:
        super().__init__(broker, client_id, will, session_expiry_seconds)
        self.link = link
        self.dead = False
        """Its process has ended, or has been killed."""
        self._scheduler = scheduler
        self._trace = trace
        self._rng = rng
        self._sends_at = sends_at
        self._deliver = deliver
        self._epoch = 0
        self._attached = False
        self._attempts = 0
        self._number = 0
        self._up: dict[int, _Up] = {}
        """Of QoS 1, not acknowledged."""
        self._down: dict[int, Message] = {}

    # -- the session's own side --------------------------------------------------------------------------------

    def start(self) -> None:
        self._wanted = True
        self._scheduler.at(self._sends_at(), self._try, self._epoch)

    def stop(self, *, flush_seconds: float) -> None:
        self._wanted, self.dead = False, True
        if self.connected:
            self.connected = False
            self.bytes_sent += 2
            self._scheduler.at(self.link.carry(self.link.up, self._sends_at(), 2), self._goodbye, self._epoch)

    def _goodbye(self, epoch: int) -> None:
        self._close(epoch, send_will=False)

    def kill(self) -> None:
        """The process dies, and its connection with it; what it had sent still arrives."""
        self._end(max(self._scheduler.now, self.link.up.last) + self.link.shape.latency)

    def lose_power(self) -> None:
        """Nobody closes the connection: the broker finds out by the silence."""
        self._end(self._scheduler.now + KEEPALIVE_SECONDS)

    def _end(self, at: float) -> None:
        self._wanted, self.connected, self.dead = False, False, True
        self._up.clear()
        self._scheduler.at(at, self._died, self._epoch)

    def _died(self, epoch: int) -> None:
        self._close(epoch, send_will=True)

    def _close(self, epoch: int, *, send_will: bool) -> None:
        """The broker sees the connection end, unless it has seen that already."""
        if epoch != self._epoch or not self._attached:
            return
        self._attached = False
        self._epoch += 1
        self.broker._detach(self, send_will=send_will, lost=False)
        for message in self._taken_back():
            self.broker._wait(self.client_id, message)

    def cut(self) -> None:
        """The connection breaks, for both ends at once. It will be tried again."""
        if not self._attached:
            return
        self._attached = False
        self.broker._detach(self, send_will=True, lost=False)
        for message in self._lose("the connection was lost", retry_in_seconds=1.0):
            self.broker._wait(self.client_id, message)

    def _lose(self, reason: str, *, retry_in_seconds: float) -> list[Message]:
        self._attached = False
        self._epoch += 1
        if not self.dead:
            if self.connected:
                self.connected = False
                self._trace.event(self._scheduler.now, "disconnected", self.client_id)
                self._deliver(Disconnected(reason, retry_in_seconds))
            self._retry()
        return self._taken_back()

    def _taken_back(self) -> list[Message]:
        messages = list(self._down.values())
        self._down.clear()
        return messages

    # -- connecting --------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Called by a broker that is back; a client finds out by its own next attempt."""

    def _retry(self) -> None:
        most = min(RECONNECT_MOST_SECONDS, 2.0 ** min(self._attempts, 8))
        if not self._attempts:
            # The last one was accepted, and lost: perhaps by the whole fleet at once.
            most = max(most, self.spread_seconds)
        pause = self._rng.uniform(0.05, most)
        self._attempts += 1
        self._scheduler.at(self._scheduler.now + pause, self._try, self._epoch)

    def _try(self, epoch: int) -> None:
        if self.dead or epoch != self._epoch or self._attached:
            return
        now = self._scheduler.now
        if now < self.link.blocked_until:
            self._scheduler.at(now + CONNECT_TIMEOUT_SECONDS, self._failed, (epoch, "timed out"))
        elif not self.broker.up:
            self._scheduler.at(now + 2 * self.link.shape.latency, self._failed, (epoch, "connection refused"))
        else:
            size = self._connect_bytes()
            self.bytes_sent += size
            arrives = self.link.carry(self.link.up, now + 2 * self.link.shape.latency, size)
            self._scheduler.at(arrives, self._arrived, epoch)

    def _failed(self, what: tuple[int, str]) -> None:
        epoch, reason = what
        if self.dead or epoch != self._epoch:
            return
        self._trace.event(self._scheduler.now, "no connection:", self.client_id, reason)
        self._deliver(ConnectFailed(reason, 1.0))
        self._retry()

    def _arrived(self, epoch: int) -> None:
        """The CONNECT, at the broker."""
        if self.dead or epoch != self._epoch:
            return
        if not self.broker.up or self._scheduler.now < self.link.blocked_until:
            self._failed((epoch, "connection refused"))
            return
        waiting = self.broker._attach(self)
        self._attached = True
        self._epoch += 1
        at = self.link.carry(self.link.down, self._scheduler.now, 10)
        self._scheduler.at(at, self._accepted, (self._epoch, waiting is not None))
        for message in waiting or ():
            self._send_down(message)

    def _accepted(self, what: tuple[int, bool]) -> None:
        """The CONNACK, here."""
        epoch, present = what
        if self.dead or epoch != self._epoch:
            return
        now = self._scheduler.now
        self.bytes_received += 10
        self.link.down.arrived += 10
        self.connected = True
        self._attempts = 0
        self._aliases = TopicAliases(MOSQUITTO_ALIASES)
        self._trace.event(now, "connected", self.client_id)
        if self.filters:
            self._send_subscribe(list(self.filters))
        again, self._up = self._up, {}
        if present:
            for _, _, topic, payload, qos, retain, expiry, _ in again.values():
                size = Message(Received(topic, payload), qos=qos).size
                self.bytes_sent += size
                self._send_up(topic, payload, qos, retain, expiry, size)
        self._deliver(Connected(present, "5", self.broker.max_packet_bytes))

    def _send_subscribe(self, filters: list[str]) -> None:
        size = 5 + sum(3 + len(text) for text in filters)
        self.bytes_sent += size
        arrives = self.link.carry(self.link.up, self._sends_at(), size)
        self._scheduler.at(arrives, self._subscribed, (self._epoch, filters, True))

    def _send_unsubscribe(self, filters: list[str]) -> None:
        size = 5 + sum(2 + len(text) for text in filters)
        self.bytes_sent += size
        arrives = self.link.carry(self.link.up, self._sends_at(), size)
        self._scheduler.at(arrives, self._subscribed, (self._epoch, filters, False))

    def _subscribed(self, what: tuple[int, list[str], bool]) -> None:
        epoch, filters, wanted = what
        if epoch != self._epoch:
            return
        if self._scheduler.now < self.link.blocked_until:
            self._scheduler.at(self.link.blocked_until, self._subscribed, what)
            return
        size = 5 + len(filters)
        self.link.down.arrived += size
        self.bytes_received += size
        if wanted:
            self.broker._subscribe(self, filters)
        else:
            self.broker._unsubscribe(self, filters)

    # -- messages ----------------------------------------------------------------------------------------------

    def _send_up(
        self, topic: str, payload: bytes, qos: int, retain: bool, expiry_seconds: int | None, size: int
    ) -> None:
        at = self._sends_at()
        self._number += 1
        packet = (self._epoch, self._number, topic, payload, qos, retain, expiry_seconds, size)
        if qos:
            self._up[self._number] = packet
        link = self.link
        arrives = link.carry(link.up, at, size)
        for late in self._fates(link.up, qos, topic, payload):
            self._scheduler.at(arrives + late, self._taken, packet)

    def _taken(self, packet: _Up) -> None:
        """A message has come to the broker."""
        epoch, number, topic, payload, qos, retain, expiry, _ = packet
        now = self._scheduler.now
        link = self.link
        if epoch != self._epoch:
            self._trace.event(now, "lost", self.client_id, topic, payload)
            return
        if now < link.blocked_until:
            self._scheduler.at(link.blocked_until + link.shape.latency, self._taken, packet)
            return
        self._trace.event(now, "to broker", self.client_id, topic, payload)
        if qos:
            # Until the acknowledgement is back, the end of the connection doubles the message.
            self._scheduler.at(link.carry(link.down, now, 4), self._acknowledged_here, (epoch, number))
        if not self.broker.publish(self.client_id, topic, payload, retain, qos, expiry) and qos and not self.dead:
            self._deliver(Denied(topic, "Not authorized"))

    def _acknowledged_here(self, what: tuple[int, int]) -> None:
        """The broker's PUBACK, at the client."""
        epoch, number = what
        if epoch != self._epoch or self.dead:
            return
        now = self._scheduler.now
        if now < self.link.blocked_until:
            self._scheduler.at(self.link.blocked_until + self.link.shape.latency, self._acknowledged_here, what)
            return
        self._trace.acknowledged(now, self.client_id)
        self.link.down.arrived += 4
        self.bytes_received += 4
        self._up.pop(number, None)

    def _acknowledged_there(self, what: tuple[int, int]) -> None:
        """The client's PUBACK, at the broker."""
        epoch, number = what
        if epoch != self._epoch:
            return
        now = self._scheduler.now
        if now < self.link.blocked_until:
            self._scheduler.at(self.link.blocked_until + self.link.shape.latency, self._acknowledged_there, what)
            return
        self._trace.acknowledged(now, self.client_id)
        self._down.pop(number, None)

    def _send_down(self, message: Message) -> None:
        now = self._scheduler.now
        self._number += 1
        number = self._number
        if message.qos:
            self._down[number] = message
        link = self.link
        topic = message.received.topic
        arrives = link.carry(link.down, now, message.size)
        if link.noise is None and link._mishaps is None:
            messages = link.down.messages
            messages[topic] = messages.get(topic, 0) + 1
            self._scheduler.at(arrives, self._came, (self._epoch, number, message))
            return
        for late in self._fates(link.down, message.qos, topic, message.received.payload):
            self._scheduler.at(arrives + late, self._came, (self._epoch, number, message))

    def _came(self, what: tuple[int, int, Message]) -> None:
        """A message has come to the client."""
        epoch, number, message = what
        now = self._scheduler.now
        received = message.received
        if epoch != self._epoch or self.dead:
            self._trace.event(now, "lost", self.client_id, received.topic, received.payload)
            return
        link = self.link
        if now < link.blocked_until:
            self._scheduler.at(link.blocked_until + link.shape.latency, self._came, what)
            return
        self._trace.event(now, "from broker", self.client_id, received.topic, received.payload)
        self.bytes_received += message.size
        link.down.arrived += message.size
        if message.qos:
            self.bytes_sent += 4
            self._scheduler.at(link.carry(link.up, now, 4), self._acknowledged_there, (epoch, number))
        self._deliver(received)

    def _fates(self, way: Way, qos: int, topic: str, payload: bytes) -> Iterator[float]:
        """How much later than it should the message arrives, once or twice or never."""
        mishap = self.link.mishap(way, topic)
        if mishap is None:
            yield 0.0
            return
        now = self._scheduler.now
        if mishap.kind == "swallow" or (mishap.kind == "lose" and not qos):
            if qos:
                self.link.swallowed = True
                if way is self.link.up:
                    self._up.pop(self._number, None)
                else:
                    self._down.pop(self._number, None)
            self._trace.event(now, "lost", self.client_id, topic, payload)
            return
        if mishap.kind == "double":
            self._trace.event(now, "doubled", self.client_id, topic, payload)
            yield 0.0
            yield mishap.seconds
            return
        # What is lost at QoS 1 is sent again: it is late.
        yield mishap.seconds or RETRANSMIT_SECONDS
