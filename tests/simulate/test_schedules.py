"""Schedules: the same seed gives the same course, and no promise is broken whatever goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from fedmq_protocol.topics import Channel, Direction, topic

from fedmq.simulate.faults import COORDINATOR, COORDINATOR_POINTS, GATEWAY_POINTS, PROFILES, Fault, draw
from fedmq.simulate.fleet import FEDERATION
from fedmq.simulate.network import Mishap
from fedmq.simulate.schedules import scenario_of
from fedmq.simulate.shrink import play
from fedmq.simulate.world import Scenario, World

SEEDS = range(100, 112)


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_a_slice_of_schedules_breaks_no_promise(profile: str) -> None:
    for seed in SEEDS:
        outcome = play(scenario_of(seed, gateways=6, rounds=6, profile=profile))
        assert outcome.violation is None, f"seed {seed}: {outcome.violation}"


def test_a_slice_of_larger_fleets_breaks_no_promise() -> None:
    for seed in SEEDS[:3]:
        outcome = play(scenario_of(seed, gateways=70, rounds=5, profile="all"))
        assert outcome.violation is None, f"seed {seed}: {outcome.violation}"


def test_the_same_seed_gives_the_same_trace_and_another_seed_another() -> None:
    outcomes = [play(scenario_of(seed, gateways=6, rounds=5, profile="all")) for seed in (3, 3, 4)]
    assert outcomes[0].digest == outcomes[1].digest
    assert outcomes[0].events == outcomes[1].events
    assert outcomes[0].digest != outcomes[2].digest


def test_a_trace_is_the_same_in_processes_that_hash_differently() -> None:
    program = (
        "from fedmq.simulate.schedules import scenario_of\n"
        "from fedmq.simulate.shrink import play\n"
        "for seed in (5, 6): print(play(scenario_of(seed, gateways=6, rounds=4, profile='all')).digest)\n"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": salt, "FEDMQ_COMPILED": "0"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    ]
    assert told[0] == told[1]
    assert len(set(told[0].split())) == 2


def test_keeping_the_trace_changes_nothing() -> None:
    scenario = scenario_of(8, gateways=5, rounds=4, profile="all")
    kept = World(scenario, keep_trace=True)
    assert kept.run().digest == play(scenario).digest
    assert kept.trace.lines
    kept.close()


def test_mishaps_that_were_drawn_happen_again_when_they_are_read_from_a_list() -> None:
    for seed in range(40):
        scenario = scenario_of(seed, gateways=5, rounds=5, profile="network")
        drawn = play(scenario)
        if not drawn.mishaps:
            continue
        read = play(replace(scenario, mishaps=drawn.mishaps))
        assert read.digest == drawn.digest
        assert play(replace(scenario, mishaps=drawn.mishaps[:-1])).digest != drawn.digest
        return
    raise AssertionError("no schedule had a mishap")


def test_every_kind_of_fault_and_every_point_of_a_crash_is_drawn() -> None:
    from random import Random

    names = [f"g{i}" for i in range(5)]
    faults: list[Fault] = []
    for seed in range(200):
        faults += draw("all", Random(seed), names, 600.0)
    assert {fault.kind for fault in faults} == {
        *("noise", "cut", "partition", "crash", "power", "broker", "clock", "slow", "gate", "disk")
    }
    drawn = {(fault.target == COORDINATOR, fault.point) for fault in faults if fault.point}
    assert drawn == {(True, point) for point in COORDINATOR_POINTS} | {(False, point) for point in GATEWAY_POINTS}
    assert {"before commit", "after model file", "before receipt", "after plan"} <= set(COORDINATOR_POINTS)
    assert {"before save", "after save", "after update", "before verdict question", "training"} <= set(GATEWAY_POINTS)
    assert all(str(fault) for fault in faults)


def test_faults_happen() -> None:
    """Each kind leaves its mark in some trace: a fault that nobody meets finds nothing."""
    seen: set[str] = set()
    for seed in range(60):
        world = World(scenario_of(seed, gateways=5, rounds=6, profile="all"), keep_trace=True)
        world.run()
        seen |= {line.what for line in world.trace.lines}
        world.close()
    assert {"killed", "restart", "lost", "doubled", "disconnected", "ends: disk full", "fault:"} <= seen


def test_a_mishap_that_is_told_meets_that_message_and_no_other() -> None:
    scenario = scenario_of(0, gateways=3, rounds=3, profile="none")
    plans = topic(FEDERATION, Direction.DOWN, Channel.PLAN)
    world = World(
        replace(scenario, mishaps=(Mishap(link="g1", way="down", topic=plans, number=1, kind="double", seconds=3.0),)),
        keep_trace=True,
    )
    assert world.run().violation is None
    world.close()
    doubled = [line for line in world.trace.lines if line.what == "doubled"]
    assert [(line.who, line.topic) for line in doubled] == [("g1", plans)]


def test_a_gateway_with_too_few_windows_for_statistics_declines_instead_of_being_dropped_without_a_word() -> None:
    scenario = next(s for s in map(_learning, range(100)) if s.task.windowing.scaling == "learnt")
    few = replace(scenario.units[0], windows=12)
    # Every answer of the first round counts, or it lasts until its closing time.
    rounds = replace(scenario.rounds, close_when_all_answered=True, quorum_share=0.1, min_gateways=3)
    world = World(replace(scenario, units=(few, *scenario.units[1:]), rounds=rounds))
    assert world.run().violation is None
    told = world.coordinator.disk.rows("SELECT kind, reason FROM answers WHERE round = 1 AND gateway = ?", (few.name,))
    dropped = world.coordinator.disk.rows("SELECT * FROM refused")
    world.close()
    assert [tuple(row) for row in told] == [("decline", "samples")]
    assert dropped == []


def _learning(seed: int) -> Scenario:
    return scenario_of(seed, gateways=3, rounds=2, profile="none")
