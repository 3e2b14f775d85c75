"""How a federation stands, for an ssh window: the headline, what needs somebody, the fleet, the last rounds.

Owns layout and which things need somebody; every figure comes from `report` and the ledger. Lines fit the width that is
asked for, from 60 characters on. Colours only repeat what the words say, and are there where the caller asks for them.
What came from a gateway cannot move the cursor. Nothing beyond the standard library is needed.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from fedmq_protocol.logs import printable
from fedmq_protocol.messages import SensorHealth

from fedmq_coordinator.ledger import Answer, Book, Gateway, Ledger, Round, TaskRow, Version
from fedmq_coordinator.machines import machines_told
from fedmq_coordinator.report import GatewayLine, Report, RoundLine, build, flag_text, many, personal_text, size
from fedmq_coordinator.roster import SENSORS_OF
from fedmq_coordinator.vitals import LOW_PCT, vitals_of_fleet

__all__ = ["LEAST_WIDTH", "status"]

LEAST_WIDTH = 60
ROUNDS_SHOWN = 5
GATEWAYS_SHOWN = 20
"""First those who need somebody, then the longest silent; JSON has them all."""
NAMED = 12
"""Gateways that one line names."""
ATTENTION_SHOWN = 12

AWAY_SECONDS = 300.0
"""A gateway that is away for less is most likely on its way back."""
DECLINES_IN_A_ROW = 3
BELOW_IN_A_ROW = 2
SENSOR_SILENT_SECONDS = 300
SLOW_PCT = 95

Colour = Literal["red", "yellow", "green", "bold", "dim"]
_CODES: dict[Colour, str] = {"red": "31", "yellow": "33", "green": "32", "bold": "1", "dim": "2"}


def status(ledger: Ledger, now: float, width: int = 80, task: str | None = None, *, colour: bool = False) -> str:
    """One task, or the only one. `now`: unix seconds. Raises LedgerError as `report.build` does."""
    report = build(ledger, task)
    with ledger.snapshot():
        seen = _look(ledger, report)
    page = _Page(max(LEAST_WIDTH, width), colour)
    _headline(page, report, seen, now)
    attention = list(_attention(report, seen, now))
    page.gap()
    if not attention:
        page.field("attention", "nothing needs anybody", "green")
    for place, (subject, text, shade) in enumerate(attention[:ATTENTION_SHOWN]):
        page.field("" if place else "attention", f"{subject}: {text}" if subject else text, shade)
    if len(attention) > ATTENTION_SHOWN:
        page.field("", f"and {len(attention) - ATTENTION_SHOWN:,} more; --json has everything")
    if report.rounds:
        page.gap()
        _rounds(page, report)
    if seen.gateways:
        page.gap()
        _gateways(page, report, seen, now)
    return page.text()


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What the ledger says beyond the report."""

    gateways: list[Gateway]
    row: TaskRow | None
    alone: bool
    round: Round | None
    answers: list[Answer]
    version: Version | None
    verdicts: dict[str, tuple[int, int, bytes, str] | None]
    streaks: dict[str, tuple[int, str]]
    """Of gateways that declined last: how many rounds in a row, and why the last time."""
    sensors: dict[str, list[str]]
    low: dict[str, int]
    """Charge in per cent of the batteries that are low, by gateway."""
    watched: list[tuple[str, str]]
    """Headings and lines on machines, alerts and drift."""


def _look(ledger: Ledger, report: Report) -> _Seen:
    gateways = ledger.gateways()
    book = ledger.book(report.task) if report.task else None
    round_ = None if book is None else book.last_round()
    return _Seen(
        gateways=gateways,
        row=None if book is None else book.row(),
        alone=len(ledger.tasks()) == 1,
        round=round_,
        answers=[] if round_ is None else ledger.answers(round_.id),
        version=None if round_ is None else ledger.last_version(round_.lineage),
        verdicts={} if book is None else {g.name: book.verdict(g.name) for g in gateways},
        streaks={} if book is None else _streaks(ledger, book),
        sensors={g.name: _sensors(ledger.get(SENSORS_OF + g.name)) for g in gateways},
        low={name: last.told.battery_pct or 0 for name, last in vitals_of_fleet(ledger).items() if last.low},
        watched=[] if book is None else machines_told(ledger, book),
    )


