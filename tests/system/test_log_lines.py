"""Every line of coordinator and gateways says what it belongs to, and is one line whatever a gateway sends."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fedmq_broker_config.run import LocalBroker
from fedmq_coordinator.settings import LimitSettings, RoundSettings
from fedmq_edge_node.gates import Vitals
from fedmq_protocol.logs import formatter
from plant import Plant
from processes import FEDERATION, Site, fedmq, small_fleet


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What all programs of this process log, as JSON."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter("json"))
    ours = logging.getLogger("fedmq")
    before = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    yield out
    ours.removeHandler(handler)
    ours.setLevel(before)


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def assert_told(told: list[dict[str, Any]], task: str, gateways: set[str]) -> None:
    """What stands in a message stands in the fields too."""
    for line in told:
        named = re.search(r"\bround (\d+)\b", line["message"])
        if named:
            assert line["round"] == int(named[1]), line
            assert line["task"] == task, line
        if "round" in line:
            assert line["task"] == task, line
        if line["logger"] == "fedmq.coordinator":
            first = line["message"].split()[0]
            if first in gateways:
                assert line["gateway"] == first, line
            elsewhere = re.search(r"/up/([\w.-]+)/", line["message"])
            if elsewhere:
                assert line["gateway"] == elsewhere[1], line


def test_lines_of_a_story_with_declines_kills_and_silence_say_task_round_and_gateway(
    tmp_path: Path, lines: io.StringIO
) -> None:
    settings = RoundSettings(
        max_rounds=12, min_gateways=2, quorum_gateways=1, set_aside_after=2, closing_seconds=20, interval_seconds=5
    )
    plant = Plant(tmp_path, gateways=4, settings=settings, limits=LimitSettings(catch_up_gather_seconds=0.3))
    plant.vitals["g0"] = Vitals(battery_pct=3.0, on_mains=False)
    plant.run_until(lambda: plant.version >= 2)
    plant.kill_gateway("g1")
    plant.run_until(lambda: plant.version >= 4)
    plant.start_gateway("g1")
    plant.run_until(lambda: plant.version >= 5)
    plant.kill_coordinator()
    plant.start_coordinator()
    plant.run_to_rest()

    told = objects(lines.getvalue())
    assert_told(told, plant.task.name, set(plant.folders))
    closed = [line for line in told if line["logger"] == "fedmq.coordinator" and "declines" in line["message"]]
    assert [line["round"] for line in closed] == [row.id for row in plant.ledger.rounds()]
    declined = [line for line in told if line["logger"] == "fedmq.gateway" and "declined" in line["message"]]
    assert declined
    assert all("round" in line and line["task"] == plant.task.name for line in declined)
    assert any(line["message"].startswith("resumed lineage") and line["task"] == plant.task.name for line in told)


@pytest.mark.broker
@pytest.mark.slow
def test_real_programs_log_objects_whatever_is_sent_to_them(
    tmp_path: Path, mosquitto: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = shutil.which("mosquitto_pub")
    if publish is None:
        pytest.skip("needs mosquitto_pub: apt-get install mosquitto-clients")
    monkeypatch.setenv("FEDMQ_LOG_FORMAT", "json")
    with Site(tmp_path, small_fleet(2), port=mosquitto.port, rounds=3) as site:
        site.start()
        site.wait(lambda ledger: site.training("applied"), "a round")
        for junk in ("\n2026-11-30 00:00:00,000 INFO fedmq.coordinator: all is well", "\x1b[2J", '"}{"level": "info"'):
            where = f"fl/1/{FEDERATION}/up/press-9/answer"
            subprocess.run([publish, "-p", str(mosquitto.port), "-t", where, "-m", junk], check=True, timeout=30)
        site.wait(lambda ledger: sum(count for *_, count, _ in ledger.refused()) == 3, "the junk to be refused")
        site.wait_for_rest()
        site.finish()
        told = objects(site.coordinator.text())
        assert_told(told, site.fleet.name, set(site.names))
        assert [line["gateway"] for line in told if "dropped" in line["message"]] == ["press-9"] * 3
        for name in site.names:
            own = objects(site.programs[name].text())
            assert {line["gateway"] for line in own} == {name}
            assert {line["round"] for line in own if "loss" in line["message"]} == {r.id for r in site.training()}


def test_the_command_line_wins_over_settings_and_these_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["broker", "guard", "--set", f"revoked_file={tmp_path}/none"]

    def said(*flags: str) -> str:
        return fedmq(*words, *flags, seconds=60).stderr.strip()

    monkeypatch.setenv("FEDMQ_LOG_FORMAT", "yaml")
    assert "FEDMQ_LOG_FORMAT: expected console or json, got 'yaml'" in said()
    assert "FEDMQ_LOG_FORMAT" not in said("--log-format", "json")
