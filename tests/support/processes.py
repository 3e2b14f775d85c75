"""A whole federation of real processes: lays out recordings and settings, starts the real command, and watches.

    with Site(tmp_path, small_fleet(), port=mosquitto.port, rounds=5) as site:
        site.start()
        site.wait(lambda ledger: ledger.only.get("rest"), "the run to rest")
        site.finish()

Knows nothing of what programs do inside: it sees their exit status, their log, and the coordinator's ledger, which it
opens only to read. Whatever a test does, every process that was started here is gone when the site is left.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from fedmq_coordinator.ledger import Answer, Ledger, Round
from fedmq_edge_node.memory import GatewayState, Memory
from fedmq_protocol.task import model_digest

from fedmq.data import Fleet, GatewayData, cwru, lay_out
from fedmq.programs import ledger_path
from fedmq.simulator import simulate_fleet

FEDERATION = "plant"
PATIENCE_SECONDS = 90.0
"""How long a test waits for what must come, on a machine that is busy with other things; it never measures."""

HEALTHY: dict[str, Any] = {
    "battery_pct": 100.0,
    "on_mains": True,
    "cpu_idle_pct": 90.0,
    "memory_available_bytes": 1_000_000_000,
    "temperature_c": 40.0,
    "link_up": True,
    "link_kind": "ethernet",
    "metered": False,
}
"""Injected vitals with which every gate is open, however busy the machine is that runs the tests."""


@functools.cache
def small_fleet(gateways: int = 4, *, samples: int = 24_000) -> Fleet:
    """Simulated bearings, cut short, and no test set: the gateways score on their own held-out windows."""
    fleet = simulate_fleet(gateways=gateways, seed=0)
    return replace(
        fleet,
        gateways=tuple(
            GatewayData(
                name=own.name,
                recordings=tuple(replace(one, signal=one.signal[:samples]) for one in own.recordings),  # type: ignore[index]
            )
            for own in fleet.gateways
        ),
        test=None,
    )


def cwru_folder() -> Path:
    """The folder of CWRU's recordings; skips the test where there is none."""
    given = os.environ.get("FEDMQ_DATA")
    root = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = root / "cwru"
    if not folder.is_dir():
        pytest.skip(f"needs CWRU's recordings in {folder}: name another folder with FEDMQ_DATA")
    return folder


def cwru_fleet() -> Fleet:
    """Six gateways that have each seen one fault type at one load, one that has seen none; a test load of 2 hp."""
    return cwru(cwru_folder(), "fault", 2)


