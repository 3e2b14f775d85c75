"""What a gateway does on a coordinator's word, told with a scripted coordinator on a broker in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TypeVar

import msgspec
import numpy as np
import pytest
from fake_broker import FakeBroker
from fedmq_compression.pipeline import CodecSpec, encode, encode_integers
from fedmq_edge_node.gates import Limits, Vitals
from fedmq_edge_node.memory import GatewayState, Memory, StateError
from fedmq_edge_node.personal import first_free, scorer
from fedmq_edge_node.runtimes import NumpyEngine
from fedmq_edge_node.samples import FEATURES
from fedmq_edge_node.service import CRASH_POINTS, Gateway, will
from fedmq_edge_node.transfers import UPLINK_CHUNK_BYTES
from fedmq_protocol.messages import (
    AskChunks,
    AskModel,
    AskVerdict,
    Assignment,
    Birth,
    BlobRef,
    CatchUp,
    CatchUpKind,
    Chunk,
    Decline,
    Message,
    Missing,
    PersonalOutcome,
    PersonalPolicy,
    Receipt,
    Release,
    RoundKind,
    RoundPlan,
    SensorHealth,
    Statistics,
    Trial,
    Update,
    Verdict,
    Welcome,
    check_of,
    from_bytes,
    to_bytes,
)
from fedmq_protocol.reasons import Reason
from fedmq_protocol.session import Received
from fedmq_protocol.settings import SettingsError
from fedmq_protocol.task import ModelSpec, Task, initial_steps, model_digest, short
from fedmq_protocol.topics import Channel, Direction, coordinator_filters, parse, spec, topic
from fedmq_protocol.transfer import chunks, refer
from fedmq_protocol.vitals import ToldVitals
from numpy.typing import NDArray
from plant import FEDERATION, START, FakeFolder, make_task

SCALER = np.concatenate([np.zeros(FEATURES), np.ones(FEATURES)]).astype("<f4").tobytes()
LINEAGE = int(START) - 100
BEARINGS, PUMPS = make_task(name="bearings"), make_task(name="pumps")
NONCE = bytes(8)

Kind = TypeVar("Kind", bound=Message)


def start_of(task: Task) -> NDArray[np.int32]:
    return initial_steps(task.model, task.seed, task.grid_bits)


def a_plan(
    round_id: int, *, task: Task = BEARINGS, lineage: int = LINEAGE, closes_in: int = 60, **changes: object
) -> RoundPlan:
    values: dict[str, object] = {
        "round_id": round_id,
        "lineage": lineage,
        "kind": RoundKind.TRAINING,
        "base": 0,
        "model": check_of(model_digest(start_of(task))),
        "closes_after": int(START) + closes_in - lineage,
        "drawn": 1,
        "accepted": 0,
        "since": 1,
        "level": 0,
    }
    return RoundPlan(**(values | changes))  # type: ignore[arg-type]


def an_assignment(
    task: Task = BEARINGS, lineage: int = LINEAGE, *, known: bool = False, **changes: object
) -> Assignment:
    """`known`: the birth has told that the gateway has this task."""
    values: dict[str, object] = {
        "lineage": lineage,
        "counter": 0,
        "task": None if known else task,
        "scaler": SCALER,
    }
    return Assignment(**(values | changes))  # type: ignore[arg-type]


class Script:
    """One gateway, and a coordinator that says what the test has it say."""

    def __init__(self, directory: Path, *, seed: int = 0, name: str = "g0") -> None:
        self.directory = directory
        self.name = name
        self.seed = seed
        self.now = 0.0
        self.broker = FakeBroker()
        self.coordinator = self.broker.session("coordinator")
        self.coordinator.subscribe(*coordinator_filters(FEDERATION))
        self.coordinator.start()
        self.folder = FakeFolder(seed)
        self.log: list[Message] = []
        self.vitals = Vitals()
        self.step_seconds = 0.0
        self.cpu_at_each_look: float | None = None
        self.cpu_used = 0.0
        self.beyond: int | None = None
        self.tell_vitals = True
        self.alive_at: list[float] = []
        self.starts = 0
        self.welcomed: list[float] = []
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.session = self.broker.session(self.name, will=will(FEDERATION, self.name, NONCE))
        self.memory = Memory(self.directory / "gateway.sqlite")
        self.gateway = Gateway(
            name=self.name,
            federation=FEDERATION,
            session=self.session,
            memory=self.memory,
            source=self.folder,  # type: ignore[arg-type]
            vitals=lambda: self.vitals,
            limits=Limits(),
            monotonic=self.clock,
            rng=Random(self.seed),
            nonce=NONCE,
            software="test",
            tags=("pump", "hall-2"),
            tell_vitals=self.tell_vitals,
            ask_jitter_seconds=0.1,
            welcomed=self.welcomed.append,
            alive=lambda: self.alive_at.append(self.now),
            cpu_seconds=None if self.cpu_at_each_look is None else self.cpu,
            beyond_bytes=lambda: self.beyond,
        )
        self.session.start()

    def cpu(self) -> float:
        """Every look at it finds that some more was used."""
        self.cpu_used += self.cpu_at_each_look or 0.0
        return self.cpu_used

    def clock(self) -> float:
        """Every look at it takes a while, where a test wants training to take time."""
        self.now += self.step_seconds
        return self.now

    def kill(self) -> None:
        self.session.kill()
        self.memory.close()

    def run(self, seconds: float = 0.5) -> None:
        until = self.now + seconds
        while self.now < until:
            while (event := self.session.next(0)) is not None:
                self.gateway.step(event, self.now)
            self.gateway.step(None, self.now)
            self.listen()
            self.now += 0.05

    def listen(self) -> None:
        """Hear what the gateway has said."""
        while (said := self.coordinator.next(0)) is not None:
            if isinstance(said, Received):
                self.log.append(from_bytes(parse(said.topic).spec, said.payload))

    def heard(self, kind: type[Kind]) -> list[Kind]:
        return [message for message in self.log if isinstance(message, kind)]

    def say(self, channel: Channel, message: Message) -> None:
        direction = Direction.DOWN if channel in (Channel.PLAN, Channel.MODEL) else Direction.CMD
        where = topic(FEDERATION, direction, channel, self.name if direction is Direction.CMD else None)
        self.coordinator.publish(where, to_bytes(message), qos=1)

    def welcome(self, *tasks: Assignment, spread: int = 0, now: float | None = None) -> None:
        at = START + self.now if now is None else now
        self.say(Channel.WELCOME, Welcome(nonce=NONCE, now=at, roster=0, spread=spread, tasks=tasks))
        self.run()

    def plan(self, plan: RoundPlan) -> None:
        self.say(Channel.PLAN, plan)
        self.run()

    def accept(self, update: Update) -> None:
        self.say(
            Channel.RECEIPT,
            Receipt(round_id=update.round_id, counter=update.counter, verdict=Verdict.ACCEPTED),
        )
        self.run()

    def state(self, task: Task = BEARINGS) -> GatewayState:
        return self.gateway.states[task.name]


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    made = Script(tmp_path)
    made.run()
    yield made
    made.memory.close()


# --- several tasks ---------------------------------------------------------------------------------------------------


def test_a_birth_tells_tags_and_what_is_held_of_each_task(script: Script) -> None:
    (birth,) = script.heard(Birth)
    assert birth.tags == ("pump", "hall-2")
    assert birth.held == ()
    script.welcome(an_assignment(), an_assignment(PUMPS, LINEAGE + 1, counter=7))
    script.session.cut()
    script.session.heal()
    script.run()
    held = script.heard(Birth)[-1].held
    assert [(h.lineage, h.version, h.task, h.counter) for h in held] == [
        (LINEAGE, 0, short(BEARINGS.digest), 0),
        (LINEAGE + 1, 0, short(PUMPS.digest), 7),
    ]


def test_a_birth_that_would_be_too_long_leaves_tasks_out(script: Script) -> None:
    script.welcome(*(an_assignment(make_task(name=f"task {i}"), LINEAGE + i) for i in range(60)))
    script.session.cut()
    script.session.heal()
    script.run()
    birth = script.heard(Birth)[-1]
    assert 20 < len(birth.held) < 60
    assert len(script.gateway.states) == 60


def test_answers_tell_what_they_took_and_what_carried_them(tmp_path: Path) -> None:
    script = Script(tmp_path)
    script.kill()
    script.cpu_at_each_look, script.beyond = 0.25, 64 * 100 + 63
    script.start()
    script.welcome(an_assignment(plan=a_plan(1)))
    (update,) = script.heard(Update)
    assert update.cpu == 25
    assert [birth.beyond for birth in script.heard(Birth)][-1] == update.beyond == 100
    # The same once more, and told with it what it took then.
    script.kill()
    script.start()
    script.welcome(an_assignment(known=True, plan=a_plan(1)))
    assert [update.cpu for update in script.heard(Update)] == [25, 25]
    script.vitals = Vitals(cpu_idle_pct=0.0)
    script.accept(update)
    script.plan(a_plan(2))
    (decline,) = script.heard(Decline)
    assert (decline.beyond, decline.cpu) == (100, 25)
    script.memory.close()


def test_a_gateway_that_cannot_tell_says_nothing(script: Script) -> None:
    script.welcome(an_assignment(plan=a_plan(1)))
    (update,) = script.heard(Update)
    assert (update.beyond, update.cpu) == (None, None)


def test_births_and_answers_tell_of_battery_and_link_as_the_gates_saw_them(script: Script) -> None:
    (birth,) = script.heard(Birth)
    assert birth.vitals == 0, "it tells, and knows nothing"
    charged = Vitals(battery_pct=81.6, on_mains=True, link_kind="cellular", metered=False, temperature_c=40.0)
    script.vitals = charged
    script.welcome(an_assignment(plan=a_plan(1)))
    (update,) = script.heard(Update)
    assert update.vitals == charged.told().code
    assert charged.told() == ToldVitals(battery_pct=82, on_mains=True, link="cellular", metered=False)
    script.vitals = Vitals(battery_pct=12.0, on_mains=False, link_kind="wifi")
    script.accept(update)
    script.plan(a_plan(2))
    (decline,) = script.heard(Decline)
    assert (decline.reason, decline.vitals) == (Reason.BATTERY, script.vitals.told().code)
    script.session.cut()
    script.session.heal()
    script.run()
    assert script.heard(Birth)[-1].vitals == script.vitals.told().code


def test_statistics_tell_of_battery_and_link_too(script: Script) -> None:
    script.vitals = Vitals(battery_pct=50.0)
    script.welcome(an_assignment(scaler=None, plan=a_plan(1, kind=RoundKind.STATISTICS)))
    assert [said.vitals for said in script.heard(Statistics)] == [script.vitals.told().code]


def test_a_gateway_that_is_not_to_tell_of_battery_and_link_does_not(tmp_path: Path) -> None:
    script = Script(tmp_path)
    script.kill()
    script.tell_vitals = False
    script.start()
    script.vitals = Vitals(battery_pct=90.0, link_kind="wifi")
    script.welcome(an_assignment(plan=a_plan(1)))
    script.vitals = Vitals(battery_pct=3.0)
    (update,) = script.heard(Update)
    script.accept(update)
    script.plan(a_plan(2))
    (decline,) = script.heard(Decline)
    assert {message.vitals for message in (*script.heard(Birth), update, decline)} == {None}
    script.memory.close()


def test_a_birth_need_not_read_more_than_battery_and_link(tmp_path: Path) -> None:
    script = Script(tmp_path)
    script.gateway._glance = lambda: Vitals(battery_pct=7.0)
    script.gateway._read_vitals = lambda: pytest.fail("nothing is to be trained")
    script.run()
    assert [birth.vitals for birth in script.heard(Birth)] == [Vitals(battery_pct=7.0).told().code]
    script.memory.close()


def test_vitals_that_cannot_be_read_are_told_as_unknown(tmp_path: Path) -> None:
    script = Script(tmp_path)

    def unreadable() -> Vitals:
        raise SettingsError([])

    script.gateway._read_vitals = unreadable
    script.run()
    assert [birth.vitals for birth in script.heard(Birth)] == [0]
    script.memory.close()


def test_of_two_plans_at_hand_the_one_that_closes_first_goes_first(script: Script) -> None:
    script.welcome(
        an_assignment(plan=a_plan(1, closes_in=60)),
        an_assignment(PUMPS, LINEAGE + 1, plan=a_plan(2, task=PUMPS, lineage=LINEAGE + 1, closes_in=40)),
    )
    assert [update.round_id for update in script.heard(Update)] == [2, 1]
    assert all(state.pending is not None for state in script.gateway.states.values()), "one of each task"


def test_one_thing_is_trained_at_a_time_and_what_came_meanwhile_is_heard_first(script: Script) -> None:
    script.welcome(an_assignment(), an_assignment(PUMPS, LINEAGE + 1))
    script.say(Channel.PLAN, a_plan(1))
    script.say(Channel.PLAN, a_plan(2, task=PUMPS, lineage=LINEAGE + 1, closes_in=90))
    while (event := script.session.next(0)) is not None:
        script.gateway._handle(event, script.now)
    script.gateway.step(None, script.now)
    assert script.state().pending is not None
    assert script.state(PUMPS).pending is None
    assert script.gateway.wait_seconds(script.now) == 0.0
    script.say(Channel.PLAN, a_plan(3, task=PUMPS, lineage=LINEAGE + 1, closes_in=90, since=1))
    script.run()
    assert [update.round_id for update in script.heard(Update)] == [1, 3]


def test_a_receipt_settles_the_task_whose_round_it_is_of(script: Script) -> None:
    script.welcome(
        an_assignment(plan=a_plan(1)),
        an_assignment(PUMPS, LINEAGE + 1, plan=a_plan(2, task=PUMPS, lineage=LINEAGE + 1)),
    )
    first, second = sorted(script.heard(Update), key=lambda update: update.round_id)
    assert first.counter == second.counter == 1
    script.accept(second)
    assert script.state().pending is not None
    assert script.state(PUMPS).pending is None
    script.accept(first)
    assert script.state().pending is None


def test_a_plan_settles_the_round_that_its_own_task_had_before(script: Script) -> None:
    script.welcome(an_assignment(plan=a_plan(1)), an_assignment(PUMPS, LINEAGE + 1))
    script.plan(a_plan(5, since=4, accepted=1, kind=RoundKind.REST))
    assert script.state().pending is None
    assert not script.heard(AskVerdict)


def test_missing_chunks_are_sent_of_the_update_that_they_are_of(tmp_path: Path) -> None:
    tasks = [make_task(name=name, sizes=(FEATURES, 128, 64, 3), dense=True) for name in ("bearings", "pumps")]
    script = Script(tmp_path)
    script.run()
    script.welcome(
        *(
            an_assignment(task, LINEAGE + i, plan=a_plan(1 + i, task=task, lineage=LINEAGE + i))
            for i, task in enumerate(tasks)
        )
    )
    second = next(update for update in script.heard(Update) if update.round_id == 2)
    assert isinstance(second.payload, BlobRef)
    script.log.clear()
    script.say(Channel.RECEIPT, Missing(transfer=short(second.payload.digest), missing=(1, 3)))
    script.run()
    assert [(c.transfer, c.index) for c in script.heard(Chunk)] == [(short(second.payload.digest), i) for i in (1, 3)]


def test_a_task_that_a_welcome_does_not_name_is_over_and_forgotten_on_disk(script: Script) -> None:
    script.welcome(an_assignment(plan=a_plan(1)), an_assignment(PUMPS, LINEAGE + 1))
    script.welcome(an_assignment(PUMPS, LINEAGE + 1, known=True))
    assert set(script.gateway.states) == {"pumps"}
    births = len(script.heard(Birth))
    script.plan(a_plan(2))
    script.run(30.0)
    assert len(script.heard(Birth)) == births, "it is somebody else's now"
    script.kill()
    script.start()
    assert set(script.gateway.states) == {"pumps"}
    script.run()
    script.welcome()
    assert script.gateway.states == {}
    assert script.gateway.state.lineage == 0


def test_a_task_may_come_back_with_the_counter_that_the_coordinator_has_on_record(script: Script) -> None:
    script.welcome(an_assignment(plan=a_plan(1)))
    script.welcome()
    script.welcome(an_assignment(counter=1, plan=a_plan(2)))
    assert [(u.round_id, u.counter) for u in script.heard(Update)] == [(1, 1), (2, 2)]


def test_a_new_lineage_goes_on_with_the_task_of_its_name(script: Script) -> None:
    script.welcome(an_assignment(plan=a_plan(1)), an_assignment(PUMPS, LINEAGE + 1))
    assert script.state().residual.any()
    script.welcome(an_assignment(lineage=LINEAGE + 50), an_assignment(PUMPS, LINEAGE + 1, known=True))
    assert script.state().lineage == LINEAGE + 50
    assert script.state().pending is None
    assert not script.state().residual.any()
    assert script.state(PUMPS).lineage == LINEAGE + 1


def test_a_task_that_cannot_be_had_does_not_keep_the_others_from_work(script: Script) -> None:
    strange = msgspec.structs.replace(PUMPS, initial=bytes(8))
    script.welcome(an_assignment(plan=a_plan(1)), an_assignment(strange, LINEAGE + 1))
    assert set(script.gateway.states) == {"bearings"}
    assert len(script.heard(Update)) == 1
    births = len(script.heard(Birth))
    script.plan(a_plan(2, lineage=LINEAGE + 1))
    script.run(10.0)
    assert len(script.heard(Birth)) == births


def test_two_tasks_may_cut_windows_of_the_same_recordings_and_both_see_new_ones(script: Script) -> None:
    script.welcome(an_assignment(plan=a_plan(1)), an_assignment(PUMPS, LINEAGE + 1))
    (first,) = script.heard(Update)
    script.accept(first)
    script.folder.samples = FakeFolder(5).samples
    script.folder.fresh = True
    births = len(script.heard(Birth))
    # The second one loads before anybody has looked for new recordings.
    script.plan(a_plan(2, task=PUMPS, lineage=LINEAGE + 1))
    script.plan(a_plan(3))
    assert script.gateway._jobs["bearings"]._samples is script.folder.samples
    script.run(61.0)
    assert len(script.heard(Birth)) == births + 1, "and the coordinator is told"


# --- welcomes and lineages -------------------------------------------------------------------------------------------


def test_a_lineage_that_nobody_here_has_is_asked_about_once(script: Script) -> None:
    script.welcome(an_assignment())
    script.plan(a_plan(7, lineage=LINEAGE + 9))
    assert len(script.heard(Birth)) == 2
    script.welcome(an_assignment(known=True))
    for round_id in range(8, 12):
        script.plan(a_plan(round_id, lineage=LINEAGE + 9))
    script.run(30.0)
    assert len(script.heard(Birth)) == 2
    # And yet a welcome may bring it later, unasked.
    script.welcome(an_assignment(known=True), an_assignment(PUMPS, LINEAGE + 9, plan=a_plan(12, lineage=LINEAGE + 9)))
    assert [update.round_id for update in script.heard(Update)] == [12]


def test_meanwhile_the_tasks_at_hand_go_on(script: Script) -> None:
    script.welcome(an_assignment())
    script.plan(a_plan(7, lineage=LINEAGE + 9))
    script.plan(a_plan(8))
    assert [update.round_id for update in script.heard(Update)] == [8]


def test_a_welcome_from_before_a_lineage_began_does_not_make_it_strange(script: Script) -> None:
    script.welcome(an_assignment())
    young = int(START + script.now) + 5
    script.plan(a_plan(7, lineage=young))
    script.welcome(an_assignment(known=True))
    births = len(script.heard(Birth))
    script.run(5.0)
    script.plan(a_plan(8, lineage=young))
    assert len(script.heard(Birth)) == births + 1


def test_lineages_of_others_are_remembered_in_bounded_number(script: Script) -> None:
    script.welcome(an_assignment())
    for number in range(1, 400):
        script.say(Channel.PLAN, a_plan(number, lineage=number))
        if number % 40 == 0:
            script.run()
            script.welcome(an_assignment(known=True))
    assert 0 < len(script.gateway._strange) <= 256
    assert len(script.gateway._wondering) <= 64


def test_each_welcome_is_told_with_the_coordinators_time_and_no_other_is(script: Script) -> None:
    script.welcome(an_assignment(), now=START + 100)
    script.say(Channel.WELCOME, Welcome(nonce=b"another!", now=START + 200, roster=0, spread=0, tasks=()))
    script.welcome(an_assignment(), now=START + 99)
    script.welcome(an_assignment(), now=START + 101)
    assert script.welcomed == [START + 100, START + 101]


def test_a_welcome_that_comes_late_changes_nothing(script: Script) -> None:
    script.welcome(an_assignment(), now=START + 100)
    script.welcome(an_assignment(lineage=LINEAGE - 50), now=START + 99)
    assert script.state().lineage == LINEAGE
    assert script.gateway.coordinator_time(script.now) >= START + 100
    script.welcome(an_assignment(lineage=LINEAGE + 50), now=START + 101)
    assert script.state().lineage == LINEAGE + 50


def test_a_welcome_that_was_not_asked_for_does_not_send_the_pending_update_again(script: Script) -> None:
    plan = a_plan(1)
    script.welcome(an_assignment(plan=plan))
    script.welcome(an_assignment(plan=plan, known=True))
    assert len(script.heard(Update)) == 1
    script.session.cut()
    script.session.heal()
    script.run()
    script.welcome(an_assignment(plan=plan, known=True))
    assert len(script.heard(Update)) == 2


def test_a_plan_said_again_is_answered_with_the_question_what_became_of_the_update(script: Script) -> None:
    """The coordinator says it on coming back, and what came in its last instant may never have been written down."""
    plan = a_plan(1, closes_in=3600)
    script.welcome(an_assignment(plan=plan))
    (update,) = script.heard(Update)
    script.plan(plan)
    (ask,) = script.heard(AskVerdict)
    assert (ask.round_id, ask.counter) == (1, update.counter)
    script.say(Channel.RECEIPT, Receipt(round_id=1, counter=update.counter, verdict=Verdict.UNKNOWN))
    script.run()
    assert [(again.counter, again.payload) for again in script.heard(Update)] == 2 * [(update.counter, update.payload)]


def test_a_plan_said_again_once_the_update_is_settled_is_no_question(script: Script) -> None:
    plan = a_plan(1)
    script.welcome(an_assignment(plan=plan))
    script.accept(script.heard(Update)[0])
    script.plan(plan)
    assert not script.heard(AskVerdict)
    assert len(script.heard(Update)) == 1


def test_a_plan_that_goes_out_again_for_a_release_is_no_question(script: Script) -> None:
    plan = a_plan(1)
    script.welcome(an_assignment(plan=plan))
    script.plan(msgspec.structs.replace(plan, release=1))
    assert not script.heard(AskVerdict)


def test_a_welcome_for_another_start_is_dropped(script: Script) -> None:
    script.say(Channel.WELCOME, Welcome(nonce=b"another!", now=START, roster=0, spread=9, tasks=(an_assignment(),)))
    script.run()
    assert script.gateway.states == {}
    assert script.session.spread_seconds == 0


# --- spreading out ---------------------------------------------------------------------------------------------------


def test_the_spread_of_the_welcome_goes_to_the_connection(script: Script) -> None:
    script.welcome(an_assignment(), spread=120)
    assert script.session.spread_seconds == 120
    script.welcome(an_assignment(known=True), spread=0)
    assert script.session.spread_seconds == 0


@pytest.mark.parametrize("news", ["lineage", "release"])
def test_births_that_a_broadcast_brings_about_are_spread(tmp_path: Path, news: str) -> None:
    delays = []
    for seed in range(12):
        script = Script(tmp_path / str(seed), seed=seed)
        script.run()
        script.welcome(an_assignment(), spread=60)
        plan = a_plan(2, lineage=LINEAGE + 1) if news == "lineage" else a_plan(2, release=1, kind=RoundKind.REST)
        began, births = script.now, len(script.heard(Birth))
        script.plan(plan)
        while len(script.heard(Birth)) == births:
            script.run(0.1)
            assert script.now - began < 61.0
        delays.append(script.now - began)
        script.memory.close()
    assert max(delays) > 40.0
    assert min(delays) < 20.0
    assert len({round(delay) for delay in delays}) > 6


# --- rounds that close while it trains -------------------------------------------------------------------------------


def test_a_long_training_says_that_it_is_alive(script: Script) -> None:
    """Nothing but the training says so here: the loop is the test's own."""
    script.step_seconds = 0.5
    script.welcome(an_assignment(plan=a_plan(1, closes_in=20)))
    assert len(script.alive_at) >= 4
    assert max(later - earlier for earlier, later in pairwise(script.alive_at)) <= 5.0


