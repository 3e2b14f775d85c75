"""6. The server is lost and comes back from a backup on a fresh machine; a gateway gets a new board."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleetbed import Bed, Spec
from fleetbed.plant import Plant

GATEWAYS = ["gw1", "gw2"]
MACHINES = ["hub", *GATEWAYS]


@pytest.fixture(scope="module")
def plant(bed: Bed) -> Plant:
    plant = Plant(bed, gateways=GATEWAYS)
    plant.lay_out_recordings()
    plant.build()
    plant.play("site.yml")
    plant.wait_round()
    return plant


def lineage(plant: Plant) -> int:
    return int(plant.status()["tasks"][0]["lineage"])


def main_pid(plant: Plant, name: str) -> str:
    return plant.bed.machine(name).run("systemctl show fedmq-gateway -p MainPID --value").out.strip()


def test_a_lost_server_is_restored_on_a_fresh_machine_and_the_fleet_follows(plant: Plant) -> None:
    backups = plant.folder / "backups"
    plant.play("backup.yml", extra_vars={"backup_directory": str(backups)})
    (backup,) = backups.iterdir()
    # Rounds that no backup has, as it is in life.
    version = plant.wait_round()["version"]
    plant.wait_round()
    before = lineage(plant)
    processes = {name: main_pid(plant, name) for name in plant.gateways}

    plant.bed.remove("hub")
    plant.bed.add(Spec("hub"))
    plant.play("restore.yml", extra_vars={"restore_from": str(backup)})

    assert lineage(plant) > before
    round_ = plant.wait_round()
    assert round_["lineage"] > before
    assert round_["outcome"] == "applied"
    assert version is not None
    assert {name: main_pid(plant, name) for name in plant.gateways} == processes, "nobody went to the gateways"


def test_a_restored_server_is_like_any_other_to_site_yml(plant: Plant) -> None:
    assert plant.play("site.yml").tasks_that_changed() == []


def test_a_backup_holds_keys_and_is_its_owners_alone(plant: Plant) -> None:
    for path in [plant.folder / "backups", *(plant.folder / "backups").rglob("*")][1:]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_new_board_answers_as_the_machine_it_replaces(plant: Plant) -> None:
    before = next(line for line in plant.report()["gateways"] if line["name"] == "gw1")
    certificate = Path("/etc/fedmq/identity/client.crt")
    old = plant.bed.machine("gw1").path(str(certificate)).read_text()
    plant.bed.remove("gw1")
    plant.bed.add(Spec("gw1"))
    plant.lay_out_recordings(only=["gw1"])
    plant.play("replace.yml", limit="gw1")
    plant.wait_round()
    report = plant.report()
    assert sorted(line["name"] for line in report["gateways"]) == GATEWAYS, "not one more gateway"
    after = next(line for line in report["gateways"] if line["name"] == "gw1")
    assert after["accepted"] > before["accepted"], "its past is still its own"
    assert plant.bed.machine("gw1").path(str(certificate)).read_text() != old
