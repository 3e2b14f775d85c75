"""What models in service say of a stretch of signal, and how they come from a gateway's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq_edge_node.memory import GatewayState, InService, Memory
from fedmq_edge_node.opinions import ScoringModel
from fedmq_edge_node.samples import FEATURES
from fedmq_protocol.task import ModelSpec, Task, Windowing

from fedmq.watch.program import Models

RATE_HZ = 12_000.0
SIGNAL = 0.1 * np.random.default_rng(0).normal(size=(24_000, 1))


def state(kind: str = "softmax", steps: Any = None, version: int = 1, **more: Any) -> GatewayState:
    values: dict[str, Any] = {
        "softmax": {"sizes": (FEATURES, 2)},
        "autoencoder": {"sizes": (FEATURES, 4, FEATURES)},
        "regressor": {"sizes": (FEATURES, 4, 1)},
    }[kind]
    model = ModelSpec(kind=kind, **values)  # type: ignore[arg-type]
    windowing = Windowing(scaling="none", **more)
    classes = ("normal", "ball") if kind == "softmax" else ()
    task = Task(name=kind, model=model, classes=classes, initial=bytes(8), windowing=windowing)
    flat = np.zeros(model.parameters, dtype=np.int32) if steps is None else steps(model.parameters)
    service = InService(task=task, lineage=1, version=version, digest=bytes([version] * 32), steps=flat, scaler=None)
    return GatewayState(
        lineage=1,
        task=task,
        steps=flat,
        residual=np.zeros(model.parameters, dtype=np.float32),
        in_service=service,
    )


def saved(path: Path, *states: GatewayState) -> Path:
    memory = Memory(path / "gateway.sqlite")
    memory.load()
    for one in states:
        memory.save(one)
    memory.close()
    return path / "gateway.sqlite"


def models(path: Path, *states: GatewayState) -> dict[str, Any]:
    found = Models(saved(path, *states), "auto")()
    assert found is not None
    return {model.name: model for model in found}


def test_probabilities_scores_and_lives_are_told_by_objective(tmp_path: Path) -> None:
    found = models(tmp_path, state(), state("autoencoder"), state("regressor", remaining_most=50_000))
    said = {name: model.opinion(SIGNAL, RATE_HZ) for name, model in found.items()}
    assert said["softmax"].classes == pytest.approx({"normal": 0.5, "ball": 0.5})
    assert said["autoencoder"].score > 0
    assert 0 <= said["regressor"].remaining <= said["regressor"].remaining_most == 50_000


@pytest.mark.parametrize(
    ("signal", "rate_hz"), [(SIGNAL, 6000.0), (SIGNAL[:1000], RATE_HZ)], ids=["another rate", "too short"]
)
def test_a_signal_that_does_not_fit_has_no_opinion(tmp_path: Path, signal: Any, rate_hz: float) -> None:
    assert models(tmp_path, state())["softmax"].opinion(signal, rate_hz) is None


def test_models_are_given_again_only_when_the_memory_has_changed(tmp_path: Path) -> None:
    path = saved(tmp_path, state())
    look = Models(path, "auto")
    (first,) = look() or ()
    assert look() is None
    saved(tmp_path, state(version=2))
    (second,) = look() or ()
    assert isinstance(first, ScoringModel)
    assert isinstance(second, ScoringModel)
    assert (first.version, second.version) == (1, 2)
    assert first.mark != second.mark


def test_without_a_memory_there_is_nothing_to_ask(tmp_path: Path) -> None:
    assert Models(tmp_path / "gateway.sqlite", "auto")() is None
    assert not (tmp_path / "gateway.sqlite").exists()
    assert Models(None, "auto")() is None


def test_a_damaged_memory_is_told_and_the_watch_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "gateway.sqlite").write_bytes(b"no database" * 100)
    assert Models(tmp_path / "gateway.sqlite", "auto")() is None
    assert "cannot be read" in caplog.text
