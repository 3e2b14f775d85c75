"""Bytes on the wire until the model is as good, against dense FedAvg of the same system and recipe.

For each seed the whole demo runs twice, with real processes and a real broker: once with float32 deltas both ways,
once coded. The level is a share of the dense run's metric at its last round. A run has *reached* it at the first of
two rounds in a row at or above. What it cost by then is everything on the sockets of all gateways since the first
CONNECT, the model delta that came of that round included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any


def reached(metrics: Sequence[float | None], level: float) -> int | None:
    """Index of the first of two rounds in a row at or above the level."""
    for index in range(len(metrics) - 1):
        pair = metrics[index : index + 2]
        if all(metric is not None and metric >= level for metric in pair):
            return index
    return None


def cost(figures: dict[str, Any], index: int) -> int:
    """Bytes of all gateways, up and down, joining and feature scaling included, up to and with this round."""
    up, down = figures["wire_up_bytes_by_round"], figures["wire_down_bytes_by_round"]
    rounds = sum(up[: index + 1]) + sum(down[: index + 1])
    everything = figures["wire_up_bytes"] + figures["wire_down_bytes"]
    before = everything - sum(up) - sum(down)
    return int(before + rounds)


def run_demo(words: Sequence[str], directory: Path) -> dict[str, Any]:
    target = directory / "figures.json"
    subprocess.run(
        [
            *(sys.executable, "-m", "fedmq", "demo", "--no-progress", "--no-baselines"),
            *("--json", str(target), "--directory", str(directory / "run"), *words),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    figures: dict[str, Any] = json.loads(target.read_text())
    return figures


def measure(arguments: argparse.Namespace, seed: int, share: float) -> dict[str, Any]:
    common = ["--data", arguments.data, "--split", arguments.split, "--rounds", str(arguments.rounds)]
    common += ["--seed", str(seed), "--hidden", arguments.hidden, "--broker", arguments.broker]
    if arguments.test_load is not None:
        common += ["--test-load", str(arguments.test_load)]
    runs = {}
    for codec in ("dense", arguments.codec):
        print(f"seed {seed}: {codec} …", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as directory:
            runs[codec] = run_demo([*common, "--codec", codec], Path(directory))
    level = share * runs["dense"]["metric_final"]
    line: dict[str, Any] = {"seed": seed, "level": level, "dense_final": runs["dense"]["metric_final"]}
    for name, figures in (("dense", runs["dense"]), ("coded", runs[arguments.codec])):
        index = reached(figures["metric_by_round"], level)
        line[f"{name}_rounds"] = None if index is None else index + 1
        line[f"{name}_bytes"] = None if index is None else cost(figures, index)
        line[f"{name}_metric_by_round"] = figures["metric_by_round"]
    if line["dense_bytes"] and line["coded_bytes"]:
        line["times_fewer"] = line["dense_bytes"] / line["coded_bytes"]
    coded = runs[arguments.codec]
    gateways, steady = coded["gateways"], slice(coded["rounds"] // 2, coded["rounds"] - 1)
    per_round = [
        (up + down) / gateways
        for up, down in zip(coded["wire_up_bytes_by_round"], coded["wire_down_bytes_by_round"], strict=True)
    ]
    line["steady_bytes_per_gateway_round"] = max(per_round[steady])
    line["coded_final"] = coded["metric_final"]
    line["params"] = coded["params"]
    return line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sim", help="as for `fedmq demo` (default: sim)")
    parser.add_argument("--split", default="fault")
    parser.add_argument("--test-load", type=int)
    parser.add_argument("--hidden", default="64,128,64", help="default: 64,128,64, about 18,000 parameters")
    parser.add_argument("--codec", default="sparse", help="what is held against dense (default: sparse)")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seeds", default="0,1,2", help="default: 0,1,2")
    parser.add_argument("--share", type=float, default=0.99, help="of the dense run's final metric (default: 0.99)")
    parser.add_argument("--broker", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    seeds = [int(text) for text in arguments.seeds.split(",")]
    lines = [measure(arguments, seed, arguments.share) for seed in seeds]
    ratios = [line["times_fewer"] for line in lines if "times_fewer" in line]
    # A seed that never got there has no ratio, and a mean without it would flatter.
    mean = statistics.geometric_mean(ratios) if len(ratios) == len(lines) else None
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    result = {
        "date": date.today().isoformat(),
        "machine": machine,
        "data": arguments.data.partition(":")[0],
        "codec": arguments.codec,
        "share": arguments.share,
        "geometric_mean_times_fewer": mean,
        "seeds": lines,
    }
    print(f"{arguments.codec} against dense, to {arguments.share:.1%} of dense's metric at round {arguments.rounds}")
    print(f"{'seed':>4}  {'level':>6}  {'dense':>17}  {'coded':>17}  {'times fewer':>11}  {'B/gateway/round':>15}")
    for line in lines:
        dense = f"{line['dense_rounds']} rd {line['dense_bytes'] or 0:,} B"
        coded = f"{line['coded_rounds']} rd {line['coded_bytes'] or 0:,} B"
        times = f"{line['times_fewer']:.1f}" if "times_fewer" in line else "not reached"
        steady = line["steady_bytes_per_gateway_round"]
        print(f"{line['seed']:>4}  {line['level']:.4f}  {dense:>17}  {coded:>17}  {times:>11}  {steady:>15.0f}")
    print(f"geometric mean: {'not every seed got there' if mean is None else f'{mean:.1f} times fewer'}")
    print(f"({machine}, {result['date']})")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if mean is not None else 1


if __name__ == "__main__":
    sys.exit(main())
