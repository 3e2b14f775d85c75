"""A password goes to the broker and nowhere else: no log, argument, report, state or message holds it."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
from fedmq_coordinator.settings import CoordinatorSettings
from fedmq_edge_node.settings import GatewaySettings
from fedmq_protocol.session import Connection
from fedmq_protocol.settings import ConnectionSettings, SettingsError, Table, load
from processes import Site, fedmq, small_fleet
from scripted_broker import CONNACK_5, ScriptedBroker, hold

from fedmq.programs import connection_of

SECRET = "correct-horse-battery-staple"


@pytest.mark.slow
def test_a_password_reaches_the_broker_and_nothing_else(tmp_path: Path) -> None:
    password = tmp_path / "secrets" / "password"
    password.parent.mkdir()
    password.write_text(SECRET + "\n")
    password.chmod(0o600)
    asked: list[bytes] = []

    def script(connection: socket.socket, first: bytes) -> None:
        asked.append(first)
        if len(asked) % 3 == 1:
            connection.sendall(bytes.fromhex("2003008600"))  # bad user name or password: the log tells of it
        elif len(asked) % 3 == 2:
            connection.sendall(CONNACK_5 + b"\xff\xff\xff\xff\xff")  # what comes then is no MQTT
        else:
            connection.sendall(CONNACK_5)
            connection.settimeout(0.5)
            hold(connection)

    own = {
        "log_level": "debug",
        "connection.username": "plant-user",
        "connection.password_file": str(password),
        "connection.reconnect_min_seconds": 0.05,
        "connection.reconnect_max_seconds": 0.1,
    }
    site_folder = tmp_path / "site"
    site_folder.mkdir()
    with (
        ScriptedBroker(script) as broker,
        Site(site_folder, small_fleet(2), port=broker.port, coordinator=own, gateway=own) as site,
    ):
        site.start()
        name = site.names[0]
        site.poll(
            lambda: all("refused" in program.text() for program in site.programs.values()),
            "every program to hear the broker's refusal",
        )
        for program in site.programs.values():
            started_with = Path(f"/proc/{program.pid}/cmdline").read_bytes()
            started_with += Path(f"/proc/{program.pid}/environ").read_bytes()
            assert b"fedmq" in started_with
            assert SECRET.encode() not in started_with
        shown = fedmq("gateway", "--config", str(site_folder / "gateways" / name / "gateway.toml"), "--show")
        page = site_folder / "report.html"
        said = [
            shown,
            fedmq("report", "--state", str(site.state), "--json"),
            fedmq("report", "--state", str(site.state), "--html", str(page)),
            fedmq("status", "--control", str(site.state / "control.sock")),
            fedmq("task", "pause", site.fleet.name, "--state", str(site.state)),
        ]
        for program in site.programs.values():
            program.signal(signal.SIGTERM)
        said.append(fedmq("audit", "show", "--state", str(site.state)))
        assert [one.returncode for one in said] == [0] * len(said), [one.stderr for one in said]
        logs = [program.text() for program in site.programs.values()]

    assert sum(SECRET.encode() in first for first in asked) == len(asked), "it was given to the broker"
    texts = [*logs, *(one.stdout + one.stderr for one in said)]
    assert not [text for text in texts if SECRET in text]
    files = [path for path in site_folder.rglob("*") if path.is_file()]
    assert {"ledger.sqlite", "gateway.sqlite", "audit.log", "report.html"} <= {path.name for path in files}
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("kind", [CoordinatorSettings, GatewaySettings])
@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (0o644, SECRET),
        (0o600, SECRET * 1000),
        (0o600, f"\n{SECRET}"),
    ],
)
def test_a_password_file_that_is_refused_is_not_quoted(tmp_path: Path, kind: type[Table], mode: int, text: str) -> None:
    password = tmp_path / "password"
    password.write_text(text)
    password.chmod(mode)
    config = tmp_path / "program.toml"
    own = '[task]\nname = "t"\nclasses = ["a", "b"]' if kind is CoordinatorSettings else f'data_dir = "{tmp_path}"'
    config.write_text(f'name = "a"\nstate_dir = "s"\n{own}\n[connection]\nusername = "u"\npassword_file = "password"\n')
    settings = load(kind, config)
    with pytest.raises(SettingsError) as caught:
        connection_of(settings.connection, "a")  # type: ignore[attr-defined]
    assert str(password) in str(caught.value)
    assert SECRET not in str(caught.value)
    command = "coordinator" if kind is CoordinatorSettings else "gateway"
    ended = fedmq(command, "--config", str(config), "--set", "log_level=debug", cwd=tmp_path)
    assert ended.returncode == 1
    assert SECRET not in ended.stdout + ended.stderr


def test_a_connection_is_shown_without_its_password(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text(SECRET)
    password.chmod(0o600)
    settings = ConnectionSettings(username="u", password_file=password)
    connection = connection_of(settings, "a")
    assert isinstance(connection, Connection)
    assert connection.password == SECRET
    assert SECRET not in f"{connection!r} {connection} {settings!r}"
