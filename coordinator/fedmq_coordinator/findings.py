"""What a report comes to, in sentences: three for everybody, and the details behind them.

Owns the words; every figure comes in. The three say what was saved or lost in bytes and money, and say it as plainly
where federation has cost MORE than uploading: small tables sampled now and then are cheaper to upload.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from fedmq_coordinator.ledger import Round
from fedmq_coordinator.machines import SpreadLine
from fedmq_coordinator.money import Price, amount, cost
from fedmq_coordinator.report_model import (
    Comparison,
    FlagLine,
    GatewayLine,
    IpBytes,
    PersonalLine,
    RoundLine,
    Savings,
    Tail,
    Traffic,
)
from fedmq_coordinator.report_view import View, utc

__all__ = ["SPREADS_TOLD", "findings", "flag_text", "ip_told", "many", "personal_text", "sentences", "size"]

SPREADS_TOLD = (
    "Each machine is held against its own normal, on a typical one of its last days. Where nothing has changed each"
    " tenth of normal holds 10 % of the windows and the index is about 0; from 0.1 on the change is moderate, above"
    " 0.25 great."
)

NOTHING = "No round has been opened yet."


def sentences(view: View, rounds: Sequence[Round], gateways: int, savings: Savings, price: Price) -> list[str]:
    """What was used, and what was saved or lost against uploading the signal and against plain federated learning."""
    if not rounds:
        return [f"No round was opened {view.span}." if view.in_time else NOTHING]
    if not savings.bytes:
        return ["No gateway has reported its bytes yet: nothing can be compared."]

    def worth(money: float | None) -> str:
        return "" if money is None or not price.per_gb else f" and {amount(abs(money), price.currency)}"

    def costs(count: int) -> str:
        return f" ({amount(cost(count, price), price.currency)})" if price.per_gb else ""

    def beside(what: str, other: Comparison) -> str:
        if other.bytes is None or other.saved_bytes is None:
            return f"What {what} would have used is not known."
        if other.bytes == 0:
            return (
                "No gateway told of new signal in that time, so that there was nothing to upload: learning together"
                f" used {size(savings.bytes)}{worth(savings.money)} MORE than that."
            )
        if other.saved_bytes >= 0:
            return (
                f"{_capital(what)} would have used {size(other.bytes)}{costs(other.bytes)}: {size(other.saved_bytes)}"
                f"{worth(other.saved_money)} were saved{_share(other.saved_bytes, other.bytes)}."
            )
        times = f", {savings.bytes / other.bytes:,.1f} times as much" if other.bytes else ""
        return (
            f"{_capital(what)} would have used only {size(other.bytes)}{costs(other.bytes)}: learning together used"
            f" {size(-other.saved_bytes)}{worth(other.saved_money)} MORE{times}."
        )

    first, last = rounds[0].opened_at, rounds[-1].closed_at or rounds[-1].opened_at
    days = [utc(at)[:10] for at in (first, last)]
    when = f"on {days[0]}" if days[0] == days[1] else f"from {days[0]} to {days[1]}"
    price_told = f", {amount(savings.money, price.currency)} at {price.per_gb:,.2f} {price.currency} a gigabyte"
    return [
        f"In {many(len(rounds), 'round')} {when}, {many(gateways, 'gateway')} used {size(savings.bytes)} of data"
        f" in all{price_told if price.per_gb else ''}.",
        beside("uploading their signal once" if not view.in_time else "uploading the signal of that time", savings.raw),
        beside("sending the whole model both ways in each round", savings.dense),
    ]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _share(saved: int, other: int) -> str:
    """How much of the whole, never rounded up to all of it."""
    if not saved or not other:
        return ""
    share = 100 * saved / other
    return f", {share:.0f} %" if share < 99 else f", {min(99.9, int(share * 10) / 10):.1f} %"


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


def findings(
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
    spreads: Sequence[SpreadLine],
) -> list[str]:
    if not rounds:
        return [NOTHING]
    told = [
        f"{many(len(gateways), 'gateway')} and {many(len(rounds), 'round')} took {size(wire.total)} on the wire:"
        f" {size(wire.up)} up, {size(wire.down)} down."
    ]
    scored = [line for line in rounds if line.metric is not None]
    if len(scored) == 1:
        told.append(
            f"{metric_name} is {scored[0].metric:.3f} in round {scored[0].id}, on {_source(scored[0].metric_source)}."
        )
    elif scored:
        told.append(
            f"{metric_name} went from {scored[0].metric:.3f} in round {scored[0].id}"
            f" to {scored[-1].metric:.3f} in round {scored[-1].id}, on {_source(scored[-1].metric_source)}."
        )
    if wire.total:
        told.append(_against("plain FedAvg in float32, for the updates that were accepted,", dense.total, wire.total))
        told.append(_against("uploading the raw signal once", raw, wire.total))
        if 0 < raw < wire.total:
            told.append(
                "In bytes alone it would have been cheaper to upload this signal. Federation then earns its bytes by"
                " keeping the signal where it is, or once the gateways have gathered more of it."
            )
    else:
        told.append("No gateway has reported its wire bytes yet: nothing can be compared.")
    if below:
        told.append(
            f"{many(len(below), 'round')} closed below quorum: the model stood still, what was accepted is owed."
        )
    if tails:
        names = len({t.gateway for t in tails})
        told.append(f"{many(names, 'gateway')} counted bytes that are not reported: the figures lack these tails.")
    if flagged:
        named = ", ".join(line.gateway for line in flagged[:5]) + ("" if len(flagged) <= 5 else " and others")
        told.append(f"{many(len(flagged), 'gateway')} should be looked at: {named}.")
    told += [f"Drift: {line.reason}." for line in spreads if line.drifting_since is not None]
    if personal:
        told.append(f"Personal models: {personal_text(personal)}.")
    return told


def flag_text(line: FlagLine) -> str:
    """In a few words."""
    why = {"refused": "refused again and again", "against": "points away from the others", "ordered": "by order"}
    return f"{why.get(line.reason, line.reason)}{', set aside' if line.aside else ''}"


def ip_told(ip: IpBytes) -> str:
    """Whether it was counted, in a word or two."""
    if ip.counted_pct >= 99.5:
        return "counted"
    return "estimate" if ip.counted_pct < 0.5 else f"{ip.counted_pct:.0f} % counted"


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
