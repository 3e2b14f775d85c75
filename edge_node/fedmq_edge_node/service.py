"""The loop of a gateway: events from the connection and the time come in, messages go out, the memory stands between.

Owns what belongs to the gateway as a whole: the connection, the coordinator's clock, who it is, the budget, and which
tasks it takes part in. Each of these is a `Job`; what comes in is handed to the one that it is for: plans and
catch-ups by lineage, receipts by the pending update, chunks by what is coming in. One thing is trained at a time, and
of several plans at hand the one that closes first goes first.

`step` handles one event at a given time and never waits, so that a test or a simulation can drive it; only `run`
waits. Nothing is resent on a timer without bound. An answer goes out with QoS 0, since what counts is the coordinator's
word on it: the next plan says "accepted", a receipt anything else. Where neither comes, the gateway asks, early enough
to send a lost update again in the same round.

A welcome is the state of affairs, whenever it comes: what it does not name is over. A plan of a lineage that nobody
here has may be news, and the gateway is born again for it, once; where its welcome does not bring that lineage, it is
somebody else's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from random import Random
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np
from fedmq_models.bundle import Bundle, BundleError, start_of
from fedmq_models.graph import GraphError
from fedmq_protocol.condition import AlertOrders, Condition, FleetLimits, Noted
from fedmq_protocol.messages import (
    BEYOND_UNIT,
    MAX_TASKS,
    AskChunks,
    AskModel,
    AskVerdict,
    Assignment,
    Birth,
    CatchUp,
    Chunk,
    Decline,
    Leave,
    Message,
    Missing,
    Receipt,
    Roots,
    RoundKind,
    RoundPlan,
    SensorHealth,
    Statistics,
    Trial,
    Update,
    Welcome,
    from_bytes,
    split,
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
from fedmq_protocol.task import ModelSpec, Task, Windowing
from fedmq_protocol.topics import Channel, Direction, gateway_filters, parse, spec, topic
from numpy.typing import NDArray

from fedmq_edge_node import work
from fedmq_edge_node.bundles import ASK_AGAIN_SECONDS, Shelf
from fedmq_edge_node.figures import Figures, Tally
from fedmq_edge_node.gates import Budget, Limits, Vitals, check
from fedmq_edge_node.job import Job, Retry
from fedmq_edge_node.memory import GatewayState, InService, Memory
from fedmq_edge_node.personal import Scorer
from fedmq_edge_node.runtimes import Engine, GraphStopped, available_engines, make_engine, make_preparation
from fedmq_edge_node.samples import PREPARED, Preparation, SampleError, Samples

if TYPE_CHECKING:
    from fedmq_protocol.signing import GatewaySeals

    from fedmq_edge_node.courier import Courier

__all__ = ["CRASH_POINTS", "Gateway", "Source", "will"]

log = logging.getLogger("fedmq.gateway")

SENT: dict[type[Message], str] = {
    Birth: "birth",
    Leave: "leave",
    Update: "update",
    Decline: "decline",
    Statistics: "statistics",
    AskVerdict: "verdict question",
    AskModel: "model question",
    AskChunks: "chunks question",
    Chunk: "chunk",
    Trial: "trial",
    Condition: "condition",
}
"""What a gateway sends, by the names of its crash points."""

KEPT = ("save", "forget", "budget", "bundle")
"""What it makes durable: a task's state, that a task is over, the bytes used, a bundle."""

CRASH_POINTS = tuple(f"{when} {what}" for what in (*KEPT, *SENT.values()) for when in ("before", "after"))
"""Where a test can end a gateway: before and after each durable step, and each kind of message."""

STRANGE_LINEAGES = 256
"""So many of other gateways' lineages are remembered."""

BURST_EVENTS = 1000
"""Events that are handled before anything is trained, so that the newest plan is known by then."""

UNBELIEVED_SECONDS = 600.0
"""After signatures that are not of the root that it goes by, a gateway asks so often at most whether there is a newer
one: whoever forges them must not make it talk."""

CLOCKS_APART_SECONDS = 60.0
"""A plan that closed so long ago is no news."""

CHUNKS_LOOK_SECONDS = 0.05
"""While chunks wait for the connection, how often it is looked whether it takes more."""


LAST_WORD_BEYOND = 9
"""BEYOND_UNITs that the last word itself and the end of the connection come to, about: nobody counts after it. See
bench/ip_bytes.py."""

