"""What is on record of the fleet's machines: rows of the ledger, for whoever reads it.

Owns the values: watches, machines, alerts, summaries, the fleet's limits, drift. `Ledger` has the methods that read and
write them; what a gateway's message changes is in `conditions`, which is the coordinator's part.

    ledger.machines()                       every machine, by gateway and name
    ledger.alerts(states=WAITING)           what waits for somebody, newest first
    ledger.alert("gateway-7", 12)           one, as `fedmq alert` names it: gateway-7/12
    ledger.orders_of_alert("gateway-7", 12) what people have ordered of it, and what came of that
    ledger.fleet_drifts()                   kinds of machines of which many have drifted
    book.proposal()                         whether a task should be trained anew for it, and what became of that

Times are Unix seconds by the clock of whoever noted them: a gateway's for what it measured (`at`, `opened_at`,
`from_at`, `to_at`, `baseline_at`), the coordinator's for when it heard (`heard_at`, `since`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
from fedmq_protocol.condition import QUANTILES, WAITING_STATES, Measured, meet, quantiles_of, read_trend

if TYPE_CHECKING:
    from fedmq_coordinator.ledger import Book, Ledger

__all__ = [
    "LOST",
    "WAITING",
    "Alert",
    "Drift",
    "Evidence",
    "Limit",
    "Machine",
    "Proposal",
    "Summed",
    "Watch",
    "alerts_of",
    "by_machine",
    "machines_of",
    "machines_told",
    "overlapping",
]

MOST_ALERTS_SHOWN = 1000

WAITING = WAITING_STATES
"""States of alerts of which nobody has said what they were: open, acknowledged, cleared."""

LOST = "lost"
"""State of an alert that waited when its gateway began another book: nobody can say any more what it was."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Of one gateway: how far it has told of its machines."""

    gateway: str
    book: bytes
    cursor: int
    heard_at: float
    limits: bytes
    """Mark of the fleet's limits that it has; empty: none."""
    messages: int
    """That told of machines,"""
    bytes: int
    """and what they came to, without MQTT's own."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """As it was when it was last told of."""

    gateway: str
    name: str
    kind: str
    """Such as pump."""
    state: str
    """stopped | starting | running | stopping"""
    zone: str | None
    """A to D of ISO 20816-3; None: it is not judged by zones."""
    learnt_pct: int
    """100: its normal is learnt."""
    level: float
    """The highest of its kinds of alert; 1.0 is the limit."""
    at: float
    """Of the last window that was judged, by the gateway's clock."""
    drift: str
    """Measures with sustained drift, one a line."""
    event: str | None
    """What made it another machine, such as bearing-changed,"""
    baseline_at: float | None
    """and when."""
    heard_at: float
    mark: bytes

    @property
    def learnt(self) -> bool:
        return self.learnt_pct >= 100

    @property
    def drifting(self) -> tuple[str, ...]:
        """Measures that are not distributed as in its baseline, and have not been for long."""
        return tuple(one for one in self.drift.split("\n") if one)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One thing that an alert goes by."""

    name: str
    value: float
    limit: float
    unit: str
    was: float | None
    """Typical of the machine's baseline."""
    by: str
    """Whose limit it is: fleet while the machine's own is still being learnt, else empty."""
    trend: tuple[tuple[float, float], ...]
    """Times and values, at most 24, in order; empty for all but the first."""


@dataclass(frozen=True, kw_only=True)
class Alert:
    """As it was when it was last told of. Its name for people is `place`."""

    gateway: str
    book: bytes
    number: int
    machine: str
    sensor: str
    kind: str
    """vibration | defect | anomaly | fault | life"""
    state: str
    """open | acknowledged | confirmed | dismissed | cleared | lost"""
    severity: str
    """warning | alarm"""
    level: float
    """The highest that is known; 1.0 is the limit."""
    label: str | None
    """The fault that it names itself."""
    verdict: str | None
    """The fault that somebody confirmed."""
    opened_at: float
    from_at: float
    to_at: float | None
    """None while its cause is there."""
    heard_at: float
    coded_evidence: bytes

    @property
    def place(self) -> str:
        return f"{self.gateway}/{self.number}"

    @property
    def waits(self) -> bool:
        """Whether nobody has said yet what it was."""
        return self.state in WAITING

    @cached_property
    def evidence(self) -> tuple[Evidence, ...]:
        """The worst first."""
        return tuple(
            Evidence(
                name=one.name,
                value=one.value,
                limit=one.limit,
                unit=one.unit,
                was=one.was,
                by=one.by,
                trend=tuple(read_trend(one.trend, self.opened_at)),
            )
            for one in msgspec.msgpack.decode(self.coded_evidence, type=tuple[Measured, ...])
        )


