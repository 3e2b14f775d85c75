"""The bandwidth-savings report, from the ledger alone: what was learnt, what it cost in bytes, against what.

Owns the rules by which bytes are counted and compared; every one of them is in `Report.rules`, in words, beside the
figures. Refuses to know how a report looks (`report_text`, `report_html`) and where bytes were counted (the gateways).

Two rules keep it honest. The wire table is the truth and answers only divide it, so that joining and rounds together
are the wire table's sum, whatever a gateway says. And a comparison leans against federation: dense FedAvg is
charged its bare parameters without one packet header, and a signal uploaded raw is charged once.
"""

from __future__ import annotations

import copy
import csv
import io
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Literal

import msgspec

from fedmq_coordinator.absent import ABSENT, from_bytes, set_aside
from fedmq_coordinator.ledger import FLAGGED, Answer, Folded, Gateway, Ledger, Mark, Round, Version, Wire
from fedmq_coordinator.retention import LATE, add, read

__all__ = [
    "METRIC_NAME",
    "AsideLine",
    "CatchUpLine",
    "Factors",
    "FlagLine",
    "GatewayLine",
    "IpEstimate",
    "PersonalLine",
    "RefusedLine",
    "Report",
    "RoundLine",
    "RoundMetrics",
    "Tail",
    "Traffic",
    "VerdictLine",
    "build",
    "divide",
    "flag_text",
    "many",
    "metrics_by_round",
    "personal_text",
    "size",
    "to_csv",
    "to_json",
]

METRIC_NAME = "metric_name"
"""Key of the ledger's state under which the coordinator writes what its metric is, in UTF-8 ('macro-F1')."""

TCP_IP_HEADER_BYTES = 40
"""IPv4 and TCP headers of one segment, without options (RFC 791, RFC 9293)."""

TCP_IP_ROUND_BYTES = 200
"""What TCP/IP adds for one gateway in one round, about: five segments. Three carry MQTT packets (plan, its PUBACK,
answer), and two are bare ACKs; of these the kernel was seen to save one where a round takes milliseconds."""

