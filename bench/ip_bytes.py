"""What SIM cards would be billed: bytes of gateways at the IP level, counted on a cable, beside what they tell.

Needs root, for network namespaces.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

# The federation on a cable is the tests'.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from cabled import GATEWAYS, KEEPALIVE_SECONDS, measure
from veth import missing

STORIES: tuple[dict[str, Any], ...] = (
    {"story": "joining, and one round", "rounds": 1},
    {"story": "40 rounds without a pause", "rounds": 40},
    {"story": "5 rounds, then 60 s of pings", "rounds": 5, "idle_seconds": 60.0},
    {"story": "5 rounds, then 3 restarts of the broker", "rounds": 5, "reconnects": 3},
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench/ip_bytes.py",
        description="Counts what gateways send and receive at the IP level on a cable between two network"
        " namespaces, over TLS with client certificates, and holds against it what they tell themselves and what is"
        f" estimated for those that cannot. Keepalive is {KEEPALIVE_SECONDS} s, so that pings come often. Needs root.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    given = parser.parse_args()
    if why := missing():
        print(why, file=sys.stderr)
        return 1
    found = []
    print(f"bytes of {GATEWAYS} gateways, up and down together")
    print(f"{'':42}{'socket':>9}{'IP':>10}{'told':>10}{'off':>9}{'estimate':>10}{'off':>9}")
    for story in STORIES:
        one = measure(**story)
        found.append(one)
        print(
            f"{one.story:42}{one.wire:9,}{one.counted:10,}{one.told:10,}{one.told_off_pct:+8.2f}%"
            f"{one.estimated:10,}{one.estimated_off_pct:+8.1f}%",
            flush=True,
        )
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
