"""Reads how the gateway is: power, CPU, memory, temperature and link as `Vitals`. The only module that knows psutil.

Linux is read below `root` (a test gives its own tree); psutil covers the CPU, the memory and other systems.

Rules it keeps:

- What cannot be read is None, never 0. An unreadable or absent file below /sys or /proc is the normal case, not an
  error: most machines lack most sensors.
- What counts is what *this process* may use: psutil shows a container the host's memory and CPUs, so the limits of its
  cgroup and those of every cgroup above are read too (version 1 and 2).
- It never sleeps. The CPU's load is the difference of two readings, so the first reading does not know it.
- This process's own CPU time counts as idle: else training would shut the gate that allowed it.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import psutil
from fedmq_protocol.settings import load
from fedmq_protocol.vitals import LinkKind

from fedmq_edge_node.gates import Vitals

__all__ = ["FileVitals", "Reader", "VitalsReader", "cpu_seconds", "lower_priority"]

log = logging.getLogger(__name__)

COMMAND_SECONDS = 2.0
"""NetworkManager answers in milliseconds; one that hangs must not hold up the gateway."""

NO_LIMIT = 1 << 60
"""A memory limit of this many bytes is none: version 1 writes the largest number of pages instead of 'max'."""

PLAUSIBLE_C = (-50.0, 200.0)
"""A thermal zone outside this range is a sensor that is not connected (-273, 255 and the like)."""

_CPU_SENSOR = re.compile(r"cpu|soc|core|pkg|package|k10temp|zenpower|x86", re.IGNORECASE)

Run = Callable[[Sequence[str]], str | None]


class Reader(Protocol):
    """Where vitals come from."""

    def read(self) -> Vitals: ...

    def glance(self) -> Vitals:
        """Battery and link alone; all else is unknown. For a word on them while nothing is to be trained."""


class System(Protocol):
    """What is used of psutil."""

    def cpu_times(self, percpu: bool) -> Any: ...
    def virtual_memory(self) -> Any: ...
    def Process(self) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class FileVitals:
    """Vitals stated in a TOML or JSON file, read anew each time, so that it can be edited while a gateway runs.

    A key that is absent is unknown. `read` raises SettingsError naming every mistake of the file. An editor should
    write a new file and rename it into place: a half-written one is a mistake too.
    """

    path: Path

    def read(self) -> Vitals:
        return load(Vitals, self.path)

    def glance(self) -> Vitals:
        return self.read()


class VitalsReader:
    """The machine's own vitals.

    `towards` is the broker's host. A numeric address finds the interface that its route uses; a name is not looked up
    (that may block for long) and stands for the default route. Readings younger than `fresh_seconds` are given again,
    so that a training loop may ask after every batch.
    """

    def __init__(
        self,
        *,
        towards: str = "",
        root: Path = Path("/"),
        system: System = psutil,
        clock: Callable[[], float] = time.monotonic,
        run: Run | None = None,
        fresh_seconds: float = 1.0,
        metered_seconds: float = 300.0,
    ) -> None:
        self._root = root
        self._system = system
        self._clock = clock
        self._run = run or _run
        self._towards = towards
        self._fresh_seconds = fresh_seconds
        self._metered_seconds = metered_seconds
        self._read: tuple[float, Vitals] | None = None
        self._cpu: _CpuSample | None = None
        self._metered: tuple[float, str, bool | None] | None = None

    def read(self) -> Vitals:
        now = self._clock()
        if self._read is not None and now - self._read[0] < self._fresh_seconds:
            return self._read[1]
        earlier, self._cpu = self._cpu, self._cpu_sample(now)
        vitals = replace(
            self.glance(),
            cpu_idle_pct=None if earlier is None else _idle_pct(earlier, self._cpu),
            memory_available_bytes=self._memory(),
            temperature_c=self._temperature(),
        )
        self._read = (now, vitals)
        return vitals

    def glance(self) -> Vitals:
        """It is no reading of the CPU's load: the next `read` goes by the one before."""
        battery_pct, on_mains = self._power()
        interface = self._interface()
        link_up, link_kind = (self._any_link(), None) if interface is None else self._link(interface)
        return Vitals(
            battery_pct=battery_pct,
            on_mains=on_mains,
            link_up=link_up,
            link_kind=link_kind,
            metered=None
            if interface is None or link_kind == "loopback"
            else self._is_metered(interface, self._clock()),
        )

    # Power. psutil looks at fixed paths, at the first battery only, and takes a wireless mouse for one.

    def _power(self) -> tuple[float | None, bool | None]:
        folder = self._root / "sys/class/power_supply"
        if not folder.is_dir():
            return self._power_elsewhere()
        batteries, online, status = [], [], []
        for supply in sorted(folder.iterdir()):
            kind = _text(supply / "type")
            if _text(supply / "scope") == "Device":
                continue  # the battery of a mouse or a headset
            if kind == "Battery" and _text(supply / "present") != "0":
                batteries.append(supply)
                status.append(_text(supply / "status"))
            elif kind is not None and (kind in ("Mains", "Wireless") or kind.startswith("USB")):
                online.append(_number(supply / "online"))
        on_mains: bool | None = None
        if any(online):
            on_mains = True
        elif "Discharging" in status or (online and None not in online):
            on_mains = False
        elif "Charging" in status or "Full" in status:
            on_mains = True
        return _charge_pct(batteries), on_mains

    def _power_elsewhere(self) -> tuple[float | None, bool | None]:
        read = getattr(self._system, "sensors_battery", None)
        battery = read() if read is not None else None
        if battery is None:
            return None, None
        return min(100.0, max(0.0, float(battery.percent))), battery.power_plugged

    # Memory and CPU, within the cgroups.

    def _memory(self) -> int:
        available = int(self._system.virtual_memory().available)
        for group in self._cgroups("memory"):
            if group.version == 2:
                limits = [_number(group.path / "memory.max"), _number(group.path / "memory.high")]
                used = _number(group.path / "memory.current")
                cache = _keyed(group.path / "memory.stat", "inactive_file")
            else:
                limits = [_number(group.path / "memory.limit_in_bytes")]
                used = _number(group.path / "memory.usage_in_bytes")
                cache = _keyed(group.path / "memory.stat", "total_inactive_file")
            limit = min((limit for limit in limits if limit is not None), default=NO_LIMIT)
            if limit < NO_LIMIT and used is not None:
                # File pages that nobody used lately are given back before the limit bites.
                available = min(available, limit - used + min(used, cache or 0))
        return max(0, available)

    def _cpu_sample(self, now: float) -> _CpuSample:
        times = self._system.cpu_times(percpu=True)
        try:
            allowed = [times[cpu] for cpu in sorted(os.sched_getaffinity(0)) if cpu < len(times)]
        except AttributeError:  # not on this system
            allowed = times
        allowed = allowed or times
        own = self._system.Process().cpu_times()
        quotas = {}
        for group in self._cgroups("cpu"):
            cores = _quota(group)
            if cores is not None and (used := self._cpu_seconds(group)) is not None:
                quotas[group.path] = (cores, used)
        return _CpuSample(
            at=now,
            cpus=len(allowed),
            # Guest time is part of user time already.
            total=sum(sum(value for name, value in cpu._asdict().items() if "guest" not in name) for cpu in allowed),
            idle=sum(cpu.idle + getattr(cpu, "iowait", 0.0) for cpu in allowed),
            own=own.user + own.system,
            quotas=quotas,
        )

    def _cpu_seconds(self, group: _Cgroup) -> float | None:
        """CPU time that the cgroup has used so far."""
        if group.version == 2:
            micros = _keyed(group.path / "cpu.stat", "usage_usec")
            return None if micros is None else micros / 1e6
        # Version 1 counts in another controller, which may be mounted elsewhere.
        relative = group.path.relative_to(group.mount)
        for accounting in self._cgroups("cpuacct"):
            if accounting.path.relative_to(accounting.mount) == relative:
                nanos = _number(accounting.path / "cpuacct.usage")
                return None if nanos is None else nanos / 1e9
        return None

    def _cgroups(self, controller: str) -> Iterator[_Cgroup]:
        """This process's cgroup for the controller, and those above as far as they can be seen."""
        version, own = 0, ""
        for line in (_text(self._root / "proc/self/cgroup") or "").splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                version, own = 1, path
                break
            if not controllers:
                version, own = 2, path
        for line in (_text(self._root / "proc/self/mountinfo") or "").splitlines():
            before, _, after = line.partition(" - ")
            fields, options = before.split(), after.split()
            if version == 1 and (options[0] != "cgroup" or controller not in options[-1].split(",")):
                continue
            if version == 2 and options[0] != "cgroup2":
                continue
            if version:
                mount = self._root / _unescape(fields[4]).lstrip("/")
                yield from _upwards(version, mount, _below(own, _unescape(fields[3])))
                return

    # Temperature: that of the CPU where a sensor says so by its name, else the hottest.

    def _temperature(self) -> float | None:
        named: list[tuple[str, float]] = []
        for zone in sorted((self._root / "sys/class/thermal").glob("thermal_zone*")):
            millis = _number(zone / "temp")
            if millis is not None and _text(zone / "mode") != "disabled":
                named.append((_text(zone / "type") or "", millis / 1000))
        read = getattr(self._system, "sensors_temperatures", None)
        for chip, sensors in (read() if read is not None else {}).items():
            named += [(f"{chip} {sensor.label}", sensor.current) for sensor in sensors if sensor.current is not None]
        plausible = [(name, value) for name, value in named if PLAUSIBLE_C[0] <= value <= PLAUSIBLE_C[1]]
        cpu = [value for name, value in plausible if _CPU_SENSOR.search(name)]
        return max(cpu or [value for _, value in plausible], default=None)

    # The link.

    def _interface(self) -> str | None:
        """The interface that carries what goes to the broker."""
        address = _address(self._towards)
        if address is not None and address.is_loopback:
            return "lo"
        routes = [*self._routes_v4(), *self._routes_v6()]
        if address is None:
            routes = [route for route in routes if route.network.prefixlen == 0]
        else:
            routes = [
                route for route in routes if address.version == route.network.version and address in route.network
            ]
        best = min(routes, key=lambda route: (-route.network.prefixlen, route.metric), default=None)
        return None if best is None else best.interface

    def _routes_v4(self) -> Iterator[_Route]:
        for line in (_text(self._root / "proc/net/route") or "").splitlines()[1:]:
            interface, destination, _, flags, _, _, metric, mask, *_ = line.split()
            if int(flags, 16) & (RTF_UP | RTF_REJECT) == RTF_UP:
                # The kernel prints both as numbers in the machine's own byte order.
                network = int(destination, 16).to_bytes(4, sys.byteorder)
                prefix = int(mask, 16).bit_count()
                yield _Route(interface, ipaddress.IPv4Network((network, prefix), strict=False), int(metric))

    def _routes_v6(self) -> Iterator[_Route]:
        for line in (_text(self._root / "proc/net/ipv6_route") or "").splitlines():
            destination, prefix, _, _, _, metric, _, _, flags, interface = line.split()
            if int(flags, 16) & (RTF_UP | RTF_REJECT) == RTF_UP and interface != "lo":
                network = ipaddress.IPv6Network((bytes.fromhex(destination), int(prefix, 16)), strict=False)
                yield _Route(interface, network, int(metric, 16))

    def _link(self, interface: str) -> tuple[bool | None, LinkKind | None]:
        folder = self._root / "sys/class/net" / interface
        if not folder.is_dir():
            return None, None
        state = _text(folder / "operstate")
        up: bool | None = None
        if state == "up":
            up = True
        elif state in ("down", "lowerlayerdown", "notpresent", "dormant"):
            up = False
        elif (carrier := _number(folder / "carrier")) is not None:
            up = carrier == 1  # loopback, tunnels and some drivers do not report a state
        return up, _link_kind(interface, folder)

    def _any_link(self) -> bool | None:
        """Without a route: False when every interface is down, unknown when one is up."""
        folder = self._root / "sys/class/net"
        states = [self._link(entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
        ups = [up for up, kind in states if kind != "loopback"]
        return False if ups and all(up is False for up in ups) else None

    def _is_metered(self, interface: str, now: float) -> bool | None:
        """What NetworkManager says, remembered for a while: asking it starts a process."""
        if self._metered is None or self._metered[1] != interface or now - self._metered[0] >= self._metered_seconds:
            self._metered = (now, interface, self._ask_metered(interface))
        return self._metered[2]

    def _ask_metered(self, interface: str) -> bool | None:
        if interface.startswith("-"):
            return None  # would be read as an option
        told = self._run(("nmcli", "-t", "-f", "GENERAL.METERED", "device", "show", interface))
        if told is not None:
            word = told.strip().partition(":")[2].split(" ")[0]  # "yes (guessed)"
            return {"yes": True, "no": False}.get(word)
        # Without nmcli: the same of the primary connection. NMMetered: 0 unknown, 1 yes, 2 no, 3 and 4 guessed yes, no.
        service = "org.freedesktop.NetworkManager"
        told = self._run(("busctl", "get-property", service, "/org/freedesktop/NetworkManager", service, "Metered"))
        return {"u 1": True, "u 3": True, "u 2": False, "u 4": False}.get((told or "").strip())


def cpu_seconds() -> float:
    """That this process has used so far, all its threads, in user and kernel."""
    return time.process_time()


def lower_priority(nice: int) -> None:
    """Gives this process at least this nice value, and the disk only when nobody else wants it. 0 changes nothing."""
    if nice == 0:
        return
    process = psutil.Process()
    try:
        if process.nice() < nice:
            process.nice(nice)
        if hasattr(process, "ionice") and hasattr(psutil, "IOPRIO_CLASS_IDLE"):
            process.ionice(psutil.IOPRIO_CLASS_IDLE)
    except (psutil.Error, OSError) as error:
        log.warning("running at normal priority: the system refused nice %d (%s)", nice, error)


RTF_UP = 0x1
RTF_REJECT = 0x200


@dataclass(frozen=True)
class _Route:
    interface: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    metric: int


@dataclass(frozen=True, kw_only=True)
class _Cgroup:
    version: int
    mount: Path
    path: Path


@dataclass(frozen=True, kw_only=True)
class _CpuSample:
    """Counters at one moment, in seconds of CPU, over the CPUs that this process may run on."""

    at: float
    cpus: int
    total: float
    idle: float
    own: float
    quotas: dict[Path, tuple[float, float]] = field(default_factory=dict)
    """Of each cgroup with a quota: how many CPUs' worth it may use, and the seconds used."""


def _idle_pct(earlier: _CpuSample, later: _CpuSample) -> float | None:
    """Share of what this process might have used between two samples that others left to it, in per cent."""
    elapsed = later.at - earlier.at
    total = later.total - earlier.total
    if elapsed <= 0 or total <= 0 or earlier.cpus != later.cpus:
        return None
    own = later.own - earlier.own
    may_use = total
    left = later.idle - earlier.idle + own
    for path, (cores, used) in later.quotas.items():
        if path in earlier.quotas:
            may_use = min(may_use, cores * elapsed)
            left = min(left, cores * elapsed - max(0.0, used - earlier.quotas[path][1] - own))
    return min(100.0, max(0.0, 100.0 * left / may_use))


def _quota(group: _Cgroup) -> float | None:
    """CPUs' worth that the cgroup may use, None without a quota."""
    if group.version == 2:
        quota, _, period = (_text(group.path / "cpu.max") or "max").partition(" ")
        if not quota.isdigit() or not period.isdigit():
            return None
        return int(quota) / int(period)
    micros, of = _number(group.path / "cpu.cfs_quota_us"), _number(group.path / "cpu.cfs_period_us")
    return micros / of if micros is not None and of and micros > 0 else None


def _upwards(version: int, mount: Path, relative: str) -> Iterator[_Cgroup]:
    path = mount / relative
    if not path.is_dir():
        path = mount
    while True:
        yield _Cgroup(version=version, mount=mount, path=path)
        if path == mount:
            return
        path = path.parent


def _below(own: str, top: str) -> str:
    """The cgroup's path from the mount's own top; "" where it lies outside, as seen from within a container."""
    if ".." in own.split("/"):
        return ""
    top = top.rstrip("/")
    return own[len(top) + 1 :] if own.startswith(top + "/") else ""


def _unescape(text: str) -> str:
    """mountinfo writes a space as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _charge_pct(batteries: Iterable[Path]) -> float | None:
    """Charge of all batteries together: by energy where each states it, else the mean of their per cents."""
    batteries = list(batteries)
    for unit in ("energy", "charge"):
        now = [_number(battery / f"{unit}_now") for battery in batteries]
        full = [_number(battery / f"{unit}_full") for battery in batteries]
        known = [(n, f) for n, f in zip(now, full, strict=True) if n is not None and f]
        if batteries and len(known) == len(batteries):
            return min(100.0, max(0.0, 100.0 * sum(n for n, _ in known) / sum(f for _, f in known)))
    stated = [pct for battery in batteries if (pct := _number(battery / "capacity")) is not None]
    return min(100.0, max(0.0, sum(stated) / len(stated))) if stated else None


def _link_kind(interface: str, folder: Path) -> LinkKind:
    hardware = _number(folder / "type")  # ARPHRD_…: 1 Ethernet, 512 PPP, 519 raw IP (modems), 772 loopback
    device = next(
        (line[8:] for line in (_text(folder / "uevent") or "").splitlines() if line.startswith("DEVTYPE=")), ""
    )
    if hardware == 772:
        return "loopback"
    if (folder / "wireless").exists() or (folder / "phy80211").exists() or device == "wlan":
        return "wifi"
    if device == "wwan" or interface.startswith("wwan") or hardware in (512, 519):
        return "cellular"
    if (folder / "tun_flags").exists():
        return "other"  # a VPN hides what carries it
    return "ethernet" if hardware == 1 else "other"


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if host == "localhost":
        return ipaddress.IPv4Address("127.0.0.1")
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    """What a file of /sys or /proc says, None if it is absent or refuses, as `carrier` does while a link is down."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and re.fullmatch(r"-?\d{1,20}", text) else None


def _keyed(path: Path, key: str) -> int | None:
    """The number behind `key` in a file of lines 'key number'."""
    for line in (_text(path) or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return None


def _run(command: Sequence[str]) -> str | None:
    """What the command prints, None where it is absent, fails or hangs."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
