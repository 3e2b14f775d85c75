"""The dashboard's pages as HTML, whole without a script: every figure, the fleet's first rows, one gateway, one round.

Owns what stands where. Scripts of our own add to it: charts, the fleet in full, what is new. Every text from outside
goes through `markup.tag`, which escapes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

from fedmq_coordinator import money
from fedmq_coordinator.findings import SPREADS_TOLD
from fedmq_coordinator.report import RoundLine, many, size
from fedmq_coordinator.web.machines import AlertLine, MachineView
from fedmq_coordinator.web.markup import Child, Markup, columns, page, tag
from fedmq_coordinator.web.views import (
    FLEET,
    AnswerLine,
    Cell,
    GatewayView,
    Overview,
    RoundEvent,
    RoundView,
    Saving,
    Snapshot,
    answer_text,
    sensor_text,
    taken,
)

__all__ = ["Who", "gateway", "login", "machine", "overview", "round_", "trouble"]

GATEWAYS_SHOWN = 100
"""Rows that stand in the page itself; the script fetches all."""
ROUNDS_SHOWN = 100
LATEST_ROUNDS = 6
MACHINES_SHOWN = 300
SPREADS_SHOWN = 50
ANSWERS_SHOWN = 500

VERSUS = {"dense": "Against plain FedAvg", "raw": "Against raw upload"}


@dataclass(frozen=True, kw_only=True)
class Who:
    """Who reads the page."""

    signed_in: bool = False
    operator: bool = False
    proof: str = ""
    """What a form of theirs must bring."""
    may_sign_in: bool = False
    may_order: bool = False
    """Whether there is a token for orders at all."""


# -- pages -----------------------------------------------------------------------------------------------------


def overview(shown: Snapshot, who: Who) -> str:
    about = shown.overview
    empty = not about.rounds.id
    body: list[Child] = [_hero(about)]
    if empty:
        body.append(
            tag("p", "No round has been opened yet: this page shows the first one as it begins.", class_="quiet")
        )
    else:
        body += [_now(about), _charts()]
    body += [_fleet(shown), _alerts(shown, who), _spreads(shown), _machines(shown), _declines(about)]
    if not empty:
        body += [_rounds(shown), _words(shown)]
    return _page("Overview", body, who, about=about, kind="overview")


def gateway(view: GatewayView, shown: Snapshot, who: Who) -> str:
    row, line = view.row, view.line
    about = shown.overview
    facts: list[tuple[str, Child]] = [
        ("state", _state(row)),
        ("last seen", _when(line.last_seen)),
        ("first seen", _when(line.first_seen)),
        ("software", _known(row["software"])),
        ("engines", _known(row["engines"])),
        ("tags", _known(row["tags"])),
        ("windows", f"{view.windows:,}"),
        ("restarts", f"{max(0, line.processes - 1):,}"),
        ("model in service", _serves(row)),
        ("battery", _told(row["battery"])),
        ("link", _told(row["link"])),
        *([] if view.told_at is None else [("battery and link told", _when(view.told_at))]),
        (
            "agreement with the others",
            "" if line.cosine is None else f"cosine {line.cosine:.2f}, mean over its updates",
        ),
    ]
    answers = [
        ("accepted", f"{line.accepted:,}"),
        ("declined", f"{line.declined:,}" + (f" ({row['reasons']})" if row["reasons"] else "")),
        ("last answer", _known(row["last_answer"])),
        ("wire up", size(line.wire.up)),
        ("wire down", size(line.wire.down)),
        ("of it joining", size(line.joining.total)),
        ("with TCP/IP and TLS", f"{size(line.ip_bytes)}, {money.amount(line.money, about.price.currency)}"),
        ("CPU time", "" if line.cpu_seconds is None else f"{line.cpu_seconds:,.1f} s"),
        ("payload", size(line.payload.total)),
        ("dense float32", size(line.dense.total)),
        ("raw signal, once", "" if line.raw_bytes is None else size(line.raw_bytes)),
        ("against dense", _times(line.dense.total, line.wire.total)),
    ]
    body: list[Child] = [
        _crumbs(about, f"Gateway {line.name}"),
        tag("h1", line.name),
        tag("p", str(row["look"]), class_="notice") if row["look"] else None,
        [tag("p", text, class_="notice") for text in view.evidence],
        tag("div", _facts("How it is", facts), _facts("What it gave", answers), class_="pair"),
        tag("section", tag("h2", "Bytes of each round"), _place("gateway-bytes"), class_="scripted panel"),
    ]
    if view.sensors:
        rows = [
            [
                s.name,
                f"{s.rate_pct} %",
                f"{s.silent_seconds:,} s",
                f"{s.lost_frames:,}",
                f"{s.failed:,}",
                sensor_text(s) or "well",
            ]
            for s in view.sensors
        ]
        head = ["sensor", "of its rate", "silent", "frames lost", "checksums failed", "state"]
        body.append(_section("Sensors, as it last told", _table("Sensors", head, rows)))
    own = [one for one in shown.conditions.machines if one.gateway == line.name]
    if own:
        rows = [
            [
                _link(one.name, "/machine", view.task, gateway=one.gateway, name=one.name),
                one.kind,
                one.state,
                one.zone or "",
                _level(one.level),
                ", ".join(one.drifting),
            ]
            for one in own
        ]
        head = ["machine", "kind", "state", "zone", "level", "drifting"]
        body.append(_section("Machines", _table("Machines", head, rows, left=(1, 2, 3, 5))))
    answered = [
        [
            _link(f"{answer.round:,}", "/round", view.task, id=str(answer.round)),
            _when(answer.at),
            _answer(answer),
            size(answer.payload_bytes),
            "" if answer.wire is None else size(answer.wire.up),
            "" if answer.wire is None else size(answer.wire.down),
            _number(answer.training_loss),
            _number(answer.metric),
        ]
        for answer in reversed(view.answers)
    ]
    head = ["round", "when", "answer", "payload", "wire up", "wire down", "training loss", view.metric_name]
    body.append(_section("Answers, the latest first", _table("Answers", head, answered, left=(1, 2))))
    return _page(line.name, body, who, about=about, kind="gateway", name=line.name)


def round_(view: RoundView, shown: Snapshot, who: Who) -> str:
    line, about = view.line, shown.overview
    facts: list[tuple[str, Child]] = [
        ("outcome", _outcome(line)),
        ("kind", line.kind),
        ("opened", _when(line.opened_at)),
        ("closed", _when(line.closed_at)),
        ("seconds", _number(line.seconds, 1)),
        ("from version", f"{line.base:,}"),
        ("to version", "" if line.version is None else f"{line.version:,}"),
        ("digest of that version", "" if line.digest is None else tag("code", line.digest[:16])),
    ]
    came: list[tuple[str, Child]] = [
        ("of use, of those drawn", f"{taken(line):,} of {line.drawn:,}"),
        ("declined", f"{line.declined:,}" + _reasons(line.declines)),
        ("late", f"{line.late:,}"),
        (view.metric_name, _number(line.metric)),
        ("loss", _number(line.loss)),
        ("wire up", size(line.wire.up)),
        ("wire down", size(line.wire.down)),
        ("payload", size(line.payload.total)),
        ("dense float32", size(line.dense.total)),
        ("against dense", _times(line.dense.total, line.wire.total)),
    ]
    answers = [
        [
            _link(answer.gateway, "/gateway", view.task, name=answer.gateway),
            f"{max(0.0, answer.at - line.opened_at):.1f} s",
            _answer(answer),
            f"{answer.samples:,}",
            f"{answer.weight:,}",
            size(answer.payload_bytes),
            _number(answer.training_loss),
        ]
        for answer in view.answers[:ANSWERS_SHOWN]
    ]
    more = len(view.answers) - len(answers)
    head = ["gateway", "after", "answer", "windows", "weight", "payload", "training loss"]
    steps = [
        None if number is None else _link(text, "/round", view.task, id=str(number))
        for number, text in ((view.earlier, f"← round {view.earlier}"), (view.later, f"round {view.later} →"))
    ]
    told = "Its answers are summed up by now: the ledger keeps their totals." if not answers and line.answered else None
    body: list[Child] = [
        _crumbs(about, f"Round {line.id}"),
        tag("h1", f"Round {line.id:,}"),
        tag("nav", steps, class_="steps", aria_label="other rounds"),
        tag("div", _facts("How it went", facts), _facts("What came", came), class_="pair"),
        _section(
            "Answers, in order of arrival",
            tag("p", told, class_="quiet") if told else None,
            _table("Answers", head, answers, left=(0, 2)) if answers else None,
            tag("p", f"{more:,} more are not shown.", class_="quiet") if more > 0 else None,
        ),
    ]
    return _page(f"Round {line.id}", body, who, about=about, kind="round", name=str(line.id))


def machine(view: MachineView, shown: Snapshot, who: Who) -> str:
    one, about = view.machine, shown.overview
    facts: list[tuple[str, Child]] = [
        ("gateway", _link(one.gateway, "/gateway", about.task, name=one.gateway)),
        ("kind", one.kind),
        ("state", one.state),
        ("zone of ISO 20816-3", one.zone or "not judged by zones"),
        ("level", _level(one.level)),
        ("its normal", "learnt" if one.learnt else f"{one.learnt_pct} % learnt"),
        ("drifting", ", ".join(one.drifting) or "nothing"),
        ("another machine since", "" if one.event is None else [f"{one.event}, ", _when(one.baseline_at)]),
        ("last judged", _when(one.at)),
        ("last heard of", _when(one.heard_at)),
    ]
    normal = [
        [
            line.measure,
            "" if line.band == "all" else line.band,
            *(_quantile(line.here, share) for share in ("50", "95", "99")),
            *(_quantile(line.fleet, share) for share in ("50", "95", "99")),
            f"{line.gateways:,}" if line.gateways else "",
        ]
        for line in view.normal
    ]
    head = ["measure", "band", "median here", "95 % here", "99 % here"]
    head += ["median, fleet", "95 %, fleet", "99 %, fleet", "gateways"]
    back = _address("/machine", about.task, gateway=one.gateway, name=one.name)
    body: list[Child] = [
        _crumbs(about, f"Machine {one.name}"),
        tag("h1", one.name),
        _facts("How it is", facts),
        _section(
            "Alerts, the newest first",
            [_alert(alert, about, who, view.faults, back) for alert in view.alerts]
            if view.alerts
            else tag("p", "It has never raised one.", class_="quiet"),
        ),
        _section(f"What is normal of a {one.kind}", _table("What is normal", head, normal, left=(1,)))
        if normal
        else None,
    ]
    return _page(one.name, body, who, about=about, kind="machine", name=f"{one.gateway}/{one.name}")


def login(who: Who, *, wrong: bool = False) -> str:
    body = tag(
        "form",
        tag("h1", "Dashboard of a federation"),
        tag("p", "That is no token of this dashboard.", class_="notice", role="alert") if wrong else None,
        tag("label", "Token", for_="token"),
        tag(
            "input",
            id="token",
            name="token",
            type="password",
            autocomplete="current-password",
            required=True,
            autofocus=True,
            maxlength=4096,
        ),
        tag("button", "Sign in", type="submit", class_="primary"),
        tag("p", "The token stands in the file that the coordinator's settings name: http.token_file to look,"
            " http.operator_token_file to give orders too.", class_="quiet"),
        method="post",
        action="/login",
        class_="panel login",
    )  # fmt: skip
    return _page("Sign in", [body], who, kind="login")


def trouble(who: Who, text: str) -> str:
    body = [tag("h1", "This cannot be shown"), tag("p", text), tag("p", tag("a", "Back to the overview", href="/"))]
    return _page("Trouble", [tag("section", body, class_="panel")], who, kind="trouble")


# -- the overview's parts --------------------------------------------------------------------------------------


def _hero(about: Overview) -> Markup:
    dense, raw = about.savings
    median = about.wire_per_gateway_round_median
    cards = [
        _against(raw, about),
        _card(
            "metric",
            about.metric_name,
            "not known yet" if about.metric_last is None else f"{about.metric_last:.3f}",
            ""
            if about.metric_last is None
            else f"after round {about.metric_last_round}; {about.metric_first:.3f} at first",
        ),
        _card("wire", "On the wire", size(about.wire.total), f"{size(about.wire.up)} up, {size(about.wire.down)} down"),
        _card(
            "median",
            "One gateway, one round",
            "not known yet" if median is None else f"{median:,.0f} B",
            "wire bytes, up and down, median",
        ),
    ]
    return tag(
        "section",
        tag("h1", _headline(dense), id="headline", class_="warn" if _more(dense) else None),
        tag("p", _worth(about), id="worth", class_="lead"),
        tag("dl", cards, class_="cards"),
        class_="hero",
        aria_labelledby="headline",
    )


def _headline(dense: Saving) -> str:
    if dense.factor is None:
        return "Nothing to compare yet"
    if dense.factor >= 1:
        return f"{_factor(dense.factor)} times fewer bytes than plain FedAvg"
    return f"{_factor(1 / dense.factor)} times MORE bytes than plain FedAvg"


def _worth(about: Overview) -> list[Child]:
    dense, price = about.savings[0], about.price
    if dense.factor is None or dense.saved is None or dense.worth is None:
        return ["Savings are told once gateways have reported their bytes."]
    more = dense.saved < 0
    return [
        f"With all packets of TCP/IP, {size(abs(dense.saved))} were {'sent on top' if more else 'not sent'}: ",
        tag("strong", money.amount(abs(dense.worth), price.currency), id="worth-dense"),
        f" {'spent' if more else 'saved'} at ",
        tag("span", f"{price.per_gb:g}", id="per-gb"),
        f" {price.currency} a gigabyte.",
    ]


def _against(saving: Saving, about: Overview) -> Markup:
    name = VERSUS[saving.against]
    if saving.factor is None or saving.saved is None or saving.worth is None:
        return _card(saving.against, name, "not known", "no bytes to compare with")
    more = _more(saving)
    worth = tag("span", money.amount(abs(saving.worth), about.price.currency), class_="worth")
    told = [
        f"{'MORE' if more else 'fewer'} bytes than its {size(saving.other or 0)}; ",
        worth,
        f" {'spent' if saving.saved < 0 else 'saved'}",
    ]
    factor = 1 / saving.factor if more else saving.factor
    return _card(saving.against, name, f"{_factor(factor)} ×", told, warn=more)


def _more(saving: Saving) -> bool:
    return saving.factor is not None and saving.factor < 1


def _factor(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:,.1f}"


def _card(key: str, name: str, figure: str, about: Child, *, warn: bool = False) -> Markup:
    return tag(
        "div",
        tag("dt", name),
        tag("dd", tag("span", figure, class_="figure"), tag("small", about)),
        class_="card warn" if warn else "card",
        data_card=key,
    )


def _now(about: Overview) -> Markup:
    closed = [place for place, outcome in enumerate(about.rounds.outcome) if outcome != "open"][-LATEST_ROUNDS:]
    rounds = tag(
        "section",
        tag("h2", "Rounds as they happen"),
        tag("div", _open_round(about.open_round), id="open-round"),
        tag("ol", [_latest(about, place) for place in reversed(closed)], id="latest", class_="latest"),
        tag("p", id="news", class_="hidden", role="status", aria_live="polite"),
        class_="panel",
    )
    learnt = _chart("metric", "What was learnt", f"{about.metric_name} and loss of each round's model.")
    return tag("div", learnt, rounds, class_="first")


def _open_round(event: RoundEvent | None) -> Child:
    if event is None:
        return tag("p", "No round is open.", class_="quiet")
    done = event.accepted + event.declined + event.refused
    text = f"{done:,} of {event.drawn:,} asked have answered: {event.accepted:,} of use, {event.declined:,} declined"
    return [
        tag("p", tag("strong", f"Round {event.id:,} is open. "), text),
        tag("progress", text, value=done, max=max(1, event.drawn), aria_label="answers"),
    ]


def _latest(about: Overview, place: int) -> Markup:
    rounds = about.rounds
    metric = rounds.metric[place]
    parts = [
        f"{rounds.accepted[place]:,} of {rounds.drawn[place]:,}",
        "" if metric is None else f"{about.metric_name} {metric:.3f}",
        # Told with each gateway's next answer.
        size(wire) if (wire := rounds.wire_up[place] + rounds.wire_down[place]) else "bytes to come",
        "" if rounds.outcome[place] == "applied" else rounds.outcome[place],
    ]
    return tag(
        "li",
        _link(f"Round {rounds.id[place]:,}", "/round", about.task, id=str(rounds.id[place])),
        [tag("span", part) for part in parts if part],
    )


def _charts() -> Markup:
    return tag(
        "div",
        _chart("cumulative", "Bytes so far", "All gateways together. Each step up is ten times as much."),
        _chart("round", "Bytes of each round", "All gateways together, joining left out."),
        class_="charts scripted",
    )


def _chart(name: str, title: str, text: str) -> Markup:
    place = tag("div", id=f"chart-{name}")
    return tag("figure", tag("h2", title), tag("figcaption", text), place, class_="panel scripted")


SHOWN: tuple[tuple[str, str, str], ...] = (
    ("name", "gateway", ""),
    ("state", "state", ""),
    ("look", "look at", "note"),
    ("last_seen", "last seen", ""),
    ("last_answer", "last answer", ""),
    ("accepted", "updates", "number"),
    ("declined", "declined", "number"),
    ("reasons", "reasons", "note"),
    ("up", "wire up", "number"),
    ("down", "wire down", "number"),
    ("dense", "against dense", "number"),
    ("sensors", "sensors", "note"),
    ("serves", "model", "number"),
    ("software", "software", ""),
    ("engines", "engines", "note"),
    ("battery", "battery", ""),
    ("link", "link", ""),
)
"""Columns of the fleet's table: field, heading, class."""


