"""A watch's book as a watch writes it, without a signal in sight: machines, what is normal for them, and alerts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from fedmq_edge_node.alarms import Cleared, Evidence, Raised
from fedmq_edge_node.alertbook import Alertbook
from fedmq_edge_node.watching import _Normal
from fedmq_protocol.sketch import Summary

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
        self, machine: str = "pump-1", *, centre: float = 1.0, drifting: int = 0, done: bool = True, seed: int = 0
    ) -> Summary:
        """Its acceleration's normal, spread around `centre`."""
        values = np.random.default_rng(seed).lognormal(np.log(centre), 0.1, 500)
        summary = Summary().seen(*values.tolist())
        normal = _Normal(first_at=AT, summary=summary.to_bytes(), done=done, drifting=drifting)
        parts = self._normals.setdefault(machine, {})
        parts[f"normal\n{machine}-de\nall\nacceleration"] = msgspec.msgpack.encode(normal)
        self.book.step(at=AT, parts={machine: parts})
        return summary

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
