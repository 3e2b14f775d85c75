"""The bandwidth-savings report, from the ledger alone: what was learnt, what it cost in bytes, against what.

Owns the rules by which bytes are counted and compared; every one of them is in `Report.rules`, in words, beside the
figures. Refuses to know how a report looks (`report_text`, `report_html`), what is said of it (`findings`) and where
bytes were counted (the gateways). Every figure that anybody shows of savings comes from here.

Three rules keep it honest. The wire table is the truth and answers only divide it, so that joining and rounds together
are the wire table's sum, whatever a gateway says. A comparison leans against federation: dense FedAvg is charged its
bare parameters and a signal uploaded raw is charged once, both without one packet header, while federation is charged
all that TCP/IP and TLS put around its bytes. And what was summed up is not guessed apart: a part of the ledger that
cuts through it says what it lacks (`Report.gaps`).
"""

from __future__ import annotations

import copy
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedmq_coordinator import money
from fedmq_coordinator.absent import ABSENT, Absence, from_bytes, set_aside
from fedmq_coordinator.findings import findings, flag_text, ip_told, many, personal_text, sentences, size
from fedmq_coordinator.ledger import (
    FLAGGED,
    Answer,
    Book,
    CatchUp,
    Flag,
    Folded,
    Gateway,
    Ledger,
    LedgerError,
    Mark,
    Round,
    Trial,
    Version,
    Wire,
)
from fedmq_coordinator.machines import SpreadLine, spreads_of
from fedmq_coordinator.money import Price, cost
from fedmq_coordinator.report_model import (
    AsideLine,
    CatchUpLine,
    Comparison,
    Factors,
    FlagLine,
    GatewayLine,
    GroupLine,
    IpBytes,
    PersonalLine,
    RefusedLine,
    Report,
    Reports,
    RoundLine,
    Savings,
    Tail,
    Traffic,
    VerdictLine,
)
from fedmq_coordinator.report_shares import TCP_JOIN_BYTES, TLS_JOIN_BYTES, Share, Shares, SummedUp, divide
from fedmq_coordinator.report_tables import RoundMetrics, metrics_by_round, to_csv, to_json
from fedmq_coordinator.report_view import EVERYTHING, View, site_of
from fedmq_coordinator.retention import LATE, add, merge, read

__all__ = [
    "METRIC_NAME",
    "AsideLine",
    "CatchUpLine",
    "Comparison",
    "Factors",
    "FlagLine",
    "GatewayLine",
    "GroupLine",
    "IpBytes",
    "PersonalLine",
    "RefusedLine",
    "Report",
    "Reports",
    "RoundLine",
    "RoundMetrics",
    "Savings",
    "Tail",
    "Traffic",
    "VerdictLine",
    "View",
    "build",
    "build_all",
    "divide",
    "flag_text",
    "ip_told",
    "many",
    "metrics_by_round",
    "personal_text",
    "size",
    "to_csv",
    "to_json",
]

METRIC_NAME = "metric_name"
"""Key of the ledger's state under which the coordinator writes what its metric is, in UTF-8 ('macro-F1')."""

TCP_IP_ROUND_BYTES = 200
"""What TCP/IP adds for one gateway in one round, about: five segments. Three carry MQTT packets (plan, its PUBACK,
answer), and two are bare ACKs; of these the kernel was seen to save one where a round takes milliseconds."""

TLS_ROUND_BYTES = 66
"""What TLS records add to the same three packets: some 22 B a record (RFC 8446, section 5.2)."""

_UNTOLD_BYTES = TCP_IP_ROUND_BYTES + TLS_ROUND_BYTES

_NONE = Traffic()

