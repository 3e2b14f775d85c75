"""`fedmq.run`: a whole federation in this process, to see whether a model learns federated before a broker is near.

    result = fedmq.run("mlp", {"pump-1": (x1, y1), "pump-2": (x2, y2)}, test=(x, y), rounds=20)

It is the real coordinator and real gateways on a broker in memory (`simulate`), over links on which nothing goes wrong,
in a time that stands still while a gateway trains, with numpy on one thread as a gateway has it. So the same task, data
and seed come to the same models as over a real broker, bit for bit. What a plant adds is left out: gates are open,
nobody is late or away. Owns how wishes become a run, and its result; `arrays` owns what data must be.
"""

from __future__ import annotations

import html
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from fedmq_coordinator import report as savings
from fedmq_coordinator.report import Report, RoundMetrics, metrics_by_round, size, to_csv
from fedmq_coordinator.service import Coordinator
from fedmq_coordinator.settings import RoundSettings, TaskSettings, WindowingSettings
from fedmq_edge_node.runtimes import Engine, make_engine, make_preparation
from fedmq_edge_node.samples import PREPARED, RAW, Preparation, Scaler, Targets, load_test
from fedmq_edge_node.service import Source
from fedmq_edge_node.work import read_scaler
from fedmq_models.bundle import Bundle, Manifest, from_bytes, to_bytes
from fedmq_protocol.task import Task
from fedmq_protocol.topics import check_name
from numpy.typing import ArrayLike, NDArray

from fedmq.arrays import ArrayError, ArraySource, Given, classes_in, features_of, life_in, shape_of, windows_of
from fedmq.data import TEST_FOLDER, Fleet, lay_out
from fedmq.defaults import HIDDEN, Kind, bundle_windowing, raw_windowing, round_settings, task_of, task_settings
from fedmq.programs import metric_name_of, read_bundle, scorer
from fedmq.simulate.faults import COORDINATOR
from fedmq.simulate.fleet import LoadedFolder, ledger_of, parameters_of
from fedmq.simulate.world import MOST_EVENTS, Scenario, Unit, World
from fedmq.threads import one_thread

__all__ = ["Result", "RunError", "run"]

Floats = NDArray[np.float32]

KINDS = tuple(kind for kind in HIDDEN if kind != "graph")
MOST_SECONDS = 10 * 365 * 86_400.0
"""Of virtual time: enough for rounds that go on by night only."""
EVENTS_OF_A_GATEWAY = 100_000
"""In ten minutes of virtual time, in which thousands of rounds find room where training takes none of it."""
ROWS_SHOWN = 24
"""Of a table that shows itself; `table()` has all."""


class RunError(ValueError):
    """A run that did not come to its end: what ended, and why."""


