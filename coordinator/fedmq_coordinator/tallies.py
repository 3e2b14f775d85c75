"""The report's figures without its lines, by sums that the ledger makes: for whoever asks again and again.

Owns how they are summed; what is counted, and how, is `report`'s rule, and a test holds the two against each other to
the last byte. Memory does not grow with answers: a ledger may have millions, and figures are asked for twice a minute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

import msgspec

from fedmq_coordinator.absent import ABSENT, from_bytes, set_aside
from fedmq_coordinator.ledger import Book, Folded, Ledger
from fedmq_coordinator.report import METRIC_NAME, Traffic
from fedmq_coordinator.retention import LATE, read

__all__ = ["FleetTally", "TaskTally", "build"]


class TaskTally(msgspec.Struct, frozen=True, kw_only=True):
    task: str
    outcomes: dict[str, int]
    """Of closed rounds."""
    seconds: list[float]
    """From opening to close, of each."""
    closed_at: float | None
    applied_at: float | None
    answers: dict[str, int]
    """By kind and verdict, a comma between; late updates are accepted ones."""
    declines: dict[str, int]
    updates_of: dict[str, int]
    """Accepted ones of each gateway."""
    declines_of: dict[str, int]
    owed: int
    wire: Traffic
    payload: Traffic
    dense: Traffic
    metric_name: str
    metric: float | None
    loss: float | None
    metric_source: str | None
    catch_ups: dict[str, tuple[int, int]]
    """By kind, how many were published and the bytes of their bodies."""
    cpu_seconds: float | None
    """Of gateways' processes, as far as they tell; None: none has."""
    set_aside: int
    flagged: int


class FleetTally(msgspec.Struct, frozen=True, kw_only=True):
    raw_bytes: int
    refused: dict[str, tuple[int, int]]
    """Junk by channel: messages and bytes."""
    machines: dict[str, int]
    """That gateways watch, by state."""
    alerts: dict[str, int]
    """Of these machines, by state and severity, a comma between."""
    drifts: int
    """Kinds of machines of which many have drifted, and measures that have over all machines of a kind."""
    tasks: list[TaskTally]


def build(ledger: Ledger) -> FleetTally:
    """Of one moment. Raises LedgerError."""
    with ledger.snapshot():
        gateways = ledger.gateways()
        nonces = {gateway.name: gateway.nonce for gateway in gateways}
        rows = ledger.tasks()
        wires = _wires(ledger, [row.id for row in rows])
        refused: dict[str, tuple[int, int]] = {}
        for channel, _, messages, size in ledger.refused():
            before = refused.get(channel, (0, 0))
            refused[channel] = (before[0] + messages, before[1] + size)
        return FleetTally(
            raw_bytes=sum(gateway.signal_bytes for gateway in gateways),
            refused=refused,
            machines=ledger.count_machines(),
            alerts={f"{state},{severity}": count for (state, severity), count in ledger.count_alerts().items()},
            drifts=len(ledger.fleet_drifts()) + sum(one.since is not None for one in ledger.fleet_spreads()),
            tasks=[_task(ledger.book(row.name), wires[row.id], nonces) for row in rows],
        )


