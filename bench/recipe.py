"""What the default recipe is worth: the federation of the demo, simulated in one process, dense beside sparse.

    python bench/recipe.py --data cwru:DIR --test-load 2 --hidden 64,128,64 --seeds 0,1,2 --json recipe.json
    python bench/recipe.py --data digits --hidden 128,64
    python bench/recipe.py --data gearbox:DIR --test-load 30 --model autoencoder

The modules are the real ones (features, scaling, training, codec, defaults); only the broker is left out. Bytes are
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
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from fedmq_compression.pipeline import CodecSpec, Decoded, decode, encode
from fedmq_coordinator.aggregate import ServerState, WeightedMean, server_step, weights
from fedmq_coordinator.density import Course
from fedmq_coordinator.scaling import combine
from fedmq_coordinator.settings import RoundSettings
from fedmq_edge_node.runtimes import NumpyEngine
from fedmq_edge_node.samples import Samples, Scaler, load, load_test, statistics
from fedmq_edge_node.trainer import evaluate, train
from fedmq_edge_node.work import EVALUATION_SCALE, loss_told
from fedmq_protocol.task import UPLINK_STEP, Codec, Task, initial_steps, to_parameters
from numpy.typing import NDArray

from fedmq.baselines import local_only, pooled
from fedmq.data import Fleet, lay_out
from fedmq.defaults import Kind, task_of, task_settings
from fedmq.demo import DemoOptions, open_fleet

Labelled = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Round:
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


def federate(
    task: Task,
    gateways: Sequence[Samples],
    test: Labelled,
    rounds: int,
    settings: RoundSettings,
    record: Record | None = None,
) -> list[Round]:
    """Trains with those drawn in each round; the metric is the test set's after each. `record` is filled."""
    length = task.model.parameters
    mean, scale = combine([statistics(own.train_x) for own in gateways])
    scaler = Scaler(mean=mean, scale=scale)
    if task.windowing.scaling == "none":
        scaler = Scaler(mean=np.zeros_like(mean), scale=np.ones_like(scale))
    engine = NumpyEngine(task.model)
    own_x = [scaler.apply(own.train_x) for own in gateways]
    test_x = scaler.apply(test[0])
    votes = weights([own.train_windows for own in gateways])
    residuals = [np.zeros(length, dtype=np.float32) for _ in gateways]
    server = ServerState.start(length)
    steps = initial_steps(task.model, task.seed, task.grid_bits)
    course = Course(sparse=task.sparse_levels, highest=task.levels)
    done = []
    if record is not None:
        record.model.append(steps)
    for number in range(rounds):
        flat = to_parameters(steps, task.grid_bits)
        total = WeightedMean(length)
        loss, up_bytes = 0.0, 0
        up = task.up.at(course.level)
        for index in _drawn(len(gateways), settings.fraction, task.seed, number):
            own = gateways[index]
            rng = np.random.default_rng((task.seed, index, number))
            result = train(engine, flat, own_x[index], own.train_y, task.recipe, rng, lambda: True)
            coded = encode(result.delta, _spec(up, UPLINK_STEP), residuals[index], gain=up.gain)
            residuals[index] = coded.residual
            total.add(coded.sent, votes[index])
            loss += travelled(result.loss) * votes[index]
            up_bytes += len(coded.payload)
            if record is not None:
                record.up.append(coded.sent)
        loss, used = loss / total.weight, course.level
        course = course.after(loss)
        down = task.down.at(course.level)
        made = server_step(
            total.mean(),
            server,
            _spec(down, task.grid_step),
            momentum=settings.server_momentum,
            learning_rate=settings.server_learning_rate,
            gain=down.gain,
        )
        server = made.state
        steps = (steps + made.steps).astype(np.int32)
        if record is not None:
            record.down.append(decode(made.delta, length, _spec(down, task.grid_step)))
            record.model.append(steps)
        metric = evaluate(engine, to_parameters(steps, task.grid_bits), test_x, test[1], task.classes).metric
        done.append(Round(metric=metric, up_bytes=up_bytes, down_bytes=len(made.delta), loss=loss, level=used))
    return done


