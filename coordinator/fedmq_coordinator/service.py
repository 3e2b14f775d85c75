"""The loop of the coordinator: events and the time come in, messages go out, the ledger stands between.

Every pass handles all events at hand, commits the ledger once, and only then publishes what it has to say: no receipt
before its commit, one fsync for many answers. A message that cannot be sent is not kept; whoever misses it asks. What
to decide is in `rounds`, `cohort`, `aggregate`, `schedule` and `scaling`; what becomes of it on record is in `run` (the
rounds), `intake` (the answers), `roster` (who is here) and `lineage` (the model). `step` never waits; only `run` does.

After a restart everything is as the ledger has it: the open round goes on, its sum is built again from the stored
payloads to the same integers, and its plan is published again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import msgspec
import numpy as np
from fedmq_protocol.messages import (
    AskChunks,
    AskModel,
    AskVerdict,
    Assignment,
    Birth,
    CatchUp,
    Chunk,
    Decline,
    Leave,
    RoundPlan,
    Statistics,
    Update,
    Welcome,
    from_bytes,
)
from fedmq_protocol.session import (
    Connected,
    ConnectFailed,
    Denied,
    Disconnected,
    Dropped,
    Event,
    Received,
    Session,
)
from fedmq_protocol.task import Task, short
from fedmq_protocol.topics import Channel, coordinator_filters, parse
from fedmq_protocol.transfer import chunks, refer
from numpy.typing import NDArray

from fedmq_coordinator.intake import Intake
from fedmq_coordinator.ledger import CatchUp as CatchUpRow
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.lineage import Lineage
from fedmq_coordinator.models import ModelStore
from fedmq_coordinator.outbox import Outbox
from fedmq_coordinator.roster import Roster
from fedmq_coordinator.run import Run, Score
from fedmq_coordinator.settings import LimitSettings, RoundSettings

__all__ = ["Coordinator"]

log = logging.getLogger("fedmq.coordinator")


class Coordinator:
    """One federation with one task.

    `evaluate` scores `(P,) float32` with a scaler on a test set, where there is one.
    """

    def __init__(
        self,
        *,
        federation: str,
        task: Task,
        rounds: RoundSettings | None = None,
        limits: LimitSettings | None = None,
        session: Session,
        ledger: Ledger,
        models: ModelStore,
        clock: Callable[[], float] = time.time,
        evaluate: Callable[[NDArray[np.float32], bytes | None], Score] | None = None,
        metric_name: str = "metric",
        new_lineage: bool = False,
    ) -> None:
        self._federation = federation
        self._task = task
        self._limits = limits or LimitSettings()
        self._session = session
        self._ledger = ledger
        self._clock = clock
        self._outbox = Outbox(federation)
        # Before the first commit, which the lineage makes: whoever reads the ledger finds the names in it.
        ledger.put("metric_name", metric_name.encode())
        ledger.put("task_body", msgspec.msgpack.encode(task))
        self._line = Lineage(federation, task, ledger, models, now=clock(), start_new=new_lineage)
        self._roster = Roster(ledger, windowing=task.windowing)
        self._run = Run(
            ledger=ledger,
            line=self._line,
            roster=self._roster,
            outbox=self._outbox,
            settings=rounds or RoundSettings(),
            limits=self._limits,
            evaluate=evaluate,
            now=clock(),
        )
        self._intake = Intake(
            federation=federation,
            ledger=ledger,
            line=self._line,
            roster=self._roster,
            run=self._run,
            outbox=self._outbox,
        )
        self._welcomed: dict[str, bytes] = {}
        self._askers: dict[int, set[str]] = {}
        self._asked_at: float | None = None
        self._connected = False
        self.stopping = False
        ledger.commit()
        session.subscribe(*coordinator_filters(federation))

    @property
    def resting(self) -> str | None:
        """Why no round opens, or None."""
        return self._run.resting

    @property
    def version(self) -> int:
        """Number of the model version in force."""
        return self._line.version

    @property
    def model_digest(self) -> bytes:
        """sha256 of the model in force."""
        return self._line.digest

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until `stopping` is set by a signal."""
        self._session.start()
        while not self.stopping:
            first = self._session.next(self.wait_seconds(self._clock()))
            events = [] if first is None else [first]
            while events and len(events) < 1000 and (event := self._session.next(0.0)) is not None:
                events.append(event)
            self.step(events, self._clock())
        self._session.stop(flush_seconds=5.0)
        self._ledger.commit()
        self._ledger.close()

    def wait_seconds(self, now: float, most: float = 1.0) -> float:
        """How long nothing is due, unless an event comes; a second at most, to look whether to stop."""
        if not self._connected:
            return most
        wait = most
        if self._run.round is not None:
            wait = min(wait, self._run.round.plan.closes_at - now)
            if self._run.receipts_at is not None:
                wait = min(wait, self._run.receipts_at - now)
        elif self._run.opens_at is not None:
            wait = min(wait, self._run.opens_at - now)
        if self._asked_at is not None:
            wait = min(wait, self._asked_at + self._limits.catch_up_gather_seconds - now)
        return max(0.0, wait)

    def step(self, events: Iterable[Event], now: float) -> None:
        """Handle events, then what is due; commit; speak."""
        for event in events:
            self._handle(event, now)
        if self._connected:
            self._answer_askers(now)
            self._intake.ask_for_chunks(now)
            self._run.proceed(now)
            self._intake.tell_accepted(now)
        self._ledger.commit()
        for said in self._outbox.take():
            self._session.publish(
                said.topic, said.payload, qos=said.qos, retain=said.retain, expiry_seconds=said.expiry_seconds
            )

    def _handle(self, event: Event, now: float) -> None:
        match event:
            case Connected():
                log.info("connected with MQTT %s", event.protocol)
                self._connected = True
                if not event.session_present:
                    # A broker that has forgotten us keeps only births that came since: each waits for its welcome.
                    self._welcomed.clear()
                plan = self._plan_at_hand(now)
                if plan is not None:
                    self._run.publish_plan(plan, now)
            case Disconnected() | ConnectFailed():
                self._connected = False
                log.warning("%s", event.reason)
            case Denied():
                log.error("the broker denies %s: %s", event.topic, event.reason)
            case Dropped():
                log.warning("%d messages were dropped because they came faster than they were read", event.messages)
            case Received():
                self._receive(event, now)

    def _receive(self, event: Received, now: float) -> None:
        channel = "?"
        try:
            where = parse(event.topic)
            channel = where.channel.value
            if not event.payload and event.retained:
                return
            message = from_bytes(where.spec, event.payload)
        except ValueError as error:
            log.warning("dropped %d bytes on %s: %s", len(event.payload), event.topic, error)
            self._ledger.count_refused(channel, str(error)[:120], len(event.payload))
            return
        gateway = where.gateway or ""
        match message:
            case Birth():
                self._on_birth(gateway, message, event.retained, now)
            case Leave():
                self._roster.left(gateway, message, now)
            case Update():
                self._intake.on_update(gateway, message, now)
            case Decline():
                self._intake.on_decline(gateway, message, now)
            case Statistics():
                self._intake.on_statistics(gateway, message, now)
            case AskVerdict():
                self._intake.on_ask_verdict(gateway, message)
            case AskModel():
                self._on_ask_model(gateway, message, now)
            case AskChunks():
                self._on_ask_chunks(gateway, message)
            case Chunk():
                self._intake.on_chunk(gateway, message, now)
            case _:
                log.warning("dropped a %s on %s: not for the coordinator", type(message).__name__, event.topic)

    # -- who is there ------------------------------------------------------------------------------------------

    def _on_birth(self, name: str, birth: Birth, retained: bool, now: float) -> None:
        gateway = self._roster.born(name, birth, now)
        if retained and self._welcomed.get(name) == birth.nonce:
            return  # the broker's copy of what was answered already
        self._welcomed[name] = birth.nonce
        record = self._ledger.verdict(name)
        plan = self._plan_at_hand(now)
        if plan is not None and plan.scaler is not None:
            plan = msgspec.structs.replace(plan, scaler=None)  # the welcome brings it
        mine = (self._line.number, short(self._line.task.digest))
        knows = any((held.lineage, held.task) == mine for held in birth.held)
        self._outbox.command(
            name,
            Channel.WELCOME,
            Welcome(
                nonce=birth.nonce,
                now=now,
                roster=gateway.roster,
                spread=0,
                tasks=(
                    Assignment(
                        lineage=self._line.number,
                        counter=record[1] if record is not None else 0,
                        task=None if knows else self._line.task,
                        scaler=self._line.scaler,
                        plan=plan,
                    ),
                ),
            ),
        )

    def _plan_at_hand(self, now: float) -> RoundPlan | None:
        """The open round's, or one that asks nobody and brings what the last round came to; None before the first."""
        if self._run.round is not None:
            return self._run.round.plan
        return self._run.rest_plan(now) if self._line.version > 0 else None

    # -- questions ---------------------------------------------------------------------------------------------

    def _on_ask_model(self, name: str, ask: AskModel, now: float) -> None:
        if self._roster.get(name) is None:
            return
        have = ask.version if ask.lineage == self._line.number else -1
        self._askers.setdefault(have, set()).add(name)
        if self._asked_at is None:
            self._asked_at = now

    def _answer_askers(self, now: float) -> None:
        """Once for all who asked within a short while; one keyframe where that is cheaper than several ways."""
        if self._asked_at is None or now < self._asked_at + self._limits.catch_up_gather_seconds:
            return
        askers, self._askers, self._asked_at = self._askers, {}, None
        routes = {have: self._line.route(have) for have in askers}
        keyframe = self._line.route(-1)
        if len(routes) > 1 and sum(len(route.body) for route in routes.values()) >= len(keyframe.body):
            routes = {-1: keyframe}
        for have, route in routes.items():
            chunked = len(route.body) > self._limits.chunk_bytes
            ref = refer(route.body, self._limits.chunk_bytes)
            message = CatchUp(
                lineage=self._line.number,
                kind=route.kind,
                start=route.start,
                number=self._line.version,
                model=short(self._line.digest),
                body=ref if chunked else route.body,
            )
            self._outbox.broadcast(Channel.MODEL, message)
            if chunked:
                for chunk in chunks(route.body, ref):
                    self._outbox.broadcast(Channel.MODEL, chunk)
            count = len(askers.get(have, set())) or sum(map(len, askers.values()))
            log.info("catch-up to version %d by %s for %d", self._line.version, route.kind.name.lower(), count)
            self._ledger.save_catch_up(
                CatchUpRow(
                    at=now,
                    kind=route.kind.name.lower(),
                    from_version=route.start,
                    to_version=self._line.version,
                    bytes=len(route.body),
                    askers=count,
                )
            )

    def _on_ask_chunks(self, name: str, ask: AskChunks) -> None:
        """Chunks of the newest delta, or of a catch-up that can be made again."""
        for blob in filter(None, [self._line.newest_delta, self._line.route(-1).body]):
            ref = refer(blob, self._limits.chunk_bytes)
            if short(ref.digest) == ask.transfer:
                for chunk in chunks(blob, ref, ask.missing):
                    self._outbox.command(name, Channel.CHUNK, chunk)
                return
        log.info("%s asks for chunks of a transfer that is over", name)

    # -- rounds ------------------------------------------------------------------------------------------------

    # -- coding and sending ------------------------------------------------------------------------------------
