"""kill -9 of `fedmq watch run` at each of its crash points: no alert is lost, and none is told twice but by a repeat
that carries the key of the first."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from fedmq_edge_node.alertbook import Alertbook
from fedmq_firmware_bridge.store import Store
from paging import Pager, Post
from watched import PUMP, Plant

from fedmq.watch.service import CRASH_POINTS

SIGKILLED = -9
VERDICT_POINTS = ("before label", "after label")


class Site:
    """A store with a fault in it, settings, and who is told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        plant = Plant(directory)
        plant.hear(30)
        plant.hear(4, "outer_race")
        plant.hear(8)
        plant.recorder.close()
        self.pager, self.post = Pager(), Post()
        (directory / "machines.toml").write_text(
            f'[[machine]]\nname = "{PUMP}"\n[machine.operating]\nrunning_from_g = 0.05\ndwell_seconds = 5\n'
        )
        (directory / "watch.toml").write_text(
            f"""
store = "bridge.sqlite"
machines = "machines.toml"
state_dir = "watch"
window_seconds = 1
every_seconds = 1
poll_seconds = 0.05
commit_seconds = 0
[judging]
learning_windows = 20
learning_hours = 0
clear_windows = 3
[[webhook]]
name = "pager"
url = "{self.pager.url}"
least_seconds = 0
[[email]]
name = "people"
host = "127.0.0.1"
port = {self.post.port}
security = "none"
sender = "fedmq@plant.example"
to = ["ann@plant.example"]
least_seconds = 0
"""
        )

    def run(self, crash_at: str | None = None) -> int:
        environment = dict(os.environ) | ({"FEDMQ_CRASH_AT": crash_at} if crash_at else {})
        ended = subprocess.run(
            [sys.executable, "-m", "fedmq", "watch", "run", "--config", "watch.toml", "--until-done"],
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode in (0, SIGKILLED), ended.stderr
        return ended.returncode

    def close(self) -> None:
        for server in (self.pager, self.post):
            server.shutdown()
            server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "fault"),
    [(point, "outer_race") for point in CRASH_POINTS] + [(point, "other: unbalance") for point in VERDICT_POINTS],
)
def test_a_kill_loses_no_alert_and_repeats_none_without_its_key(tmp_path: Path, point: str, fault: str) -> None:
    site = Site(tmp_path)
    try:
        verdict = point in VERDICT_POINTS
        if verdict:
            site.run()
            _decide(site, fault)
        assert site.run(point) == SIGKILLED, f"{point!r} was never passed"
        if not verdict:
            site.run()
            _decide(site, fault)
        assert site.run() == 0
    finally:
        site.close()
    book = Alertbook.existing(tmp_path / "watch" / "alerts.sqlite")
    (alert,) = book.alerts()
    assert (alert.state, alert.verdict) == ("confirmed", fault)
    assert [step.what for step in book.steps(alert.id)] == ["raised", "cleared", "confirmed"]
    assert book.outbox() == []
    _told_once([(key, tuple(step["step"] for step in body["steps"])) for key, _, body in site.pager.got])
    assert {step["step"] for _, _, body in site.pager.got for step in body["steps"]} == {
        *("raised", "cleared", "confirmed")
    }
    assert len({mail["Message-ID"] for _, mail in site.post.got}) == 1
    assert len(site.post.got) <= (2 if point == "after send" else 1)
    labels = [
        piece.label
        for run in Store(tmp_path / "bridge.sqlite").runs()
        for piece in Store(tmp_path / "bridge.sqlite").pieces(run)
    ]
    label, folder = (fault, fault) if fault == "outer_race" else ("set-aside", ".set-aside")
    assert Counter(labels) == {"unlabelled": 38, label: 4}
    assert {path.parent.name for path in (tmp_path / "watch" / "kept").rglob("*.npy")} == {folder}


def _decide(site: Site, fault: str) -> None:
    book = Alertbook.existing(site.directory / "watch" / "alerts.sqlite")
    (alert,) = book.alerts()
    book.decide(alert.id, fault, who="ann", at=alert.opened_at + 100)
    book.close()


def _told_once(told: list[tuple[str, tuple[str, ...]]]) -> None:
    """By whoever drops a message whose key it has seen; and one kill repeats one message at most."""
    steps = Counter(step for _, message in dict.fromkeys(told) for step in message)
    assert all(count == 1 for count in steps.values()), told
    assert len(told) - len({key for key, _ in told}) <= 1, told
