"""The loop of the coordinator: events and the time come in, messages go out, the ledger stands between.

Every pass handles all events at hand, commits the ledger once, and only then publishes what it has to say: no receipt
before its commit, one fsync for many answers. A message that cannot be sent is not kept; whoever misses it asks. What
to decide is in `rounds`, `cohort`, `aggregate`, `schedule` and `scaling`. `step` never waits; only `run` does.

After a restart everything is as the ledger has it: the open round goes on, its sum is built again from the stored
payloads to the same integers, and its plan is published again.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from fedmq_protocol.messages import (
    AskChunks,
    AskModel,
    AskVerdict,
    Birth,
    Bitmap,
    BlobRef,
    CatchUp,
    Chunk,
    Decline,
    Leave,
    Message,
    Missing,
    Receipt,
    RoundKind,
    RoundPlan,
    Slot,
    Statistics,
    Update,
    Verdict,
    Welcome,
    from_bytes,
    to_bytes,
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
from fedmq_protocol.topics import Channel, Direction, coordinator_filters, parse, topic
from fedmq_protocol.transfer import Incoming, TransferError, chunks, refer
from numpy.typing import NDArray

from fedmq_coordinator import scaling
from fedmq_coordinator.aggregate import WeightedMean, staleness, weights
from fedmq_coordinator.cohort import Turn, draw, following
from fedmq_coordinator.ledger import Answer, Gateway, Ledger, Wire
from fedmq_coordinator.ledger import CatchUp as CatchUpRow
from fedmq_coordinator.ledger import Round as RoundRow
from fedmq_coordinator.lineage import Lineage, statistics_of
from fedmq_coordinator.models import ModelStore
from fedmq_coordinator.rounds import Judgement, Record, Round, admit, examine
from fedmq_coordinator.schedule import may_resume, next_opening, reason_to_rest, rounds_tonight
from fedmq_coordinator.settings import LimitSettings, RoundSettings

__all__ = ["Coordinator", "Score"]

log = logging.getLogger("fedmq.coordinator")

_AT_FAULT = (Verdict.NORM, Verdict.NON_FINITE, Verdict.MALFORMED)

CHUNK_PAUSE_SECONDS = 2.0
"""An update in chunks that has been still for so long is asked for what is missing."""
LONGEST_CHAIN = 500
"""Versions behind which only a keyframe is considered: a chain of 500 is longer than any keyframe."""
ANSWER_RATE_ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a version is worth."""

    metric: float
    loss: float


class _Opened(msgspec.Struct, frozen=True, kw_only=True):
    """The open round, as it is kept for a restart."""

    plan: RoundPlan
    asked: tuple[str, ...]
    target: int
    quorum: int
    weights: dict[str, int]


class _Rest(msgspec.Struct, frozen=True, kw_only=True):
    """Why the run rests, and with how many windows in the fleet it came to that."""

    windows: int
    reason: str


