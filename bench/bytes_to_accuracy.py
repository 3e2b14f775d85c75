"""Bytes on the wire until the model is as good, against dense FedAvg of the same system and recipe.

For each seed the whole demo runs twice, with real processes and a real broker: once with float32 deltas both ways,
once coded, which gets twice the rounds. A level is a share of the dense run's metric at its last round, and there may
be several: all come from the same two runs. A run has *reached* a level at the first of two rounds in a row at or
above. What it cost by then is everything on the sockets of all gateways since the first CONNECT, the model delta that
came of that round included.

    bench/bytes_to_accuracy --data cwru:DIR --test-load 2
    bench/bytes_to_accuracy --data digits --hidden 128,64 --rounds 100 --shares 0.99,0.999
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


def measure(arguments: argparse.Namespace, seed: int, shares: Sequence[float]) -> dict[str, Any]:
    common = ["--data", arguments.data, "--split", arguments.split]
    common += ["--seed", str(seed), "--model", arguments.model, "--broker", arguments.broker]
    for flag in ("hidden", "test_load", "gateways", "local_epochs", "dial"):
        if getattr(arguments, flag) is not None:
            common += [f"--{flag.replace('_', '-')}", str(getattr(arguments, flag))]
    runs = {}
    for codec in ("dense", arguments.codec):
        print(f"seed {seed}: {codec} …", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as directory:
            rounds = arguments.rounds if codec == "dense" else arguments.coded_rounds or 2 * arguments.rounds
            words = [*common, "--codec", codec, "--rounds", str(rounds)]
            runs[codec] = run_demo(words, Path(directory))
    dense, coded = runs["dense"], runs[arguments.codec]
    if dense["metric_final"] is None or dense["metric_final"] <= 0:
        sys.exit(f"seed {seed}: dense ended at {dense['metric_name']} {dense['metric_final']}: no level to reach")
    gateways, steady = coded["gateways"], slice(coded["rounds"] // 2, coded["rounds"] - 1)
    per_round = [
        (up + down) / gateways
        for up, down in zip(coded["wire_up_bytes_by_round"], coded["wire_down_bytes_by_round"], strict=True)
    ]
    return {
        "seed": seed,
        "params": coded["params"],
        "gateways": gateways,
        "metric_name": coded["metric_name"],
        "dense_final": dense["metric_final"],
        "coded_final": coded["metric_final"],
        "levels": [at_level(share, dense, coded) for share in shares],
        "steady_bytes_per_gateway_round": max(per_round[steady]),
        "dense_metric_by_round": dense["metric_by_round"],
        "coded_metric_by_round": coded["metric_by_round"],
    }


def at_level(share: float, dense: dict[str, Any], coded: dict[str, Any]) -> dict[str, Any]:
    """Rounds and bytes of both runs to a share of the dense one's last metric; None where it was not reached."""
    level = share * dense["metric_final"]
    line: dict[str, Any] = {"share": share, "level": level}
    for name, figures in (("dense", dense), ("coded", coded)):
        metrics = figures["metric_by_round"]
        index = reached(metrics, level)
        if index is None and name == "dense" and metrics[-1] >= level:
            index = len(metrics) - 1  # its last round is what sets the level
        line[f"{name}_rounds"] = None if index is None else index + 1
        line[f"{name}_bytes"] = None if index is None else cost(figures, index)
    if line["dense_bytes"] and line["coded_bytes"]:
        line["times_fewer"] = line["dense_bytes"] / line["coded_bytes"]
        line["rounds_ratio"] = line["coded_rounds"] / line["dense_rounds"]
    return line


def summary(seeds: Sequence[dict[str, Any]], share: float) -> dict[str, Any]:
    """Geometric means over the seeds; None where one never got there, for a mean without it would flatter."""
    lines = [line for seed in seeds for line in seed["levels"] if line["share"] == share]
    there = all("times_fewer" in line for line in lines)
    return {
        "share": share,
        "geometric_mean_times_fewer": statistics.geometric_mean([x["times_fewer"] for x in lines]) if there else None,
        "geometric_mean_rounds_ratio": statistics.geometric_mean([x["rounds_ratio"] for x in lines]) if there else None,
    }


def print_table(result: dict[str, Any]) -> None:
    print(f"{result['codec']} against dense on {result['data']}, {result['rounds']} rounds, {result['model']}")
    print(
        f"{'share':>6}  {'seed':>4}  {'level':>6}  {'dense':>19}  {'coded':>19}  {'times fewer':>11}  {'rounds':>7}"
        f"  {'B/gateway/round':>15}"
    )
    for number, mean in enumerate(result["shares"]):
        for seed in result["seeds"]:
            line = seed["levels"][number]
            dense, coded = (
                "not reached"
                if line[f"{name}_rounds"] is None
                else f"{line[f'{name}_rounds']} rd {line[f'{name}_bytes']:,} B"
                for name in ("dense", "coded")
            )
            times = f"{line['times_fewer']:.1f}" if "times_fewer" in line else "-"
            ratio = f"x {line['rounds_ratio']:.2f}" if "rounds_ratio" in line else "-"
            print(
                f"{line['share']:>6.1%}  {seed['seed']:>4}  {line['level']:.4f}  {dense:>19}  {coded:>19}  {times:>11}"
                f"  {ratio:>7}  {seed['steady_bytes_per_gateway_round']:>15.0f}"
            )
        if mean["geometric_mean_times_fewer"] is None:
            print(f"{mean['share']:>6.1%}  geometric mean: not every seed got there")
        else:
            print(
                f"{mean['share']:>6.1%}  geometric mean: {mean['geometric_mean_times_fewer']:.1f} times fewer bytes, "
                f"{mean['geometric_mean_rounds_ratio']:.2f} times the rounds"
            )
    print(f"({result['machine']}, {result['date']})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sim", help="as for `fedmq demo` (default: sim)")
    parser.add_argument("--split", default="fault")
    parser.add_argument("--test-load", type=int)
    parser.add_argument("--gateways", type=int)
    parser.add_argument("--model", default="mlp", help="as for `fedmq demo` (default: mlp)")
    parser.add_argument(
        "--hidden", help="default: 64,128,64 for an mlp, about 18,000 parameters on CWRU; else the model's own"
    )
    parser.add_argument("--local-epochs", type=int, help="of both runs (default: the recipe's)")
    parser.add_argument("--dial", type=float, help="0: fewest bytes, 1: fewest rounds (default: the settings' own)")
    parser.add_argument("--codec", default="sparse", help="what is held against dense (default: sparse)")
    parser.add_argument("--rounds", type=int, default=40, help="of the dense run, whose last sets the level")
    parser.add_argument("--coded-rounds", type=int, help="of the coded run (default: twice as many)")
    parser.add_argument("--seeds", default="0,1,2", help="default: 0,1,2")
    parser.add_argument("--shares", default="0.99", help="of the dense run's final metric (default: 0.99)")
    parser.add_argument("--broker", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.hidden is None and arguments.model == "mlp":
        arguments.hidden = "64,128,64"
    shares = [float(text) for text in arguments.shares.split(",")]
    seeds = [measure(arguments, int(text), shares) for text in arguments.seeds.split(",")]
    means = [summary(seeds, share) for share in shares]
    result = {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "data": arguments.data.partition(":")[0],
        "model": arguments.model,
        "codec": arguments.codec,
        "rounds": arguments.rounds,
        "shares": means,
        "seeds": seeds,
    }
    print_table(result)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if all(mean["geometric_mean_times_fewer"] is not None for mean in means) else 1


if __name__ == "__main__":
    sys.exit(main())
