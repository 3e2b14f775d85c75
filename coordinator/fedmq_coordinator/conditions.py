"""What gateways tell of their machines: put on record, answered, and what follows from it.

Owns how far each gateway has told, orders for alerts until a gateway says that they are done, the fleet's limits until
a gateway says that it has them, and the fleet's drift. Writes into the ledger's running transaction; answers wait in
the outbox for the commit. Refuses to know how limits and drift are decided (`fleet`), and seals: who speaks is the
topic's gateway, and what it says changes rows of its own alone.

What is lost heals: a gateway hears in each answer, and in its welcome, what is on record; see `protocol/condition`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import msgspec
from fedmq_protocol.condition import (
    MAX_LIMITS,
    MAX_MACHINES,
    MAX_SPREADS,
    MAX_SUMMARIES,
    AlertOrder,
    AlertOrders,
    AlertState,
    AlertVerb,
    Condition,
    Done,
    FleetLimit,
    FleetLimits,
    MachineState,
    Noted,
    SpreadOf,
    SummaryOf,
    check_of_marks,
    limits_mark,
    mark_of,
)
from fedmq_protocol.sketch import Summary, SummaryError
from fedmq_protocol.topics import Channel

from fedmq_coordinator import fleet
from fedmq_coordinator.audit import Who
from fedmq_coordinator.ledger import Ledger, Order
from fedmq_coordinator.machines import (
    LOST,
    WAITING,
    Alert,
    Drift,
    FleetSpread,
    Limit,
    Machine,
    Spread,
    Summed,
    Watch,
    coded,
)
from fedmq_coordinator.outbox import Outbox
from fedmq_coordinator.roster import Roster
from fedmq_coordinator.settings import DriftSettings, FleetSettings
from fedmq_coordinator.tasks import AlertWish, OrderError

__all__ = ["Conditions", "order_key"]

log = logging.getLogger("fedmq.coordinator")

MOST_ALERTS = 1000
"""Of one gateway that are kept."""
AGAIN_SECONDS = 60.0
LONGEST_AGAIN_SECONDS = 3600.0
"""What a gateway has not answered is said again, after twice as long each time."""
LOOK_SECONDS = 60.0
"""Between two looks at the fleet's drift."""
ORDERS_AT_ONCE = 16


@dataclass(kw_only=True)
class _Repeat:
    """Of what one gateway is told until it says that it has it."""

    what: bytes
    at: float
    pause: float = AGAIN_SECONDS


