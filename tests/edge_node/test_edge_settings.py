from __future__ import annotations

from pathlib import Path

import pytest
from fedmq_edge_node.gates import Limits
from fedmq_edge_node.settings import GatewaySettings
from fedmq_protocol.settings import SettingsError, document, load

EXAMPLE = Path(__file__).parents[2] / "edge_node" / "gateway.example.toml"


def test_the_example_file_is_what_is_rendered() -> None:
    assert EXAMPLE.read_text() == document(GatewaySettings)


def test_the_example_file_loads_to_the_defaults() -> None:
    assert load(GatewaySettings, EXAMPLE) == GatewaySettings(
        name="gateway-1", data_dir=Path("/var/lib/fedmq/data"), state_dir=Path("/var/lib/fedmq/gateway")
    )


def test_a_gateway_learns_from_a_folder_or_from_a_bridge_and_says_which() -> None:
    with pytest.raises(SettingsError, match=r"bridge\.store: expected this or data_dir, got both"):
        load(GatewaySettings, EXAMPLE, ["bridge.store=/var/lib/fedmq/bridge.sqlite"])
    with pytest.raises(SettingsError, match=r"data_dir: missing; expected a path to a folder of recordings, or bridge"):
        load(GatewaySettings, EXAMPLE, ["data_dir="])
    settings = load(GatewaySettings, EXAMPLE, ["data_dir=", "bridge.store=/var/lib/fedmq/bridge.sqlite"])
    assert (settings.data_dir, settings.bridge.fresh_seconds) == (None, 300.0)


def test_a_gateway_name_that_cannot_stand_in_a_topic_is_a_mistake() -> None:
    with pytest.raises(SettingsError, match=r"^name: expected 1 to 63 letters.* got \"a/b\""):
        load(GatewaySettings, EXAMPLE, ["name=a/b"])


def test_limits_come_from_the_gates_table() -> None:
    settings = load(GatewaySettings, EXAMPLE, ["gates.hours=22:00-06:00,12:00-13:00", "gates.require=battery"])
    assert settings.gates == Limits(hours=("22:00-06:00", "12:00-13:00"), require=("battery",))


@pytest.mark.parametrize("span", ["22-06", "24:00-06:00", "22:00-24:01", "22:60-23:00", "10:00-10:00", "22:00-06:00\n"])
def test_a_time_span_that_is_none_is_a_mistake(span: str) -> None:
    with pytest.raises(SettingsError, match=r"^hours: expected "):
        Limits(hours=(span,))