class _Taking(NamedTuple):
    """What a bundle says of windows; nothing of a built-in model."""

    inputs: tuple[int, ...] | None = None
    """The shape in which the model takes them."""
    preparation: Preparation | None = None
    """What makes its inputs of raw windows."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Result:
    """What a run came to. In a notebook it shows itself as a table."""

    task: Task
    """As it would travel to gateways."""
    metrics: tuple[RoundMetrics, ...]
    """One for each round, in order; `pandas.DataFrame(result.metrics)` takes them as they are. Times are virtual."""
    parameters: Floats
    """Of the last model version, `(P,)` float32."""
    report: Report
    """What `fedmq report` shows: bytes by gateway, and against dense float32."""
    _scaler: Scaler
    _engine: Engine
    _taking: _Taking

    @property
    def metric(self) -> float | None:
        """The last one that was measured. Without a test set it is that of the version before the last: gateways score
        what they are about to train on."""
        return next((row.metric for row in reversed(self.metrics) if row.metric is not None), None)

    def predict(self, x: ArrayLike) -> Floats:
        """What the last version gives for windows `(n, …)`: probabilities `(n, classes)`, the reconstruction
        `(n, inputs)` of scaled features, or the life left `(n, 1)` in samples. Raises ArrayError."""
        features = features_of(windows_of("predict", x), self.task.windowing, *self._taking)
        out = self._engine.infer(self.parameters, self._scaler.apply(features))
        return out * np.float32(self.task.windowing.remaining_most) if self.task.objective == "regress" else out

    def to_csv(self, path: str | Path) -> None:
        """One line a round, `metrics` in columns; `fedmq report --csv` and `fedmq demo --csv` write the same."""
        Path(path).write_text(to_csv(self.report), encoding="utf-8", newline="")

    def table(self) -> str:
        """All rounds, as text."""
        return self._text(len(self.metrics))

    def __repr__(self) -> str:
        return self._text(ROWS_SHOWN)

    def _text(self, most: int) -> str:
        rows = [self._columns(), *self._rows(most)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([self._heading(), *lines])

    def _repr_html_(self) -> str:
        def row(cells: Iterable[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(row(cells, "td") for cells in self._rows(ROWS_SHOWN))
        return (
            f"<p>{html.escape(self._heading())}</p>"
            f"<table><thead>{row(self._columns(), 'th')}</thead><tbody>{body}</tbody></table>"
        )

    def _heading(self) -> str:
        measured = [row for row in self.metrics if row.metric is not None]
        told = "nothing measured"
        if measured:
            first, last = measured[0].metric, measured[-1].metric
            told = f"{self.report.metric_name} {first:.3f} -> {last:.3f} on the {measured[-1].metric_source}"
        trained = sum(row.kind == "training" for row in self.metrics)
        return (
            f"{self.task.name}: {told}; {savings.many(len(self.report.gateways), 'gateway')},"
            f" {savings.many(trained, 'training round')}, {savings.many(len(self.parameters), 'parameter')},"
            f" {size(self.report.wire.up)} up, {size(self.report.wire.down)} down"
        )

    def _columns(self) -> list[str]:
        return ["round", self.report.metric_name, "training loss", "answered", "declined", "up", "down"]

    def _rows(self, most: int) -> list[list[str]]:
        """A row for each of the rounds, or for the first and last of them."""
        rows = [
            [
                str(row.round) if row.kind == "training" else f"{row.round} ({row.kind})",
                "" if row.metric is None else f"{row.metric:.3f}",
                "" if row.training_loss is None else f"{row.training_loss:.4f}",
                f"{row.answered - row.declined} of {row.drawn}",
                str(row.declined),
                size(row.wire_up_bytes),
                size(row.wire_down_bytes),
            ]
            for row in self.metrics
        ]
        if len(rows) <= most:
            return rows
        return [*rows[: most // 2], ["…"] * len(self._columns()), *rows[-(most // 2) :]]


def run(
    task: str | Path | Bundle | TaskSettings,
    datasets: Mapping[str, Given] | Fleet,
    *,
    test: Given | None = None,
    rounds: int | RoundSettings = 20,
    seed: int | None = None,
    classes: Sequence[str] | None = None,
    engine: str = "auto",
    progress: bool = False,
    **wishes: Any,
) -> Result:
    """The whole federation in this process; the metrics by round, and the model.

    task: a built-in kind such as "mlp", a bundle or its file, or settings as in `coordinator.toml`.
    datasets: by gateway `(x, y)`, see `fedmq.arrays`; or recordings, a `fedmq.data.Fleet`, which brings its test set.
    test: `(x, y)` that no gateway has. Without it gateways score on what they hold out.
    rounds: how many train, or settings for all that has to do with rounds. One that learns scaling may come before.
    seed: of the initial parameters and all that follows; by default 0, or that of the settings.
    classes: names of labels, in the order of the model's outputs; by default those that stand in y.
    engine: what computes the model, as in a gateway's settings.
    progress: print a line a round as it closes.
    wishes: hidden, codec, dial, local_epochs, learning_rate, momentum, batch_size, as `task_settings` takes them.

    A gateway with fewer training windows than the task's `min_windows` declines, as it would anywhere. Raises
    ValueError for what cannot be run, RunError where a run does not come to its end.
    """
    with tempfile.TemporaryDirectory(prefix="fedmq-run-") as folder, one_thread():
        data: _Data
        if isinstance(datasets, Fleet):
            if test is not None:
                raise ValueError("test: expected none beside a Fleet, which brings its own")
            data = _Recordings(datasets, Path(folder))
        else:
            data = _Windows(datasets, test)
        settings, bundle = _settings(task, data, classes, wishes)
        if seed is not None:
            settings = replace(settings, seed=seed)
        if isinstance(rounds, int):
            rounds = round_settings(settings.kind, gateways=len(data.names), rounds=rounds)
        return _play(settings, bundle, data, rounds, engine, progress)


def _settings(
    task: str | Path | Bundle | TaskSettings, data: _Data, classes: Sequence[str] | None, wishes: dict[str, Any]
) -> tuple[TaskSettings, bytes]:
    """The task's settings, and the bundle where it has one."""
    if isinstance(task, TaskSettings):
        if wishes or classes is not None:
            named = ", ".join([*wishes, *([] if classes is None else ["classes"])])
            raise ValueError(f"{named}: expected in TaskSettings, where these are given: dataclasses.replace(…)")
        return task, b"" if task.bundle is None else read_bundle(task.bundle)
    known = f"one of {', '.join(KINDS)}, a bundle, its file or TaskSettings"
    if isinstance(task, str) and task in KINDS:
        kind = cast(Kind, task)
        return data.settings(kind, None, classes, {"name": kind} | wishes), b""
    if isinstance(task, str | Path):
        if not Path(task).is_file():
            raise ValueError(f"task: expected {known}, got {str(task)!r}, which is no kind and no file")
        bundle = read_bundle(Path(task))
    elif isinstance(task, Bundle):
        bundle = to_bytes(task)
    else:
        raise ValueError(f"task: expected {known}, got {type(task).__name__}; fedmq.build makes a bundle of a module")
    manifest = from_bytes(bundle).manifest
    # The file is not read again: settings only say that there is one.
    own = {"name": manifest.name, "bundle": Path(f"{manifest.name}.fedmq"), "manifest": manifest}
    return data.settings("graph", manifest, classes, own | wishes), bundle


