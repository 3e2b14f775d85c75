"""Real recordings in virtual time: stragglers, leavers, and the two modes of aggregation, on CWRU's bearings."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from fedmq_edge_node.runtimes import Engine, make_engine
from processes import cwru_folder

from fedmq.cli import main
from fedmq.simulate import program
from fedmq.simulate.world import Scenario

FINAL = 1.0
"""Macro-F1 of the undisturbed run on the unseen load, seeds 0 to 2, to two digits."""


def simulated(tmp_path: Path, *words: str) -> dict[str, Any]:
    target = tmp_path / "figures.json"
    fixed = ["--data", f"cwru:{cwru_folder()}", "--test-load", "2", "--rounds", "40", "--no-progress"]
    assert main(["simulate", *fixed, *words, "--json", str(target)]) == 0
    found = json.loads(target.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def final(found: dict[str, Any]) -> float:
    return float(found["metrics"][-1][1])


@pytest.mark.parametrize("late", ["refuse", "weigh"])
@pytest.mark.parametrize("who", ["--stragglers", "--leavers"])
def test_with_a_third_of_the_fleet_slow_or_leaving_rounds_close_in_time_and_the_model_is_as_good(
    tmp_path: Path, who: str, late: str
) -> None:
    found = simulated(tmp_path, who, "0.3", "--closing-seconds", "20", "--set", f"rounds.late={late}")
    assert found["closed_late"] == 0
    assert found["round_seconds_most"] < 21.5
    assert found["updates"] < 7 * 40, "nobody was slow, and nobody left"
    assert final(found) >= FINAL - 0.01


@pytest.mark.parametrize("seed", ["0", "1"])
def test_buffered_rounds_reach_the_metric_in_less_virtual_time_where_gateways_differ_in_speed(
    tmp_path: Path, seed: str
) -> None:
    words = ("--seed", seed, "--speeds", "1:20", "--window-seconds", "0.05", "--target", "0.98")
    sync = simulated(tmp_path, *words)
    buffered = simulated(
        tmp_path, *words, "--rounds", "200", "--set", "rounds.aggregation=buffered", "--set", "rounds.buffer_updates=3"
    )
    assert sync["reached"] is not None
    assert buffered["reached"] is not None
    assert buffered["reached"]["seconds"] < sync["reached"]["seconds"]
    assert final(buffered) >= final(sync) - 0.01


def flagged(caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    """Gateways that the coordinator's log names, and why."""
    found = [r.getMessage().partition(" is flagged: ") for r in caplog.records if " is flagged: " in r.getMessage()]
    return {name: why for name, _, why in found}


@pytest.mark.parametrize("split", ["fault", "severity"])
def test_gateways_that_have_seen_different_faults_are_neither_flagged_nor_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, split: str
) -> None:
    caplog.set_level(logging.WARNING)
    found = simulated(tmp_path, "--split", split, "--log-level", "warning")
    assert flagged(caplog) == {}
    assert found["refused"] == 0


class Climbing:
    """An engine whose gradients lead uphill."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def loss_grad(self, *given: Any) -> Any:
        gradient, loss = self._inner.loss_grad(*given)
        return -gradient, loss


def test_a_gateway_that_climbs_where_all_others_descend_is_flagged_within_fifteen_rounds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = program._scenario

    def scenario(*given: Any) -> Scenario:
        return dataclasses.replace(
            made(*given),
            engines=lambda unit, task, bundle: (
                Climbing(make_engine(task.model)) if unit.name == "load0-07mil" else make_engine(task.model)  # type: ignore[return-value]
            ),
        )

    monkeypatch.setattr(program, "_scenario", scenario)
    caplog.set_level(logging.WARNING)
    simulated(tmp_path, "--split", "severity", "--rounds", "15", "--log-level", "warning")
    assert "load0-07mil" in flagged(caplog)