TLS_ROUND_BYTES = 66
"""What TLS records add to the same three packets: some 22 B a record (RFC 8446, section 5.2)."""


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the report, coded as it is."""


class Traffic(_Line, frozen=True, kw_only=True):
    """Bytes, seen from the gateways: up is sent, down is received."""

    up: int = 0
    down: int = 0

    @property
    def total(self) -> int:
        return self.up + self.down

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(up=self.up + other.up, down=self.down + other.down)


class Factors(_Line, frozen=True, kw_only=True):
    """How many times fewer bytes; below 1 federation cost more. None where there is nothing to divide."""

    dense_over_wire: float | None
    raw_over_wire: float | None
    dense_over_payload: float | None


class IpEstimate(_Line, frozen=True, kw_only=True):
    """What a bill for a SIM card would count, estimated: bytes up and down together."""

    tcp: int
    tls: int
    formula: str


class Tail(_Line, frozen=True, kw_only=True):
    """Bytes that a process of a gateway has counted and not reported: how many is not known, only since when."""

    gateway: str
    since: float
    state: Literal["running", "away", "lost"]
    """running: comes with its next answer; away: not connected now; lost: the process ended without a last word."""


class RoundLine(_Line, frozen=True, kw_only=True):
    id: int
    lineage: int
    kind: str
    base: int
    version: int | None
    outcome: str
    opened_at: float
    closed_at: float | None
    seconds: float | None
    drawn: int
    answered: int
    accepted: int
    declined: int
    owed: int
    declines: dict[str, int]
    plan_bytes: int
    wire: Traffic
    payload: Traffic
    dense: Traffic
    metric: float | None
    loss: float | None
    metric_source: str | None
    level: int
    """How dense its updates were asked for: 0 is as dense as the task says."""
    late: int
    """Updates that were accepted after it had closed: they count in later rounds, and not in `accepted`."""
    training_loss: float | None
    """Mean over its updates, by their weights: what gateways told of their own training."""
    digest: str | None
    """sha256 of the model version that came of it, in hex."""


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


class GatewayLine(_Line, frozen=True, kw_only=True):
    name: str
    present: bool
    first_seen: float | None
    last_seen: float | None
    processes: int
    """How many of its processes reported bytes: one more than its restarts."""
    answered: int
    accepted: int
    declined: int
    declines: dict[str, int]
    last_round: int | None
    wire: Traffic
    joining: Traffic
    payload: Traffic
    dense: Traffic
    raw_bytes: int
    cosine: float | None
    """Mean over its updates in versions, each with the sum of the others in the same version."""
    conflicts: int
    """How often it sent other bytes for a round that it had answered."""


class AsideLine(_Line, frozen=True, kw_only=True):
    """A gateway that is not asked for a while."""

    gateway: str
    missed: int
    """Rounds in a row that it was asked in vain."""
    left: int
    """Rounds of its pause that are still to close, the open one counted."""


class FlagLine(_Line, frozen=True, kw_only=True):
    """A gateway that somebody should look at."""

    gateway: str
    since: float
    round: int
    """The newest one then."""
    reason: str
    """refused | against | ordered"""
    aside: bool
    """Not drawn, and what it sends is refused."""
    evidence: str


class VerdictLine(_Line, frozen=True, kw_only=True):
    """Answers that were not accepted."""

    kind: str
    verdict: str
    answers: int


class CatchUpLine(_Line, frozen=True, kw_only=True):
    kind: str
    published: int
    bytes: int
    askers: int
    """Gateways served, a gateway counted each time."""


class RefusedLine(_Line, frozen=True, kw_only=True):
    """Junk: messages that were no message of the protocol."""

    channel: str
    reason: str
    messages: int
    bytes: int


class PersonalLine(_Line, frozen=True, kw_only=True):
    """What a gateway found of its own variant of the version in service."""

    gateway: str
    version: int
    outcome: str
    """`PersonalOutcome` in lower case: it scores there where that is `serves`."""
    windows: int
    metric: float | None
    shared: float | None
    """Of the version in service, on the same held-out windows."""

    @property
    def serves(self) -> bool:
        return self.outcome == "serves"


class Report(_Line, frozen=True, kw_only=True):
    """Everything the ledger can say about bytes and accuracy. Sizes in bytes, times in unix seconds."""

    task: str
    metric_name: str
    findings: list[str]
    """The result in sentences, the most important one first."""
    wire: Traffic
    joining: Traffic
    """The part of `wire` that belongs to no round, and so to no task: nothing where there are several."""
    payload: Traffic
    dense: Traffic
    raw_bytes: int
    ip: IpEstimate
    factors: Factors
    wire_per_gateway_round_median: float | None
    seconds_median: float | None
    metric_first: float | None
    metric_last: float | None
    metric_last_round: int | None
    folded_rounds: int
    """Whose answers are summed up in the ledger."""
    below_quorum: list[int]
    owed: int
    declines: dict[str, int]
    verdicts: list[VerdictLine]
    catch_ups: list[CatchUpLine]
    refused: list[RefusedLine]
    tails: list[Tail]
    set_aside: list[AsideLine]
    flagged: list[FlagLine]
    """Gateways whose updates are refused again and again, or point away from the others'; or set aside by order."""
    personal: list[PersonalLine]
    """Of gateways that were asked for personal models and have told."""
    rounds: list[RoundLine]
    gateways: list[GatewayLine]
    rules: list[str]


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
]