def _fleet(shown: Snapshot) -> Markup:
    about, fleet = shown.overview, shown.fleet
    rows = [dict(zip(FLEET, row, strict=True)) for row in fleet.rows[:GATEWAYS_SHOWN]]
    head = [tag("th", title, scope="col", class_=kind or None, data_field=field) for field, title, kind in SHOWN]
    body = [tag("tr", [_fleet_cell(row, field, kind, about.task) for field, _, kind in SHOWN]) for row in rows]
    here = f"{many(about.present + about.absent, 'gateway')}: {about.present:,} here, {about.absent:,} away"
    more = len(fleet.rows) - len(rows)
    return tag(
        "section",
        tag("h2", "Fleet"),
        tag("p", f"{here}, {about.to_look_at:,} to look at.", id="fleet-count", class_="quiet", role="status"),
        tag(
            "div",
            tag("label", "Find", for_="fleet-find"),
            tag(
                "input", id="fleet-find", type="search", placeholder="name, tag, reason, version …", autocomplete="off"
            ),
            tag("label", "Show", for_="fleet-state"),
            tag(
                "select",
                [
                    tag("option", text, value=value)
                    for value, text in (
                        ("", "all gateways"),
                        ("look", "those to look at"),
                        ("online", "online"),
                        ("away", "away"),
                        ("set aside", "set aside"),
                    )
                ],
                id="fleet-state",
            ),
            class_="filters scripted",
        ),
        tag(
            "div",
            tag(
                "table",
                tag("thead", tag("tr", head)),
                tag("tbody", body),
                id="fleet",
                class_="data",
                aria_label="Gateways",
            ),
            id="fleet-scroll",
            class_="scroll",
            tabindex=0,
            role="region",
            aria_label="Gateways",
        ),
        tag("p", f"{more:,} more are shown with JavaScript, and by fedmq report --json.", class_="quiet unscripted")
        if more > 0
        else None,
        id="fleet-section",
        class_="panel",
    )


