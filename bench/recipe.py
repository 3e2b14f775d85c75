"""What the default recipe is worth: the federation of the demo, simulated in one process, dense beside sparse.

    python bench/recipe.py --data cwru:DIR --test-load 2 --hidden 64,128,64 --seeds 0,1,2 --json recipe.json
    python bench/recipe.py --data digits --hidden 128,64
    python bench/recipe.py --data gearbox:DIR --test-load 30 --model autoencoder

The federation is that of `fedmq.bench.training`: its modules are the real ones, only the broker is left out. Bytes are
those of the codec's payloads and a fixed allowance for everything else on the wire, so they are an *estimate*:
`--overhead` bytes a round and gateway, `--join` bytes once. `--fraction` draws a part of the fleet in each round.

Reached: the first of two consecutive rounds at or above a share (`--share`) of dense's metric in the last round of the
same seed.

`--record FILE.npz` keeps what the coded run of one seed sent, to try codecs on: whole numbers of 2^-grid_bits down and
of 2^-24 up, sparse, as `indices` and `steps`, with the bounds of each message in `offsets`.

    down_indices, down_steps, down_offsets  the broadcast of each round
    up_indices, up_steps, up_offsets        the uplinks, round by round and in each the gateways in order
    weights                                 windows of each gateway
    model                                   (rounds + 1, parameters) the model before each round and after the last
    parameters, grid_bits, gateways, rounds, seed
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from fedmq_compression.pipeline import Decoded
from fedmq_coordinator.settings import RoundSettings
from fedmq_edge_node.samples import Samples
from fedmq_protocol.task import Task
from numpy.typing import NDArray

from fedmq.baselines import local_only, pooled
from fedmq.bench.training import Labelled, Plant, Played, at_density, play, prepare, task_for
from fedmq.demo import DemoOptions


@dataclass(frozen=True, kw_only=True)
class Round:
    """What is kept of a round: of the rest there is too much."""

    metric: float
    up_bytes: int
    """Payload of all gateways together."""
    down_bytes: int
    """Payload of the broadcast, once."""
    loss: float
    """Weighted mean of the gateways' training losses."""
    level: int
    """Of its uplinks."""


@dataclass(kw_only=True)
class Record:
    """What a run sent, message by message, and the model it made of that."""

    up: list[Decoded] = field(default_factory=list)
    down: list[Decoded] = field(default_factory=list)
    model: list[NDArray[np.int32]] = field(default_factory=list)

    def add(self, played: Played) -> None:
        if not self.model:
            self.model.append(played.base)
        self.up += [message.encoded.sent for message in played.up]
        self.down.append(played.down.encoded.sent)
        self.model.append(played.after)

    def save(self, path: Path, task: Task, gateways: Sequence[Samples]) -> None:
        np.savez_compressed(
            path,
            parameters=task.model.parameters,
            grid_bits=task.grid_bits,
            gateways=len(gateways),
            rounds=len(self.down),
            seed=task.seed,
            weights=np.array([own.train_windows for own in gateways], dtype=np.int64),
            model=np.stack(self.model),
            **_sparse("up", self.up),
            **_sparse("down", self.down),
        )


def _sparse(name: str, sent: Sequence[Decoded]) -> dict[str, NDArray[Any]]:
    indices = [np.arange(one.length) if one.indices is None else one.indices for one in sent]
    return {
        f"{name}_indices": np.concatenate(indices).astype(np.int32),
        f"{name}_steps": np.concatenate([one.steps for one in sent]).astype(np.int64),
        f"{name}_offsets": np.cumsum([0, *map(len, indices)], dtype=np.int64),
    }


def summed_up(run: Iterable[Played], record: Record | None = None) -> list[Round]:
    """Raises ValueError where there was no test set. `record` is filled."""
    done = []
    for played in run:
        if played.metric is None:
            raise ValueError("expected rounds with a metric, got one that was played without a test set")
        if record is not None:
            record.add(played)
        done.append(
            Round(
                metric=played.metric,
                up_bytes=sum(len(message.encoded.payload) for message in played.up),
                down_bytes=len(played.down.encoded.payload),
                loss=played.loss,
                level=played.level,
            )
        )
    return done


def reached(metrics: Sequence[float], level: float) -> int | None:
    """The number, from 1, of the first of two consecutive rounds at or above `level`."""
    for number in range(len(metrics) - 1):
        if min(metrics[number : number + 2]) >= level:
            return number + 1
    return None


