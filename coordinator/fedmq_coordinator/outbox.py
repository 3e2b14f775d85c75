"""What the coordinator will say once the ledger is committed: messages gathered, each with its topic.

Owns topics, coding and seals of what goes out. Refuses to know when it is time to speak: `service` takes everything
after its commit, so that no receipt goes out before what it promises is on disk.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from fedmq_protocol.messages import Message, MessageError, to_bytes
from fedmq_protocol.topics import Channel, Direction, parse, topic

if TYPE_CHECKING:
    from fedmq_protocol.signing import CoordinatorSeals

__all__ = ["Outbox", "Outgoing"]

log = logging.getLogger("fedmq.coordinator")


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    topic: str
    payload: bytes = field(repr=False)
    qos: int
    retain: bool
    expiry_seconds: int | None

    @property
    def channel(self) -> str:
        return self.topic.rpartition("/")[2]


class Outbox:
    """In the order in which things were said. Without `seals` nothing is sealed; without `reports` tools hear nothing
    of closed rounds."""

    def __init__(self, federation: str, seals: CoordinatorSeals | None = None, *, reports: bool = True) -> None:
        self._federation = federation
        self._reports = reports
        self._seals = seals
        self._waiting: list[Outgoing] = []

    def command(self, gateway: str, channel: Channel, message: Message) -> None:
        """To one gateway."""
        where = topic(self._federation, Direction.CMD, channel, gateway)
        try:
            payload = self._sealed(where, message)
        except MessageError as error:
            log.warning("nothing is said on %s: %s", where, error)
            return
        self._put(where, payload)

    def broadcast(self, channel: Channel, message: Message, *, expiry_seconds: int | None = None) -> None:
        """To all; dropped by the broker for those who have not taken it by then."""
        where = topic(self._federation, Direction.DOWN, channel)
        self._put(where, self._sealed(where, message), expiry_seconds=expiry_seconds)

    def report(self, body: dict[str, Any]) -> None:
        """A closed round as JSON, for people's tools such as Telegraf and Node-RED."""
        if self._reports:
            self._put(topic(self._federation, Direction.DOWN, Channel.REPORT), msgspec.json.encode(body))

    def fleet(self, body: dict[str, Any]) -> None:
        """How the fleet stands, as JSON for the same."""
        self._put(topic(self._federation, Direction.DOWN, Channel.FLEET), msgspec.json.encode(body))

    def take(self) -> list[Outgoing]:
        """All that waits; the outbox is then empty."""
        taken, self._waiting = self._waiting, []
        return taken

    def _sealed(self, where: str, message: Message) -> bytes:
        plain = to_bytes(message)
        return plain if self._seals is None else self._seals.seal(where, parse(where), message, plain)

    def _put(self, where: str, payload: bytes, *, expiry_seconds: int | None = None) -> None:
        row = parse(where).spec
        self._waiting.append(
            Outgoing(
                topic=where,
                payload=payload,
                qos=row.qos,
                retain=row.retained,
                expiry_seconds=expiry_seconds,
            )
        )