def _fleet_cell(row: dict[str, Cell], field: str, kind: str, task: str) -> Markup:
    value = row[field]
    if field == "name":
        return tag("th", _link(str(value), "/gateway", task, name=str(value)), scope="row")
    if field == "state":
        return tag("td", _state(row))
    if field == "last_seen":
        return tag("td", _when(value if isinstance(value, float) else None))
    if field in ("up", "down"):
        text = size(int(value or 0))
    elif field == "dense":
        text = _times(int(value or 0), int(row["up"] or 0) + int(row["down"] or 0))
    elif field in ("battery", "link"):
        text = _told(value)
    elif isinstance(value, int):
        text = f"{value:,}" if value else ""
    else:
        text = _known(value)
    return tag("td", text, class_=kind or None)


def _alerts(shown: Snapshot, who: Who) -> Markup | None:
    about, condition = shown.overview, shown.conditions
    if not condition.machines and not condition.waiting and not condition.decided:
        return None
    back = _address("/", about.task) + "#alerts"
    more = condition.waiting_in_all - len(condition.waiting)
    decided = [
        [
            _link(alert.machine, "/machine", about.task, gateway=alert.gateway, name=alert.machine),
            alert.gateway,
            alert.kind,
            alert.state,
            alert.verdict or "",
            _when(alert.opened_at),
        ]
        for alert in condition.decided
    ]
    head = ["machine", "gateway", "kind", "state", "it was", "raised"]
    reasons = [one.reason for one in condition.drifts]
    reasons += [one.reason for one in condition.spreads if one.drifting_since is not None]
    drifts = [tag("p", f"{reason}.", class_="notice") for reason in reasons]
    return tag(
        "section",
        tag("h2", "Alerts"),
        drifts,
        tag("p", f"It is proposed to train anew: `fedmq task retrain {about.task}` orders it.", class_="notice")
        if condition.proposal is not None and condition.proposal.state == "proposed"
        else None,
        [_alert(alert, about, who, condition.faults, back) for alert in condition.waiting]
        or tag("p", "None waits for anybody.", class_="quiet"),
        tag("p", f"{more:,} more wait: `fedmq alert list` has them all.", class_="quiet") if more > 0 else None,
        tag("details", tag("summary", "Decided lately"), _table("Decided lately", head, decided, left=range(6)))
        if decided
        else None,
        id="alerts",
        class_="panel alerts",
    )


