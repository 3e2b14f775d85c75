from __future__ import annotations

import threading

import numpy as np
import pytest
from bundles import BATCH, brought, bundle_of, slow
from fedmq_edge_node.runtimes import GraphStopped, available_engines, make_engine
from fedmq_edge_node.watchdog import Watchdog
from fedmq_models.bundle import Bundle, from_bytes
from fedmq_protocol.task import ModelSpec

MODEL = ModelSpec(kind="mlp", sizes=(22, 8, 3))


def step(bundle: Bundle, engine: str, seconds: float) -> float:
    data, model = brought(bundle)
    made = make_engine(model, engine, from_bytes(data), run_seconds=seconds)
    x = np.zeros((BATCH, 22), dtype=np.float32)
    flat = np.zeros(model.parameters, dtype=np.float32)
    return made.loss_grad(flat, x, np.zeros(BATCH, dtype=np.int64), np.ones(BATCH, dtype=np.float32))[1]


@pytest.mark.parametrize("engine", available_engines())
def test_a_graph_that_runs_beyond_its_time_is_stopped(engine: str) -> None:
    with pytest.raises(GraphStopped, match=r"took more than 0\.02 s and was stopped"):
        step(slow(bundle_of(MODEL)), engine, 0.02)


@pytest.mark.parametrize("engine", available_engines())
def test_the_same_graph_runs_to_its_end_where_there_is_time(engine: str) -> None:
    assert np.isfinite(step(slow(bundle_of(MODEL)), engine, 600.0))


def test_a_run_is_told_to_stop_once_its_time_is_over() -> None:
    told = threading.Event()
    with Watchdog(0.02).watching() as watch:
        watch.stop = told.set
        assert told.wait(60.0)
        assert watch.late


def test_many_short_runs_are_not_taken_for_a_long_one() -> None:
    watchdog = Watchdog(0.02)
    pause = threading.Event()
    for _ in range(40):
        with watchdog.watching() as watch:
            pause.wait(0.002)
        assert not watch.late


def test_nobody_watches_where_nothing_runs() -> None:
    watchdog = Watchdog(0.02)
    with watchdog.watching():
        thread = watchdog._thread
    assert thread is not None
    thread.join(60.0)
    assert not thread.is_alive()
    told = threading.Event()
    with watchdog.watching() as watch:
        watch.stop = told.set
        assert told.wait(60.0)
