"""What programs tell systemd: the datagrams, and when a gateway, a coordinator and a guard say them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10.0)
        yield listening


def heard(manager: socket.socket) -> list[str]:
    """All that has come so far."""
    manager.setblocking(False)
    said = []
    try:
        while True:
            said.append(manager.recv(1024).decode())
    except BlockingIOError:
        return said
    finally:
        manager.settimeout(10.0)


def test_states_go_to_the_socket_of_the_environment(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()}, monotonic=lambda: 0.0)
    notifier.ready()
    notifier.alive()
    notifier.stopping()
    assert heard(manager) == ["READY=1", "WATCHDOG=1", "STOPPING=1"]


def test_an_abstract_socket_is_named_with_an_at() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"fedmq-test-{os.getpid()}"
        listening.bind(f"\0{name}")
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert heard(listening) == ["READY=1"]


def test_a_loop_that_turns_fast_is_not_a_flood(manager: socket.socket) -> None:
    now = 0.0
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()}, monotonic=lambda: now)
    for step in range(31):
        now = step / 10
        notifier.alive()
    assert heard(manager) == ["WATCHDOG=1"] * 4


def test_without_a_manager_nothing_is_said_and_nothing_fails(caplog: pytest.LogCaptureFixture) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": "vsock:2:1234"}):
        notifier = Notifier(environment)
        notifier.ready()
        notifier.alive()
        notifier.stopping()
    assert not caplog.records


def test_a_manager_that_is_gone_ends_no_program_and_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    with caplog.at_level(logging.WARNING):
        notifier.ready()
        notifier.stopping()
    assert [record.getMessage() for record in caplog.records] == [
        "systemd cannot be told READY=1: No such file or directory"
    ]


def test_a_manager_that_does_not_read_holds_nobody_up(manager: socket.socket) -> None:
    """A full queue would block who sends: 5,000 datagrams are more than any is long."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    sending = threading.Thread(target=lambda: [notifier.stopping() for _ in range(5_000)], daemon=True)
    sending.start()
    sending.join(30.0)
    assert not sending.is_alive()


def test_a_gateway_says_that_it_is_ready_alive_and_stopping(manager: socket.socket, tmp_path: Path) -> None:
    """Without a broker, too: that is no reason to start it again."""
    data = tmp_path / "data/normal"
    data.mkdir(parents=True)
    (data / "one.csv").write_text("\n".join(str(number % 7) for number in range(4096)) + "\n")
    (tmp_path / "data/recording.toml").write_text("sampling_rate_hz = 12000.0\n")
    settings = tmp_path / "gateway.toml"
    settings.write_text(
        f'name = "gw"\ndata_dir = "{tmp_path}/data"\nstate_dir = "{tmp_path}/state"\n[connection]\nport = 9\n'
    )
    command = [sys.executable, "-m", "fedmq", "gateway", "--config", str(settings)]
    environment = {**os.environ, "NOTIFY_SOCKET": manager.getsockname()}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            manager.settimeout(60.0)
            assert [manager.recv(64), manager.recv(64), manager.recv(64)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            process.send_signal(signal.SIGTERM)
            while (said := manager.recv(64)) == b"WATCHDOG=1":
                pass
            assert said == b"STOPPING=1"
            assert process.wait(60) == 0
        finally:
            if process.poll() is None:
                process.kill()
