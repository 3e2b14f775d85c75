"""2. A gateway's limits hold, its gates are read live, and a link that was down heals."""

from __future__ import annotations

import re

import pytest
from fleetbed import Bed
from fleetbed.plant import Plant

MACHINES = ["hub", "gw1", "gw2"]
HOG = """
held = []
for _ in range(64):
    held.append(bytearray(16 << 20))
print("got it all")
"""


@pytest.fixture(scope="module")
def plant(bed: Bed) -> Plant:
    plant = Plant(bed, gateways=["gw1", "gw2"], closing=20)
    plant.variables |= {"gateway_memory_max": "200M", "gateway_cpu_quota": "40%"}
    plant.lay_out_recordings()
    plant.build()
    plant.play("site.yml")
    plant.wait_round()
    return plant


def cgroup(plant: Plant, controller: str, name: str) -> str:
    """A file of the unit's own control group, as gw1's kernel has it: version 1."""
    group = f"/sys/fs/cgroup/{controller}/system.slice/fedmq-gateway.service"
    return plant.bed.machine("gw1").run(f"cat {group}/{name}").out.strip()


def test_the_limits_of_the_unit_are_the_kernels(plant: Plant) -> None:
    assert int(cgroup(plant, "memory", "memory.limit_in_bytes")) == 200 << 20
    quota = int(cgroup(plant, "cpu", "cpu.cfs_quota_us")) / int(cgroup(plant, "cpu", "cpu.cfs_period_us"))
    assert quota == pytest.approx(0.4)


def test_a_hog_in_its_place_is_stopped_and_the_gateway_comes_back(plant: Plant) -> None:
    """What a leak in the gateway would be to the kernel: a process in its group that takes more than the group may."""
    gateway = plant.bed.machine("gw1")
    join = "; ".join(
        f"echo $$ > /sys/fs/cgroup/{controller}/system.slice/fedmq-gateway.service/cgroup.procs"
        for controller in ("memory", "cpu")
    )
    hog = gateway.run(["bash", "-c", f"{join}; exec python3 -c '{HOG}'"], check=False)
    assert "got it all" not in hog.out
    assert hog.code == -9 or hog.code == 137
    gateway.wait("the gateway running", lambda: gateway.run("systemctl is-active fedmq-gateway", check=False).code == 0)
    plant.wait_round()


def test_the_gateway_sees_its_own_limit_and_not_the_hosts(plant: Plant) -> None:
    """Its limit is drawn in to 16 MiB above what it uses, and its gate wants 32 MiB; the host has gigabytes free."""
    gateway = plant.bed.machine("gw1")
    stat = dict(line.split() for line in cgroup(plant, "memory", "memory.stat").splitlines())
    used = int(cgroup(plant, "memory", "memory.usage_in_bytes")) - int(stat["total_inactive_file"])
    gateway.run(f"systemctl set-property --runtime fedmq-gateway MemoryMax={used + (16 << 20)}")
    assert plant.wait_round(declined=1)["declines"] == {"memory": 1}
    gateway.run(f"systemctl set-property --runtime fedmq-gateway MemoryMax={200 << 20}")
    plant.wait_round()


def test_a_low_battery_declines_and_a_charged_one_takes_part_live(plant: Plant) -> None:
    gateway = plant.bed.machine("gw1")
    before = gateway.run("systemctl show fedmq-gateway -p MainPID --value").out
    gateway.set_battery(15)
    assert plant.wait_round(declined=1)["declines"] == {"battery": 1}
    gateway.set_battery(90)
    plant.wait_round()
    assert gateway.run("systemctl show fedmq-gateway -p MainPID --value").out == before, "nothing was restarted"


def test_a_link_that_was_down_heals_by_itself(plant: Plant) -> None:
    gateway = plant.bed.machine("gw1")
    before = gateway.run("systemctl show fedmq-gateway -p MainPID --value").out
    gateway.link(False)
    plant.wait_round(accepted=1)
    gateway.link(True)
    plant.wait_round()
    assert gateway.run("systemctl show fedmq-gateway -p MainPID --value").out == before, "nothing was restarted"


def test_nothing_of_it_was_an_error_in_the_journal(plant: Plant) -> None:
    for name in ("gw1", "gw2"):
        assert not re.search(r"Traceback|CRITICAL", plant.bed.machine(name).journal("fedmq-gateway"))
