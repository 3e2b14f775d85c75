"""What the coordinator will say once the ledger is committed: messages gathered, each with its topic.

Owns topics and coding of what goes out. Refuses to know when it is time to speak: `service` takes everything after
its commit, so that no receipt goes out before what it promises is on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
from fedmq_protocol.messages import Message, to_bytes
from fedmq_protocol.topics import Channel, Direction, spec, topic

__all__ = ["Outbox", "Outgoing"]


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
    """In the order in which things were said."""

    def __init__(self, federation: str) -> None:
        self._federation = federation
        self._waiting: list[Outgoing] = []

    def command(self, gateway: str, channel: Channel, message: Message) -> None:
        """To one gateway."""
        self._put(Direction.CMD, channel, to_bytes(message), gateway=gateway)

    def broadcast(self, channel: Channel, message: Message, *, expiry_seconds: int | None = None) -> None:
        """To all; dropped by the broker for those who have not taken it by then."""
        self._put(Direction.DOWN, channel, to_bytes(message), expiry_seconds=expiry_seconds)

    def report(self, body: dict[str, Any]) -> None:
        """JSON for people's tools, such as Telegraf and Node-RED."""
        self._put(Direction.DOWN, Channel.REPORT, msgspec.json.encode(body))

    def take(self) -> list[Outgoing]:
        """All that waits; the outbox is then empty."""
        taken, self._waiting = self._waiting, []
        return taken

    def _put(
        self,
        direction: Direction,
        channel: Channel,
        payload: bytes,
        *,
        gateway: str | None = None,
        expiry_seconds: int | None = None,
    ) -> None:
        row = spec(direction, channel)
        self._waiting.append(
            Outgoing(
                topic=topic(self._federation, direction, channel, gateway),
                payload=payload,
                qos=row.qos,
                retain=row.retained,
                expiry_seconds=expiry_seconds,
            )
        )
