"""kill -9 of `fedmq watch run` at random moments, while machines break, alerts are raised, and a pager is told."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from fedmq_edge_node.alertbook import Alertbook
from paging import Pager
from watched import Plant

KILLS = 24
MACHINES = ("pump-1", "pump-2", "fan-3")
SETTINGS = """
store = "bridge.sqlite"
machines = "machines.toml"
state_dir = "{state}"
window_seconds = 1
every_seconds = 1
poll_seconds = 0.05
commit_seconds = 0.2
log_level = "warning"
[judging]
learning_windows = 20
learning_hours = 0
clear_windows = 3
"""
PAGER = """
[[webhook]]
name = "pager"
url = "{url}"
least_seconds = 0
most_per_hour = 100000
"""


def start(directory: Path, settings: str, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fedmq", "watch", "run", "--config", settings, *words],
        cwd=directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def until(watch: subprocess.Popen[bytes], happened: Callable[[], bool]) -> None:
    """To be killed while Python starts would show little."""
    deadline = time.monotonic() + 120.0
    while not happened():
        assert watch.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)


def finish(directory: Path, settings: str) -> None:
    ended = start(directory, settings, "--until-done")
    _, said = ended.communicate(timeout=120)
    assert ended.returncode == 0, said.decode()


def raised(path: Path) -> list[tuple[object, ...]]:
    """What a book says of every alert, but for its number and what people said."""
    book = Alertbook.existing(path)
    try:
        return sorted(
            (one.machine, one.kind, one.from_at, one.to_at, one.severity, round(one.level, 6), one.label)
            for one in book.alerts()
        )
    finally:
        book.close()


@pytest.mark.slow
def test_kills_at_any_moment_lose_no_alert_and_tell_nobody_twice(tmp_path: Path) -> None:
    rng = random.Random(11)
    plant, pager = Plant(tmp_path, MACHINES), Pager()
    (tmp_path / "machines.toml").write_text(
        "\n".join(
            f'[[machine]]\nname = "{name}"\n[machine.operating]\nrunning_from_g = 0.05\ndwell_seconds = 5\n'
            for name in MACHINES
        )
    )
    (tmp_path / "watch.toml").write_text(SETTINGS.format(state="watch") + PAGER.format(url=pager.url))
    wal = tmp_path / "watch" / "alerts.sqlite-wal"
    (tmp_path / "undisturbed.toml").write_text(SETTINGS.format(state="undisturbed"))
    try:
        for machine in MACHINES:
            plant.hear(30, machine=machine)
        finish(tmp_path, "watch.toml")
        killed, with_work_left, having_told = 0, 0, 0
        while killed < KILLS:
            # Machines break one after another and are well again, while the watch dies and comes back.
            for machine in MACHINES:
                plant.hear(4, rng.choice(("outer_race", "inner_race")), machine=machine)
                plant.hear(6, machine=machine)
            seen = wal.stat().st_mtime_ns if wal.exists() else 0
            watch = start(tmp_path, "watch.toml")
            told_before = len(pager.got)
            # Half of them soon after it has begun, the others around the moment at which somebody is told.
            if killed % 2:
                until(watch, lambda: wal.exists() and wal.stat().st_mtime_ns != seen)  # noqa: B023
            else:
                until(watch, lambda: len(pager.got) > told_before)  # noqa: B023
            time.sleep(rng.uniform(0.0, 0.3))
            assert watch.poll() is None, watch.stderr.read().decode() if watch.stderr else ""
            watch.send_signal(signal.SIGKILL)
            watch.communicate()
            killed += 1
            book = Alertbook.existing(tmp_path / "watch" / "alerts.sqlite")
            judged_until = max(one.at for one in book.positions().values())
            waiting = book.alerts(states=("open", "cleared"))
            if waiting:
                book.decide(rng.choice(waiting).id, "outer_race", who="ann", at=plant.now)
            book.close()
            with_work_left += judged_until < plant.now - 1.0
            having_told += len(pager.got) > told_before
        finish(tmp_path, "watch.toml")
        finish(tmp_path, "undisturbed.toml")
    finally:
        plant.recorder.close()
        pager.shutdown()
        pager.server_close()

    alerts = raised(tmp_path / "watch" / "alerts.sqlite")
    assert alerts == raised(tmp_path / "undisturbed" / "alerts.sqlite")
    assert len(alerts) >= 2 * KILLS
    assert with_work_left > 0
    assert having_told > 0

    book = Alertbook.existing(tmp_path / "watch" / "alerts.sqlite")
    happened = Counter((alert.id, step.what) for alert in book.alerts() for step in book.steps(alert.id))
    assert book.outbox() == []
    book.close()
    # A pager drops what it has had: the key says so. What is left, a person is told.
    once = {key: body for key, _, body in pager.got}
    told = Counter((step["alert"], step["step"]) for body in once.values() for step in body["steps"])
    wanted = {one: count for one, count in happened.items() if one[1] in ("raised", "changed", "cleared", "confirmed")}
    assert dict(told) == wanted
    assert all(once[key] == body for key, _, body in pager.got), "a repeat was not the same message"
    repeats = len(pager.got) - len(once)
    assert repeats <= KILLS
    print(
        f"{KILLS} kills, {with_work_left} with signal left to judge, {having_told} after it had told of something:"
        f" {len(alerts)} alerts, {len(once)} messages, {repeats} sent again with the key of the first"
    )