def _drawn(gateways: int, fraction: float, seed: int, number: int) -> list[int]:
    """Who is asked: a slot of a shuffled fleet, so that everyone's turn comes once a cycle."""
    slots = max(1, round(1 / fraction))
    order = np.random.default_rng((seed, 1 << 20, number // slots)).permutation(gateways)
    return sorted(int(index) for index in order[number % slots :: slots])


def travelled(loss: float) -> float:
    """A training loss as it reaches the coordinator."""
    return loss_told(loss) / EVALUATION_SCALE


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


def _spec(codec: Codec, step: float) -> CodecSpec:
    return CodecSpec(bits=codec.bits, density=codec.density, step=step)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One data set, dealt out and cut into windows: what a run learns from, and is measured on."""

    fleet: Fleet
    gateways: list[Samples]
    test: Labelled
    make_task: Callable[..., Task]
    """Of these data, this model and these round settings; takes what else `task_settings` takes."""


def prepare(options: DemoOptions) -> Case:
    """The data, seed and model of the options, as the demo takes them. Raises ValueError without a test set."""
    fleet = open_fleet(options)
    if fleet.test is None:
        raise ValueError(f"--data {options.data}: expected a test set, found none; name a --test-load where there are")

    def make_task(rounds: RoundSettings | None = None, **wishes: Any) -> Task:
        settings = task_settings(
            name=fleet.name,
            kind=cast(Kind, options.model),
            hidden=options.hidden,
            classes=fleet.classes,
            windowing=fleet.windowing,
            seed=options.seed,
            **wishes,
        )
        return task_of(settings, rounds)

    task = make_task()
    with tempfile.TemporaryDirectory() as directory:
        folders = lay_out(fleet, Path(directory))
        test = load_test(folders.pop("test"), task.windowing, task.classes)
        gateways = [load(folder, task.windowing, task.classes) for folder in folders.values()]
    return Case(fleet=fleet, gateways=gateways, test=test, make_task=make_task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sim", help="as for `fedmq demo` (default: sim)")
    parser.add_argument("--split", default="fault", choices=["fault", "severity", "load"])
    parser.add_argument("--test-load", type=int)
    parser.add_argument("--gateways", type=int)
    parser.add_argument("--model", default="mlp", choices=["softmax", "mlp", "autoencoder"])
    parser.add_argument("--hidden", help="such as 64,128,64 (default: the model's own)")
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
        case = prepare(
            DemoOptions(
                data=options.data,
                split=options.split,
                test_load=options.test_load,
                gateways=options.gateways,
                seed=seed,
                model=options.model,
                hidden=None if options.hidden is None else tuple(int(u) for u in options.hidden.split(",") if u),
            )
        )
        rows.append(_measure(case, options))
        print(_line(rows[-1]), flush=True)
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    if len(ratios) == len(rows):
        print(f"geometric mean: {math.exp(sum(map(math.log, ratios)) / len(ratios)):.1f} times fewer bytes")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Both runs of one seed, and what they came to."""
    gateways, test = case.gateways, case.test
    settings = RoundSettings(server_momentum=options.server_momentum, fraction=options.fraction)
    runs: dict[str, list[Round]] = {}
    for codec in ("dense", "sparse"):
        wishes = {name: getattr(options, name) for name in ("learning_rate", "local_epochs", "momentum", "batch_size")}
        task = case.make_task(settings, codec=codec, dial=options.dial, **wishes)
        record = None
        if codec == "sparse":
            task = _altered(task, options)
            record = Record() if options.record else None
        runs[codec] = federate(task, gateways, test, options.rounds, settings, record)
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


def _pair(text: str) -> tuple[float, float]:
    """One number for both directions, or one for each."""
    up, _, down = text.partition(",")
    return float(up), float(down or up)


def _altered(task: Task, options: argparse.Namespace) -> Task:
    """With what the command line puts in place of the settings' own."""
    replaced = msgspec.structs.replace
    if options.density is not None:
        up, down = options.density
        task = replaced(task, up=replaced(task.up, density=up), down=replaced(task.down, density=down), levels=0)
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
