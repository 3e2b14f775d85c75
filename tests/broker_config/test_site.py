"""A site's broker and its bridge, with two real Mosquittos: what crosses, and what does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from broker_fixtures import eventually, expect, joined
from certificates import Authority
from fedmq_broker_config.render import (
    BrokerSettings,
    Certificates,
    Guarded,
    Site,
    Upstream,
    render_site_acl,
    render_site_conf,
)
from fedmq_broker_config.run import LocalBroker, find_mosquitto, free_port
from fedmq_broker_config.service import Guard
from fedmq_protocol.session import Connection, Disconnected, MqttSession, Received, Will
from fedmq_protocol.topics import TABLE, Direction, topic

SITES = (Site(user="north", gateways=("g1", "g2")), Site(user="south", gateways=("g3",)))


def all_topics(gateway: str) -> set[tuple[str, Direction]]:
    return {
        (
            topic("plant", row.direction, row.channel, None if row.direction is Direction.DOWN else gateway),
            row.direction,
        )
        for row in TABLE
    }


def test_the_bridge_carries_each_topic_of_its_gateways_in_its_one_direction() -> None:
    tls = Path("/tls")
    access = Certificates(ca_file=tls / "ca", cert_file=tls / "crt", key_file=tls / "key")
    upstream = Upstream(site="north", host="h", port=8883, ca_file=tls / "ca", cert_file=tls / "c", key_file=tls / "k")
    conf = render_site_conf(BrokerSettings(access=access, sites=SITES), upstream, Path("/acl")).splitlines()
    carried = {tuple(line.split()[1:3]) for line in conf if line.startswith("topic ")}
    assert carried == {
        (text, "out" if direction is Direction.UP else "in")
        for gateway in ("g1", "g2")
        for text, direction in all_topics(gateway)
    }
    for line in ("cleansession false", "notifications false", "try_private true", "bridge_protocol_version mqttv311"):
        assert line in conf
    with pytest.raises(ValueError, match="no site 'west'; those of the settings are: north, south"):
        render_site_acl(BrokerSettings(access=access, sites=SITES), "west")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"host": "a\naddress b"}, "one word"), ({"host": ""}, "one word"), ({"port": 0}, "upstream port")],
)
def test_an_upstream_that_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    tls = Path("/tls")
    right = Upstream(site="n", host="h", port=1, ca_file=tls, cert_file=tls, key_file=tls)
    with pytest.raises(ValueError, match=message):
        replace(right, **changes)


@dataclass(frozen=True, kw_only=True)
class Plant:
    """The federation's broker, and that of site north."""

    authority: Authority
    centre: LocalBroker
    north: LocalBroker
    revoked_file: Path
    sessions: list[MqttSession]

    def joined(self, broker: LocalBroker, name: str, *topics: str, will: Will | None = None) -> MqttSession:
        cert, key = self.authority.issue(name)
        session = MqttSession(
            Connection(
                host="127.0.0.1",
                port=broker.port,
                client_id=name,
                ca_file=self.authority.ca_file,
                cert_file=cert,
                key_file=key,
            ),
            will=will,
        )
        self.sessions.append(session)
        session.subscribe(*topics)
        session.start()
        joined(session)
        return session


@pytest.fixture
def plant(tmp_path: Path, short_dir: Path) -> Iterator[Plant]:
    if find_mosquitto() is None:
        pytest.skip("needs Mosquitto: apt-get install mosquitto")
    authority = Authority(tmp_path / "ca")
    revoked_file = tmp_path / "revoked.crl"
    authority.revoke(revoked_file)
    port = free_port()

    def settings(name: str, port: int) -> BrokerSettings:
        cert, key = authority.issue(name, address="127.0.0.1")
        guarded = Guarded(revoked_file=revoked_file, directory=short_dir / name)
        access = Certificates(ca_file=authority.ca_file, cert_file=cert, key_file=key, guarded=guarded)
        return BrokerSettings(access=access, sites=SITES, port=port, log=tmp_path / f"{name}.log")

    cert, key = authority.issue("north")
    upstream = Upstream(
        site="north", host="127.0.0.1", port=port, ca_file=authority.ca_file, cert_file=cert, key_file=key
    )
    sessions: list[MqttSession] = []
    centre = LocalBroker(settings("centre", port), port=None, directory=tmp_path / "centre")
    north = LocalBroker(settings("hall", 1883), directory=tmp_path / "north", upstream=upstream)
    with centre, north:
        eventually(lambda: "New bridge connected" in (tmp_path / "centre.log").read_text(), "the bridge")
        yield Plant(authority=authority, centre=centre, north=north, revoked_file=revoked_file, sessions=sessions)
        for session in sessions:
            session.stop(flush_seconds=0.0)


def drain(session: MqttSession) -> list[Received]:
    return [event for event in iter(lambda: session.next(0.3), None) if isinstance(event, Received)]


