"""What goes wrong before anything runs: one clear line for each mistake, no traceback, and a status that says so."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from broker_fixtures import PATIENCE_SECONDS, expect, joined
from fedmq_broker_config.run import LocalBroker, find_mosquitto, free_port
from fedmq_edge_node.memory import Memory
from fedmq_protocol.messages import Assignment, Birth, Welcome, from_bytes, to_bytes
from fedmq_protocol.session import Connection, MqttSession, Received
from fedmq_protocol.topics import Channel, Direction, coordinator_filters, parse, topic
from plant import make_task
from processes import Site, fedmq, small_fleet, write_toml
from small_disk import SmallDisk

pytestmark = pytest.mark.slow


def complaint(*words: str, lines: int = 1, status: int = 1, cwd: Path | None = None) -> str:
    """What the command says on stderr when it refuses to run; checked for how it says it."""
    ended = fedmq(*words, cwd=cwd)
    assert ended.returncode == status, f"status {ended.returncode}: {ended.stderr}"
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == lines, ended.stderr
    return ended.stderr


def test_recordings_that_cannot_be_read(tmp_path: Path) -> None:
    gateway = ("gateway", "--set", "name=press-7", "--set", f"state_dir={tmp_path / 'state'}")
    absent = tmp_path / "nowhere"
    assert str(absent) in complaint(*gateway, "--set", f"data_dir={absent}")

    words = ("demo", "--data", str(tmp_path / "nowhere"), "--directory", str(tmp_path / "run"))
    assert str(absent) in complaint(*words)


@pytest.mark.broker
def test_a_recording_that_is_damaged_ends_a_gateway_with_one_line(tmp_path: Path, mosquitto: LocalBroker) -> None:
    broken = tmp_path / "data" / "normal" / "one.npy"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"\x93NUMPY\x01\x00 not at all")
    write_toml(tmp_path / "data" / "recording.toml", {"sampling_rate_hz": 12_000.0})
    settings = {
        "name": "press-7",
        "data_dir": str(tmp_path / "data"),
        "state_dir": str(tmp_path / "state"),
        "connection.port": mosquitto.port,
        "log_level": "error",
    }
    write_toml(tmp_path / "gateway.toml", settings)
    assert str(broken) in complaint("gateway", "--config", str(tmp_path / "gateway.toml"))


def gateway_settings(tmp_path: Path, **changes: object) -> Path:
    """Settings of a gateway with one recording."""
    recording = tmp_path / "data" / "normal" / "one.npy"
    recording.parent.mkdir(parents=True)
    np.save(recording, np.random.default_rng(0).normal(size=60_000).astype(np.float32))
    write_toml(tmp_path / "data" / "recording.toml", {"sampling_rate_hz": 12_000.0})
    path = tmp_path / "gateway.toml"
    settings = {"name": "press-7", "data_dir": str(tmp_path / "data"), "log_level": "error"}
    write_toml(path, settings | {"state_dir": str(tmp_path / "state")} | changes)
    return path


def test_a_memory_that_is_damaged_or_newer_ends_a_gateway_with_one_line(tmp_path: Path) -> None:
    settings = gateway_settings(tmp_path)
    memory = tmp_path / "state" / "gateway.sqlite"
    Memory(memory).close()
    good = memory.read_bytes()
    memory.write_bytes(good[:4096] + bytes(byte ^ 0x5A for byte in good[4096:]))
    assert str(memory) in complaint("gateway", "--config", str(settings))
    memory.write_bytes(good)
    database = sqlite3.connect(memory)
    database.execute("PRAGMA user_version = 99")
    database.close()
    assert "schema 99, newer than this software" in complaint("gateway", "--config", str(settings))


def test_a_disk_that_cannot_be_written_ends_a_gateway_with_one_line(tmp_path: Path, small_disk: SmallDisk) -> None:
    settings = gateway_settings(tmp_path, state_dir=str(small_disk.place / "state"))
    small_disk.make_read_only()
    assert "see that its folder can be written" in complaint("gateway", "--config", str(settings))


@pytest.mark.broker
def test_a_disk_that_fills_up_ends_a_gateway_that_runs(
    tmp_path: Path, small_disk: SmallDisk, mosquitto: LocalBroker
) -> None:
    path = str(
        gateway_settings(tmp_path, state_dir=str(small_disk.place / "state"), **{"connection.port": mosquitto.port})
    )
    coordinator = MqttSession(Connection(host="127.0.0.1", port=mosquitto.port, client_id="coordinator"))
    coordinator.subscribe(*coordinator_filters("plant"))
    coordinator.start()
    joined(coordinator)
    process = subprocess.Popen([sys.executable, "-m", "fedmq", "gateway", "--config", path], stderr=subprocess.PIPE)
    try:
        said = expect(coordinator, Received)
        birth = from_bytes(parse(said.topic).spec, said.payload)
        assert isinstance(birth, Birth)
        small_disk.fill()
        task = make_task(sizes=(22, 64, 3))
        welcome = Welcome(
            nonce=birth.nonce, now=1e9, roster=0, spread=0, tasks=(Assignment(lineage=1, counter=0, task=task),)
        )
        coordinator.publish(topic("plant", Direction.CMD, Channel.WELCOME, "press-7"), to_bytes(welcome))
        _, told = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
        coordinator.stop(flush_seconds=0.0)
    assert process.returncode == 1
    assert b"is the disk full" in told
    assert b"Traceback" not in told


def test_every_mistake_of_a_settings_file_is_told_at_once_with_its_key(tmp_path: Path) -> None:
    gateway = tmp_path / "gateway.toml"
    write_toml(
        gateway,
        {"name": "press-7", "nice": 77, "connection.port": "x", "gates.hours": ["25:00-26:00"], "nmae": "?"},
    )
    said = complaint("gateway", "--config", str(gateway), lines=5)  # and one that is missing
    for key in ("nice", "connection.port", "gates.hours", "nmae", "state_dir"):
        assert key in said, said
    # Of data_dir and bridge.store one must be there: told once each key by itself is right.
    write_toml(gateway, {"name": "press-7", "state_dir": "s"})
    assert "data_dir: missing; expected" in complaint("gateway", "--config", str(gateway))

    coordinator = tmp_path / "coordinator.toml"
    write_toml(
        coordinator,
        {"state_dir": "s", "task.name": "t", "rounds.fraction": 2.0, "task.kind": "forest", "log_level": "loud"},
    )
    said = complaint("coordinator", "--config", str(coordinator), lines=3)
    for key in ("rounds.fraction", "task.kind", "log_level"):
        assert key in said, said

    coordinator.write_text("state_dir = [", encoding="utf-8")
    assert str(coordinator) in complaint("coordinator", "--config", str(coordinator))
    assert "nowhere.toml" in complaint("gateway", "--config", str(tmp_path / "nowhere.toml"))


@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
def test_a_port_in_use(tmp_path: Path, kind: str) -> None:
    if kind == "mosquitto" and find_mosquitto() is None:
        pytest.skip("needs Mosquitto: apt-get install mosquitto")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = complaint("broker", "--broker", kind, "--port", port, "--directory", str(tmp_path))
    assert f"127.0.0.1:{port}" in said
    assert "in use" in said


def test_a_demo_whose_broker_is_not_there(tmp_path: Path) -> None:
    where = f"127.0.0.1:{free_port()}"
    words = ("demo", "--no-progress", "--gateways", "2", "--directory", str(tmp_path / "run"), "--broker")
    assert f"no broker at {where}" in complaint(*words, where)
    assert "HOST:PORT" in complaint(*words[:-2], str(tmp_path / "other"), "--broker", "rabbit")


def test_a_ledger_that_is_none_of_ours(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.sqlite"
    foreign = sqlite3.connect(ledger)
    foreign.execute("CREATE TABLE songs (title TEXT)")
    foreign.close()
    for command in ("report", "status"):
        assert str(ledger) in complaint(command, "--state", str(tmp_path))
    assert "not a ledger of fedmq" in complaint(
        "coordinator",
        *("--set", f"state_dir={tmp_path}", "--set", "log_level=error"),
        *("--set", "task.name=t", "--set", "task.classes=a,b"),
    )
    ledger.write_bytes(b"no database at all, but long enough to be one: " * 40)
    for command in ("report", "status"):
        assert str(ledger) in complaint(command, "--state", str(tmp_path))
    assert "nowhere" in complaint("report", "--state", str(tmp_path / "nowhere"))


def test_a_command_line_that_nobody_knows() -> None:
    for words in (["gateway", "--confg", "x"], ["learn"], [], ["demo", "--rounds", "0"]):
        ended = fedmq(*words)
        assert ended.returncode == 2
        assert "Traceback" not in ended.stderr
        assert "error:" in ended.stderr
    assert "port: expected" in complaint("broker", "--port", "99999")


@pytest.mark.broker
def test_programs_started_before_their_broker_say_so_and_work_once_it_is_there(
    tmp_path: Path, mosquitto: LocalBroker
) -> None:
    mosquitto.stop()
    with Site(tmp_path, small_fleet(2), port=mosquitto.port, rounds=2) as site:
        site.start()
        for program in site.programs.values():
            site.wait_for_log(program, "is a broker running?")
        for program in site.gateways():
            site.wait_for_log(program, "trying again in")
        mosquitto.start()
        site.wait_for_rest()
        site.finish()
        assert len(site.training("applied")) == 2
        site.assert_one_model_everywhere()
