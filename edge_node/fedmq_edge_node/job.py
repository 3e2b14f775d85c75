"""One task of a gateway: its state, the plan at hand, its windows and engine, its transfers, its questions, its answer.

Owns what is volatile of a task, and the order of things: what must survive is saved before anything that depends on it
is sent. What to decide is in `work`. Whatever belongs to the gateway as a whole (connection, clock, vitals, budget,
file) is reached through `Host`. A job never waits: it is told of what came and of the time.

Every question is repeated with a doubling pause. What has come of a transfer outlives connections and welcomes.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import msgspec
import numpy as np
from fedmq_protocol.logs import about
from fedmq_protocol.messages import (
    MIN_STATISTICS_WINDOWS,
    AskChunks,
    AskModel,
    AskVerdict,
    Assignment,
    BlobRef,
    CatchUp,
    CatchUpKind,
    Chunk,
    Decline,
    Held,
    Message,
    Missing,
    PersonalPolicy,
    Receipt,
    Release,
    RoundKind,
    RoundPlan,
    Statistics,
    Update,
    Verdict,
    ask_after_seconds,
)
from fedmq_protocol.reasons import Reason
from fedmq_protocol.task import ModelSpec, Task, model_digest, short
from fedmq_protocol.topics import CHUNK_BYTES, Channel
from fedmq_protocol.transfer import TransferError, refer
from numpy.typing import NDArray

from fedmq_edge_node import work
from fedmq_edge_node.figures import TaskFigures
from fedmq_edge_node.memory import GatewayState, InService, Personal, StateError
from fedmq_edge_node.personal import Fitting, Scorer, describe, scorer, windows_mark
from fedmq_edge_node.runtimes import Engine, GraphStopped
from fedmq_edge_node.samples import SampleError, Samples, statistics
from fedmq_edge_node.transfers import Downloads, Upload

__all__ = ["Host", "Job", "Retry"]

log = logging.getLogger("fedmq.gateway")

RETRY_FIRST_SECONDS = 5.0
RETRY_MOST_SECONDS = 300.0

PERSONAL_SLICE_SECONDS = 0.2
"""A personal model is fitted for so long at a time; in between the gateway hears what has come."""
PERSONAL_AGAIN_SECONDS = 3600.0
"""Where recordings change all the time, a personal model is made anew at most so often."""


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

    def put_off(self, now: float) -> None:
        """Where it runs: not before its first pause has passed from now on."""
        if self.at is not None:
            self.at = max(self.at, now + self._first)

    def stop(self) -> None:
        self.at = None


class Host(Protocol):
    """What a job asks of its gateway."""

    @property
    def name(self) -> str: ...

    @property
    def roster(self) -> int:
        """The gateway's place."""

    @property
    def bytes_sent(self) -> int: ...

    @property
    def bytes_received(self) -> int: ...

    @property
    def beyond(self) -> int | None:
        """What TCP/IP and TLS have put around these so far, in whole BEYOND_UNIT bytes; None: nobody counts it."""

    @property
    def vitals(self) -> int | None:
        """Battery and link as the gates saw them last, as an answer tells them; None: it does not tell."""

    @property
    def outstanding(self) -> int:
        """Messages that the broker has not acknowledged."""

    @property
    def answer_jitter_seconds(self) -> float: ...

    @property
    def vitals_every_seconds(self) -> float: ...

    def now(self) -> float:
        """Monotonic seconds."""

    def cpu_seconds(self) -> float | None:
        """That this process has used since it started; None: nobody measures it."""

    def alive(self) -> None:
        """Say so to whoever watches over the process."""

    def coordinator_time(self, now: float) -> float:
        """Unix seconds by the coordinator's clock."""

    def random_seconds(self, most: float) -> float:
        """From 0 to `most`."""

    def jitter(self) -> float:
        """Seconds to wait before a question that others may ask, too."""

    def publish(self, channel: Channel, message: Message, *, qos: int | None = None) -> bool: ...

    def listen_for_models(self) -> None:
        """Hear of catch-ups, for as long as a job waits for one."""

    def save(self, state: GatewayState) -> None:
        """Durable when it returns."""

    def load(self, task: Task) -> Samples:
        """The gateway's own windows for a task. Raises SampleError."""

    def make_engine(self, task: Task) -> Engine: ...

    def refuse(self, task: Task, error: Exception) -> None:
        """Nobody trains with the task's bundle any more."""

    def refuses(self, task: Task) -> bool: ...

    def start_of(self, task: Task) -> NDArray[np.int32] | None:
        """Version 0 `(P,) int32` where the task's bundle holds it; None: the seed draws it, or the bundle is not at
        hand."""

    def shut_gate(self, windows: int, min_windows: int) -> Reason | None: ...

    def count_budget(self) -> None: ...

    def join_again(self, now: float, delay_seconds: float) -> None: ...


