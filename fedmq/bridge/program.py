"""Settings to a bridge: the one place where it is put together from its parts."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fedmq_firmware_bridge.lines import Columns, Rows, TextLine
from fedmq_firmware_bridge.polled import PolledLine
from fedmq_firmware_bridge.port import Port
from fedmq_firmware_bridge.service import Bridge, Keeping
from fedmq_firmware_bridge.sources import Native, Source, Talk
from fedmq_firmware_bridge.store import Recorder, SensorInfo, Store, StoreError
from fedmq_protocol.state import DATABASE, PlaceError, check_place

from fedmq.bridge.settings import BridgeSettings, ColumnSettings, PortSettings

if TYPE_CHECKING:
    from fedmq.bridge.mqtt import LabelMessage

__all__ = ["build_bridge", "check_store"]


def build_bridge(settings: BridgeSettings) -> Bridge:
    """A bridge, not running yet. Raises ValueError for a store that cannot be used, or nothing to hear."""
    if not (settings.port or settings.modbus or settings.topic):
        raise ValueError(
            "expected a [[port]], a [[modbus]] or a [[topic]] in the settings, got none: see fedmq bridge run --help"
        )
    check_store(settings.store)
    recorder = Recorder(
        settings.store,
        max_bytes=settings.max_bytes,
        opened_at=time.time(),
        flush_seconds=settings.flush_seconds,
        flush_bytes=settings.flush_bytes,
    )
    sources: list[Source] = [Port(port.name, port.port, _talk(port), baud=port.baud) for port in settings.port]
    sources += [PolledLine(line.line()) for line in settings.modbus]
    if settings.topic or settings.mqtt.label_topic is not None:
        sources.append(_topics(settings))
    return Bridge(
        sources=sources,
        recorder=recorder,
        flush_seconds=settings.flush_seconds,
        flush_bytes=settings.flush_bytes,
        keeping={
            port.name: Keeping(seconds=port.keep_seconds, every_seconds=port.keep_every_seconds, clips_at=port.clips_at)
            for port in settings.port
        },
    )


def check_store(store: Path) -> None:
    """What bridge and labels write to is no link elsewhere, and lies where others do not write. Raises StoreError.

    It stands here, for the bridge's own package is a leaf, and does not know the rule.
    """
    try:
        check_place(store, (*DATABASE, ".new", ".lock"))
    except PlaceError as error:
        raise StoreError(str(error)) from error


def _talk(port: PortSettings) -> Talk:
    machine = port.machine or port.name
    if port.kind == "native":
        return Native(
            source=port.name, machine=machine, machines={sensor.number: sensor.machine for sensor in port.sensor}
        )
    columns = _columns(port.line)
    info = SensorInfo(source=port.name, number=0, name=port.name, machine=machine, channels=columns.channels)
    return TextLine(sensor=info, kind=port.kind, rows=Rows(columns=columns))


def _topics(settings: BridgeSettings) -> Source:
    from fedmq_protocol.session import Connection, MqttSession
    from fedmq_protocol.settings import ConnectionSettings

    from fedmq.bridge.mqtt import SOURCE, Topic, Topics

    broker = settings.mqtt
    password = ConnectionSettings(username=broker.username, password_file=broker.password_file).password()
    session = MqttSession(
        Connection(
            host=broker.host,
            port=broker.port,
            client_id=f"fedmq-bridge-{os.urandom(4).hex()}",
            username=broker.username,
            password=password,
            session_expiry_seconds=0,
        )
    )
    topics = {}
    for number, topic in enumerate(settings.topic):
        columns = _columns(topic.message)
        sensor = SensorInfo(
            source=SOURCE,
            number=number,
            name=topic.name,
            machine=topic.machine or topic.name,
            channels=columns.channels,
        )
        topics[topic.topic] = Topic(topic=topic.topic, sensor=sensor, rows=Rows(columns=columns))
    store = Store(settings.store)

    def note(message: LabelMessage) -> None:
        store.label(message.machine, message.from_at, message.to_at, message.label, noted_at=time.time())

    return Topics(session=session, topics=topics, label_topic=broker.label_topic, on_label=note)


def _columns(settings: ColumnSettings) -> Columns:
    return Columns(
        names=settings.columns,
        units=settings.units,
        rate_hz=settings.rate_hz,
        time=settings.time,
        time_unit=settings.time_unit,
        sequence=settings.sequence,
    )