def test_training_ends_when_the_round_closes(script: Script) -> None:
    script.step_seconds = 0.5
    script.welcome(an_assignment(plan=a_plan(1, closes_in=4)))
    assert [decline.reason for decline in script.heard(Decline)] == [Reason.LATE]


def test_where_the_task_takes_late_updates_training_goes_on_and_the_newest_plan_is_next(script: Script) -> None:
    late = make_task(name="bearings", staleness=3)
    script.step_seconds = 0.5
    script.welcome(an_assignment(late, plan=a_plan(1, closes_in=4)))
    (update,) = script.heard(Update)
    assert script.now > 4.0
    assert not script.heard(Decline)
    script.step_seconds = 0.0
    closes = int(script.now) + 100
    for round_id in (2, 3):
        script.say(Channel.PLAN, a_plan(round_id, closes_in=closes))
    script.run(1.0)
    assert [ask.round_id for ask in script.heard(AskVerdict)] == [1]
    script.accept(update)
    assert [u.round_id for u in script.heard(Update)] == [1, 3]


# --- releases --------------------------------------------------------------------------------------------------------


def trained(task: Task = BEARINGS, *, seed: int = 0, epochs: int = 30) -> NDArray[np.int32]:
    """A model that has learnt the windows of `FakeFolder(seed)`."""
    steps = start_of(task)
    samples, engine = FakeFolder(seed).samples, NumpyEngine(task.model)
    flat = steps.astype(np.float32) * np.float32(task.grid_step)
    weights = np.ones(len(samples.train_y), dtype=np.float32)
    for _ in range(epochs):
        gradient, _ = engine.loss_grad(flat, samples.train_x, samples.train_y, weights)
        flat -= np.float32(0.3) * gradient
    return np.rint(flat / np.float32(task.grid_step)).astype(np.int32)


