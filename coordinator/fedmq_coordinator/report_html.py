"""The report as one HTML page that needs nothing else: no server, no network, and for its figures no script either.

Owns the page; every figure comes from `report`. It opens with the three sentences and one chart, which is made of marks
alone; what follows are details. Their charts are drawn by uPlot 1.6.32 (MIT; `web/vendor/`, inlined) as the dashboard's
are, and what they show stands in tables as well. What came from a gateway or the ledger is escaped wherever it stands,
and the page's own policy lets no script run but its three, by their digests, and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import resources

import msgspec

from fedmq_coordinator.findings import SPREADS_TOLD
from fedmq_coordinator.money import amount, cost
from fedmq_coordinator.report import GatewayLine, Report, Reports, RoundLine, Tail, Traffic, ip_told, many, size
from fedmq_coordinator.web.markup import columns

__all__ = ["to_html"]

UPLOT = "vendor/uplot"

ROUNDS_SHOWN = 1_000
"""Rows of the table of rounds, the latest; the charts show all."""

GATEWAYS_SHOWN = 200
"""Rows of the table of gateways, those with the most bytes."""


TOO_LONG = 50
"""So many times as long as the others a bar is left out of the first chart, and its figure told."""

MORE = " MORE"
"""In a sentence of something that was lost."""


class _Cell(str):
    """Markup that is made here and needs no escaping."""


_NO_HEAD = _Cell('<td aria-hidden="true"></td>')


def to_html(report: Report | Reports) -> str:
    """The whole page, UTF-8. Of several tasks it opens with what they came to together; a part for each follows."""
    whole = report.together if isinstance(report, Reports) else report
    tasks = report.tasks if isinstance(report, Reports) else [report]
    scripts = [_asset(f"{UPLOT}/uPlot.iife.min.js", "web"), _asset("charts.js", "web"), _asset("report.js")]
    styles = "".join([_asset(f"{UPLOT}/uPlot.min.css", "web"), _asset("base.css", "web"), _asset("report.css")])
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {' '.join(map(_source, scripts))}; base-uri 'none'; form-action 'none'"
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        "<title>Savings of a federation</title>",
        f"<!-- The charts are drawn by uPlot.\n{_asset(f'{UPLOT}/LICENSE', 'web')}-->",
        f"<style>{styles}</style>",
        "</head><body>",
        *_head(whole, tasks),
        *_answer(whole),
        *([*_tasks(report), *_machines(whole)] if isinstance(report, Reports) else ()),
    ]
    for place, one in enumerate(tasks):
        head = [f'<h2 class="task" id="task-{place}">Task {escape(one.task)}</h2>', _list(one.sentences)]
        if part := [*(head if len(tasks) > 1 else ()), *_details(one, place)]:
            parts += ['<section class="details">', *part, "</section>"]
    parts += [
        _heading("How it is counted"),
        _list([*whole.rules, whole.ip.formula]),
        "</main><footer>Made by fedmq from the coordinator's ledger. Sizes are decimal: 1 kB is 1,000 bytes. "
        "Times are UTC.</footer>",
        f'<script type="application/json" id="report-data">{_json([_chart_data(one) for one in tasks])}</script>',
        *(f"<script>{script}</script>" for script in scripts),
        "</body></html>\n",
    ]
    return "\n".join(parts)


# -- the page's parts ------------------------------------------------------------------------------------------


def _head(report: Report, tasks: Sequence[Report]) -> list[str]:
    names = [one.task for one in tasks if one.task]
    told = [f"{'Task' if len(names) == 1 else 'Tasks'} {', '.join(names)}"] if names else []
    told += [f"only {report.view.told()}"] if report.view.told() else []
    if report.rounds:
        last = report.rounds[-1]
        told.append(f"{_utc(report.rounds[0].opened_at)} to {_utc(last.closed_at or last.opened_at)}")
    about = f'<p class="quiet">{escape("; ".join(told))}</p>' if told else ""
    return [f"<header><h1>What learning together has used and saved</h1>{about}</header><main>"]


def _answer(report: Report) -> list[str]:
    """The three sentences and the one chart."""
    lines = "".join(
        f'<p class="more">{_prose(line)}</p>' if MORE in line else f"<p>{_prose(line)}</p>" for line in report.sentences
    )
    parts = [f'<section class="answer">{lines}</section>']
    if report.gaps:
        parts.append(f'<section class="gaps">{"".join(f"<p>{_prose(gap)}</p>" for gap in report.gaps)}</section>')
    savings = report.savings
    ways = [
        ("together", "Learning together, as it was", savings.bytes),
        ("raw", "Uploading the signal once", savings.raw.bytes),
        ("dense", "The whole model both ways, each round", savings.dense.bytes),
    ]
    if not report.rounds or not savings.bytes:
        return parts
    known = [(kind, name, count) for kind, name, count in ways if count is not None]
    caption = (
        "The bars are to scale. Learning together is charged all that a SIM card is billed for; the others are charged"
        " what they carry alone."
    )
    # Beside a bar that is many times as long nobody could see which of the two others is shorter.
    others = max(count for kind, _, count in known if kind != "dense")
    if savings.raw.bytes and savings.dense.bytes and savings.dense.bytes > TOO_LONG * others:
        known = [way for way in known if way[0] != "dense"]
        caption += f" The whole model both ways in each round, {size(savings.dense.bytes)}, would be far off the chart."
    most = max(count for _, _, count in known)
    bars = "".join(_way(kind, name, count, most, report) for kind, name, count in known)
    return [
        *parts,
        '<figure class="ways" aria-labelledby="ways-title"><h2 id="ways-title">Data used to learn the same</h2>'
        f"<dl>{bars}</dl><figcaption>{_prose(caption)}</figcaption></figure>",
    ]


def _way(kind: str, name: str, count: int, most: int, report: Report) -> str:
    price = report.price
    money = f"<small>{escape(amount(cost(count, price), price.currency))}</small>" if price.per_gb else ""
    width = 100 * count / most if most else 0.0
    return (
        f"<div><dt>{escape(name)} <b>{escape(size(count))}{money}</b></dt>"
        f'<dd aria-hidden="true"><span class="{kind}" style="width:{width:.2f}%"></span></dd></div>'
    )


def _tasks(reports: Reports) -> list[str]:
    """A line for each, with a link to its part."""
    together = reports.together

    def cells(up: int, down: int, ip_bytes: int) -> list[str]:
        money = amount(cost(ip_bytes, together.price), together.price.currency)
        return [size(up), size(down), size(ip_bytes), money]

    rows = [
        [
            _Cell(f'<th scope="row"><a href="#task-{place}">{escape(one.task)}</a></th>'),
            f"{len(one.rounds):,}",
            *cells(one.wire.up, one.wire.down, one.ip.bytes),
            "" if one.metric_last is None else f"{one.metric_name} {one.metric_last:.3f}",
        ]
        for place, one in enumerate(reports.tasks)
    ]
    joining = cells(together.joining.up, together.joining.down, reports.of_no_task)
    rows.append([_row_head("joining, of no task"), "", *joining, ""])
    rows.append([_row_head("together"), "", *cells(together.wire.up, together.wire.down, together.ip.bytes), ""])
    head = ["task", "rounds", "wire up", "wire down", "IP level", "cost", "learnt"]
    return [_heading("Tasks"), _table("Tasks", head, rows), f'<p class="quiet">{escape(reports.note)}</p>']


def _details(report: Report, place: int) -> list[str]:
    """Of one task, the so manieth of the page."""
    if not report.rounds and not report.gateways:
        return []
    parts = _summary(report)
    if report.rounds:
        parts += _charts(report, place)
    parts += [*_totals(report), *_groups(report), *_gateways(report), *_declines(report)]
    if report.rounds:
        parts += _rounds(report)
    return [*parts, *_otherwise(report)]


def _summary(report: Report) -> list[str]:
    cards = [
        _card("On the wire", size(report.wire.total), f"{size(report.wire.up)} up, {size(report.wire.down)} down"),
        _card("At the IP level", size(report.ip.bytes), f"as a SIM card is billed: {ip_told(report.ip)}"),
        _versus("dense float32", report.factors.dense_over_wire, report.dense.total),
        _versus("uploading the raw signal", report.factors.raw_over_wire, report.raw_bytes),
    ]
    if report.metric_last is not None:
        about = f"round {report.metric_last_round}; {report.metric_first:.3f} at first"
        cards.append(_card(report.metric_name, f"{report.metric_last:.3f}", about))
    if report.wire_per_gateway_round_median is not None:
        cards.append(
            _card(
                "One gateway, one round", f"{report.wire_per_gateway_round_median:,.0f} B", "wire, up and down, median"
            )
        )
    if report.cpu_seconds is not None:
        cards.append(_card("CPU time", f"{report.cpu_seconds:,.1f} s", "of all gateways, all rounds"))
    return [_heading("In detail"), f'<dl class="cards">{"".join(cards)}</dl>', _list(report.findings)]


def _card(name: str, figure: str, about: str, *, warn: bool = False) -> str:
    kind = ' class="warn"' if warn else ""
    return f"<div{kind}><dt>{escape(name)}</dt><dd>{escape(figure)} <small>{escape(about)}</small></dd></div>"


def _versus(name: str, factor: float | None, other: int) -> str:
    if factor is None:
        return _card(f"Against {name}", "not known", "no bytes to compare with")
    if factor >= 1:
        return _card(f"Against {name}", f"{factor:,.1f} ×", f"fewer bytes, instead of {size(other)}")
    return _card(f"Against {name}", f"{1 / factor:,.1f} ×", f"MORE bytes, instead of {size(other)}", warn=True)


def _charts(report: Report, place: int) -> list[str]:
    def figure(name: str, title: str, about: str) -> str:
        return (
            f"<section><h2>{escape(title)}</h2><figure><figcaption>{escape(about)}</figcaption>"
            f'<div class="chart" id="chart-{place}-{name}"></div></figure></section>'
        )

    return [
        '<noscript><p class="quiet">The charts need JavaScript; their figures are in the tables below.</p></noscript>',
        '<div class="charts">',
        figure(
            "metric",
            "What was learnt",
            f"{report.metric_name} (left axis) and loss (right axis) of each round's model.",
        ),
        figure(
            "cumulative",
            "Bytes so far",
            "All gateways together. Joining is counted at the start. Logarithmic: each step up is ten times as much.",
        ),
        figure("round", "Bytes of each round", "On the wire, all gateways together, joining left out."),
        "</div>",
    ]


def _totals(report: Report) -> list[str]:
    wire, raw = report.wire.total, report.raw_bytes

    def row(name: str, traffic: Traffic, kind: str = "") -> list[str]:
        return [_row_head(name, kind), size(traffic.up), size(traffic.down), *together(traffic.total)]

    def together(count: int) -> list[str]:
        return [size(count), f"{count / wire:,.2f} ×" if count and wire else ""]

    rows = [
        row("Wire, everything", report.wire),
        row("of it joining", report.joining, "sub"),
        row("Payload alone", report.payload),
        row("Dense float32", report.dense),
        [_row_head("Raw signal, once"), size(raw), "", *together(raw)],
        [_row_head(f"IP level, {ip_told(report.ip)}"), "", "", *together(report.ip.bytes)],
    ]
    notes = []
    if report.factors.dense_over_payload is not None:
        notes.append(f"Dense over payload alone: {report.factors.dense_over_payload:,.1f} times.")
    if report.seconds_median is not None:
        notes.append(f"Seconds of a round, median: {report.seconds_median:,.1f}.")
    table = _table("Bytes in total", ["", "up", "down", "together", "against wire"], rows)
    return [_heading("Totals"), table, f'<p class="quiet">{escape(" ".join(notes))}</p>']


def _groups(report: Report) -> list[str]:
    if report.view.by != "tag" and not any(group.name for group in report.groups):
        return []
    title = "Tags" if report.view.by == "tag" else "Sites"
    rows = [
        [
            _row_head(group.name or "none"),
            f"{group.gateways:,}",
            size(group.wire.up),
            size(group.wire.down),
            size(group.ip_bytes),
            amount(group.money, report.price.currency),
            size(group.dense.total),
            size(group.raw_bytes),
            _number(group.cpu_seconds, 1),
            f"{group.accepted:,}",
            _zero(group.declined),
        ]
        for group in report.groups
    ]
    head = ["gateways", "wire up", "wire down", "IP level", "cost", "dense", "raw", "CPU s", "updates", "declines"]
    return [_heading(title), _table(title, [title[:-1].lower(), *head], rows)]


def _gateways(report: Report) -> list[str]:
    shown = sorted(report.gateways, key=lambda g: -g.wire.total)[:GATEWAYS_SHOWN]
    most = max((g.wire.total for g in shown), default=0)
    rows = [
        [
            _Cell(f'<th scope="row">{escape(g.name)}{_absence(g)}</th>'),
            _bars(most, up=g.wire.up, down=g.wire.down),
            size(g.wire.up),
            size(g.wire.down),
            size(g.joining.total),
            size(g.ip_bytes),
            amount(g.money, report.price.currency),
            size(g.payload.total),
            size(g.dense.total),
            size(g.raw_bytes),
            _number(g.cpu_seconds, 1),
            f"{g.accepted:,}",
            _zero(g.declined),
            _zero(g.processes - 1),
        ]
        for g in shown
    ]
    about = (
        "" if len(shown) == len(report.gateways) else f" The {len(shown)} of {len(report.gateways):,} with the most."
    )
    head = ["joining", "IP level", "cost", "payload", "dense", "raw", "CPU s", "updates", "declines", "restarts"]
    return [
        _heading("Gateways"),
        f'<p class="key quiet"><span class="up"></span>wire up<span class="down"></span>wire down.{about}</p>',
        _table(
            "Bytes of each gateway",
            ["gateway", _NO_HEAD, "wire up", "wire down", *head],
            rows,
        ),
    ]


def _absence(gateway: GatewayLine) -> str:
    if gateway.present:
        return ""
    since = "" if gateway.last_seen is None else f" since {_utc(gateway.last_seen)}"
    return f"<small>absent{since}</small>"


def _declines(report: Report) -> list[str]:
    if not report.declines:
        return [_heading("Declines"), "<p>No gateway declined a round.</p>"]
    most = max(report.declines.values())
    rows = []
    for reason, count in report.declines.items():
        named = [f"{g.name} ({g.declines[reason]:,})" for g in report.gateways if reason in g.declines]
        more = f" and {len(named) - 10:,} more" if len(named) > 10 else ""
        rows.append(
            [
                _row_head(reason),
                _bars(most, count=count),
                f"{count:,}",
                _Cell(f'<td class="left wide">{escape(", ".join(named[:10]) + more)}</td>'),
            ]
        )
    head = [
        "reason",
        _NO_HEAD,
        "declines",
        _Cell('<th scope="col" class="left">gateways</th>'),
    ]
    return [_heading("Declines by reason"), _table("Declines by reason", head, rows)]


def _rounds(report: Report) -> list[str]:
    shown = report.rounds[-ROUNDS_SHOWN:]
    about = "" if len(shown) == len(report.rounds) else f", the latest {len(shown):,} of {len(report.rounds):,}"
    head = ["round", _Cell('<th scope="col" class="left">outcome</th>'), "accepted of drawn", "declined"]
    head += [report.metric_name, "loss", "seconds", "CPU s", "wire up", "wire down", "IP level", "payload up"]
    head += ["payload down", "dense"]
    table = _table("Every round", head, [_round_row(line) for line in shown])
    is_open = " open" if len(shown) <= 60 else ""
    return [_heading("Rounds"), f"<details{is_open}><summary>Every round{about}</summary>{table}</details>"]


def _round_row(line: RoundLine) -> list[str]:
    outcome = line.outcome if line.kind == "training" else f"{line.outcome} ({line.kind})"
    if line.owed:
        outcome += f", {line.owed} owed"
    if line.late:
        outcome += f", {line.late} late"
    return [
        _row_head(str(line.id)),
        _Cell(f'<td class="left">{escape(outcome)}</td>'),
        f"{line.accepted if line.kind == 'training' else line.answered - line.declined:,} of {line.drawn:,}",
        _zero(line.declined),
        _number(line.metric, 3),
        _number(line.loss, 3),
        _number(line.seconds, 1),
        _number(line.cpu_seconds, 1),
        size(line.wire.up),
        size(line.wire.down),
        size(line.ip_bytes),
        size(line.payload.up),
        size(line.payload.down),
        size(line.dense.total),
    ]


def _otherwise(report: Report) -> list[str]:
    parts = []
    if report.below_quorum or report.owed:
        rounds = ", ".join(str(r) for r in report.below_quorum[-50:]) or "none"
        parts += [
            _heading("Below quorum"),
            f"<p>Rounds closed below quorum: {rounds}. Updates owed to the next round: {report.owed:,}.</p>",
        ]
    if report.set_aside:
        names = ", ".join(escape(f"{line.gateway} ({line.left} more)") for line in report.set_aside[:50])
        parts += [
            _heading("Set aside"),
            f"<p>Asked in vain, and not asked for a number of rounds: {names}.</p>",
        ]
    if report.flagged:
        rows = [
            [
                _row_head(line.gateway),
                f"{line.round:,}",
                "set aside" if line.aside else "takes part",
                escape(line.evidence),
            ]
            for line in report.flagged[:GATEWAYS_SHOWN]
        ]
        parts += [
            _heading("Gateways that should be looked at"),
            _table("Gateways that should be looked at", ["gateway", "since round", "state", "why"], rows),
        ]
    parts += _machines(report)
    if report.verdicts:
        rows = [[_row_head(v.kind), v.verdict, f"{v.answers:,}"] for v in report.verdicts]
        parts += [
            _heading("Answers not accepted"),
            _table("Answers not accepted", ["kind", "verdict", "answers"], rows),
        ]
    if report.catch_ups:
        rows = [[_row_head(c.kind), f"{c.published:,}", size(c.bytes), f"{c.askers:,}"] for c in report.catch_ups]
        head = ["kind", "published", "bytes", "gateways served"]
        parts += [_heading("Catch-ups of gateways that missed deltas"), _table("Catch-ups", head, rows)]
    if report.refused:
        rows = [[_row_head(r.channel), r.reason, f"{r.messages:,}", size(r.bytes)] for r in report.refused]
        parts += [_heading("Refused junk"), _table("Refused junk", ["channel", "reason", "messages", "bytes"], rows)]
    if report.tails:
        rows = [[_row_head(t.gateway), _utc(t.since), _tail(t)] for t in report.tails[:GATEWAYS_SHOWN]]
        parts += [
            _heading("Bytes counted and not reported"),
            _table("Tails not reported", ["gateway", "since", "the process"], rows),
        ]
    return parts


def _machines(report: Report) -> list[str]:
    if not report.spreads:
        return []
    rows = [
        [
            _row_head(line.where),
            _Cell(f'<td class="left">{escape(many(line.machines, line.kind))}</td>'),
            f"{line.gateways:,}",
            f"{line.index:.2f}",
            _Cell(f'<td class="left">{columns(line.shares, even=0.1)}</td>'),
            "" if line.drifting_since is None else _utc(line.drifting_since),
            _Cell(f'<td class="left wide">{_prose(line.how)}</td>'),
        ]
        for line in report.spreads[:GATEWAYS_SHOWN]
    ]
    of, shares, how = (
        _Cell(f'<th scope="col" class="left">{text}</th>') for text in ("of", "share in each tenth", "it is")
    )
    head = ["measure", of, "gateways", "index", shares, "drift since", how]
    return [
        _heading("Machines against what is normal"),
        f"<p>{_prose(SPREADS_TOLD)}</p>",
        _table("Machines against what is normal", head, rows),
    ]


def _tail(tail: Tail) -> str:
    return {
        "running": "runs: comes with its next answer",
        "away": "is not connected",
        "lost": "ended without a last word: never known",
    }[tail.state]


def _chart_data(report: Report) -> dict[str, object]:
    lines = report.rounds
    return {
        "metric_name": report.metric_name,
        "round": [line.id for line in lines],
        "metric": [line.metric for line in lines],
        "loss": [line.loss for line in lines],
        "wire_up": [line.wire.up for line in lines],
        "wire_down": [line.wire.down for line in lines],
        "cumulative_up": _running((line.wire.up for line in lines), report.joining.up),
        "cumulative_down": _running((line.wire.down for line in lines), report.joining.down),
        "cumulative_dense": _running(line.dense.total for line in lines),
        "raw": [report.raw_bytes] * len(lines),
    }


# -- markup ----------------------------------------------------------------------------------------------------


def _heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def _list(lines: Iterable[str]) -> str:
    items = (f'<li class="warn">{_prose(x)}</li>' if MORE in x else f"<li>{_prose(x)}</li>" for x in lines)
    return f"<ul>{''.join(items)}</ul>"


def _prose(text: str) -> str:
    """Escaped, and a number stays on the line of its unit."""
    return re.sub(r"(?<=\d) (?=(?:[kMGT]?B|%|[A-Z]{3})(?!\w))", "\u00a0", escape(text))


def _row_head(text: str, kind: str = "") -> _Cell:
    return _Cell(f'<th scope="row" class="{kind}">{escape(text)}</th>')


def _table(label: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in a box that scrolls sideways, by keyboard too; the first column is the row's head."""
    columns = "".join(
        cell if isinstance(cell, _Cell) else f'<th scope="col"{_left(place)}>{escape(cell)}</th>'
        for place, cell in enumerate(head)
    )
    body = "".join(
        "<tr>" + "".join(cell if isinstance(cell, _Cell) else f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table class="data">'
        f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _left(place: int) -> str:
    return "" if place else ' class="left"'


def _bars(most: int, **counts: int) -> _Cell:
    """A cell of bars side by side, each of its own class; the numbers stand in cells of their own."""
    widths = {kind: 100 * count / most if most else 0.0 for kind, count in counts.items()}
    spans = "".join(f'<span class="{kind}" style="width:{width:.1f}%"></span>' for kind, width in widths.items())
    return _Cell(f'<td class="bar left" aria-hidden="true">{spans}</td>')


def _running(counts: Iterable[int], start: int = 0) -> list[int]:
    return list(itertools.accumulate(counts, initial=start))[1:]


def _zero(count: int) -> str:
    return f"{count:,}" if count > 0 else ""


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")


def _json(value: object) -> str:
    """JSON that stays inside its script element, whatever it holds: no '<' is left that could end it."""
    text = msgspec.json.encode(value).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _source(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _asset(name: str, folder: str = "assets") -> str:
    return resources.files("fedmq_coordinator").joinpath(folder, name).read_text(encoding="utf-8")
