"""The JSON for people's tools: keys that docs/metrics.md explains, on the topics that the table has for it."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fedmq_coordinator.outbox import Outbox, Outgoing
from fedmq_coordinator.settings import PublishSettings
from fedmq_coordinator.summary import fleet_summary
from fedmq_protocol.topics import Channel, Direction, parse, spec
from plant import Plant

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> dict[Channel, list[dict[str, Any]]]:
    """What tools hear, by topic."""
    found: dict[Channel, list[dict[str, Any]]] = {Channel.REPORT: [], Channel.FLEET: []}
    taken = Outbox.take

    def take(outbox: Outbox) -> list[Outgoing]:
        out = taken(outbox)
        for one in out:
            where = parse(one.topic)
            if where.channel in found:
                assert one.retain
                assert one.qos == 0
                assert len(one.payload) <= where.spec.max_bytes
                found[where.channel].append(json.loads(one.payload))
        return out

    monkeypatch.setattr(Outbox, "take", take)
    return found


def explained(topic: str) -> set[str]:
    """Keys in the table of the page."""
    table = PAGE[PAGE.index(f"| Key of `{topic}`") :].split("\n\n")[0]
    return {key for line in table.splitlines()[2:] for key in re.findall(r"`(\w+)`", line.split("|")[1])}


def test_each_closed_round_is_told_and_nothing_of_the_fleet_unless_it_is_asked_for(
    tmp_path: Path, heard: dict[Channel, list[dict[str, Any]]]
) -> None:
    plant = Plant(tmp_path, gateways=3, rounds=4)
    plant.run_to_rest()
    rounds = heard[Channel.REPORT]
    assert [said["round"] for said in rounds] == [row.id for row in plant.ledger.rounds()]
    assert rounds[-1] | {"outcome": "applied", "version": 4, "updates": 3, "asked": 3, "silent": 0} == rounds[-1]
    assert rounds[-1]["at"] == plant.ledger.rounds()[-1].closed_at
    assert set(rounds[-1]) == explained("down/report")
    assert not heard[Channel.FLEET]


def test_tools_need_not_be_told_of_rounds(tmp_path: Path, heard: dict[Channel, list[dict[str, Any]]]) -> None:
    Plant(tmp_path, gateways=2, rounds=2, publish=PublishSettings(rounds=False)).run_to_rest()
    assert not heard[Channel.REPORT]


def test_how_the_fleet_stands_is_told_as_often_as_the_settings_say(
    tmp_path: Path, heard: dict[Channel, list[dict[str, Any]]]
) -> None:
    plant = Plant(tmp_path, gateways=3, rounds=4, publish=PublishSettings(fleet_seconds=5))
    plant.run_to_rest()
    told = heard[Channel.FLEET]
    assert told
    times = [said["at"] for said in told]
    assert all(later - earlier >= 5 for earlier, later in itertools.pairwise(times))
    wanted = fleet_summary(plant.ledger, plant.ledger.gateways(), plant.coordinator.jobs, plant.now)
    assert set(wanted) == explained("down/fleet")
    row = next(line for line in PAGE.splitlines() if line.startswith("| `tasks` |"))
    assert set(wanted["tasks"][0]) <= set(re.findall(r"`(\w+)`", row))
    assert (wanted["gateways"], wanted["present"], wanted["absent"]) == (3, 3, 0)
    assert wanted["wire_up_bytes"] == sum(wire.sent for wire in plant.ledger.wires())
    (task,) = wanted["tasks"]
    assert task | {"state": "resting", "open": False, "version": 4, "gateways": 3} == task


def test_more_tasks_than_the_topic_has_room_for_are_counted(tmp_path: Path) -> None:
    plant = Plant(tmp_path, gateways=1, rounds=1)
    jobs = plant.coordinator.jobs * 64
    said = fleet_summary(plant.ledger, plant.ledger.gateways(), jobs, plant.now)
    assert len(said["tasks"]) + said["tasks_left_out"] == 64
    assert said["tasks_left_out"] > 0
    assert len(json.dumps(said, separators=(",", ":"))) <= spec(Direction.DOWN, Channel.FLEET).max_bytes
