"""What the dashboard shows, as values: the ledger and the report come in, plain structs go out.

Owns which figures stand together and what deserves a look. Every figure of bytes and accuracy is `report`'s, so that
page, report and command line never differ. Refuses to know HTML and HTTP. Times are unix seconds, sizes are bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from fedmq_protocol.messages import SensorHealth

from fedmq_coordinator.ledger import Answer, Gateway, Ledger, LedgerError, Round, Trial
from fedmq_coordinator.money import Price
from fedmq_coordinator.report import (
    GatewayLine,
    Report,
    RoundLine,
    Traffic,
    build,
    divide,
    flag_text,
    size,
)
from fedmq_coordinator.roster import SENSORS_OF
from fedmq_coordinator.vitals import LastVitals, battery_text, link_text, vitals_of, vitals_of_fleet
from fedmq_coordinator.web.machines import Conditions, conditions

__all__ = [
    "FLEET",
    "AnswerLine",
    "Fleet",
    "GatewayView",
    "MissingError",
    "Overview",
    "RoundEvent",
    "RoundView",
    "Saving",
    "Snapshot",
    "gateway_view",
    "round_event",
    "round_view",
    "snapshot",
]

ANSWERED_ROUNDS = 200
"""So many newest rounds are looked through for what a gateway answered last."""

ANSWERS_SHOWN = 300
"""Of one gateway, the latest."""

SILENT_SECONDS = 300
SLOW_PCT = 95

OFTEN = 0.5
"""A gateway that declines this share of what it is asked, and three times or more, deserves a look."""


class MissingError(LedgerError):
    """There is no such task, gateway or round."""


class _View(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the page, coded as it is."""


class Saving(_View, frozen=True, kw_only=True):
    """Against one other way to do it."""

    against: str
    other: int | None
    """Bytes that it would have taken; None: not known."""
    factor: float | None
    """How many times as much as on the wire; below 1 federation cost more. None: nothing to compare with."""
    saved: int | None
    """Bytes of a SIM card's bill, packets of TCP/IP and TLS counted; below 0 federation cost more."""
    worth: float | None
    """The same in the price's currency."""


class Rounds(_View, frozen=True, kw_only=True):
    """Columns, one entry a round: what the charts are drawn from."""

    id: list[int]
    outcome: list[str]
    metric: list[float | None]
    loss: list[float | None]
    accepted: list[int]
    declined: list[int]
    drawn: list[int]
    seconds: list[float | None]
    wire_up: list[int]
    wire_down: list[int]
    dense: list[int]
    cumulative_up: list[int]
    """Joining counted at the start."""
    cumulative_down: list[int]
    cumulative_dense: list[int]


class Overview(_View, frozen=True, kw_only=True):
    """One task at one moment."""

    at: float
    """When it was looked at."""
    federation: str
    task: str
    tasks: list[str]
    metric_name: str
    metric_first: float | None
    metric_last: float | None
    metric_last_round: int | None
    wire: Traffic
    raw_bytes: int
    savings: list[Saving]
    price: Price
    wire_per_gateway_round_median: float | None
    seconds_median: float | None
    present: int
    absent: int
    to_look_at: int
    """Gateways that deserve a look."""
    declines: dict[str, int]
    findings: list[str]
    alerts: int
    """That wait for somebody to say what they were."""
    rounds: Rounds
    open_round: RoundEvent | None


class RoundEvent(_View, frozen=True, kw_only=True):
    """A round as it goes: what can be said of it without reckoning anything."""

    id: int
    task: str
    kind: str
    outcome: str
    opened_at: float
    closes_at: float
    closed_at: float | None
    drawn: int
    accepted: int
    declined: int
    refused: int
    version: int | None
    metric: float | None
    loss: float | None


FLEET = (
    "name",
    "look",
    "state",
    "last_seen",
    "software",
    "engines",
    "tags",
    "last_round",
    "last_answer",
    "accepted",
    "declined",
    "reasons",
    "up",
    "down",
    "dense",
    "raw",
    "sensors",
    "serves",
    "battery",
    "link",
)
"""Columns of a fleet's rows, in this order."""

Cell = str | int | float | None


class Fleet(_View, frozen=True, kw_only=True):
    at: float
    columns: tuple[str, ...]
    rows: list[list[Cell]]


