from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedmq_coordinator.settings import WindowingSettings
from fedmq_edge_node.samples import Samples
from fedmq_protocol.task import initial_steps, model_digest, short

from bench.bytes_to_accuracy import at_level, summary
from bench.recipe import Record, reached, summed_up
from fedmq.baselines import local_only, pooled
from fedmq.bench.training import play, prepare, task_for
from fedmq.defaults import CODECS, Kind, raw_windowing, task_of, task_settings
from fedmq.demo import DemoError, DemoOptions, open_fleet
from fedmq.programs import load_coordinator

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDINGS = Path(os.environ.get("FEDMQ_DATA", REPOSITORY.parent / "shared" / "data")) / "cwru"
CLASSES = ("normal", "inner_race", "ball", "outer_race")


def test_the_usual_sizes_have_the_usual_numbers_of_parameters() -> None:
    small = task_of(task_settings(name="t", classes=CLASSES))
    large = task_of(task_settings(name="t", hidden=(64, 128, 64), classes=CLASSES))
    assert small.model.parameters == 868
    assert large.model.parameters == 18_308


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", ["softmax", "mlp", "autoencoder"])
def test_every_wish_gives_a_task_whose_start_can_be_drawn_anywhere(kind: str, codec: str) -> None:
    task = task_of(
        task_settings(
            name="t",
            kind=kind,
            classes=CLASSES,
            windowing=WindowingSettings(sampling_rate_hz=25_600.0),
            codec=codec,
            seed=7,
        )
    )  # type: ignore[arg-type]
    assert task.initial == short(model_digest(initial_steps(task.model, 7, task.grid_bits)))
    assert task.windowing.sampling_rate_hz == 25_600.0
    assert task.classes == (() if kind == "autoencoder" else CLASSES)


def test_dense_is_float32_both_ways_on_a_fine_grid() -> None:
    task = task_of(task_settings(name="t", classes=CLASSES, codec="dense"))
    assert (task.up.bits, task.up.density, task.down.bits, task.down.density) == (32, 1.0, 32, 1.0)
    assert task.grid_bits == 24


def test_a_small_model_sends_a_floor_of_coordinates_and_a_large_one_a_share() -> None:
    small = task_of(task_settings(name="t", classes=CLASSES))
    large = task_of(task_settings(name="t", hidden=(64, 128, 64), classes=CLASSES))
    assert [round(coding.density * 868) for coding in (small.up, small.down)] == [32, 32]
    assert [coding.density for coding in (large.up, large.down)] == pytest.approx([0.00413, 0.00827], rel=0.01)
    with pytest.raises(ValueError, match="codec: expected sparse"):
        task_of(task_settings(name="t", classes=CLASSES, codec="zip"))


def test_the_model_has_as_many_inputs_as_a_window_has_features() -> None:
    table = WindowingSettings(features="raw", samples=1, hop=1, channels=64)
    task = task_of(task_settings(name="t", hidden=(128, 64), classes=tuple("0123456789"), windowing=table))
    assert task.model.sizes == (64, 128, 64, 10)
    assert task.windowing.channels == 64
    four = WindowingSettings(channels=4)
    assert task_of(task_settings(name="t", kind="autoencoder", classes=(), windowing=four)).model.sizes[0] == 88
    with pytest.raises(ValueError, match=r"windowing.samples: expected at least 64"):
        task_of(task_settings(name="t", classes=CLASSES, windowing=WindowingSettings(samples=10)))


def test_reached_needs_two_rounds_in_a_row() -> None:
    assert reached([0.1, 0.9, 0.5, 0.9, 0.9, 0.2], 0.9) == 4
    assert reached([0.1, 0.9], 0.9) is None


