"""Sizing: the figures add up, and the command says them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from fedmq.cli import main
from fedmq.simulate.network import Shape
from fedmq.simulate.sizing import battery_pattern, link_shape, speeds


def figures(tmp_path: Path, *words: str) -> dict[str, object]:
    target = tmp_path / "figures.json"
    assert main(["simulate", "--json", str(target), *words]) == 0
    found = json.loads(target.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_a_lossless_run_answers_in_full_and_no_round_is_late(tmp_path: Path) -> None:
    found = figures(tmp_path, "--gateways", "6", "--rounds", "5", "--parameters", "60")
    assert found["rounds"] == found["applied"] == found["versions"] == 5
    assert found["updates"] == 30
    assert found["refused"] == found["silent"] == found["closed_late"] == found["below_quorum"] == 0


def test_what_gateways_send_is_what_the_coordinator_gets_but_for_what_each_connection_costs(tmp_path: Path) -> None:
    found = figures(
        tmp_path, "--gateways", "5", "--rounds", "30", "--parameters", "3000", "--set", "task.codec.kind=dense"
    )
    up, down = found["bytes_up"], found["coordinator_down"]
    assert isinstance(up, int)
    assert isinstance(down, int)
    payload = found["bytes_per_update"]
    assert isinstance(payload, float)
    assert up == pytest.approx(down, rel=0.02)
    assert up == pytest.approx(5 * 30 * payload, rel=0.05)


def test_a_slower_link_takes_longer_and_the_same_bytes(tmp_path: Path) -> None:
    words = ("--gateways", "4", "--rounds", "4", "--parameters", "2000")
    fast = figures(tmp_path, *words)
    slow = figures(tmp_path, *words, "--link", "500B/s,300ms")
    assert slow["seconds"] > 2 * fast["seconds"]  # type: ignore[operator]
    assert slow["bytes_per_update"] == pytest.approx(fast["bytes_per_update"], rel=0.01)


def test_shut_batteries_decline_with_their_reason(tmp_path: Path) -> None:
    found = figures(
        tmp_path, "--gateways", "10", "--rounds", "4", "--battery", "0.3", "--set", "rounds.quorum_share=0.1"
    )
    declines = found["declines"]
    assert isinstance(declines, dict)
    assert set(declines) == {"battery"}
    assert declines["battery"] + found["updates"] == 40  # type: ignore[operator]


def test_stragglers_and_leavers_cost_answers_and_no_round_closes_late(tmp_path: Path) -> None:
    found = figures(
        tmp_path, "--gateways", "10", "--rounds", "6", "--stragglers", "0.3", "--leavers", "0.3",
        "--closing-seconds", "20", "--set", "rounds.quorum_share=0.2",
    )  # fmt: skip
    assert found["closed_late"] == 0
    assert found["applied"] == 6
    assert found["round_seconds_most"] <= 21.5  # type: ignore[operator]
    assert found["updates"] < 60  # type: ignore[operator]


def test_real_training_in_virtual_time_learns(tmp_path: Path) -> None:
    found = figures(
        tmp_path, "--data", "sim", "--gateways", "4", "--rounds", "6", "--speeds", "1:20", "--window-seconds", "0.1"
    )
    metrics = found["metrics"]
    assert isinstance(metrics, list)
    assert len(metrics) == 6
    assert metrics[-1][1] > metrics[0][1]
    assert metrics[-1][0] > 10.0


def test_the_time_to_a_target_is_told_for_rounds_in_step_and_for_buffered_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--data", "sim", "--gateways", "4", "--speeds", "1:20", "--window-seconds", "0.1", "--target", "0.5")
    buffered = ("--set", "rounds.aggregation=buffered", "--set", "rounds.buffer_updates=2")
    times = []
    for more in (("--rounds", "12"), ("--rounds", "60", *buffered)):
        found = figures(tmp_path, *words, *more)
        reached, metrics = found["reached"], found["metrics"]
        assert isinstance(reached, dict)
        assert isinstance(metrics, list)
        at = [seconds for seconds, _ in metrics].index(reached["seconds"])
        assert metrics[at - 1][1] >= 0.5
        assert metrics[at][1] >= 0.5
        assert reached["version"] == at + 1
        assert all(min(one[1], other[1]) < 0.5 for one, other in pairwise(metrics[:at]))
        assert "(twice in a row)" in capsys.readouterr().out
        times.append(reached["seconds"])
    # With one gateway twenty times as fast as another, whoever waits for all is later.
    assert times[1] < times[0]
    assert found["late"] > 0  # type: ignore[operator]


def test_a_target_that_is_not_reached_is_said_so_and_without_a_metric_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(tmp_path, "--data", "sim", "--gateways", "3", "--rounds", "2", "--target", "1.1")
    assert found["reached"] is None
    assert "not reached" in capsys.readouterr().out
    assert main(["simulate", "--target", "0.5"]) == 1
    assert "--data" in capsys.readouterr().err


def test_the_same_words_give_the_same_figures(tmp_path: Path) -> None:
    words = ("--gateways", "5", "--rounds", "3", "--link", "2kB/s,100ms,5%")
    assert figures(tmp_path, *words) == figures(tmp_path, *words)
    assert figures(tmp_path, *words, "--seed", "1")["digest"] != figures(tmp_path, *words)["digest"]


def test_schedules_are_counted_and_traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.txt"
    found = figures(
        tmp_path, "--faults", "all", "--schedules", "3", "--gateways", "4", "--rounds", "3", "--trace", str(trace)
    )
    assert found["schedules"] == 3
    assert found["violations"] == 0
    assert "events a second and core; 0 violations" in capsys.readouterr().out
    assert trace.read_text(encoding="utf-8").count("# seed") == 3


def test_several_processes_play_the_same_schedules_in_the_same_order(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "--faults", "all", "--schedules", "5", "--gateways", "3", "--rounds", "2", "--digests"]
    told = []
    for jobs in ("1", "2"):
        assert main([*words, "--no-progress", "--jobs", jobs]) == 0
        told.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("seed ")])
    assert len(told[0]) == 5
    assert told[0] == told[1]


def test_links_speeds_and_batteries_are_read_from_words() -> None:
    assert link_shape("2kB/s,300ms,5%") == Shape(rate=2000.0, latency=0.3, jitter=0.03, loss=0.05)
    assert link_shape("1.5s").latency == 1.5
    assert speeds("1:20") == (1.0, 20.0)
    night = battery_pattern("night", 0)
    assert night is not None
    shut = [night("g", 3600.0 * hour) for hour in range(24)]
    assert sum(shut) == 16
    share = battery_pattern("0.25", 0)
    assert share is not None
    assert 0.2 < sum(share(f"g{i}", 0.0) for i in range(1000)) / 1000 < 0.3


@pytest.mark.parametrize("word", ["2kB", "5", "-1ms", "95%", "x%"])
def test_a_link_that_cannot_be_is_refused_with_an_example(word: str) -> None:
    with pytest.raises(ValueError, match="2kB/s,300ms,5%"):
        link_shape(word)