def build(ledger: Ledger, task: str | None = None) -> Report:
    """The report of one moment, of this task or the only one.

    Raises LedgerError where the file is damaged, for an unknown task, and where there are several and none is named.
    """
    with ledger.snapshot():
        tasks = ledger.tasks()
        # A coordinator may have made the file and not worked with it yet.
        book = None if task is None and not tasks else ledger.only if task is None else ledger.book(task)
        alone = len(tasks) <= 1
        metric_name = (b"metric" if book is None else book.get(METRIC_NAME) or b"metric").decode("utf-8", "replace")
        gateways = ledger.gateways()
        rounds = [] if book is None else book.rounds()
        # The bytes between two answers belong to the first, of whichever task.
        everything = ledger.answers()
        wires = ledger.wires()
        marks = ledger.marks()
        folded = {} if book is None else {name: read(totals) for name, totals in book.folded().items()}
        versions = [] if book is None else [v for lineage in book.lineages() for v in book.versions(lineage)]
        catch_ups = [] if book is None else book.catch_ups()
        refused = ledger.refused()
        trials = [] if book is None else book.trials()
        absences = from_bytes(None if book is None else book.get(ABSENT))
        flags = [] if book is None else [flag for flag in book.flags() if flag.state != "readmitted"]
        rule = "report" if book is None else (book.get(FLAGGED) or b"report").decode("utf-8", "replace")
        every_round = {row.id for row in ledger.rounds()}

    known = {r.id for r in rounds}
    shares = divide(wires, [a for a in everything if a.round in every_round], marks)
    if not alone:
        shares = {key: traffic for key, traffic in shares.items() if key[1] in known}
    answers = everything if alone else [a for a in everything if a.round in known]
    by_round: dict[int, list[Answer]] = defaultdict(list)
    by_gateway: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_round[answer.round].append(answer)
        by_gateway[answer.gateway].append(answer)
    shares_by_gateway: dict[str, dict[int | None, Traffic]] = defaultdict(dict)
    shares_by_round: dict[int | None, Traffic] = defaultdict(Traffic)
    for (name, number), traffic in shares.items():
        shares_by_gateway[name][number] = traffic
        shares_by_round[number] += traffic
    processes = Counter(wire.gateway for wire in wires)
    down_by_gateway, down_by_round = _delivered(gateways, rounds, versions, by_round)

    digests = {version.round: version.digest.hex() for version in versions}
    round_lines = [
        _round_line(r, by_round[r.id], shares_by_round[r.id], down_by_round[r.id], digests.get(r.id)) for r in rounds
    ]
    seen = {g.name: g for g in gateways}
    others = sorted((shares_by_gateway.keys() | by_gateway.keys() | folded.keys()) - seen.keys())
    gateway_lines = [
        _gateway_line(
            name,
            seen.get(name),
            by_gateway[name],
            _counted(folded.get(name), by_gateway[name]),
            processes[name],
            shares_by_gateway[name],
            down_by_gateway[name],
        )
        for name in (*seen, *others)
    ]

    total = _sum(line.wire for line in gateway_lines)
    payload = _sum(line.payload for line in gateway_lines)
    dense = _sum(line.dense for line in gateway_lines)
    counted = [_counted(folded.get(name), by_gateway[name]) for name in folded.keys() | by_gateway.keys()]
    raw = sum(g.signal_bytes for g in gateways)
    scored = [line for line in round_lines if line.metric is not None]
    kept = {r.id for r in rounds if r.totals is None}
    per_round = [t.total for (_, round_id), t in shares.items() if round_id in kept]
    seconds = [line.seconds for line in round_lines if line.seconds is not None]
    tails = _tails(gateways, wires)
    personal = [
        PersonalLine(
            gateway=trial.gateway,
            version=trial.in_service,
            outcome=trial.personal,
            windows=trial.personal_windows,
            metric=trial.personal_metric,
            shared=trial.shared_metric,
        )
        for trial in trials
        if trial.personal is not None
    ]
    flagged = [
        FlagLine(
            gateway=flag.gateway,
            since=flag.at,
            round=flag.round,
            reason=flag.reason,
            aside=flag.sets_aside(rule),
            evidence=flag.evidence,
        )
        for flag in flags
    ]
    below = [line.id for line in round_lines if line.outcome == "below quorum"]
    kinds: Counter[str] = Counter()
    for totals in counted:
        kinds.update(totals.kinds)
    return Report(
        task="" if book is None else book.name,
        metric_name=metric_name,
        findings=_findings(metric_name, total, dense, raw, round_lines, gateway_lines, below, tails, personal, flagged),
        wire=total,
        joining=_sum(line.joining for line in gateway_lines),
        payload=payload,
        dense=dense,
        raw_bytes=raw,
        ip=_ip(total.total, sum(totals.answered for totals in counted)),
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
        folded_rounds=len(rounds) - len(kept),
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
        refused=[RefusedLine(channel=c, reason=r, messages=m, bytes=b) for c, r, m, b in refused],
        tails=tails,
        set_aside=[
            AsideLine(gateway=name, missed=absences[name].missed, left=absences[name].left)
            for name in sorted(set_aside(absences, {g.name: g.nonce for g in gateways}))
        ],
        flagged=flagged,
        personal=personal,
        rounds=round_lines,
        gateways=gateway_lines,
        rules=_RULES,
    )


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