def _alert(alert: AlertLine, about: Overview, who: Who, faults: Sequence[str], back: str) -> Markup:
    title = [
        tag("span", alert.severity, class_=f"state {alert.severity}"),
        " ",
        _link(alert.machine, "/machine", about.task, gateway=alert.gateway, name=alert.machine),
        f" · {alert.kind}" + (f", it looks like {alert.label}" if alert.label else ""),
    ]
    state = alert.state if alert.verdict is None else f"{alert.state}: {alert.verdict}"
    facts = [
        f"{_level(alert.level)}, {state}; sensor {alert.sensor or 'not told'}, ",
        _link(alert.gateway, "/gateway", about.task, name=alert.gateway),
        "; raised ",
        _when(alert.opened_at),
        "" if alert.to_at is None else "; its cause is gone",
        f"; at the same time: {', '.join(alert.others)}" if alert.waits and alert.others else "",
    ]
    evidence = [
        tag(
            "li",
            f"{one.name} {one.value:.4g} {one.unit}".rstrip()
            + f", limit {one.limit:.4g}"
            + ("" if one.was is None else f", was {one.was:.4g}"),
        )
        for one in alert.evidence
    ]
    trend = any(one.trend for one in alert.evidence)
    return tag(
        "article",
        tag("h3", title),
        tag("p", facts, class_="quiet"),
        tag("ul", evidence) if evidence else None,
        tag("div", class_="scripted", data_trend=alert.place) if trend else None,
        [tag("p", f"Ordered: {text}.", class_="quiet") for text in alert.orders],
        _verdict(alert, who, faults, back) if alert.waits else None,
        class_="alert",
        aria_label=f"alert {alert.place}",
    )


