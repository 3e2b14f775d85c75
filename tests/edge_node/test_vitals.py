from __future__ import annotations

import os
import sys
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from fedmq_edge_node.gates import Vitals
from fedmq_edge_node.vitals import FileVitals, VitalsReader, lower_priority
from fedmq_protocol.settings import SettingsError

GIB = 1 << 30
Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest guest_nice")


class Machine:
    """A psutil whose counters the test moves."""

    def __init__(self, cpus: int | None = None) -> None:
        cpus = cpus or max(os.sched_getaffinity(0)) + 1
        self.now = 0.0
        self.busy = [0.0] * cpus
        self.idle = [0.0] * cpus
        self.own = 0.0
        self.temperatures: dict[str, list[Any]] = {}
        self.battery: Any = None

    def run(self, seconds: float, busy_share: float, own_seconds: float = 0.0) -> None:
        """Lets time pass with every CPU busy for this share of it, own work included."""
        self.now += seconds
        self.own += own_seconds
        for cpu in range(len(self.busy)):
            self.busy[cpu] += seconds * busy_share
            self.idle[cpu] += seconds * (1 - busy_share)

    def clock(self) -> float:
        return self.now

    def cpu_times(self, percpu: bool) -> list[Times]:
        assert percpu
        # Guest time is a part of user time: adding it once more would be a mistake.
        return [
            Times(b / 2, 0, b / 2, i / 2, i / 2, 0, 0, 0, b / 4, 0) for b, i in zip(self.busy, self.idle, strict=True)
        ]

    def virtual_memory(self) -> Any:
        return SimpleNamespace(available=8 * GIB)

    def sensors_temperatures(self) -> dict[str, list[Any]]:
        return self.temperatures

    def sensors_battery(self) -> Any:
        return self.battery

    def Process(self) -> Any:
        return SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=self.own / 2, system=self.own / 2))


@pytest.fixture
def machine() -> Machine:
    return Machine()


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def reader(root: Path, machine: Machine, **options: Any) -> VitalsReader:
    options.setdefault("run", lambda command: None)
    return VitalsReader(root=root, system=machine, clock=machine.clock, **options)


def vitals(root: Path, machine: Machine, **options: Any) -> Vitals:
    return reader(root, machine, **options).read()


def test_a_machine_without_sensors_knows_only_its_memory(tmp_path: Path, machine: Machine) -> None:
    assert vitals(tmp_path, machine) == Vitals(memory_available_bytes=8 * GIB)


# Power


BATTERY = {
    "type": "Battery",
    "present": "1",
    "status": "Discharging",
    "energy_now": "20000000",
    "energy_full": "50000000",
    "capacity": "42",
}


def supply(root: Path, name: str, files: dict[str, str]) -> None:
    put(root / "sys/class/power_supply" / name, files)


def test_battery_and_mains_are_read(tmp_path: Path, machine: Machine) -> None:
    supply(tmp_path, "BAT0", BATTERY)
    supply(tmp_path, "AC", {"type": "Mains", "online": "0"})
    read = vitals(tmp_path, machine)
    assert (read.battery_pct, read.on_mains) == (40.0, False)
    supply(tmp_path, "AC", {"online": "1"})
    assert vitals(tmp_path, machine).on_mains is True


def test_a_battery_that_states_only_its_capacity_is_read(tmp_path: Path, machine: Machine) -> None:
    supply(tmp_path, "ups", {"type": "Battery", "capacity": "42"})
    assert vitals(tmp_path, machine).battery_pct == 42.0


def test_two_batteries_count_by_their_energy(tmp_path: Path, machine: Machine) -> None:
    supply(tmp_path, "BAT0", BATTERY | {"energy_now": "0"})
    supply(tmp_path, "BAT1", BATTERY | {"energy_now": "150", "energy_full": "50000000"})
    supply(tmp_path, "BAT1", {"energy_now": "30000000"})
    assert vitals(tmp_path, machine).battery_pct == 30.0


def test_the_battery_of_a_mouse_and_an_absent_one_do_not_count(tmp_path: Path, machine: Machine) -> None:
    supply(tmp_path, "hidpp_battery_0", BATTERY | {"scope": "Device"})
    supply(tmp_path, "BAT1", BATTERY | {"present": "0"})
    read = vitals(tmp_path, machine)
    assert (read.battery_pct, read.on_mains) == (None, None)


