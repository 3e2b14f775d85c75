"""Machines on networks of their own, and a control node beside them, from which Ansible is run.

Owns the networks (a bridge each, in a namespace of the bed, so that addresses never meet those of the host), the key
that everyone lets in, and that nothing is left: not at the end, not when a test fails, not of a run that was killed.
Refuses to know what a role does. A bed's name keeps it apart from others on the same host; two of one name wait for
nobody: the second one says that the first is in use.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fleetbed import image
from fleetbed.machine import Machine, MachineError, run

__all__ = ["Bed", "Counts", "Result", "Spec", "why_not"]

REPOSITORY = Path(__file__).resolve().parents[3]
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "nsenter": "util-linux",
    "journalctl": "systemd",
}
MEMORY_BYTES = 768 << 20
_RECAP = re.compile(r"^(\S+)\s+: ((?:\w+=\d+\s*)+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What Ansible's recap says of one host."""

    ok: int
    changed: int
    unreachable: int
    failed: int
    skipped: int = 0
    rescued: int = 0
    ignored: int = 0


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a playbook went."""

    code: int
    stdout: str
    seconds: float
    hosts: Mapping[str, Counts]

    @property
    def changed(self) -> dict[str, int]:
        """The hosts on which something was changed, and how many tasks did."""
        return {host: counts.changed for host, counts in self.hosts.items() if counts.changed}

    @property
    def failed(self) -> list[str]:
        return [host for host, counts in self.hosts.items() if counts.failed or counts.unreachable]

    def tasks_that_changed(self) -> list[str]:
        """Names of tasks, with their host: what one wants to read where nothing should have changed."""
        task, found = "", []
        for line in self.stdout.splitlines():
            if match := re.match(r"(?:TASK|RUNNING HANDLER) \[(.*?)\] \*", line):
                task = match[1]
            elif match := re.match(r"changed: \[(.*?)[ \]]", line):
                found.append(f"{match[1]}: {task}")
        return found


@dataclass(frozen=True)
class Spec:
    """A machine to be: its name, the networks that its cables go to, and its memory."""

    name: str
    networks: tuple[str, ...] = ("plant",)
    memory_bytes: int = MEMORY_BYTES


def why_not() -> str | None:
    """Why no bed can be made here, or None: one line for whoever reads that tests were skipped."""
    if sys.platform != "linux":
        return f"needs Linux, and this is {sys.platform}"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces and boot machines: run scripts/test-fleet as root"
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        return f"needs {', '.join(missing)}: scripts/test-fleet installs them, or apt-get install"
    if "overlay" not in Path("/proc/filesystems").read_text().split():
        run("modprobe", "overlay", check=False)
        if "overlay" not in Path("/proc/filesystems").read_text().split():
            return "needs a kernel with overlayfs, and this one has none"
    probe = f"fleet-probe-{os.getpid()}"
    for made in (["netns", "add", probe], ["-n", probe, "link", "add", "probe", "type", "bridge"]):
        tried = run("ip", *made, check=False)
        if tried.code:
            run("ip", "netns", "del", probe, check=False)
            return f"needs network namespaces and bridges: ip {' '.join(made)} says {tried.err.strip()}"
    run("ip", "netns", "del", probe)
    return None


class Bed:
    """The machines named, booted side by side when it is entered, and gone when it is left."""

    def __init__(self, specs: Sequence[Spec], *, name: str | None = None, logs: Path | None = None) -> None:
        self.name = name or os.environ.get("FEDMQ_FLEET_BED", "a")
        if not re.fullmatch(r"[a-z0-9]{1,4}", self.name):
            raise ValueError(f"expected a bed's name of at most 4 letters a-z and digits, got {self.name!r}")
        if len({spec.name for spec in specs}) != len(specs):
            raise ValueError(f"expected machines of different names, got {[spec.name for spec in specs]}")
        self.folder = image.cache() / f"bed-{self.name}"
        self.logs = logs or Path(os.environ.get("FEDMQ_FLEET_LOGS", image.cache() / "logs"))
        self.control = f"fleet-{self.name}"
        self.key = self.folder / "id"
        self._specs = list(specs)
        self._machines: dict[str, Machine] = {}
        self._networks: dict[str, str] = {}
        self._plays = 0
        self._made = 0
        self.times: list[tuple[str, float]] = []
        """What was done on it, and how many seconds that took."""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(image.held(image.cache() / f"bed-{self.name}.lock", wait=False))
        except BlockingIOError:
            raise MachineError(
                f"the bed {self.name!r} is in use by another run: name another one with FEDMQ_FLEET_BED"
            ) from None
        try:
            self._clear()
            atexit.register(self._clear)
            self.folder.mkdir(parents=True)
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
            run("ip", "netns", "add", self.control)
            run("ip", "-n", self.control, "link", "set", "lo", "up")
            base = image.tree(self.say)
            for spec in self._specs:
                self._add(spec, base)
            began = time.monotonic()
            for machine in self._machines.values():
                machine.prepare(hosts=self._hosts(), public_key=self.key.with_suffix(".pub").read_text())
                machine.start()
            for machine in self._machines.values():
                machine.wait_booted()
            self.times.append((f"{len(self._machines)} machines booted", time.monotonic() - began))
            self.say(f"{len(self._machines)} machines booted in {time.monotonic() - began:.1f} s")
        except BaseException:
            self.save_journals("boot")
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes all of it away. Closed twice, it does nothing."""
        self._clear()
        atexit.unregister(self._clear)
        self._stack.close()

    def say(self, line: str) -> None:
        print(f"[fleet] {line}", file=sys.stderr, flush=True)

    # Machines and networks.

    def machine(self, name: str) -> Machine:
        return self._machines[name]

    @property
    def machines(self) -> list[Machine]:
        return list(self._machines.values())

    def add(self, spec: Spec) -> Machine:
        """One more machine, booted: a new board, or a fresh server. The others learn its name."""
        machine = self._add(spec, image.tree(self.say))
        machine.prepare(hosts=self._hosts(), public_key=self.key.with_suffix(".pub").read_text())
        for other in self._machines.values():
            (other.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{self._hosts()}")
        return machine.boot()

    def remove(self, name: str) -> None:
        """Power off, and away with the disk. Its address stays unused."""
        machine = self._machines.pop(name)
        machine.gone()
        run("ip", "netns", "del", f"{self.control}-{name}")

    def _hosts(self) -> str:
        return "".join(f"{address} {m.name}\n" for m in self._machines.values() for address in m.addresses.values())

    def _network(self, network: str) -> str:
        """The first three bytes of the network's addresses; its bridge is made where it is new."""
        if network not in self._networks:
            number = len(self._networks)
            self._networks[network] = f"10.77.{number}"
            for words in (
                ["link", "add", f"br{number}", "type", "bridge"],
                ["addr", "add", f"10.77.{number}.1/24", "dev", f"br{number}"],
                ["link", "set", f"br{number}", "up"],
            ):
                run("ip", "-n", self.control, *words)
        return self._networks[network]

    def _add(self, spec: Spec, base: Path) -> Machine:
        namespace = f"{self.control}-{spec.name}"
        run("ip", "netns", "add", namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        self._made += 1
        place = 10 + self._made
        addresses, cables = {}, {}
        for index, network in enumerate(spec.networks):
            prefix = self._network(network)
            # As short as a name of an interface must be, and one of its own.
            cable = f"v{place}-{index}"
            ends = ["type", "veth", "peer", "name", f"eth{index}", "netns", namespace]
            run("ip", "-n", self.control, "link", "add", cable, *ends)
            run("ip", "-n", self.control, "link", "set", cable, "master", f"br{prefix.rsplit('.', 1)[1]}", "up")
            run("ip", "-n", namespace, "addr", "add", f"{prefix}.{place}/24", "dev", f"eth{index}")
            run("ip", "-n", namespace, "link", "set", f"eth{index}", "up")
            addresses[network], cables[network] = f"{prefix}.{place}", cable
        folder = self.folder / "machines" / spec.name
        folder.mkdir(parents=True)
        self._machines[spec.name] = Machine(
            name=spec.name,
            addresses=addresses,
            cables=cables,
            control=self.control,
            namespace=namespace,
            folder=folder,
            image=base,
            memory_bytes=spec.memory_bytes,
        )
        return self._machines[spec.name]

    def _clear(self) -> None:
        """Everything of a bed of this name, whoever made it: what lies in its folder and bears its name."""
        for socket in self.folder.glob("ssh/*"):
            run("ssh", "-O", "exit", "-o", f"ControlPath={socket}", "nobody", check=False)
        for folder in self.folder.glob("machines/*"):
            _leftover(folder, self.control).gone()
        self._machines.clear()
        self._networks.clear()
        listed = run("ip", "-j", "netns", "list", check=False).out
        for entry in json.loads(listed or "[]"):
            if entry["name"] == self.control or entry["name"].startswith(f"{self.control}-"):
                run("ip", "netns", "del", entry["name"])
        shutil.rmtree(self.folder, ignore_errors=True)

    # Ansible.

    def inventory(
        self,
        groups: Mapping[str, Sequence[str]],
        *,
        variables: Mapping[str, Any] | None = None,
        hosts: Mapping[str, Mapping[str, Any]] | None = None,
        group_variables: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Path:
        """Writes an inventory of the groups named, with variables for all, for hosts and for groups."""
        common = (
            f"-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
            f" -o ControlMaster=auto -o ControlPersist=60s -o ControlPath={self.folder / 'ssh'}/%C"
        )
        (self.folder / "ssh").mkdir(exist_ok=True)
        login = {
            "ansible_user": image.ADMIN,
            "ansible_become": True,
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": common,
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        named = dict.fromkeys(name for members in groups.values() for name in members)
        content = {
            "all": {
                "vars": {**login, **(variables or {})},
                "hosts": {
                    name: {"ansible_host": self.machine(name).ip, **(hosts or {}).get(name, {})} for name in named
                },
                "children": {
                    group: {
                        "hosts": {name: {} for name in members},
                        "vars": dict((group_variables or {}).get(group, {})),
                    }
                    for group, members in groups.items()
                },
            }
        }
        # YAML that is JSON needs no further package to be written.
        path = self.folder / "inventory.yml"
        path.write_text(json.dumps(content, indent=2))
        return path

    def playbook(
        self,
        playbook: str | Path,
        *,
        inventory: Path,
        extra_vars: Mapping[str, Any] | None = None,
        limit: str | None = None,
        arguments: Sequence[str] = (),
        check: bool = True,
        seconds: float = 900.0,
    ) -> Result:
        """Runs it from the control node. Where `check` and it failed, raises MachineError with the end of what it said.

        A name without a folder is one of the repository's ansible/. The control node reaches the machines and nothing
        else: a play that needs the internet fails.
        """
        path = Path(playbook) if "/" in str(playbook) else REPOSITORY / "ansible" / playbook
        beside = Path(sys.executable).parent / "ansible-playbook"
        program = str(beside) if beside.exists() else shutil.which("ansible-playbook")
        if program is None:
            raise MachineError(
                'expected ansible-playbook beside Python: pip install "fedmq[fleet]", or scripts/test-fleet'
            )
        command = ["ip", "netns", "exec", self.control, program, "-i", str(inventory), *arguments]
        command += ["--extra-vars", json.dumps(extra_vars)] if extra_vars else []
        command += ["--limit", limit] if limit else []
        environment = {
            **os.environ,
            "ANSIBLE_HOST_KEY_CHECKING": "False",
            "ANSIBLE_PIPELINING": "True",
            "ANSIBLE_NOCOLOR": "True",
            "ANSIBLE_FORCE_COLOR": "False",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        config = REPOSITORY / "ansible/ansible.cfg"
        if config.exists():
            environment["ANSIBLE_CONFIG"] = str(config)
        self._plays += 1
        log = self.folder / f"play-{self._plays:02}-{path.stem}.log"
        began = time.monotonic()
        with log.open("w+") as output:
            process = subprocess.Popen(
                [*command, str(path)],
                cwd=path.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(seconds)
            except BaseException:
                # With its workers: they would go on for hours.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
            output.seek(0)
            said = output.read()
        result = Result(code=process.returncode, stdout=said, seconds=time.monotonic() - began, hosts=_recap(said))
        self.times.append((f"{path.name}, run {self._plays}", result.seconds))
        counted = ", ".join(f"{host} {counts.changed}" for host, counts in result.hosts.items())
        self.say(f"{path.name}: {result.seconds:.1f} s, exit status {result.code}; changed: {counted}")
        if check and (result.code or not result.hosts):
            raise MachineError(f"{path.name}: expected it to end well, got exit status {result.code}:\n{said[-6000:]}")
        return result

    def control_run(self, *command: str | Path, check: bool = True) -> str:
        """A command on the control node, which sees the machines' networks and this host's files."""
        return run("ip", "netns", "exec", self.control, *command, check=check).out

    # What is kept of a failure.

    def save_journals(self, label: str) -> Path:
        """Journals, consoles and what playbooks said, copied to where they outlive the bed."""
        target = self.logs / re.sub(r"[^\w.-]+", "-", label)
        if target.exists():
            shutil.rmtree(target)
        target.mkdir(parents=True)
        for machine in self._machines.values():
            (target / f"{machine.name}.console.log").write_text(machine.console())
            (target / f"{machine.name}.journal.log").write_text(machine.journal() if machine.root.exists() else "")
        for log in self.folder.glob("play-*.log"):
            shutil.copy(log, target)
        self.say(f"journals are in {target}")
        return target


def _leftover(folder: Path, control: str) -> Machine:
    """A machine of which there is only its folder: good for nothing but being taken away."""
    name = folder.name
    addresses = {"plant": ""}
    return Machine(
        name=name,
        addresses=addresses,
        cables={},
        control=control,
        namespace=f"{control}-{name}",
        folder=folder,
        image=folder,
        memory_bytes=0,
    )


def _recap(stdout: str) -> dict[str, Counts]:
    _, _, recap = stdout.rpartition("PLAY RECAP")
    return {
        host: Counts(**{key: int(value) for key, value in (pair.split("=") for pair in counts.split())})
        for host, counts in _RECAP.findall(recap)
    }
