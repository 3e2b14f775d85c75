"""The loop of a watch: what the store has that is new is judged, written to the book, and told.

Owns the order of things. What is judged how is `watching`'s, what is durable is `alertbook`'s. One turn:

1. Orders: verdicts and events that people noted in the book. What they do to the store's labels and to kept recordings
   can be done again; that they are done is written last, with the machine's state.
2. Models: the gateway's memory is looked at where its file has changed.
3. Windows, in the order of their time. News is written at once, in one transaction with how far each sensor has been
   judged; progress without news every `commit_seconds`.
4. Recordings of alerts are kept.
5. What waits to be told is told: to the site's broker here, which is never waited for; to web and mail servers by a
   thread each (`telling`), so that a slow one holds no judging up.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from fedmq_edge_node.alarms import Outcome
from fedmq_edge_node.alertbook import Alert, Alertbook, Order, Position
from fedmq_edge_node.machines import Machine
from fedmq_edge_node.thresholds import limit_of
from fedmq_edge_node.watching import Drift, Model, Seen, Watcher, WatchPolicy
from fedmq_firmware_bridge.store import SET_ASIDE, UNLABELLED, Store, StoreError
from fedmq_protocol.condition import QUANTILES, is_other

from fedmq.watch.feeding import feed
from fedmq.watch.kept import ASIDE, Kept
from fedmq.watch.outputs import MqttOutput, Output, deliver, state_of
from fedmq.watch.telling import Teller

__all__ = ["CRASH_POINTS", "Watch"]

log = logging.getLogger("fedmq.watch")

CRASH_POINTS = (
    *("before commit", "after commit", "before label", "after label", "before keep", "after keep"),
    *("before message", "after message", "before send", "after send", "after sent"),
)
MODELS_SECONDS = 30.0
FINISH_SECONDS = 10.0
EVER = 0.0


class Watch:
    """`run` until `stopping`; or `turn` after turn, as tests do, which tells every output itself, one by one.

    Raises StoreError without a store.
    """

    def __init__(
        self,
        *,
        book: Alertbook,
        store: Path,
        machines: Mapping[str, Machine],
        policy: WatchPolicy,
        kept: Kept,
        window_seconds: float,
        every_seconds: float,
        poll_seconds: float = 5.0,
        commit_seconds: float = 60.0,
        models: Callable[[], Sequence[Model] | None] = lambda: None,
        outputs: Sequence[Output] = (),
        unix: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        crash_point: Callable[[str], None] = lambda name: None,
        holds: object = None,
    ) -> None:
        """`holds` is kept as long as the watch is: the lock of its folder."""
        self.stopping = False
        self._holds = holds
        self._book = book
        self._store = Store(store)
        self._machines = dict(machines)
        self._policy = policy
        self._kept = kept
        self._window_seconds = window_seconds
        self._every_seconds = every_seconds
        self._poll_seconds = poll_seconds
        self._commit_seconds = commit_seconds
        self._models = models
        self._outputs = tuple(outputs)
        self._tellers: list[Teller] = []
        """While it runs, of the outputs that may take their time."""
        self._unix = unix
        self._monotonic = monotonic
        self._crash_point = crash_point
        self._positions = book.positions()
        self._watchers = {name: Watcher(machine, policy) for name, machine in self._machines.items()}
        saved = book.parts()
        for name, watcher in self._watchers.items():
            watcher.load(saved.get(name, {}))
        self._standings: dict[str, dict[str, Any]] = {
            name: one for name, one in book.standings().items() if name in self._machines
        }
        self._moved: dict[str, Position] = {}
        """Positions that the book does not have yet."""
        self._touched: set[str] = set()
        """Machines whose state the book does not have yet."""
        self._committed_at = monotonic()
        self._models_at: float | None = None
        self._fleet = ""
        """The fleet's limits that the watchers go by, as the book has them."""
        self._mark: tuple[int, int, int] | None = None
        self._settled: set[int] = set()
        """Alerts of which is kept what can be."""
        book.tell({output.name: list(output.tells) for output in outputs})

    def run(self, *, until_done: bool = False) -> None:
        """Until it is to stop; `until_done`: or until there is nothing more to judge, and what could be told is."""
        for output in self._outputs:
            if isinstance(output, MqttOutput):
                output.start()
            else:
                self._tellers.append(
                    Teller(self._book.path, output, unix=self._unix, crash_point=self._crash_point),
                )
        for teller in self._tellers:
            teller.start()
        try:
            while not self.stopping:
                busy = self.turn()
                if until_done and not busy:
                    self._finish()
                    break
                self._wait(0.0 if busy else self._poll_seconds)
            self._commit()
        finally:
            for teller in self._tellers:
                teller.stop()
            self._tellers.clear()
            for output in self._outputs:
                if isinstance(output, MqttOutput):
                    output.stop()

    def _finish(self) -> None:
        """What is due now is sent; what waits for a limit or another try stays in the book."""
        until = self._monotonic() + FINISH_SECONDS
        looks = [(teller, teller.look()) for teller in self._tellers]
        while self._monotonic() < until and (
            any(self._book.due(output.name, self._unix()) for output in self._outputs)
            or not all(teller.looked(number) for teller, number in looks)
        ):
            self._tell()
            self._wait(0.05)

    def turn(self) -> bool:
        """Whether there is more to judge already."""
        self._take_orders()
        self._look_at_models()
        busy = self._judge()
        self._keep()
        self._tell()
        return busy

    # -- orders ------------------------------------------------------------------------------------------------

    def _take_orders(self) -> None:
        for order in self._book.orders():
            try:
                self._take(order)
            except StoreError as error:
                # In their order: the next ones wait too, and nothing of this one is forgotten.
                log.error("%s: %s %s is not done yet: %s", order.machine, order.what, order.detail, error)
                return

    def _take(self, order: Order) -> None:
        watcher = self._watchers.get(order.machine)
        outcomes: Sequence[Outcome] = ()
        if order.what == "event":
            self._crash_point("before label")
            set_aside(self._store, order, self._policy.healthy, self._unix())
            self._crash_point("after label")
            self._set_aside_kept(order)
            if watcher is not None:
                outcomes = watcher.baseline(order.at, order.detail)
        else:
            self._label(order)
            if watcher is not None and order.alert is not None:
                alert = self._book.alert(order.alert)
                fault = order.detail if order.what == "confirmed" else None
                watcher.verdict(alert.kind, fault=fault, label=alert.label)
        if watcher is not None:
            self._touched.add(order.machine)
        self._commit(outcomes=outcomes, orders=[order.id])
        log.info("%s: %s %s by %s: done", order.machine, order.what, order.detail, order.who)

    def _label(self, order: Order) -> None:
        """The verdict becomes the label of the alert's windows, in the store and of what is kept."""
        assert order.alert is not None
        alert = self._book.alert(order.alert)
        label = self._label_of(order.what, order.detail)
        if self._is_aside(alert, healthy=order.what == "dismissed"):
            self._kept.name(alert.id, ASIDE)
            return
        to_at = alert.to_at if alert.to_at is not None else max(order.at, alert.from_at)
        span = (alert.machine, alert.from_at, max(to_at, alert.from_at + self._window_seconds), label)
        self._crash_point("before label")
        if span not in self._store.labels()[-1:]:
            self._store.label(*span, noted_at=self._unix())
        self._crash_point("after label")
        self._kept.name(alert.id, _folder(label))

    def _label_of(self, state: str, verdict: str) -> str:
        """What a verdict makes of windows: healthy, a class, or neither."""
        if state == "dismissed":
            return self._policy.healthy
        return SET_ASIDE if is_other(verdict) else verdict

    def _is_aside(self, alert: Alert, *, healthy: bool) -> bool:
        """Whether an event since has taken its windows out of training, whatever is said of them."""
        watcher = self._watchers.get(alert.machine)
        if watcher is None or alert.from_at >= watcher.baseline_at:
            return False
        return healthy or watcher.event == "sensor-moved"

    def _set_aside_kept(self, order: Order) -> None:
        """What was kept of the machine before, in the same way."""
        for alert in self._book.alerts(machine=order.machine):
            if alert.from_at < order.at and (alert.state == "dismissed" or order.detail == "sensor-moved"):
                self._kept.name(alert.id, ASIDE)

    # -- judging -----------------------------------------------------------------------------------------------

    def _look_at_models(self) -> None:
        now = self._monotonic()
        if self._models_at is not None and now - self._models_at < MODELS_SECONDS:
            return
        self._models_at = now
        models = self._models()
        if models is not None:
            for watcher in self._watchers.values():
                watcher.use(models)
            self._touched |= self._watchers.keys()
        self._look_at_fleet()

    def _look_at_fleet(self) -> None:
        """Limits that the gateway has brought from the coordinator."""
        told = self._book.fleet_limits()
        if told != self._fleet:
            self._fleet = told
            for watcher in self._watchers.values():
                watcher.heed(fleet_limits(told, watcher.machine.kind, self._policy))

    def _judge(self) -> bool:
        with self._store.snapshot():
            mark = self._store.mark()
        if mark == self._mark:
            self._commit_now_and_then()
            return False
        judged = False
        with self._store.snapshot():
            every = list(
                feed(
                    self._store,
                    self._machines,
                    self._positions,
                    window_seconds=self._window_seconds,
                    every_seconds=self._every_seconds,
                )
            )
        for one in every:
            judged = True
            self._positions[one.key] = self._moved[one.key] = one.position
            if one.window is None:
                continue
            watcher = self._watchers[one.machine]
            try:
                seen = watcher.step(one.window)
            except ValueError as error:
                log.warning("%s: a window of %s cannot be judged: %s", one.machine, one.window.sensor, error)
                continue
            self._touched.add(one.machine)
            self._standings[one.machine] = standing(watcher, seen, self._standings.get(one.machine, {}))
            if seen.outcomes or seen.drift:
                self._commit(outcomes=seen.outcomes, drifts=seen.drift)
        if not judged:
            self._mark = mark
        self._commit_now_and_then()
        return judged

    def _commit_now_and_then(self) -> None:
        if self._moved and self._monotonic() - self._committed_at >= self._commit_seconds:
            self._commit()

    def _commit(
        self, *, outcomes: Sequence[Outcome] = (), drifts: Sequence[Drift] = (), orders: Sequence[int] = ()
    ) -> None:
        if not (outcomes or drifts or orders or self._moved or self._touched):
            return
        opened = self._book.step(
            at=self._unix(),
            positions=self._moved,
            parts={name: self._watchers[name].dump() for name in self._touched},
            outcomes=outcomes,
            drifts=drifts,
            standings={name: self._standings[name] for name in self._touched if name in self._standings},
            orders=orders,
            crash_point=self._crash_point if outcomes or orders else lambda name: None,
        )
        self._moved, self._touched = {}, set()
        self._committed_at = self._monotonic()
        for number in opened:
            alert = self._book.alert(number)
            log.warning("%s: alert %d: %s, %s", alert.machine, number, alert.kind, alert.label or alert.severity)

    # -- what is kept and told ---------------------------------------------------------------------------------

    def _keep(self) -> None:
        for alert in self._book.alerts()[:MOST_KEPT_AT_ONCE]:
            machine = self._machines.get(alert.machine)
            if machine is None or alert.id in self._settled:
                continue
            if not self._kept.due(alert, self._standings.get(alert.machine, {}).get("at", 0.0)):
                continue
            folder = None
            if alert.state in ("confirmed", "dismissed"):
                folder = _folder(self._label_of(alert.state, alert.verdict or ""))
            if self._is_aside(alert, healthy=alert.state == "dismissed"):
                folder = ASIDE
            self._crash_point("before keep")
            self._kept.keep(self._store, machine, alert, folder, self._decided_at(alert))
            self._crash_point("after keep")
            # Where nothing was made the ring has gone round: looking again would not help.
            self._settled.add(alert.id)

    def _decided_at(self, alert: Alert) -> float:
        """What came after a verdict nobody has looked at: it is neither labelled nor kept under that name."""
        verdicts = [step.at for step in self._book.steps(alert.id) if step.what in ("confirmed", "dismissed")]
        return verdicts[-1] if verdicts else math.inf

    def _tell(self) -> None:
        for output in self._outputs:
            if isinstance(output, MqttOutput):
                output.listen(0.0)
        told = [teller.output for teller in self._tellers]
        mine = [output for output in self._outputs if output not in told]
        deliver(self._book, mine, self._unix(), self._crash_point)
        for teller in self._tellers:
            teller.look()
        for output in self._outputs:
            if isinstance(output, MqttOutput):
                for name, one in self._standings.items():
                    output.state(name, state_of(name, one, self._book.alerts(machine=name, states=_GOING_ON)))

    def _wait(self, seconds: float) -> None:
        """For that long, or until it is to stop; what comes by MQTT is heard meanwhile."""
        until = self._monotonic() + seconds
        brokers = [output for output in self._outputs if isinstance(output, MqttOutput)]
        while not self.stopping and (left := until - self._monotonic()) > 0:
            part = min(left, 0.25)
            if brokers:
                brokers[0].listen(part)
                deliver(self._book, brokers, self._unix(), self._crash_point)
            else:
                time.sleep(part)


