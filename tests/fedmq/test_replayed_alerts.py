"""What a watch says of a replay: soon of a fault and by its name, nothing of a healthy machine, a stop or a start."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from fedmq_edge_node.alarms import Raised
from fedmq_edge_node.alertbook import Alertbook
from fedmq_edge_node.machines import Machine
from fedmq_edge_node.opinions import ScoringModel
from fedmq_edge_node.personal import Scorer
from fedmq_edge_node.watching import Model, Seen, Watcher, WatchPolicy, Window

import fedmq
from fedmq.cli import main
from fedmq.data import Fleet, Recording, cwru, gearbox, recordings_at
from fedmq.notebook import Result
from fedmq.watch.kept import Kept
from fedmq.watch.playing import Player, Span, parse_script
from fedmq.watch.replay import came_of_it, fault_began, play_into, simulated_machine, to_takes
from fedmq.watch.service import Watch

DATA = os.environ.get("FEDMQ_DATA", "")
WINDOW_SECONDS = 1.0
LEARNING = 30
LEARNING_SECONDS = 45
"""Of a script, with a machine that is seen for the first time."""
POLICY = WatchPolicy(learning_windows=LEARNING, learning_seconds=0.0)
FAULTS = ("inner_race", "ball", "outer_race")
MACHINE = Machine(name="pump-3", bearing="6205", speed_rpm=1770.0, iso_group=2)


def windows(player: Player) -> Iterator[Window]:
    count = round(WINDOW_SECONDS * player.rate_hz)
    signal = np.concatenate([block.values for block in player.blocks(count)])
    for first in range(0, len(signal) - count + 1, count):
        yield Window(
            sensor="replay",
            from_at=first / player.rate_hz,
            to_at=(first + count) / player.rate_hz,
            signal=signal[first : first + count],
            rate_hz=player.rate_hz,
        )


def watched(
    recordings: Sequence[Recording], script: str, machine: Machine = MACHINE, models: Sequence[Model] = ()
) -> tuple[list[tuple[Window, Seen]], tuple[Span, ...]]:
    player = Player(to_takes(recordings), parse_script(script), rate_hz=recordings[0].sampling_rate_hz)
    watcher = Watcher(machine, POLICY, models)
    return [(window, watcher.step(window)) for window in windows(player)], player.spans


def raised(seen: Sequence[tuple[Window, Seen]], before: float = np.inf) -> list[Raised]:
    every = [outcome for window, one in seen if window.to_at <= before for outcome in one.outcomes]
    return [outcome for outcome in every if isinstance(outcome, Raised)]


def windows_until(seen: Sequence[tuple[Window, Seen]], fault_at: float) -> int | None:
    """That lie wholly behind the fault's start, up to the one that raised an alert."""
    behind = [one for window, one in seen if window.from_at >= fault_at]
    for number, one in enumerate(behind, start=1):
        if any(isinstance(outcome, Raised) for outcome in one.outcomes):
            return number
    return None


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("began", [0.0, 0.3, 0.8])
def test_a_fault_is_told_within_two_windows_wherever_in_one_it_begins(fault: str, began: float) -> None:
    seen, spans = watched(simulated_machine(1), f"healthy:{LEARNING_SECONDS + 15 + began}s,{fault}:8s")
    assert not raised(seen, before=spans[-1].from_at)
    delay = windows_until(seen, spans[-1].from_at)
    assert delay is not None
    assert delay <= 2


def test_a_healthy_machine_is_left_alone() -> None:
    seen, _ = watched(simulated_machine(2, seconds=120.0), "healthy:120s")
    assert not raised(seen)
    assert sum(one.used for _, one in seen) > 100


def test_stops_and_starts_raise_nothing_and_teach_nothing() -> None:
    script = f"healthy:{LEARNING_SECONDS}s,stop:30s,start,healthy:30s,stop:15s,start:8s,healthy:30s"
    seen, spans = watched(simulated_machine(3), script)
    assert not raised(seen)
    still = [span for span in spans if span.state == "stopped"]
    assert len(still) == 2
    for window, one in seen:
        if any(span.from_at < window.to_at and window.from_at < span.to_at for span in still):
            assert not one.used, window.from_at
    moving = [span for span in spans if span.state != "running"]
    learnt = [begin for _, one in seen for begin in one.learnt]
    assert learnt
    for begin in learnt:
        assert not any(span.from_at < begin + WINDOW_SECONDS and begin < span.to_at for span in moving), begin
    # It works on behind them.
    assert all(one.used for _, one in seen[-10:])