_RULES = [
    "Wire bytes are socket bytes, counted by each gateway: every MQTT packet, acknowledgements and pings included.",
    "Bytes between a gateway's answer to a round and its next answer belong to that round, its answer and the model"
    " delta that came of the round included. What a process counted before its first answer is joining, after a restart"
    " too. What was reported after the last answer belongs to the last round answered.",
    "Payload up is the coded delta of every answer, whatever its verdict. Payload down is the model delta that came of"
    " a round, once for every gateway that answered the round or was about while it ran.",
    "Of old rounds the ledger keeps sums (the setting limits.keep_rounds). They are in all figures but the median of"
    " one gateway's bytes in one round.",
    "Dense is plain FedAvg in float32: for every accepted update the model once down and once up, without overhead.",
    "Raw is the signal that the gateways hold, uploaded once at 16 bits a sample, without overhead.",
    "Money is IP bytes at the same price up and down; what is held against them is charged without overhead.",
    "CPU seconds are those of a gateway's process from a plan to its answer: windows cut anew, training, scoring and"
    " coding. Gateways of older software do not tell them.",
]

_RULES_IN_TIME = [
    "A span of time has the rounds that opened in it, whole, and what processes counted before a first answer in it."
    " Refused junk is counted without a time, and is left out.",
    "The signal of a span is what gateways told that theirs had grown by, day by day (UTC), from the first time that it"
    " grew in it; what a full store lost again meanwhile is not in it.",
]


