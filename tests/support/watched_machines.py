"""A watch's book as a watch writes it: machines, what is normal for them, and alerts.

`WatchedMachines` writes what a test says, without a signal in sight; a `LivingMachine` shakes, and a watcher judges it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from fedmq_edge_node.alarms import Cleared, Evidence, Raised
from fedmq_edge_node.alertbook import Alertbook
from fedmq_edge_node.machines import Machine
from fedmq_edge_node.operating import OperatingSettings
from fedmq_edge_node.watching import Watcher, WatchPolicy, Window, _Normal
from fedmq_protocol.sketch import Summary
from fedmq_protocol.spread import Counts

AT = 1_700_000_000.0


class WatchedMachines:
    """`book` is open; each method is one transaction of a watch."""

    def __init__(self, path: Path) -> None:
        self.book = Alertbook(path)
        self._normals: dict[str, dict[str, bytes]] = {}

    def stand(self, machine: str = "pump-1", *, kind: str = "pump", state: str = "running", **more: Any) -> None:
        """How the machine is: `level` of its vibration, `windows` learnt of 100, `zone`, `at`."""
        windows = more.get("windows", 100)
        standing = {
            "at": more.get("at", AT),
            "state": state,
            "sensor": f"{machine}-de",
            "kind": kind,
            "zone": more.get("zone", "B"),
            "levels": {"vibration": more.get("level", 0.5)},
            "learning": {"windows": windows, "wanted": 100, "done": windows >= 100},
        }
        self.book.step(at=AT, standings={machine: standing})

    def learn(
        self,
        machine: str = "pump-1",
        *,
        centre: float = 1.0,
        drifting: int = 0,
        done: bool = True,
        seed: int = 0,
        epochs: Sequence[Counts] = (),
        measures: Sequence[str] = ("acceleration",),
    ) -> Summary:
        """Its normal of each measure, spread around `centre`; `epochs` say how it held to that lately."""
        values = np.random.default_rng(seed).lognormal(np.log(centre), 0.1, 500)
        summary = Summary().seen(*values.tolist())
        normal = _Normal(
            first_at=AT, summary=summary.to_bytes(), done=done, drifting=drifting, epochs=list(map(tuple, epochs))
        )
        parts = self._normals.setdefault(machine, {})
        for measure in measures:
            parts[f"normal\n{machine}-de\nall\n{measure}"] = msgspec.msgpack.encode(normal)
        self.book.step(at=AT, parts={machine: parts})
        return summary

    def forget(self, machine: str = "pump-1") -> None:
        """It is another machine: nothing is known to be normal."""
        self._normals[machine] = {}
        self.book.step(at=AT, parts={machine: {}})

    def raise_alert(self, machine: str = "pump-1", *, level: float = 1.2, at: float = AT) -> int:
        evidence = (
            Evidence(
                name="velocity",
                value=2.8 * level,
                limit=2.8,
                unit="mm/s",
                was=1.1,
                was_at=at - 86_400,
                trend=tuple((at - 3600.0 * (24 - n), 1.0 + n / 10) for n in range(24)),
            ),
            Evidence(name="kurtosis", value=5.0, limit=4.5),
        )
        (number,) = self.book.step(
            at=at,
            outcomes=[
                Raised(
                    machine=machine,
                    kind="vibration",
                    at=at,
                    from_at=at - 20,
                    level=level,
                    severity="warning" if level < 1.55 else "alarm",
                    evidence=evidence,
                    sensor=f"{machine}-de",
                )
            ],
        )
        return number

    def clear(self, machine: str = "pump-1", *, at: float = AT + 60) -> None:
        self.book.step(at=at, outcomes=[Cleared(machine=machine, kind="vibration", at=at, to_at=at - 30, level=1.3)])


class LivingMachine:
    """A pump with a watcher of its own, shaking about a level that differs from window to window: its logarithm has
    `SPREAD` as its standard deviation."""

    SPREAD = 0.1
    POLICY = WatchPolicy(learning_windows=150, learning_seconds=0.0, drift_windows=80)

    def __init__(self, name: str, *, level_g: float, seed: int) -> None:
        operating = OperatingSettings(running_from_g=0.01, dwell_seconds=5.0)
        self.name = name
        self.watcher = Watcher(Machine(name=name, kind="pump", operating=operating), self.POLICY)
        self._rng = np.random.default_rng(seed)
        self._level_g = level_g
        self._at = 0.0

    def run(self, windows: int, *, louder: float = 0.0) -> None:
        """So many windows, by that many of its spreads louder than at first."""
        for level in self._rng.lognormal(np.log(self._level_g) + louder * self.SPREAD, self.SPREAD, windows):
            signal = level * self._rng.normal(size=(256, 1))
            at, self._at = self._at, self._at + 10.0
            self.watcher.step(
                Window(sensor="de", from_at=at, to_at=at + 1, signal=signal, rate_hz=1000.0, speed_hz=30.0)
            )

    def tell(self, watch: WatchedMachines) -> None:
        """Write how it is into that book."""
        watch.stand(self.name)
        watch.book.step(at=AT, parts={self.name: self.watcher.dump()})
