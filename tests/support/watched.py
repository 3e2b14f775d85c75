"""A machine whose sensor a test plays into a bridge's store, for a watch to judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fedmq_edge_node.alarms import Policy
from fedmq_edge_node.alertbook import Alertbook
from fedmq_edge_node.machines import Machine
from fedmq_edge_node.operating import OperatingSettings
from fedmq_edge_node.watching import WatchPolicy
from fedmq_firmware_bridge.frames import Channel
from fedmq_firmware_bridge.readings import Stretch
from fedmq_firmware_bridge.store import Recorder, SensorInfo

from fedmq.simulator import simulate_vibration
from fedmq.watch.kept import Kept
from fedmq.watch.service import Watch

RATE_HZ = 12_000.0
EVERY = 10.0
PUMP = "pump-3"
MACHINE = Machine(name=PUMP, operating=OperatingSettings(running_from_g=0.05, dwell_seconds=5.0))
POLICY = WatchPolicy(alarms=Policy(clear_windows=3), learning_windows=20, learning_seconds=0.0)
BEGIN = 1_700_000_000.0


def shaking(n: int, label: str = "normal", shaft_hz: float = 30.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return simulate_vibration(
        label=label,
        severity=0.0 if label == "normal" else 20.0,
        shaft_hz=shaft_hz,
        load=1.0,
        resonance_hz=3200.0,
        seconds=1.0,
        rng=np.random.default_rng((n, 7)),
    )


class Plant:
    """A store that grows by a second of signal every ten seconds, as a bridge that keeps a part of all does."""

    def __init__(self, directory: Path, machines: tuple[str, ...] = (PUMP,)) -> None:
        self.directory = directory
        self.store = directory / "bridge.sqlite"
        self.machines = machines
        self.recorder = Recorder(self.store, max_bytes=1 << 30, opened_at=BEGIN)
        self.n = 0
        self.now = BEGIN

    def hear(self, count: int, label: str = "normal", machine: str = PUMP, shaft_hz: float = 30.0) -> None:
        number = self.machines.index(machine)
        info = SensorInfo(
            source="line",
            number=number,
            name=f"{machine}-x",
            machine=machine,
            channels=(Channel(name="x", unit="g"),),
        )
        for _ in range(count):
            values = shaking(self.n, label, shaft_hz).reshape(-1, 1)
            at = BEGIN + EVERY * self.n
            stretch = Stretch(
                sensor=number,
                boot=1,
                taken_at=at,
                taken_us=0,
                rate_hz=RATE_HZ,
                scale=1.0,
                values=values,
                follows=False,
            )
            self.recorder.append(info, stretch, 0.0)
            self.n += 1
            self.now = at + 1.0
        self.recorder.flush(self.now, {})

    def watch(self, book: Alertbook | None = None, machines: tuple[Machine, ...] = (MACHINE,), **more: Any) -> Watch:
        values: dict[str, Any] = {
            "book": book or self.book(),
            "store": self.store,
            "machines": {machine.name: machine for machine in machines},
            "policy": POLICY,
            "kept": Kept(self.directory / "watch" / "kept", seconds=60.0, most_bytes=1 << 24),
            "window_seconds": 1.0,
            "every_seconds": 1.0,
            "commit_seconds": 0.0,
            "unix": lambda: self.now,
        }
        return Watch(**(values | more))

    def book(self) -> Alertbook:
        return Alertbook(self.directory / "watch" / "alerts.sqlite")


def finish(watch: Watch) -> None:
    """Turn after turn, until there is nothing more to judge."""
    while watch.turn():
        pass