def to_json(report: Report | Sequence[Report]) -> bytes:
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
        )
        for line in report.rounds
    )


def to_csv(report: Report) -> str:
    """One line a round, with a heading (RFC 4180). Bytes, unix seconds; what is not known is empty."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([field.name for field in fields(RoundMetrics)])
    writer.writerows(astuple(row) for row in metrics_by_round(report))
    return out.getvalue()


def size(count: float) -> str:
    """Bytes for people, in decimal units as a data plan counts them: '827 B', '12.3 kB', '4.56 MB'."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.0f} B" if unit == "B" else f"{_three_digits(value)} {unit}"
        value /= 1000
    return f"{_three_digits(value)} TB"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 9.995 else f"{value:.1f}" if abs(value) < 99.95 else f"{value:,.0f}"


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
    round_: Round, answers: Sequence[Answer], share: Traffic, payload_down: int, digest: str | None
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
        wire=share + Traffic(up=before.sent, down=before.received),
        payload=Traffic(up=counted.payload_bytes, down=payload_down),
        dense=Traffic(up=counted.dense_bytes, down=counted.dense_bytes),
        metric=round_.metric,
        loss=round_.loss,
        metric_source=round_.metric_source,
        level=round_.level,
        late=counted.kinds.get(LATE, 0),
        training_loss=round_.training_loss,
        digest=digest,
    )


def _gateway_line(
    name: str,
    gateway: Gateway | None,
    answers: Sequence[Answer],
    counted: Folded,
    processes: int,
    shares: dict[int | None, Traffic],
    payload_down: int,
) -> GatewayLine:
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
        wire=_sum(shares.values()) + Traffic(up=counted.sent, down=counted.received),
        joining=shares.get(None, _NONE),
        payload=Traffic(up=counted.payload_bytes, down=payload_down),
        dense=Traffic(up=counted.dense_bytes, down=counted.dense_bytes),
        raw_bytes=0 if gateway is None else gateway.signal_bytes,
        cosine=counted.cosine_sum / counted.cosines / 1e4 if counted.cosines else None,
        conflicts=counted.conflicts,
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


def _ip(wire: int, answers: int) -> IpEstimate:
    tcp = wire + answers * TCP_IP_ROUND_BYTES
    return IpEstimate(
        tcp=tcp,
        tls=tcp + answers * TLS_ROUND_BYTES,
        formula=(
            f"Estimate: wire bytes + {TCP_IP_ROUND_BYTES} B for TCP/IP for every answer (one gateway and"
            f" round: headers of {TCP_IP_HEADER_BYTES} B on each MQTT packet and each bare ACK), and"
            f" {TLS_ROUND_BYTES} B more with TLS. Connection handshakes and pings between rounds far apart come on top."
        ),
    )