class Snapshot(_View, frozen=True, kw_only=True):
    """Everything of one task that takes a report to know."""

    report: Report
    overview: Overview
    fleet: Fleet
    conditions: Conditions


class AnswerLine(_View, frozen=True, kw_only=True):
    """One answer, of a gateway or in a round."""

    round: int
    gateway: str
    at: float
    kind: str
    verdict: str
    reason: str | None
    samples: int
    weight: int
    payload_bytes: int
    training_loss: float | None
    metric: float | None
    late: bool
    wire: Traffic | None
    """Of a gateway's page: all bytes from this answer to the next."""


class GatewayView(_View, frozen=True, kw_only=True):
    at: float
    task: str
    metric_name: str
    line: GatewayLine
    row: dict[str, Cell]
    windows: int
    sensors: list[SensorHealth]
    told_at: float | None
    """When it told of its battery and link; None where it does not."""
    evidence: list[str]
    """Why it is flagged, or set aside."""
    trial: Trial | None
    answers: list[AnswerLine]
    """The latest, in order."""


class RoundView(_View, frozen=True, kw_only=True):
    at: float
    task: str
    metric_name: str
    line: RoundLine
    answers: list[AnswerLine]
    earlier: int | None
    """The round before, of the same task."""
    later: int | None


# -- one task --------------------------------------------------------------------------------------------------


def snapshot(ledger: Ledger, task: str | None, now: float) -> Snapshot:
    """Of this task, or of the first one. Raises MissingError where there is no such task, LedgerError
    where the file is damaged."""
    names = [row.name for row in ledger.tasks() if row.configured] or [row.name for row in ledger.tasks()]
    if task is not None and task not in [row.name for row in ledger.tasks()]:
        raise MissingError(f"there is no task {task!r}")
    chosen = task if task is not None else names[0] if names else None
    report = build(ledger, chosen)
    with ledger.snapshot():
        federation = (ledger.get("federation") or b"").decode("utf-8", "replace")
        gateways = ledger.gateways()
        fleet = fleet_rows(report, gateways, ledger, now)
        condition = conditions(ledger, chosen or "")
        last = None if chosen is None else ledger.book(chosen).last_round()
        opened = None if last is None or last.closed_at is not None else round_event(last, chosen or "", ledger)
    look = FLEET.index("look")
    return Snapshot(
        report=report,
        overview=Overview(
            at=now,
            federation=federation,
            task=report.task,
            tasks=names,
            metric_name=report.metric_name,
            metric_first=report.metric_first,
            metric_last=report.metric_last,
            metric_last_round=report.metric_last_round,
            wire=report.wire,
            raw_bytes=report.raw_bytes or 0,  # known of a whole report: only a part of one may lack it
            savings=savings(report),
            price=report.price,
            wire_per_gateway_round_median=report.wire_per_gateway_round_median,
            seconds_median=report.seconds_median,
            present=sum(g.present for g in gateways),
            absent=sum(not g.present for g in gateways),
            to_look_at=sum(bool(row[look]) for row in fleet),
            declines=report.declines,
            findings=report.findings,
            alerts=condition.waiting_in_all,
            rounds=_columns(report),
            open_round=opened,
        ),
        fleet=Fleet(at=now, columns=FLEET, rows=fleet),
        conditions=condition,
    )


def savings(report: Report) -> list[Saving]:
    """Against plain FedAvg, and against uploading the signal: how many times fewer bytes on the wire, and what that is
    on a SIM card's bill, as the report reckons both."""
    return [
        Saving(against=against, other=other.bytes, factor=factor, saved=other.saved_bytes, worth=other.saved_money)
        for against, other, factor in (
            ("dense", report.savings.dense, report.factors.dense_over_wire),
            ("raw", report.savings.raw, report.factors.raw_over_wire),
        )
    ]


