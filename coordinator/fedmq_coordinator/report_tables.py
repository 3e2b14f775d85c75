"""A report for other programs: JSON as it is, and CSV of its rounds, gateways or groups (RFC 4180)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

import msgspec

from fedmq_coordinator.report_model import Report, Reports, RoundLine

__all__ = ["RoundMetrics", "metrics_by_round", "to_csv", "to_json"]


@dataclass(frozen=True, kw_only=True)
class RoundMetrics:
    """What a round came to, flat: the columns of the CSV, in its order. None is not known, and empty there."""

    round: int
    """Its number. The first one of a task that learns scaling is of kind `statistics`, and trains nothing."""
    lineage: int
    kind: str
    base: int
    version: int | None
    outcome: str
    opened_at: float
    """Unix seconds."""
    closed_at: float | None
    seconds: float | None
    drawn: int
    answered: int
    accepted: int
    declined: int
    owed: int
    plan_bytes: int
    metric: float | None
    """Of the version that came of it, on `metric_source`."""
    loss: float | None
    metric_source: str | None
    """`test set`, or `held-out windows` of the gateways."""
    level: int
    wire_up_bytes: int
    """All MQTT packets that the gateways sent, summed over them."""
    wire_down_bytes: int
    payload_up_bytes: int
    """The coded deltas alone."""
    payload_down_bytes: int
    dense_up_bytes: int
    """What float32 would have cost."""
    dense_down_bytes: int
    metric_name: str
    training_loss: float | None
    digest: str | None
    """sha256 of that version, in hex: where two runs have the same, they have the same model."""
    ip_bytes: int
    """With what TCP/IP and TLS put around, up and down together: what a SIM card is billed for."""
    cpu_seconds: float | None
    """Of the gateways' processes together."""
    task: str


def to_json(report: Report | Reports) -> bytes:
    """The report, or those of several tasks, as indented JSON; a number that is not finite becomes null."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2)


def metrics_by_round(report: Report) -> tuple[RoundMetrics, ...]:
    """Every round, in order."""
    same = [f.name for f in fields(RoundMetrics) if f.name in RoundLine.__struct_fields__]
    return tuple(
        RoundMetrics(
            **{name: getattr(line, name) for name in same},
            round=line.id,
            wire_up_bytes=line.wire.up,
            wire_down_bytes=line.wire.down,
            payload_up_bytes=line.payload.up,
            payload_down_bytes=line.payload.down,
            dense_up_bytes=line.dense.up,
            dense_down_bytes=line.dense.down,
            metric_name=report.metric_name,
            task=report.task,
        )
        for line in report.rounds
    )


def to_csv(report: Report | Reports) -> str:
    """With a heading, a line a round, or a gateway or group where the report's view says so. Bytes, unix seconds; what
    is not known is empty. Of several tasks: every round of each, in order; gateways and groups with what all tasks and
    joining came to."""
    if isinstance(report, Reports):
        if report.together.view.by != "round":
            return to_csv(report.together)
        rows = sorted((row for one in report.tasks for row in metrics_by_round(one)), key=lambda row: row.round)
        return _csv((field.name for field in fields(RoundMetrics)), map(astuple, rows))
    if report.view.by == "gateway":
        lines = [
            {
                "gateway": line.name,
                "tags": " ".join(line.tags),
                "present": int(line.present),
                "first_seen": line.first_seen,
                "last_seen": line.last_seen,
                "processes": line.processes,
                "answered": line.answered,
                "accepted": line.accepted,
                "declined": line.declined,
                "last_round": line.last_round,
                "wire_up_bytes": line.wire.up,
                "wire_down_bytes": line.wire.down,
                "joining_bytes": line.joining.total,
                "payload_up_bytes": line.payload.up,
                "payload_down_bytes": line.payload.down,
                "dense_bytes": line.dense.total,
                "raw_bytes": line.raw_bytes,
                "ip_bytes": line.ip_bytes,
                "money": line.money,
                "currency": report.price.currency,
                "cpu_seconds": line.cpu_seconds,
            }
            for line in report.gateways
        ]
        return _csv(lines[0] if lines else ["gateway"], (line.values() for line in lines))
    if report.view.by in ("site", "tag"):
        groups = [
            {
                report.view.by: group.name,
                "gateways": group.gateways,
                "accepted": group.accepted,
                "declined": group.declined,
                "wire_up_bytes": group.wire.up,
                "wire_down_bytes": group.wire.down,
                "dense_bytes": group.dense.total,
                "raw_bytes": group.raw_bytes,
                "ip_bytes": group.ip_bytes,
                "money": group.money,
                "currency": report.price.currency,
                "cpu_seconds": group.cpu_seconds,
            }
            for group in report.groups
        ]
        return _csv(groups[0] if groups else [report.view.by], (group.values() for group in groups))
    return _csv((field.name for field in fields(RoundMetrics)), (astuple(row) for row in metrics_by_round(report)))


def _csv(heading: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(heading)
    writer.writerows(rows)
    return out.getvalue()