_RULES_OF_SOME = ["How many were drawn, the plan, metric and loss of a round are those of the whole fleet."]


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What the ledger says at one moment, of one task and the fleet."""

    task: str
    metric_name: str
    alone: bool
    """The only task: what belongs to none belongs to it."""
    gateways: Sequence[Gateway]
    rounds: Sequence[Round]
    every_round: frozenset[int]
    """Numbers, of all tasks."""
    answers: Sequence[Answer]
    """To rounds of all tasks: the bytes between two answers belong to the first, of whichever task."""
    wires: Sequence[Wire]
    marks: Sequence[Mark]
    folded: Mapping[str, Folded]
    versions: Sequence[Version]
    catch_ups: Sequence[CatchUp]
    refused: Sequence[tuple[str, str, int, int]]
    trials: Sequence[Trial]
    absences: Mapping[str, Absence]
    flags: Sequence[Flag]
    flagged_rule: str
    gathered: Sequence[tuple[str, float, int]]
    spreads: list[SpreadLine]
    price: Price


def _read(ledger: Ledger, task: str | None) -> _Facts:
    with ledger.snapshot():
        tasks = ledger.tasks()
        # A coordinator may have made the file and not worked with it yet.
        book: Book | None = None if task is None and not tasks else ledger.only if task is None else ledger.book(task)
        spreads = spreads_of(ledger, None if book is None else book.name)
        return _facts(ledger, book, spreads, alone=len(tasks) <= 1)


def _facts(ledger: Ledger, book: Book | None, spreads: list[SpreadLine], *, alone: bool) -> _Facts:
    """Within a snapshot."""
    return _Facts(
        task="" if book is None else book.name,
        metric_name=(b"metric" if book is None else book.get(METRIC_NAME) or b"metric").decode("utf-8", "replace"),
        alone=alone,
        gateways=ledger.gateways(),
        rounds=[] if book is None else book.rounds(),
        every_round=frozenset(row.id for row in ledger.rounds()),
        answers=ledger.answers(),
        wires=ledger.wires(),
        marks=ledger.marks(),
        folded={} if book is None else {name: read(totals) for name, totals in book.folded().items()},
        versions=[] if book is None else [v for lineage in book.lineages() for v in book.versions(lineage)],
        catch_ups=[] if book is None else book.catch_ups(),
        refused=ledger.refused(),
        trials=[] if book is None else book.trials(),
        absences=from_bytes(None if book is None else book.get(ABSENT)),
        flags=[] if book is None else [flag for flag in book.flags() if flag.state != "readmitted"],
        flagged_rule="report" if book is None else (book.get(FLAGGED) or b"report").decode("utf-8", "replace"),
        gathered=ledger.gathered(),
        spreads=spreads,
        price=money.from_bytes(ledger.get(money.MONEY)),
    )


def _together(every: Sequence[_Facts], spreads: list[SpreadLine]) -> _Facts:
    """As if all tasks were one, which measures nothing: their metrics are not comparable."""
    folded: dict[str, Folded] = {}
    for facts in every:
        for name, totals in facts.folded.items():
            folded[name] = merge(folded.get(name, Folded()), totals)
    rounds = sorted((one for facts in every for one in facts.rounds), key=lambda one: one.id)
    return replace(
        every[0],
        task="",
        metric_name="metric",
        alone=True,
        rounds=[replace(one, metric=None, loss=None, metric_source=None) for one in rounds],
        folded=folded,
        versions=[one for facts in every for one in facts.versions],
        catch_ups=[one for facts in every for one in facts.catch_ups],
        trials=[],
        absences={},
        flags=[],
        spreads=spreads,
    )


def build(ledger: Ledger, task: str | None = None, *, view: View = EVERYTHING, price: Price | None = None) -> Report:
    """The report of one moment, of this task or the only one, and of the part of the ledger that `view` names.

    `price`: in place of the one that the coordinator's settings have. Raises LedgerError where the file is damaged, for
    an unknown task, and where there are several and none is named.
    """
    return _report(_read(ledger, task), view, price)


def build_all(ledger: Ledger, *, view: View = EVERYTHING, price: Price | None = None) -> Report | Reports:
    """Those of every task, of one moment, and what they came to together; of a ledger with one task, or none yet, its
    report alone. Raises LedgerError where the file is damaged."""
    with ledger.snapshot():
        # Machines are no task's: how they hold to what is normal is told once.
        every = [_facts(ledger, ledger.book(row.name), [], alone=False) for row in ledger.tasks()]
        spreads = spreads_of(ledger)
    if len(every) < 2:
        return build(ledger, view=view, price=price)
    tasks = [_report(facts, view, price) for facts in every]
    return Reports(together=_report(_together(every, spreads), view, price), tasks=tasks)


def _report(facts: _Facts, view: View, price: Price | None) -> Report:
    price = facts.price if price is None else price
    tags = {g.name: g.tag_set for g in facts.gateways}

    def chosen(name: str) -> bool:
        return view.chooses(name, tags.get(name, frozenset()))

    _check_names(facts, view)
    gateways = [g for g in facts.gateways if chosen(g.name)]
    wires = [w for w in facts.wires if chosen(w.gateway)]
    span = [r for r in facts.rounds if view.holds(r.opened_at)]
    summed_up = SummedUp.of(facts.rounds, span)
    folded = {} if summed_up.apart else {name: one for name, one in facts.folded.items() if chosen(name)}
    in_span = {r.id for r in span}
    whole = facts.alone and not view.in_time
    answers = [a for a in facts.answers if chosen(a.gateway) and (whole or a.round in in_span)]
    by_round: dict[int, list[Answer]] = defaultdict(list)
    by_gateway: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_round[answer.round].append(answer)
        by_gateway[answer.gateway].append(answer)
    shares = Shares.of(
        wires,
        [a for a in facts.answers if a.round in facts.every_round],
        facts.marks,
        view=view,
        rounds=in_span if view.in_time or not facts.alone else facts.every_round,
        joining=facts.alone,
        summed_up=summed_up,
    )
    down_by_gateway, down_by_round = _delivered(gateways, span, facts.versions, by_round)

    digests = {version.round: version.digest.hex() for version in facts.versions}
    # Of a round that is summed up nobody can say what some of its gateways had in it.
    round_lines = [
        _round_line(r, by_round[r.id], shares.by_round[r.id], down_by_round[r.id], digests.get(r.id))
        for r in span
        if r.totals is None or not view.of_some
    ]
    seen = {g.name: g for g in gateways}
    others = sorted((shares.by_gateway.keys() | by_gateway.keys() | folded.keys()) - seen.keys())
    raw_of = _raw(facts, gateways, view)
    processes = Counter(wire.gateway for wire in wires)
    gateway_lines = [
        _gateway_line(
            name,
            seen.get(name),
            by_gateway[name],
            _counted(folded.get(name), by_gateway[name]),
            processes[name],
            shares.by_gateway[name],
            down_by_gateway[name],
            raw_of.get(name, 0),
            price,
        )
        for name in (*seen, *others)
    ]

    joining = _sum(line.joining for line in gateway_lines)
    if view.in_time and not view.of_some:
        counted = [_counted(read(r.totals), by_round[r.id]) for r in span]
        total = _sum(line.wire for line in round_lines) + joining
        ip_bytes = sum(line.ip_bytes for line in round_lines) + joining.total + shares.by_round[None].beyond[None]
        of_parts: Sequence[RoundLine | GatewayLine] = round_lines
    else:
        counted = [_counted(folded.get(name), by_gateway[name]) for name in folded.keys() | by_gateway.keys()]
        total = _sum(line.wire for line in gateway_lines)
        ip_bytes = sum(line.ip_bytes for line in gateway_lines)
        of_parts = gateway_lines
    payload = _sum(line.payload for line in of_parts)
    dense = _sum(line.dense for line in of_parts)
    raw = sum(raw_of.values())
    scored = [line for line in round_lines if line.metric is not None]
    kept = {r.id for r in span if r.totals is None}
    per_round = [count for (_, number), count in shares.single.items() if number in kept]
    seconds = [line.seconds for line in round_lines if line.seconds is not None]
    tails = _tails(gateways, wires)
    personal = [_personal_line(trial) for trial in facts.trials if trial.personal is not None and chosen(trial.gateway)]
    flagged = [_flag_line(flag, facts.flagged_rule) for flag in facts.flags if chosen(flag.gateway)]
    # Of now and of all gateways: there is none of a span, nor of some.
    spreads = [] if view.in_time or view.of_some else facts.spreads
    below = [line.id for line in round_lines if line.outcome == "below quorum"]
    kinds: Counter[str] = Counter()
    for totals in counted:
        kinds.update(totals.kinds)
    catch_ups = [one for one in facts.catch_ups if view.holds(one.at)]
    # A fleet that tells of no signal at all says nothing; one that has gathered none in a span has nothing to upload.
    savings = _savings(ip_bytes, raw if view.in_time else raw or None, dense.total or None, price)
    return Report(
        task=facts.task,
        metric_name=facts.metric_name,
        view=view,
        price=price,
        sentences=sentences(view, span, len(gateway_lines), savings, price),
        gaps=summed_up.gaps(view),
        savings=savings,
        findings=findings(
            facts.metric_name, total, dense, raw, round_lines, gateway_lines, below, tails, personal, flagged, spreads
        ),
        wire=total,
        joining=joining,
        payload=payload,
        dense=dense,
        raw_bytes=raw,
        ip=_ip(ip_bytes, wires),
        factors=Factors(
            dense_over_wire=_ratio(dense.total, total.total),
            raw_over_wire=_ratio(raw, total.total),
            dense_over_payload=_ratio(dense.total, payload.total),
        ),
        wire_per_gateway_round_median=statistics.median(per_round) if per_round else None,
        seconds_median=statistics.median(seconds) if seconds else None,
        metric_first=scored[0].metric if scored else None,
        metric_last=scored[-1].metric if scored else None,
        metric_last_round=scored[-1].id if scored else None,
        folded_rounds=len(span) - len(kept),
        below_quorum=below,
        owed=sum(a.owed for a in answers),
        declines=_reasons(counted),
        verdicts=[
            VerdictLine(kind=kind, verdict=verdict, answers=count)
            for name, count in sorted(kinds.items())
            for kind, _, verdict in [name.partition(",")]
            if verdict != "accepted" and name != LATE
        ],
        catch_ups=[
            CatchUpLine(
                kind=kind,
                published=len(of_kind := [c for c in catch_ups if c.kind == kind]),
                bytes=sum(c.bytes for c in of_kind),
                askers=sum(c.askers for c in of_kind),
            )
            for kind in sorted({c.kind for c in catch_ups})
        ],
        refused=[]
        if view.in_time or view.of_some
        else [RefusedLine(channel=c, reason=r, messages=m, bytes=b) for c, r, m, b in facts.refused],
        tails=tails,
        set_aside=[
            AsideLine(gateway=name, missed=facts.absences[name].missed, left=facts.absences[name].left)
            for name in sorted(set_aside(facts.absences, {g.name: g.nonce for g in gateways}))
        ],
        flagged=flagged,
        personal=personal,
        spreads=spreads,
        rounds=round_lines,
        gateways=gateway_lines,
        groups=_groups(gateway_lines, view, price),
        cpu_seconds=_cpu_seconds(counted),
        rules=_RULES + (_RULES_IN_TIME if view.in_time else []) + (_RULES_OF_SOME if view.of_some else []),
    )


# -- parts of the report ---------------------------------------------------------------------------------------


def _delivered(
    gateways: Sequence[Gateway],
    rounds: Sequence[Round],
    versions: Sequence[Version],
    by_round: dict[int, list[Answer]],
) -> tuple[Counter[str], Counter[int]]:
    """Bytes of broadcast delta by gateway, and by the round it came of: all who are about hear it, drawn or not."""
    lengths = {v.round: v.delta_bytes or 0 for v in versions if v.round is not None}
    by_gateway: Counter[str] = Counter()
    total_by_round: Counter[int] = Counter()
    for round_ in rounds:
        if length := lengths.get(round_.id):
            closed_at = round_.closes_at if round_.closed_at is None else round_.closed_at
            hearers = {a.gateway for a in by_round[round_.id]}
            for gateway in gateways:
                if gateway.first_seen <= closed_at and (gateway.present or gateway.last_seen >= round_.opened_at):
                    hearers.add(gateway.name)
            by_gateway.update(dict.fromkeys(hearers, length))
            total_by_round[round_.id] = length * len(hearers)
    return by_gateway, total_by_round


def _counted(totals: Folded | None, answers: Iterable[Answer]) -> Folded:
    """What is summed up already, and the answers that are not."""
    counted = Folded() if totals is None else copy.deepcopy(totals)
    for answer in answers:
        add(counted, answer)
    return counted


def _round_line(
    round_: Round, answers: Sequence[Answer], share: Share, payload_down: int, digest: str | None
) -> RoundLine:
    before = read(round_.totals)
    counted = _counted(before, answers)
    return RoundLine(
        id=round_.id,
        lineage=round_.lineage,
        kind=round_.kind,
        base=round_.base,
        version=round_.version,
        outcome=round_.outcome,
        opened_at=round_.opened_at,
        closed_at=round_.closed_at,
        seconds=None if round_.closed_at is None else max(0.0, round_.closed_at - round_.opened_at),
        drawn=round_.drawn,
        answered=counted.answered - counted.kinds.get(LATE, 0),
        accepted=counted.kinds.get("update,accepted", 0),
        declined=_declined(counted),
        owed=sum(a.owed for a in answers),
        declines=_reasons([counted]),
        plan_bytes=round_.plan_bytes,
        wire=(wire := share.wire[round_.id] + Traffic(up=before.sent, down=before.received)),
        payload=Traffic(up=counted.payload_bytes, down=payload_down),
        dense=Traffic(up=counted.dense_bytes, down=counted.dense_bytes),
        metric=round_.metric,
        loss=round_.loss,
        metric_source=round_.metric_source,
        level=round_.level,
        late=counted.kinds.get(LATE, 0),
        training_loss=round_.training_loss,
        digest=digest,
        ip_bytes=wire.total + before.beyond + share.beyond[round_.id] + counted.untold * _UNTOLD_BYTES,
        cpu_seconds=_cpu_seconds([counted]),
    )


def _gateway_line(
    name: str,
    gateway: Gateway | None,
    answers: Sequence[Answer],
    counted: Folded,
    processes: int,
    share: Share,
    payload_down: int,
    raw_bytes: int,
    price: Price,
) -> GatewayLine:
    wire = _sum(share.wire.values()) + Traffic(up=counted.sent, down=counted.received)
    ip_bytes = wire.total + counted.beyond + share.beyond.total() + counted.untold * _UNTOLD_BYTES
    return GatewayLine(
        name=name,
        present=gateway is not None and gateway.present,
        first_seen=None if gateway is None else gateway.first_seen,
        last_seen=None if gateway is None else gateway.last_seen,
        processes=processes,
        answered=counted.answered,
        accepted=counted.kinds.get("update,accepted", 0) + counted.kinds.get(LATE, 0),
        declined=_declined(counted),
        declines=_reasons([counted]),
        # Rounds may be numbered from 0, and a gateway may have answered none.
        last_round=max([counted.last_round, *(a.round for a in answers)]) if counted.answered else None,
        wire=wire,
        joining=share.wire.get(None, _NONE),
        payload=Traffic(up=counted.payload_bytes, down=payload_down),
        dense=Traffic(up=counted.dense_bytes, down=counted.dense_bytes),
        raw_bytes=raw_bytes,
        ip_bytes=ip_bytes,
        money=cost(ip_bytes, price),
        cpu_seconds=_cpu_seconds([counted]),
        cosine=counted.cosine_sum / counted.cosines / 1e4 if counted.cosines else None,
        conflicts=counted.conflicts,
        tags=[] if gateway is None else sorted(gateway.tag_set),
    )


def _declined(counted: Folded) -> int:
    return sum(counted.reasons.values())


def _reasons(counted: Iterable[Folded]) -> dict[str, int]:
    """Declines by reason, the most frequent first."""
    counts: Counter[str] = Counter()
    for totals in counted:
        counts.update(totals.reasons)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _tails(gateways: Sequence[Gateway], wires: Sequence[Wire]) -> list[Tail]:
    current = {g.name: g for g in gateways}
    heard: set[tuple[str, bytes]] = set()
    last_report: dict[str, float] = {}
    tails = []
    for wire in wires:
        heard.add((wire.gateway, wire.nonce))
        last_report[wire.gateway] = max(last_report.get(wire.gateway, wire.reported_at), wire.reported_at)
        if not wire.final:
            gateway = current.get(wire.gateway)
            alive = gateway is not None and gateway.nonce == wire.nonce
            tails.append(Tail(gateway=wire.gateway, since=wire.reported_at, state=_state(gateway if alive else None)))
    for gateway in gateways:
        if (gateway.name, gateway.nonce) not in heard:
            since = last_report.get(gateway.name, gateway.first_seen)
            tails.append(Tail(gateway=gateway.name, since=since, state=_state(gateway)))
    return sorted(tails, key=lambda tail: (tail.gateway, tail.since))


def _state(gateway: Gateway | None) -> Literal["running", "away", "lost"]:
    if gateway is None:
        return "lost"
    return "running" if gateway.present else "away"


def _check_names(facts: _Facts, view: View) -> None:
    """Raises LedgerError where the view names what nobody has told of: a misspelt name must not come to nothing."""
    tags = {tag for g in facts.gateways for tag in g.tag_set}
    for what, wanted, known in (
        ("gateway", view.gateways, {g.name for g in facts.gateways}),
        ("site", view.sites, {site_of([tag]) for tag in tags} - {""}),
        ("tag", view.tags, tags),
    ):
        strange = sorted(set(wanted) - known)
        if strange:
            there = ", ".join(map(repr, sorted(known)[:20])) or "none"
            more = f" and {len(known) - 20:,} more" if len(known) > 20 else ""
            raise LedgerError(f"no {what} {strange[0]!r} in the ledger; there is {there}{more}")


def _raw(facts: _Facts, gateways: Iterable[Gateway], view: View) -> dict[str, int]:
    """Signal of each gateway: what it holds, or what it has gathered in a span of time."""
    if not view.in_time:
        return {g.name: g.signal_bytes for g in gateways}
    gathered = {g.name: 0 for g in gateways}
    for name, at, count in facts.gathered:
        if name in gathered and view.holds(at):
            gathered[name] += count
    return gathered


def _savings(used: int, raw: int | None, dense: int | None, price: Price) -> Savings:
    def beside(other: int | None) -> Comparison:
        if other is None:
            return Comparison(bytes=None, saved_bytes=None, saved_money=None)
        return Comparison(bytes=other, saved_bytes=other - used, saved_money=cost(other - used, price))

    return Savings(bytes=used, money=cost(used, price), raw=beside(raw), dense=beside(dense))


def _ip(ip_bytes: int, wires: Iterable[Wire]) -> IpBytes:
    counted = every = 0
    for wire in wires:
        every += wire.sent + wire.received
        counted += 0 if wire.beyond is None else wire.sent + wire.received
    return IpBytes(
        bytes=ip_bytes,
        counted_pct=100 * counted / every if every else 0.0,
        formula=(
            "IP bytes are wire bytes with what TCP/IP and TLS put around them, as each gateway's system counts segments"
            f" (TCP_INFO). Where it does not, they are estimated: {TCP_IP_ROUND_BYTES} B for TCP/IP and"
            f" {TLS_ROUND_BYTES} B for TLS with every answer, {TCP_JOIN_BYTES} B and {TLS_JOIN_BYTES:,} B with every"
            " start of a process; reconnects and pings between rounds far apart come on top of an estimate."
        ),
    )


def _groups(gateways: Iterable[GatewayLine], view: View, price: Price) -> list[GroupLine]:
    """By site; or by tag, and a gateway with several tags is in several groups."""
    members: dict[str, list[GatewayLine]] = defaultdict(list)
    for line in gateways:
        for name in (line.tags or [""]) if view.by == "tag" else [site_of(line.tags)]:
            members[name].append(line)
    return [
        GroupLine(
            name=name,
            gateways=len(lines),
            accepted=sum(line.accepted for line in lines),
            declined=sum(line.declined for line in lines),
            wire=_sum(line.wire for line in lines),
            ip_bytes=(ip_bytes := sum(line.ip_bytes for line in lines)),
            money=cost(ip_bytes, price),
            dense=_sum(line.dense for line in lines),
            raw_bytes=sum(line.raw_bytes for line in lines),
            cpu_seconds=_total(line.cpu_seconds for line in lines),
        )
        for name, lines in sorted(members.items())
    ]


def _cpu_seconds(counted: Iterable[Folded]) -> float | None:
    """Of all answers that told; None where none did."""
    spent = [totals.cpu for totals in counted if totals.cpu_told]
    return sum(spent) / 100 if spent else None


def _total(numbers: Iterable[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _personal_line(trial: Trial) -> PersonalLine:
    return PersonalLine(
        gateway=trial.gateway,
        version=trial.in_service,
        outcome=trial.personal or "",
        windows=trial.personal_windows,
        metric=trial.personal_metric,
        shared=trial.shared_metric,
    )


def _flag_line(flag: Flag, rule: str) -> FlagLine:
    return FlagLine(
        gateway=flag.gateway,
        since=flag.at,
        round=flag.round,
        reason=flag.reason,
        aside=flag.sets_aside(rule),
        evidence=flag.evidence,
    )


def _ratio(above: int, below: int) -> float | None:
    return above / below if above and below else None


def _sum(parts: Iterable[Traffic]) -> Traffic:
    up = down = 0
    for part in parts:
        up += part.up
        down += part.down
    return Traffic(up=up, down=down)