def _columns(report: Report) -> Rounds:
    lines = report.rounds
    return Rounds(
        id=[line.id for line in lines],
        outcome=[line.outcome for line in lines],
        metric=[line.metric for line in lines],
        loss=[line.loss for line in lines],
        accepted=[taken(line) for line in lines],
        declined=[line.declined for line in lines],
        drawn=[line.drawn for line in lines],
        seconds=[line.seconds for line in lines],
        wire_up=[line.wire.up for line in lines],
        wire_down=[line.wire.down for line in lines],
        dense=[line.dense.total for line in lines],
        cumulative_up=_running((line.wire.up for line in lines), report.joining.up),
        cumulative_down=_running((line.wire.down for line in lines), report.joining.down),
        cumulative_dense=_running(line.dense.total for line in lines),
    )


def taken(line: RoundLine) -> int:
    """Answers of use: updates that were accepted, or statistics."""
    return line.accepted if line.kind == "training" else line.answered - line.declined


def _running(counts: Iterable[int], start: int = 0) -> list[int]:
    return list(itertools.accumulate(counts, initial=start))[1:]


def round_event(round_: Round, task: str, ledger: Ledger) -> RoundEvent:
    tally = ledger.tally(round_.id)
    accepted = sum(n for (kind, verdict), n in tally.items() if kind != "decline" and verdict == "accepted")
    declined = sum(n for (kind, _), n in tally.items() if kind == "decline")
    return RoundEvent(
        id=round_.id,
        task=task,
        kind=round_.kind,
        outcome=round_.outcome,
        opened_at=round_.opened_at,
        closes_at=round_.closes_at,
        closed_at=round_.closed_at,
        drawn=round_.drawn,
        accepted=accepted,
        declined=declined,
        refused=sum(tally.values()) - accepted - declined,
        version=round_.version,
        metric=round_.metric,
        loss=round_.loss,
    )


# -- the fleet -------------------------------------------------------------------------------------------------


def fleet_rows(report: Report, gateways: Sequence[Gateway], ledger: Ledger, now: float) -> list[list[Cell]]:
    """One row a gateway, as FLEET has it; those that deserve a look first."""
    lines = {line.name: line for line in report.gateways}
    last = {answer[0]: answer[1:] for answer in ledger.last_answers(ANSWERED_ROUNDS)}
    sensors = {name: read_sensors(stored) for name, stored in ledger.told(SENSORS_OF).items()}
    vitals = vitals_of_fleet(ledger)
    trials = {trial.gateway: trial for trial in ledger.book(report.task).trials()} if report.task else {}
    flagged = {line.gateway: flag_text(line) for line in report.flagged}
    aside = {line.gateway for line in report.set_aside} | {line.gateway for line in report.flagged if line.aside}
    rows = [
        _row(gateway, lines[gateway.name], last, sensors, vitals.get(gateway.name), trials, flagged, aside)
        for gateway in gateways
        if gateway.name in lines
    ]
    return sorted(rows, key=lambda row: (not row[1], str(row[0])))


def _row(
    gateway: Gateway,
    line: GatewayLine,
    last: Mapping[str, tuple[int, float, str, str, str | None]],
    sensors: Mapping[str, Sequence[SensorHealth]],
    vitals: LastVitals | None,
    trials: Mapping[str, Trial],
    flagged: Mapping[str, str],
    aside: Iterable[str],
) -> list[Cell]:
    name = gateway.name
    answer, own, trial = last.get(name), sensors.get(name, ()), trials.get(name)
    unwell = [words for sensor in own if (words := sensor_text(sensor))]
    state = "set aside" if name in aside else "online" if gateway.present else "away"
    often = line.declined >= 3 and line.declined >= OFTEN * line.answered
    look = [flagged[name]] if name in flagged else []
    look += ["asked in vain"] if name in aside and name not in flagged else []
    look += ["away"] if not gateway.present else []
    look += ["battery low"] if vitals is not None and vitals.low else []
    look += ["sensor trouble"] if unwell else []
    look += ["declines often"] if often else []
    return [
        name,
        ", ".join(look),
        state,
        gateway.last_seen,
        gateway.software,
        gateway.engines,
        " ".join(sorted(gateway.tag_set)),
        line.last_round,
        None if answer is None else answer_text(answer[2], answer[3], answer[4]),
        line.accepted,
        line.declined,
        ", ".join(f"{reason} {count:,}" for reason, count in line.declines.items()),
        line.wire.up,
        line.wire.down,
        line.dense.total,
        line.raw_bytes,
        "; ".join(unwell) or (f"{len(own)} well" if own else None),
        None if trial is None else trial.in_service,
        battery_text(vitals),
        link_text(vitals),
    ]


