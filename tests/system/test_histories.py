"""Both ends have the same contexts through any history: rounds, missed plans, every way of catching up, crashes,
and updates that come when the model has gone on.

A machine of hypothesis drives the coordinator's lineage and several gateways' transitions with their real files, and
no services, messages or waiting in between. Who holds version v of a lineage holds the coordinator's v, and its
contexts; so every payload decodes at the other end to what was meant.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from fedmq_compression.pipeline import Contexts, Decoded, encode_integers
from fedmq_coordinator.aggregate import WeightedMean
from fedmq_coordinator.ledger import Ledger, Round
from fedmq_coordinator.lineage import Lineage
from fedmq_coordinator.models import ModelStore, Route
from fedmq_edge_node import work
from fedmq_edge_node.memory import GatewayState, Memory
from fedmq_edge_node.runtimes import NumpyEngine
from fedmq_edge_node.samples import Samples
from fedmq_protocol.messages import (
    Assignment,
    CatchUp,
    CatchUpKind,
    Receipt,
    RoundKind,
    RoundPlan,
    Verdict,
    bitmap,
    check_of,
)
from fedmq_protocol.task import Codec, ModelSpec, Recipe, Task, initial_steps, model_digest, short
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

GATEWAYS = 3
MODEL = ModelSpec(kind="mlp", sizes=(7, 9, 3))
SCALER = np.concatenate([np.zeros(7), np.ones(7)]).astype("<f4").tobytes()
CODECS = (Codec(bits=1, density=0.05), Codec(bits=4, density=0.2), Codec(bits=1, density=0.6))

LOSS = 1.0

places = st.integers(0, GATEWAYS - 1)
groups = st.sets(places)
ways = st.none() | st.sampled_from(CatchUpKind)


def make_task(codec: Codec) -> Task:
    return Task(
        name="history",
        model=MODEL,
        classes=("a", "b", "c"),
        up=codec,
        down=codec,
        initial=short(model_digest(initial_steps(MODEL, 0, 12))),
        # The loss stands still, so that the level rises: a history has deltas of several densities.
        levels=2,
        recipe=Recipe(learning_rate=0.3, local_epochs=1, batch_size=16),
        held_out_reports=False,
    )


def make_samples(seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(48, 7)).astype(np.float32)
    y = np.argmax(x[:, :3] + seed * x[:, 3:6], axis=1).astype(np.int64)
    return Samples(train_x=x[:40], train_y=y[:40], held_x=x[40:], held_y=y[40:], raw_bytes=1, recordings=1)


@dataclass(kw_only=True)
class Gateway:
    """One gateway's file and state, and what it meant by its pending update."""

    name: str
    path: Path
    samples: Samples
    memory: Memory = field(init=False)
    state: GatewayState = field(init=False)

    def start(self) -> None:
        self.memory = Memory(self.path)
        self.state = self.memory.load().get("history", GatewayState())

    def become(self, state: GatewayState) -> None:
        self.memory.save(state)
        self.state = state