@dataclass(kw_only=True)
class _Transfer:
    """An update whose payload comes in chunks."""

    update: Update
    incoming: Incoming
    still_since: float


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
        evaluate: Callable[[NDArray[np.float32], bytes], Score] | None = None,
        metric_name: str = "metric",
        new_lineage: bool = False,
    ) -> None:
        self._federation = federation
        self._task = task
        self._settings = rounds or RoundSettings()
        self._limits = limits or LimitSettings()
        self._pace = self._settings.pace
        self._session = session
        self._ledger = ledger
        self._clock = clock
        self._evaluate = evaluate
        self._outbox: list[tuple[str, bytes, bool, int | None]] = []
        self._line = Lineage(federation, task, ledger, models, now=clock(), start_new=new_lineage)
        self._round: Round | None = None
        self._weights: dict[str, int] = {}
        self._mean: WeightedMean | None = None
        self._transfers: dict[str, _Transfer] = {}
        self._welcomed: dict[str, bytes] = {}
        self._superseded: set[bytes] = set()
        self._askers: dict[int, set[str]] = {}
        self._asked_at: float | None = None
        self._opens_at: float | None = None
        self._gateways = {gateway.name: gateway for gateway in ledger.gateways()}
        self._connected = False
        self._started_at = clock()
        self.resting: str | None = None
        """Why no round opens, or None."""
        self.stopping = False
        ledger.put("metric_name", metric_name.encode())
        ledger.put("task_body", msgspec.msgpack.encode(task))
        ledger.commit()
        self._restore()
        session.subscribe(*coordinator_filters(federation))

    @property
    def version(self) -> int:
        """Number of the model version in force."""
        return self._line.version

    @property
    def model_digest(self) -> bytes:
        """sha256 of the model in force."""
        return self._line.digest

    # -- what the ledger has -----------------------------------------------------------------------------------

    def _restore(self) -> None:
        opened = self._ledger.get("opened")
        if opened:
            self._reopen(msgspec.msgpack.decode(opened, type=_Opened))

    def _reopen(self, opened: _Opened) -> None:
        self._begin(opened)
        assert self._round is not None  # _begin has just made it
        for answer in self._ledger.answers(opened.plan.round_id):
            if answer.kind == "decline":
                self._round.count(answer.gateway, update=False)
            elif answer.verdict == _name(Verdict.ACCEPTED):
                self._round.count(answer.gateway, update=True)
                if answer.kind == "update" and answer.payload is not None and self._mean is not None:
                    self._mean.add(self._line.decode(answer.payload), answer.weight)
            else:
                self._round.refuse(answer.gateway)

    def _begin(self, opened: _Opened) -> None:
        """Make the open round, with what earlier rounds owe already in its sum."""
        self._round = Round(
            opened.plan,
            asked=frozenset(opened.asked),
            target=opened.target,
            quorum=opened.quorum,
            close_when_answered=self._settings.close_when_all_answered,
        )
        self._weights = opened.weights
        self._mean = None
        if opened.plan.kind is RoundKind.TRAINING:
            self._mean = WeightedMean(self._task.model.parameters)
            for answer in self._ledger.owed():
                if answer.payload is not None:
                    waited = opened.plan.round_id - answer.round
                    weight = staleness(answer.weight, waited, self._settings.staleness_exponent)
                    self._mean.add(self._line.decode(answer.payload), weight)

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until `stopping` is set by a signal."""
        self._session.start()
        while not self.stopping:
            first = self._session.next(self._wait_seconds())
            events = [] if first is None else [first]
            while events and len(events) < 1000 and (event := self._session.next(0.0)) is not None:
                events.append(event)
            self.step(events, self._clock())
        self._session.stop(flush_seconds=5.0)
        self._ledger.commit()
        self._ledger.close()

    def _wait_seconds(self) -> float:
        now = self._clock()
        wait = 1.0
        if self._round is not None:
            wait = min(wait, self._round.plan.closes_at - now)
        elif self._opens_at is not None:
            wait = min(wait, self._opens_at - now)
        if self._asked_at is not None:
            wait = min(wait, self._asked_at + self._limits.catch_up_gather_seconds - now)
        return max(0.0, wait)

    def step(self, events: Iterable[Event], now: float) -> None:
        """Handle events, then what is due; commit; speak."""
        for event in events:
            self._handle(event, now)
        if self._connected:
            self._answer_askers(now)
            self._ask_for_chunks(now)
            self._proceed(now)
        self._ledger.commit()
        outbox, self._outbox = self._outbox, []
        for text, payload, retain, expiry in outbox:
            self._session.publish(text, payload, qos=parse(text).spec.qos, retain=retain, expiry_seconds=expiry)

    def _handle(self, event: Event, now: float) -> None:
        match event:
            case Connected():
                log.info("connected with MQTT %s", event.protocol)
                self._connected = True
                if not event.session_present:
                    # A broker that has forgotten us keeps only births that came since: each waits for its welcome.
                    self._welcomed.clear()
                if self._round is not None:
                    self._publish_plan(self._round.plan, now)
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
                self._on_leave(gateway, message, now)
            case Update():
                self._on_update(gateway, message, now)
            case Decline():
                self._on_decline(gateway, message, now)
            case Statistics():
                self._on_statistics(gateway, message, now)
            case AskVerdict():
                self._on_ask_verdict(gateway, message)
            case AskModel():
                self._on_ask_model(gateway, message, now)
            case AskChunks():
                self._on_ask_chunks(gateway, message)
            case Chunk():
                self._on_chunk(gateway, message, now)
            case _:
                log.warning("dropped a %s on %s: not for the coordinator", type(message).__name__, event.topic)

    # -- who is there ------------------------------------------------------------------------------------------

    def _on_birth(self, name: str, birth: Birth, retained: bool, now: float) -> None:
        known = self._gateways.get(name)
        if birth.nonce in self._superseded:
            log.error("two gateways call themselves %s: give each its own name and certificate", name)
        if known is not None and known.nonce != birth.nonce:
            self._superseded.add(known.nonce)
        samples = sum(birth.signal_samples.values())
        gateway = Gateway(
            name=name,
            roster=known.roster if known is not None else len(self._gateways),
            first_seen=known.first_seen if known is not None else now,
            last_seen=now,
            present=True,
            software=birth.software,
            engines=",".join(birth.engines),
            windows=samples // self._task.windowing.hop,
            signal_bytes=2 * samples,
            nonce=birth.nonce,
        )
        self._gateways[name] = gateway
        self._ledger.save_gateway(gateway)
        self._wire(name, birth.nonce, birth.sent, birth.received, now)
        if retained and self._welcomed.get(name) == birth.nonce:
            return  # the broker's copy of what was answered already
        self._welcomed[name] = birth.nonce
        record = self._ledger.verdict(name)
        plan = self._round.plan if self._round is not None else None
        if plan is None and self._line.version > 0:
            plan = self._rest_plan(now)
        if plan is not None and plan.scaler is not None:
            plan = msgspec.structs.replace(plan, scaler=None)  # the welcome brings it
        knows = birth.lineage == self._line.number and birth.task == short(self._task.digest)
        self._command(
            name,
            Channel.WELCOME,
            Welcome(
                nonce=birth.nonce,
                now=now,
                roster=gateway.roster,
                lineage=self._line.number,
                counter=record[1] if record is not None else 0,
                task=None if knows else self._task,
                scaler=self._line.scaler,
                plan=plan,
            ),
        )

    def _on_leave(self, name: str, leave: Leave, now: float) -> None:
        known = self._gateways.get(name)
        if known is None or known.nonce != leave.nonce:
            return  # the last word of an earlier start
        self._gateways[name] = replace(known, present=False, last_seen=now)
        self._ledger.set_presence(name, False, now)
        if leave.clean:
            self._wire(name, leave.nonce, leave.sent, leave.received, now, final=True)

    def _wire(self, name: str, nonce: bytes, sent: int, received: int, now: float, *, final: bool = False) -> None:
        self._ledger.save_wire(
            Wire(gateway=name, nonce=nonce, sent=sent, received=received, reported_at=now, final=final)
        )

    def _seen(self, name: str, sent: int, received: int, now: float) -> bytes:
        """Note the byte counts of an answer; returns the boot nonce they belong to."""
        gateway = self._gateways.get(name)
        nonce = gateway.nonce if gateway is not None else bytes(8)
        if gateway is not None:
            self._ledger.set_presence(name, True, now)
            self._wire(name, nonce, sent, received, now)
        return nonce

    # -- answers -----------------------------------------------------------------------------------------------

    def _on_update(self, name: str, update: Update, now: float) -> None:
        ref = update.payload if isinstance(update.payload, BlobRef) else refer(update.payload, 256)
        verdict = self._admit(name, update, short(ref.digest), now)
        if verdict is not None:
            self._conclude(name, update, b"", short(ref.digest), verdict, now)
            return
        if isinstance(update.payload, bytes):
            self._examine(name, update, update.payload, now)
            return
        try:
            # A dense float32 payload and its header: nothing of this task is longer.
            incoming = Incoming(update.payload, 4 * self._task.model.parameters + 1024)
        except TransferError as error:
            judgement = Judgement(verdict=Verdict.MALFORMED, why=str(error))
            self._conclude(name, update, b"", short(ref.digest), judgement, now)
            return
        under_way = self._transfers.get(name)
        if under_way is None or under_way.incoming.ref != update.payload:
            self._transfers[name] = _Transfer(update=update, incoming=incoming, still_since=now)

    def _on_chunk(self, name: str, chunk: Chunk, now: float) -> None:
        transfer = self._transfers.get(name)
        if transfer is None or transfer.incoming.transfer != chunk.transfer:
            return
        transfer.still_since = now
        try:
            if not transfer.incoming.add(chunk):
                return
        except TransferError as error:
            where = topic(self._federation, Direction.UP, Channel.CHUNK, name)
            log.warning("dropped %d bytes on %s: %s", len(chunk.data), where, error)
            return
        del self._transfers[name]
        try:
            payload = transfer.incoming.blob()
        except TransferError as error:
            judgement = Judgement(verdict=Verdict.MALFORMED, why=str(error))
            self._conclude(name, transfer.update, b"", chunk.transfer, judgement, now)
            return
        # The round may have closed while the chunks were coming.
        verdict = self._admit(name, transfer.update, chunk.transfer, now)
        if verdict is not None:
            self._conclude(name, transfer.update, payload, chunk.transfer, verdict, now)
        else:
            self._examine(name, transfer.update, payload, now)

    def _ask_for_chunks(self, now: float) -> None:
        for name, transfer in self._transfers.items():
            if now - transfer.still_since >= CHUNK_PAUSE_SECONDS:
                transfer.still_since = now
                missing = transfer.incoming.missing()
                self._command(name, Channel.RECEIPT, Missing(transfer=transfer.incoming.transfer, missing=missing))

    def _record(self, name: str, round_id: int) -> Record | None:
        """The gateway's answer to this round, or else its latest."""
        answer = self._ledger.answer(round_id, name)
        if answer is not None:
            return Record(
                round_id=answer.round,
                counter=answer.counter,
                digest=answer.digest,
                verdict=_verdict(answer.verdict),
            )
        last = self._ledger.verdict(name)
        if last is None:
            return None
        return Record(round_id=last[0], counter=last[1], digest=last[2], verdict=_verdict(last[3]))

    def _admit(self, name: str, update: Update, digest: bytes, now: float) -> Judgement | None:
        gateway = self._gateways.get(name)
        return admit(
            round_=self._round,
            newest_round=self._newest_round(),
            round_id=update.round_id,
            base=update.base,
            counter=update.counter,
            digest=digest,
            gateway=name,
            roster=None if gateway is None else gateway.roster,
            record=self._record(name, update.round_id),
            now=now,
        )

    def _examine(self, name: str, update: Update, payload: bytes, now: float) -> None:
        judgement = examine(lambda: self._line.decode(payload), self._task.max_norm)
        self._conclude(name, update, payload, short(refer(payload, 256).digest), judgement, now)

    def _conclude(
        self, name: str, update: Update, payload: bytes, digest: bytes, judgement: Judgement, now: float
    ) -> None:
        """Put the verdict on record, count the update, and say so."""
        verdict = judgement.verdict
        if judgement.why:
            size = update.payload.length if isinstance(update.payload, BlobRef) else len(update.payload)
            where = topic(self._federation, Direction.UP, Channel.ANSWER, name)
            log.warning("refused %d bytes on %s, for round %d: %s", size, where, update.round_id, judgement.why)
        nonce = self._seen(name, update.sent, update.received, now)
        accepted = verdict is Verdict.ACCEPTED and not judgement.repeat
        if not judgement.repeat and self._ledger.has_round(update.round_id) and name in self._gateways:
            weight = self._weights.get(name, 1) if accepted else 0
            evaluation = update.evaluation
            self._ledger.save_answer(
                Answer(
                    round=update.round_id,
                    gateway=name,
                    received_at=now,
                    kind="update",
                    verdict=_name(verdict),
                    reason=None,
                    counter=update.counter,
                    digest=digest,
                    samples=update.samples,
                    weight=weight,
                    payload_bytes=len(payload),
                    dense_bytes=4 * self._task.model.parameters,
                    nonce=nonce,
                    sent=update.sent,
                    received=update.received,
                    held_out_metric=evaluation.metric / 1e4 if evaluation else None,
                    held_out_loss=evaluation.loss / 1e4 if evaluation else None,
                    held_out_windows=evaluation.windows if evaluation else None,
                    owed=False,
                    payload=payload if accepted else None,
                )
            )
            self._ledger.save_verdict(name, update.round_id, update.counter, digest, _name(verdict))
        if accepted and self._round is not None and self._mean is not None and judgement.decoded is not None:
            self._mean.add(judgement.decoded, self._weights.get(name, 1))
            self._round.count(name, update=True)
        elif not judgement.repeat and self._round is not None and self._round.plan.round_id == update.round_id:
            self._round.refuse(name)
        self._command(name, Channel.RECEIPT, Receipt(round_id=update.round_id, counter=update.counter, verdict=verdict))

    def _on_decline(self, name: str, decline: Decline, now: float) -> None:
        self._answer_without_payload(name, decline, "decline", b"", 0, now)

    def _on_statistics(self, name: str, statistics: Statistics, now: float) -> None:
        try:
            told = statistics_of(statistics.count, statistics.mean + statistics.m2)
            scaling.check(told, self._task.model.sizes[0])
        except ValueError as error:
            where = topic(self._federation, Direction.UP, Channel.ANSWER, name)
            log.warning("dropped statistics of %d bytes on %s: %s", len(statistics.mean), where, error)
            self._ledger.count_refused(Channel.ANSWER.value, "statistics that cannot be", len(statistics.mean))
            return
        self._answer_without_payload(
            name, statistics, "statistics", statistics.mean + statistics.m2, statistics.count, now
        )

    def _answer_without_payload(
        self, name: str, answer: Decline | Statistics, kind: str, payload: bytes, samples: int, now: float
    ) -> None:
        """A decline, or statistics: neither changes anything on the gateway, so neither needs a verdict."""
        nonce = self._seen(name, answer.sent, answer.received, now)
        gateway = self._gateways.get(name)
        round_ = self._round
        if (
            round_ is None
            or gateway is None
            or round_.plan.round_id != answer.round_id
            or not round_.drawn(name, gateway.roster)
            or name in round_.answered
            or (kind == "statistics") > (round_.plan.kind is RoundKind.STATISTICS)
        ):
            return
        self._ledger.save_answer(
            Answer(
                round=answer.round_id,
                gateway=name,
                received_at=now,
                kind=kind,
                verdict=_name(Verdict.ACCEPTED),
                reason=answer.reason.name.lower() if isinstance(answer, Decline) else None,
                counter=0,
                digest=b"",
                samples=samples,
                weight=0,
                payload_bytes=len(payload),
                dense_bytes=0,
                nonce=nonce,
                sent=answer.sent,
                received=answer.received,
                held_out_metric=None,
                held_out_loss=None,
                held_out_windows=None,
                owed=False,
                payload=payload or None,
            )
        )
        round_.count(name, update=kind == "statistics")

    # -- questions ---------------------------------------------------------------------------------------------

    def _on_ask_verdict(self, name: str, ask: AskVerdict) -> None:
        record = self._record(name, ask.round_id)
        if record is not None and record.round_id == ask.round_id:
            same = record.digest == ask.digest and record.counter == ask.counter
            verdict = record.verdict if same else Verdict.CONFLICT
        elif self._round is not None and self._round.plan.round_id == ask.round_id:
            verdict = Verdict.UNKNOWN
        else:
            verdict = Verdict.CLOSED
        self._command(name, Channel.RECEIPT, Receipt(round_id=ask.round_id, counter=ask.counter, verdict=verdict))

    def _on_ask_model(self, name: str, ask: AskModel, now: float) -> None:
        if name not in self._gateways:
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
            self._broadcast(Channel.MODEL, message)
            if chunked:
                for chunk in chunks(route.body, ref):
                    self._broadcast(Channel.MODEL, chunk)
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
                    self._command(name, Channel.CHUNK, chunk)
                return
        log.info("%s asks for chunks of a transfer that is over", name)

    # -- rounds ------------------------------------------------------------------------------------------------

    def _proceed(self, now: float) -> None:
        if self._round is not None:
            if self._round.should_close(now):
                self._close(self._round, now)
            else:
                return
        if self._round is None:
            self._open_if_due(now)

    def _open_if_due(self, now: float) -> None:
        self._opens_at = None
        present = {g.name: g.roster for g in self._gateways.values() if g.present}
        needed = max(1, self._settings.min_gateways)
        if self._line.scaler is None:
            needed = max(needed, self._settings.first_gateways)
        if len(present) < needed:
            return
        rounds = [r for r in self._ledger.rounds() if r.lineage == self._line.number and r.kind == "training"]
        windows = sum(g.windows for g in self._gateways.values())
        if not self._may_go_on(rounds, windows, now):
            return
        if not self._is_due(rounds, windows, now):
            return
        kind = RoundKind.TRAINING if self._line.scaler is not None else RoundKind.STATISTICS
        fraction = self._settings.fraction if kind is RoundKind.TRAINING else 1.0
        stood = self._ledger.get("turn") if fraction < 1 else None
        turn = following(
            None if stood is None else msgspec.json.decode(stood, type=Turn),
            fraction=fraction,
            answer_rate=self._answer_rate(rounds) if fraction < 1 else 1.0,
        )
        cohort = draw(present, len(self._gateways), fraction=fraction, seed=self._task.seed, turn=turn)
        if not cohort.asked:
            return
        names = sorted(cohort.asked)
        closes_at = math.ceil(now + self._settings.closing_seconds)
        plan = self._plan(kind, self._newest_round() + 1, cohort.drawn, closes_at)
        opened = _Opened(
            plan=plan,
            asked=tuple(names),
            target=cohort.target,
            quorum=max(self._settings.quorum_gateways, math.ceil(self._settings.quorum_share * cohort.target)),
            weights=dict(zip(names, weights([self._gateways[name].windows for name in names]), strict=True)),
        )
        self._ledger.put("opened", msgspec.msgpack.encode(opened))
        self._ledger.put("windows", str(windows).encode())
        if fraction < 1:
            self._ledger.put("turn", msgspec.json.encode(turn))
        self._ledger.open_round(
            RoundRow(
                id=plan.round_id,
                lineage=self._line.number,
                kind=kind.name.lower(),
                base=self._line.version,
                opened_at=now,
                closes_at=plan.closes_at,
                closed_at=None,
                outcome="open",
                drawn=len(names),
                plan_bytes=len(to_bytes(plan)) + (plan.delta.length if isinstance(plan.delta, BlobRef) else 0),
                version=None,
                metric=None,
                loss=None,
                metric_source=None,
            )
        )
        self._begin(opened)
        self._publish_plan(plan, now)

    def _is_due(self, rounds: list[RoundRow], windows: int, now: float) -> bool:
        """Whether the schedule lets the next round open, and enough new windows have come where it asks for any."""
        last = self._ledger.last_round()
        if last is not None:
            due = next_opening(
                self._pace,
                last_opened=last.opened_at,
                last_closed=last.closed_at or last.opened_at,
                failures=self._failures(),
                tonight=rounds_tonight(self._pace, [r.opened_at for r in self._ledger.rounds()]),
            )
        elif self._pace.nightly is not None:
            # A series of nights begins with a night, not with the start of this program.
            due = next_opening(self._pace, last_opened=self._started_at, last_closed=self._started_at)
        else:
            due = now
        self._opens_at = due if due > now else None
        fresh = windows - int(self._ledger.get("windows") or 0)
        return due <= now and (not rounds or fresh >= self._pace.new_windows_min)

    def _may_go_on(self, rounds: list[RoundRow], windows: int, now: float) -> bool:
        """Whether the run goes on. When it comes to rest, that is said once, with the last delta, to everyone."""
        stored = self._ledger.get("rest")
        began = int(self._ledger.get("began") or 0)
        made = rounds[began:]
        metrics = [r.metric for r in made if r.metric is not None]
        reason = reason_to_rest(self._pace, rounds=len(made), metrics=metrics)
        if stored is not None:
            windows_at_rest = msgspec.json.decode(stored, type=_Rest).windows
            if may_resume(self._pace, windows_at_rest=windows_at_rest, windows_now=windows):
                log.info("%d new windows since the run came to rest: going on", windows - windows_at_rest)
                self._ledger.put("began", str(len(rounds)).encode())
                reason = None
            if reason is None:
                self._ledger.forget("rest")
        elif reason is not None:
            log.info("at rest: %s", reason)
            self._ledger.put("rest", msgspec.json.encode(_Rest(windows=windows, reason=reason)))
            self._publish_plan(self._rest_plan(now), now)
        self.resting = reason
        return reason is None

    def _close(self, round_: Round, now: float) -> None:
        """Everything that the round came to, in the running transaction; the model's file is on disk before."""
        self._round = None
        self._transfers.clear()
        self._ledger.forget("opened")
        plan = round_.plan
        version = None
        if not round_.has_quorum:
            outcome = "below quorum"
            self._ledger.owe(plan.round_id)
        elif plan.kind is RoundKind.STATISTICS:
            outcome = "applied"
            self._line.learn_scaler(plan.round_id)
        else:
            outcome = "applied"
            assert self._mean is not None  # a training round that has quorum has a sum
            version = self._line.apply(
                self._mean,
                plan.round_id,
                momentum=self._settings.server_momentum,
                learning_rate=self._settings.server_learning_rate,
                now=now,
            )
        self._ledger.close_round(plan.round_id, at=now, outcome=outcome, version=version)
        self._score(plan, version)
        if version is not None:
            self._line.prune()
        log.info(
            "round %d %s: %d updates, %d declines, %d refused, %d of %d silent",
            plan.round_id,
            outcome,
            len(round_.updates),
            len(round_.declines),
            len(round_.refused),
            len(round_.asked - round_.answered),
            len(round_.asked),
        )
        self._tell_tools(round_, outcome)

    def _score(self, plan: RoundPlan, version: int | None) -> None:
        """On the test set where there is one. Else by the gateways, who score a plan's base on their held-out windows:
        what they say in this round belongs to the round that made its base."""
        if self._evaluate is not None:
            scored = version is not None or plan.kind is RoundKind.STATISTICS
            if scored and self._line.scaler is not None:
                score = self._evaluate(self._line.parameters, self._line.scaler)
                self._ledger.set_metric(plan.round_id, metric=score.metric, loss=score.loss, source="test set")
            return
        made_base = self._ledger.version(self._line.number, plan.base)
        said = [a for a in self._ledger.answers(plan.round_id) if a.held_out_windows]
        if made_base is None or made_base.round is None or not said:
            return
        windows = sum(a.held_out_windows or 0 for a in said)
        self._ledger.set_metric(
            made_base.round,
            metric=sum((a.held_out_metric or 0.0) * (a.held_out_windows or 0) for a in said) / windows,
            loss=sum((a.held_out_loss or 0.0) * (a.held_out_windows or 0) for a in said) / windows,
            source="held-out windows",
        )

    def _tell_tools(self, round_: Round, outcome: str) -> None:
        """The small JSON topic for Telegraf, Node-RED and the like."""
        row = self._ledger.round(round_.plan.round_id)
        body = {
            "federation": self._federation,
            "round": round_.plan.round_id,
            "kind": round_.plan.kind.name.lower(),
            "outcome": outcome,
            "version": self._line.version,
            "updates": len(round_.updates),
            "declines": len(round_.declines),
            "asked": len(round_.asked),
            "metric": row.metric if row is not None else None,
            "seconds": row.closed_at - row.opened_at if row is not None and row.closed_at is not None else None,
        }
        text = topic(self._federation, Direction.DOWN, Channel.REPORT)
        self._outbox.append((text, msgspec.json.encode(body), True, None))

    def _plan(self, kind: RoundKind, round_id: int, drawn: Bitmap | Slot, closes_at: int) -> RoundPlan:
        """The plan of a round from the newest version, with the delta that made it."""
        delta: bytes | BlobRef | None = self._line.newest_delta or None
        if isinstance(delta, bytes) and len(delta) > self._limits.chunk_bytes:
            delta = refer(delta, self._limits.chunk_bytes)
        # The first training plan brings the scaler that the statistics round has just learnt.
        first = kind is RoundKind.TRAINING and self._line.version == 0
        return RoundPlan(
            round_id=round_id,
            lineage=self._line.number,
            kind=kind,
            base=self._line.version,
            model=short(self._line.digest),
            closes_at=closes_at,
            drawn=drawn,
            delta=delta,
            scaler=self._line.scaler if first else None,
        )

    def _rest_plan(self, now: float) -> RoundPlan:
        return self._plan(RoundKind.REST, self._newest_round() + 1, Bitmap(bits=b""), int(now) + 1)

    def _publish_plan(self, plan: RoundPlan, now: float) -> None:
        expiry = None if plan.kind is RoundKind.REST else max(1, int(plan.closes_at - now))
        self._broadcast(Channel.PLAN, plan, expiry)
        if isinstance(plan.delta, BlobRef):
            for chunk in chunks(self._line.newest_delta, plan.delta):
                self._broadcast(Channel.CHUNK, chunk, expiry)

    def _answer_rate(self, rounds: list[RoundRow]) -> float:
        """Share of the drawn that answered with an update, over the last rounds."""
        lately = [r for r in rounds if r.closed_at is not None][-ANSWER_RATE_ROUNDS:]
        drawn = sum(r.drawn for r in lately)
        return self._ledger.updates_since(lately[0].id) / drawn if drawn else 1.0

    def _failures(self) -> int:
        """Rounds below quorum in a row, up to the last one."""
        count = 0
        for row in reversed(self._ledger.rounds()):
            if row.outcome != "below quorum":
                break
            count += 1
        return count

    def _newest_round(self) -> int:
        newest = self._ledger.last_round()
        return 0 if newest is None else newest.id

    # -- coding and sending ------------------------------------------------------------------------------------

    def _command(self, gateway: str, channel: Channel, message: Message) -> None:
        text = topic(self._federation, Direction.CMD, channel, gateway)
        self._outbox.append((text, to_bytes(message), False, None))

    def _broadcast(self, channel: Channel, message: Message, expiry_seconds: int | None = None) -> None:
        text = topic(self._federation, Direction.DOWN, channel)
        self._outbox.append((text, to_bytes(message), False, expiry_seconds))


def _name(verdict: Verdict) -> str:
    return verdict.name.lower().replace("_", " ")


def _verdict(name: str) -> Verdict:
    return Verdict[name.upper().replace(" ", "_")]
