"""The alerts of a gateway's machines, on disk: what was raised, what people said of it, and who has yet to be told.

Owns the file and its one rule: everything that follows from some windows is written in one transaction with how far
their sensors have been judged. So a kill at any moment loses nothing and repeats nothing: what is not in the book is
judged again, from the same windows, and comes to the same. Refuses to know signals, models, brokers and mail servers.
Times are arguments, in Unix seconds.

    alert    of one machine and kind: open -> acknowledged -> confirmed with a fault, or dismissed. One whose cause has
             gone is cleared, and may still be confirmed or dismissed
    step     something that happened to an alert, who did it, and what was measured then
    order    what somebody said that `fedmq watch run` has yet to act on: a verdict, or an event of a machine
    note     a step that an output has yet to tell
    message  notes that go out together, whole bytes with a key of their own, until the other side has said yes

A note becomes part of a message in one transaction, and the message is the same at every try: a receiver that has its
key can tell a repeat. Many processes may have the book open.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
from fedmq_protocol.condition import (
    ALERT_STATES,
    OTHER,
    WAITING_STATES,
    AlertKind,
    AlertSeverity,
    AlertStanding,
    AlertVerb,
    is_other,
    meet,
)
from fedmq_protocol.state import PlaceError, make_place

from fedmq_edge_node.alarms import Changed, Cleared, Evidence, Outcome, Raised
from fedmq_edge_node.watching import Drift

__all__ = [
    "EVENTS",
    "STATES",
    "Alert",
    "Alertbook",
    "BookError",
    "BookFailure",
    "Message",
    "Note",
    "Order",
    "Position",
    "Step",
]

SCHEMA_VERSION = 1
BUSY_MS = 10_000
STATES = ALERT_STATES
EVENTS = ("bearing-changed", "replaced", "sensor-moved", "maintenance")
MAX_TEXT = 64
KEPT_ORDERS = 256
"""From afar, by which a repeat is known: many more than may wait at once."""
KEPT_MESSAGES = 10_000
"""Of those that were sent."""

What = Literal["raised", "changed", "cleared", "acknowledged", "confirmed", "dismissed", "event", "drift"]


class BookError(ValueError):
    """A book that cannot be used, or an order that makes no sense: what was expected, what came."""


class BookFailure(BookError):
    """The file does not do what it should: it is tried again later."""


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """How far a sensor's samples have been judged: up to `sample` of a run, which counts from its first."""

    run: int
    sample: int
    at: float


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    machine: str
    sensor: str
    kind: AlertKind
    state: AlertStanding
    severity: AlertSeverity
    level: float
    """The highest that is known."""
    label: str | None
    """The fault that it names itself."""
    verdict: str | None
    """The fault that somebody confirmed, or `other: …` for a cause that is no class."""
    opened_at: float
    from_at: float
    to_at: float | None
    """None while its cause is there."""
    evidence: tuple[Evidence, ...]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    alert: int | None
    machine: str
    at: float
    what: str
    who: str
    text: str
    severity: str = ""
    level: float = 0.0
    label: str | None = None
    evidence: tuple[Evidence, ...] = ()


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """`what` is confirmed, dismissed or event."""

    id: int
    machine: str
    what: str
    at: float
    who: str
    alert: int | None
    detail: str
    """The fault, or which event."""


