"""A gateway that learns from a bridge's store, in virtual time: what becomes of its rounds when its sensor dies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fedmq_coordinator.settings import RoundSettings
from fedmq_edge_node.samples import FEATURES
from fedmq_edge_node.sensors import Sensors
from fedmq_firmware_bridge.service import Bridge
from fedmq_firmware_bridge.sources import Heard
from fedmq_firmware_bridge.store import Recorder, Store
from fedmq_protocol.task import Windowing
from plant import START, Plant, make_task
from sensors import INFO, Played, stretch

WINDOWING = Windowing(samples=256, hop=256, sampling_rate_hz=1000.0, features="vibration-1", channels=3, held_out=0.25)
FRESH_SECONDS = 60.0


class Machine:
    """A plant with one gateway, whose bridge hears what the test plays."""

    def __init__(self, directory: Path) -> None:
        self.plant = Plant(
            directory,
            gateways=0,
            task=make_task(name="pumps", sizes=(3 * FEATURES, 8, 2), classes=("normal", "ball"), windowing=WINDOWING),
            settings=RoundSettings(max_rounds=30, min_gateways=1, interval_seconds=5.0, closing_seconds=10.0),
        )
        path = directory / "bridge.sqlite"
        self.recorder = Recorder(path, max_bytes=1 << 30, opened_at=START)
        self.bridge = Bridge(
            sources=[Played()],
            recorder=self.recorder,
            flush_seconds=30.0,
            flush_bytes=1 << 20,
            monotonic=lambda: self.plant.now - START,
            unix=lambda: self.plant.now,
        )
        self.made = 0
        self.hear(60.0)
        self.hear(60.0)
        store = Store(path)
        store.label("pump-3", START, START + 60.0, "normal", noted_at=START)
        store.label("pump-3", START + 60.0, START + 120.0, "ball", noted_at=START)
        store.close()
        self.plant.folders["g0"] = Sensors(  # type: ignore[assignment]
            path, unix=lambda: self.plant.now, fresh_seconds=FRESH_SECONDS
        )
        self.plant.start_gateway("g0")

    def hear(self, seconds: float) -> None:
        count = round(1000 * seconds)
        signal = np.random.default_rng(self.made).normal(0, 100, (count, 3)).astype(np.int16)
        self.bridge.take([Heard(sensor=INFO, stretch=stretch(self.made, count, values=signal))])
        self.made += count
        self.bridge.flush()

    def answers(self) -> list[tuple[str, str | None]]:
        return [(answer.kind, answer.reason) for answer in self.plant.ledger.answers() if answer.gateway == "g0"]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.recorder.close()


def test_a_dead_sensor_shuts_the_gate_until_it_is_heard_again(machine: Machine) -> None:
    machine.plant.run_until(lambda: ("update", None) in machine.answers())
    assert not any(kind == "decline" for kind, _ in machine.answers())

    machine.plant.now += 10 * FRESH_SECONDS  # and nothing is heard
    machine.plant.run_until(lambda: any(kind == "decline" for kind, _ in machine.answers()))
    assert {reason for kind, reason in machine.answers() if kind == "decline"} == {"samples"}
    updates = machine.answers().count(("update", None))

    machine.hear(1.0)
    machine.plant.run_until(lambda: machine.answers().count(("update", None)) > updates)


def test_the_coordinator_knows_how_the_sensors_are(machine: Machine) -> None:
    machine.plant.run_until(lambda: ("update", None) in machine.answers())
    told = machine.plant.ledger.get("sensors of g0")
    assert told is not None
    assert b'"counting"' in told
