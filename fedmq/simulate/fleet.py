"""The nodes: how a coordinator and a gateway are put together for a simulation, and what is read of their state.

The one module of the simulation that knows the constructors and the insides of the services. All that they reach for
is made up here: a session over a link, a disk in memory, a clock that runs as the scheduler says, an engine that costs
microseconds and takes virtual seconds, vitals by the hour.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from fedmq_coordinator.aggregate import WeightedMean
from fedmq_coordinator.job import TaskPlan
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.run import Score
from fedmq_coordinator.service import Coordinator
from fedmq_coordinator.settings import LimitSettings, RoundSettings
from fedmq_edge_node import work
from fedmq_edge_node.folder import Folder
from fedmq_edge_node.gates import Limits, Vitals
from fedmq_edge_node.memory import GatewayState, Memory
from fedmq_edge_node.runtimes import Engine
from fedmq_edge_node.samples import Preparation, Samples
from fedmq_edge_node.service import Gateway, Source
from fedmq_edge_node.trainer import optimizer
from fedmq_models.bundle import Bundle
from fedmq_protocol.session import Session
from fedmq_protocol.signing import CoordinatorSeals, GatewaySeals
from fedmq_protocol.task import Codec, ModelSpec, Recipe, Task, Windowing, initial_steps, model_digest, short
from numpy.typing import NDArray

from fedmq.simulate.disks import Disk, MemoryModels

__all__ = [
    "FEDERATION",
    "DrawnEngine",
    "DrawnSource",
    "LoadedFolder",
    "TimedEngine",
    "WatchedEngine",
    "make_coordinator",
    "make_gateway",
    "make_task",
]

FEDERATION = "sim"
NO_LIMITS = Limits()
Floats = NDArray[np.float32]


@dataclass(kw_only=True)
class Doings:
    """What a process does to the world around it, as the world wants to know it."""

    spend: Callable[[float], None]
    """Work that takes seconds."""
    point: Callable[[str], None]
    """It passes this point by name; does not return where it dies there."""
    saved: Callable[[GatewayState], None] = lambda state: None


class DrawnSource(Source):
    """Windows that nobody looks at: what a gateway learns is drawn by `DrawnEngine`."""

    def __init__(self, task: Task, windows: int) -> None:
        self._windows = windows
        self._hop = task.windowing.hop
        self._samples = _drawn_samples(task.model.sizes[0], len(task.classes), windows, self._hop)

    def signal_samples(self) -> dict[str, int]:
        return {"normal": self._hop * self._windows}

    def load(
        self, windowing: Windowing, classes: tuple[str, ...], healthy: str, preparation: Preparation | None = None
    ) -> Samples:
        return self._samples

    def changed(self) -> bool:
        return False


@lru_cache(maxsize=64)
def _drawn_samples(features: int, classes: int, windows: int, hop: int) -> Samples:
    """The same for all gateways that have as many: at a thousand of them it is memory that counts."""
    x = np.random.default_rng(windows).normal(size=(windows, features)).astype(np.float32)
    y = np.arange(windows, dtype=np.int64) % max(1, classes)
    return Samples(train_x=x, train_y=y, held_x=x[:4], held_y=y[:4], raw_bytes=2 * hop * windows, recordings=1)


class LoadedFolder(Source):
    """Windows of a folder that are cut once; every start of a gateway's process is given the same."""

    def __init__(self, folder: Path) -> None:
        self._folder = Folder(folder)
        self._lengths = self._folder.signal_samples()
        self._samples: Samples | None = None

    def signal_samples(self) -> dict[str, int]:
        return self._lengths

    def load(
        self, windowing: Windowing, classes: tuple[str, ...], healthy: str, preparation: Preparation | None = None
    ) -> Samples:
        if self._samples is None:
            self._samples = self._folder.load(windowing, classes, healthy, preparation)
        return self._samples

    def changed(self) -> bool:
        return False


class TimedEngine:
    """An engine whose work takes virtual time, and in the midst of which a gateway may die."""

    def __init__(self, inner: Engine, doings: Doings, seconds_per_window: float) -> None:
        self._inner = inner
        self._doings = doings
        self._seconds = seconds_per_window

    def loss_grad(self, flat: Floats, x: Floats, y: NDArray[np.int64] | Floats, w: Floats) -> tuple[Floats, float]:
        self._doings.spend(float(np.count_nonzero(w)) * self._seconds)
        self._doings.point("training")
        return self._inner.loss_grad(flat, x, y, w)

    def infer(self, flat: Floats, x: Floats) -> Floats:
        return self._inner.infer(flat, x)


