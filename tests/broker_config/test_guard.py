"""The guard beside a real Mosquitto: who is revoked is out, whatever connection it holds."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from broker_fixtures import PATIENCE_SECONDS, eventually, expect, joined
from certificates import Authority
from fedmq_broker_config.render import GUARD_USER, BrokerSettings, Certificates, Guarded
from fedmq_broker_config.run import LocalBroker, find_mosquitto, write_configuration
from fedmq_broker_config.service import Guard, GuardError, cut_off
from fedmq_protocol.session import (
    ConnectFailed,
    Connection,
    Disconnected,
    MqttSession,
    Received,
    Will,
)

pytestmark = pytest.mark.broker


@dataclass(frozen=True, kw_only=True)
class Hall:
    """A broker with certificates and a list, and what makes clients for it."""

    authority: Authority
    broker: LocalBroker
    revoked_file: Path
    sessions: list[MqttSession]

    @property
    def settings(self) -> BrokerSettings:
        return self.broker.settings

    @property
    def guarded(self) -> Guarded:
        assert self.settings.guarded is not None
        return self.settings.guarded

    def client(self, name: str, *, will: Will | None = None, anew: bool = True, **changes: Any) -> MqttSession:
        if anew:
            self.authority.issue(name)
        folder = self.authority.ca_file.parent
        connection = Connection(
            **(
                {
                    "host": "127.0.0.1",
                    "port": self.broker.port,
                    "client_id": name,
                    "ca_file": self.authority.ca_file,
                    "cert_file": folder / f"{name}.crt",
                    "key_file": folder / f"{name}.key",
                    "reconnect_min_seconds": 0.05,
                    "reconnect_max_seconds": 0.2,
                }
                | changes
            )
        )
        session = MqttSession(connection, will=will)
        self.sessions.append(session)
        return session

    def joined(self, name: str, *topics: str, **changes: Any) -> MqttSession:
        session = self.client(name, **changes)
        if topics:
            session.subscribe(*topics)
        session.start()
        joined(session)
        return session

    def revoke(self, *names: str, number: int, **changes: Any) -> bytes:
        serials = {self.authority.serial(name): name for name in names}
        return self.authority.revoke(self.revoked_file, serials, number=number, **changes)


@pytest.fixture
def hall(tmp_path: Path, short_dir: Path) -> Iterator[Hall]:
    if find_mosquitto() is None:
        pytest.skip("needs Mosquitto: apt-get install mosquitto")
    authority = Authority(tmp_path / "ca")
    cert, key = authority.issue("server", address="127.0.0.1")
    revoked_file = tmp_path / "revoked.crl"
    authority.revoke(revoked_file)
    access = Certificates(
        ca_file=authority.ca_file,
        cert_file=cert,
        key_file=key,
        guarded=Guarded(revoked_file=revoked_file, directory=short_dir / "guard"),
    )
    settings = BrokerSettings(access=access, persistence_dir=tmp_path / "data", observers=("auditor",))
    sessions: list[MqttSession] = []
    with LocalBroker(settings, directory=tmp_path / "broker") as broker:
        yield Hall(authority=authority, broker=broker, revoked_file=revoked_file, sessions=sessions)
        for session in sessions:
            session.stop(flush_seconds=0.0)


def connect_packet(client: str) -> bytes:
    fields = struct.pack("!H", len(client)) + client.encode()
    body = b"\x00\x04MQTT\x04\x02" + struct.pack("!H", 60) + fields
    return bytes([0x10, len(body)]) + body


def context_of(hall: Hall, name: str) -> ssl.SSLContext:
    folder = hall.authority.ca_file.parent
    context = ssl.create_default_context(cafile=str(hall.authority.ca_file))
    context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    return context


def handshake(hall: Hall, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", hall.broker.port), timeout=PATIENCE_SECONDS)
    return context.wrap_socket(plain, server_hostname="127.0.0.1", session=session)


def admitted(hall: Hall, name: str) -> bool:
    """Whether the broker lets in whoever has that certificate."""
    try:
        with handshake(hall, context_of(hall, name)) as link:
            link.sendall(connect_packet(name))
            return link.recv(4) == b"\x20\x02\x00\x00"
    except OSError:
        return False


STATUS = "fl/1/plant/up/g1/status"
PLAN = "fl/1/plant/down/plan"


def test_who_is_revoked_is_cut_off_and_not_let_in_again_and_others_stay(hall: Hall) -> None:
    hall.authority.issue("auditor")
    coordinator = hall.joined("coordinator", "fl/1/plant/up/+/+")
    out = hall.joined("g1", PLAN, will=Will(STATUS, b"gone"))
    other = hall.joined("g2", PLAN)
    guard = Guard(hall.settings)
    assert guard.look()
    assert other.next(0.1) is None
    hall.revoke("g1", number=2)
    assert guard.look()
    expect(out, Disconnected)
    expect(out, ConnectFailed)
    assert not admitted(hall, "g1")
    assert admitted(hall, "auditor")
    # The broker tells of it as of any connection that broke.
    assert expect(coordinator, Received) == Received(STATUS, b"gone", False)
    assert coordinator.publish(PLAN, b"next")
    assert expect(other, Received).payload == b"next"
    assert other.next(0.0) is None


@pytest.mark.parametrize("restarted", [False, True])
def test_the_kept_session_of_the_revoked_is_gone_and_others_are_kept(hall: Hall, restarted: bool) -> None:
    first = hall.joined("g1", PLAN)
    first.stop(flush_seconds=0.0)
    other = hall.joined("g2", PLAN)
    other.stop(flush_seconds=0.0)
    if restarted:
        hall.broker.restart()
    guard = Guard(hall.settings)
    hall.revoke("g1", number=2)
    assert guard.look()
    coordinator = hall.joined("coordinator")
    assert coordinator.publish(PLAN, b"next")
    eventually(lambda: coordinator.outstanding == 0, "the acknowledgement")
    # With a new certificate the name is welcome, and finds nothing of what was before.
    hall.authority.revoke(hall.revoked_file, replaced={hall.authority.serial("g1"): "g1"}, number=3)
    assert guard.look()
    again, other = hall.client("g1"), hall.client("g2", anew=False)
    for session in (again, other):
        session.subscribe("unused")
        session.start()
        joined(session)
    assert expect(other, Received).payload == b"next"
    assert again.next(0.2) is None


def test_a_connection_that_had_its_handshake_before_may_do_nothing_afterwards(hall: Hall) -> None:
    coordinator = hall.joined("coordinator", "fl/1/plant/up/+/+")
    hall.authority.issue("g1")
    silent = handshake(hall, context_of(hall, "g1"))
    guard = Guard(hall.settings)
    hall.revoke("g1", number=2)
    assert guard.look()
    # Mosquitto looked at the list when this one shook hands, and lets it in.
    silent.sendall(connect_packet("g1"))
    assert silent.recv(4) == b"\x20\x02\x00\x00"
    text = PLAN.encode()
    silent.sendall(b"\x82" + bytes([len(text) + 5]) + b"\x00\x01" + struct.pack("!H", len(text)) + text + b"\x00")
    assert silent.recv(5)[:2] == b"\x90\x03"
    text = STATUS.encode()
    silent.sendall(b"\x30" + bytes([len(text) + 4]) + struct.pack("!H", len(text)) + text + b"on")
    assert coordinator.publish(PLAN, b"secret")
    eventually(lambda: coordinator.outstanding == 0, "the acknowledgement")
    silent.sendall(b"\xc0\x00")
    # The answer to the ping is all that comes: no plan before it.
    assert silent.recv(100) == b"\xd0\x00"
    assert coordinator.next(0.1) is None
    silent.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_old_tls_session_is_resumed_after_a_revocation(hall: Hall, version: ssl.TLSVersion) -> None:
    hall.authority.issue("g1")
    context = context_of(hall, "g1")
    context.minimum_version = context.maximum_version = version

    def tries(session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession | None]:
        link = handshake(hall, context, session)
        link.sendall(connect_packet("g1"))
        assert link.recv(4) == b"\x20\x02\x00\x00"
        found = link.session_reused, link.session
        link.close()
        return bool(found[0]), found[1]

    _, kept = tries(None)
    assert tries(kept)[0]
    guard = Guard(hall.settings)
    hall.revoke("g1", number=2)
    assert guard.look()
    for session in (kept, None):
        with pytest.raises((OSError, AssertionError)):
            tries(session)


def test_a_list_that_does_not_pass_leaves_the_one_before_in_force(
    hall: Hall, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, other = hall.joined("g1"), hall.joined("g2")
    guard = Guard(hall.settings)
    good = hall.revoke("g1", number=5)
    assert guard.look()
    expect(out, Disconnected)
    forged = Authority(tmp_path / "forger").revoke(tmp_path / "forged", {hall.authority.serial("g2"): "g2"}, number=6)
    older = hall.authority.revoke(tmp_path / "older", number=4)
    past = hall.authority.revoke(tmp_path / "past", number=9, begins=datetime.now(UTC) - timedelta(days=31))
    for bad in (b"", b"nonsense", good[:-40], forged, older, past):
        hall.revoked_file.write_bytes(good)
        assert guard.look()
        caplog.clear()
        hall.revoked_file.write_bytes(bad)
        assert not guard.look()
        assert not guard.look()
        (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
        assert "the list before it stays in force" in record.message
        assert hall.guarded.list_file.read_bytes() == good
    hall.revoked_file.unlink()
    assert not guard.look()
    hall.broker.restart()
    assert not admitted(hall, "g1")
    expect(other, Disconnected)
    joined(other)
    # Whoever starts anew knows the list in force, and takes no older one.
    hall.revoked_file.write_bytes(older)
    again = Guard(hall.settings)
    assert not again.look()
    assert again.revocations is not None
    assert again.revocations.shut_out == {"g1"}


def test_mosquitto_itself_would_let_everybody_in_with_a_list_that_it_cannot_read(hall: Hall) -> None:
    """Why it has a copy of its own: if this fails one day, Mosquitto has changed for the better."""
    out = hall.joined("g1")
    hall.revoke("g1", number=2)
    assert Guard(hall.settings).look()
    expect(out, ConnectFailed)
    hall.guarded.list_file.write_bytes(b"nonsense")
    assert hall.broker.pid is not None
    os.kill(hall.broker.pid, 1)
    joined(out)


def test_a_renewed_gateway_is_cut_off_once_and_comes_back(hall: Hall) -> None:
    old = hall.authority.issue("g1") and hall.authority.serial("g1")
    gateway = hall.joined("g1", PLAN)
    guard = Guard(hall.settings)
    hall.authority.revoke(hall.revoked_file, replaced={old: "g1"}, number=2)
    assert guard.look()
    expect(gateway, Disconnected)
    joined(gateway)
    assert guard.look()
    assert gateway.next(0.1) is None


def test_what_names_nobody_is_in_force_and_told_of(hall: Hall, caplog: pytest.LogCaptureFixture) -> None:
    out = hall.joined("g1")
    guard = Guard(hall.settings)
    serial = hall.authority.serial("g1")
    hall.authority.revoke(hall.revoked_file, {serial: None}, number=2)
    assert guard.look()
    assert f"does not name the owner of serial {serial:x}: its connection is not cut off" in caplog.text
    assert not admitted(hall, "g1")
    assert out.next(0.0) is None


def test_while_mosquitto_is_away_the_guard_waits_and_then_does_what_is_left(
    hall: Hall, caplog: pytest.LogCaptureFixture
) -> None:
    out = hall.joined("g1")
    guard = Guard(hall.settings)
    hall.broker.kill()
    hall.revoke("g1", number=2)
    assert not guard.look()
    assert not guard.look()
    assert caplog.text.count("does Mosquitto run, with this guard_dir?") == 1
    hall.broker.start()
    assert guard.look()
    expect(out, Disconnected)
    assert not admitted(hall, "g1")


def test_a_list_that_could_not_be_written_is_brought_into_force_when_it_can(hall: Hall) -> None:
    out = hall.joined("g1")
    guard = Guard(hall.settings)
    hall.revoke("g1", number=2)
    hall.guarded.list_file.unlink()
    hall.guarded.list_file.mkdir()
    assert not guard.look()
    assert not guard.look()
    hall.guarded.list_file.rmdir()
    assert guard.look()
    expect(out, Disconnected)
    assert not admitted(hall, "g1")


def test_an_acl_that_was_rendered_anew_is_put_right(hall: Hall) -> None:
    guard = Guard(hall.settings)
    hall.authority.issue("g1")
    hall.revoke("g1", number=2)
    assert guard.look()
    before = hall.guarded.acl_file.read_text()
    assert "user g1\ntopic deny #\n" in before
    hall.guarded.acl_file.write_text("user g1\ntopic readwrite #\n")
    assert guard.look()
    assert hall.guarded.acl_file.read_text() == before


def test_only_with_the_guards_password_does_its_socket_let_anyone_in(hall: Hall) -> None:
    stays = hall.joined("g1")
    for secret in ("wrong", ""):
        with pytest.raises(GuardError, match="refused the guard"):
            cut_off(hall.guarded.socket, "g1", secret)
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(hall.guarded.socket))
        link.sendall(connect_packet("g1"))
        assert link.recv(4) == b"\x20\x02\x00\x05"
    assert stays.next(0.1) is None
    cut_off(hall.guarded.socket, "g1", hall.guarded.secret_file.read_text())
    expect(stays, Disconnected)


def test_the_guards_password_opens_nothing_else(hall: Hall) -> None:
    """Where a certificate says who somebody is, user name and password are not looked at."""
    coordinator = hall.joined("coordinator", "fl/1/plant/up/+/+")
    liar = hall.joined("g1", username="coordinator", password=hall.guarded.secret_file.read_text())
    assert liar.publish("fl/1/plant/up/g2/answer", b"as another")
    assert liar.publish("fl/1/plant/up/g1/answer", b"as itself")
    assert expect(coordinator, Received).payload == b"as itself"
    # And a certificate with the guard's name has nothing.
    posing = hall.joined(GUARD_USER, "#")
    assert posing.publish(f"fl/1/plant/up/{GUARD_USER}/answer", b"x")
    assert coordinator.publish(PLAN, b"plan")
    eventually(lambda: coordinator.outstanding == 0, "the acknowledgement")
    assert coordinator.next(0.1) is None
    assert not isinstance(posing.next(0.1), Received)


def test_what_mosquitto_and_the_guard_share_is_closed_to_others(hall: Hall) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(hall.guarded.directory) == 0o700
    for path in (hall.guarded.secret_file, hall.guarded.password_file, hall.guarded.acl_file, hall.guarded.list_file):
        assert mode(path) == 0o600
    assert mode(hall.guarded.socket) & 0o007 == 0
    assert hall.guarded.secret_file.read_text() not in hall.guarded.password_file.read_text()
    secret = hall.guarded.secret_file.read_text()
    write_configuration(hall.settings, hall.broker.directory)
    assert hall.guarded.secret_file.read_text() == secret


def test_a_link_in_the_shared_folder_is_replaced_and_not_followed(hall: Hall, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    hall.guarded.acl_file.unlink()
    hall.guarded.acl_file.symlink_to(victim)
    write_configuration(hall.settings, hall.broker.directory)
    assert victim.read_text() == "mine"
    assert not hall.guarded.acl_file.is_symlink()


@pytest.mark.parametrize(("name", "file"), [("+", "plus"), ("#", "hash"), ("g1/x", "slash"), ("g1/status", "more")])
def test_a_strange_name_in_a_certificate_gives_no_right_over_anyone(hall: Hall, name: str, file: str) -> None:
    hall.authority.issue(name, file=file)
    coordinator = hall.joined("coordinator", "fl/1/plant/up/+/+")
    auditor, gateway = hall.joined("auditor", "#"), hall.joined("g1", "fl/1/plant/cmd/g1/+")
    folder = hall.authority.ca_file.parent
    strange = hall.client(name, anew=False, cert_file=folder / f"{file}.crt", key_file=folder / f"{file}.key")
    strange.subscribe("#", "fl/1/plant/cmd/+/+")
    strange.start()
    joined(strange)
    for text in (STATUS, "fl/1/plant/up/x/status", "fl/1/plant/cmd/g1/welcome", PLAN, "fl/1/plant/up/g1/x/answer"):
        assert strange.publish(text, b"forged")
    eventually(lambda: strange.outstanding == 0, "the acknowledgements")
    for text in ("fl/1/plant/cmd/g1/welcome", "fl/1/plant/cmd/x/welcome"):
        assert coordinator.publish(text, b"true")
    assert gateway.publish(STATUS, b"true")
    assert expect(gateway, Received).payload == b"true"
    assert expect(coordinator, Received).payload == b"true"
    assert {expect(auditor, Received).payload for _ in range(3)} == {b"true"}
    eventually(lambda: coordinator.outstanding == 0, "the acknowledgements")
    received = [event for event in iter(lambda: strange.next(0.1), None) if isinstance(event, Received)]
    assert received == []


def test_an_outdated_tls_is_refused(hall: Hall) -> None:
    program = subprocess.run(
        [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{hall.broker.port}"),
            *("-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"),
        ],
        input=b"",
        capture_output=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert b"alert protocol version" in program.stderr


def test_the_guard_is_a_program_that_ends_when_it_is_told(hall: Hall, tmp_path: Path) -> None:
    access = hall.settings.access
    assert isinstance(access, Certificates)
    config = tmp_path / "broker.toml"
    config.write_text(
        f'access = "certificates"\nport = {hall.broker.port}\nobservers = ["auditor"]\n'
        f'ca_file = "{access.ca_file}"\ncertificate_file = "{access.cert_file}"\nkey_file = "{access.key_file}"\n'
        f'revoked_file = "{hall.revoked_file}"\nguard_dir = "{hall.guarded.directory}"\n'
    )
    out = hall.joined("g1")
    command = [sys.executable, "-m", "fedmq", "broker", "guard", "--config", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "guarding" in process.stderr.readline()
        hall.revoke("g1", number=2)
        expect(out, Disconnected)
        lines = iter(process.stderr.readline, "")
        assert any("cut off, if they were connected: g1" in line for line in lines)
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0


def test_a_guard_without_a_list_says_what_it_needs(hall: Hall) -> None:
    access = hall.settings.access
    assert isinstance(access, Certificates)
    with pytest.raises(ValueError, match="with revoked_file and guard_dir"):
        Guard(replace(hall.settings, access=replace(access, guarded=None)))
    with pytest.raises(ValueError, match="no site 'north'"):
        Guard(hall.settings, site="north")


def test_running_looks_again_until_it_is_stopped(hall: Hall) -> None:
    out = hall.joined("g1")
    guard, stopping = Guard(hall.settings), threading.Event()
    thread = threading.Thread(target=guard.run, args=(stopping,))
    thread.start()
    try:
        hall.revoke("g1", number=2)
        expect(out, Disconnected)
    finally:
        stopping.set()
        thread.join()
    assert guard.revocations is not None
    assert guard.revocations.shut_out == {"g1"}


def test_a_list_that_is_about_to_run_out_is_told_of_in_time(hall: Hall, caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(hall.settings)
    hall.revoke(number=2, holds=timedelta(days=2))
    for _ in range(3):
        assert guard.look()
    assert caplog.text.count("make a new one") == 1
    hall.revoke(number=3, holds=timedelta(days=9))
    caplog.clear()
    again = Guard(hall.settings)
    assert again.look()
    assert "make a new one" not in caplog.text