def _verdict(alert: AlertLine, who: Who, faults: Sequence[str], back: str) -> Child:
    if not who.operator or not who.signed_in:
        if not who.may_order:
            return None
        return tag("p", tag("a", "Sign in as an operator", href="/login"), " to say what it was.", class_="quiet")
    place = "fault-" + alert.place.replace("/", "-")
    return tag(
        "form",
        [
            tag("input", type="hidden", name=name, value=value)
            for name, value in (("proof", who.proof), ("alert", alert.place), ("back", back))
        ],
        tag("label", "It was", for_=place),
        tag(
            "input",
            id=place,
            name="fault",
            list=f"{place}-kinds",
            maxlength=64,
            value=alert.label or "",
            placeholder="a class, or other: unbalance",
            autocomplete="off",
        ),
        tag("datalist", [tag("option", value=fault) for fault in faults], id=f"{place}-kinds"),
        tag(
            "label",
            tag("input", type="checkbox", name="others", value="too"),
            f" and so were {', '.join(alert.others)}",
            class_="too",
        )
        if alert.others
        else None,
        tag("button", "Confirm", name="what", value="confirm", type="submit", class_="primary"),
        tag("button", "Dismiss", name="what", value="dismiss", type="submit", class_="plain"),
        tag("button", "Acknowledge", name="what", value="ack", type="submit", class_="plain")
        if alert.state == "open"
        else None,
        tag("label", "Your name", for_=f"{place}-by"),
        tag("input", id=f"{place}-by", name="said_by", maxlength=24, autocomplete="name"),
        method="post",
        action="/orders",
        class_="verdict",
    )  # fmt: skip


