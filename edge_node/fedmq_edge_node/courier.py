"""What a gateway tells the coordinator of the machines that a watch beside it judges, and what it brings back for them.

Owns what is worth a message, and when. The gateway has the federation's connection, the watch has the book; the courier
reads the one and speaks by the other. Refuses to know topics, seals and sockets. Times are arguments: `now` is any
steady clock in seconds.

- No change, no bytes. Alerts are told as they change, with `LEAST_SECONDS` between two messages; machines and what is
  normal at most every `every_seconds`, and only what is another state, zone, tenth of learning, or a level that has
  moved by a fifth of its limit. How values lie among the tenths of what is normal is known once a day, and told where a
  tenth has come to hold 2 % more of them, or fewer.
- One message is on its way at a time. It is said again, as things are by then, after a pause that doubles.
- Orders are carried out in the book, each once, whatever comes twice; see `Alertbook.obey`.
- Without a book (no watch has run yet) or with one that cannot be read, nothing is said, and it is looked for again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from fedmq_protocol.condition import (
    MAX_ALERTS,
    MAX_EVIDENCE,
    MAX_MACHINES,
    MAX_SKETCH_BYTES,
    MAX_SPREADS,
    MAX_SUMMARIES,
    AlertOrders,
    AlertState,
    Condition,
    Done,
    FleetLimits,
    MachineState,
    Measured,
    Noted,
    SpreadOf,
    SummaryOf,
    check_of_marks,
    limits_mark,
    mark_of,
    quantiles_of,
    to_trend,
)
from fedmq_protocol.sketch import Summary
from fedmq_protocol.spread import mean, per_mille

from fedmq_edge_node.alertbook import Alert, Alertbook, BookError
from fedmq_edge_node.watching import Learnt, learnt

__all__ = ["Courier"]

log = logging.getLogger("fedmq.gateway")

LEAST_SECONDS = 5.0
"""Between two messages, and between two looks."""
AGAIN_SECONDS = 30.0
LONGEST_AGAIN_SECONDS = 3600.0
MOST_BYTES = 12_000
"""Of what is gathered for one message."""
MOST_AT_ONCE = 64
HISTORY = 256
"""Alerts, the newest, that a coordinator hears of which has none on record."""
NOTABLE_LEVEL = 20
"""In hundredths of the limit."""
NOTABLE_SHARE = 20
"""Per mille of the windows."""
GROWN = 1.25
"""By which a summary must have grown to be told again."""

_Row = MachineState | SummaryOf | SpreadOf
_Place = tuple[str, str, str]
"""Kind of machine, band, measure."""


class Courier:
    """Of the book at `path`. `step` gives what is to be sent; what comes is handed to the other methods."""

    def __init__(self, path: Path, *, every_seconds: float = 60.0) -> None:
        self._path = path
        self._every_seconds = every_seconds
        self._book: Alertbook | None = None
        self._file: tuple[int, int] | None = None
        """Which one is open: another may take its place."""
        self._complained = False
        self._counter = 0
        self._mark: bytes | None = None
        """Of the book that was told of last."""
        self._heard = False
        """Whether the coordinator has said on this connection what it has."""
        self._cursor = 0
        self._known: dict[str, _Row] = {}
        """What it has of machines, summaries and spreads, by their keys."""
        self._anew = False
        self._pending: tuple[Noted | None, bool] | None = None
        """What the coordinator has, while there is no book to hold it against; and whether that is the first word."""
        self._unsure: Noted | None = None
        """After a start: what is on record, to be held against what there is."""
        self._on_its_way: tuple[Condition, dict[str, _Row | None]] | None = None
        self._again_at = 0.0
        self._pause = AGAIN_SECONDS
        self._look_at = 0.0
        self._rows_at = 0.0
        self._anew_at = 0.0
        self._anew_pause = AGAIN_SECONDS
        self._done: dict[bytes, Done] = {}
        self._limits: bytes | None = None
        """Mark of the limits that were put into the book, until the coordinator knows."""

    # -- what comes --------------------------------------------------------------------------------------------

    def disconnected(self) -> None:
        self._heard, self._on_its_way = False, None

    def welcomed(self, noted: Noted | None, now: float) -> None:
        """What the coordinator has on record, as its welcome tells."""
        self._heard, self._on_its_way = True, None
        self._look_at = self._rows_at = now
        self._pause = AGAIN_SECONDS
        self._take(noted, now, starting=not self._known)

    def noted(self, noted: Noted, now: float) -> None:
        """The answer to what was sent; one to something older changes nothing."""
        if self._on_its_way is None or noted.counter != self._on_its_way[0].counter:
            return
        message, rows = self._on_its_way
        self._on_its_way, self._pause = None, AGAIN_SECONDS
        if message.anew:
            self._known, self._anew = {}, False
        for key, row in rows.items():
            if row is None:
                self._known.pop(key, None)
            else:
                self._known[key] = row
        for done in message.done:
            self._done.pop(done.key, None)
        if message.limits == self._limits:
            self._limits = None
        self._look_at = now + LEAST_SECONDS
        self._take(noted, now, starting=False)

    def _take(self, noted: Noted | None, now: float, *, starting: bool) -> None:
        book = self._open()
        if book is None:
            # What there is to tell is seen once there is a book.
            self._pending = noted, starting
            return
        try:
            self._hold_against(book, noted, now, starting=starting)
        except BookError as error:
            self._pending = noted, starting
            self._fail(error)

    def _hold_against(self, book: Alertbook, noted: Noted | None, now: float, *, starting: bool) -> None:
        self._pending = None
        if noted is None or noted.book != _mark_of(book):
            self._cursor, self._known = 0, {}
            self._anew = noted is not None and noted.counter is None
            return
        if noted.cursor > book.changes():
            # The book is an older copy of itself: what it counts from here on is something else.
            log.warning("%s is older than what the coordinator has of it: it is told as another book", self._path)
            book.be_another()
            self._cursor, self._known, self._anew = 0, {}, False
            return
        self._cursor = noted.cursor
        if starting:
            self._unsure = noted
        elif noted.check != _check(self._known) and not self._anew:
            # Not at once each time: were there a reason that stays, it must not be said for ever.
            self._anew, self._anew_at = True, now + self._anew_pause
            self._anew_pause = min(2 * self._anew_pause, LONGEST_AGAIN_SECONDS)
        elif not self._anew:
            self._anew_pause = AGAIN_SECONDS

    def orders(self, message: AlertOrders, now: float) -> None:
        """What people have said of alerts. What cannot be written now is ordered again."""
        book = self._open()
        if book is None:
            return
        try:
            for order in message.orders:
                if order.book != _mark_of(book):
                    text = "the gateway has another alertbook now"
                    self._done[order.key] = Done(key=order.key, done=False, text=text)
                    continue
                done, text = book.obey(
                    order.key.hex(), order.alert, order.what, order.fault, who=order.who, at=float(order.at)
                )
                self._done[order.key] = Done(key=order.key, done=done, text=_word(text, 200))
        except BookError as error:
            self._fail(error)
        self._look_at = min(self._look_at, now)

    def limits(self, message: FleetLimits, now: float) -> None:
        """The fleet's limits, for the watch to go by while it learns."""
        book = self._open()
        if book is None:
            return
        usable = []
        for one in message.limits:
            values = quantiles_of(one.quantiles)
            if all(math.isfinite(value) and value >= 0 for value in values):
                usable.append({"kind": one.kind, "band": one.band, "measure": one.measure, "quantiles": list(values)})
        try:
            book.keep_fleet_limits(usable)
        except BookError as error:
            self._fail(error)
            return
        self._limits = limits_mark(message.limits)
        self._look_at = min(self._look_at, now)

    # -- what goes ---------------------------------------------------------------------------------------------

    def step(self, now: float) -> Condition | None:
        """What is to be sent now; None most of the time."""
        if not self._heard or now < self._look_at:
            return None
        if self._on_its_way is not None:
            if now < self._again_at:
                return None
            # As things are by now, with a number of its own.
            self._on_its_way, self._pause = None, min(2 * self._pause, LONGEST_AGAIN_SECONDS)
        self._look_at = now + LEAST_SECONDS
        book = self._open()
        if book is None:
            return None
        try:
            if self._pending is not None:
                noted, starting = self._pending
                self._hold_against(book, noted, now, starting=starting)
            message = self._compose(book, now)
        except (BookError, ValueError, msgspec.MsgspecError) as error:
            self._fail(error)
            return None
        self._complained = False
        return message

    def _compose(self, book: Alertbook, now: float) -> Condition | None:
        if self._mark not in (None, _mark_of(book)):
            # Another book since the coordinator spoke: all of it is news, by its own count.
            self._cursor, self._known, self._anew, self._unsure = 0, {}, False, None
        self._mark = _mark_of(book)
        room = MOST_BYTES
        alerts: list[AlertState] = []
        newest = book.changes()
        upto = newest
        for change, alert in book.changed_alerts(self._cursor, MAX_ALERTS + 1, history=HISTORY):
            state = _alert(alert)
            size = len(msgspec.msgpack.encode(state))
            if len(alerts) == MAX_ALERTS or size > room:
                break
            room -= size
            alerts.append(state)
            upto = change
        else:
            upto = newest
        rows: dict[str, _Row | None] = {}
        anew = self._anew and now >= self._anew_at
        if now >= self._rows_at or anew:
            self._rows_at = now + self._every_seconds
            rows = self._changed(book, anew, room)
        done = tuple(self._done.values())[:16]
        if not (alerts or rows or done or anew or self._limits is not None):
            return None
        self._counter += 1
        machines = tuple(row for row in rows.values() if isinstance(row, MachineState))
        gone = [self._known[key] for key, row in rows.items() if row is None]
        # Of a summary or a spread that is gone nothing is what is told.
        told = [*rows.values(), *(_emptied(row) for row in gone if not isinstance(row, MachineState))]
        message = Condition(
            counter=self._counter,
            book=_mark_of(book),
            since=self._cursor,
            upto=max(upto, self._cursor),
            alerts=tuple(alerts),
            anew=anew,
            machines=machines,
            gone=tuple(row.name for row in gone if isinstance(row, MachineState)),
            summaries=tuple(row for row in told if isinstance(row, SummaryOf)),
            done=done,
            limits=self._limits,
            spreads=tuple(row for row in told if isinstance(row, SpreadOf)) or None,
        )
        self._on_its_way = message, rows
        self._again_at = now + self._pause
        return message

    def _changed(self, book: Alertbook, anew: bool, room: int) -> dict[str, _Row | None]:
        """Machines, summaries and spreads that are others than what is known, as many as there is room for; None: it is
        gone."""
        current = _rows(book)
        if self._unsure is not None:
            if self._unsure.check == _check(current):
                self._known = dict(current)
            elif self._unsure.check != bytes(8):
                self._anew, anew = True, True
            self._unsure = None
        known = {} if anew else self._known
        gone = [key for key in known if key not in current]
        found: dict[str, _Row | None] = dict.fromkeys(gone[:MOST_AT_ONCE])
        if len(gone) > MOST_AT_ONCE:
            self._rows_at = 0.0  # the rest goes next
        for key, row in current.items():
            if not _tells_more(known.get(key), row):
                continue
            size = len(msgspec.msgpack.encode(row))
            if size > room or len(found) >= MOST_AT_ONCE:
                self._rows_at = 0.0  # the rest goes next
                break
            room -= size
            found[key] = row
        return found

    def _open(self) -> Alertbook | None:
        if self._book is not None and _file(self._path) != self._file:
            log.info("%s is another file now", self._path)
            self._book.close()
            self._book = None
        if self._book is None:
            try:
                self._file = _file(self._path)
                self._book = Alertbook.existing(self._path)
            except BookError as error:
                self._fail(error)
        return self._book

    def _fail(self, error: Exception) -> None:
        if not self._complained:
            log.warning("nothing is told of machines for now: %s", error)
        self._complained = True
        if self._book is not None:
            self._book.close()
            self._book = None


