"""What the doctor says of sound and of broken set-ups, on disk and on a real broker."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from broker_fixtures import eventually, expect
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from fedmq_broker_config.run import LocalBroker, find_mosquitto, free_port, write_configuration
from fedmq_broker_config.settings import BrokerTable
from fedmq_edge_node.memory import Memory
from fedmq_protocol.session import Connected, Connection, MqttSession
from fedmq_protocol.settings import load
from processes import Site, environment, fedmq, small_fleet, write_toml
from small_disk import SmallDisk
from trust import TrustAuthority

from fedmq.doctor import clock, program, roles
from fedmq.doctor.certificates import check_certificate, check_names, check_revoked, read_certificates
from fedmq.doctor.clock import check_against
from fedmq.doctor.files import can_tell, check_public, check_secret, check_state, filesystem_of, is_open
from fedmq.doctor.findings import Finding, Status, as_json, as_text, failed, ok, unknown, warned
from fedmq.doctor.identity import FILES, Kind, check_folder, kind_of
from fedmq.doctor.network import PROBE, Role, Tried, connections_to, judge, listeners, probes, refuses_strangers
from fedmq.doctor.roles import check_gateway

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


class Pki:
    """A certificate authority whose dates a test chooses."""

    def __init__(self, folder: Path, name: str = "plant CA", *, begins: datetime = NOW - DAY, days: int = 3650) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(name, self.key, name, begins, begins + days * DAY, authority=True)
        self.file = folder / "ca.crt"
        self.file.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def issue(
        self, name: str, *, begins: datetime = NOW - DAY, ends: datetime = NOW + 365 * DAY, address: str | None = None,
        stem: str | None = None,
    ) -> tuple[Path, Path]:  # fmt: skip
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        made = self._sign(name, key, str(issuer), begins, ends, address=address)
        cert, key_file = self.folder / f"{stem or name}.crt", self.folder / f"{stem or name}.key"
        cert.write_bytes(made.public_bytes(Encoding.PEM))
        write_key(key_file, key)
        return cert, key_file

    def revoke(
        self, path: Path, serials: Iterable[int], *, made: datetime = NOW - DAY, until: datetime = NOW + 30 * DAY
    ) -> Path:
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(made).next_update(until)
        for serial in serials:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(made).build()
            )
        path.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM))
        return path

    def _sign(
        self, name: str, key: ec.EllipticCurvePrivateKey, issuer: str, begins: datetime, ends: datetime, *,
        address: str | None = None, authority: bool = False,
    ) -> x509.Certificate:  # fmt: skip
        def named(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        builder = x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(issuer))
        builder = builder.public_key(key.public_key()).serial_number(secrets.randbits(62) + 1)
        builder = builder.not_valid_before(begins).not_valid_after(ends)
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        if address is not None:
            names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, hashes.SHA256())


def write_key(path: Path, key: Any, lock: bytes = b"") -> Path:
    how = BestAvailableEncryption(lock) if lock else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    path.chmod(0o600)
    return path


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "tls")


def statuses(findings: Iterable[Finding]) -> dict[str, Status]:
    """The worst of each check."""
    order = [Status.OK, Status.UNKNOWN, Status.WARN, Status.FAIL]
    found: dict[str, Status] = {}
    for one in findings:
        found[one.check] = max(found.get(one.check, Status.OK), one.status, key=order.index)
    return found


def bad(findings: Iterable[Finding]) -> list[Finding]:
    return [one for one in findings if one.status is Status.FAIL]


# -- what a check comes to --------------------------------------------------------------------------------------


def test_findings_are_counted_and_say_what_to_do() -> None:
    found = [ok("a", "fine"), warned("b", "soon", "do this"), failed("c", "no\x1b[2J", "do that"), unknown("d", "?")]
    text = as_text(found)
    assert text.endswith("1 ok, 1 warn, 1 FAIL, 1 unknown")
    assert "-> do that" in text
    assert "\x1b" not in text
    told = json.loads(as_json("gateway", found))
    assert told["sound"] is False
    assert [one["status"] for one in told["findings"]] == ["ok", "warn", "FAIL", "unknown"]


# -- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "status"),
    [(0o600, "ok"), (0o400, "ok"), (0o640, "ok"), (0o644, "FAIL"), (0o604, "FAIL"), (0o620, "FAIL"), (0o602, "FAIL")],
)
def test_a_key_is_for_its_owner_and_at_most_read_by_a_group(tmp_path: Path, mode: int, status: str) -> None:
    key = tmp_path / "client.key"
    key.write_text("secret")
    key.chmod(mode)
    found = check_secret("key", key)
    assert found.status.value == status
    assert "secret" not in found.said


@pytest.mark.parametrize(("mode", "status"), [(0o644, "ok"), (0o600, "ok"), (0o664, "warn"), (0o646, "FAIL")])
def test_settings_are_changed_by_nobody_else(tmp_path: Path, mode: int, status: str) -> None:
    settings = tmp_path / "gateway.toml"
    settings.write_text("")
    settings.chmod(mode)
    assert check_public("settings", settings).status.value == status


def test_a_folder_that_all_may_write_to_is_as_bad_as_the_file(tmp_path: Path) -> None:
    settings = tmp_path / "open" / "gateway.toml"
    settings.parent.mkdir()
    settings.write_text("")
    settings.parent.chmod(0o777)
    assert check_public("settings", settings).status is Status.FAIL
    settings.parent.chmod(0o1777)
    assert check_public("settings", settings).status is Status.OK


def test_a_file_that_is_not_there_or_no_file_fails(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        assert check_secret("key", path).status is Status.FAIL
        assert check_public("settings", path).status is Status.FAIL


def test_a_state_directory_on_a_disk_is_sound(tmp_path: Path) -> None:
    if filesystem_of(tmp_path) in ("tmpfs", "ramfs", None):
        pytest.skip("needs a temporary folder on a disk")
    tmp_path.chmod(0o700)
    assert not bad(check_state("state", tmp_path))
    missing = statuses(check_state("state", tmp_path / "not" / "yet"))
    assert missing["state"] is Status.WARN
    tmp_path.chmod(0o777)
    assert statuses(check_state("state", tmp_path))["state"] is Status.FAIL


def test_a_state_directory_in_memory_or_without_room_or_read_only_fails(small_disk: SmallDisk) -> None:
    found = statuses(check_state("state", small_disk.place))
    assert found["state's disk"] is Status.FAIL, "tmpfs does not outlive a power cut"
    assert found["state's space"] is Status.FAIL, "256 KiB are too little"
    small_disk.make_read_only()
    (said,) = [one.said for one in check_state("state", small_disk.place) if one.check == "state's disk"]
    assert "for reading only" in said


def test_a_state_directory_that_is_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    assert statuses(check_state("state", tmp_path / "state"))["state"] is Status.FAIL


def test_whether_a_database_is_open_is_found_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sqlite"
    assert is_open(path) is False
    program = "import sys; from pathlib import Path; from fedmq_edge_node.memory import Memory\n"
    program += "memory = Memory(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read(); memory.close()"
    for kill in (False, True):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            assert is_open(path) is True
            memory = Memory(path)
            memory.load()
            memory.close()
            assert is_open(path) is True
            if kill:
                process.kill()
            process.communicate()
        assert process.returncode == (-signal.SIGKILL if kill else 0)
        assert is_open(path) is False


# -- certificates -----------------------------------------------------------------------------------------------


def certified(pki: Pki, cert: Path, key: Path, name: str | None = "gateway-1") -> dict[str, Status]:
    return statuses(check_certificate("certificate", cert, key, pki.file, name=name, now=NOW))


def test_a_sound_certificate_is_ok_in_every_way(pki: Pki) -> None:
    assert set(certified(pki, *pki.issue("gateway-1")).values()) == {Status.OK}


@pytest.mark.parametrize(
    ("begins", "ends", "status", "said"),
    [
        (NOW - 2 * DAY, NOW - DAY, "FAIL", "expired"),
        (NOW + DAY, NOW + 2 * DAY, "FAIL", "clock"),
        (NOW - DAY, NOW + 29 * DAY, "warn", "in 29 days"),
        (NOW - DAY, NOW + 31 * DAY, "ok", "until"),
    ],
)
def test_dates_of_a_certificate(pki: Pki, begins: datetime, ends: datetime, status: str, said: str) -> None:
    cert, key = pki.issue("gateway-1", begins=begins, ends=ends)
    found = next(iter(check_certificate("certificate", cert, key, pki.file, name="gateway-1", now=NOW)))
    assert found.status.value == status
    assert said in found.said


def test_a_certificate_of_another_name_key_or_authority_fails(pki: Pki, tmp_path: Path) -> None:
    cert, key = pki.issue("gateway-1")
    _, other_key = pki.issue("gateway-2")
    assert certified(pki, cert, key, "gateway-2")["certificate's name"] is Status.FAIL
    assert certified(pki, cert, other_key)["certificate's key"] is Status.FAIL
    stranger = Pki(tmp_path / "other")
    assert certified(stranger, cert, key)["certificate's CA"] is Status.FAIL, "the same name is not the same CA"


def test_an_expired_authority_fails(tmp_path: Path) -> None:
    old = Pki(tmp_path / "old", begins=NOW - 10 * DAY, days=5)
    assert certified(old, *old.issue("gateway-1"))["certificate's CA"] is Status.FAIL


@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_or_key_is_told_and_never_shown(pki: Pki, tmp_path: Path, content: bytes) -> None:
    cert, key = pki.issue("gateway-1")
    wrong = tmp_path / "wrong"
    wrong.write_bytes(content)
    assert certified(pki, wrong, key)["certificate"] is Status.FAIL
    found = list(check_certificate("certificate", cert, wrong, pki.file, name=None, now=NOW))
    assert statuses(found)["certificate's key"] is Status.FAIL
    assert not content or content.decode() not in "".join(one.said for one in found)


def test_a_key_that_asks_for_a_password_fails(pki: Pki, tmp_path: Path) -> None:
    cert, _ = pki.issue("gateway-1")
    locked = write_key(tmp_path / "locked.key", ec.generate_private_key(ec.SECP256R1()), b"password")
    assert certified(pki, cert, locked)["certificate's key"] is Status.FAIL


def test_a_brokers_certificate_has_names(pki: Pki) -> None:
    for address, status in (("127.0.0.1", Status.OK), (None, Status.FAIL)):
        made = read_certificates(pki.issue("broker", address=address)[0])
        assert not isinstance(made, str)
        assert check_names("certificate", made[0]).status is status


def test_a_list_of_revoked_certificates(pki: Pki, tmp_path: Path) -> None:
    own = read_certificates(pki.issue("broker")[0])
    assert not isinstance(own, str)

    def found(path: Path | None, authority: Pki = pki) -> Status:
        return statuses(check_revoked("list", path, authority.file, own, NOW))["list"]

    path = tmp_path / "revoked.crl"
    assert found(None) is Status.WARN
    assert found(path) is Status.FAIL, "a list that is named and not there keeps the broker from starting"
    assert found(pki.revoke(path, [1, 2])) is Status.OK
    assert found(pki.revoke(path, [], until=NOW + 3 * DAY)) is Status.WARN
    assert found(pki.revoke(path, [], until=NOW - timedelta(hours=1))) is Status.FAIL
    assert found(pki.revoke(path, [], made=NOW + DAY, until=NOW + 9 * DAY)) is Status.FAIL
    assert found(pki.revoke(path, [own[0].serial_number])) is Status.FAIL
    assert found(pki.revoke(path, []), Pki(tmp_path / "other")) is Status.FAIL
    path.write_text("junk")
    assert found(path) is Status.FAIL


# -- identity folders -------------------------------------------------------------------------------------------


def identity(pki: Pki, folder: Path, kind: Kind, name: str, trust: TrustAuthority | None = None) -> Path:
    """A whole one."""
    folder.mkdir()
    trust = trust or TrustAuthority("plant")
    stem = "broker" if kind == "broker" else "client"
    for path in pki.issue(name, address="127.0.0.1" if kind == "broker" else None, stem=stem):
        path.rename(folder / path.name)
    (folder / "ca.crt").write_bytes(pki.file.read_bytes())
    if kind == "broker":
        pki.revoke(folder / "revoked.crl", [])
    else:
        (folder / "trust").write_text(trust.chain.text())
    if kind == "gateway":
        own = read_certificates(folder / "client.crt")
        assert not isinstance(own, str)
        trust.serials[name] = own[0].serial_number
        (folder / "card").write_bytes(trust.card(name))
        write_key(folder / "agreement.key", trust.keys[name])
    if kind == "coordinator":
        write_key(folder / "signing.key", trust.signing)
        write_key(folder / "agreement.key", trust.agreement)
    return folder


def found_in(folder: Path, kind: Kind, name: str = "name-1", federation: str = "plant") -> dict[str, Status]:
    return statuses(check_folder(folder, kind, name=name, federation=federation, now=NOW))


@pytest.mark.parametrize("kind", list(FILES))
def test_a_whole_identity_folder_is_ok_in_every_way(pki: Pki, tmp_path: Path, kind: Kind) -> None:
    folder = identity(pki, tmp_path / "identity", kind, "name-1")
    assert kind_of(folder) == kind
    found = found_in(folder, kind)
    assert set(found.values()) == {Status.OK}, found
    assert ("trust" in found) is (kind != "broker")


@pytest.mark.parametrize("kind", list(FILES))
def test_each_file_of_an_identity_folder_is_missed(pki: Pki, tmp_path: Path, kind: Kind) -> None:
    folder = identity(pki, tmp_path / "identity", kind, "name-1")
    for file in FILES[kind]:
        aside = (folder / file).rename(tmp_path / "aside")
        found = bad(check_folder(folder, kind, name="name-1", federation="plant", now=NOW))
        assert any(file in one.said for one in found)
        aside.rename(folder / file)
    assert bad(check_folder(folder, kind, name="name-1", federation="plant", now=NOW)) == []


def test_a_file_of_an_identity_may_be_elsewhere(pki: Pki, tmp_path: Path) -> None:
    folder = identity(pki, tmp_path / "identity", "gateway", "name-1")
    key = (folder / "client.key").rename(tmp_path / "own.key")
    given = {"client.key": key}
    found = check_folder(folder, "gateway", name="name-1", federation="plant", now=NOW, elsewhere=given)
    assert bad(found) == []


def test_keys_of_an_identity_folder_are_of_their_kind_and_secret(pki: Pki, tmp_path: Path) -> None:
    folder = identity(pki, tmp_path / "identity", "gateway", "name-1")
    write_key(folder / "agreement.key", ed25519.Ed25519PrivateKey.generate())
    (folder / "client.key").chmod(0o644)
    found = found_in(folder, "gateway")
    assert found["agreement.key's kind"] is Status.FAIL
    assert found["client.key"] is Status.FAIL


def test_trust_and_card_are_of_this_federation_this_name_and_these_keys(pki: Pki, tmp_path: Path) -> None:
    folder = identity(pki, tmp_path / "identity", "gateway", "name-1")
    assert found_in(folder, "gateway", federation="another")["trust"] is Status.FAIL
    assert found_in(folder, "gateway", name="name-2")["card"] is Status.FAIL
    write_key(folder / "agreement.key", x25519.X25519PrivateKey.generate())
    assert found_in(folder, "gateway")["agreement.key's place"] is Status.FAIL
    # A card of another federation's issuer, then no card and no roots at all.
    (folder / "card").write_bytes(TrustAuthority("plant").card("name-1"))
    assert found_in(folder, "gateway")["card"] is Status.FAIL
    (folder / "card").write_bytes(b"junk")
    assert found_in(folder, "gateway")["card"] is Status.FAIL
    (folder / "trust").write_text("junk\n")
    assert found_in(folder, "gateway")["trust"] is Status.FAIL


def test_a_coordinators_keys_are_those_that_the_root_names(pki: Pki, tmp_path: Path) -> None:
    folder = identity(pki, tmp_path / "identity", "coordinator", "name-1")
    write_key(folder / "signing.key", ed25519.Ed25519PrivateKey.generate())
    write_key(folder / "agreement.key", x25519.X25519PrivateKey.generate())
    found = found_in(folder, "coordinator")
    assert (found["signing.key's place"], found["agreement.key's place"]) == (Status.FAIL, Status.FAIL)


def test_a_root_and_a_card_end_one_day(pki: Pki, tmp_path: Path) -> None:
    soon = int((NOW + 3 * DAY).timestamp())
    trust = TrustAuthority("plant", expires=soon)
    folder = identity(pki, tmp_path / "identity", "gateway", "name-1", trust)
    assert found_in(folder, "gateway")["trust"] is Status.WARN
    for begins, expires, status in ((1, soon, Status.WARN), (1, 2, Status.FAIL), (soon, soon + 9, Status.FAIL)):
        (folder / "card").write_bytes(trust.card("name-1", begins=begins, expires=expires))
        assert found_in(folder, "gateway")["card"] is status
    trust.serials["name-1"] = 5
    (folder / "card").write_bytes(trust.card("name-1"))
    assert found_in(folder, "gateway")["card's number"] is Status.WARN, "revoking one would leave the other"


# -- clock ------------------------------------------------------------------------------------------------------


def test_a_clock_before_what_it_wrote_itself_is_wrong(tmp_path: Path) -> None:
    written = tmp_path / "gateway.sqlite"
    written.write_text("")
    now = datetime.now(UTC)
    assert check_against(now, [written, tmp_path / "nothing"]).status is Status.OK
    os.utime(written, (now.timestamp() + 86_400,) * 2)
    assert check_against(now, [written]).status is Status.FAIL


@pytest.mark.parametrize(
    ("script", "follows"),
    [("echo yes", True), ("echo no", False), ("exit 1", None), ("echo perhaps", None)],
)
def test_whether_a_clock_follows_a_time_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, follows: bool | None
) -> None:
    program = tmp_path / "timedatectl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(clock, "_MARK", tmp_path / "synchronized")
    assert clock.follows_time_server() is follows
    if follows is None:
        (tmp_path / "synchronized").write_text("")
        assert clock.follows_time_server() is True


# -- what the broker's answers mean -----------------------------------------------------------------------------


def judged(role: Role, *, identified: bool = True, **answers: Any) -> dict[str, Status]:
    tried = replace(Tried(protocol="5", max_packet_bytes=262_144, answered=True), **answers)
    return statuses(judge(role, "plant", "gateway-1", tried, identified=identified))


def test_a_refused_message_in_anothers_name_is_what_is_wanted() -> None:
    forbidden, own, _ = probes("gateway", "plant", "gateway-1", identified=True)
    assert forbidden == f"fl/1/plant/up/{PROBE}/chunk"
    assert own == "fl/1/plant/up/gateway-1/chunk"
    assert judged("gateway", denied={forbidden: "Not authorized"})["ACL, forbidden message"] is Status.OK
    assert judged("gateway")["ACL, forbidden message"] is Status.FAIL
    assert judged("gateway", denied={own: "Not authorized"})["ACL, own message"] is Status.FAIL


def test_with_mqtt_3_1_1_what_cannot_be_known_is_said_to_be_unknown() -> None:
    found = judged("gateway", protocol="3.1.1", max_packet_bytes=None)
    assert found["ACL, forbidden message"] is Status.UNKNOWN
    assert found["ACL, own message"] is Status.UNKNOWN
    assert found["largest packet"] is Status.UNKNOWN
    # What is delivered tells all the same.
    births = {"fl/1/plant/up/gateway-2/status"}
    assert judged("gateway", protocol="3.1.1", delivered=births)["ACL, others' messages"] is Status.FAIL


def test_what_was_delivered_says_who_may_read() -> None:
    births, report = {"fl/1/plant/up/gateway-2/status"}, {"fl/1/plant/down/report"}
    assert judged("gateway", delivered=births | report)["ACL, others' messages"] is Status.FAIL
    assert judged("gateway", delivered=report)["ACL, others' messages"] is Status.OK
    assert judged("gateway")["ACL, others' messages"] is Status.UNKNOWN
    assert judged("gateway", identified=False, delivered=births)["ACL, others' messages"] is Status.WARN
    assert judged("coordinator", delivered=births)["ACL, gateways' messages"] is Status.OK
    assert judged("coordinator")["ACL, gateways' messages"] is Status.UNKNOWN


@pytest.mark.parametrize(("size", "status"), [(262_144, "ok"), (100_000, "warn"), (20_480, "FAIL"), (None, "unknown")])
def test_the_largest_packet_that_a_broker_takes(size: int | None, status: str) -> None:
    assert judged("gateway", max_packet_bytes=size)["largest packet"].value == status


def test_a_broker_that_lets_nobody_in_fails() -> None:
    assert judged("gateway", refused="not authorised") == {"MQTT": Status.FAIL}


def test_a_broker_that_does_not_answer_leaves_its_acl_unknown() -> None:
    assert judged("gateway", answered=False)["ACL"] is Status.UNKNOWN


# -- with a real broker -----------------------------------------------------------------------------------------


class Plant:
    """A broker with certificates, and settings of all three programs."""

    def __init__(self, folder: Path, **broker: Any) -> None:
        self.folder = folder
        self.pki = Pki(folder / "tls")
        cert, key = self.pki.issue("broker", address="127.0.0.1")
        self.revoked = self.pki.revoke(folder / "tls" / "revoked.crl", [])
        self.acl = folder / "guard" / "acl"
        self.etc = folder / "etc"
        self.broker_toml = folder / "broker.toml"
        values = {
            "access": "certificates",
            "ca_file": str(self.pki.file),
            "certificate_file": str(cert),
            "key_file": str(key),
            "revoked_file": str(self.revoked),
            "guard_dir": str(folder / "guard"),
            "port": free_port(),
            "persistence_dir": str(folder / "persistence"),
            "user": "root",
            "log": str(folder / "mosquitto.log"),
        } | broker
        write_toml(self.broker_toml, values)
        self.table = load(BrokerTable, self.broker_toml)
        self.broker = LocalBroker(self.table.broker(), port=None, directory=self.etc)
        (folder / "data" / "normal").mkdir(parents=True)

    def settings(self, program: str, cert: Path, key: Path, **more: Any) -> Path:
        own = {"name": "gateway-1", "data_dir": str(self.folder / "data"), "state_dir": str(self.folder / "gateway")}
        if program == "coordinator":
            own = {"state_dir": str(self.folder / "coordinator"), "task.name": "t", "task.classes": ["a", "b"]}  # type: ignore[dict-item]
        path = self.folder / f"{program}.toml"
        write_toml(path, own | self.connection(cert, key) | more)
        return path

    def connection(self, cert: Path, key: Path) -> dict[str, Any]:
        return {
            "connection.port": self.table.port,
            "connection.tls": True,
            "connection.ca_file": str(self.pki.file),
            "connection.certificate_file": str(cert),
            "connection.key_file": str(key),
        }

    def session(self, name: str) -> MqttSession:
        cert, key = self.pki.issue(name, stem=f"session-{name}")
        return MqttSession(
            Connection(
                host="127.0.0.1", port=self.table.port, client_id=name, ca_file=self.pki.file, cert_file=cert,
                key_file=key, session_expiry_seconds=0,
            )
        )  # fmt: skip

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """`fedmq broker guard`, beside the broker."""
        words = [sys.executable, "-m", "fedmq", "broker", "guard", "--config", str(self.broker_toml)]
        log = self.folder / "guard.log"
        with log.open("wb") as output:
            process = subprocess.Popen(words, stdout=output, stderr=output, env=environment(), start_new_session=True)
        try:
            eventually(lambda: roles.guards() > 0, "the guard to run")
            yield
            assert process.poll() is None, log.read_text(encoding="utf-8")
        finally:
            process.terminate()
            process.wait()

    def doctor_of_broker(self, status: int = 0) -> dict[str, str]:
        return doctor("broker", "--config", str(self.broker_toml), "--directory", str(self.etc), status=status)

    def log(self) -> str:
        return (self.folder / "mosquitto.log").read_text(encoding="utf-8")


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    if find_mosquitto() is None:
        pytest.skip("needs Mosquitto: apt-get install mosquitto")
    if os.geteuid() != 0:
        pytest.skip("the broker's settings name root as its user")
    return Plant(tmp_path)


def doctor(*words: str, status: int = 0) -> dict[str, str]:
    """The real command; the status of each check."""
    ended = fedmq("doctor", *words, "--json")
    assert ended.returncode == status, ended.stdout + ended.stderr
    found = json.loads(ended.stdout)
    assert found["sound"] is (status == 0)
    order = ["ok", "unknown", "warn", "FAIL"]
    worst: dict[str, str] = {}
    for one in found["findings"]:
        worst[one["check"]] = max(worst.get(one["check"], "ok"), one["status"], key=order.index)
        assert one["status"] in ("ok", "unknown") or one["todo"], "what to do is missing"
    return worst


def say(session: MqttSession, *where: str) -> None:
    """Kept by the broker when this returns."""
    expect(session, Connected)
    for text in where:
        assert session.publish(text, b"kept", retain=True)
    eventually(lambda: session.outstanding == 0, "the broker to take it")


@pytest.mark.broker
def test_a_sound_federation_is_sound_for_all_three(plant: Plant) -> None:
    gateway = plant.settings("gateway", *plant.pki.issue("gateway-1"))
    coordinator = plant.settings("coordinator", *plant.pki.issue("coordinator"))
    with plant.broker:
        speaker, other = plant.session("coordinator"), plant.session("gateway-2")
        for session in (speaker, other):
            session.start()
        say(speaker, "fl/1/plant/down/report")
        say(other, "fl/1/plant/up/gateway-2/status")
        for session in (speaker, other):
            session.stop(flush_seconds=1)

        found = doctor("gateway", "--config", str(gateway))
        for check in ("settings", "certificate", "certificate's key", "own certificate at the broker", "TLS", "MQTT",
                      "largest packet", "ACL, forbidden message", "ACL, own message",
                      "ACL, others' messages"):  # fmt: skip
            assert found[check] == "ok", check
        found = doctor("coordinator", "--config", str(coordinator))
        for check in ("ACL, forbidden message", "ACL, own message", "ACL, gateways' messages"):
            assert found[check] == "ok", check
        with plant.guard():
            found = plant.doctor_of_broker()
        for check in ("guard", "guard's folder", "guard's password", "list in force", "mosquitto.conf", "acl",
                      "Mosquitto", "key file", "certificate's names", "revoked certificates", "access", "listener",
                      "certificate in use", "strangers", "persistence"):  # fmt: skip
            assert found[check] == "ok", check
        assert "warn" not in found.values()


@pytest.mark.broker
def test_an_acl_that_is_not_in_force_is_found_by_trying(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the broker's side by its file, on the gateway's side by what it may write and read."""
    gateway = plant.settings("gateway", *plant.pki.issue("gateway-1"))
    monkeypatch.setattr("fedmq_broker_config.run.render_acl", lambda settings, revoked: "pattern readwrite #\n")
    with plant.broker:
        other = plant.session("gateway-2")
        other.start()
        say(other, "fl/1/plant/up/gateway-2/status")
        other.stop(flush_seconds=1)
        found = doctor("gateway", "--config", str(gateway), status=1)
        assert found["ACL, forbidden message"] == "FAIL"
        assert found["ACL, others' messages"] == "FAIL"
        found = plant.doctor_of_broker(status=1)
        assert found["acl"] == "FAIL"
        assert found["mosquitto.conf"] == "ok"


