"""What `fedmq wire show` prints: a few lines a message, or one line of JSON, and tables at the end. Text in, text out.

It needs no more than a gateway has, so that it also runs there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from fedmq_protocol.messages import Seal

from fedmq.wire.fields import ABOUT, Origin
from fedmq.wire.reading import Field, Seen
from fedmq.wire.tally import Tally

__all__ = ["as_json", "as_text", "summary"]

_WIDTH = 118
_SEALS = {Seal.NONE: "no seal", Seal.SIGNATURE: "signature 64 B", Seal.MAC: "MAC 8 B"}
_BOLD, _RED, _DIM, _PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[2m", "\x1b[0m"


def as_text(seen: Seen, *, colour: bool = False) -> str:
    """A head, the fields, and what they mean. What cannot be explained begins with an exclamation mark."""
    bold, red, dim, plain = (_BOLD, _RED, _DIM, _PLAIN) if colour else ("", "", "", "")
    clock = time.strftime("%H:%M:%S", time.localtime(seen.at)) + f".{int(seen.at * 1000) % 1000:03d}"
    who = seen.gateway or ("all" if seen.direction == "down" else "")
    kept = ", kept by the broker" if seen.retained else ""
    where = _safe(seen.topic) if seen.direction == "?" else f"{seen.direction:4} {who} {seen.channel}"
    lines = [f"{clock} {where}  {bold}{seen.kind}{plain}  {seen.size:,} B, {_SEALS[seen.seal]}{kept}"]
    if seen.problem:
        lines.append(f"  {red}! not a message of ours: {seen.problem}{plain}")
    lines += _lines(seen.fields, "  ")
    lines += [
        f"  {red}! {field.name}: {field.problem}; {field.size:,} B{plain}" for field in seen.unexplained if field.name
    ]
    lines += [f"  {dim}{note}{plain}" for note in seen.notes]
    return "\n".join(lines)


def _lines(fields: Sequence[Field], indent: str) -> Iterator[str]:
    """As many on a line as fit; one that is too long has its inner ones below it."""
    line: list[str] = []
    for field in fields:
        text = _field(field)
        if line and len(indent) + len(" · ".join([*line, text])) > _WIDTH:
            yield indent + " · ".join(line)
            line = []
        if field.inner and len(indent) + len(text) > _WIDTH:
            yield from (indent + " · ".join(line),) if line else ()
            line = []
            yield f"{indent}{field.name}"
            yield from _lines(field.inner, indent + "  ")
        else:
            line.append(text)
    if line:
        yield indent + " · ".join(line)


def _field(field: Field) -> str:
    mark = "*" if field.key in ABOUT and ABOUT[field.key].origin is Origin.DATA else ""
    if field.inner:
        return f"{_safe(field.name)}{mark} ({', '.join(_field(one) for one in field.inner)})"
    floats = field.key in ABOUT and ABOUT[field.key].float32
    return f"{_safe(field.name)}{mark} {_shown(field.value, floats=floats)}"


def _safe(text: str) -> str:
    """Somebody else's text, so that it cannot steer a terminal."""
    return text if text.isprintable() else ascii(text)


def _shown(value: Any, *, floats: bool = False) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:g}"
        case str():
            return _safe(value) if value else "''"
        case {"bytes": int(count), "sha256": str(digest)}:
            meant = f" = {count // 4:,} float32" if floats else ""
            return f"{count:,} B{meant} #{digest[:8]}"
        case dict():
            return "{" + ", ".join(f"{_shown(key)}: {_shown(one)}" for key, one in value.items()) + "}"
        case list():
            return "[" + ", ".join(_shown(one) for one in value) + "]"
    return ascii(value)


def as_json(seen: Seen) -> str:
    """One line."""
    values = {
        "time": seen.at,
        "topic": seen.topic,
        "direction": seen.direction,
        "gateway": seen.gateway or None,
        "channel": seen.channel,
        "type": seen.kind,
        "bytes": seen.size,
        "retained": seen.retained,
        "seal": seen.seal.name.lower(),
        "fields": [_as_values(field) for field in seen.fields],
        "notes": list(seen.notes),
        "problem": seen.problem or None,
    }
    return msgspec.json.encode(values).decode()


def _as_values(field: Field) -> dict[str, Any]:
    values: dict[str, Any] = {"name": field.name, "bytes": field.size}
    if field.key in ABOUT:
        values |= {"from": ABOUT[field.key].origin.value}
    if field.inner:
        values |= {"fields": [_as_values(one) for one in field.inner]}
    else:
        values |= {"value": field.value}
    if field.problem:
        values |= {"problem": field.problem}
    return values


def summary(tally: Tally, *, as_one_json: bool = False) -> str:
    """The sums of a watch, as text or as one line of JSON."""
    if as_one_json:
        return msgspec.json.encode({"summary": tally.as_json()}).decode()
    lines = ["", "by message"]
    rows = [
        (f"{direction} {channel}", kind, f"{tally.messages[direction, channel, kind]:,}", f"{size:,} B")
        for (direction, channel, kind), size in tally.bytes.most_common()
    ]
    lines += _columns([("channel", "type", "messages", "bytes"), *rows])
    lines += ["", "by field (* computed from recordings)"]
    fields = [
        (f"{_safe(key)}{'*' if key in ABOUT and ABOUT[key].origin is Origin.DATA else ''}", direction, f"{size:,} B")
        for (direction, key), size in tally.fields.most_common()
    ]
    lines += _columns([("field", "", "bytes"), *fields])
    if tally.largest is not None:
        lines += ["", f"largest: {tally.largest.kind} on {_safe(tally.largest.topic)}, {tally.largest.size:,} B"]
    return "\n".join([*lines, "", *map(_safe, tally.statement())])


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The last column, and every one of figures, to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    figures = [any(row[at][:1].isdigit() for row in rows[1:]) for at in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, figures, strict=True)
        ).rstrip()
        for row in rows
    ]
