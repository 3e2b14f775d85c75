"""One test machine: Debian with systemd as its first process, in a namespace of its own, with sensors one can edit.

Owns what a machine is made of (an overlay on the image, control groups, a network namespace, folders that stand in for
/sys/class/power_supply and thermal) and what may happen to it: started, shut down, its power cut, its cable pulled.
Refuses to know other machines and Ansible. What it makes, `gone` takes away, also after a run that was killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleetbed.image import ADMIN

__all__ = ["Machine", "MachineError", "Ran", "run"]

BOOT_SECONDS = 120.0
CONTROLLERS = ("memory", "cpu", "cpuacct", "pids", "systemd", "unified")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# A shell that moves into the groups named before "--" and becomes what stands behind it.
JOIN = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 1; shift; done; shift; exec "$@"'

INIT = """\
#!/bin/sh
# systemd-nspawn mounts the controllers read-only, and without `bind` the remount would be of the whole host's: systemd
# in here would then drop MemoryMax and CPUQuota without a word.
for controller in memory cpu cpuacct cpu,cpuacct pids; do
  [ -d "/sys/fs/cgroup/$controller" ] && mount -o remount,rw,bind "/sys/fs/cgroup/$controller"
done
# The /sys that systemd-nspawn mounts shows the host's network: one of the machine's own instead, same groups below.
mkdir -p /run/fleet-sys
mount -t sysfs -o nosuid,nodev,noexec,ro sysfs /run/fleet-sys
mount --rbind /sys/fs/cgroup /run/fleet-sys/fs/cgroup
mount --rbind /run/fleet-sys /sys
mount --make-rprivate /run/fleet-sys
umount --lazy /run/fleet-sys
for part in power_supply thermal; do
  [ -d "/srv/sys/$part" ] && [ -d "/sys/class/$part" ] && mount --bind "/srv/sys/$part" "/sys/class/$part"
done
exec /lib/systemd/systemd
"""


class MachineError(RuntimeError):
    """A command on a machine that failed, or a state that did not come: which machine, what was expected, what came."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