class Conditions:
    """`note` puts into the audit log what came of an order: who gave it, what, of which alert, and the outcome."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        roster: Roster,
        outbox: Outbox,
        settings: FleetSettings,
        drift: DriftSettings,
        aside: Callable[[], Collection[str]] = frozenset,
        note: Callable[[Who, str, str, str], None] = lambda who, action, subject, outcome: None,
    ) -> None:
        self._ledger = ledger
        self._roster = roster
        self._outbox = outbox
        self._settings = settings
        self._drift = drift
        self._aside = aside
        self._note = note
        self._counters: dict[str, tuple[bytes, int]] = {}
        """Of each gateway its start, and the last message of that."""
        self._orders: dict[str, list[AlertOrder]] = {}
        self._look_for_orders = True
        self._said: dict[tuple[str, str], _Repeat] = {}
        """Orders and limits that were said, by gateway and which of the two."""
        self._summaries_changed = True
        self._drift_may_have_changed = True
        self._merged_at: float | None = None
        self._quantiles: dict[bytes, tuple[float, ...]] = {}
        """Of each summary, by its mark: a large fleet's are not read again each time."""
        self._looked_at: float | None = None
        self._limits = ledger.merged_limits()
        self._watches = {watch.gateway: watch for watch in ledger.watches()}
        self._owed: dict[str, tuple[bytes, tuple[FleetLimit, ...]]] = {}
        """Limits that a gateway lacks, with their mark."""
        self._unreckoned = set(self._watches)
        """Gateways of which it has to be seen which they lack."""

    # -- what a gateway says -----------------------------------------------------------------------------------

    def noted(self, gateway: str, counter: int | None = None) -> Noted | None:
        """What is on record of its machines; None where it has told of none."""
        watch = self._watches.get(gateway)
        if watch is None:
            return None
        marks = [
            *(one.mark for one in self._ledger.machines(gateway)),
            *(one.mark for one in self._ledger.summaries(gateway)),
            *(one.mark for one in self._ledger.spreads(gateway)),
        ]
        return Noted(book=watch.book, cursor=watch.cursor, check=check_of_marks(marks), counter=counter)

    def on_condition(self, gateway: str, message: Condition, size: int, now: float) -> None:
        known = self._roster.get(gateway)
        if known is None:
            log.info("%s tells of machines, and was never born", gateway)
            return
        nonce, last = self._counters.get(gateway, (b"", -1))
        if nonce != known.nonce or message.counter > last:
            self._counters[gateway] = (known.nonce, message.counter)
            self._take(gateway, message, size, now)
        # A repeat, or one that came late, changes nothing: what is on record is newer.
        answer = self.noted(gateway, message.counter)
        assert answer is not None  # a gateway that has told has a row
        self._outbox.command(gateway, Channel.CONDITION, answer)

    def _take(self, gateway: str, message: Condition, size: int, now: float) -> None:
        watch = self._watches.get(gateway)
        if watch is None or watch.book != message.book:
            if watch is not None:
                log.warning("%s has another alertbook: alerts of the one before are as they were told last", gateway)
                self._ledger.lose_alerts(gateway, message.book, LOST, WAITING)
            self._ledger.forget_told(gateway)
            messages, total = (0, 0) if watch is None else (watch.messages, watch.bytes)
            watch = Watch(
                gateway=gateway, book=message.book, cursor=0, heard_at=now, limits=b"", messages=messages, bytes=total
            )
        cursor = watch.cursor
        if message.since <= cursor < message.upto:
            for alert in message.alerts:
                self._ledger.save_alert(_alert(gateway, message.book, alert, now))
            if message.alerts:
                self._ledger.trim_alerts(gateway, MOST_ALERTS, WAITING)
            cursor = message.upto
        self._take_machines(gateway, message, now)
        for done in message.done:
            self._finish(gateway, done, now)
        watch = replace(
            watch,
            cursor=cursor,
            heard_at=now,
            limits=watch.limits if message.limits is None else message.limits,
            messages=watch.messages + 1,
            bytes=watch.bytes + size,
        )
        self._watches[gateway] = watch
        self._unreckoned.add(gateway)
        self._ledger.save_watch(watch)

    def _take_machines(self, gateway: str, message: Condition, now: float) -> None:
        if message.anew:
            self._ledger.forget_told(gateway)
        for name in message.gone:
            self._ledger.forget_machine(gateway, name)
        if message.machines:
            names = {one.name for one in self._ledger.machines(gateway)}
            for machine in message.machines:
                if machine.name in names or len(names) < MAX_MACHINES:
                    names.add(machine.name)
                    self._ledger.save_machine(_machine(gateway, machine, now))
        if message.summaries:
            places = {(one.kind, one.band, one.measure) for one in self._ledger.summaries(gateway)}
            for summary in message.summaries:
                place = (summary.kind, summary.band, summary.measure)
                if not summary.sketch:
                    self._ledger.forget_summary(gateway, *place)
                    continue
                if place not in places and len(places) >= MAX_SUMMARIES:
                    continue
                try:
                    count = Summary.from_bytes(summary.sketch).count
                except SummaryError as error:
                    log.warning("%s tells no summary of %s: %s", gateway, summary.measure, error)
                    self._ledger.count_refused(Channel.CONDITION.value, "no summary", len(summary.sketch))
                    continue
                places.add(place)
                self._ledger.save_summary(_summed(gateway, summary, count, now))
        if message.spreads:
            places = {(one.kind, one.band, one.measure) for one in self._ledger.spreads(gateway)}
            for spread in message.spreads:
                place = (spread.kind, spread.band, spread.measure)
                if not spread.shares:
                    self._ledger.forget_spread(gateway, *place)
                elif place in places or len(places) < MAX_SPREADS:
                    places.add(place)
                    self._ledger.save_spread(_spread(gateway, spread, now))
        if message.anew or message.summaries:
            self._summaries_changed = True
        if message.anew or message.machines or message.gone or message.spreads:
            self._drift_may_have_changed = True

    def dismissed(self, gateway: str) -> None:
        """It is believed no more: what it said is normal has no voice."""
        if gateway in self._watches:
            self._ledger.forget_told(gateway)
            self._summaries_changed = self._drift_may_have_changed = True

    # -- orders for alerts -------------------------------------------------------------------------------------

    def orders_changed(self) -> None:
        """Somebody may have ordered something."""
        self._look_for_orders = True

    def welcomed(self, gateway: str) -> None:
        """It is here anew: what it has not answered is said at once."""
        for what in ("orders", "limits"):
            self._said.pop((gateway, what), None)

    def _finish(self, gateway: str, done: Done, now: float) -> None:
        for order in self._ledger.alert_orders_waiting():
            if order.task.partition("/")[0] == gateway and order_key(order) == done.key:
                result = done.text or ("done" if done.done else "it could not be carried out")
                self._end(order, done=done.done, result=result, now=now)
                return

    def _end(self, order: Order, *, done: bool, result: str, now: float) -> None:
        try:
            by = AlertWish.read(order).by
        except OrderError:
            by = None
        who = by or Who(user="unknown", uid=-1, how="local")
        text = f"done: {result}" if done else f"could not be carried out: {result}"
        self._note(who, order.verb, f"alert {order.task}", text)
        self._ledger.finish_order(order.id, at=now, done=done, result=result)
        self._look_for_orders = True

    def _read_orders(self, now: float) -> None:
        self._look_for_orders = False
        self._orders = {}
        for order in self._ledger.alert_orders_waiting():
            gateway, _, number = order.task.partition("/")
            watch = self._watches.get(gateway)
            try:
                wish = AlertWish.read(order)
                if watch is None or wish.book != watch.book or not number.isdecimal():
                    raise OrderError("that alert is in no book any more: the gateway has begun another one")
                told = AlertOrder(
                    key=order_key(order),
                    book=wish.book,
                    alert=int(number),
                    what=msgspec.convert(order.verb, AlertVerb),
                    fault=wish.fault,
                    who=wish.said_by,
                    at=int(order.at),
                )
            except OrderError as error:
                self._end(order, done=False, result=str(error), now=now)
                continue
            self._orders.setdefault(gateway, []).append(told)

    # -- what is due -------------------------------------------------------------------------------------------

    def proceed(self, now: float) -> list[Drift | FleetSpread] | None:
        """Says what is to be said; returns kinds of machines and measures whose drift has lasted, for tasks to heed;
        None where nobody has looked."""
        if self._look_for_orders:
            self._read_orders(now)
        for gateway, orders in self._orders.items():
            first = tuple(orders[:ORDERS_AT_ONCE])
            if self._is_due(gateway, "orders", first[-1].key, now):
                self._outbox.command(gateway, Channel.CONDITION, AlertOrders(orders=first))
        self._merge(now)
        for gateway in self._unreckoned:
            self._reckon(gateway)
        self._unreckoned.clear()
        for gateway, (mark, limits) in self._owed.items():
            if self._is_due(gateway, "limits", mark, now):
                self._outbox.command(gateway, Channel.CONDITION, FleetLimits(limits=limits))
        return self._look_at_drift(now)

    def _reckon(self, gateway: str) -> None:
        """Whether it lacks limits that are for it."""
        watch = self._watches[gateway]
        wanted = self._limits_for(gateway)
        mark = limits_mark(wanted)
        self._owed.pop(gateway, None)
        if mark != watch.limits and (wanted or watch.limits):
            self._owed[gateway] = (mark, wanted)

    def _is_due(self, gateway: str, what: str, mark: bytes, now: float) -> bool:
        known = self._roster.get(gateway)
        if known is None or not known.present:
            return False
        said = self._said.get((gateway, what))
        if said is None or said.what != mark:
            self._said[gateway, what] = _Repeat(what=mark, at=now + AGAIN_SECONDS)
            return True
        if now < said.at:
            return False
        said.pause = min(2 * said.pause, LONGEST_AGAIN_SECONDS)
        said.at = now + said.pause
        return True

    def _merge(self, now: float) -> None:
        if not self._summaries_changed:
            return
        if self._merged_at is not None and 0 <= now - self._merged_at < self._settings.merge_minutes * 60:
            return
        self._summaries_changed, self._merged_at = False, now
        found: list[Limit] = []
        if self._settings.limits:
            found = fleet.limits(
                self._ledger.summaries(),
                self._limits,
                least_gateways=self._settings.min_gateways,
                aside=self._aside(),
                now=now,
                known=self._quantiles,
            )
            marks = {one.mark for one in self._ledger.summaries()}
            self._quantiles = {mark: one for mark, one in self._quantiles.items() if mark in marks}
        if found != self._limits:
            self._limits = found
            self._ledger.save_merged(found)
            self._unreckoned.update(self._watches)

    def _limits_for(self, gateway: str) -> tuple[FleetLimit, ...]:
        kinds = {one.kind for one in self._ledger.machines(gateway)}
        mine = [one for one in self._limits if one.kind in kinds]
        return tuple(
            FleetLimit(
                kind=one.kind,
                band=one.band,
                measure=one.measure,
                gateways=one.gateways,
                quantiles=one.quantiles,
            )
            for one in mine[:MAX_LIMITS]
        )

    def _look_at_drift(self, now: float) -> list[Drift | FleetSpread] | None:
        if self._looked_at is not None and 0 <= now - self._looked_at < LOOK_SECONDS:
            return None
        self._looked_at = now
        drifts, spreads = self._ledger.fleet_drifts(), self._ledger.fleet_spreads()
        if self._drift_may_have_changed:
            self._drift_may_have_changed = False
            before = drifts, spreads
            drifts = fleet.drifts(
                self._ledger.machines(),
                drifts,
                share=self._drift.share,
                least_gateways=self._drift.min_gateways,
                now=now,
            )
            spreads = fleet.spreads(
                self._ledger.spreads(),
                spreads,
                index=self._drift.index,
                least_gateways=self._drift.min_gateways,
                aside=self._aside(),
                now=now,
            )
            if (drifts, spreads) != before:
                self._ledger.save_fleet_drifts(drifts)
                self._ledger.save_fleet_spreads(spreads)
        every: list[Drift | FleetSpread] = [*drifts, *spreads]
        return [one for one in every if one.since is not None and now - one.since >= self._drift.hours * 3600]


