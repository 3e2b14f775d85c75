"""A federation in this process, to take real deltas from: the demo's data, features, training and codec, no broker.

Owns the choice of a model of about so many parameters, and the rounds. Refuses to know what anybody measures on them:
a round gives away every delta with the residual it met, and the model that it started from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import msgspec
import numpy as np
from fedmq_compression.pipeline import CodecSpec, Encoded, encode
from fedmq_coordinator.aggregate import ServerState, ServerStep, WeightedMean, server_step, weights
from fedmq_coordinator.scaling import combine
from fedmq_coordinator.settings import RoundSettings
from fedmq_edge_node.runtimes import NumpyEngine
from fedmq_edge_node.samples import Samples, Scaler, feature_count, load, load_test, statistics
from fedmq_edge_node.trainer import evaluate, train
from fedmq_protocol.task import UPLINK_STEP, Codec, ModelSpec, Task, initial_steps, to_parameters
from numpy.typing import NDArray

from fedmq.data import Fleet, lay_out
from fedmq.defaults import task_of, task_settings
from fedmq.demo import DemoOptions, open_fleet

__all__ = ["Coded", "Plant", "Played", "hidden_for", "play", "prepare", "task_for"]

Kind = Literal["mlp", "autoencoder"]
Labelled = tuple[NDArray[np.float32], NDArray[np.int64]]

KNOWN: dict[tuple[int, int], dict[int, tuple[int, ...]]] = {
    (22, 4): {17_000: (64, 128, 64)},
    (64, 10): {17_000: (128, 64), 100_000: (256, 256, 64)},
}
"""Hidden layers that other benches use, by inputs and outputs, so that all speak of the same model."""

LEAST_UNITS = 4

ANY_HIDDEN = (LEAST_UNITS,)
"""Where a task is only asked for its windows."""


@dataclass(frozen=True, kw_only=True)
class Plant:
    """One data set, dealt out and cut into windows."""

    fleet: Fleet
    gateways: list[Samples]
    test: Labelled | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Coded:
    """One message: what went into `encode`, and what came out."""

    delta: NDArray[np.float32] = field(repr=False)
    residual: NDArray[np.float32] = field(repr=False)
    """What earlier messages left over, `(P,)`."""
    spec: CodecSpec
    encoded: Encoded


@dataclass(frozen=True, kw_only=True, eq=False)
class Played:
    """One round."""

    number: int
    """From 0, which is also the version of the model that it started from."""
    base: NDArray[np.int32] = field(repr=False)
    """The model that everybody trained from, in grid steps."""
    up: list[Coded]
    """Of the gateways in order."""
    down: Coded
    metric: float | None
    """Of the model after the round, on the test set where there is one."""


def prepare(options: DemoOptions) -> Plant:
    """The data of the options, as the demo takes them."""
    fleet = open_fleet(options)
    with tempfile.TemporaryDirectory() as directory:
        folders = lay_out(fleet, Path(directory))
        task = task_for(fleet, cast(Kind, options.model), ANY_HIDDEN, options.seed, 1.0)
        test = load_test(folders.pop("test"), task.windowing, task.classes) if fleet.test is not None else None
        gateways = [load(folder, task.windowing, task.classes) for folder in folders.values()]
    return Plant(fleet=fleet, gateways=gateways, test=test)


def task_for(fleet: Fleet, kind: Kind, hidden: tuple[int, ...], seed: int, density: float) -> Task:
    """The default recipe with signs at this density both ways."""
    settings = task_settings(
        name=fleet.name, kind=kind, hidden=hidden, classes=fleet.classes, windowing=fleet.windowing, seed=seed
    )
    coding = Codec(bits=1, density=density)
    return msgspec.structs.replace(task_of(settings), up=coding, down=coding)


def hidden_for(fleet: Fleet, kind: Kind, wanted: int) -> tuple[int, ...]:
    """Hidden layers of a model of about `wanted` parameters: three of w, w and w/4 units, or those in `KNOWN`."""
    windowing = task_for(fleet, kind, ANY_HIDDEN, 0, 1.0).windowing
    inputs = feature_count(windowing)
    outputs = inputs if kind == "autoencoder" else len(fleet.classes)
    if kind != "autoencoder" and wanted in KNOWN.get((inputs, outputs), {}):
        return KNOWN[inputs, outputs][wanted]

    def layers(units: int) -> tuple[int, ...]:
        narrow = max(LEAST_UNITS, units // 4)
        return (units, narrow, units) if kind == "autoencoder" else (units, units, narrow)

    def parameters(units: int) -> int:
        return ModelSpec(kind=kind, sizes=(inputs, *layers(units), outputs)).parameters

    units = LEAST_UNITS
    while parameters(units + 1) <= wanted:
        units += 1
    nearest = min((units, units + 1), key=lambda count: abs(parameters(count) - wanted))
    return layers(nearest)


def play(plant: Plant, task: Task, rounds: int) -> Iterator[Played]:
    """Rounds in which everybody takes part, one after the other."""
    length = task.model.parameters
    up, down = _spec(task.up, UPLINK_STEP), _spec(task.down, task.grid_step)
    mean, scale = combine([statistics(own.train_x) for own in plant.gateways])
    scaler = Scaler(mean=mean, scale=scale)
    engine = NumpyEngine(task.model)
    own_x = [scaler.apply(own.train_x) for own in plant.gateways]
    test = None if plant.test is None else (scaler.apply(plant.test[0]), plant.test[1])
    votes = weights([own.train_windows for own in plant.gateways])
    residuals = [np.zeros(length, dtype=np.float32) for _ in plant.gateways]
    server = ServerState.start(length)
    steps = initial_steps(task.model, task.seed, task.grid_bits)
    for number in range(rounds):
        base, flat = steps, to_parameters(steps, task.grid_bits)
        total = WeightedMean(length)
        sent = []
        for place, own in enumerate(plant.gateways):
            rng = np.random.default_rng((task.seed, place, number))
            delta = train(engine, flat, own_x[place], own.train_y, task.recipe, rng, lambda: True).delta
            sent.append(_code(delta, residuals[place], up))
            residuals[place] = sent[-1].encoded.residual
            total.add(sent[-1].encoded.sent, votes[place])
        broadcast, made = _broadcast(total, server, down)
        server = made.state
        steps = base + made.steps
        metric = None
        if test is not None:
            metric = evaluate(engine, to_parameters(steps, task.grid_bits), *test, task.classes).metric
        yield Played(number=number, base=base, up=sent, down=broadcast, metric=metric)


def _broadcast(total: WeightedMean, server: ServerState, spec: CodecSpec) -> tuple[Coded, ServerStep]:
    """The coordinator's own step, and what it put into the codec: in float64 it adds the residual itself."""
    settings = RoundSettings()
    rate = settings.server_learning_rate
    made = server_step(total.mean(), server, spec, momentum=settings.server_momentum, learning_rate=rate)
    wanted = (rate * made.state.momentum + server.residual).astype(np.float32)
    return _code(wanted, np.zeros_like(wanted), spec), made


def _code(delta: NDArray[np.float32], residual: NDArray[np.float32], spec: CodecSpec) -> Coded:
    return Coded(delta=delta, residual=residual, spec=spec, encoded=encode(delta, spec, residual))


def _spec(codec: Codec, step: float) -> CodecSpec:
    return CodecSpec(bits=codec.bits, density=codec.density, step=step)
