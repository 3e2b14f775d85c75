"""A federation in this process: the demo's data, features, training, codec and course of levels, without a broker.

Owns the choice of a model of about so many parameters, and the rounds. Refuses to know what anybody measures on them:
a round gives away every message with what went into it, and the models before and after.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import numpy as np
from fedmq_compression.pipeline import CodecSpec, Contexts, Encoded, decode, encode
from fedmq_coordinator.aggregate import ServerState, WeightedMean, server_step, weights
from fedmq_coordinator.density import Course
from fedmq_coordinator.lineage import spec_of
from fedmq_coordinator.scaling import combine
from fedmq_coordinator.settings import RoundSettings
from fedmq_edge_node.runtimes import make_engine
from fedmq_edge_node.samples import Samples, Scaler, Targets, feature_count, load, load_test, statistics
from fedmq_edge_node.trainer import evaluate, train
from fedmq_edge_node.work import EVALUATION_SCALE, loss_told, read_scaler
from fedmq_protocol.task import UPLINK_STEP, Codec, ModelSpec, Task, initial_steps, to_parameters
from numpy.typing import NDArray

from fedmq.data import Fleet, lay_out
from fedmq.defaults import Kind, task_of, task_settings
from fedmq.demo import DemoOptions, open_fleet

__all__ = [
    "Coded",
    "Labelled",
    "Layered",
    "Plant",
    "Played",
    "at_density",
    "hidden_for",
    "play",
    "prepare",
    "task_for",
]

Layered = Literal["mlp", "autoencoder"]
"""Kinds that have hidden layers."""

Labelled = tuple[NDArray[np.float32], Targets]

KNOWN: dict[tuple[int, int], dict[int, tuple[int, ...]]] = {
    (22, 4): {17_000: (64, 128, 64)},
    (64, 10): {17_000: (128, 64), 100_000: (256, 256, 64)},
}
"""Hidden layers that other benches use, by inputs and outputs, so that all speak of the same model."""

LEAST_UNITS = 4


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
    gain: float
    contexts: Contexts | None = field(repr=False)
    """Of the model that the round started from; None where all coordinates are sent."""
    encoded: Encoded


@dataclass(frozen=True, kw_only=True, eq=False)
class Played:
    """One round."""

    number: int
    """From 0, which is also the version of the model that it started from."""
    level: int
    """How dense its uplinks were."""
    base: NDArray[np.int32] = field(repr=False)
    """The model that everybody trained from, in grid steps."""
    displacement: NDArray[np.int32] = field(repr=False)
    """How far that is from the seeded start: what contexts are made of."""
    after: NDArray[np.int32] = field(repr=False)
    """The model that the broadcast leads to."""
    asked: list[int]
    """Who took part, by place in the fleet."""
    up: list[Coded]
    """One for each of those."""
    down: Coded
    loss: float
    """Weighted mean of the training losses, as they reach the coordinator."""
    metric: float | None
    """Of the model after the round, on the test set where there is one."""


def prepare(options: DemoOptions) -> Plant:
    """The data of the options, as the demo takes them."""
    fleet = open_fleet(options)
    with tempfile.TemporaryDirectory() as directory:
        folders = lay_out(fleet, Path(directory))
        task = task_for(fleet, cast(Kind, options.model), None, options.seed)
        test = load_test(folders.pop("test"), task.windowing, task.classes) if fleet.test is not None else None
        gateways = [load(folder, task.windowing, task.classes) for folder in folders.values()]
    return Plant(fleet=fleet, gateways=gateways, test=test)


def task_for(
    fleet: Fleet,
    kind: Kind,
    hidden: tuple[int, ...] | None,
    seed: int,
    settings: RoundSettings | None = None,
    **wishes: Any,
) -> Task:
    """The default recipe on these data; takes what else `task_settings` takes. Hidden None: the kind's own."""
    wanted = task_settings(
        name=fleet.name,
        kind=kind,
        hidden=hidden,
        classes=fleet.classes,
        windowing=fleet.windowing,
        seed=seed,
        **wishes,
    )
    return task_of(wanted, settings)


def at_density(task: Task, up: float, down: float) -> Task:
    """The same, coded as densely as this from the first round to the last."""
    replaced = msgspec.structs.replace
    return replaced(task, up=replaced(task.up, density=up), down=replaced(task.down, density=down), levels=0)


def hidden_for(fleet: Fleet, kind: Layered, wanted: int) -> tuple[int, ...]:
    """Hidden layers of a model of about `wanted` parameters: three of w, w and w/4 units, or those in `KNOWN`."""
    inputs = feature_count(task_for(fleet, kind, None, 0).windowing)
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


