"""What is on record of the fleet's machines: rows of the ledger, for whoever reads it.

Owns the values: watches, machines, alerts, summaries, spreads, the fleet's limits and drift, and what people read of
drift. `Ledger` has the methods that read and write them; what a gateway's message changes is in `conditions`, which is
the coordinator's part.

    ledger.machines()                       every machine, by gateway and name
    ledger.alerts(states=WAITING)           what waits for somebody, newest first
    ledger.alert("gateway-7", 12)           one, as `fedmq alert` names it: gateway-7/12
    ledger.orders_of_alert("gateway-7", 12) what people have ordered of it, and what came of that
    ledger.fleet_drifts()                   kinds of machines of which many have drifted
    ledger.fleet_spreads()                  how each measure holds to what is normal, over all machines of a kind
    book.proposal()                         whether a task should be trained anew for it, and what became of that

Times are Unix seconds by the clock of whoever noted them: a gateway's for what it measured (`at`, `opened_at`,
`from_at`, `to_at`, `baseline_at`), the coordinator's for when it heard (`heard_at`, `since`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
from fedmq_protocol.condition import QUANTILES, WAITING_STATES, Measured, meet, quantiles_of, read_trend
from fedmq_protocol.spread import PARTS, Counts

if TYPE_CHECKING:
    from fedmq_coordinator.ledger import Book, Ledger

__all__ = [
    "LOST",
    "WAITING",
    "Alert",
    "Drift",
    "Evidence",
    "FleetSpread",
    "Limit",
    "Machine",
    "Proposal",
    "Spread",
    "SpreadLine",
    "Summed",
    "Watch",
    "alerts_of",
    "by_machine",
    "coded",
    "machines_of",
    "machines_told",
    "overlapping",
    "spreads_of",
]

MOST_ALERTS_SHOWN = 1000
LITTLE = 0.1
"""Population stability index below which a change is none to speak of."""
MOST_MEASURES_TOLD = 6
"""Of a kind of machine, in one line."""

WAITING = WAITING_STATES
"""States of alerts of which nobody has said what they were: open, acknowledged, cleared."""

LOST = "lost"
"""State of an alert that waited when its gateway began another book: nobody can say any more what it was."""


SCORE, OF_VERSION = "score of ", " of version "
"""Around a task's name, in a measure that is a model's score."""


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
    def task(self) -> None:
        """It is not one task's alone."""

    @property
    def share(self) -> float:
        return self.drifting / self.machines if self.machines else 0.0

    @property
    def reason(self) -> str:
        """For people."""
        measures = ", ".join(self.measures.split("\n")[:4])
        return (
            f"{self.drifting:,} of {_many(self.machines, self.kind)} at {_many(self.gateways, 'gateway')} are not what"
            f" they were: {measures}"
        )


def coded(shares: Sequence[int]) -> bytes:
    return msgspec.msgpack.encode(tuple(shares))


@dataclass(frozen=True, kw_only=True)
class _Spread:
    kind: str
    band: str
    measure: str
    machines: int
    """That have told, each held against its own normal."""
    coded_shares: bytes

    @cached_property
    def shares(self) -> Counts:
        """Per mille of the windows in each tenth of what is normal, the lowest first."""
        return msgspec.msgpack.decode(self.coded_shares, type=Counts)


@dataclass(frozen=True, kw_only=True)
class Spread(_Spread):
    """How one measure lies lately among the tenths of what is normal, at a gateway's machines of a kind."""

    gateway: str
    windows: int
    """As how many it is by chance."""
    heard_at: float
    mark: bytes