STREAK_ROUNDS = 20


def _streaks(ledger: Ledger, book: Book) -> dict[str, tuple[int, str]]:
    streaks: dict[str, tuple[int, str]] = {}
    over: set[str] = set()
    for round_ in reversed(book.rounds(last=STREAK_ROUNDS)):
        for answer in ledger.answers(round_.id):
            if answer.kind != "decline":
                over.add(answer.gateway)
            elif answer.gateway not in over:
                count, reason = streaks.get(answer.gateway, (0, answer.reason or "not said"))
                streaks[answer.gateway] = (count + 1, reason)
    return streaks


# -- the headline ----------------------------------------------------------------------------------------------


def _headline(page: _Page, report: Report, seen: _Seen, now: float) -> None:
    row, round_ = seen.row, seen.round
    if row is not None and not (seen.alone and row.state == "running" and not row.paused_tags):
        tags = ", ".join(row.paused_tags.split("\n"))
        page.field("task", f"{row.name}, {row.state}{f'; gateways tagged {tags} pause' if tags else ''}", "bold")
    if round_ is None:
        page.field("round", "No round has been opened yet", "bold")
    else:
        text, shade = _round_state(round_, now)
        page.field("round", text, shade)
        page.field("answers", _answers(round_, seen.answers))
        missing = _missing(round_, seen)
        if missing:
            page.field("missing", missing)
    page.field("model", _model(report, seen.version, now))
    page.field("bytes", _bytes(report))
    here = sum(g.present for g in seen.gateways)
    away = len(seen.gateways) - here
    fleet = f"{here} present, {away} absent"
    if report.set_aside:
        fleet += f"; set aside: {_aside(report)}"
    if report.flagged:
        fleet += f"; flagged: {len(report.flagged)}"
    page.field("gateways", fleet)
    if any(seen.sensors.values()):
        unwell = sum(any(words) for words in seen.sensors.values())
        amiss = f"amiss on {many(unwell, 'gateway')}" if unwell else "all well"
        page.field("sensors", f"as last told, {amiss}")
    if report.personal:
        page.field("personal", personal_text(report.personal))
    for heading, text in seen.watched:
        page.field(heading, text)


def _round_state(round_: Round, now: float) -> tuple[str, Colour]:
    name = f"{round_.id} ({round_.kind})"
    if round_.closed_at is not None:
        closed = f"{name} closed {_ago(round_.closed_at, now)}: {round_.outcome}; no round is open"
        return closed, "yellow" if round_.outcome == "below quorum" else "bold"
    left = round_.closes_at - now
    if left < 0:
        late = f"{name} in progress; should have closed {_span(-left)} ago: does the coordinator run?"
        return late, "red"
    return f"{name} in progress, opened {_ago(round_.opened_at, now)}; closes in {_span(left)}", "bold"


def _answers(round_: Round, answers: Sequence[Answer]) -> str:
    accepted = sum(a.kind != "decline" and a.verdict == "accepted" for a in answers)
    declines = Counter(a.reason or "not said" for a in answers if a.kind == "decline")
    said = f"{len(answers)} of {round_.drawn} drawn: {accepted} accepted, {declines.total()} declined"
    if declines:
        said += f" ({', '.join(f'{reason} {count}' for reason, count in sorted(declines.items()))})"
    if late := sum(a.late for a in answers):
        said += f", {late} of them late"
    if others := len(answers) - accepted - declines.total():
        said += f", {others} not accepted"
    return said


def _missing(round_: Round, seen: _Seen) -> str:
    answered = {a.gateway for a in seen.answers}
    missing = [g.name for g in seen.gateways if g.name not in answered]
    if not missing or round_.closed_at is not None or len(seen.answers) >= round_.drawn:
        return ""
    return _named(missing) + ("" if round_.drawn >= len(seen.gateways) else " (not all of them are drawn)")


def _model(report: Report, version: Version | None, now: float) -> str:
    if version is None:
        return "none yet"
    model = f"version {version.number}, made {_ago(version.created_at, now)}"
    if version.level:
        model += f"; updates thickened to level {version.level}"
    if report.metric_last is not None and report.metric_last_round is not None:
        scored = next(line for line in reversed(report.rounds) if line.id == report.metric_last_round)
        model += f"; {report.metric_name} {report.metric_last:.3f} after round {scored.id} ({scored.metric_source})"
    return model