DELTA, CATCH_UP, RELEASE = "delta", "catch-up", "release"
"""What a blob that comes in is for: the delta of a plan, the body of a catch-up, and of a released version."""


@dataclass(kw_only=True, eq=False)
class _Candidate:
    """A released version at hand, not tried yet."""

    release: Release
    steps: NDArray[np.int32]


@dataclass(kw_only=True)
class _Questions:
    verdict: Retry = field(default_factory=Retry)
    model: Retry = field(default_factory=Retry)
    release: Retry = field(default_factory=Retry)

    @property
    def idle(self) -> bool:
        return self.verdict.at is None and self.model.at is None and self.release.at is None

    def due_at(self) -> Iterator[float]:
        for retry in (self.verdict, self.model, self.release):
            if retry.at is not None:
                yield retry.at


P = ParamSpec("P")
R = TypeVar("R")


def _told(method: Callable[Concatenate[Job, P], R]) -> Callable[Concatenate[Job, P], R]:
    """Lines that are logged inside say of which task and of which round they are."""

    @functools.wraps(method)
    def inside(job: Job, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with about(task=job.task_name, round=job.newest_round):
            return method(job, *args, **kwargs)

    return inside


class Job:
    """One task, from the state that is on disk."""

    def __init__(self, host: Host, state: GatewayState) -> None:
        self._host = host
        start = None if state.task is None else host.start_of(state.task)
        self._state = state if start is None else replace(state, start=start)
        self._samples: Samples | None = None
        self._held: bytes | None = None
        """Mark of the held-out windows; None until they are cut."""
        self._engine: Engine | None = None
        self._newest: RoundPlan | None = None
        """The newest plan since the welcome, answered or not."""
        self._plan: RoundPlan | None = None
        """The one that is still to be dealt with."""
        self._answer_not_before = 0.0
        self._cpu_before: float | None = None
        """What the process had used as it turned to the plan."""
        self._downloads: Downloads[RoundPlan | CatchUp] = Downloads()
        self._upload: Upload | None = None
        self._ask = _Questions()
        self._releases = 0
        self._release: Release | None = None
        self._candidate: _Candidate | None = None
        self._untold = state.tried is not None
        self._policy: PersonalPolicy | None = None
        """As the last welcome has it."""
        self._fitting: Fitting | None = None
        self._fit_not_before = 0.0
        self._fit_looked_at = -math.inf
        """When the gates were last asked about it."""
        self._windows: bytes | None = None
        """Mark of all windows; None until somebody asks for it."""
        self._scorer: tuple[InService, Personal | None, Scorer] | None = None
        """With what it was made of."""

    @property
    def state(self) -> GatewayState:
        return self._state

    @property
    def task(self) -> Task:
        assert self._state.task is not None  # a job is made of an assignment, or of a state with its task
        return self._state.task

    def task_name(self) -> str | None:
        """None before it has joined."""
        return None if self._state.task is None else self._state.task.name

    def newest_round(self) -> int | None:
        """That a plan has come for since the welcome."""
        return None if self._newest is None else self._newest.round_id

    def figures(self) -> TaskFigures | None:
        """For any thread; None before it has joined."""
        state, samples = self._state, self._samples
        if state.task is None:
            return None
        by_class: dict[str, int] = {}
        if samples is not None and state.task.objective == "classify":
            counts = np.bincount(samples.train_y.astype(np.int64), minlength=len(state.task.classes))
            by_class = dict(zip(state.task.classes, counts.tolist(), strict=False))
        return TaskFigures(
            name=state.task.name,
            version=state.version,
            in_service=None if state.in_service is None else state.in_service.version,
            train_windows=None if samples is None else samples.train_windows,
            held_windows=None if samples is None else samples.held_windows,
            windows_by_class=by_class,
            min_windows=state.task.min_windows,
        )

    @property
    def models(self) -> list[ModelSpec]:
        """That of the task, and of the version in service, which may be another task's."""
        service = self._state.in_service
        return [self.task.model, *([] if service is None else [service.task.model])]

    @property
    def held(self) -> Held:
        """As a birth tells it."""
        state = self._state
        return Held(lineage=state.lineage, version=state.version, task=short(self.task.digest), counter=state.counter)

    @property
    def waits_for_model(self) -> bool:
        return self._ask.model.at is not None or self._ask.release.at is not None

    @property
    def sending(self) -> bool:
        """Whether chunks wait for the connection."""
        return self._upload is not None and self._upload.waiting

    @property
    def closes_at(self) -> float:
        """Of the plan to be dealt with, by the coordinator's clock."""
        return float("inf") if self._plan is None else self._plan.closes_at

    # -- joining -----------------------------------------------------------------------------------------------

    @_told
    def adopt(self, assignment: Assignment) -> None:
        """Take the assignment's word, durably. Raises ModelMismatch, and then all is as it was."""
        state = work.adopt(self._state, assignment, self._start(assignment.task or self.task))
        if state.lineage != self._state.lineage:
            log.info("joined lineage %d with task %r", state.lineage, state.task.name if state.task else "")
            self._downloads = Downloads()
            self._ask = _Questions()
            self._upload = self._newest = self._plan = self._candidate = None
        if state.task is not self._state.task:
            self._samples = self._engine = self._held = self._windows = None
        if state.pending is None:
            self._settled()
        self._save(state)

    def _start(self, task: Task) -> NDArray[np.int32] | None:
        start, known = self._host.start_of(task), self._state.start
        # The same array where nothing is new: a state that is the same object is not written again.
        return known if start is not None and known is not None and np.array_equal(start, known) else start

    @_told
    def welcomed(self, assignment: Assignment, now: float, *, arrived: bool) -> None:
        """Go by an assignment that was adopted; `arrived`: it is the first since the connection stands."""
        if arrived:
            self._newest = self._plan = None
            self._resume(now)
        self._releases = assignment.releases
        self._release = assignment.release
        if assignment.plan is not None:
            self.on_plan(assignment.plan, now)
        self._look_for_release(now)
        self._heed_policy(assignment.personal)
        self._tell_of_trial()
        pending = self._state.pending
        if pending is None or not arrived:
            return
        if assignment.plan is not None and assignment.plan.round_id == pending.round_id:
            self._send_pending(now)
        else:
            self._ask.verdict.hurry(now, self._host.jitter())

    def _resume(self, now: float) -> None:
        if self._upload is not None:
            self._upload.interrupt()
        self._downloads.resume(now, self._host.bytes_received, self._host.jitter())

    # -- what comes in -----------------------------------------------------------------------------------------

    @_told
    def on_plan(self, plan: RoundPlan, now: float) -> bool:
        """Take a plan of this lineage; True where it speaks of a release that this gateway has not heard of."""
        newest = 0 if self._newest is None else self._newest.round_id
        if newest > plan.round_id:
            return False  # an older plan that came late
        if newest == plan.round_id and self._state.version > plan.base:
            return False  # the same again, after a catch-up has led beyond it
        again = self._newest == plan
        self._newest = self._plan = plan
        if newest != plan.round_id:
            self._answer_not_before = now + self._host.random_seconds(self._host.answer_jitter_seconds)
        self._settle_by(plan, now)
        if again and self._state.pending is not None:
            # The coordinator is back, and what it had not written down is gone: an update at QoS 0, for one.
            self._ask.verdict.hurry(now, self._host.jitter())
        self._come_to_base(plan, now)
        return plan.release is not None and plan.release != self._releases

    @_told
    def expect(self, plan: RoundPlan, now: float) -> bool:
        """Collect the delta that a plan names; False where there is none in chunks that leads on from here.

        To be called before the welcome, too, which brings the plan again: the chunks, which come right behind the
        plan, it does not.
        """
        if not isinstance(plan.delta, BlobRef) or self._state.version + 1 != plan.base:
            return False
        self._fetch(DELTA, plan, plan.delta, now)
        return True

    def _come_to_base(self, plan: RoundPlan, now: float) -> None:
        if self.expect(plan, now):
            return
        if self._state.version < plan.base and self._downloads.under_way(DELTA):
            return  # a delta before this plan's is coming in; from where it leads we see further
        self._advance(plan, plan.delta if isinstance(plan.delta, bytes) else None, now)

    def _advance(self, plan: RoundPlan, delta: bytes | None, now: float) -> None:
        try:
            self._state = work.advance(self._state, plan, delta)
        except work.ModelMismatch as error:
            log.info("must catch up: %s", error)
            if self._state.version >= plan.base:
                # Our own history is not the coordinator's: only version 0 is common ground.
                self._state = work.start_over(self._state)
            self._ask.model.start(now, self._host.jitter())
            return
        self._ask.model.stop()
        self._look_for_release(now)

    def _settle_by(self, plan: RoundPlan, now: float) -> None:
        """What a plan says of the pending update: before anything else, since it may be the next one to train on.

        On disk with the next save: until then the old state stands there, and a restart hears the same again.
        """
        self._state = work.settle_by_plan(self._state, plan, self._host.roster)
        pending = self._state.pending
        if pending is None:
            self._settled()
        elif pending.round_id < plan.round_id:
            self._ask.verdict.hurry(now, self._host.jitter())

    def awaits(self, receipt: Receipt) -> bool:
        """Whether it is on this job's pending update."""
        pending = self._state.pending
        return pending is not None and (receipt.round_id, receipt.counter) == (pending.round_id, pending.counter)

    @_told
    def on_receipt(self, receipt: Receipt, now: float) -> None:
        if receipt.verdict is Verdict.UNKNOWN:
            self._send_pending(now)
            return
        self._save(work.settle(self._state, receipt))
        self._settled()
        if receipt.verdict is not Verdict.ACCEPTED:
            with about(round=receipt.round_id):
                log.warning("the update of round %d was not taken: %s", receipt.round_id, receipt.verdict.name.lower())

    def _settled(self) -> None:
        self._ask.verdict.stop()
        self._upload = None

    @_told
    def on_catch_up(self, message: CatchUp, now: float) -> None:
        """Take what this job has asked for; the rest is somebody else's, or from a version that is not at hand."""
        uses = [RELEASE] if self._is_release(message) else []
        if self._advances(message):
            uses.append(CATCH_UP)
        for use in uses:
            if isinstance(message.body, BlobRef):
                self._fetch(use, message, message.body, now)
            else:
                self._caught_up(use, message, message.body, now)

    def _advances(self, message: CatchUp) -> bool:
        state = self._state
        begins_here = message.kind is CatchUpKind.KEYFRAME or message.start == state.version
        return self._ask.model.at is not None and message.number > state.version and begins_here

    def _is_release(self, message: CatchUp) -> bool:
        return (
            self._release is not None
            and self._ask.release.at is not None
            and message.kind is CatchUpKind.KEYFRAME
            and (message.number, message.model) == (self._release.version, self._release.model)
        )

    def _caught_up(self, use: str, message: CatchUp, body: bytes, now: float) -> None:
        if use == RELEASE:
            self._take_release(message, body)
            return
        if not self._advances(message):
            return
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
        self._ask.model.stop()
        if self._plan is not None and self._plan.base > state.version:
            self._come_to_base(self._plan, now)
        self._look_for_release(now)

    # -- transfers ---------------------------------------------------------------------------------------------

    def _fetch(self, kind: str, use: RoundPlan | CatchUp, ref: BlobRef, now: float) -> None:
        try:
            self._downloads.begin(
                kind,
                use,
                ref,
                # Nothing about a model is larger than all its parameters at 8 bytes.
                8 * self.task.model.parameters + 65_536,
                now=now,
                received=self._host.bytes_received,
                delay_seconds=self._host.jitter(),
            )
        except TransferError as error:
            log.warning("dropped a transfer: %s", error)

    @_told
    def on_chunk(self, chunk: Chunk, now: float) -> None:
        try:
            whole = self._downloads.add(chunk, now, self._host.bytes_received)
        except TransferError as error:
            log.warning("transfer: %s", error)
            return
        if whole is None:
            return
        blob, uses = whole
        for kind, use in uses.items():
            if isinstance(use, CatchUp):
                self._caught_up(kind, use, blob, now)
            elif self._state.version + 1 == use.base:
                self._advance(use, blob, now)
                if self._plan is not None and self._state.version < self._plan.base and self._ask.model.at is None:
                    self._come_to_base(self._plan, now)

    @_told
    def on_missing(self, message: Missing) -> bool:
        """True where it is of this job's pending update."""
        pending = self._state.pending
        if pending is None or short(refer(pending.payload, CHUNK_BYTES).digest) != message.transfer:
            return False
        if self._upload is None:
            self._upload = Upload(pending.payload)
        self._upload.want(message.missing, self._host.outstanding)
        self._pump()
        return True

    def _pump(self) -> None:
        """Hand chunks to the connection, as many as it carries."""
        if self._upload is None:
            return
        while (chunk := self._upload.take(self._host.outstanding)) is not None:
            if not self._host.publish(Channel.CHUNK, chunk):
                self._upload.interrupt()

    # -- as time passes ----------------------------------------------------------------------------------------

    def due_at(self, now: float) -> float:
        """When something is to be done, unless an event comes; infinity where nothing is."""
        if self.ready(now) or self._candidate is not None:
            return now
        due = math.inf
        if self._plan is not None and now < self._answer_not_before:
            due = self._answer_not_before
        if not self._ask.idle:
            due = min(due, *self._ask.due_at())
        if not self._downloads.idle:
            due = min(due, *self._downloads.due_at())
        if self._wants_personal():
            due = min(due, max(now, self._fit_not_before))
        return due

    @_told
    def ask(self, now: float) -> None:
        """Send on what waits, and put the questions that are due."""
        if self._upload is None and self._ask.idle and self._downloads.idle:
            return
        self._pump()
        state, pending = self._state, self._state.pending
        # A question that would begin a transfer anew has time until that one is whole, or given up.
        if self._downloads.under_way(RELEASE):
            self._ask.release.put_off(now)
        if self._downloads.under_way(DELTA) or self._downloads.under_way(CATCH_UP):
            self._ask.model.put_off(now)
        if self._ask.model.due(now):
            self._host.listen_for_models()
            log.info("version %d is at hand, asking for the newest", state.version)
            self._question(AskModel(lineage=state.lineage, version=state.version))
        if self._ask.release.due(now) and self._release is not None:
            self._host.listen_for_models()
            log.info("asking for version %d, to be put in service", self._release.version)
            self._question(AskModel(lineage=state.lineage, version=state.version, wanted=self._release.version))
        if pending is None:
            self._ask.verdict.stop()
        elif self.sending and self._newest is not None and self._newest.round_id == pending.round_id:
            self._ask.verdict.put_off(now)
        elif self._ask.verdict.due(now):
            digest = short(refer(pending.payload, 256).digest)
            self._question(AskVerdict(round_id=pending.round_id, counter=pending.counter, digest=digest))
        for key, missing in self._downloads.due(now, self._host.bytes_received):
            # One try: above QoS 0 it would be sent again on the next connection, and what it asks for come twice.
            self._host.publish(Channel.ASK, AskChunks(transfer=key, missing=missing), qos=0)
        for uses in self._downloads.give_up():
            log.warning("gave up a transfer (%s)", ", ".join(uses))
            if DELTA in uses:
                self._ask.model.hurry(now, self._host.jitter())

    def _question(self, message: AskModel | AskVerdict) -> None:
        self._host.publish(Channel.ASK, message)

    # -- the answer --------------------------------------------------------------------------------------------

    def ready(self, now: float) -> bool:
        """Whether there is a plan that can be dealt with now."""
        plan = self._plan
        if plan is None or now < self._answer_not_before or self._state.version != plan.base:
            # Its delta, or a catch-up, is still on its way; even a plan that is over brings the newest model.
            return False
        return self._state.pending is None or not self._asks_us(plan, now)

    def _asks_us(self, plan: RoundPlan, now: float) -> bool:
        over = self._host.coordinator_time(now) > plan.closes_at or plan.kind is RoundKind.REST
        return not over and plan.round_id > self._state.answered and plan.draws(self._host.roster, self._host.name)

    @_told
    def answer(self, now: float) -> bool:
        """Deal with the plan; True where that took a training."""
        plan = self._plan
        assert plan is not None  # it is ready
        self._plan = None
        self._cpu_before = self._host.cpu_seconds()
        if not self._asks_us(plan, now):
            self._save(self._state)
            return False
        reason = self._shut_gate(plan)
        if reason is not None:
            self._decline(plan, reason)
            return False
        if plan.kind is RoundKind.STATISTICS:
            self._send_statistics(plan)
            return False
        self._train(plan)
        return True

    def _train(self, plan: RoundPlan) -> None:
        assert self._samples is not None  # the gates saw to it
        host = self._host
        shut: list[Reason] = []
        looked_at = host.now()

        def keep_going() -> bool:
            nonlocal looked_at
            now = host.now()
            if not self.task.staleness and host.coordinator_time(now) > plan.closes_at:
                shut.append(Reason.LATE)
                return False
            if now - looked_at >= host.vitals_every_seconds:
                looked_at = now
                host.alive()
                reason = self._shut_gate(plan)
                if reason is not None:
                    shut.append(reason)
                    return False
            return True

        try:
            trained = work.train_update(
                self._state,
                plan,
                self._samples,
                self._engine_of(self.task),
                gateway=host.name,
                keep_going=keep_going,
                now=host.now,
            )
        except StateError:
            raise
        except GraphStopped as error:
            host.refuse(self.task, error)
            self._decline(plan, Reason.TASK)
            return
        except ValueError as error:
            log.error("round %d: %s", plan.round_id, error)
            self._decline(plan, Reason.ERROR)
            return
        if trained.stopped:
            self._decline(plan, shut[-1])
            return
        pending = trained.state.pending
        assert pending is not None  # nothing has stopped it
        self._save(replace(trained.state, pending=msgspec.structs.replace(pending, cpu=self._cpu_spent())))
        log.info("round %d: loss %.4f", plan.round_id, trained.loss)
        self._send_pending(host.now(), first=True)

    def _cpu_spent(self) -> int | None:
        """On the plan so far, in 1/100 s."""
        now = self._host.cpu_seconds()
        if now is None or self._cpu_before is None:
            return None
        return max(0, round(100 * (now - self._cpu_before)))

    def _send_pending(self, now: float, *, first: bool = False) -> None:
        """Send the update; of one in chunks these only the `first` time, then the coordinator says what it lacks."""
        pending = self._state.pending
        if pending is None:
            return
        host = self._host
        payload: bytes | BlobRef = pending.payload
        if len(pending.payload) > CHUNK_BYTES:
            if self._upload is None:
                self._upload = Upload(pending.payload)
            payload = self._upload.ref
        host.publish(
            Channel.ANSWER,
            Update(
                round_id=pending.round_id,
                base=pending.base_mark,
                counter=pending.counter,
                payload=payload,
                sent=host.bytes_sent,
                received=host.bytes_received,
                loss=pending.loss,
                evaluation=pending.evaluation,
                beyond=host.beyond,
                cpu=pending.cpu,
                vitals=host.vitals,
            ),
            # Its chunks are worth nothing without it, so that it goes as safely as they do.
            qos=1 if isinstance(payload, BlobRef) else None,
        )
        if first and self._upload is not None:
            self._upload.want(None, host.outstanding)
            self._pump()
        left = 0.0
        if self._newest is not None and self._newest.round_id == pending.round_id:
            left = self._newest.closes_at - host.coordinator_time(now)
        self._ask.verdict.stop()
        self._ask.verdict.start(now, ask_after_seconds(left) + host.jitter())
        host.count_budget()

    def _decline(self, plan: RoundPlan, reason: Reason) -> None:
        log.info("round %d declined: %s", plan.round_id, reason.name.lower())
        self._save(replace(self._state, answered=plan.round_id))
        self._host.publish(
            Channel.ANSWER,
            Decline(
                round_id=plan.round_id,
                reason=reason,
                sent=self._host.bytes_sent,
                received=self._host.bytes_received,
                beyond=self._host.beyond,
                cpu=self._cpu_spent() or None,
                vitals=self._host.vitals,
            ),
        )

    def _send_statistics(self, plan: RoundPlan) -> None:
        assert self._samples is not None  # the gates saw to it
        count, mean, m2 = statistics(self._samples.train_x)
        # Sent before it is noted: said twice they are the same and counted once, and there is no receipt to ask for.
        self._host.publish(
            Channel.STATISTICS,
            Statistics(
                round_id=plan.round_id,
                count=count,
                mean=mean.astype("<f4").tobytes(),
                m2=m2.astype("<f4").tobytes(),
                sent=self._host.bytes_sent,
                received=self._host.bytes_received,
                beyond=self._host.beyond,
                cpu=self._cpu_spent(),
                vitals=self._host.vitals,
            ),
        )
        self._save(replace(self._state, answered=plan.round_id))

    def _shut_gate(self, plan: RoundPlan) -> Reason | None:
        task = self.task
        if self._host.refuses(task):
            return Reason.TASK
        if plan.kind is RoundKind.TRAINING and self._state.scaler is None and task.windowing.scaling == "learnt":
            # The plan that carried the scaler was missed: the next welcome brings it.
            self._host.join_again(self._host.now(), 0.0)
            return Reason.NO_MODEL
        try:
            self.load()
        except SampleError as error:
            log.error("%s", error)
            return Reason.TASK if self._host.refuses(task) else Reason.SAMPLES
        windows = 0 if self._samples is None else len(self._samples.train_x)
        needed = task.min_windows
        if plan.kind is RoundKind.STATISTICS:
            needed = max(needed, MIN_STATISTICS_WINDOWS)
        return self._host.shut_gate(windows, needed)

    # -- recordings --------------------------------------------------------------------------------------------

    def forget_windows(self) -> None:
        """The recordings have changed."""
        self._samples = self._held = self._windows = None

    def load(self) -> None:
        """Cut windows where that has not been done yet. Raises SampleError."""
        if self._samples is not None:
            return
        self._samples = self._host.load(self.task)
        self._held = work.held_mark(self._samples)
        # Other windows may find for a released version that lost.
        self._look_for_release(self._host.now())

    # -- the model in service ----------------------------------------------------------------------------------

    def _look_for_release(self, now: float) -> None:
        """See that a released version that is to be tried comes to hand."""
        release = self._release
        if release is None or work.decided(self._state, release, self._held):
            self._candidate = None
            self._ask.release.stop()
            return
        if self._candidate is not None and self._candidate.release == release:
            return
        self._candidate = None
        state = self._state
        if state.version == release.version and short(model_digest(state.steps)) == release.model:
            self._candidate = _Candidate(release=release, steps=state.steps)
            self._ask.release.stop()
        else:
            self._ask.release.start(now, self._host.jitter())

    def _take_release(self, message: CatchUp, body: bytes) -> None:
        if self._release is None or not self._is_release(message):
            return
        try:
            steps = work.keyframe(self._state, message, body)
        except work.ModelMismatch as error:
            log.warning("a released version cannot be read: %s", error)
            return
        self._candidate = _Candidate(release=self._release, steps=steps)
        self._ask.release.stop()

    @_told
    def try_release(self) -> None:
        """Hold a released version that is at hand against the model in service."""
        candidate = self._candidate
        if candidate is None:
            return
        try:
            self.load()
        except SampleError as error:
            log.error("%s", error)
        if self._candidate is not candidate:
            return  # those windows have decided already
        self._candidate = None
        release = candidate.release
        try:
            state = work.trial(self._state, release, candidate.steps, self._samples, self._host.make_engine)
        except ValueError as error:
            log.error("version %d was released and cannot be tried: %s", release.version, error)
            self._release = None
            return
        if state.in_service is not self._state.in_service:
            self._fit_not_before = 0.0
        self._save(state)
        self._untold = True
        assert state.in_service is not None  # either of the two
        log.info("version %d was released: version %d is in service", release.version, state.in_service.version)
        self._tell_of_trial()

    def _tell_of_trial(self) -> None:
        """Once for each, and once more after a restart, which may have come between saving and sending."""
        tried, own = self._state.tried, self._state.personal
        if self._untold and tried is not None and tried.trial.lineage == self._state.lineage:
            trial = tried.trial if own is None else msgspec.structs.replace(tried.trial, personal=own.found)
            self._untold = not self._host.publish(Channel.TRIAL, trial)

    # -- the personal model ------------------------------------------------------------------------------------

    def scorer(self) -> Scorer | None:
        """What scores this gateway's windows; None before the first release. Raises ValueError where it cannot run."""
        service, own = self._state.in_service, self._state.personal
        if service is None:
            return None
        if self._scorer is None or self._scorer[0] is not service or self._scorer[1] is not own:
            self._scorer = (service, own, scorer(service, own, self._engine_of(service.task)))
        return self._scorer[2]

    def _engine_of(self, task: Task) -> Engine:
        """Of the task in training, or of the version in service, which may be another task's."""
        if task.model != self.task.model:
            return self._host.make_engine(task)
        if self._engine is None:
            self._engine = self._host.make_engine(task)
        return self._engine

    def _heed_policy(self, policy: PersonalPolicy | None) -> None:
        if policy != self._policy:
            self._fit_not_before = 0.0
        self._policy = policy
        if policy is None:
            self._fitting = None
        if policy is None and self._state.personal is not None:
            log.info("no personal model is wanted any more: the version in service scores")
            self._save(replace(self._state, personal=None))
            self._untold = True

    def _wants_personal(self) -> bool:
        """Whether one is to be made: of another version, by another policy or from other windows than the last."""
        policy, service, own = self._policy, self._state.in_service, self._state.personal
        if policy is None or service is None or not work.comparable(service.task, self.task):
            return False
        if own is None or (own.base, own.policy) != (service.digest, policy):
            return True
        if self._samples is None:
            return self._fitting is not None  # they are taken to be the same until they are cut
        if self._windows is None:
            self._windows = windows_mark(self._samples)
        return self._windows != own.windows

    @_told
    def personalise(self, now: float) -> bool:
        """Go on with the personal model for a moment, where the gates are open; True where there was one to make."""
        if now < self._fit_not_before or not self._wants_personal():
            return False
        host = self._host
        try:
            self.load()
        except SampleError as error:
            log.error("%s", error)
            self._fit_not_before = now + RETRY_MOST_SECONDS
            return False
        assert self._samples is not None  # just cut
        if now - self._fit_looked_at >= host.vitals_every_seconds:
            self._fit_looked_at = now
            # Whether there are enough windows is for the fitting to say.
            reason = host.shut_gate(1, 1)
            if reason is not None:
                log.info("a personal model waits: %s", reason.name.lower())
                self._fit_not_before = now + RETRY_MOST_SECONDS
                return False
        self._fit(self._samples)
        return True

    def _fit(self, samples: Samples) -> None:
        service, policy = self._state.in_service, self._policy
        assert service is not None  # a personal model is wanted
        assert policy is not None
        fitting, began = self._fitting, self._host.now()
        if fitting is not None and (fitting.base, fitting.policy) != (service.digest, policy):
            fitting = None
        try:
            if fitting is None:
                engine = self._engine_of(service.task)
                fitting = self._fitting = Fitting(service, policy, samples, engine, gateway=self._host.name)
            while fitting.step():
                if self._host.now() - began >= PERSONAL_SLICE_SECONDS:
                    fitting.seconds += self._host.now() - began
                    return
            made = fitting.finish()
        except StateError:
            raise
        except ValueError as error:
            log.error("a personal model of version %d cannot be made: %s", service.version, error)
            if isinstance(error, GraphStopped):
                self._host.refuse(service.task, error)
            if fitting is None:
                self._policy = self._fitting = None  # until a welcome speaks of it again
                return
            made = fitting.failed()
        self._fitting = None
        self._fit_not_before = self._host.now() + PERSONAL_AGAIN_SECONDS
        self._save(replace(self._state, personal=made))
        log.info("%s", describe(made.found, service.version))
        self._untold = True
        self._tell_of_trial()

    def _save(self, state: GatewayState) -> None:
        self._host.save(state)
        self._state = state