def _task(book: Book, wire: Traffic, nonces: dict[str, bytes]) -> TaskTally:
    totals = {name: read(folded) for name, folded in book.folded().items()}
    for name, kind, reason, count, payload, dense, cpu, cpu_told in book.answer_sums():
        own = totals.setdefault(name, Folded())
        own.kinds[kind] = own.kinds.get(kind, 0) + count
        if kind.startswith("decline,"):
            why = reason or "not said"
            own.reasons[why] = own.reasons.get(why, 0) + count
        own.payload_bytes += payload
        own.dense_bytes += dense
        own.cpu += cpu
        own.cpu_told += cpu_told
    answers: Counter[str] = Counter()
    declines: Counter[str] = Counter()
    for own in totals.values():
        answers.update(own.kinds)
        declines.update(own.reasons)
    answers["update,accepted"] += answers.pop(LATE, 0)
    closings = book.closings()
    scored = book.last_scored()
    dense_bytes = sum(own.dense_bytes for own in totals.values())
    return TaskTally(
        task=book.name,
        outcomes=dict(Counter(outcome for outcome, _, _ in closings)),
        seconds=[max(0.0, closed_at - opened_at) for _, opened_at, closed_at in closings],
        closed_at=closings[-1][2] if closings else None,
        applied_at=next((closed_at for outcome, _, closed_at in reversed(closings) if outcome == "applied"), None),
        answers=dict(answers),
        declines=dict(declines),
        updates_of={name: own.kinds.get("update,accepted", 0) + own.kinds.get(LATE, 0) for name, own in totals.items()},
        declines_of={name: sum(own.reasons.values()) for name, own in totals.items()},
        owed=book.count_owed_answers(),
        wire=wire + Traffic(),
        payload=Traffic(up=sum(own.payload_bytes for own in totals.values()), down=book.delivered_bytes()),
        dense=Traffic(up=dense_bytes, down=dense_bytes),
        metric_name=(book.get(METRIC_NAME) or b"metric").decode("utf-8", "replace"),
        metric=None if scored is None else scored[0],
        loss=None if scored is None else scored[1],
        metric_source=None if scored is None else scored[2],
        catch_ups={kind: (count, size) for kind, count, size in book.catch_up_sums()},
        cpu_seconds=sum(told) / 100 if (told := [own.cpu for own in totals.values() if own.cpu_told]) else None,
        set_aside=len(set_aside(from_bytes(book.get(ABSENT)), nonces)),
        flagged=sum(flag.state != "readmitted" for flag in book.flags()),
    )


def _wires(ledger: Ledger, tasks: list[int]) -> dict[int, Traffic]:
    """Bytes on the wire that belong to each task; with one task alone all of them, joining too."""
    if len(tasks) <= 1:
        sent, received = ledger.wire_totals()
        return dict.fromkeys(tasks, Traffic(up=sent, down=received))
    found: Counter[tuple[int, str]] = Counter()
    for task, up, down in _divided(ledger):
        found[task, "up"] += up
        found[task, "down"] += down
    for task in tasks:
        for totals in ledger.folded_totals(task):
            own = read(totals)
            found[task, "up"] += own.sent
            found[task, "down"] += own.received
    return {task: Traffic(up=found[task, "up"], down=found[task, "down"]) for task in tasks}


def _divided(ledger: Ledger) -> Iterator[tuple[int, int, int]]:
    """Task, bytes sent and received of each stretch between two answers of a process: what `report.divide` does, with
    one process in memory at a time."""
    wires = {(wire.gateway, wire.nonce): wire for wire in ledger.wires()}
    marks = {(mark.gateway, mark.nonce): mark for mark in ledger.marks()}
    answered: set[tuple[str, bytes]] = set()

    def stretches(process: tuple[str, bytes], told: Iterator[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
        wire, mark = wires.get(process), marks.get(process)
        if wire is None:
            return
        holder: int | None = None
        sent = received = 0
        if mark is not None:
            holder, sent, received = ledger.task_id_of_round(mark.round), mark.sent, mark.received
        for task, upto_sent, upto_received in told:
            upto_sent = min(max(upto_sent, sent), wire.sent)
            upto_received = min(max(upto_received, received), wire.received)
            if holder is not None:
                yield holder, upto_sent - sent, upto_received - received
            sent, received, holder = upto_sent, upto_received, task
        if holder is not None:
            yield holder, wire.sent - sent, wire.received - received

    for process, rows in groupby(ledger.counters_of_answers(), key=itemgetter(0, 1)):
        answered.add(process)
        yield from stretches(process, ((task, sent, received) for _, _, task, sent, received in rows))
    for process in marks.keys() - answered:
        yield from stretches(process, iter(()))
