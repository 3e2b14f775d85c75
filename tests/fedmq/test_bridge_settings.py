"""What a bridge's settings may say, and times and labels as people write them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from fedmq_protocol.settings import SettingsError, document, load

from fedmq.bridge.mqtt import LabelMessage, read_label
from fedmq.bridge.ports import LabelledPort, parse_ports
from fedmq.bridge.settings import BridgeSettings, ColumnSettings
from fedmq.bridge.times import parse_time
from fedmq.data import DataError
from fedmq.demo import DemoError, DemoOptions, run

EXAMPLE = Path(__file__).parents[2] / "firmware_bridge" / "bridge.example.toml"
CET = timezone(timedelta(hours=1))
NOW = datetime(2026, 11, 29, 10, 30, tzinfo=CET)


def test_the_example_file_is_what_is_rendered() -> None:
    assert EXAMPLE.read_text() == document(BridgeSettings)


def test_the_example_file_loads_with_one_port() -> None:
    (port,) = load(BridgeSettings, EXAMPLE).port
    assert (port.name, port.baud, port.kind, port.machine) == ("motor", 921_600, "native", None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[port]]\nname = "a"\nport = "x"\n[[port]]\nname = "a"\nport = "y"', '"a" is the name of more than one'),
        ('[[port]]\nname = "a"\nport = "x"\n[[port]]\nname = "b"\nport = "x"', '"x" is named twice'),
        ('[[port]]\nname = "a"\nport = "x"\nkind = "csv"', 'required for the kind "csv"'),
        ('[[port]]\nname = "a"\nport = "x"\nkeep_every_seconds = 60', "port[1].keep_seconds: expected more than 0"),
        ('[[topic]]\nname = "a"\ntopic = "zigbee2mqtt/#"', "topic[1].topic: expected a text"),
        ('[[port]]\nname = "mqtt"\nport = "x"', '"mqtt" is what the topics together are called'),
        ("[mqtt]\npassword_file = 'x'", "mqtt.username: required where there is a password_file"),
    ],
)
def test_what_does_not_add_up_is_told(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text('store = "b.sqlite"\n' + text)
    with pytest.raises(SettingsError) as caught:
        load(BridgeSettings, path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"columns": ("x",), "time": "t"}, "time"),
        ({"columns": ("n",), "sequence": "n"}, "columns"),
        ({"columns": ("x", "x")}, "columns"),
        ({"columns": ("x", "y", "z"), "units": ("g", "g")}, "units"),
    ],
)
def test_columns_that_do_not_add_up_are_told(values: dict[str, object], key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ColumnSettings(**values)  # type: ignore[arg-type]
    assert [mistake.key for mistake in caught.value.mistakes] == [key]


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("now", NOW),
        ("90m", NOW - timedelta(minutes=90)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("08:00", NOW.replace(hour=8, minute=0)),
        ("2026-11-29T08:00:00+00:00", NOW.replace(hour=9, minute=0)),
        ("2026-11-29 08:00+01:00", NOW.replace(hour=8, minute=0)),
    ],
)
def test_times_are_read_as_people_write_them(text: str, at: datetime) -> None:
    assert parse_time(text, NOW) == at.timestamp()


@pytest.mark.parametrize("text", ["", "yesterday", "25:00", "-5m", "2026-13-01", "9999999d"])
def test_what_is_no_time_is_told_with_what_would_be_one(text: str) -> None:
    with pytest.raises(ValueError, match="expected a time such as"):
        parse_time(text, NOW)


def test_a_label_by_message_holds_times_as_text_or_as_numbers() -> None:
    payload = b'{"machine": "pump-3", "from": 1000.5, "to": "2026-11-29T08:00+01:00", "label": "ball"}'
    assert read_label(payload, NOW) == LabelMessage(
        machine="pump-3", from_at=1000.5, to_at=NOW.replace(hour=8, minute=0).timestamp(), label="ball"
    )


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"[]", b"[" * 900, b'{"machine": "m"}', b"\xff", b" " * 2000),
        b'{"machine": 1, "from": 1, "to": 2, "label": "x"}',
        b'{"machine": "m", "from": true, "to": 2, "label": "x"}',
        b'{"machine": "m", "from": "then", "to": 2, "label": "x"}',
    ],
)
def test_a_message_that_is_no_label_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_label(payload, NOW)


def test_a_demos_ports_are_named_in_order_with_their_labels() -> None:
    assert parse_ports("serial:normal=/tmp/a,ball=tcp://b:1") == (
        LabelledPort(name="port-1", port="/tmp/a", label="normal"),
        LabelledPort(name="port-2", port="tcp://b:1", label="ball"),
    )
    assert parse_ports("serial:/tmp/a") == (LabelledPort(name="port-1", port="/tmp/a", label=None),)


@pytest.mark.parametrize("text", ["serial:", "serial:=x", "serial:a=", "serial:a=x,y", "serial:x,"])
def test_ports_that_do_not_add_up_are_told(text: str) -> None:
    with pytest.raises(DataError, match="--data serial:"):
        parse_ports(text)


def test_a_demo_says_at_once_what_it_cannot_learn_from() -> None:
    with pytest.raises(DemoError, match="only --model autoencoder learns from signal without labels"):
        run(DemoOptions(data="serial:/tmp/nowhere.sock"))
