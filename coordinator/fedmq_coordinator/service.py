"""The loop of the coordinator: events and the time come in, messages go out, the ledger stands between.

One `Job` for each task (see `job`), side by side on one fleet: an answer goes to the job of its round, a question for a
model to the job of its lineage. Every pass handles all events at hand, carries out what people have ordered, commits
the ledger once, and only then publishes what it has to say: no receipt before its commit, one fsync for many answers. A
message that cannot be sent is not kept; whoever misses it asks. What to decide is in `rounds`, `cohort`, `aggregate`,
`schedule` and `scaling`; what becomes of it on record is in `run` (the rounds), `intake` (the answers), `roster` (who
is here), `lineage` (the model), `tasks` (orders and releases) and `retention` (what is summed up). `step` never waits;
only `run` does.

After a restart everything is as the ledger has it: each open round goes on, its sum is built again from the stored
payloads to the same integers, and its plan is published again.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec
from fedmq_protocol.condition import Condition
from fedmq_protocol.logs import about
from fedmq_protocol.messages import (
    AskChunks,
    AskModel,
    AskVerdict,
    Birth,
    Chunk,
    Decline,
    Leave,
    Message,
    RoundKind,
    Statistics,
    Trial,
    Update,
    Welcome,
    from_bytes,
    split,
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
from fedmq_protocol.topics import Channel, Direction, coordinator_filters, parse, spec

from fedmq_coordinator import retention
from fedmq_coordinator.audit import AuditLog, Who, local_user
from fedmq_coordinator.conditions import Conditions
from fedmq_coordinator.job import Job, TaskPlan
from fedmq_coordinator.ledger import Gateway, Ledger, Order
from fedmq_coordinator.models import ModelError, ModelStore
from fedmq_coordinator.outbox import Outbox
from fedmq_coordinator.rates import Rates
from fedmq_coordinator.roster import SENSORS_OF, Roster
from fedmq_coordinator.settings import DriftSettings, FleetSettings, LimitSettings, PublishSettings
from fedmq_coordinator.summary import fleet_summary
from fedmq_coordinator.tasks import OrderError, Wish

if TYPE_CHECKING:
    from fedmq_protocol.signing import CoordinatorSeals

__all__ = ["CRASH_POINTS", "Coordinator"]

log = logging.getLogger("fedmq.coordinator")

TASKS_KEPT = 64

RATES_EVERY_SECONDS = 10.0
"""Between two entries in the ledger of what came too fast: a flood shall not cost a commit each time."""

FETCHES_AT_ONCE = 4
"""How often a gateway may fetch all that there is, one time after the other: bundle and model of every task."""

UPLINK_CHUNK_BYTES = 8 * 1024
"""As gateways cut an update."""

ORDERS_EVERY_SECONDS = 1.0
"""Between two looks whether another program has written an order."""

CARD_OF = "card of "
"""Before a gateway's name: the ledger's key of the card that it showed last."""

CRASH_POINTS = (
    "before model file",
    "before model rename",
    "after model file",
    "before commit",
    "after commit",
    *(
        f"{when} {channel.value}"
        for channel in (
            Channel.WELCOME,
            Channel.PLAN,
            Channel.RECEIPT,
            Channel.CHUNK,
            Channel.MODEL,
            Channel.REPORT,
            Channel.FLEET,
            Channel.CONDITION,
        )
        for when in ("before", "after")
    ),
)
"""What `crash_point` is called with: around each durable step, and around each message, by its channel."""


def _sender(text: str) -> str | None:
    """The gateway that a topic names."""
    try:
        return parse(text).gateway
    except ValueError:
        return None


def _rates(limits: LimitSettings, tasks: Sequence[TaskPlan]) -> Rates:
    """As the settings have it; a fleet with large models needs more at once."""
    parameters = [plan.task.model.parameters for plan in tasks]
    rates = Rates(
        messages_per_second=limits.messages_per_second,
        messages_burst=max(limits.messages_burst, 2 * math.ceil(4 * max(parameters) / UPLINK_CHUNK_BYTES)),
        births_per_minute=limits.births_per_minute,
        served_bytes_per_minute=limits.served_bytes_per_minute,
    )
    everything = sum(len(plan.bundle) for plan in tasks) + 4 * sum(parameters)
    rates.serve_at_once = max(rates.serve_at_once, FETCHES_AT_ONCE * everything)
    return rates


class Coordinator:
    """One federation, and the tasks that its gateways learn side by side.

    `crash_point` is called with each of CRASH_POINTS as it is passed. `holds` is kept as long as the coordinator is:
    the lock on its folder. `audit` takes what came of orders, before it is committed. `alive` is called as the loop
    turns. Raises LedgerError and ModelError
    where what is on disk cannot be used, AuditError where the audit log cannot be written.
    """

    def __init__(
        self,
        *,
        federation: str,
        tasks: Sequence[TaskPlan],
        limits: LimitSettings | None = None,
        fleet: FleetSettings | None = None,
        drift: DriftSettings | None = None,
        session: Session,
        ledger: Ledger,
        models: ModelStore,
        clock: Callable[[], float] = time.time,
        new_lineage: bool = False,
        seals: CoordinatorSeals | None = None,
        crash_point: Callable[[str], None] = lambda name: None,
        holds: object = None,
        audit: AuditLog | None = None,
        publish: PublishSettings | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        names = [plan.task.name for plan in tasks]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"expected one task or more, each with a name of its own, got {names}")
        self._federation = federation
        self._limits = limits or LimitSettings()
        self._session = session
        self._ledger = ledger
        self._clock = clock
        self._crash_point = crash_point
        self._holds = holds
        self._alive = alive
        self._audit = audit
        models.crash_point = crash_point
        self._seals = seals
        self._publish = publish or PublishSettings()
        self._fleet_at = -math.inf
        self._outbox = Outbox(federation, seals, reports=self._publish.rounds)
        self._said_plan_at = 0.0
        now = clock()
        self._roster = Roster(ledger, windowing=tasks[0].task.windowing)
        self._rates = _rates(self._limits, tasks)
        self._rates_at = now
        self._drift = drift or DriftSettings()
        self._conditions = Conditions(
            ledger=ledger,
            roster=self._roster,
            outbox=self._outbox,
            settings=fleet or FleetSettings(),
            drift=self._drift,
            aside=lambda: {name for job in self._jobs.values() for name in job.members.aside},
            note=self._note_of,
        )
        self._jobs: dict[str, Job] = {}
        stopped = {row.name for row in ledger.tasks() if row.state == "stopped"}
        for plan in tasks:
            if plan.task.name in stopped:
                log.info("task %r was stopped: its settings have no effect", plan.task.name)
                continue
            with about(task=plan.task.name):
                self._jobs[plan.task.name] = Job(
                    plan,
                    federation=federation,
                    limits=self._limits,
                    ledger=ledger,
                    models=models,
                    roster=self._roster,
                    outbox=self._outbox,
                    rates=self._rates,
                    now=now,
                    new_lineage=new_lineage,
                )
        ledger.configure(names, now)
        self._welcomed: dict[str, Birth] = {}
        """The birth of each gateway that was answered."""
        self._untold = False
        """Whether gateways are still to hear that a task of theirs has come to an end, or begun anew."""
        self._tasks: dict[int, str] = {}
        """Of rounds that were spoken of lately, the task: it stays what it is."""
        self._orders_at = 0.0
        self._newest_round = ledger.newest_round()
        self._connected = False
        self.stopping = False
        self._recall_cards()
        for job in self._jobs.values():
            if job.begun:
                self._note(local_user(), "new lineage", job.name, f"lineage {job.line.number} begins: {job.begun}")
        self._commit()
        session.subscribe(*coordinator_filters(federation))

    def job(self, name: str) -> Job:
        """Raises KeyError for a task that does not go on."""
        return self._jobs[name]

    @property
    def connected(self) -> bool:
        """With the broker; for any thread."""
        return self._connected

    @property
    def jobs(self) -> list[Job]:
        """Of all tasks that go on."""
        return list(self._jobs.values())

    @property
    def only(self) -> Job:
        """The job of the only task. Raises ValueError where there are several, or none."""
        (job,) = self._jobs.values()
        return job

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until `stopping` is set by a signal. Raises LedgerError and ModelError where the disk fails."""
        self._session.start()
        try:
            while not self.stopping:
                self._alive()
                first = self._session.next(self.wait_seconds(self._clock()))
                events = [] if first is None else [first]
                while events and len(events) < 1000 and (event := self._session.next(0.0)) is not None:
                    events.append(event)
                self.step(events, self._clock())
            self._count_refused(self._clock(), at_once=True)
            self._commit()
        finally:
            self._session.stop(flush_seconds=5.0)
            # What a failure has left undone is nothing that was said to anybody.
            self._ledger.close()

    def wait_seconds(self, now: float, most: float = 1.0) -> float:
        """How long nothing is due, unless an event comes; a second at most, to look whether to stop."""
        if not self._connected:
            return most
        return max(0.0, min([most, *(job.wait_seconds(now, most) for job in self._jobs.values())]))

    def step(self, events: Iterable[Event], now: float) -> None:
        """Handle events, then what is due; commit; speak."""
        for event in events:
            self._handle(event, now)
        self._carry_out_orders(now)
        if self._seals is not None:
            for name, why in self._seals.dismiss().items():
                log.warning("%s; it takes no part any more", why)
                self._roster.dismissed(name, now)
                self._conditions.dismissed(name)
        if self._connected:
            for job in self._jobs.values():
                with about(task=job.name, round=job.run.newest_round):
                    job.proceed(now)
            lasting = self._conditions.proceed(now)
            if lasting is not None:
                for job in self._jobs.values():
                    job.heed_drift(lasting, self._drift.retrain, now)
            if self._ledger.changed and (newest := self._ledger.newest_round()) != self._newest_round:
                self._newest_round = newest
                retention.fold(self._ledger, keep_rounds=self._limits.keep_rounds)
            self._show_a_head(now)
            self._tell_of_fleet(now)
        self._count_refused(now)
        self._commit()
        for said in self._outbox.take():
            self._crash_point(f"before {said.channel}")
            self._session.publish(
                said.topic, said.payload, qos=said.qos, retain=said.retain, expiry_seconds=said.expiry_seconds
            )
            self._crash_point(f"after {said.channel}")
            if said.channel == Channel.PLAN.value:
                self._said_plan_at = now

    def _commit(self) -> None:
        if self._ledger.changed:
            self._crash_point("before commit")
            self._ledger.commit()
            self._crash_point("after commit")

    def _handle(self, event: Event, now: float) -> None:
        match event:
            case Connected():
                log.info("connected with MQTT %s", event.protocol)
                self._connected = True
                if self._untold:
                    self._welcome_all(now)
                if not event.session_present:
                    # A broker that has forgotten us keeps only births that came since: each waits for its welcome.
                    self._welcomed.clear()
                for job in self._jobs.values():
                    plan = job.plan_at_hand(now)
                    if plan is not None:
                        job.run.publish_plan(plan, now)
            case Disconnected() | ConnectFailed():
                self._connected = False
                log.warning("%s", event.reason)
            case Denied():
                log.error("the broker denies %s: %s", event.topic, event.reason)
            case Dropped():
                log.warning("%d messages were dropped because they came faster than they were read", event.messages)
            case Received():
                with about(gateway=_sender(event.topic)):
                    self._receive(event, now)

    def _receive(self, event: Received, now: float) -> None:
        channel = "?"
        try:
            where = parse(event.topic)
            channel = where.channel.value
            if not event.payload and event.retained:
                return
            if where.gateway is not None and not self._rates.reads(where.gateway, now):
                self._refuse(where.gateway, event, channel, now)
                return
            roots = None
            if self._seals is None:
                message = from_bytes(where.spec, event.payload)
            else:
                found = split(event.payload)
                message = from_bytes(where.spec, found.plain)
                roots = self._seals.behind(message) if isinstance(message, Birth) else None
                if roots is None:
                    self._seals.check(event.topic, where, message, found)
        except ValueError as error:
            log.warning("dropped %d bytes on %s: %s", len(event.payload), event.topic, error)
            self._ledger.count_refused(channel, str(error)[:120], len(event.payload))
            if channel != "?" and where.gateway is not None:
                self._rates.blame(where.gateway, now)
            return
        gateway = where.gateway or ""
        if not self._answers(gateway, message, now):
            self._refuse(gateway, event, channel, now)
            return
        if roots is not None:
            self._outbox.command(gateway, Channel.WELCOME, roots)
            return
        match message:
            case Birth():
                self._on_birth(gateway, message, event.retained, now)
            case Leave():
                self._roster.left(gateway, message, now)
            case Update() | Decline() | Statistics() | AskVerdict():
                self._on_answer(gateway, message, now)
            case AskModel():
                for job in self._of_lineage(message.lineage, gateway):
                    job.on_ask_model(gateway, message, now)
            case Condition():
                self._conditions.on_condition(gateway, message, len(event.payload), now)
            case Trial():
                for job in self._of_lineage(message.lineage, gateway):
                    with about(task=job.name):
                        job.on_trial(gateway, message, now)
            case AskChunks():
                if not any(job.on_ask_chunks(gateway, message, now) for job in self._jobs.values()):
                    log.info("%s asks for chunks of a transfer that is over", gateway)
            case Chunk():
                for job in self._jobs.values():
                    with about(task=job.name):
                        job.intake.on_chunk(gateway, message, now)
            case _:
                log.warning("dropped a %s on %s: not for the coordinator", type(message).__name__, event.topic)

    # -- how much ----------------------------------------------------------------------------------------------

    def _answers(self, gateway: str, message: Message, now: float) -> bool:
        """Whether a gateway may make the coordinator speak once more, where its message does that."""
        match message:
            case Birth():
                return self._rates.welcomes(gateway, now)
            case AskModel():
                return self._rates.hears_question(gateway, now)
            case AskChunks():
                return self._rates.serves(gateway, now)
        return True

    def _refuse(self, gateway: str, event: Received, channel: str, now: float) -> None:
        """One more message of a gateway than it may send, or have answered."""
        said = self._rates.refuse(gateway, channel, len(event.payload), now)
        if said is not None:
            log.warning(
                "%s asks for more than its share: %d messages were dropped, this one on %s (limits.*_per_*)",
                gateway,
                said,
                event.topic,
            )

    def _count_refused(self, now: float, *, at_once: bool = False) -> None:
        if not at_once and not self._ledger.changed and 0 <= now - self._rates_at < RATES_EVERY_SECONDS:
            return
        self._rates_at = now
        for channel, refused in self._rates.take_refused().items():
            self._ledger.count_refused(channel, "rate", refused.bytes, refused.messages)

    # -- whose it is -------------------------------------------------------------------------------------------

    def _on_answer(self, gateway: str, message: Update | Decline | Statistics | AskVerdict, now: float) -> None:
        job = self._of_round(message.round_id)
        if job is None:
            log.info("%s speaks of round %d, whose task is over", gateway, message.round_id)
            return
        with about(task=job.name, round=message.round_id):
            match message:
                case Update():
                    job.intake.on_update(gateway, message, now)
                case Decline():
                    job.intake.on_decline(gateway, message, now)
                case Statistics():
                    job.intake.on_statistics(gateway, message, now)
                case AskVerdict():
                    job.intake.on_ask_verdict(gateway, message)

    def _of_round(self, round_id: int) -> Job | None:
        """Of a round that never was any job can say so."""
        for job in self._jobs.values():
            if job.run.round is not None and job.run.round.plan.round_id == round_id:
                return job
        if round_id not in self._tasks:
            name = self._ledger.task_of_round(round_id)
            if name is None:
                return next(iter(self._jobs.values()), None)
            self._tasks = dict([*self._tasks.items(), (round_id, name)][-TASKS_KEPT:])
        return self._jobs.get(self._tasks[round_id])

    def _of_lineage(self, lineage: int, gateway: str) -> list[Job]:
        """One job or none. Who asks by a number that is no longer in force is helped where there is no doubt."""
        jobs = [job for job in self._jobs.values() if job.line.number == lineage] or self.jobs
        if len(jobs) != 1:
            log.info("%s speaks of lineage %d, which is over", gateway, lineage)
            return []
        return jobs

    # -- who is there ------------------------------------------------------------------------------------------

    def _on_birth(self, name: str, birth: Birth, retained: bool, now: float) -> None:
        gateway = self._roster.born(name, birth, now)
        answered = self._welcomed.get(name)
        if retained and answered is not None and answered.nonce == birth.nonce:
            return  # the broker's copy of what was answered already
        if gateway.nonce == birth.nonce:
            self._welcomed[name] = birth
            self._note_sensors(name, birth)
            if self._seals is not None and birth.card is not None:
                self._seals.know(name, birth.nonce, birth.card)
                if self._ledger.get(CARD_OF + name) != birth.card:
                    self._ledger.put(CARD_OF + name, birth.card)
        self._welcome(gateway, birth, now)

    def _recall_cards(self) -> None:
        """Those who are here need not be born again because the coordinator was away."""
        if self._seals is None:
            return
        for gateway in self._roster.all():
            card = self._ledger.get(CARD_OF + gateway.name)
            if card is None:
                continue
            try:
                self._seals.know(gateway.name, gateway.nonce, card)
            except ValueError as error:
                log.warning("%s", error)

    def _show_a_head(self, now: float) -> None:
        """Something signed from time to time, also while no round is due: a gateway that hears nothing for long holds
        that somebody keeps it from hearing."""
        if self._seals is None or now - self._said_plan_at < self._limits.head_hours * 3600:
            return
        self._said_plan_at = now
        for job in self._jobs.values():
            plan = job.plan_at_hand(now)
            if plan is not None and plan.kind is RoundKind.REST:
                job.run.publish_plan(plan, now)
                return
        self._welcome_all(now)

    def _tell_of_fleet(self, now: float) -> None:
        """For people's tools, where the settings ask for it. Sums of the ledger alone: the loop waits for them."""
        every = self._publish.fleet_seconds
        if every is not None and not 0 <= now - self._fleet_at < every:
            self._fleet_at = now
            self._outbox.fleet(fleet_summary(self._ledger, self._roster.all(), list(self._jobs.values()), now))

    def _note_sensors(self, name: str, birth: Birth) -> None:
        """For people who look: nothing is decided by it."""
        key = SENSORS_OF + name
        if birth.sensors or self._ledger.get(key) is not None:
            self._ledger.put(key, msgspec.json.encode(birth.sensors))

    def _welcome(self, gateway: Gateway, birth: Birth, now: float) -> None:
        welcome = Welcome(
            nonce=birth.nonce,
            now=now,
            roster=gateway.roster,
            spread=self._spread(),
            tasks=tuple(
                job.assignment(gateway, birth.held, now) for job in self._jobs.values() if job.members.belongs(gateway)
            ),
            condition=self._conditions.noted(gateway.name),
        )
        size = len(to_bytes(welcome))
        if size > spec(Direction.CMD, Channel.WELCOME).max_bytes:
            # Of many tasks at once: the next plan of each says it again.
            tasks = tuple(msgspec.structs.replace(assignment, plan=None) for assignment in welcome.tasks)
            welcome = msgspec.structs.replace(welcome, tasks=tasks)
        self._rates.charge(gateway.name, size, now)
        self._outbox.command(gateway.name, Channel.WELCOME, welcome)
        self._conditions.welcomed(gateway.name)

    def _welcome_all(self, now: float) -> None:
        """Every gateway that is here hears anew how its tasks stand."""
        self._untold = not self._connected
        if self._untold:
            return
        for name, birth in self._welcomed.items():
            gateway = self._roster.get(name)
            if gateway is not None and gateway.present and gateway.nonce == birth.nonce:
                self._welcome(gateway, birth, now)

    def _spread(self) -> int:
        """Seconds over which the fleet comes back, so that the broker's queue of new connections does not overflow."""
        rate = self._limits.reconnects_per_second
        return 0 if len(self._roster) <= rate else min(86_400, math.ceil(len(self._roster) / rate))

    # -- orders ------------------------------------------------------------------------------------------------

    def _carry_out_orders(self, now: float) -> None:
        if now < self._orders_at:
            return
        self._orders_at = now + ORDERS_EVERY_SECONDS
        if not self._ledger.touched():
            return
        self._conditions.orders_changed()
        for order in self._ledger.orders_waiting():
            by: Who | None = None
            try:
                wish = Wish.read(order)
                by = wish.by
                job = self._jobs.get(order.task)
                if job is None:
                    raise OrderError(self._unknown(order.task))
                result = wish.carry_out(job, now)
                done = True
            except (OrderError, ModelError) as error:
                result, done = str(error), False
            with about(task=order.task):
                log.log(logging.INFO if done else logging.ERROR, "%s %s: %s", order.verb, order.task, result)
            self._note_order(order, by, done, result)
            self._ledger.finish_order(order.id, at=now, done=done, result=result)
            if not done:
                continue
            if order.verb == "stop":
                del self._jobs[order.task]
            if order.verb in ("stop", "rollback"):
                self._welcome_all(now)

    def _note_order(self, order: Order, by: Who | None, done: bool, result: str) -> None:
        """Before the commit: after a crash between the two it is noted a second time, and never not at all."""
        who = by or Who(user="unknown", uid=-1, how="local")  # whoever may write the ledger, by other software
        self._note(who, order.verb, order.task, f"{'done' if done else 'could not be carried out'}: {result}")

    def _note(self, who: Who, action: str, task: str, outcome: str) -> None:
        self._note_of(who, action, f"task {task}", outcome)

    def _note_of(self, who: Who, action: str, subject: str, outcome: str) -> None:
        if self._audit is not None:
            self._audit.record(who=who, action=action, subject=subject, outcome=outcome)

    def _unknown(self, name: str) -> str:
        known = {row.name: row.state for row in self._ledger.tasks()}
        if name in known:
            return f"task {name!r} is {'stopped' if known[name] == 'stopped' else 'in the settings no longer'}"
        return f"no task {name!r}; there is {', '.join(known)}"