def test_other_speeds_that_nothing_measures_raise_nothing_and_are_learnt_apart() -> None:
    script = (
        f"healthy:{LEARNING_SECONDS + 15}s,speed=0.8:10s,healthy:60s,speed=1:10s,healthy:40s,speed=1.15:5s,healthy:60s,"
        "speed=1:5s,healthy:30s"
    )
    seen, spans = watched(simulated_machine(7, seconds=60.0), script)
    assert not raised(seen)
    learnt = [begin for _, one in seen for begin in one.learnt]
    for span in spans:
        inside = [begin for begin in learnt if span.from_at < begin + WINDOW_SECONDS and begin < span.to_at]
        assert bool(inside) is (span.state == "running" and span.to_at != spans[-1].to_at), span
    bands = {one.band for window, one in seen if one.used}
    assert bands == {"all", "0.83 x speed", "1.10 x speed"}
    # A fault at another speed is told there, too: by the bearing's lines, which turn with the shaft.
    more = f"healthy:{LEARNING_SECONDS + 15}s,speed=0.9:5s,healthy:45s,outer_race:8s"
    seen, spans = watched(simulated_machine(7, seconds=60.0), more)
    assert not raised(seen, before=spans[-1].from_at)
    assert {outcome.kind for outcome in raised(seen)} >= {"defect"}
    assert [outcome.label for outcome in raised(seen) if outcome.kind == "defect"] == ["outer race"]


def test_a_fault_that_came_while_it_stood_is_told_once_it_runs() -> None:
    seen, spans = watched(simulated_machine(4), f"healthy:{LEARNING_SECONDS + 5}s,stop:20s,start,inner_race:30s")
    assert not raised(seen, before=spans[-1].from_at)
    assert {outcome.kind for outcome in raised(seen)} >= {"defect"}
    assert all(one.used for _, one in seen[-10:])


def test_another_speed_that_is_measured_is_no_fault() -> None:
    script = f"healthy:{LEARNING_SECONDS}s,speed=0.7:5s,healthy:30s,speed=1.1:5s,healthy:30s"
    player = Player(to_takes(simulated_machine(5)), parse_script(script), rate_hz=12_000.0)
    watcher = Watcher(MACHINE, POLICY)
    seen = []
    for window in windows(player):
        # As a tacho has it; on the way from one speed to another it is between the two.
        here = next(place for place, span in enumerate(player.spans) if span.to_at >= window.to_at)
        span, before = player.spans[here], player.spans[max(0, here - 1)].speed
        share = (window.to_at - span.from_at) / (span.to_at - span.from_at) if span.state == "changing" else 1.0
        speed = before + (span.speed - before) * share
        seen.append((window, watcher.step(replace(window, speed_hz=speed * 1770.0 / 60.0))))
    assert not raised(seen)
    for window, one in seen:
        if any(span.state == "changing" and span.from_at <= window.from_at < span.to_at for span in player.spans):
            assert not one.used, window.from_at


# --- with a classifier of a federation -------------------------------------------------------------------------------


def in_service(result: Result) -> ScoringModel:
    one = Scorer(
        task=result.task,
        version=1,
        engine=result._engine,
        scaler=result._scaler,
        shared=result.parameters,
        own=None,
    )
    return ScoringModel(one, "1")


def part(recording: Recording, start: float, stop: float) -> Recording:
    assert not isinstance(recording.signal, Path)
    n = len(recording.signal)
    return replace(recording, signal=recording.signal[round(start * n) : round(stop * n)])


def halved(fleet: Fleet, healthy: str = "normal") -> Fleet:
    """No gateway has what of healthy recordings is replayed."""
    return replace(
        fleet,
        gateways=tuple(
            replace(one, recordings=tuple(part(r, 0.0, 0.6) if r.label == healthy else r for r in one.recordings))
            for one in fleet.gateways
        ),
    )


needs_data = pytest.mark.skipif(not DATA, reason="FEDMQ_DATA names no folder of recordings")


@needs_data
@pytest.mark.slow
def test_faults_of_cwru_at_a_load_that_nobody_trained_on_are_named() -> None:
    folder = Path(DATA) / "cwru"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    model = in_service(fedmq.run("mlp", halved(cwru(folder, "fault", 2)), rounds=20))
    every = {one.name: one for one in recordings_at(folder)}
    machine = Machine(name="cwru", bearing="6205", speed_rpm=1750.0)
    for name, fault in (("107", "inner_race"), ("120", "ball"), ("132", "outer_race")):
        recordings = [replace(part(every["97"], 0.6, 1.0), name="rest"), part(every["97"], 0.0, 0.6), every[name]]
        script = f"normal@97:{LEARNING_SECONDS}s,normal@rest:10.4s,{fault}:8s"
        seen, spans = watched(recordings, script, machine, [model])
        assert not raised(seen, before=spans[-1].from_at), name
        delay = windows_until(seen, spans[-1].from_at)
        assert delay is not None, name
        assert delay <= 2, name
        assert [one.label for one in raised(seen) if one.kind == "fault"] == [fault]