@pytest.mark.broker
def test_a_gateways_messages_cross_both_ways_and_nothing_else_does(plant: Plant) -> None:
    coordinator = plant.joined(plant.centre, "coordinator", "fl/1/plant/up/+/+")
    gateway = plant.joined(plant.north, "g1", "fl/1/plant/cmd/g1/+", "fl/1/plant/down/+")
    neighbour = plant.joined(plant.north, "g2", "#")
    # A gateway of another site, with a true certificate, at the wrong broker.
    stranger = plant.joined(plant.north, "g3", "#")
    up = {text for text, direction in all_topics("g1") if direction is Direction.UP}
    for text in up:
        assert gateway.publish(text, b"up")
    assert {expect(coordinator, Received).topic for _ in up} == up

    for text, direction in all_topics("g3"):
        if direction is Direction.UP:
            assert stranger.publish(text, b"carry me")
            # Nor may a gateway of the site speak for it.
            assert neighbour.publish(text, b"carry me")
    for text in ("fl/1/plant/down/plan", "fl/1/plant/cmd/g1/welcome", "fl/1/plant/up/g1/answer", "other"):
        assert neighbour.publish(text, b"forged")
    eventually(lambda: stranger.outstanding == neighbour.outstanding == 0, "the acknowledgements")
    assert drain(coordinator) == []
    assert drain(gateway) == []

    for name in ("g1", "g2", "g3"):
        for text, direction in all_topics(name):
            if direction is Direction.CMD:
                assert coordinator.publish(text, name.encode())
    down = {text for text, direction in all_topics("g1") if direction is Direction.DOWN}
    for text in down:
        assert coordinator.publish(text, b"all")
    for session, name in ((gateway, "g1"), (neighbour, "g2")):
        expected = {text for text, direction in all_topics(name) if direction is not Direction.UP}
        assert {expect(session, Received).topic for _ in expected} == expected
        assert drain(session) == []
    assert drain(stranger) == []


@pytest.mark.broker
def test_a_gateway_that_is_revoked_is_cut_off_at_its_site_and_its_will_crosses(plant: Plant) -> None:
    coordinator = plant.joined(plant.centre, "coordinator", "fl/1/plant/up/+/+")
    will = Will("fl/1/plant/up/g1/status", b"gone")
    gateway = plant.joined(plant.north, "g1", "fl/1/plant/down/plan", will=will)
    guard = Guard(plant.north.settings, site="north")
    assert guard.look()
    plant.authority.revoke(plant.revoked_file, {plant.authority.serial("g1"): "g1"}, number=2)
    assert guard.look()
    expect(gateway, Disconnected)
    assert expect(coordinator, Received) == Received(will.topic, b"gone", False)


@pytest.mark.broker
def test_a_site_that_is_revoked_carries_nothing_any_more(plant: Plant) -> None:
    coordinator = plant.joined(plant.centre, "coordinator", "fl/1/plant/up/+/+")
    gateway = plant.joined(plant.north, "g1", "fl/1/plant/down/plan")
    assert gateway.publish("fl/1/plant/up/g1/ask", b"before")
    assert expect(coordinator, Received).payload == b"before"
    guard = Guard(plant.centre.settings)
    plant.authority.revoke(plant.revoked_file, {plant.authority.serial("north"): "north"}, number=2)
    assert guard.look()
    assert gateway.publish("fl/1/plant/up/g1/ask", b"after")
    assert coordinator.publish("fl/1/plant/down/plan", b"after")
    assert drain(coordinator) == []
    assert drain(gateway) == []


@pytest.mark.broker
def test_a_gateway_that_is_revoked_is_carried_for_no_longer_whatever_its_site_does(plant: Plant) -> None:
    coordinator = plant.joined(plant.centre, "coordinator", "fl/1/plant/up/+/+")
    revoked = plant.joined(plant.north, "g1", "fl/1/plant/cmd/g1/+")
    other = plant.joined(plant.north, "g2", "fl/1/plant/cmd/g2/+")
    for gateway, name in ((revoked, "g1"), (other, "g2")):
        assert gateway.publish(f"fl/1/plant/up/{name}/ask", b"before")
        assert expect(coordinator, Received).payload == b"before"
    guard = Guard(plant.centre.settings)
    plant.authority.revoke(plant.revoked_file, {plant.authority.serial("g1"): "g1"}, number=2)
    assert guard.look()
    assert revoked.publish("fl/1/plant/up/g1/ask", b"after")
    assert coordinator.publish("fl/1/plant/cmd/g1/receipt", b"after")
    assert drain(coordinator) == []
    assert drain(revoked) == []
    assert other.publish("fl/1/plant/up/g2/ask", b"after")
    assert coordinator.publish("fl/1/plant/cmd/g2/receipt", b"after")
    assert expect(coordinator, Received).topic == "fl/1/plant/up/g2/ask"
    assert expect(other, Received).payload == b"after"
