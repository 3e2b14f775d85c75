"""What is rendered: as text, and as a real Mosquitto understands it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from broker_fixtures import eventually, expect, joined
from certificates import Authority
from fedmq_broker_config.render import (
    GUARD_USER,
    Anonymous,
    BrokerSettings,
    Certificates,
    Guarded,
    Passwords,
    Site,
    example_files,
    render_acl,
    render_conf,
)
from fedmq_broker_config.run import LocalBroker, find_mosquitto
from fedmq_protocol.session import ConnectFailed, Connection, Denied, MqttSession, Received
from fedmq_protocol.topics import TABLE, Direction, coordinator_filters, gateway_filters, topic

ROOT = Path(__file__).parents[2]
ACL = Path("/etc/mosquitto/acl")
PASSWORDS = Passwords(Path("/etc/mosquitto/passwords"))


def guarded_in(directory: Path) -> Certificates:
    tls = Path("/tls")
    return Certificates(
        ca_file=tls / "ca.crt",
        cert_file=tls / "broker.crt",
        key_file=tls / "broker.key",
        guarded=Guarded(revoked_file=tls / "revoked.crl", directory=directory),
    )


MAKE_EXAMPLES = """
the committed examples differ from what is rendered; write them anew with
  python -c "
from pathlib import Path
from fedmq_broker_config.render import example_files
for name, text in example_files().items():
    Path('broker_config/mosquitto', name).write_text(text)"
