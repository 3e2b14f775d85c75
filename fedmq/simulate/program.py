"""`fedmq simulate`: schedules with faults, and how a fleet would do without."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
from fedmq_coordinator.settings import CoordinatorSettings, RoundSettings
from fedmq_edge_node.runtimes import Engine, make_engine
from fedmq_edge_node.service import Source
from fedmq_models.bundle import Bundle
from fedmq_protocol.settings import load
from fedmq_protocol.task import Task

from fedmq.simulate import sizing
from fedmq.simulate.fleet import LoadedFolder
from fedmq.simulate.network import Shape
from fedmq.simulate.schedules import scenario_of
from fedmq.simulate.shrink import Story, read, shortest
from fedmq.simulate.world import Scenario, Unit, World

__all__ = ["fleet_scenario", "run"]

FAULTY_GATEWAYS, FAULTY_ROUNDS = 24, 12
"""Of a schedule with faults, where nothing else is said: ten thousand of them take about as long as a lunch break."""

PROGRESS_SECONDS = 1.0
LAST_LINES = 80


def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit status: 1 where a promise was broken."""
    _get_ready(arguments.log_level)
    if arguments.target is not None and arguments.data is None:
        raise ValueError("--target: drawn training learns nothing, and has no metric; add --data, and no --faults")
    if arguments.faults == "none" and arguments.schedules == 1:
        return _size(arguments)
    return _schedules(arguments)


# -- schedules ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Order:
    """One schedule to play, as another process is told of it."""

    seed: int
    gateways: int
    rounds: int
    profile: str
    keep_trace: bool

    @property
    def scenario(self) -> Scenario:
        return scenario_of(self.seed, gateways=self.gateways, rounds=self.rounds, profile=self.profile)


@dataclass(frozen=True, kw_only=True)
class _Played:
    order: _Order
    events: int
    acknowledgements: int
    digest: str
    invariant: str | None
    """Of the promise that was broken."""
    violation: str
    trace: str
    """Its lines, where they are kept."""
    seconds: float
    """Of one core."""


def _play(order: _Order) -> _Played:
    began = time.process_time()
    world = World(order.scenario, keep_trace=order.keep_trace)
    outcome = world.run()
    world.close()
    return _Played(
        order=order,
        events=outcome.events,
        acknowledgements=outcome.acknowledgements,
        digest=outcome.digest,
        invariant=None if outcome.violation is None else outcome.violation.invariant,
        violation=str(outcome.violation or ""),
        trace=_trace_text(world, order.seed) if order.keep_trace else "",
        seconds=time.process_time() - began,
    )


def _get_ready(log_level: str) -> None:
    """What holds for a whole process."""
    # A fault is an everyday thing here, and each is logged: formatting them would take most of the time.
    logging.getLogger("fedmq").setLevel(log_level.upper())
    np.seterr(all="raise", under="ignore")


def _settle_down(log_level: str) -> None:
    """For schedule after schedule: what is loaded by now stays, and the collector need not look at it each time."""
    _get_ready(log_level)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


@contextmanager
def _players(arguments: argparse.Namespace, orders: Iterable[_Order]) -> Iterator[Iterator[_Played]]:
    """What came of the orders, in their order, played by `--jobs` processes."""
    if arguments.jobs == 1:
        _settle_down(arguments.log_level)
        yield map(_play, orders)
        return
    # Not forked: a child must not inherit what this process has open, or its threads.
    context = multiprocessing.get_context("spawn")
    with context.Pool(arguments.jobs, initializer=_settle_down, initargs=(arguments.log_level,)) as pool:
        yield pool.imap(_play, orders)


