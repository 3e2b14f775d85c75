"""The loop of a gateway: events from the connection and the time come in, messages go out, the memory stands between.

Owns what is volatile: the coordinator's clock, the plan at hand, transfers that are under way, and when to ask again.
What must survive is in `memory`, and is there before anything that depends on it is sent. What to decide is in `work`
and `gates`. `step` handles one event at a given time and never waits, so that a test or a simulation can drive it;
only `run` waits.

Nothing is resent on a timer without bound: every question is repeated with a doubling pause. An answer goes out with
QoS 0, since what counts is the coordinator's word on it: the next plan says "accepted", a receipt anything else. Where
neither comes, the gateway asks, early enough to send a lost update again in the same round.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from random import Random

import msgspec
from fedmq_protocol.messages import (
    MIN_STATISTICS_WINDOWS,
    AskChunks,
    AskModel,
    AskVerdict,
    Birth,
    BlobRef,
    CatchUp,
    Chunk,
    Decline,
    Held,
    Leave,
    Message,
    Missing,
    Receipt,
    RoundKind,
    RoundPlan,
    Statistics,
    Update,
    Verdict,
    Welcome,
    ask_after_seconds,
    from_bytes,
    to_bytes,
)
from fedmq_protocol.reasons import Reason
from fedmq_protocol.session import (
    Connected,
    ConnectFailed,
    Denied,
    Disconnected,
    Dropped,
    Event,
    Received,
    Session,
    Will,
)
from fedmq_protocol.settings import SettingsError
from fedmq_protocol.task import Task, short
from fedmq_protocol.topics import CHUNK_BYTES, Channel, Direction, gateway_filters, parse, spec, topic
from fedmq_protocol.transfer import Incoming, TransferError, chunks, refer

from fedmq_edge_node import work
from fedmq_edge_node.folder import Folder
from fedmq_edge_node.gates import Budget, Limits, Vitals, check
from fedmq_edge_node.memory import GatewayState, Memory
from fedmq_edge_node.runtimes import Engine, NumpyEngine
from fedmq_edge_node.samples import SampleError, Samples, statistics

__all__ = ["Gateway", "will"]

log = logging.getLogger("fedmq.gateway")

RETRY_FIRST_SECONDS = 5.0
RETRY_MOST_SECONDS = 300.0
CHUNK_PAUSE_SECONDS = 2.0
"""A transfer that has been still for so long asks for what is missing."""


class Retry:
    """When to do something again: a pause that doubles, from the first try on. Pure."""

    def __init__(self, first_seconds: float = RETRY_FIRST_SECONDS) -> None:
        self._first = first_seconds
        self._pause = first_seconds
        self.at: float | None = None

    def start(self, now: float, delay_seconds: float = 0.0) -> None:
        """Due after `delay_seconds`; does nothing while it runs already."""
        if self.at is None:
            self._pause = self._first
            self.at = now + delay_seconds

    def due(self, now: float) -> bool:
        """True when it is time; the next time is then set."""
        if self.at is None or now < self.at:
            return False
        self.at = now + self._pause
        self._pause = min(2 * self._pause, RETRY_MOST_SECONDS)
        return True

    def hurry(self, now: float, delay_seconds: float = 0.0) -> None:
        """Due after `delay_seconds`, or earlier where it would have been."""
        self.start(now, delay_seconds)
        if self.at is not None:
            self.at = min(self.at, now + delay_seconds)

    def stop(self) -> None:
        self.at = None


def will(federation: str, name: str, nonce: bytes) -> Will:
    """What the broker says for a gateway that is gone without a word."""
    return Will(
        topic(federation, Direction.UP, Channel.STATUS, name), to_bytes(Leave(nonce=nonce, clean=False)), retain=True
    )


class Gateway:
    """One gateway. `vitals` reads the machine, `monotonic` is its clock in seconds, `source` its own recordings.

    Raises SampleError where there are no readable recordings to begin with, StateError for a damaged memory.
    """

    def __init__(
        self,
        *,
        name: str,
        federation: str,
        session: Session,
        memory: Memory,
        source: Folder,
        vitals: Callable[[], Vitals],
        limits: Limits,
        monotonic: Callable[[], float],
        rng: Random,
        nonce: bytes,
        software: str,
        ask_jitter_seconds: float = 1.0,
        answer_jitter_seconds: float = 0.0,
        vitals_every_seconds: float = 1.0,
        look_every_seconds: float = 60.0,
        engine: Callable[[Task], Engine] = lambda task: NumpyEngine(task.model),
    ) -> None:
        self.name = name
        self._federation = federation
        self._session = session
        self._memory = memory
        self._source = source
        self._read_vitals = vitals
        self._limits = limits
        self._monotonic = monotonic
        self._rng = rng
        self._nonce = nonce
        self._software = software
        self._ask_jitter = ask_jitter_seconds
        self._answer_jitter = answer_jitter_seconds
        self._vitals_every = vitals_every_seconds
        self._look_every = look_every_seconds
        self._look_at = 0.0
        self._make_engine = engine
        self._state = memory.load()
        self._budget = _budget(memory.get("budget"))
        self._budget_counted = 0
        self._samples: Samples | None = None
        self._counted = source.signal_samples()
        self._engine: Engine | None = None
        self._connected = False
        self._welcomed = False
        self._clock_offset = 0.0
        self._roster = 0
        self._newest: RoundPlan | None = None
        """The newest plan since the welcome, answered or not."""
        self._plan: RoundPlan | None = None
        """The one that is still to be dealt with."""
        self._answer_not_before = 0.0
        self._incoming: Incoming | None = None
        self._incoming_catch_up: CatchUp | None = None
        self._born_again = Retry()
        self._ask_model = Retry()
        self._ask_verdict = Retry()
        self._ask_chunks = Retry(CHUNK_PAUSE_SECONDS)
        self.stopping = False
        session.subscribe(*gateway_filters(federation, name))

    @property
    def state(self) -> GatewayState:
        return self._state

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until `stopping` is set by a signal, then say good-bye with the last byte counts."""
        self._session.start()
        while not self.stopping:
            self.step(self._session.next(self.wait_seconds(self._monotonic())), self._monotonic())
        self.leave()

    def wait_seconds(self, now: float, most: float = 1.0) -> float:
        """How long nothing is due, unless an event comes; a second at most, to look whether to stop."""
        if not self._connected:
            return most
        retries = [self._born_again]
        if self._welcomed:
            retries += [self._ask_model, self._ask_verdict, self._ask_chunks]
        due = [retry.at for retry in retries if retry.at is not None]
        if self._plan is not None and now < self._answer_not_before:
            due.append(self._answer_not_before)
        return min([most, *(max(0.0, at - now) for at in due)])

    def leave(self) -> None:
        """Publish the final totals; only this message and the DISCONNECT are not among them."""
        self._count_budget()
        self._publish(Channel.STATUS, self._leave_message(), retain=True)
        self._session.stop(flush_seconds=5.0)
        self._memory.close()

    def step(self, event: Event | None, now: float) -> None:
        """Handle one event, or None for the passing of time."""
        match event:
            case Connected():
                log.info("connected with MQTT %s", event.protocol)
                self._connected, self._welcomed = True, False
                self._incoming = None
                self._born_again.stop()
                self._born_again.start(now)
            case Disconnected() | ConnectFailed():
                self._connected = False
                log.warning("%s%s", event.reason, _retry_text(event.retry_in_seconds))
            case Denied():
                log.error("the broker denies %s: %s", event.topic, event.reason)
            case Dropped():
                log.warning("%d messages were dropped because they came faster than they were read", event.messages)
            case Received():
                self._receive(event, now)
            case None:
                pass
        if self._connected:
            self._timers(now)

    def _receive(self, event: Received, now: float) -> None:
        try:
            where = parse(event.topic)
            message = from_bytes(where.spec, event.payload)
        except ValueError as error:
            log.warning("dropped %d bytes on %s: %s", len(event.payload), event.topic, error)
            return
        match message:
            case Welcome():
                self._on_welcome(message, now)
            case RoundPlan():
                self._on_plan(message, now)
            case Receipt():
                self._on_receipt(message, now)
            case CatchUp():
                self._on_catch_up(message, now)
            case Chunk():
                self._on_chunk(message, now)
            case Missing():
                self._on_missing(message)
            case _:
                log.warning("dropped a %s on %s: not for a gateway", type(message).__name__, event.topic)

    def _timers(self, now: float) -> None:
        if self._born_again.due(now):
            self._publish(Channel.STATUS, self._birth(), retain=True)
        if not self._welcomed:
            return
        if now >= self._look_at:
            self._look_at = now + self._look_every
            self._look_for_recordings()
        if self._ask_model.due(now):
            self._session.subscribe(topic(self._federation, Direction.DOWN, Channel.MODEL))
            log.info("version %d is at hand, asking for the newest", self._state.version)
            self._ask(AskModel(lineage=self._state.lineage, version=self._state.version))
        pending = self._state.pending
        if pending is None:
            self._ask_verdict.stop()
        elif self._ask_verdict.due(now):
            self._ask(
                AskVerdict(
                    round_id=pending.round_id, counter=pending.counter, digest=short(refer(pending.payload, 256).digest)
                )
            )
        if self._incoming is None:
            self._ask_chunks.stop()
        elif self._ask_chunks.due(now):
            self._ask(AskChunks(transfer=self._incoming.transfer, missing=self._incoming.missing()))
        if self._plan is not None and now >= self._answer_not_before:
            self._work_on(self._plan, now)

    # -- what comes in -----------------------------------------------------------------------------------------

    def _on_welcome(self, message: Welcome, now: float) -> None:
        if message.nonce != self._nonce:
            # Meant for another process under our name, or for an earlier one of ours.
            log.warning("dropped a welcome for another start of %s: do two gateways share this name?", self.name)
            return
        if len(message.tasks) != 1:
            log.error("cannot take part: %d tasks, expected one", len(message.tasks))
            return
        (assignment,) = message.tasks
        try:
            state = work.adopt(self._state, assignment)
        except work.ModelMismatch as error:
            log.error("cannot take part: %s", error)
            return
        if state.lineage != self._state.lineage:
            log.info("joined lineage %d with task %r", state.lineage, state.task.name if state.task else "")
        if state.task is not self._state.task or self._engine is None:
            self._samples = self._engine = None
        self._save(state)
        self._clock_offset = message.now - now
        self._roster = message.roster
        self._welcomed = True
        self._born_again.stop()
        self._newest = self._plan = None
        if assignment.plan is not None:
            self._on_plan(assignment.plan, now)
        pending = self._state.pending
        if pending is None:
            return
        if assignment.plan is not None and assignment.plan.round_id == pending.round_id:
            self._send_pending(now)
        else:
            self._ask_verdict.hurry(now, self._jitter())

    def _on_plan(self, plan: RoundPlan, now: float) -> None:
        if not self._welcomed:
            return  # the welcome brings the plan again
        if plan.lineage != self._state.lineage:
            log.info("the coordinator went on to lineage %d: joining again", plan.lineage)
            self._welcomed = False
            self._born_again.stop()
            self._born_again.start(now, self._jitter())
            return
        newest = 0 if self._newest is None else self._newest.round_id
        if newest > plan.round_id:
            return  # an older plan that came late
        self._newest = self._plan = plan
        if newest != plan.round_id:
            self._answer_not_before = now + self._rng.uniform(0.0, self._answer_jitter)
        self._settle_by(plan, now)
        if isinstance(plan.delta, BlobRef) and self._state.version + 1 == plan.base:
            if self._incoming is None or self._incoming.ref != plan.delta:
                self._begin_transfer(plan.delta, None, now)
            return
        self._advance(plan, plan.delta if isinstance(plan.delta, bytes) else None, now)

    def _advance(self, plan: RoundPlan, delta: bytes | None, now: float) -> None:
        try:
            self._state = work.advance(self._state, plan, delta)
        except work.ModelMismatch as error:
            log.info("must catch up: %s", error)
            if self._state.version >= plan.base:
                # Our own history is not the coordinator's: only the seeded start is common ground.
                self._state = work.start_over(self._state)
            self._ask_model.start(now, self._jitter())
            return
        self._ask_model.stop()

    def _settle_by(self, plan: RoundPlan, now: float) -> None:
        """What a plan says of the pending update: before anything else, since it may be the next one to train on.

        On disk with the next save: until then the old state stands there, and a restart hears the same again.
        """
        self._state = work.settle_by_plan(self._state, plan, self._roster)
        pending = self._state.pending
        if pending is None:
            self._ask_verdict.stop()
        elif pending.round_id < plan.round_id:
            self._ask_verdict.hurry(now, self._jitter())

    def _on_receipt(self, receipt: Receipt, now: float) -> None:
        pending = self._state.pending
        if pending is None or (receipt.round_id, receipt.counter) != (pending.round_id, pending.counter):
            return
        if receipt.verdict is Verdict.UNKNOWN:
            self._send_pending(now)
            return
        self._save(work.settle(self._state, receipt))
        self._ask_verdict.stop()
        if receipt.verdict is not Verdict.ACCEPTED:
            log.warning("the update of round %d was not taken: %s", receipt.round_id, receipt.verdict.name.lower())

    def _on_catch_up(self, message: CatchUp, now: float) -> None:
        if self._ask_model.at is None:
            return  # somebody else's
        if isinstance(message.body, BlobRef):
            if message.lineage == self._state.lineage and message.number > self._state.version:
                self._begin_transfer(message.body, message, now)
            return
        self._caught_up(message, message.body, now)

    def _caught_up(self, message: CatchUp, body: bytes, now: float) -> None:
        try:
            state = work.catch_up(self._state, message, body)
        except work.ModelMismatch as error:
            log.warning("starting over from the seed: %s", error)
            self._state = work.start_over(self._state)
            return
        if state is self._state:
            return
        log.info("caught up to version %d by %s", state.version, message.kind.name.lower())
        self._save(state)
        self._ask_model.stop()
        self._session.unsubscribe(topic(self._federation, Direction.DOWN, Channel.MODEL))
        if self._plan is not None and self._plan.base > state.version:
            self._on_plan(self._plan, now)

    def _begin_transfer(self, ref: BlobRef, catch_up: CatchUp | None, now: float) -> None:
        task = self._state.task
        if task is None:
            return
        try:
            # Nothing about a model is larger than all its parameters at 8 bytes.
            self._incoming = Incoming(ref, 8 * task.model.parameters + 65_536)
        except TransferError as error:
            log.warning("dropped a transfer: %s", error)
            return
        self._incoming_catch_up = catch_up
        self._ask_chunks.stop()
        self._ask_chunks.start(now, CHUNK_PAUSE_SECONDS + self._jitter())

    def _on_chunk(self, chunk: Chunk, now: float) -> None:
        incoming = self._incoming
        if incoming is None or chunk.transfer != incoming.transfer:
            return
        self._ask_chunks.stop()
        self._ask_chunks.start(now, CHUNK_PAUSE_SECONDS + self._jitter())
        try:
            if not incoming.add(chunk):
                return
            blob = incoming.blob()
        except TransferError as error:
            log.warning("transfer: %s", error)
            return
        self._incoming = None
        self._ask_chunks.stop()
        if self._incoming_catch_up is not None:
            self._caught_up(self._incoming_catch_up, blob, now)
        elif self._plan is not None:
            self._advance(self._plan, blob, now)

    def _on_missing(self, message: Missing) -> None:
        pending = self._state.pending
        if pending is None:
            return
        ref = refer(pending.payload, CHUNK_BYTES)
        if short(ref.digest) == message.transfer:
            for chunk in chunks(pending.payload, ref, message.missing):
                self._publish(Channel.CHUNK, chunk)

    # -- what goes out -----------------------------------------------------------------------------------------

    def _work_on(self, plan: RoundPlan, now: float) -> None:
        state = self._state
        if state.version != plan.base:
            return  # its delta, or a catch-up, is still on its way; even a plan that is over brings the newest model
        over = now + self._clock_offset > plan.closes_at or plan.kind is RoundKind.REST
        if over or plan.round_id <= state.answered or not plan.draws(self._roster, self.name):
            self._save(state)
            self._plan = None
            return
        if state.pending is not None:
            self._ask_verdict.start(now)
            return
        self._plan = None
        reason = self._shut_gate(plan)
        if reason is not None:
            self._decline(plan, reason)
        elif plan.kind is RoundKind.STATISTICS:
            self._send_statistics(plan)
        else:
            self._train(plan)

    def _train(self, plan: RoundPlan) -> None:
        assert self._samples is not None  # the gates saw to it
        assert self._engine is not None
        shut: list[Reason] = []
        looked_at = self._monotonic()

        def keep_going() -> bool:
            nonlocal looked_at
            now = self._monotonic()
            if now + self._clock_offset > plan.closes_at:
                shut.append(Reason.LATE)
                return False
            if now - looked_at >= self._vitals_every:
                looked_at = now
                reason = self._shut_gate(plan)
                if reason is not None:
                    shut.append(reason)
                    return False
            return True

        try:
            trained = work.train_update(
                self._state, plan, self._samples, self._engine, gateway=self.name, keep_going=keep_going
            )
        except ValueError as error:
            log.error("round %d: %s", plan.round_id, error)
            self._decline(plan, Reason.ERROR)
            return
        if trained.stopped:
            self._decline(plan, shut[-1])
            return
        self._save(trained.state)
        log.info("round %d: loss %.4f", plan.round_id, trained.loss)
        self._send_pending(self._monotonic())

    def _send_pending(self, now: float) -> None:
        pending = self._state.pending
        if pending is None:
            return
        chunked = len(pending.payload) > CHUNK_BYTES
        ref = refer(pending.payload, CHUNK_BYTES)
        self._publish(
            Channel.ANSWER,
            Update(
                round_id=pending.round_id,
                base=pending.base_mark,
                counter=pending.counter,
                payload=ref if chunked else pending.payload,
                sent=self._session.bytes_sent,
                received=self._session.bytes_received,
                loss=pending.loss,
                evaluation=pending.evaluation,
            ),
        )
        if chunked:
            for chunk in chunks(pending.payload, ref):
                self._publish(Channel.CHUNK, chunk)
        left = 0.0
        if self._newest is not None and self._newest.round_id == pending.round_id:
            left = self._newest.closes_at - (now + self._clock_offset)
        self._ask_verdict.stop()
        self._ask_verdict.start(now, ask_after_seconds(left) + self._jitter())
        self._count_budget()

    def _decline(self, plan: RoundPlan, reason: Reason) -> None:
        log.info("round %d declined: %s", plan.round_id, reason.name.lower())
        self._save(replace(self._state, answered=plan.round_id))
        self._publish(
            Channel.ANSWER,
            Decline(
                round_id=plan.round_id,
                reason=reason,
                sent=self._session.bytes_sent,
                received=self._session.bytes_received,
            ),
        )

    def _send_statistics(self, plan: RoundPlan) -> None:
        assert self._samples is not None  # the gates saw to it
        count, mean, m2 = statistics(self._samples.train_x)
        self._save(replace(self._state, answered=plan.round_id))
        self._publish(
            Channel.STATISTICS,
            Statistics(
                round_id=plan.round_id,
                count=count,
                mean=mean.astype("<f4").tobytes(),
                m2=m2.astype("<f4").tobytes(),
                sent=self._session.bytes_sent,
                received=self._session.bytes_received,
            ),
        )

    def _shut_gate(self, plan: RoundPlan) -> Reason | None:
        task = self._state.task
        if task is None:
            return Reason.TASK
        if plan.kind is RoundKind.TRAINING and self._state.scaler is None and task.windowing.scaling == "learnt":
            # The plan that carried the scaler was missed: the next welcome brings it.
            self._born_again.start(self._monotonic())
            return Reason.NO_MODEL
        try:
            self._load()
        except SampleError as error:
            log.error("%s", error)
            return Reason.SAMPLES
        windows = 0 if self._samples is None else len(self._samples.train_x)
        self._count_budget()
        local = datetime.fromtimestamp(self._monotonic() + self._clock_offset)
        bytes_today, bytes_month = self._budget.used(local)
        try:
            vitals = self._read_vitals()
        except SettingsError as error:
            # A file of vitals that is being written just now: all that is known is that nothing is known.
            log.warning("vitals cannot be read: %s", error)
            vitals = Vitals()
        return check(
            vitals,
            self._limits,
            now_local=local,
            bytes_today=bytes_today,
            bytes_month=bytes_month,
            windows=windows,
            min_windows=max(task.min_windows, MIN_STATISTICS_WINDOWS)
            if plan.kind is RoundKind.STATISTICS
            else task.min_windows,
        )

    def _look_for_recordings(self) -> None:
        """Tell of new recordings, also while no round asks for them: they may be what a resting run waits for."""
        try:
            if not self._source.changed():
                return
            self._samples = None
            self._load()
        except SampleError as error:
            log.error("%s", error)
            return
        self._publish(Channel.STATUS, self._birth(), retain=True)

    def _load(self) -> None:
        """Cut windows where that has not been done yet. Raises SampleError."""
        task = self._state.task
        if task is None:
            return
        if self._engine is None:
            self._engine = self._make_engine(task)
        if self._samples is None:
            self._samples = self._source.load(task.windowing, task.classes, task.anomaly_label)

    def _birth(self) -> Birth:
        state = self._state
        return Birth(
            nonce=self._nonce,
            software=self._software,
            engines=("numpy",),
            signal_samples=self._signal_samples(),
            sent=self._session.bytes_sent,
            received=self._session.bytes_received,
            held=()
            if state.task is None
            else (
                Held(
                    lineage=state.lineage,
                    version=state.version,
                    task=short(state.task.digest),
                    counter=state.counter,
                ),
            ),
        )

    def _signal_samples(self) -> dict[str, int]:
        """By label. A recording that is just being written must not end a process that runs for months: what was
        counted last is told again, and the gates see to the rest."""
        try:
            self._counted = self._source.signal_samples()
        except SampleError as error:
            log.error("%s", error)
        return self._counted

    def _leave_message(self) -> Leave:
        return Leave(
            nonce=self._nonce, clean=True, sent=self._session.bytes_sent, received=self._session.bytes_received
        )

    def _ask(self, message: Message) -> None:
        self._publish(Channel.ASK, message)

    def _publish(self, channel: Channel, message: Message, *, retain: bool = False) -> None:
        row = spec(Direction.UP, channel)
        self._session.publish(
            topic(self._federation, Direction.UP, channel, self.name), to_bytes(message), qos=row.qos, retain=retain
        )

    def _save(self, state: GatewayState) -> None:
        self._memory.save(state)
        self._state = state

    def _count_budget(self) -> None:
        if self._limits.daily_bytes is None and self._limits.monthly_bytes is None:
            return  # nobody asks, and each count is a write to the disk
        total = self._session.bytes_sent + self._session.bytes_received
        local = datetime.fromtimestamp(self._monotonic() + self._clock_offset)
        self._budget = self._budget.add(total - self._budget_counted, local)
        self._budget_counted = total
        self._memory.put("budget", msgspec.json.encode(self._budget.to_dict()))

    def _jitter(self) -> float:
        return self._rng.uniform(0.0, self._ask_jitter)


def _budget(stored: bytes | None) -> Budget:
    """What was used before; a new budget where nothing is stored. Raises ValueError for anything else."""
    return Budget() if stored is None else Budget.from_dict(msgspec.json.decode(stored, type=dict[str, str | int]))


def _retry_text(seconds: float | None) -> str:
    return "" if seconds is None else f"; trying again in {seconds:.1f} s"