GOOD, BETTER = trained(epochs=5), trained(epochs=200)


def a_release(version: int, steps: NDArray[np.int32], *, forced: bool = False) -> Release:
    return Release(version=version, model=short(model_digest(steps)), forced=forced)


def bring(script: Script, version: int, steps: NDArray[np.int32], *, lineage: int = LINEAGE) -> None:
    """The keyframe of a version, as the coordinator answers a question for it."""
    script.say(
        Channel.MODEL,
        CatchUp(
            lineage=lineage,
            kind=CatchUpKind.KEYFRAME,
            start=0,
            number=version,
            model=short(model_digest(steps)),
            body=encode_integers(steps - start_of(BEARINGS)),
        ),
    )
    script.run()


def put_in_service(script: Script, version: int, steps: NDArray[np.int32], *, forced: bool = False) -> None:
    script.welcome(an_assignment(release=a_release(version, steps, forced=forced), releases=version))
    bring(script, version, steps)


def test_the_first_release_is_put_in_service_at_once_and_told(script: Script) -> None:
    assert script.gateway.in_service("bearings") is None
    put_in_service(script, 5, GOOD)
    (ask,) = script.heard(AskModel)
    assert (ask.lineage, ask.wanted) == (LINEAGE, 5)
    (told,) = script.heard(Trial)
    assert (told.version, told.in_service, told.windows, told.before) == (5, 5, 30, None)
    assert told.metric > 3_000
    model = script.gateway.in_service("bearings")
    assert model is not None
    assert (model.lineage, model.version, model.digest, model.scaler) == (LINEAGE, 5, model_digest(GOOD), SCALER)
    assert np.array_equal(model.steps, GOOD)
    assert script.gateway.in_service("pumps") is None