class WatchedEngine:
    """An engine of which is known what the training under way has come to so far: `learnt`, `(P,) float32`.

    That sum is the checker's, and made without a look at what the gateway makes of it; the size of a step alone is
    worked out by the same optimiser.
    """

    def __init__(self, inner: Engine, recipe: Recipe) -> None:
        self._inner = inner
        self._recipe = recipe
        self._start: Floats | None = None
        self._end: Floats | None = None
        self._step = optimizer(recipe)

    def loss_grad(self, flat: Floats, x: Floats, y: NDArray[np.int64] | Floats, w: Floats) -> tuple[Floats, float]:
        if self._end is None or not np.array_equal(flat, self._end):
            self._start = flat.copy()
            self._step = optimizer(self._recipe)
        gradient, loss = self._inner.loss_grad(flat, x, y, w)
        if self._recipe.proximal:
            raise ValueError("a simulation whose promises are checked has no proximal term")
        self._end = flat - self._step(gradient)
        return gradient, loss

    def infer(self, flat: Floats, x: Floats) -> Floats:
        return self._inner.infer(flat, x)

    @property
    def learnt(self) -> Floats:
        assert self._start is not None
        assert self._end is not None
        delta = self._end - self._start
        if float(np.abs(delta).max()) * len(delta) ** 0.5 < self._recipe.clip_norm:
            return delta
        norm = float(np.linalg.norm(delta.astype(np.float64)))
        return delta * np.float32(self._recipe.clip_norm / norm) if norm > self._recipe.clip_norm else delta


class DrawnEngine:
    """Gradients out of a table, the same for the same model and gateway; now and then one that is far too long."""

    def __init__(self, task: Task, name: str, wild: float, table: Floats) -> None:
        self._salt = zlib.crc32(name.encode())
        self._wild = wild
        self._table = table
        self._classes = task.model.sizes[-1]

    @staticmethod
    def table(task: Task, seed: int) -> Floats:
        return np.random.default_rng(seed).normal(size=(64, task.model.parameters)).astype(np.float32)

    def loss_grad(self, flat: Floats, x: Floats, y: NDArray[np.int64] | Floats, w: Floats) -> tuple[Floats, float]:
        drawn = zlib.crc32(flat.data, self._salt)
        factor = 60.0 if drawn / 2**32 < self._wild else 0.5
        return self._table[drawn & 63] * np.float32(factor), 0.5 + (drawn >> 8 & 255) / 1024

    def infer(self, flat: Floats, x: Floats) -> Floats:
        return np.full((len(x), self._classes), 1 / self._classes, dtype=np.float32)


def make_task(
    *,
    sizes: tuple[int, ...],
    up: Codec,
    down: Codec,
    grid_bits: int,
    learnt_scaling: bool,
    held_out_reports: bool = False,
    batch_size: int = 64,
    max_norm: float = 1_000.0,
    levels: int = 0,
    staleness: int = 0,
) -> Task:
    """A task for drawn training."""
    model = ModelSpec(kind="softmax" if len(sizes) == 2 else "mlp", sizes=sizes)
    return Task(
        name="simulated",
        model=model,
        classes=tuple(f"class-{i}" for i in range(sizes[-1])),
        windowing=Windowing(scaling="learnt" if learnt_scaling else "none"),
        recipe=Recipe(learning_rate=0.05, batch_size=batch_size),
        up=up,
        down=down,
        grid_bits=grid_bits,
        initial=short(model_digest(initial_steps(model, 0, grid_bits))),
        held_out_reports=held_out_reports,
        max_norm=max_norm,
        levels=levels,
        staleness=staleness,
        min_windows=1,
    )