def play(
    task: Task, gateways: Sequence[Samples], test: Labelled | None, rounds: int, settings: RoundSettings | None = None
) -> Iterator[Played]:
    """Rounds one after the other; of the settings the fraction and the server's optimiser count."""
    settings = settings or RoundSettings()
    length = task.model.parameters
    scaler = _scaler(task, gateways)
    engine = make_engine(task.model)
    own_x = [scaler.apply(own.train_x) for own in gateways]
    test_x = None if test is None else scaler.apply(test[0])
    votes = weights([own.train_windows for own in gateways])
    residuals = [np.zeros(length, dtype=np.float32) for _ in gateways]
    server = ServerState.start(length)
    steps = start = initial_steps(task.model, task.seed, task.grid_bits)
    course = Course(sparse=task.sparse_levels, highest=task.levels)
    for number in range(rounds):
        base, displacement, level = steps, steps - start, course.level
        flat = to_parameters(base, task.grid_bits)
        ranked = None if task.up.density == task.down.density == 1 else Contexts.of(displacement, task.model.shapes)
        asked = _drawn(len(gateways), settings.fraction, task.seed, number)
        total = WeightedMean(length)
        sent, loss = [], 0.0
        for place in asked:
            rng = np.random.default_rng((task.seed, place, number))
            result = train(engine, flat, own_x[place], gateways[place].train_y, task.recipe, rng, lambda: True)
            sent.append(_uplink(result.delta, residuals[place], task.up.at(level), ranked))
            residuals[place] = sent[-1].encoded.residual
            total.add(sent[-1].encoded.sent, votes[place])
            loss += loss_told(result.loss) / EVALUATION_SCALE * votes[place]
        loss /= total.weight
        course = course.after(loss)
        down, server = _broadcast(total.mean(), server, task.down.at(course.level), task.grid_step, ranked, settings)
        steps = base + down.encoded.sent.whole_steps()
        metric = None
        if test is not None and test_x is not None:
            flat, most = to_parameters(steps, task.grid_bits), task.windowing.remaining_most
            metric = evaluate(engine, flat, test_x, test[1], task.objective, most).metric
        yield Played(
            number=number,
            level=level,
            base=base,
            displacement=displacement,
            after=steps,
            asked=asked,
            up=sent,
            down=down,
            loss=loss,
            metric=metric,
        )


def _scaler(task: Task, gateways: Sequence[Samples]) -> Scaler:
    if task.windowing.scaling == "none":
        return read_scaler(None, task)
    mean, scale = combine([statistics(own.train_x) for own in gateways])
    return Scaler(mean=mean, scale=scale)


def _drawn(gateways: int, fraction: float, seed: int, number: int) -> list[int]:
    """Who is asked: a slot of a shuffled fleet, so that everyone's turn comes once a cycle."""
    slots = min(gateways, max(1, round(1 / fraction)))
    order = np.random.default_rng((seed, 1 << 20, number // slots)).permutation(gateways)
    return sorted(int(index) for index in order[number % slots :: slots])


def _uplink(delta: NDArray[np.float32], residual: NDArray[np.float32], codec: Codec, ranked: Contexts | None) -> Coded:
    spec, contexts = _coding(codec, UPLINK_STEP, ranked)
    encoded = encode(delta, spec, residual, gain=codec.gain, contexts=contexts)
    return Coded(delta=delta, residual=residual, spec=spec, gain=codec.gain, contexts=contexts, encoded=encoded)


def _broadcast(
    mean: NDArray[np.float64],
    server: ServerState,
    codec: Codec,
    step: float,
    ranked: Contexts | None,
    settings: RoundSettings,
) -> tuple[Coded, ServerState]:
    """The coordinator's own step. In float64 it adds the residual itself, so that the codec meets none."""
    spec, contexts = _coding(codec, step, ranked)
    rate = settings.server_learning_rate
    made = server_step(
        mean,
        server,
        spec,
        momentum=settings.server_momentum,
        learning_rate=rate,
        gain=codec.gain,
        contexts=contexts,
    )
    delta = (rate * made.state.momentum + server.residual).astype(np.float32)
    sent = decode(made.delta, delta.size, spec, contexts=contexts)
    left = made.state.residual.astype(np.float32)
    encoded = Encoded(payload=made.delta, sent=sent, residual=left, plain=made.delta)
    none = np.zeros_like(delta)
    coded = Coded(delta=delta, residual=none, spec=spec, gain=codec.gain, contexts=contexts, encoded=encoded)
    return coded, made.state


def _coding(codec: Codec, step: float, ranked: Contexts | None) -> tuple[CodecSpec, Contexts | None]:
    """As both ends of the wire do it: a dense delta has no use for contexts."""
    spec = spec_of(codec, step)
    return spec, None if spec.density == 1 else ranked
