"""Which bytes belong to which round and gateway, and which part of them to the part of the ledger that is looked at.

Owns the division of what processes have counted, and the rule for rounds that are summed up: of a gateway there is one
sum of all of these, so that a span of time has it whole or cannot have it at all, and says so. Pure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TypeVar

from fedmq_coordinator.ledger import Answer, Mark, Round, Wire
from fedmq_coordinator.report_model import Traffic
from fedmq_coordinator.report_view import View

__all__ = ["TCP_JOIN_BYTES", "TLS_JOIN_BYTES", "Share", "Shares", "SummedUp", "divide"]

Counted = TypeVar("Counted", Wire, Answer, Mark)

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
    of_process: dict[tuple[str, bytes], list[Answer]] = defaultdict(list)
    for answer in sorted(answers, key=lambda a: (a.received_at, a.round)):
        of_process[answer.gateway, answer.nonce].append(answer)
    begun = {(mark.gateway, mark.nonce): mark for mark in marks}
    shares: dict[tuple[str, int | None], Traffic] = defaultdict(Traffic)
    for wire in wires:
        holder: int | None = None
        sent = received = 0
        mark = begun.get((wire.gateway, wire.nonce))
        if mark is not None:
            shares[wire.gateway, None] += Traffic(up=mark.joined_sent, down=mark.joined_received)
            holder, sent, received = mark.round, mark.sent, mark.received
        for answer in of_process[wire.gateway, wire.nonce]:
            upto_sent = min(max(answer.sent, sent), wire.sent)
            upto_received = min(max(answer.received, received), wire.received)
            shares[wire.gateway, holder] += Traffic(up=upto_sent - sent, down=upto_received - received)
            sent, received, holder = upto_sent, upto_received, answer.round
        shares[wire.gateway, holder] += Traffic(up=wire.sent - sent, down=wire.received - received)
    return dict(shares)


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
    single: Sequence[tuple[int, int]]
    """Round, and what one gateway had in it on the wire."""

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
        joined = wires if not view.in_time else _joined_in(view, wires, answers, marks, summed_up)
        if not joining:
            joined = []
        by_gateway: dict[str, Share] = defaultdict(Share)
        by_round: dict[int | None, Share] = defaultdict(Share)
        single: list[tuple[int, int]] = []
        for (gateway, number), traffic in _parts(wires, joined, answers, marks, rounds).items():
            by_gateway[gateway].wire[number] += traffic
            by_round[number].wire[number] += traffic
            if number is not None:
                single.append((number, traffic.total))
        counts = [[_beyond(wire) for wire in of if wire.beyond is not None] for of in (wires, joined)]
        beyond = _parts(*counts, [_beyond(a) for a in answers], [_beyond(m) for m in marks], rounds)
        for (gateway, number), traffic in beyond.items():
            by_gateway[gateway].beyond[number] += traffic.up
            by_round[number].beyond[number] += traffic.up
        for wire in joined:
            if wire.beyond is None:
                by_gateway[wire.gateway].beyond[None] += TCP_JOIN_BYTES + TLS_JOIN_BYTES
                by_round[None].beyond[None] += TCP_JOIN_BYTES + TLS_JOIN_BYTES
        return cls(by_gateway=by_gateway, by_round=by_round, single=single)


def _parts(
    wires: Sequence[Wire], joined: Sequence[Wire], answers: Sequence[Answer], marks: Sequence[Mark], rounds: Set[int]
) -> dict[tuple[str, int | None], Traffic]:
    parts = {key: traffic for key, traffic in divide(wires, answers, marks).items() if key[1] in rounds}
    joins = divide(joined, answers, marks)
    return parts | {key: traffic for key, traffic in joins.items() if key[1] is None}


def _beyond(one: Counted) -> Counted:
    """The same row with what TCP/IP and TLS put around in the place of its bytes, so that it divides alike."""
    if isinstance(one, Mark):
        return replace(one, sent=one.beyond, received=0, joined_sent=one.joined_beyond, joined_received=0)
    return replace(one, sent=one.beyond or 0, received=0)


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