def test_a_released_version_never_changes_the_model_in_training(script: Script) -> None:
    put_in_service(script, 5, GOOD)
    assert script.state().version == 0
    assert np.array_equal(script.state().steps, start_of(BEARINGS))


def test_nobody_listens_for_models_once_they_have_come(script: Script) -> None:
    where = topic(FEDERATION, Direction.DOWN, Channel.MODEL)
    script.welcome(an_assignment(release=a_release(5, GOOD), releases=1))
    assert where in script.session.filters
    bring(script, 5, GOOD)
    assert where not in script.session.filters


def test_a_version_that_is_at_hand_is_not_asked_for(script: Script) -> None:
    script.welcome(an_assignment(release=a_release(0, start_of(BEARINGS)), releases=1))
    assert not script.heard(AskModel)
    assert [told.in_service for told in script.heard(Trial)] == [0]


def test_a_release_that_is_no_worse_takes_over(script: Script) -> None:
    put_in_service(script, 5, GOOD)
    put_in_service(script, 6, BETTER)
    told = script.heard(Trial)[-1]
    assert (told.version, told.in_service) == (6, 6)
    assert told.before is not None
    assert told.before < told.metric
    put_in_service(script, 7, BETTER)
    assert script.heard(Trial)[-1].in_service == 7, "as good is no worse"


def test_a_release_that_is_worse_does_not_and_is_tried_again_only_on_other_recordings(script: Script) -> None:
    put_in_service(script, 6, BETTER)
    put_in_service(script, 7, GOOD)
    told = script.heard(Trial)[-1]
    assert (told.version, told.in_service) == (7, 6)
    asks, trials = len(script.heard(AskModel)), len(script.heard(Trial))
    for _ in range(3):
        script.welcome(an_assignment(known=True, release=a_release(7, GOOD), releases=7))
    script.run(70.0)
    assert (len(script.heard(AskModel)), len(script.heard(Trial))) == (asks, trials)
    # Other windows, which the better model has wrong.
    held = script.folder.samples
    script.folder.samples = replace(held, held_y=(held.held_y + 1) % 3)
    script.folder.fresh = True
    script.run(70.0)
    assert len(script.heard(AskModel)) > asks
    bring(script, 7, GOOD)
    told = script.heard(Trial)[-1]
    assert (told.version, told.in_service) == (7, 7)


@pytest.mark.parametrize("changed", [False, True])
def test_a_release_that_lost_is_remembered_over_a_restart(script: Script, changed: bool) -> None:
    put_in_service(script, 6, BETTER)
    put_in_service(script, 7, GOOD)
    script.kill()
    if changed:
        held = script.folder.samples
        script.folder.samples = replace(held, held_x=held.held_x[:-1], held_y=held.held_y[:-1])
    script.log.clear()
    script.start()
    model = script.gateway.in_service("bearings")
    assert model is not None
    assert model.version == 6
    assert np.array_equal(model.steps, BETTER)
    script.run()
    script.welcome(an_assignment(known=True, release=a_release(7, GOOD), releases=7))
    # Told again, since nobody knows whether it was before.
    assert [(t.version, t.in_service) for t in script.heard(Trial)] == [(7, 6)]
    script.plan(a_plan(1))
    assert bool(script.heard(AskModel)) is changed