@pytest.mark.parametrize(
    ("status", "on_mains"), [("Discharging", False), ("Charging", True), ("Full", True), ("Unknown", None)]
)
def test_without_a_mains_supply_the_battery_tells(
    tmp_path: Path, machine: Machine, status: str, on_mains: bool | None
) -> None:
    supply(tmp_path, "BAT0", BATTERY | {"status": status})
    assert vitals(tmp_path, machine).on_mains is on_mains


def test_an_unreadable_charge_is_unknown_and_not_empty(tmp_path: Path, machine: Machine) -> None:
    supply(tmp_path, "BAT0", {"type": "Battery", "capacity": "", "energy_now": "x", "energy_full": "0"})
    assert vitals(tmp_path, machine).battery_pct is None


def test_a_system_without_sysfs_asks_psutil(tmp_path: Path, machine: Machine) -> None:
    machine.battery = SimpleNamespace(percent=81, power_plugged=True)
    read = vitals(tmp_path, machine)
    assert (read.battery_pct, read.on_mains) == (81.0, True)


def test_a_glance_at_battery_and_link_is_no_reading_of_the_load(tmp_path: Path, machine: Machine) -> None:
    supply(tmp_path, "BAT0", BATTERY)
    reading = reader(tmp_path, machine)
    assert reading.glance() == Vitals(battery_pct=40.0, on_mains=False)
    machine.run(10, busy_share=1.0)
    first = reading.read()
    assert (first.battery_pct, first.cpu_idle_pct) == (40.0, None), "the first reading does not know it"
    machine.run(10, busy_share=0.0)
    reading.glance()
    machine.run(10, busy_share=1.0)
    assert reading.read().cpu_idle_pct == pytest.approx(50.0)


# Temperature


def test_the_cpus_temperature_goes_before_a_hotter_sensor(tmp_path: Path, machine: Machine) -> None:
    zones = tmp_path / "sys/class/thermal"
    put(zones / "thermal_zone0", {"type": "cpu-thermal", "temp": "81500", "mode": "enabled"})
    put(zones / "thermal_zone1", {"type": "charger", "temp": "95000"})
    assert vitals(tmp_path, machine).temperature_c == 81.5


def test_sensors_that_are_off_or_not_connected_do_not_count(tmp_path: Path, machine: Machine) -> None:
    zones = tmp_path / "sys/class/thermal"
    put(zones / "thermal_zone0", {"type": "cpu", "temp": "99000", "mode": "disabled"})
    put(zones / "thermal_zone1", {"type": "cpu", "temp": "-274000"})
    put(zones / "thermal_zone2", {"type": "acpitz", "temp": "27800"})
    assert vitals(tmp_path, machine).temperature_c == 27.8


def test_a_chip_that_only_psutil_sees_counts(tmp_path: Path, machine: Machine) -> None:
    machine.temperatures = {
        "nvme": [SimpleNamespace(label="Composite", current=70.0)],
        "k10temp": [SimpleNamespace(label="Tctl", current=55.0)],
    }
    assert vitals(tmp_path, machine).temperature_c == 55.0


# Memory and CPU


def cgroup_v2(root: Path, path: str = "/system.slice/fedmq.service") -> Path:
    """A process in `path` of version 2. Returns its folder."""
    put(
        root,
        {
            "proc/self/cgroup": f"0::{path}",
            "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate",
        },
    )
    folder = root / "sys/fs/cgroup" / path.lstrip("/")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cgroup_v1(root: Path, path: str = "/fedmq") -> Path:
    mounts = {"cpu,cpuacct": "rw,cpu,cpuacct", "memory": "rw,memory"}
    put(
        root,
        {
            "proc/self/cgroup": f"5:memory:{path}\n4:cpu,cpuacct:{path}\n1:name=systemd:/\n0::/",
            "proc/self/mountinfo": "\n".join(
                [
                    *(
                        f"3{n} 31 0:2 / /sys/fs/cgroup/{name} rw - cgroup cgroup {options}"
                        for n, (name, options) in enumerate(mounts.items())
                    ),
                    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
                ]
            ),
        },
    )
    for name in mounts:
        (root / "sys/fs/cgroup" / name / path.lstrip("/")).mkdir(parents=True)
    return root / "sys/fs/cgroup"


