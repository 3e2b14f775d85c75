"""How a program's log lines look, for people and for programs, and what a line belongs to.

Owns the two forms, `console` and `json`, and the fields `round`, `task` and `gateway`, which whoever works on something
states once (`about`) for all lines that come of it. Of a field that changes on the way (a round that opens) a function
is stated, which is asked as a line is written. Standard library alone.

Rules it keeps:

- One message is one line, whatever stands in it: text from a gateway can neither begin another line nor move a cursor.
  Lines of a traceback begin with four spaces and a bar, in `console`; in `json` they are one field.
- A field never hides another part of a line: names that the form itself uses are not taken.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Literal, TextIO

__all__ = ["FORMS", "Form", "about", "configure", "fields", "formatter", "printable"]

Form = Literal["console", "json"]
FORMS: tuple[Form, ...] = ("console", "json")

Value = str | int | None
Field = Value | Callable[[], Value]

_NAMES = ("task", "round", "gateway")
_NOTHING: Mapping[str, Field] = MappingProxyType({})
_ABOUT: ContextVar[Mapping[str, Field]] = ContextVar("fedmq_about", default=_NOTHING)


@contextmanager
def about(*, round: Field = None, task: Field = None, gateway: Field = None) -> Iterator[None]:
    """What every line is about that is logged inside, by this thread. None leaves what was said before."""
    said = {"round": round, "task": task, "gateway": gateway}
    token = _ABOUT.set({**_ABOUT.get(), **{name: field for name, field in said.items() if field is not None}})
    try:
        yield
    finally:
        _ABOUT.reset(token)


def fields() -> dict[str, str | int]:
    """As they are now, always in the same order; those that are not known are left out."""
    said = _ABOUT.get()
    asked = {name: field() if callable(field) else field for name in _NAMES if (field := said.get(name)) is not None}
    return {name: value for name, value in asked.items() if value is not None}


def configure(level: str, form: Form = "console", *, stream: TextIO | None = None, gateway: str | None = None) -> None:
    """Log to `stream`, or stderr, from this level on. `gateway`: whose program this is; each line of JSON says so."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter(form, gateway=gateway))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def formatter(form: Form, *, gateway: str | None = None) -> logging.Formatter:
    return _Json(gateway) if form == "json" else _Console()


def printable(text: str) -> str:
    """With every character that is none to print, line ends above all, as Python would write it in a text."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


class _Console(logging.Formatter):
    """Time, level, program and message as they always were, and behind them in brackets what the line is about."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {printable(record.getMessage())}"
        told = " ".join(f"{name}={_word(value)}" for name, value in fields().items())
        if told:
            line += f" [{told}]"
        trace = _trace(self, record)
        return line + "".join(f"\n    | {printable(part)}" for part in trace.splitlines())


class _Json(logging.Formatter):
    """An object a line: time (RFC 3339, UTC), level, logger, message, the fields, and the traceback where there is one.
    Everything but ASCII is escaped."""

    def __init__(self, gateway: str | None) -> None:
        super().__init__()
        self._own: dict[str, str | int] = {} if gateway is None else {"gateway": gateway}

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, tz=UTC)
        line: dict[str, str | int] = {
            "time": at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._own,
            **fields(),
        }
        trace = _trace(self, record)
        if trace:
            line["exception"] = trace
        return json.dumps(line)


def _trace(form: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [form.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] is not None else []
    return "\n".join([*parts, *([record.stack_info] if record.stack_info else [])])


def _word(value: str | int) -> str:
    """A value that cannot be taken for the next field: a text that is more than a word stands in quotes."""
    if isinstance(value, int) or (value and all(c.isalnum() or c in "._-" for c in value) and value.isascii()):
        return str(value)
    return json.dumps(value)
