from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from fedmq_coordinator.settings import WindowingSettings
from fedmq_edge_node.samples import Samples
from fedmq_protocol.task import initial_steps, model_digest, short

from bench.recipe import federate, prepare, reached
from fedmq.baselines import local_only, pooled
from fedmq.defaults import CODECS, task_of, task_settings
from fedmq.demo import DemoOptions

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
    assert [coding.density for coding in (large.up, large.down)] == [0.005, 0.01]
    with pytest.raises(ValueError, match="codec: expected sparse"):
        task_of(task_settings(name="t", classes=CLASSES, codec="zip"))


def test_reached_needs_two_rounds_in_a_row() -> None:
    assert reached([0.1, 0.9, 0.5, 0.9, 0.9, 0.2], 0.9) == 4
    assert reached([0.1, 0.9], 0.9) is None


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
    assert federate(task, fleet, test, 40, 0.0)[-1].metric > 0.9


@pytest.mark.parametrize("codec", ["dense", "sparse"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_real_faults_are_told_apart_at_a_load_that_no_gateway_has_seen(codec: str, seed: int) -> None:
    if not RECORDINGS.is_dir():
        pytest.skip(f"no CWRU recordings in {RECORDINGS}; name their parent folder with FEDMQ_DATA")
    case = prepare(DemoOptions(data=f"cwru:{RECORDINGS}", test_load=2, seed=seed))
    run = federate(case.make_task(codec=codec), case.gateways, case.test, 40, 0.0)
    assert min(done.metric for done in run[-10:]) >= 0.985
