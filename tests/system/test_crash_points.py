"""kill -9 of real programs at every named crash point, and of the broker at random: the run ends with the same model.

What is learnt depends on who answered which round, and on nothing else. So a run in which programs were killed, but
every round was in the end answered by everyone, makes the versions of a run in which nothing happened, bit for bit.

Each point once here. Five times each, and twenty kills of the broker, with the time that a coordinator takes to be
back: `bench/crash_points`.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from crashes import BROKER, RUNS, CrashRun, Disturbance
from fedmq_broker_config.run import LocalBroker
from fedmq_coordinator.service import CRASH_POINTS as COORDINATOR_POINTS
from fedmq_edge_node.service import CRASH_POINTS as GATEWAY_POINTS

BROKER_KILLS = 5


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS, ids=lambda kind: kind.title)
def test_whoever_is_killed_the_run_goes_on_to_the_same_model(
    tmp_path: Path, mosquitto: LocalBroker, kind: Disturbance
) -> None:
    with CrashRun(tmp_path, mosquitto, kind) as run:
        run.disturb(times=BROKER_KILLS if kind is BROKER else 1, rng=Random(1))
        run.finish()


def test_there_is_a_run_for_each_crash_point() -> None:
    # Without a watch nobody comes to those of its messages: tests/system/test_condition_crashes.py does.
    rest = {point for point in COORDINATOR_POINTS if not point.endswith(" condition")}
    assert {point for kind in RUNS for point in kind.coordinator} == rest
    # Nor does a task without a bundle come to those of one: tests/system/test_bundle_stories.py does.
    rest = {point for point in GATEWAY_POINTS if not point.endswith((" bundle", " condition"))}
    assert {point for kind in RUNS for point in kind.gateway} == rest
