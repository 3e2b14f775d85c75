"""Somebody else on the machine: who may write a program's settings, or its folder, would have it do as he likes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from processes import fedmq, small_fleet
from redteam import CertifiedSite, Outcome, Stand

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def a_gateway(stand: Stand, directory: Path, name: str) -> tuple[CertifiedSite, Path]:
    """Settings and folders of a gateway that has never run, under a name that is enrolled."""
    site = CertifiedSite(directory, small_fleet(2), keys=stand.keys, port=stand.port)
    own = site.fleet.gateways[0].name
    site.identity_of[own] = stand.keys.issue(name).folder or directory
    site.gateway_of[own] = {"name": name}
    site.lay_out_gateway(own)
    return site, directory / "gateways" / own / "gateway.toml"


def does_not_start(stand: Stand, config: Path, reasons: tuple[str, ...]) -> None:
    ended = fedmq("gateway", "--config", str(config))
    assert ended.returncode != 0
    for reason in reasons:
        assert reason in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr
    stand.honest_round_went_on()


@pytest.mark.attack("settings file writable by others")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_settings_that_others_may_write_are_not_read(stand: Stand, outcome: Outcome, tmp_path: Path, what: str) -> None:
    _, config = a_gateway(stand, tmp_path, "mallory-settings")
    (config if what == "file" else config.parent).chmod(0o666 if what == "file" else 0o777)
    does_not_start(stand, config, (str(config), "everybody on this machine may", "chmod o-w"))
    assert not (config.parent / "state").exists()
    assert "as mallory-settings (" not in stand.broker_log()
    outcome("the program: it does not start")


@pytest.mark.attack("settings file writable by others")
def test_a_key_that_others_may_read_is_not_used(stand: Stand, outcome: Outcome, tmp_path: Path) -> None:
    _, config = a_gateway(stand, tmp_path, "mallory-key")
    key = stand.keys.issue("mallory-key").key_file
    key.chmod(0o644)
    does_not_start(stand, config, (str(key), "everybody on this machine may read it"))
    assert "as mallory-key (" not in stand.broker_log()
    outcome("the program: it does not start")


def link(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    place.symlink_to(target)


@pytest.mark.attack("symlink in the state directory")
@pytest.mark.parametrize("ending", ["", "-wal"])
def test_a_link_in_the_place_of_the_gateways_state_is_not_followed(
    stand: Stand, outcome: Outcome, tmp_path: Path, ending: str
) -> None:
    _, config = a_gateway(stand, tmp_path, "mallory-link")
    victim = tmp_path / "precious"
    victim.write_bytes(b"somebody else's")
    place = config.parent / "state" / f"gateway.sqlite{ending}"
    link(place, victim)
    does_not_start(stand, config, (str(place), "is a link to"))
    assert victim.read_bytes() == b"somebody else's"
    assert os.readlink(place) == str(victim)
    outcome("the program: it does not start")


@pytest.mark.attack("symlink in the state directory")
@pytest.mark.parametrize("name", ["ledger.sqlite", "lock"])
def test_a_link_in_the_place_of_the_coordinators_state_is_not_followed(
    stand: Stand, outcome: Outcome, tmp_path: Path, name: str
) -> None:
    site = CertifiedSite(tmp_path, small_fleet(2), keys=stand.keys, port=stand.port)
    victim = tmp_path / "precious"
    victim.write_bytes(b"somebody else's")
    link(site.state / name, victim)
    coordinator = site.start_coordinator()
    with site:
        coordinator.expected_to_run = False
        assert coordinator.process.wait(60) != 0
        assert str(site.state / name) in coordinator.text()
        assert "Traceback" not in coordinator.text()
    assert victim.read_bytes() == b"somebody else's"
    # It was not connected: the one that is at work was not pushed out.
    assert "another client came with our client id" not in stand.coordinator_log
    stand.honest_round_went_on()
    outcome("the program: it does not start")
