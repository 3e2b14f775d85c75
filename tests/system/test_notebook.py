"""`fedmq.run` is the federation itself: real processes over a real broker come to the same models, round by round."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from fedmq_broker_config.run import LocalBroker
from fedmq_coordinator.report import RoundMetrics, build, metrics_by_round
from fedmq_coordinator.settings import TaskSettings, WindowingSettings
from processes import Site, fedmq, small_fleet

import fedmq as notebook
from fedmq.data import Fleet, GatewayData, Recording
from fedmq.simulator import simulate_fleet

pytestmark = [pytest.mark.slow, pytest.mark.broker]

BUNDLE = Path(__file__).parents[1] / "vectors" / "bundles" / "cnn.fedmq"

OF_TIME_AND_WIRE = {
    *("lineage", "opened_at", "closed_at", "seconds"),
    *("wire_up_bytes", "wire_down_bytes", "ip_bytes", "cpu_seconds"),
}
"""Columns that a run in virtual time has otherwise: a lineage is numbered by the clock, pings take bytes, and no kernel
counts what it costs."""
SAME = tuple(field.name for field in fields(RoundMetrics) if field.name not in OF_TIME_AND_WIRE)


def differences(one: Sequence[RoundMetrics], other: Sequence[RoundMetrics]) -> list[tuple[int, str, object, object]]:
    """Round, column, and both values, wherever two runs are not the same."""
    return [
        (first.round, name, getattr(first, name), getattr(second, name))
        for first, second in zip(one, other, strict=True)
        for name in SAME
        if getattr(first, name) != getattr(second, name)
    ]


def over_mosquitto(
    directory: Path, fleet: Fleet, broker: LocalBroker, settings: TaskSettings
) -> tuple[RoundMetrics, ...]:
    """What a run of real processes comes to, with the task of these settings."""
    windowing = {
        f"windowing.{name}": getattr(settings.windowing, name)
        for name in ("samples", "hop", "features", "held_out", "channels", "scaling")
    }
    task = {"kind": settings.kind, "seed": settings.seed, "hidden": list(settings.hidden), **windowing}
    with Site(directory, fleet, port=broker.port, rounds=4, task=task) as site:
        site.start()
        site.wait_for_rest()
        site.finish()
        site.assert_one_model_everywhere()
        return metrics_by_round(build(site.ledger))


def test_the_same_recordings_make_the_same_models_in_one_process_and_over_a_broker(
    tmp_path: Path, mosquitto: LocalBroker
) -> None:
    fleet = small_fleet(3)
    settings = TaskSettings(name=fleet.name, classes=fleet.classes, windowing=fleet.windowing, seed=3)
    result = notebook.run(settings, fleet, rounds=4)
    assert len({row.digest for row in result.metrics if row.kind == "training"}) == 4
    assert not differences(result.metrics, over_mosquitto(tmp_path, fleet, mosquitto, settings))


def test_arrays_make_the_models_that_recordings_of_a_window_each_make(tmp_path: Path, mosquitto: LocalBroker) -> None:
    rng = np.random.default_rng(0)
    shapes = rng.normal(size=(2, 48)).astype(np.float32)
    data = {
        name: ((shapes[y] + rng.normal(size=(windows, 48))).astype(np.float32), y)
        for name, windows in (("press", 40), ("saw", 64))
        for y in [np.repeat((0, 1), windows // 2)]
    }
    labels = ("even", "odd")
    windowing = WindowingSettings(samples=48, hop=48, features="raw", sampling_rate_hz=100.0, held_out=0.0)
    settings = TaskSettings(name="shapes", classes=labels, windowing=windowing, hidden=(8,))
    fleet = Fleet(
        name=settings.name,
        windowing=windowing,
        classes=labels,
        gateways=tuple(
            GatewayData(
                name=name,
                recordings=tuple(
                    Recording(label=labels[label], name=f"{place:04d}", signal=window, sampling_rate_hz=100.0)
                    for place, (window, label) in enumerate(zip(x, y, strict=True))
                ),
            )
            for name, (x, y) in data.items()
        ),
        test=None,
        split="none",
    )
    result = notebook.run(settings, data, rounds=4)
    assert result.metrics[-1].accepted == 2
    assert not differences(result.metrics, over_mosquitto(tmp_path, fleet, mosquitto, settings))


@pytest.mark.parametrize("task", ["mlp", "bundle"])
def test_the_demo_writes_the_csv_that_the_same_run_in_a_notebook_writes(
    tmp_path: Path, mosquitto: LocalBroker, task: str
) -> None:
    del mosquitto  # only to skip where there is none
    words = ("--gateways", "3", "--rounds", "3", "--seed", "5", "--broker", "mosquitto", "--no-baselines")
    if task == "bundle":
        words += ("--bundle", str(BUNDLE))
    target = tmp_path / "demo.csv"
    ended = fedmq("demo", *words, "--no-progress", "--directory", str(tmp_path / "run"), "--csv", str(target))
    assert ended.returncode == 0, ended.stderr
    fleet = simulate_fleet(gateways=3, seed=5)
    result = notebook.run(BUNDLE if task == "bundle" else task, fleet, rounds=3, seed=5)
    assert result.metric is not None
    result.to_csv(tmp_path / "notebook.csv")
    demo, own = (list(csv.DictReader(path.open(newline=""))) for path in (target, tmp_path / "notebook.csv"))
    assert [[row[name] for name in SAME] for row in demo] == [[row[name] for name in SAME] for row in own]
    assert list(demo[0]) == list(own[0]) == [field.name for field in fields(RoundMetrics)]

    state = tmp_path / "run" / "coordinator"
    printed = fedmq("report", "--state", str(state), "--csv")
    assert printed.stdout.encode().splitlines() == target.read_bytes().splitlines()
    written = fedmq("report", "--state", str(state), "--csv", str(tmp_path / "report.csv"))
    assert written.stdout == ""
    assert (tmp_path / "report.csv").read_bytes() == target.read_bytes()
