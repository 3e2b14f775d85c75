"""`fedmq task check` and `show`: what they say of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from bundles import bundle_of, with_noise, with_values
from fedmq_coordinator.settings import CoordinatorSettings
from fedmq_models.bundle import Bundle, BundleError, Coding, to_bytes
from fedmq_models.graph import Node
from fedmq_protocol.settings import load
from fedmq_protocol.task import ModelSpec, Recipe, Windowing

from fedmq.cli import main
from fedmq.defaults import task_of
from fedmq.programs import load_coordinator, task_plans

MODEL = ModelSpec(kind="mlp", sizes=(22, 8, 3))


def file_of(directory: Path, bundle: Bundle) -> str:
    path = directory / "model.fedmq"
    path.write_bytes(to_bytes(bundle))
    return str(path)


def run(*arguments: str) -> int:
    try:
        return int(main(arguments) or 0)
    except SystemExit as ended:
        return int(ended.code or 0)


def test_show_says_where_each_parameter_lies_and_how_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("task", "show", file_of(tmp_path, bundle_of(MODEL))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("drawn from the task's seed" in line for line in lines)
    starts = {line.split()[0]: line for line in lines if "  starts " in line}
    assert list(starts) == ["p0", "p1", "p2", "p3"]
    assert [line.split("from")[1].split()[0] for line in starts.values()] == ["0", "176", "184", "208"]
    assert "starts evenly within" in starts["p0"]
    assert starts["p1"].endswith("starts 0")


def test_show_says_that_a_bundle_has_parameters_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("task", "show", file_of(tmp_path, with_values(bundle_of(MODEL)))) == 0
    said = capsys.readouterr().out
    assert "of its own, 844 bytes" in said
    assert said.count("starts with values from -") == 4


def test_check_holds_a_gradient_at_the_parameters_that_training_starts_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("task", "check", file_of(tmp_path, bundle_of(MODEL))) == 0
    drawn = capsys.readouterr().out
    assert drawn.endswith("good\n")
    assert run("task", "check", file_of(tmp_path, with_values(bundle_of(MODEL)))) == 0
    held = capsys.readouterr().out
    assert held.endswith("good\n")
    assert held.split("gradient of norm")[1].split()[0] != drawn.split("gradient of norm")[1].split()[0]


def test_check_holds_the_gradient_of_a_model_with_dropout_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy = with_noise(bundle_of(MODEL))
    assert run("task", "check", file_of(tmp_path, noisy)) == 0
    assert "central differences are off by" in capsys.readouterr().out
    # A loss that is twice as steep as its gradient says.
    graph = noisy.grad
    last = len(graph.inputs) + len(graph.constants) + len(graph.nodes)
    doubled = (*graph.nodes, Node("Add", (graph.outputs[1], graph.outputs[1])))
    wrong = msgspec.structs.replace(graph, nodes=doubled, outputs=(graph.outputs[0], last))
    assert run("task", "check", file_of(tmp_path, msgspec.structs.replace(noisy, grad=wrong))) == 1
    assert "NOT good" in capsys.readouterr().err


ADVICE: dict[str, Any] = {
    "windowing": Windowing(features="raw", samples=11, hop=4, channels=2, scaling="none", sampling_rate_hz=50.0),
    "learning_rate": 0.003,
    "optimizer": "adam",
    "proximal": 0.01,
    "clip_norm": 3.0,
    "time_budget_seconds": 30.0,
    "local_epochs": 2,
    "coding": Coding(dial=0.7, up_bits=4),
    "min_windows": 50,
}


def coordinator_file(directory: Path, task: str) -> Path:
    path = directory / "coordinator.toml"
    state = f'state_dir = "{directory / "state"}"\n'
    path.write_text(state + task, encoding="utf-8")
    return path


def test_what_a_bundle_recommends_holds_where_the_settings_say_nothing(tmp_path: Path) -> None:
    file_of(tmp_path, bundle_of(MODEL, **ADVICE))
    stated = '[task]\nname = "t"\nkind = "graph"\nbundle = "model.fedmq"\nclasses = ["a", "b", "c"]\n'
    settings = load_coordinator(coordinator_file(tmp_path, stated))
    task = task_of(settings.task, settings.rounds, bundle=(tmp_path / "model.fedmq").read_bytes())
    assert task.windowing == ADVICE["windowing"]
    assert task.recipe == Recipe(
        learning_rate=0.003,
        local_epochs=2,
        batch_size=32,
        optimizer="adam",
        proximal=0.01,
        clip_norm=3.0,
        time_budget_seconds=30.0,
    )
    assert (task.up.bits, task.down.bits, settings.task.codec.dial, task.min_windows) == (4, 1, 0.7, 50)


def test_the_settings_win_where_they_say_otherwise(tmp_path: Path) -> None:
    file_of(tmp_path, bundle_of(MODEL, **ADVICE))
    stated = (
        '[task]\nname = "t"\nkind = "graph"\nbundle = "model.fedmq"\nclasses = ["a", "b", "c"]\nmin_windows = 7\n'
        "[task.windowing]\nhop = 9\n[task.recipe]\nlearning_rate = 0.5\n"
    )
    settings = load_coordinator(coordinator_file(tmp_path, stated), ["task.codec.up_bits=8"]).task
    assert (settings.min_windows, settings.windowing.hop, settings.recipe.learning_rate) == (7, 9, 0.5)
    assert (settings.codec.up_bits, settings.codec.dial) == (8, 0.7)
    assert (settings.windowing.samples, settings.recipe.optimizer) == (11, "adam")


def test_a_further_task_takes_the_advice_of_its_own_bundle(tmp_path: Path) -> None:
    file_of(tmp_path, bundle_of(MODEL, **ADVICE))
    stated = '[task]\nname = "more"\nkind = "graph"\nbundle = "model.fedmq"\nclasses = ["a", "b", "c"]\n'
    (tmp_path / "more.toml").write_text(stated, encoding="utf-8")
    first = 'more_tasks = ["more.toml"]\n[task]\nname = "first"\nclasses = ["a", "b"]\n'
    plans = task_plans(load_coordinator(coordinator_file(tmp_path, first)))
    assert plans[0].task.recipe == Recipe()
    assert plans[1].task.windowing == ADVICE["windowing"]
    assert plans[1].task.min_windows == 50


def test_what_show_prints_as_toml_is_the_task_that_the_bundle_alone_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file_of(tmp_path, bundle_of(MODEL, **ADVICE))
    assert run("task", "show", path, "--toml") == 0
    printed = coordinator_file(tmp_path, capsys.readouterr().out)
    stated = load(CoordinatorSettings, printed).task
    classes = 'classes = ["class-0", "class-1", "class-2"]\n'
    short = f'[task]\nname = "brought"\nkind = "graph"\nbundle = "{path}"\n{classes}'
    assert load_coordinator(coordinator_file(tmp_path, short)).task == stated
    assert stated.windowing.channels == 2


def test_a_bundle_without_advice_is_trained_on_raw_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file_of(tmp_path, bundle_of(MODEL))
    assert run("task", "show", path, "--toml") == 0
    settings = load(CoordinatorSettings, coordinator_file(tmp_path, capsys.readouterr().out)).task
    assert (settings.windowing.features, settings.windowing.samples, settings.windowing.scaling) == ("raw", 22, "none")


def test_show_says_what_is_recommended_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("task", "show", file_of(tmp_path, bundle_of(MODEL, **ADVICE))) == 0
    said = capsys.readouterr().out
    for words in ("optimizer adam", "channels 2", "dial 0.7, up_bits 4", "with 50 windows or more", "macro-F1"):
        assert words in said


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"momentum": 1.5}, r"momentum|< 1\.0"),
        ({"optimizer": "adam", "momentum": 0.5}, "expected a momentum of 0 with adam"),
        ({"min_windows": 0}, ">= 1"),
        ({"coding": Coding(dial=3.0)}, r"<= 1\.0"),
    ],
)
def test_advice_that_no_task_could_follow_makes_no_bundle(wish: dict[str, Any], why: str) -> None:
    with pytest.raises(BundleError, match=why):
        to_bytes(bundle_of(MODEL, **wish))