def test_a_forced_release_takes_over_though_it_is_worse(script: Script) -> None:
    put_in_service(script, 6, BETTER)
    put_in_service(script, 7, GOOD)
    put_in_service(script, 7, GOOD, forced=True)
    told = script.heard(Trial)[-1]
    assert (told.version, told.in_service, told.windows, told.before) == (7, 7, 0, None)


def test_without_held_out_windows_what_serves_goes_on_to_serve(script: Script) -> None:
    put_in_service(script, 5, GOOD)
    script.folder.broken = True
    script.gateway._jobs["bearings"].forget_windows()
    put_in_service(script, 6, BETTER)
    told = script.heard(Trial)[-1]
    assert (told.version, told.in_service, told.windows) == (6, 5, 0)
    script.folder.broken = False
    script.folder.fresh = True
    script.run(70.0)
    bring(script, 6, BETTER)
    assert script.heard(Trial)[-1].in_service == 6


def test_a_gateway_whose_sensor_is_silent_declines_until_it_is_heard_again(script: Script) -> None:
    script.welcome(an_assignment())
    script.folder.missed = "silent: motor on pump-3 for 400 s; limit 300 s"
    script.plan(a_plan(1))
    script.run(5.0)
    assert [decline.reason for decline in script.heard(Decline)] == [Reason.SAMPLES]
    assert not script.heard(Update)
    script.folder.missed = ""
    script.plan(a_plan(2))
    script.run(5.0)
    assert [update.round_id for update in script.heard(Update)] == [2]


@pytest.mark.parametrize("tags", [1, 16])
def test_a_birth_tells_of_sensors_as_far_as_it_has_room(script: Script, tags: int) -> None:
    script.kill()
    script.folder.sensors = tuple(
        SensorHealth(name=f"sensor-{number:09}", rate_pct=100, silent_seconds=1 << 31, lost_frames=1 << 40)
        for number in range(16)
    )
    script.start()
    script.gateway._tags = tuple(f"{number:032}" for number in range(tags))
    script.run()
    birth = script.heard(Birth)[-1]
    assert birth.sensors == script.folder.sensors[: len(birth.sensors)]
    assert (len(birth.sensors) == 16) == (tags == 1)
    assert len(to_bytes(birth)) <= spec(Direction.UP, Channel.STATUS).max_bytes


def test_each_model_is_scored_with_its_own_scaler(script: Script) -> None:
    put_in_service(script, 6, BETTER)
    good = script.heard(Trial)[-1].metric
    # With features far away from all that it has seen the same weights see nothing.
    other = np.concatenate([1000 * np.ones(FEATURES), np.ones(FEATURES)]).astype("<f4").tobytes()
    steps = BETTER.copy()
    script.welcome(an_assignment(scaler=other, release=a_release(7, steps), releases=7))
    bring(script, 7, steps)
    told = script.heard(Trial)[-1]
    assert told.before == good
    assert told.metric < good
    model = script.gateway.in_service("bearings")
    assert model is not None
    assert model.scaler == SCALER


def test_what_is_in_service_outlives_a_new_lineage(script: Script) -> None:
    put_in_service(script, 6, BETTER)
    script.welcome(an_assignment(lineage=LINEAGE + 50))
    model = script.gateway.in_service("bearings")
    assert model is not None
    assert (model.lineage, model.version) == (LINEAGE, 6)
    steps = start_of(BEARINGS)
    script.welcome(an_assignment(lineage=LINEAGE + 50, release=a_release(0, steps), releases=1))
    told = script.heard(Trial)[-1]
    assert (told.lineage, told.version, told.in_service) == (LINEAGE + 50, 0, 6)


def test_a_model_of_other_classes_is_no_rival(script: Script) -> None:
    put_in_service(script, 6, BETTER)
    other = make_task(name="bearings", classes=("normal", "ball", "outer"))
    steps = start_of(other)
    script.welcome(an_assignment(other, LINEAGE + 50, release=a_release(0, steps), releases=1))
    told = script.heard(Trial)[-1]
    assert (told.in_service, told.before) == (0, None)


def test_a_keyframe_of_another_model_than_was_released_is_passed_over(script: Script) -> None:
    script.welcome(an_assignment(release=a_release(5, GOOD), releases=1))
    bring(script, 5, BETTER)
    bring(script, 6, GOOD)
    assert script.gateway.in_service("bearings") is None
    bring(script, 5, GOOD)
    assert script.gateway.in_service("bearings") is not None


def test_a_trial_is_told_only_once_it_is_on_disk(script: Script) -> None:
    script.welcome(an_assignment(release=a_release(5, GOOD), releases=1))

    def die(name: str) -> None:
        if name == "before save":
            raise KeyboardInterrupt

    script.gateway._crash_point = die
    with pytest.raises(KeyboardInterrupt):
        bring(script, 5, GOOD)
    script.listen()
    assert not script.heard(Trial)
    script.kill()
    script.start()
    assert script.gateway.in_service("bearings") is None
    script.run()
    script.welcome(an_assignment(known=True, release=a_release(5, GOOD), releases=1))
    bring(script, 5, GOOD)
    assert len(script.heard(Trial)) == 1


def test_a_plan_that_speaks_of_a_release_that_is_known_brings_no_birth(script: Script) -> None:
    script.welcome(an_assignment(releases=4))
    births = len(script.heard(Birth))
    script.plan(a_plan(1, release=4))
    script.run(5.0)
    assert len(script.heard(Birth)) == births
    script.plan(a_plan(2, release=5, kind=RoundKind.REST))
    script.plan(a_plan(3, release=5, kind=RoundKind.REST))
    assert len(script.heard(Birth)) == births + 1
    script.welcome(an_assignment(known=True, releases=5))
    script.plan(a_plan(4, release=5, kind=RoundKind.REST))
    script.run(5.0)
    assert len(script.heard(Birth)) == births + 1


# --- transfers -------------------------------------------------------------------------------------------------------

LARGE = make_task(name="bearings", sizes=(FEATURES, 128, 64, 3), dense=True)


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Script]:
    made = Script(tmp_path)
    made.run()
    made.welcome(an_assignment(LARGE, plan=a_plan(1, task=LARGE)))
    yield made
    made.memory.close()


def payload_of(script: Script) -> BlobRef:
    reference = script.heard(Update)[-1].payload
    assert isinstance(reference, BlobRef)
    return reference