def test_memory_is_what_the_cgroup_leaves_with_unused_cache_counted_free(tmp_path: Path, machine: Machine) -> None:
    put(
        cgroup_v2(tmp_path),
        {
            "memory.max": "1000000",
            "memory.high": "max",
            "memory.current": "700000",
            "memory.stat": "anon 1\ninactive_file 50000",
        },
    )
    assert vitals(tmp_path, machine).memory_available_bytes == 350_000


def test_the_soft_limit_counts_too(tmp_path: Path, machine: Machine) -> None:
    put(cgroup_v2(tmp_path), {"memory.max": "1000000", "memory.high": "800000", "memory.current": "700000"})
    assert vitals(tmp_path, machine).memory_available_bytes == 100_000


def test_the_limit_of_a_cgroup_above_counts(tmp_path: Path, machine: Machine) -> None:
    own = cgroup_v2(tmp_path)
    put(own, {"memory.max": "max", "memory.current": "100"})
    put(own.parent, {"memory.max": "1000", "memory.current": "900"})
    assert vitals(tmp_path, machine).memory_available_bytes == 100


def test_memory_over_its_limit_is_none_left(tmp_path: Path, machine: Machine) -> None:
    put(cgroup_v2(tmp_path), {"memory.max": "1000", "memory.current": "1200"})
    assert vitals(tmp_path, machine).memory_available_bytes == 0


@pytest.mark.parametrize(
    ("path", "top"), [("/docker/abc", "/docker/abc"), ("/../../elsewhere", "/"), ("/gone", "/gone/x")]
)
def test_a_container_reads_the_top_of_what_it_sees(tmp_path: Path, machine: Machine, path: str, top: str) -> None:
    cgroup_v2(tmp_path, "/")
    put(
        tmp_path,
        {
            "proc/self/cgroup": f"0::{path}",
            "proc/self/mountinfo": f"1 1 0:1 {top} /sys/fs/cgroup rw - cgroup2 cgroup rw",
        },
    )
    put(tmp_path / "sys/fs/cgroup", {"memory.max": "1000", "memory.current": "400"})
    assert vitals(tmp_path, machine).memory_available_bytes == 600


def test_a_version_1_memory_limit_counts_and_its_largest_number_is_none(tmp_path: Path, machine: Machine) -> None:
    memory = cgroup_v1(tmp_path) / "memory/fedmq"
    put(
        memory,
        {"memory.limit_in_bytes": "1000", "memory.usage_in_bytes": "700", "memory.stat": "total_inactive_file 50"},
    )
    assert vitals(tmp_path, machine).memory_available_bytes == 350
    put(memory, {"memory.limit_in_bytes": "9223372036854771712"})
    assert vitals(tmp_path, machine).memory_available_bytes == 8 * GIB


def test_the_first_reading_does_not_know_the_load(tmp_path: Path, machine: Machine) -> None:
    read = reader(tmp_path, machine)
    assert read.read().cpu_idle_pct is None
    machine.run(10, busy_share=0.75)
    assert read.read().cpu_idle_pct == pytest.approx(25)


def test_the_load_is_that_since_the_last_reading(tmp_path: Path, machine: Machine) -> None:
    read = reader(tmp_path, machine)
    read.read()
    for share in (1.0, 0.0, 0.5):
        machine.run(10, busy_share=share)
        assert read.read().cpu_idle_pct == pytest.approx(100 * (1 - share))


def test_own_work_counts_as_idle(tmp_path: Path, machine: Machine) -> None:
    read = reader(tmp_path, machine)
    read.read()
    cpus = len(os.sched_getaffinity(0))
    machine.run(10, busy_share=1.0, own_seconds=10 * cpus)
    assert read.read().cpu_idle_pct == pytest.approx(100)


def test_a_reading_within_a_second_is_the_same_again(tmp_path: Path, machine: Machine) -> None:
    read = reader(tmp_path, machine)
    first = read.read()
    machine.run(0.5, busy_share=1.0)
    assert read.read() is first


