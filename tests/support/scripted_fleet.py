"""Gateways that follow a script: any number of tasks, no training, and answers that depend on nothing but who answers
and from which version. So a task comes to the same model whatever else goes on beside it.

    fleet = ScriptedFleet(tmp_path, tasks=[TaskPlan(...), TaskPlan(...)], tags={"g0": ("pump",)})
    fleet.run_until(lambda: all(job.resting for job in fleet.coordinator.jobs))
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fake_broker import FakeBroker, FakeSession
from fedmq_compression.pipeline import CodecSpec, encode
from fedmq_coordinator.audit import AuditLog
from fedmq_coordinator.job import TaskPlan
from fedmq_coordinator.ledger import Ledger, Order
from fedmq_coordinator.models import ModelStore
from fedmq_coordinator.service import Coordinator
from fedmq_coordinator.settings import LimitSettings
from fedmq_coordinator.tasks import Wish
from fedmq_protocol.messages import (
    Assignment,
    Birth,
    Message,
    RoundKind,
    RoundPlan,
    Statistics,
    Update,
    Welcome,
    from_bytes,
    to_bytes,
)
from fedmq_protocol.session import Connected, Received
from fedmq_protocol.task import UPLINK_STEP, Codec, Task
from fedmq_protocol.topics import Channel, Direction, gateway_filters, parse, spec, topic
from numpy.typing import NDArray
from plant import FEDERATION, START, make_task


def scripted_task(name: str, **changes: Any) -> Task:
    """With values at 8 bits for every coordinate: a delta that needs no contexts, so that a script can make it."""
    codec = Codec(bits=8, density=1.0)
    return make_task(name=name, up=codec, down=codec, sizes=(22, 4, 3), **changes)


class ScriptedGateway:
    def __init__(self, broker: FakeBroker, name: str, tags: tuple[str, ...]) -> None:
        self.name = name
        self.tags = tags
        self.session: FakeSession = broker.session(name)
        self.session.subscribe(*gateway_filters(FEDERATION, name))
        self.nonce = hashlib.sha256(name.encode()).digest()[:8]
        self.place = -1
        self.tasks: dict[int, Assignment] = {}
        """By lineage, as the last welcome had them."""
        self.beyond: int | None = None
        self.cpu: int | None = None
        """What its updates tell of these."""
        self.welcomes: list[Welcome] = []
        self.plans: list[RoundPlan] = []
        self.other: list[Message] = []
        self.counters: dict[str, int] = {}
        self.answered: set[int] = set()
        self.sent: dict[int, Update] = {}
        """By round: what is sent again where the coordinator was killed, and may have lost it."""

    def say(self, channel: Channel, message: Message, *, retain: bool = False) -> None:
        where = topic(FEDERATION, Direction.UP, channel, self.name)
        self.session.publish(where, to_bytes(message), qos=spec(Direction.UP, channel).qos, retain=retain)

    @property
    def signal_samples(self) -> dict[str, int]:
        """By label, as its births tell."""
        return {"normal": 120 * 1024}

    def born(self) -> None:
        birth = Birth(
            nonce=self.nonce,
            software="scripted",
            engines=(),
            signal_samples=self.signal_samples,
            sent=0,
            received=0,
            tags=self.tags,
        )
        self.say(Channel.STATUS, birth, retain=True)

    def step(self) -> None:
        while (event := self.session.next(0)) is not None:
            if isinstance(event, Connected):
                self.born()
            elif isinstance(event, Received):
                message = from_bytes(parse(event.topic).spec, event.payload)
                if isinstance(message, Welcome):
                    self.welcomes.append(message)
                    self.place = message.roster
                    self.tasks = {assignment.lineage: assignment for assignment in message.tasks}
                    for assignment in message.tasks:
                        if assignment.plan is not None:
                            self.answer(assignment.plan)
                elif isinstance(message, RoundPlan):
                    self.plans.append(message)
                    if message.lineage in self.tasks:
                        self.answer(message)
                    else:
                        self.born()
                else:
                    self.other.append(message)

    def answer(self, plan: RoundPlan) -> None:
        task = self.tasks[plan.lineage].task
        assert task is not None  # its births hold nothing
        if plan.round_id in self.answered or not plan.draws(self.place, self.name) or plan.kind is RoundKind.REST:
            return
        self.answered.add(plan.round_id)
        if plan.round_id in self.sent:
            self.say(Channel.ANSWER, self.sent[plan.round_id])
            return
        if plan.kind is RoundKind.STATISTICS:
            ones = np.ones(22, dtype="<f4").tobytes()
            message: Message = Statistics(round_id=plan.round_id, count=90, mean=ones, m2=ones, sent=0, received=0)
            self.say(Channel.STATISTICS, message)
            return
        counter = self.counters[task.name] = self.counters.get(task.name, 0) + 1
        self.sent[plan.round_id] = Update(
            round_id=plan.round_id,
            base=plan.base_mark,
            counter=counter,
            payload=self.payload(task, plan),
            sent=0,
            received=0,
            loss=5000,
            beyond=self.beyond,
            cpu=self.cpu,
        )
        self.say(Channel.ANSWER, self.sent[plan.round_id])

    def payload(self, task: Task, plan: RoundPlan) -> bytes:
        return encode(self.delta(task, plan), CodecSpec(bits=8, density=1.0, step=UPLINK_STEP)).payload

    def delta(self, task: Task, plan: RoundPlan) -> NDArray[np.float32]:
        """What it says that it has learnt."""
        seed = hashlib.sha256(f"{task.name}:{self.name}:{plan.base}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(seed[:8], "big"))
        return rng.normal(0, 0.05, task.model.parameters).astype(np.float32)


class ScriptedFleet:
    def __init__(
        self,
        directory: Path,
        *,
        tasks: Sequence[TaskPlan],
        tags: Mapping[str, tuple[str, ...]],
        limits: LimitSettings | None = None,
        made: Mapping[str, type[ScriptedGateway]] | None = None,
    ) -> None:
        """`made`: gateways of a kind of their own, by name."""
        self.directory = directory
        self.tasks = list(tasks)
        self.limits = limits or LimitSettings(catch_up_gather_seconds=0.0)
        self.now = START
        self.broker = FakeBroker()
        self.start_coordinator()
        kinds = made or {}
        self.gateways = {name: kinds.get(name, ScriptedGateway)(self.broker, name, own) for name, own in tags.items()}
        for gateway in self.gateways.values():
            gateway.session.start()

    def start_coordinator(self) -> None:
        self.ledger = Ledger(self.directory / "ledger.sqlite")
        self.session = self.broker.session("coordinator")
        self.coordinator = Coordinator(
            federation=FEDERATION,
            tasks=self.tasks,
            limits=self.limits,
            session=self.session,
            ledger=self.ledger,
            models=ModelStore(self.directory / "models"),
            clock=lambda: self.now,
            audit=AuditLog(self.directory / "audit.log", clock=lambda: self.now),
        )
        self.session.start()

    def kill_coordinator(self) -> None:
        self.session.kill()
        self.ledger.rollback()
        self.ledger.close()
        for gateway in self.gateways.values():
            gateway.answered.clear()

    def tick(self, seconds: float = 0.1) -> None:
        events = []
        while (event := self.session.next(0)) is not None:
            events.append(event)
        self.coordinator.step(events, self.now)
        for gateway in self.gateways.values():
            gateway.step()
        self.now += seconds

    def run_until(self, done: Callable[[], object], *, seconds: float = 600.0) -> None:
        until = self.now + seconds
        while not done():
            assert self.now < until, f"nothing came of it in {seconds:.0f} s of virtual time"
            self.tick()

    def run_for(self, seconds: float) -> None:
        until = self.now + seconds
        self.run_until(lambda: self.now >= until)

    def run_to_rest(self) -> None:
        self.run_until(lambda: all(job.resting is not None for job in self.coordinator.jobs))

    def leave_order(self, verb: str, task: str, **wish: Any) -> int:
        with contextlib.closing(Ledger(self.directory / "ledger.sqlite", visit=True)) as visitor:
            number = visitor.order(verb, task, Wish(verb=verb, **wish).write(), self.now)
            visitor.commit()
        return number

    def order(self, verb: str, task: str, **wish: Any) -> Order:
        """Another program leaves an order; returns it as the coordinator has carried it out."""
        number = self.leave_order(verb, task, **wish)
        found: list[Order] = []

        def done() -> bool:
            order = self.ledger.get_order(number)
            found[:] = [order] if order is not None and order.done_at is not None else []
            return bool(found)

        self.run_until(done)
        return found[0]
