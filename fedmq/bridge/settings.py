"""The settings of a bridge. `firmware_bridge/bridge.example.toml` is rendered from them: `document(BridgeSettings)`.

Owns which knobs a bridge has. They stand here and not in its package, which is a leaf and knows no settings files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from fedmq_firmware_bridge.polling import ModbusLine
from fedmq_firmware_bridge.tables import TableError, build
from fedmq_protocol.observing import MetricsSettings
from fedmq_protocol.settings import Table
from msgspec import Meta

__all__ = [
    "BridgeSettings",
    "BrokerSettings",
    "ColumnSettings",
    "ModbusDeviceSettings",
    "ModbusSettings",
    "PortSettings",
    "SensorSettings",
    "TopicSettings",
]

_NAME = Meta(
    pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z",
    extra={"expected": "1 to 63 letters, digits, '.', '_' or '-'"},
)
_MACHINE = Meta(min_length=1, max_length=64)
_COLUMN = Annotated[str, Meta(min_length=1, max_length=64)]


@dataclass(frozen=True, kw_only=True)
class ColumnSettings(Table):
    """What one line or message holds."""

    columns: Annotated[
        tuple[_COLUMN, ...],
        Meta(
            max_length=64,
            description="What a line holds: for CSV every column in order, '-' for one that is not wanted; for JSON the"
            " wanted keys, with dots into objects within objects (accel.x). Empty: a bare number.",
        ),
    ] = ()
    units: Annotated[
        tuple[Annotated[str, Meta(max_length=8)], ...],
        Meta(
            max_length=16,
            description="Unit of each channel, or one for all, such as m/s2 or g. An acceleration in m/s2 or mg is"
            " learnt from in g.",
        ),
    ] = ()
    rate_hz: Annotated[
        float,
        Meta(
            gt=0,
            le=1e6,
            description="Samples a second, as promised. 0.0166 is one a minute. A silence of three samples, and of two"
            " seconds at least, is a gap where neither time nor sequence is told.",
        ),
    ] = 1.0
    time: Annotated[
        str | None,
        Meta(max_length=64, examples=["t"], description="The column with the sensor's own clock, where it has one."),
    ] = None
    time_unit: Annotated[Literal["s", "ms", "us"], Meta(description="What that clock counts.")] = "ms"
    sequence: Annotated[
        str | None,
        Meta(
            max_length=64,
            examples=["n"],
            description="The column with a number that counts up by one. With it losses are counted exactly.",
        ),
    ] = None

    def check(self) -> Iterator[tuple[str, str]]:
        channels = [name for name in self.columns if name not in (self.time, self.sequence, "-")]
        for key in ("time", "sequence"):
            name = getattr(self, key)
            if name is not None and name not in self.columns:
                yield key, f'expected one of the columns, got "{name}"'
        if self.columns and not 1 <= len(channels) <= 16:
            yield "columns", f"expected 1 to 16 channels beside time and sequence, got {len(channels)}"
        if len(set(channels)) != len(channels):
            yield "columns", "expected every name once"
        if len(self.units) not in (0, 1, max(1, len(channels))):
            yield "units", f"expected one, or one for each of {max(1, len(channels))} channels, got {len(self.units)}"


@dataclass(frozen=True, kw_only=True)
class SensorSettings(Table):
    """A sensor that sits on another machine than its port says: several may share one line."""

    number: Annotated[int, Meta(ge=0, le=0xFFFF, examples=[2], description="Its number on the line.")]
    machine: Annotated[str, _MACHINE, Meta(examples=["pump-4"], description="The machine that it sits on.")]


@dataclass(frozen=True, kw_only=True)
class PortSettings(Table):
    """A serial port, and what is spoken on it. `fedmq bridge probe` finds both, and writes these lines."""

    name: Annotated[str, _NAME, Meta(examples=["motor"], description="What the port is called; no two are alike.")]
    port: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=512,
            examples=["/dev/serial/by-id/usb-FTDI_FT232R_USB_UART_A10KZP45-if00-port0"],
            description="The device, best by its stable name under /dev/serial/by-id; a Unix socket; or tcp://HOST:PORT"
            " or rfc2217://HOST:PORT of a serial server.",
        ),
    ]
    baud: Annotated[int, Meta(ge=300, le=12_000_000, description="Bits a second on the line.")] = 921_600
    kind: Annotated[
        Literal["native", "csv", "json"],
        Meta(description='What is spoken: "native" is the stream of docs/frames.md, the others are lines of text.'),
    ] = "native"
    machine: Annotated[
        str | None,
        _MACHINE,
        Meta(examples=["pump-3"], description="The machine that the sensors sit on. Labels name it; else the port's."),
    ] = None
    clips_at: Annotated[
        int,
        Meta(
            ge=1,
            le=32_767,
            description="Steps at which the sensor's scale ends, either way: 4095 for an ADXL345 at 16 g. Samples there"
            " are counted as clipped.",
        ),
    ] = 32_767
    keep_seconds: Annotated[
        float,
        Meta(ge=0, le=86_400, description="How much is kept of each keep_every_seconds, where not all is to be."),
    ] = 0.0
    keep_every_seconds: Annotated[
        float, Meta(ge=0, le=86_400, description="0 keeps all. 600, with keep_seconds = 30, keeps a twentieth.")
    ] = 0.0
    line: Annotated[
        ColumnSettings, Meta(description='For the kinds "csv" and "json": what one line holds, and how often it comes.')
    ] = field(default_factory=ColumnSettings)
    sensor: Annotated[
        tuple[SensorSettings, ...],
        Meta(max_length=64, description="A sensor that sits on another machine than its port says."),
    ] = ()

    def check(self) -> Iterator[tuple[str, str]]:
        if self.keep_every_seconds and not 0 < self.keep_seconds <= self.keep_every_seconds:
            yield "keep_seconds", f"expected more than 0 and at most {self.keep_every_seconds:g}"
        if self.kind != "native" and not self.line.columns:
            yield "line.columns", f'required for the kind "{self.kind}"'


@dataclass(frozen=True, kw_only=True)
class ModbusDeviceSettings(Table):
    """A sensor on a Modbus line."""

    address: Annotated[int, Meta(ge=1, le=247, examples=[80], description="Its address on the line.")]
    map: Annotated[
        Path,
        Meta(
            examples=["witmotion-wtvb01-485"],
            description="What its registers mean: a map that comes with fedmq, or a .toml file of your own.",
        ),
    ]
    machine: Annotated[str, _MACHINE, Meta(examples=["pump-3"], description="The machine that it sits on.")]

    @property
    def map_name(self) -> str:
        # Relative paths were placed beside the settings file, and a name alone is no path.
        return str(self.map) if self.map.suffix == ".toml" else self.map.name


@dataclass(frozen=True, kw_only=True)
class ModbusSettings(Table):
    """A line of Modbus RTU with one sensor or many, which the bridge asks in turn. See docs/modbus.md."""

    name: Annotated[str, _NAME, Meta(description="What the line is called; no two are alike.")] = "modbus"
    port: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=512,
            examples=["/dev/serial/by-id/usb-FTDI_USB-RS485_Cable_FT4X1A2B-if00-port0"],
            description="The device, best by its stable name under /dev/serial/by-id.",
        ),
    ]
    baud: Annotated[int, Meta(ge=1_200, le=1_000_000, description="Bits a second; the same for all on the line.")] = (
        19_200
    )
    parity: Annotated[Literal["N", "E", "O"], Meta(description="None, even or odd.")] = "N"
    stop_bits: Annotated[int, Meta(ge=1, le=2, description="1 or 2.")] = 1
    timeout_seconds: Annotated[
        float,
        Meta(
            ge=0.005,
            le=10,
            description="From a request until its answer must be whole. A longer one makes missing sensors dearer.",
        ),
    ] = 0.2
    local_echo: Annotated[bool, Meta(description="Whether the adapter hears what it says itself.")] = False
    device: Annotated[
        tuple[ModbusDeviceSettings, ...],
        Meta(max_length=247, description="A sensor on the line; one such table for each."),
    ] = ()

    def line(self) -> ModbusLine:
        """Raises TableError with every mistake in maps, and between timeout, baud and periods."""
        document = {field.name: getattr(self, field.name) for field in fields(self)}
        document["device"] = [
            {"address": device.address, "map": device.map_name, "machine": device.machine} for device in self.device
        ]
        return build(ModbusLine, document)

    def check(self) -> Iterator[tuple[str, str]]:
        try:
            self.line()
        except TableError as error:
            yield from error.mistakes


@dataclass(frozen=True, kw_only=True)
class TopicSettings(Table):
    """A topic of the local broker as a sensor, as Zigbee2MQTT or ESPHome publish it: a JSON object or a bare number."""

    name: Annotated[str, _NAME, Meta(examples=["hall"], description="What the sensor is called; no two are alike.")]
    topic: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=512,
            pattern=r"^[^#+]*\Z",
            examples=["zigbee2mqtt/hall-temperature"],
            description="The topic, whole: a wildcard would mix sensors.",
        ),
    ]
    machine: Annotated[
        str | None, _MACHINE, Meta(examples=["pump-3"], description="The machine that it watches; else its own name.")
    ] = None
    message: Annotated[ColumnSettings, Meta(description="What one message holds, and how often one comes.")] = field(
        default_factory=ColumnSettings
    )


@dataclass(frozen=True, kw_only=True)
class BrokerSettings(Table):
    """The local broker, for topics as sensors and for labels by message. Not used where there is neither."""

    host: Annotated[str, Meta(min_length=1, max_length=253, description="Host name or address.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65_535, description="Its port.")] = 1883
    username: Annotated[
        str | None, Meta(min_length=1, max_length=256, examples=["bridge"], description="Where it asks for one.")
    ] = None
    password_file: Annotated[
        Path | None,
        Meta(
            examples=["secrets/broker-password"],
            extra={"credential": True},
            description="File whose first line is the password, which only this program's user may read (chmod 600).",
        ),
    ] = None
    label_topic: Annotated[
        str | None,
        Meta(
            max_length=512,
            pattern=r"^[^#+]*\Z",
            examples=["plant/labels"],
            description='Topic of labels: JSON such as {"machine": "pump-3", "from": "2026-11-29T08:00:00+01:00",'
            ' "to": "2026-11-29T09:30:00+01:00", "label": "inner-race"}.',
        ),
    ] = None

    def check(self) -> Iterator[tuple[str, str]]:
        if self.password_file is not None and self.username is None:
            yield "username", "required where there is a password_file"


@dataclass(frozen=True, kw_only=True)
class BridgeSettings(Table):
    """Settings of a bridge to sensors. Start it with: fedmq bridge run --config FILE"""

    store: Annotated[
        Path,
        Meta(
            examples=["/var/lib/fedmq/bridge.sqlite"],
            description="File that keeps what sensors say: the bridge writes it, gateways learn from it.",
        ),
    ]
    max_bytes: Annotated[
        int,
        Meta(
            ge=1 << 20,
            description="Bytes of samples that are kept; then the oldest go, labelled ones last. Three axes at 3.2 kHz"
            " are 1.7 GB a day. The file is a little larger, and does not shrink.",
        ),
    ] = 2_000_000_000
    flush_seconds: Annotated[
        float,
        Meta(
            ge=0.1,
            le=3600,
            description="Seconds from one write to the disk to the next. A power cut costs that much at most; an SD"
            " card lasts the longer, the fewer they are.",
        ),
    ] = 30.0
    flush_bytes: Annotated[
        int, Meta(ge=4096, le=1 << 30, description="Bytes of samples that gather in memory before they are written.")
    ] = 4_000_000
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least grave message that is logged.")
    ] = "info"
    log_format: Annotated[
        Literal["console", "json"] | None,
        Meta(
            examples=["json"],
            description='How log lines look: "console" for people, "json" an object a line, for programs. Without it'
            " the environment variable FEDMQ_LOG_FORMAT says so, else it is console.",
        ),
    ] = None
    mqtt: BrokerSettings = field(default_factory=BrokerSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    port: Annotated[
        tuple[PortSettings, ...],
        Meta(
            max_length=64,
            description="A port, and what is spoken on it; one such table for each. `fedmq bridge probe` finds both.",
            extra={"stated": True},
        ),
    ] = ()
    modbus: Annotated[
        tuple[ModbusSettings, ...],
        Meta(max_length=64, description="A line of Modbus RTU, which is asked; one such table for each."),
    ] = ()
    topic: Annotated[
        tuple[TopicSettings, ...],
        Meta(max_length=64, description="A topic of the local broker as a sensor; one such table for each."),
    ] = ()

    def check(self) -> Iterator[tuple[str, str]]:
        ports: tuple[PortSettings | ModbusSettings, ...] = (*self.port, *self.modbus)
        names = [port.name for port in ports] + [topic.name for topic in self.topic]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield "port", f'"{name}" is the name of more than one port, line or topic'
        if "mqtt" in names:
            yield "port", '"mqtt" is what the topics together are called: take another name'
        urls = [port.port for port in ports]
        for url in sorted({url for url in urls if urls.count(url) > 1}):
            yield "port", f'"{url}" is named twice'