def _spreads(shown: Snapshot) -> Markup | None:
    spreads = shown.conditions.spreads
    if not spreads:
        return None
    rows: list[list[Child]] = [
        [
            line.where,
            many(line.machines, line.kind),
            f"{line.gateways:,}",
            f"{line.index:.2f}",
            columns(line.shares, even=0.1),
            _when(line.drifting_since),
            line.how,
        ]
        for line in spreads[:SPREADS_SHOWN]
    ]
    head = ["measure", "of", "gateways", "index", "share in each tenth", "drift since", "it is"]
    more = len(spreads) - len(rows)
    return tag(
        "section",
        tag("h2", "Machines against what is normal"),
        tag("p", SPREADS_TOLD, class_="quiet"),
        _table("Machines against what is normal", head, rows, left=(1, 4, 5, 6)),
        tag("p", f"{more:,} more: `fedmq status --json` has them all.", class_="quiet") if more > 0 else None,
        id="spreads",
        class_="panel alerts",
    )


def _machines(shown: Snapshot) -> Markup | None:
    about, condition = shown.overview, shown.conditions
    if not condition.machines:
        return None
    rows = [
        [
            _link(one.name, "/machine", about.task, gateway=one.gateway, name=one.name),
            _link(one.gateway, "/gateway", about.task, name=one.gateway),
            one.kind,
            one.state,
            one.zone or "",
            _level(one.level),
            "learnt" if one.learnt else f"{one.learnt_pct} %",
            ", ".join(one.drifting),
            _when(one.at),
        ]
        for one in condition.machines[:MACHINES_SHOWN]
    ]
    head = ["machine", "gateway", "kind", "state", "zone", "level", "normal", "drifting", "last judged"]
    more = condition.machines_in_all - len(rows)
    return tag(
        "section",
        tag("h2", "Machines"),
        tag("p", f"{many(condition.machines_in_all, 'machine')}, those closest to their limits first.", class_="quiet"),
        _table("Machines", head, rows, left=(1, 2, 3, 4, 6, 7, 8)),
        tag("p", f"{more:,} more are on their gateways' pages.", class_="quiet") if more > 0 else None,
        id="machines",
        class_="panel alerts",
    )


