"""5. Two sites with brokers of their own: the line between one and the head office is cut while a round is on."""

from __future__ import annotations

import time

import pytest
from fleetbed import Bed, MachineError, Spec
from fleetbed.plant import Plant

# Each gateway reaches its site's broker and nobody else; the sites' brokers reach the head office.
MACHINES = [
    Spec("hub", ("backbone",)),
    Spec("north-server", ("north", "backbone")),
    Spec("south-server", ("south", "backbone")),
    Spec("gw1", ("north",)),
    Spec("gw2", ("south",)),
]
CUT_SECONDS = 20.0


@pytest.fixture(scope="module")
def plant(bed: Bed) -> Plant:
    plant = Plant(bed, gateways=["gw1", "gw2"], pace=15.0, closing=90.0)
    plant.groups["site_brokers"] = ["north-server", "south-server"]
    plant.variables["fedmq_sites"] = {"north": ["gw1"], "south": ["gw2"]}
    # Long enough for a cut in the middle of it.
    plant.variables["coordinator_task"]["recipe"] = {"local_epochs": 10_000, "time_budget_seconds": 6.0}
    for site, gateway in (("north", "gw1"), ("south", "gw2")):
        server = f"{site}-server"
        plant.host_variables[server] = {"broker_site": site}
        plant.host_variables[gateway] = {"gateway_broker_host": bed.machine(server).ip}
    plant.lay_out_recordings()
    plant.build()
    plant.play("site.yml")
    plant.wait_round()
    return plant


def test_gateways_know_no_broker_but_their_sites(plant: Plant) -> None:
    for gateway, server in (("gw1", "north-server"), ("gw2", "south-server")):
        peers = plant.bed.machine(gateway).run("ss -Htn state established dport = :8883").out.split()
        assert peers[-1] == f"{plant.bed.machine(server).ip}:8883"
    clients = plant.hub.run("ss -Htn state established sport = :8883").out.splitlines()
    # Of a bridge by its address; the coordinator by the hub's own.
    addresses = {line.split()[-1].rsplit(":", 1)[0] for line in clients}
    assert addresses >= {plant.bed.machine(f"{site}-server").addresses["backbone"] for site in ("north", "south")}


def test_the_second_run_changes_nothing(plant: Plant) -> None:
    assert plant.play("site.yml").tasks_that_changed() == []


def test_a_line_cut_for_twenty_seconds_in_a_round_loses_nothing_and_doubles_nothing(plant: Plant) -> None:
    before = plant.last_round()
    number = wait_open(plant, after=before)
    time.sleep(2)
    plant.bed.machine("north-server").link(False, "backbone")
    time.sleep(CUT_SECONDS)
    assert next(one for one in plant.rounds() if one["id"] == number)["outcome"] == "open", "it was cut in the middle"
    plant.bed.machine("north-server").link(True, "backbone")
    closed = plant.wait_round(after=number - 1, accepted=2)
    assert closed["id"] == number
    assert closed["outcome"] == "applied"
    plant.wait_round(after=number, accepted=2)
    # Each answer once: what gateways were told was accepted is what rounds have taken.
    report = plant.report()
    taken = [one for one in report["rounds"] if one["outcome"] != "open"]
    assert all(one["accepted"] == one["answered"] == 2 for one in taken)
    open_ = [one for one in report["rounds"] if one["outcome"] == "open"]
    for line in report["gateways"]:
        assert line["accepted"] - len(taken) in range(len(open_) + 1), line


def wait_open(plant: Plant, *, after: int) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for one in plant.rounds():
            if one["id"] > after and one["outcome"] == "open":
                return int(one["id"])
        time.sleep(0.2)
    raise MachineError(f"expected a round behind {after} to open within 60 s")
