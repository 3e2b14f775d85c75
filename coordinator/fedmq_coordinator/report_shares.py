"""Which bytes belong to which round and gateway, and which part of them to the part of the ledger that is looked at.

Owns the division of what processes have counted, and the rule for rounds that are summed up: of a gateway there is one
sum of all of these, so that a span of time has it whole or cannot have it at all, and says so. Pure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from fedmq_coordinator.ledger import Answer, Mark, Round, Wire
from fedmq_coordinator.report_model import Traffic
from fedmq_coordinator.report_view import View

__all__ = ["TCP_JOIN_BYTES", "TLS_JOIN_BYTES", "Share", "Shares", "SummedUp", "divide"]

TCP_JOIN_BYTES = 2_000
"""What TCP/IP adds, about, to the start and the end of a process that does not count it: the connection's own segments,
and headers around CONNECT, SUBSCRIBE, birth, welcome and leave, and around what answers them (bench/ip_bytes.py)."""

TLS_JOIN_BYTES = 4_800
"""What TLS 1.3 with a certificate on both sides adds to it."""


def divide(
    wires: Iterable[Wire], answers: Iterable[Answer], marks: Iterable[Mark] = ()
) -> dict[tuple[str, int | None], Traffic]:
    """What each (gateway, round) cost on the wire; round None is joining. Sums to the wires, whatever answers claim.

    An answer carries its process's counter from just before it was sent, so all that follows belongs to its round. A
    counter that falls back, or exceeds what the wire table holds, divides nothing anew: shares are never negative.
    Where the first answers of a process are summed up already, its mark says where the others go on.
    """
    shares: dict[tuple[str, int | None], Traffic] = defaultdict(Traffic)
    for wire, number, counted in _pieces(wires, answers, marks):
        shares[wire.gateway, number] += Traffic(up=counted.sent, down=counted.received)
    return dict(shares)


class _Counted(NamedTuple):
    """Where a process's counters stand, or how far they went."""

    sent: int
    received: int
    beyond: int

    def upto(self, limit: _Counted) -> _Counted:
        return _Counted(*map(min, self, limit))

    def from_(self, start: _Counted) -> _Counted:
        return _Counted(*map(max, self, start))

    def since(self, start: _Counted) -> _Counted:
        return _Counted(*(mine - its for mine, its in zip(self, start, strict=True)))


def _pieces(
    wires: Iterable[Wire], answers: Iterable[Answer], marks: Iterable[Mark]
) -> Iterator[tuple[Wire, int | None, _Counted]]:
    """Each process's counters, cut at its answers: what belongs to joining (None), and to the round of each answer."""
    of_process: dict[tuple[str, bytes], list[Answer]] = defaultdict(list)
    for answer in sorted(answers, key=lambda a: (a.received_at, a.round)):
        of_process[answer.gateway, answer.nonce].append(answer)
    begun = {(mark.gateway, mark.nonce): mark for mark in marks}
    for wire in wires:
        whole = _Counted(wire.sent, wire.received, wire.beyond or 0)
        holder: int | None = None
        at = _Counted(0, 0, 0)
        mark = begun.get((wire.gateway, wire.nonce))
        if mark is not None:
            yield wire, None, _Counted(mark.joined_sent, mark.joined_received, mark.joined_beyond)
            holder, at = mark.round, _Counted(mark.sent, mark.received, mark.beyond)
        for answer in of_process[wire.gateway, wire.nonce]:
            upto = _Counted(answer.sent, answer.received, answer.beyond or 0).from_(at).upto(whole)
            yield wire, holder, upto.since(at)
            holder, at = answer.round, upto
        yield wire, holder, whole.since(at)