"""


def test_the_committed_examples_are_what_is_rendered() -> None:
    folder = ROOT / "broker_config/mosquitto"
    committed = {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}
    assert committed == example_files(), MAKE_EXAMPLES


def test_every_row_of_the_table_has_one_writer_and_one_reader_in_the_acl() -> None:
    acl = render_acl(BrokerSettings(access=PASSWORDS, federation="hall")).splitlines()
    for row in TABLE:
        text = topic("hall", row.direction, row.channel, None if row.direction is Direction.DOWN else "GATEWAY")
        pattern, coordinators = text.replace("GATEWAY", "%u"), text.replace("GATEWAY", "+")
        up = row.direction is Direction.UP
        assert f"pattern {'write' if up else 'read'} {pattern}" in acl
        assert f"topic {'read' if up else 'write'} {coordinators}" in acl
    rules = [line for line in acl if line.startswith(("topic", "pattern")) and " deny " not in line]
    assert len(rules) == 2 * len(TABLE)


def test_no_rule_lets_anyone_write_under_another_name() -> None:
    acl = render_acl(BrokerSettings(access=PASSWORDS))
    assert "readwrite" not in acl
    assert "%c" not in acl
    assert not [line for line in acl.splitlines() if line.startswith("topic write") and "/up/" in line]


def test_a_site_may_carry_its_gateways_and_no_others() -> None:
    site = Site(user="hall-2", gateways=("g1", "g2"))
    acl = render_acl(BrokerSettings(access=PASSWORDS, sites=(site,))).splitlines()
    start = acl.index("user hall-2")
    rules = acl[start + 1 : acl.index("", start)]
    written = {line.removeprefix("topic write ") for line in rules if line.startswith("topic write ")}
    denied = {line.removeprefix("topic deny ") for line in rules if line.startswith("topic deny ")}
    assert denied == topics_of("hall-2", Direction.UP)
    ups = [row for row in TABLE if row.direction is Direction.UP]
    assert written == {topic("plant", row.direction, row.channel, g) for row in ups for g in site.gateways}
    assert not [line for line in rules if "+" in line or "#" in line or "%" in line]


def test_what_bounds_memory_is_in_the_configuration() -> None:
    conf = render_conf(BrokerSettings(persistence_dir=Path("/var/lib/x")), ACL).splitlines()
    for line in (
        "max_packet_size 262144",
        "max_queued_bytes 16777216",
        "max_queued_messages 10000",
        "max_connections 10000",
        "max_keepalive 3600",
        "connection_messages true",
        "persistent_client_expiration 1h",
        "autosave_interval 1",
        "set_tcp_nodelay true",
        "persistence_location /var/lib/x/",
    ):
        assert line in conf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"address": "0.0.0.0"}, "without passwords or certificates"),
        ({"address": "::"}, "without passwords or certificates"),
        ({"address": "localhost"}, "expected an IP address"),
        ({"port": 0}, "port"),
        ({"federation": "a/b"}, "federation"),
        ({"coordinator": "#"}, "coordinator"),
        ({"max_packet_bytes": 20_480}, "max_packet_bytes"),
        ({"max_queued_bytes": 1}, "max_queued_bytes"),
        ({"max_connections": 0}, "max_connections"),
        ({"max_keepalive_seconds": 0}, "max_keepalive_seconds"),
        ({"sites": (Site(user="s", gateways=("g",)),)}, "needs passwords or certificates"),
        ({"observers": ("auditor",)}, "needs passwords or certificates"),
        ({"access": PASSWORDS, "observers": ("a/b",)}, "observers"),
        ({"access": PASSWORDS, "observers": ("coordinator",)}, "already that of the coordinator"),
        ({"access": PASSWORDS, "observers": (GUARD_USER,)}, "already that of the guard"),
        ({"access": PASSWORDS, "coordinator": GUARD_USER}, "already that of the guard"),
        (
            {"access": PASSWORDS, "observers": ("g",), "sites": (Site(user="s", gateways=("g",)),)},
            "'g' of site s is already that of an observer",
        ),
        ({"access": guarded_in(Path("/" + "x" * 97))}, "guard_dir: .* 108 bytes, and 107 is the most"),
        ({"access": PASSWORDS, "sites": (Site(user="coordinator", gateways=()),)}, "already that of the coordinator"),
        (
            {"access": PASSWORDS, "sites": (Site(user="s", gateways=("g",)), Site(user="t", gateways=("g",)))},
            "'g' of site t is already that of site s",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BrokerSettings(**changes)


@pytest.mark.parametrize("path", ["relative/file", "/etc/a\nallow_anonymous true"])
def test_a_path_cannot_smuggle_a_line_into_the_configuration(path: str) -> None:
    with pytest.raises(ValueError, match="absolute path without control characters"):
        render_conf(BrokerSettings(access=Passwords(Path(path))), ACL)
    with pytest.raises(ValueError, match="one word"):
        render_conf(BrokerSettings(user="a\nb"), ACL)


Make = Callable[..., MqttSession]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[MqttSession] = []

    def make_session(broker: LocalBroker, **changes: Any) -> MqttSession:
        made.append(MqttSession(Connection(**({"host": "127.0.0.1", "port": broker.port} | changes))))
        made[-1].start()
        return made[-1]

    yield make_session
    for session in made:
        session.stop(flush_seconds=0.0)


@pytest.fixture
def password_broker(tmp_path: Path) -> Iterator[LocalBroker]:
    """A broker with users coordinator, g1, g2, hall-2 (which carries g7) and auditor (who observes).

    Each has its name as its password.
    """
    program = shutil.which("mosquitto_passwd", path="/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if find_mosquitto() is None or program is None:
        pytest.skip("needs mosquitto and mosquitto_passwd: apt-get install mosquitto")
    file = tmp_path / "passwords"
    file.touch(mode=0o600)
    for user in ("coordinator", "g1", "g2", "hall-2", "auditor"):
        subprocess.run([program, "-b", str(file), user, user], check=True, capture_output=True)
    settings = BrokerSettings(
        access=Passwords(file), sites=(Site(user="hall-2", gateways=("g7",)),), observers=("auditor",)
    )
    with LocalBroker(settings, directory=tmp_path / "broker") as broker:
        yield broker


def user(broker: LocalBroker, make: Make, name: str) -> MqttSession:
    session = make(broker, client_id=f"any-{name}", username=name, password=name)
    session.subscribe("#")
    joined(session)
    return session


def written(session: MqttSession, text: str) -> bool:
    """Whether the broker took a message; MQTT 5 tells when it did not."""
    assert session.publish(text, text.encode())
    eventually(lambda: session.outstanding == 0, "the acknowledgement")
    denied = session.next(0.0)
    while denied is not None and not isinstance(denied, Denied):
        denied = session.next(0.0)
    return denied is None


def topics_of(gateway: str, *directions: Direction) -> set[str]:
    return {
        topic("plant", row.direction, row.channel, None if row.direction is Direction.DOWN else gateway)
        for row in TABLE
        if row.direction in directions
    }


@pytest.mark.broker
def test_each_user_writes_what_the_table_gives_and_nothing_else(password_broker: LocalBroker, make: Make) -> None:
    names = ("g1", "g2", "g7", "coordinator", "hall-2", "auditor")
    everything = {t for name in names for t in topics_of(name, *Direction)}
    everything |= {"fl/1/plant/up/g1/invented", "fl/1/other/up/g1/status", "other", "fl/1/plant/up/any-g1/status"}
    allowed = {
        "g1": topics_of("g1", Direction.UP),
        "hall-2": topics_of("g7", Direction.UP),
        # Neither of these is a gateway: what the patterns would let one of that name write is denied.
        "coordinator": {t for name in names for t in topics_of(name, Direction.DOWN, Direction.CMD)},
        "auditor": set(),
    }
    for name, expected in allowed.items():
        session = user(password_broker, make, name)
        assert {text for text in everything if written(session, text)} == expected, name


@pytest.mark.broker
def test_each_user_reads_what_the_table_gives_and_nothing_else(password_broker: LocalBroker, make: Make) -> None:
    coordinator, gateway = user(password_broker, make, "coordinator"), user(password_broker, make, "g1")
    others = {name: user(password_broker, make, name) for name in ("g2", "hall-2", "auditor")}
    up, down = topics_of("g1", Direction.UP), topics_of("", Direction.DOWN)
    for text in up:
        assert written(gateway, text)
    assert {expect(coordinator, Received).topic for _ in up} == up
    assert coordinator.next(0.05) is None
    assert {expect(others["auditor"], Received).topic for _ in up} == up

    for name in ("g1", "g2", "g7"):
        for text in topics_of(name, Direction.CMD):
            assert written(coordinator, text)
    for text in down:
        assert written(coordinator, text)
    for name, carried in (("g2", "g2"), ("hall-2", "g7")):
        expected = topics_of(carried, Direction.CMD) | down
        assert {expect(others[name], Received).topic for _ in expected} == expected
        assert others[name].next(0.05) is None
    commands = {t for name in ("g1", "g2", "g7") for t in topics_of(name, Direction.CMD)}
    assert {expect(others["auditor"], Received).topic for _ in commands | down} == commands | down


@pytest.mark.broker
def test_a_wrong_password_and_no_user_at_all_are_turned_away(password_broker: LocalBroker, make: Make) -> None:
    for changes in ({"username": "g1", "password": "wrong"}, {}):
        session = make(password_broker, client_id="g1", **changes)
        assert "Not authorized" in expect(session, ConnectFailed).reason


@pytest.mark.broker
def test_a_stolen_client_id_does_not_push_out_its_owner(password_broker: LocalBroker, make: Make) -> None:
    owner = make(password_broker, client_id="g1", username="g1", password="g1")
    joined(owner)
    thief = make(password_broker, client_id="g1", username="g2", password="g2")
    joined(thief)
    assert owner.next(0.2) is None
    assert owner.publish("fl/1/plant/up/g1/status", b"still here")


@pytest.mark.broker
def test_a_gateway_is_the_name_in_its_certificate(tmp_path: Path, make: Make) -> None:
    if find_mosquitto() is None:
        pytest.skip("needs Mosquitto: apt-get install mosquitto")
    authority = Authority(tmp_path / "certificates")
    cert, key = authority.issue("server", address="127.0.0.1")
    access = Certificates(ca_file=authority.ca_file, cert_file=cert, key_file=key)
    with LocalBroker(BrokerSettings(access=access), directory=tmp_path / "broker") as broker:

        def client(name: str, issuer: Authority = authority) -> MqttSession:
            cert, key = issuer.issue(name)
            return make(broker, client_id=name, ca_file=authority.ca_file, cert_file=cert, key_file=key)

        coordinator, gateway = client("coordinator"), client("g1")
        coordinator.subscribe(*coordinator_filters("plant"))
        gateway.subscribe(*gateway_filters("plant", "g1"))
        joined(coordinator)
        joined(gateway)
        assert written(gateway, "fl/1/plant/up/g1/answer")
        assert not written(gateway, "fl/1/plant/up/g2/answer")
        assert expect(coordinator, Received).topic == "fl/1/plant/up/g1/answer"
        payload = bytes(200_000)
        assert coordinator.publish("fl/1/plant/down/plan", payload)
        assert expect(gateway, Received).payload == payload

        stranger = client("g3", Authority(tmp_path / "others"))
        assert expect(stranger, ConnectFailed).reason
        nobody = make(broker, client_id="g4", ca_file=authority.ca_file)
        assert expect(nobody, ConnectFailed).reason
        distrusting = make(broker, client_id="g5", ca_file=Authority(tmp_path / "third").ca_file)
        assert "the broker's certificate is not trusted" in expect(distrusting, ConnectFailed).reason
        plain = make(broker, client_id="g6")
        assert expect(plain, ConnectFailed).reason


@pytest.mark.broker
def test_retained_status_and_sessions_survive_a_restart_where_they_are_kept(tmp_path: Path, make: Make) -> None:
    if find_mosquitto() is None:
        pytest.skip("needs Mosquitto: apt-get install mosquitto")
    settings = BrokerSettings(persistence_dir=tmp_path / "data")
    status = "fl/1/plant/up/g1/status"
    with LocalBroker(settings, directory=tmp_path / "broker") as broker:
        gateway = make(broker, client_id="g1")
        joined(gateway)
        gateway.publish(status, b"online", retain=True)
        gateway.stop(flush_seconds=1.0)
        broker.restart()
        watcher = make(broker, client_id="watcher")
        watcher.subscribe(status)
        assert expect(watcher, Received) == Received(status, b"online", True)


@pytest.mark.broker
@pytest.mark.parametrize("kind", ["plant", "loopback"])
def test_the_committed_configuration_starts_with_only_its_paths_and_port_changed(
    tmp_path: Path, short_dir: Path, kind: str
) -> None:
    # The text itself is held equal to what is rendered; here Mosquitto reads it, through LocalBroker's own rendering.
    if find_mosquitto() is None:
        pytest.skip("needs Mosquitto: apt-get install mosquitto")
    settings = BrokerSettings(access=Anonymous())
    if kind == "plant":
        authority = Authority(tmp_path / "certificates")
        cert, key = authority.issue("server", address="127.0.0.1")
        access = Certificates(ca_file=authority.ca_file, cert_file=cert, key_file=key)
        revoked_file = tmp_path / "revoked.crl"
        authority.revoke(revoked_file)
        access = replace(access, guarded=Guarded(revoked_file=revoked_file, directory=short_dir))
        settings = replace(settings, address="0.0.0.0", access=access, persistence_dir=tmp_path / "data")
    with LocalBroker(settings, directory=tmp_path / "broker") as broker:
        conf = (tmp_path / "broker/mosquitto.conf").read_text()
        shipped = example_files()["mosquitto.conf" if kind == "plant" else "loopback/mosquitto.conf"]
        keys = [[line.split()[0] for line in text.splitlines() if line[:1].isalpha()] for text in (conf, shipped)]
        assert [key for key in keys[0] if key != "user"] == [key for key in keys[1] if key != "user"]
        broker.check()
        log = broker.log_file.read_text()
    assert not [
        line
        for line in log.splitlines()
        if ("Error" in line or "Warning" in line)
        and "run as root" not in line
        # Lines for all gateways alike stand among the patterns, so that the rules of users come first.
        and not ("ACL pattern 'fl/1/plant/down/" in line and "does not contain" in line)
    ]