def fedmq(
    *words: str, input_text: str = "", cwd: Path | None = None, seconds: float = PATIENCE_SECONDS
) -> subprocess.CompletedProcess[str]:
    """The real command, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "fedmq", *words],
        input=input_text,
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=cwd,
        env=environment(),
        check=False,
    )


def environment(**more: str) -> dict[str, str]:
    # Terminals differ in width and colour; the output of a command under test must not.
    kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR", "CLICOLOR_FORCE")}
    return kept | {"OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "120"} | more


@dataclass(kw_only=True)
class Program:
    """One process of the command, and its log, which goes on over restarts."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    expected_to_run: bool = True
    logged: int = 0
    """Bytes in the log when it was started."""

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def is_connected(self) -> bool:
        """Whether this process, and none before it, has said so."""
        return b"connected with MQTT" in self.log.read_bytes()[self.logged :]

    def signal(self, number: signal.Signals) -> int:
        """Send it and wait for the end; returns the exit status."""
        self.expected_to_run = False
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def memory_bytes(self, key: str = "VmRSS") -> int:
        """Resident memory now, or its peak (`VmHWM`), as Linux tells."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {key} for {self.name}")


class Site:
    """The processes of one run, and their folders.

    `task`, `round_`, `gateway` and `coordinator` are settings by dotted key, over those that suit a test. `vitals`
    and `port_of` are for single programs by name: other vitals, or the port of a proxy.
    """

    def __init__(
        self,
        directory: Path,
        fleet: Fleet,
        *,
        port: int,
        rounds: int = 5,
        task: dict[str, Any] | None = None,
        round_: dict[str, Any] | None = None,
        coordinator: dict[str, Any] | None = None,
        gateway: dict[str, Any] | None = None,
        gateway_of: dict[str, dict[str, Any]] | None = None,
        vitals: dict[str, dict[str, Any]] | None = None,
        port_of: dict[str, int] | None = None,
    ) -> None:
        self.directory = directory
        self.fleet = fleet
        self.port = port
        self.names = tuple(own.name for own in fleet.gateways)
        self.programs: dict[str, Program] = {}
        self.gateway_settings = gateway or {}
        self.gateway_of = gateway_of or {}
        self.crash_at: dict[str, str] = {}
        """For the next start of a program by name: the crash point at which it is to kill itself, as "name:n"."""
        self._vitals = vitals or {}
        self._port_of = port_of or {}
        self._ledger: Ledger | None = None
        self._coordinator_settings: dict[str, Any] = {
            "state_dir": str(self.state),
            "task.name": fleet.name,
            "task.classes": list(fleet.classes),
            "task.windowing.sampling_rate_hz": fleet.sampling_rate_hz,
            "rounds.min_gateways": max(1, len(self.names) // 2),
            "rounds.first_gateways": len(self.names),
            "rounds.interval_seconds": 0,
            "rounds.closing_seconds": 30,
            "limits.catch_up_gather_seconds": 0.2,
            "rounds.max_rounds": rounds,
            "rounds.resume_on_new_data": False,
            **({} if fleet.test is None else {"test_data": str(directory / "plant" / "test")}),
            **{f"task.{key}": value for key, value in (task or {}).items()},
            **{f"rounds.{key}": value for key, value in (round_ or {}).items()},
            **(coordinator or {}),
        }
        self.folders = lay_out(fleet, directory / "plant")

    @property
    def state(self) -> Path:
        """The coordinator's."""
        return self.directory / "coordinator"

    @property
    def coordinator(self) -> Program:
        return self.programs["coordinator"]

    def gateways(self) -> list[Program]:
        return [self.programs[name] for name in self.names if name in self.programs]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ledger is not None:
            self._ledger.close()
        for program in self.programs.values():
            if program.process.poll() is None:
                program.process.kill()
        for program in self.programs.values():
            program.process.wait()

    # -- starting and ending -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Everyone."""
        self.start_coordinator()
        for name in self.names:
            self.start_gateway(name)

    def start_coordinator(self, *flags: str) -> Program:
        config = self.directory / "coordinator.toml"
        write_toml(config, self._coordinator_settings | self._connection("coordinator"))
        return self._start("coordinator", "coordinator", "--config", str(config), *flags)

    def start_gateway(self, name: str) -> Program:
        """A first start, or another one with the same state and the settings of now."""
        return self._start(name, "gateway", "--config", str(self.lay_out_gateway(name)))

    def lay_out_gateway(self, name: str) -> Path:
        """Its settings of now; returns their file."""
        folder = self.directory / "gateways" / name
        folder.mkdir(parents=True, exist_ok=True)
        write_toml(folder / "vitals.toml", HEALTHY | self._vitals.get(name, {}))
        write_toml(
            folder / "gateway.toml",
            {
                "name": name,
                "data_dir": str(self.folders[name]),
                "state_dir": "state",
                "vitals_file": "vitals.toml",
                "ask_jitter_seconds": 0.2,
            }
            | self._connection(name)
            | self.gateway_settings
            | self.gateway_of.get(name, {}),
        )
        return folder / "gateway.toml"

    def kill(self, name: str) -> None:
        """kill -9: what a power cut does to a process."""
        self.programs[name].signal(signal.SIGKILL)

    def stop(self, name: str) -> None:
        """In order, as a service manager does it."""
        program = self.programs[name]
        assert program.signal(signal.SIGTERM) == 0, tail(program.log)

    def set_coordinator(self, key: str, value: Any) -> None:
        """Another setting, from its next start on."""
        self._coordinator_settings[key] = value

    def set_vitals(self, name: str, **vitals: Any) -> None:
        """What a gateway is to find from its next start on; nothing: all is well."""
        self._vitals[name] = vitals

    def tasks_of(self, name: str) -> set[str]:
        """Names of the tasks that a gateway has on disk."""
        memory = Memory(self._memory(name))
        try:
            return set(memory.load())
        finally:
            memory.close()

    def finish(self) -> None:
        """Gateways leave in order, with their last byte counts; then the coordinator."""
        leaving = [program for program in self.gateways() if program.expected_to_run]
        for program in leaving:
            program.expected_to_run = False
            program.process.send_signal(signal.SIGTERM)
        for program in leaving:
            status = program.process.wait(PATIENCE_SECONDS)
            assert status == 0, f"{program.name} left with status {status}:\n{tail(program.log)}"
        self.wait(lambda ledger: not any(g.present for g in ledger.gateways()), "the gateways' last words")
        assert self.coordinator.signal(signal.SIGTERM) == 0, tail(self.coordinator.log)

    # -- looking -----------------------------------------------------------------------------------------------

    @property
    def ledger(self) -> Ledger:
        """The coordinator's, to read."""
        if self._ledger is None:
            path = ledger_path(self.state)
            self.poll(lambda: readable(path), "the coordinator to make its ledger")
            self._ledger = Ledger(path, read_only=True)
        return self._ledger

    def wait(self, condition: Callable[[Ledger], object], what: str) -> None:
        """Until the ledger says so. Fails when a program ends by itself meanwhile."""
        ledger = self.ledger
        self.poll(lambda: condition(ledger), what)

    def wait_for_rest(self) -> None:
        """Until the run has come to its end and everyone had the time to hear of it."""
        self.wait(lambda ledger: ledger.only.get("rest") is not None, "the run to rest")
        version = self.version
        self.poll(lambda: all(at_version(p, version) for p in self._memories()), f"version {version} on every gateway")

    def wait_for_log(self, program: Program, text: str) -> None:
        self.poll(lambda: text in program.text(), f"{text!r} in {program.log}")

    def training(self, outcome: str | None = None) -> list[Round]:
        """Training rounds so far, open ones too."""
        rounds = [r for r in self.ledger.rounds() if r.kind == "training"]
        return rounds if outcome is None else [r for r in rounds if r.outcome == outcome]

    def answers_of(self, name: str, kind: str = "update") -> list[Answer]:
        return [a for a in self.ledger.answers() if a.gateway == name and a.kind == kind]

    @property
    def lineage(self) -> int:
        return int(self.ledger.only.get("lineage") or 0)

    @property
    def version(self) -> int:
        newest = self.ledger.last_version(self.lineage)
        return 0 if newest is None else newest.number

    @property
    def digest(self) -> bytes:
        """Of the last version that the coordinator made."""
        newest = self.ledger.last_version(self.lineage)
        return b"" if newest is None else newest.digest

    def memories(self) -> dict[str, GatewayState]:
        """What each gateway has on disk, by its own code. Once they have ended."""
        states = {}
        for name in self.names:
            memory = Memory(self._memory(name))
            states[name] = only(memory.load())
            memory.close()
        return states

    def assert_one_model_everywhere(self) -> None:
        """Every gateway's disk holds the coordinator's last version, bit for bit."""
        expected = self.digest
        assert expected
        for name, state in self.memories().items():
            assert model_digest(state.steps) == expected, f"{name} ended with another model (version {state.version})"

    # -- below -------------------------------------------------------------------------------------------------

    def _memory(self, name: str) -> Path:
        return self.directory / "gateways" / name / "state" / "gateway.sqlite"

    def _memories(self) -> Iterator[Path]:
        return (self._memory(name) for name in self.names if self.programs[name].expected_to_run)

    def _connection(self, name: str) -> dict[str, Any]:
        return {
            "connection.federation": FEDERATION,
            "connection.host": "127.0.0.1",
            "connection.port": self._port_of.get(name, self.port),
            "connection.reconnect_min_seconds": 0.1,
            "connection.reconnect_max_seconds": 1.0,
        }

    def _start(self, name: str, *words: str) -> Program:
        crash_at = self.crash_at.get(name)
        more = {} if crash_at is None else {"FEDMQ_CRASH_AT": crash_at}
        log = self.directory / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            logged = output.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "fedmq", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(**more),
                start_new_session=True,
            )
        program = Program(name=name, process=process, log=log, expected_to_run=crash_at is None, logged=logged)
        self.programs[name] = program
        return program

    def poll(self, condition: Callable[[], object], what: str) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            for program in self.programs.values():
                if program.expected_to_run and (status := program.process.poll()) is not None:
                    raise AssertionError(
                        f"{program.name} ended with status {status} before {what}:\n{tail(program.log)}"
                    )
            if time.monotonic() > until:
                tails = "\n".join(f"--- {p.name}\n{tail(p.log)}" for p in self.programs.values())
                raise AssertionError(f"waited in vain for {what}\n{tails}")
            time.sleep(0.02)


def readable(path: Path) -> bool:
    """Whether a coordinator has made its ledger."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with contextlib.suppress(ValueError), contextlib.closing(Ledger(path, read_only=True)) as ledger:
        return bool(ledger.only.name)
    return False


def only(states: dict[str, GatewayState]) -> GatewayState:
    """A gateway's state of its one task; a fresh one before it has joined."""
    return next(iter(states.values()), GatewayState())


def at_version(memory: Path, version: int) -> bool:
    """Whether a gateway that runs has this version on disk."""
    if not memory.is_file():
        return False
    opened = Memory(memory)
    try:
        return only(opened.load()).version == version
    finally:
        opened.close()


def tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def write_toml(path: Path, values: dict[str, Any]) -> None:
    """Dotted keys and plain values: JSON's strings, numbers, booleans and lists are TOML's. None: no such key."""
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in values.items() if value is not None]
    path.write_text("".join(lines), encoding="utf-8")