def _bytes(report: Report) -> str:
    carried = f"{size(report.wire.up)} up, {size(report.wire.down)} down on the wire"
    against = [
        f"{factor:,.3g} times fewer than {what}" if factor >= 1 else f"{1 / factor:,.3g} times more than {what}"
        for factor, what in (
            (report.factors.dense_over_wire, "dense float32"),
            (report.factors.raw_over_wire, "the raw signal"),
        )
        if factor
    ]
    if against:
        carried += f": {', '.join(against)}"
    if report.tails:
        silent = many(len({t.gateway for t in report.tails}), "gateway")
        carried += f"; the latest bytes of {silent} not reported yet"
    return carried


# -- what needs somebody ---------------------------------------------------------------------------------------


def _attention(report: Report, seen: _Seen, now: float) -> Iterator[tuple[str, str, Colour]]:
    """Of whom, what, and how grave; the gravest first."""
    if seen.round is not None and seen.round.closed_at is None and now > seen.round.closes_at:
        yield "", f"round {seen.round.id} should be closed: does the coordinator run?", "red"
    below = _last_in_a_row(report.rounds, "below quorum")
    if below >= BELOW_IN_A_ROW:
        yield "", f"the last {below} rounds closed below quorum", "red"
    for line in report.flagged:
        yield line.gateway, f"flagged ({flag_text(line)})", "red"
    away = sorted((g for g in seen.gateways if not g.present), key=lambda g: g.last_seen)
    gone = [g for g in away if now - g.last_seen >= AWAY_SECONDS]
    for gateway in gone[:NAMED]:
        yield gateway.name, f"absent for {_span(now - gateway.last_seen)}", "yellow"
    if len(gone) > NAMED:
        yield "", f"and {len(gone) - NAMED:,} more are absent", "yellow"
    if seen.low:
        named = [f"{name} ({pct} %)" for name, pct in sorted(seen.low.items(), key=lambda item: (item[1], item[0]))]
        yield "", f"{many(len(named), 'gateway')} below {LOW_PCT} % battery: {_named(named)}", "yellow"
    declining = {name: said for name, said in seen.streaks.items() if said[0] >= DECLINES_IN_A_ROW}
    for name, (count, reason) in sorted(declining.items(), key=lambda item: (-item[1][0], item[0])):
        more = " or more" if count >= STREAK_ROUNDS else ""
        yield name, f"has declined {count}{more} rounds in a row: {reason}", "yellow"
    for name, every in seen.sensors.items():
        if words := "; ".join(filter(None, every)):
            yield name, f"sensors: {words}", "yellow"


def _last_in_a_row(rounds: Sequence[RoundLine], outcome: str) -> int:
    closed = [line for line in rounds if line.closed_at is not None]
    return next((n for n, line in enumerate(reversed(closed)) if line.outcome != outcome), len(closed))


def _sensors(stored: bytes | None) -> list[str]:
    """What is wrong with each sensor that the gateway's last birth told of; an empty text where nothing is."""
    if stored is None:
        return []
    return [_unwell(sensor) for sensor in msgspec.json.decode(stored, type=tuple[SensorHealth, ...])]


def _unwell(sensor: SensorHealth) -> str:
    wrong = [
        word
        for word, is_so in (
            (f"silent for {sensor.silent_seconds:,} s", sensor.silent_seconds >= SENSOR_SILENT_SECONDS),
            (f"at {sensor.rate_pct} % of its rate", sensor.rate_pct < SLOW_PCT),
            ("clipping", sensor.clipping),
            ("flat", sensor.flat),
        )
        if is_so
    ]
    return f"{sensor.name} {', '.join(wrong)}" if wrong else ""


# -- tables ----------------------------------------------------------------------------------------------------


def _rounds(page: _Page, report: Report) -> None:
    latest = report.rounds[-ROUNDS_SHOWN:][::-1]
    rows = [_round_row(line) for line in latest]
    heads = ("round", "outcome", "answers", "declined", report.metric_name, "wire", "took")
    page.table(heads, rows, left=(1,), shades=["yellow" if line.outcome == "below quorum" else None for line in latest])