def _level(level: float) -> str:
    return f"{level:.2f} × its limit"


def _quantile(of: dict[str, float], share: str) -> str:
    return "" if share not in of else f"{of[share]:.4g}"


def _declines(about: Overview) -> Markup | None:
    if not about.declines:
        return None
    rows = [[reason.replace("_", " "), f"{count:,}"] for reason, count in about.declines.items()]
    table = _table("Declines by reason", ["reason", "declines"], rows)
    return tag("section", tag("h2", "Declines by reason"), table, id="declines", class_="panel narrow")


def _rounds(shown: Snapshot) -> Markup:
    about = shown.overview
    lines = shown.report.rounds[-ROUNDS_SHOWN:]
    rows = [
        [
            _link(f"{line.id:,}", "/round", about.task, id=str(line.id)),
            _outcome(line),
            f"{taken(line):,} of {line.drawn:,}",
            f"{line.declined:,}" if line.declined else "",
            _number(line.metric),
            _number(line.loss),
            _number(line.seconds, 1),
            size(line.wire.up),
            size(line.wire.down),
            size(line.dense.total),
            _times(line.dense.total, line.wire.total),
        ]
        for line in reversed(lines)
    ]
    head = ["round", "outcome", "of use", "declined", about.metric_name, "loss", "seconds"]
    head += ["wire up", "wire down", "dense", "against dense"]
    left = len(shown.report.rounds) - len(lines)
    more = f", the latest {len(lines):,} of {len(shown.report.rounds):,}" if left else ""
    return tag(
        "details",
        tag("summary", f"Every round{more}"),
        _table("Every round", head, rows, left=(1,)),
        id="rounds",
        class_="panel",
    )


def _words(shown: Snapshot) -> Markup:
    report = shown.report
    return tag(
        "details",
        tag("summary", "In sentences, and how it is counted"),
        tag("ul", [tag("li", text) for text in (*report.sentences, *report.findings)]),
        tag("h3", "How it is counted"),
        tag("ul", [tag("li", text) for text in (*report.rules, report.ip.formula)]),
        id="words",
        class_="panel",
    )


# -- what all pages have ---------------------------------------------------------------------------------------


def _page(
    title: str, body: Sequence[Child], who: Who, *, kind: str, about: Overview | None = None, name: str = ""
) -> str:
    scripted = kind in ("overview", "gateway", "machine", "round")
    federation = about.federation if about is not None else ""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{title} · {federation or 'fedmq'}"),
        tag("link", rel="icon", href="/static/icon.svg", type="image/svg+xml"),
        tag("link", rel="stylesheet", href="/static/vendor/uplot/uPlot.min.css") if scripted else None,
        tag("link", rel="stylesheet", href="/static/base.css"),
        tag("link", rel="stylesheet", href="/static/dashboard.css"),
        tag("script", src="/static/theme.js"),
        tag("script", src="/static/vendor/uplot/uPlot.iife.min.js", defer=True) if scripted else None,
        tag("script", src="/static/charts.js", defer=True) if scripted else None,
        tag("script", src="/static/dashboard.js", type="module") if scripted else None,
    )
    tasks = [] if about is None or len(about.tasks) < 2 else about.tasks
    top = tag(
        "header",
        tag("a", tag("strong", "fedmq"), tag("span", federation), href="/", class_="brand"),
        tag(
            "nav",
            [
                tag(
                    "a",
                    task,
                    href=_address("/", task),
                    aria_current="page" if about is not None and task == about.task else None,
                )
                for task in tasks
            ],
            aria_label="Tasks",
            class_="tasks",
        )
        if tasks
        else None,
        tag("a", many(about.alerts, "alert"), href=_address("/", about.task) + "#alerts", class_="alarm-pill")
        if about is not None and about.alerts
        else None,
        tag("span", "", id="live", class_="pill", role="status") if kind == "overview" else None,
        tag("button", "Dark or light", id="theme", type="button", class_="plain scripted") if scripted else None,
        _door(who, kind),
        class_="top",
    )
    main = tag(
        "main",
        body,
        id="main",
        tabindex=-1,
        data_kind=kind,
        data_task=about.task if about is not None else None,
        data_name=name or None,
        data_price=about.price.per_gb if about is not None else None,
        data_currency=about.price.currency if about is not None else None,
    )
    foot = tag("footer", "Figures come from the coordinator's ledger. Sizes are decimal: 1 kB is 1,000 bytes.")
    skip = tag("a", "Skip to the figures", href="#main", class_="skip")
    return page(tag("html", head, tag("body", skip, top, main, foot), lang="en"))