STALE = "stale"
"""The memory's key of an alert that stands."""


class Source(Protocol):
    """Where a gateway's windows come from: a `folder` of recordings, or the `sensors` of a bridge. All raise
    SampleError where it cannot be read."""

    def signal_samples(self) -> dict[str, int]:
        """Samples of signal by label."""

    def load(
        self, windowing: Windowing, classes: tuple[str, ...], healthy: str, preparation: Preparation | None = None
    ) -> Samples:
        """`healthy` is the label that an autoencoder trains on; `preparation` makes features of the set `bundle`."""

    def changed(self) -> bool:
        """Whether there is something new since the last `load`."""

    def silent(self) -> str:
        """What should have been heard of and was not, in words; empty where nothing is amiss."""
        return ""

    def health(self) -> tuple[SensorHealth, ...]:
        """How the sensors are that it comes from; empty where there are none."""
        return ()


def will(federation: str, name: str, nonce: bytes) -> Will:
    """What the broker says for a gateway that is gone without a word."""
    return Will(
        topic(federation, Direction.UP, Channel.STATUS, name), to_bytes(Leave(nonce=nonce, clean=False)), retain=True
    )


class Gateway:
    """One gateway. `vitals` reads the machine, `monotonic` is its clock in seconds, `source` its own recordings.

    `tags` say what it is and what it watches. With `tell_vitals` its births and answers tell of battery and link,
    births by `glance`, which need not read more than these (None: by `vitals`). With `seals` it believes nothing that
    is not sealed; `renewed` gives others once there is another card. `courier` tells of the machines that a watch
    beside it judges. `welcomed` hears of every welcome, with the coordinator's time. `alive` is called as the loop
    turns, and now and then while something is trained: who hears nothing of it for long may end the process.
    `cpu_seconds` tells what the process has used, and `beyond_bytes` what TCP/IP and TLS have put around the
    session's bytes: answers tell both. `crash_point` is called at each of `CRASH_POINTS`. Raises SampleError where
    there are no readable recordings to begin with, StateError for a damaged memory, then and whenever the memory
    takes nothing any more: the process must end, for what it would go on from is not on disk.
    """

    def __init__(
        self,
        *,
        name: str,
        federation: str,
        session: Session,
        memory: Memory,
        source: Source,
        vitals: Callable[[], Vitals],
        limits: Limits,
        monotonic: Callable[[], float],
        rng: Random,
        nonce: bytes,
        software: str,
        tags: tuple[str, ...] = (),
        tell_vitals: bool = True,
        glance: Callable[[], Vitals] | None = None,
        ask_jitter_seconds: float = 1.0,
        answer_jitter_seconds: float = 0.0,
        vitals_every_seconds: float = 1.0,
        look_every_seconds: float = 60.0,
        engine: Callable[[Task, Bundle | None], Engine] = lambda task, bundle: make_engine(task.model, bundle=bundle),
        preparation: Callable[[Bundle], Preparation | None] = make_preparation,
        prove: Callable[[Bundle], None] = lambda bundle: None,
        engines: tuple[str, ...] | None = None,
        seals: GatewaySeals | None = None,
        renewed: Callable[[], GatewaySeals | None] = lambda: None,
        stale_seconds: float = 86_400.0,
        welcomed: Callable[[float], None] = lambda at: None,
        courier: Courier | None = None,
        alive: Callable[[], None] = lambda: None,
        crash_point: Callable[[str], None] = lambda name: None,
        cpu_seconds: Callable[[], float] | None = None,
        beyond_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._name = name
        self._federation = federation
        self._session = session
        self._memory = memory
        self._source = source
        self._read_vitals = vitals
        self._tell_vitals = tell_vitals
        self._glance = glance
        self._vitals: Vitals | None = None
        """As they were read last; at a birth, perhaps, battery and link alone."""
        self._limits = limits
        self._monotonic = monotonic
        self._rng = rng
        self._nonce = nonce
        self._software = software
        self._tags = tags
        self._ask_jitter = ask_jitter_seconds
        self._answer_jitter = answer_jitter_seconds
        self._vitals_every = vitals_every_seconds
        self._look_every = look_every_seconds
        self._look_at = 0.0
        self._make_engine = engine
        self._make_preparation = preparation
        self._engines = available_engines() if engines is None else engines
        self._alive = alive
        self._cpu_seconds = cpu_seconds
        self._beyond_bytes = beyond_bytes
        self._crash_point = crash_point
        self._seals = seals
        self._renewed = renewed
        self._stale_seconds = stale_seconds
        self._tell_welcome = welcomed
        self._courier = courier
        self._heard_at = monotonic()
        """When the coordinator was last heard, for certain and with news."""
        self._unbelieved_at: float | None = None
        self.stale = False
        """Whether nothing new and signed has been heard for `stale_seconds`."""
        self._shelf = Shelf(get=memory.get, put=self._keep_bundle, drop=memory.drop, prove=prove)
        self._unfit: dict[int, ModelSpec] = {}
        """By lineage, the models whose bundle is not at hand, or was refused."""
        self._unfit_declined: dict[int, int] = {}
        """By lineage, the last round that was declined because its bundle was refused."""
        self._jobs = {name: Job(self, state) for name, state in memory.load().items()}
        self._budget = _budget(memory.get("budget"))
        self._budget_counted = 0
        self._tally = Tally()
        self._silent = False
        self._counted = source.signal_samples()
        self._recordings_changed = False
        self._connected = False
        self._welcomed = False
        self._welcomed_at = 0.0
        """By the coordinator's clock."""
        self._clock_offset = 0.0
        self._roster = 0
        self._spread = 0.0
        self._listening = False
        self._wondering: set[int] = set()
        """Lineages that the next welcome is expected to tell of."""
        self._strange: dict[int, None] = {}
        """Lineages that are not for this gateway, the latest last."""
        self._born_again = Retry()
        self.stopping = False
        session.subscribe(*gateway_filters(federation, name))

    @property
    def states(self) -> dict[str, GatewayState]:
        """By the names of the tasks."""
        return {name: job.state for name, job in self._jobs.items()}

    @property
    def state(self) -> GatewayState:
        """Of the first task, which most often is the only one; a fresh one where there is none."""
        return next((job.state for job in self._jobs.values()), GatewayState())

    def in_service(self, task_name: str) -> InService | None:
        """The shared model to infer with; None before the first release for this gateway. What scores is `scorer`."""
        job = self._jobs.get(task_name)
        return None if job is None else job.state.in_service

    def scorer(self, task_name: str) -> Scorer | None:
        """What scores this gateway's windows: the model in service, or the gateway's own variant of it where that is
        better here. None before the first release for this gateway. Raises ValueError where it cannot be run."""
        job = self._jobs.get(task_name)
        return None if job is None else job.scorer()

    def figures(self) -> Figures:
        """How it stands, for any thread."""
        now = self._monotonic()
        today, month = self._budget.used(datetime.fromtimestamp(self.coordinator_time(now)))
        return Figures(
            tally=self._tally,
            connected=self._connected,
            welcomed=self._connected and self._welcomed,
            stale=self.stale,
            heard_seconds=max(0.0, now - self._heard_at),
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            bytes_today=today,
            bytes_month=month,
            silent=self._silent,
            tasks=tuple(told for job in list(self._jobs.values()) if (told := job.figures()) is not None),
        )

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until `stopping` is set by a signal, then say good-bye with the last byte counts."""
        self._session.start()
        while not self.stopping:
            self._alive()
            event = self._session.next(self.wait_seconds(self._monotonic()))
            for _ in range(BURST_EVENTS):
                if event is None:
                    break
                self._handle(event, self._monotonic())
                event = self._session.next(0.0)
            self.step(event, self._monotonic())
        self.leave()

    def wait_seconds(self, now: float, most: float = 1.0) -> float:
        """How long nothing is due, unless an event comes; a second at most, to look whether to stop."""
        if not self._connected:
            return most
        soonest = now + most if self._born_again.at is None else self._born_again.at
        if self._welcomed:
            soonest = min(soonest, self._shelf.due_at())
            for job in self._jobs.values():
                soonest = min(soonest, job.due_at(now))
                if job.sending:
                    soonest = min(soonest, now + CHUNKS_LOOK_SECONDS)
        return min(most, max(0.0, soonest - now))

    def leave(self) -> None:
        """Publish the final totals; only this message and the DISCONNECT are not among them."""
        self.count_budget()
        self.publish(Channel.STATUS, self._leave_message())
        self._session.stop(flush_seconds=5.0)
        self._memory.close()

    def step(self, event: Event | None, now: float) -> None:
        """Handle one event, or None for the passing of time."""
        if event is not None:
            self._handle(event, now)
        if self._connected:
            self._timers(now)
        if self._seals is not None and not self.stale and now - self._heard_at > self._stale_seconds:
            self._alert(now)

    def _handle(self, event: Event, now: float) -> None:
        match event:
            case Connected():
                log.info("connected with MQTT %s", event.protocol)
                self._connected, self._welcomed = True, False
                self._renew()
                self._born_again.stop()
                self._born_again.start(now)
            case Disconnected() | ConnectFailed():
                self._connected = False
                if self._courier is not None:
                    self._courier.disconnected()
                log.warning("%s%s", event.reason, _retry_text(event.retry_in_seconds))
            case Denied():
                log.error("the broker denies %s: %s", event.topic, event.reason)
            case Dropped():
                log.warning("%d messages were dropped because they came faster than they were read", event.messages)
            case Received():
                self._receive(event, now)

    def _receive(self, event: Received, now: float) -> None:
        try:
            where = parse(event.topic)
            if self._seals is None:
                message = from_bytes(where.spec, event.payload)
            else:
                found = split(event.payload)
                message = from_bytes(where.spec, found.plain)
                self._seals.check(event.topic, where, message, found)
        except ValueError as error:
            log.warning("dropped %d bytes on %s: %s", len(event.payload), event.topic, error)
            if self._seals is not None and event.topic == topic(self._federation, Direction.DOWN, Channel.PLAN):
                self._unbelieved(now)
            return
        match message:
            case Welcome():
                self._on_welcome(message, now)
            case Roots():
                self._on_roots(message, now)
            case RoundPlan():
                self._hear(message, now)
                self._on_plan(message, now)
            case CatchUp() if self._is_over(message, now):
                log.info("passed over a catch-up that came late")
            case Receipt():
                for job in self._jobs.values():
                    if job.awaits(message):
                        job.on_receipt(message, now)
            case CatchUp():
                for job in self._jobs.values():
                    if job.state.lineage == message.lineage:
                        job.on_catch_up(message, now)
            case Chunk():
                for job in self._jobs.values():
                    job.on_chunk(message, now)
                if self._shelf.add(message, now, self.bytes_received):
                    # Whether it can take part now or must say why not: the welcome brings the task again.
                    self.join_again(now, 0.0)
            case Noted() | AlertOrders() | FleetLimits():
                self._on_condition(message, now)
            case Missing():
                for job in self._jobs.values():
                    job.on_missing(message)
            case _:
                log.warning("dropped a %s on %s: not for a gateway", type(message).__name__, event.topic)

    def _on_condition(self, message: Noted | AlertOrders | FleetLimits, now: float) -> None:
        """Of machines, for the watch: what is on record, what people ordered, what is normal elsewhere."""
        if self._courier is None:
            return
        match message:
            case Noted():
                self._courier.noted(message, now)
            case AlertOrders():
                self._courier.orders(message, now)
            case FleetLimits():
                self._courier.limits(message, now)

    # -- whom it believes --------------------------------------------------------------------------------------

    def _hear(self, message: Welcome | RoundPlan, now: float) -> None:
        """A welcome answers our own nonce. A plan is news until it closes: what somebody has kept and says again shows
        nothing. While nobody has told the time, no plan is."""
        if isinstance(message, RoundPlan) and (
            not self._welcomed or message.closes_at < self.coordinator_time(now) - CLOCKS_APART_SECONDS
        ):
            return
        self._heard_at = now
        if self.stale:
            self.stale = False
            self._memory.drop(STALE)
            log.warning("the coordinator is heard again")

    def _renew(self) -> None:
        """Whoever has a new certificate has come back for it, and has a new card as well."""
        try:
            self._seals = self._renewed() or self._seals
        except ValueError as error:
            log.error("%s; the card before stays in use", error)

    def _alert(self, now: float) -> None:
        self.stale = True
        since = self.coordinator_time(self._heard_at) if self._welcomed else 0.0
        self._memory.put(STALE, msgspec.json.encode({"since": since, "seconds": now - self._heard_at}))
        log.error(
            "ALERT: nothing new and signed by the coordinator for %.1f hours: it is down, or somebody keeps its"
            " messages from this gateway",
            (now - self._heard_at) / 3600,
        )

    def _is_over(self, message: CatchUp, now: float) -> bool:
        """Without seals nobody can be kept from saying anything, and clocks decide nothing."""
        until = message.until
        return self._seals is not None and until is not None and self.coordinator_time(now) > message.lineage + until

    def _on_roots(self, message: Roots, now: float) -> None:
        from fedmq_protocol.signing import TrustError

        if self._seals is None or message.nonce != self._nonce:
            return
        try:
            if not self._seals.walk(message):
                return
        except TrustError as error:
            log.warning("dropped roots: %s", error)
            return
        log.info("goes by root %d of the federation now", self._seals.root.version)
        self.join_again(now, 0.0)

    def _unbelieved(self, now: float) -> None:
        """There may be a newer root: a birth tells of ours, and brings what leads on from it."""
        if self._connected and (self._unbelieved_at is None or now - self._unbelieved_at > UNBELIEVED_SECONDS):
            self._unbelieved_at = now
            self.join_again(now, self._broadcast_jitter())

    def _timers(self, now: float) -> None:
        if self._born_again.due(now):
            self.publish(Channel.STATUS, self._birth())
        if not self._welcomed:
            return
        if now >= self._look_at:
            self._look_at = now + self._look_every
            self._look_for_recordings()
        if self._courier is not None and (told := self._courier.step(now)) is not None:
            self.publish(Channel.CONDITION, told)
        for job in self._jobs.values():
            job.ask(now)
        for question in self._shelf.ask(now, self.bytes_received):
            if not self._listening:
                self.listen_for_models()  # where others ask, too, the answer is for all
            self.publish(Channel.ASK, question, qos=0)
        if self._shelf.give_up():
            log.warning("nobody sends the bundle: asking again in %.0f s", ASK_AGAIN_SECONDS)
            self.join_again(now, ASK_AGAIN_SECONDS)
        ready = [job for job in self._jobs.values() if job.ready(now)]
        for job in sorted(ready, key=lambda job: job.closes_at):
            began, cpu_began = self._monotonic(), self.cpu_seconds() or 0.0
            if job.answer(now):
                self._tally.count_training(self._monotonic() - began, (self.cpu_seconds() or 0.0) - cpu_began)
                break  # that took its time: hear first what has come meanwhile
        for job in self._jobs.values():
            job.try_release()
        # What nobody waits for comes last, and never before an answer.
        if not ready:
            for job in self._jobs.values():
                if job.personalise(now):
                    break
        waiting = not self._shelf.idle or any(job.waits_for_model for job in self._jobs.values())
        if self._listening and not waiting:
            self._listening = False
            self._session.unsubscribe(topic(self._federation, Direction.DOWN, Channel.MODEL))

    # -- which tasks -------------------------------------------------------------------------------------------

    def _on_welcome(self, message: Welcome, now: float) -> None:
        if message.nonce != self._nonce:
            # Meant for another process under our name, or for an earlier one of ours.
            log.warning("dropped a welcome for another start of %s: do two gateways share this name?", self._name)
            return
        if self._welcomed and self._born_again.at is None and message.now < self._welcomed_at:
            log.info("passed over a welcome that came late")
            return
        arrived, self._welcomed = not self._welcomed, True
        self._welcomed_at = message.now
        self._clock_offset = message.now - now
        self._hear(message, now)
        self._roster = message.roster
        self._spread = message.spread
        self._session.spread_reconnects(message.spread)
        self._born_again.stop()
        self._end_jobs(message)
        adopted = [(job, assignment) for assignment in message.tasks if (job := self._adopt(assignment)) is not None]
        for lineage in self._wondering:
            # Unless the welcome was written before that lineage began.
            if lineage <= message.now and self._job_of(lineage) is None:
                self._pass_over(lineage)
        self._wondering.clear()
        for job, assignment in adopted:
            job.welcomed(assignment, now, arrived=arrived)
        if arrived and not self._shelf.idle:
            self._shelf.resume(now, self.bytes_received, self.jitter())
        self._shelf.keep(model for job in self._jobs.values() for model in job.models)
        if self._courier is not None:
            self._courier.welcomed(message.condition, now)
        self._tell_welcome(message.now)

    def _adopt(self, assignment: Assignment) -> Job | None:
        """The job that takes the assignment; None where this gateway cannot."""
        job = self._job_of(assignment.lineage)
        if assignment.task is not None:
            job = self._jobs.get(assignment.task.name) or Job(self, GatewayState())
        if job is None:
            log.error("cannot take part in lineage %d: its task is not at hand", assignment.lineage)
            return None
        task = assignment.task or job.task
        if not self._fit(task, assignment.lineage, assignment.plan):
            return None
        left = job.state.lineage
        try:
            job.adopt(assignment)
        except work.ModelMismatch as error:
            log.error("cannot take part: %s", error)
            self._pass_over(assignment.lineage)
            return None
        self._jobs[job.task.name] = job
        self._strange.pop(assignment.lineage, None)
        if left not in (0, assignment.lineage):
            self._pass_over(left)
        return job

    def _fit(self, task: Task, lineage: int, plan: RoundPlan | None) -> bool:
        """Whether the task's model is at hand, where it comes in a bundle; it is asked for where it is not."""
        bundle, refusal = self._shelf.find(task.model), self._shelf.refusal(task.model)
        if not task.model.bundle or (bundle is not None and refusal is None):
            self._unfit.pop(lineage, None)
            return True
        self._unfit[lineage] = task.model
        if refusal is not None:
            log.error("cannot take part in task %r: %s", task.name, refusal)
            if plan is not None:
                self._decline_unfit(plan)
        else:
            self._shelf.fetch(task.model, self._monotonic(), self.bytes_received, self.jitter())
        return False

    def _keep_bundle(self, key: str, data: bytes) -> None:
        self._crash_point("before bundle")
        self._memory.put(key, data)
        self._crash_point("after bundle")

    def _decline_unfit(self, plan: RoundPlan) -> None:
        if self._shelf.refusal(self._unfit[plan.lineage]) is None:
            return  # it is on its way: there may still be time to answer
        last = self._unfit_declined.get(plan.lineage, 0)
        if plan.round_id <= last or plan.kind is RoundKind.REST or not plan.draws(self._roster, self._name):
            return
        self._unfit_declined[plan.lineage] = plan.round_id
        self.publish(
            Channel.ANSWER,
            Decline(
                round_id=plan.round_id,
                reason=Reason.TASK,
                sent=self.bytes_sent,
                received=self.bytes_received,
                beyond=self.beyond,
                vitals=self.vitals,
            ),
        )

    def _end_jobs(self, message: Welcome) -> None:
        """What the welcome does not name is over."""
        lineages = {assignment.lineage for assignment in message.tasks}
        names = {assignment.task.name for assignment in message.tasks if assignment.task is not None}
        for name, job in list(self._jobs.items()):
            if name in names or job.state.lineage in lineages:
                continue
            log.info("task %r is over for this gateway", name)
            self._crash_point("before forget")
            self._memory.forget(name)
            self._crash_point("after forget")
            del self._jobs[name]
            self._pass_over(job.state.lineage)

    def _on_plan(self, plan: RoundPlan, now: float) -> None:
        job = self._job_of(plan.lineage)
        if not self._welcomed:
            if job is not None:
                job.expect(plan, now)
            return  # the welcome brings the plan again
        if plan.lineage in self._unfit:
            self._decline_unfit(plan)
            return
        if job is not None:
            if job.on_plan(plan, now):
                log.info("there is a new release of task %r: joining again", job.task.name)
                self.join_again(now, self._broadcast_jitter())
            return
        if plan.lineage in self._strange or plan.lineage in self._wondering:
            return
        if len(self._wondering) < MAX_TASKS:
            log.info("lineage %d is not known here: joining again", plan.lineage)
            self._wondering.add(plan.lineage)
            self.join_again(now, self._broadcast_jitter())

    def _job_of(self, lineage: int) -> Job | None:
        return next((job for job in self._jobs.values() if job.state.lineage == lineage), None)

    def _pass_over(self, lineage: int) -> None:
        self._strange.pop(lineage, None)
        self._strange[lineage] = None
        while len(self._strange) > STRANGE_LINEAGES:
            del self._strange[next(iter(self._strange))]

    # -- recordings --------------------------------------------------------------------------------------------

    def _look_for_recordings(self) -> None:
        """Tell of new recordings, also while no round asks for them: they may be what a resting run waits for."""
        if not self._jobs:
            return
        try:
            if not (self._source.changed() or self._recordings_changed):
                return
            self._recordings_changed = True
            self._forget_windows()
            for job in self._jobs.values():
                job.load()
        except SampleError as error:
            log.error("%s", error)
            return
        self._recordings_changed = False
        self.publish(Channel.STATUS, self._birth())

    def _forget_windows(self) -> None:
        for job in self._jobs.values():
            job.forget_windows()

    def _signal_samples(self) -> dict[str, int]:
        """By label. A recording that is just being written must not end a process that runs for months: what was
        counted last is told again, and the gates see to the rest."""
        try:
            self._counted = self._source.signal_samples()
        except SampleError as error:
            log.error("%s", error)
        return self._counted

    def _sensor_health(self) -> tuple[SensorHealth, ...]:
        try:
            return self._source.health()
        except SampleError as error:
            log.error("%s", error)
            return ()

    # -- what goes out -----------------------------------------------------------------------------------------

    def _birth(self) -> Birth:
        row = spec(Direction.UP, Channel.STATUS)
        held = [job.held for job in self._jobs.values()]
        sensors = list(self._sensor_health())
        if self._tell_vitals:
            self._look_at_vitals(self._glance or self._read_vitals)
        while True:
            birth = Birth(
                nonce=self._nonce,
                software=self._software,
                engines=self._engines,
                signal_samples=self._signal_samples(),
                sent=self._session.bytes_sent,
                received=self._session.bytes_received,
                held=tuple(held),
                tags=self._tags,
                sensors=tuple(sensors),
                root=None if self._seals is None else self._seals.root.version,
                card=None if self._seals is None else self._seals.card,
                beyond=self.beyond,
                vitals=self.vitals,
            )
            if not (held or sensors) or len(to_bytes(birth)) <= row.max_bytes:
                return birth
            # Of a task that it does not hear of, the coordinator tells everything; of a sensor, people ask the bridge.
            (sensors or held).pop()

    def _leave_message(self) -> Leave:
        return Leave(
            nonce=self._nonce,
            clean=True,
            sent=self._session.bytes_sent,
            received=self._session.bytes_received,
            beyond=None if self.beyond is None else self.beyond + LAST_WORD_BEYOND,
        )

    def _broadcast_jitter(self) -> float:
        """Before something that all of the fleet does for the same reason."""
        return self._rng.uniform(0.0, max(self._spread, self._ask_jitter))

    # -- what the jobs ask for (`Host`) ------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._name

    @property
    def roster(self) -> int:
        return self._roster

    @property
    def bytes_sent(self) -> int:
        return self._session.bytes_sent

    @property
    def bytes_received(self) -> int:
        return self._session.bytes_received

    @property
    def beyond(self) -> int | None:
        count = self._beyond_bytes()
        return None if count is None else count // BEYOND_UNIT

    @property
    def vitals(self) -> int | None:
        return self._vitals.told().code if self._tell_vitals and self._vitals is not None else None

    @property
    def outstanding(self) -> int:
        return self._session.outstanding

    @property
    def answer_jitter_seconds(self) -> float:
        return self._answer_jitter

    @property
    def vitals_every_seconds(self) -> float:
        return self._vitals_every

    def now(self) -> float:
        return self._monotonic()

    def cpu_seconds(self) -> float | None:
        return None if self._cpu_seconds is None else self._cpu_seconds()

    def alive(self) -> None:
        self._alive()

    def coordinator_time(self, now: float) -> float:
        return now + self._clock_offset

    def random_seconds(self, most: float) -> float:
        return self._rng.uniform(0.0, most)

    def jitter(self) -> float:
        return self._rng.uniform(0.0, self._ask_jitter)

    def publish(self, channel: Channel, message: Message, *, qos: int | None = None) -> bool:
        row = spec(Direction.UP, channel)
        where = topic(self._federation, Direction.UP, channel, self._name)
        payload = to_bytes(message)
        if self._seals is not None:
            payload = self._seals.seal(where, parse(where), message, payload)
        self._crash_point(f"before {SENT[type(message)]}")
        taken = self._session.publish(
            where,
            payload,
            qos=row.qos if qos is None else qos,
            retain=row.retained,
        )
        self._crash_point(f"after {SENT[type(message)]}")
        self._count(message)
        return taken

    def _count(self, message: Message) -> None:
        match message:
            case Update():
                self._tally.count_update(message.round_id)
            case Statistics():
                self._tally.statistics += 1
            case Decline():
                self._tally.declines[message.reason] += 1

    def listen_for_models(self) -> None:
        self._listening = True
        self._session.subscribe(topic(self._federation, Direction.DOWN, Channel.MODEL))

    def save(self, state: GatewayState) -> None:
        self._crash_point("before save")
        self._memory.save(state)
        self._crash_point("after save")

    def load(self, task: Task) -> Samples:
        # Loading takes the recordings as they are now for known: nobody may keep windows of those before.
        if self._source.changed():
            self._recordings_changed = True
            self._forget_windows()
        if task.windowing.features != PREPARED:
            return self._source.load(task.windowing, task.classes, task.anomaly_label)
        bundle = self._shelf.find(task.model)
        try:
            preparation = None if bundle is None else self._make_preparation(bundle)
            return self._source.load(task.windowing, task.classes, task.anomaly_label, preparation)
        except GraphStopped as error:
            self.refuse(task, error)
            raise SampleError(f"task {task.name!r}: {error}") from error
        except GraphError as error:
            raise SampleError(f"task {task.name!r}: {error}") from error

    def make_engine(self, task: Task) -> Engine:
        bundle = self._shelf.find(task.model)
        if task.model.bundle and bundle is None:
            raise ValueError(f"the bundle of task {task.name!r} is not at hand")
        return self._make_engine(task, bundle)

    def refuse(self, task: Task, error: Exception) -> None:
        if task.model.bundle:
            self._shelf.refuse(task.model, error)

    def refuses(self, task: Task) -> bool:
        return self._shelf.refusal(task.model) is not None

    def start_of(self, task: Task) -> NDArray[np.int32] | None:
        bundle = self._shelf.find(task.model)
        if bundle is None or not bundle.initial:
            return None
        try:
            return start_of(task.model, task.seed, task.grid_bits, bundle)
        except BundleError as error:
            log.error("task %r: %s", task.name, error)
            return None  # nor will the digest of its initial parameters be the task's

    def shut_gate(self, windows: int, min_windows: int) -> Reason | None:
        self.count_budget()
        local = datetime.fromtimestamp(self.coordinator_time(self._monotonic()))
        bytes_today, bytes_month = self._budget.used(local)
        vitals = self._look_at_vitals(self._read_vitals)
        try:
            silent = self._source.silent()
        except SampleError as error:
            silent = str(error)
        self._silent = bool(silent)
        if silent:
            log.warning("%s", silent)
        return check(
            vitals,
            self._limits,
            now_local=local,
            bytes_today=bytes_today,
            bytes_month=bytes_month,
            windows=windows,
            min_windows=min_windows,
            silent=silent,
        )

    def _look_at_vitals(self, read: Callable[[], Vitals]) -> Vitals:
        try:
            self._vitals = read()
        except SettingsError as error:
            # A file of vitals that is being written just now: all that is known is that nothing is known.
            log.warning("vitals cannot be read: %s", error)
            self._vitals = Vitals()
        return self._vitals

    def count_budget(self) -> None:
        if self._limits.daily_bytes is None and self._limits.monthly_bytes is None:
            return  # nobody asks, and each count is a write to the disk
        total = self._session.bytes_sent + self._session.bytes_received
        local = datetime.fromtimestamp(self.coordinator_time(self._monotonic()))
        self._budget = self._budget.add(total - self._budget_counted, local)
        self._budget_counted = total
        self._crash_point("before budget")
        self._memory.put("budget", msgspec.json.encode(self._budget.to_dict()))
        self._crash_point("after budget")

    def join_again(self, now: float, delay_seconds: float) -> None:
        self._born_again.start(now, delay_seconds)


def _budget(stored: bytes | None) -> Budget:
    """What was used before; a new budget where nothing is stored. Raises ValueError for anything else."""
    return Budget() if stored is None else Budget.from_dict(msgspec.json.decode(stored, type=dict[str, str | int]))


def _retry_text(seconds: float | None) -> str:
    return "" if seconds is None else f"; trying again in {seconds:.1f} s"