# -- rows ------------------------------------------------------------------------------------------------------


def _file(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _mark_of(book: Alertbook) -> bytes:
    return bytes.fromhex(book.told_as())


def _check(rows: Mapping[str, _Row]) -> bytes:
    return check_of_marks(mark_of(row) for row in rows.values())


def _tells_more(before: _Row | None, now: _Row) -> bool:
    if before is None:
        return True
    if isinstance(before, MachineState) and isinstance(now, MachineState):
        return mark_of(before) != mark_of(now) or abs(before.level - now.level) >= NOTABLE_LEVEL
    if isinstance(before, SummaryOf) and isinstance(now, SummaryOf) and before != now:
        then, since = (Summary.from_bytes(one.sketch).count for one in (before, now))
        return since < then or since >= GROWN * then
    if isinstance(before, SpreadOf) and isinstance(now, SpreadOf):
        pairs = zip(before.shares, now.shares, strict=True)
        return mark_of(before) != mark_of(now) or any(abs(then - since) >= NOTABLE_SHARE for then, since in pairs)
    return False


def _emptied(row: SummaryOf | SpreadOf) -> SummaryOf | SpreadOf:
    if isinstance(row, SpreadOf):
        return msgspec.structs.replace(row, shares=())
    return msgspec.structs.replace(row, sketch=b"")


def _rows(book: Alertbook) -> dict[str, _Row]:
    """Every machine; and of those of a kind, as far as it is learnt, what is normal and how they hold to it."""
    rows: dict[str, _Row] = {}
    merged: dict[_Place, Summary] = {}
    held: dict[_Place, dict[str, list[Learnt]]] = {}
    for name, standing in list(book.standings().items())[:MAX_MACHINES]:
        kind = _text(str(standing.get("kind") or "machine"), 64)
        drifting: set[str] = set()
        for one in learnt(book.normals(name)):
            if one.drifting:
                drifting.add(one.measure.partition(" of version ")[0])
            if one.shared:
                place = (kind, one.band, one.measure)
                merged[place] = merged.get(place, Summary()).merge(one.summary)
                if one.spread:
                    held.setdefault(place, {}).setdefault(name, []).append(one)
        rows[f"machine {name}"] = _machine(name, kind, standing, drifting)
    for kind, band, measure in sorted(merged)[:MAX_SUMMARIES]:
        sketch = merged[kind, band, measure].to_bytes()
        if len(sketch) <= MAX_SKETCH_BYTES:
            rows[f"summary {kind}\n{band}\n{measure}"] = SummaryOf(
                kind=kind, band=_word(band, 64), measure=_text(measure, 160), sketch=sketch
            )
    for place in sorted(held)[:MAX_SPREADS]:
        rows["spread " + "\n".join(place)] = _spread(place, list(held[place].values()))
    return rows


def _spread(place: _Place, machines: Sequence[Sequence[Learnt]]) -> SpreadOf:
    """Each machine weighs alike, and each of its sensors in it."""
    kind, band, measure = place
    weights = [(1 / len(machines) / len(sensors), one) for sensors in machines for one in sensors]
    return SpreadOf(
        kind=kind,
        band=_word(band, 64),
        measure=_text(measure, 160),
        machines=len(machines),
        # Variances add up, by the squares of the weights.
        windows=max(1, int(1 / sum(weight**2 / one.windows for weight, one in weights))),
        shares=per_mille(mean([mean([one.spread for one in sensors]) for sensors in machines])),
    )


def _machine(name: str, kind: str, standing: Mapping[str, Any], drifting: set[str]) -> MachineState:
    learning = standing.get("learning") or {}
    wanted = max(1, int(learning.get("wanted", 1)))
    share = 100 if learning.get("done") else min(99, 100 * int(learning.get("windows", 0)) // wanted)
    baseline_at = standing.get("baseline_at")
    return MachineState(
        name=_text(name, 64),
        kind=kind,
        state=_word(str(standing.get("state", "")), 16),
        zone=standing.get("zone"),
        learnt_pct=share,
        level=_hundredths(max((standing.get("levels") or {}).values(), default=0.0)),
        at=_seconds(standing.get("at", 0.0)),
        drift=tuple(_text(one, 160) for one in sorted(drifting)[:8]),
        event=None if standing.get("event") is None else _text(standing["event"], 64),
        baseline_at=None if baseline_at is None else _seconds(baseline_at),
    )


def _alert(alert: Alert) -> AlertState:
    opened_at = _seconds(alert.opened_at)
    evidence = tuple(
        Measured(
            name=_text(one.name, 160),
            value=_finite(one.value),
            limit=_finite(one.limit),
            unit=_word(one.unit, 64),
            was=None if one.was is None else _finite(one.was),
            trend=to_trend(one.trend, opened_at) if place == 0 else b"",
            by=_word(one.by, 64),
        )
        for place, one in enumerate(alert.evidence[:MAX_EVIDENCE])
    )
    return AlertState(
        number=alert.id,
        machine=_text(alert.machine, 64),
        kind=alert.kind,
        state=alert.state,
        severity=alert.severity,
        level=_hundredths(alert.level),
        sensor=_word(alert.sensor, 64),
        label=None if alert.label is None else _text(alert.label, 64),
        verdict=None if alert.verdict is None else _text(alert.verdict, 64),
        opened_at=opened_at,
        from_at=_seconds(alert.from_at),
        to_at=None if alert.to_at is None else _seconds(alert.to_at),
        evidence=evidence,
    )


def _text(text: str, most: int) -> str:
    return _word(text, most) or "?"


def _word(text: str, most: int) -> str:
    """May be empty."""
    return "".join(c for c in text if c.isprintable())[:most]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _hundredths(level: float) -> int:
    return int(min(max(round(100 * _finite(level)), 0), 1 << 30))


def _seconds(at: float) -> int:
    return int(min(max(_finite(at), 0.0), float(1 << 33)))
