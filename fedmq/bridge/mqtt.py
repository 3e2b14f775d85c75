"""The local broker as a source: topics as sensors, and labels by message. Not the federation's broker, though it may be
the same program.

A topic's message is one sample: a JSON object such as Zigbee2MQTT publishes, or a bare number as ESPHome does. A
retained message is as old as nobody knows, and is passed over.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from fedmq_firmware_bridge.lines import MAX_LINE, Rows, read_json
from fedmq_firmware_bridge.sources import Emit, Heard, LineReport
from fedmq_firmware_bridge.store import SensorInfo, StoreError
from fedmq_protocol.session import Connected, ConnectFailed, Denied, Disconnected, Received, Session

from fedmq.bridge.times import parse_time

__all__ = ["SOURCE", "LabelMessage", "Topic", "Topics", "read_label"]

log = logging.getLogger("fedmq.bridge")

SOURCE = "mqtt"
"""What the source is called; no port may be."""
WAIT_SECONDS = 0.25
MAX_LABEL_BYTES = 1024


@dataclass(kw_only=True)
class Topic:
    """One sensor."""

    topic: str
    sensor: SensorInfo
    rows: Rows


@dataclass(frozen=True, kw_only=True)
class LabelMessage:
    machine: str
    from_at: float
    to_at: float
    label: str


def read_label(payload: bytes, now: datetime) -> LabelMessage:
    """`{"machine": …, "from": …, "to": …, "label": …}`; times as text, or as Unix seconds. Raises ValueError."""
    if len(payload) > MAX_LABEL_BYTES:
        raise ValueError(f"label: at most {MAX_LABEL_BYTES} bytes expected, {len(payload)} came")
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        raise ValueError("label: expected a JSON object") from None
    keys = {"machine", "from", "to", "label"}
    if not isinstance(value, dict) or value.keys() != keys:
        raise ValueError(f"label: expected an object with the keys {', '.join(sorted(keys))}")
    if not isinstance(value["machine"], str) or not isinstance(value["label"], str):
        raise ValueError("label: expected machine and label as text")

    def at(key: str) -> float:
        time_of = value[key]
        if isinstance(time_of, int | float) and not isinstance(time_of, bool) and 0 <= time_of < 1e11:
            return float(time_of)
        if isinstance(time_of, str):
            return parse_time(time_of, now)
        raise ValueError(f"label: expected {key} as text or as Unix seconds")

    return LabelMessage(machine=value["machine"], from_at=at("from"), to_at=at("to"), label=value["label"])


@dataclass(kw_only=True)
class Topics:
    """A `Source`."""

    session: Session
    topics: Mapping[str, Topic]
    """By their topics."""
    label_topic: str | None = None
    on_label: Callable[[LabelMessage], None] = lambda label: None
    name: str = SOURCE
    _connected: bool = False
    _problem: str = "not connected yet"
    _opened: int = 0
    _bytes: int = 0
    _malformed: int = 0
    _now: Callable[[], datetime] = field(default=lambda: datetime.now().astimezone())

    def run(self, emit: Emit, stop: threading.Event) -> None:
        self.session.subscribe(*self.topics, *((self.label_topic,) if self.label_topic else ()))
        self.session.start()
        while not stop.is_set():
            match self.session.next(WAIT_SECONDS):
                case Connected():
                    self._connected, self._problem = True, ""
                    self._opened += 1
                case Disconnected() | ConnectFailed() as event:
                    self._connected, self._problem = False, event.reason
                    log.warning("local broker: %s", event.reason)
                case Denied() as event:
                    log.error("the local broker denies %s: %s", event.topic, event.reason)
                case Received() as event if event.topic == self.label_topic:
                    self._label(event.payload)
                case Received() as event if event.topic in self.topics and not event.retained:
                    heard = self._take(self.topics[event.topic], event.payload, time.monotonic())
                    if heard:
                        emit(heard)
        self.session.stop(flush_seconds=1.0)

    def report(self) -> LineReport:
        return LineReport(
            connected=self._connected,
            problem=self._problem,
            opened=self._opened,
            bytes=self._bytes,
            malformed=self._malformed,
            sensors={topic.sensor.number: topic.rows.counts for topic in self.topics.values()},
        )

    def _take(self, topic: Topic, payload: bytes, received_at: float) -> list[Heard]:
        self._bytes += len(payload)
        try:
            if len(payload) > MAX_LINE:
                raise ValueError(f"at most {MAX_LINE} bytes expected")
            row = read_json(payload.decode("utf-8"), topic.rows.columns)
        except ValueError:
            # Such as Zigbee2MQTT's message that only the battery has changed: no sample, and none is missing.
            self._malformed += 1
            return []
        topic.rows.take(row, received_at)
        return [Heard(sensor=topic.sensor, stretch=stretch) for stretch in topic.rows.drain()]

    def _label(self, payload: bytes) -> None:
        try:
            self.on_label(read_label(payload, self._now()))
        except (ValueError, StoreError) as error:
            log.error("%s", error)
