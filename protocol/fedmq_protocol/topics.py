"""The topic table: which topics exist, who may write them, and how. The broker's ACL is rendered from it.

Every topic is `fl/1/<federation>/<direction>/…`, at most seven slashes (the limit of AWS IoT Core). The direction
stands before the identity, so that an ACL needs two patterns for a whole fleet:

    up/<gateway>/<channel>     a gateway writes below its own name, the coordinator reads
    down/<channel>             the coordinator writes, every gateway reads
    cmd/<gateway>/<channel>    the coordinator writes, one gateway reads

A gateway is who the topic says; a payload that claims another identity is refused where it is decoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

__all__ = [
    "CHUNK_BYTES",
    "TABLE",
    "Channel",
    "Direction",
    "Topic",
    "TopicSpec",
    "check_name",
    "coordinator_filters",
    "gateway_filters",
    "parse",
    "spec",
    "topic",
]

ROOT = "fl/1"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

_KNOWN_TOPICS = 8192
"""Topics whose parts are kept: a fleet speaks on the same ones again and again."""


class Direction(Enum):
    UP = "up"
    DOWN = "down"
    CMD = "cmd"


class Channel(Enum):
    STATUS = "status"
    ANSWER = "answer"
    STATISTICS = "statistics"
    ASK = "ask"
    CHUNK = "chunk"
    TRIAL = "trial"
    CONDITION = "condition"
    WELCOME = "welcome"
    RECEIPT = "receipt"
    PLAN = "plan"
    MODEL = "model"
    REPORT = "report"
    FLEET = "fleet"


@dataclass(frozen=True, kw_only=True)
class TopicSpec:
    """One row of the table. `max_bytes` bounds a payload before anything decodes it."""

    direction: Direction
    channel: Channel
    qos: int
    retained: bool
    max_bytes: int
    about: str


CHUNK_BYTES = 32 * 1024
"""Default size of a chunk: AWS IoT Core takes 128 KB a message, Azure Event Grid 64 KB in flight."""

_CHUNK_MESSAGE = 4 * CHUNK_BYTES + 64
"""A chunk may be set larger than the default, up to four times."""

TABLE: tuple[TopicSpec, ...] = (
    TopicSpec(
        direction=Direction.UP,
        channel=Channel.STATUS,
        qos=1,
        retained=True,
        max_bytes=1152,
        about="birth, last will and leave of a gateway",
    ),
    TopicSpec(
        direction=Direction.UP,
        channel=Channel.ANSWER,
        # An acknowledgement of the broker's would say nothing that counts: the coordinator's receipt does.
        qos=0,
        retained=False,
        max_bytes=_CHUNK_MESSAGE,
        about="update or decline: the answer to a plan",
    ),
    TopicSpec(
        direction=Direction.UP,
        channel=Channel.STATISTICS,
        qos=1,
        retained=False,
        max_bytes=_CHUNK_MESSAGE,
        about="the answer to a statistics round; it has no receipt, and is not sent again",
    ),
    TopicSpec(
        direction=Direction.UP,
        channel=Channel.ASK,
        qos=1,
        retained=False,
        max_bytes=4096,
        about="asks for a verdict, a model or missing chunks",
    ),
    TopicSpec(
        direction=Direction.UP,
        channel=Channel.CHUNK,
        qos=1,
        retained=False,
        max_bytes=_CHUNK_MESSAGE,
        about="a piece of an answer too large for one message",
    ),
    TopicSpec(
        direction=Direction.UP,
        channel=Channel.TRIAL,
        qos=1,
        retained=False,
        max_bytes=256,
        about="how a released version did beside the one in service",
    ),
    TopicSpec(
        direction=Direction.UP,
        channel=Channel.CONDITION,
        qos=1,
        retained=False,
        max_bytes=16 * 1024,
        about="how a gateway's machines are, its alerts and what is normal, where it has a watch",
    ),
    TopicSpec(
        direction=Direction.CMD,
        channel=Channel.WELCOME,
        qos=1,
        retained=False,
        max_bytes=_CHUNK_MESSAGE,
        about="answer to a birth: coordinator's time, task, lineage, scaler, current plan",
    ),
    TopicSpec(
        direction=Direction.CMD,
        channel=Channel.RECEIPT,
        qos=1,
        retained=False,
        max_bytes=4096,
        about="verdict on an answer, or a request for its missing chunks",
    ),
    TopicSpec(
        direction=Direction.CMD,
        channel=Channel.CHUNK,
        qos=1,
        retained=False,
        max_bytes=_CHUNK_MESSAGE,
        about="a piece that this gateway asked for again",
    ),
    TopicSpec(
        direction=Direction.CMD,
        channel=Channel.CONDITION,
        qos=1,
        retained=False,
        max_bytes=16 * 1024,
        about="what is on record of its machines, orders for its alerts, and the fleet's limits",
    ),
    TopicSpec(
        direction=Direction.DOWN,
        channel=Channel.PLAN,
        qos=1,
        retained=False,
        max_bytes=_CHUNK_MESSAGE,
        about="the round's plan, with the last round's delta of the model",
    ),
    TopicSpec(
        direction=Direction.DOWN,
        channel=Channel.CHUNK,
        qos=1,
        retained=False,
        max_bytes=_CHUNK_MESSAGE,
        about="a piece of a delta too large for a plan",
    ),
    TopicSpec(
        direction=Direction.DOWN,
        channel=Channel.MODEL,
        qos=1,
        retained=False,
        max_bytes=_CHUNK_MESSAGE,
        about="catch-up or a task's bundle, published once for all who asked; subscribed only while waiting for it",
    ),
    TopicSpec(
        direction=Direction.DOWN,
        channel=Channel.REPORT,
        qos=0,
        retained=True,
        max_bytes=4096,
        about="the last closed round as JSON, for people's tools (Telegraf, Node-RED); gateways do not subscribe",
    ),
    TopicSpec(
        direction=Direction.DOWN,
        channel=Channel.FLEET,
        qos=0,
        retained=True,
        max_bytes=4096,
        about="how the fleet stands as JSON, for people's tools, where the coordinator is set to tell it",
    ),
)


_ROWS = {(row.direction, row.channel): row for row in TABLE}


def spec(direction: Direction, channel: Channel) -> TopicSpec:
    """The row of the table; raises KeyError for a pair that does not exist."""
    row = _ROWS.get((direction, channel))
    if row is None:
        raise KeyError(f"no topic {direction.value}/…/{channel.value}")
    return row


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A parsed topic. `gateway` is None for what is broadcast."""

    federation: str
    spec: TopicSpec
    gateway: str | None

    @property
    def channel(self) -> Channel:
        return self.spec.channel

    @property
    def direction(self) -> Direction:
        return self.spec.direction