def _findings(
    metric_name: str,
    wire: Traffic,
    dense: Traffic,
    raw: int,
    rounds: Sequence[RoundLine],
    gateways: Sequence[GatewayLine],
    below: Sequence[int],
    tails: Sequence[Tail],
    personal: Sequence[PersonalLine],
    flagged: Sequence[FlagLine],
) -> list[str]:
    if not rounds:
        return ["No round has been opened yet."]
    findings = [
        f"{many(len(gateways), 'gateway')} and {many(len(rounds), 'round')} took {size(wire.total)} on the wire:"
        f" {size(wire.up)} up, {size(wire.down)} down."
    ]
    scored = [line for line in rounds if line.metric is not None]
    if len(scored) == 1:
        findings.append(
            f"{metric_name} is {scored[0].metric:.3f} in round {scored[0].id}, on {_source(scored[0].metric_source)}."
        )
    elif scored:
        findings.append(
            f"{metric_name} went from {scored[0].metric:.3f} in round {scored[0].id}"
            f" to {scored[-1].metric:.3f} in round {scored[-1].id}, on {_source(scored[-1].metric_source)}."
        )
    if wire.total:
        findings.append(
            _against("plain FedAvg in float32, for the updates that were accepted,", dense.total, wire.total)
        )
        findings.append(_against("uploading the raw signal once", raw, wire.total))
        if 0 < raw < wire.total:
            findings.append(
                "In bytes alone it would have been cheaper to upload this signal. Federation then earns its bytes by"
                " keeping the signal where it is, or once the gateways have gathered more of it."
            )
    else:
        findings.append("No gateway has reported its wire bytes yet: nothing can be compared.")
    if below:
        findings.append(
            f"{many(len(below), 'round')} closed below quorum: the model stood still, what was accepted is owed."
        )
    if tails:
        names = len({t.gateway for t in tails})
        findings.append(f"{many(names, 'gateway')} counted bytes that are not reported: the figures lack these tails.")
    if flagged:
        named = ", ".join(line.gateway for line in flagged[:5]) + ("" if len(flagged) <= 5 else " and others")
        findings.append(f"{many(len(flagged), 'gateway')} should be looked at: {named}.")
    if personal:
        findings.append(f"Personal models: {personal_text(personal)}.")
    return findings


def flag_text(line: FlagLine) -> str:
    """In a few words."""
    why = {"refused": "refused again and again", "against": "points away from the others", "ordered": "by order"}
    return f"{why.get(line.reason, line.reason)}{', set aside' if line.aside else ''}"


def personal_text(lines: Sequence[PersonalLine]) -> str:
    """On how many gateways they score, how much better they are there, and why not elsewhere."""
    gains = [
        abs(line.metric - line.shared)
        for line in lines
        if line.serves and line.metric is not None and line.shared is not None
    ]
    text = f"{len(gains)} of {many(len(lines), 'gateway')}"
    if gains:
        text += f", {statistics.median(gains):.3f} better there on own held-out windows (median)"
    others = Counter(line.outcome.replace("_", " ") for line in lines if not line.serves)
    if others:
        text += "; else " + ", ".join(f"{reason} {count}" for reason, count in sorted(others.items()))
    return text


def _against(what: str, other: int, wire: int) -> str:
    if other <= 0:
        return f"Against {what}: the ledger knows no bytes to compare with."
    if other >= wire:
        return f"Against {what} that is {other / wire:,.1f} times fewer bytes: {size(wire)} instead of {size(other)}."
    return (
        f"Federation cost MORE than {what}: {size(wire)} instead of {size(other)}, {size(wire - other)} more,"
        f" {wire / other:,.1f} times as much."
    )


def _source(source: str | None) -> str:
    return {None: "an unnamed source", "test set": "the test set"}.get(source, f"the gateways' {source}")


def many(count: int, noun: str) -> str:
    """'1 round', '2,000 rounds'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _ratio(above: int, below: int) -> float | None:
    return above / below if above and below else None


def _sum(parts: Iterable[Traffic]) -> Traffic:
    up = down = 0
    for part in parts:
        up += part.up
        down += part.down
    return Traffic(up=up, down=down)
