from __future__ import annotations

import numpy as np
import pytest
from fedmq_edge_node.runtimes import NumpyEngine, anomaly_score
from fedmq_protocol.task import ModelSpec, initial_steps, to_parameters

MODELS = [
    ModelSpec(kind="softmax", sizes=(5, 3)),
    ModelSpec(kind="mlp", sizes=(5, 7, 3)),
    ModelSpec(kind="mlp", sizes=(5, 8, 6, 4, 3)),
    ModelSpec(kind="autoencoder", sizes=(5, 3, 5)),
    ModelSpec(kind="regressor", sizes=(5, 7, 4, 1)),
]


def start(model: ModelSpec, seed: int = 3) -> np.ndarray:
    return to_parameters(initial_steps(model, seed, 12), 12)


def batch(model: ModelSpec, windows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(windows, model.sizes[0])).astype(np.float32)
    y = rng.integers(0, model.sizes[-1], windows)
    if model.kind == "regressor":
        y = rng.uniform(0, 1, windows).astype(np.float32)
    return x, y, rng.uniform(0.2, 2.0, windows).astype(np.float32)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.kind}{model.sizes}")
def test_gradients_agree_with_finite_differences(model: ModelSpec) -> None:
    engine = NumpyEngine(model)
    x, y, w = batch(model, 16)
    flat = start(model)
    gradient, _ = engine.loss_grad(flat, x, y, w)
    # Along random directions; float32 forward passes leave about 1e-3 of relative error at this step.
    rng = np.random.default_rng(1)
    for _ in range(20):
        direction = rng.normal(size=flat.size)
        direction = (direction / np.linalg.norm(direction)).astype(np.float32)
        step = np.float32(1e-2)
        ahead = engine.loss_grad(flat + step * direction, x, y, w)[1]
        behind = engine.loss_grad(flat - step * direction, x, y, w)[1]
        assert (ahead - behind) / (2 * step) == pytest.approx(float(gradient @ direction), abs=3e-3)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.kind}{model.sizes}")
def test_every_single_parameter_has_its_gradient_in_its_place(model: ModelSpec) -> None:
    engine = NumpyEngine(model)
    x, y, w = batch(model, 8)
    flat = start(model)
    gradient, _ = engine.loss_grad(flat, x, y, w)
    for place in range(0, model.parameters, max(1, model.parameters // 40)):
        moved = flat.copy()
        moved[place] += 1e-3
        back = flat.copy()
        back[place] -= 1e-3
        slope = (engine.loss_grad(moved, x, y, w)[1] - engine.loss_grad(back, x, y, w)[1]) / 2e-3
        assert slope == pytest.approx(float(gradient[place]), abs=5e-3)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.kind}{model.sizes}")
def test_rows_of_weight_zero_change_nothing(model: ModelSpec) -> None:
    engine = NumpyEngine(model)
    x, y, w = batch(model, 6)
    alone = engine.loss_grad(start(model), x, y, w)
    padded = engine.loss_grad(
        start(model),
        np.concatenate([x, np.full((4, x.shape[1]), 7.0, dtype=np.float32)]),
        np.concatenate([y, np.zeros(4, dtype=np.int64)]),
        np.concatenate([w, np.zeros(4, dtype=np.float32)]),
    )
    np.testing.assert_allclose(padded[0], alone[0], atol=1e-6)
    assert padded[1] == pytest.approx(alone[1], rel=1e-5)


def test_loss_is_the_weighted_mean_over_rows() -> None:
    model = MODELS[1]
    engine = NumpyEngine(model)
    x, y, w = batch(model, 5)
    one = np.ones(1, dtype=np.float32)
    singles = [engine.loss_grad(start(model), x[i : i + 1], y[i : i + 1], one)[1] for i in range(5)]
    assert engine.loss_grad(start(model), x, y, w)[1] == pytest.approx(np.average(singles, weights=w), rel=1e-5)


def test_probabilities_are_above_zero_and_add_to_one_even_for_wild_outputs() -> None:
    model = ModelSpec(kind="softmax", sizes=(2, 3))
    flat = np.array([500, -500, 0, 0, 0, 0, 0, 0, 0], dtype=np.float32)
    out = NumpyEngine(model).infer(flat, np.array([[1, 1], [-1, 0]], dtype=np.float32))
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out.sum(axis=1), 1.0, rtol=1e-6)
    assert out.argmax(axis=1).tolist() == [0, 1]


def test_an_autoencoder_that_copies_has_no_anomaly() -> None:
    model = ModelSpec(kind="autoencoder", sizes=(3, 3))
    flat = np.concatenate([np.eye(3).ravel(), np.zeros(3)]).astype(np.float32)
    x = np.array([[1, -2, 3], [4, 5, -6]], dtype=np.float32)
    assert anomaly_score(x, NumpyEngine(model).infer(flat, x)).tolist() == [0.0, 0.0]
    assert anomaly_score(x, np.zeros_like(x)) == pytest.approx([14 / 3, 77 / 3])


@pytest.mark.parametrize(
    ("flat", "x"),
    [
        (np.zeros(17, dtype=np.float32), np.zeros((1, 5), dtype=np.float32)),
        (np.zeros(18, dtype=np.float64), np.zeros((1, 5), dtype=np.float32)),
        (np.zeros(18, dtype=np.float32), np.zeros((1, 4), dtype=np.float32)),
        (np.zeros(18, dtype=np.float32), np.zeros(5, dtype=np.float32)),
    ],
)
def test_arrays_of_another_shape_or_kind_are_refused(flat: np.ndarray, x: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        NumpyEngine(MODELS[0]).infer(flat, x)


def test_weights_that_add_to_nothing_are_refused() -> None:
    x, y, w = batch(MODELS[0], 4)
    with pytest.raises(ValueError, match="more than 0"):
        NumpyEngine(MODELS[0]).loss_grad(start(MODELS[0]), x, y, 0 * w)
