"""Dense models to export: drawn ones of every kind, and ones that have learnt simulated bearings."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from fedmq_edge_node.runtimes import NumpyEngine
from fedmq_edge_node.samples import Scaler, load_test, statistics
from fedmq_edge_node.trainer import train
from fedmq_models.int8 import Int8Model, quantize
from fedmq_protocol.task import ModelSpec, Recipe, Windowing, initial_steps, to_parameters

from fedmq.data import lay_out
from fedmq.simulator import CLASSES, simulate_fleet

KINDS = {
    "softmax": ModelSpec(kind="softmax", sizes=(22, 4)),
    "mlp": ModelSpec(kind="mlp", sizes=(22, 32, 17, 4)),
    "autoencoder": ModelSpec(kind="autoencoder", sizes=(22, 12, 5, 12, 22)),
}


def small_model(kind: str, seed: int) -> tuple[Int8Model, np.ndarray]:
    """Drawn parameters, a drawn scaler, and the windows `(300, 22)` that it was calibrated on."""
    spec = KINDS[kind]
    rng = np.random.default_rng(seed)
    flat = to_parameters(initial_steps(spec, seed, 12), 12)
    for layer in spec.layers:
        flat[layer.bias_start : layer.stop] = rng.normal(scale=0.3, size=layer.outputs)
    mean = rng.normal(scale=2.0, size=22).astype(np.float32)
    scale = rng.uniform(0.2, 3.0, size=22).astype(np.float32)
    windows = (mean + scale * rng.normal(size=(300, 22))).astype(np.float32)
    return quantize(spec, flat, mean, scale, windows), windows


@dataclass(frozen=True, kw_only=True)
class Bearings:
    """A float model of simulated bearings, with windows of unscaled features."""

    spec: ModelSpec
    flat: np.ndarray
    scaler: Scaler
    train_x: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


@cache
def bearings(kind: str) -> Bearings:
    """Trained for 30 epochs on what four simulated gateways have, pooled; an autoencoder on healthy bearings only."""
    classes = () if kind == "autoencoder" else CLASSES
    fleet = simulate_fleet(gateways=4, healthy=not classes)
    with tempfile.TemporaryDirectory() as directory:
        folders = lay_out(fleet, Path(directory) / "plant")
        test_x, test_y = load_test(folders.pop("test"), Windowing(), classes)
        parts = [load_test(folder, Windowing(), classes) for folder in folders.values()]
    train_x, train_y = (np.concatenate(part) for part in zip(*parts, strict=True))
    count, mean, m2 = statistics(train_x)
    scaler = Scaler(mean=mean.astype(np.float32), scale=np.sqrt(m2 / count).astype(np.float32))
    hidden = {"softmax": (), "mlp": (32,), "autoencoder": (12, 6, 12)}[kind]
    spec = ModelSpec(kind=kind, sizes=(22, *hidden, len(classes) or 22))  # type: ignore[arg-type]
    trained = train(
        NumpyEngine(spec),
        to_parameters(initial_steps(spec, 0, 12), 12),
        scaler.apply(train_x),
        train_y,
        Recipe(local_epochs=30, momentum=0.5, learning_rate=0.1, batch_size=32, clip_norm=1e6),
        np.random.default_rng(0),
        lambda: True,
    )
    flat = to_parameters(initial_steps(spec, 0, 12), 12) + trained.delta
    return Bearings(spec=spec, flat=flat, scaler=scaler, train_x=train_x, test_x=test_x, test_y=test_y)