def test_the_load_is_against_the_quota_of_the_cgroup(tmp_path: Path, machine: Machine) -> None:
    own = cgroup_v2(tmp_path)
    put(own, {"cpu.max": "50000 100000", "cpu.stat": "usage_usec 1000000"})
    read = reader(tmp_path, machine)
    read.read()
    # In 10 s the cgroup may use 5 s of CPU; others in it used 4 s, and this process 0.5 s.
    machine.run(10, busy_share=0.1, own_seconds=0.5)
    put(own, {"cpu.stat": "usage_usec 5500000"})
    assert read.read().cpu_idle_pct == pytest.approx(20)


def test_a_busy_host_leaves_little_of_a_quota(tmp_path: Path, machine: Machine) -> None:
    put(cgroup_v2(tmp_path), {"cpu.max": "50000 100000", "cpu.stat": "usage_usec 0"})
    read = reader(tmp_path, machine)
    read.read()
    machine.run(10, busy_share=1.0)
    assert read.read().cpu_idle_pct == 0


def test_no_quota_is_no_limit(tmp_path: Path, machine: Machine) -> None:
    put(cgroup_v2(tmp_path), {"cpu.max": "max 100000", "cpu.stat": "usage_usec 0"})
    read = reader(tmp_path, machine)
    read.read()
    machine.run(10, busy_share=0.0)
    assert read.read().cpu_idle_pct == 100


def test_a_version_1_quota_counts(tmp_path: Path, machine: Machine) -> None:
    cpu = cgroup_v1(tmp_path) / "cpu,cpuacct/fedmq"
    put(cpu, {"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000", "cpuacct.usage": "0"})
    read = reader(tmp_path, machine)
    read.read()
    machine.run(10, busy_share=0.1)
    put(cpu, {"cpuacct.usage": "4000000000"})
    assert read.read().cpu_idle_pct == pytest.approx(20)


# The link

