"""The report as plain text, for a terminal, a pipe or an ssh window.

Owns layout and nothing else: every figure comes from `report`. Lines fit the width asked for, there are no colour
codes, and what came from a gateway cannot move the cursor. Only here is rich imported, and only when text is asked
for, so that a coordinator runs without it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fedmq_coordinator.findings import SPREADS_TOLD
from fedmq_coordinator.machines import SpreadLine
from fedmq_coordinator.money import amount
from fedmq_coordinator.report import (
    GatewayLine,
    GroupLine,
    PersonalLine,
    Report,
    Reports,
    RoundLine,
    Traffic,
    ip_told,
    many,
    size,
)

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["MissingExtraError", "to_text"]

ROUNDS_SHOWN = 40
"""The latest rounds; JSON and CSV have them all."""

GATEWAYS_SHOWN = 40
"""Those with the most bytes; JSON has them all."""


class MissingExtraError(ImportError):
    """rich is not installed."""


def to_text(report: Report | Reports, width: int = 80, *, title: bool = False) -> str:
    """Findings, totals, rounds, gateways and what went otherwise, in lines of at most `width` characters. Of several
    tasks first what they came to together, then each.

    `title`: with the task's name at the top, where there are several.
    """
    if isinstance(report, Reports):
        return "\n".join([_tasks(report, width), *(to_text(one, width, title=True) for one in report.tasks)])
    page = _Page(width)
    page.heading("Bandwidth report" if not title else f"Bandwidth report of task {report.task}")
    if report.view.told():
        page.lines([f"Only {report.view.told()}."])
    page.lines(report.sentences, bullet="")
    if report.gaps:
        page.lines(report.gaps, bullet="!")
    if not report.rounds and not report.gateways:
        return page.text()
    if report.view.by != "round":
        _by(page, report)
        return page.text()
    page.heading("In detail")
    page.lines(report.findings, bullet="-")
    page.heading("Totals")
    page.table(("", "up", "down", "together", "against wire"), _totals(report), left=(0,))
    page.lines(_totals_notes(report))
    cpu = report.cpu_seconds is not None
    page.heading("Rounds" + _latest(len(report.rounds), ROUNDS_SHOWN))
    head = ("round", "answers", "no", "wire up", "wire down", "payload", report.metric_name, "loss", "seconds")
    page.table(
        (*head, *(("CPU s",) if cpu else ()), ""),
        [_round_row(*pair, cpu=cpu) for pair in zip([None, *report.rounds], report.rounds, strict=False)][
            -ROUNDS_SHOWN:
        ],
        left=(len(head) + cpu,),
    )
    page.lines(["answers: accepted updates (or statistics) of gateways drawn; no: declines, with the reasons below."])
    if any(line.level for line in report.rounds):
        page.lines(["level: from here on updates are denser than the task says, since the loss stalled; 0: no longer."])
    page.heading("Gateways" + _largest(len(report.gateways), GATEWAYS_SHOWN))
    largest = sorted(report.gateways, key=lambda g: -g.wire.total)[:GATEWAYS_SHOWN]
    page.table(
        ("gateway", "rounds", "no", "wire up", "wire down", "IP level", "dense", "raw", *(("CPU s",) if cpu else ())),
        [_gateway_row(line, cpu=cpu) for line in largest],
        left=(0,),
    )
    _otherwise(page, report)
    page.heading("How it is counted")
    page.lines([*report.rules, report.ip.formula], bullet="-")
    return page.text()


# -- the report's parts ----------------------------------------------------------------------------------------


def _tasks(reports: Reports, width: int) -> str:
    together = reports.together
    page = _Page(width)
    page.heading(f"Bandwidth report of {many(len(reports.tasks), 'task')} together")
    if together.view.told():
        page.lines([f"Only {together.view.told()}."])
    page.lines(together.sentences, bullet="")
    if together.gaps:
        page.lines(together.gaps, bullet="!")
    page.heading("Tasks")
    page.table(
        ("task", "rounds", "wire up", "wire down", "IP level", "metric", ""),
        [
            *(
                (
                    one.task,
                    f"{len(one.rounds):,}",
                    size(one.wire.up),
                    size(one.wire.down),
                    size(one.ip.bytes),
                    _number(one.metric_last, 3),
                    "" if one.metric_last is None else one.metric_name,
                )
                for one in reports.tasks
            ),
            (
                "(joining)",
                "",
                size(together.joining.up),
                size(together.joining.down),
                size(reports.of_no_task),
                "",
                "",
            ),
        ],
        left=(0, 6),
    )
    page.lines([reports.note])
    _machines(page, together)
    if together.view.by != "round":
        _by(page, together)
    return page.text()


def _machines(page: _Page, report: Report) -> None:
    if report.spreads:
        page.heading("Machines against what is normal")
        page.table(
            ("measure", "of", "gateways", "index", "tenths, %", "drift from"),
            [_spread_row(line) for line in report.spreads[:GATEWAYS_SHOWN]],
            left=(0, 1, 5),
        )
        page.lines([SPREADS_TOLD])


def _totals(report: Report) -> list[tuple[str, ...]]:
    wire, raw = report.wire.total, report.raw_bytes

    def row(name: str, traffic: Traffic) -> tuple[str, ...]:
        return (name, size(traffic.up), size(traffic.down), size(traffic.total), _times(traffic.total, wire))

    return [
        row("wire, everything", report.wire),
        row("  of it joining", report.joining),
        row("payload alone", report.payload),
        row("dense float32", report.dense),
        ("raw signal, once", size(raw), "", size(raw), _times(raw, wire)),
        (f"IP level, {ip_told(report.ip)}", "", "", size(report.ip.bytes), _times(report.ip.bytes, wire)),
    ]


def _totals_notes(report: Report) -> list[str]:
    notes = []
    if report.factors.dense_over_payload is not None:
        notes.append(f"Dense over payload alone: {report.factors.dense_over_payload:,.1f} times.")
    if report.wire_per_gateway_round_median is not None:
        notes.append(f"Wire bytes of one gateway in one round, median: {report.wire_per_gateway_round_median:,.0f} B.")
    if report.seconds_median is not None:
        notes.append(f"Seconds of a round, median: {report.seconds_median:,.1f}.")
    if report.cpu_seconds is not None:
        notes.append(f"CPU seconds of the gateways, all rounds together: {report.cpu_seconds:,.1f}.")
    return notes


def _by(page: _Page, report: Report) -> None:
    """One table alone, of gateways, sites or tags."""
    head = ("up", "down", "IP level", "cost", "dense", "raw", "CPU s")

    def cells(line: GatewayLine | GroupLine) -> tuple[str, ...]:
        return (
            size(line.wire.up),
            size(line.wire.down),
            size(line.ip_bytes),
            amount(line.money, report.price.currency),
            size(line.dense.total),
            size(line.raw_bytes),
            _number(line.cpu_seconds, 1),
        )

    if report.view.by == "gateway":
        page.heading("Gateways")
        largest = sorted(report.gateways, key=lambda g: -g.ip_bytes)
        page.table(("gateway", *head), [(line.name, *cells(line)) for line in largest], left=(0,))
        return
    page.heading({"site": "Sites", "tag": "Tags"}[report.view.by])
    rows = [(group.name or "(none)", f"{group.gateways:,}", *cells(group)) for group in report.groups]
    page.table((report.view.by, "gateways", *head), rows, left=(0,))


def _round_row(before: RoundLine | None, line: RoundLine, *, cpu: bool) -> tuple[str, ...]:
    done = line.accepted if line.kind != "statistics" else line.answered - line.declined
    remark = {"applied": "", "open": "open", "below quorum": "below"}.get(line.outcome, line.outcome)
    level = f"level {line.level}" if line.level != (0 if before is None else before.level) else ""
    return (
        str(line.id),
        f"{done}/{line.drawn}",
        str(line.declined) if line.declined else "",
        size(line.wire.up),
        size(line.wire.down),
        size(line.payload.total),
        _number(line.metric, 3),
        _number(line.loss, 3),
        _number(line.seconds, 1),
        *((_number(line.cpu_seconds, 1),) if cpu else ()),
        remark or ("stats" if line.kind == "statistics" else level),
    )


def _gateway_row(line: GatewayLine, *, cpu: bool) -> tuple[str, ...]:
    return (
        line.name,
        str(line.accepted),
        str(line.declined) if line.declined else "",
        size(line.wire.up),
        size(line.wire.down),
        size(line.ip_bytes),
        size(line.dense.total),
        size(line.raw_bytes),
        *((_number(line.cpu_seconds, 1),) if cpu else ()),
    )


def _otherwise(page: _Page, report: Report) -> None:
    if report.declines:
        page.heading("Declines by reason")
        page.table(
            ("reason", "declines", "gateways"),
            [(reason, f"{count:,}", _who(report.gateways, reason)) for reason, count in report.declines.items()],
            left=(0, 2),
        )
    if report.below_quorum or report.owed:
        page.heading("Below quorum")
        rounds = ", ".join(str(r) for r in report.below_quorum[-20:]) or "none"
        page.lines([f"Rounds closed below quorum: {rounds}. Updates owed to the next round: {report.owed}."])
    if report.set_aside:
        page.heading("Set aside")
        page.lines([f"Asked in vain, and not asked for now: {_aside(report)}."])
    if report.flagged:
        page.heading("Gateways that should be looked at")
        page.table(
            ("gateway", "since round", "state", "why"),
            [
                (line.gateway, f"{line.round:,}", "set aside" if line.aside else "takes part", line.evidence)
                for line in report.flagged[:GATEWAYS_SHOWN]
            ],
            left=(0, 2, 3),
        )
    if report.personal:
        shown = sorted(report.personal, key=lambda line: (not line.serves, line.gateway))[:GATEWAYS_SHOWN]
        more = len(report.personal) - len(shown)
        page.heading("Personal models" + (f" ({more:,} more; --json has all)" if more else ""))
        page.table(
            ("gateway", "version", "outcome", "windows", "personal", "shared"),
            [_personal_row(line) for line in shown],
            left=(0, 2),
        )
    _machines(page, report)
    if report.verdicts:
        page.heading("Answers not accepted")
        page.table(
            ("kind", "verdict", "answers"),
            [(v.kind, v.verdict, f"{v.answers:,}") for v in report.verdicts],
            left=(0, 1),
        )
    if report.catch_ups:
        page.heading("Catch-ups of gateways that missed deltas")
        page.table(
            ("kind", "published", "bytes", "gateways served"),
            [(c.kind, f"{c.published:,}", size(c.bytes), f"{c.askers:,}") for c in report.catch_ups],
            left=(0,),
        )
    if report.refused:
        page.heading("Refused junk")
        page.table(
            ("channel", "reason", "messages", "bytes"),
            [(r.channel, r.reason, f"{r.messages:,}", size(r.bytes)) for r in report.refused],
            left=(0, 1),
        )
    if report.tails:
        page.heading("Bytes counted and not reported")
        page.table(
            ("gateway", "since", "the process"),
            [(t.gateway, _utc(t.since), _TAIL_STATES[t.state]) for t in report.tails[:GATEWAYS_SHOWN]],
            left=(0, 1, 2),
        )


_TAIL_STATES = {
    "running": "runs: comes with its next answer",
    "away": "is not connected",
    "lost": "ended without a last word: never known",
}


def _personal_row(line: PersonalLine) -> tuple[str, ...]:
    outcome = "scores" if line.serves else line.outcome.replace("_", " ")
    metrics = (_number(line.metric, 3), _number(line.shared, 3))
    return (line.gateway, str(line.version), outcome, f"{line.windows:,}", *metrics)


def _spread_row(line: SpreadLine) -> tuple[str, ...]:
    shares = " ".join(f"{100 * share:.0f}" for share in line.shares)
    since = "" if line.drifting_since is None else _utc(line.drifting_since)[:10]
    return (line.where, many(line.machines, line.kind), f"{line.gateways:,}", f"{line.index:.2f}", shares, since)


def _aside(report: Report) -> str:
    named = [f"{line.gateway} (for {many(line.left, 'round')})" for line in report.set_aside]
    more = f" and {len(named) - 12} more" if len(named) > 12 else ""
    return ", ".join(named[:12]) + more


def _who(gateways: Iterable[GatewayLine], reason: str) -> str:
    named = [f"{g.name} ({g.declines[reason]})" for g in gateways if reason in g.declines]
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return ", ".join(named[:5]) + more


# -- layout ----------------------------------------------------------------------------------------------------


class _Page:
    """Text that grows from the top; rich does the tables."""

    def __init__(self, width: int) -> None:
        try:
            from rich.console import Console
        except ImportError as error:
            raise MissingExtraError(
                "text needs the package rich: pip install 'fedmq[coordinator]' (JSON, CSV and HTML do without it)"
            ) from error
        self._out = io.StringIO()
        self._console = Console(
            file=self._out,
            width=max(width, 40),
            color_system=None,
            force_terminal=False,
            force_jupyter=False,
            no_color=True,
            legacy_windows=False,
            markup=False,
            emoji=False,
            highlight=False,
            _environ={},
        )

    def heading(self, text: str) -> None:
        if self._out.tell():
            self._console.print()
        self._console.print(_plain(text))
        self._console.print("-" * min(len(text), self._console.width))

    def lines(self, lines: Iterable[str], bullet: str = "") -> None:
        if bullet:
            self.fields((bullet, line) for line in lines)
            return
        from rich.text import Text

        for line in lines:
            self._console.print(Text(_plain(line)))

    def fields(self, fields: Iterable[tuple[str, str]]) -> None:
        """A label and what belongs to it, which is folded beside the label."""
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1, 0, 0))
        for label, text in fields:
            grid.add_row(Text(label), Text(_plain(text)))
        self._console.print(grid)

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int]) -> None:
        """Columns are right-aligned but those in `left`."""
        from rich.text import Text

        table = self._empty_table()
        for place, heading in enumerate(headings):
            if place in left:
                table.add_column(Text(_plain(heading)), overflow="fold")
            else:
                table.add_column(Text(_plain(heading)), justify="right", no_wrap=len(heading) <= 9, overflow="fold")
        for row in rows:
            table.add_row(*(Text(_plain(cell)) for cell in row))
        self._console.print(table)

    @staticmethod
    def _empty_table() -> Table:
        from rich.box import Box
        from rich.table import Table

        # ASCII, and no rule but the one below the heading: what is copied into a mail stays readable.
        box = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
        return Table(box=box, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._out.getvalue().splitlines()) + "\n"


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _latest(count: int, shown: int) -> str:
    return f" (the latest {shown} of {count:,}; --json and --csv have all)" if count > shown else ""


def _largest(count: int, shown: int) -> str:
    return f" (the {shown} of {count:,} with the most bytes; --json has all)" if count > shown else ""


def _times(count: int, wire: int) -> str:
    return f"{count / wire:,.2f} x" if wire and count else ""


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