def check_name(name: str, what: str = "name") -> str:
    """`name` if it may stand in a topic and in a certificate's CN; raises ValueError otherwise."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r}: expected 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    return name


@lru_cache(maxsize=_KNOWN_TOPICS)
def topic(federation: str, direction: Direction, channel: Channel, gateway: str | None = None) -> str:
    """The topic's text. Raises KeyError for a pair that is not in the table, ValueError for a bad name."""
    spec(direction, channel)
    check_name(federation, "federation")
    if (gateway is None) != (direction is Direction.DOWN):
        raise ValueError(f"{direction.value}/{channel.value} {'has no' if gateway else 'needs a'} gateway")
    if gateway is None:
        return f"{ROOT}/{federation}/{direction.value}/{channel.value}"
    return f"{ROOT}/{federation}/{direction.value}/{check_name(gateway, 'gateway')}/{channel.value}"


@lru_cache(maxsize=_KNOWN_TOPICS)
def parse(text: str) -> Topic:
    """The parts of a topic; raises ValueError for one that is not in the table."""
    parts = text.split("/")
    try:
        if "/".join(parts[:2]) != ROOT:
            raise ValueError(f"does not begin with {ROOT}")
        direction = Direction(parts[3])
        gateway = None if direction is Direction.DOWN else check_name(parts[4], "gateway")
        (channel,) = parts[4:] if gateway is None else parts[5:]
        return Topic(
            federation=check_name(parts[2], "federation"),
            spec=spec(direction, Channel(channel)),
            gateway=gateway,
        )
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"not a topic of ours: {text[:120]!r} ({error})") from None


def gateway_filters(federation: str, gateway: str) -> tuple[str, ...]:
    """What a gateway subscribes to for as long as it runs. Few and short: each is paid for at every join."""
    return (
        f"{ROOT}/{check_name(federation, 'federation')}/cmd/{check_name(gateway, 'gateway')}/+",
        topic(federation, Direction.DOWN, Channel.PLAN),
        topic(federation, Direction.DOWN, Channel.CHUNK),
    )


def coordinator_filters(federation: str) -> tuple[str, ...]:
    """What the coordinator subscribes to."""
    return (f"{ROOT}/{check_name(federation, 'federation')}/up/+/+",)