@dataclass(frozen=True, kw_only=True)
class Late:
    """An update on its way: what decodes it at the other end, and what was meant by it."""

    lineage: int
    base: int
    level: int
    payload: bytes
    meant: NDArray[np.float32]


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.directory = Path(self.folder.name)
        self.engine = NumpyEngine(MODEL)
        self.now = 1_700_000_000.0
        self.round_id = 0
        self.late: list[Late] = []
        self.made: dict[tuple[int, int], tuple[bytes, bytes]] = {}
        """Digest, and mark of the contexts, by lineage and version, as the coordinator had them."""

    @initialize(codec=st.sampled_from(CODECS))
    def begin(self, codec: Codec) -> None:
        self.task = make_task(codec)
        self.open()
        self.gateways = []
        for place in range(GATEWAYS):
            path = self.directory / f"g{place}" / "gateway.sqlite"
            self.gateways.append(Gateway(name=f"g{place}", path=path, samples=make_samples(place)))
            self.gateways[-1].start()
            self.welcome(place)

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            for gateway in self.gateways:
                gateway.memory.close()
        self.folder.cleanup()

    # The coordinator.

    def open(self, *, start_new: bool = False) -> None:
        self.ledger = Ledger(self.directory / "ledger.sqlite")
        self.book = self.ledger.book("history")
        models = ModelStore(self.directory / "models")
        self.line = Lineage("federation", self.task, self.book, models, now=self.now, start_new=start_new)
        self.ledger.commit()
        self.remember()

    def remember(self) -> None:
        key = (self.line.number, self.line.version)
        made = (self.line.digest, self.mark(self.line.steps))
        assert self.made.setdefault(key, made) == made, f"version {key} is made a second time, and differs"

    def mark(self, steps: NDArray[np.int32]) -> bytes:
        return Contexts.of(steps - self.line.initial, MODEL.shapes).mark

    def plan(self, accepted: set[int]) -> RoundPlan:
        return RoundPlan(
            round_id=self.round_id,
            lineage=self.line.number,
            kind=RoundKind.TRAINING,
            base=self.line.version,
            model=check_of(self.line.digest),
            closes_after=60,
            drawn=bitmap(range(GATEWAYS)),
            accepted=bitmap(accepted),
            since=1,
            level=self.line.level,
            delta=self.line.newest_delta or None,
        )

    def apply(self, updates: list[Decoded]) -> None:
        mean = WeightedMean(MODEL.parameters)
        for update in updates:
            mean.add(update, 3)
        base = self.line.version
        self.line.apply(mean, self.round_id, loss=LOSS, momentum=0.0, learning_rate=1.0, now=self.now)
        # The loss is on record with its round, as `run` does it: after a restart the level comes of that.
        self.book.open_round(
            Round(
                id=self.round_id,
                lineage=self.line.number,
                kind="training",
                base=base,
                opened_at=self.now,
                closes_at=self.now,
                closed_at=self.now,
                outcome="applied",
                drawn=len(updates),
                plan_bytes=0,
                version=self.line.version,
                metric=None,
                loss=None,
                metric_source=None,
                training_loss=LOSS,
            )
        )

    # What can happen.

    @rule(
        answering=st.sets(places, min_size=1),
        way=ways,
        hearing=groups,
        times=st.sampled_from((1, 1, 2, 4)),
        crash=st.booleans(),
    )
    def rounds(self, answering: set[int], way: CatchUpKind | None, hearing: set[int], times: int, crash: bool) -> None:
        """Some answer a few rounds, and the others hear of the last one, if at all. Who answers has caught up."""
        for place in answering:
            if self.gateways[place].state.lineage != self.line.number:
                self.welcome(place)
            self.receipt(place)
            self.catch_up(place, way)
        for left in reversed(range(times)):
            self.round(answering, answering if left else hearing, crash and not left)

    @rule(place=places, way=ways)
    def answers_late(self, place: int, way: CatchUpKind | None) -> None:
        """It trains for a round that closes without it; its update is on its way while others go on."""
        gateway = self.gateways[place]
        if gateway.state.lineage != self.line.number:
            self.welcome(place)
        self.receipt(place)
        self.catch_up(place, way)
        self.round_id += 1
        plan = self.plan(set())
        trained = work.train_update(
            gateway.state, plan, gateway.samples, self.engine, gateway=gateway.name, keep_going=lambda: True
        )
        gateway.become(trained.state)
        pending = trained.state.pending
        assert pending is not None
        meant = work.sent_by(pending, self.task)
        self.late.append(
            Late(lineage=plan.lineage, base=plan.base, level=plan.level, payload=pending.payload, meant=meant)
        )

    def arrived(self) -> list[Decoded]:
        """What is on its way for this lineage, as the coordinator reads it now; it stays there and comes once more."""
        decoded = []
        for late in self.late:
            if late.lineage == self.line.number:
                decoded.append(self.line.decode(late.payload, late.level, late.base))
                assert np.array_equal(decoded[-1].dense(), late.meant), f"base {late.base}, now {self.line.version}"
        return decoded

    @precondition(lambda self: self.late)
    @rule()
    def late_ones_make_a_version_alone(self) -> None:
        """As in a buffered round; and then they are gone."""
        decoded = self.arrived()
        self.late.clear()
        if decoded:
            self.round_id += 1
            self.apply(decoded)
            self.remember()
            self.ledger.commit()
            self.line.prune()

    def round(self, answering: set[int], hearing: set[int], crash: bool) -> None:
        """They train and are counted, with all that is late; the next plan reaches some, and tells them so."""
        self.round_id += 1
        plan = self.plan(set())
        payloads, level, base = [], plan.level, plan.base
        for place in sorted(answering):
            gateway = self.gateways[place]
            trained = work.train_update(
                gateway.state, plan, gateway.samples, self.engine, gateway=gateway.name, keep_going=lambda: True
            )
            gateway.become(trained.state)
            pending = trained.state.pending
            assert pending is not None
            assert np.array_equal(
                self.line.decode(pending.payload, pending.level, plan.base).dense(), work.sent_by(pending, self.task)
            )
            payloads.append(pending.payload)
        self.apply([self.line.decode(payload, level, base) for payload in payloads] + self.arrived())
        self.remember()
        if crash:
            # Before the commit: what it had stored of the answers makes the same version again, in whatever order.
            self.ledger.rollback()
            self.ledger.close()
            self.open()
            self.apply(self.arrived() + [self.line.decode(payload, level, base) for payload in reversed(payloads)])
            self.remember()
        self.ledger.commit()
        self.line.prune()
        self.round_id += 1
        for place in sorted(hearing):
            self.hear(place, self.plan(answering))

    def hear(self, place: int, plan: RoundPlan) -> None:
        gateway = self.gateways[place]
        if gateway.state.lineage != plan.lineage:
            return
        y, pending = gateway.state.residual, gateway.state.pending
        state = work.settle_by_plan(gateway.state, plan, place)
        if pending is not None and state.pending is None:
            assert np.array_equal(state.residual, y - work.sent_by(pending, self.task))
        missed = state.version not in (plan.base, plan.base - 1)
        try:
            state = work.advance(state, plan, plan.delta if isinstance(plan.delta, bytes) else None)
        except work.ModelMismatch:
            assert missed, "nothing was missed, and yet the delta does not lead to the version"
        else:
            assert not missed
        gateway.become(state)

    @rule(place=places)
    def receipt(self, place: int) -> None:
        """It asks for its verdict, possibly long after, and with another model at hand."""
        state = self.gateways[place].state
        if state.pending is not None and state.lineage == self.line.number:
            told = Receipt(round_id=state.pending.round_id, counter=state.pending.counter, verdict=Verdict.ACCEPTED)
            settled = work.settle(state, told)
            assert np.array_equal(settled.residual, state.residual - work.sent_by(state.pending, self.task))
            self.gateways[place].become(settled)

    @rule(place=places, kind=ways)
    def catch_up(self, place: int, kind: CatchUpKind | None) -> None:
        """By the cheapest route, or by one that is not."""
        state = self.gateways[place].state
        if state.lineage != self.line.number or state.version == self.line.version:
            return
        route = self.line.route(state.version) if kind is None else self.forced(kind, state.version)
        message = CatchUp(
            lineage=self.line.number,
            kind=route.kind,
            start=route.start,
            number=self.line.version,
            model=short(self.line.digest),
            body=route.body,
        )
        self.gateways[place].become(work.catch_up(state, message, route.body))
        assert self.gateways[place].state.version == self.line.version

    def forced(self, kind: CatchUpKind, have: int) -> Route:
        if kind is CatchUpKind.KEYFRAME:
            return Route(kind=kind, start=0, body=encode_integers(self.line.steps - self.line.initial))
        missed = self.ledger.versions(self.line.number, after=have)
        if kind is CatchUpKind.CHAIN:
            chain = [(version.level, version.delta) for version in missed]
            return Route(kind=kind, start=have, body=msgspec.msgpack.encode(chain))
        return Route(kind=kind, start=have, body=encode_integers(self.line.steps - self.gateways_steps(have)))

    def gateways_steps(self, version: int) -> NDArray[np.int32]:
        """The model at a version, from any gateway that is there."""
        for gateway in self.gateways:
            if (gateway.state.lineage, gateway.state.version) == (self.line.number, version):
                return gateway.state.steps
        raise AssertionError(f"nobody is at version {version}")

    @rule(place=places)
    def restart_gateway(self, place: int) -> None:
        gateway = self.gateways[place]
        before = gateway.state
        gateway.memory.close()
        gateway.start()
        assert gateway.state.pending == before.pending
        assert np.array_equal(gateway.state.residual, before.residual)

    @rule(place=places)
    def start_over(self, place: int) -> None:
        state = self.gateways[place].state
        self.gateways[place].become(work.start_over(state))

    @rule()
    def restart_coordinator(self) -> None:
        self.ledger.close()
        self.open()

    @precondition(lambda self: self.line.version > 1)
    @rule()
    def begin_another_lineage(self) -> None:
        self.now += 10
        self.ledger.close()
        self.open(start_new=True)

    @rule(place=places)
    def welcome(self, place: int) -> None:
        state = self.gateways[place].state
        greeting = Assignment(
            lineage=self.line.number,
            counter=state.counter,
            task=self.task,
            scaler=SCALER,
        )
        adopted = work.adopt(state, greeting)
        if state.lineage != self.line.number:
            assert adopted.pending is None
            assert not adopted.residual.any()
        self.gateways[place].become(adopted)

    # What holds whatever has happened.

    @invariant()
    def whoever_holds_a_version_holds_the_coordinators_and_its_contexts(self) -> None:
        for gateway in getattr(self, "gateways", []):
            state = gateway.state
            if state.lineage:
                made = self.made[state.lineage, state.version]
                assert (model_digest(state.steps), self.mark(state.steps)) == made


Histories.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
TestHistories = Histories.TestCase
