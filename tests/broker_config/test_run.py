"""Starting and stopping brokers: what runs, what is said of it, and what is said when it does not run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from broker_fixtures import eventually, expect
from fedmq_broker_config import run
from fedmq_broker_config.render import BrokerSettings, Passwords
from fedmq_broker_config.run import (
    BrokerError,
    EmbeddedBroker,
    ExternalBroker,
    LocalBroker,
    choose,
    free_port,
    serve,
    write_configuration,
)
from fedmq_protocol.session import Connected, Connection, MqttSession, Received


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits only for its parent to look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.broker
def test_mosquitto_says_what_it_is_and_is_gone_afterwards(mosquitto: LocalBroker) -> None:
    about = mosquitto.about
    assert about.name == "Mosquitto"
    assert about.version[0].isdigit()
    assert about.ports == (("5", mosquitto.port), ("3.1.1", mosquitto.port))
    assert f"at 127.0.0.1:{mosquitto.port}" in str(about)
    assert accepts(mosquitto.port)
    directory, pid = mosquitto.directory, mosquitto.pid
    mosquitto.__exit__(None, None, None)
    assert not accepts(mosquitto.port)
    assert not directory.exists()
    assert pid is not None
    assert ended(pid)


@pytest.mark.broker
@pytest.mark.parametrize("spec", ["mosquitto", "embedded"])
def test_a_port_in_use_is_one_clear_error(mosquitto: LocalBroker, spec: str) -> None:
    second = choose(spec, port=mosquitto.port)
    with pytest.raises(BrokerError, match=rf"cannot listen on 127.0.0.1:{mosquitto.port}: Address already in use"):
        second.start()
    mosquitto.check()


@pytest.mark.broker
def test_a_broker_that_ends_as_it_starts_is_quoted(mosquitto: LocalBroker, tmp_path: Path) -> None:
    program = tmp_path / "mosquitto"
    program.write_text(
        '#!/bin/sh\n[ "$1" = -h ] && echo mosquitto version 9.9 && exit 3\necho the disk is full\nexit 1\n'
    )
    program.chmod(0o755)
    broker = LocalBroker(program=program)
    assert broker.about.version == "9.9"
    with pytest.raises(BrokerError, match=r"Mosquitto ended as it started(.|\n)*the disk is full"):
        broker.start()


@pytest.mark.broker
def test_a_broker_that_was_killed_is_noticed(mosquitto: LocalBroker) -> None:
    assert mosquitto.pid is not None
    os.kill(mosquitto.pid, signal.SIGKILL)
    eventually(lambda: ended(mosquitto.pid or 0), "the broker to end")
    with pytest.raises(BrokerError, match="Mosquitto is not running; the end of its log"):
        mosquitto.check()


@pytest.mark.broker
def test_a_broker_comes_back_on_its_port(mosquitto: LocalBroker) -> None:
    port, pid = mosquitto.port, mosquitto.pid
    mosquitto.kill()
    assert not accepts(port)
    mosquitto.start()
    assert (mosquitto.port, accepts(port)) == (port, True)
    assert mosquitto.pid != pid


def test_the_embedded_broker_says_what_it_lacks(embedded_broker: EmbeddedBroker) -> None:
    text = str(embedded_broker.about)
    assert "iotcore" in text
    assert "no access control" in text
    assert accepts(embedded_broker.port)
    assert accepts(embedded_broker.port_311)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_embedded_broker_carries_the_largest_message(embedded_broker: EmbeddedBroker, protocol: str) -> None:
    port = embedded_broker.port if protocol == "5" else embedded_broker.port_311
    session = MqttSession(Connection(host="127.0.0.1", port=port, client_id="one", protocol=protocol))  # type: ignore[arg-type]
    session.subscribe("a")
    session.start()
    expect(session, Connected)
    assert session.publish("a", bytes(262_000))
    assert len(expect(session, Received).payload) == 262_000
    session.stop(flush_seconds=1.0)


def test_the_embedded_broker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from fedmq_broker_config.run import EmbeddedBroker\n"
        "broker = EmbeddedBroker()\n"
        "broker.start()\n"
        "print(broker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not ended(pid)
        parent.kill()
    eventually(lambda: ended(pid), "the embedded broker to end")


def test_auto_takes_mosquitto_then_the_embedded_broker_then_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_mosquitto_version", lambda program: "2.0.11")
    monkeypatch.setattr(run, "find_mosquitto", lambda: Path("/usr/sbin/mosquitto"))
    assert isinstance(choose("auto"), LocalBroker)
    monkeypatch.setattr(run, "find_mosquitto", lambda: None)
    monkeypatch.setattr(run, "embedded_version", lambda: "0.4.0")
    assert isinstance(choose("auto"), EmbeddedBroker)
    with pytest.raises(BrokerError, match="apt-get install mosquitto"):
        choose("mosquitto")
    monkeypatch.setattr(run, "embedded_version", lambda: None)
    with pytest.raises(BrokerError, match=r"install Mosquitto .* or the embedded one .* or name a broker as HOST:PORT"):
        choose("auto")
    with pytest.raises(BrokerError, match=r"fedmq\[demo\]"):
        choose("embedded")


def test_the_embedded_broker_does_not_leave_the_loopback_address() -> None:
    settings = BrokerSettings(address="127.0.0.2")
    with pytest.raises(BrokerError, match=r"listens on 127\.0\.0\.1 only"):
        choose("embedded", settings)


@pytest.mark.parametrize("spec", ["auto", "embedded"])
def test_the_embedded_broker_is_no_stand_in_where_clients_must_prove_who_they_are(
    monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    monkeypatch.setattr(run, "find_mosquitto", lambda: None)
    monkeypatch.setattr(run, "embedded_version", lambda: "0.4.0")
    with pytest.raises(BrokerError, match="asks nobody who they are"):
        choose(spec, BrokerSettings(access=Passwords(Path("/passwords"))))


@pytest.mark.parametrize(
    "spec", ["", "rabbit", "host", "host:", ":1883", "host:0", "host:65536", "host:port", "host:1.5"]
)
def test_what_names_no_broker_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="expected auto, mosquitto, embedded or HOST:PORT"):
        choose(spec)


def test_a_broker_elsewhere_is_looked_at_and_left_alone(embedded_broker: EmbeddedBroker) -> None:
    with choose(f"127.0.0.1:{embedded_broker.port}") as broker:
        assert isinstance(broker, ExternalBroker)
        assert broker.about.port == embedded_broker.port
    assert accepts(embedded_broker.port)
    assert choose("[::1]:1883").about.host == "::1"
    port = free_port()
    with pytest.raises(BrokerError, match=rf"no broker at 127.0.0.1:{port}: Connection refused"):
        choose(f"127.0.0.1:{port}").start()


def test_configuration_is_written_where_it_is_wanted(tmp_path: Path) -> None:
    conf, acl = write_configuration(BrokerSettings(federation="hall"), tmp_path / "new")
    assert f"acl_file {acl}" in conf.read_text().splitlines()
    assert "fl/1/hall/" in acl.read_text()
    assert acl.stat().st_mode & 0o077 == 0


@pytest.mark.broker
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serving_lasts_until_a_signal_and_leaves_nothing(mosquitto: LocalBroker, number: signal.Signals) -> None:
    said: list[str] = []
    port = free_port()
    before = signal.getsignal(number)

    def say(text: str) -> None:
        said.append(text)
        assert accepts(port)
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()

    serve(BrokerSettings(port=port), spec="mosquitto", say=say)
    assert len(said) == 1
    assert f"127.0.0.1:{port}" in said[0]
    assert not accepts(port)
    assert signal.getsignal(number) is before


@pytest.mark.broker
def test_serving_tells_when_the_broker_ends_by_itself(tmp_path: Path, mosquitto: LocalBroker) -> None:
    def kill_it(text: str) -> None:
        (child,) = Path("/proc/self/task", str(threading.get_native_id()), "children").read_text().split()[-1:]
        os.kill(int(child), signal.SIGKILL)

    with pytest.raises(BrokerError, match="Mosquitto is not running"):
        serve(BrokerSettings(port=free_port()), spec="mosquitto", directory=tmp_path, say=kill_it)