def figures(metrics: list[float], a_round: int) -> dict[str, object]:
    """Of a run that joined for 100 bytes and then took `a_round` bytes a round, half of them up."""
    half = [a_round // 2] * len(metrics)
    return {
        "metric_by_round": metrics,
        "metric_final": metrics[-1],
        "wire_up_bytes_by_round": half,
        "wire_down_bytes_by_round": half,
        "wire_up_bytes": sum(half) + 100,
        "wire_down_bytes": sum(half),
    }


def test_several_levels_come_from_the_same_two_runs() -> None:
    dense = figures([0.5, 0.99, 0.99, 1.0, 1.0], 1000)
    coded = figures([0.2, 0.5, 0.99, 0.99, 0.99], 10)
    low, high = at_level(0.99, dense, coded), at_level(1.0, dense, coded)
    assert (low["dense_rounds"], low["dense_bytes"], low["coded_rounds"], low["coded_bytes"]) == (2, 2100, 3, 130)
    assert low["times_fewer"] == pytest.approx(2100 / 130)
    assert low["rounds_ratio"] == 1.5
    assert (high["dense_rounds"], high["coded_rounds"]) == (4, None)
    assert "times_fewer" not in high
    seeds = [{"levels": [low, high]}, {"levels": [low, low | {"share": 1.0}]}]
    assert summary(seeds, 0.99)["geometric_mean_rounds_ratio"] == pytest.approx(1.5)
    # A seed that never got there leaves no mean.
    assert summary(seeds, 1.0)["geometric_mean_times_fewer"] is None


def test_a_load_to_test_on_is_for_data_that_have_loads() -> None:
    with pytest.raises(DemoError, match="only cwru:DIR and gearbox:DIR have loads"):
        open_fleet(DemoOptions(data="digits", test_load=3))


def test_wishes_for_windows_win_over_what_suits_the_data() -> None:
    fleet = open_fleet(DemoOptions(data="sim", gateways=2, features="raw", window=32, hop=16))
    assert (fleet.windowing.features, fleet.windowing.samples, fleet.windowing.hop) == ("raw", 32, 16)
    assert fleet.windowing.channels == 1


def test_what_a_run_sent_leads_from_each_recorded_model_to_the_next(tmp_path: Path) -> None:
    fleet, test = gateways()
    task = task_of(task_settings(name="t", classes=CLASSES))
    record = Record()
    summed_up(play(task, fleet, test, 4), record)
    record.save(tmp_path / "run.npz", task, fleet)
    with np.load(tmp_path / "run.npz", allow_pickle=False) as kept:
        assert kept["model"].shape == (5, 868)
        assert (kept["model"][0] == initial_steps(task.model, 0, task.grid_bits)).all()
        for number in range(4):
            part = slice(*kept["down_offsets"][number : number + 2])
            moved = np.zeros(868, dtype=np.int64)
            moved[kept["down_indices"][part]] = kept["down_steps"][part]
            assert (kept["model"][number + 1] - kept["model"][number] == moved).all()
        assert len(kept["up_offsets"]) == 4 * 4 + 1
        assert kept["up_offsets"][-1] == len(kept["up_indices"]) == len(kept["up_steps"])
        assert kept["weights"].tolist() == [60] * 4


@pytest.mark.parametrize("codec", ["dense", "sparse"])
def test_digits_are_learnt_from_gateways_that_know_few_of_them(codec: str) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    plant = prepare(DemoOptions(data="digits"))
    task = task_for(plant.fleet, "mlp", (32,), 0, codec=codec)
    assert summed_up(play(task, plant.gateways, plant.test, 20))[-1].metric > 0.75


def gateways(seed: int = 0) -> tuple[list[Samples], tuple[np.ndarray, np.ndarray]]:
    """Four gateways of one class each, in features where the classes lie apart."""
    rng = np.random.default_rng(seed)

    def windows(label: int, count: int) -> np.ndarray:
        x = rng.normal(0, 1, (count, 22))
        x[:, label] += 3
        return x.astype(np.float32)

    fleet = [
        Samples(
            train_x=windows(label, 60),
            train_y=np.full(60, label),
            held_x=windows(label, 20),
            held_y=np.full(20, label),
            raw_bytes=1,
            recordings=1,
        )
        for label in range(4)
    ]
    return fleet, (np.concatenate([windows(label, 50) for label in range(4)]), np.repeat(np.arange(4), 50))


def test_pooled_learns_what_no_gateway_learns_alone() -> None:
    fleet, test = gateways()
    task = task_of(task_settings(name="t", classes=CLASSES))
    assert pooled(fleet, task, 20, test) > 0.9
    alone = local_only(fleet, task, 20, test)
    assert len(alone) == 4
    assert max(alone) < 0.2
    # Each is perfect on its own held-out windows, which all bear the one label it knows.
    assert local_only(fleet, task, 20) == [1.0] * 4


def test_baselines_are_the_same_each_time() -> None:
    fleet, test = gateways()
    task = task_of(task_settings(name="t", classes=CLASSES))
    assert pooled(fleet, task, 2, test) == pooled(fleet, task, 2, test)


@pytest.mark.parametrize("codec", ["dense", "sparse"])
def test_a_federation_learns_what_no_gateway_learns_alone(codec: str) -> None:
    fleet, test = gateways()
    task = task_of(task_settings(name="t", classes=CLASSES, codec=codec))
    assert summed_up(play(task, fleet, test, 40))[-1].metric > 0.9


@pytest.mark.parametrize("codec", ["dense", "sparse"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_real_faults_are_told_apart_at_a_load_that_no_gateway_has_seen(codec: str, seed: int) -> None:
    if not RECORDINGS.is_dir():
        pytest.skip(f"no CWRU recordings in {RECORDINGS}; name their parent folder with FEDMQ_DATA")
    plant = prepare(DemoOptions(data=f"cwru:{RECORDINGS}", test_load=2, seed=seed))
    run = summed_up(play(task_for(plant.fleet, "mlp", None, seed, codec=codec), plant.gateways, plant.test, 40))
    assert min(done.metric for done in run[-10:]) >= 0.985


def test_a_regressor_has_its_own_recipe_and_a_wish_goes_before_it() -> None:
    windowing = WindowingSettings(features="raw", samples=30, channels=2, remaining_most=125.0)
    settings = task_settings(name="engines", kind="regressor", classes=("ignored",), windowing=windowing)
    assert (settings.recipe.optimizer, settings.classes) == ("adam", ())
    made = task_of(settings)
    assert made.model.sizes == (60, 32, 1)
    assert (made.recipe.optimizer, made.windowing.remaining_most) == ("adam", 125.0)
    wished = task_settings(name="engines", kind="regressor", classes=(), windowing=windowing, learning_rate=0.01)
    assert wished.recipe == replace(settings.recipe, learning_rate=0.01)


def coordinator_file(directory: Path, text: str) -> Path:
    path = directory / "coordinator.toml"
    path.write_text(f'state_dir = "{directory / "state"}"\n{text}', encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["mlp", "autoencoder", "cnn1d"])
def test_a_kind_named_in_a_file_is_the_task_that_the_demo_makes(kind: Kind, tmp_path: Path) -> None:
    classes = "" if kind == "autoencoder" else 'classes = ["normal", "ball"]\n'
    read = load_coordinator(coordinator_file(tmp_path, f'[task]\nname = "t"\nkind = "{kind}"\n{classes}'))
    own = WindowingSettings()
    windowing = raw_windowing(own) if kind == "cnn1d" else own
    made = task_settings(name="t", kind=kind, classes=("normal", "ball"), windowing=windowing)
    assert read.task == made
    assert read.rounds.server_momentum == (0.9 if kind == "cnn1d" else 0.0)


def test_what_a_file_states_goes_before_what_suits_the_kind(tmp_path: Path) -> None:
    stated = (
        '[task]\nname = "t"\nkind = "cnn1d"\nclasses = ["a", "b"]\nhidden = [8, 8]\n[task.windowing]\nsamples = 2048\n'
        "[task.codec]\nup_bits = 8\n[rounds]\nfraction = 0.5\n"
    )
    read = load_coordinator(coordinator_file(tmp_path, stated), ["task.recipe.learning_rate=0.5"])
    assert (read.task.hidden, read.task.recipe.learning_rate, read.task.recipe.batch_size) == ((8, 8), 0.5, 32)
    assert (read.task.windowing.samples, read.task.windowing.features) == (2048, "raw")
    assert (read.task.codec.up_bits, read.task.codec.down_bits) == (8, 4)
    assert read.rounds.server_momentum == 0, "below full participation momentum breaks training"


def test_a_regressor_goes_with_lives_and_with_nothing_else() -> None:
    with pytest.raises(DemoError, match="--model regressor"):
        open_fleet(DemoOptions(data="sim", model="regressor"))
    with pytest.raises(DemoError, match="--model mlp"):
        open_fleet(DemoOptions(data="sim", remaining_most=10.0))
