"""5. Two sites with brokers of their own: the line between one and the head office is cut while a round is on."""

from __future__ import annotations

import time

import pytest
from fleetbed import Bed, MachineError, Spec
from fleetbed.plant import Plant

# Sites so small that the gateway's board is the site's server, too: three machines show what five would. The gateway
# goes by the site's network, the bridge by the backbone.
MACHINES = [Spec("hub", ("backbone",)), Spec("gw1", ("north", "backbone")), Spec("gw2", ("south", "backbone"))]
SITES = {"north": "gw1", "south": "gw2"}
CUT_SECONDS = 20.0


@pytest.fixture(scope="module")
def plant(bed: Bed) -> Plant:
    plant = Plant(bed, gateways=["gw1", "gw2"], pace=15.0, closing=90.0)
    plant.groups["site_brokers"] = ["gw1", "gw2"]
    plant.variables["fedmq_sites"] = {site: [board] for site, board in SITES.items()}
    # Long enough for a cut in the middle of it.
    plant.variables["coordinator_task"]["recipe"] = {"local_epochs": 10_000, "time_budget_seconds": 15.0}
    for site, board in SITES.items():
        plant.host_variables[board] = {"broker_site": site, "gateway_broker_host": bed.machine(board).ip}
    plant.lay_out_recordings()
    plant.build()
    plant.play("site.yml")
    plant.wait_round()
    return plant


def test_gateways_go_to_their_sites_broker_and_sites_to_the_federations(plant: Plant) -> None:
    hub = plant.hub.ip
    for site, board in SITES.items():
        own = plant.bed.machine(board)
        peers = own.run("ss -Htn state established dport = :8883").out.splitlines()
        # The gateway's connection, and the bridge's.
        assert sorted(line.split()[-1] for line in peers) == sorted([f"{own.addresses[site]}:8883", f"{hub}:8883"])


def test_a_line_cut_for_twenty_seconds_in_a_round_loses_nothing_and_doubles_nothing(plant: Plant) -> None:
    before = plant.last_round()
    number = wait_open(plant, after=before)
    plant.bed.machine(SITES["north"]).link(False, "backbone")
    time.sleep(CUT_SECONDS)
    assert next(one for one in plant.rounds() if one["id"] == number)["outcome"] == "open", "it was cut in the middle"
    plant.bed.machine(SITES["north"]).link(True, "backbone")
    closed = plant.wait_round(after=number - 1, accepted=2)
    assert closed["id"] == number
    assert closed["outcome"] == "applied"
    plant.wait_round(after=number, accepted=2)
    # Each answer once: what gateways were told was accepted is what rounds have taken.
    report = plant.report()
    trained = [one for one in report["rounds"] if one["kind"] == "training"]
    taken = [one for one in trained if one["outcome"] != "open"]
    assert all(one["accepted"] == one["answered"] == 2 for one in taken)
    open_ = [one for one in trained if one["outcome"] == "open"]
    for line in report["gateways"]:
        assert line["accepted"] - len(taken) in range(len(open_) + 1), line


def test_the_second_run_changes_nothing(plant: Plant) -> None:
    assert plant.play("site.yml").tasks_that_changed() == []


def wait_open(plant: Plant, *, after: int) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for one in plant.rounds():
            if one["id"] > after and one["outcome"] == "open":
                return int(one["id"])
        time.sleep(0.2)
    raise MachineError(f"expected a round behind {after} to open within 60 s")
