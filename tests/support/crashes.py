"""Kills real programs at named instants, one after another within one run, and says how the run came through.

    with CrashRun(tmp_path, mosquitto) as run:
        run.kill_coordinator(times=5)
        run.finish()

A program that is started with `FEDMQ_CRASH_AT` set kills itself with SIGKILL as it passes that point. What is learnt
depends on who answered which round, and on nothing else: a round opens only when all are there and waits for all, so
that whoever is killed meanwhile answers it in the end. `finish` then holds the run's versions against those of a run
in which nothing happened.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from fedmq_broker_config.run import LocalBroker
from fedmq_coordinator.service import CRASH_POINTS as COORDINATOR_POINTS
from fedmq_edge_node.service import CRASH_POINTS as GATEWAY_POINTS
from processes import PATIENCE_SECONDS, Program, Site, fedmq, small_fleet, tail

SIGKILLED = -9


@dataclass(frozen=True, kw_only=True)
class Crash:
    """One kill at a crash point."""

    program: str
    point: str
    back_seconds: float
    """From the start of the new process until it is connected; a coordinator has its round again by then."""


class CrashRun:
    """One disturbed run on a real broker, and its undisturbed twin. `say` hears of every kill."""

    def __init__(
        self,
        directory: Path,
        broker: LocalBroker,
        *,
        dense: bool = False,
        patient: bool = True,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`dense`: float32 both ways, which takes several chunks each. Not `patient`: rounds do not wait for who is
        away, so that there is something to catch up with, and nothing for the twin to be held against."""
        self._directory = directory
        self._dense = dense
        self._patient = patient
        self._broker = broker
        self._say = say
        self._fleet = small_fleet(3, samples=12_000)
        self.crashes: list[Crash] = []
        self.broker_kills = 0
        self.site = self._make_site("disturbed")

    def __enter__(self) -> Self:
        self.site.__enter__()
        self.site.start()
        self.site.wait(lambda ledger: self.site.training("applied"), "a round")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.site.__exit__(kind, error, trace)

    def kill_coordinator(self, *, times: int) -> None:
        """At the points that every run passes."""
        for point in COORDINATOR_POINTS:
            for _ in range(times):
                if point.endswith(" receipt"):
                    self._crash("coordinator", point, provoke=self._send_again)
                elif not point.endswith((" chunk", " model")):
                    self._crash("coordinator", point)

    def kill_gateway(self, *, times: int) -> None:
        """At the points that every run passes."""
        for point in GATEWAY_POINTS:
            for nth in range(times):
                if point.endswith((" save", " budget", " birth", " update", " statistics")):
                    self._crash(self.site.names[nth % len(self.site.names)], point)

    def kill_in_transfers(self, *, times: int) -> None:
        """At the points that only pass where deltas take several chunks."""
        for nth in range(times):
            name = self._victim(nth)
            for point in ("before chunk", "after chunk"):
                self._crash("coordinator", point)
                self._crash(name, point)
            for point in ("before chunks question", "after chunks question"):
                self._crash(name, "after update", settle=False)
                self._crash(name, point)

    def kill_in_absences(self, *, times: int) -> None:
        """At the points that only pass when somebody was away, declines, or is told of something new."""
        for nth in range(times):
            name = self._victim(nth)
            self._crash(name, "after update", again=False)
            self._let_pass(2)
            for point in ("before verdict question", "after verdict question"):
                self._crash(name, point, settle=False)
            for point in ("before model question", "after model question"):
                self._away(name)
                self._crash(name, point, settle=False)
            for point in ("before model", "after model"):
                self._away(name)
                self._crash("coordinator", point, provoke=lambda name=name: self._start(name))  # type: ignore[misc]
            self.site.set_vitals(name, battery_pct=3.0, on_mains=False)
            for point in ("before decline", "after decline"):
                self._crash(name, point)
            self.site.set_vitals(name)
            for point in ("before leave", "after leave"):
                self._crash(name, point, provoke=lambda name=name: self._leave(name))  # type: ignore[misc]
            for point in ("before trial", "after trial"):
                self._crash(name, point, provoke=self._promote)
            for point in ("before statistics", "after statistics"):
                self._crash(name, point, provoke=self._start_afresh)

    def kill_at_the_end(self, *, times: int) -> None:
        """The task is stopped: its gateways forget it. After this there is nothing to `finish`."""
        self._order("stop")
        for nth in range(times):
            self._crash(self._victim(nth), "before forget", settle=False)
        for name in self.site.names:
            self._crash(name, "after forget", settle=False)
        self.site.poll(lambda: not any(self.site.tasks_of(name) for name in self.site.names), "all to forget the task")

    def kill_broker(self, *, times: int, rng: Random, most_seconds: float = 2.0) -> None:
        """It forgets whatever it had not written down: sessions, what waits in them, what is retained."""
        for nth in range(times):
            time.sleep(rng.uniform(0.0, most_seconds))
            before = self.site.version
            self._broker.kill()
            self.broker_kills += 1
            time.sleep(rng.uniform(0.0, 0.3))
            self._broker.start()
            self._say(f"broker killed, {nth + 1} of {times}, at version {before}")
            self.site.wait(lambda ledger, before=before: self.site.version > before, "a version after the kill")  # type: ignore[misc]

    def finish(self) -> tuple[int, int]:
        """Bring the run to its end and hold it against its twin; returns versions made, and how many of them were
        compared with the twin's: those up to the first round that somebody did not answer."""
        site = self.site
        site.stop("coordinator")
        site.set_coordinator("rounds.max_rounds", len(site.training("applied")) + 3)
        site.start_coordinator()
        site.wait_for_rest()
        site.finish()
        assert_invariants(site)
        if not self._patient:
            return site.version, 0
        full = 0
        for row in site.training():
            if answered(site, row.id) != frozenset(site.names) or row.outcome != "applied":
                break
            full += 1
        with self._make_site("undisturbed", rounds=site.version, interval_seconds=0.0) as twin:
            twin.start()
            twin.wait_for_rest()
            twin.finish()
            assert versions(site)[: full + 1] == versions(twin)[: full + 1], "the run came to another model"
        return site.version, full

    def _crash(
        self,
        name: str,
        point: str,
        *,
        provoke: Callable[[], object] = lambda: None,
        again: bool = True,
        settle: bool = True,
    ) -> None:
        """Start it anew with this crash point, wait until it has killed itself, and unless told otherwise start it
        `again` and wait for the next version."""
        site = self.site
        site.kill(name)
        site.crash_at[name] = point
        program = self._start(name)
        del site.crash_at[name]
        provoke()
        until = time.monotonic() + PATIENCE_SECONDS
        while program.process.poll() is None:
            assert time.monotonic() < until, f"{name} never passed {point!r}:\n{tail(program.log)}"
            time.sleep(0.01)
        assert program.process.wait() == SIGKILLED, f"{name} ended by itself before {point!r}:\n{tail(program.log)}"
        if not again:
            return
        logged = program.log.stat().st_size
        began = time.monotonic()
        restarted = self._start(name)
        site.poll(lambda: b"connected with MQTT" in restarted.log.read_bytes()[logged:], f"{name} to be back")
        seconds = time.monotonic() - began
        self.crashes.append(Crash(program=name, point=point, back_seconds=seconds))
        self._say(f"{name} killed {point}, back after {seconds:.1f} s")
        if settle:
            self._let_pass(1)

    def _victim(self, nth: int) -> str:
        return self.site.names[nth % len(self.site.names)]

    def _let_pass(self, versions: int) -> None:
        site = self.site
        lineage, target = site.lineage, site.version + versions
        site.wait(lambda ledger: site.lineage != lineage or site.version >= target, f"version {target}")

    def _away(self, name: str) -> None:
        """Until it has something to catch up with."""
        self.site.kill(name)
        self._let_pass(3)

    def _leave(self, name: str) -> None:
        program = self.site.programs[name]
        self.site.poll(lambda: "joined lineage" in program.text() or "connected" in program.text(), "it to be there")
        time.sleep(1.0)
        program.process.send_signal(signal.SIGTERM)

    def _promote(self) -> None:
        self._order("promote")

    def _order(self, verb: str) -> None:
        done = fedmq("task", verb, self._fleet.name, "--state", str(self.site.state))
        assert done.returncode == 0, done.stderr

    def _start_afresh(self) -> None:
        self.site.stop("coordinator")
        self.site.start_coordinator("--new-lineage")

    def _send_again(self) -> None:
        """A gateway that dies between its update and the word on it sends it again, and gets a receipt."""
        name = self.site.names[0]
        self._crash(name, "after update", settle=False)

    def _start(self, name: str) -> Program:
        return self.site.start_coordinator() if name == "coordinator" else self.site.start_gateway(name)

    def _make_site(self, name: str, rounds: int = 1_000_000, interval_seconds: float | None = None) -> Site:
        directory = self._directory / name
        directory.mkdir(parents=True)
        if interval_seconds is None:
            # With chunks: time enough for a gateway to be back while the last round's delta is the newest.
            interval_seconds = 3.0 if self._dense else 0.3
        return Site(
            directory,
            self._fleet,
            port=self._broker.port,
            rounds=rounds,
            task={"hidden": [320], "codec.kind": "dense"} if self._dense else {},
            round_={
                "min_gateways": 3 if self._patient else 2,
                "closing_seconds": 60 if self._patient else 4,
                "interval_seconds": interval_seconds,
            },
        )


