from __future__ import annotations

import itertools

import numpy as np
import pytest
from fedmq_edge_node.runtimes import NumpyEngine
from fedmq_edge_node.trainer import TrainResult, area_under_curve, evaluate, macro_f1, train
from fedmq_protocol.task import ModelSpec, Recipe, initial_steps, to_parameters
from hypothesis import given, settings
from hypothesis import strategies as st

MODEL = ModelSpec(kind="mlp", sizes=(4, 8, 3))
ENGINE = NumpyEngine(MODEL)
START = to_parameters(initial_steps(MODEL, 0, 12), 12)


def clusters(windows: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three kinds that a small model can tell apart."""
    rng = np.random.default_rng(seed)
    y = np.arange(windows) % 3
    centres = np.array([[2, 0, 0, 1], [0, 2, 0, -1], [0, 0, 2, 0]])
    return (centres[y] + 0.3 * rng.normal(size=(windows, 4))).astype(np.float32), y.astype(np.int64)


def run(recipe: Recipe, seed: int = 0, windows: int = 90, limit: int | None = None) -> TrainResult:
    x, y = clusters(windows)
    asked = itertools.count(1)
    return train(
        ENGINE, START, x, y, recipe, np.random.default_rng(seed), lambda: limit is None or next(asked) <= limit
    )


def test_training_learns_what_can_be_learnt() -> None:
    result = run(Recipe(learning_rate=0.1, momentum=0.5, local_epochs=20))
    x, y = clusters(seed=1)
    before = evaluate(ENGINE, START, x, y, "classify")
    after = evaluate(ENGINE, START + result.delta, x, y, "classify")
    assert before.metric < 0.9
    assert after.metric > 0.98
    assert after.loss < before.loss
    assert (after.metric_name, after.windows) == ("macro_f1", 90)


def test_the_same_generator_gives_the_same_delta_bit_for_bit() -> None:
    recipe = Recipe(local_epochs=3)
    assert run(recipe).delta.tobytes() == run(recipe).delta.tobytes()
    assert run(recipe).delta.tobytes() != run(recipe, seed=1).delta.tobytes()


def test_the_start_is_left_as_it_was() -> None:
    copy = START.copy()
    run(Recipe(local_epochs=2))
    assert (copy == START).all()


def test_a_step_is_made_for_every_started_batch() -> None:
    assert run(Recipe(batch_size=32, local_epochs=2)).steps == 6
    assert run(Recipe(batch_size=64, local_epochs=2), windows=64).steps == 2
    assert run(Recipe(batch_size=64, local_epochs=1), windows=5).steps == 1


def test_one_full_batch_is_one_step_down_the_gradient() -> None:
    x, y = clusters()
    gradient, loss = ENGINE.loss_grad(START, x, y, np.ones(90, dtype=np.float32))
    result = run(Recipe(batch_size=128, learning_rate=0.05))
    np.testing.assert_allclose(result.delta, -0.05 * gradient, atol=1e-6)
    assert result.loss == pytest.approx(loss, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(bound=st.floats(1e-3, 10.0), rate=st.floats(0.001, 0.5))
def test_the_delta_is_never_longer_than_the_bound(bound: float, rate: float) -> None:
    result = run(Recipe(learning_rate=rate, clip_norm=bound, local_epochs=2))
    assert np.linalg.norm(result.delta) <= bound * (1 + 1e-5)


def test_clipping_shortens_but_keeps_the_direction() -> None:
    free = run(Recipe(clip_norm=1e6, local_epochs=2)).delta
    clipped = run(Recipe(clip_norm=0.01, local_epochs=2)).delta
    np.testing.assert_allclose(clipped, free * (0.01 / np.linalg.norm(free)), rtol=1e-4, atol=1e-8)


def test_the_proximal_term_keeps_the_model_closer_to_the_start() -> None:
    free = run(Recipe(local_epochs=20)).delta
    held = run(Recipe(local_epochs=20, proximal=1.0)).delta
    assert np.linalg.norm(held) < 0.8 * np.linalg.norm(free)


def test_work_stops_cleanly_when_told_and_keeps_what_was_done() -> None:
    stopped = run(Recipe(batch_size=32, local_epochs=5), limit=3)
    assert (stopped.steps, stopped.stopped) == (3, True)
    whole = run(Recipe(batch_size=32, local_epochs=1))
    assert not whole.stopped
    assert stopped.delta.tobytes() == whole.delta.tobytes()


def test_work_that_may_not_begin_gives_an_empty_delta() -> None:
    result = run(Recipe(), limit=0)
    assert (result.steps, result.stopped) == (0, True)
    assert not result.delta.any()
    assert np.isnan(result.loss)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_is_an_error_that_names_the_learning_rate() -> None:
    # A linear model with a squared loss: at this rate every step overshoots further.
    engine = NumpyEngine(ModelSpec(kind="autoencoder", sizes=(4, 4)))
    x, y = clusters()
    recipe = Recipe(learning_rate=50.0, local_epochs=200)
    with pytest.raises(ValueError, match=r"diverged.*learning_rate"):
        train(engine, np.ones(20, dtype=np.float32), x, y, recipe, np.random.default_rng(0), lambda: True)


def test_training_without_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        train(
            ENGINE,
            START,
            np.zeros((0, 4), dtype=np.float32),
            np.zeros(0, dtype=np.int64),
            Recipe(),
            np.random.default_rng(0),
            lambda: True,
        )


def test_macro_f1_is_the_mean_over_the_labels_that_are_there() -> None:
    y = np.array([0, 0, 1, 1])
    assert macro_f1(y, y) == 1.0
    # Label 0: 1 of 2 found, nothing false: F1 2/3. Label 1: both found: F1 1. Label 2 is predicted, but not there.
    assert macro_f1(y, np.array([0, 2, 1, 1])) == pytest.approx((2 / 3 + 1) / 2)
    # Label 1 takes the other's window: precision 2/3.
    assert macro_f1(y, np.array([0, 1, 1, 1])) == pytest.approx((2 / 3 + 0.8) / 2)
    assert macro_f1(y, np.array([2, 2, 2, 2])) == 0.0


def test_area_under_the_curve_counts_pairs_and_ties_by_half() -> None:
    assert area_under_curve(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert area_under_curve(np.array([0.0]), np.array([1.0, 2.0])) == 0.0
    assert area_under_curve(np.array([1.0, 1.0]), np.array([1.0])) == 0.5


def test_an_autoencoder_is_judged_by_auc_where_there_are_faults_and_by_r2_where_there_are_none() -> None:
    model = ModelSpec(kind="autoencoder", sizes=(3, 1, 3))
    engine = NumpyEngine(model)
    rng = np.random.default_rng(0)
    along = np.abs(rng.normal(size=(200, 1)))
    x = (along * np.array([1.0, 0.5, 2.0]) + 0.01 * rng.normal(size=(200, 3))).astype(np.float32)
    y = np.zeros(200, dtype=np.int64)
    flat = np.array([0.3, 0.2, 0.4, 0.0, 1.0, 0.5, 2.0, 0.0, 0.0, 0.0], dtype=np.float32)
    trained = train(engine, flat, x, y, Recipe(learning_rate=0.02, local_epochs=60), rng, lambda: True)
    healthy = evaluate(engine, flat + trained.delta, x, y, "reconstruct")
    assert healthy.metric_name == "r2"
    assert 0.95 < healthy.metric <= 1.0
    faulty = x[:50] * np.array([1, -1, 1], dtype=np.float32)
    both = evaluate(
        engine,
        flat + trained.delta,
        np.concatenate([x, faulty]),
        np.concatenate([y, np.ones(50, dtype=np.int64)]),
        "reconstruct",
    )
    assert both.metric_name == "auc"
    assert both.metric > 0.95


# --- regression ------------------------------------------------------------------------------------------------------


def test_a_regressor_is_judged_by_its_error_in_samples() -> None:
    engine = NumpyEngine(ModelSpec(kind="regressor", sizes=(1, 1)))
    x = np.array([[0.0], [0.5], [1.0]], dtype=np.float32)
    # It says 0, 0.5 and 1; off by 0, 0.1 and 0.2 of 125 samples.
    y = np.array([0.0, 0.4, 0.8], dtype=np.float32)
    found = evaluate(engine, np.array([1.0, 0.0], dtype=np.float32), x, y, "regress", 125.0)
    assert (found.metric_name, found.windows) == ("rmse", 3)
    assert found.metric == pytest.approx(125 * np.sqrt((0.01 + 0.04) / 3), rel=1e-5)
    assert found.loss == pytest.approx((0.01 + 0.04) / 3, rel=1e-5)


def test_a_regressor_learns_a_line() -> None:
    model = ModelSpec(kind="regressor", sizes=(3, 8, 1))
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    y = (0.5 + 0.2 * x[:, 0] - 0.1 * x[:, 2]).astype(np.float32)
    flat = to_parameters(initial_steps(model, 0, 12), 12)
    engine = NumpyEngine(model)
    recipe = Recipe(learning_rate=0.02, optimizer="adam", local_epochs=60, batch_size=32)
    trained = train(engine, flat, x, y, recipe, np.random.default_rng(0), lambda: True)
    before = evaluate(engine, flat, x, y, "regress", 100.0)
    after = evaluate(engine, flat + trained.delta, x, y, "regress", 100.0)
    assert after.metric < 5.0 < 20.0 < before.metric


# --- optimizers and the time budget ----------------------------------------------------------------------------------


class Slope:
    """An engine whose gradients are given, one after another."""

    def __init__(self, *gradients: float) -> None:
        self._gradients = iter(gradients)

    def loss_grad(self, flat: np.ndarray, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, float]:
        return np.full_like(flat, next(self._gradients)), 1.0

    def infer(self, flat: np.ndarray, x: np.ndarray) -> np.ndarray:
        return x


def test_adam_steps_as_worked_out_by_hand() -> None:
    x, y = np.zeros((2, 1), dtype=np.float32), np.zeros(2, dtype=np.int64)
    recipe = Recipe(optimizer="adam", learning_rate=0.1, batch_size=1)
    result = train(Slope(1.0, 3.0), np.zeros(1, dtype=np.float32), x, y, recipe, np.random.default_rng(0), lambda: True)
    # Step 1: m = 0.1, v = 0.001; unbiased 1 and 1, so that it goes 0.1 down.
    # Step 2: m = 0.9 * 0.1 + 0.1 * 3 = 0.39, of 1 - 0.81: 2.052632; v = 0.000999 + 0.009, of 1 - 0.998001: 5.002001.
    assert result.delta[0] == pytest.approx(-0.1 - 0.1 * 2.0526316 / np.sqrt(5.0020010), rel=1e-5)


def test_adam_takes_no_heed_of_a_gradients_size() -> None:
    x, y = np.zeros((1, 1), dtype=np.float32), np.zeros(1, dtype=np.int64)
    recipe = Recipe(optimizer="adam", learning_rate=0.1)
    start = np.zeros(1, dtype=np.float32)
    small, large = (
        train(Slope(size), start, x, y, recipe, np.random.default_rng(0), lambda: True).delta for size in (0.01, 100.0)
    )
    np.testing.assert_allclose(small, large, rtol=1e-4)


def with_clock(recipe: Recipe) -> TrainResult:
    """Every look at the clock finds it a second later."""
    x, y = clusters()
    seconds = itertools.count()
    return train(ENGINE, START, x, y, recipe, np.random.default_rng(0), lambda: True, lambda: float(next(seconds)))


def test_training_ends_with_its_time_budget_and_keeps_what_it_has() -> None:
    cut = with_clock(Recipe(batch_size=10, local_epochs=50, time_budget_seconds=5.0))
    assert 1 <= cut.steps < 9
    assert not cut.stopped
    assert cut.delta.any()
    assert np.isfinite(cut.loss)


def test_however_short_the_budget_one_step_is_made() -> None:
    assert with_clock(Recipe(batch_size=32, local_epochs=3, time_budget_seconds=1e-6)).steps == 1


def test_an_ample_budget_and_none_change_nothing() -> None:
    free = run(Recipe(batch_size=32, local_epochs=3))
    for seconds in (0.0, 1e4):
        same = with_clock(Recipe(batch_size=32, local_epochs=3, time_budget_seconds=seconds))
        assert (same.steps, same.delta.tobytes()) == (free.steps, free.delta.tobytes())
