"""The figures of a watch: machines by what they do, alerts by what they are, and what waits to be told. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from fedmq_edge_node.alarms import KINDS, Severity
from fedmq_edge_node.alertbook import Alert
from fedmq_edge_node.operating import State

from fedmq.metrics.families import OTHER, Metric, Sample, word

__all__ = ["METRICS", "samples"]

SEVERITIES: tuple[str, ...] = get_args(Severity)
WAITING = ("open", "acknowledged")
ZONES = ("A", "B", "C", "D")
OUTBOX = ("waiting", "given up", "to be composed")


def _metric(name: str, kind: Any, about: str, *labels: str) -> Metric:
    return Metric(name=f"fedmq_{name}", kind=kind, about=about, labels=labels)


MACHINES = _metric("machines", "gauge", "Machines that are watched, by what they do.", "state")
JUDGED = _metric("machine_judged_timestamp_seconds", "gauge", "Up to when it has been judged, in Unix time.", "machine")
ZONE = _metric(
    "machine_zone", "gauge", "1 for the ISO 20816-3 zone that it is in, where one is known.", "machine", "zone"
)
LEARNING = _metric("machine_learnt_ratio", "gauge", "How much of its normal state is learnt, from 0 to 1.", "machine")
ALERTS = _metric("alerts", "gauge", "Alerts that wait for somebody.", "kind", "severity", "state")
MACHINE_ALERTS = _metric(
    "machine_alerts", "gauge", "Alerts of a machine that wait for somebody.", "machine", "severity", "state"
)
SINCE = _metric(
    "machine_alert_opened_timestamp_seconds",
    "gauge",
    "When the oldest alert of the machine was opened that nobody has acknowledged, in Unix time.",
    "machine",
)
MESSAGES = _metric("watch_messages", "gauge", "Messages to people that have not gone out.", "output", "state")

METRICS = (MACHINES, JUDGED, ZONE, LEARNING, ALERTS, MACHINE_ALERTS, SINCE, MESSAGES)


def samples(
    standings: Mapping[str, Mapping[str, Any]],
    alerts: Sequence[Alert],
    outbox: Sequence[tuple[str, str, int, str]] = (),
) -> Iterator[Sample]:
    """`standings`, `alerts` that are open or acknowledged, and `outbox`, as the alertbook has them."""
    doing = Counter(word(str(one.get("state", "")), tuple(State)) for one in standings.values())
    for state in (*State, OTHER):
        yield Sample(metric=MACHINES, value=doing[str(state)], labels=(str(state),))
    for name, one in standings.items():
        yield from _machine(name, one)
    yield from _alerts(standings, [alert for alert in alerts if alert.state in WAITING])
    for output, state, count, _ in outbox:
        yield Sample(metric=MESSAGES, value=count, labels=(output, word(state, OUTBOX)))


def _machine(name: str, one: Mapping[str, Any]) -> Iterator[Sample]:
    yield Sample(metric=JUDGED, value=one["at"], labels=(name,))
    if one.get("zone") in ZONES:
        for zone in ZONES:
            yield Sample(metric=ZONE, value=float(one["zone"] == zone), labels=(name, zone))
    learning = one.get("learning")
    if learning is not None:
        ratio = 1.0 if learning["done"] or not learning["wanted"] else learning["windows"] / learning["wanted"]
        yield Sample(metric=LEARNING, value=min(1.0, ratio), labels=(name,))


def _alerts(machines: Mapping[str, object], alerts: Sequence[Alert]) -> Iterator[Sample]:
    fleet: Counter[tuple[str, str, str]] = Counter(
        (word(a.kind, KINDS), word(a.severity, SEVERITIES), a.state) for a in alerts
    )
    for kind in KINDS:
        for severity in SEVERITIES:
            for state in WAITING:
                yield Sample(metric=ALERTS, value=fleet[kind, severity, state], labels=(kind, severity, state))
    single: Counter[tuple[str, str, str]] = Counter((a.machine, word(a.severity, SEVERITIES), a.state) for a in alerts)
    names = sorted({*machines, *(alert.machine for alert in alerts)})
    for name in names:
        for severity in SEVERITIES:
            for state in WAITING:
                yield Sample(metric=MACHINE_ALERTS, value=single[name, severity, state], labels=(name, severity, state))
        opened = [alert.opened_at for alert in alerts if alert.machine == name and alert.state == "open"]
        if opened:
            yield Sample(metric=SINCE, value=min(opened), labels=(name,))