@needs_data
@pytest.mark.slow
def test_a_broken_tooth_at_a_load_that_nobody_trained_on_is_named() -> None:
    folder = Path(DATA) / "gearbox"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    model = in_service(fedmq.run("mlp", gearbox(folder, 30), rounds=20))
    own = {one.label: one for one in recordings_at(folder) if one.name == "load30"}
    machine = Machine(name="gearbox", kind="gearbox", speed_rpm=1800.0)
    seen, spans = watched(list(own.values()), f"normal:{LEARNING_SECONDS + 10}s,broken_tooth:8s", machine, [model])
    assert not raised(seen, before=spans[-1].from_at)
    delay = windows_until(seen, spans[-1].from_at)
    assert delay is not None
    assert delay <= 2
    assert [one.label for one in raised(seen) if one.kind == "fault"] == ["broken_tooth"]


# --- through bridge, store, watch and book ---------------------------------------------------------------------------

START = 1_800_000_000.0


def watch(store: Path, book: Alertbook, tmp_path: Path) -> None:
    """All that is in the store, judged."""
    one = Watch(
        book=book,
        store=store,
        machines={MACHINE.name: MACHINE},
        policy=POLICY,
        kept=Kept(tmp_path / "kept", seconds=0.0, most_bytes=1 << 20),
        window_seconds=WINDOW_SECONDS,
        every_seconds=WINDOW_SECONDS,
        unix=lambda: START,
    )
    one.run(until_done=True)


def test_a_replay_through_bridge_and_store_comes_to_alerts_in_the_book(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, path = tmp_path / "bridge.sqlite", tmp_path / "alerts.sqlite"
    words = ["replay", "simulated", "--store", str(store), "--machine", MACHINE.name, "--from", "2026-11-29T08:00"]
    script = f"healthy:{LEARNING_SECONDS + 15}s,stop:15s,start,healthy:20s,inner_race:15s"
    assert main([*words, "--script", script]) == 0
    book = Alertbook(path)
    watch(store, book, tmp_path)
    alerts = book.alerts(machine=MACHINE.name)
    book.close()
    assert "defect" in {alert.kind for alert in alerts}

    shown = capsys.readouterr().out.splitlines()
    fault = next(line for line in shown if "inner_race" in line)
    began = datetime.fromisoformat(fault.split(" to ")[0].strip()).timestamp()
    # A window that holds the fault's first moment may be the first of the two.
    assert all(began < alert.opened_at <= began + 3 * WINDOW_SECONDS for alert in alerts)

    # Played on behind that, with the book at hand: nothing has judged it yet.
    assert main([*words[:-2], "--script", "healthy:20s", "--watch", str(path)]) == 0
    assert "no watch has judged any of it yet" in capsys.readouterr().out


def test_what_came_of_a_replay_is_told_with_how_long_it_had_been_there(tmp_path: Path) -> None:
    store = tmp_path / "bridge.sqlite"
    script = f"healthy:{LEARNING_SECONDS + 15}s,outer_race:15s"
    player = Player(to_takes(simulated_machine(6)), parse_script(script), rate_hz=12_000.0)
    played = play_into(store, player, machine=MACHINE.name, from_at=START)
    book = Alertbook(tmp_path / "alerts.sqlite")
    assert list(came_of_it(book, MACHINE.name, played)) == ["no watch has judged any of it yet: `fedmq watch run` does"]
    watch(store, book, tmp_path)
    first, *lines = came_of_it(book, MACHINE.name, played)
    assert first == f"{len(lines)} alerts came of it"
    assert any("defect (outer race)" in line for line in lines)
    assert all("s after outer_race began" in line for line in lines)

    more = Player(to_takes(simulated_machine(6)), parse_script("outer_race:10s"), rate_hz=12_000.0)
    again = play_into(store, more, machine=MACHINE.name, from_at=played.to_at + 2.0)
    watch(store, book, tmp_path)
    told = list(came_of_it(book, MACHINE.name, again))
    assert told[0].startswith("open from before, and not raised again: alert ")
    assert told[1:] == ["0 alerts came of it"]
    book.close()


def test_a_fault_is_there_from_where_it_began_also_over_a_stop() -> None:
    player = Player(
        to_takes(simulated_machine(0, seconds=1.0)),
        parse_script("healthy:10s,ball:10s,stop:10s,start:2s,ball:10s,healthy:10s"),
        rate_hz=12_000.0,
    )
    assert fault_began(player.spans, 5.0) is None
    assert fault_began(player.spans, 12.0) == ("ball", 2.0)
    assert fault_began(player.spans, 40.0) == ("ball", 30.0)
    assert fault_began(player.spans, 50.0) is None