def order_key(order: Order) -> bytes:
    """By which a gateway knows an order again, also after the coordinator has come back from a backup."""
    text = f"{order.id} {order.at!r} {order.verb} {order.task}".encode() + order.details
    return hashlib.blake2b(text, digest_size=8).digest()


def _alert(gateway: str, book: bytes, told: AlertState, now: float) -> Alert:
    return Alert(
        gateway=gateway,
        book=book,
        number=told.number,
        machine=told.machine,
        sensor=told.sensor,
        kind=told.kind,
        state=told.state,
        severity=told.severity,
        level=told.level / 100,
        label=told.label,
        verdict=told.verdict,
        opened_at=float(told.opened_at),
        from_at=float(told.from_at),
        to_at=None if told.to_at is None else float(told.to_at),
        heard_at=now,
        coded_evidence=msgspec.msgpack.encode(told.evidence),
    )


def _machine(gateway: str, told: MachineState, now: float) -> Machine:
    return Machine(
        gateway=gateway,
        name=told.name,
        kind=told.kind,
        state=told.state,
        zone=told.zone,
        learnt_pct=told.learnt_pct,
        level=told.level / 100,
        at=float(told.at),
        drift="\n".join(told.drift),
        event=told.event,
        baseline_at=None if told.baseline_at is None else float(told.baseline_at),
        heard_at=now,
        mark=mark_of(told),
    )


def _spread(gateway: str, told: SpreadOf, now: float) -> Spread:
    return Spread(
        gateway=gateway,
        kind=told.kind,
        band=told.band,
        measure=told.measure,
        machines=told.machines,
        windows=told.windows,
        coded_shares=coded(told.shares),
        heard_at=now,
        mark=mark_of(told),
    )


def _summed(gateway: str, told: SummaryOf, count: int, now: float) -> Summed:
    return Summed(
        gateway=gateway,
        kind=told.kind,
        band=told.band,
        measure=told.measure,
        count=count,
        heard_at=now,
        sketch=told.sketch,
        mark=mark_of(told),
    )