def versions(site: Site) -> list[bytes]:
    """Digests, from the seeded start on."""
    return [version.digest for version in site.ledger.versions(site.lineage)]


def answered(site: Site, round_id: int) -> frozenset[str]:
    """Whose update to a round was accepted."""
    answers = site.ledger.answers(round_id)
    return frozenset(a.gateway for a in answers if a.kind == "update" and a.verdict == "accepted")


def assert_invariants(site: Site) -> None:
    """What must hold of a run that is over, whatever was killed."""
    ledger = site.ledger
    answers = [a for a in ledger.answers() if a.kind == "update"]
    accepted = [(a.gateway, a.counter) for a in answers if a.verdict == "accepted"]
    assert len(set(accepted)) == len(accepted), "an update was counted twice"
    assert not [a for a in answers if a.owed], "an update is still owed after the run has ended"
    line = ledger.versions(site.lineage)
    assert [version.number for version in line] == list(range(len(line)))
    for before, after in itertools.pairwise(line):
        assert after.parent == before.digest, f"version {after.number} does not follow {before.number}"
    for name, state in site.memories().items():
        if state.lineage != site.lineage:
            continue
        assert state.pending is None or (name, state.pending.counter) in accepted, f"{name}'s update was lost"
        assert state.counter >= max((counter for gateway, counter in accepted if gateway == name), default=0)
    site.assert_one_model_everywhere()