def wire_bytes(rounds: Sequence[Round], gateways: int, overhead: int, join: int, framing: float) -> float:
    """Estimated bytes per gateway, up and down, for these rounds; `framing` is what large messages grow by."""
    payload = sum(done.up_bytes / gateways + done.down_bytes for done in rounds)
    return payload * framing + overhead * len(rounds) + join


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sim", help="as for `fedmq demo` (default: sim)")
    parser.add_argument("--split", default="fault", choices=["fault", "severity", "load"])
    parser.add_argument("--test-load", type=int)
    parser.add_argument("--gateways", type=int)
    parser.add_argument("--model", default="mlp", choices=["softmax", "mlp", "autoencoder", "cnn1d"])
    parser.add_argument("--hidden", type=_units, help="such as 64,128,64 (default: the model's own)")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--share", type=float, default=0.99, help="of dense's last metric (default: 0.99)")
    parser.add_argument("--overhead", type=int, default=80, help="wire bytes a round and gateway besides payload")
    parser.add_argument("--join", type=int, default=1200, help="wire bytes a gateway once, to join")
    parser.add_argument("--server-momentum", type=float, default=RoundSettings().server_momentum)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--local-epochs", type=int)
    parser.add_argument("--momentum", type=float, help="of a gateway's own training")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--dial", type=float, help="0: fewest bytes, 1: fewest rounds (default: the settings' own)")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the fleet that is asked in a round")
    parser.add_argument("--gain", type=_pair, help="both ways, or up and down: 1.5,1.2 (default: the settings' own)")
    parser.add_argument("--levels", type=int, help="0: never thicken")
    parser.add_argument("--density", type=_pair, help="both ways, or up and down, in place of the dial; it stays so")
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--record", type=Path, metavar="FILE.npz", help="keep what the coded run sent; needs one seed")
    options = parser.parse_args()
    seeds = [int(text) for text in options.seeds.split(",")]
    if options.record is not None and len(seeds) != 1:
        parser.error("--record keeps one run: name one seed with --seeds")

    rows: list[dict[str, Any]] = []
    for seed in seeds:
        plant = prepare(
            DemoOptions(
                data=options.data,
                split=options.split,
                test_load=options.test_load,
                gateways=options.gateways,
                seed=seed,
                model=options.model,
            )
        )
        if plant.test is None:
            parser.error(f"--data {options.data}: expected a test set, found none; name a --test-load where there are")
        rows.append(_measure(plant, plant.test, seed, options))
        print(_line(rows[-1]), flush=True)
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    if len(ratios) == len(rows):
        print(f"geometric mean: {math.exp(sum(map(math.log, ratios)) / len(ratios)):.1f} times fewer bytes")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _measure(plant: Plant, test: Labelled, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both runs of one seed, and what they came to."""
    gateways = plant.gateways
    settings = RoundSettings(server_momentum=options.server_momentum, fraction=options.fraction)
    runs: dict[str, list[Round]] = {}
    for codec in ("dense", "sparse"):
        wishes = {name: getattr(options, name) for name in ("learning_rate", "local_epochs", "momentum", "batch_size")}
        task = task_for(
            plant.fleet, options.model, options.hidden, seed, settings, codec=codec, dial=options.dial, **wishes
        )
        record = None
        if codec == "sparse":
            task = _altered(task, options)
            record = Record() if options.record else None
        runs[codec] = summed_up(play(task, gateways, test, options.rounds, settings), record)
        if record is not None:
            record.save(options.record, task, gateways)
    level = options.share * runs["dense"][-1].metric
    row: dict[str, Any] = {
        "seed": task.seed,
        "parameters": task.model.parameters,
        "density": [task.up.density, task.down.density],
    }
    for codec, run in runs.items():
        metrics = [done.metric for done in run]
        row[codec] = {
            "reached": reached(metrics, level),
            "at_20": metrics[min(19, len(metrics) - 1)],
            "final": metrics[-1],
            "loss_by_round": [done.loss for done in run],
            "level_by_round": [done.level for done in run],
            "metric_by_round": metrics,
            "bytes_per_round": wire_bytes(run, len(gateways), options.overhead, 0, 1.003) / len(run),
        }
        if row[codec]["reached"] is not None:
            spent = run[: row[codec]["reached"]]
            row[codec]["bytes"] = wire_bytes(spent, len(gateways), options.overhead, options.join, 1.003)
    if "bytes" in row["dense"] and "bytes" in row["sparse"]:
        row["ratio"] = row["dense"]["bytes"] / row["sparse"]["bytes"]
    if options.baselines:
        row["local_only_mean"] = float(np.mean(local_only(gateways, task, options.rounds, test)))
        row["pooled"] = pooled(gateways, task, options.rounds, test)
    return row


def _units(text: str) -> tuple[int, ...]:
    return tuple(int(units) for units in text.split(",") if units)


def _pair(text: str) -> tuple[float, float]:
    """One number for both directions, or one for each."""
    up, _, down = text.partition(",")
    return float(up), float(down or up)


def _altered(task: Task, options: argparse.Namespace) -> Task:
    """With what the command line puts in place of the settings' own."""
    replaced = msgspec.structs.replace
    if options.density is not None:
        task = at_density(task, *options.density)
    if options.gain is not None:
        up, down = options.gain
        task = replaced(task, up=replaced(task.up, gain=up), down=replaced(task.down, gain=down))
    return task if options.levels is None else replaced(task, levels=options.levels)


def _line(row: dict[str, Any]) -> str:
    up, down = row["density"]
    parts = [f"seed {row['seed']}  {row['parameters']:,} parameters, density {up:.4f} up {down:.4f} down"]
    for codec in ("dense", "sparse"):
        run = row[codec]
        parts.append(
            f"{codec}: round {run['reached']}, metric {run['at_20']:.3f} at 20, {run['final']:.3f} at the end, "
            f"{run['bytes_per_round']:,.0f} B a round"
        )
    levels = row["sparse"]["level_by_round"]
    changes = [f"{b} from {n + 2}" for n, (a, b) in enumerate(itertools.pairwise(levels)) if a != b]
    if changes:
        parts.append("level " + ", ".join(changes))
    if "ratio" in row:
        parts.append(f"{row['ratio']:.1f} times")
    if "pooled" in row:
        parts.append(f"alone {row['local_only_mean']:.3f}, pooled {row['pooled']:.3f}")
    return "  |  ".join(parts)


if __name__ == "__main__":
    main()
