"""Rules and dashboard for Prometheus and Grafana: they load, each alert is raised and not raised, and both ask for
metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedmq.metrics.page import FILES, groups

RULES, DASHBOARD = FILES
UNIT_TESTS = Path(__file__).parent / "fedmq.rules.test.yml"
KNOWN = {
    shown
    for _, metrics in groups()
    for metric in metrics
    for shown in (
        [f"{metric.name}_{part}" for part in ("bucket", "sum", "count")]
        if metric.kind == "histogram"
        else [metric.shown]
    )
}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus"
)


def expressions() -> Iterator[tuple[str, str]]:
    """Of rules and panels, with whose they are."""
    for found in re.finditer(r"- alert: (\w+)\n +expr: (\|\n(?: {10,}.*\n)+|.*\n)", RULES.read_text(encoding="utf-8")):
        yield found[1], found[2]
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def alerts() -> list[str]:
    return re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8"))


@needs_promtool
def test_rules_load_as_they_are() -> None:
    checked = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(alerts())} rules found" in checked.stdout


@needs_promtool
def test_each_alert_is_raised_where_it_must_be() -> None:
    checked = subprocess.run(
        ["promtool", "test", "rules", UNIT_TESTS.name], cwd=UNIT_TESTS.parent, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_there_is_a_test_that_raises_each_alert() -> None:
    raised = re.findall(
        r"- eval_time: \S+\n +alertname: (\w+)\n +exp_alerts:\n", UNIT_TESTS.read_text(encoding="utf-8")
    )
    assert set(raised) == set(alerts())


def test_rules_and_panels_ask_for_metrics_that_there_are() -> None:
    asked = list(expressions())
    assert len(asked) > len(alerts()) + 30
    for whose, expression in asked:
        names = set(re.findall(r"\bfedmq_\w+", expression))
        assert names, whose
        assert names <= KNOWN, f"{whose} asks for {names - KNOWN}"


def test_every_counter_is_asked_for_its_growth() -> None:
    """A counter begins anew with its process: what it stands at says little but for sums since the start."""
    counters = {metric.shown for _, metrics in groups() for metric in metrics if metric.kind == "counter"}
    for whose, expression in expressions():
        if whose == "Since the start":
            continue
        for name in counters & set(re.findall(r"\bfedmq_\w+", expression)):
            assert re.search(rf"(rate|increase)\({name}\b[^)]*\[", expression), f"{whose}: {name}"


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    board: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert (board["uid"], board["title"]) == ("fedmq", "fedmq")
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert [variable["name"] for variable in board["templating"]["list"]] == ["source", "task", "gateway"]
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies over another one"
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${source}"