@dataclass(frozen=True, kw_only=True)
class Summed:
    """What is normal of one measure at a gateway's machines of a kind."""

    gateway: str
    kind: str
    band: str
    measure: str
    count: int
    """Of windows."""
    heard_at: float
    sketch: bytes
    mark: bytes


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What is normal of a measure at most gateways: the medians over them of their quantiles."""

    kind: str
    band: str
    measure: str
    gateways: int
    at: float
    quantiles: bytes

    @property
    def by_share(self) -> dict[float, float]:
        """By the share of windows that are not above: 0.5 is the median."""
        return dict(zip(QUANTILES, quantiles_of(self.quantiles), strict=True))


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A kind of machines of which many have drifted, and since when."""

    kind: str
    since: float
    machines: int
    """Of this kind whose normal is learnt."""
    drifting: int
    gateways: int
    """That have such ones."""
    measures: str
    """Which, the most frequent first, one a line."""

    @property
    def share(self) -> float:
        return self.drifting / self.machines if self.machines else 0.0


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """That a task should be trained anew, because many machines are not what they were. It moves no limit."""

    at: float
    reason: str
    state: str
    """proposed: somebody may order it (`fedmq task retrain`); opened: the run goes on for it; over: the drift went
    before anybody ordered it"""
    opened_at: float | None = None


def machines_of(ledger: Ledger) -> list[dict[str, Any]]:
    """As programs read them: `fedmq status`, pages."""
    return [
        {
            "gateway": one.gateway,
            "name": one.name,
            "kind": one.kind,
            "state": one.state,
            "zone": one.zone,
            "learnt_pct": one.learnt_pct,
            "level": one.level,
            "drifting": list(one.drifting),
            "event": one.event,
            "baseline_at": one.baseline_at,
            "at": one.at,
            "heard_at": one.heard_at,
        }
        for one in ledger.machines()
    ]


def by_machine(alerts: Iterable[Alert]) -> dict[tuple[str, str], list[Alert]]:
    """By gateway and machine."""
    found: dict[tuple[str, str], list[Alert]] = {}
    for one in alerts:
        found.setdefault((one.gateway, one.machine), []).append(one)
    return found


def overlapping(alert: Alert, waiting: Mapping[tuple[str, str], Sequence[Alert]]) -> list[Alert]:
    """Of those that wait, by machine, others that overlap it in time, oldest first: most likely of one cause."""
    span = (alert.from_at, alert.to_at)
    others = waiting.get((alert.gateway, alert.machine), ())
    meeting = [one for one in others if one.number != alert.number and meet(span, (one.from_at, one.to_at))]
    return sorted(meeting, key=lambda one: one.number)


def alerts_of(ledger: Ledger) -> list[dict[str, Any]]:
    """As programs read them, newest first: `fedmq alert list --json`, pages."""
    waiting = by_machine(ledger.alerts(states=WAITING))
    return [
        {
            "alert": one.place,
            "gateway": one.gateway,
            "number": one.number,
            "machine": one.machine,
            "sensor": one.sensor,
            "kind": one.kind,
            "state": one.state,
            "severity": one.severity,
            "level": one.level,
            "label": one.label,
            "verdict": one.verdict,
            "opened_at": one.opened_at,
            "from": one.from_at,
            "to": one.to_at,
            "others": [other.number for other in overlapping(one, waiting)],
            "heard_at": one.heard_at,
            "evidence": [
                {
                    "name": what.name,
                    "value": what.value,
                    "limit": what.limit,
                    "unit": what.unit,
                    "was": what.was,
                    "by": what.by,
                    "trend": [list(point) for point in what.trend],
                }
                for what in one.evidence
            ],
        }
        for one in ledger.alerts(last=MOST_ALERTS_SHOWN)
    ]


def machines_told(ledger: Ledger, book: Book) -> list[tuple[str, str]]:
    """For `fedmq status`: a heading and a line each on machines, alerts and drift; empty where nobody tells of any."""
    watches, machines = ledger.watches(), ledger.machines()
    if not watches:
        return []
    states = Counter(one.state for one in machines)
    learning = sum(not one.learnt for one in machines)
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    line = f"{len(machines)} at {_many(len(watches), 'gateway')}: {told or 'none judged yet'}"
    line += f"; {learning} still learn what is normal" if learning else ""
    line += f"; told in {_many(sum(w.messages for w in watches), 'message')}, {sum(w.bytes for w in watches):,} bytes"
    counts = ledger.count_alerts()
    waiting = sum(count for (state, _), count in counts.items() if state in WAITING)
    alarms = sum(count for (state, severity), count in counts.items() if state in WAITING and severity == "alarm")
    alerts = f"{waiting} wait for somebody" if waiting else "none waits for anybody"
    alerts += f", {alarms} of them alarms" if alarms else ""
    fields = [("machines", line), ("alerts", alerts)]
    for drift in ledger.fleet_drifts():
        measures = ", ".join(drift.measures.split("\n")[:4])
        since = datetime.fromtimestamp(drift.since).astimezone().isoformat(timespec="minutes")
        fields.append(
            (
                "drift",
                f"{drift.drifting} of {_many(drift.machines, drift.kind)} at {_many(drift.gateways, 'gateway')} are not"
                f" as they were since {since}: {measures}",
            )
        )
    proposal = book.proposal()
    if proposal is not None and proposal.state == "proposed":
        fields.append(("proposal", f"train anew: {proposal.reason}. Order it with `fedmq task retrain {book.name}`"))
    elif proposal is not None and proposal.state == "opened":
        fields.append(("retraining", proposal.reason))
    return fields


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
