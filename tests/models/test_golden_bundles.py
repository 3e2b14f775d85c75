"""Bundles that were made of PyTorch modules: every engine that is here comes to PyTorch's own gradient."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from fedmq_edge_node.runtimes import available_engines, make_engine
from fedmq_edge_node.trainer import train
from fedmq_models.bundle import from_bytes, to_bytes
from fedmq_protocol.task import Recipe, initial_steps, to_parameters

FOLDER = Path(__file__).parents[1] / "vectors" / "bundles"
NAMES = sorted(path.stem for path in FOLDER.glob("*.fedmq"))
KINDS = {"logistic_regression", "mlp", "autoencoder", "cnn", "cnn_with_pooling", "gru"}


def test_all_kinds_are_here() -> None:
    assert set(NAMES) == KINDS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("engine", available_engines())
def test_the_gradient_is_that_of_pytorch(name: str, engine: str) -> None:
    data = (FOLDER / f"{name}.fedmq").read_bytes()
    bundle = from_bytes(data)
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as golden:
        x, y, w, expected, loss = (golden[key] for key in ("x", "y", "w", "gradient", "loss"))
    model = bundle.model(hashlib.sha256(data).digest(), len(data))
    flat = to_parameters(initial_steps(model, 1, 16), 16)
    gradient, found = make_engine(model, engine, bundle).loss_grad(flat, x, y, w)
    assert np.abs(gradient - expected).max() < 1e-5
    assert found == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_the_same_way_on_every_engine(name: str) -> None:
    data = (FOLDER / f"{name}.fedmq").read_bytes()
    bundle = from_bytes(data)
    model = bundle.model(hashlib.sha256(data).digest(), len(data))
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as golden:
        x, y = golden["x"], golden["y"]
    flat = to_parameters(initial_steps(model, 1, 16), 16)
    recipe = Recipe(learning_rate=0.05, local_epochs=10, batch_size=bundle.manifest.batch)
    ends = {}
    for engine in available_engines():
        made = make_engine(model, engine, bundle)
        result = train(made, flat, x, y, recipe, np.random.default_rng(0), lambda: True)
        ends[engine] = (result.loss, result.delta)
    first_loss, first = ends["numpy"]
    assert np.abs(first).max() > 1e-4
    for loss, delta in ends.values():
        assert loss == pytest.approx(first_loss, rel=1e-3)
        assert np.abs(delta - first).max() < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_is_written_as_it_was_read(name: str) -> None:
    data = (FOLDER / f"{name}.fedmq").read_bytes()
    assert from_bytes(to_bytes(from_bytes(data))) == from_bytes(data)