def _play(
    settings: TaskSettings, bundle: bytes, data: _Data, rounds: RoundSettings, engine: str, progress: bool
) -> Result:
    _check(settings, rounds, len(data.names))
    task = task_of(settings, rounds, held_out_reports=not data.has_test, bundle=bundle)
    brought = from_bytes(bundle) if bundle else None
    taking = _Taking()
    if brought is not None:
        preparation = make_preparation(brought, engine)
        taking = _Taking(brought.manifest.inputs if preparation is None else None, preparation)
    sources = data.sources(task, taking)
    _check_windows(task, rounds, sources, taking)
    # One for all: an engine remembers nothing from one call to the next.
    runs = make_engine(task.model, engine, brought)
    evaluate, metric_name = None, metric_name_of(task)
    test = data.test(task, taking)
    if test is not None:
        evaluate, metric_name = scorer(task, runs, *test)
    scenario = Scenario(
        seed=str(settings.seed),
        units=tuple(Unit(name=name, seconds_per_window=0.0, commit_seconds=0.0) for name in sources),
        task=task,
        rounds=rounds,
        coordinator_commit_seconds=0.0,
        sources=lambda unit, task: sources[unit.name],
        engines=lambda unit, task, bundle: runs,
        bundle=bundle,
        evaluate=evaluate,
        metric_name=metric_name,
        watch=_shown(rounds, metric_name, at_once=data.has_test) if progress else None,
        most_seconds=MOST_SECONDS,
        most_events=MOST_EVENTS + EVENTS_OF_A_GATEWAY * len(sources),
        checked=False,
        # It would patch our modules for a while, in a process that is not ours.
        shares=False,
    )
    world = World(scenario)
    try:
        outcome = world.run()
        if outcome.violation is not None:
            raise RunError(f"the run did not come to its end: {outcome.violation.text}") from outcome.violation
        coordinator = world.coordinator.service
        assert coordinator is not None  # it has come to rest
        report = savings.build(ledger_of(coordinator))
        parameters, scaler = parameters_of(coordinator)
    finally:
        world.close()
    return Result(
        task=task,
        metrics=metrics_by_round(report),
        parameters=parameters,
        report=report,
        _scaler=read_scaler(scaler, task),
        _engine=runs,
        _taking=taking,
    )