def test_an_update_in_chunks_goes_out_whole_once(large: Script) -> None:
    reference = payload_of(large)
    assert reference.chunk_bytes == UPLINK_CHUNK_BYTES
    assert [chunk.index for chunk in large.heard(Chunk)] == list(range(-(-reference.length // UPLINK_CHUNK_BYTES)))


@pytest.mark.parametrize("why", ["unknown", "reconnect", "restart"])
def test_an_update_that_is_sent_again_brings_no_chunk_until_they_are_missed(large: Script, why: str) -> None:
    reference = payload_of(large)
    large.log.clear()
    pending = large.state().pending
    assert pending is not None
    if why == "unknown":
        verdict = Verdict.UNKNOWN
        large.say(Channel.RECEIPT, Receipt(round_id=1, counter=pending.counter, verdict=verdict))
        large.run()
    else:
        if why == "restart":
            large.kill()
            large.start()
        else:
            large.session.cut()
            large.session.heal()
        large.run()
        large.welcome(an_assignment(LARGE, known=True, plan=a_plan(1, task=LARGE)))
    assert payload_of(large) == reference
    assert not large.heard(Chunk)
    large.say(Channel.RECEIPT, Missing(transfer=short(reference.digest), missing=(2,)))
    large.run()
    assert [chunk.index for chunk in large.heard(Chunk)] == [2]


def test_on_a_slow_link_few_chunks_are_under_way_and_nothing_piles_up(large: Script) -> None:
    large.session.cut()
    large.session.heal()
    large.run()
    large.welcome(an_assignment(LARGE, known=True, plan=a_plan(1, task=LARGE)))
    reference = payload_of(large)
    large.log.clear()
    count = -(-reference.length // UPLINK_CHUNK_BYTES)
    publish = large.session.publish

    def slow(where: str, payload: bytes, **how: object) -> bool:
        large.session.outstanding += where.endswith("/chunk")
        return publish(where, payload, **how)  # type: ignore[arg-type]

    large.session.publish = slow  # type: ignore[method-assign,assignment]
    missing = Missing(transfer=short(reference.digest), missing=tuple(range(count)))
    large.say(Channel.RECEIPT, missing)
    most = 0
    for _ in range(3 * count):
        large.run(1.0)
        most = max(most, large.session.outstanding)
        # The coordinator grows impatient, for it knows nothing of the link.
        large.say(
            Channel.RECEIPT,
            missing
            if len(large.heard(Chunk)) < 3
            else Missing(transfer=missing.transfer, missing=missing.missing[len(large.heard(Chunk)) :] or (0,)),
        )
        large.session.outstanding = max(0, large.session.outstanding - 1)
        if len(large.heard(Chunk)) >= count:
            break
    assert most <= 2
    assert sorted({chunk.index for chunk in large.heard(Chunk)}) == list(range(count))
    assert len(large.heard(Chunk)) <= count + 2


def a_large_keyframe(number: int = 3) -> tuple[CatchUp, bytes, BlobRef]:
    steps = start_of(LARGE) + np.random.default_rng(number).integers(-(10**7), 10**7, LARGE.model.parameters).astype(
        np.int32
    )
    body = encode_integers(steps - start_of(LARGE))
    reference = refer(body, 4096)
    message = CatchUp(
        lineage=LINEAGE,
        kind=CatchUpKind.KEYFRAME,
        start=0,
        number=number,
        model=short(model_digest(steps)),
        body=reference,
    )
    return message, body, reference


@pytest.fixture
def catching_up(tmp_path: Path) -> Iterator[Script]:
    """A gateway that has asked for version 3."""
    made = Script(tmp_path)
    made.run()
    made.welcome(an_assignment(LARGE, plan=a_plan(1, task=LARGE, base=3, model=1, kind=RoundKind.REST)))
    assert len(made.heard(AskModel)) == 1
    yield made
    made.memory.close()


def test_a_transfer_goes_on_after_a_reconnect_with_what_is_missing(catching_up: Script) -> None:
    message, body, reference = a_large_keyframe()
    pieces = list(chunks(body, reference))
    assert len(pieces) > 6
    catching_up.say(Channel.MODEL, message)
    for piece in pieces[:4]:
        catching_up.say(Channel.MODEL, piece)
    catching_up.run(0.2)
    catching_up.session.cut()
    catching_up.session.heal()
    catching_up.run()
    catching_up.welcome(
        an_assignment(LARGE, known=True, plan=a_plan(1, task=LARGE, base=3, model=1, kind=RoundKind.REST))
    )
    catching_up.run(3.0)
    (ask,) = catching_up.heard(AskChunks)
    assert ask.missing == tuple(range(4, len(pieces)))
    assert len(catching_up.heard(AskModel)) == 1
    for piece in chunks(body, reference, ask.missing):
        catching_up.say(Channel.CHUNK, piece)
    catching_up.run()
    assert catching_up.state().version == 3


def a_plan_with_a_delta_in_chunks() -> tuple[RoundPlan, list[Chunk]]:
    """It leads to version 1 of LARGE."""
    step = np.float32(LARGE.grid_step)
    delta = np.full(LARGE.model.parameters, step, dtype=np.float32)
    codec = LARGE.down.at(0)
    body = encode(delta, CodecSpec(bits=codec.bits, density=codec.density, step=LARGE.grid_step)).payload
    ref = refer(body, 4096)
    after = start_of(LARGE) + np.int32(1)
    plan = a_plan(2, task=LARGE, base=1, model=check_of(model_digest(after)), kind=RoundKind.REST, delta=ref)
    return plan, list(chunks(body, ref))


def test_chunks_that_come_before_the_welcome_are_not_asked_for_again(tmp_path: Path) -> None:
    """A kept session brings first the plan, then the chunks; the welcome waits behind them in the same line."""
    script = Script(tmp_path)
    script.run()
    script.welcome(an_assignment(LARGE))
    script.session.cut()
    script.session.heal()
    script.run()
    plan, pieces = a_plan_with_a_delta_in_chunks()
    assert len(pieces) > 3
    script.plan(plan)
    for piece in pieces:
        script.say(Channel.CHUNK, piece)
    script.run()
    script.welcome(an_assignment(LARGE, known=True, plan=plan))
    script.run(30.0)
    assert script.state(LARGE).version == 1
    assert not script.heard(AskChunks)
    script.memory.close()


def test_a_question_for_chunks_is_not_sent_again_by_the_connection(tmp_path: Path) -> None:
    """What it asks for would come twice; a new connection brings a new question."""
    script = Script(tmp_path)
    script.run()
    asked: list[int] = []
    publish = script.session.publish

    def note(where: str, payload: bytes, *, qos: int = 1, **how: object) -> bool:
        if parse(where).channel is Channel.ASK:
            asked.append(qos)
        return publish(where, payload, qos=qos, **how)  # type: ignore[arg-type]

    script.session.publish = note  # type: ignore[method-assign, assignment]
    plan, _ = a_plan_with_a_delta_in_chunks()
    script.welcome(an_assignment(LARGE, plan=plan))
    script.run(5.0)
    assert len(script.heard(AskChunks)) == 1
    assert asked == [0]
    script.memory.close()


def test_a_newer_catch_up_does_not_begin_anew_what_has_begun(catching_up: Script) -> None:
    message, body, reference = a_large_keyframe()
    newer, _, _ = a_large_keyframe(number=4)
    catching_up.say(Channel.MODEL, message)
    pieces = list(chunks(body, reference))
    for piece in pieces[:2]:
        catching_up.say(Channel.MODEL, piece)
    catching_up.say(Channel.MODEL, newer)
    for piece in pieces[2:]:
        catching_up.say(Channel.MODEL, piece)
    catching_up.run()
    assert catching_up.state().version == 3


def test_a_transfer_that_nobody_has_any_more_is_given_up_and_the_model_asked_for_again(catching_up: Script) -> None:
    message, _, _ = a_large_keyframe()
    catching_up.say(Channel.MODEL, message)
    catching_up.run(400.0)
    assert 3 <= len(catching_up.heard(AskChunks)) <= 5
    assert len(catching_up.heard(AskModel)) >= 2


# --- crashes and disks -----------------------------------------------------------------------------------------------


def test_every_step_and_every_message_has_a_crash_point_before_and_after() -> None:
    assert len(set(CRASH_POINTS)) == len(CRASH_POINTS)
    for what in ("save", "forget", "update", "decline", "chunk", "trial", "birth"):
        assert {f"before {what}", f"after {what}"} <= set(CRASH_POINTS)


def test_a_full_disk_ends_the_gateway_with_a_clear_word_and_its_last_state_stands(script: Script) -> None:
    script.welcome(an_assignment(LARGE))
    pages = script.memory._db.execute("PRAGMA page_count").fetchone()[0]
    script.memory._db.execute(f"PRAGMA max_page_count = {pages}")
    script.say(Channel.PLAN, a_plan(1, task=LARGE))
    with pytest.raises(StateError, match="is the disk full"):
        script.run()
    assert not script.heard(Update)
    script.kill()
    script.start()
    assert (script.state().lineage, script.state().pending, script.state().counter) == (LINEAGE, None, 0)
    script.run()
    script.welcome(an_assignment(LARGE, known=True, plan=a_plan(1, task=LARGE)))
    assert [(update.round_id, update.counter) for update in script.heard(Update)] == [(1, 1)]


def test_an_update_is_not_sent_where_it_could_not_be_saved(script: Script) -> None:
    script.welcome(an_assignment())
    script.memory._db.execute("PRAGMA query_only = 1")
    script.say(Channel.PLAN, a_plan(1))
    with pytest.raises(StateError, match="cannot write the gateway's memory"):
        script.run()
    assert not script.heard(Update)
    assert not script.heard(Decline)


class Killed(BaseException):
    """The process is gone: nothing of ours catches this."""


@pytest.mark.parametrize(
    "point", [f"{when} {what}" for what in ("forget", "trial", "leave") for when in ("before", "after")]
)
def test_killed_at_a_crash_point_a_gateway_comes_to_where_it_was_going(script: Script, point: str) -> None:
    script.welcome(an_assignment(), an_assignment(PUMPS, LINEAGE + 1, release=a_release(5, GOOD), releases=1))
    keyframe = CatchUp(
        lineage=LINEAGE + 1,
        kind=CatchUpKind.KEYFRAME,
        start=0,
        number=5,
        model=short(model_digest(GOOD)),
        body=encode_integers(GOOD - start_of(PUMPS)),
    )

    def die(name: str) -> None:
        if name == point:
            raise Killed

    def live() -> None:
        script.say(Channel.MODEL, keyframe)
        script.run()
        # The bearings are over.
        script.welcome(an_assignment(PUMPS, LINEAGE + 1, known=True, release=a_release(5, GOOD), releases=1))
        script.gateway.leave()

    script.gateway._crash_point = die
    with pytest.raises(Killed):
        live()
    script.session.kill()
    script.memory.close()
    script.start()
    script.run()
    script.welcome(an_assignment(PUMPS, LINEAGE + 1, known=True, release=a_release(5, GOOD), releases=1))
    assert set(script.gateway.states) == {"pumps"}
    model = script.gateway.in_service("pumps")
    assert model is not None
    assert np.array_equal(model.steps, GOOD)
    assert {(told.version, told.in_service) for told in script.heard(Trial)} == {(5, 5)}
    assert len(script.heard(AskModel)) == 1


def test_the_model_of_a_task_has_the_size_that_these_tests_think(script: Script) -> None:
    assert isinstance(LARGE.model, ModelSpec)
    assert 4 * LARGE.model.parameters > 32 * 1024


# --- the personal model ----------------------------------------------------------------------------------------------

HEAD = PersonalPolicy(mode="head", margin=0.02, epochs=20)
COPY = msgspec.structs.replace(HEAD, mode="copy")


def own_folder(script: Script) -> None:
    """What shows as one class elsewhere is another one here."""
    mine = script.folder.samples
    turned = np.array([1, 0, 2])
    script.folder.samples = replace(mine, train_y=turned[mine.train_y], held_y=turned[mine.held_y])


def release_with(
    script: Script,
    policy: PersonalPolicy | None = HEAD,
    version: int = 6,
    steps: NDArray[np.int32] = BETTER,
    **changes: object,
) -> None:
    release = a_release(version, steps)
    script.welcome(an_assignment(release=release, releases=version, personal=policy, **changes))
    bring(script, version, steps)


def test_a_personal_model_scores_where_it_is_better_and_the_coordinator_hears_of_it(script: Script) -> None:
    assert script.gateway.scorer("bearings") is None
    own_folder(script)
    release_with(script)
    first, last = script.heard(Trial)
    assert first.personal is None, "what took over is told at once"
    assert (last.version, last.in_service) == (6, 6)
    assert last.personal is not None
    assert last.personal.outcome is PersonalOutcome.SERVES
    assert last.personal.shared == last.metric
    one = script.gateway.scorer("bearings")
    assert one is not None
    assert (one.personal, one.version) == (True, 6)
    assert one.own is not None
    body = first_free(BEARINGS.model, HEAD)
    assert np.array_equal(one.own[:body], one.shared[:body])
    held = script.folder.samples
    right = np.mean(one.infer(held.held_x).argmax(axis=1) == held.held_y)
    plain = scorer(script.state().in_service, None, one.engine)  # type: ignore[arg-type]
    assert right > np.mean(plain.infer(held.held_x).argmax(axis=1) == held.held_y)


def test_without_the_setting_there_is_none(script: Script) -> None:
    own_folder(script)
    release_with(script, None)
    assert [told.personal for told in script.heard(Trial)] == [None]
    assert script.state().personal is None
    one = script.gateway.scorer("bearings")
    assert one is not None
    assert not one.personal


def test_it_changes_nothing_that_a_round_is_made_of(tmp_path: Path) -> None:
    answers = []
    for policy in (None, HEAD, COPY):
        script = Script(tmp_path / str(policy and policy.mode))
        script.run()
        own_folder(script)
        release_with(script, policy)
        script.plan(a_plan(1))
        (update,) = script.heard(Update)
        answers.append((update.payload, update.loss, update.counter, script.state().residual.tobytes()))
        script.memory.close()
    assert answers[0] == answers[1] == answers[2]


def test_it_is_given_up_once_a_release_is_as_good_here(script: Script) -> None:
    own_folder(script)
    release_with(script)
    assert script.gateway.scorer("bearings").personal  # type: ignore[union-attr]
    mine = script.folder.samples
    flat = BETTER.astype(np.float32) * np.float32(BEARINGS.grid_step)
    for _ in range(300):
        gradient, _ = NumpyEngine(BEARINGS.model).loss_grad(
            flat, mine.train_x, mine.train_y, np.ones(len(mine.train_y), dtype=np.float32)
        )
        flat -= np.float32(0.3) * gradient
    release_with(script, version=7, steps=np.rint(flat / np.float32(BEARINGS.grid_step)).astype(np.int32))
    own = script.state().personal
    assert own is not None
    assert own.found.outcome is PersonalOutcome.NO_BETTER
    assert len(own.values) == 0
    one = script.gateway.scorer("bearings")
    assert one is not None
    assert (one.personal, one.version) == (False, 7)
    told = script.heard(Trial)[-1]
    assert told.personal == own.found


def test_while_the_next_one_is_being_made_the_version_in_service_scores(script: Script) -> None:
    own_folder(script)
    release_with(script)
    script.step_seconds = 0.05  # every look at the clock
    script.welcome(an_assignment(release=a_release(7, BETTER), releases=7, personal=HEAD))
    script.say(
        Channel.MODEL,
        CatchUp(
            lineage=LINEAGE,
            kind=CatchUpKind.KEYFRAME,
            start=0,
            number=7,
            model=short(model_digest(BETTER)),
            body=encode_integers(BETTER - start_of(BEARINGS)),
        ),
    )
    while (event := script.session.next(0)) is not None:
        script.gateway._handle(event, script.now)
    script.gateway.step(None, script.now)
    one = script.gateway.scorer("bearings")
    assert one is not None
    assert (one.personal, one.version) == (False, 7)
    script.step_seconds = 0.0
    script.run()
    assert script.gateway.scorer("bearings").personal  # type: ignore[union-attr]


def test_an_answer_goes_before_it(script: Script) -> None:
    own_folder(script)
    release_with(script, None)
    script.step_seconds = 0.05  # a few steps of training use up a moment
    script.welcome(an_assignment(known=True, release=a_release(6, BETTER), releases=6, personal=HEAD))
    assert script.gateway._jobs["bearings"]._fitting is not None
    script.plan(a_plan(1, closes_in=300))
    assert len(script.heard(Update)) == 1
    assert script.state().personal is None, "it is not ready yet"
    script.step_seconds = 0.0
    script.run()
    assert script.state().personal is not None


def test_of_two_plans_at_hand_the_second_goes_before_it_too(script: Script) -> None:
    own_folder(script)
    release_with(script, None)
    script.step_seconds = 0.05
    again = an_assignment(known=True, release=a_release(6, BETTER), releases=6, personal=HEAD)
    script.welcome(again, an_assignment(PUMPS, LINEAGE + 1))
    fitting = script.gateway._jobs["bearings"]._fitting
    assert fitting is not None
    script.say(Channel.PLAN, a_plan(1, closes_in=300))
    script.say(Channel.PLAN, a_plan(2, task=PUMPS, lineage=LINEAGE + 1, closes_in=400))
    while (event := script.session.next(0)) is not None:
        script.gateway._handle(event, script.now)
    spent = fitting.seconds
    script.gateway.step(None, script.now)
    assert (script.state().pending is None, script.state(PUMPS).pending is None) == (False, True)
    assert fitting.seconds == spent


def test_it_waits_behind_a_gate_that_is_shut(script: Script) -> None:
    own_folder(script)
    script.gateway._limits = Limits(battery_min_pct=50.0)
    script.vitals = Vitals(battery_pct=10.0, on_mains=False)
    release_with(script)
    script.run(60.0)
    assert script.state().personal is None
    assert script.gateway.wait_seconds(script.now) > 0.5, "it looks again later, not all the time"
    script.vitals = Vitals(battery_pct=90.0, on_mains=False)
    script.run(310.0)
    assert script.state().personal is not None


def test_a_gate_that_shuts_in_between_stops_it_and_it_goes_on_afterwards(script: Script) -> None:
    own_folder(script)
    script.gateway._limits = Limits(battery_min_pct=50.0)
    script.vitals = Vitals(battery_pct=90.0, on_mains=False)
    script.step_seconds = 0.05
    release_with(script)
    fitting = script.gateway._jobs["bearings"]._fitting
    assert fitting is not None
    script.vitals = Vitals(battery_pct=10.0, on_mains=False)
    script.run(5.0)
    script.step_seconds = 0.0
    script.run(60.0)
    assert script.state().personal is None
    script.vitals = Vitals(battery_pct=90.0, on_mains=False)
    script.run(310.0)
    assert script.state().personal is not None


def test_a_gateway_with_one_class_never_scores_with_its_own(script: Script) -> None:
    mine = script.folder.samples
    train, held = mine.train_y == 0, np.tile(mine.held_x[mine.held_y == 0], (30, 1))[:60]
    script.folder.samples = replace(
        mine,
        train_x=mine.train_x[train],
        train_y=mine.train_y[train],
        held_x=held,
        held_y=np.zeros(60, dtype=np.int64),
    )
    release_with(script, msgspec.structs.replace(COPY, margin=0.001))
    told = script.heard(Trial)[-1].personal
    assert told is not None
    assert (told.outcome, told.metric) == (PersonalOutcome.ONE_CLASS, None)
    assert not script.gateway.scorer("bearings").personal  # type: ignore[union-attr]


def test_it_is_made_anew_for_other_recordings_but_not_all_the_time(script: Script) -> None:
    own_folder(script)
    release_with(script)
    mine = script.folder.samples
    before = script.state().personal

    def record(turned: list[int]) -> None:
        script.folder.samples = replace(
            mine, train_y=np.array(turned)[mine.train_y], held_y=np.array(turned)[mine.held_y]
        )
        script.folder.fresh = True
        script.run(70.0)

    record([1, 0, 2])  # as the machines were that the fleet has learnt from
    assert script.state().personal is before
    script.now += 3600.0
    script.run()
    own = script.state().personal
    assert own is not None
    assert own.found.outcome is PersonalOutcome.NO_BETTER
    assert not script.gateway.scorer("bearings").personal  # type: ignore[union-attr]
    looked = len(script.heard(Trial))
    script.now += 7200.0
    script.run(70.0)
    assert script.state().personal is own, "the same windows tell the same"
    assert len(script.heard(Trial)) == looked


def test_another_setting_makes_another_one_and_none_takes_it_away(script: Script) -> None:
    own_folder(script)
    release_with(script)
    head = script.state().personal
    again = {"known": True, "release": a_release(6, BETTER), "releases": 6}
    script.welcome(an_assignment(**again, personal=COPY))  # type: ignore[arg-type]
    copy = script.state().personal
    assert head is not None
    assert copy is not None
    assert len(copy.values) == BEARINGS.model.parameters > len(head.values)
    script.welcome(an_assignment(**again))  # type: ignore[arg-type]
    assert script.state().personal is None
    assert not script.gateway.scorer("bearings").personal  # type: ignore[union-attr]
    assert script.heard(Trial)[-1].personal is None


def test_it_outlives_a_restart_without_a_coordinator(script: Script) -> None:
    own_folder(script)
    release_with(script)
    before = script.gateway.scorer("bearings")
    script.kill()
    script.start()
    after = script.gateway.scorer("bearings")
    assert before is not None
    assert after is not None
    assert after.own is not None
    assert before.own is not None
    assert np.array_equal(after.own, before.own)
    script.run()
    script.log.clear()
    script.welcome(an_assignment(known=True, release=a_release(6, BETTER), releases=6, personal=HEAD))
    assert [told.personal is not None for told in script.heard(Trial)] == [True], "told again, and not made again"


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_as_it_is_saved_the_gateway_has_it_whole_or_makes_it_again(script: Script, when: str) -> None:
    own_folder(script)
    release_with(script, None)
    passed = []

    def die(name: str) -> None:
        passed.append(name)
        # The first save is the welcome's.
        if passed.count(f"{when} save") == 2:
            raise KeyboardInterrupt

    script.gateway._crash_point = die
    with pytest.raises(KeyboardInterrupt):
        script.welcome(an_assignment(known=True, release=a_release(6, BETTER), releases=6, personal=HEAD))
    script.listen()
    assert all(told.personal is None for told in script.heard(Trial)), "told only once it is on disk"
    script.kill()
    script.start()
    assert (script.state().personal is None) == (when == "before")
    assert script.gateway.scorer("bearings").personal == (when == "after")  # type: ignore[union-attr]
    script.run()
    script.welcome(an_assignment(known=True, release=a_release(6, BETTER), releases=6, personal=HEAD))
    assert script.gateway.scorer("bearings").personal  # type: ignore[union-attr]
    told = script.heard(Trial)[-1].personal
    assert told is not None
    assert told.outcome is PersonalOutcome.SERVES


def test_it_goes_with_the_version_that_it_was_made_of(script: Script) -> None:
    own_folder(script)
    release_with(script)
    # A new lineage: what is in service stays, and so does what was made of it.
    script.welcome(an_assignment(lineage=LINEAGE + 50, personal=HEAD))
    assert script.gateway.scorer("bearings").personal  # type: ignore[union-attr]
    # Another version takes over: nothing of the old one is kept beside it.
    other = make_task(name="bearings", classes=("normal", "ball", "outer"))
    script.welcome(an_assignment(other, LINEAGE + 60, release=a_release(0, start_of(other)), releases=1))
    assert script.state().personal is None
    # The task is over: nothing at all.
    script.welcome()
    assert script.gateway.scorer("bearings") is None
    assert script.memory.load() == {}


def test_what_serves_of_another_task_has_none_made_of_it(script: Script) -> None:
    release_with(script, None)
    other = make_task(name="bearings", classes=("normal", "ball", "outer"))
    own_folder(script)
    script.welcome(an_assignment(other, LINEAGE + 50, personal=HEAD))
    script.run(5.0)
    assert script.state().personal is None, "its windows are not those that the version in service knows"


def test_training_that_cannot_be_run_leaves_the_shared_model_and_is_not_tried_again_and_again(script: Script) -> None:
    own_folder(script)
    release_with(script, None)
    job = script.gateway._jobs["bearings"]
    engine = job._engine_of(job.task)
    assert isinstance(engine, NumpyEngine)
    tries = []

    def refuse(*args: object) -> None:
        tries.append(args)
        raise ValueError("no memory for that")

    engine.loss_grad = refuse  # type: ignore[method-assign, assignment]
    again = an_assignment(known=True, release=a_release(6, BETTER), releases=6, personal=HEAD)
    script.welcome(again)
    script.run(70.0)
    script.welcome(again)
    assert len(tries) == 1
    told = script.heard(Trial)[-1].personal
    assert told is not None
    assert told.outcome is PersonalOutcome.FAILED
    assert not script.gateway.scorer("bearings").personal  # type: ignore[union-attr]
