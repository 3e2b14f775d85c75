"""The bridge at work, with sources that tests play."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fedmq_firmware_bridge.service import Bridge, Keeping
from fedmq_firmware_bridge.sources import Emit, Heard
from fedmq_firmware_bridge.store import Recorder, Store
from sensors import INFO, Played, kept, stretch


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bridge.sqlite"


@pytest.fixture
def made(path: Path) -> Iterator[Callable[..., Bridge]]:
    recorders = []

    def make(**more: object) -> Bridge:
        recorder = Recorder(path, max_bytes=1 << 30, opened_at=0.0)
        recorders.append(recorder)
        values: dict[str, object] = {"sources": [Played()], "flush_seconds": 60.0, "flush_bytes": 1 << 20}
        return Bridge(recorder=recorder, monotonic=lambda: 5.0, unix=lambda: 1005.0, **(values | more))  # type: ignore[arg-type]

    yield make
    for recorder in recorders:
        recorder.close()


def heard(first: int, count: int) -> Heard:
    return Heard(sensor=INFO, stretch=stretch(first, count))


def test_what_is_heard_is_in_the_store_by_the_clock_on_the_wall(made: Callable[..., Bridge], path: Path) -> None:
    bridge = made()
    bridge.take([heard(0, 10)])
    bridge.flush()
    ((run, numbers),) = kept(Store(path))
    assert numbers.tolist() == list(range(10))
    assert run.taken_at == 1000.0


def test_the_store_tells_how_sources_and_sensors_are(made: Callable[..., Bridge], path: Path) -> None:
    bridge = made()
    bridge.take([heard(0, 10)])
    bridge.flush()
    reports = Store(path).reports()
    assert reports["at"] == 1005.0
    assert reports["sources"]["motor"]["failed"] == 2
    assert [(one["name"], one["last_seen_at"]) for one in reports["sensors"]] == [("counting", 1005.0)]


def test_a_part_of_the_time_is_kept_and_parts_are_not_joined(made: Callable[..., Bridge], path: Path) -> None:
    bridge = made(keeping={"motor": Keeping(seconds=1.0, every_seconds=4.0)})
    for number in range(80):
        bridge.take([heard(number * 100, 100)])
    bridge.flush()
    runs = kept(Store(path))
    assert [(numbers[0], len(numbers)) for _, numbers in runs] == [(0, 1000), (4000, 1000)]
    assert Store(path).reports()["sensors"][0]["samples"] == 8000, "health is of all that came"


def test_a_full_disk_is_tried_again_then_samples_are_dropped_told_and_not_joined(
    made: Callable[..., Bridge], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bridge = made(flush_bytes=1000)
    with sqlite3.connect(path) as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON batches BEGIN SELECT raise(ABORT, 'disk full'); END")
    with caplog.at_level(logging.ERROR):
        for number in range(10):
            bridge.take([heard(number * 100, 100)])
            bridge.flush()
    assert "disk full" in caplog.text
    assert "4200 bytes of samples are dropped" in caplog.text
    with sqlite3.connect(path) as db:
        db.execute("DROP TRIGGER full")
    bridge.flush()
    ((_, numbers),) = kept(Store(path))
    assert numbers.tolist() == list(range(700, 1000))
    assert Store(path).reports()["dropped_bytes"] == 4200


def test_enough_bytes_are_written_before_the_time_has_come(path: Path) -> None:
    seen = threading.Event()

    def do(emit: Emit) -> None:
        emit([heard(0, 1000)])

    recorder = Recorder(path, max_bytes=1 << 30, opened_at=0.0)
    flush = recorder.flush

    def flushed(now: float, reports: object) -> int:
        written = flush(now, reports)  # type: ignore[arg-type]
        if written:
            seen.set()
        return written

    recorder.flush = flushed  # type: ignore[method-assign, assignment]
    bridge = Bridge(sources=[Played(do=do)], recorder=recorder, flush_seconds=3600.0, flush_bytes=1000)
    thread = threading.Thread(target=bridge.run)
    thread.start()
    assert seen.wait(60)
    bridge.stopping = True
    thread.join(60)
    assert not thread.is_alive()


def test_told_to_stop_it_writes_what_it_has(path: Path) -> None:
    came = threading.Event()

    def do(emit: Emit) -> None:
        emit([heard(0, 10)])
        came.set()

    recorder = Recorder(path, max_bytes=1 << 30, opened_at=0.0)
    bridge = Bridge(sources=[Played(do=do)], recorder=recorder, flush_seconds=3600.0, flush_bytes=1 << 20)
    thread = threading.Thread(target=bridge.run)
    thread.start()
    assert came.wait(60)
    bridge.stopping = True
    thread.join(60)
    assert len(kept(Store(path))) == 1
    again = Recorder(path, max_bytes=1 << 30, opened_at=0.0)
    assert again.lost is None
    again.close()


def test_a_bug_in_a_source_ends_the_bridge_and_is_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def do(emit: Emit) -> None:
        raise RuntimeError("a bug")

    recorder = Recorder(path, max_bytes=1 << 30, opened_at=0.0)
    Bridge(sources=[Played(do=do)], recorder=recorder, flush_seconds=3600.0, flush_bytes=1 << 20).run()
    assert "a bug" in caplog.text


def test_a_sensor_of_another_source_is_another_sensor(made: Callable[..., Bridge], path: Path) -> None:
    bridge = made(sources=[Played("motor"), Played("fan")])
    bridge.take([heard(0, 10), Heard(sensor=replace(INFO, source="fan"), stretch=stretch(10, 10))])
    bridge.flush()
    assert sorted(run.sensor.source for run in Store(path).runs()) == ["fan", "motor"]
