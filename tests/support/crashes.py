"""Kills real programs at named instants, one after another within one run, and says how the run came through.

    with CrashRun(tmp_path, mosquitto, CHUNKS) as run:
        run.disturb(times=5)
        run.finish()

A program that is started with `FEDMQ_CRASH_AT` set kills itself with SIGKILL as it passes that point. What is learnt
depends on who answered which round, and on nothing else: a round opens only when all are there and waits for all, so
that whoever is killed meanwhile answers it in the end. `finish` then holds the run's versions against those of a run
in which nothing happened. Some points are only passed where rounds do not wait for all: `Disturbance` says which, and
of all of them together `RUNS` is made.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from fedmq_broker_config.run import LocalBroker
from fedmq_coordinator.ledger import Round
from fedmq_protocol.messages import AskVerdict, to_bytes
from fedmq_protocol.session import Connected, Connection, MqttSession
from fedmq_protocol.topics import Channel, Direction, topic
from processes import FEDERATION, PATIENCE_SECONDS, Program, Site, fedmq, small_fleet, tail

SIGKILLED = -9
COORDINATOR = "coordinator"
ASK_SECONDS = 0.2
"""Between two questions that are asked only to have the coordinator answer."""


def around(*names: str) -> tuple[str, ...]:
    """The crash points on both sides of what is named."""
    return tuple(f"{when} {name}" for name in names for when in ("before", "after"))


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """What is killed in one run, and how that run must be laid out for these points to be passed."""

    title: str
    coordinator: tuple[str, ...] = ()
    gateway: tuple[str, ...] = ()
    dense: bool = False
    """float32 both ways, which takes several chunks each."""
    patient: bool = True
    """Rounds wait for everyone, and so the run can be held against an undisturbed one."""


ROUNDS_COORDINATOR = Disturbance(
    title="coordinator",
    coordinator=(
        *("before model file", "before model rename", "after model file"),
        *around("commit", "welcome", "plan", "receipt", "report", "fleet"),
    ),
)
ROUNDS_GATEWAY = Disturbance(title="gateway", gateway=around("save", "budget", "birth", "update"))
CHUNKS = Disturbance(
    title="both, in chunks", dense=True, coordinator=around("chunk"), gateway=around("chunk", "chunks question")
)
ABSENCES = Disturbance(
    title="both, after absences",
    patient=False,
    coordinator=around("model"),
    gateway=around("verdict question", "model question", "decline", "leave", "trial", "statistics"),
)
END = Disturbance(title="gateway, at the end", patient=False, gateway=around("forget"))
BROKER = Disturbance(title="broker")

RUNS = (ROUNDS_COORDINATOR, ROUNDS_GATEWAY, CHUNKS, ABSENCES, END, BROKER)


@dataclass(frozen=True, kw_only=True)
class Crash:
    """One kill at a crash point."""

    program: str
    point: str
    back_seconds: float | None
    """From the start of the new process until it is connected; a coordinator has its round again by then. None where
    it was killed again at once."""


class CrashRun:
    """One disturbed run on a real broker, and its undisturbed twin. `say` hears of every kill."""

    def __init__(
        self,
        directory: Path,
        broker: LocalBroker,
        kind: Disturbance,
        *,
        gateways: int = 3,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._directory = directory
        self._kind = kind
        self._broker = broker
        self._say = say
        self._fleet = small_fleet(gateways, samples=12_000)
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

    def disturb(self, *, times: int, rng: Random) -> None:
        """Kill so many times at each point of this run, or the broker at instants drawn from `rng`."""
        match self._kind.title:
            case BROKER.title:
                self._kill_broker(times, rng)
            case CHUNKS.title:
                self._kill_in_transfers(times)
            case ABSENCES.title:
                self._kill_in_absences(times)
            case END.title:
                self._kill_at_the_end(times)
            case _:
                self._kill_in_rounds(times)
        killed = Counter((crash.program == COORDINATOR, crash.point) for crash in self.crashes)
        due = [(True, point) for point in self._kind.coordinator] + [(False, point) for point in self._kind.gateway]
        wrong = {point: killed[point] for point in due if killed[point] < times}
        assert not wrong, f"expected {times} kills at each point, got {wrong}"

    def finish(self) -> tuple[int, int]:
        """Bring the run to its end and hold it against its twin; returns versions made, and how many of them were
        compared with the twin's: those up to the first round that somebody did not answer."""
        site = self.site
        if self._kind is END:
            site.finish()  # nobody has the task any more
            return site.version, 0
        site.stop(COORDINATOR)
        site.set_coordinator("rounds.max_rounds", len(self._rounds("applied")) + 2)
        site.start_coordinator()
        site.wait_for_rest()
        site.finish()
        assert_invariants(site)
        if not self._kind.patient:
            return site.version, 0
        full = 0
        for row in self._rounds():
            if answered(site, row.id) != frozenset(site.names) or row.outcome != "applied":
                break
            full += 1
        with self._make_site("undisturbed", rounds=site.version, interval_seconds=0.0) as twin:
            twin.start()
            twin.wait_for_rest()
            twin.finish()
            assert versions(site)[: full + 1] == versions(twin)[: full + 1], "the run came to another model"
        return site.version, full

    # -- the runs ----------------------------------------------------------------------------------------------

    def _kill_in_rounds(self, times: int) -> None:
        for nth, point in itertools.product(range(times), self._kind.coordinator):
            if point in around("receipt"):
                self._crash_at_receipt(point, nth)
            else:
                self._crash(COORDINATOR, point)
        for nth, point in itertools.product(range(times), self._kind.gateway):
            self._crash(self._victim(nth), point)

    def _kill_in_transfers(self, times: int) -> None:
        for nth in range(times):
            name = self._victim(nth)
            for point in around("chunk"):
                self._crash(COORDINATOR, point)
                self._crash(name, point)
            self._miss_chunks(name)
            self._crash(name, "before chunks question", again=False)
            self._crash(name, "after chunks question")

    def _kill_in_absences(self, times: int) -> None:
        for nth in range(times):
            name = self._victim(nth)
            self._crash(name, "after update", again=False)
            self._let_pass(2)
            self._crash(name, "before verdict question", again=False)
            self._crash(name, "after verdict question")
            self._away(name)
            self._crash(name, "before model question", again=False)
            self._crash(name, "after model question")
            for point in around("model"):
                self._away(name)
                self._crash(COORDINATOR, point, provoke=lambda name=name: self._start(name))  # type: ignore[misc]
            self.site.set_vitals(name, battery_pct=3.0, on_mains=False)
            for point in around("decline"):
                self._crash(name, point, settle=False)
            self.site.set_vitals(name)
            for point in around("leave"):
                self._crash(name, point, provoke=lambda name=name: self._leave(name), settle=False)  # type: ignore[misc]
            for point in around("trial"):
                self._crash(name, point, provoke=self._promote)
            for point in around("statistics"):
                self._crash(name, point, provoke=self._start_afresh)

    def _kill_at_the_end(self, times: int) -> None:
        """The task is stopped: its gateways forget it, each of them once."""
        assert times <= len(self.site.names)
        victims = self.site.names[:times]
        for name in victims:
            self.site.kill(name)
        self._order("stop")
        for name in victims:
            self._crash(name, "before forget", again=False)
            self._crash(name, "after forget", settle=False)
        self.site.poll(lambda: not any(self.site.tasks_of(name) for name in self.site.names), "all to forget the task")

    def _kill_broker(self, times: int, rng: Random, most_seconds: float = 2.0) -> None:
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

    # -- one kill ----------------------------------------------------------------------------------------------

    def _crash(
        self,
        name: str,
        point: str,
        *,
        provoke: Callable[[], object] = lambda: None,
        pester: Callable[[], object] = lambda: None,
        again: bool = True,
        settle: bool = True,
    ) -> None:
        """Start it anew with this crash point, wait until it has killed itself, and unless told otherwise start it
        `again` and wait for the next version. `provoke` is called once, `pester` until it is dead."""
        site = self.site
        site.kill(name)
        site.crash_at[name] = point
        program = self._start(name)
        del site.crash_at[name]
        provoke()
        # Provoking may have started it once more.
        program = site.programs[name]
        until = time.monotonic() + PATIENCE_SECONDS
        while program.process.poll() is None:
            assert time.monotonic() < until, f"{name} never passed {point!r}:\n{tail(program.log)}"
            pester()
            time.sleep(0.01)
        assert program.process.wait() == SIGKILLED, f"{name} ended by itself before {point!r}:\n{tail(program.log)}"
        seconds = None
        if again:
            began = time.monotonic()
            site.poll(self._start(name).is_connected, f"{name} to be back")
            seconds = time.monotonic() - began
        self.crashes.append(Crash(program=name, point=point, back_seconds=seconds))
        self._say(f"{name} killed {point}" + ("" if seconds is None else f", back after {seconds:.1f} s"))
        if again and settle:
            self._let_pass(1)

    def _crash_at_receipt(self, point: str, nth: int) -> None:
        """Undisturbed gateways hear of their updates by the next plan: one is asked for by somebody else."""
        site = self.site
        name = self._victim(nth)
        answer = site.answers_of(name)[-1]
        question = AskVerdict(round_id=answer.round, counter=answer.counter, digest=answer.digest)
        where = topic(FEDERATION, Direction.UP, Channel.ASK, name)
        session = self._session("asker")
        asked_at = 0.0

        def ask() -> None:
            nonlocal asked_at
            if time.monotonic() - asked_at > ASK_SECONDS:
                asked_at = time.monotonic()
                session.publish(where, to_bytes(question))

        session.start()
        try:
            self._crash(COORDINATOR, point, pester=ask)
        finally:
            session.stop(flush_seconds=0.0)

    def _victim(self, nth: int) -> str:
        return self.site.names[nth % len(self.site.names)]

    def _rounds(self, outcome: str | None = None) -> list[Round]:
        """Training rounds of the lineage in force."""
        return [row for row in self.site.training(outcome) if row.lineage == self.site.lineage]

    def _let_pass(self, versions: int) -> None:
        site = self.site
        lineage, target = site.lineage, site.version + versions
        site.wait(lambda ledger: site.lineage != lineage or site.version >= target, f"version {target}")

    def _away(self, name: str) -> None:
        """Until it has something to catch up with."""
        self.site.kill(name)
        self._let_pass(3)

    def _miss_chunks(self, name: str) -> None:
        """Kill it in a round whose plan and chunks it has not read, and have the broker forget what waits for it."""
        site = self.site
        self._let_pass(1)
        stopped = site.programs[name]
        stopped.process.send_signal(signal.SIGSTOP)
        made, began = site.version, site.training()[-1].id
        site.wait(lambda ledger: site.training()[-1].id > began, "the next round to open")
        assert site.version == made, "a version was made without everyone"
        time.sleep(0.2)
        site.kill(name)
        session = self._session(name)
        session.start()
        assert isinstance(session.next(PATIENCE_SECONDS), Connected)
        session.stop(flush_seconds=1.0)

    def _session(self, client_id: str) -> MqttSession:
        """One that begins with nothing and leaves nothing behind."""
        return MqttSession(
            Connection(host="127.0.0.1", port=self.site.port, client_id=client_id, session_expiry_seconds=0)
        )

    def _leave(self, name: str) -> None:
        program = self.site.programs[name]
        self.site.poll(program.is_connected, f"{name} to be there")
        program.process.send_signal(signal.SIGTERM)

    def _promote(self) -> None:
        self._order("promote")

    def _order(self, verb: str) -> None:
        done = fedmq("task", verb, self._fleet.name, "--state", str(self.site.state))
        assert done.returncode == 0, done.stderr

    def _start_afresh(self) -> None:
        self.site.stop(COORDINATOR)
        self.site.start_coordinator("--new-lineage")

    def _start(self, name: str) -> Program:
        return self.site.start_coordinator() if name == COORDINATOR else self.site.start_gateway(name)

    def _make_site(self, name: str, rounds: int = 1_000_000, interval_seconds: float | None = None) -> Site:
        directory = self._directory / name
        directory.mkdir(parents=True)
        if interval_seconds is None:
            # With chunks: time enough to stop a gateway after one round and before the next.
            interval_seconds = 1.0 if self._kind.dense else 0.3
        return Site(
            directory,
            self._fleet,
            port=self._broker.port,
            rounds=rounds,
            # With a budget, or its bytes would not be written down, and those points never passed.
            gateway={"ask_jitter_seconds": 0.2, "gates.monthly_bytes": 1 << 40},
            coordinator={"publish.fleet_seconds": 1},
            task={"hidden": [320], "codec.kind": "dense"} if self._kind.dense else {},
            round_={
                "min_gateways": len(self._fleet.gateways) if self._kind.patient else 2,
                "closing_seconds": 60 if self._kind.patient else 2,
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