def make_coordinator(
    *,
    task: Task,
    rounds: RoundSettings,
    limits: LimitSettings,
    session: Session,
    disk: Disk,
    clock: Callable[[], float],
    evaluate: Callable[[NDArray[np.float32], bytes | None], Score] | None = None,
    metric_name: str = "metric",
    bundle: bytes = b"",
    seals: CoordinatorSeals | None = None,
) -> Coordinator:
    """A coordinator's process, started on what its disk holds."""
    return Coordinator(
        federation=FEDERATION,
        tasks=[TaskPlan(task=task, rounds=rounds, evaluate=evaluate, metric_name=metric_name, bundle=bundle)],
        limits=limits,
        session=session,
        ledger=Ledger(Path("ledger.sqlite"), connect=disk.connect),
        models=MemoryModels(disk),
        clock=clock,
        seals=seals,
        crash_point=disk.point,
    )


class _Memory(Memory):
    """Tells what is on disk now."""

    def __init__(self, path: Path, disk: Disk, doings: Doings) -> None:
        super().__init__(path, connect=disk.connect)
        self._doings = doings

    def save(self, state: GatewayState) -> None:
        super().save(state)
        self._doings.saved(state)


def make_gateway(
    *,
    name: str,
    session: Session,
    disk: Disk,
    source: Source,
    vitals: Callable[[], Vitals],
    monotonic: Callable[[], float],
    rng: Random,
    nonce: bytes,
    doings: Doings,
    engine: Callable[[Task, Bundle | None], Engine],
    ask_jitter_seconds: float = 1.0,
    answer_jitter_seconds: float = 0.0,
    limits: Limits | None = None,
    seals: GatewaySeals | None = None,
) -> Gateway:
    """A gateway's process, started on what its disk holds."""
    return Gateway(
        name=name,
        federation=FEDERATION,
        session=session,
        memory=_Memory(Path("gateway.sqlite"), disk, doings),
        source=source,
        vitals=vitals,
        limits=NO_LIMITS if limits is None else limits,
        monotonic=monotonic,
        rng=rng,
        nonce=nonce,
        software="simulated",
        ask_jitter_seconds=ask_jitter_seconds,
        answer_jitter_seconds=answer_jitter_seconds,
        look_every_seconds=math.inf,
        vitals_every_seconds=5.0,
        engine=engine,
        seals=seals,
        crash_point=doings.point,
    )


# -- reading their state ------------------------------------------------------------------------------------------


NOTHING = GatewayState()


def state_of(gateway: Gateway) -> GatewayState:
    return next((job.state for job in gateway._jobs.values()), NOTHING)


def gateway_wait(gateway: Gateway, now: float) -> float:
    """Seconds of its own clock until something is due."""
    return gateway.wait_seconds(now, math.inf)


def coordinator_wait(coordinator: Coordinator, now: float) -> float:
    # Transfers are looked after once a second, without a time of their own.
    return coordinator.wait_seconds(now, 1.0 if coordinator.only.intake._transfers else math.inf)


def open_sum(coordinator: Coordinator) -> tuple[int, NDArray[np.int64], int, int] | None:
    """Round, sum, weight and number of updates of the open training round."""
    run = coordinator.only.run
    if run.round is None or not isinstance(run.mean, WeightedMean):
        return None
    return run.round.plan.round_id, run.mean._sum, run.mean.weight, run.mean.updates


def ledger_of(coordinator: Coordinator) -> Ledger:
    return coordinator._ledger


def parameters_of(coordinator: Coordinator) -> tuple[Floats, bytes | None]:
    """Of the newest version, `(P,) float32`, and the scaler that goes with it."""
    line = coordinator.only.line
    return line.parameters, line.scaler


def lineage_of(coordinator: Coordinator) -> int:
    return coordinator.only.line.number


def settings_of(coordinator: Coordinator) -> RoundSettings:
    return coordinator.only.run._settings


def in_transaction(coordinator: Coordinator) -> bool:
    return coordinator._ledger.changed


def places_of(coordinator: Coordinator) -> dict[int, str]:
    return {gateway.roster: gateway.name for gateway in coordinator._roster.all()}


def is_at_rest(coordinator: Coordinator) -> bool:
    return coordinator.only.resting is not None


def sent_in(state: GatewayState) -> NDArray[np.float32]:
    """What the coordinator adds to its sum for the pending update, `(P,) float32`."""
    assert state.pending is not None
    assert state.task is not None
    return work.sent_by(state.pending, state.task)
