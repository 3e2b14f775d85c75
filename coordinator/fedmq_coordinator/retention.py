"""What of old rounds is summed up, so that the ledger grows with rounds and gateways, and no more with their product.

Owns the rule: answers to the newest `keep_rounds` rounds are kept one by one; older ones become totals of their round
and of their gateway, a few rounds at a time, in the transaction that opens a round. Refuses to know how totals are
shown. `report` adds them to what it counts itself, and comes to the same figures as before.

Bytes on the wire lie between two answers of a gateway's process, so answers are summed up in the order of time, each
process from its first one on; a mark says where its counters stood then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from fedmq_coordinator.ledger import Answer, Folded, Ledger, Mark

__all__ = ["LATE", "ROUNDS_AT_ONCE", "add", "fold", "merge", "read"]

LATE = "update,accepted late"
"""Kind and verdict under which an update is counted that was accepted after its round had closed."""

ROUNDS_AT_ONCE = 4
"""Old rounds that are summed up as one opens: more than come, so that a smaller setting takes effect by and by."""


def read(totals: bytes | None) -> Folded:
    return Folded() if totals is None else msgspec.msgpack.decode(totals, type=Folded)


def merge(one: Folded, other: Folded) -> Folded:
    """The sum of both, as if all had been answers of one task."""
    both: dict[str, Any] = {name: getattr(one, name) + getattr(other, name) for name in _COUNTS}
    for name in ("kinds", "reasons"):
        both[name] = dict(Counter(getattr(one, name)) + Counter(getattr(other, name)))
    return Folded(**both, last_round=max(one.last_round, other.last_round))


_COUNTS = [name for name in Folded.__struct_fields__ if name not in ("kinds", "reasons", "last_round")]


def add(totals: Folded, answer: Answer) -> None:
    """Count one answer, but not its bytes on the wire."""
    totals.answered += 1
    kind = LATE if answer.late else f"{answer.kind},{answer.verdict}"
    totals.kinds[kind] = totals.kinds.get(kind, 0) + 1
    if answer.kind == "decline":
        reason = answer.reason or "not said"
        totals.reasons[reason] = totals.reasons.get(reason, 0) + 1
    totals.payload_bytes += answer.payload_bytes
    if answer.kind == "update" and answer.verdict == "accepted":
        totals.dense_bytes += answer.dense_bytes
    totals.last_round = max(totals.last_round, answer.round)
    if answer.cosine is not None:
        totals.cosines += 1
        totals.cosine_sum += round(answer.cosine * 1e4)
    totals.conflicts += answer.conflicts
    totals.untold += answer.beyond is None
    if answer.cpu is not None:
        totals.cpu += answer.cpu
        totals.cpu_told += 1


def fold(ledger: Ledger, *, keep_rounds: int) -> int:
    """Sum up the oldest rounds beyond the newest `keep_rounds`, in the running transaction; returns how many."""
    first = ledger.first_unfolded()
    if first is None:
        return 0
    closed = [
        row.id
        for number in range(first, min(first + ROUNDS_AT_ONCE, ledger.newest_round() - keep_rounds + 1))
        if (row := ledger.round(number)) is not None
    ]
    if not closed or ledger.owes_before(closed[-1]):
        return 0
    if any((row := ledger.round(number)) is not None and row.closed_at is None for number in closed):
        return 0
    following = next((row for n in range(closed[-1] + 1, closed[-1] + 2) if (row := ledger.round(n)) is not None), None)
    answers = ledger.unfolded(closed[-1], float("inf") if following is None else following.opened_at)
    _sum_up(ledger, answers, closed)
    ledger.put("folded", str(closed[-1]).encode())
    return len(closed)


def _sum_up(ledger: Ledger, answers: Iterable[Answer], closed: Iterable[int]) -> None:
    wires = {(wire.gateway, wire.nonce): wire for wire in ledger.wires()}
    marks = {(mark.gateway, mark.nonce): mark for mark in ledger.marks()}
    task_of: dict[int, int] = {}
    rounds: dict[int, Folded] = {number: _round(ledger, number) for number in closed}
    gateways: dict[tuple[int, str], Folded] = {}

    def of_round(number: int) -> Folded:
        if number not in rounds:
            rounds[number] = _round(ledger, number)
        return rounds[number]

    def of_gateway(number: int, name: str) -> Folded:
        if number not in task_of:
            task_of[number] = ledger.task_id_of_round(number)
        key = (task_of[number], name)
        if key not in gateways:
            gateways[key] = read(ledger.folded_of(*key))
        return gateways[key]

    moved: dict[tuple[str, bytes], Mark] = {}
    for answer in answers:
        add(of_round(answer.round), answer)
        add(of_gateway(answer.round, answer.gateway), answer)
        process = (answer.gateway, answer.nonce)
        wire, mark = wires.get(process), moved.get(process, marks.get(process))
        if wire is not None:
            sent = min(max(answer.sent, 0 if mark is None else mark.sent), wire.sent)
            received = min(max(answer.received, 0 if mark is None else mark.received), wire.received)
            beyond = min(max(answer.beyond or 0, 0 if mark is None else mark.beyond), wire.beyond or 0)
            if mark is not None:
                for totals in (of_round(mark.round), of_gateway(mark.round, answer.gateway)):
                    totals.sent += sent - mark.sent
                    totals.received += received - mark.received
                    totals.beyond += beyond - mark.beyond
            moved[process] = Mark(
                gateway=answer.gateway,
                nonce=answer.nonce,
                round=answer.round,
                sent=sent,
                received=received,
                joined_sent=sent if mark is None else mark.joined_sent,
                joined_received=received if mark is None else mark.joined_received,
                beyond=beyond,
                joined_beyond=beyond if mark is None else mark.joined_beyond,
            )
        ledger.erase_answer(answer.round, answer.gateway)
    for new in moved.values():
        ledger.save_mark(new)
    for number, totals in rounds.items():
        ledger.fold_round(number, msgspec.msgpack.encode(totals))
    for (task, name), totals in gateways.items():
        ledger.save_folded(task, name, msgspec.msgpack.encode(totals))


def _round(ledger: Ledger, number: int) -> Folded:
    row = ledger.round(number)
    return Folded() if row is None else read(row.totals)
