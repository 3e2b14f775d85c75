from __future__ import annotations

import numpy as np
import pytest
from fedmq_edge_node import work
from fedmq_edge_node.memory import GatewayState
from fedmq_edge_node.runtimes import NumpyEngine
from fedmq_edge_node.samples import Samples
from fedmq_protocol.messages import Release
from fedmq_protocol.task import ModelSpec, Task, Windowing, model_digest, short

# One input, one output: what it says is weight * x + bias, as a share of 100 samples.
TASK = Task(
    name="engines",
    model=ModelSpec(kind="regressor", sizes=(1, 1)),
    windowing=Windowing(features="raw", samples=1, hop=1, scaling="none", remaining_most=100.0),
    initial=bytes(8),
)


def model(weight: float, bias: float) -> np.ndarray:
    return np.array([weight / TASK.grid_step, bias / TASK.grid_step], dtype=np.int32)


RIGHT, NEAR, FAR = model(1.0, 0.0), model(1.0, 0.25), model(1.0, 0.5)


def samples() -> Samples:
    x = np.array([[0.0], [0.5], [1.0]], dtype=np.float32)
    y = x[:, 0].copy()
    return Samples(train_x=x, train_y=y, held_x=x, held_y=y, raw_bytes=6, recordings=1)


def tried(state: GatewayState, version: int, steps: np.ndarray) -> GatewayState:
    release = Release(version=version, model=short(model_digest(steps)), forced=False)
    return work.trial(state, release, steps, samples(), lambda task: NumpyEngine(task.model))


def test_of_two_regressors_the_one_with_the_smaller_error_serves() -> None:
    state = tried(GatewayState(lineage=1, task=TASK), 1, NEAR)
    assert state.tried is not None
    assert state.tried.trial.metric == pytest.approx(25 * 10_000, rel=1e-3)
    state = tried(state, 2, FAR)
    assert state.in_service is not None
    assert state.in_service.version == 1
    state = tried(state, 3, RIGHT)
    assert state.in_service is not None
    assert state.in_service.version == 3


def test_an_error_beyond_the_wire_s_bounds_travels_as_the_largest_that_fits() -> None:
    assert work.metric_told(1e9) == (1 << 31) - 1
    assert work.metric_told(-1e9) == -((1 << 31) - 1)
    assert work.metric_told(12.345678) == 123_457
