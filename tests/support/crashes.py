"""Kills real programs at named instants, one after another within one run, and says how the run came through.

    site = ...                      # a federation of real processes, running
    for point in CRASH_POINTS:
        crash(site, "coordinator", point)

A program that is started with `FEDMQ_CRASH_AT` set kills itself with SIGKILL as it passes that point.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from random import Random

from fedmq_broker_config.run import LocalBroker
from processes import PATIENCE_SECONDS, Site, tail

SIGKILLED = -9


@dataclass(frozen=True, kw_only=True)
class Crash:
    """One kill at a crash point. `back_seconds` is from the new process's start to its round, None for a gateway."""

    program: str
    point: str
    passed: bool
    """False where the run had nothing to do that passes this point within the time given."""
    back_seconds: float | None = None


def crash(site: Site, name: str, point: str, *, times: int = 1, seconds: float = PATIENCE_SECONDS) -> Crash:
    """Have a running program started anew with this crash point, wait until it has killed itself, start it again."""
    site.kill(name)
    site.crash_at[name] = f"{point}:{times}"
    program = start(site, name)
    died = wait_for_death(site, name, seconds)
    del site.crash_at[name]
    if died:
        status = program.process.wait()
        assert status == SIGKILLED, f"{name} ended with {status} instead of at {point!r}:\n{tail(program.log)}"
    else:
        site.kill(name)
    size = program.log.stat().st_size
    began = time.monotonic()
    again = start(site, name)
    back = None
    if name == "coordinator":
        site.poll(lambda: b"connected with MQTT" in again.log.read_bytes()[size:], "the coordinator to be back")
        back = time.monotonic() - began
    return Crash(program=name, point=point, passed=died, back_seconds=back)


def start(site: Site, name: str):  # type: ignore[no-untyped-def]
    return site.start_coordinator() if name == "coordinator" else site.start_gateway(name)


def wait_for_death(site: Site, name: str, seconds: float) -> bool:
    """Whether the program has ended by itself within this time."""
    until = time.monotonic() + seconds
    process = site.programs[name].process
    while process.poll() is None:
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def kill_broker(broker: LocalBroker, rng: Random, most_seconds: float) -> None:
    """At a random instant; it is back at once, and has forgotten everything that it had not written down."""
    time.sleep(rng.uniform(0.0, most_seconds))
    broker.kill()
    time.sleep(rng.uniform(0.0, 0.3))
    with contextlib.suppress(ProcessLookupError):
        broker.start()


def assert_invariants(site: Site) -> None:
    """What must hold of a run that is over, whatever was killed."""
    ledger = site.ledger
    answers = [a for a in ledger.answers() if a.kind == "update"]
    accepted = [(a.gateway, a.counter) for a in answers if a.verdict == "accepted"]
    assert len(set(accepted)) == len(accepted), "an update was counted twice"
    assert not [a for a in answers if a.owed], "an update is still owed after the run has ended"
    versions = ledger.versions(int(ledger.get("lineage") or 0), after=-1)
    assert [v.number for v in versions] == list(range(len(versions)))
    for before, after in zip(versions, versions[1:], strict=False):
        assert after.parent == before.digest, f"version {after.number} does not follow {before.number}"
    for name, state in site.memories().items():
        pending = state.pending
        assert pending is None or (name, pending.counter) in accepted, f"{name} ends with an update that nobody took"
        last = max((counter for gateway, counter in accepted if gateway == name), default=0)
        assert state.counter >= last
    site.assert_one_model_everywhere()


def answers_by_round(site: Site) -> dict[int, frozenset[str]]:
    """Whose update counted in which applied training round."""
    return {
        row.id: frozenset(
            a.gateway for a in site.ledger.answers(row.id) if a.kind == "update" and a.verdict == "accepted"
        )
        for row in site.training("applied")
    }
