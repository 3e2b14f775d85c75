"""4. A gateway is cut off while it is connected, and nobody else notices; one is taken off, and nothing is left."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from fleetbed import Bed, Machine
from fleetbed.plant import Plant

MACHINES = ["hub", "gw1", "gw2", "gw3"]
WITHIN_SECONDS = 10.0


@pytest.fixture(scope="module")
def bare(bed: Bed) -> Plant:
    """Machines with their recordings, which are the plant's and not ours, and nothing else."""
    plant = Plant(bed, gateways=["gw1", "gw2", "gw3"], pace=5.0)
    plant.lay_out_recordings()
    return plant


@pytest.fixture(scope="module")
def before(bare: Plant) -> dict[str, set[str]]:
    """What lies on their disks then."""
    return {machine.name: files(machine) for machine in bare.bed.machines}


@pytest.fixture(scope="module")
def plant(bare: Plant, before: dict[str, set[str]]) -> Plant:
    bare.build()
    bare.play("site.yml")
    bare.wait_round()
    return bare


def files(machine: Machine) -> set[str]:
    """All that lies on its disk."""
    found = machine.run("find / -xdev -not -path '/proc/*' -not -path '/run/*' -not -path '/tmp/*'").out.splitlines()
    return set(found)


def connection(plant: Plant, name: str) -> str:
    """The sockets that the broker has with a gateway: their ports tell one connection from the next."""
    address = plant.bed.machine(name).ip
    return plant.hub.run(f"ss -Htn state established src :8883 dst {address}").out


def test_a_revoked_gateway_is_cut_off_within_ten_seconds_and_nobody_else(plant: Plant) -> None:
    others = {name: connection(plant, name).split()[-1] for name in ("gw1", "gw2")}
    assert connection(plant, "gw3")
    with plant.no_round_lost():
        began = time.time()
        plant.play("revoke.yml", extra_vars={"revoke": "gw3", "reason": "key-compromise"})
        told = issued_revoked_at(plant)
        plant.hub.wait("gw3 cut off", lambda: not connection(plant, "gw3"), seconds=30)
        cut = cut_off_at(plant, since=began)
        plant.bed.times.append(("revoke.yml to cut off, from its beginning", cut - began))
        plant.bed.times.append(("revoked at the CA to cut off", cut - told))
        assert cut - told < WITHIN_SECONDS
        plant.wait_round(accepted=2)
        plant.wait_round(accepted=2)
    assert {name: connection(plant, name).split()[-1] for name in others} == others, "their connections never dropped"


def issued_revoked_at(plant: Plant) -> float:
    """When the CA wrote the list, by this host's clock, which is the machines' too."""
    return (Path(plant.variables["pki_dir"]) / "revoked.crl").stat().st_mtime


def cut_off_at(plant: Plant, *, since: float) -> float:
    """When the broker's log says that it ended gw3's connection: the guard takes it over."""
    out = plant.hub.run(
        f"journalctl --no-pager --output=short-unix --since=@{int(since)} _COMM=mosquitto + SYSLOG_IDENTIFIER=mosquitto"
    ).out
    stamps = [float(line.split()[0]) for line in out.splitlines() if "gw3 already connected" in line]
    assert stamps, f"expected the broker's word that gw3 is gone, got:\n{out[-2000:]}"
    return stamps[0]


def test_it_does_not_come_back(plant: Plant) -> None:
    gateway = plant.bed.machine("gw3")
    gateway.run("systemctl restart fedmq-gateway")
    before = plant.last_round()
    plant.wait_round(after=before, accepted=2)
    assert not connection(plant, "gw3")
    assert all(one["drawn"] <= 2 for one in plant.rounds() if one["id"] > before + 1)


def test_remove_yml_leaves_nothing_on_a_gateway(plant: Plant, before: dict[str, set[str]]) -> None:
    with plant.no_round_lost():
        plant.play("remove.yml", limit="gw3", extra_vars={"remove_sure": True})
        plant.wait_round(accepted=2)
    nothing_left(plant, "gw3", before["gw3"])


def test_remove_yml_leaves_nothing_on_the_server(plant: Plant, before: dict[str, set[str]]) -> None:
    plant.play("remove.yml", limit="hub", extra_vars={"remove_sure": True, "remove_keep_mosquitto": False})
    nothing_left(plant, "hub", before["hub"])


# What systemd, sshd and sudo write on any machine that is logged in to.
OTHERS = (
    "/var/log/",
    "/var/lib/systemd/",
    "/var/cache/",
    "/etc/.pwd.lock",
    "/root/.ansible",
    "/home/admin/.",
    "/var/tmp/",
)


def nothing_left(plant: Plant, name: str, before: set[str]) -> None:
    machine = plant.bed.machine(name)
    new = {path for path in files(machine) - before if not path.startswith(OTHERS)}
    # Debian makes these links for whatever service was once switched on or off.
    new -= {path for path in new if re.fullmatch(r"/etc/rc[0-6S]\.d/[KS]\d\dmosquitto", path)}
    # Copies that the tools for users and groups make beside each change.
    new -= {f"/etc/{file}-" for file in ("passwd", "shadow", "group", "gshadow", "subuid", "subgid")}
    assert new == set()
    assert machine.run("getent passwd fedmq; getent group fedmq", check=False).out == ""
    assert machine.run("systemctl list-units --all --plain --no-legend 'fedmq*'").out == ""
    assert machine.run("ps -eo args= | grep '^/opt/fedmq' || true").out == ""