def _round_row(line: RoundLine) -> tuple[str, ...]:
    done = line.accepted if line.kind != "statistics" else line.answered - line.declined
    return (
        str(line.id),
        line.outcome if line.kind == "training" else f"{line.outcome}, {line.kind}",
        f"{done} of {line.drawn}",
        str(line.declined) if line.declined else "",
        "" if line.metric is None else f"{line.metric:.3f}",
        # What gateways count of a round comes with their next answer.
        size(line.wire.total) if line.wire.total else "",
        "" if line.seconds is None else _span(line.seconds) if line.seconds >= 90 else f"{line.seconds:.1f} s",
    )


def _gateways(page: _Page, report: Report, seen: _Seen, now: float) -> None:
    lines = {line.name: line for line in report.gateways}
    shown = sorted(seen.gateways, key=lambda g: (g.present, g.last_seen, g.name))[:GATEWAYS_SHOWN]
    page.table(
        ("gateway", "", "last seen", "last answer", "windows", "wire"),
        [_gateway_row(g, lines[g.name], seen, now) for g in shown],
        left=(0, 1, 2, 3),
        shades=[None if g.present else "yellow" for g in shown],
    )
    if len(seen.gateways) > len(shown):
        more = len(seen.gateways) - len(shown)
        page.field("", f"{more:,} more: absent ones are named first, then the longest silent")


def _gateway_row(gateway: Gateway, line: GatewayLine, seen: _Seen, now: float) -> tuple[str, ...]:
    answer = "none yet" if line.last_round is None else f"round {line.last_round}"
    verdict = seen.verdicts.get(gateway.name)
    if gateway.name in seen.streaks:
        answer += f": {seen.streaks[gateway.name][1]}"
    elif verdict is not None:
        answer = f"round {verdict[0]}: {verdict[3]}"
    return (
        gateway.name,
        "present" if gateway.present else "ABSENT",
        _ago(gateway.last_seen, now),
        answer,
        f"{gateway.windows:,}",
        size(line.wire.total),
    )


# -- layout ----------------------------------------------------------------------------------------------------

LABEL_WIDTH = 10


class _Page:
    """Text that grows from the top."""

    def __init__(self, width: int, colour: bool) -> None:
        self._width = width
        self._colour = colour
        self._lines: list[str] = []

    def gap(self) -> None:
        if self._lines and self._lines[-1]:
            self._lines.append("")

    def field(self, label: str, text: str, shade: Colour | None = None) -> None:
        """A label and what belongs to it, folded beside the label."""
        folded = textwrap.wrap(printable(text), self._width - LABEL_WIDTH, break_on_hyphens=False) or [""]
        for place, line in enumerate(folded):
            head = (label if place == 0 else "").ljust(LABEL_WIDTH)
            self._lines.append((self._shaded(head, "dim") + self._shaded(line, shade)).rstrip())

    def table(
        self,
        heads: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        left: Sequence[int],
        shades: Sequence[Colour | None],
    ) -> None:
        """Columns are as wide as what stands in them, to the right but for those in `left`. Where that is too wide, the
        first of those that hold words gives way."""
        cells = [[printable(cell) for cell in row] for row in (heads, *rows)]
        widths = [max(len(row[place]) for row in cells) for place in range(len(heads))]
        over = sum(widths) + 2 * (len(widths) - 1) - self._width
        for place in left:
            if over > 0:
                taken = min(over, max(0, widths[place] - 12))
                widths[place] -= taken
                over -= taken
        for number, row in enumerate(cells):
            line = "  ".join(
                _cut(cell, width).ljust(width) if place in left else _cut(cell, width).rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            shade = "dim" if number == 0 else shades[number - 1]
            self._lines.append(self._shaded(_cut(line.rstrip(), self._width), shade))

    def _shaded(self, text: str, shade: Colour | None) -> str:
        if not self._colour or shade is None or not text.strip():
            return text
        return f"\x1b[{_CODES[shade]}m{text}\x1b[0m"

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _aside(report: Report) -> str:
    return _named([f"{line.gateway} (for {many(line.left, 'round')})" for line in report.set_aside])


def _ago(at: float, now: float) -> str:
    return f"{_span(max(0.0, now - at))} ago"


def _span(seconds: float) -> str:
    """'35 s', '4 min', '2 h 05 min', '3 days'."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{round(whole / 60)} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{round(whole / 86400)} days"