@pytest.mark.broker
def test_what_the_ca_issues_is_sound_and_its_observer_sees_the_traffic(tmp_path: Path) -> None:
    """The whole way: `fedmq ca`, then the programs' own settings, then the doctor and `fedmq wire show`."""
    if find_mosquitto() is None or os.geteuid() != 0:
        pytest.skip("needs Mosquitto, and root, whom the broker's settings name")
    ca = tmp_path / "ca"
    for words in (
        ("init", "--federation", "plant"),
        ("issue", "gateway-1", "--out", str(tmp_path / "gateway-1")),
        ("issue", "auditor", "--kind", "observer", "--out", str(tmp_path / "auditor")),
    ):
        ended = fedmq("ca", *words, "--dir", str(ca))
        assert ended.returncode == 0, ended.stderr
    port = free_port()
    broker = tmp_path / "broker.toml"
    write_toml(
        broker,
        {
            "access": "certificates", "port": port, "user": "root", "observers": ["auditor"],
            "ca_file": "ca/broker/ca.crt", "certificate_file": "ca/broker/broker.crt",
            "key_file": "ca/broker/broker.key",
            "revoked_file": str(ca / "revoked.crl"), "guard_dir": str(tmp_path / "guard"),
        },
    )  # fmt: skip
    (tmp_path / "data").mkdir()
    gateway, coordinator, wire = (tmp_path / f"{name}.toml" for name in ("gateway", "coordinator", "wire"))
    own = {"name": "gateway-1", "data_dir": "data", "state_dir": "state", "connection.identity_dir": "gateway-1"}
    write_toml(gateway, own | {"connection.port": port})
    task = {"task.name": "t", "task.classes": ["a", "b"], "state_dir": "coordinator"}
    write_toml(coordinator, task | {"connection.identity_dir": "ca/coordinator", "connection.port": port})
    write_toml(wire, {"connection.identity_dir": "auditor", "connection.port": port})
    settings = load(BrokerTable, broker).broker()
    with LocalBroker(settings, port=None, directory=tmp_path / "etc"):
        found = doctor("gateway", "--config", str(gateway))
        for check in ("trust", "card", "certificate", "agreement.key's place", "ACL, forbidden message"):
            assert found[check] == "ok", check
        found = doctor("coordinator", "--config", str(coordinator))
        for check in ("trust", "signing.key's place", "ACL, forbidden message", "ACL, own message"):
            assert found[check] == "ok", check
        identities = ("--identity", str(ca / "broker"), "--identity", str(tmp_path / "auditor"))
        found = doctor("broker", "--config", str(broker), "--directory", str(tmp_path / "etc"), *identities)
        assert (found["identity of a broker"], found["identity of an observer"]) == ("ok", "ok")

        shown = tmp_path / "shown"
        with shown.open("wb") as output:
            words_ = [sys.executable, "-m", "fedmq", "wire", "show", "--config", str(wire), "--json"]
            watcher = subprocess.Popen(words_, stdout=output, stderr=subprocess.PIPE, env=environment())
        try:
            assert watcher.stderr is not None
            assert b"connected" in watcher.stderr.readline()
            # What the doctor tries on the gateway's behalf goes by, and the observer sees it.
            doctor("gateway", "--config", str(gateway))
            eventually(lambda: b'"channel":"chunk"' in shown.read_bytes(), "the observer to see the traffic")
        finally:
            watcher.kill()
            watcher.wait()


