"""A federation on a bed: wheels and the CA on the control node, recordings on gateways, and a look into the ledger.

Owns what is the same in every story: which variables the roles get, builds of fedmq under other versions, simulated
recordings, and waiting for rounds. Refuses to know how the roles do their work: what it reads, it reads by the
installed command on the coordinator's machine.
"""

from __future__ import annotations

import functools
import json
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fleetbed.bed import REPOSITORY, Bed, Result
from fleetbed.machine import Machine, MachineError

__all__ = ["Plant"]

PYTHON = "3.11"
"""That of Debian 12."""
MACHINE = platform.machine()
RECORDINGS = "/srv/recordings"
STATE = "/var/lib/fedmq/coordinator"
FEDMQ = "/opt/fedmq/current/bin/fedmq"
SAMPLES = 24_000
"""Of a recording: two seconds, so that a training takes no longer than a test may."""


class Plant:
    """One coordinator and its gateways, named as the machines they are on.

    `pace` is the seconds from one round's opening to the next one's. The site's variables are `variables`: change them
    before `site` or between two of them.
    """

    def __init__(
        self,
        bed: Bed,
        *,
        hub: str = "hub",
        gateways: Sequence[str],
        broker: str | None = None,
        pace: float = 4.0,
        closing: float = 40.0,
        rounds: Mapping[str, Any] | None = None,
    ) -> None:
        self.bed = bed
        self.hub_name = hub
        self.gateways = list(gateways)
        self.folder = bed.folder / "control"
        self.folder.mkdir()
        self.wheelhouses = self.folder / "wheelhouses"
        self.groups: dict[str, list[str]] = {
            "brokers": [broker or hub],
            "coordinators": [hub],
            "gateways": self.gateways,
        }
        task = {
            "name": "bearings",
            "classes": ["normal", "inner_race", "ball", "outer_race"],
            "windowing": {"sampling_rate_hz": 12_000.0},
        }
        self.variables: dict[str, Any] = {
            "fedmq_federation": "plant",
            "fedmq_broker_host": broker or hub,
            "pki_dir": str(self.folder / "ca"),
            "pki_command": str(Path(sys.executable).parent / "fedmq"),
            "release_wheelhouses": str(self.wheelhouses),
            "coordinator_task": task,
            "coordinator_rounds": {
                "interval_seconds": pace,
                "closing_seconds": closing,
                "first_gateways": len(self.gateways),
                **(rounds or {}),
            },
            "gateway_data_dir": RECORDINGS,
            "gateway_settings": {"ask_jitter_seconds": 0.2},
            # The machines share this host's CPUs with whatever else it does: how idle they are says nothing here.
            "gateway_gates": {"cpu_idle_min_pct": 0},
        }
        self.host_variables: dict[str, dict[str, Any]] = {}
        self.group_variables: dict[str, dict[str, Any]] = {}

    @property
    def hub(self) -> Machine:
        return self.bed.machine(self.hub_name)

    @property
    def inventory(self) -> Path:
        return self.bed.inventory(
            self.groups, variables=self.variables, hosts=self.host_variables, group_variables=self.group_variables
        )

    def lay_out_recordings(self, only: Sequence[str] | None = None) -> None:
        """Gives each gateway its own simulated recordings, as if sensors had written them."""
        from fedmq.data import lay_out

        folders = lay_out(_fleet(len(self.gateways)), self.folder / f"recordings-{time.monotonic_ns()}")
        for name, folder in zip(self.gateways, folders.values(), strict=False):
            if only is None or name in only:
                self.bed.machine(name).put(folder, RECORDINGS)

    # Playbooks.

    def play(self, playbook: str, **options: Any) -> Result:
        return self.bed.playbook(playbook, inventory=self.inventory, **options)

    def build(self, version: str | None = None, *, change: Callable[[Path], None] | None = None) -> Path:
        """A wheelhouse of this tree, under another version and with something changed in it where that is asked for;
        it becomes the one that playbooks install. The tree itself stays as it is."""
        target = self.folder / f"wheels-{version or 'own'}"
        began = time.monotonic()
        tree = REPOSITORY
        if version or change:
            tree = self.folder / f"tree-{version}"
            _copy_tree(tree)
            pyproject = tree / "pyproject.toml"
            text, count = re.subn(r'(?m)^version = ".*"$', f'version = "{version}"', pyproject.read_text(), count=1)
            assert count == 1, f"{pyproject}: expected a line with the version"
            pyproject.write_text(text)
            if change:
                change(tree)
        words = [f"--platform={tag}_{MACHINE}" for tag in ("manylinux2014", "manylinux_2_28")]
        command = [sys.executable, str(tree / "scripts/wheelhouse.py"), str(target), "bridge", "coordinator", *words]
        done = subprocess.run([*command, f"--python-version={PYTHON}"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise MachineError(f"wheelhouse: expected wheels in {target}:\n{done.stdout}{done.stderr}")
        if tree != REPOSITORY:
            shutil.rmtree(tree)
        link = self.wheelhouses / f"{MACHINE}-python{PYTHON}"
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        self.bed.times.append((f"wheelhouse {version or 'of this tree'}", time.monotonic() - began))
        return target

    # What the coordinator knows.

    def fedmq(self, *words: str, check: bool = True, machine: str | None = None) -> str:
        """The installed command, as the programs' own user."""
        where = self.bed.machine(machine or self.hub_name)
        return where.run(["runuser", "-u", "fedmq", "--", FEDMQ, *words], check=check).out

    def report(self) -> dict[str, Any]:
        return json.loads(self.fedmq("report", "--state", STATE, "--json"))

    def status(self) -> dict[str, Any]:
        return json.loads(self.fedmq("status", "--state", STATE, "--json"))

    def rounds(self, kind: str | None = "training") -> list[dict[str, Any]]:
        """Oldest first, the one in progress too."""
        return [one for one in self.report()["rounds"] if kind in (None, one["kind"])]

    def last_round(self) -> int:
        """Number of the newest round that is closed; 0 where there is none yet."""
        return max((one["id"] for one in self.rounds(None) if one["outcome"] != "open"), default=0)

    def wait_round(
        self,
        *,
        after: int | None = None,
        accepted: int | None = None,
        declined: int = 0,
        seconds: float = 120.0,
    ) -> dict[str, Any]:
        """The first training round behind number `after` (default: what is closed now) that closes with so many updates
        accepted and declined. Rounds in between may differ: something may be on its way still."""
        behind = self.last_round() if after is None else after
        wanted = len(self.gateways) - declined if accepted is None else accepted
        deadline = time.monotonic() + seconds
        seen: list[dict[str, Any]] = []
        while time.monotonic() < deadline:
            seen = [one for one in self.rounds() if one["id"] > behind and one["outcome"] != "open"]
            for one in seen:
                if one["accepted"] == wanted and one["declined"] == declined:
                    return one
            time.sleep(0.5)
        shown = [{key: one[key] for key in ("id", "outcome", "drawn", "accepted", "declines")} for one in seen]
        raise MachineError(
            f"expected a round behind {behind} with {wanted} accepted and {declined} declined within {seconds:.0f} s,"
            f" got {shown}; gateways: {self.fedmq('status', '--state', STATE, check=False)}"
        )

    @contextmanager
    def no_round_lost(self) -> Iterator[None]:
        """Every training round that closes meanwhile must have been applied."""
        before = self.last_round()
        yield
        lost = [one for one in self.rounds() if one["id"] > before and one["outcome"] not in ("applied", "open")]
        assert not lost, f"rounds that came to nothing: {lost}"


@functools.cache
def _fleet(gateways: int) -> Any:
    """Simulated bearings, cut short, and no test set: gateways score on their own held-out windows."""
    from fedmq.data import Recording
    from fedmq.simulator import simulate_fleet

    def short(one: Recording) -> Recording:
        return replace(one, signal=one.signal[:SAMPLES])  # type: ignore[index]

    fleet = simulate_fleet(gateways=max(2, gateways), seed=0)
    members = tuple(replace(own, recordings=tuple(map(short, own.recordings)), unseen=()) for own in fleet.gateways)
    return replace(fleet, gateways=members, test=None)


def _copy_tree(target: Path) -> None:
    """What git knows of this tree, and what is new in it and not ignored."""
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source = REPOSITORY / name
        if source.exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