@dataclass(frozen=True, kw_only=True)
class SummedUp:
    """The rounds of a view whose answers are summed up."""

    numbers: tuple[int, ...]
    apart: bool
    """There are others beside them: a gateway's sum is not of this view."""

    @classmethod
    def of(cls, rounds: Iterable[Round], within: Iterable[Round]) -> SummedUp:
        numbers = tuple(r.id for r in within if r.totals is not None)
        return cls(numbers=numbers, apart=len(numbers) < sum(r.totals is not None for r in rounds))

    def gaps(self, view: View) -> list[str]:
        """What cannot be said for that, in sentences."""
        if not self.numbers or not (self.apart or view.of_some):
            return []
        which = f"Rounds {self.numbers[0]:,} to {self.numbers[-1]:,}"
        if not self.apart:
            return [
                f"{which} are summed up (limits.keep_rounds): they are in the totals of these gateways, and not in the"
                " table of rounds."
            ]
        lost = (
            f"{which} are summed up together with rounds outside of this span (limits.keep_rounds): what single"
            " gateways had in them, and in joining before them, is not known any more."
        )
        if view.of_some:
            return [f"{lost} All figures are without these rounds, and so too low."]
        return [f"{lost} Totals and the table of rounds have them, the tables of gateways and sites do not."]


class Share:
    """What one gateway had, or one round, of the part of the ledger that is looked at."""

    def __init__(self) -> None:
        self.wire: dict[int | None, Traffic] = defaultdict(Traffic)
        """By round; None is joining."""
        self.beyond: Counter[int | None] = Counter()
        """What TCP/IP and TLS put around that, of processes that count it; and estimated for others as they joined."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    by_gateway: Mapping[str, Share]
    by_round: Mapping[int | None, Share]
    single: Mapping[tuple[str, int], int]
    """What one gateway had in one round on the wire."""

    @classmethod
    def of(
        cls,
        wires: Sequence[Wire],
        answers: Sequence[Answer],
        marks: Sequence[Mark],
        *,
        view: View,
        rounds: Set[int],
        joining: bool,
        summed_up: SummedUp,
    ) -> Shares:
        """Of these wires what belongs to these rounds, and with `joining` what of that lies in the view, too. `answers`
        and `marks` are of all tasks, for they follow each other in one process."""
        joined = _joined_in(view, wires, answers, marks, summed_up) if view.in_time else wires
        joins = {(wire.gateway, wire.nonce) for wire in joined} if joining else set()
        by_gateway: dict[str, Share] = defaultdict(Share)
        by_round: dict[int | None, Share] = defaultdict(Share)
        single: Counter[tuple[str, int]] = Counter()
        for wire, number, counted in _pieces(wires, answers, marks):
            if number is None:
                if (wire.gateway, wire.nonce) not in joins:
                    continue
            elif number not in rounds:
                continue
            else:
                single[wire.gateway, number] += counted.sent + counted.received
            for share in (by_gateway[wire.gateway], by_round[number]):
                share.wire[number] += Traffic(up=counted.sent, down=counted.received)
                share.beyond[number] += counted.beyond
        for wire in wires:
            if wire.beyond is None and (wire.gateway, wire.nonce) in joins:
                by_gateway[wire.gateway].beyond[None] += TCP_JOIN_BYTES + TLS_JOIN_BYTES
                by_round[None].beyond[None] += TCP_JOIN_BYTES + TLS_JOIN_BYTES
        return cls(by_gateway=by_gateway, by_round=by_round, single=single)


def _joined_in(
    view: View, wires: Sequence[Wire], answers: Sequence[Answer], marks: Sequence[Mark], summed_up: SummedUp
) -> list[Wire]:
    """Processes whose first answer came in the view's span, or that were heard of in it and never answered."""
    first: dict[tuple[str, bytes], float] = {}
    for answer in answers:
        key = (answer.gateway, answer.nonce)
        first[key] = min(first.get(key, answer.received_at), answer.received_at)
    began_before = {(mark.gateway, mark.nonce) for mark in marks}
    within = bool(summed_up.numbers) and not summed_up.apart

    def is_in(wire: Wire) -> bool:
        key = (wire.gateway, wire.nonce)
        # Whose first answers are summed up joined before them: with them it is in the span, or out of it.
        return within if key in began_before else view.holds(first.get(key, wire.reported_at))

    return [wire for wire in wires if is_in(wire)]