def _door(who: Who, kind: str) -> Child:
    if who.signed_in:
        return tag(
            "form",
            tag("input", type="hidden", name="proof", value=who.proof),
            tag("button", "Sign out", type="submit", class_="plain"),
            method="post",
            action="/logout",
        )
    return tag("a", "Sign in", href="/login", class_="plain") if who.may_sign_in and kind != "login" else None


def _crumbs(about: Overview, here: str) -> Markup:
    return tag(
        "nav",
        tag("a", "Overview", href=_address("/", about.task)),
        tag("span", here, aria_current="page"),
        aria_label="Where this is",
        class_="crumbs",
    )


def _section(title: str, *children: Child) -> Markup:
    return tag("section", tag("h2", title), children, class_="panel")


def _facts(title: str, facts: Iterable[tuple[str, Child]]) -> Markup:
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts if value not in ("", None)]
    return _section(title, tag("dl", rows, class_="facts"))


def _place(name: str) -> Markup:
    return tag("div", id=f"chart-{name}")


def _table(label: str, head: Sequence[str], rows: Sequence[Sequence[Child]], left: Sequence[int] = ()) -> Markup:
    """The first column is each row's head; one that says nothing in any row is left out."""
    kept = [at for at in range(len(head)) if not at or any(row[at] not in ("", None) for row in rows)]
    kinds = {at: None if not at or at in left else "number" for at in kept}
    columns = [tag("th", head[at], scope="col", class_=kinds[at]) for at in kept]
    body = [
        tag("tr", tag("th", row[0], scope="row"), [tag("td", row[at], class_=kinds[at]) for at in kept if at])
        for row in rows
    ]
    table = tag("table", tag("thead", tag("tr", columns)), tag("tbody", body), class_="data")
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)


def _address(path: str, task: str, **more: str) -> str:
    words = {key: value for key, value in {"task": task, **more}.items() if value}
    return f"{path}?{urlencode(words)}" if words else path


def _link(text: str, path: str, task: str, **more: str) -> Markup:
    return tag("a", text, href=_address(path, task, **more))


def _when(at: float | None) -> Child:
    if at is None:
        return ""
    utc = datetime.fromtimestamp(at, tz=UTC)
    return tag("time", f"{utc:%Y-%m-%d %H:%M:%S} UTC", datetime=f"{utc:%Y-%m-%dT%H:%M:%SZ}", data_at=f"{at:.3f}")


def _state(row: dict[str, Cell]) -> Markup:
    state = str(row["state"])
    return tag("span", state, class_=f"state {state.replace(' ', '-')}")


def _serves(row: dict[str, Cell]) -> str:
    return "none has been released to it" if row["serves"] is None else f"version {row['serves']:,}"


def _answer(answer: AnswerLine) -> str:
    return answer_text(answer.kind, answer.verdict, answer.reason) + (", late" if answer.late else "")


def _outcome(line: RoundLine) -> str:
    parts = [line.outcome if line.kind == "training" else f"{line.outcome} ({line.kind})"]
    parts += [f"{line.owed:,} owed"] if line.owed else []
    parts += [f"{line.late:,} late"] if line.late else []
    return ", ".join(parts)


def _reasons(reasons: dict[str, int]) -> str:
    told = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in reasons.items())
    return f" ({told})" if told else ""


def _known(value: Cell) -> str:
    return "" if value is None else str(value)


def _told(value: Cell) -> str:
    """Empty is what a gateway has told that it does not know, or does not have."""
    return "not told" if value is None else str(value) or "–"


def _times(other: int, wire: int) -> str:
    return f"{_factor(other / wire)} ×" if other and wire else ""


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