def read_sensors(stored: bytes | None) -> tuple[SensorHealth, ...]:
    """As the gateway's last birth told; none where that cannot be read: other software may have written the file."""
    try:
        return () if stored is None else msgspec.json.decode(stored, type=tuple[SensorHealth, ...])
    except msgspec.MsgspecError:
        return ()


def sensor_text(sensor: SensorHealth) -> str:
    """What is wrong with it; nothing where it is well."""
    wrong = [
        word
        for word, is_so in (
            (f"silent for {sensor.silent_seconds:,} s", sensor.silent_seconds >= SILENT_SECONDS),
            (f"at {sensor.rate_pct} % of its rate", sensor.rate_pct < SLOW_PCT),
            ("clipping", sensor.clipping),
            ("flat", sensor.flat),
        )
        if is_so
    ]
    return f"{sensor.name} {', '.join(wrong)}" if wrong else ""


def answer_text(kind: str, verdict: str, reason: str | None) -> str:
    if kind == "decline":
        return f"declined: {(reason or 'not said').replace('_', ' ')}"
    return f"{kind} {verdict}".replace("_", " ")


# -- one gateway, one round ------------------------------------------------------------------------------------


def gateway_view(ledger: Ledger, shown: Snapshot, name: str, now: float) -> GatewayView:
    """Raises MissingError where there is no such gateway."""
    line = next((line for line in shown.report.gateways if line.name == name), None)
    row = next((row for row in shown.fleet.rows if row[0] == name), None)
    if line is None or row is None:
        raise MissingError(f"no gateway {name!r} has ever come to this coordinator")
    with ledger.snapshot():
        gateway = next((found for found in ledger.gateways() if found.name == name), None)
        sensors = read_sensors(ledger.get(SENSORS_OF + name))
        vitals = vitals_of(ledger, name)
        wires = [wire for wire in ledger.wires() if wire.gateway == name]
        marks = [mark for mark in ledger.marks() if mark.gateway == name]
        answers = ledger.answers_of(name, ANSWERS_SHOWN)
        trials = ledger.book(shown.report.task).trials() if shown.report.task else []
    shares = divide(wires, answers, marks)
    return GatewayView(
        at=now,
        task=shown.report.task,
        metric_name=shown.report.metric_name,
        line=line,
        row=dict(zip(FLEET, row, strict=True)),
        windows=0 if gateway is None else gateway.windows,
        sensors=list(sensors),
        told_at=None if vitals is None else vitals.at,
        evidence=[flag.evidence for flag in shown.report.flagged if flag.gateway == name],
        trial=next((trial for trial in trials if trial.gateway == name), None),
        answers=[_answer_line(answer, shares.get((name, answer.round))) for answer in answers],
    )


def round_view(ledger: Ledger, shown: Snapshot, number: int, now: float) -> RoundView:
    """Raises MissingError where the task has had no such round."""
    ids = [line.id for line in shown.report.rounds]
    if number not in ids:
        raise MissingError(f"task {shown.report.task!r} has had no round {number}")
    place = ids.index(number)
    with ledger.snapshot():
        answers = ledger.answers(number)
    return RoundView(
        at=now,
        task=shown.report.task,
        metric_name=shown.report.metric_name,
        line=shown.report.rounds[place],
        answers=[_answer_line(answer, None) for answer in answers],
        earlier=ids[place - 1] if place else None,
        later=ids[place + 1] if place + 1 < len(ids) else None,
    )


def _answer_line(answer: Answer, wire: Traffic | None) -> AnswerLine:
    return AnswerLine(
        round=answer.round,
        gateway=answer.gateway,
        at=answer.received_at,
        kind=answer.kind,
        verdict=answer.verdict,
        reason=answer.reason,
        samples=answer.samples,
        weight=answer.weight,
        payload_bytes=answer.payload_bytes,
        training_loss=answer.training_loss,
        metric=answer.held_out_metric,
        late=answer.late,
        wire=wire,
    )


def size_text(count: float | None) -> str:
    """For people; nothing where it is not known."""
    return "" if count is None else size(count)
