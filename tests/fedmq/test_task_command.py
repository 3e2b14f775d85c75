"""`fedmq task`, `fedmq coordinator recover` and several tasks in settings, as a person at a terminal meets them."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fedmq_coordinator import folder
from fedmq_coordinator.job import TaskPlan
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.service import CRASH_POINTS
from fedmq_coordinator.settings import RoundSettings
from fedmq_protocol.messages import PersonalOutcome, PersonalTrial, Trial
from fedmq_protocol.settings import SettingsError, document, load
from fedmq_protocol.topics import Channel
from scripted_fleet import ScriptedFleet, scripted_task

from fedmq.cli import main
from fedmq.programs import build_coordinator, crash_point


@pytest.fixture
def fleet(tmp_path: Path) -> ScriptedFleet:
    """Two tasks after four versions; of the first one two versions were released."""
    plans = [
        TaskPlan(task=scripted_task("pumps"), rounds=RoundSettings(max_rounds=4, min_gateways=2, tags=("pump",))),
        TaskPlan(task=scripted_task("all"), rounds=RoundSettings(max_rounds=4, min_gateways=2)),
    ]
    tags = {"g0": ("pump",), "g1": ("pump", "line-2"), "g2": ("fan",)}
    fleet = ScriptedFleet(tmp_path, tasks=plans, tags=tags)
    fleet.run_to_rest()
    fleet.order("promote", "pumps", version=2)
    fleet.order("promote", "pumps", canary_pct=5.0)
    lineage = fleet.coordinator.job("pumps").line.number
    own = PersonalTrial(outcome=PersonalOutcome.SERVES, windows=40, metric=9500, shared=9000)
    trial = Trial(lineage=lineage, version=2, in_service=2, windows=9, metric=9000, personal=own)
    fleet.gateways["g0"].say(Channel.TRIAL, trial)
    fleet.run_for(0.5)
    fleet.order("pause", "all", tags=("fan",))
    return fleet


def test_the_list_is_a_table_and_json(fleet: ScriptedFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", "list", "--state", str(tmp_path)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert main(["task", "list", "--state", str(tmp_path), "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)

    assert [line.split()[0] for line in table] == ["task", "pumps", "all"]
    assert "release 2: v4 to 5 %; v2 on 1 (personal on 1)" in table[1]
    assert "2 of 2 here (line-2 1, pump 2)" in table[1]
    assert "running (not fan)" in table[2]
    assert [(line["name"], line["version"], line["rounds"]) for line in lines] == [("pumps", 4, 5), ("all", 4, 5)]
    assert lines[0]["in_service"] == {"2": 1}
    assert [line["personal"] for line in lines] == [{"serves": 1}, {}]
    assert [release["version"] for release in lines[0]["releases"]] == [2, 4]
    assert lines[1]["gateways"] == 3


def test_an_unknown_task_is_told_which_there_are(
    fleet: ScriptedFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["task", "pause", "pump", "--state", str(tmp_path)]) == 1
    assert f"no task 'pump' in {tmp_path}; there is pumps, all" in capsys.readouterr().err
    assert main(["task", "pause", "pumps", "--state", str(tmp_path / "x")]) == 1
    assert "name the coordinator's state directory" in capsys.readouterr().err
    for what in ("report", "status"):
        assert main([what, "--state", str(tmp_path), "--task", "pump"]) == 1
        assert "no task 'pump'" in capsys.readouterr().err


def test_without_a_coordinator_the_order_waits_and_that_is_said(
    fleet: ScriptedFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["task", "pause", "pumps", "--state", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.err == f"no coordinator runs in {tmp_path}: the order waits for its next start\n"
    assert [order.verb for order in fleet.ledger.orders_waiting()] == ["pause"]


def test_a_gateway_is_set_aside_by_a_command_and_taken_back_by_another(
    fleet: ScriptedFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("set-aside", "readmit"):
        assert main(["task", verb, "all", "g1", "--state", str(tmp_path)]) == 0
        assert "the order waits for its next start" in capsys.readouterr().err
    fleet.run_for(1.5)
    done = [(order.verb, order.done, order.result) for order in map(fleet.ledger.get_order, range(1, 50)) if order]
    assert done[-2:] == [
        (
            "set-aside",
            True,
            "g1 is set aside: not drawn any more, and what it sends is refused, until it is readmitted",
        ),
        ("readmit", True, "g1 takes part again, and its flag is lifted"),
    ]
    assert fleet.coordinator.job("pumps").book.flags() == [], "an order is for one task"


@pytest.mark.parametrize(
    "words",
    [
        ["promote", "pumps", "--canary", "0"],
        ["promote", "pumps", "--canary", "101"],
        ["promote", "pumps", "--version", "-1"],
        ["rollback", "pumps"],
        ["pause"],
        ["halt", "pumps"],
    ],
)
def test_a_wrong_command_line_is_refused(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["task", *words, "--state", str(tmp_path)])
    assert ended.value.code == 2


def test_reports_of_several_tasks_begin_with_what_they_came_to_together(
    fleet: ScriptedFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--state", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    titles = [f"Bandwidth report of {which}" for which in ("2 tasks together", "task pumps", "task all")]
    assert sorted(map(text.index, titles)) == list(map(text.index, titles))
    assert main(["report", "--state", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [report["task"] for report in found["tasks"]] == ["pumps", "all"]
    rounds = [one["id"] for one in found["together"]["rounds"]]
    assert rounds == sorted(one["id"] for report in found["tasks"] for one in report["rounds"])
    assert main(["report", "--state", str(tmp_path), "--json", "--task", "all"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "all"
    assert main(["report", "--state", str(tmp_path), "--csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [int(line["round"]) for line in lines] == rounds
    assert {line["task"] for line in lines} == {"pumps", "all"}
    page = tmp_path / "page.html"
    assert main(["report", "--state", str(tmp_path), "--html", str(page)]) == 0
    capsys.readouterr()
    written = page.read_text(encoding="utf-8")
    assert written.index("together") < written.index('id="task-0">Task pumps') < written.index('id="task-1">Task all')
    assert main(["status", "--state", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("gateways tagged fan pause") == 1


# -- settings of several tasks ---------------------------------------------------------------------------------

TASK = '[task]\nname = "{name}"\nclasses = ["normal", "inner"]\n[rounds]\ntags = ["{name}"]\n'


def configure(directory: Path, *more: str) -> Path:
    for name in more:
        (directory / f"{name}.toml").write_text(TASK.format(name=name), encoding="utf-8")
    files = ", ".join(f'"{name}.toml"' for name in more)
    config = directory / "coordinator.toml"
    config.write_text(f'state_dir = "state"\nmore_tasks = [{files}]\n{TASK.format(name="first")}', encoding="utf-8")
    return config


def test_more_tasks_stand_in_files_beside_the_settings(tmp_path: Path) -> None:
    from fedmq_coordinator.settings import CoordinatorSettings

    settings = load(CoordinatorSettings, configure(tmp_path, "pumps", "fans"))
    coordinator = build_coordinator(settings)

    assert [job.name for job in coordinator.jobs] == ["first", "pumps", "fans"]
    assert [row.name for row in Ledger(tmp_path / "state" / "ledger.sqlite").tasks()] == ["first", "pumps", "fans"]
    with pytest.raises(ValueError, match="another coordinator works in"):
        build_coordinator(settings)
    del coordinator
    assert not folder.is_held(tmp_path / "state")


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    from fedmq_coordinator.settings import CoordinatorSettings

    config = configure(tmp_path, "pumps")
    (tmp_path / "pumps.toml").write_text(TASK.format(name="first"), encoding="utf-8")
    with pytest.raises(SettingsError, match=r'task.name: "first" is the name of another task already \(in .*pumps'):
        build_coordinator(load(CoordinatorSettings, config))


def test_the_example_of_a_further_task_can_be_loaded(tmp_path: Path) -> None:
    from fedmq_coordinator.settings import MoreTaskSettings

    path = tmp_path / "more.toml"
    path.write_text(document(MoreTaskSettings), encoding="utf-8")
    assert load(MoreTaskSettings, path).task.name


# -- ends ------------------------------------------------------------------------------------------------------


def run(*words: str, crash_at: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedmq", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"FEDMQ_CRASH_AT": crash_at},
    )


def test_a_crash_point_kills_the_process_where_it_stands(tmp_path: Path) -> None:
    config = configure(tmp_path)
    ended = run("coordinator", "--config", str(config), crash_at="before commit")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert Ledger(tmp_path / "state" / "ledger.sqlite", read_only=True).tasks() == []

    ended = run("coordinator", "--config", str(config), crash_at="at noon")
    assert ended.returncode == 1
    assert "FEDMQ_CRASH_AT: expected NAME or NAME:N with one of before model file," in ended.stderr


def test_a_crash_point_counts_its_passings(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(number))
    monkeypatch.setenv("FEDMQ_CRASH_AT", "after plan:2")
    passing = crash_point(CRASH_POINTS)
    for name in ("after plan", "before plan", "after plan", "after plan"):
        passing(name)
        if name == "before plan":
            assert not killed
    assert killed == [signal.SIGKILL]


def test_recover_says_what_it_did(fleet: ScriptedFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet.kill_coordinator()
    backup = shutil.copytree(tmp_path, tmp_path.parent / "backup")
    config = configure(tmp_path)
    (tmp_path / "state").mkdir()
    arguments = ["coordinator", "recover", str(backup), "--config", str(config)]

    assert main([*arguments, "--set", "connection.federation=test"]) == 0

    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("task 'pumps': lineage ")
    assert "goes on from version 4 of lineage" in said[1]
    assert said[-1] == "start the coordinator: the fleet follows"
    assert main(arguments) == 1
    assert "belongs to federation 'test', not 'plant'" in capsys.readouterr().err


def test_a_ledger_that_cannot_be_used_ends_the_coordinator_with_an_error(tmp_path: Path) -> None:
    config = configure(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ledger.sqlite").write_bytes(b"\xff" * 8192)
    ended = run("coordinator", "--config", str(config))
    assert ended.returncode == 1
    assert "fedmq coordinator: cannot use the ledger" in ended.stderr
    assert "fedmq coordinator recover BACKUP" in ended.stderr