def _check(settings: TaskSettings, rounds: RoundSettings, gateways: int) -> None:
    """Raises ValueError for rounds that would never open, or never end."""
    if rounds.max_rounds is None:
        raise ValueError("rounds.max_rounds: expected a number, got none: a run must come to its end")
    most = max(rounds.min_gateways, rounds.first_gateways)
    if most > gateways:
        raise ValueError(
            f"rounds.min_gateways, rounds.first_gateways: expected at most {gateways}, as many as there are, got {most}"
        )
    if rounds.tags:
        raise ValueError(
            f"rounds.tags: expected none, for the gateways here have no tags, got {', '.join(rounds.tags)}"
        )
    for key, text in settings.check_target(rounds):
        raise ValueError(f"{key}: {text}")


def _check_windows(task: Task, rounds: RoundSettings, sources: Mapping[str, Source], taking: _Taking) -> None:
    """Raises ValueError where so many gateways would decline that no round could have its quorum."""
    counts = {
        name: source.load(task.windowing, task.classes, task.anomaly_label, taking.preparation).train_windows
        for name, source in sources.items()
    }
    few = [name for name, count in counts.items() if count < task.min_windows]
    able = len(counts) - len(few)
    needed = max(rounds.quorum_gateways, math.ceil(rounds.quorum_share * rounds.fraction * len(counts)))
    if able < needed:
        told = ", ".join(f"{name} has {counts[name]:,}" for name in few[:8]) + (", …" if len(few) > 8 else "")
        raise ValueError(
            f"datasets: expected at least {task.min_windows} training windows (task.min_windows) at"
            f" {savings.many(needed, 'gateway')}, of which a round makes a version, got them at {able} ({told}): give"
            " them more, or lower min_windows"
        )


def _shown(rounds: RoundSettings, metric_name: str, *, at_once: bool) -> Callable[[Coordinator], None]:
    """Prints each round as the demo does: once it has closed, or else once the next one has brought its metric."""
    from fedmq.showing import Screen

    progress = Screen(progress=True).rounds(rounds.max_rounds or 0, metric_name)
    shown = 0

    def watch(coordinator: Coordinator) -> None:
        nonlocal shown
        going_on = coordinator.only.run
        closed = going_on.newest_round() - (going_on.round is not None)
        while shown < (closed if at_once or going_on.resting is not None else closed - 1):
            shown += 1
            row = coordinator.only.book.round(shown)
            assert row is not None  # it has closed
            progress.show(row, coordinator.only.book.answers(shown))

    return watch


# -- data ---------------------------------------------------------------------------------------------------------