@pytest.mark.broker
def test_a_list_that_nobody_has_taken_up_is_found(plant: Plant) -> None:
    with plant.broker:
        plant.pki.revoke(plant.revoked, [4711])
        assert plant.doctor_of_broker(status=1)["list in force"] == "FAIL"
        plant.acl.parent.chmod(0o755)
        assert plant.doctor_of_broker(status=1)["guard's folder"] == "FAIL"


@pytest.mark.broker
def test_a_revoked_certificate_is_refused_and_that_is_told(plant: Plant) -> None:
    cert, key = plant.pki.issue("gateway-1")
    made = read_certificates(cert)
    assert not isinstance(made, str)
    plant.pki.revoke(plant.revoked, [made[0].serial_number])
    with plant.broker:
        found = doctor("gateway", "--config", str(plant.settings("gateway", cert, key)), status=1)
        assert found["certificate"] == "ok", "a gateway has no list of its own"
        assert found["own certificate at the broker"] == "FAIL"
        assert "MQTT" not in found


@pytest.mark.broker
def test_a_broker_of_another_authority_is_refused(plant: Plant, tmp_path: Path) -> None:
    cert, key = plant.pki.issue("gateway-1")
    stranger = Pki(tmp_path / "stranger", "another CA")
    settings = plant.settings("gateway", cert, key, **{"connection.ca_file": str(stranger.file)})
    with plant.broker:
        found = doctor("gateway", "--config", str(settings), status=1)
        assert found["TLS"] == "FAIL"
        assert found["certificate's CA"] == "FAIL"


