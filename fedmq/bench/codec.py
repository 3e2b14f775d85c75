"""`fedmq bench codec`: what the codec's bytes and time are worth, on deltas that come from training.

Owns what is measured and how. For each data set, size of the model and density a federation is trained in this process
with that density both ways; the messages of its first rounds, and of its middle third, which have the history of the
model as context, are coded without it as well, and laid out as every rival would. Refuses to know how it is shown.

Rules:
- Every payload that is counted was decoded again, and told what was sent.
- The bound is log2 C(length, count) plus the entropy of the signs, message by message. It is one for independent
  supports: a codec that knows the history may go below it.
- Rivals tell the same indices and the same signs, and carry the same head, scale and checksum.
- Time is the least of several repeats, and all that is compared takes turns: on one core, in one process, and against
  a copy of the dense float32 vector. Where there is machine code, it and numpy's way are compared; it is there before
  the clock starts. Memory is that of numpy's way.
"""

from __future__ import annotations

import gc
import os
import platform
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, Protocol

import numpy as np
from fedmq_compression import compiled, pipeline
from fedmq_compression.pipeline import Contexts, Decoded
from fedmq_protocol.task import ModelSpec, Task
from numpy.typing import NDArray

from fedmq import __version__
from fedmq.bench.rivals import RIVALS, entropy_bits, log2_choose
from fedmq.bench.training import Coded, Layered, Plant, Played, at_density, hidden_for, play, prepare, task_for
from fedmq.demo import DemoOptions

__all__ = ["BOTH", "Case", "CodecOptions", "Machine", "Result", "Sizes", "Watcher", "Way", "measure"]

Way = Literal["numpy", "compiled"]
"""How payloads are decoded: as machine code, where numba is there, or without."""

FIRST_ROUNDS = 3
MESSAGES = 48
"""Uplinks of a stretch that are laid out, at most, spread over its rounds and gateways."""
COORDINATES = 6_000_000
"""Fewer, where those together would have more coordinates than this."""
LARGE = 300_000
"""From this many parameters on half the rounds are trained."""
HEAD_AND_CHECKSUM = 3
TEST_LOADS = {"cwru": 2}
"""Motor load for testing only, where no other is named: the one of all other benches."""


@dataclass(frozen=True, kw_only=True)
class CodecOptions:
    """The command line; see `fedmq bench codec --help`."""

    data: tuple[str, ...] = ("sim",)
    sizes: tuple[int, ...] = (2_000, 17_000, 100_000, 1_000_000)
    densities: tuple[float, ...] = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
    rounds: int = 24
    seed: int = 0
    model: Layered = "mlp"
    test_load: int | None = None
    seconds: float = 0.5
    """Time that the clock gets for one case, about."""

    def __post_init__(self) -> None:
        if self.rounds < FIRST_ROUNDS:
            raise ValueError(f"--rounds {self.rounds}: expected {FIRST_ROUNDS} or more")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Mean bytes of the messages of one direction in one stretch of rounds, and what they are held against."""

    messages: int
    count: float
    """Coordinates sent."""
    history_bytes: float
    """The payload with the model's history as context, as on the wire."""
    plain_bytes: float
    """The payload without."""
    support_bits: float
    """log2 C(length, count)."""
    sign_bits: float
    """Empirical entropy of the signs."""
    rival_bytes: dict[str, float]

    @property
    def bound_bytes(self) -> float:
        return (self.support_bits + self.sign_bits) / 8


