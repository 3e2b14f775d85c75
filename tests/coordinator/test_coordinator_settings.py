from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fedmq_coordinator.settings import (
    CoordinatorSettings,
    RecipeSettings,
    RoundSettings,
    TaskSettings,
    WindowingSettings,
)
from fedmq_protocol.settings import SettingsError, document, load
from fedmq_protocol.task import Recipe, Windowing

from fedmq.defaults import task_of

EXAMPLE = Path(__file__).parents[2] / "coordinator" / "coordinator.example.toml"
CLASSES = ("normal", "inner", "ball", "outer")


def test_the_example_file_is_what_is_rendered() -> None:
    assert EXAMPLE.read_text() == document(CoordinatorSettings)


def test_the_example_file_loads_to_the_defaults() -> None:
    assert load(CoordinatorSettings, EXAMPLE) == CoordinatorSettings(
        state_dir=Path("/var/lib/fedmq/coordinator"), task=TaskSettings(name="bearing-faults", classes=CLASSES)
    )


@pytest.mark.parametrize(("settings", "wire"), [(RecipeSettings, Recipe), (WindowingSettings, Windowing)])
def test_settings_of_a_task_have_the_fields_and_defaults_of_the_task(settings: type, wire: type) -> None:
    made, meant = settings(), wire()
    assert {name: getattr(made, name) for name in made.__dataclass_fields__} == {
        name: getattr(meant, name) for name in meant.__struct_fields__
    }


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"kind": "softmax", "classes": CLASSES}, "hidden"),
        ({"kind": "mlp", "hidden": (), "classes": CLASSES}, "hidden"),
        ({"kind": "mlp"}, "classes"),
        ({"kind": "mlp", "classes": ("a",)}, "classes"),
        ({"kind": "mlp", "classes": ("a", "b", "a")}, "classes"),
        ({"kind": "autoencoder", "classes": CLASSES}, "classes"),
    ],
)
def test_a_model_that_does_not_add_up_is_a_mistake(given: dict[str, object], key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        TaskSettings(name="t", **given)  # type: ignore[arg-type]
    assert [mistake.key for mistake in caught.value.mistakes] == [key]


def test_server_momentum_is_refused_below_full_participation() -> None:
    RoundSettings(server_momentum=0.9)
    with pytest.raises(SettingsError, match=r"^server_momentum: expected 0 while fraction is below 1"):
        RoundSettings(server_momentum=0.9, fraction=0.1)


def test_a_buffered_round_asks_everybody() -> None:
    RoundSettings(aggregation="buffered")
    with pytest.raises(SettingsError, match=r'^fraction: expected 1 with aggregation = "buffered"'):
        RoundSettings(aggregation="buffered", fraction=0.5)


def test_an_unknown_rule_is_a_mistake_that_names_those_that_there_are() -> None:
    with pytest.raises(SettingsError, match=r"^rule: expected one of .*mean.*, got 'meen'"):
        RoundSettings(rule="meen")


@pytest.mark.parametrize(
    ("given", "staleness"),
    [
        ({}, 0),
        ({"max_staleness": 7}, 0),
        ({"late": "weigh"}, 20),
        ({"late": "weigh", "max_staleness": 7}, 7),
        ({"aggregation": "buffered"}, 20),
        ({"aggregation": "buffered", "max_staleness": 3}, 3),
    ],
)
def test_gateways_are_told_how_late_an_update_may_be(given: dict[str, Any], staleness: int) -> None:
    rounds = RoundSettings(**given)
    assert rounds.staleness == staleness
    settings = TaskSettings(name="t", classes=CLASSES)
    assert task_of(settings, rounds).staleness == staleness


@pytest.mark.parametrize("time", ["2:30", "24:00", "02:60", "night", "02:30\n"])
def test_a_night_begins_at_a_time_of_day(time: str) -> None:
    with pytest.raises(SettingsError, match=r'^nightly: expected a time of day such as "02:30"'):
        RoundSettings(nightly=time)


def test_a_file_without_a_task_names_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.toml"
    path.write_text("")
    with pytest.raises(SettingsError) as caught:
        load(CoordinatorSettings, path)
    assert [mistake.key for mistake in caught.value.mistakes] == ["state_dir", "task.name"]


def test_what_does_not_go_with_a_regressor_is_said_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.toml"
    path.write_text(
        """
state_dir = "state"
task.name = "engines"
task.kind = "regressor"
task.classes = ["a", "b"]
"""
    )
    with pytest.raises(SettingsError) as caught:
        load(CoordinatorSettings, path)
    assert {mistake.key for mistake in caught.value.mistakes} == {"task.classes", "task.windowing.remaining_most"}


def test_adam_has_a_momentum_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.toml"
    path.write_text(
        """
state_dir = "s"
task.name = "a"
task.classes = ["a", "b"]
task.recipe.optimizer = "adam"
task.recipe.momentum = 0.5
"""
    )
    with pytest.raises(SettingsError, match=r"task\.recipe\.momentum"):
        load(CoordinatorSettings, path)


def test_a_target_above_one_is_for_regressors_alone(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.toml"
    engines = """
state_dir = "state"
task.name = "engines"
task.kind = "regressor"
task.windowing.remaining_most = 125
rounds.target_metric = 16
"""
    path.write_text(engines)
    assert load(CoordinatorSettings, path).rounds.target_metric == 16
    path.write_text('state_dir = "s"\ntask.name = "a"\ntask.classes = ["a", "b"]\nrounds.target_metric = 16\n')
    with pytest.raises(SettingsError, match=r"rounds\.target_metric"):
        load(CoordinatorSettings, path)
