"""A whole federation in one process, in virtual time: the real coordinator and gateways on a broker in memory.

    plant = Plant(tmp_path, gateways=4)
    plant.run_until(lambda: plant.job.resting)

`lose` decides which messages never arrive. Killing and starting again keeps each one's files, and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fake_broker import FakeBroker, FakeSession
from fedmq_coordinator.job import Job, TaskPlan
from fedmq_coordinator.ledger import Book, Ledger, Order
from fedmq_coordinator.models import ModelStore
from fedmq_coordinator.service import Coordinator
from fedmq_coordinator.settings import DriftSettings, FleetSettings, LimitSettings, PublishSettings, RoundSettings
from fedmq_coordinator.tasks import Wish
from fedmq_edge_node.courier import Courier
from fedmq_edge_node.gates import Limits, Vitals
from fedmq_edge_node.memory import Memory
from fedmq_edge_node.samples import FEATURES, SampleError, Samples
from fedmq_edge_node.service import Gateway, will
from fedmq_protocol.messages import PersonalPolicy, SensorHealth
from fedmq_protocol.session import Received
from fedmq_protocol.signing import GatewaySeals
from fedmq_protocol.task import Codec, ModelSpec, Recipe, Task, Windowing, initial_steps, model_digest, short
from trust import TrustAuthority

FEDERATION = "test"
START = 1_700_000_000.0
CLASSES = ("normal", "ball", "inner")


def make_task(*, sizes: tuple[int, ...] = (FEATURES, 16, 3), dense: bool = False, **changes: object) -> Task:
    """A small task on features that are no vibration at all, only separable."""
    model = ModelSpec(kind="mlp", sizes=sizes)
    grid_bits = 24 if dense else 12
    codec = Codec(bits=32, density=1.0) if dense else Codec(bits=1, density=0.1)
    values: dict[str, object] = {
        "name": "story",
        "model": model,
        "classes": CLASSES,
        "up": codec,
        "down": codec,
        "grid_bits": grid_bits,
        "initial": short(model_digest(initial_steps(model, 0, grid_bits))),
        "recipe": Recipe(learning_rate=0.05, local_epochs=2, batch_size=32),
    }
    return Task(**(values | changes))  # type: ignore[arg-type]


class FakeFolder:
    """Windows out of nowhere, the same for the same seed."""

    def __init__(self, seed: int, windows: int = 120) -> None:
        rule = np.random.default_rng(99).normal(size=(FEATURES, len(CLASSES)))
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(windows, FEATURES)).astype(np.float32)
        y = (x @ rule).argmax(axis=1).astype(np.int64)
        cut = windows * 3 // 4
        self.samples = Samples(
            train_x=x[:cut], train_y=y[:cut], held_x=x[cut:], held_y=y[cut:], raw_bytes=2 * 1024 * windows, recordings=1
        )
        self.windows = windows
        self.fresh = False
        self.broken = False
        self.missed = ""
        self.sensors: tuple[SensorHealth, ...] = ()

    def _check(self) -> None:
        if self.broken:
            raise SampleError("a.npy: became shorter while it was read")

    def signal_samples(self) -> dict[str, int]:
        self._check()
        return {"normal": self.windows * 1024}

    def load(self, windowing: Windowing, classes: tuple[str, ...], healthy: str) -> Samples:
        self._check()
        self.fresh = False
        return self.samples

    def changed(self) -> bool:
        self._check()
        return self.fresh

    def silent(self) -> str:
        return self.missed

    def health(self) -> tuple[SensorHealth, ...]:
        return self.sensors


class Plant:
    def __init__(
        self,
        directory: Path,
        *,
        gateways: int = 4,
        rounds: int = 5,
        task: Task | None = None,
        settings: RoundSettings | None = None,
        limits: LimitSettings | None = None,
        more: Sequence[TaskPlan] = (),
        bundle: bytes = b"",
        personal: PersonalPolicy | None = None,
        publish: PublishSettings | None = None,
        crash_point: Callable[[str], None] = lambda name: None,
        authority: TrustAuthority | None = None,
        watched: bool = False,
        fleet: FleetSettings | None = None,
        drift: DriftSettings | None = None,
    ) -> None:
        """`watched`: a watch works beside each gateway, and keeps its book at `book_of(name)`."""
        self.watched = watched
        self.fleet = fleet
        self.drift = drift
        self.directory = directory
        self.authority = authority
        """Whose seals all messages carry; None: none do."""
        self.task = task or make_task()
        self.settings = settings or RoundSettings(max_rounds=rounds, min_gateways=gateways)
        self.limits = limits or LimitSettings(catch_up_gather_seconds=0.3)
        self.crash_point = crash_point
        self.bundle = bundle
        """Of the first task, where its model is somebody's own."""
        self.personal = personal
        self.publish = publish
        self.more = more
        """Further tasks beside the first."""
        self.now = START
        self.stale_seconds = 86_400.0
        self.renewals: dict[str, GatewaySeals] = {}
        """What a gateway finds in its identity folder when it connects the next time."""
        self.broker = FakeBroker()
        self.lose: Callable[[str, Received], bool] = lambda client, message: False
        self.vitals: dict[str, Vitals] = {}
        self.folders = {f"g{i}": FakeFolder(i) for i in range(gateways)}
        self.gateways: dict[str, Gateway] = {}
        self.births = 0
        self.start_coordinator()
        for name in self.folders:
            self.start_gateway(name)

    # Processes.

    def start_coordinator(self, *, new_lineage: bool = False) -> None:
        self.ledger = Ledger(self.directory / "ledger.sqlite")
        self.coordinator_session = self._session("coordinator")
        try:
            self.coordinator = Coordinator(
                federation=FEDERATION,
                tasks=[
                    TaskPlan(task=self.task, rounds=self.settings, bundle=self.bundle, personal=self.personal),
                    *self.more,
                ],
                limits=self.limits,
                fleet=self.fleet,
                drift=self.drift,
                session=self.coordinator_session,
                ledger=self.ledger,
                models=ModelStore(self.directory / "models"),
                clock=lambda: self.now,
                new_lineage=new_lineage,
                seals=self.authority and self.authority.coordinator(lambda: self.now),
                publish=self.publish,
                crash_point=self.crash_point,
            )
        except BaseException:
            self.ledger.close()  # as the end of a process does
            raise
        self.coordinator_session.start()

    def kill_coordinator(self) -> None:
        """kill -9: what was not committed is gone."""
        self.coordinator_session.kill()
        self.ledger.rollback()
        self.ledger.close()

    def start_gateway(self, name: str) -> Gateway:
        self.births += 1
        nonce = self.births.to_bytes(8, "little")
        session = self._session(name, nonce)
        seals = self.authority and self.authority.gateway(name, nonce, lambda: self.now)
        gateway = Gateway(
            name=name,
            federation=FEDERATION,
            session=session,
            memory=Memory(self.directory / name / "gateway.sqlite"),
            source=self.folders[name],  # type: ignore[arg-type]
            vitals=lambda: self.vitals.get(name, Vitals()),
            limits=Limits(monthly_bytes=1 << 40),
            monotonic=lambda: self.now - START,
            rng=Random(self.births),
            nonce=nonce,
            software="test",
            ask_jitter_seconds=0.2,
            seals=seals,
            renewed=lambda: self.renewals.pop(name, None),
            stale_seconds=self.stale_seconds,
            courier=Courier(self.book_of(name), every_seconds=10.0) if self.watched else None,
        )
        self.gateways[name] = gateway
        session.start()
        return gateway

    def book_of(self, name: str) -> Path:
        return self.directory / name / "watch" / "alerts.sqlite"

    def kill_gateway(self, name: str) -> None:
        gateway = self.gateways.pop(name)
        self.session(gateway).kill()
        gateway._memory.close()

    def session(self, gateway: Gateway) -> FakeSession:
        session = gateway._session
        assert isinstance(session, FakeSession)
        return session

    def _session(self, client: str, nonce: bytes | None = None) -> FakeSession:
        last_will = None if nonce is None else will(FEDERATION, client, nonce)
        return self.broker.session(client, will=last_will)

    # People.

    def order(self, verb: str, task: str | None = None, **wish: Any) -> Order:
        """Another program leaves an order; returns it as the coordinator has carried it out."""
        with contextlib.closing(Ledger(self.directory / "ledger.sqlite", visit=True)) as visitor:
            number = visitor.order(verb, task or self.task.name, Wish(verb=verb, **wish).write(), self.now)
            visitor.commit()
        found: list[Order] = []

        def done() -> bool:
            order = self.ledger.get_order(number)
            found[:] = [order] if order is not None and order.done_at is not None else []
            return bool(found)

        self.run_until(done)
        return found[0]

    # Time.

    def tick(self, seconds: float = 0.05) -> None:
        """Everyone handles what has come, then time passes."""
        if self.coordinator_session.connected or self.coordinator_session._events:
            self.coordinator.step(self._events(self.coordinator_session), self.now)
        for gateway in list(self.gateways.values()):
            for event in self._events(self.session(gateway)):
                gateway.step(event, self.now - START)
            gateway.step(None, self.now - START)
        self.now += seconds

    def _events(self, session: FakeSession) -> list:  # type: ignore[type-arg]
        events = []
        while (event := session.next(0)) is not None:
            if not (isinstance(event, Received) and self.lose(session.client_id, event)):
                events.append(event)
        return events

    def run_until(self, done: Callable[[], object], *, seconds: float = 600.0) -> None:
        until = self.now + seconds
        while not done():
            assert self.now < until, f"nothing came of it in {seconds:.0f} s of virtual time"
            self.tick()

    def run_to_rest(self) -> None:
        """The run ends, and everyone holds the model that it ended with."""
        self.run_until(lambda: self.job.resting is not None)
        self.run_until(lambda: all(g.state.version == self.version for g in self.gateways.values()))

    @property
    def job(self) -> Job:
        """Of the first task."""
        return self.coordinator.job(self.task.name)

    @property
    def book(self) -> Book:
        return self.ledger.book(self.task.name)

    @property
    def version(self) -> int:
        return self.job.version

    @property
    def lineage(self) -> int:
        return int(self.book.get("lineage") or 0)

    @property
    def digest(self) -> bytes:
        return self.job.model_digest

    def digests(self) -> dict[str, bytes]:
        return {name: model_digest(gateway.state.steps) for name, gateway in self.gateways.items()}