@dataclass(frozen=True, kw_only=True)
class Case:
    """One data set, size and density."""

    data: str
    model: str
    layers: tuple[int, ...]
    parameters: int
    density: float
    gateways: int
    rounds: int
    metric: float | None
    """Of the last round's model on the test set."""
    first_rounds: tuple[int, int]
    """First and last of the stretch, from 1."""
    middle_rounds: tuple[int, int]
    first_up: Sizes
    first_down: Sizes
    middle_up: Sizes
    middle_down: Sizes
    copy_seconds: float
    """A copy of the dense float32 vector."""
    copies: dict[Way, dict[str, float]]
    """Time of each step of the codec, in such copies."""
    vectors: dict[str, float]
    """Most memory that each step holds beyond what it is given, its result included, in dense float32 vectors."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    processor: str
    cores: int
    memory_bytes: int
    system: str


@dataclass(frozen=True, kw_only=True)
class Result:
    date: str
    machine: Machine
    versions: dict[str, str]
    seed: int
    compiled: bool
    """Whether machine code was in use, so that there are times of both ways."""
    seconds: float
    cases: list[Case]


class Watcher(Protocol):
    """Is told how far it is."""

    def plan(self, work: float) -> None:
        """All that there is to do, in arbitrary units."""

    def at(self, text: str) -> None:
        """What is being done now."""

    def done(self, work: float) -> None:
        """So much more is done."""


def measure(options: CodecOptions, watcher: Watcher) -> Result:
    """Everything; takes minutes with the default options."""
    began = time.monotonic()
    fast = compiled.active()
    rounds = {
        size: max(FIRST_ROUNDS, options.rounds // 2 if size >= LARGE else options.rounds) for size in options.sizes
    }
    each = {size: size * rounds[size] + 500_000.0 for size in options.sizes}
    watcher.plan(len(options.data) * len(options.densities) * sum(each.values()))
    cases = []
    for data in options.data:
        watcher.at(f"{_name(data)}: windows and features")
        plant = prepare(_demo_options(data, options))
        for size in options.sizes:
            hidden = hidden_for(plant.fleet, options.model, size)
            for density in options.densities:
                task = at_density(task_for(plant.fleet, options.model, hidden, options.seed), density, density)
                watcher.at(f"{_name(data)}: {task.model.parameters:,} parameters at {100 * density:g} %")
                cases.append(_case(_name(data), plant, task, rounds[size], options.seconds, watcher, each[size]))
    return Result(
        date=date.today().isoformat(),
        machine=_machine(),
        versions=_versions(),
        seed=options.seed,
        compiled=fast,
        seconds=round(time.monotonic() - began, 1),
        cases=cases,
    )


def _name(data: str) -> str:
    """Of the data set, without the folder that it lies in here."""
    return data.partition(":")[0].rstrip("/").rpartition("/")[2]


def _demo_options(data: str, options: CodecOptions) -> DemoOptions:
    kind, colon, _ = data.partition(":")
    load = TEST_LOADS.get(kind) if options.test_load is None else options.test_load
    return DemoOptions(data=data, seed=options.seed, model=options.model, test_load=load if colon else None)


# --- The codec, with and without history ------------------------------------------------------------------------------


def _encode(message: Coded, contexts: Contexts | None) -> pipeline.Encoded:
    return pipeline.encode(message.delta, message.spec, message.residual, contexts=contexts, gain=message.gain)


def _decode(payload: bytes, message: Coded, contexts: Contexts | None) -> Decoded:
    return pipeline.decode(payload, message.delta.size, message.spec, contexts=contexts)


@contextmanager
def _by(way: Way) -> Iterator[None]:
    before = compiled.enabled
    compiled.enabled = way == "compiled"
    try:
        yield
    finally:
        compiled.enabled = before


# --- One case --------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Stretch:
    """The rounds `start` to `stop`, and what their messages came to."""

    start: int
    stop: int
    up: list[Sizes]
    down: list[Sizes]

    def chosen(self, number: int, gateways: int, length: int) -> list[int]:
        """Gateways whose uplinks of this round are laid out, so that all take their turns."""
        if not self.start <= number < self.stop:
            return []
        rounds = self.stop - self.start
        wanted = min(MESSAGES, max(2 * rounds, COORDINATES // length))
        each = max(1, min(gateways, wanted // rounds))
        return sorted({((number - self.start) * each + place) % gateways for place in range(each)})


def _case(data: str, plant: Plant, task: Task, rounds: int, seconds: float, watcher: Watcher, work: float) -> Case:
    length = task.model.parameters
    first = _Stretch(start=0, stop=min(FIRST_ROUNDS, rounds), up=[], down=[])
    middle = _Stretch(start=rounds // 3, stop=max(rounds // 3 + 1, 2 * rounds // 3), up=[], down=[])
    timed: Played | None = None
    metric = None
    for played in play(task, plant.gateways, plant.test, rounds):
        metric = played.metric
        for stretch in (first, middle):
            if stretch.start <= played.number < stretch.stop:
                chosen = stretch.chosen(played.number, len(plant.gateways), length)
                stretch.up += [_sizes(played.up[place]) for place in chosen]
                stretch.down.append(_sizes(played.down))
        if played.number == middle.stop - 1:
            timed = played
        watcher.done(work / rounds)
    assert timed is not None, "the middle has at least one round"
    copy_seconds, copies = _time(timed.up[0], timed.displacement, task.model, seconds)
    return Case(
        data=data,
        model=task.model.kind,
        layers=task.model.sizes,
        parameters=length,
        density=task.up.density,
        gateways=len(plant.gateways),
        rounds=rounds,
        metric=metric,
        first_rounds=(first.start + 1, first.stop),
        middle_rounds=(middle.start + 1, middle.stop),
        first_up=_mean(first.up),
        first_down=_mean(first.down),
        middle_up=_mean(middle.up),
        middle_down=_mean(middle.down),
        copy_seconds=copy_seconds,
        copies=copies,
        vectors=_memory(timed.up[0], timed.displacement, task.model),
    )


def _sizes(message: Coded) -> Sizes:
    sent = message.encoded.sent
    indices = np.arange(sent.length) if sent.indices is None else sent.indices
    negative = sent.steps < 0
    scale = int(np.abs(sent.steps).max(initial=0))
    around = HEAD_AND_CHECKSUM + (1 if scale < 128 else 2)
    return Sizes(
        messages=1,
        count=indices.size,
        history_bytes=_counted(message, message.encoded.payload, message.contexts),
        plain_bytes=_counted(message, _encode(message, None).payload, None),
        support_bits=log2_choose(sent.length, indices.size),
        sign_bits=entropy_bits(negative),
        rival_bytes={rival.name: around + len(rival.encode(indices, negative, sent.length)) for rival in RIVALS},
    )


def _counted(message: Coded, payload: bytes, contexts: Contexts | None) -> int:
    """Bytes of a payload, decoded again."""
    got, sent = _decode(payload, message, contexts), message.encoded.sent
    if not np.array_equal(got.dense(), sent.dense()):
        raise ValueError(f"{got} was decoded where {sent} was sent: the codec is wrong")
    return len(payload)


def _mean(parts: Sequence[Sizes]) -> Sizes:
    def mean(of: Callable[[Sizes], float]) -> float:
        return sum(map(of, parts)) / len(parts)

    return Sizes(
        messages=len(parts),
        count=mean(lambda part: part.count),
        history_bytes=mean(lambda part: part.history_bytes),
        plain_bytes=mean(lambda part: part.plain_bytes),
        support_bits=mean(lambda part: part.support_bits),
        sign_bits=mean(lambda part: part.sign_bits),
        rival_bytes={r.name: sum(part.rival_bytes[r.name] for part in parts) / len(parts) for r in RIVALS},
    )


# --- Time and memory -------------------------------------------------------------------------------------------------

COPY = "copy"
BOTH = "contexts_and_encode"
"""Memory only: contexts are held while an update is coded, so that the two add up."""
LEAST_SECONDS = 2e-4
"""A call is repeated until it takes so long, so that the clock's own cost does not count."""
LEAST_REPEATS, MOST_REPEATS = 5, 200


