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
from crashes import CrashRun
from fedmq_broker_config.run import LocalBroker

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def test_a_coordinator_killed_at_every_crash_point(tmp_path: Path, mosquitto: LocalBroker) -> None:
    with CrashRun(tmp_path, mosquitto) as run:
        run.kill_coordinator(times=1)
        run.finish()


def test_a_gateway_killed_at_every_crash_point(tmp_path: Path, mosquitto: LocalBroker) -> None:
    with CrashRun(tmp_path, mosquitto) as run:
        run.kill_gateway(times=1)
        run.finish()


def test_a_broker_killed_at_random_instants(tmp_path: Path, mosquitto: LocalBroker) -> None:
    with CrashRun(tmp_path, mosquitto) as run:
        run.kill_broker(times=5, rng=Random(1))
        run.finish()
