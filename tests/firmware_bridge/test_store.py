"""The ring on disk: what is flushed stays, what is labelled stays longer, and what does not belong is not joined."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedmq_firmware_bridge.store import UNLABELLED, Recorder, Store, StoreError
from sensors import INFO, is_whole, kept, stretch


def recorder(path: Path, max_bytes: int = 1 << 30) -> Recorder:
    return Recorder(path, max_bytes=max_bytes, opened_at=0.0, flush_seconds=30.0, flush_bytes=1000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bridge.sqlite"


@pytest.fixture
def writer(path: Path) -> Iterator[Recorder]:
    opened = recorder(path)
    yield opened
    opened.close()


def fill(writer: Recorder, samples: int, batches: int, first: int = 0) -> None:
    for number in range(batches):
        writer.append(INFO, stretch(first + number * samples, samples), 0.0)
        writer.flush(0.0, {})


def test_stretches_that_follow_each_other_are_one_run_over_flushes(writer: Recorder) -> None:
    fill(writer, 100, 3)
    ((run, numbers),) = kept(writer)
    assert numbers.tolist() == list(range(300))
    assert (run.rate_hz, run.scale, run.width, run.sensor) == (1000.0, 0.01, 3, INFO)
    assert (run.taken_at, run.ended_at) == (0.0, pytest.approx(0.3))


@pytest.mark.parametrize(
    "change",
    [{"follows": False}, {"rate_hz": 900.0}, {"scale": 0.02}, {"values": np.zeros((10, 2), dtype=np.int16)}],
    ids=["gap", "rate", "scale", "channels"],
)
def test_what_does_not_go_on_begins_a_run(writer: Recorder, change: dict[str, object]) -> None:
    writer.append(INFO, stretch(0, 10), 0.0)
    writer.append(INFO, replace(stretch(10, 10), **change), 0.0)  # type: ignore[arg-type]
    writer.flush(0.0, {})
    assert [run.stop - run.start for run in writer.runs()] == [10, 10]


def test_a_sensor_that_says_who_it_is_begins_a_run(writer: Recorder) -> None:
    writer.append(replace(INFO, channels=()), stretch(0, 10), 0.0)
    writer.append(INFO, stretch(10, 10), 0.0)
    writer.flush(0.0, {})
    assert [len(run.sensor.channels) for run in writer.runs()] == [0, 3]


def test_numbers_that_are_no_steps_come_back_as_they_were(writer: Recorder) -> None:
    values = np.array([[21.5], [1e30]], dtype=np.float32)
    writer.append(INFO, stretch(0, 2, values=values, scale=1.0), 0.0)
    writer.flush(0.0, {})
    (run,) = writer.runs()
    assert np.array_equal(writer.read(run, 0, 2), values)


def test_nothing_is_written_before_a_flush(writer: Recorder, path: Path) -> None:
    writer.append(INFO, stretch(0, 10), 0.0)
    assert writer.pending_bytes == 60
    assert Store(path).runs() == []
    assert writer.flush(0.0, {}) == 60
    assert writer.pending_bytes == 0
    assert len(Store(path).runs()) == 1


def test_a_second_bridge_is_refused(writer: Recorder, path: Path) -> None:
    with pytest.raises(StoreError, match="another bridge writes to"):
        recorder(path)


def test_a_label_cuts_a_run_where_its_time_begins_and_ends(writer: Recorder) -> None:
    fill(writer, 100, 3)
    assert writer.label("pump-3", 0.05, 0.25, "inner-race", noted_at=9.0) == 3
    writer.label("pump-4", 0.0, 1.0, "ball", noted_at=9.0)
    (run,) = writer.runs()
    assert [(piece.start, piece.stop, piece.label) for piece in writer.pieces(run)] == [
        (0, 50, UNLABELLED),
        (50, 250, "inner-race"),
        (250, 300, UNLABELLED),
    ]


def test_of_two_labels_the_later_one_holds(writer: Recorder) -> None:
    fill(writer, 100, 1)
    writer.label("pump-3", 0.0, 0.1, "normal", noted_at=1.0)
    writer.label("pump-3", 0.02, 0.04, "ball", noted_at=2.0)
    writer.label("pump-3", 0.03, 0.05, UNLABELLED, noted_at=3.0)
    (run,) = writer.runs()
    labels = [(piece.start, piece.stop, piece.label) for piece in writer.pieces(run)]
    assert labels == [(0, 20, "normal"), (20, 30, "ball"), (30, 50, UNLABELLED), (50, 100, "normal")]


def test_a_label_meets_samples_by_their_own_times_where_the_oscillator_is_off(writer: Recorder) -> None:
    """Two per cent too fast: after the batches have said when they began, a label is off by less than one of them."""
    for number in range(10):
        writer.append(INFO, stretch(number * 100, 100, taken_at=number * 0.098), 0.0)
        writer.flush(0.0, {})
    writer.label("pump-3", 0.882, 0.98, "ball", noted_at=1.0)
    (run,) = writer.runs()
    (piece,) = [piece for piece in writer.pieces(run) if piece.label == "ball"]
    assert abs(piece.start - 900) <= 2


@pytest.mark.parametrize("label", ["", "a/b", ".hidden", "x" * 65, "two\nlines", " blank"])
def test_a_label_that_no_folder_could_have_is_refused(writer: Recorder, label: str) -> None:
    with pytest.raises(StoreError, match="label"):
        writer.label("pump-3", 0.0, 1.0, label, noted_at=0.0)


def test_the_ring_keeps_within_its_bound_and_loses_the_oldest(path: Path) -> None:
    writer = recorder(path, max_bytes=20_000)
    fill(writer, 100, 200)
    assert writer.sample_bytes() <= 20_000
    ((_, numbers),) = kept(writer)
    assert is_whole(numbers)
    assert numbers[-1] == 19_999
    size = path.stat().st_size
    fill(writer, 100, 200, first=20_000)
    assert path.stat().st_size <= size + 20_000, "freed pages are used again"
    writer.close()


def test_labelled_samples_go_last_and_what_is_left_around_a_hole_is_not_joined(path: Path) -> None:
    writer = recorder(path, max_bytes=20_000)
    fill(writer, 100, 10)
    writer.label("pump-3", 0.2, 0.4, "ball", noted_at=1.0)
    fill(writer, 100, 100, first=1000)
    runs = kept(writer)
    assert runs[0][0].start == 200
    assert runs[0][1].tolist() == list(range(200, 400))
    assert all(is_whole(numbers) for _, numbers in runs)
    assert writer.sample_bytes() <= 20_000
    writer.close()


def test_labels_do_not_crowd_out_what_is_new(path: Path) -> None:
    writer = recorder(path, max_bytes=20_000)
    writer.label("pump-3", 0.0, 1e9, "normal", noted_at=1.0)
    fill(writer, 100, 100)
    ((_, numbers),) = kept(writer)
    assert numbers[-1] == 9_999
    assert writer.sample_bytes() <= 20_000
    writer.close()


def test_a_run_whose_samples_are_all_gone_from_the_ring_goes_on(path: Path) -> None:
    writer = recorder(path, max_bytes=500)
    fill(writer, 100, 5)
    assert writer.runs() == [], "not even one batch fits"
    writer.append(INFO, stretch(500, 10), 0.0)
    writer.flush(0.0, {})
    ((_, numbers),) = kept(writer)
    assert numbers.tolist() == list(range(500, 510))
    writer.close()


def test_damage_on_disk_is_told_and_never_given_out(writer: Recorder, path: Path) -> None:
    fill(writer, 100, 2)
    with sqlite3.connect(path) as db:
        samples = bytearray(db.execute("SELECT samples FROM samples WHERE batch = 1").fetchone()[0])
        samples[17] ^= 1
        db.execute("UPDATE samples SET samples = ? WHERE batch = 1", (bytes(samples),))
    (run,) = writer.runs()
    with pytest.raises(StoreError, match="damaged on disk"):
        writer.read(run, 0, 200)
    assert len(writer.read(run, 100, 200)) == 100


def test_a_flush_that_fails_loses_nothing(writer: Recorder, path: Path) -> None:
    writer.append(INFO, stretch(0, 10), 0.0)
    with sqlite3.connect(path) as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON batches BEGIN SELECT raise(ABORT, 'disk full'); END")
    with pytest.raises(StoreError, match="disk full"):
        writer.flush(0.0, {})
    writer.append(INFO, stretch(10, 10), 0.0)
    assert writer.pending_bytes == 120
    with sqlite3.connect(path) as db:
        db.execute("DROP TRIGGER full")
    writer.flush(0.0, {})
    ((_, numbers),) = kept(writer)
    assert numbers.tolist() == list(range(20))


def test_what_is_dropped_is_a_gap(writer: Recorder) -> None:
    writer.append(INFO, stretch(0, 10), 0.0)
    assert writer.forget_pending() == 60
    writer.append(INFO, stretch(10, 10), 0.0)
    writer.flush(0.0, {})
    ((_, numbers),) = kept(writer)
    assert numbers.tolist() == list(range(10, 20))


def test_a_reader_sees_one_state_while_the_bridge_writes(writer: Recorder, path: Path) -> None:
    fill(writer, 100, 1)
    reader = Store(path)
    with reader.snapshot():
        before = reader.mark()
        fill(writer, 100, 1, first=100)
        assert reader.mark() == before
    assert reader.mark() != before


def test_a_store_that_is_not_there_or_something_else_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="fedmq bridge run"):
        Store(tmp_path / "none.sqlite")
    other = tmp_path / "other.sqlite"
    other.write_text("something else altogether, and long enough to be looked at" * 20)
    with pytest.raises(StoreError, match="expected a bridge's store"):
        Store(other)


def test_a_bridge_that_ended_in_order_has_lost_nothing(path: Path) -> None:
    recorder(path).close()
    again = recorder(path)
    assert again.lost is None
    again.close()


WRITER = """
import sys
from pathlib import Path
from fedmq_firmware_bridge.store import Recorder
from sensors import INFO, stretch
writer = Recorder(Path(sys.argv[1]), max_bytes=1 << 30, opened_at=0.0, flush_seconds=30.0, flush_bytes=1000)
number = 0
while True:
    for _ in range(5):
        writer.append(INFO, stretch(number * 50, 50), 0.0)
        number += 1
    writer.flush(float(number), {})
    print(number * 50, flush=True)
"""


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_time_the_store_opens_clean_and_has_all_that_was_flushed(path: Path, seed: int) -> None:
    flushes = random.Random(seed).randrange(1, 60)
    pause = random.Random(-seed).random() / 100
    support = str(Path(__file__).resolve().parents[1] / "support")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([support, *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(flushes)]
        try:
            process.wait(pause)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().split()]
    again = recorder(path)
    assert again.lost is not None
    assert "at most 30 s or 1,000 bytes of samples" in str(again.lost)
    ((_, numbers),) = kept(again)
    assert is_whole(numbers)
    assert len(numbers) >= told[-1], "what a flush had told of is there"
    assert len(numbers) % 250 == 0, "a batch is there whole or not at all"
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    again.close()
