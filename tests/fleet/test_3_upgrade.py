"""3. To a newer build while the fleet learns, with a broken one in between that goes back by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleetbed import Bed
from fleetbed.plant import Plant

MACHINES = ["hub", "gw1", "gw2"]
BROKEN = "0.1.1"
NEWER = "0.1.2"


@pytest.fixture(scope="module")
def plant(bed: Bed) -> Plant:
    plant = Plant(bed, gateways=["gw1", "gw2"], pace=6.0)
    # What a gateway has to do to be well, within a time that a test can wait for.
    plant.variables |= {"gateway_back_seconds": 60, "gateway_answer_seconds": 120, "upgrade_batches": [1, 1]}
    plant.lay_out_recordings()
    plant.build()
    plant.play("site.yml")
    plant.wait_round()
    return plant


def releases(plant: Plant) -> dict[str, str]:
    """Of each machine, the version that its programs run from."""
    return {
        machine.name: machine.run("readlink /opt/fedmq/current").out.strip().rpartition("/")[2]
        for machine in plant.bed.machines
    }


def running(plant: Plant) -> dict[str, str]:
    """Of each gateway, the version that it told the coordinator."""
    return {line["name"]: line["software"].split()[-1] for line in plant.status()["gateways"]}


def state(plant: Plant, name: str) -> str:
    return plant.bed.machine(name).run("ls -i /var/lib/fedmq/gateway/gateway.sqlite").out


def break_gateways(tree: Path) -> None:
    """A build that installs, says its version, reads its settings, and then ends: found out only by running it."""
    service = tree / "edge_node/fedmq_edge_node/service.py"
    text = service.read_text()
    begin = "        self._session.start()\n"
    assert text.count(begin) == 1
    service.write_text(text.replace(begin, '        raise ValueError("broken on purpose")\n'))


def test_a_broken_build_rolls_its_batch_back_by_itself_and_stops_there(plant: Plant) -> None:
    own = releases(plant)["gw1"]
    kept = state(plant, "gw1")
    plant.build(BROKEN, change=break_gateways)
    with plant.no_round_lost():
        result = plant.play("upgrade.yml", check=False)
        assert result.code != 0
        assert "Not well: gw1" in result.stdout.replace("\n", " ")
        assert releases(plant)["gw1"] == own
        assert releases(plant)["gw2"] == own, "the batch behind the broken one was not begun"
        plant.wait_round()
    assert running(plant) == {"gw1": own, "gw2": own}
    assert state(plant, "gw1") == kept


def test_a_good_build_goes_everywhere_while_rounds_go_on(plant: Plant) -> None:
    kept = [state(plant, name) for name in plant.gateways]
    before = plant.last_round()
    plant.build(NEWER)
    with plant.no_round_lost():
        plant.play("upgrade.yml")
        plant.wait_round()
    assert set(releases(plant).values()) == {NEWER}
    assert running(plant) == {"gw1": NEWER, "gw2": NEWER}
    assert [state(plant, name) for name in plant.gateways] == kept
    assert len([one for one in plant.rounds() if one["id"] > before and one["outcome"] == "applied"]) >= 2


def test_run_again_it_changes_nothing(plant: Plant) -> None:
    assert plant.play("upgrade.yml").tasks_that_changed() == []
    assert plant.play("site.yml").tasks_that_changed() == []


def test_rollback_yml_goes_back_by_hand(plant: Plant) -> None:
    with plant.no_round_lost():
        plant.play("rollback.yml", limit="gw2")
        plant.wait_round()
    assert running(plant)["gw1"] == NEWER
    assert running(plant)["gw2"] != NEWER