@dataclass(frozen=True, kw_only=True)
class FleetSpread(_Spread):
    """The same of all machines of a kind together."""

    gateways: int
    stability: float
    """Population stability index against even tenths."""
    of_others: float | None
    """The same without the gateways that move it most; None where too few tell."""
    bound: float
    """Beyond which the latter is drift: that of the settings, and what chance explains."""
    since: float | None
    """It has been; None where it is not."""

    @property
    def task(self) -> str | None:
        """Whose model's score it is; None for what is measured of the vibration itself."""
        name, score, _ = self.measure.removeprefix(SCORE).rpartition(OF_VERSION)
        return name if score and self.measure.startswith(SCORE) else None

    @property
    def how(self) -> str:
        """Which way it differs most from normal, and by how much, for people; little is not worth a direction.

        By the first two components of Neyman's smooth test (1937, "Smooth test" for goodness of fit), which are shifted
        Legendre polynomials: the first is the level, the second how far it spreads.
        """
        if self.since is None and self.stability < LITTLE:
            return "about as it was"
        middles = [(part + 0.5) / PARTS for part in range(PARTS)]
        pairs = list(zip(middles, self.shares, strict=True))
        level = math.sqrt(3) * sum(share * (2 * at - 1) for at, share in pairs)
        width = math.sqrt(5) * sum(share * (6 * at * at - 6 * at + 1) for at, share in pairs)
        lowest, top = self.shares[0] / 10, self.shares[-1] / 10
        if abs(level) >= abs(width):
            which, tenth, share = ("higher", "top", top) if level > 0 else ("lower", "lowest", lowest)
            return f"{which}: {share:.0f} % of windows lie in the {tenth} tenth of normal, where 10 % did"
        which = "more scattered" if width > 0 else "less scattered"
        return f"{which}: {lowest + top:.0f} % of windows lie in the lowest and the top tenth of normal, where 20 % did"

    @property
    def line(self) -> SpreadLine:
        return SpreadLine(
            kind=self.kind,
            band=self.band,
            measure=self.measure,
            machines=self.machines,
            gateways=self.gateways,
            index=round(self.stability, 4),
            index_of_others=None if self.of_others is None else round(self.of_others, 4),
            bound=round(self.bound, 4),
            drifting_since=self.since,
            shares=[share / 1000 for share in self.shares],
            how=self.how,
        )

    @property
    def reason(self) -> str:
        """For people."""
        return self.line.reason


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


class SpreadLine(msgspec.Struct, frozen=True, kw_only=True):
    """How one measure lies lately among the tenths of what is normal, over all machines of a kind; as programs and
    pages read it."""

    kind: str
    band: str
    """Of speed and load; all: there is but one."""
    measure: str
    machines: int
    """Each held against its own normal, each with the same weight."""
    gateways: int
    index: float
    """Population stability index against even tenths: 0 where nothing has changed."""
    index_of_others: float | None
    """Without the gateways that move it most; None where too few tell."""
    bound: float
    """Beyond which the latter is drift."""
    drifting_since: float | None
    shares: list[float]
    """Parts of 1 of the windows in each tenth, the lowest first."""
    how: str
    """Which way it differs most, in words."""

    @property
    def where(self) -> str:
        """The measure, with its band where there are several."""
        return self.measure if self.band == "all" else f"{self.measure} ({self.band})"

    @property
    def reason(self) -> str:
        """Which measure of which machines, and how it differs from what is normal; for people."""
        return (
            f"{self.where} of {_many(self.machines, self.kind)} at {_many(self.gateways, 'gateway')} together is"
            f" {self.how} (index {self.index:.2f})"
        )


def spreads_of(ledger: Ledger, task: str | None = None) -> list[SpreadLine]:
    """The farthest from normal first; of scores those of this task's models alone, if one is named."""
    return [
        one.line
        for one in sorted(ledger.fleet_spreads(), key=lambda one: (one.since is None, -one.stability))
        if task is None or one.task in (None, task)
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
    spreads = spreads_of(ledger)
    for kind in sorted({one.kind for one in spreads}):
        farthest = [one for one in spreads if one.kind == kind]
        told = ", ".join(f"{one.where} {one.index:.2f}" for one in farthest[:MOST_MEASURES_TOLD])
        more = len(farthest) - MOST_MEASURES_TOLD
        machines, gateways = (max(getattr(one, what) for one in farthest) for what in ("machines", "gateways"))
        fields.append(
            (
                "normal",
                f"{_many(machines, kind)} at {_many(gateways, 'gateway')}, each against its own, by index (0: as it"
                f" was): {told}" + (f" and {more} more" if more > 0 else ""),
            )
        )
    drifts = [(one.since, one.reason) for one in ledger.fleet_drifts()]
    drifts += [(one.drifting_since, one.reason) for one in spreads if one.drifting_since is not None]
    for began, reason in drifts:
        since = datetime.fromtimestamp(began).astimezone().isoformat(timespec="minutes")
        fields.append(("drift", f"{reason}; since {since}"))
    proposal = book.proposal()
    if proposal is not None and proposal.state == "proposed":
        fields.append(("proposal", f"train anew: {proposal.reason}. Order it with `fedmq task retrain {book.name}`"))
    elif proposal is not None and proposal.state == "opened":
        fields.append(("training", f"goes on, for {proposal.reason}"))
    return fields


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
