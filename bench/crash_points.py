"""Kills real programs at every named crash point and the broker at random, and says how the runs came through."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from fedmq_broker_config.run import LocalBroker, find_mosquitto

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from crashes import BROKER, COORDINATOR, END, RUNS, CrashRun


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench/crash_points",
        description="Three gateways and a coordinator on a real Mosquitto. Each program kills itself with SIGKILL at "
        "each of its named crash points in turn, and the broker is killed at random instants. Afterwards the run's "
        "versions are held against those of an undisturbed run, bit for bit. Ends non-zero where anything differs.",
    )
    parser.add_argument("--times", type=int, default=5, help="kills at each crash point (default: 5)")
    parser.add_argument("--broker-kills", type=int, default=20, help="default: 20")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the instants at which the broker is killed (default: 0)"
    )
    given = parser.parse_args()
    if find_mosquitto() is None:
        print("bench/crash_points: needs Mosquitto: apt-get install mosquitto", file=sys.stderr)
        return 1
    print(f"{'killed':22} {'kills':>5} {'versions':>8} {'compared':>8} {'back in its round, most':>24} {'seconds':>8}")
    for kind in RUNS:
        began = time.monotonic()
        # Each gateway forgets a task once.
        gateways = max(3, given.times) if kind is END else 3
        with (
            tempfile.TemporaryDirectory() as folder,
            LocalBroker() as broker,
            CrashRun(Path(folder), broker, kind, gateways=gateways, say=say) as run,
        ):
            run.disturb(times=given.broker_kills if kind is BROKER else given.times, rng=Random(given.seed))
            versions, compared = run.finish()
        back = [c.back_seconds for c in run.crashes if c.program == COORDINATOR and c.back_seconds is not None]
        most = f"{max(back):.1f} s" if back else ""
        kills = len(run.crashes) + run.broker_kills
        print(
            f"{kind.title:22} {kills:5} {versions:8} {compared:8} {most:>24} {time.monotonic() - began:8.0f}",
            flush=True,
        )
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
