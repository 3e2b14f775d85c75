"""What people's tools read from the broker: the last closed round, and how the fleet stands, as small flat JSON.

Owns the keys, which docs/metrics.md explains; a key is never given another meaning. Flat, and with numbers where there
are numbers, because Telegraf and its like make a field of each. What is not known is null. Refuses to know topics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from fedmq_protocol.topics import Channel, Direction, spec

from fedmq_coordinator.ledger import Gateway, Ledger
from fedmq_coordinator.ledger import Round as RoundRow
from fedmq_coordinator.rounds import Round
from fedmq_coordinator.vitals import vitals_of_fleet

if TYPE_CHECKING:
    from fedmq_coordinator.job import Job

__all__ = ["fleet_summary", "round_summary"]


def round_summary(
    round_: Round, row: RoundRow | None, *, task: str, outcome: str, version: int, flagged: int, metric_name: str
) -> dict[str, Any]:
    """Of a round that has just closed, with its row of the ledger."""
    closed_at = None if row is None else row.closed_at
    return {
        "task": task,
        "round": round_.plan.round_id,
        "kind": round_.plan.kind.name.lower(),
        "outcome": outcome,
        "version": version,
        "updates": len(round_.updates),
        "of_earlier_rounds": round_.others,
        "declines": len(round_.declines),
        "asked": len(round_.asked),
        "flagged": flagged,
        "metric": None if row is None else row.metric,
        "seconds": None if row is None or closed_at is None else closed_at - row.opened_at,
        "metric_name": metric_name,
        "loss": None if row is None else row.loss,
        "training_loss": None if row is None else row.training_loss,
        "lineage": round_.plan.lineage,
        "silent": len(round_.asked - round_.answered),
        "refused": len(round_.refused),
        "at": closed_at,
    }


def fleet_summary(ledger: Ledger, gateways: Sequence[Gateway], jobs: Sequence[Job], now: float) -> dict[str, Any]:
    """Of this moment. Many tasks are named as far as the topic has room."""
    sent, received = ledger.wire_totals()
    present = sum(gateway.present for gateway in gateways)
    summary: dict[str, Any] = {
        "at": now,
        "gateways": len(gateways),
        "present": present,
        "absent": len(gateways) - present,
        "wire_up_bytes": sent,
        "wire_down_bytes": received,
        "tasks_left_out": 0,
        "tasks": [_task(job, gateways) for job in jobs],
        "battery_low": sum(last.low for last in vitals_of_fleet(ledger).values()),
    }
    while len(msgspec.json.encode(summary)) > spec(Direction.DOWN, Channel.FLEET).max_bytes:
        summary["tasks"].pop()
        summary["tasks_left_out"] += 1
    return summary


def _task(job: Job, gateways: Sequence[Gateway]) -> dict[str, Any]:
    return {
        "task": job.name,
        "state": "paused" if job.run.paused else "running" if job.resting is None else "resting",
        "round": job.run.newest_round(),
        "open": job.run.round is not None,
        "version": job.version,
        "metric": job.book.last_metric(),
        "gateways": sum(job.members.belongs(gateway) for gateway in gateways),
        "set_aside": len(job.members.aside),
        "flagged": len(job.run.watch.flagged),
    }