def run(*command: str | Path, check: bool = True) -> Ran:
    """A command of this host, waited for."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if check and done.returncode:
        shown = " ".join(map(str, command))
        raise MachineError(f"{shown}: expected exit status 0, got {done.returncode}: {done.stderr.strip()}")
    return Ran(code=done.returncode, out=done.stdout, err=done.stderr)


class Machine:
    """Made by a Bed, which has laid the cables into `namespace` already."""

    def __init__(
        self,
        *,
        name: str,
        addresses: Mapping[str, str],
        cables: Mapping[str, str],
        control: str,
        namespace: str,
        folder: Path,
        image: Path,
        memory_bytes: int,
    ) -> None:
        self.name = name
        self.addresses = dict(addresses)
        """Of each network that it is on, its address there; the first is where Ansible finds it."""
        self.ip = next(iter(self.addresses.values()))
        self.folder = folder
        self.root = folder / "root"
        self.changes = folder / "changes"
        """What differs from the image, as the overlay keeps it: readable also while the machine is off."""
        self._cables = dict(cables)
        self._control = control
        self._namespace = namespace
        self._image = image
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __repr__(self) -> str:
        return f"Machine({self.name}, {self.ip})"

    # What it is made of.

    def prepare(self, *, hosts: str, public_key: str) -> None:
        """Lays its own tree over the image, with its name, its neighbours' names and whom it lets in."""
        for part in (self.root, self.changes, self.folder / "work"):
            part.mkdir(parents=True)
        options = f"lowerdir={self._image},upperdir={self.changes},workdir={self.folder / 'work'}"
        run("mount", "-t", "overlay", "overlay", "-o", options, self.root)
        (self.root / "etc/hostname").write_text(f"{self.name}\n")
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        (self.root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (self.root / "fleet-init").write_text(INIT)
        (self.root / "fleet-init").chmod(0o755)
        home = self.root / "home" / ADMIN
        owner = home.stat()
        keys = home / ".ssh"
        keys.mkdir(mode=0o700)
        (keys / "authorized_keys").write_text(public_key)
        for path in (keys, keys / "authorized_keys"):
            os.chown(path, owner.st_uid, owner.st_gid)
        self.set_battery(100, on_mains=True)
        self.set_temperature(40)

    def gone(self) -> None:
        """Takes everything away that `prepare` and `boot` have made, in this process or in one that was killed."""
        self.power_cut()
        if os.path.ismount(self.root):
            run("umount", self.root)
        shutil.rmtree(self.folder, ignore_errors=True)

    # Power.

    @property
    def is_on(self) -> bool:
        return self._leader > 0 and _started(self._leader) is not None

    def boot(self) -> Machine:
        """Starts it, and comes back when systemd is through and sshd listens."""
        self.start()
        self.wait_booted()
        return self

    def start(self) -> None:
        if self.is_on:
            raise MachineError(f"{self.name}: expected a machine that is off, but it runs")
        nspawn = [
            "systemd-nspawn",
            "--quiet",
            f"--directory={self.root}",
            f"--machine={self._namespace}",
            f"--hostname={self.name}",
            "--register=no",
            "--keep-unit",
            f"--network-namespace-path=/run/netns/{self._namespace}",
            # Of that namespace: a firewall is the machine's own.
            "--capability=CAP_NET_ADMIN",
            "--resolv-conf=off",
            "--link-journal=no",
            "--console=pipe",
            "--kill-signal=SIGRTMIN+3",
            f"--bind={self.folder / 'sys'}:/srv/sys",
            "/fleet-init",
        ]
        with (self.folder / "console.log").open("ab") as console:
            self._process = subprocess.Popen(
                [*self._in_groups(), *nspawn],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # With its time of start, so that a later run never kills a stranger who got the same number.
        (self.folder / "pid").write_text(f"{self._process.pid} {_started(self._process.pid)}\n")

    def wait_booted(self) -> None:
        deadline = time.monotonic() + BOOT_SECONDS
        state = "nothing"
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise MachineError(f"{self.name}: expected it to boot, but it ended:\n{self.console()[-2000:]}")
            self._leader = _first_process(self._process.pid)
            if self._leader:
                state = self.run("systemctl is-system-running; true").out.strip()
                if state in ("running", "degraded") and self.run("ss -Hltn sport = :22").out.strip():
                    return
            time.sleep(0.2)
        raise MachineError(f"{self.name}: expected it to run within {BOOT_SECONDS:.0f} s, got {state!r}")

    def shut_down(self) -> None:
        """As `poweroff` does: every service is stopped in order."""
        process = self._expect_on()
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            raise MachineError(f"{self.name}: expected it to be off within 60 s of poweroff, but it runs") from None
        self._off()

    def power_cut(self) -> None:
        """Ends every process at once: nothing is flushed by a service, nobody says goodbye."""
        pid_file = self.folder / "pid"
        if not pid_file.exists():
            return
        pid, _, started = pid_file.read_text().partition(" ")
        if _started(int(pid)) == started.strip():
            # The kernel ends all of a machine with its first process.
            leader = _first_process(int(pid))
            for victim in filter(None, (leader, int(pid))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(timeout=30)
        deadline = time.monotonic() + 30
        while _started(int(pid)) == started.strip() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._off()

    def _off(self) -> None:
        self._process = None
        self._leader = 0
        groups = self.folder / "groups"
        for line in groups.read_text().splitlines() if groups.exists() else ():
            _remove_group(Path(line))
        groups.unlink(missing_ok=True)
        (self.folder / "pid").unlink(missing_ok=True)

    def _expect_on(self) -> subprocess.Popen[bytes]:
        if self._process is None or not self.is_on:
            raise MachineError(f"{self.name}: expected a machine that runs, but it is off")
        return self._process

    def _in_groups(self) -> list[str]:
        """What starts a command in control groups of the machine's own, below ours."""
        if Path("/run/systemd/system").is_dir():
            memory = f"--property=MemoryMax={self._memory_bytes}"
            return ["systemd-run", "--scope", "--quiet", "--collect", "--property=Delegate=yes", memory]
        groups = []
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, names, own = line.split(":", 2)
            for controller in names.split(",") if number != "0" else ["unified"]:
                controller = controller.removeprefix("name=")
                top = Path("/sys/fs/cgroup") / controller
                if controller in CONTROLLERS and top.is_dir():
                    groups.append(top / own.lstrip("/") / self._namespace)
        (self.folder / "groups").write_text("".join(f"{group}\n" for group in groups))
        for group in groups:
            group.mkdir(exist_ok=True)
            if (group / "memory.limit_in_bytes").exists():
                (group / "memory.limit_in_bytes").write_text(str(self._memory_bytes))
        return ["sh", "-c", JOIN, "sh", *map(str, groups), "--"]

    # What is done on it.

    def run(self, command: str | Sequence[str], *, check: bool = True, seconds: float = 120.0) -> Ran:
        """A command on the machine as root, by no network. A string goes through its shell.

        It is none of the machine's services: limits of units do not hold for it.
        """
        words = ["bash", "-c", command] if isinstance(command, str) else list(command)
        if not self.is_on and not self._leader:
            raise MachineError(f"{self.name}: expected a machine that runs, but it is off")
        enter = ["nsenter", f"--target={self._leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]
        clean = ["/usr/bin/env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8"]
        done = subprocess.run(
            [*enter, "--", *clean, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds,
        )
        if check and done.returncode:
            raise MachineError(
                f"{self.name}: {command}: expected exit status 0, got {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return Ran(code=done.returncode, out=done.stdout, err=done.stderr)

    def path(self, path: str) -> Path:
        """Where a file of the machine is found from outside, whether it runs or not. Not for /run, /tmp and /sys."""
        return self.root / path.lstrip("/")

    def put(self, folder: Path, path: str) -> None:
        """Copies a folder of this host onto it, readable for all there."""
        target = self.path(path)
        shutil.copytree(folder, target, dirs_exist_ok=True)
        run("chmod", "-R", "u=rwX,go=rX", target)

    def wait(self, what: str, look: Callable[[], object], *, seconds: float = 60.0) -> None:
        """Until `look` gives something true; raises MachineError, with what was waited for, when it never does."""
        deadline = time.monotonic() + seconds
        while not look():
            if time.monotonic() > deadline:
                raise MachineError(f"{self.name}: expected {what} within {seconds:.0f} s, and it did not come")
            time.sleep(0.2)

    def console(self) -> str:
        path = self.folder / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def journal(self, unit: str | None = None) -> str:
        """What its journal says, of one unit or of all, also of a machine that is off."""
        only = [f"--unit={unit}"] if unit else []
        options = ["--no-pager", "--output=short-precise", *only]
        if self.is_on:
            return self.run(["journalctl", *options], check=False).out
        return run("journalctl", f"--directory={self.root}/var/log/journal", *options, check=False).out

    # Its surroundings.

    def link(self, up: bool, network: str | None = None) -> None:
        """Plugs the cable in or pulls it: of one network, or of all. The machine keeps its addresses."""
        for name, cable in self._cables.items():
            if network in (None, name):
                run("ip", "-n", self._control, "link", "set", cable, "up" if up else "down")

    def set_battery(self, percent: int, *, on_mains: bool = False) -> None:
        supply = self.folder / "sys/power_supply"
        status = "Charging" if on_mains else "Discharging"
        battery = {"type": "Battery", "present": "1", "capacity": str(percent), "status": status}
        _lay(supply / "BAT0", battery)
        _lay(supply / "AC", {"type": "Mains", "online": "1" if on_mains else "0"})

    def set_temperature(self, celsius: float) -> None:
        _lay(self.folder / "sys/thermal/thermal_zone0", {"type": "cpu-thermal", "temp": str(round(celsius * 1000))})


def _lay(folder: Path, values: Mapping[str, str]) -> None:
    """As the kernel's own: a file each, written in place, so that whoever has it open sees it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n")


def _started(pid: int) -> str | None:
    """When the process was started, in the kernel's ticks; None where there is none, or only its exit status."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _first_process(nspawn: int) -> int:
    """The machine's process 1 as this host counts, 0 where there is none yet."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(lines["PPid"]) == nspawn and lines.get("NSpid", "").split()[-1:] == ["1"]:
            return int(status.parent.name)
    return 0


def _remove_group(top: Path) -> None:
    if top.is_dir():
        for folder, _, _ in os.walk(top, topdown=False):
            # What has just ended may be in there for a moment more.
            for _ in range(50):
                try:
                    os.rmdir(folder)
                    break
                except OSError:
                    time.sleep(0.02)