@pytest.mark.broker
def test_an_expired_certificate_of_the_broker_is_told_with_its_date(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.pki.issue("broker", address="127.0.0.1", ends=NOW - timedelta(hours=1))
    with plant.broker:
        settings = plant.settings("gateway", *plant.pki.issue("gateway-1"))
        ended = fedmq("doctor", "gateway", "--config", str(settings))
        assert ended.returncode == 1
        assert "certificate has expired" in ended.stdout
        assert f"has expired on {NOW - timedelta(hours=1):%Y-%m-%d}" in ended.stdout


@pytest.mark.broker
@pytest.mark.slow
def test_a_gateway_that_runs_is_not_disturbed(plant: Plant) -> None:
    fleet = small_fleet(2)
    name = fleet.gateways[0].name
    cert, key = plant.pki.issue(name)
    connection = plant.connection(cert, key)
    with plant.broker, Site(plant.folder / "site", fleet, port=plant.table.port, gateway=connection) as site:
        program = site.start_gateway(name)
        site.poll(program.is_connected, "the gateway to connect")
        config = site.directory / "gateways" / name / "gateway.toml"
        found = doctor("gateway", "--config", str(config))
        assert found["TLS"] == "ok"
        assert found["gateway at work"] == "ok"
        assert found["gateway's connection"] == "ok"
        assert found["MQTT and ACL"] == "unknown"
        assert "MQTT" not in found
        assert plant.log().count("New client connected from 127.0.0.1") == 1
        site.stop(name)
        assert "lost" not in program.text()
        # It is stopped: now all is tried.
        found = doctor("gateway", "--config", str(config))
        assert found["ACL, forbidden message"] == "ok"


@pytest.mark.broker
def test_an_anonymous_broker_on_this_machine_is_warned_of(tmp_path: Path, mosquitto: LocalBroker) -> None:
    (tmp_path / "data").mkdir()
    settings = tmp_path / "gateway.toml"
    write_toml(
        settings,
        {"name": "g", "data_dir": "data", "state_dir": "state", "connection.port": mosquitto.port},
    )
    found = doctor("gateway", "--config", str(settings))
    assert found["identity"] == "warn"
    assert found["ACL, forbidden message"] == "ok", "the ACL of a trial names the table's channels"
    broker = tmp_path / "broker.toml"
    write_toml(broker, {"port": mosquitto.port, "user": "root"})
    found = doctor("broker", "--config", str(broker), "--directory", str(mosquitto.directory))
    assert found["access"] == "warn"
    assert found["listener"] == "ok"


@pytest.mark.broker
def test_strangers_who_get_in_are_found(tmp_path: Path, mosquitto: LocalBroker) -> None:
    """The settings ask for passwords, and what runs does not."""
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    passwords.chmod(0o600)
    broker = tmp_path / "broker.toml"
    write_toml(broker, {"port": mosquitto.port, "access": "passwords", "password_file": str(passwords)})
    found = doctor("broker", "--config", str(broker), "--directory", str(mosquitto.directory), status=1)
    assert found["strangers"] == "FAIL"
    assert found["mosquitto.conf"] == "FAIL"
    assert refuses_strangers("127.0.0.1", free_port(), tls=False).status is Status.UNKNOWN


def test_offline_nothing_is_connected_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> object:
        raise AssertionError("a connection was made")

    monkeypatch.setattr("socket.create_connection", never)
    monkeypatch.setattr("socket.getaddrinfo", never)
    (tmp_path / "data").mkdir()
    overrides = ["name=g", f"data_dir={tmp_path / 'data'}", f"state_dir={tmp_path / 'state'}"]
    found = list(check_gateway(None, overrides, identity=None, offline=True, now=NOW))
    assert bad(found) == []
    assert statuses(found)["broker"] is Status.UNKNOWN
    broker = list(roles.check_broker(None, ["port=1"], directory=tmp_path, identities=[], offline=True, now=NOW))
    assert statuses(broker)["listener"] is Status.UNKNOWN


def test_a_broker_that_is_not_there_fails_and_says_where(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    settings = tmp_path / "gateway.toml"
    port = free_port()
    write_toml(settings, {"name": "g", "data_dir": "data", "state_dir": "state", "connection.port": port})
    found = doctor("gateway", "--config", str(settings), status=1)
    assert found["broker's port"] == "FAIL"
    write_toml(settings, {"name": "g", "data_dir": "data", "state_dir": "state", "connection.host": "no.such.invalid"})
    assert doctor("gateway", "--config", str(settings), status=1)["broker's name"] == "FAIL"
    broker = tmp_path / "broker.toml"
    write_toml(broker, {"port": port})
    write_configuration(load(BrokerTable, broker).broker(), tmp_path / "etc")
    found = doctor("broker", "--config", str(broker), "--directory", str(tmp_path / "etc"), status=1)
    assert (found["listener"], found["acl"]) == ("FAIL", "ok")


@pytest.mark.parametrize("role", ["gateway", "coordinator", "broker"])
def test_settings_that_cannot_be_used_fail_with_every_mistake(tmp_path: Path, role: str) -> None:
    settings = tmp_path / f"{role}.toml"
    settings.write_text('unknown_key = 1\nconnection = "x"\nport = "y"\n')
    ended = fedmq("doctor", role, "--config", str(settings), "--json")
    assert ended.returncode == 1
    (found,) = json.loads(ended.stdout)["findings"]
    assert found["status"] == "FAIL"
    assert "unknown_key" in found["said"]


def test_what_was_found_is_told_where_the_rest_cannot_be_looked_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> Iterator[Finding]:
        yield ok("settings", "fine")
        raise PermissionError(13, "Permission denied", "/root/x")

    monkeypatch.setattr(program, "check_gateway", broken)
    arguments = argparse.Namespace(
        role="gateway", config=Path("x"), overrides=[], offline=True, identity=None, json=False
    )
    assert program.run(arguments) == 1
    said = capsys.readouterr().out
    assert "fine" in said
    assert "/root/x" in said


def test_what_may_not_be_read_cannot_be_told_of(tmp_path: Path) -> None:
    """A coordinator that a stranger cannot see may run: nobody connects in its place then."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    (tmp_path / "lock").write_text("")
    tmp_path.chmod(0o700)
    assert can_tell(tmp_path / "lock")
    assert can_tell(tmp_path / "nothing")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setuid(65_534)
            looked = (can_tell(tmp_path / "lock"), can_tell(tmp_path / "nothing"), is_open(tmp_path / "x.sqlite"))
            status = 0 if looked == (False, False, None) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_without_settings_it_says_what_it_needs() -> None:
    ended = fedmq("doctor", "gateway")
    assert ended.returncode == 1
    assert "--config" in ended.stderr


def test_a_guard_is_found_among_the_processes() -> None:
    words = [sys.executable, "-c", "import sys; sys.stdin.read()", "broker", "guard", "--config", "x"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        eventually(lambda: roles.guards() >= 1, "the process to have its words")
        assert process.stdin is not None
        process.stdin.close()


def test_listeners_and_connections_of_this_machine_are_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert listeners(server.getsockname()[1]) == {"127.0.0.1"}
    if socket.has_ipv6:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
            assert listeners(server.getsockname()[1]) == {"::1"}
    port = free_port()
    assert listeners(port) == set()
    with socket.create_server(("127.0.0.1", port)) as server:
        assert connections_to("127.0.0.1", port) == 0
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            assert connections_to("127.0.0.1", port) == 1


def test_a_watchs_book_that_is_not_there_is_told_and_one_that_is_must_be_writable(tmp_path: Path) -> None:
    def book(folder: Path) -> Finding:
        overrides = ["name='gateway-1'", f"data_dir='{tmp_path}'", f"state_dir='{tmp_path}'", f"watch_state='{folder}'"]
        found = check_gateway(None, overrides, identity=None, offline=True, now=datetime.now(UTC))
        return next(one for one in found if one.check == "watch's book")

    missing = book(tmp_path / "watch")
    assert missing.status is Status.WARN
    assert "nothing is told of machines" in missing.said
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "alerts.sqlite").touch()
    assert book(tmp_path / "watch").status is Status.OK
