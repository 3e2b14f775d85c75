"""People's tools at a real Mosquitto: what a subscriber that knows nothing of fedmq reads of rounds and fleet."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fedmq_broker_config.run import LocalBroker
from processes import FEDERATION, Site, small_fleet

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def read(port: int, topic: str) -> dict[str, Any]:
    """What is retained there, by mosquitto_sub."""
    program = shutil.which("mosquitto_sub")
    if program is None:
        pytest.skip("needs mosquitto_sub: apt-get install mosquitto-clients")
    words = [
        program,
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "-t",
        f"fl/1/{FEDERATION}/down/{topic}",
        "-C",
        "1",
        "-W",
        "20",
    ]
    said = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, f"nothing on {topic}: {said.stderr}"
    return dict(json.loads(said.stdout))


def test_a_subscriber_reads_the_last_round_and_how_the_fleet_stands(tmp_path: Path, mosquitto: LocalBroker) -> None:
    with Site(
        tmp_path,
        small_fleet(2),
        port=mosquitto.port,
        rounds=3,
        coordinator={"publish.fleet_seconds": 1},
    ) as site:
        site.start()
        site.wait_for_rest()
        last = site.ledger.rounds()[-1]
        said = read(mosquitto.port, "report")
        assert (said["round"], said["outcome"], said["updates"]) == (last.id, "applied", 2)
        assert said["at"] == last.closed_at
        fleet: dict[str, Any] = {}

        def rests() -> bool:
            fleet.update(read(mosquitto.port, "fleet"))
            return fleet["present"] == 2 and bool(fleet["tasks"]) and fleet["tasks"][0]["state"] == "resting"

        site.poll(rests, "the fleet to be told to rest")
        assert fleet["tasks"][0]["version"] == 3
        assert fleet["wire_up_bytes"] > 0
        site.stop(site.names[0])
        site.poll(lambda: read(mosquitto.port, "fleet")["absent"] == 1, "one to be told to be absent")
        site.finish()
