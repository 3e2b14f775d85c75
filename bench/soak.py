"""An hour of a thousand gateways in virtual time: what of the coordinator grows, and what does not."""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ.setdefault("FEDMQ_COMPILED", "0")

import argparse
import gc
import sys
import time
import types
from dataclasses import dataclass

from fedmq_coordinator.service import Coordinator

from fedmq.cli import _parser as command_line
from fedmq.simulate.disks import Disk
from fedmq.simulate.program import fleet_scenario
from fedmq.simulate.scheduler import Scheduler
from fedmq.simulate.world import Node, World

SAMPLES = 10


@dataclass(frozen=True, kw_only=True)
class Sample:
    """`rounds` closed so far; bytes of the ledger's file, and of all that the coordinator refers to in memory."""

    rounds: int
    ledger_bytes: int
    memory_bytes: int


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench/soak",
        description="Runs the real coordinator and a fleet in virtual time, twice: with every answer kept, and with "
        "those of the last rounds alone. Shows how the ledger's file grows, and what the coordinator holds in memory.",
    )
    parser.add_argument("--gateways", type=int, default=1000, help="default: 1000")
    parser.add_argument("--rounds", type=int, default=500, help="default: 500")
    parser.add_argument("--seconds", type=float, default=3600.0, help="virtual time (default: 3600)")
    parser.add_argument("--fraction", type=float, default=0.1, help="share of the fleet in a round (default: 0.1)")
    parser.add_argument("--keep-rounds", type=int, default=100, help="of the second run (default: 100)")
    given = parser.parse_args()
    every = run(given, keep_rounds=10_000)
    few = run(given, keep_rounds=given.keep_rounds)
    print(f"{'':>7} {'every answer kept':>28} {f'answers of {given.keep_rounds} rounds kept':>30}")
    print(f"{'rounds':>7} {'ledger kB':>13} {'in memory kB':>14} {'ledger kB':>15} {'in memory kB':>14}")
    for one, other in zip(every, few, strict=True):
        print(
            f"{one.rounds:7} {one.ledger_bytes / 1e3:13,.0f} {one.memory_bytes / 1e3:14,.0f}"
            f" {other.ledger_bytes / 1e3:15,.0f} {other.memory_bytes / 1e3:14,.0f}"
        )
    return 0


def run(given: argparse.Namespace, *, keep_rounds: int) -> list[Sample]:
    words = ["simulate", "--gateways", str(given.gateways), "--rounds", str(given.rounds), "--no-check"]
    words += ["--fraction", str(given.fraction), "--set", f"rounds.interval_seconds={given.seconds / given.rounds}"]
    words += ["--set", f"limits.keep_rounds={keep_rounds}"]
    samples: list[Sample] = []
    began = time.monotonic()
    with fleet_scenario(command_line().parse_args(words)) as scenario:
        world = World(scenario)

        def look(_: object) -> None:
            disk, coordinator = world.coordinator.disk, world.coordinator.service
            assert coordinator is not None
            closed = disk.rows("SELECT count(*) FROM rounds WHERE kind = 'training' AND closed_at IS NOT NULL")[0][0]
            pages, size = (disk.rows(f"PRAGMA {name}")[0][0] for name in ("page_count", "page_size"))
            samples.append(Sample(rounds=closed, ledger_bytes=pages * size, memory_bytes=held_by(coordinator)))

        for nth in range(1, SAMPLES + 1):
            world.scheduler.at(60.0 + given.seconds * nth / SAMPLES, look, None)
        outcome = world.run()
        world.close()
    print(
        f"{given.gateways:,} gateways, {given.rounds} rounds, {outcome.seconds / 60:.0f} min of virtual time: "
        f"{outcome.events:,} events in {time.monotonic() - began:.0f} s",
        file=sys.stderr,
    )
    return samples


def held_by(coordinator: Coordinator) -> int:
    """Bytes of all objects that can be reached from it, but for the world around it: disk, network, code."""
    outside: tuple[type, ...] = (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType, types.CodeType)
    outside += (Disk, Node, Scheduler, World)
    seen: set[int] = set()
    waiting: list[object] = [value for name, value in vars(coordinator).items() if name != "_session"]
    total = 0
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, outside):
            continue
        seen.add(id(value))
        total += sys.getsizeof(value)
        waiting.extend(gc.get_referents(value))
    return total


if __name__ == "__main__":
    sys.exit(main())
