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

SPIN = """
import time
end = time.monotonic() + 4
while time.monotonic() < end:
    pass
print(time.process_time())
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


class Group:
    """The control group of gw1's unit, as its kernel has it: version 1 or 2, which is the host's choice."""

    def __init__(self, plant: Plant) -> None:
        self._machine = plant.bed.machine("gw1")
        self._two = self._machine.run("test -e /sys/fs/cgroup/cgroup.controllers", check=False).code == 0

    def folder(self, controller: str) -> str:
        return f"/sys/fs/cgroup/{'' if self._two else f'{controller}/'}system.slice/fedmq-gateway.service"

    def read(self, controller: str, name: str) -> str:
        return self._machine.run(f"cat {self.folder(controller)}/{name}").out.strip()

    def memory_limit(self) -> int:
        return int(self.read("memory", "memory.max" if self._two else "memory.limit_in_bytes"))

    def cpus(self) -> float:
        if self._two:
            quota, period = map(int, self.read("cpu", "cpu.max").split())
        else:
            quota, period = (int(self.read("cpu", f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        return quota / period

    def memory_used(self) -> int:
        """Without what is only cached of files."""
        stat = dict(line.split() for line in self.read("memory", "memory.stat").splitlines())
        usage = int(self.read("memory", "memory.current" if self._two else "memory.usage_in_bytes"))
        return usage - int(stat["inactive_file" if self._two else "total_inactive_file"])


def test_the_limits_of_the_unit_are_the_kernels(plant: Plant) -> None:
    group = Group(plant)
    assert group.memory_limit() == 200 << 20
    assert group.cpus() == pytest.approx(0.4)


def test_a_hog_in_its_place_is_stopped_and_the_gateway_comes_back(plant: Plant) -> None:
    """What a leak in the gateway would be to the kernel: a process in its group that takes more than the group may."""
    gateway = plant.bed.machine("gw1")
    join = f"echo $$ > {Group(plant).folder('memory')}/cgroup.procs"
    hog = gateway.run(["bash", "-c", f"{join}; exec python3 -c '{HOG}'"], check=False)
    assert "got it all" not in hog.out
    assert hog.code in (-9, 137), hog
    gateway.wait("the gateway running", lambda: gateway.run("systemctl is-active fedmq-gateway", check=False).code == 0)
    plant.wait_round()


def test_a_hog_of_the_cpu_in_its_place_gets_no_more_than_the_quota(plant: Plant) -> None:
    join = f"echo $$ > {Group(plant).folder('cpu')}/cgroup.procs"
    used = plant.bed.machine("gw1").run(["bash", "-c", f"{join}; exec python3 -c '{SPIN}'"]).out
    assert float(used) < 4 * 0.4 * 1.5, "4 s at 40 % of a CPU are 1.6 s of it"


def test_the_gateway_sees_its_own_limit_and_not_the_hosts(plant: Plant) -> None:
    """Its limit is drawn in to 16 MiB above what it uses, and its gate wants 32 MiB; the host has gigabytes free."""
    gateway = plant.bed.machine("gw1")
    gateway.run(f"systemctl set-property --runtime fedmq-gateway MemoryMax={Group(plant).memory_used() + (16 << 20)}")
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
