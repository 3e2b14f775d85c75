"""`fedmq.run`: what comes back, what it is made of, and what is said of data that cannot be used."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fedmq_coordinator.report import build
from fedmq_coordinator.settings import RecipeSettings, RoundSettings, TaskSettings, WindowingSettings
from fedmq_edge_node.runtimes import make_engine
from fedmq_edge_node.samples import load
from fedmq_edge_node.trainer import macro_f1
from fedmq_models.bundle import from_bytes, to_bytes
from numpy.typing import NDArray

import fedmq
from fedmq.arrays import ArraySource, windows_of
from fedmq.data import lay_out
from fedmq.defaults import round_settings, task_of
from fedmq.notebook import Result, RunError
from fedmq.simulate.fleet import ledger_of
from fedmq.simulate.network import Shape
from fedmq.simulate.world import Scenario, Unit, World
from fedmq.simulator import simulate_fleet

BUNDLES = Path(__file__).parents[1] / "vectors" / "bundles"
FEATURES = 6
RULE = np.random.default_rng(7).normal(size=(FEATURES, 3))

Given = tuple[NDArray[Any], NDArray[Any]]


def windows(number: int, seed: int) -> Given:
    """Rows of a table whose label is a linear rule of them."""
    x = np.random.default_rng(seed).normal(size=(number, FEATURES)).astype(np.float32)
    return x, (x @ RULE).argmax(axis=1)


def fleet_of(gateways: int = 3, number: int = 60) -> dict[str, Given]:
    return {f"g{seed}": windows(number, seed) for seed in range(gateways)}


def digests(result: Result) -> list[str | None]:
    return [row.digest for row in result.metrics]


# -- what comes back ------------------------------------------------------------------------------------------------


def test_a_model_is_learnt_by_all_that_nobody_could_learn_alone() -> None:
    """Each gateway has seen one class; the metric is over all three."""
    x, y = windows(600, 0)
    datasets = {f"only-{label}": (x[y == label], y[y == label]) for label in range(3)}
    result = fedmq.run("mlp", datasets, test=windows(300, 1), rounds=40, classes=("low", "middle", "high"))
    first, last = result.metrics[0], result.metrics[-1]
    assert (first.kind, last.kind, last.version, last.metric_source) == ("statistics", "training", 40, "test set")
    assert first.metric is not None
    assert result.metric == last.metric
    assert last.metric is not None
    assert last.metric > 0.75 > first.metric
    assert [row.accepted for row in result.metrics[1:]] == [3] * 40
    assert result.parameters.shape == (result.task.model.parameters,)
    assert result.parameters.dtype == np.float32
    assert result.task.classes == ("low", "middle", "high")


def test_what_the_model_gives_for_windows_is_what_its_metric_was_measured_on() -> None:
    test = windows(200, 9)
    result = fedmq.run("softmax", fleet_of(), test=test, rounds=5)
    given = result.predict(test[0])
    assert given.shape == (200, 3)
    assert macro_f1(test[1], given.argmax(axis=1).astype(np.int64)) == result.metric


def test_without_a_test_set_gateways_score_what_they_hold_out() -> None:
    result = fedmq.run("mlp", fleet_of(), rounds=4)
    measured = [row for row in result.metrics if row.metric is not None]
    assert {row.metric_source for row in measured} == {"held-out windows"}
    assert [row.round for row in measured] == [2, 3, 4]
    assert result.metrics[-1].metric is None
    assert result.metric == measured[-1].metric


def test_the_same_seed_makes_the_same_run_and_another_seed_another() -> None:
    first, again, other = (fedmq.run("mlp", fleet_of(), rounds=3, seed=seed) for seed in (1, 1, 2))
    assert first.metrics == again.metrics
    assert np.array_equal(first.parameters, again.parameters)
    assert not set(digests(first)[1:]) & set(digests(other)[1:])


def test_the_order_in_which_answers_come_changes_neither_model_nor_metric() -> None:
    """To the last bit: sums are exact, also those of what gateways tell of their own windows."""
    windowing = WindowingSettings(samples=FEATURES, hop=FEATURES, features="raw", sampling_rate_hz=1.0)
    settings = TaskSettings(name="t", classes=("a", "b", "c"), windowing=windowing)
    rounds = round_settings("mlp", gateways=7, rounds=4)
    task = task_of(settings, rounds)
    sources = {f"g{i}": ArraySource(windows_of(f"g{i}", windows(50 + 9 * i, i)), task) for i in range(7)}

    def course(latencies: Sequence[float]) -> list[tuple[float | None, float | None, str | None]]:
        links = {name: Shape(latency=latency) for name, latency in zip(sources, latencies, strict=True)}
        world = World(
            Scenario(
                seed="0",
                units=tuple(Unit(name=name, link=link, seconds_per_window=0.0) for name, link in links.items()),
                task=task,
                rounds=rounds,
                sources=lambda unit, task: sources[unit.name],
                engines=lambda unit, task, bundle: make_engine(task.model),
                checked=False,
            )
        )
        assert world.run().violation is None
        assert world.coordinator.service is not None
        found = [(row.metric, row.loss, row.digest) for row in build(ledger_of(world.coordinator.service)).rounds]
        world.close()
        return found

    first, *others = ([0.01 * (i * step % 7) for i in range(7)] for step in (1, 2, 3, 4, 5, 6))
    expected = course(first)
    for other in others:
        assert course(other) == expected


def test_the_csv_has_the_metrics_in_columns_and_nothing_else(tmp_path: Path) -> None:
    result = fedmq.run("mlp", fleet_of(), test=windows(50, 5), rounds=3)
    result.to_csv(tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = [
        {name: "" if value is None else str(value) for name, value in asdict(row).items()} for row in result.metrics
    ]
    assert rows == told
    assert rows[0]["metric_name"] == "macro-F1"
    assert float(rows[1]["training_loss"]) > 0
    assert float(rows[1]["metric"]) == result.metrics[1].metric


def test_it_shows_itself_as_a_table_with_a_row_for_each_round_and_in_html_nothing_is_markup() -> None:
    result = fedmq.run("mlp", fleet_of(2), test=windows(50, 5), rounds=30, name="<b>valves</b>")
    lines = result.table().splitlines()
    assert len(lines) == 2 + 31
    assert lines[0].startswith("<b>valves</b>: macro-F1 0.")
    assert lines[2].split()[:2] == ["1", "(statistics)"]
    shown = repr(result).splitlines()
    assert shown[2] == lines[2]
    assert shown[-1] == lines[-1]
    assert "…" in shown[2 + 12]
    page = result._repr_html_()
    assert "&lt;b&gt;valves" in page
    assert "<b>" not in page
    assert page.count("<tr>") == 1 + 25


def test_progress_is_a_line_for_each_round_and_silence_where_it_is_not_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fedmq.run("mlp", fleet_of(), rounds=3)
    assert capsys.readouterr().out == ""
    fedmq.run("mlp", fleet_of(), rounds=3, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:15].strip() for line in lines] == ["feature scaling", *(f"round   {n}/3" for n in (1, 2, 3))]
    assert ["macro-F1" in line for line in lines] == [False, True, True, False]


# -- tasks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in BUNDLES.glob("*.fedmq")))
def test_a_bundle_is_fetched_by_the_gateways_and_trained(name: str, tmp_path: Path) -> None:
    bundle = from_bytes((BUNDLES / f"{name}.fedmq").read_bytes())
    path = tmp_path / f"{name}.fedmq"
    path.write_bytes(to_bytes(bundle))
    manifest = bundle.manifest
    rng = np.random.default_rng(0)

    def some(number: int) -> Given:
        return rng.normal(size=(number, *manifest.inputs)).astype(np.float32), np.arange(number) % manifest.outputs

    datasets = {name: some(40) for name in ("a", "b")}
    test = some(20)
    if manifest.loss == "reconstruction":
        datasets = {name: (x, 0 * y) for name, (x, y) in datasets.items()}
    results = [fedmq.run(task, datasets, test=test, rounds=2) for task in (path, bundle)]
    assert results[0].metrics == results[1].metrics
    assert results[0].task.model.kind == "graph"
    assert results[0].task.name == manifest.name
    assert results[0].task.recipe.learning_rate == manifest.learning_rate
    assert [row.accepted for row in results[0].metrics] == [2, 2]
    assert len(set(digests(results[0]))) == 2
    # It travelled, to each of them.
    assert results[0].report.wire.down > 2 * path.stat().st_size


def test_an_autoencoder_learns_what_healthy_looks_like_and_is_tested_on_what_does_not() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(2, 8))

    def healthy(number: int) -> NDArray[Any]:
        return (rng.normal(size=(number, 2)) @ plane).astype(np.float32)

    faulty = rng.normal(size=(50, 8)).astype(np.float32) * 2
    names = np.array(["normal"] * 40 + ["cracked"] * 10)
    datasets = {"a": healthy(80), "b": (np.concatenate([healthy(40), faulty[:10]]), names)}
    test = np.concatenate([healthy(50), faulty]), np.repeat(["normal", "cracked"], 50)
    result = fedmq.run("autoencoder", datasets, test=test, rounds=40, local_epochs=3)
    assert result.report.metric_name == "AUC"
    assert result.metric is not None
    assert result.metric > 0.9
    assert result.predict(faulty).shape == (50, 8)


def test_a_regressor_tells_the_life_left_in_samples() -> None:
    rng = np.random.default_rng(0)

    def lives(number: int) -> Given:
        left = rng.uniform(0, 50, size=number)
        return np.stack([left + rng.normal(size=number), rng.normal(size=number)], axis=1).astype(np.float32), left

    result = fedmq.run(
        "regressor", {"a": lives(200), "b": lives(200)}, test=lives(100), rounds=5, learning_rate=0.01, codec="dense"
    )
    assert result.report.metric_name == "RMSE"
    assert 49 < result.task.windowing.remaining_most < 50
    first = result.metrics[0].metric
    assert first is not None
    assert result.metric is not None
    assert result.metric < 8 < first
    x, left = lives(300)
    assert np.sqrt(np.mean((result.predict(x)[:, 0] - left) ** 2)) < 8


def test_settings_are_taken_as_they_are_a_proximal_term_too() -> None:
    windowing = WindowingSettings(samples=FEATURES, hop=FEATURES, features="raw", sampling_rate_hz=1.0)
    settings = TaskSettings(
        name="held",
        classes=("a", "b", "c"),
        hidden=(4,),
        seed=5,
        windowing=windowing,
        recipe=RecipeSettings(local_epochs=3, proximal=1.0),
    )
    held = fedmq.run(settings, fleet_of(), rounds=2)
    free = fedmq.run(replace(settings, recipe=RecipeSettings(local_epochs=3)), fleet_of(), rounds=2)
    assert held.task == task_of(settings, round_settings("mlp", gateways=3, rounds=2))
    assert digests(held)[2] != digests(free)[2]
    assert fedmq.run(settings, fleet_of(), rounds=2, seed=6).task.seed == 6


def test_rounds_may_be_settings_and_ask_a_share_of_the_fleet() -> None:
    rounds = replace(round_settings("mlp", gateways=4, rounds=6), fraction=0.5, interval_seconds=3600.0)
    result = fedmq.run("mlp", fleet_of(4), rounds=rounds)
    assert [(row.drawn, row.accepted) for row in result.metrics[1:]] == [(2, 2)] * 6
    assert result.metrics[-1].opened_at - result.metrics[0].opened_at >= 6 * 3600.0


def test_a_gateway_with_too_few_windows_declines_and_the_others_go_on() -> None:
    datasets = fleet_of(3) | {"poor": windows(5, 9)}
    result = fedmq.run("mlp", datasets, rounds=2)
    assert [(row.drawn, row.accepted, row.declined) for row in result.metrics[1:]] == [(4, 3, 1)] * 2
    assert result.report.declines == {"samples": 3}


# -- data -----------------------------------------------------------------------------------------------------------


def test_arrays_become_the_features_that_a_gateway_makes_of_the_recording(tmp_path: Path) -> None:
    fleet = simulate_fleet(gateways=2)
    settings = TaskSettings(name="bearings", classes=fleet.classes, windowing=fleet.windowing)
    task = task_of(settings)
    folder = lay_out(fleet, tmp_path)[fleet.gateways[0].name]
    own = load(folder, msgspec.structs.replace(task.windowing, held_out=0.0), task.classes)
    cut = []
    for recording in sorted(fleet.gateways[0].recordings, key=lambda one: (one.label, one.name)):
        assert isinstance(recording.signal, np.ndarray)
        assert recording.scale is not None
        signal = recording.signal * recording.scale
        starts = range(0, len(signal) - task.windowing.samples + 1, task.windowing.hop)
        cut += [(signal[start : start + task.windowing.samples], recording.label) for start in starts]
    given = windows_of("here", (np.stack([window for window, _ in cut]), np.array([label for _, label in cut])))
    source = ArraySource(given, task)
    assert np.array_equal(source.x, own.train_x)
    assert np.array_equal(source.y, own.train_y)
    assert source.samples.held_windows == int(len(cut) * 0.25)


def test_the_end_of_each_label_is_held_out() -> None:
    settings = TaskSettings(
        name="t",
        classes=("a", "b"),
        windowing=WindowingSettings(samples=1, hop=1, features="raw", sampling_rate_hz=1.0, held_out=0.25),
    )
    x = np.arange(12, dtype=np.float32)[:, None]
    y = np.array(["b"] * 4 + ["a"] * 8)
    samples = ArraySource(windows_of("here", (x, y)), task_of(settings)).samples
    assert samples.held_x[:, 0].tolist() == [3, 10, 11]
    assert samples.held_y.tolist() == [1, 0, 0]
    assert samples.train_windows == 9


def test_windows_of_several_channels_lie_as_a_gateway_reads_them() -> None:
    windowing = WindowingSettings(samples=5, hop=5, channels=2, features="raw", sampling_rate_hz=1.0)
    task = task_of(TaskSettings(name="t", classes=("a", "b"), windowing=windowing))
    x = np.arange(30, dtype=np.float32).reshape(3, 5, 2)
    source = ArraySource(windows_of("here", (x, [0, 1, 0])), task)
    assert source.x.tolist() == x.reshape(3, 10).tolist()


def test_labels_by_name_are_sorted_with_normal_first_unless_their_order_is_told() -> None:
    x, y = windows(60, 0)
    names = np.array(["zinc", "normal", "alloy"])
    datasets = {"a": (x, names[y])}
    assert fedmq.run("softmax", datasets, rounds=1).task.classes == ("normal", "alloy", "zinc")
    told = fedmq.run("softmax", datasets, rounds=1, classes=("zinc", "normal", "alloy"))
    assert told.task.classes == ("zinc", "normal", "alloy")


def bad(**changes: Any) -> Callable[[], Result]:
    """A run of which one thing is wrong."""
    words: dict[str, Any] = {"task": "mlp", "datasets": fleet_of(), "rounds": 1}
    return lambda: fedmq.run(**(words | changes))


GOOD = windows(30, 0)
CNN = BUNDLES / "cnn.fedmq"
RECORDINGS = simulate_fleet(gateways=2)


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (bad(task="mpl"), ["one of softmax, mlp", "'mpl'"]),
        (bad(task=3), ["TaskSettings", "int", "fedmq.build"]),
        (bad(task=Path(__file__)), ["expected a bundle"]),
        (bad(datasets=[GOOD]), ["mapping", "list"]),
        (bad(datasets={}), ["mapping", "an empty one"]),
        (bad(datasets={"a b": GOOD}), ["gateway 'a b'", "letters"]),
        (bad(datasets={"coordinator": GOOD}), ["another name"]),
        (bad(datasets={"a": (*GOOD, 1)}), ["gateway 'a'", "a tuple of 3"]),
        (bad(datasets={"a": ([[1.0], [1.0, 2.0]], [0, 1])}), ["gateway 'a', windows", "an array"]),
        (bad(datasets={"a": GOOD[0]}), ["gateway 'a'", "windows alone"]),
        (bad(datasets={"a": (GOOD[0][0], 1)}), ["(n, …)", "(6,)", "x[None]"]),
        (bad(datasets={"a": GOOD, "b": (GOOD[0][:0], GOOD[1][:0])}), ["gateway 'b'", "at least one", "leave it out"]),
        (bad(datasets={"a": (np.where(GOOD[0] > 2, np.nan, GOOD[0]), GOOD[1])}), ["NaN", "of 30 windows", "drop them"]),
        (bad(datasets={"a": GOOD, "b": (GOOD[0][:, :4], GOOD[1])}), ["gateway 'b'", "(6,), as gateway 'a'", "(4,)"]),
        (bad(test=(GOOD[0][:, :4], GOOD[1])), ["test: expected", "(4,)"]),
        (bad(datasets={"a": (GOOD[0], GOOD[1][:7])}), ["labels (30,)", "(7,)"]),
        (bad(datasets={"a": (GOOD[0], np.eye(3)[GOOD[1]])}), ["(30, 3)", "argmax"]),
        (bad(datasets={"a": (GOOD[0], GOOD[1] * 1.0)}), ["float64", "astype(int)"]),
        (bad(datasets={"a": (GOOD[0], GOOD[1] - 1)}), ["0 or more", "-1"]),
        (bad(datasets={"a": GOOD, "b": (GOOD[0], GOOD[1].astype(str))}), ["one kind"]),
        (bad(classes=("a", "b")), ["(a, b) by their places 0 to 1", "'2'", "windows"]),
        (bad(test=(GOOD[0], np.repeat("melted", 30)), datasets={"a": (GOOD[0], np.repeat(("x", "y"), 15))},
             classes=("x", "y")), ["test: expected labels among", "(x, y)", "'melted' in 30 of 30"]),
        (bad(datasets={"a": (GOOD[0], 0 * GOOD[1])}), ["classes", "at least two labels"]),
        (bad(datasets={"a": windows(19, 0), "b": windows(8, 1)}),
         ["20 training windows", "at 1 gateway,", "a has 16, b has 7"]),
        (bad(task=CNN), ["expected windows of the shape", "(6,)", "bundle's model"]),
        (bad(task=CNN, datasets={"a": (np.zeros((30, 1, 1024), np.float32), np.repeat(("a", "b"), 15))}),
         ["expected 4", "got 2 (a, b)", "classes="]),
        (bad(task="autoencoder", classes=("a",)), ["tells no classes"]),
        (bad(task="regressor", datasets={"a": (GOOD[0], -1.0 - GOOD[1])}), ["life left, 0 or more", "-"]),
        (bad(task="cnn1d"), ["at least 64 samples"]),
        (bad(task=TaskSettings(name="t", classes=("a", "b", "c"))), ["(2048, 1) (samples, channels)", "(6,)"]),
        (bad(task=TaskSettings(name="t", classes=("a", "b")), hidden=(3,), classes=("a",)), ["hidden, classes"]),
        (bad(datasets=RECORDINGS, test=GOOD), ["test: expected none beside a Fleet"]),
        (bad(datasets=RECORDINGS, classes=("a",)), ["classes: expected none beside a Fleet"]),
        (bad(rounds=RoundSettings()), ["max_rounds"]),
        (bad(rounds=RoundSettings(max_rounds=1, min_gateways=4)), ["at most 3", "got 4"]),
        (bad(rounds=RoundSettings(max_rounds=1, target_metric=3.0)), ["at most 1", "got 3"]),
        (bad(rounds=0), ["max_rounds"]),
        (bad(rounds=RoundSettings(max_rounds=1, tags=("roof",))), ["no tags", "roof"]),
        (bad(engine="abacus"), ["engine", "'abacus'"]),
        (bad(codec="gif"), ["codec", "'gif'"]),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_said_with_what_was_expected_and_what_came(
    call: Callable[[], Result], parts: list[str]
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - one class for each kind of mistake, all of them ValueErrors
        call()
    for part in parts:
        assert part in str(error.value)


def test_many_labels_are_more_than_a_birth_holds_and_hinder_nobody() -> None:
    rng = np.random.default_rng(0)
    names = np.array([f"fault number {number} of the second line" for number in range(40)])
    datasets = {"a": (rng.normal(size=(400, 4)).astype(np.float32), np.tile(names, 10))}
    assert fedmq.run("softmax", datasets, rounds=1).metrics[-1].accepted == 1


def test_a_program_that_ends_by_an_error_is_named_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise RuntimeError("the runtime gave up")

    monkeypatch.setattr("fedmq_edge_node.runtimes.NumpyEngine.loss_grad", broken)
    with pytest.raises(RunError, match=r"(?s)did not come to its end: g\d ends: RuntimeError: the runtime gave up"):
        fedmq.run("mlp", fleet_of(), rounds=1)


# -- its surroundings -------------------------------------------------------------------------------------------------


def test_importing_fedmq_loads_nothing_that_its_parts_need() -> None:
    program = "import sys, fedmq; fedmq.__version__; print(*sorted(name.partition('.')[0] for name in sys.modules))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.split())
    assert "fedmq" in loaded
    assert not {name for name in loaded if name.startswith("fedmq_")}
    assert not loaded & {"numpy", "torch", "msgspec", "rich", "paho"}


def test_the_example_runs_as_it_stands(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "in_a_notebook.py"
    ended = subprocess.run([sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("bearings: macro-F1 0.")
    assert len((tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 1 + 16


def test_a_name_that_fedmq_does_not_have_is_an_attribute_error() -> None:
    assert callable(fedmq.build)
    with pytest.raises(AttributeError, match="runs"):
        fedmq.runs  # noqa: B018


def test_numpy_has_one_thread_meanwhile_and_as_many_as_before_afterwards() -> None:
    program = """
import numpy, os
from fedmq.threads import _openblas, one_thread
before = [get() for get, _ in _openblas()]
with one_thread():
    inside = [get() for get, _ in _openblas()]
print(before, inside, [get() for get, _ in _openblas()])
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    if ended.stdout.startswith("[]"):
        pytest.skip("numpy does not compute with OpenBLAS here")
    assert ended.stdout.strip() == "[2] [1] [2]"
