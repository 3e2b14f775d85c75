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
from processes import PATIENCE_SECONDS, Program, Site, small_fleet, tail

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

    def __init__(self, directory: Path, broker: LocalBroker, say: Callable[[str], None] = lambda text: None) -> None:
        self._directory = directory
        self._broker = broker
        self._say = say
        self._fleet = small_fleet(3, samples=12_000)
        self.crashes: list[Crash] = []
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
        for point in COORDINATOR_POINTS:
            for _ in range(times):
                self._crash("coordinator", point)

    def kill_gateway(self, *, times: int) -> None:
        for point in GATEWAY_POINTS:
            for nth in range(times):
                self._crash(self.site.names[nth % len(self.site.names)], point)

    def kill_broker(self, *, times: int, rng: Random, most_seconds: float = 2.0) -> None:
        """It forgets whatever it had not written down: sessions, what waits in them, what is retained."""
        for nth in range(times):
            time.sleep(rng.uniform(0.0, most_seconds))
            before = self.site.version
            self._broker.kill()
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

    def _crash(self, name: str, point: str) -> None:
        """Start it anew with this crash point, wait until it has killed itself, start it again."""
        site = self.site
        site.kill(name)
        site.crash_at[name] = point
        program = self._start(name)
        provoke = self._provoke(name, point)
        until = time.monotonic() + PATIENCE_SECONDS
        while program.process.poll() is None:
            assert time.monotonic() < until, f"{name} never passed {point!r}:\n{tail(program.log)}"
            time.sleep(0.01)
        del site.crash_at[name]
        assert program.process.wait() == SIGKILLED, f"{name} ended by itself before {point!r}:\n{tail(program.log)}"
        logged = program.log.stat().st_size
        began = time.monotonic()
        again = self._start(name)
        site.poll(lambda: b"connected with MQTT" in again.log.read_bytes()[logged:], f"{name} to be back")
        seconds = time.monotonic() - began
        self.crashes.append(Crash(program=name, point=point, back_seconds=seconds))
        self._say(f"{name} killed {point}, back after {seconds:.1f} s")
        provoke()
        before = site.version
        site.wait(lambda ledger: site.version > before, f"a version after the kill {point}")

    def _provoke(self, name: str, point: str) -> Callable[[], None]:
        """What only happens when somebody has been away; returns what undoes it."""
        return lambda: None

    def _start(self, name: str) -> Program:
        return self.site.start_coordinator() if name == "coordinator" else self.site.start_gateway(name)

    def _make_site(self, name: str, rounds: int = 1_000_000, interval_seconds: float = 0.3) -> Site:
        directory = self._directory / name
        directory.mkdir(parents=True)
        return Site(
            directory,
            self._fleet,
            port=self._broker.port,
            rounds=rounds,
            round_={"min_gateways": 3, "closing_seconds": 60, "interval_seconds": interval_seconds},
        )


def versions(site: Site) -> list[bytes]:
    """Digests, from the seeded start on."""
    lineage = int(site.ledger.get("lineage") or 0)
    return [version.digest for version in site.ledger.versions(lineage, after=-1)]


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
    line = ledger.versions(int(ledger.get("lineage") or 0), after=-1)
    assert [version.number for version in line] == list(range(len(line)))
    for before, after in itertools.pairwise(line):
        assert after.parent == before.digest, f"version {after.number} does not follow {before.number}"
    for name, state in site.memories().items():
        assert state.pending is None or (name, state.pending.counter) in accepted, f"{name}'s update was lost"
        assert state.counter >= max((counter for gateway, counter in accepted if gateway == name), default=0)
    site.assert_one_model_everywhere()