MOST_KEPT_AT_ONCE = 50
_GOING_ON = ("open", "acknowledged", "confirmed", "dismissed")


def _folder(label: str) -> str:
    """In which recordings are kept that have this label in the store."""
    return ASIDE if label == SET_ASIDE else label


def set_aside(store: Store, order: Order, healthy: str, now: float) -> None:
    """Leave out of training what the machine was before an event: all that is unlabelled or labelled healthy.

    Confirmed faults stay, for they are what a classifier learns from, unless the sensor has moved: then nothing of it
    is alike. Of two labels for the same time the later one holds; so the machine's whole past is set aside first, and
    its labels are said again. Doing it once more changes nothing.
    """
    spans = [(EVER, order.at, SET_ASIDE)]
    for machine, from_at, to_at, label in store.labels():
        if machine == order.machine and from_at < order.at and order.detail != "sensor-moved":
            gone = label in (UNLABELLED, healthy, SET_ASIDE)
            spans.append((from_at, min(to_at, order.at), SET_ASIDE if gone else label))
    store.label_all(order.machine, spans, noted_at=now)


class _Limit(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    band: str
    measure: str
    quantiles: tuple[float, ...]


def fleet_limits(told: str, kind: str, policy: WatchPolicy) -> dict[tuple[str, str], float]:
    """By band and measure, for machines of a kind; what the book has of it is checked again."""
    if not told:
        return {}
    try:
        every = msgspec.json.decode(told, type=list[_Limit])
    except msgspec.MsgspecError as error:
        log.warning("the fleet's limits cannot be read: %s", error)
        return {}
    found = {}
    for one in every:
        if one.kind == kind and len(one.quantiles) == len(QUANTILES):
            bound = limit_of(dict(zip(QUANTILES, one.quantiles, strict=True)), policy.rule)
            if bound is not None:
                found[one.band, one.measure] = bound
    return found


def standing(watcher: Watcher, seen: Seen, before: Mapping[str, Any]) -> dict[str, Any]:
    """How a machine is, as status and MQTT show it; how far it has learnt stays while it stands."""
    said: dict[str, Any] = {
        "at": seen.at,
        "state": str(seen.state),
        "sensor": seen.sensor,
        "kind": watcher.machine.kind,
    }
    if watcher.event:
        said |= {"event": watcher.event, "baseline_at": watcher.baseline_at}
    if seen.used and seen.condition is not None:
        said |= {
            "zone": seen.zone,
            "band": seen.band,
            "values": {name: round(value, 6) for name, value in seen.values.items()},
            "levels": {one.kind: round(one.level, 4) for one in seen.readings},
        }
        if seen.unproven:
            said["unproven"] = list(seen.unproven)
    if seen.learning is None and "learning" in before and before.get("baseline_at") == said.get("baseline_at"):
        said["learning"] = before["learning"]
    if seen.learning is not None:
        said["learning"] = {
            "windows": seen.learning.windows,
            "wanted": seen.learning.wanted,
            "done": seen.learning.done,
        }
    return said