class Note(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    output: str
    machine: str
    step: Step
    alert: Alert | None
    others: tuple[Alert, ...] = ()
    """`Alertbook.overlapping` of it."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    output: str
    machine: str
    key: str
    payload: bytes
    made_at: float
    tries: int


class Alertbook:
    """One open file. Raises BookError where it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            make_place(path)
            self._db = sqlite3.connect(path, isolation_level=None)
        except PlaceError as error:
            raise BookError(str(error)) from error
        except (sqlite3.Error, OSError) as error:
            raise BookError(f"cannot use the alertbook {path}: {error}; see that its folder can be written") from error
        self._parts: dict[tuple[str, str], bytes] = {}
        try:
            self._open()
            self.name = str(self._one("SELECT value FROM meta WHERE key = 'name'")[0])
        except BaseException:
            self._db.close()
            raise

    @classmethod
    def existing(cls, path: Path) -> Alertbook:
        """For whoever only looks in, or says a word: a wrong path makes no new book."""
        if not path.is_file():
            raise BookError(f"{path}: expected an alertbook, found none; `fedmq watch run` makes it")
        return cls(path)

    def _open(self) -> None:
        self._execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        found = int(self._one("PRAGMA user_version")[0])
        if found == 0 and self._one("SELECT count(*) FROM sqlite_master")[0]:
            raise BookError(f"{self.path} is a database of another program: name another file")
        if found not in (0, SCHEMA_VERSION):
            raise BookError(
                f"{self.path}: expected an alertbook of schema {SCHEMA_VERSION}, got {found}: run the software that"
                " wrote it"
            )
        self._execute("PRAGMA journal_mode = WAL")
        self._execute("PRAGMA synchronous = FULL")
        self._execute("PRAGMA foreign_keys = ON")
        if found == 0:
            with self._transaction():
                # Looked at again: another process may have made it before this one had its turn.
                if not self._one("PRAGMA user_version")[0]:
                    for statement in _SCHEMA.split(";\n"):
                        self._execute(statement)
                    self._put_meta("name", os.urandom(4).hex())
                    self._execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def close(self) -> None:
        self._db.close()

    # -- what watching writes ----------------------------------------------------------------------------------

    def positions(self) -> dict[str, Position]:
        rows = self._execute("SELECT sensor, run, sample, at FROM positions")
        return {row[0]: Position(run=row[1], sample=row[2], at=row[3]) for row in rows}

    def parts(self) -> dict[str, dict[str, bytes]]:
        """What `Watcher.dump` gave, by machine."""
        found: dict[str, dict[str, bytes]] = {}
        for machine, key, value in self._execute("SELECT machine, key, value FROM parts"):
            found.setdefault(machine, {})[key] = value
            self._parts[machine, key] = value
        return found

    def standings(self) -> dict[str, dict[str, Any]]:
        """How each machine was when it was last looked at."""
        rows = self._all("SELECT machine, value FROM standings ORDER BY machine")
        return {row[0]: msgspec.json.decode(row[1]) for row in rows}

    def step(
        self,
        *,
        at: float,
        positions: Mapping[str, Position] | None = None,
        parts: Mapping[str, Mapping[str, bytes]] | None = None,
        outcomes: Sequence[Outcome] = (),
        drifts: Sequence[Drift] = (),
        standings: Mapping[str, Mapping[str, Any]] | None = None,
        orders: Iterable[int] = (),
        crash_point: Callable[[str], None] = lambda name: None,
    ) -> list[int]:
        """All that follows from some windows, at once; durable when it returns. Alerts that it opened, in order.

        `parts` are whole for each machine named; only what changed is written. `orders` are those acted on.
        """
        opened = []
        parts = parts or {}
        with self._transaction():
            for outcome in outcomes:
                number = self._apply(outcome)
                opened += [number] if number is not None else []
            for drift in drifts:
                text = (
                    f"{drift.measure} of {drift.sensor} ({drift.band}) was {drift.was:.3g} and is {drift.now:.3g};"
                    f" stability index {drift.index:.2f}"
                )
                self._add_step(None, drift.machine, drift.at, "drift", "watch", text)
            for sensor, place in (positions or {}).items():
                self._execute(
                    "INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?)", (sensor, place.run, place.sample, place.at)
                )
            for machine, values in parts.items():
                self._write_parts(machine, values)
            for machine, value in (standings or {}).items():
                self._execute("INSERT OR REPLACE INTO standings VALUES (?, ?)", (machine, msgspec.json.encode(value)))
            for order in orders:
                self._execute("UPDATE orders SET taken_at = ? WHERE id = ?", (at, order))
            crash_point("before commit")
        crash_point("after commit")
        for machine, values in parts.items():
            self._parts = {place: value for place, value in self._parts.items() if place[0] != machine}
            self._parts.update({(machine, key): value for key, value in values.items()})
        return opened

    def _write_parts(self, machine: str, values: Mapping[str, bytes]) -> None:
        for key, value in values.items():
            if self._parts.get((machine, key)) != value:
                self._execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", (machine, key, value))
        for place in self._parts:
            if place[0] == machine and place[1] not in values:
                self._execute("DELETE FROM parts WHERE machine = ? AND key = ?", place)

    def _apply(self, outcome: Outcome) -> int | None:
        going_on = self._execute(
            "SELECT id, state FROM alerts WHERE machine = ? AND kind = ? AND to_at IS NULL ORDER BY id DESC",
            (outcome.machine, outcome.kind),
        ).fetchone()
        match outcome:
            case Raised():
                if going_on is not None:
                    # Cannot be, while alarms and book go on together; a book must not have two all the same.
                    self._change(going_on[0], outcome)
                    return None
                return self._raise(outcome)
            case Changed():
                if going_on is None:
                    return self._raise(outcome)
                if going_on[1] == "dismissed":
                    # What was dismissed has become worse: that is news, and another alert.
                    self._execute("UPDATE alerts SET to_at = ? WHERE id = ?", (outcome.from_at, going_on[0]))
                    return self._raise(outcome)
                self._change(going_on[0], outcome)
            case Cleared() if going_on is not None:
                self._execute(
                    "UPDATE alerts SET to_at = ?, level = max(level, ?), "
                    "state = CASE WHEN state IN ('open', 'acknowledged') THEN 'cleared' ELSE state END WHERE id = ?",
                    (outcome.to_at, outcome.level, going_on[0]),
                )
                self._add_step(going_on[0], outcome.machine, outcome.at, "cleared", "watch", "", level=outcome.level)
        return None

    def _raise(self, outcome: Raised | Changed) -> int:
        number = self._execute(
            "INSERT INTO alerts (machine, sensor, kind, state, severity, level, label, opened_at, from_at, evidence) "
            "VALUES (?, ?, ?, 'open', ?, ?, ?, ?, ?, ?)",
            (
                *(outcome.machine, outcome.sensor, outcome.kind, outcome.severity, outcome.level, outcome.label),
                *(outcome.at, outcome.from_at, msgspec.json.encode(outcome.evidence)),
            ),
        ).lastrowid
        assert number is not None
        self._add_outcome(number, "raised", outcome)
        return number

    def _change(self, number: int, outcome: Raised | Changed) -> None:
        self._execute(
            "UPDATE alerts SET severity = ?, level = max(level, ?), label = ?, evidence = ? WHERE id = ?",
            (outcome.severity, outcome.level, outcome.label, msgspec.json.encode(outcome.evidence), number),
        )
        self._add_outcome(number, "changed", outcome)

    def _add_outcome(self, number: int, what: What, outcome: Raised | Changed) -> None:
        self._add_step(
            number,
            outcome.machine,
            outcome.at,
            what,
            "watch",
            "",
            severity=outcome.severity,
            level=outcome.level,
            label=outcome.label,
            evidence=outcome.evidence,
        )

    def _add_step(
        self,
        alert: int | None,
        machine: str,
        at: float,
        what: What,
        who: str,
        text: str,
        *,
        severity: str = "",
        level: float = 0.0,
        label: str | None = None,
        evidence: tuple[Evidence, ...] = (),
    ) -> None:
        """With a note for each output that wants it."""
        step = self._execute(
            "INSERT INTO steps (alert, machine, at, what, who, text, severity, level, label, evidence) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (alert, machine, at, what, who, text, severity, level, label, msgspec.json.encode(evidence)),
        ).lastrowid
        for output, wants in self._outputs().items():
            if what in wants:
                self._execute("INSERT INTO notes (output, machine, step) VALUES (?, ?, ?)", (output, machine, step))

    # -- what people say ---------------------------------------------------------------------------------------

    def alerts(self, *, machine: str | None = None, states: Sequence[str] = STATES) -> list[Alert]:
        """Newest first."""
        marks = ", ".join("?" * len(states))
        rows = self._execute(
            f"{_ALERTS} WHERE (?1 IS NULL OR machine = ?1) AND state IN ({marks}) ORDER BY id DESC",
            (machine, *states),
        )
        return [_alert(row) for row in rows]

    def alert(self, number: int) -> Alert:
        row = next(iter(self._all(f"{_ALERTS} WHERE id = ?", (number,))), None)
        if row is None:
            raise BookError(f"there is no alert {number}; `fedmq alert list` names those that there are")
        return _alert(row)

    def overlapping(self, alert: Alert) -> list[Alert]:
        """Others of its machine that overlap it in time and have no verdict, oldest first: most likely of one cause."""
        span = (alert.from_at, alert.to_at)
        others = self.alerts(machine=alert.machine, states=WAITING_STATES)[::-1]
        return [one for one in others if one.id != alert.id and meet(span, (one.from_at, one.to_at))]

    def steps(self, number: int) -> list[Step]:
        """Of an alert, as they came."""
        return [_step(row) for row in self._execute(f"{_STEPS} WHERE alert = ? ORDER BY id", (number,))]

    def happenings(self, machine: str) -> list[Step]:
        """A machine's events and drifts, newest first."""
        return [
            _step(row)
            for row in self._execute(f"{_STEPS} WHERE machine = ? AND alert IS NULL ORDER BY id DESC", (machine,))
        ]

    def acknowledge(self, number: int, *, who: str, at: float) -> Alert:
        """Somebody is on it."""
        with self._transaction():
            alert = self.alert(number)
            if alert.state not in ("open", "acknowledged"):
                raise BookError(f"alert {number} is {alert.state}: there is nothing to acknowledge any more")
            if alert.state == "open":
                self._execute("UPDATE alerts SET state = 'acknowledged' WHERE id = ?", (number,))
                self._said(alert, "acknowledged", who, at, "")
        return self.alert(number)

    def decide(self, number: int, fault: str | None, *, who: str, at: float, overlapping: bool = False) -> list[Alert]:
        """The verdict: this fault, a cause that is no class (`other: unbalance`), or none. The same one again changes
        nothing; another one replaces the first. With `overlapping` it is given of those, too, all or none.

        The alerts that it was given of, the named one first."""
        if fault is not None:
            self._check_fault(fault)
        state: What = "dismissed" if fault is None else "confirmed"
        with self._transaction():
            named = self.alert(number)
            alerts = [named, *(self.overlapping(named) if overlapping else ())]
            for alert in alerts:
                if (alert.state, alert.verdict) != (state, fault):
                    self._execute("UPDATE alerts SET state = ?, verdict = ? WHERE id = ?", (state, fault, alert.id))
                    self._said(alert, state, who, at, fault or "")
                    self._add_order(alert.machine, state, at, who, alert.id, fault or "")
        return [self.alert(alert.id) for alert in alerts]

    def _check_fault(self, fault: str) -> None:
        _check_text("fault", fault)
        if is_other(fault):
            if not fault.removeprefix(OTHER).strip():
                raise BookError(f"fault: expected what it was behind `{OTHER}`, such as `{OTHER} unbalance`")
            return
        if fault.startswith(".") or "/" in fault:
            raise BookError(f"fault: expected a name that could be a folder's, got {fault!r}")
        known = self.faults()
        if known and fault not in known:
            raise BookError(
                f"fault: expected one of {', '.join(known)} (the watch's setting faults), got {fault!r};"
                f" `{OTHER} {fault}` says that it was none of them"
            )

    def event(self, machine: str, what: str, *, who: str, at: float, noted_at: float) -> None:
        """The machine is another one from `at` on."""
        _check_text("machine", machine)
        if what not in EVENTS:
            raise BookError(f"expected one of {', '.join(EVENTS)}, got {what!r}")
        with self._transaction():
            self._add_step(None, machine, noted_at, "event", _who(who), what)
            self._add_order(machine, "event", at, who, None, what)

    def _said(self, alert: Alert, what: What, who: str, at: float, text: str) -> None:
        self._add_step(
            *(alert.id, alert.machine, at, what, _who(who), text),
            severity=alert.severity,
            level=alert.level,
            label=alert.label,
            evidence=alert.evidence,
        )

    def _add_order(self, machine: str, what: str, at: float, who: str, alert: int | None, detail: str) -> None:
        self._execute(
            "INSERT INTO orders (machine, what, at, who, alert, detail) VALUES (?, ?, ?, ?, ?, ?)",
            (machine, what, at, _who(who), alert, detail),
        )

    def orders(self) -> list[Order]:
        """Those that nobody has acted on, as they came."""
        rows = self._execute(
            "SELECT id, machine, what, at, who, alert, detail FROM orders WHERE taken_at IS NULL ORDER BY id"
        )
        return [
            Order(id=row[0], machine=row[1], what=row[2], at=row[3], who=row[4], alert=row[5], detail=row[6])
            for row in rows
        ]

    # -- what goes to the coordinator and comes from it ----------------------------------------------------------

    def told_as(self) -> str:
        """Four bytes in hex, by which the coordinator knows the book."""
        row = self._one("SELECT value FROM meta WHERE key = 'told as'")
        return self.name if row is None else str(row[0])

    def be_another(self) -> None:
        """For the coordinator: it was put back from an older copy, and counts from there."""
        with self._transaction():
            self._put_meta("told as", os.urandom(4).hex())

    def changes(self) -> int:
        """Number of the last change of an alert; 0 before the first."""
        row = self._one("SELECT id FROM steps WHERE alert IS NOT NULL ORDER BY id DESC LIMIT 1")
        return 0 if row is None else int(row[0])

    def changed_alerts(self, after: int, most: int, *, history: int) -> list[tuple[int, Alert]]:
        """Alerts that have changed since, each with the number of its last change, in that order; none but the newest
        `history` alerts."""
        rows = self._all(
            "SELECT alert, max(id) FROM steps WHERE id > ? AND alert > (SELECT coalesce(max(id), 0) FROM alerts) - ?"
            " GROUP BY alert ORDER BY 2 LIMIT ?",
            (after, history, most),
        )
        return [(int(change), self.alert(int(number))) for number, change in rows]

    def normals(self, machine: str) -> dict[str, bytes]:
        """Of `parts` what is normal for a machine, by key."""
        rows = self._all("SELECT key, value FROM parts WHERE machine = ? AND key LIKE 'normal%'", (machine,))
        return {str(key): bytes(value) for key, value in rows}

    def obey(self, key: str, number: int, what: AlertVerb, fault: str, *, who: str, at: float) -> tuple[bool, str]:
        """Do what was ordered from afar, once: whatever has this key is the same order. Whether it was done, and what
        there is to say. Raises BookFailure where the file takes nothing, and nothing is done then."""
        with self._transaction():
            row = self._one("SELECT value FROM meta WHERE key = 'orders from afar'")
            known = {} if row is None else msgspec.json.decode(row[0], type=dict[str, tuple[bool, str]])
            if key in known:
                return known[key]
            try:
                if what == "ack":
                    alert = self.acknowledge(number, who=who, at=at)
                else:
                    alert = self.decide(number, fault if what == "confirm" else None, who=who, at=at)[0]
                result: tuple[bool, str] = (True, alert.state)
            except BookFailure:
                raise
            except BookError as error:
                result = (False, str(error))
            kept = dict([*known.items(), (key, result)][-KEPT_ORDERS:])
            self._put_meta("orders from afar", msgspec.json.encode(kept).decode())
        return result

    def keep_fleet_limits(self, limits: Sequence[Mapping[str, Any]]) -> None:
        """What is normal at most gateways of the federation: kind, band, measure and quantiles of each."""
        with self._transaction():
            self._put_meta("fleet limits", msgspec.json.encode(limits).decode())

    def fleet_limits(self) -> str:
        """The same as JSON; another text where it has changed, empty where there are none."""
        row = self._one("SELECT value FROM meta WHERE key = 'fleet limits'")
        return "" if row is None else str(row[0])

    # -- who is to be told -------------------------------------------------------------------------------------

    def tell(self, outputs: Mapping[str, Sequence[str]]) -> None:
        """From now on these outputs are told of these steps; what waits for others is dropped."""
        with self._transaction():
            self._put_meta("outputs", msgspec.json.encode(outputs).decode())
            marks = ", ".join("?" * len(outputs))
            self._execute(f"DELETE FROM notes WHERE output NOT IN ({marks})", tuple(outputs))  # noqa: S608
            self._execute(
                f"DELETE FROM messages WHERE state = 'waiting' AND output NOT IN ({marks})",  # noqa: S608
                tuple(outputs),
            )

    def take_only(self, faults: Sequence[str]) -> None:
        """From now on a verdict names one of these; none stands for any."""
        with self._transaction():
            self._put_meta("faults", msgspec.json.encode(faults).decode())

    def faults(self) -> list[str]:
        """What a verdict may name; empty: anything."""
        row = self._execute("SELECT value FROM meta WHERE key = 'faults'").fetchone()
        return [] if row is None else msgspec.json.decode(row[0], type=list[str])

    def _outputs(self) -> dict[str, list[str]]:
        row = self._execute("SELECT value FROM meta WHERE key = 'outputs'").fetchone()
        return {} if row is None else msgspec.json.decode(row[0], type=dict[str, list[str]])

    def notes(self, output: str) -> list[Note]:
        """That wait to become part of a message, as they came."""
        rows = self._execute(
            "SELECT notes.id, steps.id, steps.alert, steps.machine, at, what, who, text, severity, level, label, "
            "evidence FROM notes JOIN steps ON steps.id = notes.step WHERE output = ? ORDER BY notes.id",
            (output,),
        ).fetchall()
        found = []
        for row in rows:
            step = _step(row[1:])
            alert = None if step.alert is None else self.alert(step.alert)
            others = () if alert is None else tuple(self.overlapping(alert))
            found.append(Note(id=row[0], output=output, machine=step.machine, step=step, alert=alert, others=others))
        return found

    def compose(self, notes: Sequence[Note], payload: bytes, *, at: float) -> None:
        """These notes go out together, as this message, from `at` on. Its key follows from the notes."""
        first = notes[0]
        key = self.key(notes)
        with self._transaction():
            for note in notes:
                self._execute("DELETE FROM notes WHERE id = ?", (note.id,))
            self._execute(
                "INSERT OR IGNORE INTO messages (output, machine, key, payload, made_at, due_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (first.output, first.machine, key, payload, at, at),
            )

    def key(self, notes: Sequence[Note]) -> str:
        """What `compose` will call them."""
        return f"{self.name}-{notes[0].output.replace(' ', '.')}-{notes[0].id}"

    def made_since(self, output: str, since: float) -> list[tuple[str, float]]:
        """Machine and time of the messages that were made since, for the rate limit."""
        rows = self._execute("SELECT machine, made_at FROM messages WHERE output = ? AND made_at > ?", (output, since))
        return [(row[0], row[1]) for row in rows]

    def due(self, output: str, at: float) -> list[Message]:
        rows = self._execute(
            "SELECT id, output, machine, key, payload, made_at, tries FROM messages "
            "WHERE output = ? AND state = 'waiting' AND due_at <= ? ORDER BY id",
            (output, at),
        )
        return [
            Message(id=row[0], output=row[1], machine=row[2], key=row[3], payload=row[4], made_at=row[5], tries=row[6])
            for row in rows
        ]

    def sent(self, numbers: Sequence[int], *, at: float) -> None:
        """The other side has said yes."""
        with self._transaction():
            for number in numbers:
                self._execute("UPDATE messages SET state = 'sent', sent_at = ? WHERE id = ?", (at, number))
            self._execute(
                "DELETE FROM messages WHERE state = 'sent' AND id <= (SELECT max(id) FROM messages) - ?",
                (KEPT_MESSAGES,),
            )

    def put_off(self, number: int, error: str, *, due_at: float, give_up: bool = False) -> None:
        """It did not go; once more at `due_at`, or never."""
        self._execute(
            "UPDATE messages SET tries = tries + 1, error = ?, due_at = ?, state = ? WHERE id = ?",
            (error[:500], due_at, "given up" if give_up else "waiting", number),
        )

    def outbox(self) -> list[tuple[str, str, int, str]]:
        """Output, state, how many, and the last error of those that did not go."""
        return [
            (row[0], row[1], row[2], row[3] or "")
            for row in self._execute(
                "SELECT output, state, count(*), max(error) FROM messages WHERE state != 'sent' GROUP BY output, state "
                "UNION ALL SELECT output, 'to be composed', count(*), NULL FROM notes GROUP BY output"
            )
        ]

    # ----------------------------------------------------------------------------------------------------------

    def _put_meta(self, key: str, value: str) -> None:
        self._execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise BookFailure(
                f"{self.path}: {error}; is the disk full or damaged, or may this user not write?"
            ) from error

    def _one(self, sql: str) -> Any:
        return next(iter(self._all(sql)), None)

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Every row, for a damaged page is found as they are read."""
        rows = self._execute(sql, values)
        try:
            return rows.fetchall()
        except sqlite3.Error as error:
            raise BookFailure(f"{self.path}: {error}; is the disk damaged?") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Inside another one it is part of that."""
        if self._db.in_transaction:
            yield
            return
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            # SQLite rolls back by itself where the disk is full, and a second time would be an error of its own.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE alerts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    machine TEXT NOT NULL, sensor TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL, severity TEXT NOT NULL,
    level REAL NOT NULL, label TEXT, verdict TEXT,
    opened_at REAL NOT NULL, from_at REAL NOT NULL, to_at REAL,      -- to_at: once its cause has gone
    evidence BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_alert_of_a_kind ON alerts (machine, kind) WHERE to_at IS NULL;
CREATE TABLE steps (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    alert INTEGER REFERENCES alerts (id), machine TEXT NOT NULL, at REAL NOT NULL,
    what TEXT NOT NULL, who TEXT NOT NULL, text TEXT NOT NULL,
    severity TEXT NOT NULL, level REAL NOT NULL, label TEXT, evidence BLOB NOT NULL
) STRICT;
CREATE INDEX steps_of_alert ON steps (alert, id);
CREATE TABLE positions (
    sensor TEXT PRIMARY KEY, run INTEGER NOT NULL, sample INTEGER NOT NULL, at REAL NOT NULL
) STRICT;
CREATE TABLE parts (machine TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (machine, key)) STRICT;
CREATE TABLE standings (machine TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE orders (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    machine TEXT NOT NULL, what TEXT NOT NULL, at REAL NOT NULL, who TEXT NOT NULL, alert INTEGER, detail TEXT NOT NULL,
    taken_at REAL
) STRICT;
CREATE TABLE notes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    output TEXT NOT NULL, machine TEXT NOT NULL, step INTEGER NOT NULL REFERENCES steps (id)
) STRICT;
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    output TEXT NOT NULL, machine TEXT NOT NULL, key TEXT NOT NULL UNIQUE, payload BLOB NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', made_at REAL NOT NULL, due_at REAL NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0, error TEXT, sent_at REAL
) STRICT;
CREATE INDEX messages_by_output ON messages (output, state, due_at)
"""

_ALERTS = (
    "SELECT id, machine, sensor, kind, state, severity, level, label, verdict, opened_at, from_at, to_at, evidence "
    "FROM alerts"
)
_STEPS = "SELECT id, alert, machine, at, what, who, text, severity, level, label, evidence FROM steps"


def _alert(row: Sequence[Any]) -> Alert:
    names = (
        *("id", "machine", "sensor", "kind", "state", "severity", "level", "label", "verdict", "opened_at"),
        *("from_at", "to_at"),
    )
    return Alert(**dict(zip(names, row[:-1], strict=True)), evidence=_evidence(row[-1]))


def _step(row: Sequence[Any]) -> Step:
    names = ("id", "alert", "machine", "at", "what", "who", "text", "severity", "level", "label")
    return Step(**dict(zip(names, row[:-1], strict=True)), evidence=_evidence(row[-1]))


def _evidence(coded: bytes) -> tuple[Evidence, ...]:
    return msgspec.json.decode(coded, type=tuple[Evidence, ...])


def _check_text(what: str, text: str) -> None:
    if not 0 < len(text) <= MAX_TEXT or not text.isprintable() or text != text.strip():
        raise BookError(f"{what}: expected 1 to {MAX_TEXT} printable characters, got {text[:MAX_TEXT]!r}")


def _who(who: str) -> str:
    """As far as it can be shown."""
    return "".join(c for c in who if c.isprintable())[:MAX_TEXT] or "unknown"
