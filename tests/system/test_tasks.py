"""Several tasks on one coordinator and one fleet, and what people order of them while they run."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fedmq_compression.pipeline import decode_integers
from fedmq_coordinator import folder
from fedmq_coordinator.job import TaskPlan
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.report import build
from fedmq_coordinator.service import CRASH_POINTS
from fedmq_coordinator.settings import LimitSettings, PublishSettings, RoundSettings
from fedmq_coordinator.tasks import in_canary
from fedmq_protocol.messages import AskModel, AskVerdict, CatchUp, CatchUpKind, Receipt, RoundPlan, Trial, Verdict
from fedmq_protocol.task import initial_steps, model_digest, short
from fedmq_protocol.topics import Channel, Direction, topic
from plant import FEDERATION, Plant, make_task
from scripted_fleet import ScriptedFleet, scripted_task

EVERY = {f"g{place}": () for place in range(4)}


def a_plan(name: str, *, rounds: int = 4, seed: int = 0, **settings: object) -> TaskPlan:
    task = scripted_task(name, seed=seed)
    if seed:
        initial = short(model_digest(initial_steps(task.model, seed, task.grid_bits)))
        task = msgspec.structs.replace(task, initial=initial)
    return TaskPlan(task=task, rounds=RoundSettings(max_rounds=rounds, min_gateways=2, **settings))  # type: ignore[arg-type]


def digest_alone(directory: Path, plan: TaskPlan, tags: dict[str, tuple[str, ...]] = EVERY) -> bytes:
    fleet = ScriptedFleet(directory, tasks=[plan], tags=tags)
    fleet.run_to_rest()
    return fleet.coordinator.only.model_digest


def test_two_tasks_side_by_side_come_to_the_models_that_each_comes_to_alone(tmp_path: Path) -> None:
    plans = [a_plan("pumps", rounds=6), a_plan("fans", rounds=4, seed=5)]
    alone = [digest_alone(tmp_path / plan.task.name, plan) for plan in plans]
    fleet = ScriptedFleet(tmp_path / "both", tasks=plans, tags=EVERY)
    fleet.run_to_rest()

    assert [fleet.coordinator.job(plan.task.name).model_digest for plan in plans] == alone
    ids = [row.id for row in fleet.ledger.rounds()]
    assert ids == sorted(set(ids))
    assert len(ids) == 6 + 4 + 2
    lineages = [job.line.number for job in fleet.coordinator.jobs]
    assert len(set(lineages)) == 2


def test_a_plan_speaks_of_the_last_round_of_its_own_task(tmp_path: Path) -> None:
    fleet = ScriptedFleet(tmp_path, tasks=[a_plan("pumps"), a_plan("fans")], tags=EVERY)
    fleet.run_to_rest()

    of_task: dict[int, list[RoundPlan]] = {}
    for plan in fleet.gateways["g0"].plans:
        of_task.setdefault(plan.lineage, []).append(plan)
    assert any(plan.since > 1 for plans in of_task.values() for plan in plans)
    for plans in of_task.values():
        for before, after in itertools.pairwise(plans):
            assert after.round_id - after.since == before.round_id
            assert after.accepted == (0 if before.kind.name == "STATISTICS" else 0b1111)
    assert not [m for g in fleet.gateways.values() for m in g.other if isinstance(m, Receipt)]


def test_a_coordinator_killed_at_any_time_goes_on_with_every_task(tmp_path: Path) -> None:
    plans = [a_plan("pumps", rounds=5), a_plan("fans", rounds=5)]
    alone = [digest_alone(tmp_path / plan.task.name, plan) for plan in plans]
    fleet = ScriptedFleet(tmp_path / "both", tasks=plans, tags=EVERY)
    for place in range(12):
        for _ in range(place % 4):
            fleet.tick()
        fleet.kill_coordinator()
        fleet.start_coordinator()
    fleet.run_to_rest()

    assert [fleet.coordinator.job(plan.task.name).model_digest for plan in plans] == alone


def test_a_task_is_for_gateways_with_one_of_its_tags(tmp_path: Path) -> None:
    tags = {"g0": ("pump",), "g1": ("pump", "line-1"), "g2": ("fan",), "g3": ("fan",), "g4": ()}
    plans = [a_plan("pumps", tags=("pump",)), a_plan("fans", tags=("fan", "line-1")), a_plan("all")]
    fleet = ScriptedFleet(tmp_path, tasks=plans, tags=tags)
    fleet.run_to_rest()

    def names(gateway: str) -> list[str]:
        return [a.task.name for a in fleet.gateways[gateway].welcomes[-1].tasks if a.task is not None]

    assert names("g0") == ["pumps", "all"]
    assert names("g1") == ["pumps", "fans", "all"]
    assert names("g4") == ["all"]
    assert {a.gateway for a in fleet.ledger.book("fans").answers()} == {"g1", "g2", "g3"}
    assert {a.gateway for a in fleet.ledger.book("pumps").answers()} == {"g0", "g1"}


def test_a_question_about_a_round_is_answered_by_the_task_of_that_round(tmp_path: Path) -> None:
    fleet = ScriptedFleet(tmp_path, tasks=[a_plan("pumps"), a_plan("fans")], tags=EVERY)
    fleet.run_to_rest()
    for name in ("pumps", "fans"):
        answer = next(a for a in fleet.ledger.book(name).answers() if a.gateway == "g2" and a.kind == "update")
        ask = AskVerdict(round_id=answer.round, counter=answer.counter, digest=answer.digest)
        fleet.gateways["g2"].say(Channel.ASK, ask)
        fleet.gateways["g2"].other.clear()
        fleet.run_for(0.5)
        (receipt,) = fleet.gateways["g2"].other
        assert receipt == Receipt(round_id=answer.round, counter=answer.counter, verdict=Verdict.ACCEPTED)


def test_the_reports_of_tasks_share_the_bytes_of_the_wire(tmp_path: Path) -> None:
    fleet = ScriptedFleet(tmp_path, tasks=[a_plan("pumps"), a_plan("fans")], tags=EVERY)
    fleet.run_to_rest()

    reports = [build(fleet.ledger, name) for name in ("pumps", "fans")]

    assert [len(report.rounds) for report in reports] == [5, 5]
    assert all(line.accepted == 4 for report in reports for line in report.rounds if line.kind == "training")
    with pytest.raises(ValueError, match=r"2 tasks \(pumps, fans\): name one"):
        build(fleet.ledger)
    with pytest.raises(ValueError, match="no task 'fan'"):
        build(Ledger(tmp_path / "ledger.sqlite", read_only=True), "fan")


def test_a_fleet_of_thousands_is_told_to_spread_out(tmp_path: Path) -> None:
    limits = LimitSettings(reconnects_per_second=2)
    small = ScriptedFleet(tmp_path / "small", tasks=[a_plan("pumps")], tags={"g0": (), "g1": ()}, limits=limits)
    small.run_to_rest()
    larger = ScriptedFleet(tmp_path / "larger", tasks=[a_plan("pumps")], tags=EVERY | {"g4": ()}, limits=limits)
    larger.run_to_rest()

    assert {w.spread for g in small.gateways.values() for w in g.welcomes} == {0}
    assert larger.gateways["g4"].welcomes[-1].spread == 3


# -- orders ----------------------------------------------------------------------------------------------------


def test_a_paused_task_closes_its_round_and_opens_no_other_until_it_is_resumed(tmp_path: Path) -> None:
    plan = a_plan("pumps", rounds=6, interval_seconds=2)
    undisturbed = digest_alone(tmp_path / "undisturbed", plan)
    fleet = ScriptedFleet(tmp_path / "paused", tasks=[plan, a_plan("fans", rounds=6)], tags=EVERY)
    fleet.run_until(lambda: fleet.coordinator.job("pumps").version == 2)

    order = fleet.order("pause", "pumps")
    fleet.run_until(lambda: fleet.coordinator.job("fans").resting is not None)

    assert order.done
    job = fleet.coordinator.job("pumps")
    assert job.run.round is None
    stood = job.version
    assert stood < 6
    fleet.kill_coordinator()
    fleet.start_coordinator()
    fleet.run_for(30)
    assert fleet.coordinator.job("pumps").version == stood
    assert fleet.order("resume", "pumps").done
    fleet.run_to_rest()
    assert fleet.coordinator.job("pumps").model_digest == undisturbed


def test_gateways_with_a_paused_tag_are_not_drawn(tmp_path: Path) -> None:
    tags = {"g0": ("pump",), "g1": ("pump",), "g2": ("fan",), "g3": ("fan",)}
    fleet = ScriptedFleet(tmp_path, tasks=[a_plan("all", rounds=30, interval_seconds=5)], tags=tags)
    fleet.run_until(lambda: fleet.coordinator.only.version == 2)
    assert fleet.order("pause", "all", tags=("fan",)).done
    begun = fleet.coordinator.only.run.newest_round()
    fleet.run_until(lambda: fleet.coordinator.only.version == 5)
    assert {a.gateway for a in fleet.ledger.answers() if a.round > begun} == {"g0", "g1"}

    refused = fleet.order("resume", "all", tags=("fans",))
    assert not refused.done
    assert refused.result == "gateways with the tag fans do not pause; paused tags: fan"
    assert fleet.order("resume", "all", tags=("fan",)).done
    begun = fleet.coordinator.only.run.newest_round()
    fleet.run_until(lambda: fleet.coordinator.only.version == 7)
    assert {a.gateway for a in fleet.ledger.answers() if a.round > begun} == set(tags)


def test_a_stopped_task_gives_up_its_round_and_every_gateway_hears_that_it_is_over(tmp_path: Path) -> None:
    plans = [a_plan("pumps", rounds=9, close_when_all_answered=False, closing_seconds=20), a_plan("fans", rounds=9)]
    fleet = ScriptedFleet(tmp_path, tasks=plans, tags=EVERY)
    fleet.run_until(lambda: fleet.coordinator.job("pumps").version == 1)
    fleet.run_until(lambda: fleet.coordinator.job("pumps").run.round is not None)

    assert fleet.order("stop", "pumps").done
    fleet.run_for(1)

    assert [job.name for job in fleet.coordinator.jobs] == ["fans"]
    for gateway in fleet.gateways.values():
        assert [a.task.name for a in gateway.welcomes[-1].tasks if a.task] == ["fans"]
    book = fleet.ledger.book("pumps")
    last = book.last_round()
    assert last is not None
    assert last.outcome == "abandoned"
    assert not [a for a in book.answers() if a.payload is not None]
    fleet.kill_coordinator()
    fleet.start_coordinator()
    fleet.run_to_rest()
    assert [job.name for job in fleet.coordinator.jobs] == ["fans"]
    assert fleet.ledger.book("pumps").last_round() == last
    again = fleet.order("resume", "pumps")
    assert (again.done, again.result) == (False, "task 'pumps' is stopped")
    unknown = fleet.order("pause", "pump")
    assert (unknown.done, unknown.result) == (False, "no task 'pump'; there is pumps, fans")


def test_an_order_that_finds_no_coordinator_is_carried_out_at_its_next_start(tmp_path: Path) -> None:
    fleet = ScriptedFleet(tmp_path, tasks=[a_plan("pumps", rounds=9)], tags=EVERY)
    fleet.run_until(lambda: fleet.coordinator.only.version == 2)
    fleet.kill_coordinator()
    number = fleet.leave_order("pause", "pumps")
    fleet.start_coordinator()
    fleet.run_for(1)

    order = fleet.ledger.get_order(number)
    assert order is not None
    assert order.done
    assert fleet.coordinator.only.run.paused


def test_a_release_goes_to_the_canary_first_and_then_to_all(tmp_path: Path) -> None:
    names = {f"g{place:02}": () for place in range(40)}
    fleet = ScriptedFleet(tmp_path, tasks=[a_plan("pumps", rounds=4)], tags=names)
    fleet.run_to_rest()
    job = fleet.coordinator.only
    first = {name for name in names if in_canary("pumps", name, 20)}
    assert 2 <= len(first) <= 15

    assert fleet.order("promote", "pumps", version=2, canary_pct=20.0).done
    fleet.run_for(1)

    assert {g.plans[-1].release for g in fleet.gateways.values()} == {1}
    for gateway in fleet.gateways.values():
        gateway.born()
    fleet.run_for(1)
    released = {name: g.welcomes[-1].tasks[0].release for name, g in fleet.gateways.items()}
    assert {name for name, release in released.items() if release is not None} == first
    assert {g.welcomes[-1].tasks[0].releases for g in fleet.gateways.values()} == {1}
    second = job.book.version(job.line.number, 2)
    assert second is not None
    assert {(r.version, r.model, r.forced) for r in released.values() if r} == {(2, short(second.digest), False)}

    assert fleet.order("promote", "pumps", version=2).done
    fleet.gateways["g00"].born()
    fleet.run_for(1)
    assert fleet.gateways["g00"].welcomes[-1].tasks[0].releases == 2
    assert fleet.gateways["g00"].welcomes[-1].tasks[0].release is not None


def test_a_released_version_can_be_fetched_after_its_file_would_have_gone(tmp_path: Path) -> None:
    fleet = ScriptedFleet(tmp_path, tasks=[a_plan("pumps", rounds=30)], tags=EVERY)
    fleet.run_until(lambda: fleet.coordinator.only.version == 9)
    assert fleet.order("promote", "pumps", version=1).done  # the newest five are files, this one is made again
    fleet.run_to_rest()
    job = fleet.coordinator.only
    line = job.line.number
    asker = fleet.gateways["g1"]
    asker.session.subscribe(topic(FEDERATION, Direction.DOWN, Channel.MODEL))
    asker.say(Channel.ASK, AskModel(lineage=line, version=job.version, wanted=1))
    fleet.run_for(1)

    (catch_up,) = [m for m in asker.other if isinstance(m, CatchUp)]
    assert (catch_up.kind, catch_up.start, catch_up.number) == (CatchUpKind.KEYFRAME, 0, 1)
    assert isinstance(catch_up.body, bytes)
    task = job.line.task
    steps = initial_steps(task.model, 0, task.grid_bits) + decode_integers(catch_up.body, task.model.parameters)
    version = job.book.version(line, 1)
    assert version is not None
    assert model_digest(np.asarray(steps, dtype=np.int32)) == version.digest

    asker.say(Channel.TRIAL, Trial(lineage=line, version=1, in_service=1, windows=30, metric=9123, before=None))
    fleet.run_for(1)
    (trial,) = job.book.trials()
    assert (trial.gateway, trial.in_service, trial.metric) == ("g1", 1, 0.9123)


@pytest.mark.parametrize(
    ("verb", "wish", "said"),
    [
        ("promote", {"version": 9}, "expected a version from 1 to 2, got 9"),
        ("rollback", {"version": 9}, "there is no version 9 in lineage"),
        ("rollback", {}, "name a version: 1 to 2"),
        ("rollback", {"version": 1, "lineage": 77}, "lineage 77 is none of this task"),
    ],
)
def test_an_order_that_cannot_be_says_why_and_changes_nothing(
    tmp_path: Path, verb: str, wish: dict[str, int], said: str
) -> None:
    fleet = ScriptedFleet(tmp_path, tasks=[a_plan("pumps", rounds=2)], tags=EVERY)
    fleet.run_to_rest()
    before = fleet.coordinator.only.model_digest, fleet.coordinator.only.line.number

    order = fleet.order(verb, "pumps", **wish)

    assert not order.done
    assert said in (order.result or "")
    assert (fleet.coordinator.only.model_digest, fleet.coordinator.only.line.number) == before


# -- going back, with real gateways ----------------------------------------------------------------------------


def test_after_a_roll_back_the_fleet_goes_on_from_the_older_version(tmp_path: Path) -> None:
    plant = Plant(tmp_path, rounds=4)
    plant.run_to_rest()
    line = plant.lineage
    second = plant.book.version(line, 2)
    assert second is not None
    scaler = plant.job.line.scaler

    assert plant.order("rollback", version=2).done

    assert plant.lineage > line
    assert plant.version == 1
    assert plant.digest == second.digest
    assert plant.job.line.scaler == scaler
    plant.run_to_rest()
    assert plant.version == 5
    assert set(plant.digests().values()) == {plant.digest}
    assert all(g.state.lineage == plant.lineage for g in plant.gateways.values())


def test_a_roll_back_puts_the_older_version_in_service_where_any_was(tmp_path: Path) -> None:
    plant = Plant(tmp_path, rounds=3)
    plant.run_to_rest()
    assert plant.order("promote").done
    assert plant.order("rollback", version=1).done

    newest = plant.book.releases()[-1]
    assert (newest.number, newest.version, newest.forced) == (2, 1, True)
    assert newest.lineage == plant.lineage


def test_a_backup_takes_the_place_of_the_state_directory_and_the_fleet_follows(tmp_path: Path) -> None:
    plant = Plant(tmp_path / "state", rounds=8)
    plant.run_until(lambda: plant.version == 3)
    plant.kill_coordinator()
    shutil.copytree(tmp_path / "state", tmp_path / "backup", ignore=shutil.ignore_patterns("g?"))
    third, line = plant.digest, plant.job.line.number
    plant.start_coordinator()
    plant.run_to_rest()
    counters = {name: g.state.counter for name, g in plant.gateways.items()}
    plant.kill_coordinator()

    done = folder.recover(tmp_path / "state", tmp_path / "backup", FEDERATION, now=plant.now)

    assert f"goes on from version 3 of lineage {line}" in done[0]
    (aside,) = (tmp_path / "state").glob("before-*")
    lost = Ledger(aside / "ledger.sqlite", read_only=True)
    assert len(lost.rounds()) == 9
    plant.start_coordinator()
    assert plant.version == 1
    assert plant.digest == third
    plant.run_to_rest()
    assert plant.version == 9
    assert set(plant.digests().values()) == {plant.digest}
    for name, gateway in plant.gateways.items():
        assert gateway.state.counter > counters[name]
    assert {a.verdict for a in plant.ledger.answers()} == {"accepted"}


# -- crash points ----------------------------------------------------------------------------------------------


class PowerCut(Exception):
    """Stands for kill -9."""


def answers(plant: Plant) -> set[tuple[int, str, str, str]]:
    return {(a.round, a.gateway, a.kind, a.verdict) for a in plant.ledger.answers()}


def test_killed_at_any_crash_point_the_coordinator_comes_to_the_same_model(tmp_path: Path) -> None:
    publish = PublishSettings(fleet_seconds=1)
    small = {"gateways": 2, "rounds": 2, "task": make_task(sizes=(22, 4, 3)), "publish": publish}
    undisturbed = Plant(tmp_path / "undisturbed", **small)  # type: ignore[arg-type]
    undisturbed.run_to_rest()
    never, fewer = set(), []
    for place, name in enumerate(CRASH_POINTS):
        for nth in (1, 3):
            left = nth

            def cut(passed: str, name: str = name) -> None:
                nonlocal left
                if passed == name:
                    left -= 1
                    if left == 0:
                        raise PowerCut(name)

            def nothing(passed: str) -> None:
                pass

            directory = tmp_path / f"{place}-{nth}"
            try:
                plant = Plant(directory, crash_point=cut, **small)  # type: ignore[arg-type]
            except PowerCut:
                plant = Plant(directory, crash_point=nothing, **small)  # type: ignore[arg-type]
            for _ in range(400):
                try:
                    plant.tick()
                except PowerCut:
                    plant.kill_coordinator()
                    plant.crash_point = nothing
                    plant.start_coordinator()
                if plant.job.resting is not None:
                    break
            plant.run_to_rest()
            assert set(plant.digests().values()) == {plant.digest}, (name, nth)
            if answers(plant) == answers(undisturbed):
                assert plant.digest == undisturbed.digest, (name, nth)
            else:
                fewer.append((name, nth))
            if left > 0:
                never.add((name, nth))
    # Statistics are not sent again, so a round of them that was cut short has fewer.
    assert len(fewer) <= 3, fewer
    # A quiet run of two rounds sends neither receipts nor chunks nor catch-ups, and no gateway tells of machines.
    silent = {"receipt", "chunk", "model", "condition"}
    assert {name for name, nth in never if nth == 1} == {n for n in CRASH_POINTS if n.split()[-1] in silent}
