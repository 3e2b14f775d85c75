"""Rows of a ledger that tells of machines, for tests that read them."""

from __future__ import annotations

from typing import Any

import msgspec
from fedmq_coordinator.machines import Alert, Drift, FleetSpread, Machine, Spread, Summed, Watch, coded
from fedmq_protocol.condition import Measured, to_trend

RAISED_AT = 1_700_000_000.0
BOOK = b"book"


def a_watch(gateway: str, **changes: object) -> Watch:
    values: dict[str, object] = {
        "gateway": gateway,
        "book": BOOK,
        "cursor": 7,
        "heard_at": RAISED_AT,
        "limits": b"",
        "messages": 3,
        "bytes": 900,
    }
    return Watch(**(values | changes))  # type: ignore[arg-type]


def a_machine(gateway: str, name: str = "pump-1", **changes: object) -> Machine:
    values: dict[str, object] = {
        "gateway": gateway,
        "name": name,
        "kind": "pump",
        "state": "running",
        "zone": "B",
        "learnt_pct": 100,
        "level": 0.6,
        "at": RAISED_AT,
        "drift": "",
        "event": None,
        "baseline_at": None,
        "heard_at": RAISED_AT + 1,
        "mark": bytes(8),
    }
    return Machine(**(values | changes))  # type: ignore[arg-type]


def an_alert(gateway: str, number: int, **changes: object) -> Alert:
    opened_at = changes.get("opened_at", RAISED_AT + number)
    assert isinstance(opened_at, float | int)
    points = [(opened_at - 3600.0 * (24 - n), 1.0 + n / 10) for n in range(24)]
    evidence = (
        Measured(name="velocity", value=3.4, limit=2.8, unit="mm/s", was=1.1, trend=to_trend(points, opened_at)),
        Measured(name="kurtosis", value=4.0, limit=3.9),
    )
    values: dict[str, object] = {
        "gateway": gateway,
        "book": BOOK,
        "number": number,
        "machine": "pump-1",
        "sensor": "pump-1-de",
        "kind": "vibration",
        "state": "open",
        "severity": "warning",
        "level": 1.21,
        "label": None,
        "verdict": None,
        "opened_at": opened_at,
        "from_at": opened_at - 20,
        "to_at": None,
        "heard_at": opened_at + 5,
        "coded_evidence": msgspec.msgpack.encode(evidence),
    }
    return Alert(**(values | changes))  # type: ignore[arg-type]


def a_summary(gateway: str, measure: str = "acceleration", **changes: object) -> Summed:
    values: dict[str, object] = {
        "gateway": gateway,
        "kind": "pump",
        "band": "all",
        "measure": measure,
        "count": 1000,
        "heard_at": RAISED_AT,
        "sketch": b"",
        "mark": bytes(8),
    }
    return Summed(**(values | changes))  # type: ignore[arg-type]


def a_drift(kind: str = "pump", **changes: object) -> Drift:
    values: dict[str, object] = {
        "kind": kind,
        "since": RAISED_AT,
        "machines": 10,
        "drifting": 4,
        "gateways": 3,
        "measures": "acceleration\nkurtosis",
    }
    return Drift(**(values | changes))  # type: ignore[arg-type]


EVEN = (100,) * 10
HIGHER = (20, 30, 40, 60, 80, 100, 110, 120, 150, 290)


def a_spread(gateway: str, measure: str = "acceleration", shares: tuple[int, ...] = EVEN, **changes: Any) -> Spread:
    values: dict[str, Any] = {
        "gateway": gateway,
        "kind": "pump",
        "band": "all",
        "measure": measure,
        "machines": 1,
        "windows": 900,
        "coded_shares": coded(shares),
        "heard_at": RAISED_AT,
        "mark": bytes(8),
    }
    return Spread(**(values | changes))


def a_fleet_spread(measure: str = "acceleration", shares: tuple[int, ...] = HIGHER, **changes: Any) -> FleetSpread:
    values: dict[str, Any] = {
        "kind": "pump",
        "band": "all",
        "measure": measure,
        "machines": 12,
        "gateways": 5,
        "coded_shares": coded(shares),
        "stability": 0.45,
        "of_others": 0.41,
        "bound": 0.12,
        "since": RAISED_AT,
    }
    return FleetSpread(**(values | changes))