ROUTES = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
{lines}"""


def routes(root: Path, *rows: tuple[str, str, int, int]) -> None:
    """Rows of (interface, address/prefix, metric, flags)."""
    lines = []
    for interface, network, metric, flags in rows:
        address, prefix = network.split("/")
        number = int.from_bytes(bytes(map(int, address.split("."))), sys.byteorder)
        mask = int.from_bytes(((0xFFFFFFFF << (32 - int(prefix))) & 0xFFFFFFFF).to_bytes(4, "big"), sys.byteorder)
        lines.append(f"{interface}\t{number:08X}\t00000000\t{flags:04X}\t0\t0\t{metric}\t{mask:08X}\t0\t0\t0")
    put(root, {"proc/net/route": ROUTES.format(lines="\n".join(lines))})


def interface(root: Path, name: str, files: dict[str, str]) -> Path:
    folder = root / "sys/class/net" / name
    put(folder, files)
    return folder


ETHERNET = {"operstate": "up", "type": "1", "uevent": "INTERFACE=eth0\nIFINDEX=2"}


def test_the_link_is_that_of_the_default_route_with_the_lowest_metric(tmp_path: Path, machine: Machine) -> None:
    routes(tmp_path, ("wlan0", "0.0.0.0/0", 600, 3), ("eth0", "0.0.0.0/0", 100, 3), ("usb0", "10.0.0.0/8", 0, 1))
    interface(tmp_path, "eth0", ETHERNET)
    read = vitals(tmp_path, machine)
    assert (read.link_up, read.link_kind) == (True, "ethernet")


def test_a_numeric_broker_takes_its_own_route(tmp_path: Path, machine: Machine) -> None:
    routes(tmp_path, ("eth0", "0.0.0.0/0", 0, 3), ("wlan0", "10.1.0.0/16", 0, 1), ("eth1", "10.0.0.0/8", 0, 1))
    folder = interface(tmp_path, "wlan0", {"operstate": "down", "type": "1"})
    (folder / "wireless").mkdir()
    read = vitals(tmp_path, machine, towards="10.1.2.3")
    assert (read.link_up, read.link_kind) == (False, "wifi")


def test_a_rejecting_route_carries_nothing(tmp_path: Path, machine: Machine) -> None:
    routes(tmp_path, ("lo", "0.0.0.0/0", 0, 0x201), ("eth0", "0.0.0.0/0", 100, 3))
    interface(tmp_path, "eth0", ETHERNET)
    assert vitals(tmp_path, machine).link_kind == "ethernet"


def test_an_ipv6_default_route_is_found(tmp_path: Path, machine: Machine) -> None:
    nobody = "0" * 32
    put(
        tmp_path,
        {
            "proc/net/ipv6_route": f"{nobody} 00 {nobody} 00 fd{'0' * 29}1 00000400 00000003 00000000 00000003 wwan0\n"
            f"{nobody} 00 {nobody} 00 {nobody} ffffffff 00000001 00000000 00200200 lo"
        },
    )
    interface(tmp_path, "wwan0", {"operstate": "unknown", "carrier": "1", "type": "519", "uevent": "DEVTYPE=wwan"})
    for towards in ("", "fd00::7", "broker.example"):
        read = vitals(tmp_path, machine, towards=towards)
        assert (read.link_up, read.link_kind) == (True, "cellular")


def test_a_broker_on_this_machine_is_reached_by_loopback(tmp_path: Path, machine: Machine) -> None:
    interface(tmp_path, "lo", {"operstate": "unknown", "carrier": "1", "type": "772"})
    for towards in ("127.0.0.1", "localhost", "::1"):
        read = vitals(tmp_path, machine, towards=towards)
        assert (read.link_up, read.link_kind, read.metered) == (True, "loopback", None)


@pytest.mark.parametrize(
    ("name", "files", "kind"),
    [
        ("eth0", {"type": "1"}, "ethernet"),
        ("br0", {"type": "1", "uevent": "DEVTYPE=bridge"}, "ethernet"),
        ("wlp2s0", {"type": "1", "uevent": "DEVTYPE=wlan"}, "wifi"),
        ("wwan0", {"type": "1"}, "cellular"),
        ("ppp0", {"type": "512"}, "cellular"),
        ("tun0", {"type": "65534", "tun_flags": "0x1"}, "other"),
        ("tap0", {"type": "1", "tun_flags": "0x2"}, "other"),
        ("wg0", {"type": "65534"}, "other"),
    ],
)
def test_the_kind_of_a_link(tmp_path: Path, machine: Machine, name: str, files: dict[str, str], kind: str) -> None:
    routes(tmp_path, (name, "0.0.0.0/0", 0, 3))
    interface(tmp_path, name, files | {"operstate": "up"})
    assert vitals(tmp_path, machine).link_kind == kind


def test_without_a_route_the_link_is_down_only_where_every_interface_is(tmp_path: Path, machine: Machine) -> None:
    interface(tmp_path, "lo", {"operstate": "unknown", "carrier": "1", "type": "772"})
    interface(tmp_path, "eth0", ETHERNET | {"operstate": "down"})
    assert vitals(tmp_path, machine).link_up is False
    interface(tmp_path, "eth1", ETHERNET)
    assert vitals(tmp_path, machine).link_up is None


class NetworkManager:
    """Answers commands, and counts them."""

    def __init__(self, **answers: str | None) -> None:
        self.answers = answers
        self.asked: list[Sequence[str]] = []

    def __call__(self, command: Sequence[str]) -> str | None:
        self.asked.append(command)
        return self.answers.get(command[0])


@pytest.mark.parametrize(
    ("answers", "metered"),
    [
        ({"nmcli": "GENERAL.METERED:yes\n"}, True),
        ({"nmcli": "GENERAL.METERED:yes (guessed)\n"}, True),
        ({"nmcli": "GENERAL.METERED:no (guessed)\n"}, False),
        ({"nmcli": "GENERAL.METERED:unknown\n"}, None),
        ({"nmcli": "nonsense"}, None),
        ({"busctl": "u 1\n"}, True),
        ({"busctl": "u 4\n"}, False),
        ({"busctl": "u 0\n"}, None),
        ({}, None),
    ],
)
def test_metered_is_what_networkmanager_tells(
    tmp_path: Path, machine: Machine, answers: dict[str, str], metered: bool | None
) -> None:
    routes(tmp_path, ("eth0", "0.0.0.0/0", 0, 3))
    interface(tmp_path, "eth0", ETHERNET)
    assert vitals(tmp_path, machine, run=NetworkManager(**answers)).metered is metered


def test_networkmanager_is_asked_seldom_and_again_for_another_interface(tmp_path: Path, machine: Machine) -> None:
    manager = NetworkManager(nmcli="GENERAL.METERED:no")
    routes(tmp_path, ("eth0", "0.0.0.0/0", 0, 3))
    read = reader(tmp_path, machine, run=manager)
    for _ in range(10):
        read.read()
        machine.run(10, busy_share=0)
    assert len(manager.asked) == 1
    routes(tmp_path, ("wwan0", "0.0.0.0/0", 0, 3))
    read.read()
    assert [command[-1] for command in manager.asked] == ["eth0", "wwan0"]


def test_this_very_machine_can_be_read() -> None:
    read = VitalsReader(run=lambda command: None).read()
    assert read.memory_available_bytes is not None
    assert read.memory_available_bytes > 0


def test_programs_that_are_absent_fail_or_hang_tell_nothing(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes(tmp_path, ("eth0", "0.0.0.0/0", 0, 3))
    interface(tmp_path, "eth0", ETHERNET)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    monkeypatch.setenv("PATH", str(bin_folder))
    monkeypatch.setattr("fedmq_edge_node.vitals.COMMAND_SECONDS", 0.3)
    options: dict[str, Any] = {"root": tmp_path, "system": machine, "clock": machine.clock}
    assert VitalsReader(**options).read().metered is None
    for script, metered in (("exit 8", None), ("exec /bin/sleep 5", None), ("echo GENERAL.METERED:yes", True)):
        program = bin_folder / "nmcli"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        assert VitalsReader(**options).read().metered is metered


# Stated vitals


def test_stated_vitals_are_read_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / "vitals.toml"
    path.write_text('battery_pct = 15\nlink_kind = "wifi"\n')
    stated = FileVitals(path=path)
    assert stated.read() == Vitals(battery_pct=15.0, link_kind="wifi")
    path.write_text("battery_pct = 90\n")
    assert stated.read() == Vitals(battery_pct=90.0)


def test_stated_vitals_may_be_json(tmp_path: Path) -> None:
    path = tmp_path / "vitals.json"
    path.write_text('{"battery_pct": 15, "metered": null}')
    assert FileVitals(path=path).read() == Vitals(battery_pct=15.0)


def test_malformed_vitals_name_every_mistake(tmp_path: Path) -> None:
    path = tmp_path / "vitals.toml"
    path.write_text('battery_pct = 150\nbatery_pct = 3\nlink_kind = "avian"\n')
    with pytest.raises(SettingsError) as caught:
        FileVitals(path=path).read()
    assert [mistake.key for mistake in caught.value.mistakes] == ["batery_pct", "battery_pct", "link_kind"]
    with pytest.raises(SettingsError, match="cannot be read"):
        FileVitals(path=tmp_path / "none.toml").read()


# Priority


class FakeProcess:
    def __init__(self, nice: int = 0, refuses: bool = False) -> None:
        self.value = nice
        self.refuses = refuses
        self.disk: int | None = None

    def nice(self, value: int | None = None) -> int:
        if value is not None:
            if self.refuses:
                raise psutil.AccessDenied(1)
            self.value = value
        return self.value

    def ionice(self, kind: int) -> None:
        self.disk = kind


@pytest.mark.parametrize(("had", "asked", "has"), [(0, 10, 10), (15, 10, 15), (0, 0, 0)])
def test_priority_is_lowered_and_never_raised(monkeypatch: pytest.MonkeyPatch, had: int, asked: int, has: int) -> None:
    process = FakeProcess(had)
    monkeypatch.setattr(psutil, "Process", lambda: process)
    lower_priority(asked)
    assert process.value == has
    assert (process.disk is not None) == (asked > 0)


def test_a_system_that_refuses_a_priority_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(psutil, "Process", lambda: FakeProcess(refuses=True))
    lower_priority(10)
    assert "running at normal priority" in caplog.text