def _schedules(arguments: argparse.Namespace) -> int:
    began = shown = time.monotonic()
    events, acknowledgements, seconds, broken = 0, 0, 0.0, 0
    orders = (
        _Order(
            seed=arguments.seed + number,
            gateways=arguments.gateways or FAULTY_GATEWAYS,
            rounds=arguments.rounds or FAULTY_ROUNDS,
            profile=arguments.faults,
            keep_trace=arguments.trace is not None,
        )
        for number in range(arguments.schedules)
    )
    with _players(arguments, orders) as played:
        for number, one in enumerate(played):
            seed = one.order.seed
            events += one.events
            acknowledgements += one.acknowledgements
            seconds += one.seconds
            if arguments.trace is not None:
                _append(arguments.trace, one.trace)
            if arguments.digests:
                print(f"seed {seed}: {one.events} events, trace {one.digest}")
            if one.invariant is not None:
                broken += 1
                _clear(arguments)
                print(f"seed {seed} breaks a promise: {one.violation}", flush=True)
                print(f"  again: {_again(arguments, seed)}", flush=True)
                if broken <= arguments.stories:
                    _tell(shortest(one.order.scenario, one.invariant, most_runs=arguments.shrink_runs))
            now = time.monotonic()
            if arguments.progress and now - shown >= PROGRESS_SECONDS:
                shown = now
                print(
                    f"\r{number + 1:,} of {arguments.schedules:,} schedules, {events:,} events, "
                    f"{events / max(1e-9, seconds):,.0f} a second, {broken:,} violations ",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
    _clear(arguments)
    cores = "" if arguments.jobs == 1 else f" by {arguments.jobs} processes in {time.monotonic() - began:.0f} s"
    print(
        f"{arguments.schedules:,} schedules, faults {arguments.faults}: {events:,} events "
        f"({acknowledgements:,} acknowledgements among them) in {seconds:.1f} s of one core{cores}, "
        f"{events / max(1e-9, seconds):,.0f} events a second and core; {broken:,} violations"
    )
    if arguments.json is not None:
        figures = {
            "seed": arguments.seed,
            "schedules": arguments.schedules,
            "faults": arguments.faults,
            "events": events,
            "acknowledgements": acknowledgements,
            "seconds": round(seconds, 3),
            "jobs": arguments.jobs,
            "elapsed": round(time.monotonic() - began, 3),
            "events_per_second": round(events / max(1e-9, seconds)),
            "violations": broken,
        }
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if broken else 0


def _clear(arguments: argparse.Namespace) -> None:
    if arguments.progress:
        print("\r" + " " * 100 + "\r", end="", file=sys.stderr, flush=True)


def _again(arguments: argparse.Namespace, seed: int) -> str:
    words = f"fedmq simulate --seed {seed} --faults {arguments.faults} --schedules 1"
    for name in ("gateways", "rounds"):
        value = getattr(arguments, name)
        words += f" --{name} {value}" if value is not None else ""
    return words


def _tell(story: Story) -> None:
    scenario = story.scenario
    faults = len(scenario.faults) + len(scenario.mishaps or ())
    print(
        f"  the shortest story, after {story.runs} runs: {len(scenario.units)} gateways, "
        f"{scenario.rounds.max_rounds} rounds, {faults} faults"
    )
    lines = [line for line in story.lines if line.what != "timer"]
    if len(lines) > LAST_LINES:
        print(f"  … {len(lines) - LAST_LINES} lines before")
    for line in lines[-LAST_LINES:]:
        print(f"  {read(line)}")
    print(f"  {story.outcome.violation}", flush=True)


def _trace_text(world: World, seed: int) -> str:
    return "".join([f"# seed {seed}, trace {world.trace.digest}\n", *(f"{read(line)}\n" for line in world.trace.lines)])


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


# -- sizing -------------------------------------------------------------------------------------------------------


def _size(arguments: argparse.Namespace) -> int:
    with fleet_scenario(arguments) as scenario:
        began = time.process_time()
        world = World(scenario, keep_trace=arguments.trace is not None)
        outcome = world.run()
        seconds = time.process_time() - began
        if arguments.trace is not None:
            _append(arguments.trace, _trace_text(world, arguments.seed))
        found = sizing.measure(world, outcome.events, outcome.digest, target=arguments.target)
        world.close()
    print(sizing.to_text(found), end="")
    print(
        f"simulated in {seconds:.1f} s of one core: {outcome.events:,} events, "
        f"{outcome.events / max(1e-9, seconds):,.0f} a second; trace {outcome.digest[:16]}"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(sizing.as_json(found), indent=2) + "\n", encoding="utf-8")
    if arguments.plot is not None:
        from fedmq.simulate.showing import save_plot

        save_plot(found, arguments.plot)
    if outcome.violation is not None:
        print(f"a promise was broken: {outcome.violation}")
        return 1
    return 0


@dataclass(frozen=True, kw_only=True)
class _Recordings:
    """What `--data` comes to: by gateway its windows, and the test set's scores."""

    task: Task
    sources: dict[str, Source]
    evaluate: Any
    metric_name: str


@contextmanager
def fleet_scenario(arguments: argparse.Namespace) -> Iterator[Scenario]:
    """The scenario that the command line describes."""
    if arguments.data is None:
        yield _scenario(arguments, None)
        return
    with tempfile.TemporaryDirectory(prefix="fedmq-simulate-") as folder:
        yield _scenario(arguments, _open_data(arguments, Path(folder)))


def _settings(arguments: argparse.Namespace, gateways: int) -> CoordinatorSettings:
    overrides = ["state_dir=.", *(["task.name=simulated"] if arguments.config is None else [])]
    if arguments.config is None:
        overrides += ["task.classes=a,b,c,d", f"rounds.min_gateways={max(1, gateways // 2)}"]
        overrides += [f"rounds.first_gateways={gateways}", "rounds.resume_on_new_data=false"]
    for key in ("fraction", "closing_seconds"):
        value = getattr(arguments, key)
        if value is not None:
            overrides.append(f"rounds.{key}={value}")
    if arguments.rounds is not None or arguments.config is None:
        overrides.append(f"rounds.max_rounds={arguments.rounds or 40}")
    return load(CoordinatorSettings, arguments.config, [*overrides, *arguments.overrides])


def _open_data(arguments: argparse.Namespace, folder: Path) -> _Recordings:
    from fedmq.data import TEST_FOLDER, lay_out
    from fedmq.defaults import Kind, task_of, task_settings
    from fedmq.demo import DemoOptions, open_fleet
    from fedmq.programs import evaluator, metric_name_of

    options = DemoOptions(
        data=arguments.data,
        split=arguments.split,
        test_load=arguments.test_load,
        gateways=arguments.gateways,
        seed=arguments.seed,
        model="regressor" if arguments.data.startswith("cmapss:") else "mlp",
    )
    found = open_fleet(options)
    rounds = _settings(arguments, len(found.gateways)).rounds
    made = task_settings(
        name=found.name,
        kind=cast(Kind, options.model),
        classes=found.classes,
        windowing=found.windowing,
        hidden=arguments.hidden,
        codec=arguments.codec,
        seed=arguments.seed,
    )
    task = task_of(made, rounds, held_out_reports=found.test is None)
    folders = lay_out(found, folder / "plant")
    evaluate, metric_name = None, metric_name_of(task)
    if found.test is not None:
        evaluate, metric_name = evaluator(task, folders[TEST_FOLDER])
    sources: dict[str, Source] = {gateway.name: LoadedFolder(folders[gateway.name]) for gateway in found.gateways}
    return _Recordings(task=task, sources=sources, evaluate=evaluate, metric_name=metric_name)


def _scenario(arguments: argparse.Namespace, data: _Recordings | None) -> Scenario:
    names = [f"g{i}" for i in range(arguments.gateways or 10)] if data is None else list(data.sources)
    settings = _settings(arguments, len(names))
    rounds = settings.rounds
    task = data.task if data is not None else _drawn_task(settings, arguments.parameters, rounds)
    shut = sizing.battery_pattern(arguments.battery, arguments.seed)
    shape = sizing.link_shape(arguments.link) if arguments.link else Shape()
    rng = Random(f"{arguments.seed}/fleet")
    slowest, fastest = sizing.speeds(arguments.speeds)
    stragglers = set(rng.sample(names, round(arguments.stragglers * len(names))))
    units = []
    for name in names:
        windows = arguments.windows
        if data is not None:
            loaded = data.sources[name].load(task.windowing, task.classes, task.anomaly_label)
            windows = len(loaded.train_x)
        factor = slowest * math.exp(rng.uniform(0.0, math.log(fastest / slowest)))
        seconds = arguments.window_seconds / factor
        passes = windows * task.recipe.local_epochs
        if name in stragglers:
            seconds = max(seconds, 2.0 * rounds.closing_seconds / max(1, passes))
        batches = task.recipe.local_epochs * math.ceil(windows / task.recipe.batch_size)
        units.append(
            Unit(
                name=name,
                windows=windows,
                seconds_per_window=seconds,
                link=shape,
                clock_offset=rng.uniform(0, 1e6),
                starts_at=rng.uniform(0, min(30.0, len(names) / 20)),
                leaves=1.0 - (1.0 - arguments.leavers) ** (1.0 / max(1, batches)) if arguments.leavers else 0.0,
                away_seconds=rounds.closing_seconds,
                battery_low=None if shut is None else _at(shut, name),
            )
        )

    def engine(unit: Unit, task: Task, bundle: Bundle | None) -> Engine:
        return make_engine(task.model)

    return Scenario(
        seed=str(arguments.seed),
        units=tuple(units),
        task=task,
        rounds=rounds,
        limits=settings.limits,
        sources=None if data is None else lambda unit, task: data.sources[unit.name],
        engines=None if data is None else engine,
        evaluate=None if data is None else data.evaluate,
        metric_name="metric" if data is None else data.metric_name,
        most_seconds=10 * 365 * 86_400.0,
        checked=arguments.check,
    )


def _at(shut: Any, name: str) -> Any:
    return lambda at: shut(name, at)


def _drawn_task(settings: CoordinatorSettings, parameters: int, rounds: RoundSettings) -> Task:
    """A task of about so many parameters, coded as the settings say."""
    from fedmq.defaults import task_of

    # Of 22 features and 4 classes, as the built-in features and the demo's labels have it.
    hidden = max(1, round((parameters - 4) / 27))
    wanted = replace(settings.task, kind="mlp", hidden=(hidden,)) if parameters >= 100 else settings.task
    if parameters < 100:
        wanted = replace(settings.task, kind="softmax", hidden=())
    return task_of(wanted, rounds, max_norm=settings.limits.max_norm, held_out_reports=False)