def _steps(message: Coded, displacement: NDArray[np.int32], model: ModelSpec) -> dict[str, Callable[[], object]]:
    """The codec's steps, by their names in the result."""
    contexts = message.contexts
    total = np.zeros(message.delta.size, dtype=np.int64)
    payload, plain = message.encoded.payload, _encode(message, None).payload
    return {
        "encode": lambda: _encode(message, None),
        "decode": lambda: _decode(plain, message, None).add_to(total, 3),
        "contexts": lambda: Contexts.of(displacement, model.shapes),
        "encode_history": lambda: _encode(message, contexts),
        "decode_history": lambda: _decode(payload, message, contexts).add_to(total, 3),
    }


def _time(
    message: Coded, displacement: NDArray[np.int32], model: ModelSpec, seconds: float
) -> tuple[float, dict[Way, dict[str, float]]]:
    """Seconds of a copy of the dense vector, and how many such copies each step takes, each way there is."""
    target = np.empty_like(message.delta)
    calls: dict[tuple[Way, str], Callable[[], object]] = {("numpy", COPY): lambda: np.copyto(target, message.delta)}
    ways: tuple[Way, ...] = ("numpy", "compiled") if compiled.active() else ("numpy",)
    steps = _steps(message, displacement, model)
    calls |= {(way, name): call for name, call in steps.items() for way in ways}
    loops = {key: max(1, round(LEAST_SECONDS / max(_once(key[0], call, 1), 1e-9))) for key, call in calls.items()}
    best = dict.fromkeys(calls, float("inf"))
    collecting = gc.isenabled()
    gc.disable()
    try:
        until = time.perf_counter() + seconds
        for repeat in range(MOST_REPEATS):
            if repeat >= LEAST_REPEATS and time.perf_counter() > until:
                break
            for key, call in calls.items():
                best[key] = min(best[key], _once(key[0], call, loops[key]))
    finally:
        if collecting:
            gc.enable()
    copy = best["numpy", COPY]
    return copy, {way: {name: best[way, name] / copy for name in steps} for way in ways}


def _once(way: Way, call: Callable[[], object], loops: int) -> float:
    """Seconds of one call, the mean of `loops`."""
    with _by(way):
        began = time.perf_counter()
        for _ in range(loops):
            call()
        return (time.perf_counter() - began) / loops


def _memory(message: Coded, displacement: NDArray[np.int32], model: ModelSpec) -> dict[str, float]:
    peaks = {}
    steps = _steps(message, displacement, model)
    steps[BOTH] = lambda: _encode(message, Contexts.of(displacement, model.shapes))
    with _by("numpy"):
        for name, call in steps.items():
            tracemalloc.start()
            try:
                before, _ = tracemalloc.get_traced_memory()
                call()
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            peaks[name] = (peak - before) / message.delta.nbytes
    return peaks


def _machine() -> Machine:
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.machine()}",
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {"fedmq": __version__, "python": platform.python_version()}
    for package in ("numpy", "zstandard", "pyroaring", "numba"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