class _Data(Protocol):
    """What the gateways have, and what the model is tested with."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def has_test(self) -> bool: ...

    def settings(
        self, kind: Kind, manifest: Manifest | None, classes: Sequence[str] | None, wishes: dict[str, Any]
    ) -> TaskSettings:
        """Of a task that suits these data."""

    def sources(self, task: Task, taking: _Taking) -> Mapping[str, Source]:
        """By gateway."""

    def test(self, task: Task, taking: _Taking) -> tuple[Floats, Targets] | None: ...


class _Windows:
    """Arrays, by gateway. Raises ArrayError."""

    def __init__(self, datasets: Mapping[str, Given], test: Given | None) -> None:
        if not isinstance(datasets, Mapping) or not datasets:
            raise ArrayError(
                "datasets: expected a mapping from each gateway's name to its (windows, labels), or a Fleet, got"
                f" {'an empty one' if isinstance(datasets, Mapping) else type(datasets).__name__}"
            )
        for name in datasets:
            check_name(name, "gateway")
            if name == COORDINATOR:
                raise ArrayError(f"gateway {name!r}: expected another name, for that is the coordinator's")
        self.names = tuple(datasets)
        self.has_test = test is not None
        self._gateways = {name: windows_of(f"gateway {name!r}", given) for name, given in datasets.items()}
        self._test = None if test is None else windows_of("test", test)
        self._every = [*self._gateways.values(), *([] if self._test is None else [self._test])]
        self._shape = shape_of(self._every)

    def settings(
        self, kind: Kind, manifest: Manifest | None, classes: Sequence[str] | None, wishes: dict[str, Any]
    ) -> TaskSettings:
        """Windows follow each other without overlap, as far as anybody knows."""
        objective = _OBJECTIVES[kind if manifest is None else manifest.loss]
        shape = self._shape if manifest is None else (math.prod(manifest.inputs),)
        samples, channels = shape if len(shape) == 2 else (math.prod(shape), 1)
        outputs = None if manifest is None else manifest.outputs
        if objective != "classify" and classes is not None:
            raise ArrayError(f"classes: expected none for a model that tells no classes, got {len(classes)}")
        windowing = WindowingSettings(
            features=RAW,
            samples=samples,
            hop=samples,
            channels=channels,
            sampling_rate_hz=1.0,
            scaling="none" if kind in ("cnn1d", "graph") else "learnt",
            held_out=0.0 if self.has_test else WindowingSettings().held_out,
            remaining_most=life_in(self._gateways.values()) if objective == "regress" else 0.0,
        )
        if manifest is not None and manifest.windowing is not None and manifest.windowing.features == PREPARED:
            windowing = replace(bundle_windowing(manifest, windowing), hop=manifest.windowing.samples)
        return task_settings(
            **{
                "kind": kind,
                "classes": self._classes(classes, outputs) if objective == "classify" else (),
                "windowing": windowing,
            }
            | wishes
        )

    def _classes(self, named: Sequence[str] | None, outputs: int | None) -> tuple[str, ...]:
        found = classes_in(self._every) if named is None else tuple(named)
        if outputs is None or len(found) == outputs:
            return found
        if named is None and len(found) < outputs and found == tuple(map(str, range(len(found)))):
            return tuple(map(str, range(outputs)))  # numbers, of which the last ones do not occur
        raise ArrayError(
            f"classes: expected {outputs}, one for each output of the bundle's model, got {len(found)}"
            f" ({', '.join(found[:20])}): name all in their order with classes="
        )

    def sources(self, task: Task, taking: _Taking) -> Mapping[str, Source]:
        return {name: ArraySource(arrays, task, *taking) for name, arrays in self._gateways.items()}

    def test(self, task: Task, taking: _Taking) -> tuple[Floats, Targets] | None:
        if self._test is None:
            return None
        source = ArraySource(self._test, task, *taking)
        return source.x, source.y


_OBJECTIVES = {
    **dict.fromkeys(("softmax", "mlp", "cnn1d", "cross_entropy"), "classify"),
    **dict.fromkeys(("autoencoder", "reconstruction"), "reconstruct"),
    **dict.fromkeys(("regressor", "squared_error"), "regress"),
}
"""Of built-in kinds, and of bundles by their loss."""


class _Recordings:
    """A fleet's recordings, laid out in a folder as gateways have them. Raises DataError, SampleError."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.names = tuple(gateway.name for gateway in fleet.gateways)
        self.has_test = fleet.test is not None
        self._fleet = fleet
        self._folders = lay_out(fleet, folder / "plant")

    def settings(
        self, kind: Kind, manifest: Manifest | None, classes: Sequence[str] | None, wishes: dict[str, Any]
    ) -> TaskSettings:
        """As the demo has them."""
        if classes is not None:
            raise ValueError("classes: expected none beside a Fleet, which brings its own")
        windowing = self._fleet.windowing
        if manifest is not None:
            windowing = bundle_windowing(manifest, windowing)
        elif kind == "cnn1d":
            windowing = raw_windowing(windowing)
        own = {"kind": kind, "name": self._fleet.name, "classes": self._fleet.classes, "windowing": windowing}
        return task_settings(**(wishes | own))

    def sources(self, task: Task, taking: _Taking) -> Mapping[str, Source]:
        return {name: LoadedFolder(self._folders[name]) for name in self.names}

    def test(self, task: Task, taking: _Taking) -> tuple[Floats, Targets] | None:
        if not self.has_test:
            return None
        return load_test(
            self._folders[TEST_FOLDER], task.windowing, task.classes, task.anomaly_label, taking.preparation
        )
